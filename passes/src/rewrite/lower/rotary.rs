//! Rotary position embedding as slices and products.

use super::{Dialect, slice, target};
use crate::ir::{Binary, Dim, Graph, GraphError, Node, Op, Rotary, RotaryTable, Unary, ValueId};

/// See [`Rotary`] for the formula.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    match node.op {
        Op::Rotary(rotary) if !dialect.rotary => rotated(graph, rotary, node),
        _ => Ok(None),
    }
}

fn rotated(graph: &mut Graph, rotary: Rotary, node: &Node) -> Result<Option<ValueId>, GraphError> {
    let (Some(x), Some(cos), Some(sin)) = (node.input(0), node.input(1), node.input(2)) else {
        return Ok(None);
    };
    let Some(shape) = graph.shape(x).map(<[Dim]>::to_vec) else { return Ok(None) };
    let Some(size) = shape.last().and_then(Dim::known) else { return Ok(None) };
    let axis = shape.len() - 1;
    let ranges = if rotary.interleaved {
        [(0, size, 2), (1, size, 2)]
    } else {
        [(0, size / 2, 1), (size / 2, size, 1)]
    };
    let a = slice(graph, x, axis, ranges[0])?;
    let b = slice(graph, x, axis, ranges[1])?;
    let binary = |graph: &mut Graph, f, x, y| graph.add(Op::Binary(f), &[x, y]);
    let y = match rotary.table {
        RotaryTable::Full => {
            let minus = graph.add(Op::Unary(Unary::Neg), &[b])?;
            let turned = together(graph, minus, a, &shape, rotary.interleaved)?;
            let straight = binary(graph, Binary::Mul, x, cos)?;
            let turned = binary(graph, Binary::Mul, turned, sin)?;
            binary(graph, Binary::Add, straight, turned)?
        }
        RotaryTable::Half => {
            let (ac, bs) = (binary(graph, Binary::Mul, a, cos)?, binary(graph, Binary::Mul, b, sin)?);
            let (bc, as_) = (binary(graph, Binary::Mul, b, cos)?, binary(graph, Binary::Mul, a, sin)?);
            let first = binary(graph, Binary::Sub, ac, bs)?;
            let second = binary(graph, Binary::Add, bc, as_)?;
            together(graph, first, second, &shape, rotary.interleaved)?
        }
    };
    Ok(Some(y))
}

/// The two parts side by side, or interleaved, along the last axis of `shape`.
fn together(
    graph: &mut Graph,
    a: ValueId,
    b: ValueId,
    shape: &[Dim],
    interleaved: bool,
) -> Result<ValueId, GraphError> {
    let rank = shape.len();
    if !interleaved {
        return graph.add(Op::Concat { axis: rank - 1 }, &[a, b]);
    }
    let a = graph.add(Op::Unsqueeze { axes: vec![rank] }, &[a])?;
    let b = graph.add(Op::Unsqueeze { axes: vec![rank] }, &[b])?;
    let pairs = graph.add(Op::Concat { axis: rank }, &[a, b])?;
    let target = target(graph, shape)?;
    graph.add(Op::Reshape { allow_zero: true }, &[pairs, target])
}
