//! Elementwise programs over strided views: chains of arithmetic, and also copies, transposes, pieces of
//! a concatenation, expansions, slices, fills, ranges, masks from positions, and packed elements as words.
//!
//! Bindings: the buffers read, in order; the results, in order.

use super::layout::{MAX_RANK, Space, Words, broadcast, constant, count, exactly, expect, grid, touched};
use super::program::{MAX_INDICES, MAX_INPUTS, MAX_STEPS, Program, Reg};
use super::{KernelError, Launch, Limits, Operand, PipelineKey, Roles, Scalar, View};

const KERNEL: &str = "elementwise";
const WORKGROUP: u32 = 64;
/// Up to this many elements a software adapter interprets the program, which spares it a compilation.
const INTERPRET: u32 = 1 << 12;

/// A program with its operands.
#[derive(Debug)]
pub struct Elementwise<'a> {
    /// What is computed.
    pub program: &'a Program,
    /// Buffers, of any type, each broadcastable to the results' shape.
    pub inputs: &'a [&'a Operand],
    /// Index inputs: the *address* that the view gives a position is the value. A view of strides
    /// `[0, 1]` and offset 3 is `3 + column`.
    pub indices: &'a [&'a View],
    /// Where the results go: one shape, any strides.
    pub outputs: &'a [&'a Operand],
}

const OPS: [&str; MAX_STEPS] = [
    "OP0", "OP1", "OP2", "OP3", "OP4", "OP5", "OP6", "OP7", "OP8", "OP9", "OP10", "OP11", "OP12", "OP13",
    "OP14", "OP15",
];
const REGS: [[&str; 3]; MAX_STEPS] = [
    ["A0", "B0", "C0"],
    ["A1", "B1", "C1"],
    ["A2", "B2", "C2"],
    ["A3", "B3", "C3"],
    ["A4", "B4", "C4"],
    ["A5", "B5", "C5"],
    ["A6", "B6", "C6"],
    ["A7", "B7", "C7"],
    ["A8", "B8", "C8"],
    ["A9", "B9", "C9"],
    ["A10", "B10", "C10"],
    ["A11", "B11", "C11"],
    ["A12", "B12", "C12"],
    ["A13", "B13", "C13"],
    ["A14", "B14", "C14"],
    ["A15", "B15", "C15"],
];
const FORM: [&str; MAX_INPUTS] = ["FORM0", "FORM1", "FORM2", "FORM3", "FORM4", "FORM5"];
const ENTRIES: [[&str; 2]; MAX_INPUTS + 1] = [
    ["in0_out1", "in0_out2"],
    ["in1_out1", "in1_out2"],
    ["in2_out1", "in2_out2"],
    ["in3_out1", "in3_out2"],
    ["in4_out1", "in4_out2"],
    ["in5_out1", "in5_out2"],
    ["in6_out1", "in6_out2"],
];
const FIRST_INDEX: usize = MAX_INPUTS;
const FIRST_CONSTANT: usize = FIRST_INDEX + MAX_INDICES;
const FIRST_STEP: usize = 16;
const FIRST_OUTPUT: usize = 8;
const SLOTS: usize = 10;

/// The number of a register in the kernel.
fn number(reg: Reg) -> u32 {
    let (base, n) = match reg {
        Reg::Input(n) => (0, n),
        Reg::Index(n) => (FIRST_INDEX, n),
        Reg::Constant(n) => (FIRST_CONSTANT, n),
        Reg::Step(n) => (FIRST_STEP, n),
    };
    base as u32 + u32::from(n)
}

impl Elementwise<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When the program is not valid, its operands differ in number from the program's, do not
    /// broadcast to the results' shape, or do not merge to [`MAX_RANK`] axes.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        self.program.validate()?;
        let program = self.program;
        let given = (self.inputs.len(), self.indices.len(), self.outputs.len());
        let wanted = (program.inputs, program.indices, program.results.len());
        let Some(first) = self.outputs.first().filter(|_| given == wanted) else {
            let reason = format!("(inputs, indices, results) are {given:?}, the program has {wanted:?}");
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        };
        let shape = &first.view.shape;
        let total = count(KERNEL, shape)?;

        let mut strides = Vec::with_capacity(SLOTS);
        let mut slots = Vec::with_capacity(SLOTS);
        let mut offsets = [0; 12];
        for (n, input) in self.inputs.iter().enumerate() {
            strides.push(broadcast(KERNEL, &input.view, shape)?);
            slots.push(n);
            offsets[n] = input.view.offset;
        }
        for (n, view) in self.indices.iter().enumerate() {
            strides.push(broadcast(KERNEL, view, shape)?);
            slots.push(FIRST_INDEX + n);
            offsets[FIRST_INDEX + n] = view.offset;
        }
        for (n, out) in self.outputs.iter().enumerate() {
            expect(KERNEL, "a result", out, &[Scalar::F32, Scalar::I32, Scalar::Bool])?;
            strides.push(exactly(KERNEL, &out.view, shape)?);
            slots.push(FIRST_OUTPUT + n);
            offsets[FIRST_OUTPUT + n] = out.view.offset;
        }
        let space = Space::merge(shape, &strides).at_most(KERNEL, MAX_RANK)?;

        let mut table = vec![0; SLOTS * MAX_RANK];
        for (slot, strides) in slots.iter().zip(&space.strides) {
            table[slot * MAX_RANK..slot * MAX_RANK + strides.len()].copy_from_slice(strides);
        }
        let interpret = limits.software && total <= INTERPRET && !program.steps.is_empty();
        let mut steps = vec![];
        if interpret {
            steps.extend(
                program.steps.iter().flat_map(|s| [s.op as u32, number(s.a), number(s.b), number(s.c)]),
            );
        }
        let results: Vec<u32> = program.results.iter().map(|r| number(*r)).collect();
        let params = Words::new()
            .array(&space.shape, MAX_RANK)
            .array(&table, SLOTS * MAX_RANK)
            .array(&offsets, 12)
            .array(&program.constants, 8)
            .array(&steps, 4 * MAX_STEPS)
            .array(&if interpret { results.clone() } else { vec![] }, 4)
            .word(total)
            .word(if interpret { program.steps.len() as u32 } else { 0 })
            .done();

        let mut constants = vec![constant("RANK", space.shape.len() as u32), constant("WG", WORKGROUP)];
        for (name, input) in FORM.iter().zip(self.inputs).filter(|(_, i)| i.scalar.is_packed()) {
            constants.push(constant(name, input.scalar.form()));
        }
        if interpret {
            constants.push(constant("INTERPRET", 1));
        } else {
            constants.push(constant("STEPS", program.steps.len() as u32));
            for (n, s) in program.steps.iter().enumerate() {
                constants.push(constant(OPS[n], s.op as u32));
                let regs = REGS[n].iter().zip([s.a, s.b, s.c]);
                constants.extend(regs.map(|(name, reg)| constant(name, number(reg))));
            }
            let names = ["RESULT0", "RESULT1"].iter().zip(&results);
            constants.extend(names.map(|(name, reg)| constant(name, *reg)));
        }
        Ok(Launch {
            pipeline: PipelineKey {
                source: KERNEL,
                entry: ENTRIES[self.inputs.len()][self.outputs.len() - 1],
                types: vec![],
                constants,
            },
            params,
            roles: Roles::first(self.inputs.len() as u32, self.outputs.len() as u32),
            grid: grid(KERNEL, u64::from(total).div_ceil(u64::from(WORKGROUP)), limits)?,
            flops: u64::from(total) * program.steps.len() as u64,
            bytes: self.inputs.iter().chain(self.outputs).map(|o| touched(o)).sum(),
        })
    }
}
