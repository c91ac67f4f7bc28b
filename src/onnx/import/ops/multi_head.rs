//! `MultiHeadAttention` and `Attention` of ONNX Runtime.
//!
//! Both are projections (with their bias, or from one matrix), caches that grow by concatenation, a mask of
//! padding in one of several forms, and [`Op::Attention`].

use snlp_passes::ir::{Attention, Binary, DType, Dim, Op, Type, ValueId};

use super::attention::{MAX_HEADS, merge_heads, split_heads};
use super::quantize::{product, scaled};
use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Attention" => packed_attention,
        "MultiHeadAttention" => multi_head_attention,
        "QAttention" => quantised_attention,
        _ => return None,
    })
}

/// `query, key?, value?, bias?, key_padding_mask?, attention_bias?, past_key?, past_value?` → output, present
/// key, present value, scores.
fn multi_head_attention(c: &mut NodeContext<'_>) -> Built {
    // Shared cache buffers and beams.
    if (8..10).any(|i| c.optional(i).is_some()) || c.wants(3) {
        return Err(Decline::Opaque);
    }
    let heads = c.int("num_heads", 0)?;
    if !(1..=MAX_HEADS).contains(&heads) {
        return Err(OnnxError::invalid(format!("has {heads} heads")).into());
    }
    let [q, k, v] = given_heads(c, heads)?;
    let [padding, bias, past_keys, past_values] = [4, 5, 6, 7].map(|i| c.optional(i));
    let (keys, values) = (appended(c, past_keys, k)?, appended(c, past_values, v)?);
    let frame = Frame::of(c, q, keys, past_keys)?;
    let mask = frame.mask(c, padding, bias)?;
    let y = attend(c, &frame, [q, keys, values], mask)?;
    Ok(vec![y, keys, values])
}

/// Queries, keys and values as `[B, heads, length, d]`, the bias added.
fn given_heads(c: &mut NodeContext<'_>, heads: i64) -> Result<[ValueId; 3], Decline> {
    let q = c.input(0)?;
    let rank = |c: &NodeContext<'_>, v: Option<ValueId>| v.map(|v| c.rank(v)).transpose();
    let (k, v) = (c.optional(1), c.optional(2));
    let forms = (c.rank(q)?, rank(c, k)?, rank(c, v)?);
    let part = |c: &mut NodeContext<'_>, packed: ValueId, i: i64| {
        let one = c.slice(packed, 3, i, i + 1)?;
        let one = c.add(Op::Squeeze { axes: vec![3] }, &[one])?;
        c.transpose(one, &[0, 2, 1, 3])
    };
    let mut out = match (forms, k, v) {
        ((5, None, None), ..) => [part(c, q, 0)?, part(c, q, 1)?, part(c, q, 2)?],
        ((3, Some(5), None), Some(k), _) => [split_heads(c, q, heads)?, part(c, k, 0)?, part(c, k, 1)?],
        ((3, Some(3), Some(3)), Some(k), Some(v)) => {
            [split_heads(c, q, heads)?, split_heads(c, k, heads)?, split_heads(c, v, heads)?]
        }
        ((3, Some(4), Some(4)), Some(k), Some(v)) => [split_heads(c, q, heads)?, k, v],
        _ => return Err(OnnxError::invalid("has queries, keys and values of ranks that do not fit").into()),
    };
    let Some(bias) = c.optional(3) else { return Ok(out) };
    // Keys that come with their heads apart have their bias already.
    let biased = if forms.1 == Some(4) { 1 } else { 3 };
    let mut from = 0;
    for x in out.iter_mut().take(biased) {
        let size = c.shape(*x)?.last().and_then(Dim::known).ok_or(Decline::Opaque)?;
        let width = heads.checked_mul(size).ok_or(Decline::Opaque)?;
        let own = c.slice(bias, 0, from, from.saturating_add(width))?;
        let shape = c.graph.ints(&[heads, 1, size]);
        let own = c.add(Op::Reshape { allow_zero: false }, &[own, shape])?;
        *x = c.binary(Binary::Add, *x, own)?;
        from = from.checked_add(width).ok_or(Decline::Opaque)?;
    }
    Ok(out)
}

/// Self-attention with one matrix for queries, keys and values: `x [B, T, D], w [D, 2·H + E], b?, mask?, past?,
/// bias of the scores?` → output, present.
fn packed_attention(c: &mut NodeContext<'_>) -> Built {
    if c.optional(6).is_some() {
        return Err(Decline::Opaque);
    }
    let (x, w) = (c.input(0)?, c.input(1)?);
    let mut qkv = c.add(Op::MatMul, &[x, w])?;
    if let Some(bias) = c.optional(2) {
        qkv = c.add(Op::Binary(Binary::Add), &[qkv, bias])?;
    }
    let [padding, past, bias] = [3, 4, 5].map(|i| c.optional(i));
    self_attention(c, qkv, [padding, past, bias])
}

/// As [`packed_attention`], the product in integers: `x, w, b, scale of x, of w, mask?, zero point of x?, of w?,
/// past?` → output, present.
fn quantised_attention(c: &mut NodeContext<'_>) -> Built {
    let [x, w, bias, scale_x, scale_w] = super::quantize::inputs::<5>(c)?;
    let (zero_x, zero_w) = (c.optional(6), c.optional(7));
    let integers = product(c, x, w, zero_x, zero_w)?;
    let factor = c.binary(Binary::Mul, scale_x, scale_w)?;
    let qkv = scaled(c, integers, factor)?;
    let qkv = c.binary(Binary::Add, qkv, bias)?;
    let [padding, past] = [5, 8].map(|i| c.optional(i));
    self_attention(c, qkv, [padding, past, None])
}

/// Attention of what one product made: `qkv [B, T, 2·H + E]`.
fn self_attention(
    c: &mut NodeContext<'_>,
    qkv: ValueId,
    [padding, past, bias]: [Option<ValueId>; 3],
) -> Built {
    if c.flag("do_rotary", false)? || c.flag("past_present_share_buffer", false)? {
        return Err(Decline::Opaque);
    }
    let heads = c.int("num_heads", 0)?;
    let packed = c.shape(qkv)?.get(2).and_then(Dim::known).ok_or(Decline::Opaque)?;
    let sizes = match c.attributes.ints("qkv_hidden_sizes")? {
        Some(sizes) => sizes.to_vec(),
        None => vec![packed / 3; 3],
    };
    let fits = |n: &i64| heads > 0 && *n > 0 && n % heads == 0;
    if sizes.len() != 3
        || sizes.iter().try_fold(0i64, |n, s| n.checked_add(*s)) != Some(packed)
        || !sizes.iter().all(fits)
    {
        return Err(OnnxError::invalid(format!("has {heads} heads for widths {sizes:?} of {packed}")).into());
    }
    let mut parts = Vec::with_capacity(3);
    let mut from = 0;
    for size in sizes {
        let part = c.slice(qkv, 2, from, from + size)?;
        parts.push(split_heads(c, part, heads)?);
        from += size;
    }
    let [q, k, v] = parts[..] else { return Err(Decline::Opaque) };
    let part_of_past = |c: &mut NodeContext<'_>, i: i64| -> Result<Option<ValueId>, Decline> {
        let Some(past) = past else { return Ok(None) };
        let one = c.slice(past, 0, i, i + 1)?;
        Ok(Some(c.add(Op::Squeeze { axes: vec![0] }, &[one])?))
    };
    let (past_keys, past_values) = (part_of_past(c, 0)?, part_of_past(c, 1)?);
    let (keys, values) = (appended(c, past_keys, k)?, appended(c, past_values, v)?);
    let frame = Frame::of(c, q, keys, past_keys)?;
    let mask = frame.mask(c, padding, bias)?;
    let y = attend(c, &frame, [q, keys, values], mask)?;
    if !c.wants(1) {
        return Ok(vec![y]);
    }
    let (keys, values) = (c.unsqueeze(keys, &[0])?, c.unsqueeze(values, &[0])?);
    Ok(vec![y, c.add(Op::Concat { axis: 0 }, &[keys, values])?])
}

/// The cache and what is new, along the positions.
fn appended(c: &mut NodeContext<'_>, past: Option<ValueId>, new: ValueId) -> Result<ValueId, Decline> {
    match past {
        Some(past) => c.add(Op::Concat { axis: 2 }, &[past, new]),
        None => Ok(new),
    }
}

fn attend(
    c: &mut NodeContext<'_>,
    frame: &Frame,
    [q, k, v]: [ValueId; 3],
    mask: Option<ValueId>,
) -> Result<ValueId, Decline> {
    let scale = match c.float("scale", 0.0)? {
        0.0 => 1.0 / (frame.head.known().ok_or(Decline::Opaque)? as f32).sqrt(),
        scale => scale,
    };
    let op = Attention { scale, causal: frame.causal, window: None, softcap: None, safe: true };
    let y = c.add_optional(Op::Attention(op), vec![Some(q), Some(k), Some(v), mask])?;
    merge_heads(c, y)
}

/// Sizes and types of the scores.
struct Frame {
    batch: Dim,
    queries: Dim,
    keys: Dim,
    head: Dim,
    dtype: DType,
    causal: bool,
}

impl Frame {
    /// Of queries and keys `[B, heads, length, d]`.
    fn of(c: &NodeContext<'_>, q: ValueId, k: ValueId, past: Option<ValueId>) -> Result<Self, Decline> {
        let Type { dtype, shape: q } = c.ty(q)?;
        let k = c.shape(k)?;
        let ([batch, _, queries, head], [_, _, keys, _]) = (&q[..], &k[..]) else {
            return Err(Decline::Opaque);
        };
        let causal = c.flag("unidirectional", false)?;
        // Without a cache the causal triangle starts at the first key.
        if causal && past.is_none() && queries != keys {
            return Err(Decline::Opaque);
        }
        let (batch, queries, keys, head) = (batch.clone(), queries.clone(), keys.clone(), head.clone());
        Ok(Frame { batch, queries, keys, head, dtype, causal })
    }

    /// What is added to the scores: a large negative number where padding is, and the bias.
    fn mask(
        &self,
        c: &mut NodeContext<'_>,
        padding: Option<ValueId>,
        bias: Option<ValueId>,
    ) -> Result<Option<ValueId>, Decline> {
        let Some(padding) = padding else { return Ok(bias) };
        let visible = self.visible(c, padding)?;
        let hidden = f64::from(c.float("mask_filter_value", -10000.0)?);
        let (zero, hidden) =
            (c.graph.float_scalar(self.dtype, 0.0), c.graph.float_scalar(self.dtype, hidden));
        let mask = c.add(Op::Where, &[visible, zero, hidden])?;
        match bias {
            Some(bias) => Ok(Some(c.binary(Binary::Add, mask, bias)?)),
            None => Ok(Some(mask)),
        }
    }

    /// The padding mask as bools that broadcast to `[B, heads, queries, keys]`.
    fn visible(&self, c: &mut NodeContext<'_>, mask: ValueId) -> Result<ValueId, Decline> {
        let may_be = |a: &Dim, b: &Dim| a == b || a.known().is_none() || b.known().is_none();
        let shape = c.shape(mask)?;
        match &shape[..] {
            // Numbers of keys, or their ends and then their beginnings.
            [n] => {
                let keys = c.positions(&self.keys)?;
                let counts = c.as_i64(mask)?;
                let counts = c.unsqueeze(counts, &[1, 2, 3])?;
                if *n == self.batch {
                    return c.binary(Binary::Less, keys, counts);
                }
                if *n != self.batch.clone() + self.batch.clone() || !c.computable(&self.batch) {
                    return Err(Decline::Opaque);
                }
                let cut = |c: &mut NodeContext<'_>, from: Dim, to: Dim| {
                    let (from, to) = (c.dims(&[from])?, c.dims(&[to])?);
                    c.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[counts, from, to])
                };
                let ends = cut(c, Dim::ZERO, self.batch.clone())?;
                let starts = cut(c, self.batch.clone(), n.clone())?;
                let (before, after) =
                    (c.binary(Binary::Less, keys, ends)?, c.binary(Binary::GreaterOrEqual, keys, starts)?);
                c.binary(Binary::And, before, after)
            }
            [b, s] if may_be(b, &self.batch) && may_be(s, &self.keys) => {
                let mask = c.add(Op::Cast { to: DType::Bool }, &[mask])?;
                c.unsqueeze(mask, &[1, 2])
            }
            [b, t, s] if may_be(b, &self.batch) && may_be(t, &self.queries) && may_be(s, &self.keys) => {
                let mask = c.add(Op::Cast { to: DType::Bool }, &[mask])?;
                c.unsqueeze(mask, &[1])
            }
            // A square over all positions, of which the last queries are these.
            [_, _, _, _] => {
                let first = self.keys.clone() - self.queries.clone();
                let (from, to) =
                    (c.dims(&[first, Dim::ZERO])?, c.dims(&[self.keys.clone(), self.keys.clone()])?);
                let cut = c.add(Op::Slice { axes: vec![2, 3], steps: vec![1, 1] }, &[mask, from, to])?;
                c.add(Op::Cast { to: DType::Bool }, &[cut])
            }
            _ => Err(OnnxError::invalid(format!("has a mask {shape:?} that does not fit the scores")).into()),
        }
    }
}
