//! Attention, rotary embeddings and cache updates of opsets 23 and later.

use snlp_passes::ir::{
    Attention, Binary, DType, Dim, Op, Rotary, RotaryTable, ScatterReduction, Unary, ValueId,
};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Attention" => attention,
        "RotaryEmbedding" => rotary,
        "TensorScatter" => tensor_scatter,
        _ => return None,
    })
}

/// More heads than any model has.
pub(super) const MAX_HEADS: i64 = 1 << 20;

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

/// `q, k, v, mask?, past key?, past value?, lengths of k?` → output, present key, present value, scores.
fn attention(c: &mut NodeContext<'_>) -> Built {
    let (mut q, mut k, mut v) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let flat = c.rank(q)? == 3;
    if flat {
        let (heads, kv_heads) = (c.int("q_num_heads", 0)?, c.int("kv_num_heads", 0)?);
        q = split_heads(c, q, heads)?;
        k = split_heads(c, k, kv_heads)?;
        v = split_heads(c, v, kv_heads)?;
    }
    for (i, new) in [(4, &mut k), (5, &mut v)] {
        if let Some(past) = c.optional(i) {
            *new = c.add(Op::Concat { axis: 2 }, &[past, *new])?;
        }
    }
    let frame = Frame::of(c, q, k)?;
    let (mut op, visible) = frame.visible(c)?;
    op.scale = match c.attributes.float("scale")? {
        Some(scale) => scale,
        None => 1.0 / (c.shape(q)?[3].known().ok_or(Decline::Opaque)? as f32).sqrt(),
    };
    op.softcap = Some(c.float("softcap", 0.0)?).filter(|cap| *cap > 0.0);
    let mask = frame.mask(c, visible)?;
    let y = c.add_optional(Op::Attention(op), vec![Some(q), Some(k), Some(v), mask])?;
    let y = if flat { merge_heads(c, y)? } else { y };
    if !c.wants(3) {
        return Ok(vec![y, k, v]);
    }
    let scores = scores(c, &op, &frame, [q, k], mask)?;
    Ok(vec![y, k, v, scores])
}

/// The sizes of the scores and what stands before the queries.
struct Frame {
    queries: Dim,
    keys: Dim,
    dtype: DType,
    /// Numbers of keys that count, per row of the batch.
    lengths: Option<ValueId>,
    /// Position of the first query among the keys, where it is one for all rows of the batch.
    first: Option<Dim>,
}

impl Frame {
    /// For `q [B, H, T, d], k [B, H, S, d]`, the cache included.
    fn of(c: &mut NodeContext<'_>, q: ValueId, k: ValueId) -> Result<Self, Decline> {
        let (ty, k_shape) = (c.ty(q)?, c.shape(k)?);
        let ([_, _, queries, _], [_, _, keys, _]) = (&ty.shape[..], &k_shape[..]) else {
            return Err(OnnxError::invalid("needs queries and keys of three or four axes").into());
        };
        let (queries, keys) = (queries.clone(), keys.clone());
        let lengths = c.optional(6).map(|v| c.as_i64(v)).transpose()?;
        let first = match (lengths, c.optional(4)) {
            (Some(_), _) => None,
            (None, Some(past)) => Some(c.shape(past)?.get(2).cloned().ok_or(Decline::Opaque)?),
            (None, None) => Some(Dim::ZERO),
        };
        Ok(Frame { queries, keys, dtype: ty.dtype, lengths, first })
    }

    /// Causality, windows and lengths: attributes where the operator of the IR has them, else a bool mask that
    /// broadcasts to `[B, H, T, S]`.
    fn visible(&self, c: &mut NodeContext<'_>) -> Result<(Attention, Option<ValueId>), Decline> {
        let mut op = Attention { scale: 1.0, causal: false, window: None, softcap: None, safe: true };
        let causal = c.flag("is_causal", false)?;
        let bound = |c: &NodeContext<'_>, name| Ok::<_, Decline>(Some(c.int(name, -1)?).filter(|n| *n >= 0));
        let (left, mut right) = (bound(c, "left_window_size")?, bound(c, "right_window_size")?);
        if causal {
            right = Some(0);
        }
        let mut visible = None;
        if let Some(lengths) = self.lengths {
            let keys = c.positions(&self.keys)?;
            let ends = c.unsqueeze(lengths, &[1, 2, 3])?;
            visible = Some(c.binary(Binary::Less, keys, ends)?);
        }
        // The IR counts from the last key.
        let aligned = self.first.as_ref().is_some_and(|f| *f == self.keys.clone() - self.queries.clone());
        let window = left.and_then(|w| u32::try_from(w).ok()?.checked_add(1));
        if aligned && right.is_none_or(|r| r == 0) && window.is_some() == left.is_some() {
            op.causal = right.is_some();
            op.window = window;
            return Ok((op, visible));
        }
        if left.is_none() && right.is_none() {
            return Ok((op, visible));
        }
        let (at, keys) = (self.positions(c)?, c.positions(&self.keys)?);
        for (bound, side, compare) in
            [(left, Binary::Sub, Binary::GreaterOrEqual), (right, Binary::Add, Binary::LessOrEqual)]
        {
            let Some(bound) = bound else { continue };
            let bound = c.graph.scalar(bound);
            let edge = c.binary(side, at, bound)?;
            let inside = c.binary(compare, keys, edge)?;
            visible = Some(c.both(visible, inside)?);
        }
        Ok((op, visible))
    }

    /// Positions of the queries among the keys, `[T, 1]` or `[B, 1, T, 1]`.
    fn positions(&self, c: &mut NodeContext<'_>) -> Result<ValueId, Decline> {
        let at = c.positions(&self.queries)?;
        let at = c.unsqueeze(at, &[1])?;
        let first = match (&self.first, self.lengths) {
            (Some(first), _) if *first == Dim::ZERO => return Ok(at),
            (Some(first), _) => c.size(first)?,
            (None, Some(lengths)) => {
                let queries = c.size(&self.queries)?;
                let before = c.binary(Binary::Sub, lengths, queries)?;
                c.unsqueeze(before, &[1, 2, 3])?
            }
            (None, None) => return Err(Decline::Opaque),
        };
        c.binary(Binary::Add, at, first)
    }

    /// The mask given, which hides the keys beyond its end, and the visible keys.
    fn mask(&self, c: &mut NodeContext<'_>, visible: Option<ValueId>) -> Result<Option<ValueId>, Decline> {
        let Some(mut mask) = c.optional(3) else { return Ok(visible) };
        let ty = c.ty(mask)?;
        let Some(last) = ty.shape.last() else { return Err(Decline::Opaque) };
        let bool_mask = ty.dtype == DType::Bool;
        if *last != self.keys && (c.opset >= 24 || *last != Dim::ONE) {
            let hidden = if bool_mask { 0.0 } else { f64::NEG_INFINITY };
            mask = c.padded(mask, ty.rank() - 1, &self.keys, hidden)?;
        }
        let Some(visible) = visible else { return Ok(Some(mask)) };
        if bool_mask {
            return c.binary(Binary::And, visible, mask).map(Some);
        }
        let hidden = c.graph.float_scalar(self.dtype, f64::NEG_INFINITY);
        c.add(Op::Where, &[visible, mask, hidden]).map(Some)
    }
}

/// The scores `[B, H, T, S]` at the stage that the node asks for.
fn scores(
    c: &mut NodeContext<'_>,
    op: &Attention,
    frame: &Frame,
    [q, k]: [ValueId; 2],
    mask: Option<ValueId>,
) -> Result<ValueId, Decline> {
    let (q_shape, k_shape) = (c.shape(q)?, c.shape(k)?);
    let known = |d: &Dim| d.known().filter(|n| *n > 0).ok_or(Decline::Opaque);
    let (heads, kv_heads) = (known(&q_shape[1])?, known(&k_shape[1])?);
    let scale = c.graph.float_scalar(frame.dtype, f64::from(op.scale));
    let mut left = c.binary(Binary::Mul, q, scale)?;
    let mut right = c.transpose(k, &[0, 1, 3, 2])?;
    let grouped = heads != kv_heads;
    if grouped {
        let apart =
            [&[q_shape[0].clone(), kv_heads.into(), (heads / kv_heads).into()], &q_shape[2..]].concat();
        let apart = c.dims(&apart)?;
        left = c.add(Op::Reshape { allow_zero: true }, &[left, apart])?;
        right = c.unsqueeze(right, &[2])?;
    }
    let mut x = c.add(Op::MatMul, &[left, right])?;
    if grouped {
        let shape = c.dims(&[q_shape[0].clone(), heads.into(), frame.queries.clone(), frame.keys.clone()])?;
        x = c.add(Op::Reshape { allow_zero: true }, &[x, shape])?;
    }
    let mode = c.int("qk_matmul_output_mode", 0)?;
    if let Some(cap) = op.softcap.filter(|_| mode > 0) {
        let cap = c.graph.float_scalar(frame.dtype, f64::from(cap));
        let inside = c.binary(Binary::Div, x, cap)?;
        let inside = c.add(Op::Unary(Unary::Tanh), &[inside])?;
        x = c.binary(Binary::Mul, inside, cap)?;
    }
    if mode < 2 {
        return Ok(x);
    }
    let hidden = c.graph.float_scalar(frame.dtype, f64::NEG_INFINITY);
    if op.causal || op.window.is_some() {
        let (at, keys) = (frame.positions(c)?, c.positions(&frame.keys)?);
        let mut visible = None;
        if op.causal {
            visible = Some(c.binary(Binary::LessOrEqual, keys, at)?);
        }
        if let Some(window) = op.window {
            let window = c.graph.scalar(i64::from(window));
            let edge = c.binary(Binary::Sub, at, window)?;
            let near = c.binary(Binary::Greater, keys, edge)?;
            visible = Some(c.both(visible, near)?);
        }
        if let Some(visible) = visible {
            x = c.add(Op::Where, &[visible, x, hidden])?;
        }
    }
    if let Some(mask) = mask {
        x = match c.dtype(mask)? {
            DType::Bool => c.add(Op::Where, &[mask, x, hidden])?,
            _ => c.binary(Binary::Add, x, mask)?,
        };
    }
    if mode < 3 {
        return Ok(x);
    }
    let p = c.add(Op::Softmax { axis: 3 }, &[x])?;
    // A query that sees no key has no probabilities.
    let (zero, empty) = (c.graph.float_scalar(frame.dtype, 0.0), c.add(Op::Unary(Unary::IsNan), &[p])?);
    c.add(Op::Where, &[empty, zero, p])
}

fn rotary(c: &mut NodeContext<'_>) -> Built {
    let (x, cos, sin) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let tables = match c.optional(3) {
        None => (cos, sin),
        Some(at) => (c.add(Op::Gather { axis: 0 }, &[cos, at])?, c.add(Op::Gather { axis: 0 }, &[sin, at])?),
    };
    let heads = c.int("num_heads", 0)?;
    let (interleaved, part) = (c.flag("interleaved", false)?, c.int("rotary_embedding_dim", 0)?);
    Ok(vec![rotated(c, x, heads, tables, interleaved, part)?])
}

/// As [`rotate`], for `x [B, T, heads·d]` too.
pub(super) fn rotated(
    c: &mut NodeContext<'_>,
    x: ValueId,
    heads: i64,
    tables: (ValueId, ValueId),
    interleaved: bool,
    part: i64,
) -> Result<ValueId, Decline> {
    if c.rank(x)? != 3 {
        return rotate(c, x, tables, interleaved, part);
    }
    let apart = split_heads(c, x, heads)?;
    let y = rotate(c, apart, tables, interleaved, part)?;
    merge_heads(c, y)
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
    let turned = c.slice(x, 3, 0, part)?;
    let rest = c.slice(x, 3, part, width)?;
    let turned = c.add(op, &[turned, cos, sin])?;
    c.add(Op::Concat { axis: 3 }, &[turned, rest])
}

/// `cache [B, .., N, ..], update [B, .., S, ..], first positions [B]?` → the cache, updated along one axis.
fn tensor_scatter(c: &mut NodeContext<'_>) -> Built {
    let (cache, update) = (c.input(0)?, c.input(1)?);
    let (held, shape) = (c.shape(cache)?, c.shape(update)?);
    let axis = c.axis(c.int("axis", -2)?, held.len())?;
    if axis == 0 || shape.len() != held.len() {
        return Err(OnnxError::invalid(format!("updates {held:?} with {shape:?} along axis {axis}")).into());
    }
    // Positions along the axis, for each row of the batch.
    let mut at = c.positions(&shape[axis])?;
    let after: Vec<usize> = (1..shape.len() - axis).collect();
    at = c.unsqueeze(at, &after)?;
    if let Some(first) = c.optional(2) {
        let first = c.as_i64(first)?;
        let first = c.unsqueeze(first, &(1..shape.len()).collect::<Vec<_>>())?;
        at = c.binary(Binary::Add, first, at)?;
    }
    match c.text("mode", "linear")?.as_str() {
        "linear" => {}
        "circular" => {
            let size = c.size(&held[axis])?;
            at = c.binary(Binary::Mod, at, size)?;
        }
        other => return Err(OnnxError::invalid(format!("has the unknown mode '{other}'")).into()),
    }
    let at = c.expand(at, &shape)?;
    Ok(vec![c.add(Op::ScatterElements { axis, reduction: ScatterReduction::None }, &[cache, at, update])?])
}
