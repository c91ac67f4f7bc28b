//! The parts of each layer, with their nodes: what a person is shown.
//!
//! ```text
//!   h ──●────────────────▶ + ──●──────────▶ + ──▶      skip     what changes the state without a branch
//!       └─▶ attention ─────┘   └─▶ mlp ─────┘          branches what is added to it
//! ```

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::chain::{Chain, Kind, Layer};
use super::kind::{Mixing, mixing};
use super::region::{Reach, region, state_dependent};
use super::stream::Event;
use crate::ir::{Graph, GraphError, NodeId, Op, ValueId};

/// What a part of a layer does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BlockKind {
    /// Attends to the state's own positions.
    Attention,
    /// Attends to something else, as a decoder to its encoder.
    CrossAttention,
    /// Attention and MLP, summed before they are added.
    AttentionMlp,
    /// Products without attention.
    Mlp,
    /// Products of which some are chosen for each token.
    Experts,
    /// Mixes neighbouring positions.
    Convolution,
    /// Any other branch.
    Branch,
    /// Changes the state itself.
    Skip,
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlockKind::Attention => "attention",
            BlockKind::CrossAttention => "cross-attention",
            BlockKind::AttentionMlp => "attention + mlp",
            BlockKind::Mlp => "mlp",
            BlockKind::Experts => "experts",
            BlockKind::Convolution => "convolution",
            BlockKind::Branch => "branch",
            BlockKind::Skip => "skip path",
        })
    }
}

/// A part of a layer.
#[derive(Clone, Debug)]
pub struct Block {
    /// What it does.
    pub kind: BlockKind,
    /// Which of [`Layer::states`] it is computed from.
    pub reads: usize,
    /// Which of them it makes.
    pub makes: usize,
    /// Its nodes in order of evaluation; a node that several parts need is the first one's.
    pub nodes: Vec<NodeId>,
}

impl Chain {
    /// The parts of every layer, in order.
    ///
    /// # Errors
    /// When the graph has a cycle.
    pub fn blocks(&self, graph: &Graph) -> Result<Vec<Vec<Block>>, GraphError> {
        let order = graph.topological()?;
        let position: HashMap<NodeId, usize> = order.into_iter().enumerate().map(|(i, n)| (n, i)).collect();
        let finder = Finder {
            graph,
            kind: self.kind,
            states: self.layers.iter().flat_map(Layer::states).collect(),
            reach: state_dependent(graph, self.input),
            position,
        };
        Ok(self.layers.iter().map(|layer| finder.layer(layer)).collect())
    }
}

struct Finder<'a> {
    graph: &'a Graph,
    kind: Kind,
    states: HashSet<ValueId>,
    reach: Reach,
    position: HashMap<NodeId, usize>,
}

impl Finder<'_> {
    fn layer(&self, layer: &Layer) -> Vec<Block> {
        let states = layer.states();
        let mut left = layer.nodes.clone();
        let mut blocks: Vec<Block> = Vec::new();
        for (i, event) in layer.events.iter().enumerate() {
            let found = match event {
                Event::Join { branch, node, .. } => {
                    let mut found = region(self.graph, &[*branch], &self.states, &self.reach);
                    found.insert(*node);
                    found
                }
                Event::Map { node, .. } => HashSet::from([*node]),
            };
            let reads = self.reads(&found, &states[..=i]).unwrap_or(i);
            let kind = match event.branch() {
                Some(branch) => self.branch_kind(layer, branch, &found),
                None => BlockKind::Skip,
            };
            let own: Vec<NodeId> = found.into_iter().filter(|n| left.remove(n)).collect();
            blocks.push(Block { kind, reads, makes: i + 1, nodes: own });
        }
        // What the maps' other operands are computed by.
        if let Some(skip) = blocks.iter_mut().find(|b| b.kind == BlockKind::Skip) {
            skip.nodes.extend(left);
        }
        for block in &mut blocks {
            block.nodes.sort_unstable_by_key(|n| self.position.get(n).copied().unwrap_or(usize::MAX));
        }
        blocks
    }

    /// The latest of `states` that the nodes read.
    fn reads(&self, nodes: &HashSet<NodeId>, states: &[ValueId]) -> Option<usize> {
        // The join itself reads the state that it adds to.
        let joins = |n: &NodeId| {
            self.graph.node(*n).is_some_and(|n| n.outputs.iter().any(|v| self.states.contains(v)))
        };
        let all = nodes.iter().filter(|n| nodes.len() == 1 || !joins(n));
        let operands: HashSet<ValueId> =
            all.filter_map(|n| self.graph.node(*n)).flat_map(|n| n.operands()).collect();
        states.iter().rposition(|s| operands.contains(s))
    }

    fn branch_kind(&self, layer: &Layer, branch: ValueId, nodes: &HashSet<NodeId>) -> BlockKind {
        let any =
            |wanted: fn(&Op) -> bool| nodes.iter().filter_map(|n| self.graph.node(*n)).any(|n| wanted(&n.op));
        match mixing(self.graph, branch, &self.states, &self.reach) {
            Mixing::Own if self.kind == Kind::ParallelResidual && layer.sub_blocks() == 1 => {
                BlockKind::AttentionMlp
            }
            Mixing::Own => BlockKind::Attention,
            Mixing::Cross => BlockKind::CrossAttention,
            Mixing::None if any(|op| matches!(op, Op::TopK { .. })) => BlockKind::Experts,
            Mixing::None if any(|op| matches!(op, Op::Conv { .. })) => BlockKind::Convolution,
            Mixing::None if any(is_product) => BlockKind::Mlp,
            Mixing::None => BlockKind::Branch,
        }
    }
}

fn is_product(op: &Op) -> bool {
    match op {
        Op::MatMul | Op::MatMulInteger | Op::Gemm { .. } | Op::Einsum { .. } => true,
        Op::Opaque(o) => o.op_type.contains("MatMul"),
        _ => false,
    }
}
