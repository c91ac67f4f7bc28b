//! Stacks of layers beside the chain: the encoder of a model whose decoder is the chain, or the reverse.
//!
//! ```text
//!   ids ─▶ encoder layers ─▶ e ──┐ (side input)          before: what the chain's side inputs are computed by
//!   ids ─▶ decoder layers ───────┴─▶ logits              after:  what reads the chain's output
//! ```

use std::collections::HashSet;

use super::chain::{Chain, Kind, Layer, find_chain};
use super::lockstep::describe;
use crate::ir::{Dim, Graph, GraphError, ValueId};

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
