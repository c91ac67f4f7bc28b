//! `GroupQueryAttention` of ONNX Runtime: rotary embedding, cache update and attention in one node.
//!
//! ```text
//!   q, k ─▶ norm? ─▶ Rotary ─┐            T = seqlens_k + 1      tokens in the cache after the step
//!   past ─▶ Where(j < P) ─▶ Scatter(P..)  P = T - min(S, T)      tokens before it, per row of the batch
//!                            └▶ Attention(j ≤ P + i)
//! ```
//!
//! Rows of one batch may have pasts of different length. What the cache holds from position `P + S` on is not
//! specified; here it is zero. The cache is as long as the longest row
//! (`total_sequence_length`) or, where it came longer, as it came.

use snlp_passes::ir::{Attention, Binary, DType, Dim, Op, ScatterReduction, ValueId};

use super::attention::{MAX_HEADS, merge_heads, rotate, split_heads};
use super::sliding::Sliding;
use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    (op_type == "GroupQueryAttention").then_some(group_query_attention as Builder)
}

/// Inputs of quantised caches, of padded chunks.
const UNSUPPORTED_INPUTS: [usize; 3] = [12, 13, 16];

fn group_query_attention(c: &mut NodeContext<'_>) -> Built {
    if c.wants(3) || UNSUPPORTED_INPUTS.iter().any(|i| c.optional(*i).is_some()) {
        return Err(Decline::Opaque);
    }
    let [mut q, mut k, v] = projections(c)?;
    let steps = Steps::of(c, q)?;
    if let (Some(q_scale), Some(k_scale)) = (c.optional(14), c.optional(15)) {
        let epsilon = c.float("qk_norm_epsilon", 1e-6)?;
        let norm = |e| Op::RmsNorm { axis: 3, epsilon: e };
        let (q_epsilon, k_epsilon) =
            (c.float("q_norm_epsilon", epsilon)?, c.float("k_norm_epsilon", epsilon)?);
        q = c.add(norm(q_epsilon), &[q, q_scale])?;
        k = c.add(norm(k_epsilon), &[k, k_scale])?;
    }
    if c.flag("do_rotary", false)? {
        let at = steps.rotary_positions(c)?;
        let (cos, sin) = (c.input(7)?, c.input(8)?);
        let half = c.shape(cos)?.last().and_then(Dim::known);
        let part = half.and_then(|half| half.checked_mul(2)).ok_or(Decline::Opaque)?;
        let tables = (c.add(Op::Gather { axis: 0 }, &[cos, at])?, c.add(Op::Gather { axis: 0 }, &[sin, at])?);
        let interleaved = c.flag("rotary_interleaved", false)?;
        q = rotate(c, q, tables, interleaved, part)?;
        k = rotate(c, k, tables, interleaved, part)?;
    }
    let (past_keys, past_values) = (c.optional(3), c.optional(4));
    let (keys, present_keys) = steps.cached(c, past_keys, k)?;
    let (values, present_values) = steps.cached(c, past_values, v)?;
    let mask = steps.mask(c, q)?;
    let width = c.shape(q)?.last().and_then(Dim::known).ok_or(Decline::Opaque)?;
    let scale = match c.float("scale", 0.0)? {
        0.0 => 1.0 / (width as f32).sqrt(),
        scale => scale,
    };
    let softcap = Some(c.float("softcap", 0.0)?).filter(|cap| *cap != 0.0);
    // The mask says it all; that no key lies after the last query lets kernels skip.
    let op = Attention { scale, causal: steps.causal, window: None, softcap, safe: true };
    let sinks = sinks(c, q)?;
    let y = c.add_optional(Op::Attention(op), vec![Some(q), Some(keys), Some(values), Some(mask), sinks])?;
    Ok(vec![merge_heads(c, y)?, present_keys, present_values])
}

/// Scores of a key without value, per head `[H, 1, 1]`: those given, or zero.
fn sinks(c: &mut NodeContext<'_>, q: ValueId) -> Result<Option<ValueId>, Decline> {
    match c.optional(11) {
        Some(sinks) => c.unsqueeze(sinks, &[1, 2]).map(Some),
        None if c.flag("smooth_softmax", false)? => {
            let dtype = c.dtype(q)?;
            c.filled(dtype, 0.0, &[Dim::ONE, Dim::ONE, Dim::ONE]).map(Some)
        }
        None => Ok(None),
    }
}

/// Queries, keys and values `[B, heads, S, d]`, which may come side by side.
fn projections(c: &mut NodeContext<'_>) -> Result<[ValueId; 3], Decline> {
    let (heads, kv_heads) = (c.int("num_heads", 0)?, c.int("kv_num_heads", 0)?);
    if !(1..=MAX_HEADS).contains(&heads) || kv_heads <= 0 || heads % kv_heads != 0 {
        let what = format!("has {heads} heads for queries and {kv_heads} for keys");
        return Err(OnnxError::invalid(what).into());
    }
    let q = c.input(0)?;
    let (q, k, v) = match (c.optional(1), c.optional(2)) {
        (Some(k), Some(v)) => (q, k, v),
        (None, None) => {
            let packed = c.shape(q)?.last().and_then(Dim::known).ok_or(Decline::Opaque)?;
            let head = Some(packed / (heads + 2 * kv_heads)).filter(|h| h * (heads + 2 * kv_heads) == packed);
            let Some(head) = head else {
                let what = format!("has a width of {packed} for {heads} and twice {kv_heads} heads");
                return Err(OnnxError::invalid(what).into());
            };
            let (to_k, to_v) = (heads * head, (heads + kv_heads) * head);
            (c.slice(q, 2, 0, to_k)?, c.slice(q, 2, to_k, to_v)?, c.slice(q, 2, to_v, packed)?)
        }
        _ => return Err(OnnxError::invalid("has a key without a value, or a value without a key").into()),
    };
    Ok([split_heads(c, q, heads)?, split_heads(c, k, kv_heads)?, split_heads(c, v, kv_heads)?])
}

/// Where the new tokens stand.
struct Steps {
    /// New tokens of every row.
    new: Dim,
    /// Length of the cache afterwards.
    length: Dim,
    /// Largest number of tokens of a row afterwards.
    total: Dim,
    /// Tokens of each row afterwards, int64 `[B]`.
    after: ValueId,
    /// Tokens of each row before, int64 `[B]`.
    before: ValueId,
    /// Positions of the new tokens, int64 `[B, S]`.
    at: ValueId,
    causal: bool,
    /// Keys of a query, its own included; positive.
    window: Option<i64>,
    /// The layout of a cache that holds the window's keys alone.
    sliding: Option<Sliding>,
}

impl Steps {
    /// For queries `[B, H, S, d]`.
    fn of(c: &mut NodeContext<'_>, q: ValueId) -> Result<Self, Decline> {
        let new = c.shape(q)?.get(2).cloned().ok_or(Decline::Opaque)?;
        let causal = c.flag("causal", true)?;
        let total = match c.optional(3) {
            Some(_) => {
                let total = c.input(6)?;
                match c.content(total).as_deref() {
                    Some([total]) => total.clone(),
                    _ => return Err(Decline::Opaque),
                }
            }
            None => new.clone(),
        };
        let length = match c.optional(3) {
            Some(past) => match &c.shape(past)?[..] {
                [_, _, before, _] => before.maximum(&total),
                _ => return Err(Decline::Opaque),
            },
            None => new.clone(),
        };
        let last = c.input(5)?;
        let mut last = c.as_i64(last)?;
        match c.rank(last)? {
            1 => {}
            2 => last = c.add(Op::Squeeze { axes: vec![1] }, &[last])?,
            _ => return Err(Decline::Opaque),
        }
        let one = c.graph.scalar(1i64);
        let after = c.binary(Binary::Add, last, one)?;
        let count = c.size(&new)?;
        let count = c.binary(Binary::Min, after, count)?;
        let before = c.binary(Binary::Sub, after, count)?;
        let rows = c.unsqueeze(before, &[1])?;
        let columns = c.positions(&new)?;
        let at = c.binary(Binary::Add, rows, columns)?;
        let window = Some(c.int("local_window_size", -1)?).filter(|w| *w > 0);
        let sliding = match (c.flag("sliding_window_cache", false)?, c.optional(3), window) {
            (false, ..) => None,
            (true, Some(past), Some(window)) => Some(Sliding::of(c, past, window, [before, after, at])?),
            _ => return Err(OnnxError::invalid("has a cache of a window, but no window or no cache").into()),
        };
        Ok(Steps { new, length, total, after, before, at, causal, window, sliding })
    }

    /// Positions to rotate by: those given, of which a prompt's first counts alone, or those in the cache.
    fn rotary_positions(&self, c: &mut NodeContext<'_>) -> Result<ValueId, Decline> {
        let Some(given) = c.optional(9) else { return Ok(self.at) };
        let given = c.as_i64(given)?;
        let first = c.slice(given, 0, 0, 1)?;
        let first = c.slice(first, 1, 0, 1)?;
        let columns = c.positions(&self.new)?;
        let counted = c.binary(Binary::Add, first, columns)?;
        let (new, total) = (c.size(&self.new)?, c.size(&self.total)?);
        let prompt = c.binary(Binary::Equal, new, total)?;
        c.add(Op::Where, &[prompt, counted, given])
    }

    /// The cache with the new tokens' `[B, H, S, d]` written behind each row's own: as attention reads it, and as
    /// it is kept.
    fn cached(
        &self,
        c: &mut NodeContext<'_>,
        past: Option<ValueId>,
        new: ValueId,
    ) -> Result<(ValueId, ValueId), Decline> {
        let Some(past) = past else { return Ok((new, new)) };
        let (past_type, new_type) = (c.ty(past)?, c.ty(new)?);
        if past_type.dtype != new_type.dtype {
            return Err(Decline::Opaque);
        }
        let known = |axis: usize| new_type.shape.get(axis).and_then(Dim::known);
        let past = c.sized(past, &[None, known(1), None, known(3)])?;
        if let Some(sliding) = &self.sliding {
            return sliding.cached(c, past, new);
        }
        let room = c.padded(past, 2, &self.length, 0.0)?;
        let keys = c.positions(&self.length)?;
        let keys = c.unsqueeze(keys, &[1])?;
        let before = c.unsqueeze(self.before, &[1, 2, 3])?;
        let held = c.binary(Binary::Less, keys, before)?;
        let zero = c.graph.float_scalar(new_type.dtype, 0.0);
        let held = c.add(Op::Where, &[held, room, zero])?;
        let at = c.unsqueeze(self.at, &[1, 3])?;
        let at = c.expand(at, &new_type.shape)?;
        let scatter = Op::ScatterElements { axis: 2, reduction: ScatterReduction::None };
        let kept = c.add(scatter, &[held, at, new])?;
        Ok((kept, kept))
    }

    /// What each query sees, `[B, 1, S, length]`, with the bias where there is one.
    fn mask(&self, c: &mut NodeContext<'_>, q: ValueId) -> Result<ValueId, Decline> {
        let keys = match &self.sliding {
            Some(sliding) => c.unsqueeze(sliding.keys, &[1, 2])?,
            None => c.positions(&self.length)?,
        };
        let mut visible = if self.causal {
            let queries = c.unsqueeze(self.at, &[1, 3])?;
            let mut visible = c.binary(Binary::LessOrEqual, keys, queries)?;
            if let Some(window) = self.window {
                let window = c.graph.scalar(window);
                let first = c.binary(Binary::Sub, queries, window)?;
                let near = c.binary(Binary::Greater, keys, first)?;
                visible = c.binary(Binary::And, visible, near)?;
            }
            visible
        } else {
            let after = c.unsqueeze(self.after, &[1, 2, 3])?;
            c.binary(Binary::Less, keys, after)?
        };
        if let Some(bias) = c.optional(10) {
            let dtype: DType = c.dtype(q)?;
            if c.rank(bias)? != 4 || self.sliding.is_some() {
                return Err(Decline::Opaque);
            }
            let bias = c.padded(bias, 3, &self.length, 0.0)?;
            let out = c.graph.float_scalar(dtype, f64::NEG_INFINITY);
            visible = c.add(Op::Where, &[visible, bias, out])?;
        }
        Ok(visible)
    }
}
