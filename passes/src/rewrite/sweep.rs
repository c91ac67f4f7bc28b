//! One forward sweep: every node is offered to a rule with its operands already rewritten.
//!
//! ```text
//!   node  ──rule──▶  replacement of each result  ──▶  later nodes and outputs read the replacement
//! ```
//!
//! A rule adds nodes and says which values stand for the node's results; it never changes the node. The
//! old node stays until dead code goes, so results that are used elsewhere remain valid.

use std::collections::HashMap;

use crate::ir::{Graph, GraphError, NodeId, ValueId};

/// Offers every node, in an order of evaluation, to `rule`, which returns replacements for the node's
/// results (`old → new`). Returns how many values were replaced. A replacement of another type is refused.
pub(crate) fn sweep(
    graph: &mut Graph,
    mut rule: impl FnMut(&mut Graph, NodeId) -> Result<Vec<(ValueId, ValueId)>, GraphError>,
) -> Result<usize, GraphError> {
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for id in graph.topological()? {
        redirect(graph, id, &map);
        for (old, new) in rule(graph, id)? {
            if old != new {
                name_after(graph, id, new);
                graph.check_replacement(old, new)?;
                graph.adopt_name(old, new);
                map.insert(old, new);
            }
        }
    }
    for output in &mut graph.outputs {
        output.value = map.get(&output.value).copied().unwrap_or(output.value);
    }
    Ok(map.len())
}

/// A node made in place of another is called like it.
fn name_after(graph: &mut Graph, old: NodeId, new: ValueId) {
    let name = graph.node(old).map(|n| n.name.clone()).unwrap_or_default();
    if let Some(made) = graph.producer(new)
        && graph.node(made).is_some_and(|n| n.name.is_empty())
    {
        graph.set_node_name(made, &name);
    }
}

fn redirect(graph: &mut Graph, id: NodeId, map: &HashMap<ValueId, ValueId>) {
    let Some(node) = graph.node(id) else { return };
    let edits: Vec<(usize, ValueId)> =
        node.inputs.iter().enumerate().filter_map(|(i, v)| Some((i, *map.get(v.as_ref()?)?))).collect();
    for (at, v) in edits {
        graph.set_input(id, at, v);
    }
}

/// As [`sweep`], for rules about the first result alone.
pub(crate) fn sweep_first(
    graph: &mut Graph,
    mut rule: impl FnMut(&mut Graph, NodeId) -> Result<Option<ValueId>, GraphError>,
) -> Result<usize, GraphError> {
    sweep(graph, |graph, id| {
        let new = rule(graph, id)?;
        let old = graph.node(id).and_then(|n| n.outputs.first().copied());
        Ok(old.zip(new).into_iter().collect())
    })
}
