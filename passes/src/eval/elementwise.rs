//! Functions of single elements, with broadcasting.

use num_traits::{CheckedShl, CheckedShr, PrimInt};

use super::number::{Number, Real, load, same_dtype, store, with_int, with_number, with_real};
use super::shape::{Walk, broadcast, broadcast_strides, count, undefined};
use super::{Answer, EvalError, Operands, Result, bad, one};
use crate::ir::{Binary, DType, Op, Tensor, Unary};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    let result = match op {
        Op::Unary(u) => unary(*u, o.get(0)?),
        Op::Binary(b) => binary(*b, o.get(0)?, o.get(1)?),
        Op::Where => select(o.get(0)?, o.get(1)?, o.get(2)?),
        Op::Clip => clip(o.get(0)?, o.optional(1), o.optional(2)),
        _ => return Ok(None),
    };
    result.map(one)
}

/// `u(x)`.
fn unary(u: Unary, x: &Tensor) -> Result<Tensor> {
    let name = Op::Unary(u).name();
    let dtype = x.dtype();
    match u {
        Unary::Not if dtype == DType::Bool => {
            let flipped: Vec<bool> = load::<u8>(x)?.iter().map(|b| *b == 0).collect();
            Ok(Tensor::from_bools(x.shape().to_vec(), &flipped)?)
        }
        Unary::Not => Err(undefined(name, dtype)),
        Unary::IsNan => predicate(x, &name, f64::is_nan),
        Unary::IsInf { negative, positive } => {
            predicate(x, &name, |v| (negative && v == f64::NEG_INFINITY) || (positive && v == f64::INFINITY))
        }
        Unary::BitwiseNot => with_int!(dtype, name, T => {
            store(dtype, x.shape().to_vec(), load::<T>(x)?.iter().map(|v| !*v).collect())
        }),
        _ if dtype.is_float() => with_real!(dtype, name, T => {
            store(dtype, x.shape().to_vec(), load::<T>(x)?.iter().map(|v| function::<T>(u, *v)).collect())
        }),
        _ => with_int!(dtype, name, T => {
            let f = integer_function::<T>(u).ok_or_else(|| undefined(&name, dtype))?;
            store(dtype, x.shape().to_vec(), load::<T>(x)?.iter().map(|v| f(*v)).collect())
        }),
    }
}

fn predicate(x: &Tensor, name: &str, f: impl Fn(f64) -> bool) -> Result<Tensor> {
    if !x.dtype().is_float() {
        return Err(undefined(name, x.dtype()));
    }
    let found: Vec<bool> = x.to_f64().into_iter().map(f).collect();
    Ok(Tensor::from_bools(x.shape().to_vec(), &found)?)
}

/// The unary functions that ONNX defines on integers.
fn integer_function<T: Number>(u: Unary) -> Option<fn(T) -> T> {
    Some(match u {
        Unary::Neg => |x| T::ZERO.minus(x),
        Unary::Abs => T::magnitude,
        Unary::Sign => |x| {
            if x > T::ZERO {
                T::ONE
            } else if x < T::ZERO {
                T::ZERO.minus(T::ONE)
            } else {
                T::ZERO
            }
        },
        Unary::Relu => |x| x.greatest(T::ZERO),
        _ => return None,
    })
}

/// The unary functions on floats.
fn function<T: Real>(u: Unary, x: T) -> T {
    let c = T::of_f64;
    let f = |a: f32| c(f64::from(a));
    let (zero, one) = (T::ZERO, T::ONE);
    let sigmoid = |x: T| one / (one + (-x).exp());
    let softplus = |x: T| x.greatest(zero) + (-x.abs()).exp().ln_1p();
    match u {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign => {
            if x == zero || x.nan() {
                x
            } else {
                x.signum()
            }
        }
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Reciprocal => one / x,
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Asinh => x.asinh(),
        Unary::Acosh => x.acosh(),
        Unary::Atanh => x.atanh(),
        Unary::Tanh => x.tanh(),
        Unary::Erf => x.erf(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_half_even(),
        Unary::Relu => x.greatest(zero),
        Unary::Sigmoid => sigmoid(x),
        Unary::Softplus => softplus(x),
        Unary::Softsign => x / (one + x.abs()),
        Unary::Mish => x * softplus(x).tanh(),
        Unary::Silu => x * sigmoid(x),
        Unary::GeluErf => c(0.5) * x * (one + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        Unary::GeluTanh => {
            let inner = c((2.0 / std::f64::consts::PI).sqrt()) * (x + c(0.044715) * x * x * x);
            c(0.5) * x * (one + inner.tanh())
        }
        Unary::Swish { alpha } => x * sigmoid(f(alpha) * x),
        Unary::LeakyRelu { alpha } => {
            if x < zero {
                f(alpha) * x
            } else {
                x
            }
        }
        Unary::Elu { alpha } => {
            if x < zero {
                f(alpha) * x.exp_m1()
            } else {
                x
            }
        }
        Unary::Celu { alpha } => x.greatest(zero) + (f(alpha) * (x / f(alpha)).exp_m1()).least(zero),
        Unary::Selu { alpha, gamma } => f(gamma) * if x > zero { x } else { f(alpha) * x.exp_m1() },
        Unary::ThresholdedRelu { alpha } => {
            if x > f(alpha) {
                x
            } else {
                zero
            }
        }
        Unary::HardSigmoid { alpha, beta } => (f(alpha) * x + f(beta)).least(one).greatest(zero),
        Unary::HardSwish => x * (x / c(6.0) + c(0.5)).least(one).greatest(zero),
        // Handled before: they are not functions from floats to floats.
        Unary::IsNan | Unary::IsInf { .. } | Unary::Not | Unary::BitwiseNot => x,
    }
}

/// `f` of the elements of `x` and `y` broadcast together.
fn zip<A: Copy, B: Copy, C>(
    (x, x_shape): (&[A], &[usize]),
    (y, y_shape): (&[B], &[usize]),
    f: impl Fn(A, B) -> C,
) -> Result<(Vec<usize>, Vec<C>)> {
    let shape = broadcast(x_shape, y_shape)?;
    count(DType::F64, &shape)?;
    let data = if x_shape == y_shape {
        x.iter().zip(y).map(|(a, b)| f(*a, *b)).collect()
    } else if let (1, true) = (y.len(), shape == x_shape) {
        x.iter().map(|a| f(*a, y[0])).collect()
    } else {
        let strides = [broadcast_strides(x_shape, &shape)?, broadcast_strides(y_shape, &shape)?];
        Walk::new(&shape, strides).map(|[i, j]| f(x[i], y[j])).collect()
    };
    Ok((shape, data))
}

/// `b(x, y)`.
pub(super) fn binary(b: Binary, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    use Binary::*;
    if b == Pow && x.dtype() != y.dtype() {
        return mixed_power(x, y);
    }
    same_dtype(x, y)?;
    match b {
        And | Or | Xor => logical(b, x, y),
        Equal if x.dtype() == DType::Bool => compare::<u8>(b, x, y),
        Equal | Less | LessOrEqual | Greater | GreaterOrEqual => {
            with_number!(x.dtype(), format!("{b:?}"), T => compare::<T>(b, x, y))
        }
        BitwiseAnd | BitwiseOr | BitwiseXor | ShiftLeft | ShiftRight => {
            with_int!(x.dtype(), format!("{b:?}"), T => bits::<T>(b, x, y))
        }
        Add | Sub | Mul | Div | Pow | Mod | Fmod | Min | Max | PRelu => {
            with_number!(x.dtype(), format!("{b:?}"), T => arithmetic::<T>(b, x, y))
        }
    }
}

fn logical(b: Binary, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dtype() != DType::Bool {
        return Err(undefined(format!("{b:?}"), x.dtype()));
    }
    let f = |p: u8, q: u8| match b {
        Binary::And => p != 0 && q != 0,
        Binary::Or => p != 0 || q != 0,
        _ => (p != 0) != (q != 0),
    };
    let (shape, data) = zip((&load(x)?, x.shape()), (&load(y)?, y.shape()), f)?;
    Ok(Tensor::from_bools(shape, &data)?)
}

fn compare<T: Number>(b: Binary, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let f: fn(&T, &T) -> bool = match b {
        Binary::Less => |p, q| p < q,
        Binary::LessOrEqual => |p, q| p <= q,
        Binary::Greater => |p, q| p > q,
        Binary::GreaterOrEqual => |p, q| p >= q,
        _ => |p, q| p == q,
    };
    let (shape, data) = zip((&load::<T>(x)?, x.shape()), (&load::<T>(y)?, y.shape()), |p, q| f(&p, &q))?;
    Ok(Tensor::from_bools(shape, &data)?)
}

fn bits<T: Number + PrimInt + CheckedShl + CheckedShr>(b: Binary, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let shift = |n: T| n.to_u32().unwrap_or(u32::MAX);
    let f = |p: T, q: T| match b {
        Binary::BitwiseAnd => p & q,
        Binary::BitwiseOr => p | q,
        Binary::BitwiseXor => p ^ q,
        Binary::ShiftLeft => p.checked_shl(shift(q)).unwrap_or(T::ZERO),
        _ => p.checked_shr(shift(q)).unwrap_or(if p < T::ZERO { !T::ZERO } else { T::ZERO }),
    };
    let (shape, data) = zip((&load::<T>(x)?, x.shape()), (&load::<T>(y)?, y.shape()), f)?;
    store(x.dtype(), shape, data)
}

fn arithmetic<T: Number>(b: Binary, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (a, d) = (load::<T>(x)?, load::<T>(y)?);
    if T::EXACT
        && matches!(b, Binary::Div | Binary::Mod | Binary::Fmod)
        && !a.is_empty()
        && d.contains(&T::ZERO)
    {
        return Err(bad(format!("{b:?} of {} by zero", x.dtype())));
    }
    let f: fn(T, T) -> T = match b {
        Binary::Add => T::plus,
        Binary::Sub => T::minus,
        Binary::Mul => T::times,
        Binary::Div => T::over,
        Binary::Mod => T::modulo,
        Binary::Fmod => T::remainder,
        Binary::Min => T::least,
        Binary::Max => T::greatest,
        Binary::Pow => T::power,
        Binary::PRelu => |x, slope| if x < T::ZERO { slope.times(x) } else { x },
        other => return Err(EvalError::Unsupported(format!("{other:?} as arithmetic"))),
    };
    let (shape, data) = zip((&a, x.shape()), (&d, y.shape()), f)?;
    store(x.dtype(), shape, data)
}

/// `x ^ y` of different types, in f64 unless both are integers.
fn mixed_power(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::Bool || y.dtype() == DType::Bool {
        return Err(undefined("Pow", DType::Bool));
    }
    if let (Some(base), Some(exponent)) = (x.to_i64(), y.to_i64()) {
        let (shape, data) = zip((&base, x.shape()), (&exponent, y.shape()), i64::power)?;
        return super::cast::cast(&Tensor::from_vec(shape, data)?, x.dtype());
    }
    let (shape, data) = zip((&x.to_f64(), x.shape()), (&y.to_f64(), y.shape()), f64::powf)?;
    super::cast::cast(&Tensor::from_vec(shape, data)?, x.dtype())
}

/// `x` where `condition`, else `y`.
fn select(condition: &Tensor, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if condition.dtype() != DType::Bool {
        return Err(undefined("Where with a condition", condition.dtype()));
    }
    same_dtype(x, y)?;
    let shape = broadcast(condition.shape(), &broadcast(x.shape(), y.shape())?)?;
    let size = x.dtype().size();
    let mut out = Vec::with_capacity(count(x.dtype(), &shape)? * size);
    let strides = [
        broadcast_strides(condition.shape(), &shape)?,
        broadcast_strides(x.shape(), &shape)?,
        broadcast_strides(y.shape(), &shape)?,
    ];
    let (flags, x_bytes, y_bytes) = (condition.bytes(), x.bytes(), y.bytes());
    for [c, i, j] in Walk::new(&shape, strides) {
        let (from, at) = if flags[c] != 0 { (&x_bytes, i) } else { (&y_bytes, j) };
        out.extend_from_slice(&from[at * size..][..size]);
    }
    Ok(Tensor::from_bytes(x.dtype(), shape, out.into())?)
}

/// `min(max(x, low), high)`; NaN stays NaN.
fn clip(x: &Tensor, low: Option<&Tensor>, high: Option<&Tensor>) -> Result<Tensor> {
    with_number!(x.dtype(), "Clip", T => {
        let bound = |t: Option<&Tensor>, default: T| -> Result<T> {
            let Some(t) = t else { return Ok(default) };
            match load::<T>(t)?[..] {
                [one] => Ok(one),
                _ => Err(bad(format!("a bound of Clip has shape {:?} but must be a scalar", t.shape()))),
            }
        };
        let (low, high) = (bound(low, T::LOWEST)?, bound(high, T::HIGHEST)?);
        let data = load::<T>(x)?.iter().map(|v| v.greatest(low).least(high)).collect();
        store(x.dtype(), x.shape().to_vec(), data)
    })
}
