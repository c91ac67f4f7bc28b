//! Softmax and normalisations.

use super::number::{Number, Real, load, store, with_real};
use super::shape::{Walk, around, broadcast_strides, product};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Softmax { axis } => softmax(o.get(0)?, *axis, false),
        Op::LogSoftmax { axis } => softmax(o.get(0)?, *axis, true),
        Op::LayerNorm { axis, epsilon } => {
            layer_norm(o.get(0)?, o.optional(1), o.optional(2), *axis, *epsilon, true)
        }
        Op::RmsNorm { axis, epsilon } => layer_norm(o.get(0)?, o.optional(1), None, *axis, *epsilon, false),
        Op::BatchNorm { epsilon } => {
            batch_norm(o.get(0)?, [o.get(1)?, o.get(2)?, o.get(3)?, o.get(4)?], *epsilon)
        }
        _ => return Ok(None),
    };
    result.map(one)
}

/// `exp(x - max) / sum` along `axis`, or its logarithm.
fn softmax(x: &Tensor, axis: usize, log: bool) -> Result<Tensor> {
    let a = around(x.shape(), axis)?;
    with_real!(x.dtype(), if log { "LogSoftmax" } else { "Softmax" }, T => {
        let mut data = load::<T>(x)?.into_owned();
        let mut row = Vec::with_capacity(a.size);
        for i in 0..a.outer * a.inner {
            let base = i / a.inner * a.size * a.inner + i % a.inner;
            row.clear();
            row.extend((0..a.size).map(|s| data[base + s * a.inner]));
            if log { log_softmax_row::<T>(&mut row) } else { softmax_row::<T>(&mut row) }
            for (s, y) in row.iter().enumerate() {
                data[base + s * a.inner] = *y;
            }
        }
        store(x.dtype(), x.shape().to_vec(), data)
    })
}

/// Softmax of one row, in place. A row of `-inf` gives NaN.
pub(super) fn softmax_row<T: Real>(row: &mut [T]) {
    let max = row.iter().fold(T::LOWEST, |m, x| m.greatest(*x));
    let mut sum = T::ZERO;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum = sum + *x;
    }
    for x in row {
        *x = *x / sum;
    }
}

fn log_softmax_row<T: Real>(row: &mut [T]) {
    let max = row.iter().fold(T::LOWEST, |m, x| m.greatest(*x));
    let sum = row.iter().fold(T::ZERO, |s, x| s + (*x - max).exp());
    for x in row {
        *x = *x - max - sum.ln();
    }
}

/// `x / sqrt(mean(x²) + epsilon) · scale + bias` over axes `axis..`, where `centred` subtracts the mean
/// first.
fn layer_norm(
    x: &Tensor,
    scale: Option<&Tensor>,
    bias: Option<&Tensor>,
    axis: usize,
    epsilon: f32,
    centred: bool,
) -> Result<Tensor> {
    let shape = x.shape();
    if axis >= shape.len() {
        return Err(bad(format!("axis {axis} is outside a tensor of {} axes", shape.len())));
    }
    let size = product(&shape[axis..]);
    let name = if centred { "LayerNormalization" } else { "RMSNormalization" };
    with_real!(x.dtype(), name, T => {
        let mut data = load::<T>(x)?.into_owned();
        let n = T::of_f64(size as f64);
        for row in data.chunks_exact_mut(size.max(1)) {
            if centred {
                let mean = row.iter().fold(T::ZERO, |s, v| s + *v) / n;
                row.iter_mut().for_each(|v| *v -= mean);
            }
            let variance = row.iter().fold(T::ZERO, |s, v| s + *v * *v) / n;
            let deviation = (variance + T::of_f64(f64::from(epsilon))).sqrt();
            row.iter_mut().for_each(|v| *v /= deviation);
        }
        let factors = [scale, bias];
        for (i, operand) in factors.into_iter().enumerate() {
            let Some(operand) = operand else { continue };
            let values = load::<T>(operand)?;
            let walk = Walk::new(shape, [broadcast_strides(operand.shape(), shape)?]);
            for (v, [at]) in data.iter_mut().zip(walk) {
                *v = if i == 0 { *v * values[at] } else { *v + values[at] };
            }
        }
        store(x.dtype(), shape.to_vec(), data)
    })
}

/// `(x - mean) / sqrt(variance + epsilon) · scale + bias` per channel (axis 1); `parameters` are scale,
/// bias, mean and variance.
fn batch_norm(x: &Tensor, parameters: [&Tensor; 4], epsilon: f32) -> Result<Tensor> {
    // A rank-1 operand is one channel for each sample.
    let channels = x.shape().get(1).copied().unwrap_or(1);
    let inner = product(x.shape().get(2..).unwrap_or(&[]));
    if let Some(p) = parameters.iter().find(|p| p.shape() != [channels]) {
        return Err(bad(format!(
            "a parameter of BatchNormalization has shape {:?} for {channels} channels",
            p.shape()
        )));
    }
    with_real!(x.dtype(), "BatchNormalization", T => {
        let [scale, bias, mean, variance] = parameters.map(load::<T>);
        let (scale, bias, mean, variance) = (scale?, bias?, mean?, variance?);
        let mut data = load::<T>(x)?.into_owned();
        for (i, block) in data.chunks_exact_mut(inner.max(1)).enumerate() {
            let c = i % channels.max(1);
            let deviation = (variance[c] + T::of_f64(f64::from(epsilon))).sqrt();
            block.iter_mut().for_each(|v| *v = (*v - mean[c]) / deviation * scale[c] + bias[c]);
        }
        store(x.dtype(), x.shape().to_vec(), data)
    })
}
