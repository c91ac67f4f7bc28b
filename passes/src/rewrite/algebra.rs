//! Neutral elements and functions that undo themselves.
//!
//! ```text
//!   x + 0, x - 0, x · 1, x / 1, x ^ 1, x ∧ true, x ∨ false, min(x, x), -(-x)     become  x
//! ```
//!
//! Only where the operand has the result's type: `x · ones[n, 1]` may broadcast.

use super::matching::{same_type, unary, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Binary, Graph, GraphError, NodeId, Op, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "algebra", fidelity: Fidelity::Exact, apply };

fn apply(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| Ok(simplified(graph, id)))
}

/// `norm(x, ones, zeros)` becomes `norm(x)`: for graphs about to run only, since layers of one class must keep
/// their weights, whatever these are.
pub(super) const BARE_NORMS: Pass =
    Pass { name: "bare-norms", fidelity: Fidelity::Exact, apply: |graph, _| sweep_first(graph, bare) };

fn bare(graph: &mut Graph, id: NodeId) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.node(id) else { return Ok(None) };
    let neutral = |i: usize, x: f64| node.input(i).is_none_or(|v| uniform(graph, v) == Some(x));
    let is_norm = matches!(node.op, Op::LayerNorm { .. } | Op::RmsNorm { .. });
    let Some(x) = node.input(0) else { return Ok(None) };
    if !is_norm || node.operands().count() < 2 || !neutral(1, 1.0) || !neutral(2, 0.0) {
        return Ok(None);
    }
    graph.add(node.op.clone(), &[x]).map(Some)
}

fn simplified(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let node = graph.node(id)?;
    let result = *node.outputs.first()?;
    let same = match &node.op {
        Op::Unary(Unary::Neg) => unary(graph, node.input(0)?, Unary::Neg)?,
        Op::Binary(function) => neutral(graph, *function, node.input(0)?, node.input(1)?)?,
        _ => return None,
    };
    same_type(graph, same, result).then_some(same)
}

/// The operand that the other one leaves unchanged.
fn neutral(graph: &Graph, function: Binary, a: ValueId, b: ValueId) -> Option<ValueId> {
    use Binary::*;
    let is = |v, x: f64| uniform(graph, v) == Some(x);
    let element = match function {
        Add | Sub | Or | BitwiseOr | BitwiseXor | Xor => 0.0,
        Mul | Div | Pow | And => 1.0,
        Min | Max | BitwiseAnd => return (a == b).then_some(a),
        _ => return None,
    };
    if matches!(function, And | Or) && a == b {
        return Some(a);
    }
    if is(b, element) {
        return Some(a);
    }
    (function.commutes() && is(a, element)).then_some(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::testing::{after, f32s};

    fn with_constant(f: Binary, c: f32, swapped: bool, c_rank: usize) -> Graph {
        let mut g = Graph::new("algebra");
        let x = g.add_input("x", f32s(&[-1, 4]));
        let c = g.constant(crate::ir::Tensor::from_vec(vec![1; c_rank], vec![c]).unwrap());
        let y = if swapped { g.bin(f, c, x) } else { g.bin(f, x, c) };
        let y = g.un(Unary::Exp, y);
        g.add_output("y", y);
        g
    }

    #[test]
    fn neutral_elements_go() {
        use Binary::*;
        for (f, c) in [(Add, 0.0), (Sub, 0.0), (Mul, 1.0), (Div, 1.0), (Pow, 1.0)] {
            assert_eq!(after(&with_constant(f, c, false, 0), &PASS).1, 1, "{f:?}");
            let commuted = usize::from(f.commutes());
            assert_eq!(after(&with_constant(f, c, true, 0), &PASS).1, commuted, "{f:?}");
        }
    }

    #[test]
    fn other_elements_stay() {
        use Binary::*;
        for (f, c, rank) in [(Add, 1.0, 0), (Mul, 0.0, 0), (Pow, 2.0, 0), (Mul, 1.0, 3)] {
            assert_eq!(after(&with_constant(f, c, false, rank), &PASS).1, 0, "{f:?}");
        }
    }

    #[test]
    fn neutral_weights_of_norms_go() {
        let norm = |scale: f32, bias: f32| {
            let mut g = Graph::new("norm");
            let x = g.add_input("x", f32s(&[-1, 4]));
            let vector = |v| crate::ir::Tensor::from_vec(vec![4], vec![v; 4]).unwrap();
            let (scale, bias) = (g.constant(vector(scale)), g.constant(vector(bias)));
            let y = g.op(Op::LayerNorm { axis: 1, epsilon: 1e-5 }, &[x, scale, bias]);
            g.add_output("y", y);
            after(&g, &BARE_NORMS).1
        };
        assert_eq!((norm(1.0, 0.0), norm(1.0, 0.5), norm(2.0, 0.0)), (1, 0, 0));
    }

    #[test]
    fn double_negation_goes() {
        let mut g = Graph::new("negation");
        let x = g.add_input("x", f32s(&[3]));
        let y = g.un(Unary::Neg, x);
        let y = g.un(Unary::Neg, y);
        g.add_output("y", y);
        assert_eq!(after(&g, &PASS).0.node_count(), 0);
    }
}
