//! Styles of layers.

use std::collections::HashSet;
use std::fmt;

use super::chain::{Layer, is_norm};
use super::region::{Reach, region};
use super::stream::Event;
use crate::ir::{Graph, Node, NodeId, Op, Unary, ValueId};

/// How layers place their normalisations and branches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Each branch normalises the state that it reads.
    PreNorm,
    /// The state itself is normalised after each join.
    PostNorm,
    /// Branches normalise what they read and what they return.
    SandwichNorm,
    /// Attention and MLP read the same state.
    ParallelResidual,
    /// Several streams, mixed on the skip path.
    HyperConnection,
    /// None of these.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::PreNorm => "pre-norm",
            Kind::PostNorm => "post-norm",
            Kind::SandwichNorm => "sandwich-norm",
            Kind::ParallelResidual => "parallel-residual",
            Kind::HyperConnection => "hyper-connection",
            Kind::Other => "other",
        })
    }
}

/// Attention operators that stay opaque.
const OPAQUE_ATTENTION: [&str; 7] = [
    "Attention",
    "MultiHeadAttention",
    "GroupQueryAttention",
    "DecoderMaskedMultiHeadAttention",
    "PackedAttention",
    "SparseAttention",
    "PagedAttention",
];

/// Whether the branch mixes positions by attention.
pub(super) fn attends(graph: &Graph, branch: ValueId, states: &HashSet<ValueId>, reach: &Reach) -> bool {
    region(graph, &[branch], states, reach).iter().filter_map(|n| graph.node(*n)).any(is_attention)
}

fn is_attention(node: &Node) -> bool {
    match &node.op {
        Op::Attention(_) => true,
        Op::Softmax { axis } => *axis >= 2,
        Op::Opaque(o) => OPAQUE_ATTENTION.contains(&o.op_type.as_str()),
        _ => false,
    }
}

/// The style that the second layer (or the only one) shows: a first layer may lack a norm that the
/// embedding already gave.
pub(super) fn kind_of(graph: &Graph, layers: &[Layer], states: &HashSet<ValueId>, reach: &Reach) -> Kind {
    let Some(layer) = layers.get(1).or(layers.first()) else { return Kind::Other };
    if layer.events.iter().any(|e| is_norm(graph, e)) {
        return Kind::PostNorm;
    }
    let branches: Vec<Branch> = layer
        .events
        .iter()
        .filter_map(Event::branch)
        .map(|b| Branch::new(graph, b, layer, states, reach))
        .collect();
    let (attention, other): (Vec<&Branch>, Vec<&Branch>) = branches.iter().partition(|b| b.attends);
    let one_input = branches.windows(2).all(|w| w[0].read == w[1].read) && branches.len() > 1;
    if one_input || (other.is_empty() && attention.iter().any(|b| b.activates)) {
        return Kind::ParallelResidual;
    }
    if branches.iter().all(|b| b.norm_first && b.norm_last) {
        Kind::SandwichNorm
    } else if branches.iter().all(|b| b.norm_first) {
        Kind::PreNorm
    } else if branches.iter().all(|b| b.norm_last) {
        Kind::PostNorm
    } else {
        Kind::Other
    }
}

struct Branch {
    attends: bool,
    activates: bool,
    norm_first: bool,
    norm_last: bool,
    read: Vec<ValueId>,
}

impl Branch {
    fn new(graph: &Graph, branch: ValueId, layer: &Layer, states: &HashSet<ValueId>, reach: &Reach) -> Self {
        let nodes = region(graph, &[branch], states, reach);
        let all = || nodes.iter().filter_map(|n| graph.node(*n));
        let own: HashSet<ValueId> = layer.states().into_iter().collect();
        let readers: Vec<&Node> = all().filter(|n| n.operands().any(|v| own.contains(&v))).collect();
        let mut read: Vec<ValueId> =
            readers.iter().flat_map(|n| n.operands()).filter(|v| own.contains(v)).collect();
        read.sort_unstable();
        read.dedup();
        let activation = |n: &Node| {
            let smooth = matches!(
                n.op,
                Op::Unary(Unary::Relu | Unary::Silu | Unary::GeluErf | Unary::GeluTanh | Unary::Swish { .. })
            );
            smooth || matches!(&n.op, Op::Opaque(o) if o.op_type.contains("Gelu"))
        };
        Branch {
            attends: all().any(is_attention),
            activates: all().any(activation),
            norm_first: !readers.is_empty() && readers.iter().all(|n| normalises(n)),
            norm_last: ends_in_norm(graph, branch, &nodes),
            read,
        }
    }
}

fn normalises(node: &Node) -> bool {
    match &node.op {
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => true,
        Op::Opaque(o) => o.op_type.contains("LayerNormalization"),
        _ => false,
    }
}

/// Whether a branch ends in a normalisation, up to scales, biases and casts.
fn ends_in_norm(graph: &Graph, branch: ValueId, nodes: &HashSet<NodeId>) -> bool {
    let mut v = branch;
    loop {
        let Some(node) = graph.producer(v).filter(|n| nodes.contains(n)).and_then(|n| graph.node(n)) else {
            return false;
        };
        if normalises(node) {
            return true;
        }
        let computed = |v: &ValueId| graph.tensor(*v).is_none();
        let operands: Vec<ValueId> = node.operands().filter(computed).collect();
        v = match (&node.op, &operands[..]) {
            (Op::Cast { .. } | Op::Identity | Op::Binary(_), [only]) => *only,
            _ => return false,
        };
    }
}
