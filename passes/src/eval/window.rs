//! Convolutions and pooling.

use super::number::{Number, load, same_dtype, store, with_number, with_real};
use super::shape::{count, product, strides};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Op, Tensor, Window};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Conv { window, group } => conv(o.get(0)?, o.get(1)?, o.optional(2), window, *group),
        Op::GlobalAveragePool => global_average_pool(o.get(0)?),
        Op::AveragePool { window, kernel, count_include_pad } => {
            average_pool(o.get(0)?, window, kernel, *count_include_pad)
        }
        Op::MaxPool { window, kernel } => max_pool(o.get(0)?, window, kernel),
        _ => return Ok(None),
    };
    result.map(one)
}

/// Where a window lies for each position of the result.
struct Placement {
    /// Spatial sizes of the result.
    result: Vec<usize>,
    input: Vec<usize>,
    kernel: Vec<usize>,
    window: Window,
}

impl Placement {
    /// Checks `window` for an input of spatial sizes `input`.
    fn new(input: &[usize], kernel: &[usize], window: &Window) -> Result<Self> {
        let rank = input.len();
        let fail = || bad(format!("a window {kernel:?} with {window:?} does not fit spatial axes {input:?}"));
        let lengths = [kernel.len(), window.strides.len(), window.dilations.len(), window.pads.len() / 2];
        if lengths != [rank; 4] || window.strides.contains(&0) || kernel.contains(&0) {
            return Err(fail());
        }
        let size = |i: usize| {
            let padded = input[i].checked_add(window.pads[i])?.checked_add(window.pads[i + rank])?;
            let reach = window.dilations[i].checked_mul(kernel[i] - 1)?.checked_add(1)?;
            Some(padded.checked_sub(reach)? / window.strides[i] + 1)
        };
        let result = (0..rank).map(size).collect::<Option<_>>().ok_or_else(fail)?;
        Ok(Placement { result, input: input.to_vec(), kernel: kernel.to_vec(), window: window.clone() })
    }

    /// For each position of the result, in row-major order: the `(kernel element, input element)` pairs
    /// inside the input, and how many kernel elements lie within the input and its padding.
    fn for_each(&self, mut f: impl FnMut(usize, &[(usize, usize)], usize)) {
        let w = &self.window;
        let rank = self.input.len();
        let steps = strides(&self.input);
        let index = |shape: &[usize], at: usize, axis: usize| at / product(&shape[axis + 1..]) % shape[axis];
        let mut taps = Vec::new();
        for at in 0..product(&self.result) {
            taps.clear();
            let mut padded = 0;
            for k in 0..product(&self.kernel) {
                let (mut inside, mut in_padding, mut offset) = (true, true, 0);
                for (axis, step) in steps.iter().enumerate() {
                    let position = index(&self.result, at, axis) * w.strides[axis]
                        + index(&self.kernel, k, axis) * w.dilations[axis];
                    in_padding &= position < self.input[axis] + w.pads[axis] + w.pads[axis + rank];
                    match position.checked_sub(w.pads[axis]).filter(|p| *p < self.input[axis]) {
                        Some(p) => offset += p * *step as usize,
                        None => inside = false,
                    }
                }
                padded += usize::from(in_padding);
                if inside {
                    taps.push((k, offset));
                }
            }
            f(at, &taps, padded);
        }
    }
}

/// Splits `[N, C, spatial..]`.
fn channels(x: &Tensor) -> Result<(usize, usize, &[usize])> {
    match x.shape() {
        [n, c, spatial @ ..] => Ok((*n, *c, spatial)),
        other => Err(bad(format!("expected batch, channel and spatial axes, found {other:?}"))),
    }
}

/// Cross-correlation of `x [N, C, ..]` with `w [M, C / group, ..]`, plus `b [M]`.
pub(super) fn conv(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    window: &Window,
    group: usize,
) -> Result<Tensor> {
    same_dtype(x, w)?;
    let ((n, c, spatial), (m, c_group, kernel)) = (channels(x)?, channels(w)?);
    let bias_fits = b.is_none_or(|b| b.shape() == [m]);
    if group == 0 || c != c_group.saturating_mul(group) || m % group != 0 || !bias_fits {
        let (x, w, b) = (x.shape(), w.shape(), b.map(Tensor::shape));
        return Err(bad(format!("weights {w:?} and bias {b:?} of {group} groups do not fit an input {x:?}")));
    }
    let place = Placement::new(spatial, kernel, window)?;
    let shape: Vec<usize> = [n, m].iter().chain(&place.result).copied().collect();
    with_number!(x.dtype(), "Conv", T => {
        let (data, weights) = (load::<T>(x)?, load::<T>(w)?);
        let bias = b.map(load::<T>).transpose()?;
        let mut out = vec![T::ZERO; count(x.dtype(), &shape)?];
        let (area, from, taken) = (product(&place.result), product(spatial), product(kernel));
        place.for_each(|at, taps, _| {
            for (row, i) in (0..n * m).map(|row| (row, row % m)) {
                let first = row / m * c + i / (m / group) * c_group;
                let mut sum = bias.as_ref().map_or(T::ZERO, |b| b[i]);
                for channel in 0..c_group {
                    let plane = &data[(first + channel) * from..][..from];
                    let kernel = &weights[(i * c_group + channel) * taken..][..taken];
                    sum = taps.iter().fold(sum, |s, (k, o)| s.plus(plane[*o].times(kernel[*k])));
                }
                out[row * area + at] = sum;
            }
        });
        store(x.dtype(), shape, out)
    })
}

/// The mean over all spatial axes, which stay with size 1.
fn global_average_pool(x: &Tensor) -> Result<Tensor> {
    let (_, _, spatial) = channels(x)?;
    let axes: Vec<usize> = (2..2 + spatial.len()).collect();
    if !x.dtype().is_float() {
        return Err(super::shape::undefined("GlobalAveragePool", x.dtype()));
    }
    super::reduce::reduce(crate::ir::Reduce::Mean, x, &axes, true)
}

/// Means over windows; padding counts only with `count_include_pad`.
fn average_pool(x: &Tensor, window: &Window, kernel: &[usize], count_include_pad: bool) -> Result<Tensor> {
    with_real!(x.dtype(), "AveragePool", T => pool::<T>(x, window, kernel, |taken, padded| {
        let n = if count_include_pad { padded } else { taken.len() };
        taken.iter().fold(T::ZERO, |s, v| s + *v) / T::of_f64(n as f64)
    }))
}

/// Largest elements of windows.
fn max_pool(x: &Tensor, window: &Window, kernel: &[usize]) -> Result<Tensor> {
    with_number!(x.dtype(), "MaxPool", T => pool::<T>(x, window, kernel, |taken, _| {
        taken.iter().fold(T::LOWEST, |m, v| m.greatest(*v))
    }))
}

/// `f` of the elements in each window and of how many with padding there are.
fn pool<T: Number>(
    x: &Tensor,
    window: &Window,
    kernel: &[usize],
    f: impl Fn(&[T], usize) -> T,
) -> Result<Tensor> {
    let (n, c, spatial) = channels(x)?;
    let place = Placement::new(spatial, kernel, window)?;
    let shape: Vec<usize> = [n, c].iter().chain(&place.result).copied().collect();
    let data = load::<T>(x)?;
    let mut out = vec![T::ZERO; count(x.dtype(), &shape)?];
    let (area, from) = (product(&place.result), product(spatial));
    let mut taken = Vec::new();
    place.for_each(|at, taps, padded| {
        for row in 0..n * c {
            taken.clear();
            taken.extend(taps.iter().map(|(_, o)| data[row * from + o]));
            out[row * area + at] = f(&taken, padded);
        }
    });
    store(x.dtype(), shape, out)
}
