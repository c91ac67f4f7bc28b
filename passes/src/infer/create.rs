//! Operators that make tensors from sizes.

use super::content::{Small, known};
use super::context::{Context, fail, same_dtype};
use super::{Answer, InferError, Inferred, Operand, one};
use crate::ir::{DType, Dim, Op, Tensor};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    let result = match op {
        Op::Trilu { .. } => trilu(cx),
        Op::ConstantOfShape { value } => constant_of_shape(cx, value),
        Op::Range => range(cx),
        Op::EyeLike { dtype, .. } => eye_like(cx, *dtype),
        Op::Dims { dims: d, scalar } => dims(d, *scalar),
        _ => return None,
    };
    Some(one(result))
}

/// `x, k?`: the type of `x`.
fn trilu(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    if ty.rank() < 2 {
        return fail(format!("x has rank {}, below 2", ty.rank()));
    }
    Ok(Inferred::new(ty.dtype, ty.shape.clone()))
}

/// A tensor of the shape that the operand names.
fn constant_of_shape(cx: &mut Context<'_, '_>, value: &Tensor) -> Result<Inferred, InferError> {
    if value.len() != 1 {
        return fail(format!("the value has {} elements, not 1", value.len()));
    }
    let Some(shape) = cx.sizes(0, "shape")? else { return Ok(Inferred::unknown()) };
    let filler = value.to_i64().and_then(|v| v.first().copied()).map(Dim::from);
    let content = match (filler, known(&shape)) {
        (Some(filler), Some(shape)) => Small::build(shape, |_| Some(filler.clone())),
        _ => None,
    };
    Ok(Inferred::new(value.dtype(), shape).with(content))
}

/// `start, limit, delta`.
fn range(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let (start, limit) = (cx.required(0, "start")?, cx.required(1, "limit")?);
    let delta = cx.required(2, "delta")?;
    for (operand, role) in [(&start, "start"), (&limit, "limit"), (&delta, "delta")] {
        if let Some(n) = operand.ty.and_then(|t| t.elements().known()).filter(|n| *n != 1) {
            return fail(format!("{role} has {n} elements, not 1"));
        }
    }
    let types = [start.ty, limit.ty, delta.ty];
    let Some(ty) = types.into_iter().flatten().next() else { return Ok(Inferred::unknown()) };
    for other in types.into_iter().flatten() {
        same_dtype(ty, other)?;
    }
    let element = |o: &Operand<'_>| Small::of(o).and_then(|s| s.only().cloned());
    let (start, delta, length) = match (element(&start), element(&limit), element(&delta)) {
        (Some(start), Some(limit), Some(delta)) => {
            let length = range_length(&start, &limit, &delta)?;
            (Some(start), Some(delta), length)
        }
        _ => (None, None, float_length(&start, &limit, &delta)?.map(Dim::from)),
    };
    let length = match length {
        Some(length) => length,
        None => cx.fresh(),
    };
    let content = match (start, delta, length.known_size()) {
        (Some(start), Some(delta), Some(n)) => {
            Small::build(vec![n], |at| Some(start.clone() + delta.clone() * at[0].into()))
        }
        _ => None,
    };
    Ok(Inferred::new(ty.dtype, vec![length]).with(content))
}

/// `max(0, ceil((limit - start) / delta))`; `None` when the sign of `delta` is open.
fn range_length(start: &Dim, limit: &Dim, delta: &Dim) -> Result<Option<Dim>, InferError> {
    let Some(step) = delta.known() else { return Ok(None) };
    if step == 0 {
        return fail("delta is 0");
    }
    let span = if step > 0 { limit.clone() - start.clone() } else { start.clone() - limit.clone() };
    let span = span.maximum(&Dim::ZERO);
    let step = step.saturating_abs();
    Ok(if step == 1 { Some(span) } else { (span + Dim::from(step - 1)).floor_div(&step.into()) })
}

/// Length of a range of constant floats.
fn float_length(
    start: &Operand<'_>,
    limit: &Operand<'_>,
    delta: &Operand<'_>,
) -> Result<Option<usize>, InferError> {
    let item = |o: &Operand<'_>| o.constant.filter(|t| t.dtype().is_float()).and_then(Tensor::item);
    let (Some(start), Some(limit), Some(delta)) = (item(start), item(limit), item(delta)) else {
        return Ok(None);
    };
    let n = ((limit - start) / delta).ceil();
    if !n.is_finite() || n > i32::MAX as f64 {
        return fail(format!("the range from {start} to {limit} by {delta} has no length"));
    }
    Ok(Some(n.max(0.0) as usize))
}

/// The shape of a matrix `x`.
fn eye_like(cx: &mut Context<'_, '_>, dtype: DType) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    if ty.rank() != 2 {
        return fail(format!("x has rank {}, not 2", ty.rank()));
    }
    Ok(Inferred::new(dtype, ty.shape.clone()))
}

/// A vector (or scalar) of expressions.
fn dims(dims: &[Dim], scalar: bool) -> Result<Inferred, InferError> {
    if scalar && dims.len() != 1 {
        return fail(format!("{} expressions for a scalar", dims.len()));
    }
    let shape = if scalar { vec![] } else { vec![dims.len()] };
    let sizes = shape.iter().map(|n| Dim::from(*n)).collect();
    Ok(Inferred::new(DType::I64, sizes).with(Some(Small { shape, data: dims.to_vec() })))
}
