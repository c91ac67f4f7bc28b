//! Newton corrections over the unit axis (METHOD §1).

use super::number::{Real, load, same_dtype, store, with_real};
use super::shape::{Around, around, count, product};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Correction, CorrectionForm, Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    match op {
        Op::Correction(c) => correction(c, o.get(0)?, o.get(1)?, o.optional(2)).map(one),
        _ => Ok(None),
    }
}

/// See [`Correction`].
fn correction(op: &Correction, f: &Tensor, s: &Tensor, t: Option<&Tensor>) -> Result<Tensor> {
    same_dtype(f, s)?;
    let Some((units, unit_shape)) = f.shape().split_first() else {
        return Err(bad("Correction needs a unit axis, found a scalar"));
    };
    let shared = s.shape() == unit_shape;
    if !shared && s.shape() != f.shape() {
        let (f, s) = (f.shape(), s.shape());
        return Err(bad(format!("estimates {s:?} do not fit evaluations {f:?}")));
    }
    if *units == 0 {
        return Err(bad("Correction of no units"));
    }
    let size = product(unit_shape);
    with_real!(f.dtype(), "Correction", T => {
        let (values, estimates) = (load::<T>(f)?, load::<T>(s)?);
        let estimate = |unit: usize| if shared { &estimates[..] } else { &estimates[unit * size..][..size] };
        count(f.dtype(), f.shape())?;
        let mut out = match op.form {
            CorrectionForm::Prefix => prefix::<T>(&values, *units, estimate),
            CorrectionForm::Linear { streams, stream_axis } => {
                let t = t.ok_or_else(|| bad("the linear Correction lacks its matrix"))?;
                let a = stream_layout(f.shape(), streams, stream_axis)?;
                if t.shape() != [units * a.size; 2] {
                    let (t, n) = (t.shape(), units * a.size);
                    return Err(bad(format!("the matrix of the Correction is {t:?}, expected [{n}, {n}]")));
                }
                linear::<T>(&values, *units, a, &load::<T>(t)?, estimate)
            }
            CorrectionForm::Scan { stream_axis } => {
                let a = t.ok_or_else(|| bad("the Correction by a scan lacks its matrices"))?;
                let layout = Tokens::of(f.shape(), stream_axis, a.shape())?;
                scan::<T>(&values, *units, layout, &load::<T>(a)?, estimate)
            }
        };
        if op.last_only {
            return store(f.dtype(), unit_shape.to_vec(), out.split_off((units - 1) * size));
        }
        store(f.dtype(), f.shape().to_vec(), out)
    })
}

/// One unit's output seen as `[outer, streams, inner]`.
fn stream_layout(f: &[usize], streams: u32, axis: u32) -> Result<Around> {
    let (streams, axis) = (streams as usize, axis as usize);
    if streams <= 1 {
        return Ok(Around { outer: 1, size: 1, inner: product(&f[1..]) });
    }
    if axis == 0 || f.get(axis) != Some(&streams) {
        return Err(bad(format!("axis {axis} of {f:?} does not hold {streams} streams")));
    }
    around(&f[1..], axis - 1)
}

/// `s'_l = f_l + (s'_{l-1} - s_{l-1})`: what `cumsum(f) - exclusive_cumsum(s)` unrolls to, without the
/// large sums that cancel.
fn prefix<'a, T: Real>(f: &[T], units: usize, estimate: impl Fn(usize) -> &'a [T]) -> Vec<T> {
    let size = f.len() / units;
    let mut out = f.to_vec();
    for unit in 1..units {
        let (before, now) = out.split_at_mut(unit * size);
        let before = &before[(unit - 1) * size..];
        for ((x, done), old) in now[..size].iter_mut().zip(before).zip(estimate(unit - 1)) {
            *x = *x + (*done - *old);
        }
    }
    out
}

/// `T·(f - s) + s`, which is `T·f - (T - I)·s`.
fn linear<'a, T: Real>(
    f: &[T],
    units: usize,
    a: Around,
    t: &[T],
    estimate: impl Fn(usize) -> &'a [T],
) -> Vec<T> {
    let (size, order) = (f.len() / units, units * a.size);
    let mut out = vec![T::ZERO; f.len()];
    for at in 0..size {
        let (outer, to, inner) = (at / a.inner / a.size, at / a.inner % a.size, at % a.inner);
        for unit in 0..units {
            let row = &t[(unit * a.size + to) * order..][..order];
            let mut sum = estimate(unit)[at];
            for (column, factor) in row.iter().enumerate() {
                let from = (outer * a.size + column % a.size) * a.inner + inner;
                let source = column / a.size;
                sum = sum + *factor * (f[source * size + from] - estimate(source)[from]);
            }
            out[unit * size + at] = sum;
        }
    }
    out
}

/// A state seen as `[outer, streams, middle, features]`; tokens are `outer · middle`.
#[derive(Clone, Copy)]
struct Tokens {
    streams: usize,
    middle: usize,
    features: usize,
}

impl Tokens {
    fn of(f: &[usize], stream_axis: u32, a: &[usize]) -> Result<Self> {
        let axis = stream_axis as usize;
        if axis == 0 || axis + 1 >= f.len() {
            return Err(bad(format!("axis {axis} of {f:?} cannot hold streams")));
        }
        let mut wanted = f[..f.len() - 1].to_vec();
        let streams = wanted.remove(axis);
        wanted.extend([streams, streams]);
        if a != wanted {
            return Err(bad(format!("the matrices of the Correction are {a:?}, expected {wanted:?}")));
        }
        Ok(Tokens { streams, middle: product(&f[axis + 1..f.len() - 1]), features: f[f.len() - 1] })
    }
}

/// `s'_j = f_j + a_j (s'_{j-1} - s_{j-1})`, with one matrix for each unit and token.
fn scan<'a, T: Real>(
    f: &[T],
    units: usize,
    Tokens { streams, middle, features }: Tokens,
    a: &[T],
    estimate: impl Fn(usize) -> &'a [T],
) -> Vec<T> {
    let size = f.len() / units;
    let matrices = a.len() / units;
    let inner = middle * features;
    let mut out = f.to_vec();
    for unit in 1..units {
        let (before, now) = out.split_at_mut(unit * size);
        let (before, old) = (&before[(unit - 1) * size..], estimate(unit - 1));
        for (at, x) in now[..size].iter_mut().enumerate() {
            let (outer, to, rest) = (at / inner / streams, at / inner % streams, at % inner);
            let token = outer * middle + rest / features;
            for from in 0..streams {
                let source = (outer * streams + from) * inner + rest;
                let factor = a[unit * matrices + (token * streams + to) * streams + from];
                *x = *x + factor * (before[source] - old[source]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor(shape: &[usize], seed: u32) -> Tensor {
        let value =
            |i: usize| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed) >> 20) as f64 / 2048.0 - 1.0;
        Tensor::from_vec(shape.to_vec(), (0..product(shape)).map(value).collect()).unwrap()
    }

    /// `s'_l = f_l + A_l (s'_{l-1} - s_{l-1})` for outputs `[rows, streams]`, where `A_l` mixes streams.
    fn recurrence(
        f: &[f64],
        s: impl Fn(usize) -> Vec<f64>,
        a: &[Vec<f64>],
        rows: usize,
        streams: usize,
    ) -> Vec<f64> {
        let size = rows * streams;
        let mut out = f[..size].to_vec();
        for l in 1..a.len() {
            let before: Vec<f64> = out[(l - 1) * size..].iter().zip(s(l - 1)).map(|(x, y)| x - y).collect();
            for at in 0..size {
                let (row, p) = (at / streams, at % streams);
                let mixed: f64 =
                    (0..streams).map(|q| a[l][p * streams + q] * before[row * streams + q]).sum();
                out.push(f[l * size + at] + mixed);
            }
        }
        out
    }

    /// The block lower triangular matrix of products `A_j ··· A_{i+1}`.
    fn transfers(a: &[Vec<f64>], streams: usize) -> Tensor {
        let order = a.len() * streams;
        let mut t = vec![0.0; order * order];
        for i in 0..a.len() {
            let mut block: Vec<f64> =
                (0..streams * streams).map(|x| f64::from(x % (streams + 1) == 0)).collect();
            for j in i..a.len() {
                if j > i {
                    let product = |p: usize, q: usize| {
                        (0..streams).map(|r| a[j][p * streams + r] * block[r * streams + q]).sum()
                    };
                    block = (0..streams * streams).map(|x| product(x / streams, x % streams)).collect();
                }
                for (x, value) in block.iter().enumerate() {
                    t[(j * streams + x / streams) * order + i * streams + x % streams] = *value;
                }
            }
        }
        Tensor::from_vec(vec![order, order], t).unwrap()
    }

    fn check(op: Correction, f: &Tensor, s: &Tensor, t: Option<&Tensor>, expected: &[f64]) {
        for last_only in [false, true] {
            let got = correction(&Correction { last_only, ..op }, f, s, t).unwrap();
            let size = product(&f.shape()[1..]);
            let (shape, want) = match last_only {
                true => (&f.shape()[1..], &expected[expected.len() - size..]),
                false => (f.shape(), expected),
            };
            assert_eq!(got.shape(), shape);
            for (x, y) in got.to_f64().iter().zip(want) {
                assert!((x - y).abs() < 1e-9, "{x} instead of {y}");
            }
        }
    }

    proptest! {
        #[test]
        fn prefix_is_cumulative_sums(units in 1usize..6, size in 1usize..5, shared: bool, seed: u32) {
            let f = tensor(&[units, size], seed);
            let s = if shared { tensor(&[size], !seed) } else { tensor(&[units, size], !seed) };
            let all = crate::eval::movement::expand(&s, &[units, size]).unwrap();
            let sums = |x: &Tensor, exclusive| crate::eval::scan::cumsum(x, 0, exclusive, false).unwrap().to_f64();
            let expected: Vec<f64> = sums(&f, false).iter().zip(sums(&all, true)).map(|(x, y)| x - y).collect();
            check(Correction { form: CorrectionForm::Prefix, last_only: false }, &f, &s, None, &expected);
        }

        #[test]
        fn linear_is_the_recurrence(
            units in 1usize..5, rows in 1usize..4, streams in 1usize..4, shared: bool, seed: u32,
        ) {
            let shape = [units, rows, streams];
            let f = tensor(&shape, seed);
            let s = if shared { tensor(&shape[1..], !seed) } else { tensor(&shape, !seed) };
            let size = rows * streams;
            let estimates = s.to_f64();
            let estimate = |l: usize| if shared { estimates.clone() } else { estimates[l * size..][..size].to_vec() };
            let a: Vec<Vec<f64>> = (0..units).map(|l| tensor(&[streams * streams], seed ^ l as u32).to_f64()).collect();
            let expected = recurrence(&f.to_f64(), estimate, &a, rows, streams);
            let form = CorrectionForm::Linear { streams: streams as u32, stream_axis: 2 };
            check(Correction { form, last_only: false }, &f, &s, Some(&transfers(&a, streams)), &expected);
        }
    }

    proptest! {
        /// With the same matrix for every token the scan is the linear form.
        #[test]
        fn scan_of_constant_matrices_is_linear(
            units in 1usize..5, tokens in 1usize..4, streams in 1usize..4, first: bool, seed: u32,
        ) {
            let (shape, axis) = if first { ([units, streams, tokens, 2], 1) } else { ([units, tokens, streams, 2], 2) };
            let (f, s) = (tensor(&shape, seed), tensor(&shape, !seed));
            let a: Vec<Vec<f64>> = (0..units).map(|l| tensor(&[streams * streams], seed ^ l as u32).to_f64()).collect();
            let rows: Vec<f64> = a.iter().flat_map(|m| m.repeat(tokens)).collect();
            let matrices = Tensor::from_vec(vec![units, tokens, streams, streams], rows).unwrap();
            let form = CorrectionForm::Linear { streams: streams as u32, stream_axis: axis };
            let t = transfers(&a, streams);
            let t = if streams > 1 { t } else { Tensor::from_vec(vec![units, units], t.to_f64()).unwrap() };
            let expected = correction(&Correction { form, last_only: false }, &f, &s, Some(&t)).unwrap();
            let form = CorrectionForm::Scan { stream_axis: axis };
            check(Correction { form, last_only: false }, &f, &s, Some(&matrices), &expected.to_f64());
        }
    }

    #[test]
    fn operands_must_fit() {
        let op = Correction { form: CorrectionForm::Linear { streams: 2, stream_axis: 1 }, last_only: false };
        let (f, s) = (tensor(&[3, 2, 4], 1), tensor(&[2, 4], 2));
        let error = |t: Option<&Tensor>, s: &Tensor| correction(&op, &f, s, t).unwrap_err().to_string();
        assert!(error(None, &s).contains("lacks its matrix"));
        assert!(error(Some(&tensor(&[3, 3], 3)), &s).contains("expected [6, 6]"));
        assert!(error(Some(&tensor(&[6, 6], 3)), &tensor(&[4], 2)).contains("[4]"));
    }
}
