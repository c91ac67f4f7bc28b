//! Stacks of layers beside the chain: the encoder of a model whose decoder is the chain, or the reverse.
//!
//! ```text
//!   ids ─▶ encoder layers ─▶ e ──┐ (side input)          before: what the chain's side inputs are computed by
//!   ids ─▶ decoder layers ───────┴─▶ logits              after:  what reads the chain's output
//! ```

use std::collections::HashSet;

use super::chain::{Chain, Kind, Layer, find_chain};
use super::kind::attends;
use super::lockstep::describe;
use super::region::state_dependent;
use crate::ir::{Dim, Graph, GraphError, NodeId, ValueId};

/// A stack of layers that is not part of the chain.
#[derive(Clone, PartialEq, Debug)]
pub struct OtherStack {
    /// Number of layers.
    pub layers: usize,
    /// Feature size of its state.
    pub hidden: Dim,
    /// Style of its layers.
    pub kind: Kind,
    /// What makes its last state.
    pub at: String,
}

/// The longest stack before the chain and the longest behind it, those of two layers or more.
pub fn other_stacks(graph: &Graph, chain: &Chain) -> Vec<OtherStack> {
    let own: HashSet<ValueId> = chain.layers.iter().flat_map(Layer::states).collect();
    // Layers that read an earlier state of the chain have its first layers before them.
    let others = |found: &Chain| found.layers.len() > 1 && !own.contains(&found.output());
    [before(graph, chain), after(graph, chain).ok()]
        .into_iter()
        .flatten()
        .filter_map(|part| find_chain(&part).ok())
        .filter(others)
        .map(|found| OtherStack {
            layers: found.layers.len(),
            hidden: found.hidden.clone(),
            kind: found.kind,
            at: describe(graph, found.output()),
        })
        .collect()
}

/// Attentions that are part of no layer.
#[derive(Clone, PartialEq, Debug)]
pub struct Unreached {
    /// How many there are.
    pub attentions: usize,
    /// The first, in an order of evaluation.
    pub first: String,
    /// Who reads the chain's last state, each with its operator; empty where all lie before the chain.
    pub readers: Vec<String>,
}

/// Attentions outside the chain's layers: the chain may end too soon, where its state goes through what is no skip
/// path. None where there are none.
pub fn unreached(graph: &Graph, chain: &Chain) -> Option<Unreached> {
    let inside: HashSet<NodeId> = chain.layers.iter().flat_map(|l| l.nodes.iter().copied()).collect();
    let outside: HashSet<NodeId> =
        graph.nodes().map(|(id, _)| id).filter(|id| !inside.contains(id)).collect();
    let reach = state_dependent(graph, chain.input);
    let order = graph.topological().ok()?;
    let attention: Vec<NodeId> = order
        .into_iter()
        .filter(|id| outside.contains(id) && attends(graph, *id, &outside, &reach))
        .collect();
    let result = |id: &NodeId| graph.node(*id).and_then(|n| n.outputs.first()).map(|v| describe(graph, *v));
    let first = attention.first().and_then(result)?;
    let users = graph.users();
    let behind = state_dependent(graph, chain.output());
    let lies_behind =
        |id: &NodeId| graph.node(*id).is_some_and(|n| n.outputs.iter().any(|v| behind.contains(*v)));
    let ends_early = attention.iter().any(lies_behind);
    let readers = users[chain.output().index()].iter().filter(|id| ends_early && outside.contains(id));
    let mut readers: Vec<String> =
        readers.filter_map(|id| Some(format!("{} ({})", result(id)?, graph.node(*id)?.op.name()))).collect();
    readers.dedup();
    Some(Unreached { attentions: attention.len(), first, readers })
}

/// What computes the values that the chain's layers read from outside.
fn before(graph: &Graph, chain: &Chain) -> Option<Graph> {
    let sides: Vec<ValueId> =
        chain.side_inputs.iter().map(|s| s.value).filter(|v| graph.producer(*v).is_some()).collect();
    if sides.is_empty() {
        return None;
    }
    let mut part = graph.clone();
    part.outputs.clear();
    for (i, value) in sides.into_iter().enumerate() {
        part.add_output(&format!("side {i}"), value);
    }
    part.remove_dead();
    Some(part)
}

/// What is computed from the chain's output.
fn after(graph: &Graph, chain: &Chain) -> Result<Graph, GraphError> {
    let mut part = graph.clone();
    if let Some(ty) = graph.ty(chain.output()).cloned() {
        let input = part.add_input("state behind the chain", ty);
        part.replace_uses(chain.output(), input)?;
    }
    part.remove_dead();
    Ok(part)
}
