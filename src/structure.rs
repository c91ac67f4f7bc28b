//! What the layers consist of and what a plan makes of them, node by node: the data of `inspect --format html`.
//!
//! ```text
//!   original    every node is the prefix's, one layer's or the suffix's
//!   rewritten   every node is the prefix's, one layer's, one segment's, its correction's or the suffix's
//! ```
//!
//! Dispatches are told apart by renaming the nodes after their zone before the graph is scheduled.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use snlp_passes::analysis::{Chain, state_dependent};
use snlp_passes::ir::{DType, Graph, GraphError, NodeId, Op, ValueId};
use snlp_passes::plan::{PlacedPlan, Segment};
use snlp_passes::rewrite::Parallelized;

use crate::onnx::correction_function;
use crate::summary::{FIGURES_LENGTH, typical_schedule};
use crate::text::escaped;

/// Where a node belongs, in the chain's order; numbers are those of layers, for segments that of their first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Zone {
    Prefix,
    Layer(usize),
    Segment(usize),
    Correction(usize),
    Suffix,
}

impl Zone {
    /// A node's name that says the zone.
    fn tag(self) -> String {
        format!("\u{1}{self:?}")
    }
}

/// A node: its operator (of a correction the function that it is written as), its name, and which of [`Structure::types`] its first result has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct NodeDetail(pub String, pub String, pub usize);

/// A part of a layer.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PartDetail {
    /// What it does.
    pub kind: String,
    /// The state it is computed from: 0 enters the layer, 1 is behind its first part.
    pub reads: usize,
    /// Elements of its weights.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its nodes in order of evaluation.
    pub nodes: Vec<NodeDetail>,
}

/// A layer.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LayerDetail {
    /// Which of [`Structure::types`] the state behind it has.
    pub state: usize,
    /// Elements of its weights.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Dispatches of the layer as it is.
    pub dispatches: Option<usize>,
    /// Branches and skip path, in order.
    pub parts: Vec<PartDetail>,
}

/// A segment of a plan.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct SegmentDetail {
    /// What stands for the Jacobian.
    pub surrogate: Option<String>,
    /// Dispatches of the segment without its corrections.
    pub dispatches: Option<usize>,
    /// Dispatches of its corrections.
    pub correction_dispatches: Option<usize>,
    /// Layers that are evaluated as one batch.
    pub batches: Vec<Vec<usize>>,
    /// Its nodes in order of evaluation.
    pub nodes: Vec<NodeDetail>,
    /// The nodes of its corrections.
    pub correction: Vec<NodeDetail>,
    /// The nodes of each layer of a sequential segment; none where they are the original's.
    pub layers: Vec<Option<Vec<NodeDetail>>>,
}

/// What lies before or behind the chain.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct EndDetail {
    /// Dispatches of the original.
    pub dispatches: Option<usize>,
    /// Its nodes in order of evaluation.
    pub nodes: Vec<NodeDetail>,
    /// Those of the rewritten model; none where they are the original's.
    pub rewritten: Option<Vec<NodeDetail>>,
}

/// A chain node by node, with a plan or without.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Structure {
    /// Types of values, as `f32[batch, 16]`.
    pub types: Vec<String>,
    /// Before the chain.
    pub prefix: EndDetail,
    /// Behind it.
    pub suffix: EndDetail,
    /// Its layers.
    pub layers: Vec<LayerDetail>,
    /// Segments of the plan, sequential ones included.
    pub segments: Vec<SegmentDetail>,
}

impl Structure {
    /// The structure of a chain, and of what a plan made of it.
    ///
    /// # Errors
    /// When a graph has a cycle.
    pub fn of(
        graph: &Graph,
        chain: &Chain,
        rewritten: Option<(&PlacedPlan, &Parallelized)>,
    ) -> Result<Structure, GraphError> {
        let mut types = Types::default();
        let zones = original_zones(graph, chain);
        let dispatches = dispatches(graph, &zones);
        let count = |zone| dispatches.as_ref().map(|d| d.get(&zone).copied().unwrap_or(0));
        let lists = lists(graph, &zones, &mut types)?;
        let end = |zone| EndDetail {
            dispatches: count(zone),
            nodes: lists.get(&zone).cloned().unwrap_or_default(),
            rewritten: None,
        };
        let mut layers = Vec::with_capacity(chain.layers.len());
        for (number, (layer, blocks)) in chain.layers.iter().zip(chain.blocks(graph)?).enumerate() {
            let (parameters, bytes) = weights(graph, &mut layer.nodes.iter().copied());
            let parts = blocks.into_iter().map(|block| {
                let (parameters, bytes) = weights(graph, &mut block.nodes.iter().copied());
                let nodes = block.nodes.iter().filter_map(|n| types.node(graph, *n)).collect();
                PartDetail { kind: block.kind.to_string(), reads: block.reads, parameters, bytes, nodes }
            });
            let parts = parts.collect();
            let state = types.of(graph, layer.output);
            layers.push(LayerDetail {
                state,
                parameters,
                bytes,
                dispatches: count(Zone::Layer(number)),
                parts,
            });
        }
        let (mut prefix, mut suffix) = (end(Zone::Prefix), end(Zone::Suffix));
        let mut segments = vec![];
        if let Some((plan, made)) = rewritten {
            let zones = rewritten_zones(graph, chain, plan, made, &zones)?;
            let mut changed = Changed { before: lists, now: self::lists(&made.graph, &zones, &mut types)? };
            prefix.rewritten = changed.list(Zone::Prefix);
            suffix.rewritten = changed.list(Zone::Suffix);
            segments = self::segments(plan, made, &zones, &mut changed);
        }
        Ok(Structure { types: types.texts, prefix, suffix, layers, segments })
    }
}

/// The nodes of each zone before and behind the rewrite.
struct Changed {
    before: BTreeMap<Zone, Vec<NodeDetail>>,
    now: BTreeMap<Zone, Vec<NodeDetail>>,
}

impl Changed {
    /// The zone's nodes as rewritten, where they are not the original's in some order.
    fn list(&mut self, zone: Zone) -> Option<Vec<NodeDetail>> {
        let now = self.now.remove(&zone).unwrap_or_default();
        let before = self.before.get(&zone).map_or(&[][..], Vec::as_slice);
        let sorted = |nodes: &[NodeDetail]| {
            let mut all = nodes.to_vec();
            all.sort_unstable();
            all
        };
        (sorted(&now) != sorted(before)).then_some(now)
    }
}

fn segments(
    plan: &PlacedPlan,
    made: &Parallelized,
    zones: &HashMap<NodeId, Zone>,
    changed: &mut Changed,
) -> Vec<SegmentDetail> {
    let dispatches = dispatches(&made.graph, zones);
    let count = |zone: Zone| dispatches.as_ref().map(|d| d.get(&zone).copied().unwrap_or(0));
    let mut reports = made.segments.iter();
    let mut first = 0;
    let mut out = Vec::new();
    for segment in &plan.segments {
        let layers = first..first + segment.layers();
        out.push(match segment {
            Segment::Sequential(_) => SegmentDetail {
                dispatches: layers.clone().map(|l| count(Zone::Layer(l))).sum(),
                layers: layers.map(|l| changed.list(Zone::Layer(l))).collect(),
                ..SegmentDetail::default()
            },
            Segment::Parallel(_) => {
                let report = reports.next();
                SegmentDetail {
                    surrogate: report.map(|r| r.surrogate.into()),
                    dispatches: count(Zone::Segment(first)),
                    correction_dispatches: count(Zone::Correction(first)),
                    batches: report.map(|r| r.batches.clone()).unwrap_or_default(),
                    nodes: changed.now.remove(&Zone::Segment(first)).unwrap_or_default(),
                    correction: changed.now.remove(&Zone::Correction(first)).unwrap_or_default(),
                    layers: vec![],
                }
            }
        });
        first += segment.layers();
    }
    out
}

fn original_zones(graph: &Graph, chain: &Chain) -> HashMap<NodeId, Zone> {
    let reach = state_dependent(graph, chain.input);
    let zone = |node: &snlp_passes::ir::Node| match node.outputs.iter().any(|v| reach.contains(*v)) {
        true => Zone::Suffix,
        false => Zone::Prefix,
    };
    let mut zones: HashMap<NodeId, Zone> = graph.nodes().map(|(id, n)| (id, zone(n))).collect();
    for (number, layer) in chain.layers.iter().enumerate() {
        zones.extend(layer.nodes.iter().map(|n| (*n, Zone::Layer(number))));
    }
    zones
}

/// Nodes of the original keep their zone, or have their segment's; those made for a segment are its; those that
/// the clean-up made are where their neighbours are.
fn rewritten_zones(
    original: &Graph,
    chain: &Chain,
    plan: &PlacedPlan,
    made: &Parallelized,
    zones: &HashMap<NodeId, Zone>,
) -> Result<HashMap<NodeId, Zone>, GraphError> {
    let mut segment_of = vec![None; chain.layers.len()];
    let mut starts = Vec::new();
    let mut first = 0;
    for segment in &plan.segments {
        if let Segment::Parallel(_) = segment {
            starts.push(first);
            let layers = segment_of.iter_mut().skip(first).take(segment.layers());
            layers.for_each(|s| *s = Some(first));
        }
        first += segment.layers();
    }
    let graph = &made.graph;
    let known = |id: NodeId, at: usize| {
        if original.node(id).is_some() && at < original.value_count() {
            return match zones.get(&id).copied() {
                Some(Zone::Layer(l)) => {
                    segment_of.get(l).copied().flatten().map_or(Zone::Layer(l), Zone::Segment).into()
                }
                other => other,
            };
        }
        let found = made.segments.iter().zip(&starts).find(|(s, _)| s.made.contains(&at));
        found.map(|(_, first)| Zone::Segment(*first))
    };
    let order = graph.topological()?;
    let users = graph.users();
    let mut out: HashMap<NodeId, Zone> = HashMap::new();
    for id in &order {
        let at = graph.node(*id).and_then(|n| n.outputs.first()).map_or(usize::MAX, |v| v.index());
        if let Some(zone) = known(*id, at) {
            out.insert(*id, zone);
        }
    }
    // From the end on, so that what follows is known; in the forward direction the rest.
    for id in order.iter().rev().chain(&order) {
        let (None, Some(node)) = (out.get(id), graph.node(*id)) else { continue };
        let before = node.operands().filter_map(|v| out.get(&graph.producer(v)?)).max();
        let behind = node.outputs.iter().flat_map(|v| users.get(v.index()).into_iter().flatten());
        let behind = behind.filter_map(|n| out.get(n)).min();
        let begins = matches!(node.op, Op::LayerNorm { .. } | Op::RmsNorm { .. });
        let zone = match (before, behind) {
            (Some(b), Some(a)) if begins || *b == Zone::Prefix => Some(*a),
            (Some(b), _) => Some(*b),
            (None, a) => a.copied(),
        };
        out.extend(zone.map(|zone| (*id, zone)));
    }
    for id in order {
        let correction = graph.node(id).is_some_and(|n| matches!(n.op, Op::Correction(_)));
        if let (true, Some(Zone::Segment(first))) = (correction, out.get(&id).copied()) {
            out.insert(id, Zone::Correction(first));
        }
    }
    Ok(out)
}

/// Dispatches of each zone on a typical GPU; none when the graph cannot be scheduled.
fn dispatches(graph: &Graph, zones: &HashMap<NodeId, Zone>) -> Option<HashMap<Zone, usize>> {
    let mut graph = graph.clone();
    for (node, zone) in zones {
        graph.set_node_name(*node, &zone.tag());
    }
    let tags: HashMap<String, Zone> = zones.values().map(|z| (z.tag(), *z)).collect();
    let schedule = typical_schedule(&graph, FIGURES_LENGTH)?;
    let mut counts = HashMap::new();
    let mut zone = Zone::Prefix;
    for step in &schedule.steps {
        // Nodes that the lowering makes have no name: they follow one that has.
        zone = tags.get(&step.node).copied().unwrap_or(zone);
        *counts.entry(zone).or_default() += 1;
    }
    Some(counts)
}

/// The nodes of each zone, in order of evaluation.
fn lists(
    graph: &Graph,
    zones: &HashMap<NodeId, Zone>,
    types: &mut Types,
) -> Result<BTreeMap<Zone, Vec<NodeDetail>>, GraphError> {
    let mut lists: BTreeMap<Zone, Vec<NodeDetail>> = BTreeMap::new();
    for id in graph.topological()? {
        if let Some(zone) = zones.get(&id) {
            lists.entry(*zone).or_default().extend(types.node(graph, id));
        }
    }
    Ok(lists)
}

/// Elements and bytes of the weights that nodes read; a weight that several read counts once.
fn weights(graph: &Graph, nodes: &mut dyn Iterator<Item = NodeId>) -> (u64, u64) {
    let mut seen: HashSet<ValueId> = HashSet::new();
    let mut waiting: Vec<ValueId> = nodes.filter_map(|n| graph.node(n)).flat_map(|n| n.operands()).collect();
    let (mut elements, mut bytes) = (0, 0);
    while let Some(v) = waiting.pop() {
        if !seen.insert(v) {
            continue;
        }
        if let Some(tensor) = graph.tensor(v).filter(|t| t.len() > 1 && t.dtype() != DType::I64) {
            let counts = tensor.dtype().is_float() || matches!(tensor.dtype(), DType::I8 | DType::U8);
            elements += if counts { tensor.len() as u64 } else { 0 };
            bytes += tensor.byte_len() as u64;
        } else if let Some(node) = graph.producing(v).filter(|n| is_view(&n.op)) {
            waiting.extend(node.operands());
        }
    }
    (elements, bytes)
}

/// What stands between a weight as stored and its reader.
fn is_view(op: &Op) -> bool {
    matches!(
        op,
        Op::Transpose { .. } | Op::Cast { .. } | Op::Reshape { .. } | Op::Identity | Op::Dequantize { .. }
    )
}

/// Types as text, each once.
#[derive(Default)]
struct Types {
    texts: Vec<String>,
    known: HashMap<String, usize>,
}

impl Types {
    fn of(&mut self, graph: &Graph, v: ValueId) -> usize {
        let text = graph.ty(v).map_or_else(|| "unknown".into(), |t| escaped(&t.to_string()).into_owned());
        let (texts, next) = (&mut self.texts, self.known.len());
        *self.known.entry(text.clone()).or_insert_with(|| {
            texts.push(text);
            next
        })
    }

    fn node(&mut self, graph: &Graph, id: NodeId) -> Option<NodeDetail> {
        let node = graph.node(id)?;
        let ty = self.of(graph, *node.outputs.first()?);
        let op = correction_function(graph, node).unwrap_or_else(|| node.op.name());
        Some(NodeDetail(escaped(&op).into_owned(), escaped(&node.name).into_owned(), ty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;
    use crate::summary::ChainSummary;
    use std::path::Path;

    fn structure(model: &str, plan: &str) -> (Source, Structure, usize) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(model);
        let source = Source::read(&path).expect("read");
        let plan = source.place(&plan.parse().expect("a plan")).expect("fits");
        let made = source.rewrite(&plan).expect("rewritten");
        let chain = source.chain().expect("a chain");
        let found = Structure::of(&source.graph, chain, Some((&plan, &made))).expect("acyclic");
        let dispatches = typical_schedule(&made.graph, FIGURES_LENGTH).expect("scheduled").stats().dispatches;
        (source, found, dispatches)
    }

    #[test]
    fn every_node_of_a_layer_is_in_one_part() {
        for (model, kinds) in [
            ("gpt2-tiny/model.onnx", "attention, mlp"),
            ("nano/model.onnx", "attention, mlp"),
            ("zoo/falcon_7b-ts17/model.onnx", "attention + mlp"),
            ("zoo/albert-ts14/model.onnx", "attention, skip path, mlp, skip path"),
            ("mhc/hcn.onnx", "skip path, attention, skip path, mlp"),
        ] {
            let (source, found, _) = structure(model, "1xF1");
            let chain = source.chain().expect("a chain");
            for (layer, detail) in chain.layers.iter().zip(&found.layers) {
                let nodes: usize = detail.parts.iter().map(|p| p.nodes.len()).sum();
                assert_eq!(nodes, layer.nodes.len(), "{model}");
            }
            let parts: Vec<&str> = found.layers[1].parts.iter().map(|p| p.kind.as_str()).collect();
            assert_eq!(parts.join(", "), kinds, "{model}");
        }
    }

    #[test]
    fn every_node_of_the_rewritten_model_is_somewhere() {
        for (model, plan) in [
            ("gpt2-tiny/model.onnx", "s1 1xF1 2xF1[k=2]"),
            ("nano/model.onnx", "s2 2*1xF2 6xF1[k=2]"),
            ("mhc/hcn.onnx", "s1 3xF1"),
            ("llama-tiny-past/model.onnx", "2xF1[k=2,kv=exact]"),
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(model);
            let source = Source::read(&path).expect("read");
            let plan = source.place(&plan.parse().expect("a plan")).expect("fits");
            let made = source.rewrite(&plan).expect("rewritten");
            let found = Structure::of(&source.graph, source.chain().expect("a chain"), Some((&plan, &made)));
            let found = found.expect("acyclic");
            let of_layer = |l: usize| found.layers[l].parts.iter().map(|p| p.nodes.len()).sum::<usize>();
            let ends = [&found.prefix, &found.suffix];
            let mut count: usize = ends.iter().map(|e| e.rewritten.as_ref().unwrap_or(&e.nodes).len()).sum();
            let mut first = 0;
            for (segment, placed) in found.segments.iter().zip(&plan.segments) {
                count += segment.nodes.len() + segment.correction.len();
                let layers = segment.layers.iter().enumerate();
                count += layers
                    .map(|(i, l)| l.as_ref().map_or_else(|| of_layer(first + i), Vec::len))
                    .sum::<usize>();
                first += placed.layers();
            }
            assert_eq!(count, made.graph.nodes().count(), "{model}");
        }
    }

    #[test]
    fn dispatches_and_weights_are_those_of_the_whole() {
        let (source, found, rewritten) = structure("gpt2-tiny/model.onnx", "s1 1xF1 2xF1[k=2]");
        let total = typical_schedule(&source.graph, FIGURES_LENGTH).expect("scheduled").stats().dispatches;
        let layers: Vec<usize> = found.layers.iter().filter_map(|l| l.dispatches).collect();
        assert_eq!(layers, [5; 4]);
        let ends = [&found.prefix, &found.suffix].map(|e| e.dispatches.expect("scheduled"));
        assert_eq!(ends[0] + ends[1] + 20, total);
        let segments: Vec<_> =
            found.segments.iter().map(|s| (s.dispatches, s.correction_dispatches)).collect();
        // The second iteration lays its states side by side first.
        assert_eq!(segments, [(Some(5), None), (Some(5), Some(0)), (Some(13), Some(2))]);
        assert_eq!(ends[0] + ends[1] + 5 + 5 + 13 + 2, rewritten);
        assert_eq!(found.segments[2].batches, [[2, 3]]);
        assert_eq!(found.segments[2].surrogate.as_deref(), Some("identity"));
        assert!(found.segments[2].nodes.iter().any(|n| found.types[n.2].starts_with("f32[2, ")));
        let functions: Vec<&str> = found.segments[2].correction.iter().map(|n| n.0.as_str()).collect();
        assert_eq!(functions, ["IdentityNewtonShared", "IdentityNewtonLast"]);
        let summary = ChainSummary::of(&source.graph, source.chain().expect("a chain"));
        let layer = &found.layers[0];
        assert_eq!(
            (layer.parameters, layer.bytes),
            (summary.layers_detail[0].parameters, 4 * layer.parameters)
        );
        assert_eq!(layer.parts.iter().map(|p| p.parameters).sum::<u64>(), layer.parameters);
    }
}
