//! Which values depend on which.

use std::collections::HashSet;

use crate::ir::{Graph, NodeId, ValueId};

/// The descendants of a value, as a set over the values of one graph.
pub struct Reach(Vec<bool>);

impl Reach {
    /// Whether `v` is a descendant (the origin itself is not).
    pub fn contains(&self, v: ValueId) -> bool {
        self.0.get(v.index()).copied().unwrap_or(false)
    }
}

/// Everything that is computed from `origin`.
pub fn state_dependent(graph: &Graph, origin: ValueId) -> Reach {
    descendants(graph, [origin])
}

/// Everything that is computed from any of `origins`.
pub fn descendants(graph: &Graph, origins: impl IntoIterator<Item = ValueId>) -> Reach {
    let mut reach = vec![false; graph.value_count()];
    let mut stack: Vec<ValueId> = origins.into_iter().collect();
    if stack.is_empty() {
        return Reach(reach);
    }
    let users = graph.users();
    while let Some(v) = stack.pop() {
        for node in users.get(v.index()).into_iter().flatten().filter_map(|n| graph.node(*n)) {
            for out in &node.outputs {
                if !std::mem::replace(&mut reach[out.index()], true) {
                    stack.push(*out);
                }
            }
        }
    }
    Reach(reach)
}

/// The nodes from which `roots` are computed without passing through `stops` or through values that do
/// not depend on the state.
pub(super) fn region(
    graph: &Graph,
    roots: &[ValueId],
    stops: &HashSet<ValueId>,
    reach: &Reach,
) -> HashSet<NodeId> {
    let mut nodes = HashSet::new();
    let mut stack = roots.to_vec();
    while let Some(v) = stack.pop() {
        if stops.contains(&v) || !reach.contains(v) {
            continue;
        }
        let Some(id) = graph.producer(v) else { continue };
        if nodes.insert(id) {
            stack.extend(graph.node(id).into_iter().flat_map(|n| n.operands()));
        }
    }
    nodes
}
