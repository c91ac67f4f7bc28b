//! Caches of keys and values: inputs that one layer alone reads and hands out again, grown.
//!
//! ```text
//!   past_key_values.3.key ─▶ Concat(past, k) ─▶ present.3.key
//!                               └─▶ attention of layer 3
//! ```

use std::collections::{HashMap, HashSet};

use super::chain::Layer;
use super::stream::Event;
use crate::ir::{Def, Graph, ValueId};

/// A cache of one layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cache {
    /// Zero-based number of the layer.
    pub layer: usize,
    /// The model's input that holds what earlier calls left.
    pub input: ValueId,
    /// The value inside the layer that the model gives out for the next call.
    pub output: ValueId,
}

/// The caches of all layers, in the order of the model's outputs within a layer.
pub(super) fn caches(graph: &Graph, layers: &[Layer]) -> Vec<Cache> {
    let read: Vec<HashSet<ValueId>> = layers
        .iter()
        .map(|layer| inputs_behind(graph, layer, layer.events.iter().filter_map(Event::branch).collect()))
        .collect();
    let mut readers: HashMap<ValueId, usize> = HashMap::new();
    for v in read.iter().flatten() {
        *readers.entry(*v).or_default() += 1;
    }
    let mut found = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let states: HashSet<ValueId> = layer.states().into_iter().collect();
        for output in graph.outputs.iter().map(|o| o.value) {
            let inside = graph.producer(output).is_some_and(|n| layer.nodes.contains(&n));
            if !inside || states.contains(&output) {
                continue;
            }
            let mut behind: Vec<ValueId> = inputs_behind(graph, layer, vec![output])
                .into_iter()
                .filter(|v| readers.get(v) == Some(&1) && read[i].contains(v) && alike(graph, *v, output))
                .collect();
            behind.sort_unstable();
            found.extend(behind.first().map(|input| Cache { layer: i, input: *input, output }));
        }
    }
    found
}

/// The model's inputs that `roots` are computed from without passing through the layer's states.
fn inputs_behind(graph: &Graph, layer: &Layer, roots: Vec<ValueId>) -> HashSet<ValueId> {
    let mut seen: HashSet<ValueId> = layer.states().into_iter().collect();
    let mut inputs = HashSet::new();
    let mut stack = roots;
    while let Some(v) = stack.pop() {
        if !seen.insert(v) {
            continue;
        }
        match graph.value(v).def {
            Def::Input => {
                inputs.insert(v);
            }
            _ => stack.extend(graph.producing(v).into_iter().flat_map(|n| n.operands())),
        }
    }
    inputs
}

/// Whether one tensor can be the other after it grew along an axis.
fn alike(graph: &Graph, input: ValueId, output: ValueId) -> bool {
    let (Some(a), Some(b)) = (graph.ty(input), graph.ty(output)) else { return false };
    let differ = a.shape.iter().zip(&b.shape).filter(|(x, y)| x != y).count();
    a.dtype == b.dtype && a.rank() == b.rank() && differ <= 1
}
