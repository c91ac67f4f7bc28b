//! Quantisation.

use super::content::known;
use super::context::{Context, axis_set, broadcast, fail};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{Blocks, DType, Dim, Op, Type};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    Some(match op {
        Op::Quantize { to, blocks } => one(quantize(cx, *to, *blocks)),
        Op::Dequantize { blocks } => one(dequantize(cx, *blocks)),
        Op::DynamicQuantize { axes } => dynamic(cx, axes),
        _ => return None,
    })
}

/// `x, scale, zero point?` → integers.
fn quantize(cx: &mut Context<'_, '_>, to: DType, blocks: Option<Blocks>) -> Result<Inferred, InferError> {
    if to.range().is_none() || to.size() > 2 {
        return fail(format!("{to} is no type to quantise to"));
    }
    if let Some(x) = cx.ty(0, "x")?.filter(|x| !x.dtype.is_float()) {
        return fail(format!("x is {}, not a float", x.dtype));
    }
    check_zero_point(cx, to)?;
    let Some(shape) = extent(cx, blocks)? else { return Ok(Inferred::unknown()) };
    Ok(Inferred::new(to, shape))
}

/// `x, scale, zero point?` → floats of the scale's type.
fn dequantize(cx: &mut Context<'_, '_>, blocks: Option<Blocks>) -> Result<Inferred, InferError> {
    if let Some(x) = cx.ty(0, "x")? {
        if x.dtype.range().is_none() || x.dtype == DType::U32 {
            return fail(format!("x is {}, which is no quantised type", x.dtype));
        }
        check_zero_point(cx, x.dtype)?;
    }
    let (Some(shape), Some(scale)) = (extent(cx, blocks)?, cx.ty(1, "scale")?) else {
        return Ok(Inferred::unknown());
    };
    Ok(Inferred::new(scale.dtype, shape))
}

fn check_zero_point(cx: &Context<'_, '_>, dtype: DType) -> Result<(), InferError> {
    match cx.optional(2).and_then(|z| z.ty) {
        Some(zero) if zero.dtype != dtype => {
            fail(format!("the zero point is {}, the integers are {dtype}", zero.dtype))
        }
        _ => Ok(()),
    }
}

/// The shape to which x, scale and zero point broadcast.
fn extent(cx: &Context<'_, '_>, blocks: Option<Blocks>) -> Result<Option<Vec<Dim>>, InferError> {
    let (x, scale) = (cx.ty(0, "x")?, cx.ty(1, "scale")?);
    if let Some(scale) = scale.filter(|s| !s.dtype.is_float()) {
        return fail(format!("the scale is {}, not a float", scale.dtype));
    }
    let (Some(x), Some(scale)) = (x, scale) else { return Ok(None) };
    let mut shape = x.shape.clone();
    for parameter in [Some(scale), cx.optional(2).and_then(|z| z.ty)].into_iter().flatten() {
        let whole = match blocks {
            Some(blocks) => spread(x, parameter, blocks)?,
            None => parameter.shape.clone(),
        };
        shape = broadcast(&shape, &whole)?;
    }
    Ok(Some(shape))
}

/// The shape of a parameter with every entry as often as its block is long.
fn spread(x: &Type, parameter: &Type, blocks: Blocks) -> Result<Vec<Dim>, InferError> {
    if parameter.shape.iter().all(|d| *d == Dim::ONE) {
        return Ok(parameter.shape.clone());
    }
    let mut shape = parameter.shape.clone();
    let (Some(size), Some(count)) = (x.shape.get(blocks.axis), shape.get(blocks.axis).cloned()) else {
        return fail(format!("axis {} of {x} by {parameter}", blocks.axis));
    };
    if parameter.rank() != x.rank() || blocks.size == 0 {
        return fail(format!("blocks of {} of {x} by {parameter}", blocks.size));
    }
    if let Some([size, count]) = known(&[size.clone(), count]).as_deref()
        && *count != 1
        && size.div_ceil(blocks.size) != *count
    {
        return fail(format!("{count} blocks of {} for an axis of {size}", blocks.size));
    }
    shape[blocks.axis] = size.clone();
    Ok(shape)
}

/// `x` → integers, scale, zero point.
fn dynamic(cx: &mut Context<'_, '_>, axes: &[usize]) -> Result<Vec<Inferred>, InferError> {
    let Some(x) = cx.ty(0, "x")? else { return Ok(vec![Inferred::unknown(); 3]) };
    if !x.dtype.is_float() {
        return fail(format!("x is {}, not a float", x.dtype));
    }
    let reduced = axis_set(axes, x.rank())?;
    let kept: Vec<Dim> =
        x.shape.iter().zip(&reduced).filter(|(_, gone)| !**gone).map(|(d, _)| d.clone()).collect();
    Ok(vec![
        Inferred::new(DType::U8, x.shape.clone()),
        Inferred::new(x.dtype, kept.clone()),
        Inferred::new(DType::U8, kept),
    ])
}
