//! Reductions over any set of axes.
//!
//! Bindings: `x`, `out`.

use snlp_passes::ir::Reduce as Op;

use super::layout::{MAX_RANK, Space, Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "reduce";
/// From this many terms on a workgroup shares one result.
const SHARED: u32 = 64;

/// A reduction. Sums over nothing are 0, products 1, maxima -inf, minima +inf.
#[derive(Debug)]
pub struct Reduce<'a> {
    /// f32, or i32 for sums, products and extrema; any strides.
    pub x: &'a Operand,
    /// `x`'s shape without the reduced axes, or with them as 1; of `x`'s type.
    pub out: &'a Operand,
    /// Sorted axes.
    pub axes: &'a [usize],
    /// Which reduction.
    pub op: Op,
}

impl Reduce<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When shapes or types do not fit, or the reduction has no integer form.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "x", self.x, &[Scalar::F32, Scalar::I32])?;
        expect(KERNEL, "the result", self.out, &[self.x.scalar])?;
        let integer = self.x.scalar == Scalar::I32;
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        if integer && matches!(self.op, Op::L2 | Op::LogSum | Op::LogSumExp) {
            return Err(unsupported(format!("{:?} of integers", self.op)));
        }
        let shape = &self.x.view.shape;
        let total = count(KERNEL, shape)?;
        let strides = exactly(KERNEL, &self.x.view, shape)?;
        let reduced = |axis: &usize| self.axes.contains(axis);
        if self.axes.iter().any(|a| *a >= shape.len()) {
            return Err(unsupported(format!("axes {:?} of {shape:?}", self.axes)));
        }
        let pick = |values: &[u32], inner: bool| -> Vec<u32> {
            (0..shape.len()).filter(|a| reduced(a) == inner).map(|a| values[a]).collect()
        };
        let (kept, terms) = (pick(shape, false), pick(shape, true));
        let out_strides = if self.out.view.shape.len() == shape.len() {
            let with_ones: Vec<u32> =
                shape.iter().enumerate().map(|(a, d)| if reduced(&a) { 1 } else { *d }).collect();
            pick(&exactly(KERNEL, &self.out.view, &with_ones)?, false)
        } else {
            exactly(KERNEL, &self.out.view, &kept)?
        };
        let outer = Space::merge(&kept, &[pick(&strides, false), out_strides]).at_most(KERNEL, MAX_RANK)?;
        let inner = Space::merge(&terms, &[pick(&strides, true)]).at_most(KERNEL, MAX_RANK)?;
        let rows = count(KERNEL, &kept)?;
        let width = count(KERNEL, &terms)?;
        let params = Words::new()
            .array(&outer.shape, 8)
            .array(&outer.strides[0], 8)
            .array(&outer.strides[1], 8)
            .array(&inner.shape, 8)
            .array(&inner.strides[0], 8)
            .word(self.x.view.offset)
            .word(self.out.view.offset)
            .word(rows)
            .word(width)
            .word(outer.shape.len() as u32)
            .word(inner.shape.len() as u32)
            .done();
        let (entry, workgroup, groups) = if limits.software || width < SHARED {
            ("by_row", 64, u64::from(rows.div_ceil(64)))
        } else {
            ("by_group", if width <= 256 { 64 } else { 256 }, u64::from(rows))
        };
        let mut constants = vec![constant("WG", workgroup), constant("OP", code(self.op))];
        if integer {
            constants.push(constant("INTEGER", 1));
        }
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params,
            roles: Roles::first(1, 1),
            grid: grid(KERNEL, groups, limits)?,
            flops: u64::from(total),
            bytes: touched(self.x) + touched(self.out),
        })
    }
}

/// The kernel's code of a reduction.
fn code(op: Op) -> u32 {
    match op {
        Op::Sum => 0,
        Op::Mean => 1,
        Op::Max => 2,
        Op::Min => 3,
        Op::Prod => 4,
        Op::L1 => 5,
        Op::L2 => 6,
        Op::SumSquare => 7,
        Op::LogSum => 8,
        Op::LogSumExp => 9,
    }
}
