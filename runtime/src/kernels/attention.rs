//! Scaled dot-product attention with an online softmax: no matrix of scores in memory.
//!
//! Bindings: `q`, `k`, `v`, `mask`, `sinks`, `position` (or `q` again for each of the three), `out`.

use snlp_passes::ir::Attention as Attributes;

use super::layout::{Space, Words, broadcast, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "attention";
/// Leading axes, before the heads.
const MAX_BATCH: usize = 3;
/// Largest head.
pub const MAX_HEAD: u32 = 256;
/// Up to this many queries a workgroup takes one query and divides the keys.
const DECODE: u32 = 4;
/// Lanes that the kernel with subgroup operations is written for.
const LANES: u32 = 8;
/// Largest head that it keeps in registers.
const MAX_SUBGROUP_HEAD: u32 = 64;

/// An attention, as the operator of the IR defines it.
#[derive(Debug)]
pub struct Attention<'a> {
    /// `[batch.., Hq, T, d]`, f32.
    pub q: &'a Operand,
    /// `[batch.., Hkv, S, d]`, f32.
    pub k: &'a Operand,
    /// `[batch.., Hkv, S, e]`, f32.
    pub v: &'a Operand,
    /// Bool or f32, broadcasts to `[batch.., Hq, T, S]`.
    pub mask: Option<&'a Operand>,
    /// f32, broadcasts to `[batch.., Hq, T, 1]`.
    pub sinks: Option<&'a Operand>,
    /// i32, one element: where the first query stands among the keys.
    pub position: Option<&'a Operand>,
    /// `[batch.., Hq, T, e]`, f32.
    pub out: &'a Operand,
    /// Scale, masks, cap.
    pub attributes: Attributes,
}

/// The kernels to choose from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// An invocation per query; no workgroup memory.
    Software,
    /// A subgroup of eight lanes per 16 queries, for heads up to 64; lanes share what they load.
    Subgroup,
    /// A workgroup per query, its invocations dividing the keys.
    Decode,
    /// A workgroup per 16 queries.
    Tiled,
}

impl Attention<'_> {
    /// The dispatch, with the variant that suits the device and the shape.
    ///
    /// # Errors
    /// When shapes or types do not fit, a head is larger than [`MAX_HEAD`], or more than three batch
    /// axes remain after merging.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        let queries = self.q.view.shape.iter().rev().nth(1).copied().unwrap_or(0);
        let head = [self.q, self.v].map(|o| o.view.shape.last().copied().unwrap_or(0));
        let fits = limits.subgroup_size == LANES && head.iter().all(|d| *d <= MAX_SUBGROUP_HEAD);
        let variant = match (limits.software, queries) {
            (true, queries) if queries > DECODE && fits => Variant::Subgroup,
            (true, _) => Variant::Software,
            (false, 0..=DECODE) => Variant::Decode,
            (false, _) => Variant::Tiled,
        };
        self.launch_as(variant, limits)
    }

    /// The dispatch in a given variant.
    ///
    /// # Errors
    /// As [`Attention::launch`].
    pub fn launch_as(&self, variant: Variant, limits: &Limits) -> Result<Launch, KernelError> {
        for operand in [self.q, self.k, self.v, self.out] {
            expect(KERNEL, "an operand", operand, &[Scalar::F32])?;
        }
        if let Some(mask) = self.mask {
            expect(KERNEL, "the mask", mask, &[Scalar::F32, Scalar::Bool])?;
        }
        if let Some(sinks) = self.sinks {
            expect(KERNEL, "the sinks", sinks, &[Scalar::F32])?;
        }
        if let Some(position) = self.position {
            expect(KERNEL, "the position", position, &[Scalar::I32])?;
        }
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        let misfit = || {
            let (q, k, v, out) = (&self.q.view, &self.k.view, &self.v.view, &self.out.view);
            unsupported(format!("q {q:?}, k {k:?}, v {v:?} into {out:?}"))
        };
        let shape = &self.out.view.shape;
        let (&[.., heads, queries, d], &[.., key_heads, keys, dk], &[.., value_heads, values, e]) =
            (&self.q.view.shape[..], &self.k.view.shape[..], &self.v.view.shape[..])
        else {
            return Err(misfit());
        };
        let Some(outer) = shape.len().checked_sub(3) else { return Err(misfit()) };
        let fits = shape[outer..] == [heads, queries, e]
            && d == dk
            && keys == values
            && key_heads == value_heads
            && key_heads > 0
            && heads.is_multiple_of(key_heads);
        if !fits {
            return Err(misfit());
        }
        let most = if variant == Variant::Subgroup { MAX_SUBGROUP_HEAD } else { MAX_HEAD };
        if d > most || e > most {
            let (needed, limit) = (d.max(e).into(), most.into());
            return Err(KernelError::Limit { kernel: KERNEL, what: "size of a head", needed, limit });
        }
        if variant == Variant::Subgroup && limits.subgroup_size != LANES {
            let (needed, limit) = (LANES.into(), limits.subgroup_size.into());
            return Err(KernelError::Limit { kernel: KERNEL, what: "subgroup", needed, limit });
        }
        let total = count(KERNEL, shape)?;
        let with = |tail: [u32; 3]| [&shape[..outer], &tail].concat();
        let mask = match self.mask {
            Some(mask) => broadcast(KERNEL, &mask.view, &with([heads, queries, keys]))?,
            None => vec![0; shape.len()],
        };
        let sinks = match self.sinks {
            Some(sinks) => broadcast(KERNEL, &sinks.view, &with([heads, queries, 1]))?,
            None => vec![0; shape.len()],
        };
        let strides = [
            broadcast(KERNEL, &self.q.view, &with([heads, queries, d]))?,
            broadcast(KERNEL, &self.k.view, &with([key_heads, keys, d]))?,
            broadcast(KERNEL, &self.v.view, &with([key_heads, keys, e]))?,
            mask,
            sinks,
            exactly(KERNEL, &self.out.view, shape)?,
        ];
        let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[..outer].to_vec()).collect();
        let batch = Space::merge(&shape[..outer], &cut).at_most(KERNEL, MAX_BATCH)?;
        let offsets = [Some(self.q), Some(self.k), Some(self.v), self.mask, self.sinks, Some(self.out)]
            .map(|o| o.map_or(0, |o| o.view.offset));

        let rows = total.checked_div(e).unwrap_or(0);
        // Sixteen queries of one head.
        let blocks = u64::from(queries.div_ceil(16)) * u64::from(rows.checked_div(queries).unwrap_or(0));
        let (entry, workgroup, groups) = match variant {
            Variant::Software => ("software", 32, u64::from(rows.div_ceil(32))),
            Variant::Subgroup => ("subgroup", LANES, blocks),
            Variant::Decode => ("decode", 128, u64::from(rows)),
            Variant::Tiled => ("tiled", 128, blocks),
        };
        let a = &self.attributes;
        let mut words = Words::new().array(&batch.shape, 4);
        for (strides, offset) in batch.strides.iter().zip(offsets) {
            let mut four = [0, 0, 0, offset];
            four[..strides.len()].copy_from_slice(strides);
            words = words.array(&four, 4);
        }
        for s in &strides {
            words = words.array(&s[outer..], 4);
        }
        let params = words
            .word(heads)
            .word(heads / key_heads)
            .word(queries)
            .word(keys)
            .word(d)
            .word(e)
            .word(rows)
            .word(a.window.unwrap_or(u32::MAX))
            .float(a.scale)
            .float(a.softcap.unwrap_or(0.0))
            .word(groups.min(u64::from(u32::MAX)) as u32)
            .word(self.position.map_or(0, |p| p.view.offset))
            .done();
        let (part, [of_d, of_e]) = match variant {
            Variant::Subgroup => (8, ["D8", "E8"]),
            _ => (4, ["D4", "E4"]),
        };
        let mut constants = vec![
            constant("WG", workgroup),
            constant(of_d, d.div_ceil(part).max(1)),
            constant(of_e, e.div_ceil(part).max(1)),
        ];
        let flags = [
            ("BOOL_MASK", self.mask.is_some_and(|m| m.scalar == Scalar::Bool)),
            ("FLOAT_MASK", self.mask.is_some_and(|m| m.scalar == Scalar::F32)),
            ("CAUSAL", a.causal),
            ("WINDOW", a.window.is_some()),
            ("SOFTCAP", a.softcap.is_some()),
            ("SAFE", a.safe),
            ("SINKS", self.sinks.is_some()),
            ("POSITION", self.position.is_some()),
        ];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        let operands = [Some(self.q), Some(self.k), Some(self.v), self.mask, self.sinks, Some(self.out)];
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params,
            roles: Roles::first(6, 1),
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(rows) * u64::from(keys) * u64::from(d + e),
            bytes: operands.into_iter().flatten().map(touched).sum(),
        })
    }
}
