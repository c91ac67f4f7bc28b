//! Positions of extrema along one axis.
//!
//! Bindings: `x`, `out`.

use super::layout::{constant, expect, grid, touched};
use super::scan::lines;
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "argmax";
/// From this width on a workgroup shares a line.
const SHARED: u32 = 256;

/// ArgMax or ArgMin.
#[derive(Debug)]
pub struct ArgMax<'a> {
    /// f32 or i32.
    pub x: &'a Operand,
    /// `x`'s shape without the axis, or with it as 1; i32.
    pub out: &'a Operand,
    /// The axis searched.
    pub axis: usize,
    /// The last of equals instead of the first.
    pub last: bool,
    /// The smallest instead of the largest.
    pub smallest: bool,
}

impl ArgMax<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When the axis, the shapes or the types do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "x", self.x, &[Scalar::F32, Scalar::I32])?;
        expect(KERNEL, "the result", self.out, &[Scalar::I32])?;
        let lines = lines(KERNEL, self.x, self.out, self.axis)?;
        let (entry, workgroup, groups) = if limits.software || lines.width < SHARED {
            ("by_row", 64, u64::from(lines.rows.div_ceil(64)))
        } else {
            ("by_group", 256, u64::from(lines.rows))
        };
        let mut constants = vec![constant("WG", workgroup)];
        let flags =
            [("INTEGER", self.x.scalar == Scalar::I32), ("LAST", self.last), ("SMALLEST", self.smallest)];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params: lines.params,
            roles: Roles::first(1, 1),
            grid: grid(KERNEL, groups, limits)?,
            flops: u64::from(lines.rows) * u64::from(lines.width),
            bytes: touched(self.x) + touched(self.out),
        })
    }
}
