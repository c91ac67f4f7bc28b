//! Corrections as sums over the unit axis.
//!
//! With `d = f - s`, the errors that the units made: the identity's `s' = cumsum(d) + s` and the linear
//! `s' = T·d + s`. Nothing large cancels.

use super::{slice, target};
use crate::ir::{Binary, Correction, CorrectionForm, Dim, Graph, GraphError, Node, Op, Reduce, ValueId};

/// See [`Correction`] for the formula. `None` when the number of units is not known.
pub(super) fn lower(
    graph: &mut Graph,
    correction: Correction,
    node: &Node,
) -> Result<Option<ValueId>, GraphError> {
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
            let streams = (i64::from(streams.max(1)), stream_axis as usize);
            linear(graph, d, t, &shape, units, streams, correction.last_only)?
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

/// `T·d` over units and streams.
fn linear(
    graph: &mut Graph,
    d: ValueId,
    t: ValueId,
    shape: &[Dim],
    units: i64,
    (streams, stream_axis): (i64, usize),
    last_only: bool,
) -> Result<ValueId, GraphError> {
    // Streams next to the units: [c, s, rest].
    let mut perm: Vec<usize> = (0..shape.len()).collect();
    if streams > 1 {
        let axis = perm.remove(stream_axis);
        perm.insert(1, axis);
    }
    let moved: Vec<Dim> = perm.iter().filter_map(|p| shape.get(*p).cloned()).collect();
    let turned = perm.iter().enumerate().any(|(i, p)| i != *p);
    let mut x = if turned { graph.add(Op::Transpose { perm: perm.clone() }, &[d])? } else { d };
    let rest = &moved[if streams > 1 { 2 } else { 1 }..];
    let flat = target(graph, &[(units * streams).into(), Dim::product(rest)])?;
    x = graph.add(Op::Reshape { allow_zero: true }, &[x, flat])?;
    let rows = if last_only { slice(graph, t, 0, ((units - 1) * streams, units * streams, 1))? } else { t };
    x = graph.add(Op::MatMul, &[rows, x])?;
    let result: Vec<Dim> = if last_only { moved[1..].to_vec() } else { moved };
    let wide = target(graph, &result)?;
    x = graph.add(Op::Reshape { allow_zero: true }, &[x, wide])?;
    if !turned {
        return Ok(x);
    }
    // Back to where the streams were, one axis earlier without the units.
    let mut back: Vec<usize> = (0..shape.len()).collect();
    let first = back.remove(1);
    back.insert(stream_axis, first);
    if last_only {
        back = back.iter().filter(|p| **p != 0).map(|p| p - 1).collect();
    }
    graph.add(Op::Transpose { perm: back }, &[x])
}
