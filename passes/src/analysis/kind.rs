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

/// How a branch mixes positions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Mixing {
    /// Not by attention.
    None,
    /// By attention to something that is not computed from the state, as a decoder to its encoder.
    Cross,
    /// By attention to the state's own positions.
    Own,
}

/// How the branch mixes positions; where it does in several ways, the strongest.
pub(super) fn mixing(graph: &Graph, branch: ValueId, states: &HashSet<ValueId>, reach: &Reach) -> Mixing {
    let nodes = region(graph, &[branch], states, reach);
    nodes.iter().map(|n| mixing_of(graph, *n, &nodes, reach)).max().unwrap_or(Mixing::None)
}

fn mixing_of(graph: &Graph, id: NodeId, nodes: &HashSet<NodeId>, reach: &Reach) -> Mixing {
    let Some(node) = graph.node(id) else { return Mixing::None };
    let own = match &node.op {
        Op::Attention(_) => node.input(1).is_some_and(|k| reach.contains(k)),
        // Fused forms without a key have it packed with the query.
        Op::Opaque(o) if OPAQUE_ATTENTION.contains(&o.op_type.as_str()) => {
            o.op_type == "Attention" || node.input(1).is_none_or(|k| reach.contains(k))
        }
        // A softmax is attention's when scores are: a router's are a product of the state with a weight.
        Op::Softmax { .. } => match node.input(0).and_then(|v| scores(graph, v, nodes, reach)) {
            Some(own) => own,
            None => return Mixing::None,
        },
        _ => return Mixing::None,
    };
    if own { Mixing::Own } else { Mixing::Cross }
}

/// Whether a product of two computed values lies behind `v`, and if so whether both depend on the state.
fn scores(graph: &Graph, v: ValueId, nodes: &HashSet<NodeId>, reach: &Reach) -> Option<bool> {
    let mut seen = HashSet::new();
    let mut stack = vec![v];
    let mut found = None;
    while let Some(v) = stack.pop() {
        let Some(id) = graph.producer(v).filter(|id| nodes.contains(id) && seen.insert(*id)) else {
            continue;
        };
        let Some(node) = graph.node(id) else { continue };
        let product = match &node.op {
            Op::MatMul | Op::MatMulInteger | Op::Einsum { .. } => true,
            Op::Opaque(o) => o.op_type.contains("MatMul"),
            _ => false,
        };
        if product {
            let computed = node.operands().filter(|v| !is_weight(graph, *v));
            let own = node.operands().filter(|v| reach.contains(*v)).count() > 1;
            match found {
                _ if own => return Some(true),
                None if computed.count() > 1 => found = Some(false),
                _ => {}
            }
        }
        stack.extend(node.operands());
    }
    found
}

/// Whether `v` is a constant, or a view of one.
fn is_weight(graph: &Graph, mut v: ValueId) -> bool {
    while let Some(node) = graph.producing(v) {
        match (&node.op, node.input(0)) {
            (Op::Transpose { .. } | Op::Cast { .. } | Op::Reshape { .. } | Op::Identity, Some(x)) => v = x,
            _ => return false,
        }
    }
    graph.tensor(v).is_some()
}

/// The style that the second layer (or the only one) shows: a first layer may lack a norm that the
/// embedding already gave.
pub(super) fn kind_of(graph: &Graph, layers: &[Layer], states: &HashSet<ValueId>, reach: &Reach) -> Kind {
    let Some(layer) = layers.get(1).or(layers.first()) else { return Kind::Other };
    if layer.events.iter().any(|e| e.mixing(graph).is_some()) {
        return Kind::HyperConnection;
    }
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
            attends: nodes.iter().any(|n| mixing_of(graph, *n, &nodes, reach) != Mixing::None),
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
