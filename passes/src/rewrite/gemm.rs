//! Gemm is MatMul and Add, and a projection of a flattened state is one of the state.
//!
//! ```text
//!   Gemm(a, b, c)                                        becomes  Add(MatMul(a, b), c)
//!   MatMul(Reshape(x [b, t, d] → [b·t, d]), w)           becomes  Reshape(MatMul(x, w) → [b·t, n])
//!   Add(Reshape(x → [b·t, n]), c [n])                    becomes  Reshape(Add(x, c) → [b·t, n])
//!   Add(Reshape(x → [b·s, t, n]), Reshape(y → ..))       becomes  Reshape(Add(x, y) → [b·s, t, n])
//!   Add(Transpose(x), Transpose(y))                      becomes  Transpose(Add(x, y))
//! ```
//!
//! A Reshape that merges leading axes thus sinks through whatever works on rows, until it meets the Reshape
//! that splits them again; residual streams merged with the batch, through the residual additions.

use std::collections::HashSet;

use super::matching::{made_by, rank};
use super::sweep::sweep_first;
use super::views::{expressible, input_symbols};
use super::{Fidelity, Notes, Pass};
use crate::ir::{Binary, Dim, Graph, GraphError, NodeId, Op, Symbol, ValueId};

pub(crate) const PASS: Pass = Pass { name: "gemm", fidelity: Fidelity::Rounding, apply: gemm };

/// Exact, but a choice of form: it belongs to the recognisers.
pub(crate) const SINK: Pass = Pass { name: "sink-flattening", fidelity: Fidelity::Exact, apply: sink };

fn gemm(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some(node) = graph.node(id) else { return Ok(None) };
        let Op::Gemm { alpha, beta, trans_a, trans_b } = node.op else { return Ok(None) };
        let (Some(a), Some(b), c) = (node.input(0), node.input(1), node.input(2)) else { return Ok(None) };
        let name = node.name.clone();
        let a = transposed_if(graph, trans_a, a)?;
        let b = transposed_if(graph, trans_b, b)?;
        let product = graph.add_named(&name, Op::MatMul, &[a, b])?;
        let product = times(graph, alpha, product)?;
        let Some(c) = c.filter(|_| beta != 0.0) else { return Ok(Some(product)) };
        let c = times(graph, beta, c)?;
        graph.add(Op::Binary(Binary::Add), &[product, c]).map(Some)
    })
}

fn transposed_if(graph: &mut Graph, yes: bool, v: ValueId) -> Result<ValueId, GraphError> {
    if yes { graph.add(Op::Transpose { perm: vec![1, 0] }, &[v]) } else { Ok(v) }
}

fn times(graph: &mut Graph, factor: f32, v: ValueId) -> Result<ValueId, GraphError> {
    let Some(dtype) = graph.ty(v).map(|t| t.dtype).filter(|_| factor != 1.0) else { return Ok(v) };
    let factor = graph.float_scalar(dtype, f64::from(factor));
    graph.add(Op::Binary(Binary::Mul), &[v, factor])
}

fn sink(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    let symbols = input_symbols(graph);
    sweep_first(graph, |graph, id| {
        if let Some((perm, a, b)) = transposed_alike(graph, id) {
            let sum = graph.add(Op::Binary(Binary::Add), &[a, b])?;
            return graph.add(Op::Transpose { perm }, &[sum]).map(Some);
        }
        let Some((op, operands)) = unflattened(graph, id, &symbols) else { return Ok(None) };
        let Some(shape) = graph.node(id).and_then(|n| graph.shape(*n.outputs.first()?)).map(<[Dim]>::to_vec)
        else {
            return Ok(None);
        };
        let name = graph.node(id).map(|n| n.name.clone()).unwrap_or_default();
        let node = graph.add_node(op, operands, 1, &name)?;
        let Some(wide) = graph.node(node).and_then(|n| n.outputs.first().copied()) else { return Ok(None) };
        let target = graph.dims(&shape)?;
        graph.add(Op::Reshape { allow_zero: true }, &[wide, target]).map(Some)
    })
}

/// The node with its flattened operand replaced by what was flattened.
fn unflattened(graph: &Graph, id: NodeId, symbols: &HashSet<Symbol>) -> Option<(Op, Vec<Option<ValueId>>)> {
    let node = graph.node(id)?;
    let result = graph.shape(*node.outputs.first()?)?;
    if !expressible(result, symbols) {
        return None;
    }
    let first = node.input(0)?;
    let last_axis = |axis: usize| Some(axis + 1) == rank(graph, first);
    let mut operands = node.inputs.clone();
    match &node.op {
        Op::MatMul => {
            let x = flattened(graph, first)?;
            if rank(graph, node.input(1)?)? != 2 {
                return None;
            }
            operands[0] = Some(x);
            Some((Op::MatMul, operands))
        }
        Op::Unary(_) | Op::Cast { .. } => {
            operands[0] = Some(flattened(graph, first)?);
            Some((node.op.clone(), operands))
        }
        Op::LayerNorm { axis, epsilon } if last_axis(*axis) => {
            let x = flattened(graph, first)?;
            operands[0] = Some(x);
            Some((Op::LayerNorm { axis: rank(graph, x)? - 1, epsilon: *epsilon }, operands))
        }
        Op::RmsNorm { axis, epsilon } if last_axis(*axis) => {
            let x = flattened(graph, first)?;
            operands[0] = Some(x);
            Some((Op::RmsNorm { axis: rank(graph, x)? - 1, epsilon: *epsilon }, operands))
        }
        Op::Binary(_) => {
            let second = node.input(1)?;
            let (a, b) = (flattened(graph, first), flattened(graph, second));
            let row = |v| rank(graph, v).is_some_and(|r| r <= 1);
            let (a, b) = match (a, b) {
                (Some(a), Some(b)) if graph.shape(a)? == graph.shape(b)? => (a, b),
                (Some(a), None) if row(second) => (a, second),
                (None, Some(b)) if row(first) => (first, b),
                _ => {
                    let (a, b) = (merged(graph, first)?, merged(graph, second)?);
                    (graph.shape(a)? == graph.shape(b)? && graph.shape(first)? == graph.shape(second)?)
                        .then_some((a, b))?
                }
            };
            Some((node.op.clone(), vec![Some(a), Some(b)]))
        }
        _ => None,
    }
}

/// `x [.., d]` of three axes or more where the value is `Reshape(x → [n, d])`.
fn flattened(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let x = made_by(graph, v, |op| matches!(op, Op::Reshape { .. }))?.input(0)?;
    let (from, to) = (graph.shape(x)?, graph.shape(v)?);
    (from.len() > 2 && to.len() == 2 && from.last() == to.last()).then_some(x)
}

/// `x [m.., d..]` where the value is `Reshape(x → [n, d..])` with `n` the product of the first axes.
fn merged(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let x = made_by(graph, v, |op| matches!(op, Op::Reshape { .. }))?.input(0)?;
    let (from, to) = (graph.shape(x)?, graph.shape(v)?);
    let kept = to.len().checked_sub(1).filter(|n| *n > 0)?;
    (from.len() > to.len() && from[from.len() - kept..] == to[1..]).then_some(x)
}

/// The operands before their Transposes where both terms of a sum are transposed alike.
fn transposed_alike(graph: &Graph, id: NodeId) -> Option<(Vec<usize>, ValueId, ValueId)> {
    let node = graph.node(id).filter(|n| n.op == Op::Binary(Binary::Add))?;
    let before = |v: ValueId| match graph.producing(v).map(|n| (&n.op, n.input(0))) {
        Some((Op::Transpose { perm }, Some(x))) => Some((perm.clone(), x)),
        _ => None,
    };
    let ((perm, a), (other, b)) = (before(node.input(0)?)?, before(node.input(1)?)?);
    (perm == other).then_some((perm, a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Unary;
    use crate::rewrite::testing::{after, cleaned, count, f32s, random, size};

    fn flat(g: &mut Graph, x: ValueId, last: i64) -> ValueId {
        let target = g.dims(&[size(-1) * size(-2), last.into()]).unwrap();
        g.op(Op::Reshape { allow_zero: true }, &[x, target])
    }

    fn split(g: &mut Graph, x: ValueId, last: i64) -> ValueId {
        let target = g.dims(&[size(-1), size(-2), last.into()]).unwrap();
        g.op(Op::Reshape { allow_zero: true }, &[x, target])
    }

    #[test]
    fn gemm_is_matmul_and_add() {
        for (alpha, beta, trans_a, trans_b) in [
            (1.0, 1.0, false, false),
            (0.5, 2.0, false, true),
            (1.0, 0.0, true, false),
            (2.0, 1.0, true, true),
        ] {
            let mut g = Graph::new("gemm");
            let a = g.add_input("a", if trans_a { f32s(&[4, -2]) } else { f32s(&[-2, 4]) });
            let b = g.constant(if trans_b { random(1, &[3, 4]) } else { random(1, &[4, 3]) });
            let c = g.add_input("c", f32s(&[3]));
            let y = g.op(Op::Gemm { alpha, beta, trans_a, trans_b }, &[a, b, c]);
            g.add_output("y", y);
            let clean = cleaned(&g);
            assert_eq!((count(&clean, "Gemm"), count(&clean, "MatMul")), (0, 1));
            assert_eq!(count(&clean, "Add"), usize::from(beta != 0.0));
            assert_eq!(count(&clean, "Transpose"), usize::from(trans_a));
        }
    }

    #[test]
    fn a_flattened_projection_keeps_the_axes() {
        let mut g = Graph::new("flat");
        let x = g.add_input("x", f32s(&[-1, -2, 4]));
        let rows = flat(&mut g, x, 4);
        let (w, c) = (g.constant(random(1, &[4, 3])), g.constant(random(2, &[3])));
        let y = g.op(Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false }, &[rows, w, c]);
        let y = g.un(Unary::Relu, y);
        let y = split(&mut g, y, 3);
        g.add_output("y", y);
        let clean = cleaned(&g);
        assert_eq!((clean.node_count(), count(&clean, "Reshape")), (3, 0));
    }

    #[test]
    fn a_residual_on_the_flattened_view_is_one_on_the_state() {
        let mut g = Graph::new("residual");
        let x = g.add_input("x", f32s(&[-1, -2, 4]));
        let rows = flat(&mut g, x, 4);
        let w = g.constant(random(1, &[4, 4]));
        let y = g.op(Op::MatMul, &[rows, w]);
        let y = g.bin(Binary::Add, y, rows);
        let y = g.op(Op::RmsNorm { axis: 1, epsilon: 1e-5 }, &[y]);
        let y = split(&mut g, y, 4);
        g.add_output("y", y);
        let clean = cleaned(&g);
        assert_eq!((clean.node_count(), count(&clean, "Reshape")), (3, 0));
    }

    #[test]
    fn streams_merged_with_the_batch_get_their_axis_back() {
        // Behind the tokens for the mixing, before them and merged with the batch for the addition.
        for swapped in [false, true] {
            let mut g = Graph::new("streams");
            let x = g.add_input("x", f32s(&[-1, -2, 4, 6]));
            let merge = |g: &mut Graph, x: ValueId| {
                let x = g.op(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[x]);
                let target = g.dims(&[size(-1) * size(4), size(-2), size(6)]).unwrap();
                g.op(Op::Reshape { allow_zero: true }, &[x, target])
            };
            let y = g.un(Unary::Tanh, x);
            let (a, b) = (merge(&mut g, x), merge(&mut g, y));
            let sum = if swapped { g.bin(Binary::Add, b, a) } else { g.bin(Binary::Add, a, b) };
            let target = g.dims(&[size(-1), size(4), size(-2), size(6)]).unwrap();
            let split = g.op(Op::Reshape { allow_zero: true }, &[sum, target]);
            let y = g.op(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[split]);
            g.add_output("y", y);
            let clean = cleaned(&g);
            assert_eq!((clean.node_count(), count(&clean, "Add")), (2, 1));
        }
    }

    #[test]
    fn near_misses_stay() {
        // Terms transposed or merged differently.
        let mut g = Graph::new("differently");
        let (x, y) = (g.add_input("x", f32s(&[4, 4, 6])), g.add_input("y", f32s(&[2, 8, 6])));
        let turned = g.op(Op::Transpose { perm: vec![1, 0, 2] }, &[x]);
        let other = g.op(Op::Transpose { perm: vec![0, 1, 2] }, &[x]);
        let a = g.bin(Binary::Add, turned, other);
        let flat = [x, y].map(|v| {
            let target = g.ints(&[16, 6]);
            g.op(Op::Reshape { allow_zero: true }, &[v, target])
        });
        let b = g.bin(Binary::Add, flat[0], flat[1]);
        g.add_output("a", a);
        g.add_output("b", b);
        assert_eq!(after(&g, &SINK).1, 0);
        // Rows of another length than the state's.
        let mut g = Graph::new("other");
        let x = g.add_input("x", f32s(&[-1, -2, 4]));
        let target = g.dims(&[size(-1) * size(-2) * 2i64.into(), 2i64.into()]).unwrap();
        let rows = g.op(Op::Reshape { allow_zero: true }, &[x, target]);
        let w = g.constant(random(1, &[2, 3]));
        let y = g.op(Op::MatMul, &[rows, w]);
        g.add_output("y", y);
        assert_eq!(after(&g, &SINK).1, 0);
        // The flattened value is the right operand; the other rows do not come from the same shape.
        let mut g = Graph::new("right");
        let x = g.add_input("x", f32s(&[2, 3, 4]));
        let (six, z) = (g.ints(&[6, 4]), g.add_input("z", f32s(&[6, 4])));
        let rows = g.op(Op::Reshape { allow_zero: true }, &[x, six]);
        let left = g.add_input("left", f32s(&[5, 6]));
        let y = g.op(Op::MatMul, &[left, rows]);
        let sum = g.bin(Binary::Add, rows, z);
        g.add_output("y", y);
        g.add_output("sum", sum);
        assert_eq!(after(&g, &SINK).1, 0);
    }
}
