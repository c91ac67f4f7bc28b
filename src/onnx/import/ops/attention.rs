//! Attention and rotary embeddings of opset 23.

use snlp_passes::ir::{Attention, Dim, Op, Rotary, RotaryTable, ValueId};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Attention" => attention,
        "RotaryEmbedding" => rotary,
        _ => return None,
    })
}

/// `[B, T, H·d]` as `[B, H, T, d]`.
pub(super) fn split_heads(c: &mut NodeContext<'_>, x: ValueId, heads: i64) -> Result<ValueId, Decline> {
    let shape = c.shape(x)?;
    let [_, _, width] = &shape[..] else { return Err(Decline::Opaque) };
    if heads <= 0 {
        return Err(OnnxError::invalid(format!("has {heads} heads")).into());
    }
    let head = width.known().filter(|w| w % heads == 0).map(|w| w / heads).ok_or(Decline::Opaque)?;
    let target = c.graph.ints(&[0, 0, heads, head]);
    let split = c.add(Op::Reshape { allow_zero: false }, &[x, target])?;
    c.add(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[split])
}

/// `[B, H, T, d]` as `[B, T, H·d]`.
pub(super) fn merge_heads(c: &mut NodeContext<'_>, x: ValueId) -> Result<ValueId, Decline> {
    let moved = c.add(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[x])?;
    let shape = c.shape(moved)?;
    let width = match &shape[..] {
        [_, _, h, d] => (h.clone() * d.clone()).known().ok_or(Decline::Opaque)?,
        _ => return Err(Decline::Opaque),
    };
    let target = c.graph.ints(&[0, 0, width]);
    c.add(Op::Reshape { allow_zero: false }, &[moved, target])
}

fn attention(c: &mut NodeContext<'_>) -> Built {
    c.only_first_result()?;
    if (4..7).any(|i| c.optional(i).is_some()) {
        return Err(Decline::Opaque);
    }
    if ["left_window_size", "right_window_size"].iter().any(|a| c.attributes.get(a).is_some()) {
        return Err(Decline::Opaque);
    }
    let (mut q, mut k, mut v) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let flat = c.rank(q)? == 3;
    if flat {
        let (heads, kv_heads) = (c.int("q_num_heads", 0)?, c.int("kv_num_heads", 0)?);
        q = split_heads(c, q, heads)?;
        k = split_heads(c, k, kv_heads)?;
        v = split_heads(c, v, kv_heads)?;
    }
    let (q_shape, k_shape) = (c.shape(q)?, c.shape(k)?);
    let ([_, _, t, d], [_, _, s, _]) = (&q_shape[..], &k_shape[..]) else { return Err(Decline::Opaque) };
    let scale = match c.attributes.float("scale")? {
        Some(scale) => scale,
        None => 1.0 / (d.known().ok_or(Decline::Opaque)? as f32).sqrt(),
    };
    let mask = c.optional(3);
    if let Some(mask) = mask {
        let last = c.shape(mask)?.last().cloned();
        // From opset 24 on a shorter mask hides the keys beyond it.
        if last.as_ref() != Some(s) && last != Some(Dim::ONE) {
            return Err(Decline::Opaque);
        }
    }
    let causal = c.flag("is_causal", false)?;
    // ONNX aligns the causal triangle with the first key, the IR with the last.
    if causal && t != s {
        return Err(Decline::Opaque);
    }
    let softcap = Some(c.float("softcap", 0.0)?).filter(|cap| *cap != 0.0);
    // Runtimes disagree whether the mask goes before the cap or after it.
    if softcap.is_some() && mask.is_some() {
        return Err(Decline::Opaque);
    }
    let op = Op::Attention(Attention { scale, causal, window: None, softcap, safe: true });
    let y = c.add_optional(op, vec![Some(q), Some(k), Some(v), mask])?;
    Ok(vec![if flat { merge_heads(c, y)? } else { y }])
}

fn rotary(c: &mut NodeContext<'_>) -> Built {
    let (x, cos, sin) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let tables = match c.optional(3) {
        None => (cos, sin),
        Some(at) => (c.add(Op::Gather { axis: 0 }, &[cos, at])?, c.add(Op::Gather { axis: 0 }, &[sin, at])?),
    };
    let heads = c.int("num_heads", 0)?;
    let flat = c.rank(x)? == 3;
    let lifted = if flat { split_heads(c, x, heads)? } else { x };
    let (interleaved, part) = (c.flag("interleaved", false)?, c.int("rotary_embedding_dim", 0)?);
    let y = rotate(c, lifted, tables, interleaved, part)?;
    Ok(vec![if flat { merge_heads(c, y)? } else { y }])
}

/// Rotates the first `part` (0: all) elements of each head of `x [B, H, T, d]` by tables `[B, T, r/2]`.
pub(super) fn rotate(
    c: &mut NodeContext<'_>,
    x: ValueId,
    (cos, sin): (ValueId, ValueId),
    interleaved: bool,
    part: i64,
) -> Result<ValueId, Decline> {
    if c.rank(x)? != 4 || c.rank(cos)? != 3 {
        return Err(Decline::Opaque);
    }
    let op = Op::Rotary(Rotary { interleaved, table: RotaryTable::Half });
    let cos = c.add(Op::Unsqueeze { axes: vec![1] }, &[cos])?;
    let sin = c.add(Op::Unsqueeze { axes: vec![1] }, &[sin])?;
    let width = c.shape(x)?.last().and_then(Dim::known).ok_or(Decline::Opaque)?;
    if part == 0 || part == width {
        return c.add(op, &[x, cos, sin]);
    }
    let slice = |c: &mut NodeContext<'_>, from: i64, to: i64| {
        let (from, to) = (c.graph.ints(&[from]), c.graph.ints(&[to]));
        c.add(Op::Slice { axes: vec![3], steps: vec![1] }, &[x, from, to])
    };
    let turned = slice(c, 0, part)?;
    let rest = slice(c, part, width)?;
    let turned = c.add(op, &[turned, cos, sin])?;
    c.add(Op::Concat { axis: 3 }, &[turned, rest])
}
