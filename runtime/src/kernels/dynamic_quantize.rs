//! Quantisation by the extremes of what is quantised, as [`snlp_passes::ir::Op::DynamicQuantize`] documents it.
//!
//! A row is what shares a scale. Short rows take one dispatch, a workgroup each. Long ones are cut into parts, a
//! workgroup each: a first dispatch finds the extremes of the parts, a second one quantises them.
//!
//! Bindings: `x`, `partial`, `extremes`, `integers`, `scale`, `zero`, those that the entry point has.

use super::layout::{MAX_RANK, Space, Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "dynamic_quantize";
/// Most parts of a row.
const MAX_PARTS: u32 = 256;

/// A quantisation to `u8`.
#[derive(Debug)]
pub struct DynamicQuantize<'a> {
    /// f32, any strides.
    pub x: &'a Operand,
    /// Sorted axes that share a scale.
    pub axes: &'a [usize],
    /// Of `x`'s shape, i32.
    pub integers: &'a Operand,
    /// `x`'s shape without the axes, f32.
    pub scale: &'a Operand,
    /// As `scale`, i32.
    pub zero: &'a Operand,
}

impl DynamicQuantize<'_> {
    /// The extremes of parts that two dispatches need, `[rows, parts, 2]`; `None` where one dispatch does.
    pub fn partial_shape(&self, limits: &Limits) -> Option<[u32; 3]> {
        let of = |shared: bool| {
            let axes = self.x.view.shape.iter().enumerate().filter(|(a, _)| self.axes.contains(a) == shared);
            axes.fold(1u32, |n, (_, d)| n.saturating_mul(*d))
        };
        let width = of(true);
        let parts = width.div_ceil(part(width, limits));
        (width > whole(limits)).then_some([of(false), parts, 2])
    }

    /// All in one dispatch.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        self.build("whole", None, limits)
    }

    /// The first of two dispatches: `partial` of [`DynamicQuantize::partial_shape`], dense, f32.
    ///
    /// # Errors
    /// As [`DynamicQuantize::launch`].
    pub fn extremes(&self, partial: &Operand, limits: &Limits) -> Result<Launch, KernelError> {
        self.build("extremes_of_parts", Some(partial), limits)
    }

    /// The second one.
    ///
    /// # Errors
    /// As [`DynamicQuantize::launch`].
    pub fn quantize(&self, partial: &Operand, limits: &Limits) -> Result<Launch, KernelError> {
        self.build("parts", Some(partial), limits)
    }

    fn build(
        &self,
        entry: &'static str,
        partial: Option<&Operand>,
        limits: &Limits,
    ) -> Result<Launch, KernelError> {
        let results = [(self.integers, Scalar::I32), (self.scale, Scalar::F32), (self.zero, Scalar::I32)];
        expect(KERNEL, "x", self.x, &[Scalar::F32])?;
        for (result, scalar) in results {
            expect(KERNEL, "a result", result, &[scalar])?;
        }
        let shape = &self.x.view.shape;
        let total = count(KERNEL, shape)?;
        let x = exactly(KERNEL, &self.x.view, shape)?;
        let integers = exactly(KERNEL, &self.integers.view, shape)?;
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        if self.axes.iter().any(|a| *a >= shape.len()) {
            return Err(unsupported(format!("axes {:?} of {shape:?}", self.axes)));
        }
        let pick = |values: &[u32], shared: bool| -> Vec<u32> {
            (0..shape.len()).filter(|a| self.axes.contains(a) == shared).map(|a| values[a]).collect()
        };
        let (kept, terms) = (pick(shape, false), pick(shape, true));
        let parameters =
            [exactly(KERNEL, &self.scale.view, &kept)?, exactly(KERNEL, &self.zero.view, &kept)?];
        let [scale, zero] = parameters;
        let outer = Space::merge(&kept, &[pick(&x, false), pick(&integers, false), scale, zero]);
        let inner = Space::merge(&terms, &[pick(&x, true), pick(&integers, true)]);
        let (outer, inner) = (outer.at_most(KERNEL, MAX_RANK)?, inner.at_most(KERNEL, MAX_RANK)?);
        let (rows, width) = (count(KERNEL, &kept)?, count(KERNEL, &terms)?);
        let part = part(width, limits);
        let parts = if partial.is_some() { width.div_ceil(part).max(1) } else { 1 };
        if let Some(partial) = partial {
            expect(KERNEL, "the extremes", partial, &[Scalar::F32])?;
            if partial.view.shape != [rows, parts, 2] || !partial.view.is_dense() || partial.view.offset != 0
            {
                return Err(unsupported(format!("{:?} for extremes of {parts} parts", partial.view)));
            }
        }
        let mut words = Words::new().array(&outer.shape, MAX_RANK);
        for strides in &outer.strides {
            words = words.array(strides, MAX_RANK);
        }
        words = words.array(&inner.shape, MAX_RANK);
        for strides in &inner.strides {
            words = words.array(strides, MAX_RANK);
        }
        let offsets = [self.x, self.integers, self.scale, self.zero].map(|o| o.view.offset);
        let params = words
            .array(&offsets, 4)
            .word(rows)
            .word(width)
            .word(parts)
            .word(part)
            .word(outer.shape.len() as u32)
            .word(inner.shape.len() as u32)
            .done();
        let (reads, writes, moved) = match entry {
            "extremes_of_parts" => (vec![1], vec![3], 0),
            "parts" => (vec![1, 2], vec![4, 5, 6], touched(self.integers)),
            _ => (vec![1], vec![4, 5, 6], touched(self.integers)),
        };
        let groups = u64::from(rows) * u64::from(parts);
        Ok(Launch {
            pipeline: PipelineKey {
                source: KERNEL,
                entry,
                types: vec![],
                constants: vec![constant("WG", workgroup(limits))],
            },
            params,
            roles: Roles { reads, writes },
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(total),
            bytes: touched(self.x) + moved + partial.map_or(0, touched),
        })
    }
}

fn workgroup(limits: &Limits) -> u32 {
    if limits.software { 64 } else { 256 }
}

/// Elements of a row that one workgroup had better take alone. What a dispatch costs is as much as a core's work on
/// many elements, or as a few rounds of a workgroup to memory.
fn whole(limits: &Limits) -> u32 {
    if limits.software { 16384 } else { 4096 }
}

/// Elements of a part of a long row.
fn part(width: u32, limits: &Limits) -> u32 {
    (whole(limits) / 2).max(width.div_ceil(MAX_PARTS))
}
