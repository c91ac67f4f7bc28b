//! Operators of ONNX Runtime (`com.microsoft`) that are short for standard ones.

use snlp_passes::ir::{Binary, DType, Dim, Op, Reduce, Unary, ValueId};

use super::attention::rotated;
use super::{Builder, Built, Decline, NodeContext, linear, norm, quantize};
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
        "EmbedLayerNormalization" => |c| embed_norm(c, |c, i| c.input(i)),
        "QEmbedLayerNormalization" => |c| embed_norm(c, dequantized),
        "RotaryEmbedding" => rotary,
        "FusedMatMul" => fused_matmul,
        "FusedGemm" => fused_gemm,
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

/// A table or factor of `QEmbedLayerNormalization`, operand `i` of 2 to 6, by its scale and zero point.
fn dequantized(c: &mut NodeContext<'_>, i: usize) -> Result<ValueId, Decline> {
    let (x, scale, zero) = (c.input(i)?, c.input(i + 6)?, c.input(i + 11)?);
    let zero = quantize::zero_point(c, x, Some(zero));
    c.add_optional(Op::Dequantize { blocks: None }, vec![Some(x), Some(scale), zero])
}

/// Token, position and segment embeddings and the norm of their sum: `ids, segments?, words, positions,
/// segment table?, scale, shift, mask?, position ids?` → norm, number of unmasked tokens, sum. `table` gives
/// operands 2 to 6 as floats.
fn embed_norm(
    c: &mut NodeContext<'_>,
    table: fn(&mut NodeContext<'_>, usize) -> Result<ValueId, Decline>,
) -> Built {
    let (ids, words, positions) = (c.input(0)?, table(c, 2)?, table(c, 3)?);
    let [_, length] = &c.shape(ids)?[..] else { return Err(Decline::Opaque) };
    let mut sum = c.add(Op::Gather { axis: 0 }, &[words, ids])?;
    if let (Some(segments), Some(_)) = (c.optional(1), c.optional(4)) {
        let segment_table = table(c, 4)?;
        let segment = c.add(Op::Gather { axis: 0 }, &[segment_table, segments])?;
        sum = c.add(Op::Binary(Binary::Add), &[sum, segment])?;
    }
    let given = if c.node.op_type() == "EmbedLayerNormalization" { c.optional(8) } else { None };
    let position = match given {
        Some(at) => c.add(Op::Gather { axis: 0 }, &[positions, at])?,
        None => {
            let (start, end) = (c.graph.ints(&[0]), c.dims(std::slice::from_ref(length))?);
            c.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[positions, start, end])?
        }
    };
    let sum = c.add(Op::Binary(Binary::Add), &[sum, position])?;
    let (scale, shift) = (table(c, 5)?, table(c, 6)?);
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

/// `x [B, T, H·d] or [B, H, T, d], positions [1] or [B, T], cos [P, r/2], sin` → rotated; one position is that
/// of the first token.
fn rotary(c: &mut NodeContext<'_>) -> Built {
    if c.flag("is_packed_batching", false)? {
        return Err(Decline::Opaque);
    }
    let (x, at, cos, sin) = (c.input(0)?, c.input(1)?, c.input(2)?, c.input(3)?);
    let half = c.shape(cos)?.last().and_then(Dim::known).ok_or(Decline::Opaque)?;
    let part = half.checked_mul(2).ok_or(Decline::Opaque)?;
    let shape = c.shape(x)?;
    let (length, heads) = match &shape[..] {
        [_, length, width] => {
            let width = width.known().ok_or(Decline::Opaque)?;
            // Without the number of heads the table spans a head.
            let heads = Some(c.int("num_heads", 0)?).filter(|n| *n > 0);
            (length, heads.unwrap_or(width / part.max(1)))
        }
        [_, _, length, _] => (length, 0),
        _ => return Err(OnnxError::invalid(format!("rotates {shape:?}, not three or four axes")).into()),
    };
    let mut at = c.as_i64(at)?;
    if c.rank(at)? < 2 {
        let columns = c.positions(length)?;
        at = c.binary(Binary::Add, at, columns)?;
        at = c.unsqueeze(at, &[0])?;
    }
    let tables = (c.add(Op::Gather { axis: 0 }, &[cos, at])?, c.add(Op::Gather { axis: 0 }, &[sin, at])?);
    let interleaved = c.flag("interleaved", false)?;
    Ok(vec![rotated(c, x, heads, tables, interleaved, part)?])
}

/// `alpha · op(a) · op(b)`, with batches.
fn fused_matmul(c: &mut NodeContext<'_>) -> Built {
    if c.flag("transBatchA", false)? || c.flag("transBatchB", false)? {
        return Err(Decline::Opaque);
    }
    let mut operands = [c.input(0)?, c.input(1)?];
    let dtype = c.dtype(operands[0])?;
    for (v, flag) in operands.iter_mut().zip(["transA", "transB"]) {
        let rank = c.rank(*v)?;
        if c.flag(flag, false)? && rank >= 2 {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(rank - 2, rank - 1);
            *v = c.transpose(*v, &perm)?;
        }
    }
    let product = c.add(Op::MatMul, &operands)?;
    let alpha = c.float("alpha", 1.0)?;
    if alpha == 1.0 {
        return Ok(vec![product]);
    }
    let alpha = c.graph.float_scalar(dtype, f64::from(alpha));
    Ok(vec![c.binary(Binary::Mul, product, alpha)?])
}

/// `Gemm`, then an activation.
fn fused_gemm(c: &mut NodeContext<'_>) -> Built {
    let activation = match c.text("activation", "")?.as_str() {
        "Relu" => Unary::Relu,
        "Tanh" => Unary::Tanh,
        "Sigmoid" => Unary::Sigmoid,
        "Softplus" => Unary::Softplus,
        "Softsign" => Unary::Softsign,
        "LeakyRelu" => Unary::LeakyRelu { alpha: c.float("activation_alpha", 0.01)? },
        "Elu" => Unary::Elu { alpha: c.float("activation_alpha", 1.0)? },
        _ => return Err(Decline::Opaque),
    };
    let gemm = linear::gemm(c)?;
    match gemm[..] {
        [y] => Ok(vec![c.add(Op::Unary(activation), &[y])?]),
        _ => Err(Decline::Opaque),
    }
}
