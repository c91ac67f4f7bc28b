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
    let mut results = match op {
        Op::TopK { axis, .. } => reduce::top_k(&mut cx, *axis)?,
        Op::DynamicQuantize { axes } => quantize::dynamic(&mut cx, axes)?,
        op => vec![single(op, &mut cx)?],
    };
    if outputs > results.len() {
        return Err(InferError(format!("has {} results, not {outputs}", results.len())));
    }
    results.truncate(outputs);
    for result in &mut results {
        check(result)?;
    }
    Ok(results)
}

/// Operators with one result.
fn single(op: &Op, cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    match op {
        Op::Identity => elementwise::identity(cx),
        Op::Unary(u) => elementwise::unary(cx, *u),
        Op::Binary(b) => elementwise::binary(cx, *b),
        Op::Where => elementwise::select(cx),
        Op::Cast { to } => elementwise::cast(cx, *to),
        Op::Clip => elementwise::clip(cx),
        Op::Quantize { to, blocks } => quantize::quantize(cx, *to, *blocks),
        Op::Dequantize { blocks } => quantize::dequantize(cx, *blocks),
        Op::MatMul => linalg::matmul(cx),
        Op::MatMulInteger => linalg::matmul_integer(cx),
        Op::Gemm { trans_a, trans_b, .. } => linalg::gemm(cx, *trans_a, *trans_b),
        Op::Einsum { equation } => einsum::einsum(cx, equation),
        Op::Conv { window, group } => nn::conv(cx, window, *group),
        Op::Softmax { axis } | Op::LogSoftmax { axis } => reduce::softmax(cx, *axis),
        Op::Reduce { op, axes, keepdims } => reduce::reduce(cx, *op, axes, *keepdims),
        Op::ArgMax { axis, keepdims, .. } | Op::ArgMin { axis, keepdims, .. } => {
            reduce::arg(cx, *axis, *keepdims)
        }
        Op::CumSum { axis, exclusive, reverse } => reduce::cum_sum(cx, *axis, *exclusive, *reverse),
        Op::LayerNorm { axis, .. } => nn::norm(cx, *axis, &["scale", "bias"]),
        Op::RmsNorm { axis, .. } => nn::norm(cx, *axis, &["scale"]),
        Op::BatchNorm { .. } => nn::batch_norm(cx),
        Op::GlobalAveragePool => nn::global_pool(cx),
        Op::AveragePool { window, kernel, .. } | Op::MaxPool { window, kernel } => {
            nn::pool(cx, window, kernel)
        }
        Op::Dynamic(op) => dynamic::dynamic(cx, *op),
        Op::Attention(_) => nn::attention(cx),
        Op::Rotary(rotary) => nn::rotary(cx, rotary),
        Op::Correction(correction) => nn::correction(cx, correction),
        op => movement(op, cx),
    }
}

/// Operators that move elements or make them from nothing.
fn movement(op: &Op, cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    match op {
        Op::Reshape { allow_zero } => shape_ops::reshape(cx, *allow_zero),
        Op::Transpose { perm } => shape_ops::transpose(cx, perm),
        Op::Squeeze { axes } => shape_ops::squeeze(cx, axes),
        Op::Unsqueeze { axes } => shape_ops::unsqueeze(cx, axes),
        Op::Expand => shape_ops::expand(cx),
        Op::Concat { axis } => shape_ops::concat(cx, *axis),
        Op::Tile => shape_ops::tile(cx),
        Op::Pad { .. } => shape_ops::pad(cx),
        Op::Shape { start, end } => shape_ops::shape(cx, *start, *end),
        Op::Size => shape_ops::size(cx),
        Op::Slice { axes, steps } => slice::slice(cx, axes, steps),
        Op::Gather { axis } => gather::gather(cx, *axis),
        Op::GatherElements { axis } => gather::gather_elements(cx, *axis),
        Op::GatherNd { batch_dims } => gather::gather_nd(cx, *batch_dims),
        Op::ScatterElements { axis, .. } => gather::scatter_elements(cx, *axis),
        Op::ScatterNd { .. } => gather::scatter_nd(cx),
        Op::OneHot { axis } => gather::one_hot(cx, *axis),
        Op::NonZero => gather::non_zero(cx),
        Op::Trilu { .. } => create::trilu(cx),
        Op::ConstantOfShape { value } => create::constant_of_shape(cx, value),
        Op::Range => create::range(cx),
        Op::EyeLike { dtype, .. } => create::eye_like(cx, *dtype),
        Op::Dims { dims, scalar } => create::dims(dims, *scalar),
        other => Err(InferError(format!("{} has no inference", other.name()))),
    }
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
