//! Tensors made from shapes and sizes.

use super::number::{Number, load, same_dtype, store, with_number};
use super::shape::count;
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{DType, Dim, Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Dims { dims: d, scalar } => dims(d, *scalar),
        Op::Shape { start, end } => shape(o.get(0)?, *start, *end),
        Op::Size => size(o.get(0)?),
        Op::ConstantOfShape { value } => filled(value, o.sizes(0)?),
        Op::Range => range(o.get(0)?, o.get(1)?, o.get(2)?),
        Op::EyeLike { dtype, k } => eye_like(o.get(0)?, *dtype, *k),
        _ => return Ok(None),
    };
    result.map(one)
}

/// An int64 tensor of known expressions.
fn dims(dims: &[Dim], scalar: bool) -> Result<Tensor> {
    let known = |d: &Dim| d.known().ok_or_else(|| bad(format!("the size {d} is not known")));
    let values: Vec<i64> = dims.iter().map(known).collect::<Result<_>>()?;
    let shape = if scalar { vec![] } else { vec![values.len()] };
    Ok(Tensor::from_vec(shape, values)?)
}

/// Sizes `start..end` of `x`'s axes.
fn shape(x: &Tensor, start: usize, end: usize) -> Result<Tensor> {
    let part = x.shape().get(start..end.max(start));
    let part = part.ok_or_else(|| bad(format!("axes {start}..{end} are outside {:?}", x.shape())))?;
    Ok(Tensor::ints(&part.iter().map(|d| *d as i64).collect::<Vec<_>>()))
}

/// The number of elements of `x`.
fn size(x: &Tensor) -> Result<Tensor> {
    Ok(Tensor::scalar(x.len() as i64))
}

/// The one element of `value` everywhere.
fn filled(value: &Tensor, shape: Vec<usize>) -> Result<Tensor> {
    if value.len() != 1 {
        return Err(bad(format!("ConstantOfShape takes one element, found {value:?}")));
    }
    let n = count(value.dtype(), &shape)?;
    Ok(Tensor::from_bytes(value.dtype(), shape, value.bytes().repeat(n).into())?)
}

/// `start, start + delta, ..` below `limit` (above for a negative `delta`).
fn range(start: &Tensor, limit: &Tensor, delta: &Tensor) -> Result<Tensor> {
    same_dtype(start, limit)?;
    same_dtype(start, delta)?;
    with_number!(start.dtype(), "Range", T => {
        let one = |t: &Tensor| match load::<T>(t)?[..] {
            [x] => Ok(x),
            _ => Err(bad(format!("Range takes scalars, found shape {:?}", t.shape()))),
        };
        let (start_at, limit_at, step) = (one(start)?, one(limit)?, one(delta)?);
        let steps = match (start.to_i64(), limit.to_i64(), delta.to_i64()) {
            (Some(a), Some(b), Some(d)) => int_steps(a[0].into(), b[0].into(), d[0].into()),
            _ => Some(((limit_at.as_f64() - start_at.as_f64()) / step.as_f64()).ceil().max(0.0)),
        };
        let steps = steps.filter(|n| n.is_finite() && step != T::ZERO);
        let steps = steps.ok_or_else(|| bad(format!("Range of {start:?}, {limit:?}, {delta:?}")))?;
        let n = count(start.dtype(), &[steps as usize])?;
        let data: Vec<T> = (0..n).map(|i| start_at.plus(T::of_f64(i as f64).times(step))).collect();
        store(start.dtype(), vec![n], data)
    })
}

fn int_steps(start: i128, limit: i128, delta: i128) -> Option<f64> {
    let span = limit - start;
    let steps = span.checked_div(delta)? + i128::from(span.checked_rem(delta)? != 0);
    Some(if (span > 0) == (delta > 0) { steps.max(0) as f64 } else { 0.0 })
}

/// Ones on the `k`-th diagonal of a matrix shaped like `x`.
fn eye_like(x: &Tensor, dtype: DType, k: i64) -> Result<Tensor> {
    let [rows, cols] = *x.shape() else {
        return Err(bad(format!("EyeLike needs a matrix, found {:?}", x.shape())));
    };
    let mut flags = vec![0u8; count(DType::U8, &[rows, cols])?];
    count(dtype, &[rows, cols])?;
    for row in 0..rows {
        let col = (row as i64).saturating_add(k);
        if let Some(col) = usize::try_from(col).ok().filter(|c| *c < cols) {
            flags[row * cols + col] = 1;
        }
    }
    super::cast::cast(&Tensor::from_vec(vec![rows, cols], flags)?, dtype)
}
