//! Matrix products.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::movement::transpose;
use super::number::{Number, load, same_dtype, store, with_number};
use super::shape::{Walk, broadcast, broadcast_strides, count};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::MatMul => matmul(o.get(0)?, o.get(1)?),
        Op::Gemm { alpha, beta, trans_a, trans_b } => {
            gemm(o.get(0)?, o.get(1)?, o.optional(2), [*alpha, *beta], [*trans_a, *trans_b])
        }
        _ => return Ok(None),
    };
    result.map(one)
}

/// NumPy's `matmul`: vectors are rows and columns, leading axes broadcast.
pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_dtype(a, b)?;
    let fail = || bad(format!("cannot multiply matrices of shapes {:?} and {:?}", a.shape(), b.shape()));
    let (a_lead, m, k) = match a.shape() {
        [k] => (&[][..], None, *k),
        [lead @ .., m, k] => (lead, Some(*m), *k),
        [] => return Err(fail()),
    };
    let (b_lead, rows, n) = match b.shape() {
        [k] => (&[][..], *k, None),
        [lead @ .., k, n] => (lead, *k, Some(*n)),
        [] => return Err(fail()),
    };
    if k != rows {
        return Err(fail());
    }
    let lead = broadcast(a_lead, b_lead).map_err(|_| fail())?;
    let shape: Vec<usize> = lead.iter().copied().chain(m).chain(n).collect();
    let (m, n) = (m.unwrap_or(1), n.unwrap_or(1));
    let strides = [broadcast_strides(a_lead, &lead)?, broadcast_strides(b_lead, &lead)?];
    with_number!(a.dtype(), "MatMul", T => {
        let (x, y) = (load::<T>(a)?, load::<T>(b)?);
        let mut out = vec![T::ZERO; count(a.dtype(), &shape)?];
        if m * n > 0 {
            for ([i, j], c) in Walk::new(&lead, strides).zip(out.chunks_exact_mut(m * n)) {
                T::add_product(&x[i * m * k..][..m * k], &y[j * k * n..][..k * n], c, [m, k, n]);
            }
        }
        store(a.dtype(), shape, out)
    })
}

/// `c [m, n] += a [m, k] · b [k, n]` of integers, dense and row-major.
pub(super) fn plain_product<T: Number>(a: &[T], b: &[T], c: &mut [T], [_, k, n]: [usize; 3]) {
    if k == 0 || n == 0 {
        return;
    }
    for (a, c) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
        for (x, row) in a.iter().zip(b.chunks_exact(n)) {
            for (out, y) in c.iter_mut().zip(row) {
                *out = out.plus(x.times(*y));
            }
        }
    }
}

/// The same of floats, in cache-sized blocks.
pub(super) fn blocked_product<T: ndarray::LinalgScalar>(
    a: &[T],
    b: &[T],
    c: &mut [T],
    [m, k, n]: [usize; 3],
) {
    let views = (
        ArrayView2::from_shape((m, k), a),
        ArrayView2::from_shape((k, n), b),
        ArrayViewMut2::from_shape((m, n), c),
    );
    // The shapes hold by the slices' lengths.
    if let (Ok(a), Ok(b), Ok(mut c)) = views {
        general_mat_mul(T::one(), &a, &b, T::one(), &mut c);
    }
}

/// `alpha·op(a)·op(b) + beta·c`; `factors` are alpha and beta, `trans` says which matrices are
/// transposed.
fn gemm(a: &Tensor, b: &Tensor, c: Option<&Tensor>, factors: [f32; 2], trans: [bool; 2]) -> Result<Tensor> {
    same_dtype(a, b)?;
    let oriented = |t: &Tensor, swap: bool| if swap { transpose(t, &[1, 0]) } else { Ok(t.clone()) };
    let fail = || bad(format!("cannot multiply matrices of shapes {:?} and {:?}", a.shape(), b.shape()));
    if a.shape().len() != 2 || b.shape().len() != 2 {
        return Err(fail());
    }
    let (a, b) = (oriented(a, trans[0])?, oriented(b, trans[1])?);
    let (&[m, k], &[rows, n]) = (a.shape(), b.shape()) else { return Err(fail()) };
    if k != rows {
        return Err(fail());
    }
    with_number!(a.dtype(), "Gemm", T => {
        let scaled = |x: T, factor: f32| {
            if factor == 1.0 { x } else { T::of_f64(f64::from(factor)).times(x) }
        };
        let mut out = vec![T::ZERO; count(a.dtype(), &[m, n])?];
        T::add_product(&load::<T>(&a)?, &load::<T>(&b)?, &mut out, [m, k, n]);
        for x in &mut out {
            *x = scaled(*x, factors[0]);
        }
        if let Some(c) = c {
            same_dtype(&a, c)?;
            let c_data = load::<T>(c)?;
            let walk = Walk::new(&[m, n], [broadcast_strides(c.shape(), &[m, n])?]);
            for (x, [i]) in out.iter_mut().zip(walk) {
                *x = x.plus(scaled(c_data[i], factors[1]));
            }
        }
        store(a.dtype(), vec![m, n], out)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One element of the product, straight from the definition, with leading axes broadcast.
    fn element((a, x): (&Tensor, &[f32]), (b, y): (&Tensor, &[f32]), at: &[usize]) -> f32 {
        let (lead, [i, j]) = at.split_last_chunk().unwrap();
        let k = *a.shape().last().unwrap();
        let offset = |t: &Tensor, tail: [usize; 2]| {
            let skipped = lead.len() + 2 - t.shape().len();
            let full: Vec<usize> = lead[skipped..].iter().copied().chain(tail).collect();
            full.iter().zip(t.shape()).fold(0, |o, (i, d)| o * d + if *d == 1 { 0 } else { *i })
        };
        (0..k).map(|p| x[offset(a, [*i, p])] * y[offset(b, [p, *j])]).sum()
    }

    fn tensor(shape: Vec<usize>, seed: u32) -> Tensor {
        let n: usize = shape.iter().product();
        let value = |i: usize| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed) >> 28) as f32 - 8.0;
        Tensor::from_vec(shape, (0..n).map(value).collect()).unwrap()
    }

    proptest! {
        #[test]
        fn products_follow_the_definition(
            m in 1usize..10, k in 0usize..9, n in 1usize..9, lead in prop::collection::vec(1usize..4, 0..3),
            a_ones in any::<[bool; 2]>(), b_ones in any::<[bool; 2]>(), drop in 0usize..3, seed: u32,
        ) {
            let thin = |ones: [bool; 2]| lead.iter().zip(ones).map(|(d, one)| if one { 1 } else { *d });
            let a_shape: Vec<usize> = thin(a_ones).chain([m, k]).collect();
            let b_shape: Vec<usize> = thin(b_ones).skip(drop).chain([k, n]).collect();
            let (a, b) = (tensor(a_shape, seed), tensor(b_shape, !seed));
            let c = matmul(&a, &b).unwrap();
            let (flat, x, y) = (c.to_f32(), a.to_f32(), b.to_f32());
            for (at, value) in flat.iter().enumerate() {
                let mut index = vec![0; c.shape().len()];
                let mut left = at;
                for (i, d) in index.iter_mut().zip(c.shape()).rev() {
                    (*i, left) = (left % d, left / d);
                }
                prop_assert_eq!(*value, element((&a, &x), (&b, &y), &index));
            }
        }
    }

    #[test]
    fn vectors_are_rows_and_columns() {
        let (v, m) = (tensor(vec![3], 1), tensor(vec![3, 2], 2));
        assert_eq!(matmul(&v, &m).unwrap().shape(), [2]);
        assert_eq!(matmul(&v, &v).unwrap().shape(), [0; 0]);
        assert_eq!(matmul(&tensor(vec![4, 2, 3], 3), &v).unwrap().shape(), [4, 2]);
        let error = matmul(&m, &v).unwrap_err().to_string();
        assert!(error.contains("[3, 2] and [3]"), "{error}");
    }
}
