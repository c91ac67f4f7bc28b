//! Operators that read elements at positions given by a tensor.

use super::movement::take;
use super::shape::{Walk, check_axis, count, product, strides, wrap_index};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{DType, Op, Tensor};
use crate::memory::room;

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Gather { axis } => gather(o.get(0)?, o.get(1)?, *axis),
        Op::GatherElements { axis } => gather_elements(o.get(0)?, o.get(1)?, *axis),
        Op::GatherNd { batch_dims } => gather_nd(o.get(0)?, o.get(1)?, *batch_dims),
        Op::NonZero => non_zero(o.get(0)?),
        Op::OneHot { axis } => one_hot(o.get(0)?, o.get(1)?, o.get(2)?, *axis),
        _ => return Ok(None),
    };
    result.map(one)
}

/// The elements of an index tensor.
fn indices_of(t: &Tensor) -> Result<Vec<i64>> {
    t.to_i64().ok_or_else(|| bad(format!("indices must be integers, found {}", t.dtype())))
}

/// `x[.., indices, ..]` at `axis`.
pub(super) fn gather(x: &Tensor, indices: &Tensor, axis: usize) -> Result<Tensor> {
    check_axis(axis, x.shape())?;
    let size = x.shape()[axis];
    let at: Vec<usize> =
        indices_of(indices)?.into_iter().map(|i| wrap_index(i, size, axis)).collect::<Result<_>>()?;
    let mut shape = x.shape().to_vec();
    shape.splice(axis..=axis, indices.shape().iter().copied());
    count(x.dtype(), &shape)?;
    Ok(Tensor::from_bytes(x.dtype(), shape, take(x, axis, &at)?.into())?)
}

/// Where in a tensor of `shape` each element of `indices` points: its own position, but at `axis` the
/// index.
pub(super) fn element_positions(shape: &[usize], indices: &Tensor, axis: usize) -> Result<Vec<usize>> {
    check_axis(axis, shape)?;
    let to = indices.shape();
    let fits = to.len() == shape.len() && (0..to.len()).all(|i| i == axis || to[i] <= shape[i]);
    if !fits {
        return Err(bad(format!("indices of shape {to:?} do not fit {shape:?} on axis {axis}")));
    }
    let mut steps = strides(shape);
    let step = steps[axis] as usize;
    steps[axis] = 0;
    let index = |(i, [base]): (i64, [usize; 1])| Ok(base + wrap_index(i, shape[axis], axis)? * step);
    indices_of(indices)?.into_iter().zip(Walk::new(to, [steps])).map(index).collect()
}

/// `x` at the positions of `indices`, element by element along `axis`.
fn gather_elements(x: &Tensor, indices: &Tensor, axis: usize) -> Result<Tensor> {
    let at = element_positions(x.shape(), indices, axis)?;
    let shape = indices.shape().to_vec();
    count(x.dtype(), &shape)?;
    let bytes = take(&x.reshaped(vec![x.len()])?, 0, &at)?;
    Ok(Tensor::from_bytes(x.dtype(), shape, bytes.into())?)
}

/// The row-major positions, among the slices that `depth` leading axes of `shape` select, that the
/// index tuples in the last axis of `indices` mean.
pub(super) fn tuple_positions(shape: &[usize], indices: &Tensor) -> Result<Vec<usize>> {
    let depth = match indices.shape() {
        [.., depth] if *depth <= shape.len() => *depth,
        other => return Err(bad(format!("indices of shape {other:?} do not fit {shape:?}"))),
    };
    if depth == 0 {
        return Ok(vec![0; product(&indices.shape()[..indices.shape().len() - 1])]);
    }
    let position = |tuple: &[i64]| {
        tuple
            .iter()
            .enumerate()
            .try_fold(0, |at, (axis, i)| Ok(at * shape[axis] + wrap_index(*i, shape[axis], axis)?))
    };
    indices_of(indices)?.chunks_exact(depth).map(position).collect()
}

/// Slices of `x` selected by index tuples; the first `batch_dims` axes are walked together.
fn gather_nd(x: &Tensor, indices: &Tensor, batch_dims: usize) -> Result<Tensor> {
    let (shape, to) = (x.shape(), indices.shape());
    if batch_dims >= to.len() || batch_dims > shape.len() || shape[..batch_dims] != to[..batch_dims] {
        let reason = format!("indices of shape {to:?} do not fit {shape:?} with {batch_dims} batch axes");
        return Err(bad(reason));
    }
    let positions = tuple_positions(&shape[batch_dims..], indices)?;
    let depth = to[to.len() - 1];
    let (batch, slices) = (product(&shape[..batch_dims]), product(&shape[batch_dims..batch_dims + depth]));
    let tail = &shape[batch_dims + depth..];
    let result: Vec<usize> = to[..to.len() - 1].iter().chain(tail).copied().collect();
    count(x.dtype(), &result)?;
    let per_batch = positions.len() / batch.max(1);
    let at: Vec<usize> =
        positions.iter().enumerate().map(|(i, p)| i / per_batch.max(1) * slices + p).collect();
    let rows = x.reshaped(vec![batch * slices, product(tail)])?;
    Ok(Tensor::from_bytes(x.dtype(), result, take(&rows, 0, &at)?.into())?)
}

/// `values = [off, on]`: on where the index (negative ones from the end) equals the position along
/// `axis` of the result; indices outside give off everywhere.
fn one_hot(indices: &Tensor, depth: &Tensor, values: &Tensor, axis: usize) -> Result<Tensor> {
    let depth = depth
        .item()
        .filter(|d| *d >= 0.0)
        .map(|d| d as usize)
        .ok_or_else(|| bad(format!("the depth of OneHot is {depth:?}")))?;
    if values.shape() != [2] {
        return Err(bad(format!("the values of OneHot have shape {:?}, expected [2]", values.shape())));
    }
    let rank = indices.shape().len();
    if axis > rank {
        return Err(bad(format!("axis {axis} of OneHot is outside a result of {} axes", rank + 1)));
    }
    let mut shape = indices.shape().to_vec();
    shape.insert(axis, depth);
    let size = values.dtype().size();
    let mut out = Vec::with_capacity(count(values.dtype(), &shape)? * size);
    let inner = product(&shape[axis + 1..]);
    let bytes = values.bytes();
    let (off, on) = bytes.split_at(size);
    // Indices may be floats; those are whole numbers.
    let indices: Vec<i64> =
        indices.to_i64().unwrap_or_else(|| indices.to_f64().iter().map(|x| *x as i64).collect());
    for outer in indices.chunks(inner.max(1)) {
        for position in 0..depth {
            for i in outer {
                let hit = wrap_index(*i, depth, axis).is_ok_and(|i| i == position);
                out.extend_from_slice(if hit { on } else { off });
            }
        }
    }
    Ok(Tensor::from_bytes(values.dtype(), shape, out.into())?)
}

/// The positions of what is not zero (NaN included), as int64 `[rank, n]` in row-major order.
fn non_zero(x: &Tensor) -> Result<Tensor> {
    // The elements as floats, and the positions of all.
    room(x.len().saturating_mul(16)).map_err(|e| bad(e.to_string()))?;
    let found: Vec<usize> = match x.as_slice::<u64>() {
        Some(large) => large.iter().enumerate().filter(|(_, v)| **v != 0).map(|(i, _)| i).collect(),
        None => x.to_f64().iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect(),
    };
    let steps = strides(x.shape());
    let shape = vec![x.shape().len(), found.len()];
    let mut data = Vec::with_capacity(count(DType::I64, &shape)?);
    for (d, step) in x.shape().iter().zip(&steps) {
        let (d, step) = (*d, *step as usize);
        data.extend(found.iter().map(|at| (at / step.max(1) % d.max(1)) as i64));
    }
    Ok(Tensor::from_vec(shape, data)?)
}
