//! Operators that write elements at positions given by a tensor.

use super::indexing::{element_positions, tuple_positions};
use super::number::{Number, load, same_dtype, store, with_number};
use super::shape::product;
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Op, ScatterReduction, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::ScatterElements { axis, reduction } => {
            scatter_elements(o.get(0)?, o.get(1)?, o.get(2)?, *axis, *reduction)
        }
        Op::ScatterNd { reduction } => scatter_nd(o.get(0)?, o.get(1)?, o.get(2)?, *reduction),
        _ => return Ok(None),
    };
    result.map(one)
}

/// `data` with `updates` combined into it, in order, at `indices` along `axis`.
fn scatter_elements(
    data: &Tensor,
    indices: &Tensor,
    updates: &Tensor,
    axis: usize,
    reduction: ScatterReduction,
) -> Result<Tensor> {
    same_dtype(data, updates)?;
    if indices.shape() != updates.shape() {
        let (i, u) = (indices.shape(), updates.shape());
        return Err(bad(format!("indices {i:?} and updates {u:?} must have one shape")));
    }
    write(data, &element_positions(data.shape(), indices, axis)?, updates, 1, reduction)
}

/// `data` with the slices of `updates` combined into it, in order, at the index tuples.
fn scatter_nd(
    data: &Tensor,
    indices: &Tensor,
    updates: &Tensor,
    reduction: ScatterReduction,
) -> Result<Tensor> {
    same_dtype(data, updates)?;
    let positions = tuple_positions(data.shape(), indices)?;
    let to = indices.shape();
    let tail = &data.shape()[to[to.len() - 1]..];
    if to[..to.len() - 1].iter().chain(tail).ne(updates.shape()) {
        let (i, u, d) = (indices.shape(), updates.shape(), data.shape());
        return Err(bad(format!("updates {u:?} do not fit indices {i:?} into {d:?}")));
    }
    let run = product(tail);
    let starts: Vec<usize> = positions.iter().map(|p| p * run).collect();
    write(data, &starts, updates, run, reduction)
}

/// Writes runs of `run` elements of `updates` at `starts`.
fn write(
    data: &Tensor,
    starts: &[usize],
    updates: &Tensor,
    run: usize,
    reduction: ScatterReduction,
) -> Result<Tensor> {
    let name = format!("Scatter with {reduction:?}");
    if reduction == ScatterReduction::None {
        let size = data.dtype().size();
        let mut out = data.bytes().to_vec();
        let bytes = updates.bytes();
        for (i, at) in starts.iter().enumerate() {
            out[at * size..][..run * size].copy_from_slice(&bytes[i * run * size..][..run * size]);
        }
        return Ok(Tensor::from_bytes(data.dtype(), data.shape().to_vec(), out.into())?);
    }
    with_number!(data.dtype(), name, T => {
        let mut out = load::<T>(data)?.into_owned();
        let updates = load::<T>(updates)?;
        let combine: fn(T, T) -> T = match reduction {
            ScatterReduction::Add => T::plus,
            ScatterReduction::Mul => T::times,
            ScatterReduction::Max => T::greatest,
            ScatterReduction::Min => T::least,
            ScatterReduction::None => |_, new| new,
        };
        for (i, at) in starts.iter().enumerate() {
            for (old, new) in out[*at..][..run].iter_mut().zip(&updates[i * run..][..run]) {
                *old = combine(*old, *new);
            }
        }
        store(data.dtype(), data.shape().to_vec(), out)
    })
}
