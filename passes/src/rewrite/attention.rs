//! Scaled dot-product attention.
//!
//! ```text
//!   q ─┐                                                                 v ─┐
//!      MatMul ─▶ [· scale] ─▶ [cap·tanh(·/cap)] ─▶ [+ mask | Where] ─▶ Softmax ─▶ [safe] ─▶ MatMul
//!   kᵀ ┘
//!                                   becomes   Attention(q, k, v[, mask])
//! ```
//!
//! The scale may stand on the scores, on `q`, on `k` or on both. Masks may be added or selected with
//! Where, several times; together they are one operand. Where the scores change between `[b·h, t, s]` and
//! `[b, h, t, s]` on the way, the operands are reshaped to the latter.
//!
//! Rounding: `Where(c, s, fill)` with a finite fill becomes `s + Where(c, 0, fill)`: in a row that has a
//! key left the excluded ones weigh 0 either way, and in one that has none both are near uniform.

mod reframe;

pub(super) use reframe::{reframe, reframed};

use super::matching::{behind_casts, binary, dtype, either, made_by, matmul, rank, unary, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Attention, Binary, DType, Dim, Graph, GraphError, NodeId, Op, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "attention", fidelity: Fidelity::Rounding, apply };

/// A Where or an added mask with at most this excludes what it marks.
pub(crate) const EXCLUDED: f64 = -1e4;

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some(found) = recognised(graph, id) else { return Ok(None) };
        match fits(graph, id, &found) {
            Ok(()) => built(graph, id, found).map(Some),
            Err(reason) => {
                notes.decline(graph, id, reason);
                Ok(None)
            }
        }
    })
}

/// What the arithmetic between two MatMuls says.
#[derive(Clone)]
struct Found {
    q: ValueId,
    /// `[.., d, s]`
    kt: ValueId,
    v: ValueId,
    scale: f64,
    softcap: Option<f64>,
    safe: bool,
    masks: Vec<Mask>,
    /// The scores with the most axes on the way.
    widest: ValueId,
}

/// A mask, and the shape of the scores where it was met.
#[derive(Clone)]
struct Mask {
    what: Masking,
    frame: Vec<Dim>,
}

#[derive(Clone, Copy)]
enum Masking {
    /// Added, times the factor.
    Added(ValueId, f64),
    /// Where the condition is not `keep`, the score is `fill`.
    Selected { condition: ValueId, keep: bool, fill: f64 },
}

impl Masking {
    fn operand(self) -> ValueId {
        match self {
            Masking::Added(v, _) | Masking::Selected { condition: v, .. } => v,
        }
    }
}

fn recognised(graph: &Graph, id: NodeId) -> Option<Found> {
    let node = graph.node(id)?;
    if !matches!(node.op, Op::MatMul) {
        return None;
    }
    let (p, v) = (behind_casts_and_reshapes(graph, node.input(0)?), node.input(1)?);
    let (softmax, safe) = match unsafed(graph, p) {
        Some(inner) => (behind_casts_and_reshapes(graph, inner), true),
        None => (p, false),
    };
    let axis_is_last = |axis: usize| Some(axis + 1) == rank(graph, softmax);
    let scores =
        made_by(graph, softmax, |op| matches!(op, Op::Softmax { axis } if axis_is_last(*axis)))?.input(0)?;
    let start = Walk { outer: 1.0, softcap: None, masks: vec![], widest: scores };
    let (walk, q, kt) = descend(graph, scores, start, 12)?;
    let ((q, q_scale), (kt, k_scale)) = (unscaled(graph, q), unscaled(graph, kt));
    Some(Found {
        q,
        kt,
        v,
        scale: walk.outer * q_scale * k_scale,
        softcap: walk.softcap,
        safe,
        masks: walk.masks,
        widest: walk.widest,
    })
}

/// The softmax behind `Where(IsNaN(p), 0, p)`.
fn unsafed(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let node = made_by(graph, v, |op| matches!(op, Op::Where))?;
    let (nan, zero, p) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let of = unary(graph, nan, Unary::IsNan)?;
    (uniform(graph, zero) == Some(0.0) && behind_casts(graph, of) == behind_casts(graph, p)).then_some(p)
}

/// Through Casts between floats and Reshapes that leave the last two axes as they are.
fn behind_casts_and_reshapes(graph: &Graph, v: ValueId) -> ValueId {
    let v = behind_casts(graph, v);
    match regrouped(graph, v) {
        Some(x) => behind_casts_and_reshapes(graph, x),
        None => v,
    }
}

/// The operand of a Reshape that leaves the last two axes as they are.
fn regrouped(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let views = |op: &Op| matches!(op, Op::Reshape { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. });
    let x = made_by(graph, v, views)?.input(0)?;
    let (from, to) = (graph.shape(x)?, graph.shape(v)?);
    let last = |s: &[Dim]| s.len().checked_sub(2).map(|i| s[i..].to_vec());
    (last(from)? == last(to)?).then_some(x)
}

/// What was met between the softmax and the scores.
#[derive(Clone)]
struct Walk {
    /// Factor on everything below.
    outer: f64,
    softcap: Option<f64>,
    masks: Vec<Mask>,
    widest: ValueId,
}

/// Follows the scores down to the MatMul that makes them.
fn descend(graph: &Graph, v: ValueId, mut walk: Walk, depth: usize) -> Option<(Walk, ValueId, ValueId)> {
    let depth = depth.checked_sub(1)?;
    let v = behind_casts(graph, v);
    if rank(graph, v)? > rank(graph, walk.widest)? {
        walk.widest = v;
    }
    if let Some((q, kt)) = matmul(graph, v) {
        return Some((walk, q, kt));
    }
    if let Some(x) = regrouped(graph, v) {
        return descend(graph, x, walk, depth);
    }
    if let Some(u) = unary(graph, v, Unary::Tanh) {
        if walk.softcap.is_some() || walk.outer <= 0.0 {
            return None;
        }
        // outer · tanh(u) is c · tanh(S / c) with c = outer and S = outer · u.
        walk.softcap = Some(walk.outer);
        return descend(graph, u, walk, depth);
    }
    if let Some((x, factor)) = scaled(graph, v) {
        walk.outer *= factor;
        return descend(graph, x, walk, depth);
    }
    if walk.softcap.is_some() {
        return None;
    }
    let frame = graph.shape(v)?.to_vec();
    if let Some((x, what)) = selected(graph, v, walk.outer) {
        walk.masks.push(Mask { what, frame });
        return descend(graph, x, walk, depth);
    }
    either(graph, v, Binary::Add, |x, mask| {
        let mut walk = walk.clone();
        walk.masks.push(Mask { what: Masking::Added(mask, walk.outer), frame: frame.clone() });
        descend(graph, x, walk, depth)
    })
}

/// The value as a constant factor and the rest.
pub(super) fn scaled(graph: &Graph, v: ValueId) -> Option<(ValueId, f64)> {
    let product = either(graph, v, Binary::Mul, |x, c| Some((x, uniform(graph, c)?)));
    let found = product
        .or_else(|| binary(graph, v, Binary::Div).and_then(|(x, c)| Some((x, 1.0 / uniform(graph, c)?))))?;
    (found.1.is_finite() && found.1 != 0.0 && graph.shape(found.0) == graph.shape(v)).then_some(found)
}

fn unscaled(graph: &Graph, mut v: ValueId) -> (ValueId, f64) {
    let mut scale = 1.0;
    while let Some((x, factor)) = scaled(graph, v) {
        scale *= factor;
        v = x;
    }
    (v, scale)
}

fn selected(graph: &Graph, v: ValueId, outer: f64) -> Option<(ValueId, Masking)> {
    let node = made_by(graph, v, |op| matches!(op, Op::Where))?;
    let (condition, then, otherwise) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let excluded = |v| uniform(graph, v).map(|x| x * outer).filter(|x| *x <= EXCLUDED);
    let (x, keep, fill) = match (excluded(then), excluded(otherwise)) {
        (None, Some(fill)) => (then, true, fill),
        (Some(fill), None) => (otherwise, false, fill),
        _ => return None,
    };
    Some((x, Masking::Selected { condition, keep, fill }))
}

/// Why the types are not those of attention.
fn fits(graph: &Graph, id: NodeId, found: &Found) -> Result<(), String> {
    let Some(result) = graph.node(id).and_then(|n| n.outputs.first().copied()) else {
        return Err("no result".into());
    };
    let ranks = [found.q, found.kt, found.v].map(|v| rank(graph, v).unwrap_or(0));
    if ranks.iter().any(|r| *r < 3 || *r != ranks[0]) {
        return Err(format!("q, k and v have {ranks:?} axes"));
    }
    let wanted = dtype(graph, result);
    for (v, role) in [(found.q, "q"), (found.kt, "k"), (found.v, "v")] {
        let narrow = dtype(graph, behind_casts(graph, v));
        if dtype(graph, v) != wanted && narrow != wanted {
            return Err(format!("{role} is {:?}, the result {wanted:?}", dtype(graph, v)));
        }
    }
    let scores = graph.shape(found.widest).ok_or("scores of unknown shape")?;
    for mask in &found.masks {
        let shape = graph.shape(mask.what.operand()).ok_or("a mask of unknown shape")?;
        if reframed(shape, &mask.frame, scores).is_none() {
            return Err(format!("a mask of shape {shape:?} does not fit scores of shape {scores:?}"));
        }
    }
    let lead = |v| graph.shape(v).and_then(|s| s.get(..s.len().checked_sub(3)?)).map(<[Dim]>::to_vec);
    if lead(found.q) != lead(found.kt) || lead(found.q) != lead(found.v) {
        return Err("the leading axes of q, k and v differ".into());
    }
    let heads = |v| graph.shape(v).and_then(|s| s.get(s.len().checked_sub(3)?)).cloned();
    // One head of keys and values broadcasts to all queries.
    let shared = heads(found.kt) == Some(Dim::ONE);
    if heads(found.kt) != heads(found.v) || (heads(found.q) != heads(found.kt) && !shared) {
        return Err("the heads of q, k and v differ".into());
    }
    Ok(())
}

fn built(graph: &mut Graph, id: NodeId, found: Found) -> Result<ValueId, GraphError> {
    let result = graph.node(id).and_then(|n| n.outputs.first().copied());
    let name = graph.node(id).map(|n| n.name.clone()).unwrap_or_default();
    let result_type = result.and_then(|v| graph.ty(v).cloned());
    let wanted = result_type.as_ref().map(|t| t.dtype);
    let scores = graph.shape(found.widest).map(<[Dim]>::to_vec).unwrap_or_default();
    let narrow = |graph: &Graph, v| if dtype(graph, v) == wanted { v } else { behind_casts(graph, v) };
    let (q, kt, v) = (narrow(graph, found.q), narrow(graph, found.kt), narrow(graph, found.v));
    let k = swapped(graph, kt)?;
    let mut operands = vec![];
    for x in [q, k, v] {
        operands.push(Some(with_lead(graph, x, &scores)?));
    }
    let (mask, safe) = (combined(graph, &found.masks, &scores, wanted)?, found.safe);
    operands.extend(mask.map(Some));
    let op = Op::Attention(Attention {
        scale: found.scale as f32,
        causal: false,
        window: None,
        softcap: found.softcap.map(|c| c as f32),
        safe,
    });
    let node = graph.add_node(op, operands, 1, &name)?;
    let attended = graph.node(node).and_then(|n| n.outputs.first().copied()).unwrap_or(q);
    match result_type {
        Some(ty) if graph.ty(attended).is_some_and(|t| t.rank() != ty.rank()) => {
            let target = graph.dims(&ty.shape)?;
            graph.add(Op::Reshape { allow_zero: true }, &[attended, target])
        }
        _ => Ok(attended),
    }
}

/// `x` with its last two axes exchanged; a Transpose below is composed with.
fn swapped(graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
    let Some(n) = rank(graph, v).filter(|n| *n >= 2) else { return Ok(v) };
    let mut perm: Vec<usize> = (0..n).collect();
    perm.swap(n - 2, n - 1);
    graph.add(Op::Transpose { perm }, &[v])
}

/// `x [b·h, ..]` as `[b, h, ..]` where the scores have those axes.
fn with_lead(graph: &mut Graph, x: ValueId, scores: &[Dim]) -> Result<ValueId, GraphError> {
    let Some(shape) = graph.shape(x).filter(|s| s.len() < scores.len() && s.len() >= 2) else {
        return Ok(x);
    };
    let rows = &shape[shape.len() - 2..];
    let split: Vec<Dim> = scores[..scores.len() - 2].iter().chain(rows).cloned().collect();
    let target = graph.dims(&split)?;
    graph.add(Op::Reshape { allow_zero: true }, &[x, target])
}

/// All masks as one operand: bool when that says the same, else additive.
fn combined(
    graph: &mut Graph,
    masks: &[Mask],
    scores: &[Dim],
    wanted: Option<DType>,
) -> Result<Option<ValueId>, GraphError> {
    let hard = |m: &Mask| matches!(m.what, Masking::Selected { fill, .. } if fill == f64::NEG_INFINITY);
    let all_hard = masks.iter().all(hard);
    let mut out: Option<ValueId> = None;
    for mask in masks {
        let next = match mask.what {
            Masking::Selected { condition, keep, .. } if all_hard && keep => condition,
            Masking::Selected { condition, .. } if all_hard => {
                graph.add(Op::Unary(Unary::Not), &[condition])?
            }
            Masking::Selected { condition, keep, fill } => {
                // A fill that is finite stays so: f16 would make f32's lowest number -inf.
                let narrow = fill.is_infinite() || fill >= f64::from(half::f16::MIN);
                let dtype = wanted.filter(|_| narrow).unwrap_or(DType::F32);
                let (zero, fill) = (graph.float_scalar(dtype, 0.0), graph.float_scalar(dtype, fill));
                let (then, otherwise) = if keep { (zero, fill) } else { (fill, zero) };
                graph.add(Op::Where, &[condition, then, otherwise])?
            }
            Masking::Added(v, factor) => times(graph, v, factor)?,
        };
        let next = reframe(graph, next, &mask.frame, scores)?;
        out = Some(match out {
            None => next,
            Some(before) if all_hard => graph.add(Op::Binary(Binary::And), &[before, next])?,
            Some(before) => {
                let (before, next) = alike(graph, before, next)?;
                graph.add(Op::Binary(Binary::Add), &[before, next])?
            }
        });
    }
    Ok(out)
}

fn times(graph: &mut Graph, v: ValueId, factor: f64) -> Result<ValueId, GraphError> {
    match dtype(graph, v) {
        Some(dtype) if factor != 1.0 => {
            let factor = graph.float_scalar(dtype, factor);
            graph.add(Op::Binary(Binary::Mul), &[v, factor])
        }
        _ => Ok(v),
    }
}

/// Two additive masks in the wider of their types.
fn alike(graph: &mut Graph, a: ValueId, b: ValueId) -> Result<(ValueId, ValueId), GraphError> {
    let wide = |graph: &Graph, v| dtype(graph, v).unwrap_or(DType::F32);
    let (x, y) = (wide(graph, a), wide(graph, b));
    if x == y {
        return Ok((a, b));
    }
    if x.size() >= y.size() {
        Ok((a, graph.add(Op::Cast { to: x }, &[b])?))
    } else {
        Ok((graph.add(Op::Cast { to: y }, &[a])?, b))
    }
}

#[cfg(test)]
mod tests;
