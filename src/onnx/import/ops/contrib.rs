//! Operators of ONNX Runtime (`com.microsoft`) that are short for standard ones.

use snlp_passes::ir::{Attention, Binary, DType, Dim, Op, Reduce, Unary, ValueId};

use super::attention::{merge_heads, split_heads};
use super::{Builder, Built, Decline, NodeContext, norm};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Gelu" => |c| c.plain(Op::Unary(Unary::GeluErf), 1),
        "BiasGelu" => |c| biased(c, Unary::GeluErf),
        "FastGelu" => |c| biased(c, Unary::GeluTanh),
        "QuickGelu" => |c| {
            let alpha = c.float("alpha", 1.702)?;
            c.plain(Op::Unary(Unary::Swish { alpha }), 1)
        },
        "EmbedLayerNormalization" => embed_norm,
        "Attention" => packed_attention,
        "SimplifiedLayerNormalization" => norm::rms_norm,
        "SkipLayerNormalization" => |c| skip_norm(c, |axis, epsilon| Op::LayerNorm { axis, epsilon }, 2),
        "SkipSimplifiedLayerNormalization" => {
            |c| skip_norm(c, |axis, epsilon| Op::RmsNorm { axis, epsilon }, 1)
        }
        _ => return None,
    })
}

/// An activation of the sum of a tensor and an optional bias.
fn biased(c: &mut NodeContext<'_>, activation: Unary) -> Built {
    let mut x = c.input(0)?;
    // What follows an unknown operator cannot be decomposed again when it is written.
    c.ty(x)?;
    if let Some(bias) = c.optional(1) {
        x = c.add(Op::Binary(Binary::Add), &[x, bias])?;
    }
    Ok(vec![c.add(Op::Unary(activation), &[x])?])
}

/// A residual addition and the norm of its sum: `input, skip, scale, [shift,] bias?` → norm, mean,
/// deviation, sum. `parameters` operands belong to the norm.
fn skip_norm(c: &mut NodeContext<'_>, norm: fn(usize, f32) -> Op, parameters: usize) -> Built {
    if c.wants(1) || c.wants(2) {
        return Err(Decline::Opaque);
    }
    let (mut input, skip) = (c.input(0)?, c.input(1)?);
    let axis = c.rank(input)?.checked_sub(1).ok_or(Decline::Opaque)?;
    c.ty(skip)?;
    let epsilon = c.float("epsilon", 1e-12)?;
    if let Some(bias) = c.optional(2 + parameters) {
        input = c.add(Op::Binary(Binary::Add), &[input, bias])?;
    }
    let sum = c.add(Op::Binary(Binary::Add), &[input, skip])?;
    let mut operands = vec![Some(sum)];
    operands.extend((2..2 + parameters).map(|i| c.optional(i)));
    let normed = c.add_optional(norm(axis, epsilon), operands)?;
    Ok(vec![normed, sum, sum, sum])
}

/// Token, position and segment embeddings and the norm of their sum: `ids, segments?, words, positions,
/// segment table?, scale, shift, mask?, position ids?` → norm, number of unmasked tokens, sum.
fn embed_norm(c: &mut NodeContext<'_>) -> Built {
    let (ids, words, positions) = (c.input(0)?, c.input(2)?, c.input(3)?);
    let [_, length] = &c.shape(ids)?[..] else { return Err(Decline::Opaque) };
    let mut sum = c.add(Op::Gather { axis: 0 }, &[words, ids])?;
    if let (Some(segments), Some(table)) = (c.optional(1), c.optional(4)) {
        let segment = c.add(Op::Gather { axis: 0 }, &[table, segments])?;
        sum = c.add(Op::Binary(Binary::Add), &[sum, segment])?;
    }
    let position = match c.optional(8) {
        Some(at) => c.add(Op::Gather { axis: 0 }, &[positions, at])?,
        None => {
            let (start, end) = (c.graph.ints(&[0]), c.dims(std::slice::from_ref(length))?);
            c.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[positions, start, end])?
        }
    };
    let sum = c.add(Op::Binary(Binary::Add), &[sum, position])?;
    let (scale, shift) = (c.input(5)?, c.input(6)?);
    let epsilon = c.float("epsilon", 1e-12)?;
    let normed = c.add(Op::LayerNorm { axis: 2, epsilon }, &[sum, scale, shift])?;
    let count = match (c.optional(7), c.wants(1)) {
        (Some(mask), _) => {
            let mask = c.add(Op::Cast { to: DType::I32 }, &[mask])?;
            c.add(Op::Reduce { op: Reduce::Sum, axes: vec![1], keepdims: false }, &[mask])?
        }
        (None, true) => return Err(Decline::Opaque),
        (None, false) => sum,
    };
    Ok(vec![normed, count, sum])
}

/// Self-attention with one matrix for queries, keys and values: `x [B, T, D], w [D, 3·H], b?, mask?`.
/// The mask is the number of unmasked tokens `[B]`, or a matrix `[B, T]` of 0 and 1.
fn packed_attention(c: &mut NodeContext<'_>) -> Built {
    c.only_first_result()?;
    let extras = ["qkv_hidden_sizes", "rotary_embedding_dim"];
    if (4..8).any(|i| c.optional(i).is_some())
        || extras.iter().any(|a| c.attributes.get(a).is_some())
        || c.flag("do_rotary", false)?
    {
        return Err(Decline::Opaque);
    }
    let (x, w) = (c.input(0)?, c.input(1)?);
    let (x_type, w_shape) = (c.ty(x)?, c.shape(w)?);
    let ([batch, length, _], [_, packed]) = (&x_type.shape[..], &w_shape[..]) else {
        return Err(Decline::Opaque);
    };
    let heads = c.int("num_heads", 0)?;
    let width = packed.known().filter(|n| n % 3 == 0).map(|n| n / 3).ok_or(Decline::Opaque)?;
    if heads <= 0 || width % heads != 0 {
        return Err(OnnxError::invalid(format!("has {heads} heads for a width of {width}")).into());
    }
    let mask = match c.optional(3) {
        Some(mask) => Some(additive_mask(c, mask, batch, length, x_type.dtype)?),
        None => None,
    };
    let mut qkv = c.add(Op::MatMul, &[x, w])?;
    if let Some(bias) = c.optional(2) {
        qkv = c.add(Op::Binary(Binary::Add), &[qkv, bias])?;
    }
    let mut operands = Vec::with_capacity(4);
    for i in 0..3 {
        let (start, end) = (c.graph.ints(&[i * width]), c.graph.ints(&[(i + 1) * width]));
        let part = c.add(Op::Slice { axes: vec![2], steps: vec![1] }, &[qkv, start, end])?;
        operands.push(Some(split_heads(c, part, heads)?));
    }
    operands.push(mask);
    let scale = match c.float("scale", 0.0)? {
        0.0 => 1.0 / ((width / heads) as f32).sqrt(),
        scale => scale,
    };
    let causal = c.flag("unidirectional", false)?;
    let op = Op::Attention(Attention { scale, causal, window: None, softcap: None, safe: true });
    let y = c.add_optional(op, operands)?;
    Ok(vec![merge_heads(c, y)?])
}

/// `[B, 1, 1, T]`: 0 for the keys that may be seen, a large negative number for the others.
fn additive_mask(
    c: &mut NodeContext<'_>,
    mask: ValueId,
    batch: &Dim,
    length: &Dim,
    dtype: DType,
) -> Result<ValueId, Decline> {
    let visible = match &c.shape(mask)?[..] {
        [n] if n == batch => {
            let (zero, one) = (c.graph.scalar(0i64), c.graph.scalar(1i64));
            if !c.computable(length) {
                return Err(Decline::Opaque);
            }
            let end = c.graph.dim_scalar(length)?;
            let keys = c.add(Op::Range, &[zero, end, one])?;
            let count = c.as_i64(mask)?;
            let count = c.add(Op::Unsqueeze { axes: vec![1, 2, 3] }, &[count])?;
            c.add(Op::Binary(Binary::Less), &[keys, count])?
        }
        [n, t] if n == batch && t == length => {
            let mask = c.add(Op::Cast { to: DType::Bool }, &[mask])?;
            c.add(Op::Unsqueeze { axes: vec![1, 2] }, &[mask])?
        }
        _ => return Err(Decline::Opaque),
    };
    let hidden = c.float("mask_filter_value", -10000.0)?;
    let (zero, hidden) = (c.graph.float_scalar(dtype, 0.0), c.graph.float_scalar(dtype, f64::from(hidden)));
    c.add(Op::Where, &[visible, zero, hidden])
}
