//! Matrix products.

use super::context::{Context, agree, broadcast, broadcasts_to, fail, same_dtype};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{DType, Dim, Op, Type};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    let result = match op {
        Op::MatMul => matmul(cx),
        Op::MatMulInteger => matmul_integer(cx),
        Op::Gemm { trans_a, trans_b, .. } => gemm(cx, *trans_a, *trans_b),
        _ => return None,
    };
    Some(one(result))
}

/// `a [.., m, k] · b [.., k, n]`; vectors as in NumPy.
fn matmul(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let (a, b) = (cx.ty(0, "a")?, cx.ty(1, "b")?);
    for (ty, role) in [(a, "a"), (b, "b")] {
        if ty.is_some_and(|t| t.rank() == 0) {
            return fail(format!("{role} has rank 0"));
        }
    }
    let (Some(a), Some(b)) = (a, b) else { return Ok(Inferred::unknown()) };
    same_dtype(a, b)?;
    Ok(Inferred::new(a.dtype, product(a, b)?))
}

/// The shape of `a [.., m, k] · b [.., k, n]`.
fn product(a: &Type, b: &Type) -> Result<Vec<Dim>, InferError> {
    let (a_lead, m, k_a) = match &a.shape[..] {
        [k] => (&[][..], None, k),
        [lead @ .., m, k] => (lead, Some(m), k),
        [] => return fail("a has rank 0"),
    };
    let (b_lead, k_b, n) = match &b.shape[..] {
        [k] => (&[][..], k, None),
        [lead @ .., k, n] => (lead, k, Some(n)),
        [] => return fail("b has rank 0"),
    };
    agree(k_a, k_b, "contraction")?;
    let mut shape = broadcast(a_lead, b_lead)?;
    shape.extend(m.into_iter().chain(n).cloned());
    Ok(shape)
}

/// `a, b, zero point of a?, zero point of b?` → `i32`.
fn matmul_integer(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let (a, b) = (cx.ty(0, "a")?, cx.ty(1, "b")?);
    let (Some(a), Some(b)) = (a, b) else { return Ok(Inferred::unknown()) };
    for (ty, role) in [(a, "a"), (b, "b")] {
        if !matches!(ty.dtype, DType::I8 | DType::U8) {
            return fail(format!("{role} is {}, not an integer of 8 bits", ty.dtype));
        }
        if ty.rank() < 2 {
            return fail(format!("{role} has rank {}, which is below 2", ty.rank()));
        }
    }
    let (mut left, mut right) = (a.clone(), b.clone());
    for (i, side, role) in [(2, &mut left, "the zero point of a"), (3, &mut right, "the zero point of b")] {
        let Some(zero) = cx.optional(i).and_then(|z| z.ty) else { continue };
        same_dtype(side, zero)?;
        // Constant along the contraction, per row or per column.
        let along = if i == 2 { 1 } else { 2 };
        if zero.rank().checked_sub(along).and_then(|at| zero.shape[at].known()).is_some_and(|n| n != 1) {
            return fail(format!("{role} {:?} varies along the contraction", zero.shape));
        }
        side.shape = broadcast(&side.shape, &zero.shape)?;
    }
    Ok(Inferred::new(DType::I32, product(&left, &right)?))
}

/// `op(a) [m, k] · op(b) [k, n] + c?`.
fn gemm(cx: &mut Context<'_, '_>, trans_a: bool, trans_b: bool) -> Result<Inferred, InferError> {
    let (a, b) = (cx.ty(0, "a")?, cx.ty(1, "b")?);
    let c = cx.optional(2).and_then(|c| c.ty);
    let matrix = |shape: &[Dim], role: &str, trans: bool| match shape {
        [rows, columns] if trans => Ok([columns.clone(), rows.clone()]),
        [rows, columns] => Ok([rows.clone(), columns.clone()]),
        other => fail(format!("{role} has rank {}, not 2", other.len())),
    };
    let a = a.map(|a| Ok::<_, InferError>((a, matrix(&a.shape, "a", trans_a)?))).transpose()?;
    let b = b.map(|b| Ok::<_, InferError>((b, matrix(&b.shape, "b", trans_b)?))).transpose()?;
    let (Some((a_ty, [m, k_a])), Some((b_ty, [k_b, n]))) = (a, b) else { return Ok(Inferred::unknown()) };
    same_dtype(a_ty, b_ty)?;
    agree(&k_a, &k_b, "contraction")?;
    let shape = vec![m, n];
    if let Some(c) = c {
        same_dtype(a_ty, c)?;
        broadcasts_to(&c.shape, &shape, "c")?;
    }
    Ok(Inferred::new(a_ty.dtype, shape))
}
