//! Caches that hold the keys of a sliding window alone (`sliding_window_cache` of `GroupQueryAttention`).
//!
//! ```text
//!   past    [C]    positions T0 - L(T0) .. T0, then nothing        T0, T   tokens before and after the step
//!   new     [S]    positions T0 .. T                               W       keys of a query
//!   present [C]    positions T - L(T) .. T, then zeros             L(T) = T - G · ceil(max(T - C, 0) / G), G = C - W + 1
//! ```
//!
//! Attention reads past and new side by side, each key with its position, so that no step evicts what it
//! still has to read. Tokens are counted per row of the batch. Rows of the cache beyond the resident ones are
//! not specified and may hold anything.

use snlp_passes::ir::{Binary, Dim, Op, ValueId};

use super::{Decline, NodeContext};

/// A position behind all others: where there is no key.
const NOWHERE: i64 = 1 << 30;

/// Where keys stand before and after a step.
pub(super) struct Sliding {
    /// Positions of the keys of past and new, int64 `[B, C + S]`.
    pub(super) keys: ValueId,
    /// Which of these the cache keeps, int64 `[B, C]`.
    kept: ValueId,
    /// Rows of the cache that hold keys before and after, bool `[B, 1, C, 1]`.
    filled: ValueId,
    held: ValueId,
    capacity: Dim,
}

impl Sliding {
    /// For a cache `past [B, H, C, d]`, the numbers of tokens before and after, int64 `[B]`, and the positions of the
    /// new ones, int64 `[B, S]`.
    pub(super) fn of(
        c: &mut NodeContext<'_>,
        past: ValueId,
        window: i64,
        [before, after, at]: [ValueId; 3],
    ) -> Result<Self, Decline> {
        let capacity = c.shape(past)?.get(2).cloned().ok_or(Decline::Opaque)?;
        let (size, slots) = (c.size(&capacity)?, c.positions(&capacity)?);
        let slack = c.size(&(capacity.clone() - Dim::from(window - 1)))?;
        let resident = |c: &mut NodeContext<'_>, count: ValueId| {
            let (zero, one) = (c.graph.scalar(0i64), c.graph.scalar(1i64));
            let over = c.binary(Binary::Sub, count, size)?;
            let over = c.binary(Binary::Max, over, zero)?;
            let up = c.binary(Binary::Sub, slack, one)?;
            let over = c.binary(Binary::Add, over, up)?;
            let steps = c.binary(Binary::Div, over, slack)?;
            let evicted = c.binary(Binary::Mul, steps, slack)?;
            let resident = c.binary(Binary::Sub, count, evicted)?;
            c.unsqueeze(resident, &[1])
        };
        let (held_before, held_after) = (resident(c, before)?, resident(c, after)?);
        let (before, after) = (c.unsqueeze(before, &[1])?, c.unsqueeze(after, &[1])?);

        let first = c.binary(Binary::Sub, before, held_before)?;
        let old = c.binary(Binary::Add, first, slots)?;
        let filled = c.binary(Binary::Less, slots, held_before)?;
        let nowhere = c.graph.scalar(NOWHERE);
        let old = c.add(Op::Where, &[filled, old, nowhere])?;
        let filled = c.unsqueeze(filled, &[1, 3])?;
        let keys = c.add(Op::Concat { axis: 1 }, &[old, at])?;

        let start = c.binary(Binary::Sub, after, held_after)?;
        let wanted = c.binary(Binary::Add, start, slots)?;
        let in_past = c.binary(Binary::Sub, wanted, first)?;
        let in_new = c.binary(Binary::Sub, wanted, before)?;
        let in_new = c.binary(Binary::Add, in_new, size)?;
        let is_old = c.binary(Binary::Less, wanted, before)?;
        let from = c.add(Op::Where, &[is_old, in_past, in_new])?;
        let counts = c.binary(Binary::Less, slots, held_after)?;
        let zero = c.graph.scalar(0i64);
        let kept = c.add(Op::Where, &[counts, from, zero])?;
        let held = c.unsqueeze(counts, &[1, 3])?;
        Ok(Sliding { keys, kept, filled, held, capacity })
    }

    /// Keys or values as attention reads them, and as they are kept.
    pub(super) fn cached(
        &self,
        c: &mut NodeContext<'_>,
        past: ValueId,
        new: ValueId,
    ) -> Result<(ValueId, ValueId), Decline> {
        let ty = c.ty(new)?;
        let zero = c.graph.float_scalar(ty.dtype, 0.0);
        let past = c.add(Op::Where, &[self.filled, past, zero])?;
        let both = c.add(Op::Concat { axis: 2 }, &[past, new])?;
        let mut shape = ty.shape;
        let Some(length) = shape.get_mut(2) else { return Err(Decline::Opaque) };
        *length = self.capacity.clone();
        let kept = c.unsqueeze(self.kept, &[1, 3])?;
        let kept = c.expand(kept, &shape)?;
        let kept = c.add(Op::GatherElements { axis: 2 }, &[both, kept])?;
        let kept = c.add(Op::Where, &[self.held, kept, zero])?;
        Ok((both, kept))
    }
}
