//! Corrections as sums over the unit axis.
//!
//! With `d = f - s`, the errors that the units made: the identity's `s' = cumsum(d) + s` and the linear
//! `s' = T·d + s`. Nothing large cancels.

use super::{Dialect, slice, target};
use crate::ir::{Binary, Correction, CorrectionForm, Dim, Graph, GraphError, Node, Op, Reduce, ValueId};

/// The node in the dialect's operators; `None` when it has corrections.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    match node.op {
        Op::Correction(correction) if !dialect.corrections => summed(graph, correction, node),
        _ => Ok(None),
    }
}

/// See [`Correction`] for the formula. `None` when the number of units is not known.
fn summed(graph: &mut Graph, correction: Correction, node: &Node) -> Result<Option<ValueId>, GraphError> {
    let (Some(f), Some(s)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let (Some(shape), Some(s_rank)) = (graph.shape(f).map(<[Dim]>::to_vec), graph.ty(s).map(|t| t.rank()))
    else {
        return Ok(None);
    };
    let Some(units) = shape.first().and_then(Dim::known) else { return Ok(None) };
    if let CorrectionForm::Scan { stream_axis } = correction.form {
        let Some(a) = node.input(2) else { return Ok(None) };
        let s = if s_rank == shape.len() { s } else { graph.add(Op::Unsqueeze { axes: vec![0] }, &[s])? };
        return scan(graph, [f, s, a], units, stream_axis as usize, correction.last_only).map(Some);
    }
    let d = graph.add(Op::Binary(Binary::Sub), &[f, s])?;
    let errors = match correction.form {
        CorrectionForm::Prefix if correction.last_only => {
            graph.add(Op::Reduce { op: Reduce::Sum, axes: vec![0], keepdims: false }, &[d])?
        }
        CorrectionForm::Prefix => {
            graph.add(Op::CumSum { axis: 0, exclusive: false, reverse: false }, &[d])?
        }
        CorrectionForm::Linear { streams, stream_axis } => {
            let Some(t) = node.input(2) else { return Ok(None) };
            match streams {
                0 | 1 => linear(graph, d, t, &shape, units, correction.last_only)?,
                n => {
                    mixed(graph, d, t, &shape, units, (n.into(), stream_axis as usize), correction.last_only)?
                }
            }
        }
        CorrectionForm::Scan { .. } => return Ok(None),
    };
    let estimate = if correction.last_only && s_rank == shape.len() {
        let last = slice(graph, s, 0, (units - 1, units, 1))?;
        graph.add(Op::Squeeze { axes: vec![0] }, &[last])?
    } else {
        s
    };
    graph.add(Op::Binary(Binary::Add), &[errors, estimate]).map(Some)
}

/// The recurrence, a product for each unit after the first: `s'_j = f_j + a_j (s'_{j-1} - s_{j-1})`.
fn scan(
    graph: &mut Graph,
    [f, s, a]: [ValueId; 3],
    units: i64,
    stream_axis: usize,
    last_only: bool,
) -> Result<ValueId, GraphError> {
    let rank = graph.shape(f).map_or(0, <[Dim]>::len);
    // Streams beside the features, as the product wants them.
    let mut there: Vec<usize> = (0..rank).filter(|axis| *axis != stream_axis).collect();
    there.insert(rank.saturating_sub(2), stream_axis);
    let mut back = vec![0; rank];
    for (to, from) in there.iter().enumerate() {
        back[*from] = to;
    }
    let turned = there != back || there.iter().enumerate().any(|(i, p)| i != *p);
    let turn = |graph: &mut Graph, v, perm: &[usize]| match turned {
        true => graph.add(Op::Transpose { perm: perm.to_vec() }, &[v]),
        false => Ok(v),
    };
    let (f, s) = (turn(graph, f, &there)?, turn(graph, s, &there)?);
    let shared = graph.shape(s).and_then(<[Dim]>::first).is_some_and(|d| *d == Dim::ONE);
    let mut results: Vec<ValueId> = Vec::new();
    for j in 0..units {
        let evaluated = slice(graph, f, 0, (j, j + 1, 1))?;
        let corrected = match results.last() {
            None => evaluated,
            Some(before) => {
                let old = if shared { s } else { slice(graph, s, 0, (j - 1, j, 1))? };
                let delta = graph.add(Op::Binary(Binary::Sub), &[*before, old])?;
                let matrix = slice(graph, a, 0, (j, j + 1, 1))?;
                let moved = graph.add(Op::MatMul, &[matrix, delta])?;
                graph.add(Op::Binary(Binary::Add), &[evaluated, moved])?
            }
        };
        results.push(corrected);
    }
    let all = match (last_only, results.last()) {
        (true, Some(last)) => *last,
        _ if results.len() == 1 => results[0],
        _ => graph.add(Op::Concat { axis: 0 }, &results)?,
    };
    let all = turn(graph, all, &back)?;
    if last_only { graph.add(Op::Squeeze { axes: vec![0] }, &[all]) } else { Ok(all) }
}

/// `T·d` over the units.
fn linear(
    graph: &mut Graph,
    d: ValueId,
    t: ValueId,
    shape: &[Dim],
    units: i64,
    last_only: bool,
) -> Result<ValueId, GraphError> {
    let flat = target(graph, &[units.into(), Dim::product(&shape[1..])])?;
    let x = graph.add(Op::Reshape { allow_zero: true }, &[d, flat])?;
    let rows = if last_only { slice(graph, t, 0, (units - 1, units, 1))? } else { t };
    let x = graph.add(Op::MatMul, &[rows, x])?;
    let wide = target(graph, if last_only { &shape[1..] } else { shape })?;
    graph.add(Op::Reshape { allow_zero: true }, &[x, wide])
}

/// `T·d` over units and streams: for each pair of streams a product over the units, summed over the streams
/// that are read. (No axis joins units and streams, so that slices of units stay slices.)
fn mixed(
    graph: &mut Graph,
    d: ValueId,
    t: ValueId,
    shape: &[Dim],
    units: i64,
    (streams, stream_axis): (i64, usize),
    last_only: bool,
) -> Result<ValueId, GraphError> {
    // Streams, units, rest.
    let mut there: Vec<usize> = (0..shape.len()).filter(|axis| *axis != stream_axis).collect();
    there.insert(0, stream_axis);
    let mut result: Vec<Dim> = there.iter().filter_map(|axis| shape.get(*axis).cloned()).collect();
    let rest = Dim::product(result.get(2..).unwrap_or_default());
    let x = graph.add(Op::Transpose { perm: there.clone() }, &[d])?;
    let flat = target(graph, &[Dim::ONE, streams.into(), units.into(), rest])?;
    let x = graph.add(Op::Reshape { allow_zero: true }, &[x, flat])?;
    let blocks = target(graph, &[units.into(), streams.into(), units.into(), streams.into()])?;
    let mut blocks = graph.add(Op::Reshape { allow_zero: true }, &[t, blocks])?;
    if last_only {
        blocks = slice(graph, blocks, 0, (units - 1, units, 1))?;
    }
    // [streams written, streams read, units written, units read]
    let blocks = graph.add(Op::Transpose { perm: vec![1, 3, 0, 2] }, &[blocks])?;
    let x = graph.add(Op::MatMul, &[blocks, x])?;
    let x = graph.add(Op::Reduce { op: Reduce::Sum, axes: vec![1], keepdims: false }, &[x])?;
    if last_only {
        result.remove(1);
        there.retain(|axis| *axis != 0);
        there.iter_mut().for_each(|axis| *axis -= 1);
    }
    let wide = target(graph, &result)?;
    let x = graph.add(Op::Reshape { allow_zero: true }, &[x, wide])?;
    let mut back = vec![0; there.len()];
    for (to, from) in there.iter().enumerate() {
        back[*from] = to;
    }
    graph.add(Op::Transpose { perm: back }, &[x])
}
