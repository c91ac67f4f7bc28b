//! LayerNorm and RmsNorm over trailing axes.
//!
//! Bindings: `x`, `scale` (or `x` again), `bias` (or `x` again), `out`.

use super::layout::{MAX_RANK, Space, Words, broadcast, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "norm";

/// Which normalisation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + ε)`.
    Layer,
    /// `x / sqrt(mean(x²) + ε)`.
    Rms,
}

/// A normalisation with optional factors.
#[derive(Debug)]
pub struct Norm<'a> {
    /// `[rows.., D..]`, f32 or f16.
    pub x: &'a Operand,
    /// Broadcasts to `x` (so per-unit factors `[C, 1, 1, D]` do), f32 or f16.
    pub scale: Option<&'a Operand>,
    /// As `scale`.
    pub bias: Option<&'a Operand>,
    /// Of `x`'s shape, f32.
    pub out: &'a Operand,
    /// Number of trailing axes normalised together; they must merge to one in every operand.
    pub axes: usize,
    /// Added to the variance or mean square.
    pub epsilon: f32,
    /// Which one.
    pub kind: NormKind,
}

impl Norm<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When an operand does not fit, or the axes do not merge.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        for (what, operand) in [("x", Some(self.x)), ("scale", self.scale), ("bias", self.bias)] {
            if let Some(operand) = operand {
                expect(KERNEL, what, operand, &[Scalar::F32, Scalar::F16])?;
            }
        }
        expect(KERNEL, "the result", self.out, &[Scalar::F32])?;
        let shape = &self.x.view.shape;
        let total = count(KERNEL, shape)?;
        let Some(split) = shape.len().checked_sub(self.axes).filter(|_| self.axes > 0) else {
            let reason = format!("{} axes of {shape:?}", self.axes);
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        };
        let operands = [Some(self.x), self.scale, self.bias];
        let mut strides = vec![];
        for operand in operands {
            strides.push(match operand {
                Some(o) => broadcast(KERNEL, &o.view, shape)?,
                None => vec![0; shape.len()],
            });
        }
        strides.push(exactly(KERNEL, &self.out.view, shape)?);
        let part = |range: std::ops::Range<usize>, most: usize| {
            let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[range.clone()].to_vec()).collect();
            Space::merge(&shape[range], &cut).at_most(KERNEL, most)
        };
        let (outer, inner) = (part(0..split, MAX_RANK)?, part(split..shape.len(), 1)?);
        let width = inner.shape.iter().product::<u32>();
        let rows = total.checked_div(width).unwrap_or(0);
        let mut words = Words::new().array(&outer.shape, MAX_RANK);
        for strides in &outer.strides {
            words = words.array(strides, MAX_RANK);
        }
        let along: Vec<u32> = inner.strides.iter().filter_map(|s| s.first().copied()).collect();
        let offset = |operand: Option<&Operand>| operand.map_or(0, |o| o.view.offset);
        let offsets = [Some(self.x), self.scale, self.bias, Some(self.out)].map(offset);
        let params = words
            .array(&along, 4)
            .array(&offsets, 4)
            .word(rows)
            .word(width)
            .float(self.epsilon)
            .word(outer.shape.len() as u32)
            .done();

        let (entry, workgroup, groups) = if limits.software {
            ("by_row", 64, u64::from(rows.div_ceil(64)))
        } else {
            ("by_group", if width <= 256 { 64 } else { 256 }, u64::from(rows))
        };
        let half = |o: Option<&Operand>| o.is_some_and(|o| o.scalar == Scalar::F16);
        let mut constants = vec![constant("WG", workgroup)];
        let flags = [
            ("CENTER", self.kind == NormKind::Layer),
            ("SCALE", self.scale.is_some()),
            ("BIAS", self.bias.is_some()),
            ("X_HALF", half(Some(self.x))),
            ("SCALE_HALF", half(self.scale)),
            ("BIAS_HALF", half(self.bias)),
        ];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        let bytes = operands.into_iter().flatten().chain([self.out]).map(touched).sum();
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params,
            roles: Roles::first(3, 1),
            grid: grid(KERNEL, groups, limits)?,
            flops: 6 * u64::from(total),
            bytes,
        })
    }
}
