//! Operators that the IR has no counterpart of, as the specification composes them.

use snlp_passes::ir::{Binary, Dim, Op, Reduce, Unary, ValueId};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "GroupNormalization" => group_norm,
        "InstanceNormalization" => instance_norm,
        "LpNormalization" => lp_norm,
        "MeanVarianceNormalization" => mean_variance_norm,
        "Hardmax" => hardmax,
        "Shrink" => shrink,
        "GlobalMaxPool" => global_max_pool,
        "DepthToSpace" => depth_to_space,
        "SpaceToDepth" => space_to_depth,
        _ => return None,
    })
}

/// A reshape to sizes of which the run may have to find one.
pub(super) fn reshape(c: &mut NodeContext<'_>, x: ValueId, dims: &[Dim]) -> Result<ValueId, Decline> {
    let open: Vec<usize> = (0..dims.len()).filter(|i| !c.computable(&dims[*i])).collect();
    let mut target = dims.to_vec();
    match open[..] {
        [] => {}
        [one] if dims.iter().all(|d| d.known() != Some(0)) => target[one] = Dim::from(-1i64),
        _ => return Err(Decline::Opaque),
    }
    let target = c.dims(&target)?;
    c.add(Op::Reshape { allow_zero: false }, &[x, target])
}

fn reduce(c: &mut NodeContext<'_>, op: Reduce, axes: &[usize], x: ValueId) -> Result<ValueId, Decline> {
    c.add(Op::Reduce { op, axes: axes.to_vec(), keepdims: true }, &[x])
}

pub(super) fn binary(
    c: &mut NodeContext<'_>,
    op: Binary,
    a: ValueId,
    b: ValueId,
) -> Result<ValueId, Decline> {
    c.add(Op::Binary(op), &[a, b])
}

/// A factor per channel, with axes to broadcast along `[n, c, ..]` of `rank` axes.
pub(super) fn per_channel(c: &mut NodeContext<'_>, factor: ValueId, rank: usize) -> Result<ValueId, Decline> {
    let axes: Vec<usize> = (1..rank.saturating_sub(1)).collect();
    if axes.is_empty() { Ok(factor) } else { c.add(Op::Unsqueeze { axes }, &[factor]) }
}

/// `x [n, c, ..]` with zero mean and unit variance over each of `groups` of channels.
fn normalised(c: &mut NodeContext<'_>, groups: &Dim) -> Result<ValueId, Decline> {
    let x = c.input(0)?;
    let shape = c.shape(x)?;
    let [batch, rest @ ..] = &shape[..] else { return Err(Decline::Opaque) };
    let each = Dim::product(rest).div_exact(groups).ok_or(Decline::Opaque)?;
    let epsilon = c.float("epsilon", 1e-5)?;
    let lines = reshape(c, x, &[batch.clone(), groups.clone(), each])?;
    let lines = c.add(Op::LayerNorm { axis: 2, epsilon }, &[lines])?;
    let back = c.add(Op::Shape { start: 0, end: shape.len() }, &[x])?;
    c.add(Op::Reshape { allow_zero: false }, &[lines, back])
}

fn group_norm(c: &mut NodeContext<'_>) -> Built {
    let given = c.int("num_groups", 0)?;
    let shape = c.shape(c.input(0)?)?;
    let (rank, channels) = (shape.len(), shape.get(1).cloned().ok_or(Decline::Opaque)?);
    if given < 1 {
        return Err(OnnxError::invalid(format!("has {given} groups")).into());
    }
    let groups = Dim::from(given);
    let mut y = normalised(c, &groups)?;
    for (i, op) in [(1, Binary::Mul), (2, Binary::Add)] {
        let mut factor = c.input(i)?;
        // Up to opset 20 there was one factor for each group.
        if c.opset < 21 {
            let each = channels.div_exact(&groups).ok_or(Decline::Opaque)?;
            let column = c.add(Op::Unsqueeze { axes: vec![1] }, &[factor])?;
            let wide = c.dims(&[groups.clone(), each])?;
            let spread = c.add(Op::Expand, &[column, wide])?;
            factor = reshape(c, spread, std::slice::from_ref(&channels))?;
        }
        let factor = per_channel(c, factor, rank)?;
        y = binary(c, op, y, factor)?;
    }
    Ok(vec![y])
}

fn instance_norm(c: &mut NodeContext<'_>) -> Built {
    let shape = c.shape(c.input(0)?)?;
    let channels = shape.get(1).cloned().ok_or(Decline::Opaque)?;
    let mut y = normalised(c, &channels)?;
    for (i, op) in [(1, Binary::Mul), (2, Binary::Add)] {
        let factor = c.input(i)?;
        let factor = per_channel(c, factor, shape.len())?;
        y = binary(c, op, y, factor)?;
    }
    Ok(vec![y])
}

/// Lines of norm zero stay zero.
fn lp_norm(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let (rank, dtype) = (c.rank(x)?, c.dtype(x)?);
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let op = match c.int("p", 2)? {
        1 => Reduce::L1,
        2 => Reduce::L2,
        p => return Err(OnnxError::invalid(format!("has the order {p}, not 1 or 2")).into()),
    };
    let norm = reduce(c, op, &[axis], x)?;
    let (zero, one) = (c.graph.float_scalar(dtype, 0.0), c.graph.float_scalar(dtype, 1.0));
    let empty = binary(c, Binary::Equal, norm, zero)?;
    let divisor = c.add(Op::Where, &[empty, one, norm])?;
    Ok(vec![binary(c, Binary::Div, x, divisor)?])
}

fn mean_variance_norm(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let (rank, dtype) = (c.rank(x)?, c.dtype(x)?);
    let given = c.attributes.ints("axes")?.map_or_else(|| vec![0, 2, 3], <[i64]>::to_vec);
    let axes = c.axes(&given, rank)?;
    let mean = reduce(c, Reduce::Mean, &axes, x)?;
    let centred = binary(c, Binary::Sub, x, mean)?;
    let square = binary(c, Binary::Mul, centred, centred)?;
    let variance = reduce(c, Reduce::Mean, &axes, square)?;
    let deviation = c.add(Op::Unary(Unary::Sqrt), &[variance])?;
    let epsilon = c.graph.float_scalar(dtype, 1e-9);
    let divisor = binary(c, Binary::Add, deviation, epsilon)?;
    Ok(vec![binary(c, Binary::Div, centred, divisor)?])
}

/// One at the first of the largest elements, zero elsewhere.
fn hardmax(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let (rank, dtype) = (c.rank(x)?, c.dtype(x)?);
    if c.opset < 13 {
        return Err(Decline::Opaque);
    }
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let at = c.add(Op::ArgMax { axis, keepdims: false, last: false }, &[x])?;
    let size = c.add(Op::Shape { start: axis, end: axis + 1 }, &[x])?;
    let depth = c.add(Op::Squeeze { axes: vec![0] }, &[size])?;
    let (zero, one) = (c.graph.float_scalar(dtype, 0.0), c.graph.float_scalar(dtype, 1.0));
    let both = [zero, one].map(|v| c.add(Op::Unsqueeze { axes: vec![0] }, &[v]));
    let [zero, one] = both;
    let values = c.add(Op::Concat { axis: 0 }, &[zero?, one?])?;
    Ok(vec![c.add(Op::OneHot { axis }, &[at, depth, values])?])
}

/// `x + bias` below `-lambd`, `x - bias` above `lambd`, zero between.
fn shrink(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let dtype = c.dtype(x)?;
    let (bias, limit) = (f64::from(c.float("bias", 0.0)?), f64::from(c.float("lambd", 0.5)?));
    if !dtype.is_float() {
        return Err(Decline::Opaque);
    }
    let [zero, bias, low, high] = [0.0, bias, -limit, limit].map(|n| c.graph.float_scalar(dtype, n));
    let below = binary(c, Binary::Less, x, low)?;
    let above = binary(c, Binary::Greater, x, high)?;
    let (raised, lowered) = (binary(c, Binary::Add, x, bias)?, binary(c, Binary::Sub, x, bias)?);
    let rest = c.add(Op::Where, &[above, lowered, zero])?;
    Ok(vec![c.add(Op::Where, &[below, raised, rest])?])
}

fn global_max_pool(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let axes: Vec<usize> = (2..c.rank(x)?).collect();
    if axes.is_empty() {
        return Err(Decline::Opaque);
    }
    Ok(vec![reduce(c, Reduce::Max, &axes, x)?])
}

/// The attributes of the two operators below: block size, and whether blocks come before channels.
fn blocks(c: &NodeContext<'_>) -> Result<(Dim, bool, [Dim; 4]), Decline> {
    let size = c.int("blocksize", 0)?;
    if size < 1 {
        return Err(OnnxError::invalid(format!("has blocks of size {size}")).into());
    }
    let depth_first = match c.text("mode", "DCR")?.as_str() {
        "DCR" => true,
        "CRD" => false,
        other => return Err(OnnxError::invalid(format!("mode '{other}' is unknown")).into()),
    };
    let shape: [Dim; 4] = c.shape(c.input(0)?)?.try_into().map_err(|_| Decline::Opaque)?;
    Ok((Dim::from(size), depth_first, shape))
}

fn depth_to_space(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let (b, depth_first, [n, depth, h, w]) = blocks(c)?;
    let channels = depth.div_exact(&(b.clone() * b.clone())).ok_or(Decline::Opaque)?;
    let (split, perm) = if depth_first {
        ([n.clone(), b.clone(), b.clone(), channels.clone(), h.clone(), w.clone()], [0, 3, 4, 1, 5, 2])
    } else {
        ([n.clone(), channels.clone(), b.clone(), b.clone(), h.clone(), w.clone()], [0, 1, 4, 2, 5, 3])
    };
    let parts = reshape(c, x, &split)?;
    let turned = c.add(Op::Transpose { perm: perm.to_vec() }, &[parts])?;
    Ok(vec![reshape(c, turned, &[n, channels, h * b.clone(), w * b])?])
}

fn space_to_depth(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let (b, depth_first, [n, channels, h, w]) = blocks(c)?;
    let rows = h.div_exact(&b).ok_or(Decline::Opaque)?;
    let columns = w.div_exact(&b).ok_or(Decline::Opaque)?;
    let split = [n.clone(), channels.clone(), rows.clone(), b.clone(), columns.clone(), b.clone()];
    let perm = if depth_first { vec![0, 3, 5, 1, 2, 4] } else { vec![0, 1, 3, 5, 2, 4] };
    let parts = reshape(c, x, &split)?;
    let turned = c.add(Op::Transpose { perm }, &[parts])?;
    Ok(vec![reshape(c, turned, &[n, channels * b.clone() * b, rows, columns])?])
}
