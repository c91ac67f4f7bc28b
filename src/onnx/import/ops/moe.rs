//! Mixtures of experts of ONNX Runtime (`MoE`, and `QMoE` with quantised weights).
//!
//! ```text
//!   router [N, E] ─▶ Softmax ─▶ the k largest, others 0 ───────────────────┐ gates [E, N, 1]
//!   x [1, N, D] ─▶ MatMul ▶ + ▶ activation ▶ MatMul ▶ + ─▶ [E, N, D] ─▶ Mul ─▶ Sum over experts
//! ```
//!
//! Every expert is evaluated for every token, and those not chosen weigh nothing: right for any routing, in
//! shapes that do not depend on it, at `E / k` times the arithmetic of a sparse evaluation.

use snlp_passes::ir::{Binary, Blocks, DType, Dim, Op, Reduce, Tensor, Unary, ValueId};
use snlp_passes::rewrite::reshape;

use super::quantize_contrib::{middle, packed_zeros};
use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

/// More experts than any model has; each is compared with each.
const MAX_EXPERTS: usize = 4096;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "MoE" => moe,
        "QMoE" => quantised_moe,
        _ => return None,
    })
}

/// `x [.., D], router [N, E], w1 [E, F, D], b1?, w2 [E, D, I], b2?, w3 [E, I, D]?, b3?` → `[.., D]`.
fn moe(c: &mut NodeContext<'_>) -> Built {
    let weights = [Some(c.input(2)?), Some(c.input(4)?), c.optional(6)];
    let biases = [3, 5, 7].map(|i| c.optional(i));
    mixture(c, weights, biases)
}

/// As [`moe`], behind each matrix its scales: `.., w1 [E, F, D], scales, b1?, ..`, then the zero points.
fn quantised_moe(c: &mut NodeContext<'_>) -> Built {
    if (14..21).any(|i| c.optional(i).is_some()) || c.text("quant_type", "int")? != "int" {
        return Err(Decline::Opaque);
    }
    let mut weights = [None; 3];
    for (i, own) in
        ["fc1_expert_weight_bits", "fc2_expert_weight_bits", "fc3_expert_weight_bits"].into_iter().enumerate()
    {
        let at = 2 + 3 * i;
        if i == 2 && c.optional(at).is_none() {
            continue;
        }
        let bits = match c.int("expert_weight_bits", 4)? {
            bits if c.int(own, 0)? == 0 => bits,
            _ => c.int(own, 0)?,
        };
        weights[i] = Some(expert_weights(c, [at, at + 1, 11 + i], bits)?);
    }
    let biases = [4, 7, 10].map(|i| c.optional(i));
    mixture(c, weights, biases)
}

/// The matrices at the first of the operands, by the scales and zero points at the others.
fn expert_weights(
    c: &mut NodeContext<'_>,
    [w, scales, zeros]: [usize; 3],
    bits: i64,
) -> Result<ValueId, Decline> {
    let (packed, scales, zeros) = (c.input(w)?, c.input(scales)?, c.optional(zeros));
    let (dtype, per_byte) = match bits {
        4 => (DType::U4, 2),
        8 => (DType::U8, 1),
        _ => return Err(Decline::Opaque),
    };
    c.ty(packed)?;
    let tensor = c.graph.tensor(packed).filter(|t| t.dtype() == DType::U8).cloned().ok_or(Decline::Opaque)?;
    let &[experts, rows, bytes] = tensor.shape() else { return Err(Decline::Opaque) };
    let columns = bytes * per_byte;
    let whole = Tensor::from_parts(dtype, vec![experts, rows, columns], tensor.parts().to_vec())
        .map_err(|e| OnnxError::invalid(format!("the packed matrices do not fit: {e}")))?;
    let block = usize::try_from(c.int("block_size", 0)?).ok().filter(|b| *b == 0 || *b >= 16);
    let block = match block.ok_or(Decline::Opaque)? {
        // One scale for each row.
        0 => columns,
        block => block,
    };
    let count = columns.div_ceil(block);
    let shape = [experts, rows, count].map(Dim::from);
    let zero = match zeros {
        None => middle(dtype),
        Some(zeros) => packed_zeros(c, zeros, dtype, experts * rows, count)?
            .reshaped(vec![experts, rows, count])
            .map_err(|_| Decline::Opaque)?,
    };
    let name = c.graph.value(packed).name.clone().unwrap_or_default();
    let (w, zero) = (c.graph.named_constant(&name, whole), c.graph.constant(zero));
    let scales = reshape(c.graph, scales, &shape)?;
    let blocks = Some(Blocks { axis: 2, size: block });
    c.add(Op::Dequantize { blocks }, &[w, scales, zero])
}

fn mixture(c: &mut NodeContext<'_>, weights: [Option<ValueId>; 3], biases: [Option<ValueId>; 3]) -> Built {
    if c.flag("use_sparse_mixer", false)? || c.flag("swiglu_limit_after_activation", false)? {
        return Err(Decline::Opaque);
    }
    let (x, router) = (c.input(0)?, c.input(1)?);
    let shape = c.shape(x)?;
    let width = shape.last().and_then(Dim::known).ok_or(Decline::Opaque)?;
    let flat = c.graph.ints(&[1, -1, width]);
    let tokens = c.add(Op::Reshape { allow_zero: false }, &[x, flat])?;
    let ([Some(w1), Some(w2), w3], [b1, b2, b3]) = (weights, biases) else { return Err(Decline::Opaque) };
    let first = expert_product(c, tokens, w1, b1)?;
    let third = w3.map(|w3| expert_product(c, tokens, w3, b3)).transpose()?;
    let inner = activated(c, first, third)?;
    let y = expert_product(c, inner, w2, b2)?;
    let gates = gates(c, router)?;
    let gates = c.transpose(gates, &[1, 0])?;
    let gates = c.unsqueeze(gates, &[2])?;
    let weighed = c.binary(Binary::Mul, y, gates)?;
    let sum = c.add(Op::Reduce { op: Reduce::Sum, axes: vec![0], keepdims: false }, &[weighed])?;
    let back = c.add(Op::Shape { start: 0, end: shape.len() }, &[x])?;
    Ok(vec![c.add(Op::Reshape { allow_zero: false }, &[sum, back])?])
}

/// `x [1 or E, N, in]` times each expert's `w [E, out, in]`, plus `b [E, out]`.
fn expert_product(
    c: &mut NodeContext<'_>,
    x: ValueId,
    w: ValueId,
    b: Option<ValueId>,
) -> Result<ValueId, Decline> {
    if c.rank(w)? != 3 {
        return Err(OnnxError::invalid("has experts' weights that are no three axes").into());
    }
    let w = c.transpose(w, &[0, 2, 1])?;
    let y = c.add(Op::MatMul, &[x, w])?;
    let Some(b) = b else { return Ok(y) };
    let b = c.unsqueeze(b, &[1])?;
    c.binary(Binary::Add, y, b)
}

/// The activation of the first product `[E, N, F]`, gated where there is something to gate.
fn activated(c: &mut NodeContext<'_>, first: ValueId, third: Option<ValueId>) -> Result<ValueId, Decline> {
    let kind = c.text("activation_type", "relu")?;
    let activation = match kind.as_str() {
        "relu" => Some(Unary::Relu),
        "gelu" => Some(Unary::GeluTanh),
        "silu" => Some(Unary::Silu),
        "identity" => None,
        "swiglu" => return swiglu(c, first, third),
        _ => return Err(Decline::Opaque),
    };
    let y = match activation {
        Some(activation) => c.add(Op::Unary(activation), &[first])?,
        None => first,
    };
    match third {
        Some(third) => c.binary(Binary::Mul, y, third),
        None => Ok(y),
    }
}

/// `g · sigmoid(α g) · (l + β)` after clamping both.
fn swiglu(c: &mut NodeContext<'_>, first: ValueId, third: Option<ValueId>) -> Result<ValueId, Decline> {
    let ty = c.ty(first)?;
    let size = ty.shape.last().and_then(Dim::known).ok_or(Decline::Opaque)?;
    let every = |c: &mut NodeContext<'_>, from: i64, to: i64, step: i64| {
        let (from, to) = (c.graph.ints(&[from]), c.graph.ints(&[to]));
        c.add(Op::Slice { axes: vec![2], steps: vec![step] }, &[first, from, to])
    };
    let (mut gate, mut linear) = match (c.int("swiglu_fusion", 0)?, third) {
        (0, Some(third)) => (first, third),
        (1, None) => (every(c, 0, size, 2)?, every(c, 1, size, 2)?),
        (2, None) => (every(c, 0, size / 2, 1)?, every(c, size / 2, size, 1)?),
        (fusion, _) => {
            let what = format!("has swiglu_fusion {fusion}, which does not fit its weights");
            return Err(OnnxError::invalid(what).into());
        }
    };
    if let Some(limit) = c.attributes.float("swiglu_limit")? {
        let limit = f64::from(limit);
        let (low, high) = (c.graph.float_scalar(ty.dtype, -limit), c.graph.float_scalar(ty.dtype, limit));
        gate = c.binary(Binary::Min, gate, high)?;
        linear = c.add(Op::Clip, &[linear, low, high])?;
    }
    let (alpha, beta) = (c.float("activation_alpha", 1.0)?, c.float("activation_beta", 0.0)?);
    let activation = if alpha == 1.0 { Unary::Silu } else { Unary::Swish { alpha } };
    let gate = c.add(Op::Unary(activation), &[gate])?;
    if beta != 0.0 {
        let beta = c.graph.float_scalar(ty.dtype, f64::from(beta));
        linear = c.binary(Binary::Add, linear, beta)?;
    }
    c.binary(Binary::Mul, gate, linear)
}

/// Weights of the experts `[N, E]`: the `k` largest of a softmax, zero elsewhere. An expert is chosen when
/// fewer than `k` others come before it; of equals the earlier do.
fn gates(c: &mut NodeContext<'_>, router: ValueId) -> Result<ValueId, Decline> {
    let ty = c.ty(router)?;
    let experts = match &ty.shape[..] {
        [_, experts] => experts.known_size().filter(|n| *n <= MAX_EXPERTS).ok_or(Decline::Opaque)?,
        other => return Err(OnnxError::invalid(format!("routes by {other:?}, not [tokens, experts]")).into()),
    };
    let k = c.int("k", 1)?;
    let p = c.add(Op::Softmax { axis: 1 }, &[router])?;
    let (own, others) = (c.unsqueeze(p, &[2])?, c.unsqueeze(p, &[1])?);
    let above = c.binary(Binary::Greater, others, own)?;
    let equal = c.binary(Binary::Equal, others, own)?;
    let earlier: Vec<bool> = (0..experts * experts).map(|at| at % experts < at / experts).collect();
    let earlier = Tensor::from_bools(vec![experts, experts], &earlier).map_err(|_| Decline::Opaque)?;
    let earlier = c.graph.constant(earlier);
    let tied = c.binary(Binary::And, equal, earlier)?;
    let before = c.binary(Binary::Or, above, tied)?;
    let before = c.add(Op::Cast { to: DType::F32 }, &[before])?;
    let rank = c.add(Op::Reduce { op: Reduce::Sum, axes: vec![2], keepdims: false }, &[before])?;
    let limit = c.graph.scalar(k as f32);
    let chosen = c.binary(Binary::Less, rank, limit)?;
    let zero = c.graph.float_scalar(ty.dtype, 0.0);
    let gates = c.add(Op::Where, &[chosen, p, zero])?;
    if !c.flag("normalize_routing_weights", false)? {
        return Ok(gates);
    }
    let sum = c.add(Op::Reduce { op: Reduce::Sum, axes: vec![1], keepdims: true }, &[gates])?;
    c.binary(Binary::Div, gates, sum)
}
