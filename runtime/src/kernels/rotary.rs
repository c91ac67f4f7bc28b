//! Rotary position embedding.
//!
//! Bindings: `x`, `cos`, `sin`, `out`.

use snlp_passes::ir::{Rotary as Attributes, RotaryTable};

use super::layout::{MAX_RANK, Space, Words, broadcast, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "rotary";
const WORKGROUP: u32 = 64;

/// A rotary embedding, as the operator of the IR defines it.
#[derive(Debug)]
pub struct Rotary<'a> {
    /// `[.., d]` with even `d`, f32.
    pub x: &'a Operand,
    /// Broadcasts to `[.., d/2]` or `[.., d]`, f32.
    pub cos: &'a Operand,
    /// As `cos`.
    pub sin: &'a Operand,
    /// Of `x`'s shape, f32.
    pub out: &'a Operand,
    /// Pairing and table.
    pub attributes: Attributes,
}

impl Rotary<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When `d` is odd, or operands do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        for operand in [self.x, self.cos, self.sin, self.out] {
            expect(KERNEL, "an operand", operand, &[Scalar::F32])?;
        }
        let shape = &self.x.view.shape;
        let total = count(KERNEL, shape)?;
        let Some(d) = shape.last().copied().filter(|d| d % 2 == 0) else {
            let reason = format!("x is {:?}; its last axis must be even", self.x.view);
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        };
        let half = d / 2;
        let mut table_shape = shape.clone();
        let last = table_shape.len() - 1;
        if self.attributes.table == RotaryTable::Half {
            table_shape[last] = half;
        }
        let mut strides = vec![
            exactly(KERNEL, &self.x.view, shape)?,
            broadcast(KERNEL, &self.cos.view, &table_shape)?,
            broadcast(KERNEL, &self.sin.view, &table_shape)?,
            exactly(KERNEL, &self.out.view, shape)?,
        ];
        let along: Vec<u32> = strides.iter_mut().filter_map(Vec::pop).collect();
        let space = Space::merge(&shape[..last], &strides).at_most(KERNEL, MAX_RANK)?;
        let mut words = Words::new().array(&space.shape, 8);
        for strides in &space.strides {
            words = words.array(strides, 8);
        }
        let offsets = [self.x, self.cos, self.sin, self.out].map(|o| o.view.offset);
        let params = words
            .array(&along, 4)
            .array(&offsets, 4)
            .word(total / 2)
            .word(half)
            .word(space.shape.len() as u32)
            .done();
        let mut constants = vec![constant("WG", WORKGROUP)];
        if self.attributes.interleaved {
            constants.push(constant("INTERLEAVED", 1));
        }
        if self.attributes.table == RotaryTable::Full {
            constants.push(constant("FULL_TABLE", 1));
        }
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry: "main", types: vec![], constants },
            params,
            roles: Roles::first(3, 1),
            grid: grid(KERNEL, u64::from((total / 2).div_ceil(WORKGROUP)), limits)?,
            flops: 3 * u64::from(total),
            bytes: [self.x, self.cos, self.sin, self.out].into_iter().map(touched).sum(),
        })
    }
}
