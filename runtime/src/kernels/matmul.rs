//! Batched matrix products: `out[.., m, n] = Σ_c Σ_k a[.., c, m, k] · b[.., c, k, n]`, with an epilogue.
//!
//! The units of a layer-parallel segment are a batch axis: one dispatch, whatever their number. A batch
//! axis of `a` that `b` does not have joins the rows.
//!
//! `b` may be integers with a scale and a zero point per block of `K`: they stay integers in memory and become
//! floats when they are read.
//!
//! Bindings: `a`, `b`, `scale`, `zero`, `bias`, `residual` (each of these `a` again where absent), `out`.

use super::layout::{Space, Words, broadcast, constant, count, expect, grid, touched};
use super::program::ElementOp;
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "matmul";
/// Batch axes, and contracted batch axes, after merging.
pub(super) const MAX_BATCH: usize = 4;
/// Rows that the workgroup-per-columns kernel takes.
const GEMV_ROWS: u32 = 4;
/// Lanes that the kernel with subgroup operations is written for.
const LANES: u32 = 8;
/// Up to this many rows it would compute more than it saves.
const FEW_ROWS: u32 = 4;
/// Beyond this many rows it takes 32 at once, which repays a longer compilation, else 16.
const MANY_ROWS: u32 = 256;

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

/// A matrix product.
#[derive(Debug)]
pub struct Matmul<'a> {
    /// `[batch.., contracted.., M, K]`, f32; any strides.
    pub a: &'a Operand,
    /// `[batch.., contracted.., K, N]`, f32 or f16, or integers with a coding; any strides. Batch axes
    /// broadcast.
    pub b: &'a Operand,
    /// How the integers of `b` are read.
    pub coding: Option<Coding<'a>>,
    /// `[batch.., 1 per contracted axis.., M, N]`, f32.
    pub out: &'a Operand,
    /// The last `contract` batch axes are summed over.
    pub contract: usize,
    /// Adds to what `out` holds instead of replacing it.
    pub accumulate: bool,
    /// Added to the product; broadcasts to `out` (a row vector, or anything else). f32.
    pub bias: Option<&'a Operand>,
    /// Applied after the bias: a one-operand float operation.
    pub activation: Option<ElementOp>,
    /// Added last; broadcasts to `out`. f32. Must not be `out`'s buffer (use `accumulate`).
    pub residual: Option<&'a Operand>,
}

/// The kernels to choose from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// An invocation computes some rows by four columns; no workgroup memory.
    Software,
    /// A subgroup of eight lanes computes 16 or 32 rows by 32 columns; lanes share what they load.
    Subgroup,
    /// A workgroup computes up to four rows by 32 columns, its invocations dividing the contraction.
    Gemv,
    /// A workgroup computes a 64×64 tile through workgroup memory.
    Tiled,
}

/// The operands of a product: places in [`Problem`].
pub(super) const OPERANDS: usize = 7;
/// Those that vary with `b` and not with the rows: `b` itself, scale, zero point.
const OF_B: [usize; 3] = [1, 5, 6];

pub(super) struct Problem {
    pub(super) batch: Space,
    pub(super) contract: Space,
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    /// `[offset, row, column]` of a, b, out, bias, residual, scale, zero.
    pub(super) inner: [[u32; 3]; OPERANDS],
}

impl Matmul<'_> {
    /// The dispatch, with the variant that suits the device and the shape.
    ///
    /// # Errors
    /// When shapes do not fit, element types are others than documented, or more than four batch axes
    /// (or contracted axes) remain after merging.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        let problem = self.problem()?;
        let variant = match (limits.software, problem.m) {
            (true, m) if m > FEW_ROWS && limits.subgroup_size == LANES => Variant::Subgroup,
            (true, _) => Variant::Software,
            (false, 0..=GEMV_ROWS) => Variant::Gemv,
            (false, _) => Variant::Tiled,
        };
        self.build(&problem, variant, limits)
    }

    /// The dispatch in a given variant.
    ///
    /// # Errors
    /// As [`Matmul::launch`].
    pub fn launch_as(&self, variant: Variant, limits: &Limits) -> Result<Launch, KernelError> {
        self.build(&self.problem()?, variant, limits)
    }

    fn problem(&self) -> Result<Problem, KernelError> {
        expect(KERNEL, "a", self.a, &[Scalar::F32])?;
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
        let coding = [self.coding.map(|c| c.scale), self.coding.and_then(|c| c.zero)];
        let mut problem = Problem::new(
            KERNEL,
            [self.a, self.b, self.out],
            self.contract,
            [self.bias, self.residual],
            coding,
        )?;
        problem.join_rows();
        problem.batch = problem.batch.at_most(KERNEL, MAX_BATCH)?;
        Ok(problem)
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
        let reason = format!("blocks of {}; powers of two are supported", coding.block);
        Err(KernelError::Unsupported { kernel: KERNEL, reason })
    }

    fn build(&self, problem: &Problem, variant: Variant, limits: &Limits) -> Result<Launch, KernelError> {
        let Problem { batch, contract, m, n, k, inner } = problem;
        let batches: u64 = batch.shape.iter().map(|d| u64::from(*d)).product();
        let contracted: u64 = contract.shape.iter().map(|d| u64::from(*d)).product();
        let (entry, workgroup, rows, columns) = match variant {
            Variant::Subgroup => ("subgroup", LANES, if *m > MANY_ROWS { 32 } else { 16 }, 4 * LANES),
            // Few rows leave registers for nothing else; more rows reuse each element of b.
            Variant::Software => ("software", 32, (*m).clamp(1, 8), 4 * 32),
            Variant::Gemv => ("gemv", 256, (*m).clamp(1, GEMV_ROWS), 32),
            Variant::Tiled => ("tiled", 256, 64, 64),
        };
        if variant == Variant::Subgroup && limits.subgroup_size != LANES {
            let (needed, limit) = (LANES.into(), limits.subgroup_size.into());
            return Err(KernelError::Limit { kernel: KERNEL, what: "subgroup", needed, limit });
        }
        if workgroup > limits.max_invocations {
            let (needed, limit) = (workgroup.into(), limits.max_invocations.into());
            return Err(KernelError::Limit { kernel: KERNEL, what: "workgroup", needed, limit });
        }
        let tiles = [n.div_ceil(columns), m.div_ceil(rows)];
        let groups = u64::from(tiles[0]) * u64::from(tiles[1]) * batches;
        let mut words = Words::new().array(&batch.shape, 4);
        for strides in &batch.strides {
            words = words.array(strides, 4);
        }
        words = words.array(&contract.shape, 4);
        for operand in [0, 1, 5, 6] {
            words = words.array(&contract.strides[operand], 4);
        }
        for view in inner {
            words = words.array(view, 4);
        }
        let groups_word = groups.min(u32::MAX.into()) as u32;
        let sizes = [*m, *n, *k, contracted as u32, tiles[0], tiles[1], groups_word, self.shift()?];
        let mut constants = vec![constant("WG", workgroup)];
        if variant != Variant::Tiled {
            constants.push(constant("ROWS", rows));
        }
        let flags = [
            ("ACCUMULATE", self.accumulate),
            ("BIAS", self.bias.is_some()),
            ("RESIDUAL", self.residual.is_some()),
            ("A_ALONG_K", variant == Variant::Tiled && inner[0][2] == 1),
            (
                "B_ALONG_K",
                matches!(variant, Variant::Gemv | Variant::Tiled) && inner[1][1] == 1 && inner[1][2] != 1,
            ),
        ];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        let forms = [
            ("B_FORM", Some(self.b)),
            ("SCALE_FORM", self.coding.map(|c| c.scale)),
            ("ZERO_FORM", self.coding.and_then(|c| c.zero)),
        ];
        for (name, operand) in forms {
            if let Some(form) = operand.map(|o| o.scalar.form()).filter(|f| *f != 0) {
                constants.push(constant(name, form));
            }
        }
        if let Some(coding) = self.coding {
            constants.push(constant("CODED", if coding.zero.is_some() { 2 } else { 1 }));
        }
        if let Some(op) = self.activation {
            constants.push(constant("ACTIVATION", activation(op)?));
        }
        let coding = [self.coding.map(|c| c.scale), self.coding.and_then(|c| c.zero)];
        let operands = [Some(self.a), Some(self.b), self.bias, self.residual, Some(self.out)];
        let operands = operands.into_iter().chain(coding);
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params: words.array(&sizes, 8).done(),
            roles: Roles::first(6, 1),
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(*m) * u64::from(*n) * u64::from(*k) * batches * contracted,
            bytes: operands.flatten().map(touched).sum(),
        })
    }
}

impl Problem {
    /// The product of `[a, b, out]` over `contract` contracted axes, with operands that broadcast to `out` and
    /// two that broadcast to `b` but for its rows.
    pub(super) fn new(
        kernel: &'static str,
        [a, b, out]: [&Operand; 3],
        contract: usize,
        like_out: [Option<&Operand>; 2],
        like_b: [Option<&Operand>; 2],
    ) -> Result<Problem, KernelError> {
        let misfit = || KernelError::Unsupported {
            kernel,
            reason: format!(
                "{:?} by {:?} into {:?} with {contract} contracted axes",
                a.view, b.view, out.view
            ),
        };
        let result = &out.view;
        let rank = result.shape.len();
        let (&[.., m, k], &[.., kb, n]) = (&a.view.shape[..], &b.view.shape[..]) else {
            return Err(misfit());
        };
        if rank < 2 + contract
            || k != kb
            || result.shape[rank - 2..] != [m, n]
            || result.strides.len() != rank
        {
            return Err(misfit());
        }
        let outer = rank - 2 - contract;
        if result.shape[outer..rank - 2].iter().any(|d| *d != 1) {
            return Err(misfit());
        }
        // The iteration's shape: out's batch axes, then the contracted axes' sizes from the operands.
        let mut full = result.shape.clone();
        for (axis, size) in full.iter_mut().enumerate().skip(outer).take(contract) {
            let back = rank - axis;
            for operand in [&a.view, &b.view] {
                let at = operand.shape.len().checked_sub(back).and_then(|i| operand.shape.get(i));
                if let Some(d) = at.filter(|d| **d != 1) {
                    *size = *d;
                }
            }
        }
        count(kernel, &result.shape)?;
        let with = |m: u32, n: u32| {
            let mut shape = full.clone();
            shape[rank - 2..].copy_from_slice(&[m, n]);
            shape
        };
        let mut strides = vec![
            broadcast(kernel, &a.view, &with(m, k))?,
            broadcast(kernel, &b.view, &with(k, n))?,
            result.strides.clone(),
        ];
        for extra in like_out {
            strides.push(match extra {
                Some(operand) => broadcast(kernel, &operand.view, &result.shape)?,
                None => vec![0; rank],
            });
        }
        for extra in like_b {
            strides.push(match extra.map(|o| &o.view) {
                Some(view) => {
                    let rows = view.shape.len().checked_sub(2).map_or(1, |i| view.shape[i]);
                    broadcast(kernel, view, &with(rows, n))?
                }
                None => vec![0; rank],
            });
        }
        let offset = |operand: Option<&Operand>| operand.map_or(0, |o| o.view.offset);
        let [bias, residual] = like_out;
        let [scale, zero] = like_b;
        let offsets = [Some(a), Some(b), Some(out), bias, residual, scale, zero].map(offset);
        let mut inner = [[0; 3]; OPERANDS];
        for ((to, s), offset) in inner.iter_mut().zip(&strides).zip(offsets) {
            *to = [offset, s[rank - 2], s[rank - 1]];
        }
        let part = |range: std::ops::Range<usize>| -> Space {
            let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[range.clone()].to_vec()).collect();
            Space::merge(&full[range], &cut)
        };
        let batch = part(0..outer);
        let contract = part(outer..rank - 2).at_most(kernel, MAX_BATCH)?;
        Ok(Problem { batch, contract, m, n, k, inner })
    }

    /// Moves the innermost batch axis into the rows while `b` does not have it and the others walk it
    /// in step with their rows.
    pub(super) fn join_rows(&mut self) {
        while let Some(size) = self.batch.shape.last().copied().filter(|d| *d != 1) {
            let last: Vec<u32> = self.batch.strides.iter().filter_map(|s| s.last().copied()).collect();
            let rows = self.m;
            let joins =
                last.iter().zip(&self.inner).enumerate().all(|(operand, (stride, inner))| match operand {
                    operand if OF_B.contains(&operand) => *stride == 0,
                    _ => *stride == inner[1].wrapping_mul(rows),
                });
            // A single row has no stride of its own.
            let single = rows == 1 && last.get(1) == Some(&0);
            if !joins && !single {
                return;
            }
            if single {
                for (operand, (stride, inner)) in last.iter().zip(self.inner.iter_mut()).enumerate() {
                    if !OF_B.contains(&operand) {
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

/// The kernel's code of an activation.
fn activation(op: ElementOp) -> Result<u32, KernelError> {
    use ElementOp as E;
    Ok(match op {
        E::Copy => 0,
        E::Relu => 1,
        E::Silu => 2,
        E::GeluErf => 3,
        E::GeluTanh => 4,
        E::Sigmoid => 5,
        E::Tanh => 6,
        other => {
            let reason = format!("{other:?} as an epilogue");
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        }
    })
}
