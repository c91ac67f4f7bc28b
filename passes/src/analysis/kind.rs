//! Styles of layers.

use std::collections::HashSet;
use std::fmt;

use super::chain::{Layer, is_norm};
use super::region::{Reach, region};
use super::stream::Event;
use crate::ir::{Binary, Dim, Graph, Node, NodeId, Op, Reduce, Unary, ValueId};

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

/// Whether a node of a branch attends, to whatever.
pub(super) fn attends(graph: &Graph, id: NodeId, nodes: &HashSet<NodeId>, reach: &Reach) -> bool {
    mixing_of(graph, id, nodes, reach) != Mixing::None
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

/// Whether `v` is a constant, or a view of one, or one whose elements are stored as integers.
pub(super) fn is_weight(graph: &Graph, mut v: ValueId) -> bool {
    while let Some(node) = graph.producing(v) {
        match (&node.op, node.input(0)) {
            (Op::Transpose { .. } | Op::Cast { .. } | Op::Reshape { .. } | Op::Identity, Some(x)) => v = x,
            (Op::Dequantize { .. }, Some(x)) => v = x,
            _ => return false,
        }
    }
    graph.tensor(v).is_some()
}

/// The style that the second layer (or the only one) shows: a first layer may lack a norm that the
/// embedding already gave.
pub(super) fn kind_of(graph: &Graph, layers: &[Layer], states: &HashSet<ValueId>, reach: &Reach) -> Kind {
    let Some(layer) = layers.get(1).or(layers.first()) else { return Kind::Other };
    if layers.iter().flat_map(|l| &l.events).any(|e| e.mixing(graph).is_some()) {
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
        let width = |v: ValueId| graph.shape(v).map(|s| (s.len(), s.last().and_then(Dim::known)));
        let state = width(layer.input);
        // As wide as the state at least, so neither a gate nor a cap of scores.
        let wide = |n: &Node| {
            let own = n.input(0).and_then(width);
            own.zip(state).is_some_and(|((rank, own), (state_rank, state))| {
                rank == state_rank && own.is_some() && own >= state
            })
        };
        let activation = |n: &Node| match &n.op {
            Op::Unary(Unary::Relu | Unary::Silu | Unary::GeluErf | Unary::GeluTanh | Unary::Swish { .. }) => {
                true
            }
            // What quantisation in between leaves of one.
            Op::Unary(Unary::Erf | Unary::Tanh | Unary::Sigmoid) => wide(n),
            Op::Opaque(o) => o.op_type.contains("Gelu"),
            _ => false,
        };
        Branch {
            attends: nodes.iter().any(|n| attends(graph, *n, &nodes, reach)),
            activates: all().any(activation),
            norm_first: !readers.is_empty()
                && (readers.iter().all(|n| normalises(n)) || starts_in_parts(graph, &nodes, &own)),
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

/// Steps between a mean over the features and what is normalised with it.
const STATISTIC_STEPS: usize = 12;

/// Whether `v` is made of a mean over the features, with constants.
fn is_statistic(graph: &Graph, mut v: ValueId) -> bool {
    for _ in 0..STATISTIC_STEPS {
        let Some(node) = graph.producing(v) else { return false };
        if let Op::Reduce { op: Reduce::Mean, axes, .. } = &node.op {
            return node.input(0).and_then(|x| graph.shape(x)).is_some_and(|s| axes[..] == [s.len() - 1]);
        }
        let mut computed = node.operands().filter(|v| !is_weight(graph, *v));
        let (Some(only), None, true) = (computed.next(), computed.next(), passes(&node.op)) else {
            return false;
        };
        v = only;
    }
    false
}

/// Operators that a value goes through on its way into or out of a normalisation.
fn passes(op: &Op) -> bool {
    matches!(
        op,
        Op::Cast { .. }
            | Op::Identity
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Quantize { .. }
            | Op::Dequantize { .. }
            | Op::Expand
    )
}

/// What a node divides by its statistic: it is the last step of a normalisation in parts, such as quantisation
/// of its sums leaves.
fn normalised(graph: &Graph, node: &Node) -> Option<ValueId> {
    let (Op::Binary(Binary::Mul | Binary::Div), Some(a), Some(b)) = (&node.op, node.input(0), node.input(1))
    else {
        return None;
    };
    match (is_statistic(graph, a), is_statistic(graph, b)) {
        (false, true) if !is_weight(graph, a) => Some(a),
        (true, false) if !is_weight(graph, b) && node.op == Op::Binary(Binary::Mul) => Some(b),
        _ => None,
    }
}

/// Whether a branch starts in a normalisation in parts of one of the states.
fn starts_in_parts(graph: &Graph, nodes: &HashSet<NodeId>, states: &HashSet<ValueId>) -> bool {
    let of_state = |mut v: ValueId| loop {
        if states.contains(&v) {
            return true;
        }
        let way = |n: &&Node| passes(&n.op) && normalised(graph, n).is_none();
        let Some(node) = graph.producing(v).filter(way) else { return false };
        // Less its mean, where there is one.
        let mut computed = node.operands().filter(|v| !is_weight(graph, *v) && !is_statistic(graph, *v));
        match (computed.next(), computed.next()) {
            (Some(only), None) => v = only,
            _ => return false,
        }
    };
    let computes =
        |n: &Node| matches!(n.op, Op::MatMul | Op::MatMulInteger | Op::Gemm { .. } | Op::Einsum { .. });
    let mut all = nodes.iter().filter_map(|n| graph.node(*n));
    all.clone().any(|n| normalised(graph, n).is_some_and(of_state))
        && !all.any(|n| computes(n) && n.operands().any(of_state))
}

/// Whether a branch ends in a normalisation, up to scales, biases and casts.
fn ends_in_norm(graph: &Graph, branch: ValueId, nodes: &HashSet<NodeId>) -> bool {
    let mut v = branch;
    loop {
        let Some(node) = graph.producer(v).filter(|n| nodes.contains(n)).and_then(|n| graph.node(n)) else {
            return false;
        };
        if normalises(node) || normalised(graph, node).is_some() {
            return true;
        }
        let operands: Vec<ValueId> = node.operands().filter(|v| !is_weight(graph, *v)).collect();
        v = match &operands[..] {
            [only] if passes(&node.op) && !matches!(node.op, Op::Unary(_)) => *only,
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::find_chain;
    use crate::ir::{Attention, DType, Tensor, Type};

    struct Build(Graph);

    impl Build {
        fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
            self.0.add(op, operands).unwrap()
        }

        fn weight(&mut self, shape: &[usize]) -> ValueId {
            let n: usize = shape.iter().product();
            let data = (0..n).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
            self.0.constant(Tensor::from_vec(shape.to_vec(), data).unwrap())
        }

        /// To integers and back.
        fn rounded(&mut self, x: ValueId) -> ValueId {
            let scale = self.0.scalar(0.05f32);
            let q = self.op(Op::Quantize { to: DType::I8, blocks: None }, &[x, scale]);
            self.op(Op::Dequantize { blocks: None }, &[q, scale])
        }

        /// A root mean square norm whose sum is rounded, so that nothing recognises it as a whole.
        fn norm(&mut self, x: ValueId) -> ValueId {
            let (two, epsilon) = (self.0.scalar(2f32), self.0.scalar(1e-5f32));
            let squares = self.op(Op::Binary(Binary::Pow), &[x, two]);
            let mean = self.op(Op::Reduce { op: Reduce::Mean, axes: vec![2], keepdims: true }, &[squares]);
            let mean = self.rounded(mean);
            let sum = self.op(Op::Binary(Binary::Add), &[mean, epsilon]);
            let sum = self.rounded(sum);
            let root = self.op(Op::Unary(Unary::Sqrt), &[sum]);
            let y = self.op(Op::Binary(Binary::Div), &[x, root]);
            let weight = self.weight(&[8]);
            let y = self.op(Op::Binary(Binary::Mul), &[weight, y]);
            self.rounded(y)
        }

        fn product(&mut self, x: ValueId, shape: [usize; 2]) -> ValueId {
            let w = self.weight(&shape);
            let y = self.op(Op::MatMul, &[x, w]);
            self.rounded(y)
        }

        fn attention(&mut self, x: ValueId) -> ValueId {
            let heads = [0; 3].map(|_| {
                let y = self.product(x, [8, 8]);
                self.op(Op::Unsqueeze { axes: vec![1] }, &[y])
            });
            let a = Attention { scale: 0.5, causal: true, window: None, softcap: None, safe: false };
            let y = self.op(Op::Attention(a), &heads);
            let y = self.op(Op::Squeeze { axes: vec![1] }, &[y]);
            self.product(y, [8, 8])
        }

        fn mlp(&mut self, x: ValueId) -> ValueId {
            let x = self.product(x, [8, 16]);
            let x = self.op(Op::Unary(Unary::Erf), &[x]);
            self.product(x, [16, 8])
        }

        fn sum(&mut self, a: ValueId, b: ValueId) -> ValueId {
            let y = self.op(Op::Binary(Binary::Add), &[a, b]);
            self.rounded(y)
        }
    }

    type Part = fn(&mut Build, ValueId) -> ValueId;

    fn kind(layer: impl Fn(&mut Build, ValueId) -> ValueId) -> Kind {
        let mut build = Build(Graph::new("quantised"));
        let dims = vec![Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(8usize)];
        let mut x = build.0.add_input("x", Type::new(DType::F32, dims));
        for _ in 0..3 {
            x = layer(&mut build, x);
        }
        build.0.add_output("y", x);
        let chain = find_chain(&build.0).unwrap();
        assert_eq!(chain.layers.len(), 3);
        assert!(chain.side_inputs.is_empty());
        chain.kind
    }

    #[test]
    fn styles_are_told_of_norms_and_activations_in_parts() {
        let one_by_one = |before: bool, after: bool| {
            kind(move |b, mut x| {
                for part in [Build::attention as Part, Build::mlp] {
                    let mut y = if before { b.norm(x) } else { x };
                    y = part(b, y);
                    y = if after { b.norm(y) } else { y };
                    x = b.sum(x, y);
                }
                x
            })
        };
        assert_eq!(one_by_one(true, false), Kind::PreNorm);
        assert_eq!(one_by_one(false, true), Kind::PostNorm);
        assert_eq!(one_by_one(true, true), Kind::SandwichNorm);
        assert_eq!(one_by_one(false, false), Kind::Other);
        let together = kind(|b, x| {
            let normed = b.norm(x);
            let (attention, mlp) = (b.attention(normed), b.mlp(normed));
            let both = b.sum(attention, mlp);
            b.sum(x, both)
        });
        assert_eq!(together, Kind::ParallelResidual);
    }

    #[test]
    fn masks_of_tokens_lie_on_the_skip_path() {
        for filled in [false, true] {
            let mut build = Build(Graph::new("masked"));
            let dims = |last: usize| vec![Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(last)];
            let mut x = build.0.add_input("x", Type::new(DType::F32, dims(8)));
            let kept = build.0.add_input("kept", Type::new(DType::I64, dims(1)));
            let to = if filled { DType::Bool } else { DType::F32 };
            let kept = build.op(Op::Cast { to }, &[kept]);
            for _ in 0..3 {
                for part in [Build::attention as Part, Build::mlp] {
                    let y = part(&mut build, x);
                    x = build.op(Op::Binary(Binary::Add), &[x, y]);
                }
                let zero = build.0.scalar(0f32);
                x = match filled {
                    true => build.op(Op::Where, &[kept, x, zero]),
                    false => build.op(Op::Binary(Binary::Mul), &[kept, x]),
                };
            }
            build.0.add_output("y", x);
            let chain = find_chain(&build.0).unwrap();
            assert_eq!((chain.layers.len(), chain.side_inputs.len()), (3, 1), "{filled}");
        }
    }
}
