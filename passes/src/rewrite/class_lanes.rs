//! Layers of one class as lanes, and how their results become the units' again.

use std::collections::HashMap;

use super::batch;
use super::escapes::Escape;
use super::vectorize::{Batched, Lanes, VectorizeError};
use crate::analysis::Mismatch;
use crate::ir::{Binary, Dim, Graph, Op, Reduce, ValueId};

/// A lane: a unit of the group and one of its layers.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// Position of the unit within the group.
    pub unit: usize,
    /// Position of the layer within the unit.
    pub place: usize,
    pub layer: usize,
}

/// Lanes of one class within a group, with the layout of their axes.
pub(super) struct ClassLanes<'a> {
    pub members: Vec<Lane>,
    layout: Layout,
    pub lanes: Lanes<'a>,
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

impl<'a> ClassLanes<'a> {
    /// Lanes over `units` units; `lanes` makes the evaluation for the sizes of their axes.
    pub(super) fn new(members: Vec<Lane>, units: usize, lanes: impl FnOnce(Vec<usize>) -> Lanes<'a>) -> Self {
        let (layout, prefix) = layout(&members, units);
        ClassLanes { members, layout, lanes: lanes(prefix) }
    }
}

impl ClassLanes<'_> {
    /// The units' states as the lanes see them.
    pub(super) fn spread(&self, graph: &mut Graph, state: Batched) -> Result<Batched, VectorizeError> {
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

    /// Takes the escaping values of these lanes' layers out of what was evaluated.
    pub(super) fn escaped(
        &self,
        graph: &mut Graph,
        escapes: &[Escape],
        found: &mut HashMap<ValueId, ValueId>,
    ) -> Result<(), VectorizeError> {
        for escape in escapes {
            let Some(lane) = self.members.iter().position(|l| l.layer == escape.layer) else { continue };
            if let Some(result) = self.lanes.evaluated(lane, escape.value) {
                found.insert(escape.value, self.of_lane(graph, result, lane)?);
            }
        }
        Ok(())
    }

    /// The result of one lane, without lane axes.
    fn of_lane(&self, graph: &mut Graph, result: Batched, lane: usize) -> Result<ValueId, VectorizeError> {
        let member = self.members[lane];
        let rows = match self.layout {
            _ if !result.batched => vec![],
            Layout::Single => vec![],
            Layout::Units => vec![member.unit],
            Layout::Grid => {
                let first = self.members.iter().position(|l| l.unit == member.unit).unwrap_or(lane);
                vec![member.unit, lane - first]
            }
            Layout::Layers | Layout::Ragged if self.members.len() == 1 => vec![],
            Layout::Layers | Layout::Ragged => vec![lane],
        };
        let mut value = result.value;
        for row in rows {
            let size = graph.shape(value).and_then(|s| s.first()).and_then(Dim::known).unwrap_or(1);
            // Lanes that agree along an axis share its only row.
            let at = if size == 1 { 0 } else { row as i64 };
            let taken = take_rows(graph, value, &[at])?;
            value = graph.add(Op::Squeeze { axes: vec![0] }, &[taken])?;
        }
        Ok(value)
    }

    /// The lanes' results summed over each unit's layers; none where units have different numbers of lanes.
    fn sum_of_each(
        &self,
        graph: &mut Graph,
        result: Batched,
        units: usize,
    ) -> Result<Option<Batched>, VectorizeError> {
        let per_unit = self.members.len() as f64 / units as f64;
        Ok(Some(match (self.layout, result.batched) {
            (Layout::Ragged, _) => return Ok(None),
            // All lanes agree: a multiple instead of a sum.
            (_, false) => scaled(graph, result, per_unit)?,
            (Layout::Single | Layout::Units, true) => result,
            (Layout::Layers, true) => Batched::shared(reduce(graph, result.value, vec![0])?),
            (Layout::Grid, true) => {
                let lanes_agree = graph.shape(result.value).is_some_and(|s| s.get(1) == Some(&Dim::ONE));
                let sum = Batched::lanes(reduce(graph, result.value, vec![1])?);
                scaled(graph, sum, if lanes_agree { per_unit } else { 1.0 })?
            }
        }))
    }

    /// The sum over the first `keep` layers of one unit, if this class has any among them.
    pub(super) fn sum_of_unit(
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

/// The results of all lanes of a group, class by class, summed over each unit's layers and multiplied by `scale`.
///
/// ```text
///   class 0, units 0 2   r0 r1 ─┐ concat          gather
///   class 1, units 1 3   r2 r3 ─┘ r0 r1 r2 r3 ──▶ r0 r2 r1 r3
/// ```
///
/// Every unit has as many layers as the others, so those whose class not all units share are as many for each
/// too: they are put in the units' order.
pub(super) fn sum_per_unit(
    graph: &mut Graph,
    classes: &[ClassLanes<'_>],
    results: &[Batched],
    units: usize,
    scale: f64,
) -> Result<Option<Batched>, VectorizeError> {
    let mut parts = vec![];
    let mut ragged = vec![];
    for (class, result) in classes.iter().zip(results) {
        match class.sum_of_each(graph, *result, units)? {
            Some(part) => parts.push(part),
            None => ragged.push((class, *result)),
        }
    }
    if !ragged.is_empty() {
        parts.push(sum_of_ragged(graph, &ragged, units)?);
    }
    let mut sum: Option<Batched> = None;
    for part in parts {
        sum = Some(match sum {
            None => part,
            Some(sum) => {
                let value = graph.add(Op::Binary(Binary::Add), &[sum.value, part.value])?;
                Batched { value, batched: sum.batched || part.batched }
            }
        });
    }
    sum.map(|sum| scaled(graph, sum, scale)).transpose()
}

fn sum_of_ragged(
    graph: &mut Graph,
    results: &[(&ClassLanes<'_>, Batched)],
    units: usize,
) -> Result<Batched, VectorizeError> {
    let mut values = vec![];
    let mut lane: Option<Vec<Dim>> = None;
    for (class, result) in results {
        let value = if result.batched { result.value } else { repeated(graph, result.value, 1)? };
        let own = graph.shape(value).and_then(|s| s.get(1..)).unwrap_or_default();
        let common: Option<Vec<Dim>> = match &lane {
            None => Some(own.to_vec()),
            Some(lane) if lane.len() != own.len() => None,
            Some(lane) => lane.iter().zip(own).map(|(a, b)| a.broadcast(b)).collect(),
        };
        let refused = || Mismatch::at_value(graph, value, "layers of one unit add different shapes");
        lane = Some(common.ok_or_else(refused)?);
        values.push((value, class.members.len()));
    }
    let lane = lane.unwrap_or_default();
    let mut rows = vec![];
    for (value, count) in values {
        let dims: Vec<Dim> = std::iter::once(Dim::from(count)).chain(lane.iter().cloned()).collect();
        rows.push(expanded(graph, value, &dims)?);
    }
    let of_rows: Vec<usize> =
        results.iter().flat_map(|(class, _)| class.members.iter().map(|l| l.unit)).collect();
    let ordered = in_order(graph, &rows, &of_rows)?;
    let each = of_rows.len() / units;
    if each == 1 {
        return Ok(Batched::lanes(ordered));
    }
    let dims: Vec<Dim> = [units, each].map(Dim::from).into_iter().chain(lane).collect();
    let grid = batch::reshape(graph, ordered, &dims)?;
    Ok(Batched::lanes(reduce(graph, grid, vec![1])?))
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

/// The rows of all values along axis 0, those of earlier units first; `units` says of each which it is of.
pub(super) fn in_order(
    graph: &mut Graph,
    values: &[ValueId],
    units: &[usize],
) -> Result<ValueId, VectorizeError> {
    let all = match values {
        [one] => *one,
        _ => graph.add(Op::Concat { axis: 0 }, values)?,
    };
    if units.is_sorted() {
        return Ok(all);
    }
    let mut rows: Vec<i64> = (0..units.len() as i64).collect();
    rows.sort_by_key(|row| units[*row as usize]);
    take_rows(graph, all, &rows)
}

/// The value `n` times along a new first axis.
pub(super) fn repeated(graph: &mut Graph, v: ValueId, n: usize) -> Result<ValueId, VectorizeError> {
    let row = graph.add(Op::Unsqueeze { axes: vec![0] }, &[v])?;
    let mut dims = graph.shape(row).unwrap_or_default().to_vec();
    dims[0] = Dim::from(n);
    let shape = graph.dims(&dims)?;
    Ok(graph.add(Op::Expand, &[row, shape])?)
}

/// The value broadcast to `dims`.
pub(super) fn expanded(graph: &mut Graph, v: ValueId, dims: &[Dim]) -> Result<ValueId, VectorizeError> {
    if graph.shape(v) == Some(dims) {
        return Ok(v);
    }
    let shape = graph.dims(dims)?;
    Ok(graph.add(Op::Expand, &[v, shape])?)
}

/// Rows of a value along axis 0: a slice where they are consecutive.
pub(super) fn take_rows(graph: &mut Graph, v: ValueId, rows: &[i64]) -> Result<ValueId, VectorizeError> {
    if rows.windows(2).all(|w| w[1] == w[0] + 1) {
        let (start, end) = (graph.ints(&rows[..1]), graph.ints(&[rows[rows.len() - 1] + 1]));
        return Ok(graph.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[v, start, end])?);
    }
    let rows = graph.ints(rows);
    Ok(graph.add(Op::Gather { axis: 0 }, &[v, rows])?)
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
