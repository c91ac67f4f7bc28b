//! Batched products of integer matrices: `out[.., m, n] = Σ_k (a[.., m, k] - za) · (b[.., k, n] - zb)`, exact.
//!
//! Bindings: `a`, `b`, `zero_a`, `zero_b` (each of these `a` again where absent), `out`.

use super::layout::{Words, constant, expect, grid, touched};
use super::matmul::{MAX_BATCH, Problem, Side};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar};

const KERNEL: &str = "matmul_integer";
const WORKGROUP: u32 = 64;
/// Columns of an invocation.
const COLUMNS: u32 = 4;
/// Most rows of an invocation.
const ROWS: u32 = 4;

/// A product of integers.
#[derive(Debug)]
pub struct MatmulInteger<'a> {
    /// `[batch.., M, K]`, integers of any form; any strides.
    pub a: &'a Operand,
    /// `[batch.., K, N]`, likewise. Batch axes broadcast.
    pub b: &'a Operand,
    /// Taken off `a`: broadcasts to `[batch.., M, 1]`.
    pub zero_a: Option<&'a Operand>,
    /// Taken off `b`: broadcasts to `[batch.., 1, N]`.
    pub zero_b: Option<&'a Operand>,
    /// `[batch.., M, N]`, i32.
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
        expect(KERNEL, "the result", self.out, &[Scalar::I32])?;
        let result = Side::Result(0);
        let operands = [
            (Some(self.a), Side::Left),
            (Some(self.b), Side::Right(0)),
            (self.zero_a, result),
            (self.zero_b, result),
            (Some(self.out), result),
        ];
        let mut problem = Problem::new(KERNEL, &operands, 0)?;
        problem.join_rows();
        let Problem { batch, m, n, k, inner, .. } = problem;
        let n = n[0];
        let batch = batch.at_most(KERNEL, MAX_BATCH)?;
        let batches: u64 = batch.shape.iter().map(|d| u64::from(*d)).product();
        let rows = m.clamp(1, ROWS);
        let tiles = [n.div_ceil(COLUMNS * WORKGROUP), m.div_ceil(rows)];
        let groups = u64::from(tiles[0]) * u64::from(tiles[1]) * batches;
        let mut words = Words::new().array(&batch.shape, 4);
        // a, b, the result, the zero points.
        let order = [0, 1, 4, 2, 3];
        for operand in order {
            words = words.array(&batch.strides[operand], 4);
        }
        for operand in order {
            words = words.array(&inner[operand], 4);
        }
        let sizes = [m, n, k, tiles[0], tiles[1], groups.min(u32::MAX.into()) as u32];
        let mut constants = vec![constant("WG", WORKGROUP), constant("ROWS", rows)];
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
        let flags = [("ZERO_A", self.zero_a.is_some()), ("ZERO_B", self.zero_b.is_some())];
        constants.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| constant(name, 1)));
        let operands = [Some(self.a), Some(self.b), self.zero_a, self.zero_b, Some(self.out)];
        Ok(Launch {
            pipeline: PipelineKey { source: KERNEL, entry: "main", types: vec![], constants },
            params: words.array(&sizes, 8).done(),
            roles: Roles::first(4, 1),
            grid: grid(KERNEL, groups, limits)?,
            flops: 2 * u64::from(m) * u64::from(n) * u64::from(k) * batches,
            bytes: operands.into_iter().flatten().map(touched).sum(),
        })
    }
}
