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

use std::collections::{BTreeMap, HashMap, HashSet};

use super::batch;
use super::vectorize::{Batched, Lanes, VectorizeError};
use crate::analysis::{Chain, Event, Mismatch, Reach};
use crate::ir::{Binary, Dim, Graph, Op, Reduce, Tensor, ValueId};

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

/// What an evaluation gives.
pub(super) struct Evaluated {
    /// The units' outputs `[C, ..]` (no unit axis when `C = 1`).
    pub outputs: ValueId,
    /// Partial sums for the taps, without a unit axis.
    pub partial: BTreeMap<usize, ValueId>,
}

/// A lane: a unit of the group and one of its layers.
#[derive(Clone, Copy)]
struct Lane {
    /// Position of the unit within the group.
    unit: usize,
    /// Position of the layer within the unit.
    place: usize,
    layer: usize,
}

/// Lanes of one class within a group, with the layout of their axes.
struct ClassLanes<'a> {
    members: Vec<Lane>,
    layout: Layout,
    lanes: Lanes<'a>,
}

/// How lanes lie on axes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// The single lane of a single unit: no axis.
    Single,
    /// One lane per unit, `[C]`.
    Units,
    /// Several lanes of a single unit, `[m]`.
    Layers,
    /// `[C, m]`.
    Grid,
    /// Different numbers of lanes per unit, in a row `[n]`.
    Ragged,
}

/// Evaluates every unit on `input` (one state for all, or `[C, ..]`).
pub(super) fn evaluate(
    graph: &mut Graph,
    context: &SegmentContext<'_>,
    input: Batched,
    taps: &PartialTaps,
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
    let mut pieces = Vec::new();
    for (_, units) in &groups {
        let state = select_units(graph, context, input, units)?;
        let mut group = Group::new(context, units.clone());
        let out = group.run(graph, state, taps, &mut partial)?;
        pieces.push((units.clone(), out));
    }
    let outputs = assemble(graph, context.units.len(), pieces)?;
    Ok(Evaluated { outputs, partial })
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

/// Rows of a value along axis 0: a slice where they are consecutive.
fn take_rows(graph: &mut Graph, v: ValueId, rows: &[i64]) -> Result<ValueId, VectorizeError> {
    if rows.windows(2).all(|w| w[1] == w[0] + 1) {
        let (start, end) = (graph.ints(&rows[..1]), graph.ints(&[rows[rows.len() - 1] + 1]));
        return Ok(graph.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[v, start, end])?);
    }
    let rows = graph.ints(rows);
    Ok(graph.add(Op::Gather { axis: 0 }, &[v, rows])?)
}

/// Lays the groups' outputs along the unit axis in the units' order.
fn assemble(
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
            (false, n) => {
                let row = graph.add(Op::Unsqueeze { axes: vec![0] }, &[out.value])?;
                let mut dims = graph.shape(row).unwrap_or_default().to_vec();
                dims[0] = Dim::from(n);
                let shape = graph.dims(&dims)?;
                graph.add(Op::Expand, &[row, shape])?
            }
        };
        values.push(value);
        order.extend(units);
    }
    if let [only] = values[..] {
        return Ok(only);
    }
    let joined = graph.add(Op::Concat { axis: 0 }, &values)?;
    let mut rows = vec![0i64; count];
    for (at, unit) in order.iter().enumerate() {
        rows[*unit] = at as i64;
    }
    if rows.windows(2).all(|w| w[0] < w[1]) { Ok(joined) } else { take_rows(graph, joined, &rows) }
}

struct Group<'a> {
    context: &'a SegmentContext<'a>,
    units: Vec<usize>,
    classes: Vec<ClassLanes<'a>>,
    fused: usize,
}

impl<'a> Group<'a> {
    fn new(context: &'a SegmentContext<'a>, units: Vec<usize>) -> Self {
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
                let (layout, prefix) = layout(&members, units.len());
                let lanes = Lanes::new(prefix, context.reach, context.forbidden);
                ClassLanes { members, layout, lanes }
            })
            .collect();
        Group { context, units, classes, fused }
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
        for e in 0..events {
            let is_join = self.event(self.classes[0].members[0].layer, e).branch().is_some();
            let mut sum: Option<Batched> = None;
            let scale = if !is_join || self.context.avg { 1.0 / self.fused as f64 } else { 1.0 };
            for c in 0..self.classes.len() {
                let result = self.evaluate_class(graph, c, e)?;
                let class = &self.classes[c];
                if is_join {
                    for (unit, value) in &mut tapped {
                        let keep = taps.get(&self.units[*unit]).copied().unwrap_or(self.fused);
                        if let Some(part) = class.sum_of_unit(graph, result, *unit, keep, scale)? {
                            *value = graph.add(Op::Binary(Binary::Add), &[*value, part])?;
                        }
                    }
                }
                let reduced = class.sum_per_unit(graph, result, self.units.len(), scale)?;
                sum = Some(match sum {
                    None => reduced,
                    Some(sum) => add(graph, sum, reduced)?,
                });
            }
            let Some(sum) = sum else { continue };
            if !is_join {
                for (unit, value) in &mut tapped {
                    *value = self.map_alone(graph, *unit, e, *value)?;
                }
            }
            state = if is_join { add(graph, state, sum)? } else { sum };
            self.define_state(graph, e + 1, state)?;
        }
        for (unit, value) in tapped {
            partial.insert(self.units[unit], value);
        }
        Ok(state)
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

    fn evaluate_class(&mut self, graph: &mut Graph, c: usize, e: usize) -> Result<Batched, VectorizeError> {
        let tuple: Vec<ValueId> = self.classes[c]
            .members
            .iter()
            .map(|l| {
                let event = self.event(l.layer, e);
                event.branch().unwrap_or(event.output())
            })
            .collect();
        self.classes[c].lanes.vectorize_result(graph, &tuple)
    }

    /// A skip-path map applied to one unit's state alone: the mean over its layers.
    fn map_alone(
        &self,
        graph: &mut Graph,
        unit: usize,
        e: usize,
        state: ValueId,
    ) -> Result<ValueId, VectorizeError> {
        let alone = Group::new(self.context, vec![self.units[unit]]);
        let mut mean: Option<Batched> = None;
        for mut class in alone.classes {
            let states = class.members.iter().map(|l| self.state_value(l.layer, e)).collect();
            class.lanes.define(states, Batched::shared(state));
            let outputs: Vec<ValueId> =
                class.members.iter().map(|l| self.event(l.layer, e).output()).collect();
            let result = class.lanes.vectorize_result(graph, &outputs)?;
            let part = class.sum_per_unit(graph, result, 1, 1.0 / self.fused as f64)?;
            mean = Some(match mean {
                None => part,
                Some(mean) => add(graph, mean, part)?,
            });
        }
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

fn layout(members: &[Lane], units: usize) -> (Layout, Vec<usize>) {
    let mut per_unit = vec![0usize; units];
    for lane in members {
        per_unit[lane.unit] += 1;
    }
    let m = per_unit[0];
    match (per_unit.iter().all(|n| *n == m), units, m) {
        (true, 1, 1) => (Layout::Single, vec![]),
        (true, 1, m) => (Layout::Layers, vec![m]),
        (true, c, 1) => (Layout::Units, vec![c]),
        (true, c, m) => (Layout::Grid, vec![c, m]),
        (false, ..) if members.len() == 1 => (Layout::Ragged, vec![]),
        (false, ..) => (Layout::Ragged, vec![members.len()]),
    }
}

impl ClassLanes<'_> {
    /// The units' states as the lanes see them.
    fn spread(&self, graph: &mut Graph, state: Batched) -> Result<Batched, VectorizeError> {
        if !state.batched {
            return Ok(state);
        }
        match self.layout {
            Layout::Single | Layout::Layers | Layout::Units => Ok(state),
            Layout::Grid => Ok(Batched::lanes(batch::insert_axes(graph, state.value, 1, 1)?)),
            Layout::Ragged => {
                let rows: Vec<i64> = self.members.iter().map(|l| l.unit as i64).collect();
                let value = take_rows(graph, state.value, &rows)?;
                if self.members.len() > 1 {
                    return Ok(Batched::lanes(value));
                }
                Ok(Batched::shared(graph.add(Op::Squeeze { axes: vec![0] }, &[value])?))
            }
        }
    }

    /// The lanes' results summed over each unit's layers and multiplied by `scale`.
    fn sum_per_unit(
        &self,
        graph: &mut Graph,
        result: Batched,
        units: usize,
        scale: f64,
    ) -> Result<Batched, VectorizeError> {
        let per_unit = self.members.len() as f64 / units as f64;
        let size_at = |graph: &Graph, axis: usize| {
            graph.shape(result.value).and_then(|s| s.get(axis)).and_then(Dim::known).unwrap_or(1)
        };
        match (self.layout, result.batched) {
            (Layout::Ragged, _) => self.sum_ragged(graph, result, units, scale),
            // All lanes agree: a multiple instead of a sum.
            (_, false) | (Layout::Single | Layout::Units, true) => {
                scaled(graph, result, scale * if result.batched { 1.0 } else { per_unit })
            }
            (Layout::Layers, true) => {
                let sum = reduce(graph, result.value, vec![0])?;
                scaled(graph, Batched::shared(sum), scale)
            }
            (Layout::Grid, true) => {
                let lanes_differ = size_at(graph, 1) != 1;
                let sum = reduce(graph, result.value, vec![1])?;
                scaled(graph, Batched::lanes(sum), scale * if lanes_differ { 1.0 } else { per_unit })
            }
        }
    }

    /// As a product with the 0/1 matrix that says which lane belongs to which unit.
    fn sum_ragged(
        &self,
        graph: &mut Graph,
        result: Batched,
        units: usize,
        scale: f64,
    ) -> Result<Batched, VectorizeError> {
        let n = self.members.len();
        let value = if result.batched {
            result.value
        } else {
            let row = graph.add(Op::Unsqueeze { axes: vec![0] }, &[result.value])?;
            let mut dims = graph.shape(row).unwrap_or_default().to_vec();
            dims[0] = Dim::from(n);
            let shape = graph.dims(&dims)?;
            graph.add(Op::Expand, &[row, shape])?
        };
        let lane: Vec<Dim> = graph.shape(value).map(|s| s[1..].to_vec()).unwrap_or_default();
        let mut matrix = vec![0f32; units * n];
        for (i, member) in self.members.iter().enumerate() {
            matrix[member.unit * n + i] = scale as f32;
        }
        let dtype = graph.ty(value).map(|t| t.dtype);
        let tensor = Tensor::from_vec(vec![units, n], matrix)
            .map_err(|e| Mismatch::at_value(graph, value, e.to_string()))?;
        let mut matrix = graph.constant(tensor);
        if let Some(to) = dtype.filter(|d| *d != crate::ir::DType::F32) {
            matrix = graph.add(Op::Cast { to }, &[matrix])?;
        }
        let flat = batch::reshape(graph, value, &[Dim::from(n), Dim::product(&lane)])?;
        let sum = graph.add(Op::MatMul, &[matrix, flat])?;
        let mut dims = vec![Dim::from(units)];
        dims.extend(lane);
        Ok(Batched::lanes(batch::reshape(graph, sum, &dims)?))
    }

    /// The sum over the first `keep` layers of one unit, if this class has any among them.
    fn sum_of_unit(
        &self,
        graph: &mut Graph,
        result: Batched,
        unit: usize,
        keep: usize,
        scale: f64,
    ) -> Result<Option<ValueId>, VectorizeError> {
        let own: Vec<usize> = (0..self.members.len()).filter(|i| self.members[*i].unit == unit).collect();
        let count = own.iter().filter(|i| self.members[**i].place < keep).count();
        if count == 0 {
            return Ok(None);
        }
        if !result.batched || self.layout == Layout::Single {
            let part = scaled(graph, result, scale * count as f64)?;
            return Ok(Some(part.value));
        }
        let size_at = |graph: &Graph, v: ValueId, axis: usize| {
            graph.shape(v).and_then(|s| s.get(axis)).and_then(Dim::known).unwrap_or(1)
        };
        let (rows, factor) = match self.layout {
            Layout::Units => (take_rows(graph, result.value, &[unit as i64])?, 1.0),
            Layout::Ragged | Layout::Layers => {
                let rows: Vec<i64> = own[..count].iter().map(|i| *i as i64).collect();
                (take_rows(graph, result.value, &rows)?, 1.0)
            }
            Layout::Grid | Layout::Single => {
                let unit_row = if size_at(graph, result.value, 0) == 1 { 0 } else { unit as i64 };
                let unit = take_rows(graph, result.value, &[unit_row])?;
                let lanes = graph.add(Op::Squeeze { axes: vec![0] }, &[unit])?;
                if size_at(graph, lanes, 0) == 1 {
                    (lanes, count as f64)
                } else {
                    (take_rows(graph, lanes, &(0..count as i64).collect::<Vec<_>>())?, 1.0)
                }
            }
        };
        let sum = reduce(graph, rows, vec![0])?;
        Ok(Some(scaled(graph, Batched::shared(sum), scale * factor)?.value))
    }
}

/// Sum over axes, which vanish.
fn reduce(graph: &mut Graph, v: ValueId, axes: Vec<usize>) -> Result<ValueId, VectorizeError> {
    let single = axes.iter().all(|a| graph.shape(v).and_then(|s| s.get(*a)).is_some_and(|d| *d == Dim::ONE));
    if single {
        return Ok(graph.add(Op::Squeeze { axes }, &[v])?);
    }
    Ok(graph.add(Op::Reduce { op: Reduce::Sum, axes, keepdims: false }, &[v])?)
}

fn scaled(graph: &mut Graph, v: Batched, scale: f64) -> Result<Batched, VectorizeError> {
    if scale == 1.0 {
        return Ok(v);
    }
    let dtype = graph.ty(v.value).map_or(crate::ir::DType::F32, |t| t.dtype);
    let factor = graph.float_scalar(dtype, scale);
    Ok(Batched { value: graph.add(Op::Binary(Binary::Mul), &[v.value, factor])?, ..v })
}
