//! Softmax and normalisations.

use snlp_passes::ir::Op;

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
    c.only_first_result()?;
    let rank = c.rank(c.input(0)?)?;
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let epsilon = c.float("epsilon", 1e-5)?;
    c.one(Op::LayerNorm { axis, epsilon })
}

pub(super) fn rms_norm(c: &mut NodeContext<'_>) -> Built {
    c.only_first_result()?;
    let rank = c.rank(c.input(0)?)?;
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let epsilon = c.float("epsilon", 1e-5)?;
    c.one(Op::RmsNorm { axis, epsilon })
}

fn batch_norm(c: &mut NodeContext<'_>) -> Built {
    c.only_first_result()?;
    if c.flag("training_mode", false)? {
        return Err(Decline::Opaque);
    }
    let epsilon = c.float("epsilon", 1e-5)?;
    c.plain(Op::BatchNorm { epsilon }, 5)
}
