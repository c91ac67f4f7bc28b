//! Element types as the operators compute with them.

use std::borrow::Cow;

use half::{bf16, f16};

use super::{EvalError, Result, bad};
use crate::ir::{DType, Element, Tensor};

/// A number; integer arithmetic wraps.
pub(super) trait Number: Element + PartialOrd {
    const ZERO: Self;
    const ONE: Self;
    /// Whether division by zero is an error.
    const EXACT: bool;
    /// Smallest value (`-inf` for floats).
    const LOWEST: Self;
    /// Largest value (`inf` for floats).
    const HIGHEST: Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// Truncating for integers; the divisor is not an integer zero.
    fn over(self, other: Self) -> Self;
    /// Remainder with the sign of the divisor; the divisor is not an integer zero.
    fn modulo(self, other: Self) -> Self;
    /// Remainder with the sign of the dividend; the divisor is not an integer zero.
    fn remainder(self, other: Self) -> Self;
    /// Integers to a non-negative integer power wrap.
    fn power(self, other: Self) -> Self;
    fn magnitude(self) -> Self;
    fn nan(self) -> bool;
    fn as_f64(self) -> f64;
    /// Rounds to the nearest float or truncates, saturating, to an integer.
    fn of_f64(x: f64) -> Self;

    /// `c [m, n] += a [m, k] · b [k, n]`, dense and row-major; the slices are as long as that.
    fn add_product(a: &[Self], b: &[Self], c: &mut [Self], size: [usize; 3]);

    /// The smaller of two; NaN if one is.
    fn least(self, other: Self) -> Self {
        if self < other || self.nan() { self } else { other }
    }

    /// The larger of two; NaN if one is.
    fn greatest(self, other: Self) -> Self {
        if self > other || self.nan() { self } else { other }
    }
}

macro_rules! integers {
    ($($t:ident: $magnitude:expr),*) => { $(impl Number for $t {
        const ZERO: Self = 0;
        const ONE: Self = 1;
        const EXACT: bool = true;
        const LOWEST: Self = $t::MIN;
        const HIGHEST: Self = $t::MAX;
        fn plus(self, other: Self) -> Self {
            self.wrapping_add(other)
        }
        fn minus(self, other: Self) -> Self {
            self.wrapping_sub(other)
        }
        fn times(self, other: Self) -> Self {
            self.wrapping_mul(other)
        }
        fn over(self, other: Self) -> Self {
            if other == 0 { 0 } else { self.wrapping_div(other) }
        }
        #[allow(unused_comparisons)]
        fn modulo(self, other: Self) -> Self {
            let r = self.remainder(other);
            if r != 0 && (r < 0) != (other < 0) { r.wrapping_add(other) } else { r }
        }
        fn remainder(self, other: Self) -> Self {
            if other == 0 { 0 } else { self.wrapping_rem(other) }
        }
        fn power(self, other: Self) -> Self {
            match u32::try_from(other) {
                Ok(n) => self.wrapping_pow(n),
                Err(_) => Self::of_f64(self.as_f64().powf(other.as_f64())),
            }
        }
        fn add_product(a: &[Self], b: &[Self], c: &mut [Self], size: [usize; 3]) {
            super::matmul::plain_product(a, b, c, size);
        }
        fn magnitude(self) -> Self {
            $magnitude(self)
        }
        fn nan(self) -> bool {
            false
        }
        fn as_f64(self) -> f64 {
            self as f64
        }
        fn of_f64(x: f64) -> Self {
            x as $t
        }
    })* };
}
integers!(i8: i8::wrapping_abs, i16: i16::wrapping_abs, i32: i32::wrapping_abs, i64: i64::wrapping_abs,
          u8: |x| x, u16: |x| x, u32: |x| x, u64: |x| x);

macro_rules! reals {
    ($($t:ident, $erf:path);*) => { $(
    impl Number for $t {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        const EXACT: bool = false;
        const LOWEST: Self = $t::NEG_INFINITY;
        const HIGHEST: Self = $t::INFINITY;
        fn plus(self, other: Self) -> Self {
            self + other
        }
        fn minus(self, other: Self) -> Self {
            self - other
        }
        fn times(self, other: Self) -> Self {
            self * other
        }
        fn over(self, other: Self) -> Self {
            self / other
        }
        fn modulo(self, other: Self) -> Self {
            let r = self % other;
            if r != 0.0 && (r < 0.0) != (other < 0.0) { r + other } else { r }
        }
        fn remainder(self, other: Self) -> Self {
            self % other
        }
        fn power(self, other: Self) -> Self {
            self.powf(other)
        }
        fn add_product(a: &[Self], b: &[Self], c: &mut [Self], size: [usize; 3]) {
            super::matmul::blocked_product(a, b, c, size);
        }
        fn magnitude(self) -> Self {
            self.abs()
        }
        fn nan(self) -> bool {
            self.is_nan()
        }
        fn as_f64(self) -> f64 {
            f64::from(self)
        }
        fn of_f64(x: f64) -> Self {
            x as $t
        }
    }
    impl Real for $t {
        fn erf(self) -> Self {
            $erf(self)
        }
        fn round_half_even(self) -> Self {
            self.round_ties_even()
        }
    })* };
}
reals!(f32, libm::erff; f64, libm::erf);

/// f32 or f64: what floats are computed in.
pub(super) trait Real: Number + num_traits::Float {
    /// The error function.
    fn erf(self) -> Self;
    /// To the nearest integer, halves to even.
    fn round_half_even(self) -> Self;
}

/// Runs the body with `$t` as the type to compute in for a number dtype; other dtypes give
/// "`$op` on bool" as the error.
macro_rules! with_number {
    ($dtype:expr, $op:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::ir::DType::I8 => { type $t = i8; $body }
            $crate::ir::DType::I16 => { type $t = i16; $body }
            $crate::ir::DType::I32 => { type $t = i32; $body }
            $crate::ir::DType::I64 => { type $t = i64; $body }
            $crate::ir::DType::U8 => { type $t = u8; $body }
            $crate::ir::DType::U16 => { type $t = u16; $body }
            $crate::ir::DType::U32 => { type $t = u32; $body }
            $crate::ir::DType::U64 => { type $t = u64; $body }
            other => $crate::eval::number::with_real!(other, $op, $t => $body),
        }
    };
}

/// The same for float dtypes only.
macro_rules! with_real {
    ($dtype:expr, $op:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::ir::DType::F32 | $crate::ir::DType::F16 | $crate::ir::DType::BF16 => {
                type $t = f32;
                $body
            }
            $crate::ir::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err($crate::eval::shape::undefined($op, other)),
        }
    };
}

/// The same for integer dtypes only.
macro_rules! with_int {
    ($dtype:expr, $op:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::ir::DType::I8 => {
                type $t = i8;
                $body
            }
            $crate::ir::DType::I16 => {
                type $t = i16;
                $body
            }
            $crate::ir::DType::I32 => {
                type $t = i32;
                $body
            }
            $crate::ir::DType::I64 => {
                type $t = i64;
                $body
            }
            $crate::ir::DType::U8 => {
                type $t = u8;
                $body
            }
            $crate::ir::DType::U16 => {
                type $t = u16;
                $body
            }
            $crate::ir::DType::U32 => {
                type $t = u32;
                $body
            }
            $crate::ir::DType::U64 => {
                type $t = u64;
                $body
            }
            other => Err($crate::eval::shape::undefined($op, other)),
        }
    };
}
pub(super) use {with_int, with_number, with_real};

/// The elements to compute with: the tensor's own (u8 also for bool), or floats converted to another
/// float type.
pub(super) fn load<T: Number>(t: &Tensor) -> Result<Cow<'_, [T]>> {
    if let Some(own) = t.as_slice::<T>() {
        return Ok(own);
    }
    let wide = |x: f64| T::of_f64(x);
    if T::DTYPE.is_float() {
        if let Some(halves) = t.as_slice::<f16>() {
            return Ok(Cow::Owned(halves.iter().map(|x| wide((*x).into())).collect()));
        }
        if let Some(halves) = t.as_slice::<bf16>() {
            return Ok(Cow::Owned(halves.iter().map(|x| wide((*x).into())).collect()));
        }
        if t.dtype().is_float() {
            return Ok(Cow::Owned(t.to_f64().into_iter().map(wide).collect()));
        }
    }
    Err(bad(format!("expected a {} operand, found {}", T::DTYPE, t.dtype())))
}

/// A tensor of `dtype` from what was computed in `T`: rounds to f16 and bf16, reads u8 as bool.
pub(super) fn store<T: Number>(dtype: DType, shape: Vec<usize>, data: Vec<T>) -> Result<Tensor> {
    fn halves<T: Number, H: Element>(shape: Vec<usize>, data: &[T], f: fn(f64) -> H) -> Result<Tensor> {
        Ok(Tensor::from_vec(shape, data.iter().map(|x| f(x.as_f64())).collect())?)
    }
    match dtype {
        d if d == T::DTYPE => Ok(Tensor::from_vec(shape, data)?),
        DType::F16 => halves(shape, &data, f16::from_f64),
        DType::BF16 => halves(shape, &data, bf16::from_f64),
        DType::Bool if T::DTYPE == DType::U8 => {
            let bytes: Vec<u8> = bytemuck::cast_slice(&data).to_vec();
            Ok(Tensor::from_bytes(dtype, shape, bytes.into())?)
        }
        other => Err(EvalError::Unsupported(format!("{} results as {other}", T::DTYPE))),
    }
}

/// Checks that operands that are combined have one dtype.
pub(super) fn same_dtype(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dtype() == b.dtype() {
        Ok(())
    } else {
        Err(bad(format!("operands are {} and {} but must be of one type", a.dtype(), b.dtype())))
    }
}
