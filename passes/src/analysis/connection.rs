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
        let without_streams = |v: ValueId| {
            let Some(shape) = graph.shape(v) else { return false };
            let at = streams.axis;
            let rest = match shape.len() + 1 == state.len() {
                true => &shape[at..],
                false if shape.len() == state.len() && shape[at] == Dim::ONE => &shape[at + 1..],
                false => return false,
            };
            shape[..at] == state[..at] && *rest == state[at + 1..]
        };
        let core = graph
            .producing(branch)?
            .operands()
            .map(|v| without_unit_axes(graph, v))
            .find(|v| without_streams(*v) && graph.tensor(*v).is_none())?;
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
    }
}

/// The value before axes of size 1 were put in.
fn without_unit_axes(graph: &Graph, mut v: ValueId) -> ValueId {
    while let Some(node) = graph.producing(v)
        && matches!(node.op, Op::Unsqueeze { .. } | Op::Identity)
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
        Op::Einsum { .. } => of_state(node),
        Op::Reduce { op: Reduce::Sum, axes, .. } => {
            axes[..] == [axis] && node.input(0).and_then(|v| graph.producing(v)).is_some_and(of_state)
        }
        Op::MatMul => {
            let weights = node.input(0).and_then(|v| graph.shape(v));
            of_state(node) && weights.is_some_and(|s| s.len() >= 2 && s[s.len() - 2] == Dim::ONE)
        }
        _ => false,
    }
}
