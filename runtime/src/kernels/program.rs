//! Fused elementwise programs: what one dispatch of the elementwise kernel computes per element.

use snlp_passes::ir::{Binary, DType, Unary};

use super::{KernelError, Scalar};

/// Most buffers a program reads.
pub const MAX_INPUTS: usize = 6;
/// Most index inputs of a program.
pub const MAX_INDICES: usize = 2;
/// Most constants of a program.
pub const MAX_CONSTANTS: usize = 8;
/// Most steps of a program.
pub const MAX_STEPS: usize = 16;
/// Most results of a program.
pub const MAX_RESULTS: usize = 2;

const KERNEL: &str = "elementwise";

/// Where a step's operand comes from. Registers are 32-bit words; the operation gives them their type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reg {
    /// The n-th buffer read.
    Input(u8),
    /// The n-th index input: an i32 computed from the position.
    Index(u8),
    /// The n-th constant.
    Constant(u8),
    /// The result of the n-th step.
    Step(u8),
}

/// What a step computes from operands `a`, `b`, `c`. Suffixes tell types apart: `F` f32, `I` i32 (and
/// bool, which is 0 or 1). The discriminants are the kernel's op codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum ElementOp {
    /// `a`, whatever its type.
    Copy = 0,
    NegF = 1,
    AbsF = 2,
    SignF = 3,
    Exp = 4,
    Log = 5,
    Sqrt = 6,
    Reciprocal = 7,
    Sin = 8,
    Cos = 9,
    Tan = 10,
    Asin = 11,
    Acos = 12,
    Atan = 13,
    Sinh = 14,
    Cosh = 15,
    Asinh = 16,
    Acosh = 17,
    Atanh = 18,
    Tanh = 19,
    Erf = 20,
    Floor = 21,
    Ceil = 22,
    Round = 23,
    Relu = 24,
    Sigmoid = 25,
    Softplus = 26,
    Softsign = 27,
    Mish = 28,
    Silu = 29,
    GeluErf = 30,
    GeluTanh = 31,
    HardSwish = 32,
    /// Rounds to the nearest f16 (ties to even), as f32.
    RoundF16 = 33,
    /// Rounds to the nearest bf16 (ties to even), as f32.
    RoundBf16 = 34,
    /// `b` is alpha.
    Swish = 35,
    /// `b` is alpha.
    LeakyRelu = 36,
    /// `b` is alpha.
    Elu = 37,
    /// `b` is alpha.
    Celu = 38,
    /// `b` is alpha, `c` gamma.
    Selu = 39,
    /// `b` is alpha.
    ThresholdedRelu = 40,
    /// `b` is alpha, `c` beta.
    HardSigmoid = 41,
    IsNan = 42,
    /// `a` is +inf.
    IsPosInf = 43,
    /// `a` is -inf.
    IsNegInf = 44,
    AddF = 45,
    SubF = 46,
    MulF = 47,
    DivF = 48,
    PowF = 49,
    ModF = 50,
    FmodF = 51,
    MinF = 52,
    MaxF = 53,
    PRelu = 54,
    EqF = 55,
    LtF = 56,
    LeF = 57,
    /// `a * b + c`.
    MulAddF = 58,
    /// `min(max(a, b), c)`; a NaN in `a` stays.
    ClipF = 59,
    NegI = 60,
    AbsI = 61,
    SignI = 62,
    AddI = 63,
    SubI = 64,
    MulI = 65,
    DivI = 66,
    ModI = 67,
    FmodI = 68,
    MinI = 69,
    MaxI = 70,
    EqI = 71,
    LtI = 72,
    LeI = 73,
    AndI = 74,
    OrI = 75,
    XorI = 76,
    NotI = 77,
    ShlI = 78,
    /// Arithmetic shift.
    ShrI = 79,
    ClipI = 80,
    PowI = 81,
    /// Logical not of a bool.
    NotB = 82,
    /// `b` where the bool `a` holds, `c` elsewhere; of any type.
    Select = 83,
    /// f32 to i32, towards zero, saturating; NaN gives 0.
    FToI = 84,
    IToF = 85,
    FToB = 86,
    IToB = 87,
    /// Low `b` bits of `a`, sign-extended (casts to narrow signed integers).
    SignExtend = 88,
}

/// One step: `r[n] = op(a, b, c)`; operands an operation does not have are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub struct Step {
    pub op: ElementOp,
    pub a: Reg,
    pub b: Reg,
    pub c: Reg,
}

/// A straight-line program over the elements of one index space.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Program {
    /// Number of buffers read (at most [`MAX_INPUTS`]).
    pub inputs: usize,
    /// Number of index inputs (at most [`MAX_INDICES`]).
    pub indices: usize,
    /// Bits of the constants (at most [`MAX_CONSTANTS`]).
    pub constants: Vec<u32>,
    /// In order (at most [`MAX_STEPS`]).
    pub steps: Vec<Step>,
    /// What is written (1 to [`MAX_RESULTS`]).
    pub results: Vec<Reg>,
}

fn unsupported(reason: impl Into<String>) -> KernelError {
    KernelError::Unsupported { kernel: KERNEL, reason: reason.into() }
}

impl Program {
    /// An empty program that reads `inputs` buffers.
    pub fn new(inputs: usize) -> Self {
        Program { inputs, ..Program::default() }
    }

    /// The program that copies one input to one result.
    pub fn copy() -> Self {
        Program { inputs: 1, results: vec![Reg::Input(0)], ..Program::default() }
    }

    /// Adds an index input.
    pub fn index(&mut self) -> Reg {
        self.indices += 1;
        Reg::Index((self.indices - 1) as u8)
    }

    /// The register of a constant of these bits; equal constants share one.
    pub fn constant(&mut self, bits: u32) -> Reg {
        let at = self.constants.iter().position(|c| *c == bits).unwrap_or_else(|| {
            self.constants.push(bits);
            self.constants.len() - 1
        });
        Reg::Constant(at as u8)
    }

    /// The register of a float constant.
    pub fn float(&mut self, value: f32) -> Reg {
        self.constant(value.to_bits())
    }

    /// The register of an integer or bool constant.
    pub fn int(&mut self, value: i32) -> Reg {
        self.constant(value as u32)
    }

    /// Adds a step and returns its register. Operands that the operation lacks repeat the last one.
    pub fn step(&mut self, op: ElementOp, operands: &[Reg]) -> Reg {
        let at = |n: usize| operands.get(n).or(operands.last()).copied().unwrap_or(Reg::Input(0));
        self.steps.push(Step { op, a: at(0), b: at(1), c: at(2) });
        Reg::Step((self.steps.len() - 1) as u8)
    }

    /// Adds `u(x)` for an operand of type `scalar`; the result's type follows the operator.
    pub fn unary(&mut self, u: Unary, x: Reg, scalar: Scalar) -> Result<Reg, KernelError> {
        use ElementOp as E;
        match scalar {
            Scalar::F32 | Scalar::F16 => {
                let (op, params) = float_unary(u)?;
                if let (Unary::IsInf { negative: true, positive: true }, _) = (u, op) {
                    let x = self.step(E::AbsF, &[x]);
                    return Ok(self.step(E::IsPosInf, &[x]));
                }
                if let Unary::IsInf { negative: false, positive: false } = u {
                    return Ok(self.int(0));
                }
                let operands: Vec<Reg> =
                    std::iter::once(x).chain(params.iter().map(|p| self.float(*p))).collect();
                Ok(self.step(op, &operands))
            }
            Scalar::I32 | Scalar::I8 | Scalar::U8 | Scalar::I4 | Scalar::U4 => {
                let op = match u {
                    Unary::Neg => E::NegI,
                    Unary::Abs => E::AbsI,
                    Unary::Sign => E::SignI,
                    Unary::BitwiseNot => E::NotI,
                    Unary::Relu => {
                        let zero = self.int(0);
                        return Ok(self.step(E::MaxI, &[x, zero]));
                    }
                    other => return Err(unsupported(format!("{other:?} of integers"))),
                };
                Ok(self.step(op, &[x]))
            }
            Scalar::Bool if u == Unary::Not => Ok(self.step(E::NotB, &[x])),
            Scalar::Bool => Err(unsupported(format!("{u:?} of bools"))),
        }
    }

    /// Adds `b(x, y)` for operands of type `scalar`.
    pub fn binary(&mut self, b: Binary, x: Reg, y: Reg, scalar: Scalar) -> Result<Reg, KernelError> {
        let (op, swap) = match scalar {
            Scalar::F32 | Scalar::F16 => float_binary(b),
            _ => int_binary(b, scalar == Scalar::Bool),
        }
        .ok_or_else(|| unsupported(format!("{b:?} of {scalar:?}")))?;
        Ok(if swap { self.step(op, &[y, x]) } else { self.step(op, &[x, y]) })
    }

    /// Adds a cast; int64 lives in 32 bits, f64 in f32. The result is of type [`scalar_of`] `(to)`.
    pub fn cast(&mut self, x: Reg, from: Scalar, to: DType) -> Reg {
        use ElementOp as E;
        let float = matches!(from, Scalar::F32 | Scalar::F16);
        let narrow = |program: &mut Self, bits: i32| {
            let x = if float { program.step(E::FToI, &[x]) } else { x };
            let bits = program.int(bits);
            program.step(E::SignExtend, &[x, bits])
        };
        let mask = |program: &mut Self, mask: i32| {
            let x = if float { program.step(E::FToI, &[x]) } else { x };
            let mask = program.int(mask);
            program.step(E::AndI, &[x, mask])
        };
        match to {
            DType::Bool if float => self.step(E::FToB, &[x]),
            DType::Bool if from == Scalar::I32 => self.step(E::IToB, &[x]),
            DType::F16 | DType::BF16 => {
                let x = if float { x } else { self.step(E::IToF, &[x]) };
                self.step(if to == DType::F16 { E::RoundF16 } else { E::RoundBf16 }, &[x])
            }
            DType::F32 | DType::F64 if !float => self.step(E::IToF, &[x]),
            DType::I8 if from != Scalar::Bool => narrow(self, 8),
            DType::I16 if from != Scalar::Bool => narrow(self, 16),
            DType::I4 if from != Scalar::Bool => narrow(self, 4),
            DType::U4 if from != Scalar::Bool => mask(self, 0xf),
            DType::U8 if from != Scalar::Bool => mask(self, 0xff),
            DType::U16 if from != Scalar::Bool => mask(self, 0xffff),
            DType::I32 | DType::I64 | DType::U32 | DType::U64 if float => self.step(E::FToI, &[x]),
            _ => x,
        }
    }

    /// Checks that registers are written before they are read, and that the maxima hold.
    pub fn validate(&self) -> Result<(), KernelError> {
        let sizes = [
            ("inputs", self.inputs, MAX_INPUTS),
            ("index inputs", self.indices, MAX_INDICES),
            ("constants", self.constants.len(), MAX_CONSTANTS),
            ("steps", self.steps.len(), MAX_STEPS),
            ("results", self.results.len(), MAX_RESULTS),
        ];
        if let Some((what, n, most)) = sizes.iter().find(|(_, n, most)| n > most) {
            return Err(unsupported(format!("{n} {what}; at most {most} are supported")));
        }
        if self.results.is_empty() {
            return Err(unsupported("a program without a result"));
        }
        let known = |reg: Reg, steps: usize| match reg {
            Reg::Input(n) => usize::from(n) < self.inputs,
            Reg::Index(n) => usize::from(n) < self.indices,
            Reg::Constant(n) => usize::from(n) < self.constants.len(),
            Reg::Step(n) => usize::from(n) < steps,
        };
        for (n, s) in self.steps.iter().enumerate() {
            let unused = arity(s.op);
            if let Some(reg) = [s.a, s.b, s.c].into_iter().take(unused).find(|r| !known(*r, n)) {
                return Err(unsupported(format!("step {n} reads {reg:?}, which has no value yet")));
            }
        }
        match self.results.iter().find(|r| !known(**r, self.steps.len())) {
            Some(reg) => Err(unsupported(format!("the result {reg:?} has no value"))),
            None => Ok(()),
        }
    }

    /// Whether another program's steps would fit behind this one's (an upper bound: it may share
    /// constants).
    pub fn has_room_for(&self, inputs: usize, constants: usize, steps: usize) -> bool {
        self.inputs + inputs <= MAX_INPUTS
            && self.constants.len() + constants <= MAX_CONSTANTS
            && self.steps.len() + steps <= MAX_STEPS
    }
}

/// How the device stores a dtype; f16 *results* are f32 rounded to f16 precision.
pub fn scalar_of(dtype: DType) -> Scalar {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => Scalar::F32,
        DType::Bool => Scalar::Bool,
        _ => Scalar::I32,
    }
}

/// Number of operands of an operation.
pub fn arity(op: ElementOp) -> usize {
    use ElementOp as E;
    match op {
        E::Selu | E::HardSigmoid | E::MulAddF | E::ClipF | E::ClipI | E::Select => 3,
        E::Swish | E::LeakyRelu | E::Elu | E::Celu | E::ThresholdedRelu | E::SignExtend => 2,
        E::NegI | E::AbsI | E::SignI | E::NotI | E::NotB => 1,
        op if (E::AddF as u8..=E::LeF as u8).contains(&(op as u8)) => 2,
        op if (E::AddI as u8..=E::PowI as u8).contains(&(op as u8)) => 2,
        _ => 1,
    }
}

fn float_unary(u: Unary) -> Result<(ElementOp, Vec<f32>), KernelError> {
    use ElementOp as E;
    Ok(match u {
        Unary::Neg => (E::NegF, vec![]),
        Unary::Abs => (E::AbsF, vec![]),
        Unary::Sign => (E::SignF, vec![]),
        Unary::Exp => (E::Exp, vec![]),
        Unary::Log => (E::Log, vec![]),
        Unary::Sqrt => (E::Sqrt, vec![]),
        Unary::Reciprocal => (E::Reciprocal, vec![]),
        Unary::Sin => (E::Sin, vec![]),
        Unary::Cos => (E::Cos, vec![]),
        Unary::Tan => (E::Tan, vec![]),
        Unary::Asin => (E::Asin, vec![]),
        Unary::Acos => (E::Acos, vec![]),
        Unary::Atan => (E::Atan, vec![]),
        Unary::Sinh => (E::Sinh, vec![]),
        Unary::Cosh => (E::Cosh, vec![]),
        Unary::Asinh => (E::Asinh, vec![]),
        Unary::Acosh => (E::Acosh, vec![]),
        Unary::Atanh => (E::Atanh, vec![]),
        Unary::Tanh => (E::Tanh, vec![]),
        Unary::Erf => (E::Erf, vec![]),
        Unary::Floor => (E::Floor, vec![]),
        Unary::Ceil => (E::Ceil, vec![]),
        Unary::Round => (E::Round, vec![]),
        Unary::Relu => (E::Relu, vec![]),
        Unary::Sigmoid => (E::Sigmoid, vec![]),
        Unary::Softplus => (E::Softplus, vec![]),
        Unary::Softsign => (E::Softsign, vec![]),
        Unary::Mish => (E::Mish, vec![]),
        Unary::Silu => (E::Silu, vec![]),
        Unary::GeluErf => (E::GeluErf, vec![]),
        Unary::GeluTanh => (E::GeluTanh, vec![]),
        Unary::HardSwish => (E::HardSwish, vec![]),
        Unary::Swish { alpha } => (E::Swish, vec![alpha]),
        Unary::LeakyRelu { alpha } => (E::LeakyRelu, vec![alpha]),
        Unary::Elu { alpha } => (E::Elu, vec![alpha]),
        Unary::Celu { alpha } => (E::Celu, vec![alpha]),
        Unary::Selu { alpha, gamma } => (E::Selu, vec![alpha, gamma]),
        Unary::ThresholdedRelu { alpha } => (E::ThresholdedRelu, vec![alpha]),
        Unary::HardSigmoid { alpha, beta } => (E::HardSigmoid, vec![alpha, beta]),
        Unary::IsNan => (E::IsNan, vec![]),
        Unary::IsInf { negative: true, positive: false } => (E::IsNegInf, vec![]),
        Unary::IsInf { .. } => (E::IsPosInf, vec![]),
        Unary::Not | Unary::BitwiseNot => return Err(unsupported(format!("{u:?} of floats"))),
    })
}

/// The operation, and whether its operands are swapped.
fn float_binary(b: Binary) -> Option<(ElementOp, bool)> {
    use ElementOp as E;
    Some(match b {
        Binary::Add => (E::AddF, false),
        Binary::Sub => (E::SubF, false),
        Binary::Mul => (E::MulF, false),
        Binary::Div => (E::DivF, false),
        Binary::Pow => (E::PowF, false),
        Binary::Mod => (E::ModF, false),
        Binary::Fmod => (E::FmodF, false),
        Binary::Min => (E::MinF, false),
        Binary::Max => (E::MaxF, false),
        Binary::PRelu => (E::PRelu, false),
        Binary::Equal => (E::EqF, false),
        Binary::Less => (E::LtF, false),
        Binary::LessOrEqual => (E::LeF, false),
        Binary::Greater => (E::LtF, true),
        Binary::GreaterOrEqual => (E::LeF, true),
        _ => return None,
    })
}

fn int_binary(b: Binary, bool: bool) -> Option<(ElementOp, bool)> {
    use ElementOp as E;
    Some(match b {
        Binary::Equal => (E::EqI, false),
        Binary::And if bool => (E::AndI, false),
        Binary::Or if bool => (E::OrI, false),
        Binary::Xor if bool => (E::XorI, false),
        _ if bool => return None,
        Binary::Add => (E::AddI, false),
        Binary::Sub => (E::SubI, false),
        Binary::Mul => (E::MulI, false),
        Binary::Div => (E::DivI, false),
        Binary::Pow => (E::PowI, false),
        Binary::Mod => (E::ModI, false),
        Binary::Fmod => (E::FmodI, false),
        Binary::Min => (E::MinI, false),
        Binary::Max => (E::MaxI, false),
        Binary::Less => (E::LtI, false),
        Binary::LessOrEqual => (E::LeI, false),
        Binary::Greater => (E::LtI, true),
        Binary::GreaterOrEqual => (E::LeI, true),
        Binary::BitwiseAnd => (E::AndI, false),
        Binary::BitwiseOr => (E::OrI, false),
        Binary::BitwiseXor => (E::XorI, false),
        Binary::ShiftLeft => (E::ShlI, false),
        Binary::ShiftRight => (E::ShrI, false),
        _ => return None,
    })
}
