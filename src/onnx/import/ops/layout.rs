//! Operators that move elements without computing.

use snlp_passes::ir::{Binary, Dim, Dynamic, Op, PadMode, ScatterReduction, ValueId};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Reshape" => reshape,
        "Flatten" => flatten,
        "Transpose" => transpose,
        "Squeeze" => squeeze,
        "Unsqueeze" => unsqueeze,
        "Expand" => |c| c.plain(Op::Expand, 2),
        "Concat" => concat,
        "Slice" => slice,
        "Split" => split,
        "Tile" => |c| c.plain(Op::Tile, 2),
        "Pad" => pad,
        _ => return None,
    })
}

/// The shape operand of a reshape into the matrix `[product(..axis), product(axis..)]`; one factor may
/// be left to the run.
pub(super) fn matrix_shape(c: &mut NodeContext<'_>, shape: &[Dim], axis: usize) -> Result<ValueId, Decline> {
    let (rows, columns) = shape.split_at(axis);
    let (rows, columns) = (Dim::product(rows), Dim::product(columns));
    let rest = Dim::from(-1i64);
    match (c.computable(&rows), c.computable(&columns)) {
        (true, true) => c.dims(&[rows, columns]),
        (false, true) if columns.known() != Some(0) => c.dims(&[rest, columns]),
        (true, false) if rows.known() != Some(0) => c.dims(&[rows, rest]),
        _ => Err(Decline::Opaque),
    }
}

fn reshape(c: &mut NodeContext<'_>) -> Built {
    let (x, shape) = (c.input(0)?, c.input(1)?);
    let allow_zero = c.flag("allowzero", false)?;
    let op = Op::Reshape { allow_zero };
    let resolved = match (c.content(shape), c.graph.ty(x)) {
        (Some(target), Some(ty)) => resolve_reshape(&target, &ty.shape, allow_zero)?,
        _ => None,
    };
    match resolved {
        Some(dims) if dims.iter().all(|d| c.computable(d)) => {
            let shape = if c.content(shape).as_ref() == Some(&dims) { shape } else { c.graph.dims(&dims)? };
            Ok(vec![c.add(op, &[x, shape])?])
        }
        _ => Ok(vec![c.add(op, &[x, shape])?]),
    }
}

/// The target shape without special entries; `None` when it depends on more than is known.
fn resolve_reshape(target: &[Dim], from: &[Dim], allow_zero: bool) -> Result<Option<Vec<Dim>>, OnnxError> {
    let mut out = Vec::with_capacity(target.len());
    let mut rest = None;
    for (i, d) in target.iter().enumerate() {
        match d.known() {
            Some(0) if !allow_zero => {
                let copied = from.get(i).ok_or_else(|| {
                    OnnxError::invalid(format!("copies axis {i} of a tensor of rank {}", from.len()))
                })?;
                out.push(copied.clone());
            }
            Some(-1) if rest.is_some() => {
                return Err(OnnxError::invalid("the target shape has two entries of -1"));
            }
            Some(-1) => {
                rest = Some(i);
                out.push(Dim::ONE);
            }
            Some(n) if n < -1 => {
                return Err(OnnxError::invalid(format!("the target shape has an entry of {n}")));
            }
            _ => out.push(d.clone()),
        }
    }
    if let Some(i) = rest {
        match Dim::product(from).floor_div(&Dim::product(&out)) {
            Some(d) => out[i] = d,
            None => return Ok(None),
        }
    }
    Ok(Some(out))
}

fn flatten(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let shape = c.shape(x)?;
    let axis = match c.int("axis", 1)? {
        n if usize::try_from(n) == Ok(shape.len()) => shape.len(),
        n => c.axis(n, shape.len())?,
    };
    let target = matrix_shape(c, &shape, axis)?;
    Ok(vec![c.add(Op::Reshape { allow_zero: false }, &[x, target])?])
}

fn transpose(c: &mut NodeContext<'_>) -> Built {
    let perm = match c.attributes.ints("perm")? {
        Some(given) => {
            let perm = given.iter().map(|a| c.axis(*a, given.len())).collect::<Result<Vec<_>, _>>()?;
            c.axes(given, given.len())?;
            perm
        }
        None => (0..c.rank(c.input(0)?)?).rev().collect(),
    };
    c.plain(Op::Transpose { perm }, 1)
}

fn squeeze(c: &mut NodeContext<'_>) -> Built {
    if c.opset >= 13 && c.is_open(1) {
        return c.plain(Op::Dynamic(Dynamic::Squeeze), 2);
    }
    let shape = c.shape(c.input(0)?)?;
    let axes = match c.ints_since(13, 1, "axes")? {
        Some(axes) => c.axes(&axes, shape.len())?,
        // Without axes, all of size 1: which ones must be certain.
        None if shape.iter().all(|d| d.known().is_some()) => {
            (0..shape.len()).filter(|i| shape[*i] == Dim::ONE).collect()
        }
        None => return Err(Decline::Opaque),
    };
    c.plain(if axes.is_empty() { Op::Identity } else { Op::Squeeze { axes } }, 1)
}

fn unsqueeze(c: &mut NodeContext<'_>) -> Built {
    if c.opset >= 13 && c.is_open(1) {
        return c.plain(Op::Dynamic(Dynamic::Unsqueeze), 2);
    }
    let rank = c.rank(c.input(0)?)?;
    let axes = c.ints_since(13, 1, "axes")?.ok_or_else(|| OnnxError::invalid("lacks its axes"))?;
    let axes = c.axes(&axes, rank + axes.len())?;
    c.plain(if axes.is_empty() { Op::Identity } else { Op::Unsqueeze { axes } }, 1)
}

fn concat(c: &mut NodeContext<'_>) -> Built {
    let inputs = c.all_inputs()?;
    let axis = c.attributes.int("axis")?.ok_or_else(|| OnnxError::invalid("lacks the attribute 'axis'"))?;
    let rank = inputs.iter().find_map(|v| c.graph.ty(*v)).map(|t| t.rank());
    let axis = match (usize::try_from(axis), rank) {
        (_, Some(rank)) => c.axis(axis, rank)?,
        (Ok(axis), None) => axis,
        (Err(_), None) => return Err(Decline::Opaque),
    };
    Ok(vec![c.add(Op::Concat { axis }, &inputs)?])
}

fn slice(c: &mut NodeContext<'_>) -> Built {
    if c.opset < 10 {
        return slice_of_attributes(c);
    }
    let (x, starts, ends) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let rank = c.rank(x)?;
    if c.is_open(3) || c.is_open(4) {
        return open_slice(c, [x, starts, ends]);
    }
    let axes = match c.optional(3) {
        Some(_) => c.ints(3)?,
        None => {
            let count = c.shape(starts)?.first().and_then(Dim::known).ok_or(Decline::Opaque)?;
            (0..count).collect()
        }
    };
    let axes_in_order = axes.iter().map(|a| c.axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
    c.axes(&axes, rank)?;
    let steps = match c.optional(4) {
        Some(_) => c.ints(4)?,
        None => vec![1; axes.len()],
    };
    if steps.len() != axes.len() {
        return Err(OnnxError::invalid(format!("has {} steps for {} axes", steps.len(), axes.len())).into());
    }
    if steps.contains(&0) {
        return Err(OnnxError::invalid("has a step of 0").into());
    }
    let (starts, ends) = (c.as_i64(starts)?, c.as_i64(ends)?);
    Ok(vec![c.add(Op::Slice { axes: axes_in_order, steps }, &[x, starts, ends])?])
}

/// The form of opset 9 and before.
fn slice_of_attributes(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let rank = c.rank(x)?;
    let bounds = |name: &str| -> Result<Vec<i64>, Decline> {
        let given = c.attributes.ints(name)?;
        Ok(given.ok_or_else(|| OnnxError::invalid(format!("lacks the attribute '{name}'")))?.to_vec())
    };
    let (starts, ends) = (bounds("starts")?, bounds("ends")?);
    let axes = match c.attributes.ints("axes")? {
        Some(axes) => axes.to_vec(),
        None => (0i64..).take(starts.len()).collect(),
    };
    c.axes(&axes, rank)?;
    let axes = axes.iter().map(|a| c.axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
    if starts.len() != axes.len() || ends.len() != axes.len() {
        return Err(OnnxError::invalid("starts, ends and axes differ in length").into());
    }
    let steps = vec![1; axes.len()];
    let (starts, ends) = (c.graph.ints(&starts), c.graph.ints(&ends));
    Ok(vec![c.add(Op::Slice { axes, steps }, &[x, starts, ends])?])
}

/// A slice whose axes or steps only the run knows.
fn open_slice(c: &mut NodeContext<'_>, [x, starts, ends]: [ValueId; 3]) -> Built {
    let count = c.shape(starts)?.first().and_then(Dim::known_size).ok_or(Decline::Opaque)?;
    let (starts, ends) = (c.as_i64(starts)?, c.as_i64(ends)?);
    let axes = match c.optional(3) {
        Some(axes) => c.as_i64(axes)?,
        None => c.graph.ints(&(0i64..).take(count).collect::<Vec<_>>()),
    };
    let steps = match c.optional(4) {
        Some(steps) => c.as_i64(steps)?,
        None => c.graph.ints(&vec![1; count]),
    };
    Ok(vec![c.add(Op::Dynamic(Dynamic::Slice), &[x, starts, ends, axes, steps])?])
}

/// A split is one slice per result.
fn split(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let shape = c.shape(x)?;
    let axis = c.axis(c.int("axis", 0)?, shape.len())?;
    if c.opset >= 13
        && let Some(sizes) = c.optional(1)
        && c.content(sizes).is_none()
    {
        return open_split(c, x, sizes, axis);
    }
    let sizes = split_sizes(c, &shape[axis])?;
    if sizes.len() != c.node.output.len() {
        let what = format!("has {} sizes for {} results", sizes.len(), c.node.output.len());
        return Err(OnnxError::invalid(what).into());
    }
    let mut bounds = vec![Dim::ZERO];
    for size in &sizes {
        let end = bounds.last().cloned().unwrap_or(Dim::ZERO) + size.clone();
        bounds.push(end);
    }
    if !bounds.iter().all(|d| c.computable(d)) {
        let parts = c.opset >= 18 && c.optional(1).is_none();
        return if parts { parts_of_unknown(c, x, axis) } else { Err(Decline::Opaque) };
    }
    let mut out = Vec::with_capacity(sizes.len());
    for ends in bounds.windows(2) {
        let start = c.graph.dims(&ends[..1])?;
        let end = c.graph.dims(&ends[1..])?;
        out.push(c.add(Op::Slice { axes: vec![axis], steps: vec![1] }, &[x, start, end])?);
    }
    Ok(out)
}

/// A split whose sizes only the run knows: the bounds are their running sums.
fn open_split(c: &mut NodeContext<'_>, x: ValueId, sizes: ValueId, axis: usize) -> Built {
    let sizes = c.as_i64(sizes)?;
    let ends = c.add(Op::CumSum { axis: 0, exclusive: false, reverse: false }, &[sizes])?;
    let starts = c.add(Op::Binary(Binary::Sub), &[ends, sizes])?;
    let mut out = vec![];
    for i in (0i64..).take(c.node.output.len()) {
        let at = c.graph.ints(&[i]);
        let bounds =
            [c.add(Op::Gather { axis: 0 }, &[starts, at])?, c.add(Op::Gather { axis: 0 }, &[ends, at])?];
        out.push(c.add(Op::Slice { axes: vec![axis], steps: vec![1] }, &[x, bounds[0], bounds[1]])?);
    }
    Ok(out)
}

/// A split into parts of one size, the last perhaps smaller, of an axis whose size only the run knows.
fn parts_of_unknown(c: &mut NodeContext<'_>, x: ValueId, axis: usize) -> Built {
    let count = c.node.output.len();
    let parts = i64::try_from(count).map_err(|_| Decline::Opaque)?;
    let size = c.add(Op::Shape { start: axis, end: axis + 1 }, &[x])?;
    let [slack, divisor, others] = [parts - 1, parts, parts - 1].map(|n| c.graph.ints(&[n]));
    let padded = c.add(Op::Binary(Binary::Add), &[size, slack])?;
    let part = c.add(Op::Binary(Binary::Div), &[padded, divisor])?;
    let before = c.add(Op::Binary(Binary::Mul), &[part, others])?;
    let last = c.add(Op::Binary(Binary::Sub), &[size, before])?;
    let sizes: Vec<ValueId> = std::iter::repeat_n(part, count - 1).chain([last]).collect();
    let sizes = c.add(Op::Concat { axis: 0 }, &sizes)?;
    open_split(c, x, sizes, axis)
}

fn split_sizes(c: &NodeContext<'_>, whole: &Dim) -> Result<Vec<Dim>, Decline> {
    if c.opset < 13 {
        if let Some(sizes) = c.attributes.ints("split")? {
            return Ok(sizes.iter().map(|n| Dim::from(*n)).collect());
        }
    } else if let Some(sizes) = c.optional(1) {
        return c.content(sizes).ok_or(Decline::Opaque);
    }
    let count = c.node.output.len();
    let parts = Dim::from(count);
    // From opset 18 on the last part may be smaller.
    let slack = if c.opset >= 18 { Dim::from(count) - Dim::ONE } else { Dim::ZERO };
    let part = match whole.div_exact(&parts) {
        Some(part) => return Ok(vec![part; count]),
        None => (whole.clone() + slack).floor_div(&parts).ok_or(Decline::Opaque)?,
    };
    let mut sizes = vec![part.clone(); count];
    if let Some(last) = sizes.last_mut() {
        *last = whole.clone() - part * (parts - Dim::ONE);
    }
    Ok(sizes)
}

fn pad(c: &mut NodeContext<'_>) -> Built {
    let mode = match c.text("mode", "constant")?.as_str() {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        "wrap" => PadMode::Wrap,
        other => return Err(OnnxError::invalid(format!("padding mode '{other}' is unknown")).into()),
    };
    if c.opset < 11 {
        let x = c.input(0)?;
        let pads =
            c.attributes.ints("pads")?.ok_or_else(|| OnnxError::invalid("lacks the attribute 'pads'"))?;
        let (value, dtype) = (c.float("value", 0.0)?, c.dtype(x)?);
        let (pads, value) = (c.graph.ints(pads), c.graph.float_scalar(dtype, value.into()));
        return Ok(vec![c.add(Op::Pad { mode }, &[x, pads, value])?]);
    }
    let (x, mut pads) = (c.input(0)?, c.input(1)?);
    if c.optional(3).is_some() {
        let rank = c.rank(x)?;
        let given = match c.content(pads) {
            Some(given) if !c.is_open(3) => given,
            _ => {
                pads = open_pads(c, pads, rank)?;
                let value = c.optional(2);
                return Ok(vec![c.add_optional(Op::Pad { mode }, vec![Some(x), Some(pads), value])?]);
            }
        };
        let axes = c.ints(3)?;
        if given.len() != 2 * axes.len() {
            return Err(
                OnnxError::invalid(format!("has {} pads for {} axes", given.len(), axes.len())).into()
            );
        }
        let mut all = vec![Dim::ZERO; 2 * rank];
        for (i, axis) in axes.iter().enumerate() {
            let axis = c.axis(*axis, rank)?;
            all[axis] = given[i].clone();
            all[rank + axis] = given[axes.len() + i].clone();
        }
        pads = c.dims(&all)?;
    }
    let value = c.optional(2);
    Ok(vec![c.add_optional(Op::Pad { mode }, vec![Some(x), Some(pads), value])?])
}

/// The pads of all axes, of which the run names some.
fn open_pads(c: &mut NodeContext<'_>, pads: ValueId, rank: usize) -> Result<ValueId, Decline> {
    let axes = c.input(3)?;
    let (pads, axes) = (c.as_i64(pads)?, c.as_i64(axes)?);
    let count = i64::try_from(rank).map_err(|_| Decline::Opaque)?;
    let (size, none) = (c.graph.ints(&[count]), c.graph.ints(&vec![0; 2 * rank]));
    let begins = c.add(Op::Binary(Binary::Mod), &[axes, size])?;
    let ends = c.add(Op::Binary(Binary::Add), &[begins, size])?;
    let at = c.add(Op::Concat { axis: 0 }, &[begins, ends])?;
    c.add(Op::ScatterElements { axis: 0, reduction: ScatterReduction::None }, &[none, at, pads])
}
