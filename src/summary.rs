//! What `inspect` says of a model, as data: the chain, and the figures of a graph. A converted model
//! carries the summary of its original.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snlp_passes::analysis::{Cache, Chain, Matrix, OtherStack, Transfer, other_stacks, unreached};
use snlp_passes::ir::{Bindings, Dim, Graph, Op, ValueId, validate};
use snlp_passes::rewrite::{Dialect, bind, lower};
use snlp_runtime::kernels::Limits;
use snlp_runtime::schedule::{Options, plan};

use crate::language::decoder::Stepper;
use crate::samples::sample_sizes;

/// The chain of layers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ChainSummary {
    /// Number of layers.
    pub layers: usize,
    /// Feature size of the state: a number, or text when it is symbolic.
    pub hidden: Value,
    /// Residual streams.
    pub streams: usize,
    /// Style of the layers.
    pub kind: String,
    /// What `surrogate=auto` means here.
    pub surrogate: String,
    /// Layers that can be evaluated together.
    pub classes: Vec<ClassSummary>,
    /// States read after the trunk.
    pub taps: Vec<TapSummary>,
    /// Values that layers read besides the state.
    pub side_inputs: Vec<SideSummary>,
    /// Keys and values that layers keep between calls.
    #[serde(default)]
    pub caches: Vec<CacheSummary>,
    /// Stacks of layers that plans do not reach.
    #[serde(default)]
    pub others: Vec<OtherSummary>,
    /// Attentions that are part of no layer nor of another stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreached: Option<UnreachedSummary>,
    /// Nodes before the chain.
    pub prefix_nodes: usize,
    /// Nodes behind it.
    pub suffix_nodes: usize,
    /// Each layer.
    pub layers_detail: Vec<LayerSummary>,
}

/// A stack of layers beside the chain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OtherSummary {
    /// Number of layers.
    pub layers: usize,
    /// Feature size of its state.
    pub hidden: Value,
    /// Style of its layers.
    pub kind: String,
    /// What makes its last state.
    pub at: String,
}

/// Attentions outside the chain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct UnreachedSummary {
    /// How many there are.
    pub attentions: usize,
    /// The first.
    pub first: String,
    /// Who reads the chain's last state, each with its operator; empty where all lie before the chain.
    pub readers: Vec<String>,
}

/// A class of layers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClassSummary {
    /// What a layer consists of.
    pub description: String,
    /// Zero-based layer numbers.
    pub layers: Vec<usize>,
    /// Why it is not of the class before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differs: Option<String>,
}

/// A state that is read after the trunk.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TapSummary {
    /// Zero-based number of the last layer that the state has passed; none before layer 0.
    pub after_layer: Option<usize>,
    /// Whether it lies between two sub-blocks of the layer after that one.
    pub inside: bool,
    /// Who reads it.
    pub readers: Vec<String>,
}

/// A value that layers read besides the state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SideSummary {
    /// Its name.
    pub name: String,
    /// Zero-based numbers of the layers.
    pub layers: Vec<usize>,
}

/// A cache of a layer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CacheSummary {
    /// Zero-based number of the layer.
    pub layer: usize,
    /// The model's input that holds what earlier calls left.
    pub input: String,
    /// The model's output for the next call.
    pub output: String,
}

/// A layer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LayerSummary {
    /// Zero-based number.
    pub layer: usize,
    /// Its class.
    pub class: usize,
    /// Branches added to the state.
    pub sub_blocks: usize,
    /// Nodes.
    pub nodes: usize,
    /// Elements of the weights that its nodes read.
    pub parameters: u64,
    /// What the skip path does to the state.
    pub transfer: String,
    /// Constant matrices that mix the residual streams on the skip path, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixings: Vec<MixingSummary>,
}

/// A matrix on the residual streams.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MixingSummary {
    /// Sum of each row.
    pub row_sums: Vec<f64>,
    /// Sum of each column; ones keep the sum over the streams.
    pub column_sums: Vec<f64>,
    /// Frobenius norm of the difference from the identity.
    pub from_identity: f64,
}

impl TapSummary {
    /// Zero-based number of the layer that the state lies inside, else comes out of; none before layer 0.
    pub fn layer(&self) -> Option<usize> {
        if self.inside { Some(self.after_layer.map_or(0, |l| l + 1)) } else { self.after_layer }
    }
}

/// A size for JSON: a number where it is known.
pub fn dim_json(dim: &Dim) -> Value {
    dim.known().map_or_else(|| json!(dim.to_string()), |n| json!(n))
}

impl ChainSummary {
    /// The summary of a chain.
    pub fn of(graph: &Graph, chain: &Chain) -> Self {
        let others: Vec<OtherSummary> = other_stacks(graph, chain).iter().map(OtherSummary::of).collect();
        // Stacks that are named tell where the others are.
        let unreached = unreached(graph, chain).filter(|_| others.is_empty());
        ChainSummary {
            layers: chain.layers.len(),
            hidden: dim_json(&chain.hidden),
            streams: chain.streams.count,
            kind: chain.kind.to_string(),
            surrogate: chain.surrogate().into(),
            classes: chain
                .classes
                .iter()
                .map(|c| ClassSummary {
                    description: c.description.clone(),
                    layers: c.layers.clone(),
                    differs: c.differs.clone(),
                })
                .collect(),
            taps: chain
                .taps
                .iter()
                .map(|t| TapSummary {
                    after_layer: t.after_layer.checked_sub(1),
                    inside: t.inside,
                    readers: t.readers.clone(),
                })
                .collect(),
            side_inputs: chain
                .side_inputs
                .iter()
                .map(|s| SideSummary { name: s.name.clone(), layers: s.layers.clone() })
                .collect(),
            caches: chain.caches.iter().map(|c| CacheSummary::of(graph, c)).collect(),
            others,
            unreached: unreached.map(|u| UnreachedSummary {
                attentions: u.attentions,
                first: u.first,
                readers: u.readers,
            }),
            prefix_nodes: chain.prefix_nodes,
            suffix_nodes: chain.suffix_nodes,
            layers_detail: chain
                .layers
                .iter()
                .enumerate()
                .map(|(i, layer)| LayerSummary {
                    layer: i,
                    class: layer.class,
                    sub_blocks: layer.sub_blocks(),
                    nodes: layer.nodes.len(),
                    parameters: parameters(graph, layer.nodes.iter().filter_map(|n| graph.node(*n))),
                    transfer: transfer_text(&layer.transfer(graph)),
                    mixings: layer
                        .events
                        .iter()
                        .filter_map(|event| match Transfer::of(graph, event) {
                            Transfer::Mixing(matrix) => Some(MixingSummary::of(&matrix)),
                            _ => None,
                        })
                        .collect(),
                })
                .collect(),
        }
    }
}

impl OtherSummary {
    fn of(stack: &OtherStack) -> Self {
        OtherSummary {
            layers: stack.layers,
            hidden: dim_json(&stack.hidden),
            kind: stack.kind.to_string(),
            at: stack.at.clone(),
        }
    }
}

impl CacheSummary {
    fn of(graph: &Graph, cache: &Cache) -> Self {
        let output = graph.outputs.iter().find(|o| o.value == cache.output);
        CacheSummary {
            layer: cache.layer,
            input: graph.value(cache.input).name.clone().unwrap_or_default(),
            output: output.map(|o| o.name.clone()).unwrap_or_default(),
        }
    }
}

impl MixingSummary {
    fn of(matrix: &Matrix) -> Self {
        let n = matrix.size();
        let at = |row: usize, column: usize| matrix.data()[row * n + column];
        let off = |row: usize, column: usize| at(row, column) - f64::from(u8::from(row == column));
        let squares: f64 = (0..n * n).map(|i| off(i / n, i % n).powi(2)).sum();
        MixingSummary {
            row_sums: (0..n).map(|row| (0..n).map(|column| at(row, column)).sum()).collect(),
            column_sums: (0..n).map(|column| (0..n).map(|row| at(row, column)).sum()).collect(),
            from_identity: squares.sqrt(),
        }
    }
}

fn transfer_text(transfer: &Transfer) -> String {
    match transfer {
        Transfer::Identity | Transfer::Scale(1.0) => "identity".into(),
        Transfer::Scale(s) => format!("scale {s}"),
        Transfer::Mixing(_) => "mixing".into(),
        Transfer::TokenMixing => "mixing per token".into(),
        Transfer::Other(what) => (*what).into(),
    }
}

fn parameters<'a>(graph: &Graph, nodes: impl Iterator<Item = &'a snlp_passes::ir::Node>) -> u64 {
    let read: HashSet<ValueId> = nodes.flat_map(|n| n.operands()).collect();
    let weights = read.iter().filter_map(|v| graph.tensor(*v)).filter(|t| t.dtype().is_float());
    weights.map(|t| t.len() as u64).sum()
}

/// Figures of a graph.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Nodes.
    pub nodes: usize,
    /// Layers or units that must run one after the other; unknown without a chain.
    pub sequential_depth: Option<usize>,
    /// Matrix products.
    pub matmuls: usize,
    /// Corrections.
    pub corrections: usize,
    /// Dispatches of one forward on a typical GPU, at batch 1 and [`FIGURES_LENGTH`] positions; unknown
    /// when the runtime cannot schedule the graph.
    pub dispatches: Option<usize>,
    /// Groups of dispatches that must run one after the other.
    pub levels: Option<usize>,
    /// Bytes that a forward reads and writes at least, at those sizes.
    pub transfer_bytes: Option<u64>,
}

/// Positions that dispatches are counted at.
pub const FIGURES_LENGTH: usize = 16;

/// What a typical GPU allows, for figures that need no device.
const TYPICAL: Limits = Limits {
    max_storage_binding: 1 << 31,
    max_buffer: 1 << 32,
    max_storage_buffers: 16,
    max_grid: 65_535,
    max_invocations: 1024,
    max_workgroup_memory: 32 << 10,
    min_offset_alignment: 256,
    software: false,
    subgroup_size: 32,
    cooperative: 0,
};

impl Figures {
    /// The figures of a graph whose depth is known from its plan.
    pub fn of(graph: &Graph, sequential_depth: Option<usize>) -> Self {
        let matmul =
            |op: &Op| matches!(op, Op::MatMul | Op::MatMulInteger | Op::Gemm { .. } | Op::Einsum { .. });
        let stats = schedule_stats(graph);
        Figures {
            nodes: graph.node_count(),
            sequential_depth,
            matmuls: graph.nodes().filter(|(_, n)| matmul(&n.op)).count(),
            corrections: graph.nodes().filter(|(_, n)| matches!(n.op, Op::Correction(_))).count(),
            dispatches: stats.as_ref().map(|s| s.dispatches),
            levels: stats.as_ref().map(|s| s.levels),
            transfer_bytes: stats.as_ref().map(|s| s.bytes),
        }
    }
}

fn schedule_stats(graph: &Graph) -> Option<snlp_runtime::schedule::Stats> {
    Some(typical_schedule(graph, FIGURES_LENGTH)?.stats())
}

/// The schedule of one forward on a typical GPU, at batch 1 and `length` positions; none when the runtime
/// cannot schedule the graph.
pub fn typical_schedule(graph: &Graph, length: usize) -> Option<snlp_runtime::schedule::Plan> {
    schedule_at(graph, &sample_sizes(graph, length), &[])
}

/// Dispatches of a step that takes one token, on a typical GPU; none when the runtime cannot schedule it.
pub fn step_dispatches(stepper: &Stepper) -> Option<usize> {
    let sizes = sample_sizes(&stepper.graph, 1 + stepper.lookback()?);
    Some(schedule_at(&stepper.graph, &sizes, &stepper.states)?.stats().dispatches)
}

/// The schedule at given sizes on a typical GPU, with inputs that stay there and the outputs that take their place.
pub fn schedule_at(
    graph: &Graph,
    sizes: &Bindings,
    states: &[(String, String)],
) -> Option<snlp_runtime::schedule::Plan> {
    let mut bound = bind(graph, sizes).ok()?;
    lower(&mut bound, &Dialect::runtime()).ok()?;
    let options = Options { states: states.to_vec(), ..Options::default() };
    plan(validate(&bound).ok()?, &TYPICAL, &options).ok()
}
