//! Cumulative sums and selection along an axis.

use super::number::{Number, load, store, with_number};
use super::shape::{around, count};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    Ok(match op {
        Op::CumSum { axis, exclusive, reverse } => one(cumsum(o.get(0)?, *axis, *exclusive, *reverse)?),
        Op::TopK { axis, largest } => Some(top_k(o.get(0)?, o.int(1)?, *axis, *largest)?),
        _ => None,
    })
}

/// Running sums along `axis`; exclusive ones leave each element itself out.
pub(super) fn cumsum(x: &Tensor, axis: usize, exclusive: bool, reverse: bool) -> Result<Tensor> {
    let a = around(x.shape(), axis)?;
    with_number!(x.dtype(), "CumSum", T => {
        let data = load::<T>(x)?;
        let mut out = vec![T::ZERO; data.len()];
        for row in 0..a.outer * a.inner {
            let base = row / a.inner * a.size * a.inner + row % a.inner;
            let mut sum = T::ZERO;
            for step in 0..a.size {
                let at = base + if reverse { a.size - 1 - step } else { step } * a.inner;
                let next = sum.plus(data[at]);
                out[at] = if exclusive { sum } else { next };
                sum = next;
            }
        }
        store(x.dtype(), x.shape().to_vec(), out)
    })
}

/// The `k` largest or smallest along `axis`, best first (equal ones by position), with their int64
/// positions. NaN counts as the largest.
fn top_k(x: &Tensor, k: i64, axis: usize, largest: bool) -> Result<Vec<Tensor>> {
    let a = around(x.shape(), axis)?;
    let k = usize::try_from(k).ok().filter(|k| *k <= a.size);
    let k = k.ok_or_else(|| bad(format!("TopK of more than the {} elements of axis {axis}", a.size)))?;
    let mut shape = x.shape().to_vec();
    shape[axis] = k;
    with_number!(x.dtype(), "TopK", T => {
        let data = load::<T>(x)?;
        let n = count(x.dtype(), &shape)?;
        let (mut values, mut positions) = (vec![T::ZERO; n], vec![0i64; n]);
        for row in 0..a.outer * a.inner {
            let (outer, inner) = (row / a.inner, row % a.inner);
            let get = |i: usize| data[(outer * a.size + i) * a.inner + inner];
            let mut order: Vec<usize> = (0..a.size).collect();
            order.sort_by(|i, j| {
                let (p, q) = (get(*i), get(*j));
                let rising = p.partial_cmp(&q).unwrap_or_else(|| p.nan().cmp(&q.nan()));
                if largest { rising.reverse() } else { rising }
            });
            for (rank, i) in order.into_iter().take(k).enumerate() {
                let at = (outer * k + rank) * a.inner + inner;
                values[at] = get(i);
                positions[at] = i as i64;
            }
        }
        Ok(vec![store(x.dtype(), shape.clone(), values)?, Tensor::from_vec(shape, positions)?])
    })
}
