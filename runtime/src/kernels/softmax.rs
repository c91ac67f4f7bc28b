//! Softmax and LogSoftmax along one axis.
//!
//! Bindings: `x`, `out`.

use super::layout::{Space, Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "softmax";
const MAX_OUTER: usize = 8;

/// A softmax. A row of -inf alone gives NaN, as in ONNX.
#[derive(Debug)]
pub struct Softmax<'a> {
    /// f32, any strides.
    pub x: &'a Operand,
    /// Of `x`'s shape, f32.
    pub out: &'a Operand,
    /// The axis that sums to one.
    pub axis: usize,
    /// The logarithm of it.
    pub log: bool,
}

impl Softmax<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When the axis or the result's shape does not fit, or an operand is not f32.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "x", self.x, &[Scalar::F32])?;
        expect(KERNEL, "the result", self.out, &[Scalar::F32])?;
        let shape = &self.x.view.shape;
        let total = count(KERNEL, shape)?;
        let Some(width) = shape.get(self.axis).copied() else {
            let reason = format!("axis {} of {shape:?}", self.axis);
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        };
        let mut outer_shape = shape.clone();
        let mut strides =
            vec![exactly(KERNEL, &self.x.view, shape)?, exactly(KERNEL, &self.out.view, shape)?];
        let along: Vec<u32> = strides.iter().map(|s| s[self.axis]).collect();
        outer_shape.remove(self.axis);
        strides.iter_mut().for_each(|s| {
            s.remove(self.axis);
        });
        let outer = Space::merge(&outer_shape, &strides).at_most(KERNEL, MAX_OUTER)?;
        let rows = total.checked_div(width).unwrap_or(0);
        let params = Words::new()
            .array(&outer.shape, 8)
            .array(&outer.strides[0], 8)
            .array(&outer.strides[1], 8)
            .word(self.x.view.offset)
            .word(self.out.view.offset)
            .word(along[0])
            .word(along[1])
            .word(rows)
            .word(width)
            .word(outer.shape.len() as u32)
            .done();
        let (entry, workgroup, groups) = if limits.software || width <= 16 {
            ("by_row", 64, u64::from(rows.div_ceil(64)))
        } else {
            ("by_group", if width <= 256 { 64 } else { 256 }, u64::from(rows))
        };
        let mut constants = vec![constant("WG", workgroup)];
        if self.log {
            constants.push(constant("LOG", 1));
        }
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params,
            roles: Roles::first(1, 1),
            grid: grid(KERNEL, groups, limits)?,
            flops: 5 * u64::from(total),
            bytes: touched(self.x) + touched(self.out),
        })
    }
}
