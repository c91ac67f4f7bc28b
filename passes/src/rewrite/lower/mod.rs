//! Lowering: operators that a target lacks become ones that it has, as `ir::Op` documents them.
//!
//! ```text
//!   RmsNorm(x)                  becomes  x / Sqrt(ReduceMean(x·x) + ε)
//!   Attention(q, k, v, mask)    becomes  MatMul, Add | Where, Softmax, MatMul
//!   Correction(f, s)            becomes  CumSum(f - s) + s
//! ```
//!
//! What a target has is a [`Dialect`]. The results are those of the evaluator up to rounding; f16 and bf16
//! norms compute in f32, as the operators do.

mod activations;
mod attention;
mod convolution;
mod correction;
mod dims;
pub(super) mod einsum;
mod indexing;
mod movement;
mod norms;
mod products;
mod quantize;
mod rotary;
mod scan;
#[cfg(test)]
mod tests;
mod windows;

pub use quantize::{Quantization, ScaleForm, scale_form};

use super::sweep::{sweep, sweep_first};
use super::{Fidelity, Notes, Pass, PassError, apply_pass, cse};
use crate::ir::{Dim, Graph, GraphError, Node, NodeId, Op, Symbol, ValueId};
use std::collections::HashSet;

/// The operators that a target has natively. What is false is decomposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// `Gelu` in both forms.
    pub gelu: bool,
    /// `Mish`.
    pub mish: bool,
    /// `HardSwish`.
    pub hard_swish: bool,
    /// `Softplus` that does not overflow.
    pub softplus: bool,
    /// `LayerNormalization` with a scale over the normalised axes, which is filled with ones where absent.
    pub layer_norm: bool,
    /// `RMSNormalization`, likewise.
    pub rms_norm: bool,
    /// `RotaryEmbedding` of any rank, with tables that broadcast.
    pub rotary: bool,
    /// `Attention` as ONNX has it: four axes, no window, causal for as many queries as keys only, and zero
    /// for rows without a visible key (where an [`Op::Attention`] that is not `safe` has NaN).
    pub attention: bool,
    /// The operators above as [`Op`] documents them (absent scales, windows, any rank), not only as ONNX
    /// has them.
    pub unrestricted: bool,
    /// `Einsum`.
    pub einsum: bool,
    /// `OneHot`, `GatherND`, `ScatterND`, `EyeLike`, `Tile`, `Pad`, `BatchNormalization` and pooling, instead of
    /// the gathers, slices, concatenations and arithmetic that they come down to at known sizes.
    pub composites: bool,
    /// The corrections of this crate (as functions, or because the target is our own runtime).
    pub corrections: bool,
    /// Quantisation.
    pub quantization: Quantization,
    /// `GatherND` and `ScatterND` by indices that count from the end.
    pub counts_back: bool,
    /// `CumSum` of int64.
    pub long_sums: bool,
    /// `MatMul` over an axis along which an operand is expanded.
    pub repeated_contraction: bool,
    /// [`Op::Dims`]; without it sizes are computed from the shapes of the inputs.
    pub dims: bool,
}

impl Dialect {
    /// The standard operators of an ONNX opset. Rotary embeddings are decomposed in all of them, since the
    /// standard form does not broadcast its tables, and so are `Silu` and `Swish` (opset 24), which runtimes lack;
    /// corrections and sizes are too, unless the caller keeps them.
    pub fn onnx(opset: i64) -> Self {
        Dialect {
            gelu: opset >= 20,
            mish: opset >= 18,
            hard_swish: opset >= 14,
            softplus: true,
            layer_norm: opset >= 17,
            rms_norm: opset >= 23,
            rotary: false,
            attention: opset >= 23,
            unrestricted: false,
            einsum: opset >= 12,
            composites: true,
            corrections: false,
            quantization: Quantization::Onnx(opset),
            counts_back: true,
            long_sums: true,
            repeated_contraction: true,
            dims: false,
        }
    }

    /// Attention, norms, activations and Einsum as elementwise operators, reductions, views, MatMul and Softmax.
    pub fn basic() -> Self {
        Dialect {
            gelu: false,
            mish: false,
            hard_swish: false,
            softplus: false,
            layer_norm: false,
            rms_norm: false,
            rotary: false,
            attention: false,
            unrestricted: false,
            einsum: false,
            composites: true,
            corrections: false,
            quantization: Quantization::Plain,
            counts_back: false,
            long_sums: false,
            repeated_contraction: false,
            dims: false,
        }
    }

    /// What our own runtime has kernels for.
    pub fn runtime() -> Self {
        Dialect {
            gelu: true,
            mish: true,
            hard_swish: true,
            softplus: true,
            layer_norm: true,
            rms_norm: true,
            rotary: true,
            attention: true,
            unrestricted: true,
            einsum: false,
            composites: false,
            corrections: true,
            quantization: Quantization::Every,
            counts_back: true,
            long_sums: true,
            repeated_contraction: true,
            dims: true,
        }
    }
}

/// Replaces every operator that `dialect` lacks; returns how many.
pub fn lower(graph: &mut Graph, dialect: &Dialect) -> Result<usize, PassError> {
    const DEAD: Pass =
        Pass { name: "dead-code", fidelity: Fidelity::Exact, apply: |graph, _| Ok(graph.remove_dead()) };
    let edit = |source| PassError::Edit { pass: "lower", source };
    // First, because they make a Quantize and a MatMulInteger that the dialect may lack.
    let mut lowered = sweep(graph, |graph, id| quantize::dynamic(graph, id, dialect)).map_err(edit)?;
    lowered += sweep_first(graph, |graph, id| convolution::integer(graph, id, dialect)).map_err(edit)?;
    lowered += sweep_first(graph, |graph, id| replaced(graph, id, dialect)).map_err(edit)?;
    // Behind those that make products.
    lowered += sweep_first(graph, |graph, id| products::lower(graph, id, dialect)).map_err(edit)?;
    if !dialect.dims {
        lowered += dims::lower(graph).map_err(edit)?;
    }
    if lowered > 0 {
        let mut notes = Notes::default();
        for pass in [DEAD, cse::PASS, DEAD] {
            apply_pass(graph, &pass, &mut notes)?;
        }
        crate::ir::validate(graph).map_err(|source| PassError::Invalid { pass: "lower", source })?;
    }
    Ok(lowered)
}

/// A family of operators: what a node becomes, or `None` where the dialect has it or it is of another family.
type Family = fn(&mut Graph, &Node, &Dialect) -> Result<Option<ValueId>, GraphError>;

const FAMILIES: [Family; 11] = [
    activations::lower,
    norms::lower,
    rotary::lower,
    attention::lower,
    quantize::lower,
    einsum::lower,
    indexing::lower,
    scan::lower,
    movement::lower,
    windows::lower,
    correction::lower,
];

fn replaced(graph: &mut Graph, id: NodeId, dialect: &Dialect) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(None) };
    for family in FAMILIES {
        if let Some(new) = family(graph, &node, dialect)? {
            return Ok(Some(new));
        }
    }
    Ok(None)
}

/// Sizes that are known or made of symbols that the inputs bind.
fn bound(graph: &Graph, dims: &[Dim]) -> bool {
    let symbols: HashSet<Symbol> = super::views::input_symbols(graph);
    super::views::expressible(dims, &symbols)
}

/// The shape of `v`, with `edit` applied, as an operand of Reshape: sizes where they are bound, else
/// computed from `v`.
fn target(graph: &mut Graph, dims: &[Dim]) -> Result<ValueId, GraphError> {
    if bound(graph, dims) {
        return graph.dims(dims);
    }
    // One unbound size is what the others leave.
    let sizes: Vec<i64> = dims.iter().map(|d| d.known().unwrap_or(-1)).collect();
    if sizes.iter().filter(|n| **n < 0).count() <= 1 {
        return Ok(graph.ints(&sizes));
    }
    graph.dims(dims)
}

/// The size of one axis as a scalar.
fn axis_size(graph: &mut Graph, v: ValueId, axis: usize) -> Result<ValueId, GraphError> {
    let dim = graph.shape(v).and_then(|s| s.get(axis)).cloned();
    match dim {
        Some(dim) if bound(graph, std::slice::from_ref(&dim)) => graph.dim_scalar(&dim),
        _ => {
            let size = graph.add(Op::Shape { start: axis, end: axis + 1 }, &[v])?;
            graph.add(Op::Squeeze { axes: vec![0] }, &[size])
        }
    }
}

/// `x[.., start..end:step]` along one axis.
fn slice(
    graph: &mut Graph,
    x: ValueId,
    axis: usize,
    (start, end, step): (i64, i64, i64),
) -> Result<ValueId, GraphError> {
    let (start, end) = (graph.ints(&[start]), graph.ints(&[end]));
    graph.add(Op::Slice { axes: vec![axis], steps: vec![step] }, &[x, start, end])
}
