//! Batched matrix products: `out[.., m, n] = Σ_c Σ_k a[.., c, m, k] · b[.., c, k, n]`, with an epilogue.
//!
//! The units of a layer-parallel segment are a batch axis: one dispatch, whatever their number. A batch
//! axis of `a` that `b` does not have joins the rows.
//!
//! Products that share `a` are *parts* of one dispatch (queries, keys and values), or two of them make one gated
//! result. `a` may be normalised while it is read.
//!
//! `b` may be integers with a scale and a zero point per block of `K`: they stay integers in memory and become
//! floats when they are read.
//!
//! Bindings, those that are there: `a`, the norm's scale and bias; then of each part `b`, `scale`, `zero`, `bias`,
//! `residual`; then the results.

use super::layout::{BUSY, Space, Words, broadcast, constant, count, expect, grid, touched};
use super::norm::NormKind;
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "matmul";
/// Batch axes, and contracted batch axes, after merging.
pub(super) const MAX_BATCH: usize = 4;
/// Products of one dispatch.
pub const MAX_PARTS: usize = 4;
/// Rows that the workgroup-per-columns kernel takes.
const GEMV_ROWS: u32 = 4;
/// Lanes that the kernel with subgroup operations is written for.
const LANES: u32 = 8;
/// Up to this many rows it would compute more than it saves.
const FEW_ROWS: u32 = 4;
/// Beyond this many rows it takes 32 at once, which repays a longer compilation, else 16.
const MANY_ROWS: u32 = 256;
/// Up to this many rows a layer norm is computed anew for each tile of columns.
const LAYER_NORM_ROWS: u32 = 256;
/// What stands in the source for cooperative matrices of eight rows and columns.
pub(super) const COOPERATIVE_8: [(&str, &str); 3] =
    [("Left", "coop_mat8x8<f16, A>"), ("Right", "coop_mat8x8<f16, B>"), ("Sums", "coop_mat8x8<f32, C>")];
/// Subgroups of a workgroup with cooperative matrices.
const COOPERATING: u32 = 4;

/// What the integers of a quantised operand stand for: `(b - zero) · scale`.
#[derive(Clone, Copy, Debug)]
pub struct Coding<'a> {
    /// `[.., blocks or 1, N or 1]`, f32 or f16; batch axes broadcast.
    pub scale: &'a Operand,
    /// Likewise, integers of any form.
    pub zero: Option<&'a Operand>,
    /// Elements of a block along `K`, a power of two; anything where the parameters do not vary along `K`.
    pub block: u32,
}

/// A function of the epilogue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub enum Activation {
    #[default]
    None = 0,
    Relu = 1,
    Silu = 2,
    GeluErf = 3,
    GeluTanh = 4,
    Sigmoid = 5,
    Tanh = 6,
    /// `max(x, 0)²`.
    SquaredRelu = 7,
}

/// A normalisation of the rows of `a`.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub epsilon: f32,
    /// Broadcasts to `a` and does not vary with its rows, f32.
    pub scale: Option<&'a Operand>,
    /// As `scale`; only of a layer norm.
    pub bias: Option<&'a Operand>,
}

/// One product of a dispatch.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// `[batch.., contracted.., K, N]`, f32 or f16, or integers with a coding; any strides. Batch axes
    /// broadcast.
    pub b: &'a Operand,
    /// How the integers of `b` are read.
    pub coding: Option<Coding<'a>>,
    /// `[batch.., 1 per contracted axis.., M, N]`, f32. Of a second factor, only its shape counts.
    pub out: &'a Operand,
    /// Added to the product; broadcasts to `out` (a row vector, or anything else). f32.
    pub bias: Option<&'a Operand>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Multiplied with, before the residual is added.
    pub alpha: f32,
    /// Added last; broadcasts to `out`. f32. Must not be `out`'s buffer (use `accumulate`).
    pub residual: Option<&'a Operand>,
}

impl<'a> Part<'a> {
    /// A product alone.
    pub fn new(b: &'a Operand, out: &'a Operand) -> Self {
        Part { b, coding: None, out, bias: None, activation: Activation::None, alpha: 1.0, residual: None }
    }
}

/// Matrix products of one left operand.
#[derive(Debug)]
pub struct Matmul<'a> {
    /// `[batch.., contracted.., M, K]`, f32; any strides.
    pub a: &'a Operand,
    /// What is done to the rows of `a` first.
    pub norm: Option<RowNorm<'a>>,
    /// One to [`MAX_PARTS`] products; alike but for `N`, the epilogue and where things lie.
    pub parts: Vec<Part<'a>>,
    /// The two parts are factors of one result, the first one's.
    pub gated: bool,
    /// The last `contract` batch axes are summed over; of a single product only.
    pub contract: usize,
    /// Adds to what `out` holds instead of replacing it; of a single product only.
    pub accumulate: bool,
}

/// The kernels to choose from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// An invocation computes some rows by four columns; no workgroup memory.
    Software,
    /// A subgroup of eight lanes computes 16 or 32 rows by 32 columns; lanes share what they load.
    Subgroup,
    /// A workgroup computes up to four rows by 8 to 32 columns, its invocations dividing the contraction.
    Gemv,
    /// A workgroup computes a 64×64 tile through workgroup memory.
    Tiled,
    /// Four subgroups compute a tile of four cooperative matrices by four; right operands of f16.
    Cooperative,
}

/// Whether the kernel suits cooperative matrices of `side` rows and columns in subgroups of `lanes`: a workgroup's
/// invocations have sixteen elements of each slice of the left operand.
pub fn cooperates(side: u32, lanes: u32) -> bool {
    side > 0 && 2 * side * side == 16 * lanes
}

impl Variant {
    /// The one that suits the device and the number of rows.
    fn for_rows(rows: u32, limits: &Limits) -> Self {
        match (limits.software, rows) {
            (true, m) if m > FEW_ROWS && limits.subgroup_size == LANES => Variant::Subgroup,
            (true, _) => Variant::Software,
            (false, 0..=GEMV_ROWS) => Variant::Gemv,
            (false, _) => Variant::Tiled,
        }
    }
}

/// Whether a product of so many rows had better normalise them itself than read what another dispatch made of them.
pub fn takes_norm(kind: NormKind, has_bias: bool, rows: u32, limits: &Limits) -> bool {
    match kind {
        // The root comes in the end, behind any bias.
        NormKind::Rms => !has_bias,
        NormKind::Layer => !limits.software && rows <= LAYER_NORM_ROWS,
    }
}

/// Which product an operand belongs to, and on which side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// `[.., M, K]`, of all.
    Left,
    /// `[.., K, N]`.
    Right(usize),
    /// `[.., K or 1, N]` in blocks.
    Coding(usize),
    /// `[.., M, N]`.
    Result(usize),
}

pub(super) struct Problem {
    pub(super) batch: Space,
    pub(super) contract: Space,
    pub(super) m: u32,
    pub(super) k: u32,
    /// Of each part.
    pub(super) n: Vec<u32>,
    /// `[offset, row, column]` of each operand.
    pub(super) inner: Vec<[u32; 3]>,
    sides: Vec<Side>,
}

impl Matmul<'_> {
    /// The dispatch, with the variant that suits the device and the shape.
    ///
    /// # Errors
    /// When shapes do not fit, element types are others than documented, parts are not alike, more than four batch
    /// axes (or contracted axes) remain after merging, or the device binds too few buffers.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        let problem = self.problem()?;
        let variant = match Variant::for_rows(problem.m, limits) {
            Variant::Tiled if self.may_cooperate(limits) => Variant::Cooperative,
            variant => variant,
        };
        self.build(&problem, variant, limits)
    }

    /// Whether cooperative matrices do for all right operands.
    fn may_cooperate(&self, limits: &Limits) -> bool {
        let halves = self.parts.iter().all(|p| p.coding.is_none() && p.b.scalar == Scalar::F16);
        let memory = cooperative_memory(limits.cooperative);
        limits.cooperative > 0 && halves && memory <= u64::from(limits.max_workgroup_memory)
    }

    /// The dispatch in a given variant.
    ///
    /// # Errors
    /// As [`Matmul::launch`].
    pub fn launch_as(&self, variant: Variant, limits: &Limits) -> Result<Launch, KernelError> {
        self.build(&self.problem()?, variant, limits)
    }

    /// All operands that there may be: `a` and the norm's, then [`PER_PART`] of each part.
    fn operands(&self) -> Vec<(Option<&Operand>, Side)> {
        let mut all = vec![
            (Some(self.a), Side::Left),
            (self.norm.and_then(|n| n.scale), Side::Left),
            (self.norm.and_then(|n| n.bias), Side::Left),
        ];
        for (i, part) in self.parts.iter().enumerate() {
            all.extend([
                (Some(part.b), Side::Right(i)),
                (part.coding.map(|c| c.scale), Side::Coding(i)),
                (part.coding.and_then(|c| c.zero), Side::Coding(i)),
                (part.bias, Side::Result(i)),
                (part.residual, Side::Result(i)),
                (Some(part.out), Side::Result(i)),
            ]);
        }
        all
    }

    fn problem(&self) -> Result<Problem, KernelError> {
        let Some(first) = self.parts.first().filter(|_| self.parts.len() <= MAX_PARTS) else {
            return unsupported(format!("{} parts of {MAX_PARTS}", self.parts.len()));
        };
        if self.gated && self.parts.len() != 2 {
            return unsupported("a gate needs two parts");
        }
        if self.parts.len() > 1 && (self.accumulate || self.contract > 0) {
            return unsupported("several parts with a sum");
        }
        if self.gated && self.parts[1].residual.is_some() {
            return unsupported("a residual of a second factor");
        }
        expect(KERNEL, "a", self.a, &[Scalar::F32])?;
        let forms = |part: &Part| {
            let zero = part.coding.map(|c| c.zero.map(|z| z.scalar));
            (part.b.scalar, part.coding.map(|c| (c.scale.scalar, c.block)), zero)
        };
        for part in &self.parts {
            part.check()?;
            if forms(part) != forms(first) || part.shift()? != first.shift()? {
                return unsupported("parts whose right operands are stored differently");
            }
        }
        for factor in self.norm.iter().flat_map(|n| [n.scale, n.bias]).flatten() {
            expect(KERNEL, "the norm's factor", factor, &[Scalar::F32])?;
        }
        let mut problem = Problem::new(KERNEL, &self.operands(), self.contract)?;
        if self.gated && problem.n[0] != problem.n[1] {
            return unsupported("factors of different widths");
        }
        if self.gated && problem.inner[LEFT][1..] != problem.inner[LEFT + PER_PART][1..] {
            return unsupported("factors that lie differently");
        }
        if let Some(norm) = self.norm
            && (self.contract > 0 || norm.bias.is_some() && norm.kind == NormKind::Rms)
        {
            return unsupported("a norm before a sum, or an RMS norm with a bias");
        }
        problem.join_rows();
        // Joined rows may have brought factors of their own.
        if problem.inner[1][1] != 0 || problem.inner[2][1] != 0 {
            return unsupported("a norm with a factor for each row");
        }
        problem.batch = problem.batch.at_most(KERNEL, MAX_BATCH)?;
        Ok(problem)
    }

    fn build(&self, problem: &Problem, variant: Variant, limits: &Limits) -> Result<Launch, KernelError> {
        let Problem { batch, contract, m, n, k, inner, .. } = problem;
        let first = &self.parts[0];
        let batches: u64 = batch.shape.iter().map(|d| u64::from(*d)).product();
        let contracted: u64 = contract.shape.iter().map(|d| u64::from(*d)).product();
        // Columns of the result that four sums make.
        let width = if self.gated { 2 } else { 4 };
        let wide: u64 = n.iter().map(|n| u64::from(*n)).sum::<u64>() * batches;
        let fours = [8, 4].into_iter().find(|f| wide >= u64::from(BUSY * f * 4)).unwrap_or(2);
        let (entry, workgroup, rows, columns) = match variant {
            Variant::Subgroup => ("subgroup", LANES, if *m > MANY_ROWS { 32 } else { 16 }, width * LANES),
            // Few rows leave registers for nothing else; more rows reuse each element of b.
            Variant::Software => ("software", 32, (*m).clamp(1, 8), width * 32),
            Variant::Gemv => ("gemv", 256, (*m).clamp(1, GEMV_ROWS), width * fours),
            Variant::Tiled => ("tiled", 256, 64, width * 16),
            Variant::Cooperative => {
                let side = limits.cooperative;
                ("cooperative", COOPERATING * limits.subgroup_size, 4 * side, width * side)
            }
        };
        if variant == Variant::Cooperative && !self.may_cooperate(limits) {
            return unsupported("cooperative matrices of this size or of such right operands");
        }
        if variant == Variant::Subgroup && limits.subgroup_size != LANES {
            let (needed, limit) = (LANES.into(), limits.subgroup_size.into());
            return Err(KernelError::Limit { kernel: KERNEL, what: "subgroup", needed, limit });
        }
        if workgroup > limits.max_invocations {
            let (needed, limit) = (workgroup.into(), limits.max_invocations.into());
            return Err(KernelError::Limit { kernel: KERNEL, what: "workgroup", needed, limit });
        }
        let layer = self.norm.is_some_and(|n| n.kind == NormKind::Layer);
        if layer && matches!(variant, Variant::Software | Variant::Subgroup) {
            return unsupported("a layer norm without workgroup memory");
        }
        // The parts' tiles of columns lie side by side; a gate's two parts share theirs.
        let mut starts = vec![];
        let mut tiles_n = 0;
        for n in n.iter().take(if self.gated { 1 } else { MAX_PARTS }) {
            starts.push(tiles_n);
            tiles_n += n.div_ceil(columns);
        }
        let tiles_m = m.div_ceil(rows);
        let groups = u64::from(tiles_n) * u64::from(tiles_m) * batches;

        let of_left = 0..LEFT;
        let mut words = Words::new().array(&batch.shape, 4);
        for strides in &batch.strides[of_left.clone()] {
            words = words.array(strides, 4);
        }
        words = words.array(&contract.shape, 4).array(&contract.strides[0], 4);
        for view in &inner[of_left] {
            words = words.array(view, 4);
        }
        words = words
            .word(*m)
            .word(*k)
            .word(contracted as u32)
            .word(tiles_n)
            .word(tiles_m)
            .word(groups.min(u32::MAX.into()) as u32)
            .word(first.shift()?)
            .float(self.norm.map_or(0.0, |n| n.epsilon));
        for (i, part) in self.parts.iter().enumerate() {
            let at = LEFT + i * PER_PART..LEFT + (i + 1) * PER_PART;
            for strides in &batch.strides[at.clone()] {
                words = words.array(strides, 4);
            }
            for strides in contract.strides[at.clone()].iter().take(3) {
                words = words.array(strides, 4);
            }
            for view in &inner[at] {
                words = words.array(view, 4);
            }
            let start = starts.get(i).copied().unwrap_or(0);
            words = words.word(n[i]).word(start).float(part.alpha).word(0);
        }
        // The uniform block has room for all parts.
        let mut params = words.done();
        params.resize(params.len() + (MAX_PARTS - self.parts.len()) * PART_WORDS, 0);

        let mut constants = vec![constant("WG", workgroup)];
        match variant {
            Variant::Tiled => {}
            Variant::Cooperative => constants.push(constant("SIDE", limits.cooperative)),
            Variant::Software | Variant::Subgroup | Variant::Gemv => constants.push(constant("ROWS", rows)),
        }
        if variant == Variant::Gemv {
            constants.push(constant("FOURS", fours));
        }
        let by_tiles = matches!(variant, Variant::Tiled | Variant::Cooperative);
        let along_k = |i: usize| {
            let view = inner[LEFT + i * PER_PART];
            view[1] == 1 && view[2] != 1
        };
        // Elements of packed operands that lie side by side are read together.
        let paired = first.b.scalar.is_packed()
            && variant != Variant::Subgroup
            && (0..self.parts.len()).map(|i| LEFT + i * PER_PART).all(|b| {
                let [offset, row, column] = inner[b];
                let strides = batch.strides[b].iter().chain(&contract.strides[b]).chain([&offset, &row]);
                column == 1 && strides.into_iter().all(|s| s.is_multiple_of(2))
            });
        let bits = |of: &dyn Fn(&Part) -> bool| {
            self.parts.iter().enumerate().map(|(i, p)| u32::from(of(p)) << i).sum::<u32>()
        };
        let activations: u32 =
            self.parts.iter().enumerate().map(|(i, p)| (p.activation as u32) << (4 * i)).sum();
        let scaled = |of: fn(RowNorm<'_>) -> bool| self.norm.map_or(0, |n| u32::from(of(n)));
        let choices = [
            ("PARTS", if self.parts.len() > 1 { self.parts.len() as u32 } else { 0 }),
            ("GATED", u32::from(self.gated)),
            ("NORM", self.norm.map_or(0, |n| if n.kind == NormKind::Rms { 1 } else { 2 })),
            ("NORM_SCALE", scaled(|n| n.scale.is_some())),
            ("NORM_BIAS", scaled(|n| n.bias.is_some())),
            ("ACCUMULATE", u32::from(self.accumulate)),
            ("BIAS", bits(&|p| p.bias.is_some())),
            ("RESIDUAL", bits(&|p| p.residual.is_some())),
            ("ACTIVATION", activations),
            ("A_ALONG_K", u32::from(by_tiles && inner[0][2] == 1)),
            ("B_ALONG_K", u32::from((by_tiles || variant == Variant::Gemv) && along_k(0))),
            ("B_FORM", first.b.scalar.form()),
            ("PAIRED", u32::from(paired)),
            ("SCALE_FORM", first.coding.map_or(0, |c| c.scale.scalar.form())),
            ("ZERO_FORM", first.coding.and_then(|c| c.zero).map_or(0, |z| z.scalar.form())),
            ("CODED", first.coding.map_or(0, |c| if c.zero.is_some() { 2 } else { 1 })),
        ];
        constants.extend(choices.iter().filter(|(_, value)| *value != 0).map(|(name, v)| constant(name, *v)));

        let small = variant == Variant::Cooperative && limits.cooperative == 8;
        let types = if small { COOPERATIVE_8.to_vec() } else { vec![] };
        let mut roles = Roles::default();
        let mut bytes = 0;
        for (number, (operand, side)) in (1..).zip(self.operands()) {
            let Some(operand) = operand else { continue };
            let is_result = number > LEFT as u32 && (number - LEFT as u32).is_multiple_of(PER_PART as u32);
            if is_result && self.gated && side == Side::Result(1) {
                continue;
            }
            bytes += touched(operand);
            if is_result { roles.writes.push(number) } else { roles.reads.push(number) }
        }
        let (needed, limit) = (roles.all().count() as u64, limits.max_storage_buffers.into());
        if needed > limit {
            return Err(KernelError::Limit { kernel: KERNEL, what: "number of buffers", needed, limit });
        }
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types, constants },
            params,
            roles,
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(*m) * u64::from(*k) * wide * contracted,
            bytes,
        })
    }
}

/// Bytes of workgroup memory that cooperative matrices of `side` rows take: a slice of `a` in two halves, one of `b`,
/// where sums land, and four numbers of each row.
fn cooperative_memory(side: u32) -> u64 {
    let side = u64::from(side);
    let (span, depth) = (4 * side, 2 * side);
    4 * span * (depth + 8) + 2 * depth * (span + 8) + 16 * side * side + 16 * span
}

/// Operands of the left side: `a`, the norm's scale and bias.
const LEFT: usize = 3;
/// Operands of a part.
const PER_PART: usize = 6;
/// Words of a part in the uniform block: strides over the batch and within of each operand, those of `b` and its
/// coding over contracted axes, and four more.
const PART_WORDS: usize = 4 * (2 * PER_PART + 3 + 1);

impl Part<'_> {
    fn check(&self) -> Result<(), KernelError> {
        match self.coding {
            None => expect(KERNEL, "b", self.b, &[Scalar::F32, Scalar::F16])?,
            Some(coding) => {
                let integers = [Scalar::I8, Scalar::U8, Scalar::I4, Scalar::U4, Scalar::I32];
                expect(KERNEL, "b with a scale", self.b, &integers)?;
                expect(KERNEL, "scale", coding.scale, &[Scalar::F32, Scalar::F16])?;
                if let Some(zero) = coding.zero {
                    expect(KERNEL, "zero point", zero, &integers)?;
                }
            }
        }
        expect(KERNEL, "the result", self.out, &[Scalar::F32])?;
        for extra in [self.bias, self.residual].into_iter().flatten() {
            expect(KERNEL, "bias or residual", extra, &[Scalar::F32])?;
        }
        Ok(())
    }

    /// The logarithm of the block; 31 where there is but one.
    fn shift(&self) -> Result<u32, KernelError> {
        let Some(coding) = self.coding else { return Ok(31) };
        let along = |o: &Operand| {
            let shape = &o.view.shape;
            shape.len().checked_sub(2).is_some_and(|i| shape[i] != 1)
        };
        if !along(coding.scale) && !coding.zero.is_some_and(along) {
            return Ok(31);
        }
        if coding.block.is_power_of_two() {
            return Ok(coding.block.trailing_zeros());
        }
        unsupported(format!("blocks of {}; powers of two are supported", coding.block))
    }
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T, KernelError> {
    Err(KernelError::Unsupported { kernel: KERNEL, reason: reason.into() })
}

impl Problem {
    /// Products over `contract` contracted axes. The operands begin with `a`; each part has its `b` and, as the last
    /// of its operands, its result.
    pub(super) fn new(
        kernel: &'static str,
        operands: &[(Option<&Operand>, Side)],
        contract: usize,
    ) -> Result<Problem, KernelError> {
        let of =
            |wanted: Side| operands.iter().filter(move |(_, side)| *side == wanted).filter_map(|(o, _)| *o);
        let misfit = || {
            let views: Vec<_> = operands.iter().filter_map(|(o, _)| o.map(|o| &o.view)).collect();
            let reason = format!("operands {views:?} with {contract} contracted axes");
            KernelError::Unsupported { kernel, reason }
        };
        let (Some(a), Some(result)) = (of(Side::Left).next(), of(Side::Result(0)).next_back()) else {
            return Err(misfit());
        };
        let (a, result) = (&a.view, &result.view);
        let rank = result.shape.len();
        let &[.., m, k] = &a.shape[..] else { return Err(misfit()) };
        if rank < 2 + contract {
            return Err(misfit());
        }
        let outer = rank - 2 - contract;
        if result.shape[outer..rank - 2].iter().any(|d| *d != 1) {
            return Err(misfit());
        }
        // The iteration's shape: out's batch axes, then the contracted axes' sizes from the operands.
        let mut full = result.shape.clone();
        let mut n = vec![];
        while let (Some(b), Some(out)) =
            (of(Side::Right(n.len())).next(), of(Side::Result(n.len())).next_back())
        {
            let &[.., kb, nb] = &b.view.shape[..] else { return Err(misfit()) };
            let alike = out.view.shape.len() == rank && out.view.strides.len() == rank;
            if !alike || kb != k || out.view.shape[rank - 2..] != [m, nb] {
                return Err(misfit());
            }
            if out.view.shape[..rank - 2] != result.shape[..rank - 2] {
                return Err(misfit());
            }
            for (axis, size) in full.iter_mut().enumerate().skip(outer).take(contract) {
                let back = rank - axis;
                for operand in [a, &b.view] {
                    let at = operand.shape.len().checked_sub(back).and_then(|i| operand.shape.get(i));
                    if let Some(d) = at.filter(|d| **d != 1) {
                        *size = *d;
                    }
                }
            }
            count(kernel, &out.view.shape)?;
            n.push(nb);
        }
        let with = |batch: &[u32], rows: u32, columns: u32| {
            let mut shape = batch.to_vec();
            shape[rank - 2..].copy_from_slice(&[rows, columns]);
            shape
        };
        let mut strides = vec![];
        let mut inner = vec![];
        for (operand, side) in operands {
            let Some(view) = operand.map(|o| &o.view) else {
                strides.push(vec![0; rank]);
                inner.push([0; 3]);
                continue;
            };
            let width = |part: usize| n.get(part).copied().ok_or_else(misfit);
            let shape = match *side {
                Side::Left => with(&full, m, k),
                Side::Right(part) => with(&full, k, width(part)?),
                Side::Coding(part) => {
                    let rows = view.shape.len().checked_sub(2).map_or(1, |i| view.shape[i]);
                    with(&full, rows, width(part)?)
                }
                Side::Result(part) => with(&result.shape, m, width(part)?),
            };
            let own = match side {
                Side::Result(_) if view.shape == shape => view.strides.clone(),
                _ => broadcast(kernel, view, &shape)?,
            };
            inner.push([view.offset, own[rank - 2], own[rank - 1]]);
            strides.push(own);
        }
        let part = |range: std::ops::Range<usize>| -> Space {
            let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[range.clone()].to_vec()).collect();
            Space::merge(&full[range], &cut)
        };
        let batch = part(0..outer);
        let contract = part(outer..rank - 2).at_most(kernel, MAX_BATCH)?;
        let sides = operands.iter().map(|(_, side)| *side).collect();
        Ok(Problem { batch, contract, m, k, n, inner, sides })
    }

    /// Moves the innermost batch axis into the rows while no right operand has it and the others walk it
    /// in step with their rows.
    pub(super) fn join_rows(&mut self) {
        while let Some(size) = self.batch.shape.last().copied().filter(|d| *d != 1) {
            let last: Vec<u32> = self.batch.strides.iter().filter_map(|s| s.last().copied()).collect();
            let rows = self.m;
            let is_right = |side: &Side| matches!(side, Side::Right(_) | Side::Coding(_));
            let walks = |joined: bool| {
                last.iter().zip(&self.inner).zip(&self.sides).all(|((stride, inner), side)| match side {
                    side if is_right(side) => *stride == 0,
                    _ => !joined || *stride == inner[1].wrapping_mul(rows),
                })
            };
            // A single row has no stride of its own.
            let single = rows == 1 && walks(false);
            if !single && !walks(true) {
                return;
            }
            if single {
                for ((stride, inner), side) in last.iter().zip(self.inner.iter_mut()).zip(&self.sides) {
                    if !is_right(side) {
                        inner[1] = *stride;
                    }
                }
            }
            self.m = rows.saturating_mul(size);
            self.batch.shape.pop();
            self.batch.strides.iter_mut().for_each(|s| {
                s.pop();
            });
        }
        if self.batch.shape.is_empty() {
            self.batch = Space::merge(&[], &self.batch.strides);
        }
    }
}
