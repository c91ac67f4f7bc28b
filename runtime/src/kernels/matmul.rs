//! Batched matrix products: `out[.., m, n] = Σ_c Σ_k a[.., c, m, k] · b[.., c, k, n]`, with an epilogue.
//!
//! The units of a layer-parallel segment are a batch axis: one dispatch, whatever their number. A batch
//! axis of `a` that `b` does not have joins the rows.
//!
//! Bindings: `a`, `b`, `bias` (or `a` again), `residual` (or `a` again), `out`.

use super::layout::{Space, Words, broadcast, constant, count, expect, grid, touched};
use super::program::ElementOp;
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Scalar};

const KERNEL: &str = "matmul";
/// Batch axes, and contracted batch axes, after merging.
const MAX_BATCH: usize = 4;
/// Rows that the workgroup-per-columns kernel takes.
const GEMV_ROWS: u32 = 4;
/// Lanes that the kernel with subgroup operations is written for.
const LANES: u32 = 8;
/// Up to this many rows it would compute more than it saves.
const FEW_ROWS: u32 = 4;
/// Beyond this many rows it takes 32 at once, which repays a longer compilation, else 16.
const MANY_ROWS: u32 = 256;

/// A matrix product.
#[derive(Debug)]
pub struct Matmul<'a> {
    /// `[batch.., contracted.., M, K]`, f32; any strides.
    pub a: &'a Operand,
    /// `[batch.., contracted.., K, N]`, f32 or f16; any strides. Batch axes broadcast.
    pub b: &'a Operand,
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

struct Problem {
    batch: Space,
    contract: Space,
    m: u32,
    n: u32,
    k: u32,
    /// `[offset, row, column]` of a, b, out, bias, residual.
    inner: [[u32; 3]; 5],
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
        expect(KERNEL, "b", self.b, &[Scalar::F32, Scalar::F16])?;
        expect(KERNEL, "the result", self.out, &[Scalar::F32])?;
        for extra in [self.bias, self.residual].into_iter().flatten() {
            expect(KERNEL, "bias or residual", extra, &[Scalar::F32])?;
        }
        let misfit = || KernelError::Unsupported {
            kernel: KERNEL,
            reason: format!(
                "{:?} by {:?} into {:?} with {} contracted axes",
                self.a.view, self.b.view, self.out.view, self.contract
            ),
        };
        let out = &self.out.view;
        let rank = out.shape.len();
        let (&[.., m, k], &[.., kb, n]) = (&self.a.view.shape[..], &self.b.view.shape[..]) else {
            return Err(misfit());
        };
        if rank < 2 + self.contract || k != kb || out.shape[rank - 2..] != [m, n] || out.strides.len() != rank
        {
            return Err(misfit());
        }
        let outer = rank - 2 - self.contract;
        if out.shape[outer..rank - 2].iter().any(|d| *d != 1) {
            return Err(misfit());
        }
        // The iteration's shape: out's batch axes, then the contracted axes' sizes from the operands.
        let mut full = out.shape.clone();
        for (axis, size) in full.iter_mut().enumerate().skip(outer).take(self.contract) {
            let back = rank - axis;
            for operand in [&self.a.view, &self.b.view] {
                let at = operand.shape.len().checked_sub(back).and_then(|i| operand.shape.get(i));
                if let Some(d) = at.filter(|d| **d != 1) {
                    *size = *d;
                }
            }
        }
        count(KERNEL, &out.shape)?;
        let with = |m: u32, n: u32| {
            let mut shape = full.clone();
            shape[rank - 2..].copy_from_slice(&[m, n]);
            shape
        };
        let mut strides = vec![
            broadcast(KERNEL, &self.a.view, &with(m, k))?,
            broadcast(KERNEL, &self.b.view, &with(k, n))?,
            out.strides.clone(),
        ];
        for extra in [self.bias, self.residual] {
            strides.push(match extra {
                Some(operand) => broadcast(KERNEL, &operand.view, &out.shape)?,
                None => vec![0; rank],
            });
        }
        let offset = |operand: Option<&Operand>| operand.map_or(0, |o| o.view.offset);
        let offsets = [Some(self.a), Some(self.b), Some(self.out), self.bias, self.residual].map(offset);
        let mut inner = [[0; 3]; 5];
        for ((to, s), offset) in inner.iter_mut().zip(&strides).zip(offsets) {
            *to = [offset, s[rank - 2], s[rank - 1]];
        }
        let part = |range: std::ops::Range<usize>| -> Space {
            let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[range.clone()].to_vec()).collect();
            Space::merge(&full[range], &cut)
        };
        let batch = part(0..outer);
        let contract = part(outer..rank - 2).at_most(KERNEL, MAX_BATCH)?;
        let mut problem = Problem { batch, contract, m, n, k, inner };
        problem.join_rows();
        problem.batch = problem.batch.at_most(KERNEL, MAX_BATCH)?;
        Ok(problem)
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
        words = words.array(&contract.shape, 4).array(&contract.strides[0], 4).array(&contract.strides[1], 4);
        for view in inner {
            words = words.array(view, 4);
        }
        let sizes = [*m, *n, *k, contracted as u32, tiles[0], tiles[1], groups.min(u32::MAX.into()) as u32];
        let mut constants = vec![constant("WG", workgroup)];
        if variant != Variant::Tiled {
            constants.push(constant("ROWS", rows));
        }
        let flags = [
            ("B_HALF", self.b.scalar == Scalar::F16),
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
        if let Some(op) = self.activation {
            constants.push(constant("ACTIVATION", activation(op)?));
        }
        let operands = [Some(self.a), Some(self.b), self.bias, self.residual, Some(self.out)];
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params: words.array(&sizes, 8).done(),
            reads: 4,
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(*m) * u64::from(*n) * u64::from(*k) * batches * contracted,
            bytes: operands.into_iter().flatten().map(touched).sum(),
        })
    }
}

impl Problem {
    /// Moves the innermost batch axis into the rows while `b` does not have it and the others walk it
    /// in step with their rows.
    fn join_rows(&mut self) {
        while let Some(size) = self.batch.shape.last().copied().filter(|d| *d != 1) {
            let last: Vec<u32> = self.batch.strides.iter().filter_map(|s| s.last().copied()).collect();
            let rows = self.m;
            let joins =
                last.iter().zip(&self.inner).enumerate().all(|(operand, (stride, inner))| match operand {
                    1 => *stride == 0,
                    _ => *stride == inner[1].wrapping_mul(rows),
                });
            // A single row has no stride of its own.
            let single = rows == 1 && last.get(1) == Some(&0);
            if !joins && !single {
                return;
            }
            if single {
                for (operand, (stride, inner)) in last.iter().zip(self.inner.iter_mut()).enumerate() {
                    if operand != 1 {
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
