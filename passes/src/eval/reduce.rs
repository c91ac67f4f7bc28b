//! Reductions over axes.

use super::number::{Number, load, store, with_int, with_number, with_real};
use super::shape::{Walk, around, check_axis, count, product, strides, undefined};
use super::{Answer, EvalError, Operands, Result, bad, one};
use crate::ir::{DType, Op, Reduce, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Reduce { op, axes, keepdims } => reduce(*op, o.get(0)?, axes, *keepdims),
        Op::ArgMax { axis, keepdims, last } => arg_extreme(o.get(0)?, *axis, *keepdims, *last, true),
        Op::ArgMin { axis, keepdims, last } => arg_extreme(o.get(0)?, *axis, *keepdims, *last, false),
        _ => return Ok(None),
    };
    result.map(one)
}

/// `op` over `axes`. An empty set gives the operation's neutral element.
pub(super) fn reduce(op: Reduce, x: &Tensor, axes: &[usize], keepdims: bool) -> Result<Tensor> {
    let name = format!("Reduce{op:?}");
    for axis in axes {
        check_axis(*axis, x.shape())?;
    }
    let extreme = matches!(op, Reduce::Max | Reduce::Min);
    match x.dtype() {
        DType::Bool if extreme => along::<u8>(x, axes, keepdims, |row| {
            Ok(if op == Reduce::Max {
                row.iter().any(|b| *b != 0).into()
            } else {
                row.iter().all(|b| *b != 0).into()
            })
        }),
        d if d.is_float() => {
            with_real!(d, name, T => along::<T>(x, axes, keepdims, |row| Ok(real::<T>(op, row))))
        }
        d => with_int!(d, name, T => along::<T>(x, axes, keepdims, |row| integer::<T>(op, row))),
    }
}

/// Applies `f` to the elements that each element of the result is made from.
fn along<T: Number>(
    x: &Tensor,
    axes: &[usize],
    keepdims: bool,
    f: impl Fn(&[T]) -> Result<T>,
) -> Result<Tensor> {
    let data = load::<T>(x)?;
    let steps = strides(x.shape());
    let part = |reduced: bool| -> (Vec<usize>, Vec<isize>) {
        let chosen = (0..steps.len()).filter(|i| axes.contains(i) == reduced);
        chosen.map(|i| (x.shape()[i], steps[i])).unzip()
    };
    let ((kept, kept_steps), (reduced, reduced_steps)) = (part(false), part(true));
    let mut out = Vec::with_capacity(count(x.dtype(), &kept)?);
    let inner: Vec<usize> = Walk::new(&reduced, [reduced_steps]).map(|[o]| o).collect();
    let mut row = Vec::with_capacity(inner.len());
    for [base] in Walk::new(&kept, [kept_steps]) {
        row.clear();
        row.extend(inner.iter().map(|o| data[base + o]));
        out.push(f(&row)?);
    }
    let shape = match keepdims {
        true => x.shape().iter().enumerate().map(|(i, d)| if axes.contains(&i) { 1 } else { *d }).collect(),
        false => kept,
    };
    store(x.dtype(), shape, out)
}

fn real<T: super::number::Real>(op: Reduce, row: &[T]) -> T {
    let sum = |f: fn(T) -> T| row.iter().fold(T::ZERO, |s, x| s + f(*x));
    let highest = || row.iter().fold(T::LOWEST, |m, x| m.greatest(*x));
    match op {
        Reduce::Sum => sum(|x| x),
        Reduce::Mean => sum(|x| x) / T::of_f64(row.len() as f64),
        Reduce::Max => highest(),
        Reduce::Min => row.iter().fold(T::HIGHEST, |m, x| m.least(*x)),
        Reduce::Prod => row.iter().fold(T::ONE, |p, x| p * *x),
        Reduce::L1 => sum(|x| x.abs()),
        Reduce::L2 => sum(|x| x * x).sqrt(),
        Reduce::SumSquare => sum(|x| x * x),
        Reduce::LogSum => sum(|x| x).ln(),
        Reduce::LogSumExp => {
            // Shifted by the maximum so that nothing overflows; an infinite one is the answer.
            let shift = highest();
            if shift.is_infinite() {
                return shift;
            }
            row.iter().fold(T::ZERO, |s, x| s + (*x - shift).exp()).ln() + shift
        }
    }
}

fn integer<T: Number>(op: Reduce, row: &[T]) -> Result<T> {
    let sum = |f: fn(T) -> T| row.iter().fold(T::ZERO, |s, x| s.plus(f(*x)));
    let exact = |f: fn(f64) -> f64| row.iter().map(|x| f(x.as_f64())).sum::<f64>();
    Ok(match op {
        Reduce::Sum => sum(|x| x),
        Reduce::Mean => match i64::try_from(row.len()) {
            Ok(n @ 1..) => T::of_f64(mean(row, n)),
            _ => return Err(bad("the mean of no integers")),
        },
        Reduce::Max => row.iter().fold(T::LOWEST, |m, x| m.greatest(*x)),
        Reduce::Min => row.iter().fold(T::HIGHEST, |m, x| m.least(*x)),
        Reduce::Prod => row.iter().fold(T::ONE, |p, x| p.times(*x)),
        Reduce::L1 => sum(T::magnitude),
        Reduce::L2 => T::of_f64(exact(|x| x * x).sqrt()),
        Reduce::SumSquare => sum(|x| x.times(x)),
        Reduce::LogSum => T::of_f64(exact(|x| x).ln()),
        Reduce::LogSumExp => T::of_f64(exact(f64::exp).ln()),
    })
}

/// The mean before it is truncated.
fn mean<T: Number>(row: &[T], n: i64) -> f64 {
    row.iter().map(|x| x.as_f64()).sum::<f64>() / n as f64
}

/// The int64 position of the largest or smallest element (the first or `last` of several; NaN counts as
/// the extreme).
fn arg_extreme(x: &Tensor, axis: usize, keepdims: bool, last: bool, largest: bool) -> Result<Tensor> {
    let name = if largest { "ArgMax" } else { "ArgMin" };
    let a = around(x.shape(), axis)?;
    if a.size == 0 {
        return Err(bad(format!("{name} over the empty axis {axis} of {:?}", x.shape())));
    }
    if x.dtype() == DType::Bool {
        return Err(undefined(name, DType::Bool));
    }
    let mut shape = x.shape().to_vec();
    shape[axis] = 1;
    let at: Result<Vec<i64>> = with_number!(x.dtype(), name, T => {
        let data = load::<T>(x)?;
        let better = |new: T, old: T| match (new.nan(), old.nan()) {
            (true, old) => !old || last,
            (false, true) => false,
            _ => (if largest { new > old } else { new < old }) || (last && new == old),
        };
        Ok((0..product(&shape)).map(|i| {
            let base = i / a.inner * a.size * a.inner + i % a.inner;
            let get = |s: usize| data[base + s * a.inner];
            (1..a.size).fold(0, |best, s| if better(get(s), get(best)) { s } else { best }) as i64
        }).collect())
    });
    if !keepdims {
        shape.remove(axis);
    }
    at.and_then(|at| Ok::<_, EvalError>(Tensor::from_vec(shape, at)?))
}
