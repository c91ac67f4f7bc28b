//! Elementwise operators: types broadcast, contents compute.

use super::content::{Small, known};
use super::context::{Context, broadcast, fail, same_dtype};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{Binary, DType, Dim, Op, Unary};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    let result = match op {
        Op::Identity => identity(cx),
        Op::Unary(u) => unary(cx, *u),
        Op::Binary(b) => binary(cx, *b),
        Op::Where => select(cx),
        Op::Cast { to } => cast(cx, *to),
        Op::Clip => clip(cx),
        _ => return None,
    };
    Some(one(result))
}

/// The operand itself.
fn identity(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    Ok(Inferred::new(ty.dtype, ty.shape.clone()).with(Small::of(&x)))
}

fn unary(cx: &mut Context<'_, '_>, op: Unary) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    if op == Unary::Not && ty.dtype != DType::Bool {
        return fail(format!("x is {}, not bool", ty.dtype));
    }
    let dtype = match op {
        Unary::IsNan | Unary::IsInf { .. } | Unary::Not => DType::Bool,
        _ => ty.dtype,
    };
    let content = Small::of(&x).and_then(|x| {
        let data = x.data.iter().map(|d| unary_content(op, d)).collect::<Option<_>>()?;
        Some(Small { shape: x.shape, data })
    });
    Ok(Inferred::new(dtype, ty.shape.clone()).with(content))
}

fn unary_content(op: Unary, d: &Dim) -> Option<Dim> {
    let negative = || Dim::ZERO - d.clone();
    match op {
        Unary::Neg if d.known() == Some(i64::MIN) => None,
        Unary::Neg => Some(negative()),
        Unary::Abs if d.is_non_negative() => Some(d.clone()),
        Unary::Abs if negative().is_non_negative() && d.known() != Some(i64::MIN) => Some(negative()),
        Unary::Sign => match d.known() {
            Some(n) => Some(n.signum().into()),
            None => less(&Dim::ZERO, d).filter(|yes| *yes).map(|_| Dim::ONE),
        },
        Unary::Relu => Some(d.maximum(&Dim::ZERO)),
        Unary::Not => Some(Dim::ONE - d.clone()),
        _ => None,
    }
}

fn binary(cx: &mut Context<'_, '_>, op: Binary) -> Result<Inferred, InferError> {
    let (a, b) = (cx.required(0, "a")?, cx.required(1, "b")?);
    let (Some(ta), Some(tb)) = (a.ty, b.ty) else { return Ok(Inferred::unknown()) };
    if op != Binary::Pow {
        same_dtype(ta, tb)?;
    }
    if matches!(op, Binary::And | Binary::Or | Binary::Xor) && ta.dtype != DType::Bool {
        return fail(format!("operands are {}, not bool", ta.dtype));
    }
    let shape = broadcast(&ta.shape, &tb.shape)?;
    let content = match (Small::of(&a), Small::of(&b), known(&shape)) {
        (Some(a), Some(b), Some(shape)) => {
            Small::build(shape, |at| binary_content(op, ta.dtype, a.broadcast_get(at)?, b.broadcast_get(at)?))
        }
        _ => None,
    };
    let dtype = if op.is_predicate() { DType::Bool } else { ta.dtype };
    Ok(Inferred::new(dtype, shape).with(content))
}

/// Whether `a < b`, where it is certain.
fn less(a: &Dim, b: &Dim) -> Option<bool> {
    if let (Some(a), Some(b)) = (a.known(), b.known()) {
        return Some(a < b);
    }
    if (b.clone() - a.clone() - Dim::ONE).is_non_negative() {
        return Some(true);
    }
    (a.clone() - b.clone()).is_non_negative().then_some(false)
}

/// Whether `a = b`, where it is certain.
fn equal(a: &Dim, b: &Dim) -> Option<bool> {
    if a == b {
        return Some(true);
    }
    if let (Some(a), Some(b)) = (a.known(), b.known()) {
        return Some(a == b);
    }
    (less(a, b) == Some(true) || less(b, a) == Some(true)).then_some(false)
}

fn binary_content(op: Binary, dtype: DType, a: &Dim, b: &Dim) -> Option<Dim> {
    let truth = |t: bool| Some(Dim::from(i64::from(t)));
    match op {
        Binary::Equal => truth(equal(a, b)?),
        Binary::Less => truth(less(a, b)?),
        Binary::Greater => truth(less(b, a)?),
        Binary::LessOrEqual => truth(!less(b, a)?),
        Binary::GreaterOrEqual => truth(!less(a, b)?),
        Binary::And | Binary::Or | Binary::Xor => {
            let (a, b) = (a.known()?, b.known()?);
            truth(match op {
                Binary::And => a != 0 && b != 0,
                Binary::Or => a != 0 || b != 0,
                _ => (a != 0) != (b != 0),
            })
        }
        _ if !dtype.is_int() => None,
        Binary::Min => Some(a.minimum(b)),
        Binary::Max => Some(a.maximum(b)),
        _ => match (a.known(), b.known()) {
            (Some(a), Some(b)) => known_arithmetic(op, a, b).map(Dim::from),
            _ => symbolic_arithmetic(op, a, b),
        },
    }
}

fn known_arithmetic(op: Binary, a: i64, b: i64) -> Option<i64> {
    match op {
        Binary::Add => a.checked_add(b),
        Binary::Sub => a.checked_sub(b),
        Binary::Mul => a.checked_mul(b),
        Binary::Div => a.checked_div(b),
        Binary::Fmod => a.checked_rem(b),
        Binary::Mod => {
            let r = a.checked_rem(b)?;
            Some(if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
        }
        Binary::Pow => a.checked_pow(u32::try_from(b).ok()?),
        Binary::BitwiseAnd => Some(a & b),
        Binary::BitwiseOr => Some(a | b),
        Binary::BitwiseXor => Some(a ^ b),
        _ => None,
    }
}

fn symbolic_arithmetic(op: Binary, a: &Dim, b: &Dim) -> Option<Dim> {
    match op {
        Binary::Add => Some(a.clone() + b.clone()),
        Binary::Sub => Some(a.clone() - b.clone()),
        Binary::Mul => Some(a.clone() * b.clone()),
        // Truncation is floor only for quotients that are not negative.
        Binary::Div => match a.div_exact(b) {
            Some(q) => Some(q),
            None if a.is_non_negative() && b.is_non_negative() => a.floor_div(b),
            None => None,
        },
        Binary::Mod => a.modulo(b),
        Binary::Fmod if a.is_non_negative() && b.is_non_negative() => a.modulo(b),
        Binary::Pow if b.known() == Some(1) => Some(a.clone()),
        Binary::Pow if b.known() == Some(2) => Some(a.clone() * a.clone()),
        _ => None,
    }
}

/// `condition, then, otherwise`.
fn select(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let condition = cx.required(0, "condition")?;
    let (a, b) = (cx.required(1, "then")?, cx.required(2, "otherwise")?);
    if let Some(ty) = condition.ty
        && ty.dtype != DType::Bool
    {
        return fail(format!("the condition is {}, not bool", ty.dtype));
    }
    if let (Some(ta), Some(tb)) = (a.ty, b.ty) {
        same_dtype(ta, tb)?;
    }
    let (Some(tc), Some(ta), Some(tb)) = (condition.ty, a.ty, b.ty) else { return Ok(Inferred::unknown()) };
    let shape = broadcast(&tc.shape, &broadcast(&ta.shape, &tb.shape)?)?;
    let condition = Small::of(&condition);
    let content = match (Small::of(&a), Small::of(&b), known(&shape)) {
        (Some(a), Some(b), Some(shape)) => Small::build(shape, |at| {
            let (x, y) = (a.broadcast_get(at)?, b.broadcast_get(at)?);
            if x == y {
                return Some(x.clone());
            }
            let chosen = condition.as_ref()?.broadcast_get(at)?.known()?;
            Some(if chosen != 0 { x } else { y }.clone())
        }),
        _ => None,
    };
    Ok(Inferred::new(ta.dtype, shape).with(content))
}

fn cast(cx: &mut Context<'_, '_>, to: DType) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    let mut content = Small::of(&x);
    if let (DType::Bool, Some(small)) = (to, &mut content) {
        let truth = |d: &Dim| equal(d, &Dim::ZERO).map(|zero| Dim::from(i64::from(!zero)));
        content = small
            .data
            .iter()
            .map(truth)
            .collect::<Option<_>>()
            .map(|data| Small { shape: small.shape.clone(), data });
    }
    // A content that the target cannot hold is dropped with every other misfit.
    Ok(Inferred::new(to, ty.shape.clone()).with(content))
}

/// `x, min?, max?`.
fn clip(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let x = cx.required(0, "x")?;
    let Some(ty) = x.ty else { return Ok(Inferred::unknown()) };
    let mut content = Small::of(&x);
    for (i, role) in [(1, "min"), (2, "max")] {
        let Some(bound) = cx.optional(i) else { continue };
        if let Some(bound_ty) = bound.ty {
            same_dtype(ty, bound_ty)?;
            if bound_ty.elements().known().is_some_and(|n| n != 1) {
                return fail(format!("{role} has the shape {:?}, not one element", bound_ty.shape));
            }
        }
        let bound = Small::of(&bound).and_then(|b| b.only().cloned());
        content = match (content, bound) {
            (Some(mut c), Some(bound)) => {
                for d in &mut c.data {
                    *d = if i == 1 { d.maximum(&bound) } else { d.minimum(&bound) };
                }
                Some(c)
            }
            _ => None,
        };
    }
    Ok(Inferred::new(ty.dtype, ty.shape.clone()).with(content))
}
