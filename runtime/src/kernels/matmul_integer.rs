//! Batched products of integer matrices: `out[.., m, n] = Σ_k (a[.., m, k] - za) · (b[.., k, n] - zb)`, exact, or
//! floats made of these sums.
//!
//! Bindings, those that are there: `a`, `b`, `zero_a`, `zero_b`, the two scales, `bias`, `residual`, `out`.

use super::layout::{Words, constant, expect, grid, touched};
use super::matmul::{Activation, MAX_BATCH, Problem, Side};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "matmul_integer";
const WORKGROUP: u32 = 64;
/// Invocations of a workgroup that divide the contraction among them,
const SLICED: u32 = 256;
/// and the fours of columns that they have.
const BLOCKS: u32 = 8;
/// Columns of an invocation.
const COLUMNS: u32 = 4;
/// Most rows of an invocation.
const ROWS: u32 = 4;
/// Lanes of a subgroup that load a row each, for all of them to multiply.
const LANES: u32 = 8;

/// What makes floats of the sums: `activation(sum · (scale · scale) + bias) · alpha + residual`. Operands broadcast
/// to `out`, f32.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Multiplied with each other first.
    pub scales: [Option<&'a Operand>; 2],
    /// Added first.
    pub bias: Option<&'a Operand>,
    /// Then applied.
    pub activation: Activation,
    /// Then multiplied with.
    pub alpha: f32,
    /// Added last.
    pub residual: Option<&'a Operand>,
}

/// A product of integers.
#[derive(Debug)]
pub struct MatmulInteger<'a> {
    /// `[batch.., M, K]`, integers of 8 bits at most in any form; any strides.
    pub a: &'a Operand,
    /// `[batch.., K, N]`, likewise. Batch axes broadcast.
    pub b: &'a Operand,
    /// Taken off `a`: broadcasts to `[batch.., M, 1]`.
    pub zero_a: Option<&'a Operand>,
    /// Taken off `b`: broadcasts to `[batch.., 1, N]`.
    pub zero_b: Option<&'a Operand>,
    /// None leaves the sums as they are.
    pub epilogue: Option<Epilogue<'a>>,
    /// `[batch.., M, N]`, f32 with an epilogue, else i32.
    pub out: &'a Operand,
}

impl MatmulInteger<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When shapes do not fit, operands are no integers, or more than four batch axes remain after merging.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        let integers = [Scalar::I8, Scalar::U8, Scalar::I4, Scalar::U4, Scalar::I32];
        for operand in [Some(self.a), Some(self.b), self.zero_a, self.zero_b].into_iter().flatten() {
            expect(KERNEL, "an operand", operand, &integers)?;
        }
        let [scale, other_scale] = self.epilogue.map_or([None; 2], |e| e.scales);
        let (bias, residual) = (self.epilogue.and_then(|e| e.bias), self.epilogue.and_then(|e| e.residual));
        for operand in [scale, other_scale, bias, residual].into_iter().flatten() {
            expect(KERNEL, "an operand of the epilogue", operand, &[Scalar::F32])?;
        }
        let made = if self.epilogue.is_some() { Scalar::F32 } else { Scalar::I32 };
        expect(KERNEL, "the result", self.out, &[made])?;
        // In the order of their bindings.
        let result = Side::Result(0);
        let operands = [
            (Some(self.a), Side::Left),
            (Some(self.b), Side::Right(0)),
            (self.zero_a, result),
            (self.zero_b, result),
            (scale, result),
            (other_scale, result),
            (bias, result),
            (residual, result),
            (Some(self.out), result),
        ];
        let mut problem = Problem::new(KERNEL, &operands, 0)?;
        problem.join_rows();
        let Problem { batch, m, n, k, inner, .. } = problem;
        let n = n[0];
        let batch = batch.at_most(KERNEL, MAX_BATCH)?;
        let batches: u64 = batch.shape.iter().map(|d| u64::from(*d)).product();
        // A software adapter loads what all lanes share for each of them.
        let shared = limits.software && limits.subgroup_size == LANES && m > ROWS;
        let few = !limits.software && m <= ROWS && SLICED <= limits.max_invocations;
        let (entry, workgroup, blocks, rows) = match (shared, few) {
            (true, _) => ("subgroup", LANES, LANES, LANES),
            (_, true) => ("gemv", SLICED, BLOCKS, m.max(1)),
            (false, false) => ("main", WORKGROUP, WORKGROUP, m.clamp(1, ROWS)),
        };
        let tiles = [n.div_ceil(COLUMNS * blocks), m.div_ceil(rows)];
        let groups = u64::from(tiles[0]) * u64::from(tiles[1]) * batches;
        let mut words = Words::new().array(&batch.shape, 4);
        for strides in &batch.strides {
            words = words.array(strides, 4);
        }
        for view in &inner {
            words = words.array(view, 4);
        }
        for size in [m, n, k, tiles[0], tiles[1], groups.min(u32::MAX.into()) as u32] {
            words = words.word(size);
        }
        let alpha = self.epilogue.map_or(1.0, |e| e.alpha);
        let mut constants = vec![constant("WG", workgroup), constant("ROWS", rows)];
        if entry == "gemv" {
            constants.push(constant("FOURS", blocks));
        }
        let forms = [
            ("A_FORM", Some(self.a)),
            ("B_FORM", Some(self.b)),
            ("ZERO_A_FORM", self.zero_a),
            ("ZERO_B_FORM", self.zero_b),
        ];
        for (name, operand) in forms {
            if let Some(form) = operand.map(|o| o.scalar.form()).filter(|f| *f != 0) {
                constants.push(constant(name, form));
            }
        }
        let choices = [
            ("ZERO_A", u32::from(self.zero_a.is_some())),
            ("ZERO_B", u32::from(self.zero_b.is_some())),
            ("FLOATS", u32::from(self.epilogue.is_some())),
            ("SCALES", u32::from(scale.is_some()) | u32::from(other_scale.is_some()) << 1),
            ("BIAS", u32::from(bias.is_some())),
            ("RESIDUAL", u32::from(residual.is_some())),
            ("ACTIVATION", self.epilogue.map_or(0, |e| e.activation as u32)),
            ("B_WORDS", u32::from(self.b_in_words(&batch.strides[1], &inner[1]))),
        ];
        constants.extend(choices.iter().filter(|(_, value)| *value != 0).map(|(name, v)| constant(name, *v)));
        let present = (1..).zip(&operands).filter(|(_, (operand, _))| operand.is_some()).map(|(n, _)| n);
        let mut reads: Vec<u32> = present.collect();
        let writes: Vec<u32> = reads.pop().into_iter().collect();
        let roles = Roles { reads, writes };
        let (needed, limit) = (roles.all().count() as u64, limits.max_storage_buffers.into());
        if needed > limit {
            return Err(KernelError::Limit { kernel: KERNEL, what: "number of buffers", needed, limit });
        }
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry, types: vec![], constants },
            params: words.float(alpha).done(),
            roles,
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(m) * u64::from(n) * u64::from(k) * batches,
            bytes: operands.into_iter().filter_map(|(operand, _)| operand).map(touched).sum(),
        })
    }

    /// Whether four columns of `b` from a multiple of four on are a word.
    fn b_in_words(&self, batch: &[u32], [offset, row, column]: &[u32; 3]) -> bool {
        let whole = batch.iter().chain([offset, row]).all(|n| n.is_multiple_of(4));
        matches!(self.b.scalar, Scalar::I8 | Scalar::U8) && *column == 1 && whole
    }
}
