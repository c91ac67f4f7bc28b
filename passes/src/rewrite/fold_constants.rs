//! Nodes whose operands are all constants are evaluated.
//!
//! ```text
//!   Transpose(W) (W read here alone)  becomes  Wᵀ          Transpose(wte) (tied embedding)  stays
//! ```
//!
//! A result is kept only when it is small or no larger than the constants that die with the node: folding
//! must not duplicate a large weight, nor expand a quantised one, however small.

use std::collections::HashSet;

use super::sweep::sweep;
use super::{Fidelity, Notes, Pass};
use crate::eval::eval_op_within;
use crate::ir::{Graph, GraphError, Node, Op, Tensor, Type, ValueId};

pub(crate) const PASS: Pass = Pass { name: "fold-constants", fidelity: Fidelity::Exact, apply };

/// [`PASS`] for a graph whose sizes are known: masks and tables that come from sizes alone are computed
/// once instead of at every run.
pub(crate) const BOUND: Pass = Pass {
    name: "fold-constants",
    fidelity: Fidelity::Exact,
    apply: |graph, notes| fold(graph, notes, LARGE),
};

/// Results up to this size may be kept beside what they were computed from.
const SMALL: usize = 64 << 10;

/// As [`SMALL`], for results that no weight went into, in a bound graph.
const LARGE: usize = 64 << 20;

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    fold(graph, notes, SMALL)
}

/// Folds; results without a weight among their ancestors may be as large as `weightless` bytes.
fn fold(graph: &mut Graph, notes: &mut Notes, weightless: usize) -> Result<usize, GraphError> {
    let mut uses = uses(graph);
    let mut weights: HashSet<ValueId> = graph
        .values()
        .filter(|(v, _)| graph.tensor(*v).is_some_and(|t| t.byte_len() > SMALL))
        .map(|(v, _)| v)
        .collect();
    sweep(graph, |graph, id| {
        let Some(node) = graph.node(id) else { return Ok(vec![]) };
        let Some(operands) = constants(graph, node) else { return Ok(vec![]) };
        let of_weights = node.operands().any(|v| weights.contains(&v));
        let dying: usize = node
            .operands()
            .filter(|v| uses.get(v.index()).is_some_and(|n| *n <= 1))
            .filter_map(|v| graph.tensor(v).map(Tensor::byte_len))
            .sum();
        let allowed = match node.op {
            Op::Dequantize { .. } => dying,
            _ => dying.max(if of_weights { SMALL } else { weightless }),
        };
        if !affordable(graph, node, allowed) {
            return Ok(vec![]);
        }
        let results = match eval_op_within(allowed, &node.op, &operands) {
            Ok(results) => results,
            Err(error) => {
                notes.decline(graph, id, format!("cannot be evaluated: {error}"));
                return Ok(vec![]);
            }
        };
        let total: usize = results.iter().map(Tensor::byte_len).sum();
        if total > allowed || !expected(graph, node, &results) {
            return Ok(vec![]);
        }
        let (old, read): (Vec<_>, Vec<_>) = (node.outputs.clone(), node.operands().collect());
        for v in read {
            if let Some(n) = uses.get_mut(v.index()) {
                *n = n.saturating_sub(1);
            }
        }
        let new: Vec<ValueId> = results.into_iter().map(|t| graph.constant(t)).collect();
        uses.resize(graph.value_count(), 0);
        for (old, new) in old.iter().zip(&new) {
            uses[new.index()] = uses[old.index()];
            if of_weights {
                weights.insert(*new);
            }
        }
        Ok(old.into_iter().zip(new).collect())
    })
}

/// Reads of every value, outputs included.
fn uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.value_count()];
    for v in graph.nodes().flat_map(|(_, n)| n.operands()).chain(graph.outputs.iter().map(|o| o.value)) {
        uses[v.index()] += 1;
    }
    uses
}

fn constants<'g>(graph: &'g Graph, node: &Node) -> Option<Vec<Option<&'g Tensor>>> {
    let evaluable = match &node.op {
        Op::Opaque(_) => false,
        Op::Dims { dims, .. } => dims.iter().all(|d| d.known().is_some()),
        _ => true,
    };
    if !evaluable {
        return None;
    }
    node.inputs
        .iter()
        .map(|v| match v {
            None => Some(None),
            Some(v) => graph.tensor(*v).map(Some),
        })
        .collect()
}

/// Whether the results, as far as their types say, fit in `bytes`.
fn affordable(graph: &Graph, node: &Node, bytes: usize) -> bool {
    let size = |ty: &Type| {
        let n = crate::ir::element_count(&ty.known_shape()?)?;
        Some(ty.dtype.bytes(n))
    };
    node.outputs.iter().all(|v| match graph.ty(*v) {
        // The size is only known when it is computed; such results (NonZero) are small next to their
        // operands.
        Some(ty) if ty.known_shape().is_none() => true,
        Some(ty) => size(ty).is_some_and(|n| n <= bytes),
        None => false,
    })
}

/// Whether the evaluator gave what inference promised.
fn expected(graph: &Graph, node: &Node, results: &[Tensor]) -> bool {
    results.len() == node.outputs.len()
        && node.outputs.iter().zip(results).all(|(v, t)| match graph.ty(*v) {
            Some(ty) => {
                ty.dtype == t.dtype()
                    && ty.rank() == t.shape().len()
                    && ty.shape.iter().zip(t.shape()).all(|(d, n)| d.known_size().is_none_or(|d| d == *n))
            }
            None => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Binary, Unary};
    use crate::rewrite::testing::{after, count, f32s, random};

    /// `x · Transpose(w)`, the weight read elsewhere too or not.
    fn tied(read_twice: bool) -> Graph {
        let mut g = Graph::new("tied");
        let x = g.add_input("x", f32s(&[-1, 128]));
        let w = g.constant(random(1, &[256, 128]));
        let wt = g.op(Op::Transpose { perm: vec![1, 0] }, &[w]);
        let y = g.op(Op::MatMul, &[x, wt]);
        let y = if read_twice { g.op(Op::MatMul, &[y, w]) } else { y };
        g.add_output("y", y);
        g
    }

    #[test]
    fn a_weight_of_one_reader_is_transposed_once_and_for_all() {
        assert_eq!(count(&after(&tied(false), &PASS).0, "Transpose"), 0);
    }

    #[test]
    fn a_shared_weight_is_not_duplicated() {
        assert_eq!(count(&after(&tied(true), &PASS).0, "Transpose"), 1);
    }

    #[test]
    fn small_results_are_kept_and_large_ones_are_not() {
        let mut g = Graph::new("small");
        let x = g.add_input("x", f32s(&[4]));
        let (a, b) = (g.num(2.0), g.num(3.0));
        let c = g.bin(Binary::Mul, a, b);
        let c = g.un(Unary::Sqrt, c);
        let y = g.bin(Binary::Mul, x, c);
        g.add_output("y", y);
        let shape = g.ints(&[64, 1024]);
        let large = g.op(Op::Expand, &[c, shape]);
        g.add_output("large", large);
        let (clean, _) = after(&g, &PASS);
        assert_eq!((clean.node_count(), count(&clean, "Expand")), (2, 1));
    }

    #[test]
    fn quantised_weights_are_not_expanded() {
        let mut g = Graph::new("quantised");
        let x = g.add_input("x", f32s(&[-1, 4]));
        let w = g.constant(Tensor::from_vec(vec![3, 4], vec![1i8; 12]).unwrap());
        let scale = g.constant(random(1, &[4]));
        let wt = g.op(Op::Dequantize { blocks: None }, &[w, scale]);
        let wt = g.op(Op::Transpose { perm: vec![1, 0] }, &[wt]);
        let y = g.op(Op::MatMul, &[x, wt]);
        // A bias of 32 bits is as large either way.
        let bias = g.constant(Tensor::from_vec(vec![3], vec![1i32; 3]).unwrap());
        let half = g.constant(Tensor::scalar(0.5f32));
        let bias = g.op(Op::Dequantize { blocks: None }, &[bias, half]);
        let y = g.bin(Binary::Add, y, bias);
        g.add_output("y", y);
        assert_eq!(count(&after(&g, &PASS).0, "DequantizeLinear"), 1);
    }

    #[test]
    fn what_the_evaluator_refuses_stays() {
        let mut g = Graph::new("refused");
        // More indices than inference looks at, all outside.
        let (data, index) = (g.ints(&[1, 2, 3]), g.ints(&[7; 100]));
        let y = g.op(Op::Gather { axis: 0 }, &[data, index]);
        g.add_output("y", y);
        let changes = super::super::apply_pass(&mut g, &PASS, &mut Notes::default()).unwrap();
        assert_eq!((changes, g.node_count()), (0, 1));
    }
}
