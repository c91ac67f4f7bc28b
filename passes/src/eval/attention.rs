//! Attention and rotary position embedding.

use super::norm::softmax_row;
use super::number::{Real, load, same_dtype, store, with_real};
use super::shape::{Walk, broadcast, broadcast_strides, count};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Attention, DType, Op, Rotary, RotaryTable, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Attention(a) => {
            let position = o.optional(5).map(|_| o.int(5)).transpose()?;
            attention(a, [o.get(0)?, o.get(1)?, o.get(2)?], o.optional(3), o.optional(4), position)
        }
        Op::Rotary(r) => rotary(r, o.get(0)?, o.get(1)?, o.get(2)?),
        _ => return Ok(None),
    };
    result.map(one)
}

/// See [`Attention`].
fn attention(
    op: &Attention,
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    sinks: Option<&Tensor>,
    position: Option<i64>,
) -> Result<Tensor> {
    same_dtype(q, k)?;
    same_dtype(q, v)?;
    with_real!(q.dtype(), "Attention", T => compute::<T>(op, [q, k, v], mask, sinks, position))
}

/// Splits `[.., heads, positions, features]`.
fn heads(x: &Tensor) -> Result<(&[usize], [usize; 3])> {
    match x.shape() {
        [lead @ .., h, t, d] => Ok((lead, [*h, *t, *d])),
        other => Err(bad(format!("Attention needs head, position and feature axes, found {other:?}"))),
    }
}

fn compute<T: Real>(
    op: &Attention,
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    sinks: Option<&Tensor>,
    position: Option<i64>,
) -> Result<Tensor> {
    let ((q_lead, [hq, t, d]), (k_lead, [hkv, s, dk]), (v_lead, [hv, sv, e])) =
        (heads(q)?, heads(k)?, heads(v)?);
    if d != dk || s != sv || hkv != hv || hkv == 0 || hq % hkv != 0 {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        return Err(bad(format!("Attention of q {q:?}, k {k:?} and v {v:?} does not fit")));
    }
    let lead = broadcast(&broadcast(q_lead, k_lead)?, v_lead)?;
    let extended = |tail: [usize; 3]| lead.iter().copied().chain(tail).collect::<Vec<_>>();
    let (shape, scores) = (extended([hq, t, e]), extended([hq, t, s]));
    let bias = mask.map(|m| additive::<T>(m)).transpose()?;
    let bias_steps = match mask {
        Some(m) => broadcast_strides(m.shape(), &scores)?,
        None => vec![0; scores.len()],
    };
    let sink_rows = extended([hq, t, 1]);
    let sink_steps = match sinks {
        Some(s) => broadcast_strides(s.shape(), &sink_rows)?,
        None => vec![0; sink_rows.len()],
    };
    let sinks = sinks.map(|s| load::<T>(s)).transpose()?;
    let (q_data, k_data, v_data) = (load::<T>(q)?, load::<T>(k)?, load::<T>(v)?);
    let walk = Walk::new(
        &lead,
        [
            broadcast_strides(q_lead, &lead)?,
            broadcast_strides(k_lead, &lead)?,
            broadcast_strides(v_lead, &lead)?,
            bias_steps[..lead.len()].to_vec(),
            sink_steps[..lead.len()].to_vec(),
        ],
    );
    let [sink_h, sink_t] = [0, 1].map(|i| sink_steps[lead.len() + i] as usize);
    let [bias_h, bias_t, bias_s] = [0, 1, 2].map(|i| bias_steps[lead.len() + i] as usize);
    let mut out = vec![T::ZERO; count(q.dtype(), &shape)?];
    // The sink, where there is one, stands after the keys.
    let mut row = vec![T::ZERO; s + usize::from(sinks.is_some())];
    for (batch, [q_at, k_at, v_at, bias_at, sink_at]) in walk.enumerate() {
        for (head, i) in (0..hq).flat_map(|h| (0..t).map(move |i| (h, i))) {
            let query = &q_data[((q_at * hq + head) * t + i) * d..][..d];
            let kv_head = head / (hq / hkv);
            let seen = visible(op, i as i64 + position.unwrap_or(s as i64 - t as i64), s);
            for (j, score) in row.iter_mut().take(s).enumerate() {
                let key = &k_data[((k_at * hkv + kv_head) * s + j) * d..][..d];
                let dot = query.iter().zip(key).fold(T::ZERO, |sum, (a, b)| sum + *a * *b);
                *score = capped(op, dot * T::of_f64(f64::from(op.scale)));
                if let Some(bias) = &bias {
                    *score = *score + bias[bias_at + head * bias_h + i * bias_t + j * bias_s];
                }
                if !seen.contains(&j) {
                    *score = T::LOWEST;
                }
            }
            if let (Some(sinks), Some(last)) = (&sinks, row.get_mut(s)) {
                *last = sinks[sink_at + head * sink_h + i * sink_t];
            }
            if op.safe && row.iter().all(|x| *x == T::LOWEST) {
                continue;
            }
            softmax_row(&mut row);
            let result = &mut out[((batch * hq + head) * t + i) * e..][..e];
            for (j, weight) in row.iter().take(s).enumerate() {
                let value = &v_data[((v_at * hkv + kv_head) * s + j) * e..][..e];
                // The value of an excluded key does not count, not even a NaN.
                if *weight != T::ZERO {
                    result.iter_mut().zip(value).for_each(|(o, x)| *o = *o + *weight * *x);
                }
            }
        }
    }
    store(q.dtype(), shape, out)
}

/// The mask as numbers to add to the scores.
fn additive<T: Real>(mask: &Tensor) -> Result<Vec<T>> {
    if mask.dtype() == DType::Bool {
        return Ok(load::<u8>(mask)?.iter().map(|b| if *b != 0 { T::ZERO } else { T::LOWEST }).collect());
    }
    Ok(load::<T>(mask)?.into_owned())
}

/// The keys that a query which stands at key `at` may see of `s`; it may stand before the first.
fn visible(op: &Attention, at: i64, s: usize) -> std::ops::Range<usize> {
    let end = at.saturating_add(1);
    let clamp = |x: i64| x.clamp(0, s as i64) as usize;
    let first = op.window.map_or(0, |w| clamp(end.saturating_sub(i64::from(w))));
    first..if op.causal { clamp(end) } else { s }
}

fn capped<T: Real>(op: &Attention, score: T) -> T {
    match op.softcap {
        Some(c) => {
            let c = T::of_f64(f64::from(c));
            c * (score / c).tanh()
        }
        None => score,
    }
}

/// See [`Rotary`].
fn rotary(op: &Rotary, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let d = x.shape().last().copied().unwrap_or(0);
    if d == 0 || d % 2 != 0 {
        return Err(bad(format!("RotaryEmbedding needs an even last axis, found {:?}", x.shape())));
    }
    let half = d / 2;
    let mut table_shape = x.shape().to_vec();
    if op.table == RotaryTable::Half {
        table_shape[x.shape().len() - 1] = half;
    }
    let width = table_shape[x.shape().len() - 1];
    with_real!(x.dtype(), "RotaryEmbedding", T => {
        let spread = |t: &Tensor| -> Result<Vec<T>> {
            let data = load::<T>(t)?;
            let strides = broadcast_strides(t.shape(), &table_shape)?;
            Ok(Walk::new(&table_shape, [strides]).map(|[i]| data[i]).collect())
        };
        let (cos, sin) = (spread(cos)?, spread(sin)?);
        let mut data = load::<T>(x)?.into_owned();
        for (row, x) in data.chunks_exact_mut(d).enumerate() {
            let (cos, sin) = (&cos[row * width..][..width], &sin[row * width..][..width]);
            for i in 0..half {
                let (p, q) = if op.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (at_p, at_q) = if op.table == RotaryTable::Half { (i, i) } else { (p, q) };
                let (a, b) = (x[p], x[q]);
                x[p] = a * cos[at_p] - b * sin[at_p];
                x[q] = b * cos[at_q] + a * sin[at_q];
            }
        }
        store(x.dtype(), x.shape().to_vec(), data)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor(shape: &[usize], seed: u32) -> Tensor {
        let n: usize = shape.iter().product();
        let value =
            |i: usize| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed) >> 20) as f32 / 1024.0 - 2.0;
        Tensor::from_vec(shape.to_vec(), (0..n).map(value).collect()).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor) -> bool {
        a.shape() == b.shape() && a.to_f32().iter().zip(b.to_f32()).all(|(x, y)| (x - y).abs() < 1e-5)
    }

    const PLAIN: Attention =
        Attention { scale: 0.5, causal: false, window: None, softcap: None, safe: false };

    proptest! {
        /// A causal window over keys is the mask that says so, whatever the number of queries.
        #[test]
        fn causal_windows_are_masks(t in 1usize..6, s in 1usize..7, w in prop::option::of(1u32..5), group in 1usize..3, seed: u32) {
            let (q, k, v) = (tensor(&[2, 2 * group, t, 4], seed), tensor(&[2, s, 4], !seed), tensor(&[1, 2, s, 3], seed ^ 5));
            let offset = s as i64 - t as i64;
            let seen = |i: usize, j: usize| {
                let (i, j) = (i as i64 + offset, j as i64);
                j <= i && w.is_none_or(|w| j > i - i64::from(w))
            };
            let flags: Vec<bool> = (0..t * s).map(|at| seen(at / s, at % s)).collect();
            let mask = Tensor::from_bools(vec![t, s], &flags).unwrap();
            let op = Attention { causal: true, window: w, safe: true, ..PLAIN };
            let got = attention(&op, [&q, &k, &v], None, None, None).unwrap();
            let masked = attention(&Attention { safe: true, ..PLAIN }, [&q, &k, &v], Some(&mask), None, None).unwrap();
            prop_assert_eq!(got.shape(), [2, 2 * group, t, 3]);
            prop_assert!(close(&got, &masked));
        }

        /// Half tables serve both halves, so a full table of two equal halves is the same rotation; and
        /// interleaved pairs are split pairs in another order.
        #[test]
        fn rotary_variants_agree(rows in 1usize..4, half in 1usize..4, seed: u32) {
            let (x, cos, sin) = (tensor(&[2, rows, 2 * half], seed), tensor(&[rows, half], seed ^ 1), tensor(&[rows, half], seed ^ 2));
            let rotate = |interleaved, table, x: &Tensor, cos: &Tensor, sin: &Tensor| {
                rotary(&Rotary { interleaved, table }, x, cos, sin).unwrap()
            };
            let split = rotate(false, RotaryTable::Half, &x, &cos, &sin);
            let doubled = |t: &Tensor| crate::eval::movement::concat(&[t, t], 1).unwrap();
            prop_assert!(close(&split, &rotate(false, RotaryTable::Full, &x, &doubled(&cos), &doubled(&sin))));

            let shuffled = |t: &Tensor| {
                let at: Vec<i64> = (0..2 * half as i64).map(|i| i / 2 + i % 2 * half as i64).collect();
                crate::eval::indexing::gather(t, &Tensor::ints(&at), t.shape().len() - 1).unwrap()
            };
            let pairs = rotate(true, RotaryTable::Half, &shuffled(&x), &cos, &sin);
            prop_assert!(close(&shuffled(&split), &pairs));
            let (cos, sin) = (shuffled(&doubled(&cos)), shuffled(&doubled(&sin)));
            prop_assert!(close(&pairs, &rotate(true, RotaryTable::Full, &shuffled(&x), &cos, &sin)));
        }
    }

    #[test]
    fn rows_without_keys() {
        let (q, k, v) = (tensor(&[1, 2, 4], 1), tensor(&[1, 3, 4], 2), tensor(&[1, 3, 4], 3));
        let mask = Tensor::from_bools(vec![2, 3], &[false, false, false, true, false, true]).unwrap();
        let rows = |safe| {
            attention(&Attention { safe, ..PLAIN }, [&q, &k, &v], Some(&mask), None, None).unwrap().to_f32()
        };
        assert!(rows(false)[..4].iter().all(|x| x.is_nan()));
        assert_eq!(rows(true)[..4], [0.0; 4]);
        assert_eq!(rows(true)[4..], rows(false)[4..]);
    }

    /// A sink is one more key of that score whose value is zero.
    #[test]
    fn sinks_are_keys() {
        let (q, k, v) = (tensor(&[2, 3, 4], 1), tensor(&[2, 5, 4], 2), tensor(&[2, 5, 3], 3));
        let sinks = Tensor::from_vec(vec![2, 1, 1], vec![0.5f32, -3.0]).unwrap();
        let mut flags = vec![true; 15];
        flags[..5].fill(false);
        let mask = Tensor::from_bools(vec![3, 5], &flags).unwrap();
        let got = attention(&PLAIN, [&q, &k, &v], Some(&mask), Some(&sinks), None).unwrap();
        let longer = |t: &Tensor, last: usize| {
            let zeros = Tensor::from_vec(vec![2, 1, last], vec![0f32; 2 * last]).unwrap();
            crate::eval::movement::concat(&[t, &zeros], 1).unwrap()
        };
        let scores = |h: usize, i: usize, j: usize| match j {
            5 => [0.5, -3.0][h],
            _ if flags[i * 5 + j] => 0.0,
            _ => f32::NEG_INFINITY,
        };
        let bias: Vec<f32> = (0..36).map(|at| scores(at / 18, at / 6 % 3, at % 6)).collect();
        let bias = Tensor::from_vec(vec![2, 3, 6], bias).unwrap();
        let want = attention(&PLAIN, [&q, &longer(&k, 4), &longer(&v, 3)], Some(&bias), None, None).unwrap();
        assert!(close(&got, &want));
        assert_eq!(got.to_f32()[..3], [0.0; 3]);
    }

    #[test]
    fn heads_must_divide() {
        let (q, k) = (tensor(&[3, 2, 4], 1), tensor(&[2, 2, 4], 2));
        assert!(
            attention(&PLAIN, [&q, &k, &k], None, None, None).unwrap_err().to_string().contains("[3, 2, 4]")
        );
    }
}
