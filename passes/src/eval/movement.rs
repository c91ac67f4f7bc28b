//! Operators that put elements elsewhere without computing with them; they work on bytes.

use super::shape::{Walk, around, broadcast, broadcast_strides, check_axis, count, product, strides};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Op, PadMode, Tensor, element_count};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Reshape { allow_zero } => reshape(o.get(0)?, &o.ints(1)?, *allow_zero),
        Op::Transpose { perm } => transpose(o.get(0)?, perm),
        Op::Squeeze { axes } => squeeze(o.get(0)?, axes),
        Op::Unsqueeze { axes } => unsqueeze(o.get(0)?, axes),
        Op::Expand => expand(o.get(0)?, &o.sizes(1)?),
        Op::Concat { axis } => concat(&o.all()?, *axis),
        Op::Slice { axes, steps } => slice(o.get(0)?, &o.ints(1)?, &o.ints(2)?, axes, steps),
        Op::Tile => tile(o.get(0)?, &o.sizes(1)?),
        Op::Pad { mode } => pad(o.get(0)?, &o.ints(1)?, o.optional(2), *mode),
        Op::Trilu { upper } => {
            let k = if o.optional(1).is_some() { o.int(1)? } else { 0 };
            trilu(o.get(0)?, k, *upper)
        }
        _ => return Ok(None),
    };
    result.map(one)
}

/// Reads `x` at `base` with `strides` (in elements) as a dense tensor of `shape`; every offset that the
/// walk meets lies within `x`.
fn strided(x: &Tensor, shape: Vec<usize>, base: isize, strides: &[isize]) -> Result<Tensor> {
    let size = x.dtype().size();
    let mut out = Vec::with_capacity(count(x.dtype(), &shape)? * size);
    // The trailing axes that lie dense in `x` are copied as one run.
    let (mut run, mut lead) = (1, shape.len());
    while lead > 0 && strides[lead - 1] == run as isize {
        lead -= 1;
        run *= shape[lead];
    }
    let bytes = x.bytes();
    for [at] in Walk::new(&shape[..lead], [strides[..lead].to_vec()]).starting_at([base]) {
        out.extend_from_slice(&bytes[at * size..][..run * size]);
    }
    Ok(Tensor::from_bytes(x.dtype(), shape, out.into())?)
}

/// `-1` takes what is left over, `0` copies the operand's size unless `allow_zero`.
fn reshape(x: &Tensor, to: &[i64], allow_zero: bool) -> Result<Tensor> {
    let fail = || bad(format!("cannot reshape {:?} to {to:?}", x.shape()));
    let mut shape = Vec::with_capacity(to.len());
    let mut rest = None;
    for (i, d) in to.iter().enumerate() {
        shape.push(match d {
            -1 if rest.is_none() => {
                rest = Some(i);
                1
            }
            0 if !allow_zero => *x.shape().get(i).ok_or_else(fail)?,
            d => usize::try_from(*d).map_err(|_| fail())?,
        });
    }
    if let Some(i) = rest {
        let others = element_count(&shape).filter(|n| *n > 0).ok_or_else(fail)?;
        shape[i] = x.len() / others;
    }
    if element_count(&shape) != Some(x.len()) {
        return Err(fail());
    }
    Ok(x.reshaped(shape)?)
}

/// Axis `i` of the result is axis `perm[i]` of `x`.
pub(super) fn transpose(x: &Tensor, perm: &[usize]) -> Result<Tensor> {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if sorted.len() != x.shape().len() || sorted.iter().enumerate().any(|(i, p)| i != *p) {
        return Err(bad(format!("{perm:?} does not permute the axes of {:?}", x.shape())));
    }
    let from = strides(x.shape());
    let shape = perm.iter().map(|p| x.shape()[*p]).collect();
    strided(x, shape, 0, &perm.iter().map(|p| from[*p]).collect::<Vec<_>>())
}

/// Without `axes`, which have size 1.
fn squeeze(x: &Tensor, axes: &[usize]) -> Result<Tensor> {
    for axis in axes {
        check_axis(*axis, x.shape())?;
        if x.shape()[*axis] != 1 {
            return Err(bad(format!("cannot squeeze axis {axis} of {:?}", x.shape())));
        }
    }
    let kept = x.shape().iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| *d).collect();
    Ok(x.reshaped(kept)?)
}

/// With `axes` of size 1; they are sorted axes of the result.
fn unsqueeze(x: &Tensor, axes: &[usize]) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    for axis in axes {
        if *axis > shape.len() {
            return Err(bad(format!("cannot unsqueeze axes {axes:?} of {:?}", x.shape())));
        }
        shape.insert(*axis, 1);
    }
    Ok(x.reshaped(shape)?)
}

/// `x` broadcast together with `to`.
pub(super) fn expand(x: &Tensor, to: &[usize]) -> Result<Tensor> {
    let shape = broadcast(x.shape(), to)?;
    let strides = broadcast_strides(x.shape(), &shape)?;
    strided(x, shape, 0, &strides)
}

/// The operands one after the other along `axis`.
pub(super) fn concat(xs: &[&Tensor], axis: usize) -> Result<Tensor> {
    let first = xs.first().ok_or_else(|| bad("nothing to concatenate"))?;
    check_axis(axis, first.shape())?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    for x in xs {
        super::number::same_dtype(first, x)?;
        let fits = x.shape().len() == shape.len()
            && x.shape().iter().zip(&shape).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !fits {
            let (a, b) = (first.shape(), x.shape());
            return Err(bad(format!("cannot concatenate {a:?} and {b:?} on axis {axis}")));
        }
        shape[axis] = shape[axis].saturating_add(x.shape()[axis]);
    }
    let size = first.dtype().size();
    let mut out = Vec::with_capacity(count(first.dtype(), &shape)? * size);
    let pieces: Vec<_> = xs.iter().map(|x| (x.bytes(), product(&x.shape()[axis..]) * size)).collect();
    for i in 0..product(&shape[..axis]) {
        for (bytes, run) in &pieces {
            out.extend_from_slice(&bytes[i * run..][..*run]);
        }
    }
    Ok(Tensor::from_bytes(first.dtype(), shape, out.into())?)
}

/// `x[starts:ends:steps]` on `axes`, clamped as in Python.
fn slice(x: &Tensor, starts: &[i64], ends: &[i64], axes: &[usize], steps: &[i64]) -> Result<Tensor> {
    if [starts.len(), ends.len(), steps.len()] != [axes.len(); 3] {
        let lengths = [starts.len(), ends.len(), steps.len()];
        return Err(bad(format!("starts, ends and steps have {lengths:?} elements for {} axes", axes.len())));
    }
    let (mut shape, mut strides) = (x.shape().to_vec(), strides(x.shape()));
    let mut base = 0;
    for (i, axis) in axes.iter().enumerate() {
        check_axis(*axis, x.shape())?;
        let (size, step) = (x.shape()[*axis] as i64, steps[i]);
        let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (start, end) = (from_end(starts[i]), from_end(ends[i]));
        let (first, span) = match step {
            0 => return Err(bad(format!("the step of axis {axis} is 0"))),
            1.. => {
                let first = start.clamp(0, size);
                (first, end.clamp(0, size) - first)
            }
            _ => {
                let first = start.min(size - 1).max(-1);
                (first, first - end.clamp(-1, size - 1).min(first))
            }
        };
        let length = if span <= 0 { 0 } else { (span as u64).div_ceil(step.unsigned_abs()) };
        if length > 0 {
            base += first as isize * strides[*axis];
        }
        shape[*axis] = length as usize;
        // A stride is used only where two elements are taken, and then it is shorter than the axis.
        strides[*axis] = strides[*axis].saturating_mul(step as isize);
    }
    strided(x, shape, base, &strides)
}

/// `x` repeated `repeats[i]` times along axis `i`.
fn tile(x: &Tensor, repeats: &[usize]) -> Result<Tensor> {
    if repeats.len() != x.shape().len() {
        return Err(bad(format!("{} repeats for {} axes", repeats.len(), x.shape().len())));
    }
    // Read as [r0, d0, r1, d1, ..] with the repeated axes standing still.
    let pairs = |a: &[usize]| repeats.iter().zip(a).flat_map(|(r, d)| [*r, *d]).collect::<Vec<_>>();
    let steps: Vec<isize> = strides(x.shape()).into_iter().flat_map(|s| [0, s]).collect();
    let shape: Vec<usize> = repeats.iter().zip(x.shape()).map(|(r, d)| r.saturating_mul(*d)).collect();
    count(x.dtype(), &shape)?;
    Ok(strided(x, pairs(x.shape()), 0, &steps)?.reshaped(shape)?)
}

/// `pads` are begins, then ends; negative ones crop. Cropping comes before padding.
fn pad(x: &Tensor, pads: &[i64], value: Option<&Tensor>, mode: PadMode) -> Result<Tensor> {
    let rank = x.shape().len();
    if pads.len() != 2 * rank {
        return Err(bad(format!("{} pads for {rank} axes", pads.len())));
    }
    let size = x.dtype().size();
    let fill = match value {
        None => vec![0; size].into(),
        Some(v) if v.dtype() == x.dtype() && v.len() == 1 => v.bytes(),
        Some(v) => return Err(bad(format!("the value to pad {} with is {v:?}", x.dtype()))),
    };
    let fail = || bad(format!("cannot pad {:?} by {pads:?} ({mode:?})", x.shape()));
    let mut shape = Vec::with_capacity(rank);
    let mut sources: Vec<Vec<Option<usize>>> = Vec::with_capacity(rank);
    for (axis, (d, stride)) in x.shape().iter().zip(strides(x.shape())).enumerate() {
        let (begin, end) = (pads[axis], pads[axis + rank]);
        let (crop_begin, crop_end) =
            (begin.min(0).unsigned_abs() as usize, end.min(0).unsigned_abs() as usize);
        let kept = d.checked_sub(crop_begin).and_then(|k| k.checked_sub(crop_end)).ok_or_else(fail)?;
        let (begin, end) = (begin.max(0), end.max(0));
        let total =
            usize::try_from(begin.saturating_add(end).saturating_add(kept as i64)).map_err(|_| fail())?;
        shape.push(total);
        count(x.dtype(), &shape)?;
        let source = |i: usize| padded_from(i as i64 - begin, kept as i64, mode);
        let source = |i| source(i).map(|s| (s as usize + crop_begin) * stride as usize);
        sources.push((0..total).map(source).collect());
        if kept == 0 && total > 0 && mode != PadMode::Constant {
            return Err(fail());
        }
    }
    let mut out = Vec::with_capacity(count(x.dtype(), &shape)? * size);
    let bytes = x.bytes();
    let mut index = vec![0; rank];
    for _ in 0..product(&shape) {
        let at: Option<usize> = index.iter().zip(&sources).map(|(i, s): (&usize, _)| s[*i]).sum();
        out.extend_from_slice(match at {
            Some(at) => &bytes[at * size..][..size],
            None => &fill,
        });
        for axis in (0..rank).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(Tensor::from_bytes(x.dtype(), shape, out.into())?)
}

/// The element of an axis of size `n` that stands at position `i`, before 0 or after the end as well.
fn padded_from(i: i64, n: i64, mode: PadMode) -> Option<i64> {
    if (0..n).contains(&i) {
        return Some(i);
    }
    match mode {
        PadMode::Constant => None,
        _ if n == 0 => None,
        PadMode::Edge => Some(i.clamp(0, n - 1)),
        PadMode::Wrap => Some(i.rem_euclid(n)),
        PadMode::Reflect if n == 1 => Some(0),
        PadMode::Reflect => {
            let at = i.rem_euclid(2 * (n - 1));
            Some(at.min(2 * (n - 1) - at))
        }
    }
}

/// Zero below (`upper`) or above the `k`-th diagonal of the last two axes.
fn trilu(x: &Tensor, k: i64, upper: bool) -> Result<Tensor> {
    let [.., rows, cols] = *x.shape() else {
        return Err(bad(format!("Trilu needs two axes, found {:?}", x.shape())));
    };
    let size = x.dtype().size();
    let mut out = x.bytes().to_vec();
    for (at, element) in out.chunks_exact_mut(size).enumerate() {
        let (row, col) = ((at / cols % rows) as i64, (at % cols) as i64);
        let above = (col - row).cmp(&k);
        let keep = if upper { above.is_ge() } else { above.is_le() };
        if !keep {
            element.fill(0);
        }
    }
    Ok(Tensor::from_bytes(x.dtype(), x.shape().to_vec(), out.into())?)
}

/// The elements of `x` at positions `at` of `axis`, as `[outer, at, inner]` bytes.
pub(super) fn take(x: &Tensor, axis: usize, at: &[usize]) -> Result<Vec<u8>> {
    let a = around(x.shape(), axis)?;
    let run = a.inner * x.dtype().size();
    let bytes = x.bytes();
    let mut out = Vec::with_capacity(a.outer * at.len() * run);
    for outer in 0..a.outer {
        for i in at {
            out.extend_from_slice(&bytes[(outer * a.size + i) * run..][..run]);
        }
    }
    Ok(out)
}
