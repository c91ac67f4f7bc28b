//! Newton corrections over the unit axis.
//!
//! Bindings: `f`, `s`, `t` (or `f` again), `out`.

use snlp_passes::ir::{Correction as Attributes, CorrectionForm};

use super::layout::{MAX_RANK, Space, Words, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "correction";
const WORKGROUP: u32 = 64;
/// Streams that the kernel has registers for.
const MAX_STREAMS: u32 = 32;

/// A correction, as the operator of the IR defines it.
#[derive(Debug)]
pub struct Correction<'a> {
    /// `[C, ..]`, f32.
    pub f: &'a Operand,
    /// `[C, ..]`, or without the unit axis; f32.
    pub s: &'a Operand,
    /// `[C·S, C·S]` for the linear form, `[C, tokens.., S, S]` for the scan; f32.
    pub t: Option<&'a Operand>,
    /// `[C, ..]`, or without the unit axis when only the last is wanted; f32.
    pub out: &'a Operand,
    /// Form and extent.
    pub attributes: Attributes,
}

impl Correction<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When shapes or types do not fit, or the linear form lacks its matrix.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        for operand in [Some(self.f), Some(self.s), self.t, Some(self.out)].into_iter().flatten() {
            expect(KERNEL, "an operand", operand, &[Scalar::F32])?;
        }
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        let shape = &self.f.view.shape;
        let total = count(KERNEL, shape)?;
        let Some((units, state)) = shape.split_first() else {
            return Err(unsupported("f has no unit axis".into()));
        };
        let f = exactly(KERNEL, &self.f.view, shape)?;
        let shared = self.s.view.shape.len() == state.len();
        let s = exactly(KERNEL, &self.s.view, if shared { state } else { shape })?;
        let out = exactly(KERNEL, &self.out.view, if self.attributes.last_only { state } else { shape })?;
        // Per operand: the stride of the unit axis, and the state's strides.
        let (f_unit, f) = (f[0], f[1..].to_vec());
        let (s_unit, s) = if shared { (0, s) } else { (s[0], s[1..].to_vec()) };
        let (out_unit, out) = if self.attributes.last_only { (0, out) } else { (out[0], out[1..].to_vec()) };
        let mut strides = [f, s, out];
        let mut state = state.to_vec();

        let (mut streams, mut stream, mut t_strides, mut t_offset) = (1, [0; 3], [0; 2], 0);
        let (mut t_unit, mut t_state) = (0, vec![]);
        let form = self.attributes.form;
        if let CorrectionForm::Linear { stream_axis, .. } | CorrectionForm::Scan { stream_axis } = form {
            let Some(t) = self.t else { return Err(unsupported("the form lacks its matrices".into())) };
            let axis = (stream_axis as usize).checked_sub(1);
            let n = match form {
                CorrectionForm::Linear { streams, .. } => streams,
                _ => axis.and_then(|a| state.get(a)).copied().unwrap_or(0),
            };
            let scan = matches!(form, CorrectionForm::Scan { .. });
            if scan && n > MAX_STREAMS {
                return Err(unsupported(format!("{n} streams, more than {MAX_STREAMS}")));
            }
            if scan || n > 1 {
                let Some(axis) = axis.filter(|a| state.get(*a) == Some(&n)) else {
                    return Err(unsupported(format!("{n} streams at axis {stream_axis} of {shape:?}")));
                };
                state.remove(axis);
                stream = [strides[0].remove(axis), strides[1].remove(axis), strides[2].remove(axis)];
            }
            streams = n;
            t_offset = t.view.offset;
            if let CorrectionForm::Linear { .. } = form {
                let order = units.saturating_mul(n);
                let own = exactly(KERNEL, &t.view, &[order, order])?;
                t_strides = [own[0], own[1]];
            } else {
                let Some((_, tokens)) = state.split_last() else {
                    return Err(unsupported(format!("a scan over streams of {shape:?}")));
                };
                let own = exactly(KERNEL, &t.view, &[&[*units], tokens, &[n, n]].concat())?;
                let matrix = own.len() - 2;
                t_strides = [own[matrix], own[matrix + 1]];
                t_unit = own[0];
                // All features of a token share its matrix.
                t_state = [&own[1..matrix], &[0]].concat();
            }
        }
        t_state.resize(state.len(), 0);
        let [f, s, out] = strides;
        let strides = [f, s, out, t_state];
        let space = Space::merge(&state, &strides).at_most(KERNEL, MAX_RANK)?;
        let elements = count(KERNEL, &state)?;
        // The prefix form and the scan walk the units; the linear form computes each result on its own.
        let results = if self.attributes.last_only { 1 } else { *units };
        let (entry, invocations) = match form {
            CorrectionForm::Prefix => ("prefix", u64::from(elements)),
            CorrectionForm::Scan { .. } => ("scan", u64::from(elements)),
            CorrectionForm::Linear { .. } => {
                ("linear", u64::from(elements) * u64::from(results) * u64::from(streams))
            }
        };
        if invocations > u64::from(u32::MAX - 1024) {
            let limit = u64::from(u32::MAX - 1024);
            return Err(KernelError::Limit {
                kernel: KERNEL,
                what: "number of elements",
                needed: invocations,
                limit,
            });
        }
        let mut words = Words::new().array(&space.shape, 8);
        for strides in &space.strides {
            words = words.array(strides, 8);
        }
        let offsets = [self.f.view.offset, self.s.view.offset, self.out.view.offset, t_offset];
        let params = words
            .array(&offsets, 4)
            .array(&[f_unit, s_unit, out_unit, t_unit], 4)
            .array(&stream, 4)
            .word(t_strides[0])
            .word(t_strides[1])
            .word(*units)
            .word(streams)
            .word(elements)
            .word(space.shape.len() as u32)
            .word(invocations as u32)
            .done();
        let mut constants = vec![constant("WG", WORKGROUP)];
        if self.attributes.last_only {
            constants.push(constant("LAST_ONLY", 1));
        }
        let flops = match form {
            CorrectionForm::Prefix => 3 * u64::from(total),
            CorrectionForm::Scan { .. } => (2 * u64::from(streams) + 1) * u64::from(total),
            CorrectionForm::Linear { .. } => 2 * invocations * u64::from(*units) * u64::from(streams),
        };
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params,
            roles: Roles::first(3, 1),
            grid: grid(KERNEL, invocations.div_ceil(WORKGROUP.into()), limits)?,
            flops,
            bytes: [Some(self.f), Some(self.s), self.t, Some(self.out)]
                .into_iter()
                .flatten()
                .map(touched)
                .sum(),
        })
    }
}
