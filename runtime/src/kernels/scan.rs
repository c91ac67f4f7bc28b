//! Cumulative sums along one axis.
//!
//! Bindings: `x`, `out`.

use super::layout::{MAX_RANK, Space, Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "scan";
const WORKGROUP: u32 = 64;

/// A cumulative sum.
#[derive(Debug)]
pub struct CumSum<'a> {
    /// f32 or i32.
    pub x: &'a Operand,
    /// Of `x`'s shape and type.
    pub out: &'a Operand,
    /// The axis summed along.
    pub axis: usize,
    /// Leaves out the element itself.
    pub exclusive: bool,
    /// From the end.
    pub reverse: bool,
}

impl CumSum<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When the axis, the shapes or the types do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "x", self.x, &[Scalar::F32, Scalar::I32])?;
        expect(KERNEL, "the result", self.out, &[self.x.scalar])?;
        let lines = lines(KERNEL, self.x, self.out, self.axis)?;
        let mut constants = vec![constant("WG", WORKGROUP)];
        let flags = [
            ("INTEGER", self.x.scalar == Scalar::I32),
            ("EXCLUSIVE", self.exclusive),
            ("REVERSE", self.reverse),
        ];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry: "main", types: vec![], constants },
            params: lines.params,
            roles: Roles::first(1, 1),
            grid: grid(KERNEL, u64::from(lines.rows.div_ceil(WORKGROUP)), limits)?,
            flops: u64::from(lines.rows) * u64::from(lines.width),
            bytes: touched(self.x) + touched(self.out),
        })
    }
}

/// The lines along one axis of an operand and a result.
pub(super) struct Lines {
    pub rows: u32,
    pub width: u32,
    pub params: Vec<u32>,
}

/// The uniform block of kernels that walk lines: `out` has `x`'s shape, or size 1 (or nothing) at the
/// axis.
pub(super) fn lines(
    kernel: &'static str,
    x: &Operand,
    out: &Operand,
    axis: usize,
) -> Result<Lines, KernelError> {
    let shape = &x.view.shape;
    let total = count(kernel, shape)?;
    let Some(width) = shape.get(axis).copied() else {
        let reason = format!("axis {axis} of {shape:?}");
        return Err(KernelError::Unsupported { kernel, reason });
    };
    let mut strides = exactly(kernel, &x.view, shape)?;
    let mut out_strides = if out.view.shape.len() == shape.len() {
        let mut wanted = shape.clone();
        if out.view.shape[axis] == 1 {
            wanted[axis] = 1;
        }
        exactly(kernel, &out.view, &wanted)?
    } else {
        let mut wanted = shape.clone();
        wanted.remove(axis);
        let mut strides = exactly(kernel, &out.view, &wanted)?;
        strides.insert(axis, 0);
        strides
    };
    let along = [strides.remove(axis), out_strides.remove(axis)];
    let mut outer = shape.clone();
    outer.remove(axis);
    let space = Space::merge(&outer, &[strides, out_strides]).at_most(kernel, MAX_RANK)?;
    let rows = total.checked_div(width).unwrap_or(0);
    let params = Words::new()
        .array(&space.shape, 8)
        .array(&space.strides[0], 8)
        .array(&space.strides[1], 8)
        .word(x.view.offset)
        .word(out.view.offset)
        .word(along[0])
        .word(along[1])
        .word(rows)
        .word(width)
        .word(space.shape.len() as u32)
        .done();
    Ok(Lines { rows, width, params })
}
