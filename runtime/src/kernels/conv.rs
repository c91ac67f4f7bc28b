//! Direct convolution over one or two spatial axes.
//!
//! Bindings: `x`, `w`, `bias` (or `x` again), `out`.

use snlp_passes::ir::Window;

use super::layout::{Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "conv";
const WORKGROUP: u32 = 64;

/// A convolution.
#[derive(Debug)]
pub struct Conv<'a> {
    /// `[N, C, spatial..]`, f32.
    pub x: &'a Operand,
    /// `[M, C / group, kernel..]`, f32 or f16.
    pub w: &'a Operand,
    /// `[M]`, f32.
    pub bias: Option<&'a Operand>,
    /// `[N, M, spatial..]`, f32.
    pub out: &'a Operand,
    /// Strides, pads and dilations.
    pub window: &'a Window,
    /// Number of groups.
    pub group: u32,
}

impl Conv<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When there are not one or two spatial axes, or shapes or types do not fit.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        expect(KERNEL, "x", self.x, &[Scalar::F32])?;
        expect(KERNEL, "w", self.w, &[Scalar::F32, Scalar::F16])?;
        expect(KERNEL, "the result", self.out, &[Scalar::F32])?;
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        let rank = self.x.view.shape.len();
        let spatial = rank.saturating_sub(2);
        let window = self.window;
        let fits = (1..=2).contains(&spatial)
            && self.w.view.shape.len() == rank
            && self.out.view.shape.len() == rank
            && window.strides.len() == spatial
            && window.dilations.len() == spatial
            && window.pads.len() == 2 * spatial;
        if !fits {
            return Err(unsupported(format!("{:?} by {:?} with {window:?}", self.x.view, self.w.view)));
        }
        let small = |values: &[usize]| -> Result<Vec<u32>, KernelError> {
            let narrow = |v: &usize| u32::try_from(*v).ok().filter(|v| *v < 1 << 16);
            values.iter().map(narrow).collect::<Option<_>>().ok_or_else(|| unsupported(format!("{window:?}")))
        };
        // One spatial axis is two with a first of size one.
        let lift = |values: &[u32], fill: u32| -> Vec<u32> {
            if spatial == 2 { values.to_vec() } else { [&[fill], values].concat() }
        };
        let lift4 = |values: &[u32], fill: u32| [&values[..2], &lift(&values[2..], fill)[..]].concat();
        let (x, w, out) = (&self.x.view, &self.w.view, &self.out.view);
        let [batch, channels, height, width] = lift4(&x.shape, 1)[..] else {
            return Err(unsupported("rank".into()));
        };
        let [filters, part, kh, kw] = lift4(&w.shape, 1)[..] else { return Err(unsupported("rank".into())) };
        let [out_batch, out_channels, oh, ow] = lift4(&out.shape, 1)[..] else {
            return Err(unsupported("rank".into()));
        };
        let group = self.group;
        let channels_fit = group > 0
            && filters.is_multiple_of(group)
            && part.checked_mul(group) == Some(channels)
            && (out_batch, out_channels) == (batch, filters);
        if !channels_fit {
            return Err(unsupported(format!("{x:?} by {w:?} in {group} groups into {out:?}")));
        }
        if let Some(bias) = self.bias {
            expect(KERNEL, "bias", bias, &[Scalar::F32])?;
            exactly(KERNEL, &bias.view, &[filters])?;
        }
        let total = count(KERNEL, &out.shape)?;
        count(KERNEL, &x.shape)?;
        let (strides, dilations) = (small(&window.strides)?, small(&window.dilations)?);
        let pads = small(&window.pads[..spatial])?;
        let params = Words::new()
            .array(&lift4(&exactly(KERNEL, x, &x.shape)?, 0), 4)
            .array(&lift4(&exactly(KERNEL, w, &w.shape)?, 0), 4)
            .array(&lift4(&exactly(KERNEL, out, &out.shape)?, 0), 4)
            .array(&[filters, oh, ow, total], 4)
            .array(&[part, kh, kw, filters / group], 4)
            .array(&[&lift(&strides, 1)[..], &lift(&dilations, 1)].concat(), 4)
            .array(&[&lift(&pads, 0)[..], &[height, width]].concat(), 4)
            .array(&[x.offset, w.offset, out.offset, self.bias.map_or(0, |b| b.view.offset)], 4)
            .word(self.bias.map_or(0, |b| b.view.strides.first().copied().unwrap_or(0)))
            .done();
        let mut constants = vec![constant("WG", WORKGROUP)];
        let flags = [("BIAS", self.bias.is_some()), ("HALF", self.w.scalar == Scalar::F16)];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry: "main", types: vec![], constants },
            params,
            roles: Roles::first(3, 1),
            grid: grid(KERNEL, u64::from(total.div_ceil(WORKGROUP)), limits)?,
            flops: 2 * u64::from(total) * u64::from(part) * u64::from(kh) * u64::from(kw),
            bytes: [Some(self.x), Some(self.w), self.bias, Some(self.out)]
                .into_iter()
                .flatten()
                .map(touched)
                .sum(),
        })
    }
}
