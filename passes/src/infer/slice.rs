//! Slices with known and symbolic bounds.

use super::content::{Small, known};
use super::context::{Context, axis_set, fail};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{Dim, Op};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    match op {
        Op::Slice { axes, steps } => Some(one(slice(cx, axes, steps))),
        _ => None,
    }
}

/// Bounds from here on mean "to the end": exporters write the largest i32 or i64.
const HUGE: i64 = i32::MAX as i64;

/// `x, starts, ends`.
fn slice(cx: &mut Context<'_, '_>, axes: &[usize], steps: &[i64]) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let bounds = [cx.required(1, "starts")?, cx.required(2, "ends")?];
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    axis_set(axes, ty.rank())?;
    if steps.len() != axes.len() {
        return fail(format!("{} steps for {} axes", steps.len(), axes.len()));
    }
    if let Some(i) = steps.iter().position(|s| *s == 0) {
        return fail(format!("the step of axis {} is 0", axes[i]));
    }
    for (bound, role) in bounds.iter().zip(["starts", "ends"]) {
        let length = bound.ty.and_then(|t| t.elements().known());
        if let Some(n) = length.filter(|n| usize::try_from(*n) != Ok(axes.len())) {
            return fail(format!("{n} {role} for {} axes", axes.len()));
        }
    }
    let [starts, ends] = bounds.map(|b| Small::of(&b));
    let mut shape = ty.shape.clone();
    for (i, (axis, step)) in axes.iter().zip(steps).enumerate() {
        let at = |bounds: &Option<Small>| bounds.as_ref().and_then(|b| b.data.get(i).cloned());
        let length = match (at(&starts), at(&ends)) {
            (Some(start), Some(end)) => length(&shape[*axis], &start, &end, *step),
            _ => None,
        };
        shape[*axis] = match length {
            Some(d) => d,
            None => cx.fresh(),
        };
    }
    let content = match (Small::of(&x), starts, known(&shape)) {
        (Some(x), Some(starts), Some(shape)) => slice_content(&x, &starts, axes, steps, shape),
        _ => None,
    };
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

/// Number of elements from `start` to `end` of an axis of size `n`; `None` when the signs of symbolic
/// bounds leave it open.
fn length(n: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
    if let (Some(n), Some(start), Some(end)) = (n.known(), start.known(), end.known()) {
        return Some(known_length(n, start, end, step).into());
    }
    if step < 0 {
        return reversed_length(n, start, end, step);
    }
    let (first, last) = (clamped(n, start)?, clamped(n, end)?);
    let span = match (last == *n, backwards(start)) {
        // The last `back` elements, or all.
        (true, Some(back)) => back.minimum(n),
        (true, None) => (n - start).maximum(&Dim::ZERO),
        _ => (&last - &first).maximum(&Dim::ZERO),
    };
    if step == 1 { Some(span) } else { (span + Dim::from(step - 1)).floor_div(&step.into()) }
}

/// How far before the end a negative bound lies. Symbols are taken to be at least 1: `-t` is before the
/// end, and `t - 1` is not.
fn backwards(bound: &Dim) -> Option<Dim> {
    match bound.known() {
        Some(b) => (b < 0).then(|| Dim::from(b.saturating_neg())),
        None if bound.is_non_negative_for_sizes() => None,
        None => Some(&Dim::ZERO - bound).filter(Dim::is_non_negative_for_sizes),
    }
}

/// A bound of a forward slice as a position in `0..=n`; `None` when its sign is open.
fn clamped(n: &Dim, bound: &Dim) -> Option<Dim> {
    if let Some(back) = backwards(bound) {
        return Some((n - &back).maximum(&Dim::ZERO));
    }
    match bound.known() {
        Some(b) if b >= HUGE => Some(n.clone()),
        Some(0) => Some(Dim::ZERO),
        Some(_) => Some(bound.minimum(n)),
        None => bound.is_non_negative_for_sizes().then(|| bound.minimum(n)),
    }
}

/// Backward slices of a symbolic axis: only those that take the whole axis.
fn reversed_length(n: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
    let from_last = start.known().is_some_and(|s| s == -1 || s >= HUGE);
    let past_first = end.known().is_some_and(|e| e <= -HUGE);
    if !(from_last && past_first) {
        return None;
    }
    let step = step.checked_neg()?;
    (n.clone() + Dim::from(step - 1)).floor_div(&step.into())
}

/// The first position that a slice of an axis of size `n` reads, before any test for emptiness.
fn first(n: i64, start: i64, step: i64) -> i64 {
    let start = if start < 0 { start.saturating_add(n) } else { start };
    if step > 0 { start.clamp(0, n.max(0)) } else { start.clamp(-1, n - 1) }
}

fn known_length(n: i64, start: i64, end: i64, step: i64) -> i64 {
    let n = n.max(0);
    let start = i128::from(if step < 0 && start < 0 && start < -n { -1 } else { first(n, start, step) });
    let end = if end < 0 { end.saturating_add(n) } else { end };
    let end = i128::from(if step > 0 { end.clamp(0, n) } else { end.clamp(-1, n - 1) });
    let step = i128::from(step);
    let count = if step > 0 { (end - start + step - 1) / step } else { (start - end - step - 1) / -step };
    i64::try_from(count.max(0)).unwrap_or(i64::MAX)
}

fn slice_content(
    x: &Small,
    starts: &Small,
    axes: &[usize],
    steps: &[i64],
    shape: Vec<usize>,
) -> Option<Small> {
    let mut map = vec![(0i64, 1i64); x.shape.len()];
    for ((axis, step), start) in axes.iter().zip(steps).zip(&starts.data) {
        let n = i64::try_from(x.shape[*axis]).ok()?;
        map[*axis] = (first(n, start.known()?, *step), *step);
    }
    Small::build(shape, |at| {
        let from = at.iter().zip(&map).map(|(i, (start, step))| {
            let i = i64::try_from(*i).ok()?;
            usize::try_from(start.checked_add(i.checked_mul(*step)?)?).ok()
        });
        x.get(&from.collect::<Option<Vec<_>>>()?).cloned()
    })
}
