//! Products over an axis along which an operand repeats itself.
//!
//! ```text
//!   MatMul(a [m, k], Expand(x [1, n] → [k, n]))   becomes   MatMul(ReduceSum(a) [m, 1], x [1, n])
//! ```
//!
//! Less to multiply anywhere, and necessary where a target broadcasts operands by itself but not along this axis.

use super::Dialect;
use crate::ir::{Dim, Graph, GraphError, NodeId, Op, Reduce, ValueId};
use crate::rewrite::matching::reshaped_axis;
use crate::rewrite::reshape;

/// The product without the repetition; `None` when there is none, or the target takes it.
pub(super) fn lower(graph: &mut Graph, id: NodeId, dialect: &Dialect) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.node(id) else { return Ok(None) };
    if dialect.repeated_contraction || !matches!(node.op, Op::MatMul) {
        return Ok(None);
    }
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let rank = |graph: &Graph, v| graph.shape(v).map_or(0, <[Dim]>::len);
    let (Some(of_a), Some(of_b)) = (rank(graph, a).checked_sub(1), rank(graph, b).checked_sub(2)) else {
        return Ok(None);
    };
    // A vector would lose its only axis.
    if of_a == 0 {
        return Ok(None);
    }
    let sum = |graph: &mut Graph, v, axis| {
        graph.add(Op::Reduce { op: Reduce::Sum, axes: vec![axis], keepdims: true }, &[v])
    };
    let operands = if let Some(once) = once(graph, b, of_b)? {
        [sum(graph, a, of_a)?, once]
    } else if let Some(once) = once(graph, a, of_a)? {
        [once, sum(graph, b, of_b)?]
    } else {
        return Ok(None);
    };
    graph.add(Op::MatMul, &operands).map(Some)
}

/// `v` with one element along an axis that an Expand made, through views that leave the axis one of its own.
fn once(graph: &mut Graph, v: ValueId, axis: usize) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.producing(v).cloned() else { return Ok(None) };
    let (Some(x), Some(shape)) = (node.input(0), graph.shape(v).map(<[Dim]>::to_vec)) else {
        return Ok(None);
    };
    let Some(from) = graph.shape(x).map(<[Dim]>::to_vec) else { return Ok(None) };
    let mut wanted = shape.clone();
    wanted[axis] = Dim::ONE;
    match &node.op {
        Op::Expand => {
            let added = shape.len() - from.len().min(shape.len());
            let repeated = axis < added || from[axis - added] == Dim::ONE;
            if !repeated || shape[axis] == Dim::ONE {
                return Ok(None);
            }
            let wanted = graph.dims(&wanted)?;
            graph.add(Op::Expand, &[x, wanted]).map(Some)
        }
        Op::Transpose { perm } => match once(graph, x, perm[axis])? {
            Some(x) => graph.add(node.op.clone(), &[x]).map(Some),
            None => Ok(None),
        },
        Op::Reshape { .. } | Op::Unsqueeze { .. } | Op::Squeeze { .. } => {
            let Some(own) = reshaped_axis(&from, &shape, axis) else { return Ok(None) };
            let Some(x) = once(graph, x, own)? else { return Ok(None) };
            reshape(graph, x, &wanted).map(Some)
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::lower::lower;
    use crate::rewrite::testing::{assert_same, count, f32s};

    /// A product whose second operand is `[2, 1, 5]` expanded and moved by `views`, the first `[.., 3, 4]`.
    fn product(swapped: bool, views: impl FnOnce(&mut Graph, ValueId) -> ValueId) -> Graph {
        let mut g = Graph::new("product");
        let a = g.add_input("a", f32s(if swapped { &[2, 4, 3] } else { &[2, 3, 4] }));
        let x = g.add_input("x", f32s(&[2, 1, 5]));
        let b = views(&mut g, x);
        let y = g.op(Op::MatMul, &if swapped { [b, a] } else { [a, b] });
        g.add_output("y", y);
        g
    }

    fn expand(g: &mut Graph, x: ValueId, shape: &[i64]) -> ValueId {
        let shape = g.ints(shape);
        g.op(Op::Expand, &[x, shape])
    }

    /// Lowers, compares, and says how many sums there are.
    fn sums(g: &Graph) -> usize {
        let mut out = g.clone();
        lower(&mut out, &Dialect::basic()).unwrap();
        assert_same(g, &out, 2e-6);
        count(&out, "ReduceSum")
    }

    #[test]
    fn a_repeated_operand_is_read_once() {
        assert_eq!(sums(&product(false, |g, x| expand(g, x, &[2, 4, 5]))), 1);
        // On the left, and behind views.
        let turned = |g: &mut Graph, x| {
            let x = expand(g, x, &[2, 4, 5]);
            g.op(Op::Transpose { perm: vec![0, 2, 1] }, &[x])
        };
        assert_eq!(sums(&product(true, turned)), 1);
        let reshaped = |g: &mut Graph, x| {
            let x = expand(g, x, &[2, 4, 5]);
            let shape = g.ints(&[1, 2, 4, 5]);
            g.op(Op::Reshape { allow_zero: true }, &[x, shape])
        };
        assert_eq!(sums(&product(false, reshaped)), 1);
    }

    #[test]
    fn other_products_stay() {
        // Repeated along an axis that is kept.
        let kept = |g: &mut Graph, x| {
            let x = expand(g, x, &[2, 4, 5]);
            g.op(Op::Transpose { perm: vec![0, 2, 1] }, &[x])
        };
        let mut g = Graph::new("kept");
        let a = g.add_input("a", f32s(&[2, 3, 5]));
        let x = g.add_input("x", f32s(&[2, 1, 5]));
        let b = kept(&mut g, x);
        let y = g.op(Op::MatMul, &[a, b]);
        g.add_output("y", y);
        assert_eq!(sums(&g), 0);
        // Where the target takes it.
        let mut g = product(false, |g, x| expand(g, x, &[2, 4, 5]));
        lower(&mut g, &Dialect::runtime()).unwrap();
        assert_eq!(count(&g, "ReduceSum"), 0);
        // Merged with another axis by a view.
        let mut g = Graph::new("merged");
        let a = g.add_input("a", f32s(&[3, 8]));
        let x = g.add_input("x", f32s(&[2, 1, 5]));
        let x = expand(&mut g, x, &[2, 4, 5]);
        let shape = g.ints(&[8, 5]);
        let b = g.op(Op::Reshape { allow_zero: true }, &[x, shape]);
        let y = g.op(Op::MatMul, &[a, b]);
        g.add_output("y", y);
        assert_eq!(sums(&g), 0);
    }
}
