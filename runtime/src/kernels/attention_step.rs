//! Attention of a few new tokens behind caches: what [`Heads`](super::Heads) and [`Attention`](super::Attention) do,
//! in one dispatch, or in two where the caches are so long that several workgroups share the keys of a query.
//!
//! Bindings: `q`, `k`, `v`, `cos`, `sin`, `scale` of the queries, of the keys, `mask`, `sinks`, `position`, then
//! `k_cache`, `v_cache` (read and written) and `out`, from 1 on; the caches at 14 and 15 where they are read in fours.
//! What is absent has no binding. With `shares`, those are at 16 instead of `out`; merging binds `sinks`, `shares` at 17
//! and `out`.

use snlp_passes::ir::{Attention as Attributes, Rotary, RotaryTable};

use super::heads::{norm_code, table_shape};
use super::layout::{BUSY, Space, Words, broadcast, constant, count, exactly, expect, grid, touched};
use super::{
    HeadNorm, KernelError, Launch, Limits, MAX_HEAD, NormKind, Operand, PipelineKey, Roles, Scalar, View,
};

const KERNEL: &str = "attention_step";
/// Leading axes, before the heads.
const MAX_BATCH: usize = 3;
/// Most new tokens.
pub const MAX_STEP: u32 = 8;
/// From this many rows of the caches on, workgroups are as large as is common.
const MANY_KEYS: u32 = 512;
/// Fewer rows of the caches are no share of their own.
const SHARE: u32 = 512;
/// Invocations that make a row ready together.
const LANES: u32 = 32;
/// Invocations that merge the shares of a query.
const MERGE: u32 = 128;
/// Lanes that the kernel with subgroup operations is written for.
const SUBGROUP: u32 = 8;

/// How queries or keys are made ready.
#[derive(Clone, Debug, Default)]
pub struct Ready<'a> {
    /// What normalises each row.
    pub norm: Option<HeadNorm<'a>>,
    /// `cos` and `sin`, as in [`HeadPart`](super::HeadPart).
    pub tables: Option<[&'a Operand; 2]>,
}

/// A causal attention whose keys and values are `S` rows of caches, into which those of the new tokens go.
#[derive(Clone, Debug)]
pub struct AttentionStep<'a> {
    /// `[batch.., Hq, T, d]`, f32, `T` at most [`MAX_STEP`].
    pub q: &'a Operand,
    /// `[batch.., Hkv, T, d]`, f32: of the new tokens.
    pub k: &'a Operand,
    /// `[batch.., Hkv, T, e]`, f32.
    pub v: &'a Operand,
    /// What the queries go through first.
    pub ready_q: Ready<'a>,
    /// What the new keys go through first.
    pub ready_k: Ready<'a>,
    /// Pairing and table of both embeddings.
    pub rotary: Option<Rotary>,
    /// `[batch.., Hkv, S, d]`, f32. Rows `position..position + T` are written.
    pub k_cache: &'a Operand,
    /// `[batch.., Hkv, S, e]`, f32, likewise; another buffer.
    pub v_cache: &'a Operand,
    /// Bool or f32, broadcasts to `[batch.., Hq, T, S]`.
    pub mask: Option<&'a Operand>,
    /// f32, broadcasts to `[batch.., Hq, T, 1]`.
    pub sinks: Option<&'a Operand>,
    /// i32, one element: the row of the first new token.
    pub position: &'a Operand,
    /// `[batch.., Hq, T, e]`, f32.
    pub out: &'a Operand,
    /// `[batch.., Hq, T, n, e + 2]`, f32, dense: what `n` workgroups make of each query, for
    /// [`AttentionStep::merge`]. With one workgroup to a query, nothing.
    pub shares: Option<&'a Operand>,
    /// Scale, window, cap; causal.
    pub attributes: Attributes,
}

/// Sizes of an attention step.
struct Sizes {
    heads: u32,
    key_heads: u32,
    queries: u32,
    keys: u32,
    d: u32,
    e: u32,
}

/// Whether the columns of each row are whole fours of the buffer.
fn lies_in_fours(cache: &Operand) -> bool {
    let View { shape, strides, offset } = &cache.view;
    let split = strides.split_last().filter(|(along, _)| **along == 1);
    let rows = split.is_some_and(|(_, rows)| rows.iter().all(|s| s.is_multiple_of(4)));
    rows && offset.is_multiple_of(4) && shape.last().is_some_and(|d| d.is_multiple_of(4))
}

impl AttentionStep<'_> {
    /// How many workgroups had better share the keys of a query: 1 for none but its own.
    ///
    /// # Errors
    /// As [`AttentionStep::launch`].
    pub fn wanted_shares(&self, limits: &Limits) -> Result<u32, KernelError> {
        let sizes = self.sizes()?;
        let seen = self.attributes.window.map_or(sizes.keys, |w| w.min(sizes.keys));
        let rows = self.rows(&sizes)?.max(1);
        Ok(if limits.software { 1 } else { (BUSY / rows).min(seen / SHARE).max(1) })
    }

    /// The dispatch, or with `shares` the first of two.
    ///
    /// # Errors
    /// When shapes or types do not fit, there are too many tokens, a head is larger than [`MAX_HEAD`], workgroup
    /// memory does not hold the new keys, or more than three batch axes remain after merging. On adapters in software
    /// nothing is shared.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        let sizes = self.sizes()?;
        let (entry, workgroup, each) = self.shape_of_workgroup(&sizes, limits)?;
        let shares = self.share_count(&sizes)?;
        if entry != "by_group" && self.shares.is_some() {
            let reason = "shares on an adapter in software".into();
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        }
        let groups = u64::from(self.rows(&sizes)?.div_ceil(each)) * u64::from(shares);
        self.dispatch(&sizes, limits, entry, workgroup, groups)
    }

    /// The second dispatch: what the workgroups of a query made becomes its row.
    ///
    /// # Errors
    /// As [`AttentionStep::launch`], and without `shares`.
    pub fn merge(&self, limits: &Limits) -> Result<Launch, KernelError> {
        let sizes = self.sizes()?;
        let Some(shares) = self.shares else {
            let reason = "nothing to merge".into();
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        };
        let rows = self.rows(&sizes)?;
        let launch = self.dispatch(&sizes, limits, "merge", MERGE, rows.into())?;
        let reads = self.sinks.map(|_| 9).into_iter().chain([17]).collect();
        let read = touched(shares);
        Ok(Launch {
            roles: Roles { reads, writes: vec![13] },
            flops: read / 2,
            bytes: read + touched(self.out),
            ..launch
        })
    }

    /// Queries of all heads and batches.
    fn rows(&self, sizes: &Sizes) -> Result<u32, KernelError> {
        Ok(count(KERNEL, &self.out.view.shape)?.checked_div(sizes.e).unwrap_or(0))
    }

    /// Workgroups to a query.
    fn share_count(&self, sizes: &Sizes) -> Result<u32, KernelError> {
        let Some(Operand { view, scalar }) = self.shares else { return Ok(1) };
        count(KERNEL, &view.shape)?;
        let whole = view.is_dense() && view.offset == 0 && *scalar == Scalar::F32;
        if let ([rows @ .., n, wide], [outer @ .., _]) = (&view.shape[..], &self.out.view.shape[..])
            && whole
            && rows == outer
            && *wide == sizes.e + 2
            && *n > 0
        {
            return Ok(*n);
        }
        let reason = format!("shares {view:?} of {:?}", self.out.view);
        Err(KernelError::Unsupported { kernel: KERNEL, reason })
    }

    fn dispatch(
        &self,
        sizes: &Sizes,
        limits: &Limits,
        entry: &'static str,
        workgroup: u32,
        groups: u64,
    ) -> Result<Launch, KernelError> {
        let Sizes { heads, key_heads, queries, keys, d, e } = *sizes;
        let (batch, views) = self.views(sizes)?;
        let rows = self.rows(sizes)?;
        let shares = self.share_count(sizes)?;
        let fours = limits.software && [self.k_cache, self.v_cache].into_iter().all(lies_in_fours);
        let a = &self.attributes;
        let epsilon = |ready: &Ready| ready.norm.as_ref().map_or(0.0, |n| n.epsilon);
        let mut words = Words::new().array(&batch, 4);
        for view in &views {
            words = words.array(view, 8);
        }
        let params = words
            .word(heads)
            .word(heads / key_heads)
            .word(queries)
            .word(keys)
            .word(a.window.unwrap_or(u32::MAX))
            .word(rows)
            .word(self.position.view.offset)
            .word(0)
            .float(a.scale)
            .float(a.softcap.unwrap_or(0.0))
            .float(epsilon(&self.ready_q))
            .float(epsilon(&self.ready_k))
            .done();
        let scaled = |ready: &Ready| ready.norm.as_ref().is_some_and(|n| n.scale.is_some());
        let masked = |scalar| self.mask.is_some_and(|m| m.scalar == scalar);
        let mut constants = vec![("WG", workgroup), ("D", d), ("E", e), ("T", queries)];
        let flags = [
            ("NORM_Q", norm_code(self.ready_q.norm.as_ref())),
            ("NORM_K", norm_code(self.ready_k.norm.as_ref())),
            ("SCALE_Q_ON", scaled(&self.ready_q).into()),
            ("SCALE_K_ON", scaled(&self.ready_k).into()),
            ("ROTARY_Q", self.ready_q.tables.is_some().into()),
            ("ROTARY_K", self.ready_k.tables.is_some().into()),
            ("INTERLEAVED", self.rotary.is_some_and(|r| r.interleaved).into()),
            ("FULL_TABLE", self.rotary.is_some_and(|r| r.table == RotaryTable::Full).into()),
            ("BOOL_MASK", masked(Scalar::Bool).into()),
            ("FLOAT_MASK", masked(Scalar::F32).into()),
            ("WINDOW", a.window.is_some().into()),
            ("SOFTCAP", a.softcap.is_some().into()),
            ("SAFE", a.safe.into()),
            ("SINKS", self.sinks.is_some().into()),
            ("FOURS", fours.into()),
            ("SHARES", if shares > 1 { shares } else { 0 }),
        ];
        constants.extend(flags.iter().filter(|(_, value)| *value > 0));
        Ok(Launch {
            pipeline: PipelineKey {
                source: KERNEL,
                entry,
                types: vec![],
                constants: constants.into_iter().map(|(name, value)| constant(name, value)).collect(),
            },
            params,
            roles: self.roles(fours),
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(rows) * u64::from(keys) * u64::from(d + e),
            bytes: self.operands().into_iter().flatten().chain(self.shares).map(touched).sum(),
        })
    }

    /// As the kernel numbers its views.
    fn operands(&self) -> [Option<&Operand>; 14] {
        let of = |tables: Option<[_; 2]>, n: usize| tables.map(|t| t[n]);
        [
            Some(self.q),
            Some(self.k),
            Some(self.v),
            Some(self.k_cache),
            Some(self.v_cache),
            self.mask,
            self.sinks,
            Some(self.out),
            of(self.ready_q.tables, 0),
            of(self.ready_q.tables, 1),
            of(self.ready_k.tables, 0),
            of(self.ready_k.tables, 1),
            self.ready_q.norm.as_ref().and_then(|n| n.scale),
            self.ready_k.norm.as_ref().and_then(|n| n.scale),
        ]
    }

    fn roles(&self, fours: bool) -> Roles {
        let tables = self.ready_q.tables.is_some() || self.ready_k.tables.is_some();
        let [.., scale_q, scale_k] = self.operands();
        let present = [
            (1, true),
            (2, true),
            (3, true),
            (4, tables),
            (5, tables),
            (6, scale_q.is_some()),
            (7, scale_k.is_some()),
            (8, self.mask.is_some()),
            (9, self.sinks.is_some()),
            (10, true),
        ];
        let reads = present.into_iter().filter(|(_, present)| *present).map(|(n, _)| n).collect();
        let [k, v] = if fours { [14, 15] } else { [11, 12] };
        Roles { reads, writes: vec![k, v, if self.shares.is_some() { 16 } else { 13 }] }
    }

    fn sizes(&self) -> Result<Sizes, KernelError> {
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        for operand in self.operands().into_iter().enumerate().filter_map(|(n, o)| o.filter(|_| n != 5)) {
            expect(KERNEL, "an operand", operand, &[Scalar::F32])?;
        }
        if let Some(mask) = self.mask {
            expect(KERNEL, "the mask", mask, &[Scalar::F32, Scalar::Bool])?;
        }
        expect(KERNEL, "the position", self.position, &[Scalar::I32])?;
        let misfit = || {
            let [q, k, v, out] = [self.q, self.k, self.v, self.out].map(|o| &o.view);
            let (kc, vc) = (&self.k_cache.view, &self.v_cache.view);
            unsupported(format!("q {q:?}, k {k:?} behind {kc:?}, v {v:?} behind {vc:?} into {out:?}"))
        };
        let tail = |o: &Operand| match o.view.shape[..] {
            [.., heads, rows, columns] => Ok([heads, rows, columns]),
            _ => Err(misfit()),
        };
        let [heads, queries, d] = tail(self.q)?;
        let [key_heads, keys, e] = tail(self.v_cache)?;
        let fits = tail(self.out)? == [heads, queries, e]
            && tail(self.k)? == [key_heads, queries, d]
            && tail(self.v)? == [key_heads, queries, e]
            && tail(self.k_cache)? == [key_heads, keys, d]
            && key_heads > 0
            && heads.is_multiple_of(key_heads)
            && [queries, keys, d, e].iter().all(|n| *n > 0);
        if !fits {
            return Err(misfit());
        }
        if !self.attributes.causal {
            return Err(unsupported("queries that see later keys".into()));
        }
        for (what, needed, limit) in [
            ("number of queries", queries, MAX_STEP),
            ("size of a head", d.max(e), MAX_HEAD),
            ("number of keys", keys, i32::MAX as u32 / 2),
        ] {
            if needed > limit {
                let (needed, limit) = (needed.into(), limit.into());
                return Err(KernelError::Limit { kernel: KERNEL, what, needed, limit });
            }
        }
        Ok(Sizes { heads, key_heads, queries, keys, d, e })
    }

    /// Sizes of the batch axes, and the strides of each operand as the kernel wants them.
    fn views(&self, sizes: &Sizes) -> Result<(Vec<u32>, Vec<[u32; 8]>), KernelError> {
        let shape = &self.out.view.shape;
        let outer = shape.len() - 3;
        let with = |tail: [u32; 3]| [&shape[..outer], &tail].concat();
        let Sizes { heads, key_heads, queries, keys, d, e } = *sizes;
        let (q, k, v) = ([heads, queries, d], [key_heads, queries, d], [key_heads, queries, e]);
        let table = |tail: [u32; 3]| {
            let x = View::dense(&with(tail));
            table_shape(KERNEL, &x, self.rotary)
        };
        let (table_q, table_k) = match self.rotary {
            Some(_) => (table(q)?, table(k)?),
            None => (with(q), with(k)),
        };
        let (of_q, of_k) = (self.ready_q.tables.is_some(), self.ready_k.tables.is_some());
        if (of_q || of_k) && self.rotary.is_none() {
            let reason = "tables without an embedding".into();
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        }
        let whole = [
            with(q),
            with(k),
            with(v),
            with([key_heads, keys, d]),
            with([key_heads, keys, e]),
            with([heads, queries, keys]),
            with([heads, queries, 1]),
            shape.clone(),
            table_q.clone(),
            table_q,
            table_k.clone(),
            table_k,
            with(q),
            with(k),
        ];
        let mut strides = vec![];
        for (n, (operand, whole)) in self.operands().into_iter().zip(&whole).enumerate() {
            strides.push(match (operand, n) {
                // What is written has no axis that repeats.
                (Some(operand), 3 | 4 | 7) => exactly(KERNEL, &operand.view, whole)?,
                (Some(operand), _) => broadcast(KERNEL, &operand.view, whole)?,
                (None, _) => vec![0; shape.len()],
            });
        }
        let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[..outer].to_vec()).collect();
        let batch = Space::merge(&shape[..outer], &cut).at_most(KERNEL, MAX_BATCH)?;
        let mut views = vec![];
        for ((lead, own), operand) in batch.strides.iter().zip(&strides).zip(self.operands()) {
            let mut view = [0; 8];
            view[..lead.len()].copy_from_slice(lead);
            view[3] = operand.map_or(0, |o| o.view.offset);
            view[4..7].copy_from_slice(&own[outer..]);
            views.push(view);
        }
        Ok((batch.shape, views))
    }

    /// Entry point, invocations of a workgroup, and queries that it takes.
    fn shape_of_workgroup(
        &self,
        sizes: &Sizes,
        limits: &Limits,
    ) -> Result<(&'static str, u32, u32), KernelError> {
        match (limits.software, limits.subgroup_size) {
            (true, SUBGROUP) => return Ok(("subgroup", SUBGROUP, 1)),
            (true, _) => return Ok(("software", 32, 32)),
            (false, _) => {}
        }
        let norms = [&self.ready_q, &self.ready_k].into_iter().filter_map(|r| r.norm.as_ref());
        // Sums of the squares, and of the elements.
        let partials = norms.map(|n| if n.kind == NormKind::Layer { 2 } else { 1 }).max().unwrap_or(0);
        let rows = sizes.queries + 1;
        let bytes = |workgroup: u32| 4 * (rows * sizes.d + partials * rows * LANES + 11 * workgroup);
        let choice = if sizes.keys >= MANY_KEYS { &[256, 128][..] } else { &[128][..] };
        let fits = |workgroup: &&u32| {
            **workgroup <= limits.max_invocations && bytes(**workgroup) <= limits.max_workgroup_memory
        };
        match choice.iter().find(fits) {
            Some(workgroup) => Ok(("by_group", *workgroup, 1)),
            None => Err(KernelError::Limit {
                kernel: KERNEL,
                what: "workgroup memory",
                needed: bytes(choice.last().copied().unwrap_or(0)).into(),
                limit: limits.max_workgroup_memory.into(),
            }),
        }
    }
}
