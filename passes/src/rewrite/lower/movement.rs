//! Repetition and padding, by views, concatenations and gathers.
//!
//! ```text
//!   Tile(x [a, b], [r, s])   becomes  Reshape(Expand(x [1, a, 1, b], [r, a, s, b]))
//!   Pad(x, constant)         becomes  Concat(value.., x, value..) along each padded axis
//!   Pad(x, edge..)           becomes  Gather(x, [0, 0, 0, 1, 2, ..]) along each padded axis
//! ```

use super::{Dialect, slice};
use crate::ir::{Dim, Graph, GraphError, Node, Op, PadMode, Tensor, ValueId};
use crate::rewrite::matching::ints;

pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    if dialect.composites {
        return Ok(None);
    }
    let (Op::Tile | Op::Pad { .. }, Some(x), Some(amounts)) = (&node.op, node.input(0), node.input(1)) else {
        return Ok(None);
    };
    let Some(shape) = graph.shape(x).map(<[Dim]>::to_vec) else { return Ok(None) };
    let Some(amounts) = ints(graph, amounts) else { return Ok(None) };
    match &node.op {
        Op::Tile if amounts.len() == shape.len() => tile(graph, x, &shape, &amounts).map(Some),
        Op::Pad { mode } if amounts.len() == 2 * shape.len() => {
            let value = match node.input(2) {
                Some(value) => value,
                None => {
                    let dtype = graph.ty(x).map_or(crate::ir::DType::F32, |t| t.dtype);
                    let zero = graph.scalar(0i64);
                    graph.add(Op::Cast { to: dtype }, &[zero])?
                }
            };
            pad(graph, x, value, &amounts, *mode)
        }
        _ => Ok(None),
    }
}

fn tile(graph: &mut Graph, x: ValueId, shape: &[Dim], repeats: &[i64]) -> Result<ValueId, GraphError> {
    let (mut apart, mut wide, mut joined) = (vec![], vec![], vec![]);
    for (size, n) in shape.iter().zip(repeats) {
        let n = Dim::from(*n);
        apart.extend([Dim::ONE, size.clone()]);
        wide.extend([n.clone(), size.clone()]);
        joined.push(n * size.clone());
    }
    let (apart, wide, joined) = (graph.dims(&apart)?, graph.dims(&wide)?, graph.dims(&joined)?);
    let x = graph.add(Op::Reshape { allow_zero: true }, &[x, apart])?;
    let x = graph.add(Op::Expand, &[x, wide])?;
    graph.add(Op::Reshape { allow_zero: true }, &[x, joined])
}

/// `x` padded by `pads` (begins, then ends; negative ones crop), one axis after the other.
pub(super) fn pad(
    graph: &mut Graph,
    mut x: ValueId,
    value: ValueId,
    pads: &[i64],
    mode: PadMode,
) -> Result<Option<ValueId>, GraphError> {
    let rank = pads.len() / 2;
    for axis in 0..rank {
        let (begin, end) = (pads[axis], pads[rank + axis]);
        if (begin, end) == (0, 0) {
            continue;
        }
        let size = graph.shape(x).and_then(|s| s.get(axis)?.known());
        x = match (mode, size) {
            (PadMode::Constant, _) => constant(graph, x, value, axis, (begin, end))?,
            (_, Some(size)) => {
                let Some(places) = places(size, begin, end, mode) else { return Ok(None) };
                let places = graph.constant(places);
                graph.add(Op::Gather { axis }, &[x, places])?
            }
            (_, None) => return Ok(None),
        };
    }
    Ok(Some(x))
}

fn constant(
    graph: &mut Graph,
    mut x: ValueId,
    value: ValueId,
    axis: usize,
    (begin, end): (i64, i64),
) -> Result<ValueId, GraphError> {
    if begin < 0 || end < 0 {
        let last = if end < 0 { end } else { i64::MAX };
        x = slice(graph, x, axis, (begin.min(0).saturating_neg(), last, 1))?;
    }
    let shape = graph.shape(x).unwrap_or_default().to_vec();
    let filled = |graph: &mut Graph, amount: i64| {
        let mut shape = shape.clone();
        shape[axis] = Dim::from(amount);
        let shape = graph.dims(&shape)?;
        graph.add(Op::Expand, &[value, shape])
    };
    let mut parts = vec![];
    if begin > 0 {
        parts.push(filled(graph, begin)?);
    }
    parts.push(x);
    if end > 0 {
        parts.push(filled(graph, end)?);
    }
    if parts.len() == 1 { Ok(x) } else { graph.add(Op::Concat { axis }, &parts) }
}

/// Where the elements of a padded axis of `size` come from, which is cropped first; `None` where there is
/// nothing to take them from.
fn places(size: i64, begin: i64, end: i64, mode: PadMode) -> Option<Tensor> {
    let cropped = begin.min(0).checked_neg()?;
    let size = size.checked_sub(cropped)?.checked_add(end.min(0))?;
    let (from, last) = (begin.max(0).checked_neg()?, size.max(0).checked_add(end.max(0))?);
    if size < 1 && from < last {
        return None;
    }
    let place = |i: i64| match mode {
        PadMode::Edge | PadMode::Constant => i.clamp(0, size - 1),
        PadMode::Wrap => i.rem_euclid(size),
        PadMode::Reflect => {
            let period = (2 * (size - 1)).max(1);
            let i = i.rem_euclid(period);
            i.min(period - i).min(size - 1)
        }
    };
    Some(Tensor::ints(&(from..last).map(|i| place(i) + cropped).collect::<Vec<_>>()))
}
