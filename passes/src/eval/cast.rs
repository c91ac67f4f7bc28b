//! Conversions between element types.

use half::{bf16, f16};

use super::{Answer, Operands, Result, one};
use crate::ir::{DType, Element, Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Identity => o.get(0).cloned(),
        Op::Cast { to } => cast(o.get(0)?, *to),
        _ => return Ok(None),
    };
    result.map(one)
}

/// The elements, one by one, wide enough to hold every value of the source type exactly.
enum Wide<'a> {
    Int(Box<dyn Iterator<Item = i128> + 'a>),
    Real(Box<dyn Iterator<Item = f64> + 'a>),
}

impl<'a> Wide<'a> {
    fn of(x: &'a Tensor) -> Self {
        fn ints<T: Element + Into<i128>>(x: &Tensor) -> Wide<'_> {
            Wide::Int(Box::new(each::<T>(x).map(Into::into)))
        }
        fn reals<T: Element + Into<f64>>(x: &Tensor) -> Wide<'_> {
            Wide::Real(Box::new(each::<T>(x).map(Into::into)))
        }
        match x.dtype() {
            DType::F32 => reals::<f32>(x),
            DType::F16 => reals::<f16>(x),
            DType::BF16 => reals::<bf16>(x),
            DType::F64 => reals::<f64>(x),
            DType::I8 => ints::<i8>(x),
            DType::I16 => ints::<i16>(x),
            DType::I32 => ints::<i32>(x),
            DType::I64 => ints::<i64>(x),
            DType::U8 | DType::Bool => ints::<u8>(x),
            DType::U16 => ints::<u16>(x),
            DType::U32 => ints::<u32>(x),
            DType::U64 => ints::<u64>(x),
            DType::I4 | DType::U4 => {
                Wide::Int(Box::new(x.to_i64().unwrap_or_default().into_iter().map(i128::from)))
            }
        }
    }
}

fn each<T: Element>(x: &Tensor) -> impl Iterator<Item = T> {
    let all = x.as_slice::<T>().unwrap_or_default();
    (0..all.len()).map(move |i| all[i])
}

/// `x` as `to`: floats truncate toward zero and saturate into integers (NaN gives 0), integers wrap into
/// narrower ones, everything but zero is true, bools are 0 and 1.
pub(super) fn cast(x: &Tensor, to: DType) -> Result<Tensor> {
    if x.dtype() == to {
        return Ok(x.clone());
    }
    let shape = x.shape().to_vec();
    super::shape::count(to, &shape)?;
    let wide = Wide::of(x);
    match to {
        DType::F32 => convert(shape, wide, |n| n as f32, |r| r as f32),
        DType::F64 => convert(shape, wide, |n| n as f64, |r| r),
        DType::F16 => convert(shape, wide, |n| f16::from_f64(n as f64), f16::from_f64),
        DType::BF16 => convert(shape, wide, |n| bf16::from_f64(n as f64), bf16::from_f64),
        DType::I8 => convert(shape, wide, |n| n as i8, |r| r as i8),
        DType::I16 => convert(shape, wide, |n| n as i16, |r| r as i16),
        DType::I32 => convert(shape, wide, |n| n as i32, |r| r as i32),
        DType::I64 => convert(shape, wide, |n| n as i64, |r| r as i64),
        DType::U8 => convert(shape, wide, |n| n as u8, |r| r as u8),
        DType::U16 => convert(shape, wide, |n| n as u16, |r| r as u16),
        DType::U32 => convert(shape, wide, |n| n as u32, |r| r as u32),
        DType::U64 => convert(shape, wide, |n| n as u64, |r| r as u64),
        DType::I4 => Ok(convert(shape, wide, |n| n as i8, |r| r.clamp(-8.0, 7.0) as i8)?.packed(to)),
        DType::U4 => Ok(convert(shape, wide, |n| n as u8, |r| r.clamp(0.0, 15.0) as u8)?.packed(to)),
        DType::Bool => {
            let flags: Vec<bool> = match wide {
                Wide::Int(v) => v.map(|n| n != 0).collect(),
                Wide::Real(v) => v.map(|r| r != 0.0).collect(),
            };
            Ok(Tensor::from_bools(shape, &flags)?)
        }
    }
}

fn convert<T: Element>(
    shape: Vec<usize>,
    wide: Wide<'_>,
    int: impl Fn(i128) -> T,
    real: impl Fn(f64) -> T,
) -> Result<Tensor> {
    let data = match wide {
        Wide::Int(v) => v.map(int).collect(),
        Wide::Real(v) => v.map(real).collect(),
    };
    Ok(Tensor::from_vec(shape, data)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to<T: Element>(x: &Tensor, to: DType) -> Vec<T> {
        cast(x, to).unwrap().as_slice::<T>().unwrap().into_owned()
    }

    #[test]
    fn floats_truncate_and_saturate() {
        let x = Tensor::from_vec(vec![5], vec![-1.9f32, 2.9, 1e20, f32::NAN, -0.0]).unwrap();
        assert_eq!(to::<i32>(&x, DType::I32), [-1, 2, i32::MAX, 0, 0]);
        assert_eq!(to::<u8>(&x, DType::U8), [0, 2, 255, 0, 0]);
        assert_eq!(to::<u8>(&x, DType::Bool), [1, 1, 1, 1, 0]);
    }

    #[test]
    fn integers_wrap() {
        let x = Tensor::ints(&[-1, 256, 300, i64::MAX]);
        assert_eq!(to::<u8>(&x, DType::U8), [255, 0, 44, 255]);
        let big = Tensor::from_vec(vec![1], vec![u64::MAX]).unwrap();
        assert_eq!(to::<i64>(&big, DType::I64), [-1]);
        assert_eq!(to::<f32>(&big, DType::F32), [u64::MAX as f32]);
    }

    #[test]
    fn narrow_floats_round_to_even_once() {
        let x = Tensor::from_vec(vec![2], vec![2049.0f32, 70000.0]).unwrap();
        assert_eq!(to::<f16>(&x, DType::F16), [f16::from_f32(2048.0), f16::INFINITY]);
        let b = Tensor::from_bools(vec![2], &[true, false]).unwrap();
        assert_eq!(to::<f32>(&b, DType::F32), [1.0, 0.0]);
    }
}
