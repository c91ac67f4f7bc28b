//! The residual stream cut into layers.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::cache::{Cache, caches};
use super::kind::{Mixing, attends, is_weight, kind_of, mixing};
use super::lockstep::{describe, same_class};
use super::region::{Reach, region, state_dependent};
use super::stream::{Event, find_stream};
use super::transfer::Transfer;
use crate::ir::{Dim, Graph, NodeId, Op, ValueId};

pub use super::kind::Kind;

/// Why no chain was found, and where the search ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Stopped {
    /// What is missing.
    pub reason: String,
    /// The place, empty when it is the whole graph.
    pub at: String,
}

impl Stopped {
    pub(crate) fn new(reason: impl Into<String>, at: impl Into<String>) -> Self {
        Stopped { reason: reason.into(), at: at.into() }
    }
}

/// A layer: the events of the stream from one attention join to the next.
#[derive(Clone, Debug)]
pub struct Layer {
    /// State that enters.
    pub input: ValueId,
    /// State that leaves.
    pub output: ValueId,
    /// Steps in between.
    pub events: Vec<Event>,
    /// Which of [`Chain::classes`].
    pub class: usize,
    /// Nodes of branches and skip path that depend on the chain's input.
    pub nodes: HashSet<NodeId>,
}

impl Layer {
    /// The states of the layer: entry, then after each event.
    pub fn states(&self) -> Vec<ValueId> {
        std::iter::once(self.input).chain(self.events.iter().map(Event::output)).collect()
    }

    /// Which events are joins.
    pub fn skeleton(&self) -> Vec<bool> {
        self.events.iter().map(|e| e.branch().is_some()).collect()
    }

    /// Number of branches added to the state.
    pub fn sub_blocks(&self) -> usize {
        self.events.iter().filter(|e| e.branch().is_some()).count()
    }

    /// What the skip path does to the state.
    pub fn transfer(&self, graph: &Graph) -> Transfer {
        self.events.iter().fold(Transfer::Identity, |t, e| t.then(Transfer::of(graph, e)))
    }
}

/// Layers that can be evaluated as one batched computation.
#[derive(Clone, Debug)]
pub struct Class {
    /// What a layer of the class consists of, as `12 MatMul, 2 LayerNormalization, …`.
    pub description: String,
    /// Zero-based layer numbers.
    pub layers: Vec<usize>,
    /// Why the first layer of this class is not of the class before, if there is one.
    pub differs: Option<String>,
}

/// A value that layers read besides the state.
#[derive(Clone, Debug)]
pub struct SideInput {
    /// The value.
    pub value: ValueId,
    /// Name in the source model, or the node that makes it.
    pub name: String,
    /// Zero-based numbers of the layers that read it.
    pub layers: Vec<usize>,
}

/// A state that is read besides by the next layer.
#[derive(Clone, Debug)]
pub struct Tap {
    /// The state.
    pub value: ValueId,
    /// How many layers the state has passed: a count, one more than the number of the last of them.
    pub after_layer: usize,
    /// Whether the state lies between two sub-blocks of layer `after_layer` (zero-based) instead of
    /// after a layer.
    pub inside: bool,
    /// Names of the readers: nodes, and outputs as `output 'name'`.
    pub readers: Vec<String>,
}

/// The residual streams of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Streams {
    /// How many there are; 1 in a plain residual model.
    pub count: usize,
    /// Axis of the state that they lie along, when there are several.
    pub axis: usize,
    /// Axes of the state that are neither streams nor features.
    pub tokens: usize,
}

/// The chain of layers of a model.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The state `h_0` that enters the first layer.
    pub input: ValueId,
    /// Layers in order.
    pub layers: Vec<Layer>,
    /// Classes in order of their first layer.
    pub classes: Vec<Class>,
    /// Values read from outside.
    pub side_inputs: Vec<SideInput>,
    /// States read after the trunk.
    pub taps: Vec<Tap>,
    /// Keys and values that the layers keep between calls.
    pub caches: Vec<Cache>,
    /// Feature size of the state.
    pub hidden: Dim,
    /// The residual streams of the state.
    pub streams: Streams,
    /// Style of the layers.
    pub kind: Kind,
    /// Nodes that do not depend on the chain's input.
    pub prefix_nodes: usize,
    /// Nodes that depend on it and belong to no layer.
    pub suffix_nodes: usize,
}

impl Chain {
    /// The state after the last layer.
    pub fn output(&self) -> ValueId {
        self.layers.last().map_or(self.input, |l| l.output)
    }

    /// The surrogate that `surrogate=auto` means, by its name in plans.
    pub fn surrogate(&self) -> &'static str {
        if self.streams.count > 1 { "transfer" } else { "identity" }
    }
}

/// Finds the chain of a cleaned-up graph.
pub fn find_chain(graph: &Graph) -> Result<Chain, Stopped> {
    let stream = find_stream(graph)?;
    let stream_states: HashSet<ValueId> =
        std::iter::once(stream.origin).chain(stream.events.iter().map(Event::output)).collect();
    let reach_origin = state_dependent(graph, stream.origin);
    let mixing: Vec<Mixing> = stream
        .events
        .iter()
        .map(|e| e.branch().map_or(Mixing::None, |b| mixing(graph, b, &stream_states, &reach_origin)))
        .collect();
    // A decoder layer has two attentions: its own starts it.
    let strongest = mixing.iter().copied().max().filter(|m| *m != Mixing::None).unwrap_or(Mixing::Own);
    let attention: Vec<bool> = mixing.iter().map(|m| *m == strongest).collect();
    let starts = layer_starts(graph, &stream.events, &attention)?;
    let mut layers = cut(&stream.events, &starts);
    let input = layers.first().map_or(stream.origin, |l| l.input);
    let reach = state_dependent(graph, input);
    fill_nodes(graph, &mut layers, &stream_states, &reach);
    refuse_shared_attention(graph, &layers, &reach)?;
    let classes = classify(graph, &mut layers, &reach);
    let kind = kind_of(graph, &layers, &stream_states, &reach);
    let hidden = graph.shape(input).and_then(|s| s.last()).cloned().unwrap_or(Dim::ZERO);
    let in_layers: HashSet<NodeId> = layers.iter().flat_map(|l| l.nodes.iter().copied()).collect();
    let depends = |n: &crate::ir::Node| n.outputs.iter().any(|v| reach.contains(*v));
    let prefix_nodes = graph.nodes().filter(|(_, n)| !depends(n)).count();
    let suffix_nodes = graph.nodes().filter(|(id, n)| depends(n) && !in_layers.contains(id)).count();
    let side_inputs = side_inputs(graph, &layers, &stream_states, &reach);
    let taps = taps(graph, &layers, &in_layers);
    let caches = caches(graph, &layers);
    let streams = streams(graph, &layers);
    Ok(Chain {
        input,
        layers,
        classes,
        side_inputs,
        taps,
        caches,
        hidden,
        streams,
        kind,
        prefix_nodes,
        suffix_nodes,
    })
}

/// Indices of the events at which layers start.
fn layer_starts(graph: &Graph, events: &[Event], attention: &[bool]) -> Result<Vec<usize>, Stopped> {
    let blocks = merge_parallel(graph, events, attention);
    let mut starts: Vec<usize> = blocks.iter().filter(|b| b.attends).map(|b| b.start).collect();
    if starts.is_empty() {
        let joins = events.iter().filter(|e| e.branch().is_some()).count();
        let at = events.last().map(|e| describe(graph, e.output())).unwrap_or_default();
        let reason = format!(
            "the residual stream has {joins} joins, but no branch attends over positions: \
             there is no softmax between two products, nor a known attention operator"
        );
        return Err(Stopped::new(reason, at));
    }
    // Maps before the first layer that the second layer does not start with belong to the prefix.
    if let [first, second, ..] = starts[..] {
        let leading = |at: usize| events[at..].iter().take_while(|e| e.branch().is_none()).count();
        starts[0] = first + leading(first).saturating_sub(leading(second));
    }
    Ok(starts)
}

/// A run of events that read the same state: its leading maps and one join, or several parallel ones.
struct Block {
    start: usize,
    attends: bool,
}

fn merge_parallel(graph: &Graph, events: &[Event], attention: &[bool]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut start = 0;
    for (i, event) in events.iter().enumerate() {
        let Some(branch) = event.branch() else {
            // A normalisation on the skip path closes the block before it.
            if is_norm(graph, event) && i == start {
                start = i + 1;
            }
            continue;
        };
        let parallel = i > 0
            && start == i
            && events[i - 1].branch().is_some()
            && !reads(graph, branch, events[i - 1].output(), events[i - 1].input());
        match blocks.last_mut().filter(|_| parallel) {
            Some(block) => block.attends |= attention[i],
            None => blocks.push(Block { start, attends: attention[i] }),
        }
        start = i + 1;
    }
    blocks
}

pub(super) fn is_norm(graph: &Graph, event: &Event) -> bool {
    graph.node(event.node()).is_some_and(|n| matches!(n.op, Op::LayerNorm { .. } | Op::RmsNorm { .. }))
}

fn streams(graph: &Graph, layers: &[Layer]) -> Streams {
    let rank = layers.first().and_then(|l| graph.shape(l.input)).map_or(0, <[Dim]>::len);
    let mut mixings = layers.iter().flat_map(|l| &l.events).filter_map(|e| e.mixing(graph));
    mixings.next().map_or(Streams { count: 1, axis: 0, tokens: rank.saturating_sub(1) }, |m| Streams {
        count: m.streams,
        axis: m.axis,
        tokens: rank.saturating_sub(2),
    })
}

/// Whether `branch` is computed from `state`; the search does not go behind `older`.
fn reads(graph: &Graph, branch: ValueId, state: ValueId, older: ValueId) -> bool {
    let mut seen = HashSet::from([older]);
    let mut stack = vec![branch];
    while let Some(v) = stack.pop() {
        if v == state {
            return true;
        }
        if seen.insert(v) {
            stack.extend(graph.producing(v).into_iter().flat_map(|n| n.operands()));
        }
    }
    false
}

fn cut(events: &[Event], starts: &[usize]) -> Vec<Layer> {
    let mut layers = Vec::new();
    for (i, start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(events.len());
        let events = events[*start..end].to_vec();
        let (Some(first), Some(last)) = (events.first(), events.last()) else { continue };
        let (input, output) = (first.input(), last.output());
        layers.push(Layer { input, output, events, class: 0, nodes: HashSet::new() });
    }
    layers
}

fn fill_nodes(graph: &Graph, layers: &mut [Layer], states: &HashSet<ValueId>, reach: &Reach) {
    for layer in layers {
        let branches: Vec<ValueId> = layer.events.iter().filter_map(Event::branch).collect();
        layer.nodes = region(graph, &branches, states, reach);
        layer.nodes.extend(layer.events.iter().map(Event::node));
        // A map's other operand may be computed from the chain's input too (x0 models).
        let sides: Vec<ValueId> = layer
            .events
            .iter()
            .filter(|e| e.branch().is_none())
            .filter_map(|e| Some((graph.node(e.node())?, e.input())))
            .flat_map(|(n, state)| n.operands().filter(move |v| *v != state).collect::<Vec<_>>())
            .collect();
        layer.nodes.extend(region(graph, &sides, states, reach));
    }
}

/// What a layer computes of its state by attention reaches later layers through the state alone. Where it does
/// not, the state is only one of several values that layers hand on.
fn refuse_shared_attention(graph: &Graph, layers: &[Layer], reach: &Reach) -> Result<(), Stopped> {
    let mut found: HashMap<NodeId, usize> = HashMap::new();
    for (number, layer) in layers.iter().enumerate() {
        let mut attention: Vec<&NodeId> =
            layer.nodes.iter().filter(|n| attends(graph, **n, &layer.nodes, reach)).collect();
        attention.sort_unstable();
        for node in attention {
            if let Some(earlier) = found.insert(*node, number) {
                let reason = format!(
                    "layer {number} reads what layer {earlier} attends to besides the state, as where residual \
                     streams are values of their own: stack them along an axis of one"
                );
                let at = graph.node(*node).and_then(|n| n.outputs.first().copied());
                return Err(Stopped::new(reason, at.map(|v| describe(graph, v)).unwrap_or_default()));
            }
        }
    }
    Ok(())
}

fn classify(graph: &Graph, layers: &mut [Layer], reach: &Reach) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::new();
    for i in 0..layers.len() {
        let mut differs = None;
        let found = classes.iter().position(|c| {
            let verdict = same_class(graph, &layers[c.layers[0]], &layers[i], reach);
            differs = verdict.as_ref().err().map(ToString::to_string);
            verdict.is_ok()
        });
        match found {
            Some(class) => {
                classes[class].layers.push(i);
                layers[i].class = class;
            }
            None => {
                layers[i].class = classes.len();
                let description = histogram(graph, &layers[i].nodes);
                classes.push(Class { description, layers: vec![i], differs });
            }
        }
    }
    classes
}

/// Counts of operators, the most frequent first.
fn histogram(graph: &Graph, nodes: &HashSet<NodeId>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes.iter().filter_map(|n| graph.node(*n)) {
        *counts.entry(node.op.name()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.iter().map(|(op, n)| format!("{n} {op}")).collect::<Vec<_>>().join(", ")
}

fn side_inputs(graph: &Graph, layers: &[Layer], states: &HashSet<ValueId>, reach: &Reach) -> Vec<SideInput> {
    let mut found: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (i, layer) in layers.iter().enumerate() {
        let own: HashSet<ValueId> = layer.states().into_iter().collect();
        let operands = layer.nodes.iter().filter_map(|n| graph.node(*n)).flat_map(|n| n.operands());
        for v in operands {
            let constant = is_weight(graph, v) || is_shape_only(graph, v);
            let foreign_state = states.contains(&v) && !own.contains(&v);
            if foreign_state || (!reach.contains(v) && !constant && !own.contains(&v)) {
                let layers = found.entry(v).or_default();
                if layers.last() != Some(&i) {
                    layers.push(i);
                }
            }
        }
    }
    // The chain's input counts as the first layer's own state, though x0 models read it beside.
    for (v, readers) in &mut found {
        if Some(*v) == layers.first().map(|l| l.input) && readers.first() != Some(&0) {
            readers.insert(0, 0);
        }
    }
    found
        .into_iter()
        .map(|(value, layers)| SideInput { value, name: describe(graph, value), layers })
        .collect()
}

fn is_shape_only(graph: &Graph, v: ValueId) -> bool {
    graph.producing(v).is_some_and(|n| matches!(n.op, Op::Dims { .. }))
}

fn taps(graph: &Graph, layers: &[Layer], in_layers: &HashSet<NodeId>) -> Vec<Tap> {
    let users = graph.users();
    let mut outputs: HashMap<ValueId, Vec<String>> = HashMap::new();
    for o in &graph.outputs {
        outputs.entry(o.value).or_default().push(format!("output '{}'", o.name));
    }
    let end = layers.last().map(|l| l.output);
    let mut taps = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        for event in &layer.events {
            let value = event.output();
            if Some(value) == end {
                continue;
            }
            let readers = users[value.index()].iter().filter(|n| !in_layers.contains(n));
            let mut names: Vec<String> = readers
                .filter_map(|n| graph.node(*n)?.outputs.first().map(|v| describe(graph, *v)))
                .collect();
            names.extend(outputs.get(&value).into_iter().flatten().cloned());
            if !names.is_empty() {
                let inside = value != layer.output;
                taps.push(Tap { value, after_layer: if inside { i } else { i + 1 }, inside, readers: names });
            }
        }
    }
    taps
}
