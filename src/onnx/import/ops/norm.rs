//! Softmax and normalisations.

use snlp_passes::ir::{Binary, DType, Op, Reduce, Unary, ValueId};

use super::composed::{binary, per_channel};
use super::layout::matrix_shape;
use super::{Builder, Built, Decline, NodeContext};

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Softmax" => |c| softmax(c, |axis| Op::Softmax { axis }),
        "LogSoftmax" => |c| softmax(c, |axis| Op::LogSoftmax { axis }),
        "LayerNormalization" => layer_norm,
        "RMSNormalization" | "SimplifiedLayerNormalization" => rms_norm,
        "BatchNormalization" => batch_norm,
        _ => return None,
    })
}

/// Before opset 13 a softmax runs over all axes from `axis` on, as if they were one.
fn softmax(c: &mut NodeContext<'_>, op: fn(usize) -> Op) -> Built {
    let x = c.input(0)?;
    let shape = c.shape(x)?;
    let rank = shape.len();
    if c.opset >= 13 {
        if rank == 0 {
            return Err(Decline::Opaque);
        }
        let axis = c.axis(c.int("axis", -1)?, rank)?;
        return c.plain(op(axis), 1);
    }
    let axis = match c.int("axis", 1)? {
        // One past the last axis is allowed: the coerced matrix has one column.
        n if usize::try_from(n) == Ok(rank) => rank,
        n => c.axis(n, rank)?,
    };
    if axis + 1 == rank {
        return c.plain(op(axis), 1);
    }
    let flat = matrix_shape(c, &shape, axis)?;
    let back = c.add(Op::Shape { start: 0, end: rank }, &[x])?;
    let matrix = c.add(Op::Reshape { allow_zero: false }, &[x, flat])?;
    let result = c.add(op(1), &[matrix])?;
    Ok(vec![c.add(Op::Reshape { allow_zero: false }, &[result, back])?])
}

/// Also what ONNX Runtime's optimiser calls so in the standard domain before opset 17.
fn layer_norm(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let rank = c.rank(x)?;
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let epsilon = c.float("epsilon", 1e-5)?;
    let mut results = c.one(Op::LayerNorm { axis, epsilon })?;
    if c.wants(1) || c.wants(2) {
        results.extend(moments(c, x, (axis..rank).collect(), epsilon)?);
    }
    Ok(results)
}

/// Mean and reciprocal standard deviation over `axes`, in f32 for narrower types.
fn moments(
    c: &mut NodeContext<'_>,
    mut x: ValueId,
    axes: Vec<usize>,
    epsilon: f32,
) -> Result<[ValueId; 2], Decline> {
    if c.dtype(x)?.size() == 2 && c.int("stash_type", 1)? == 1 {
        x = c.add(Op::Cast { to: DType::F32 }, &[x])?;
    }
    let average = Op::Reduce { op: Reduce::Mean, axes, keepdims: true };
    let mean = c.add(average.clone(), &[x])?;
    let centred = binary(c, Binary::Sub, x, mean)?;
    let square = binary(c, Binary::Mul, centred, centred)?;
    let variance = c.add(average, &[square])?;
    let dtype = c.dtype(variance)?;
    let epsilon = c.graph.float_scalar(dtype, epsilon.into());
    let shifted = binary(c, Binary::Add, variance, epsilon)?;
    let deviation = c.add(Op::Unary(Unary::Sqrt), &[shifted])?;
    Ok([mean, c.add(Op::Unary(Unary::Reciprocal), &[deviation])?])
}

pub(super) fn rms_norm(c: &mut NodeContext<'_>) -> Built {
    c.only_first_result()?;
    let rank = c.rank(c.input(0)?)?;
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let epsilon = c.float("epsilon", 1e-5)?;
    c.one(Op::RmsNorm { axis, epsilon })
}

fn batch_norm(c: &mut NodeContext<'_>) -> Built {
    let epsilon = c.float("epsilon", 1e-5)?;
    if c.opset >= 14 && c.flag("training_mode", false)? {
        return training_batch_norm(c, epsilon);
    }
    c.only_first_result()?;
    // Up to opset 8 the moments could be those of each element.
    if c.opset < 9 && !c.flag("spatial", true)? {
        return Err(Decline::Opaque);
    }
    c.plain(Op::BatchNorm { epsilon }, 5)
}

/// Normalises by the batch's own moments and returns the moving averages.
fn training_batch_norm(c: &mut NodeContext<'_>, epsilon: f32) -> Built {
    let x = c.input(0)?;
    let (rank, dtype) = (c.rank(x)?, c.dtype(x)?);
    let axes: Vec<usize> = (0..rank).filter(|axis| *axis != 1).collect();
    let average = Op::Reduce { op: Reduce::Mean, axes, keepdims: false };
    let mean = c.add(average.clone(), &[x])?;
    let wide = per_channel(c, mean, rank)?;
    let centred = binary(c, Binary::Sub, x, wide)?;
    let square = binary(c, Binary::Mul, centred, centred)?;
    let variance = c.add(average, &[square])?;
    let (scale, bias) = (c.input(1)?, c.input(2)?);
    let y = c.add(Op::BatchNorm { epsilon }, &[x, scale, bias, mean, variance])?;
    let momentum = f64::from(c.float("momentum", 0.9)?);
    let (keep, take) = (c.graph.float_scalar(dtype, momentum), c.graph.float_scalar(dtype, 1.0 - momentum));
    let mut results = vec![y];
    for (i, new) in [(3, mean), (4, variance)] {
        let old = c.input(i)?;
        let (old, new) = (binary(c, Binary::Mul, old, keep)?, binary(c, Binary::Mul, new, take)?);
        results.push(binary(c, Binary::Add, old, new)?);
    }
    Ok(results)
}
