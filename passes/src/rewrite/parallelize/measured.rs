//! Surrogates that are measured by finite differences of the layers themselves (METHOD §1).
//!
//! ```text
//!   exact      s'_j = f_j(s) + a (f_j(s + ε d) - f_j(s - ε d)) / 2ε       d = s'_{j-1} - s,  s = s_{j-1}
//!   diagonal   A_j  = mean over probes z of  z (f_j(s + ε z) - f_j(s)) / ε
//!              s'_j = f_j(s) + a A_j d
//! ```
//!
//! The Jacobian is only ever needed times `d`, so `exact` takes the difference along `d`: two evaluations more
//! of each unit, one after the other. The probes of `diagonal` (Hutchinson's) evaluate all units at once.

use std::collections::HashMap;

use super::super::units::{assemble, evaluate};
use super::{Estimates, OwnInputs, PartialTaps, SegmentContext, Solver, Wanted};
use crate::analysis::Mismatch;
use crate::ir::{Binary, DType, Dim, Graph, GraphError, Op, Reduce, Tensor, Unary, ValueId};
use crate::rewrite::vectorize::{Batched, VectorizeError};

/// Step of the differences over the size of the state: between the rounding of f32 and what bends.
const STEP: f64 = 1e-3;
/// Probes of the diagonal.
const PROBES: u64 = 8;
/// Signs along an axis whose size is not known repeat after so many.
const PERIOD: usize = 1021;

/// How a surrogate is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Measured {
    Exact,
    Diagonal,
}

impl Solver<'_> {
    /// The corrected states `[C, ..]`, or the last one alone.
    pub(super) fn correct_measured(
        &self,
        graph: &mut Graph,
        f: ValueId,
        old: Estimates,
        (kind, damping): (Measured, f64),
        last_only: bool,
    ) -> Result<ValueId, VectorizeError> {
        let read = self.unit_inputs(graph, old)?;
        let diagonal = match kind {
            Measured::Exact => None,
            Measured::Diagonal => Some(self.diagonal(graph, f, read)?),
        };
        let mut states = vec![self.row(graph, f, 0)?];
        for unit in 1..self.count() {
            let s = if read.batched { self.row(graph, read.value, unit)? } else { read.value };
            let value = self.row(graph, f, unit)?;
            let moved = graph.add(Op::Binary(Binary::Sub), &[states[unit - 1], s])?;
            let mut change = match diagonal {
                Some(a) => {
                    let a = self.row(graph, a, unit)?;
                    graph.add(Op::Binary(Binary::Mul), &[a, moved])?
                }
                None => {
                    let alone = self.context.of_unit(unit);
                    let step = step_along(graph, s, moved)?;
                    let offset = graph.add(Op::Binary(Binary::Mul), &[moved, step])?;
                    let ahead = beside(graph, &alone, Batched::shared(s), Binary::Add, offset)?;
                    let behind = beside(graph, &alone, Batched::shared(s), Binary::Sub, offset)?;
                    let change = graph.add(Op::Binary(Binary::Sub), &[ahead, behind])?;
                    let two_steps = graph.add(Op::Binary(Binary::Add), &[step, step])?;
                    graph.add(Op::Binary(Binary::Div), &[change, two_steps])?
                }
            };
            if damping != 1.0 {
                let factor = float_like(graph, change, damping);
                change = graph.add(Op::Binary(Binary::Mul), &[change, factor])?;
            }
            states.push(graph.add(Op::Binary(Binary::Add), &[value, change])?);
        }
        if last_only {
            return Ok(states[self.count() - 1]);
        }
        let pieces = states.into_iter().enumerate().map(|(unit, s)| (vec![unit], Batched::shared(s)));
        assemble(graph, self.count(), pieces.collect())
    }

    /// Hutchinson's estimate of the diagonals of the units' Jacobians, `[C, ..]`.
    fn diagonal(&self, graph: &mut Graph, f: ValueId, read: Batched) -> Result<ValueId, VectorizeError> {
        let step = step_of_size(graph, read.value)?;
        let mut sum = None;
        for probe in 0..PROBES {
            let z = signs(graph, self.input, probe)?;
            let offset = graph.add(Op::Binary(Binary::Mul), &[z, step])?;
            let there = beside(graph, self.context, read, Binary::Add, offset)?;
            let change = graph.add(Op::Binary(Binary::Sub), &[there, f])?;
            let change = graph.add(Op::Binary(Binary::Div), &[change, step])?;
            let part = graph.add(Op::Binary(Binary::Mul), &[change, z])?;
            sum = Some(match sum {
                None => part,
                Some(sum) => graph.add(Op::Binary(Binary::Add), &[sum, part])?,
            });
        }
        let sum = sum.ok_or_else(|| Mismatch::at_value(graph, f, "no probes"))?;
        let mean = float_like(graph, sum, 1.0 / PROBES as f64);
        Ok(graph.add(Op::Binary(Binary::Mul), &[sum, mean])?)
    }
}

impl SegmentContext<'_> {
    /// One unit by itself.
    fn of_unit(&self, unit: usize) -> SegmentContext<'_> {
        SegmentContext {
            chain: self.chain,
            units: vec![self.units[unit].clone()],
            entry: self.entry.clone(),
            reach: self.reach,
            forbidden: self.forbidden,
            avg: self.avg,
        }
    }
}

/// The units evaluated at `s + offset` or `s - offset`.
fn beside(
    graph: &mut Graph,
    context: &SegmentContext<'_>,
    s: Batched,
    way: Binary,
    offset: ValueId,
) -> Result<ValueId, VectorizeError> {
    let moved = Batched { value: graph.add(Op::Binary(way), &[s.value, offset])?, ..s };
    let own = OwnInputs::new(graph, HashMap::new());
    let wanted = Wanted { taps: &PartialTaps::new(), escapes: &[], own: &own, transfers: false };
    Ok(evaluate(graph, context, moved, &wanted)?.outputs)
}

fn float_like(graph: &mut Graph, v: ValueId, x: f64) -> ValueId {
    let dtype = graph.ty(v).map_or(DType::F32, |t| t.dtype);
    graph.float_scalar(dtype, x)
}

/// The root of the mean of the squares of all elements, never zero.
fn size(graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
    let axes: Vec<usize> = (0..graph.shape(v).map_or(0, <[Dim]>::len)).collect();
    let square = graph.add(Op::Binary(Binary::Mul), &[v, v])?;
    let mean = graph.add(Op::Reduce { op: Reduce::Mean, axes, keepdims: false }, &[square])?;
    let least = float_like(graph, mean, 1e-12);
    let mean = graph.add(Op::Binary(Binary::Add), &[mean, least])?;
    graph.add(Op::Unary(Unary::Sqrt), &[mean])
}

/// A step for directions of size one.
fn step_of_size(graph: &mut Graph, s: ValueId) -> Result<ValueId, GraphError> {
    let size = size(graph, s)?;
    let step = float_like(graph, size, STEP);
    graph.add(Op::Binary(Binary::Mul), &[size, step])
}

/// A step for this direction; it need not be small where the direction is nothing.
fn step_along(graph: &mut Graph, s: ValueId, direction: ValueId) -> Result<ValueId, GraphError> {
    let (step, length) = (step_of_size(graph, s)?, size(graph, direction)?);
    graph.add(Op::Binary(Binary::Div), &[step, length])
}

/// Signs shaped like a value: products of signs along its axes, which are as unrelated as signs of their own.
fn signs(graph: &mut Graph, like: ValueId, probe: u64) -> Result<ValueId, VectorizeError> {
    let ty = graph.ty(like).cloned();
    let Some(ty) = ty else {
        return Err(Mismatch::at_value(graph, like, "the state's shape is not known").into());
    };
    let mut product = float_like(graph, like, 1.0);
    for (axis, size) in ty.shape.iter().enumerate().filter(|(_, d)| **d != Dim::ONE) {
        let sign = |i: usize| if hash(probe, axis as u64, i as u64) & 1 == 0 { 1f32 } else { -1.0 };
        let n = size.known_size().unwrap_or(PERIOD);
        let table = Tensor::from_vec(vec![n], (0..n).map(sign).collect::<Vec<f32>>());
        let mut along = graph.constant(table.map_err(|e| Mismatch::at_value(graph, like, e.to_string()))?);
        if ty.dtype != DType::F32 {
            along = graph.add(Op::Cast { to: ty.dtype }, &[along])?;
        }
        if size.known_size().is_none() {
            let (zero, one, end) = (graph.scalar(0i64), graph.scalar(1i64), graph.dim_scalar(size)?);
            let at = graph.add(Op::Range, &[zero, end, one])?;
            let period = graph.scalar(PERIOD as i64);
            let at = graph.add(Op::Binary(Binary::Mod), &[at, period])?;
            along = graph.add(Op::Gather { axis: 0 }, &[along, at])?;
        }
        let behind: Vec<usize> = (1..ty.rank() - axis).collect();
        if !behind.is_empty() {
            along = graph.add(Op::Unsqueeze { axes: behind }, &[along])?;
        }
        product = graph.add(Op::Binary(Binary::Mul), &[product, along])?;
    }
    Ok(product)
}

/// Bits that look like chance: the finaliser of SplitMix64.
fn hash(probe: u64, axis: u64, index: u64) -> u64 {
    let mut z = (probe << 48 ^ axis << 40 ^ index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31) >> 32
}
