//! Type, shape and integer-content inference: the only one in the project.
//!
//! For every operator: operand types → result types, and, for small integer tensors (what shape
//! arithmetic computes with), operand contents → result contents as symbolic expressions.
//!
//! ```text
//!   Shape ─▶ Gather ─▶ Unsqueeze ─▶ Concat ─▶ Reshape      contents flow here, as expressions
//!   x ───────────────────────────────────────▶ │ ─▶ y       and end up as sizes there
//! ```
//!
//! Rules that hold for every operator:
//! - An operand whose type is unknown makes the results unknown; it is no error.
//! - Sizes that only the data decides are fresh symbols.
//! - Two sizes clash only when both are known: symbols of different names may turn out equal.
//! - Contents are exact or absent. Bool contents are the expressions 0 and 1. Float contents are not
//!   tracked.

use crate::ir::{Dim, Op, Tensor, Type};

mod content;
mod context;
mod create;
mod dynamic;
mod einsum;
mod elementwise;
mod gather;
mod linalg;
mod nn;
mod opaque;
mod quantize;
mod reduce;
mod shape_ops;
mod slice;
#[cfg(test)]
mod tests;

use context::Context;

/// Integer tensors of at most this many elements have their content tracked.
pub const MAX_CONTENT: usize = 64;

/// What is known of an operand.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// Type; `None` downstream of opaque operators.
    pub ty: Option<&'a Type>,
    /// Elements in row-major order, for small integer tensors whose elements are known expressions.
    pub content: Option<&'a [Dim]>,
    /// The tensor, for constants.
    pub constant: Option<&'a Tensor>,
}

/// What inference says of a result.
#[derive(Clone, Debug, Default)]
pub struct Inferred {
    /// Type; `None` when an operand's type is unknown or the operator opaque.
    pub ty: Option<Type>,
    /// Elements, for small integer tensors.
    pub content: Option<Vec<Dim>>,
}

/// Why operands do not fit an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InferError(pub String);

/// Infers the `outputs` results of `op` on `operands`. `fresh` makes a symbol for a size that only the
/// data decides.
///
/// # Errors
/// When a required operand is missing, when sizes, ranks, axes or element types do not fit, or when the
/// operator has fewer results than `outputs`.
pub fn infer(
    op: &Op,
    operands: &[Option<Operand<'_>>],
    outputs: usize,
    fresh: &mut dyn FnMut() -> Dim,
) -> Result<Vec<Inferred>, InferError> {
    if let Op::Opaque(op) = op {
        return Ok(opaque::opaque(op, operands, outputs));
    }
    let mut cx = Context::new(operands, fresh);
    let mut results = of_family(op, &mut cx)?;
    if outputs > results.len() {
        return Err(InferError(format!("has {} results, not {outputs}", results.len())));
    }
    results.truncate(outputs);
    for result in &mut results {
        check(result)?;
    }
    Ok(results)
}

/// What a family says of an operator that is its own.
type Answer = Result<Vec<Inferred>, InferError>;

/// A family of operators; `None` for those of others.
type Family = fn(&Op, &mut Context<'_, '_>) -> Option<Answer>;

const FAMILIES: [Family; 11] = [
    elementwise::infer,
    shape_ops::infer,
    slice::infer,
    linalg::infer,
    gather::infer,
    reduce::infer,
    nn::infer,
    create::infer,
    quantize::infer,
    einsum::infer,
    dynamic::infer,
];

fn of_family(op: &Op, cx: &mut Context<'_, '_>) -> Answer {
    let answer = FAMILIES.iter().find_map(|family| family(op, cx));
    answer.unwrap_or_else(|| Err(InferError(format!("{} has no inference", op.name()))))
}

/// The answer of an operator with one result.
fn one(result: Result<Inferred, InferError>) -> Answer {
    result.map(|r| vec![r])
}

/// Refuses negative sizes and drops contents that do not fit their type.
fn check(result: &mut Inferred) -> Result<(), InferError> {
    let Some(ty) = &result.ty else {
        result.content = None;
        return Ok(());
    };
    for (axis, d) in ty.shape.iter().enumerate() {
        if let Some(n) = d.known().filter(|n| *n < 0) {
            return Err(InferError(format!("axis {axis} of the result would have the size {n}")));
        }
    }
    let fits = |content: &Vec<Dim>| {
        content.len() <= MAX_CONTENT
            && ty.elements().known_size() == Some(content.len())
            && content.iter().all(|d| content::fits(ty.dtype, d))
    };
    result.content = result.content.take().filter(fits);
    Ok(())
}
