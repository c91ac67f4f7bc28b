//! The residual stream: the longest sequence of joins, linked skip to skip.
//!
//! ```text
//!   h0 ──●──────────▶ + ──●──────────▶ + ──▶ …        ● state     + join
//!        └─▶ branch ──┘   └─▶ branch ──┘
//! ```
//!
//! A *join* adds a branch to the state that the branch was computed from. A *map* changes the state on
//! the skip path without a branch: a cast, a scale by a constant or by a mask of tokens, a rounding to integers
//! and back, a mix with a side input, in post-norm models the normalisation, in hyper-connections the mixing of the streams. The
//! stream is found in one walk in order of evaluation: every value keeps the best way that leads to it.

use std::collections::{BinaryHeap, HashSet};

use super::chain::Stopped;
use super::mixing::Mixing;
use crate::ir::{Binary, Dim, Graph, Node, NodeId, Op, Type, Unary, ValueId};

/// One step of the stream, from a state to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The state passes through a node that is part of the skip path.
    Map {
        /// The node.
        node: NodeId,
        /// State before.
        input: ValueId,
        /// State after.
        output: ValueId,
    },
    /// A branch is added to the state.
    Join {
        /// The addition.
        node: NodeId,
        /// State before.
        input: ValueId,
        /// What is added.
        branch: ValueId,
        /// State after.
        output: ValueId,
    },
}

impl Event {
    /// State before.
    pub fn input(&self) -> ValueId {
        match self {
            Event::Map { input, .. } | Event::Join { input, .. } => *input,
        }
    }

    /// State after.
    pub fn output(&self) -> ValueId {
        match self {
            Event::Map { output, .. } | Event::Join { output, .. } => *output,
        }
    }

    /// The node that makes the state after.
    pub fn node(&self) -> NodeId {
        match self {
            Event::Map { node, .. } | Event::Join { node, .. } => *node,
        }
    }

    /// How the event mixes the streams of the state, if it does.
    pub fn mixing(&self, graph: &Graph) -> Option<Mixing> {
        match self {
            Event::Map { node, .. } => Mixing::of(graph, graph.node(*node)?),
            Event::Join { .. } => None,
        }
    }

    /// What is added, for a join.
    pub fn branch(&self) -> Option<ValueId> {
        match self {
            Event::Map { .. } => None,
            Event::Join { branch, .. } => Some(*branch),
        }
    }
}

/// The longest residual stream of a graph.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The state before the first event.
    pub origin: ValueId,
    /// Events in order; the last one is a join, or a normalisation that belongs to it.
    pub events: Vec<Event>,
}

#[derive(Clone, Copy, Default)]
struct Best {
    joins: u32,
    last: Option<Event>,
    /// The first state of the way, when there is more than one.
    origin: Option<ValueId>,
}

/// Finds the longest residual stream.
pub fn find_stream(graph: &Graph) -> Result<Stream, Stopped> {
    let order = graph.topological().map_err(|e| Stopped::new(e.to_string(), ""))?;
    let mut position = vec![0usize; graph.value_count()];
    let mut best: Vec<Best> = vec![Best::default(); graph.value_count()];
    for (at, id) in order.iter().enumerate() {
        let Some(node) = graph.node(*id) else { continue };
        for v in &node.outputs {
            position[v.index()] = at + 1;
        }
        let [output] = node.outputs[..] else { continue };
        if !graph.ty(output).is_some_and(is_state_type) {
            continue;
        }
        for (operand, other) in state_operands(graph, node) {
            let event = step(graph, &best, &position, *id, operand, other, output);
            let joins = best[operand.index()].joins + u32::from(matches!(event, Event::Join { .. }));
            // Among equals a map wins, since a mix with an older state (`λ·h + μ·x0`) looks like a join
            // from that state's side; else the way through the first operand stays.
            let found = best[output.index()];
            let mix = matches!((event, found.last), (Event::Map { .. }, Some(Event::Join { .. })));
            if found.last.is_none() || joins > found.joins || (joins == found.joins && mix) {
                let origin = best[operand.index()].origin.or(Some(operand));
                best[output.index()] = Best { joins, last: Some(event), origin };
            }
        }
    }
    let Some((end, _)) = graph
        .values()
        .map(|(v, _)| (v, best[v.index()].joins))
        .max_by_key(|(v, joins)| (*joins, std::cmp::Reverse(position[v.index()])))
        .filter(|(_, joins)| *joins > 0)
    else {
        return Err(Stopped::new(
            "there is no residual stream: no addition joins a value with a branch computed from it",
            "",
        ));
    };
    let mut stream = walk_back(&best, end);
    settle_first_mixes(graph, &best, &mut stream);
    stream.events.extend(closing_norm(graph, &stream));
    Ok(stream)
}

/// Before the first join both operands of a mix `λ·x0 + μ·x0` are the state, scaled: the one that stands
/// where the later mixes have theirs is the skip path.
fn settle_first_mixes(graph: &Graph, best: &[Best], stream: &mut Stream) {
    let operands = |e: &Event| match graph.node(e.node()) {
        Some(n) if n.op == Op::Binary(Binary::Add) && e.branch().is_none() => {
            Some([n.input(0)?, n.input(1)?])
        }
        _ => None,
    };
    let joins_from = stream.events.iter().position(|e| e.branch().is_some()).unwrap_or(0);
    let Some(usual) =
        stream.events[joins_from..].iter().find_map(|e| operands(e)?.iter().position(|v| *v == e.input()))
    else {
        return;
    };
    for at in (0..joins_from).rev() {
        let event = stream.events[at];
        let Some(skip) = operands(&event).map(|o| o[usual]).filter(|v| *v != event.input()) else { continue };
        let way = walk_back(best, skip);
        if way.origin == stream.origin && way.events.iter().all(|e| e.branch().is_none()) {
            stream.events[at] = Event::Map { node: event.node(), input: skip, output: event.output() };
            stream.events.splice(..at, way.events);
            return;
        }
    }
}

/// In a post-norm trunk the normalisation after the last join is part of it, as it is after every other.
fn closing_norm(graph: &Graph, stream: &Stream) -> Option<Event> {
    let joins = stream.events.iter().filter(|e| e.branch().is_some()).count();
    let normed = stream.events.windows(2).filter(|w| w[0].branch().is_some() && is_norm(graph, w[1].node()));
    let input = stream.events.last()?.output();
    if joins < 2 || normed.count() + 1 != joins {
        return None;
    }
    let (node, n) = graph.nodes().find(|(id, n)| is_norm(graph, *id) && n.input(0) == Some(input))?;
    Some(Event::Map { node, input, output: *n.outputs.first()? })
}

fn is_norm(graph: &Graph, node: NodeId) -> bool {
    graph.node(node).is_some_and(|n| matches!(n.op, Op::LayerNorm { .. } | Op::RmsNorm { .. }))
}

fn walk_back(best: &[Best], end: ValueId) -> Stream {
    let mut events = Vec::new();
    let mut at = end;
    while let Some(event) = best[at.index()].last {
        events.push(event);
        at = event.input();
    }
    events.reverse();
    // What passes the state on before the first join is not yet a stream.
    Stream { origin: at, events }
}

/// States are float values with a feature axis and at least one more.
fn is_state_type(ty: &Type) -> bool {
    ty.dtype.is_float() && ty.rank() >= 2
}

/// The operands that can be the state which `node` passes on, each with the other operand if any.
fn state_operands(graph: &Graph, node: &Node) -> Vec<(ValueId, Option<ValueId>)> {
    let Some(output) = node.outputs.first().and_then(|v| graph.ty(*v)) else { return vec![] };
    let fits = |v: &ValueId| graph.ty(*v).is_some_and(|t| same_extent(t, output));
    let constant = |v: ValueId| graph.tensor(v).is_some();
    match (&node.op, node.input(0), node.input(1)) {
        (Op::Identity | Op::Cast { .. } | Op::Unary(Unary::Neg), Some(a), _) => {
            [(a, None)].into_iter().filter(|(a, _)| fits(a)).collect()
        }
        (Op::Dequantize { .. }, Some(q), _) => {
            quantised(graph, q).filter(fits).map(|x| (x, None)).into_iter().collect()
        }
        (Op::LayerNorm { .. } | Op::RmsNorm { .. }, Some(a), _) => vec![(a, None)],
        (Op::MatMul | Op::Einsum { .. }, ..) => {
            Mixing::of(graph, node).map(|m| (m.state, None)).into_iter().collect()
        }
        (Op::Binary(Binary::Mul), Some(a), Some(b)) => {
            let both = [(a, Some(b)), (b, Some(a))];
            let factor = |v: ValueId| constant(v) || is_mask(graph, v);
            both.into_iter().filter(|(s, o)| fits(s) && o.is_some_and(factor) && !constant(*s)).collect()
        }
        // Padding filled with a number.
        (Op::Where, Some(mask), Some(a)) => match node.input(2) {
            Some(b) if is_mask(graph, mask) => {
                let both = [(a, b), (b, a)];
                both.into_iter()
                    .filter(|(s, other)| fits(s) && constant(*other) && !constant(*s))
                    .map(|(s, other)| (s, Some(other)))
                    .collect()
            }
            _ => vec![],
        },
        (Op::Binary(Binary::Div | Binary::Sub), Some(a), Some(b)) => {
            let sub = node.op == Op::Binary(Binary::Sub);
            [(a, Some(b))].into_iter().filter(|(s, _)| fits(s) && (sub || constant(b))).collect()
        }
        (Op::Binary(Binary::Add), Some(a), Some(b)) => {
            [(a, Some(b)), (b, Some(a))].into_iter().filter(|(s, _)| fits(s) && !constant(*s)).collect()
        }
        _ => vec![],
    }
}

/// How many nodes a mask of tokens may be made by.
const MASK_NODES: usize = 16;

/// Whether `v` is a number for each token, made of integers (ids, positions or a mask) alone.
fn is_mask(graph: &Graph, v: ValueId) -> bool {
    let per_token = |t: &Type| t.rank() > 1 && t.shape.last() == Some(&Dim::ONE);
    if !graph.ty(v).is_some_and(per_token) {
        return false;
    }
    let (mut waiting, mut seen) = (vec![v], HashSet::new());
    while let Some(v) = waiting.pop() {
        let Some(id) = graph.producer(v) else {
            match graph.tensor(v).is_some() || graph.ty(v).is_some_and(|t| !t.dtype.is_float()) {
                true => continue,
                false => return false,
            }
        };
        if seen.insert(id) {
            waiting.extend(graph.node(id).into_iter().flat_map(Node::operands));
        }
        if seen.len() > MASK_NODES {
            return false;
        }
    }
    !seen.is_empty()
}

/// What integers are the quantised form of: a state goes on when they are turned back.
fn quantised(graph: &Graph, integers: ValueId) -> Option<ValueId> {
    let node = graph.producing(integers)?;
    match node.op {
        Op::Quantize { .. } => node.input(0),
        _ => None,
    }
}

/// Equal ranks and no two known sizes that differ.
fn same_extent(a: &Type, b: &Type) -> bool {
    a.rank() == b.rank()
        && a.shape.iter().zip(&b.shape).all(|(x, y)| match (x.known(), y.known()) {
            (Some(x), Some(y)) => x == y,
            _ => true,
        })
}

fn step(
    graph: &Graph,
    best: &[Best],
    position: &[usize],
    node: NodeId,
    input: ValueId,
    other: Option<ValueId>,
    output: ValueId,
) -> Event {
    let map = Event::Map { node, input, output };
    let is_add = graph.node(node).is_some_and(|n| n.op == Op::Binary(Binary::Add));
    let Some(branch) = other.filter(|_| is_add) else { return map };
    let fits = match (graph.ty(branch), graph.ty(output)) {
        (Some(a), Some(b)) => same_extent(a, b),
        _ => false,
    };
    if fits && is_branch_of(graph, best, position, branch, input) {
        Event::Join { node, input, branch, output }
    } else {
        map
    }
}

/// The states on the way to a value, walked back only as far as is asked for: most branches come from a state
/// near by.
struct Way<'b> {
    best: &'b [Best],
    states: HashSet<ValueId>,
    end: ValueId,
}

impl Way<'_> {
    /// Whether `v` is one of the states.
    fn passes(&mut self, v: ValueId, position: &[usize]) -> bool {
        while position[self.end.index()] > position[v.index()] {
            let Some(event) = self.best[self.end.index()].last else { break };
            self.end = event.input();
            self.states.insert(self.end);
        }
        self.states.contains(&v)
    }
}

/// Whether `branch` is computed, by more than scaling, from a state on the way to `skip`.
fn is_branch_of(graph: &Graph, best: &[Best], position: &[usize], branch: ValueId, skip: ValueId) -> bool {
    let mut way = Way { best, states: HashSet::from([skip]), end: skip };
    let core = scaled_core(graph, branch);
    // A state that is only mixed or scaled is no branch.
    let mut mixed = core;
    loop {
        if way.passes(mixed, position) {
            return false;
        }
        match best[mixed.index()].last {
            Some(Event::Map { node, input, .. }) if !is_norm(graph, node) => mixed = input,
            _ => break,
        }
    }
    let horizon = best[skip.index()].origin.map_or(position[skip.index()], |origin| position[origin.index()]);
    let mut seen = HashSet::new();
    // The latest first, so that the way is walked back no further than the branch reaches.
    let mut waiting = BinaryHeap::from([(position[core.index()], core)]);
    while let Some((at, v)) = waiting.pop() {
        if way.passes(v, position) {
            return true;
        }
        if at > horizon && seen.insert(v) {
            let operands = graph.producing(v).into_iter().flat_map(Node::operands);
            waiting.extend(operands.map(|v| (position[v.index()], v)));
        }
    }
    false
}

/// What is left of a value without casts, signs and constant factors.
fn scaled_core(graph: &Graph, mut v: ValueId) -> ValueId {
    loop {
        let Some(node) = graph.producing(v) else { return v };
        let constant = |at: usize| node.input(at).is_some_and(|v| graph.tensor(v).is_some());
        let next = match node.op {
            Op::Identity | Op::Cast { .. } | Op::Unary(Unary::Neg) => node.input(0),
            Op::Binary(Binary::Mul | Binary::Div) if constant(1) => node.input(0),
            Op::Binary(Binary::Mul) if constant(0) => node.input(1),
            Op::Dequantize { .. } => node.input(0).and_then(|q| quantised(graph, q)),
            _ => None,
        };
        match next {
            Some(next) => v = next,
            None => return v,
        }
    }
}
