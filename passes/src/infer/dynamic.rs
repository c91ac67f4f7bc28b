//! Operators whose axes or steps are operands.

use super::content::Small;
use super::context::{Context, fail};
use super::{Answer, InferError, Inferred, Operand, one};
use crate::ir::{Dim, Dynamic, Op, Type};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    match op {
        Op::Dynamic(op) => Some(dynamic(cx, *op)),
        _ => None,
    }
}

/// The type of what the operator stands for, where its parameters are known; otherwise as much of it as
/// their number says.
fn dynamic(cx: &mut Context<'_, '_>, op: Dynamic) -> Answer {
    let Some(ty) = cx.ty(0, "x")? else { return one(Ok(Inferred::unknown())) };
    let mut parameters = vec![];
    for i in op.parameters() {
        let operand = cx.required(i, "the parameter")?;
        if operand.ty.is_some_and(|t| !t.dtype.is_int()) {
            return fail(format!("operand {i} holds no integers"));
        }
        match known(&operand) {
            Some(known) => parameters.push(known),
            None => return one(open(cx, op, ty)),
        }
    }
    let resolved = op.resolve(ty.rank(), &parameters).map_err(InferError)?;
    let operands: Vec<_> = resolved.operands.iter().map(|i| cx.optional(*i)).collect();
    super::of_family(&resolved.op, &mut cx.nested(&operands))
}

fn known(operand: &Operand<'_>) -> Option<Vec<i64>> {
    Small::of(operand)?.data.iter().map(Dim::known).collect()
}

/// What is certain while the parameters are open.
fn open(cx: &mut Context<'_, '_>, op: Dynamic, ty: &Type) -> Result<Inferred, InferError> {
    let count = cx.optional(1).and_then(|axes| axes.ty).and_then(|t| t.elements().known_size());
    let rank = match (op, count) {
        (Dynamic::CumSum { .. }, _) => return Ok(Inferred::new(ty.dtype, ty.shape.clone())),
        (Dynamic::Slice | Dynamic::Reduce { keepdims: true, .. }, _) => Some(ty.rank()),
        (Dynamic::Reduce { noop: true, .. }, Some(0)) => Some(ty.rank()),
        (Dynamic::Reduce { .. }, Some(0)) => Some(0),
        (Dynamic::Reduce { .. } | Dynamic::Squeeze, Some(n)) => match ty.rank().checked_sub(n) {
            Some(rank) => Some(rank),
            None => return fail(format!("{n} axes of rank {}", ty.rank())),
        },
        (Dynamic::Unsqueeze, Some(n)) => ty.rank().checked_add(n),
        (_, None) => None,
    };
    match rank {
        Some(rank) if rank <= super::context::MAX_RANK.max(ty.rank()) => {
            Ok(Inferred::new(ty.dtype, (0..rank).map(|_| cx.fresh()).collect()))
        }
        Some(rank) => fail(format!("the result would have rank {rank}")),
        None => Ok(Inferred::unknown()),
    }
}
