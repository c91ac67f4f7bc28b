//! Operators that rearrange, join and measure.

use super::content::{Small, known};
use super::context::{
    Context, MAX_RANK, agree, axis_set, axis_within, broadcast, broadcasts_to, fail, same_dtype,
};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{DType, Dim, Op};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    let result = match op {
        Op::Reshape { allow_zero } => reshape(cx, *allow_zero),
        Op::Transpose { perm } => transpose(cx, perm),
        Op::Squeeze { axes } => squeeze(cx, axes),
        Op::Unsqueeze { axes } => unsqueeze(cx, axes),
        Op::Expand => expand(cx),
        Op::Concat { axis } => concat(cx, *axis),
        Op::Tile => tile(cx),
        Op::Pad { .. } => pad(cx),
        Op::Shape { start, end } => shape(cx, *start, *end),
        Op::Size => size(cx),
        _ => return None,
    };
    Some(one(result))
}

/// `x, shape`. A known -1 is the rest, a known 0 copies unless `allow_zero`; a symbolic element is a
/// size.
fn reshape(cx: &mut Context<'_, '_>, allow_zero: bool) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let target = cx.required(1, "shape")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    let shape = match (Small::of(&target), cx.sizes(1, "shape")?) {
        (_, None) => return Ok(Inferred::unknown()),
        (Some(target), _) => resolve(&ty.shape, &target.data, allow_zero)?,
        // One axis takes everything, whatever the shape says.
        (None, Some(one)) if one.len() == 1 => vec![ty.elements()],
        (None, Some(fresh)) => fresh,
    };
    let content = Small::of(&x).and_then(|x| x.reshaped(known(&shape)));
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

fn resolve(from: &[Dim], target: &[Dim], allow_zero: bool) -> Result<Vec<Dim>, InferError> {
    let mut shape = Vec::with_capacity(target.len());
    let mut rest = None;
    for (i, d) in target.iter().enumerate() {
        shape.push(match d.known() {
            Some(0) if !allow_zero => match from.get(i) {
                Some(d) => d.clone(),
                None => return fail(format!("size 0 at axis {i} copies from rank {}", from.len())),
            },
            Some(-1) if rest.replace(i).is_some() => return fail("the shape has two sizes of -1"),
            Some(-1) => Dim::ONE,
            _ => d.clone(),
        });
    }
    let (total, named) = (Dim::product(from), Dim::product(&shape));
    match rest {
        Some(i) => shape[i] = remaining(from, &shape, &total, &named)?,
        None => {
            if let (Some(a), Some(b)) = (total.known(), named.known())
                && a != b
            {
                return fail(format!("{a} elements {from:?} do not fill {b} {shape:?}"));
            }
        }
    }
    Ok(shape)
}

/// The size that makes `named` times it `total`.
fn remaining(from: &[Dim], shape: &[Dim], total: &Dim, named: &Dim) -> Result<Dim, InferError> {
    if let Some(exact) = total.div_exact(named) {
        return Ok(exact);
    }
    if let (Some(a), Some(b)) = (total.known(), named.known())
        && a.checked_rem(b) != Some(0)
    {
        return fail(format!("{a} elements {from:?} are no multiple of {b} {shape:?}"));
    }
    match total.floor_div(named) {
        Some(d) => Ok(d),
        None => fail(format!("the size for -1 in {shape:?} is not determined")),
    }
}

fn transpose(cx: &mut Context<'_, '_>, perm: &[usize]) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    if perm.len() != ty.rank() || axis_set(perm, ty.rank()).is_err() {
        return fail(format!("{perm:?} is no permutation of {} axes", ty.rank()));
    }
    let shape = perm.iter().map(|p| ty.shape[*p].clone()).collect();
    let content = Small::of(&x).and_then(|x| {
        let shape = perm.iter().map(|p| x.shape[*p]).collect();
        Small::build(shape, |at| {
            let mut from = vec![0; at.len()];
            for (i, p) in at.iter().zip(perm) {
                from[*p] = *i;
            }
            x.get(&from).cloned()
        })
    });
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

fn squeeze(cx: &mut Context<'_, '_>, axes: &[usize]) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    let named = axis_set(axes, ty.rank())?;
    let mut shape = Vec::with_capacity(ty.rank());
    for ((axis, d), removed) in ty.shape.iter().enumerate().zip(named) {
        match d.known() {
            Some(n) if removed && n != 1 => return fail(format!("axis {axis} has the size {n}, not 1")),
            _ if removed => {}
            _ => shape.push(d.clone()),
        }
    }
    let content = Small::of(&x).and_then(|x| x.reshaped(known(&shape)));
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

fn unsqueeze(cx: &mut Context<'_, '_>, axes: &[usize]) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    let rank = ty.rank() + axes.len();
    if rank > MAX_RANK.max(ty.rank()) {
        return fail(format!("the result would have rank {rank}"));
    }
    let mut old = ty.shape.iter();
    let shape: Vec<Dim> = axis_set(axes, rank)?
        .into_iter()
        .filter_map(|new| if new { Some(Dim::ONE) } else { old.next().cloned() })
        .collect();
    let content = Small::of(&x).and_then(|x| x.reshaped(known(&shape)));
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

/// `x, shape`; two-way broadcasting.
fn expand(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let known_target = Small::of(&cx.required(1, "shape")?).is_some();
    let (Some(ty), Some(target)) = (x.ty, cx.sizes(1, "shape")?) else { return Ok(Inferred::unknown()) };
    if let Some(d) = target.iter().find(|d| d.known().is_some_and(|n| n < 0)) {
        return fail(format!("the shape names the size {d}"));
    }
    let shape = if known_target { broadcast(&ty.shape, &target)? } else { expand_unknown(&ty.shape, target) };
    let content = match (Small::of(&x), known(&shape)) {
        (Some(x), Some(shape)) => Small::build(shape, |at| x.broadcast_get(at).cloned()),
        _ => None,
    };
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

/// Only sizes above 1 survive an unknown target.
fn expand_unknown(from: &[Dim], fresh: Vec<Dim>) -> Vec<Dim> {
    let mut shape = from.to_vec();
    let missing = fresh.len().saturating_sub(from.len());
    shape.splice(0..0, fresh[..missing].iter().cloned());
    let targets = shape.len() - fresh.len();
    for (d, new) in shape[targets..].iter_mut().zip(fresh) {
        if d.known().is_none_or(|n| n == 1) {
            *d = new;
        }
    }
    shape
}

fn concat(cx: &mut Context<'_, '_>, axis: usize) -> Result<Inferred, InferError> {
    let mut operands = Vec::with_capacity(cx.len());
    for i in 0..cx.len() {
        operands.push(cx.required(i, "part")?);
    }
    if operands.is_empty() {
        return fail("operand 0 (part) is missing");
    }
    let Some(types) = operands.iter().map(|o| o.ty).collect::<Option<Vec<_>>>() else {
        return Ok(Inferred::unknown());
    };
    let Some((first, others)) = types.split_first() else { return Ok(Inferred::unknown()) };
    axis_within(axis, first.rank())?;
    let mut shape = first.shape.clone();
    for ty in others {
        same_dtype(first, ty)?;
        if ty.rank() != first.rank() {
            return fail(format!("parts have the ranks {} and {}", first.rank(), ty.rank()));
        }
        for (i, (sum, d)) in shape.iter_mut().zip(&ty.shape).enumerate() {
            *sum = if i == axis { sum.clone() + d.clone() } else { agree(sum, d, &format!("axis {i}"))? };
        }
    }
    let content = known(&shape).and_then(|shape| {
        let parts = operands.iter().map(Small::of).collect::<Option<Vec<_>>>()?;
        concat_content(&parts, axis, shape)
    });
    Ok(Inferred::new(first.dtype, shape).with(content))
}

fn concat_content(parts: &[Small], axis: usize, shape: Vec<usize>) -> Option<Small> {
    Small::build(shape, |at| {
        let mut from = at.to_vec();
        for part in parts {
            let size = part.shape.get(axis)?;
            if from[axis] < *size {
                return part.get(&from).cloned();
            }
            from[axis] -= size;
        }
        None
    })
}

/// `x, repeats`.
fn tile(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let (x, repeats) = (cx.required(0, "x")?, cx.required(1, "repeats")?);
    let (Some(ty), Some(fresh)) = (x.ty, cx.sizes(1, "repeats")?) else { return Ok(Inferred::unknown()) };
    if fresh.len() != ty.rank() {
        return fail(format!("{} repeats for rank {}", fresh.len(), ty.rank()));
    }
    let Some(repeats) = Small::of(&repeats) else { return Ok(Inferred::new(ty.dtype, fresh)) };
    if let Some(n) = repeats.data.iter().filter_map(Dim::known).find(|n| *n < 0) {
        return fail(format!("an axis is repeated {n} times"));
    }
    let shape: Vec<Dim> = ty.shape.iter().zip(&repeats.data).map(|(d, r)| d.clone() * r.clone()).collect();
    let content = match (Small::of(&x), known(&shape)) {
        (Some(x), Some(shape)) => Small::build(shape, |at| {
            let from: Vec<usize> = at.iter().zip(&x.shape).map(|(i, n)| i % (*n).max(1)).collect();
            x.get(&from).cloned()
        }),
        _ => None,
    };
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

/// `x, pads, value?`; pads of all axes: begins, then ends; a negative pad crops.
fn pad(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let (x, pads) = (cx.ty(0, "x")?, cx.required(1, "pads")?);
    let Some(ty) = x else { return Ok(Inferred::unknown()) };
    if let Some(value) = cx.optional(2).and_then(|v| v.ty) {
        same_dtype(ty, value)?;
        broadcasts_to(&value.shape, &[Dim::ONE], "value")?;
    }
    let length = pads.ty.and_then(|t| t.elements().known_size());
    if let Some(n) = length
        && n != 2 * ty.rank()
    {
        return fail(format!("{n} pads for rank {}", ty.rank()));
    }
    let shape = match Small::of(&pads) {
        Some(pads) => {
            let (begins, ends) = pads.data.split_at(ty.rank());
            let sides = begins.iter().zip(ends);
            ty.shape.iter().zip(sides).map(|(d, (b, e))| d.clone() + b.clone() + e.clone()).collect()
        }
        None => (0..ty.rank()).map(|_| cx.fresh()).collect(),
    };
    Ok(Inferred::new(ty.dtype, shape))
}

/// Sizes `start..end` of `x`.
fn shape(cx: &mut Context<'_, '_>, start: usize, end: usize) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    let Some(sizes) = ty.shape.get(start..end) else {
        return fail(format!("sizes {start}..{end} are outside rank {}", ty.rank()));
    };
    let content = Small { shape: vec![sizes.len()], data: sizes.to_vec() };
    Ok(Inferred::new(DType::I64, vec![sizes.len().into()]).with(Some(content)))
}

/// Number of elements.
fn size(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    let content = Small { shape: vec![], data: vec![ty.elements()] };
    Ok(Inferred::new(DType::I64, vec![]).with(Some(content)))
}
