//! Gather and GatherElements: a copy whose source runs along one axis by indices.
//!
//! Bindings: `data`, `indices`, then `status` where [`Bounds::Status`] asks for it (read-write, one
//! word), then `out`.

use super::layout::{MAX_RANK, Space, Words, broadcast, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "gather";
const WORKGROUP: u32 = 64;

/// What happens to an index outside `-n..n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bounds {
    /// It is clamped (the caller has checked indices, or does not mind).
    Clamp,
    /// It is clamped, and the first word of the `status` buffer becomes this non-zero mark.
    Status(u32),
}

/// Which indexing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GatherKind {
    /// `out[a.., i.., b..] = data[a.., indices[i..], b..]`.
    Slices,
    /// `out[i..] = data[i.. with indices[i..] at the axis]`; `out` has the shape of `indices`.
    Elements,
}

/// A gather. Negative indices count from the end.
#[derive(Debug)]
pub struct Gather<'a> {
    /// The table, of any type. With `rows`, a view of those rows only.
    pub data: &'a Operand,
    /// i32.
    pub indices: &'a Operand,
    /// Of the data's type, unpacked.
    pub out: &'a Operand,
    /// Axis of `data`.
    pub axis: usize,
    /// Slices or elements.
    pub kind: GatherKind,
    /// `(lo, total)`: `data` holds rows `lo..` of a table of `total` rows; indices outside these are left
    /// to other launches. For tables beyond the binding limit.
    pub rows: Option<(u32, u32)>,
    /// Out-of-range indices.
    pub bounds: Bounds,
}

impl Gather<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "indices", self.indices, &[Scalar::I32])?;
        expect(KERNEL, "the result", self.out, &[self.data.scalar.unpacked()])?;
        let (data, indices) = (&self.data.view, &self.indices.view);
        let Some(held) = data.shape.get(self.axis).copied() else {
            let reason = format!("axis {} of {data:?}", self.axis);
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        };
        let own = exactly(KERNEL, data, &data.shape)?;
        let index_own = exactly(KERNEL, indices, &indices.shape)?;
        let (shape, data_strides, index_strides) = match self.kind {
            GatherKind::Slices => {
                let splice = |around: &[u32], middle: &[u32]| {
                    [&around[..self.axis], middle, &around[self.axis + 1..]].concat()
                };
                let zeros = vec![0; indices.shape.len()];
                let nothing = vec![0; data.shape.len()];
                let shape = splice(&data.shape, &indices.shape);
                (shape, splice(&own, &zeros), splice(&nothing, &index_own))
            }
            GatherKind::Elements => {
                if indices.shape.len() != data.shape.len() {
                    let reason = format!("indices {indices:?} of data {data:?}");
                    return Err(KernelError::Unsupported { kernel: KERNEL, reason });
                }
                let mut strides = own.clone();
                strides[self.axis] = 0;
                (indices.shape.clone(), strides, index_own)
            }
        };
        let total = count(KERNEL, &shape)?;
        let out_strides = exactly(KERNEL, &self.out.view, &shape)?;
        let space =
            Space::merge(&shape, &[data_strides, index_strides, out_strides]).at_most(KERNEL, MAX_RANK)?;
        let (low, rows) = self.rows.unwrap_or((0, held));
        if low.checked_add(held).is_none_or(|end| end > rows) {
            let reason = format!("{held} rows from {low} of {rows}");
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        }
        if held == 0 && total > 0 {
            let reason = "indices into an empty axis".into();
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        }
        let mark = match self.bounds {
            Bounds::Clamp => 0,
            Bounds::Status(mark) => mark,
        };
        let params = Words::new()
            .array(&space.shape, 8)
            .array(&space.strides[0], 8)
            .array(&space.strides[1], 8)
            .array(&space.strides[2], 8)
            .word(data.offset)
            .word(indices.offset)
            .word(self.out.view.offset)
            .word(own[self.axis])
            .word(total)
            .word(space.shape.len() as u32)
            .word(low)
            .word(low + held)
            .word(rows)
            .word(mark)
            .done();
        let mut constants = vec![constant("WG", WORKGROUP)];
        if self.data.scalar.is_packed() {
            constants.push(constant("FORM", self.data.scalar.form()));
        }
        let (entry, writes) = if self.bounds == Bounds::Clamp { ("clamped", 1) } else { ("checked", 2) };
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params,
            roles: Roles::first(2, writes),
            grid: grid(KERNEL, u64::from(total.div_ceil(WORKGROUP)), limits)?,
            flops: 0,
            bytes: 2 * touched(self.out) + touched(self.indices),
        })
    }
}

/// `out[.., indices[i], ..] ⟵ updates[i..]` along one axis (ScatterElements): `out` already holds the
/// data. Collisions are resolved in index order, without atomics. Bindings: `indices`, `updates`, `out`.
#[derive(Debug)]
pub struct Scatter<'a> {
    /// i32, of the updates' shape. Out-of-range indices are ignored.
    pub indices: &'a Operand,
    /// f32, i32 or bool.
    pub updates: &'a Operand,
    /// Of the updates' type; read and written.
    pub out: &'a Operand,
    /// The indexed axis.
    pub axis: usize,
    /// What happens to the element already there.
    pub reduction: snlp_passes::ir::ScatterReduction,
}

impl Scatter<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        use snlp_passes::ir::ScatterReduction as R;
        const SCATTER: &str = "scatter";
        expect(SCATTER, "indices", self.indices, &[Scalar::I32])?;
        expect(SCATTER, "updates", self.updates, &[Scalar::F32, Scalar::I32, Scalar::Bool])?;
        expect(SCATTER, "the result", self.out, &[self.updates.scalar])?;
        let shape = &self.updates.view.shape;
        let out = &self.out.view;
        let fits = out.shape.len() == shape.len()
            && self.axis < shape.len()
            && (0..shape.len()).all(|a| a == self.axis || shape[a] <= out.shape[a]);
        if !fits {
            let reason = format!("updates {shape:?} into {out:?} along axis {}", self.axis);
            return Err(KernelError::Unsupported { kernel: SCATTER, reason });
        }
        let total = count(SCATTER, shape)?;
        let mut strides = vec![
            broadcast(SCATTER, &self.indices.view, shape)?,
            exactly(SCATTER, &self.updates.view, shape)?,
            exactly(SCATTER, out, &out.shape)?,
        ];
        let along: Vec<u32> = strides.iter().map(|s| s[self.axis]).collect();
        strides.iter_mut().for_each(|s| {
            s.remove(self.axis);
        });
        let mut lines = shape.clone();
        let width = lines.remove(self.axis);
        let space = Space::merge(&lines, &strides).at_most(SCATTER, MAX_RANK)?;
        let rows = total.checked_div(width).unwrap_or(0);
        let mut words = Words::new().array(&space.shape, 8);
        for strides in &space.strides {
            words = words.array(strides, 8);
        }
        let offsets = [self.indices, self.updates, self.out].map(|o| o.view.offset);
        let params = words
            .array(&along, 4)
            .array(&offsets, 4)
            .word(rows)
            .word(width)
            .word(out.shape[self.axis])
            .word(space.shape.len() as u32)
            .done();
        let op = match self.reduction {
            R::None => 0,
            R::Add => 1,
            R::Mul => 2,
            R::Max => 3,
            R::Min => 4,
        };
        let mut constants = vec![constant("WG", WORKGROUP), constant("OP", op)];
        if self.updates.scalar != Scalar::F32 {
            constants.push(constant("INTEGER", 1));
        }
        Ok(Launch {
            pipeline: PipelineKey { source: SCATTER, entry: "main", types: vec![], constants },
            params,
            roles: Roles::first(2, 1),
            grid: grid(SCATTER, u64::from(rows.div_ceil(WORKGROUP)), limits)?,
            flops: u64::from(total),
            bytes: 3 * touched(self.updates),
        })
    }
}
