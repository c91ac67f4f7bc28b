//! Operators whose axes or steps were operands become static once these are known.
//!
//! ```text
//!   ReduceSum(x, axes), axes = [1]     becomes  ReduceSum[axes 1](x)
//! ```

use super::matching::ints;
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Graph, GraphError, NodeId, Op, Resolved, ValueId};

pub(crate) const PASS: Pass = Pass { name: "parameters", fidelity: Fidelity::Exact, apply };

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| match resolved(graph, id) {
        Some(Ok((op, operands))) => graph.add(op, &operands).map(Some),
        Some(Err(why)) => {
            notes.decline(graph, id, why);
            Ok(None)
        }
        None => Ok(None),
    })
}

/// What a node stands for; `None` when it is no such node or its parameters are open.
fn resolved(graph: &Graph, id: NodeId) -> Option<Result<(Op, Vec<ValueId>), String>> {
    let node = graph.node(id)?;
    let Op::Dynamic(dynamic) = &node.op else { return None };
    let rank = graph.shape(node.input(0)?)?.len();
    let parameters = dynamic.parameters().map(|i| ints(graph, node.input(i)?)).collect::<Option<Vec<_>>>()?;
    Some(dynamic.resolve(rank, &parameters).and_then(|Resolved { op, operands }| {
        let operands = operands.iter().map(|i| node.input(*i)).collect::<Option<Vec<_>>>();
        Ok((op, operands.ok_or("an operand is missing")?))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Dynamic, Reduce, Type};
    use crate::rewrite::testing::{after, count, f32s};

    const SUM: Dynamic = Dynamic::Reduce { op: Reduce::Sum, keepdims: false, noop: false };

    #[test]
    fn known_axes_decide() {
        let mut g = Graph::new("known");
        let x = g.add_input("x", f32s(&[3, 4, 5]));
        let axes = g.ints(&[-1, 0]);
        let y = g.op(Op::Dynamic(SUM), &[x, axes]);
        let (start, end) = (g.ints(&[1]), g.ints(&[3]));
        let (axis, step) = (g.ints(&[0]), g.ints(&[1]));
        let y = g.op(Op::Dynamic(Dynamic::Slice), &[y, start, end, axis, step]);
        g.add_output("y", y);
        let (clean, changes) = after(&g, &PASS);
        assert_eq!((changes, count(&clean, "ReduceSum"), count(&clean, "Slice")), (2, 1, 1));
        assert!(!clean.nodes().any(|(_, n)| matches!(n.op, Op::Dynamic(_))));
    }

    #[test]
    fn axes_given_at_run_time_stay() {
        let mut g = Graph::new("open");
        let x = g.add_input("x", f32s(&[3, 4]));
        let axes = g.add_input("axes", Type::new(DType::I64, vec![1i64.into()]));
        let y = g.op(Op::Dynamic(SUM), &[x, axes]);
        assert_eq!(g.ty(y).map(|t| t.rank()), Some(1));
        g.add_output("y", y);
        let changes = super::super::apply_pass(&mut g, &PASS, &mut Notes::default()).unwrap();
        assert_eq!(changes, 0);
    }
}
