//! Operators along an axis: reductions, scans, softmax, top-k.

use super::content::{Small, known};
use super::context::{Context, axis_set, axis_within, fail};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{DType, Dim, Op, Reduce};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    Some(match op {
        Op::Softmax { axis } | Op::LogSoftmax { axis } => one(softmax(cx, *axis)),
        Op::Reduce { op, axes, keepdims } => one(reduce(cx, *op, axes, *keepdims)),
        Op::ArgMax { axis, keepdims, .. } | Op::ArgMin { axis, keepdims, .. } => {
            one(arg(cx, *axis, *keepdims))
        }
        Op::CumSum { axis, exclusive, reverse } => one(cum_sum(cx, *axis, *exclusive, *reverse)),
        Op::TopK { axis, .. } => top_k(cx, *axis),
        _ => return None,
    })
}

/// The shape without the named axes, or with 1 in their place.
fn reduced(shape: &[Dim], named: &[bool], keepdims: bool) -> Vec<Dim> {
    let sizes = shape.iter().zip(named);
    if keepdims {
        sizes.map(|(d, r)| if *r { Dim::ONE } else { d.clone() }).collect()
    } else {
        sizes.filter(|(_, r)| !**r).map(|(d, _)| d.clone()).collect()
    }
}

fn reduce(
    cx: &mut Context<'_, '_>,
    op: Reduce,
    axes: &[usize],
    keepdims: bool,
) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    let named = axis_set(axes, ty.rank())?;
    let shape = reduced(&ty.shape, &named, keepdims);
    let content = match (Small::of(&x), known(&reduced(&ty.shape, &named, true))) {
        (Some(x), Some(kept)) if ty.dtype.is_int() => {
            reduce_content(&x, op, &named, kept).and_then(|c| c.reshaped(known(&shape)))
        }
        _ => None,
    };
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

/// Folds the elements that share a position outside the named axes; `kept` has 1 on the named ones.
fn reduce_content(x: &Small, op: Reduce, named: &[bool], kept: Vec<usize>) -> Option<Small> {
    let step: fn(Dim, &Dim) -> Dim = match op {
        Reduce::Sum => |a, b| a + b.clone(),
        Reduce::Prod => |a, b| a * b.clone(),
        Reduce::Max => |a, b| a.maximum(b),
        Reduce::Min => |a, b| a.minimum(b),
        _ => return None,
    };
    let empty = match op {
        Reduce::Sum => Some(Dim::ZERO),
        Reduce::Prod => Some(Dim::ONE),
        _ => None,
    };
    let mut results: Vec<Option<Dim>> = vec![empty; super::content::count(&kept)?];
    Small::build(x.shape.clone(), |at| {
        let mut index = 0;
        for ((i, r), n) in at.iter().zip(named).zip(&kept) {
            index = index * n + if *r { 0 } else { *i };
        }
        let d = x.get(at)?;
        let slot = results.get_mut(index)?;
        *slot = Some(match slot.take() {
            None => d.clone(),
            Some(sum) => step(sum, d),
        });
        Some(Dim::ZERO)
    })?;
    Some(Small { shape: kept, data: results.into_iter().collect::<Option<_>>()? })
}

/// Index of the largest or smallest element along an axis.
fn arg(cx: &mut Context<'_, '_>, axis: usize, keepdims: bool) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    let named = axis_set(&[axis], ty.rank())?;
    Ok(Inferred::new(DType::I64, reduced(&ty.shape, &named, keepdims)))
}

/// Softmax and its logarithm.
fn softmax(cx: &mut Context<'_, '_>, axis: usize) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    axis_within(axis, ty.rank())?;
    Ok(Inferred::new(ty.dtype, ty.shape.clone()))
}

fn cum_sum(
    cx: &mut Context<'_, '_>,
    axis: usize,
    exclusive: bool,
    reverse: bool,
) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    axis_within(axis, ty.rank())?;
    let content = Small::of(&x).filter(|_| ty.dtype.is_int()).and_then(|x| {
        let length = x.shape[axis];
        Small::build(x.shape.clone(), |at| {
            let own = at[axis];
            let mut range = if reverse { own..length } else { 0..own + 1 };
            if exclusive {
                range = if reverse { own + 1..length } else { 0..own };
            }
            let mut sum = Dim::ZERO;
            let mut from = at.to_vec();
            for i in range {
                from[axis] = i;
                sum = sum + x.get(&from)?.clone();
            }
            Some(sum)
        })
    });
    Ok(Inferred::new(ty.dtype, ty.shape.clone()).with(content))
}

/// `x, k` → values and indices.
fn top_k(cx: &mut Context<'_, '_>, axis: usize) -> Result<Vec<Inferred>, InferError> {
    let (x, k) = (cx.ty(0, "x")?, cx.required(1, "k")?);
    let Some(ty) = x else { return Ok(vec![Inferred::unknown(), Inferred::unknown()]) };
    axis_within(axis, ty.rank())?;
    let k = match Small::of(&k) {
        Some(k) => match k.only() {
            Some(k) => k.clone(),
            None => return fail(format!("k has {} elements, not 1", k.data.len())),
        },
        None => cx.fresh(),
    };
    let mut shape = ty.shape.clone();
    if let (Some(k), Some(n)) = (k.known(), shape[axis].known())
        && k > n
    {
        return fail(format!("k is {k} but axis {axis} has the size {n}"));
    }
    shape[axis] = k;
    Ok(vec![Inferred::new(ty.dtype, shape.clone()), Inferred::new(DType::I64, shape)])
}
