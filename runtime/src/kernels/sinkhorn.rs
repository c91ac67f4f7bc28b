//! Sinkhorn normalisation: matrices divided by the sums of their rows and columns in turns, as hyper-connections make
//! the mixing of their streams doubly stochastic.
//!
//! Bindings: `x`, `out`.

use super::layout::{MAX_RANK, Space, Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "sinkhorn";
const WORKGROUP: u32 = 32;
/// Most elements of a matrix.
pub const MAX_ELEMENTS: u32 = 64;
/// Most divisions.
pub const MAX_STEPS: usize = 128;

/// What the elements of a matrix are divided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sums {
    /// The sum of their row.
    Rows,
    /// The sum of their column.
    Columns,
}

/// A chain of `x / (sum(x) + epsilon)`.
#[derive(Debug)]
pub struct Sinkhorn<'a> {
    /// `[.., rows, columns]` of at most [`MAX_ELEMENTS`] elements in a matrix, f32.
    pub x: &'a Operand,
    /// Of `x`'s shape, f32.
    pub out: &'a Operand,
    /// The divisions in order, at most [`MAX_STEPS`].
    pub steps: &'a [Sums],
    /// Added to every sum.
    pub epsilon: f32,
}

impl Sinkhorn<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When a matrix is too large, there are too many divisions, or operands do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "x", self.x, &[Scalar::F32])?;
        expect(KERNEL, "the result", self.out, &[Scalar::F32])?;
        let shape = &self.x.view.shape;
        let total = count(KERNEL, shape)?;
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        let Some(outer) = shape.len().checked_sub(2) else {
            return Err(unsupported(format!("{shape:?} is no matrix")));
        };
        let [rows, columns] = [shape[outer], shape[outer + 1]];
        if self.steps.len() > MAX_STEPS || rows.saturating_mul(columns) > MAX_ELEMENTS {
            return Err(unsupported(format!("{} divisions of {rows} x {columns}", self.steps.len())));
        }
        let strides = [exactly(KERNEL, &self.x.view, shape)?, exactly(KERNEL, &self.out.view, shape)?];
        let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[..outer].to_vec()).collect();
        let space = Space::merge(&shape[..outer], &cut).at_most(KERNEL, MAX_RANK)?;
        let matrices = total.checked_div(rows * columns).unwrap_or(0);
        let mut axes = [0u32; MAX_STEPS / 32];
        for (s, sums) in self.steps.iter().enumerate() {
            axes[s / 32] |= u32::from(*sums == Sums::Columns) << (s % 32);
        }
        let mut words = Words::new().array(&space.shape, MAX_RANK);
        for strides in &space.strides {
            words = words.array(strides, MAX_RANK);
        }
        for (operand, strides) in [self.x, self.out].into_iter().zip(&strides) {
            words = words.array(&[operand.view.offset, strides[outer], strides[outer + 1]], 4);
        }
        let params = words
            .array(&axes, 4)
            .word(matrices)
            .word(self.steps.len() as u32)
            .float(self.epsilon)
            .word(space.shape.len() as u32)
            .done();
        let constants = vec![constant("WG", WORKGROUP), constant("ROWS", rows), constant("COLUMNS", columns)];
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry: "main", types: vec![], constants },
            params,
            roles: Roles::first(1, 1),
            grid: grid(KERNEL, u64::from(matrices.div_ceil(WORKGROUP)), limits)?,
            flops: 2 * u64::from(total) * self.steps.len() as u64,
            bytes: touched(self.x) + touched(self.out),
        })
    }
}
