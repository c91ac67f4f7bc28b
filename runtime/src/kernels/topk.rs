//! The largest or smallest elements along one axis, with their positions.
//!
//! Bindings: `x`, `values`, `places`.

use super::layout::{MAX_RANK, Space, Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "topk";
/// From this width on a workgroup shares a line.
const SHARED: u32 = 256;

/// The best `k` elements of each line, best first; equal ones in order of position, NaN as the largest.
#[derive(Debug)]
pub struct TopK<'a> {
    /// f32 or i32.
    pub x: &'a Operand,
    /// `x`'s shape with `k` at the axis; of `x`'s type.
    pub values: &'a Operand,
    /// Positions along the axis; the values' shape, i32.
    pub places: &'a Operand,
    /// The axis searched.
    pub axis: usize,
    /// The smallest instead of the largest.
    pub smallest: bool,
}

impl TopK<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When the axis, the shapes or the types do not fit, or there are fewer than `k` elements.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "x", self.x, &[Scalar::F32, Scalar::I32])?;
        expect(KERNEL, "the values", self.values, &[self.x.scalar])?;
        expect(KERNEL, "the places", self.places, &[Scalar::I32])?;
        let (shape, axis) = (&self.x.view.shape, self.axis);
        let total = count(KERNEL, shape)?;
        let k = self.values.view.shape.get(axis).copied();
        let (Some(width), Some(k)) = (shape.get(axis).copied(), k) else {
            let reason = format!("axis {axis} of {:?} into {:?}", self.x.view, self.values.view);
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        };
        if k > width {
            let reason = format!("the best {k} of {width} elements");
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        }
        let mut wanted = shape.clone();
        wanted[axis] = k;
        let mut strides = vec![
            exactly(KERNEL, &self.x.view, shape)?,
            exactly(KERNEL, &self.values.view, &wanted)?,
            exactly(KERNEL, &self.places.view, &wanted)?,
        ];
        let along: Vec<u32> = strides.iter_mut().map(|s| s.remove(axis)).collect();
        let mut outer = shape.clone();
        outer.remove(axis);
        let space = Space::merge(&outer, &strides).at_most(KERNEL, MAX_RANK)?;
        let rows = total.checked_div(width).unwrap_or(0);
        let offsets = [self.x, self.values, self.places].map(|o| o.view.offset);
        let params = Words::new()
            .array(&space.shape, 8)
            .array(&space.strides[0], 8)
            .array(&space.strides[1], 8)
            .array(&space.strides[2], 8)
            .array(&offsets, 4)
            .array(&along, 4)
            .word(rows)
            .word(width)
            .word(k)
            .word(space.shape.len() as u32)
            .done();
        let (entry, workgroup, groups) = if limits.software || width < SHARED {
            ("by_row", 64, u64::from(rows.div_ceil(64)))
        } else {
            ("by_group", 256, u64::from(rows))
        };
        let mut constants = vec![constant("WG", workgroup)];
        let flags = [("INTEGER", self.x.scalar == Scalar::I32), ("SMALLEST", self.smallest)];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params,
            roles: Roles::first(1, 2),
            grid: grid(KERNEL, groups, limits)?,
            flops: u64::from(total) * u64::from(k),
            bytes: touched(self.x) + touched(self.values) + touched(self.places),
        })
    }
}
