//! One parallel evaluation of a segment's units (METHOD §2).
//!
//! A unit is `M` fused layers. The units of a segment are grouped by the events of their layers, and
//! within a group the layers by class; each (group, class) is a set of lanes evaluated at once:
//!
//! ```text
//!   state [C, ..] ─▶ per class: branch [C, m, ..] ─▶ sum over m ─┐
//!        └───────────────────────────────────────────────────── + ─▶ state [C, ..]
//! ```
//!
//! The states of a group run along one leading axis, absent while all units still share one state.
//! What differs for the streams of hyper-connections is in [`connections`].

mod connections;

use std::collections::{BTreeMap, HashMap, HashSet};

use super::class_lanes::{ClassLanes, Lane, in_order, repeated, sum_per_unit, take_rows};
use super::escapes::Escape;
use super::vectorize::{Batched, Lanes, OwnInputs, VectorizeError};
use crate::analysis::{Chain, Event, Mismatch, Reach};
use crate::ir::{Binary, Graph, Op, ValueId};

/// What a parallel evaluation is told of its segment.
pub(super) struct SegmentContext<'a> {
    pub chain: &'a Chain,
    /// Zero-based layers of each unit.
    pub units: Vec<Vec<usize>>,
    /// Entry state of each layer of the segment, as the graph now has it.
    pub entry: HashMap<usize, ValueId>,
    pub reach: &'a Reach,
    /// States inside the segment.
    pub forbidden: &'a HashSet<ValueId>,
    /// Divide fused sums by `M`.
    pub avg: bool,
}

/// States read from inside a unit: unit → number of its layers whose branches count.
pub(super) type PartialTaps = BTreeMap<usize, usize>;

/// What is wanted of an evaluation besides the units' outputs.
pub(super) struct Wanted<'a> {
    pub taps: &'a PartialTaps,
    /// Values inside layers that are read from outside.
    pub escapes: &'a [Escape],
    pub own: &'a OwnInputs,
    /// Whether the matrices that mix the streams of the units' states are wanted.
    pub transfers: bool,
}

/// What an evaluation gives.
pub(super) struct Evaluated {
    /// The units' outputs `[C, ..]` (no unit axis when `C = 1`).
    pub outputs: ValueId,
    /// Partial sums for the taps, without a unit axis.
    pub partial: BTreeMap<usize, ValueId>,
    /// The wanted values inside layers, as this evaluation has them; those that are missing do not depend
    /// on what is evaluated.
    pub escaped: HashMap<ValueId, ValueId>,
    /// `[C, tokens.., S, S]`: what the skip path of each unit does to the streams of each token.
    pub transfers: Option<ValueId>,
}

/// Evaluates every unit on `input` (one state for all, or `[C, ..]`).
pub(super) fn evaluate(
    graph: &mut Graph,
    context: &SegmentContext<'_>,
    input: Batched,
    wanted: &Wanted<'_>,
) -> Result<Evaluated, VectorizeError> {
    let mut groups: Vec<(Vec<bool>, Vec<usize>)> = Vec::new();
    for (u, unit) in context.units.iter().enumerate() {
        let skeleton = unit_skeleton(graph, context, unit)?;
        match groups.iter_mut().find(|(s, _)| *s == skeleton) {
            Some((_, units)) => units.push(u),
            None => groups.push((skeleton, vec![u])),
        }
    }
    let mut partial = BTreeMap::new();
    let mut escaped = HashMap::new();
    let mut pieces = Vec::new();
    let mut transfers = Vec::new();
    for (_, units) in &groups {
        let state = select_units(graph, context, input, units)?;
        let mut group = Group::new(context, units.clone(), wanted.own);
        let out = group.run(graph, state, wanted.taps, &mut partial)?;
        if wanted.transfers {
            transfers.push((units.clone(), group.transfers(graph, out)?));
        }
        for class in &group.classes {
            class.escaped(graph, wanted.escapes, &mut escaped)?;
        }
        pieces.push((units.clone(), out));
    }
    let outputs = assemble(graph, context.units.len(), pieces)?;
    let transfers = match transfers.is_empty() {
        true => None,
        false => Some(assemble(graph, context.units.len(), transfers)?),
    };
    Ok(Evaluated { outputs, partial, escaped, transfers })
}

/// The events that all layers of a unit share.
fn unit_skeleton(
    graph: &Graph,
    context: &SegmentContext<'_>,
    unit: &[usize],
) -> Result<Vec<bool>, VectorizeError> {
    let layer = |l: usize| &context.chain.layers[l];
    let skeleton = layer(unit[0]).skeleton();
    match unit.iter().find(|l| layer(**l).skeleton() != skeleton) {
        None => Ok(skeleton),
        Some(odd) => {
            let reason = format!(
                "layers {} and {odd} cannot be fused: they differ in the number or order of sub-blocks",
                unit[0]
            );
            Err(Mismatch::at_value(graph, layer(*odd).output, reason).into())
        }
    }
}

/// The states of some of the units.
fn select_units(
    graph: &mut Graph,
    context: &SegmentContext<'_>,
    input: Batched,
    units: &[usize],
) -> Result<Batched, VectorizeError> {
    if !input.batched || units.len() == context.units.len() {
        return Ok(input);
    }
    let rows: Vec<i64> = units.iter().map(|u| *u as i64).collect();
    let value = take_rows(graph, input.value, &rows)?;
    if units.len() > 1 {
        return Ok(Batched::lanes(value));
    }
    Ok(Batched::shared(graph.add(Op::Squeeze { axes: vec![0] }, &[value])?))
}

/// Lays the groups' outputs along the unit axis in the units' order.
pub(super) fn assemble(
    graph: &mut Graph,
    count: usize,
    pieces: Vec<(Vec<usize>, Batched)>,
) -> Result<ValueId, VectorizeError> {
    if count == 1 {
        return Ok(pieces[0].1.value);
    }
    let mut values = Vec::new();
    let mut order = Vec::new();
    for (units, out) in pieces {
        let value = match (out.batched, units.len()) {
            (true, _) => out.value,
            (false, 1) => graph.add(Op::Unsqueeze { axes: vec![0] }, &[out.value])?,
            (false, n) => repeated(graph, out.value, n)?,
        };
        values.push(value);
        order.extend(units);
    }
    in_order(graph, &values, &order)
}

struct Group<'a> {
    context: &'a SegmentContext<'a>,
    own: &'a OwnInputs,
    units: Vec<usize>,
    classes: Vec<ClassLanes<'a>>,
    fused: usize,
}

impl<'a> Group<'a> {
    fn new(context: &'a SegmentContext<'a>, units: Vec<usize>, own: &'a OwnInputs) -> Self {
        let mut classes: BTreeMap<usize, Vec<Lane>> = BTreeMap::new();
        for (unit, u) in units.iter().enumerate() {
            for (place, layer) in context.units[*u].iter().enumerate() {
                let lane = Lane { unit, place, layer: *layer };
                classes.entry(context.chain.layers[*layer].class).or_default().push(lane);
            }
        }
        let fused = context.units[units[0]].len();
        let classes = classes
            .into_values()
            .map(|members| {
                ClassLanes::new(members, units.len(), |prefix| {
                    Lanes::new(prefix, context.reach, context.forbidden, own)
                })
            })
            .collect();
        Group { context, own, units, classes, fused }
    }

    fn run(
        &mut self,
        graph: &mut Graph,
        state: Batched,
        taps: &PartialTaps,
        partial: &mut BTreeMap<usize, ValueId>,
    ) -> Result<Batched, VectorizeError> {
        let mut state = state;
        let mut tapped: BTreeMap<usize, ValueId> = BTreeMap::new();
        for (unit, u) in self.units.iter().enumerate() {
            if taps.contains_key(u) {
                tapped.insert(unit, row(graph, state, unit)?);
            }
        }
        self.define_state(graph, 0, state)?;
        let events = self.context.chain.layers[self.classes[0].members[0].layer].events.len();
        let connected = self.fused > 1 && self.context.chain.streams.count > 1;
        for e in 0..events {
            let is_join = self.event(self.classes[0].members[0].layer, e).branch().is_some();
            state = if is_join && connected {
                let sum = self.connected(graph, e, taps, &mut tapped)?;
                add(graph, state, sum)?
            } else if is_join {
                let scale = self.share();
                let (sum, results) = self.reduced(graph, &|event| event.branch(), e, scale)?;
                self.add_parts(graph, &results, taps, &mut tapped, scale)?;
                add(graph, state, sum)?
            } else {
                for (unit, value) in &mut tapped {
                    *value = self.map_alone(graph, *unit, e, *value)?;
                }
                self.reduced(graph, &|event| Some(event.output()), e, 1.0 / self.fused as f64)?.0
            };
            self.define_state(graph, e + 1, state)?;
        }
        for (unit, value) in tapped {
            partial.insert(self.units[unit], value);
        }
        Ok(state)
    }

    /// The factor on what each fused layer adds.
    fn share(&self) -> f64 {
        if self.context.avg { 1.0 / self.fused as f64 } else { 1.0 }
    }

    /// What `of` tells of event `e` of each layer of a class, or the state after it.
    fn tuple(&self, class: usize, of: &dyn Fn(Event) -> Option<ValueId>, e: usize) -> Vec<ValueId> {
        let events = self.classes[class].members.iter().map(|l| self.event(l.layer, e));
        events.map(|event| of(event).unwrap_or(event.output())).collect()
    }

    /// What `of` tells of event `e` of each layer, evaluated for each class, and `scale` times its sum over
    /// each unit's layers.
    fn reduced(
        &mut self,
        graph: &mut Graph,
        of: &dyn Fn(Event) -> Option<ValueId>,
        e: usize,
        scale: f64,
    ) -> Result<(Batched, Vec<Batched>), VectorizeError> {
        let mut results = Vec::new();
        for c in 0..self.classes.len() {
            let tuple = self.tuple(c, of, e);
            results.push(self.classes[c].lanes.vectorize_result(graph, &tuple)?);
        }
        let sum = sum_per_unit(graph, &self.classes, &results, self.units.len(), scale)?;
        let output = self.context.chain.layers[self.classes[0].members[0].layer].output;
        let sum = sum.ok_or_else(|| Mismatch::at_value(graph, output, "a unit without layers"))?;
        Ok((sum, results))
    }

    /// Adds to each tapped value what the first layers of its unit contribute to `results`.
    fn add_parts(
        &self,
        graph: &mut Graph,
        results: &[Batched],
        taps: &PartialTaps,
        tapped: &mut BTreeMap<usize, ValueId>,
        scale: f64,
    ) -> Result<(), VectorizeError> {
        for (unit, value) in tapped {
            let sum = self.with_part(graph, results, taps, *unit, scale, Some(*value))?;
            *value = sum.unwrap_or(*value);
        }
        Ok(())
    }

    /// `start` and what the first layers of a unit, as many as its tap keeps, contribute to `results`.
    fn with_part(
        &self,
        graph: &mut Graph,
        results: &[Batched],
        taps: &PartialTaps,
        unit: usize,
        scale: f64,
        start: Option<ValueId>,
    ) -> Result<Option<ValueId>, VectorizeError> {
        let keep = taps.get(&self.units[unit]).copied().unwrap_or(self.fused);
        let mut sum = start;
        for (class, result) in self.classes.iter().zip(results) {
            if let Some(part) = class.sum_of_unit(graph, *result, unit, keep, scale)? {
                sum = Some(match sum {
                    None => part,
                    Some(sum) => graph.add(Op::Binary(Binary::Add), &[sum, part])?,
                });
            }
        }
        Ok(sum)
    }

    fn event(&self, layer: usize, at: usize) -> Event {
        self.context.chain.layers[layer].events[at]
    }

    /// The value that lane `layer` calls its state number `at`.
    fn state_value(&self, layer: usize, at: usize) -> ValueId {
        match at.checked_sub(1) {
            None => self.context.entry.get(&layer).copied().unwrap_or(self.context.chain.layers[layer].input),
            Some(before) => self.event(layer, before).output(),
        }
    }

    /// Tells every class what its lanes' state number `at` is.
    fn define_state(&mut self, graph: &mut Graph, at: usize, state: Batched) -> Result<(), VectorizeError> {
        for c in 0..self.classes.len() {
            let members = &self.classes[c].members;
            let tuple: Vec<ValueId> = members.iter().map(|l| self.state_value(l.layer, at)).collect();
            let value = self.classes[c].spread(graph, state)?;
            self.classes[c].lanes.define(tuple, value);
        }
        Ok(())
    }

    /// A skip-path map applied to one unit's state alone: the mean over its layers.
    fn map_alone(
        &self,
        graph: &mut Graph,
        unit: usize,
        e: usize,
        state: ValueId,
    ) -> Result<ValueId, VectorizeError> {
        let mut alone = Group::new(self.context, vec![self.units[unit]], self.own);
        let mut results = vec![];
        for class in &mut alone.classes {
            let states = class.members.iter().map(|l| self.state_value(l.layer, e)).collect();
            class.lanes.define(states, Batched::shared(state));
            let outputs: Vec<ValueId> =
                class.members.iter().map(|l| self.event(l.layer, e).output()).collect();
            results.push(class.lanes.vectorize_result(graph, &outputs)?);
        }
        let mean = sum_per_unit(graph, &alone.classes, &results, 1, 1.0 / self.fused as f64)?;
        Ok(mean.map_or(state, |m| m.value))
    }
}

fn add(graph: &mut Graph, a: Batched, b: Batched) -> Result<Batched, VectorizeError> {
    let value = graph.add(Op::Binary(Binary::Add), &[a.value, b.value])?;
    Ok(Batched { value, batched: a.batched || b.batched })
}

/// One unit's state, without the unit axis.
fn row(graph: &mut Graph, state: Batched, unit: usize) -> Result<ValueId, VectorizeError> {
    if !state.batched {
        return Ok(state.value);
    }
    let row = take_rows(graph, state.value, &[unit as i64])?;
    Ok(graph.add(Op::Squeeze { axes: vec![0] }, &[row])?)
}
