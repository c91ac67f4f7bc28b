//! How a branch of a hyper-connection reads and writes the streams.
//!
//! ```text
//!   x [.., S, .., D] ─▶ read = pre · x ─▶ norm ─▶ attention or MLP ─▶ core ─▶ branch = post ⊗ core
//! ```
//!
//! `read` and `core` are states without the stream axis, or with one stream. Both weightings are linear in what they weigh, so
//! that fused layers need neither `pre` nor `post` by themselves (METHOD §2).

use std::collections::HashSet;

use super::chain::Streams;
use crate::ir::{Dim, Graph, Node, Op, Reduce, ValueId};

/// The two ends of what a branch computes without streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The weighted sum of the streams.
    pub read: ValueId,
    /// What is weighted for each stream and added to it.
    pub core: ValueId,
}

impl Connection {
    /// How `branch` reads and writes the streams of `states`, the layer's.
    pub fn of(
        graph: &Graph,
        branch: ValueId,
        states: &HashSet<ValueId>,
        streams: Streams,
    ) -> Option<Connection> {
        let state = graph.shape(branch)?.to_vec();
        if state.len() < 3 || streams.axis + 1 >= state.len() {
            return None;
        }
        let wide = |shape: &[Dim]| shape.iter().filter(|d| **d != Dim::ONE).cloned().collect::<Vec<_>>();
        let token = wide(&[&state[..streams.axis], &state[streams.axis + 1..]].concat());
        let without_streams = |v: ValueId| graph.shape(v).is_some_and(|shape| wide(shape) == token);
        // What is computed apart from the streams may be more precise than they are, or have them elsewhere.
        let written = behind(graph, branch, |op| matches!(op, Op::Cast { .. } | Op::Transpose { .. }));
        let cores = graph
            .producing(written)?
            .operands()
            .map(|v| behind(graph, v, |op| matches!(op, Op::Unsqueeze { .. } | Op::Identity)))
            .filter(|v| without_streams(*v) && graph.tensor(*v).is_none());
        // Weights of as many streams as there are features look alike, but sum no streams.
        cores.into_iter().find_map(|core| {
            let mut reads = HashSet::new();
            let mut seen = states.clone();
            let mut stack = vec![core];
            while let Some(v) = stack.pop() {
                if !seen.insert(v) {
                    continue;
                }
                let Some(node) = graph.producing(v) else { continue };
                if without_streams(v) && sums_streams(graph, node, states, streams.axis) {
                    reads.insert(v);
                } else {
                    stack.extend(node.operands());
                }
            }
            let mut reads = reads.into_iter();
            match (reads.next(), reads.next()) {
                (Some(read), None) => Some(Connection { read, core }),
                _ => None,
            }
        })
    }
}

/// The value before the operators that `passes` tells.
fn behind(graph: &Graph, mut v: ValueId, passes: fn(&Op) -> bool) -> ValueId {
    while let Some(node) = graph.producing(v)
        && passes(&node.op)
        && let Some(before) = node.input(0)
    {
        v = before;
    }
    v
}

/// Whether the node sums a state over its streams, each with a weight: `ReduceSum(pre · x)`,
/// `MatMul(pre [.., 1, S], x)` or an equation.
fn sums_streams(graph: &Graph, node: &Node, states: &HashSet<ValueId>, axis: usize) -> bool {
    let of_state = |n: &Node| n.operands().any(|v| states.contains(&v));
    match &node.op {
        // An equation has the streams where it says, whether or not the state is turned before.
        Op::Einsum { .. } => {
            let before = |v: ValueId| match graph.producing(v) {
                Some(n) if matches!(n.op, Op::Transpose { .. }) => n.input(0),
                _ => None,
            };
            node.operands().any(|v| states.contains(&v) || before(v).is_some_and(|v| states.contains(&v)))
        }
        Op::Reduce { op: Reduce::Sum, axes, .. } => {
            axes[..] == [axis] && node.input(0).and_then(|v| graph.producing(v)).is_some_and(of_state)
        }
        Op::MatMul => {
            let shape = |at: usize| node.input(at).and_then(|v| graph.shape(v)).filter(|s| s.len() >= 2);
            let from_left = of_state(node) && shape(0).is_some_and(|s| s[s.len() - 2] == Dim::ONE);
            // (xᵀ pre): the state turned, and one column.
            let turned = node.input(0).and_then(|v| graph.producing(v));
            let turned = turned.filter(|n| matches!(n.op, Op::Transpose { .. })).is_some_and(of_state);
            from_left || turned && shape(1).is_some_and(|s| s[s.len() - 1] == Dim::ONE)
        }
        _ => false,
    }
}
