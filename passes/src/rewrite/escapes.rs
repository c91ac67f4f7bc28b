//! Values inside the layers of a parallel segment that are read from outside: caches, attention weights.
//!
//! The rewrite takes each out of the batch that its layer was evaluated in, at the last iteration:
//!
//! ```text
//!   present.2.key = Concat(past.2.key, k_2)      ⇒      present.2.key = Concat(past, k)[2]
//! ```
//!
//! Where a model keeps caches and a segment is evaluated more than once, `kv=exact` gives every evaluation
//! before the last its own: further inputs and outputs `NAME.iterK` after those that the model has.

use std::collections::{HashMap, HashSet};

use super::vectorize::{OwnInputs, VectorizeError};
use crate::analysis::{Cache, Chain, Event, Mismatch, Tap, state_dependent};
use crate::ir::{Graph, ValueId};

/// A value inside a layer that is read from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Escape {
    pub layer: usize,
    pub value: ValueId,
    /// Whether it depends on what the rewrite approximates; otherwise it may stay as it is.
    pub approximated: bool,
}

/// The escaping values of a segment's layers.
pub(super) fn escapes(
    graph: &Graph,
    chain: &Chain,
    layers: &[usize],
    taps: &[Tap],
) -> Result<Vec<Escape>, VectorizeError> {
    if let Some(tap) = taps.iter().find(|t| t.inside) {
        let reason = format!(
            "the state between the sub-blocks of layer {} is read by {}",
            tap.after_layer,
            tap.readers.join(", ")
        );
        return Err(Mismatch::at_value(graph, tap.value, reason).into());
    }
    let inside: HashSet<_> = layers.iter().flat_map(|l| chain.layers[*l].nodes.iter().copied()).collect();
    let states: HashSet<ValueId> = layers.iter().flat_map(|l| chain.layers[*l].states()).collect();
    let outputs: HashSet<ValueId> = graph.outputs.iter().map(|o| o.value).collect();
    let users = graph.users();
    let first = layers.first().and_then(|l| chain.layers[*l].events.first());
    let Some(approximated) = first.map(|e| state_dependent(graph, e.output())) else { return Ok(vec![]) };
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for layer in layers {
        let mut nodes: Vec<_> = chain.layers[*layer].nodes.iter().copied().collect();
        nodes.sort_unstable();
        for value in nodes.into_iter().filter_map(|n| graph.node(n)).flat_map(|n| n.outputs.iter().copied()) {
            let escapes =
                outputs.contains(&value) || users[value.index()].iter().any(|n| !inside.contains(n));
            if escapes && !states.contains(&value) && seen.insert(value) {
                let approximated = approximated.contains(value);
                found.push(Escape { layer: *layer, value, approximated });
            }
        }
    }
    Ok(found)
}

/// What replaces the escaping values: as the last evaluation has them.
pub(super) fn replacements(
    graph: &Graph,
    escapes: &[Escape],
    evaluated: &HashMap<ValueId, ValueId>,
) -> Result<Vec<(ValueId, ValueId)>, VectorizeError> {
    let mut replaced = Vec::new();
    for escape in escapes {
        match evaluated.get(&escape.value) {
            Some(new) => replaced.push((escape.value, *new)),
            None if escape.approximated => {
                let reason = "a value inside a layer is read outside the parallel segment, \
                              and the segment does not compute it";
                return Err(Mismatch::at_value(graph, escape.value, reason).into());
            }
            None => {}
        }
    }
    Ok(replaced)
}

/// The caches of an evaluation before the last one: inputs in place of the model's.
pub(super) fn own_inputs(graph: &mut Graph, caches: &[Cache], iteration: usize) -> OwnInputs {
    let mut replacements = HashMap::new();
    for cache in caches {
        if replacements.contains_key(&cache.input) {
            continue;
        }
        let name = graph.value(cache.input).name.clone();
        if let (Some(name), Some(ty)) = (name, graph.ty(cache.input).cloned()) {
            let own = graph.add_input(&own_name(&name, iteration), ty);
            replacements.insert(cache.input, own);
        }
    }
    OwnInputs::new(graph, replacements)
}

/// The outputs that belong to [`own_inputs`].
pub(super) fn own_outputs(
    graph: &mut Graph,
    caches: &[Cache],
    evaluated: &HashMap<ValueId, ValueId>,
    iteration: usize,
) -> Result<(), VectorizeError> {
    for cache in caches {
        let Some(new) = evaluated.get(&cache.output) else {
            let reason = "kv=exact needs a cache that the layers compute themselves";
            return Err(Mismatch::at_value(graph, cache.output, reason).into());
        };
        let names: Vec<String> = graph
            .outputs
            .iter()
            .filter(|o| o.value == cache.output)
            .map(|o| own_name(&o.name, iteration))
            .collect();
        for name in names {
            graph.add_output(&name, *new);
        }
    }
    Ok(())
}

fn own_name(name: &str, iteration: usize) -> String {
    format!("{name}.iter{iteration}")
}

/// The states inside the segment.
pub(super) fn inner_states(chain: &Chain, layers: &[usize]) -> HashSet<ValueId> {
    layers.iter().flat_map(|l| chain.layers[*l].events.iter().map(Event::output)).collect()
}
