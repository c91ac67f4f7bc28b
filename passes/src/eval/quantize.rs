//! Quantisation: integers with a scale and a zero point.

use super::elementwise::binary;
use super::matmul::matmul;
use super::number::{Number, Real, load, store, with_real};
use super::shape::{broadcast, count, product, strides};
use super::window::conv;
use super::{Answer, EvalError, Operands, Result, bad, cast, one};
use crate::ir::{Binary, Blocks, DType, Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    Ok(match op {
        Op::Quantize { to, blocks } => one(quantize(o.get(0)?, o.get(1)?, o.optional(2), *to, *blocks)?),
        Op::Dequantize { blocks } => one(dequantize(o.get(0)?, o.get(1)?, o.optional(2), *blocks)?),
        Op::DynamicQuantize { axes } => Some(dynamic(o.get(0)?, axes)?),
        Op::ConvInteger { window, group } => {
            let (x, w) = (shifted(o.get(0)?, o.optional(2))?, shifted(o.get(1)?, o.optional(3))?);
            one(conv(&x, &w, None, window, *group)?)
        }
        Op::MatMulInteger => one(matmul_integer(o.get(0)?, o.get(1)?, o.optional(2), o.optional(3))?),
        _ => None,
    })
}

/// `saturate(round(x / scale) + zero)` as `to`, halves to even.
fn quantize(
    x: &Tensor,
    scale: &Tensor,
    zero: Option<&Tensor>,
    to: DType,
    blocks: Option<Blocks>,
) -> Result<Tensor> {
    let (low, high) = to.range().ok_or_else(|| bad(format!("{to} is no type to quantise to")))?;
    let grid = Grid::new(x, scale, zero, blocks)?;
    let zeros = grid.zeros(zero, to)?;
    let integers = with_real!(x.dtype(), "QuantizeLinear", T => {
        let (x, scale) = (load::<T>(x)?, load::<T>(scale)?);
        let at = |i: usize| {
            let [x_at, scale_at, zero_at] = grid.at(i);
            // The conversion saturates, and so must the sum.
            let steps = (x[x_at] / scale[scale_at]).round_half_even().as_f64() as i64;
            steps.saturating_add(zeros[zero_at]).clamp(low, high)
        };
        Ok((0..grid.count).map(at).collect::<Vec<i64>>())
    })?;
    cast::cast(&Tensor::ints(&integers).reshaped(grid.shape)?, to)
}

/// `(x - zero) · scale` in the scale's type.
fn dequantize(x: &Tensor, scale: &Tensor, zero: Option<&Tensor>, blocks: Option<Blocks>) -> Result<Tensor> {
    let grid = Grid::new(x, scale, zero, blocks)?;
    let zeros = grid.zeros(zero, x.dtype())?;
    let x = x.to_i64().ok_or_else(|| bad(format!("x must be integers, found {}", x.dtype())))?;
    with_real!(scale.dtype(), "DequantizeLinear", T => {
        let factors = load::<T>(scale)?;
        let at = |i: usize| {
            let [x_at, scale_at, zero_at] = grid.at(i);
            T::of_f64((x[x_at] - zeros[zero_at]) as f64) * factors[scale_at]
        };
        let data = (0..grid.count).map(at).collect();
        store(scale.dtype(), grid.shape.clone(), data)
    })
}

/// The elements of a result and where each finds its operands.
struct Grid {
    shape: Vec<usize>,
    count: usize,
    /// Per operand (x, scale, zero point) and axis: the stride, and how many neighbours share an element.
    steps: [Vec<(usize, usize)>; 3],
}

impl Grid {
    fn new(x: &Tensor, scale: &Tensor, zero: Option<&Tensor>, blocks: Option<Blocks>) -> Result<Grid> {
        let zero_shape = zero.map_or(&[][..], Tensor::shape);
        let mut shape = x.shape().to_vec();
        for parameter in [scale.shape(), zero_shape] {
            let mut whole = parameter.to_vec();
            if let Some(axis) = spread_axis(parameter, blocks) {
                let misfit = || bad(format!("blocks {blocks:?} of {:?} by {parameter:?}", x.shape()));
                let size = *x.shape().get(axis).ok_or_else(misfit)?;
                let blocks = blocks.map_or(1, |b| b.size).max(1);
                if parameter.len() != x.shape().len() || size.div_ceil(blocks) != parameter[axis] {
                    return Err(misfit());
                }
                whole[axis] = size;
            }
            shape = broadcast(&shape, &whole)?;
        }
        let steps =
            [(x.shape(), None), (scale.shape(), blocks), (zero_shape, blocks)].map(|(own, blocks)| {
                let spread = spread_axis(own, blocks);
                let size = blocks.map_or(1, |b| b.size).max(1);
                let lead = shape.len() - own.len();
                let axes = own.iter().zip(strides(own)).enumerate().map(|(axis, (d, stride))| {
                    (if *d == 1 { 0 } else { stride as usize }, if spread == Some(axis) { size } else { 1 })
                });
                std::iter::repeat_n((0, 1), lead).chain(axes).collect()
            });
        Ok(Grid { count: count(DType::I64, &shape)?, shape, steps })
    }

    fn at(&self, index: usize) -> [usize; 3] {
        let mut out = [0; 3];
        let mut rest = index;
        for (axis, size) in self.shape.iter().enumerate().rev() {
            let i = rest % size;
            rest /= size;
            for (out, steps) in out.iter_mut().zip(&self.steps) {
                let (stride, shared) = steps[axis];
                *out += i / shared * stride;
            }
        }
        out
    }

    fn zeros(&self, zero: Option<&Tensor>, dtype: DType) -> Result<Vec<i64>> {
        let Some(zero) = zero else { return Ok(vec![0]) };
        let same = zero.dtype().unpacked() == dtype.unpacked();
        zero.to_i64()
            .filter(|_| same)
            .ok_or_else(|| bad(format!("the zero point is {}, the integers are {dtype}", zero.dtype())))
    }
}

/// The axis along which a parameter has one entry per block; none where it has a single entry.
fn spread_axis(parameter: &[usize], blocks: Option<Blocks>) -> Option<usize> {
    blocks.map(|b| b.axis).filter(|axis| parameter.get(*axis).is_some_and(|n| *n != 1))
}

/// `x` quantised by its extremes over `axes`: integers, scale, zero point.
fn dynamic(x: &Tensor, axes: &[usize]) -> Result<Vec<Tensor>> {
    let rank = x.shape().len();
    if let Some(axis) = axes.iter().find(|a| **a >= rank) {
        return Err(bad(format!("axis {axis} is outside a tensor of {rank} axes")));
    }
    // The kept axes in front, so that a row is what shares a scale.
    let kept: Vec<usize> = (0..rank).filter(|a| !axes.contains(a)).collect();
    let order: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let turned = super::movement::transpose(x, &order)?;
    let lead: Vec<usize> = kept.iter().map(|a| x.shape()[*a]).collect();
    let row = product(&turned.shape()[kept.len()..]);
    with_real!(x.dtype(), "DynamicQuantizeLinear", T => {
        let data = load::<T>(&turned)?;
        let (mut scales, mut zeros) = (vec![], vec![]);
        for i in 0..product(&lead) {
            let row = &data[i * row..][..row];
            let low = row.iter().fold(T::ZERO, |m, x| m.least(*x));
            let high = row.iter().fold(T::ZERO, |m, x| m.greatest(*x));
            let range = (high - low) / T::of_f64(255.0);
            let scale = if range == T::ZERO { T::ONE } else { range };
            scales.push(scale);
            let zero = (T::ZERO - low / scale).greatest(T::ZERO).least(T::of_f64(255.0));
            zeros.push(zero.round_half_even().as_f64() as u8);
        }
        let scale = store(x.dtype(), lead.clone(), scales)?;
        let zero = Tensor::from_vec(lead.clone(), zeros)?;
        let wide: Vec<usize> =
            (0..rank).map(|a| if axes.contains(&a) { 1 } else { x.shape()[a] }).collect();
        let integers = quantize(x, &scale.reshaped(wide.clone())?, Some(&zero.reshaped(wide)?), DType::U8, None)?;
        Ok(vec![integers, scale, zero])
    })
}

/// The product of `a` and `b` less their zero points, in i32.
fn matmul_integer(
    a: &Tensor,
    b: &Tensor,
    zero_a: Option<&Tensor>,
    zero_b: Option<&Tensor>,
) -> Result<Tensor> {
    matmul(&shifted(a, zero_a)?, &shifted(b, zero_b)?)
}

/// Integers of 8 bits less their zero point, in i32.
fn shifted(x: &Tensor, zero: Option<&Tensor>) -> Result<Tensor> {
    if !matches!(x.dtype(), DType::I8 | DType::U8) {
        return Err(EvalError::Unsupported(format!("a product of integers of {}", x.dtype())));
    }
    let wide = cast::cast(x, DType::I32)?;
    match zero {
        Some(zero) => binary(Binary::Sub, &wide, &cast::cast(zero, DType::I32)?),
        None => Ok(wide),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), data.to_vec()).unwrap()
    }

    #[test]
    fn halves_go_to_even_and_ends_saturate() {
        let x = floats(&[6], &[0.5, 1.5, -0.5, -1.5, 1e9, -1e9]);
        let one = Tensor::scalar(1f32);
        let q = quantize(&x, &one, Some(&Tensor::scalar(1i8)), DType::I8, None).unwrap();
        assert_eq!(q.to_i64().unwrap(), [1, 3, 1, -1, 127, -128]);
        let q = quantize(&x, &one, None, DType::U4, None).unwrap();
        assert_eq!((q.dtype(), q.to_i64().unwrap()), (DType::U4, vec![0, 2, 0, 0, 15, 0]));
    }

    #[test]
    fn blocks_share_scale_and_zero_point() {
        let x = Tensor::from_vec(vec![2, 5], (0..10u8).collect()).unwrap().packed(DType::U4);
        let scale = floats(&[2, 3], &[1.0, 10.0, 100.0, 2.0, 20.0, 200.0]);
        let zero = Tensor::from_vec(vec![2, 3], vec![0u8, 1, 2, 5, 6, 7]).unwrap().packed(DType::U4);
        let y = dequantize(&x, &scale, Some(&zero), Some(Blocks { axis: 1, size: 2 })).unwrap();
        assert_eq!(y.to_f32(), [0., 1., 10., 20., 200., 0., 2., 20., 40., 400.]);
        // Along the other axis, the last block shorter.
        let scale = floats(&[1, 5], &[1., 2., 3., 4., 5.]);
        let y = dequantize(&x, &scale, None, Some(Blocks { axis: 0, size: 7 })).unwrap();
        assert_eq!(y.to_f32(), [0., 2., 6., 12., 20., 5., 12., 21., 32., 45.]);
        assert!(dequantize(&x, &scale, None, Some(Blocks { axis: 1, size: 2 })).is_err());
    }

    #[test]
    fn every_kept_axis_has_its_own_extremes() {
        let x = floats(&[2, 3], &[0.0, 1.0, 255.0, 0.0, 0.0, 0.0]);
        let out = dynamic(&x, &[1]).unwrap();
        assert_eq!(out[0].to_i64().unwrap(), [0, 1, 255, 0, 0, 0]);
        // Where there is no range the scale is 1.
        assert_eq!((out[1].to_f32(), out[2].to_i64().unwrap()), (vec![1.0, 1.0], vec![0, 0]));
        let all = dynamic(&floats(&[2], &[-1.0, 254.0]), &[0]).unwrap();
        assert_eq!((all[1].shape(), all[2].to_i64().unwrap()), (&[][..], vec![1]));
    }

    #[test]
    fn zero_points_are_taken_off_before_the_product() {
        let a = Tensor::from_vec(vec![1, 2], vec![3u8, 250]).unwrap();
        let b = Tensor::from_vec(vec![2, 2], vec![-128i8, 1, 127, 2]).unwrap();
        let zero = Tensor::from_vec(vec![2], vec![1i8, 0]).unwrap();
        let y = matmul_integer(&a, &b, Some(&Tensor::scalar(200u8)), Some(&zero)).unwrap();
        assert_eq!(y.to_i64().unwrap(), [-197 * -129 + 50 * 126, -197 + 100]);
    }
}
