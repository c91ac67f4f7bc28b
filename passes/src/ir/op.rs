//! The closed set of operators, with typed attributes.
//!
//! Semantics are ONNX's at the newest opset, except where a variant says otherwise. The importer
//! resolves what opsets spell differently: axes are non-negative, attributes and inputs that ONNX moved
//! between opsets stand in one place, `Split` is slices, variadic `Max`, `Min`, `Sum`, `Mean` are binary
//! chains, `Dropout` is `Identity`. Optional operands are `None` in [`super::Node::inputs`].

use super::dim::Dim;
use super::dynamic::Dynamic;
use super::tensor::{DType, Tensor};

/// One-operand elementwise functions; dtype and shape are the operand's (`IsNan`, `IsInf` and `Not` give
/// bool).
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Unary {
    Neg,
    Abs,
    Sign,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    Tanh,
    Erf,
    Floor,
    Ceil,
    /// Half to even.
    Round,
    Relu,
    Sigmoid,
    Softplus,
    Softsign,
    Mish,
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + erf(x / sqrt 2))`.
    GeluErf,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x * sigmoid(alpha * x)` (ONNX `Swish`, `QuickGelu`).
    Swish {
        alpha: f32,
    },
    LeakyRelu {
        alpha: f32,
    },
    Elu {
        alpha: f32,
    },
    Celu {
        alpha: f32,
    },
    Selu {
        alpha: f32,
        gamma: f32,
    },
    ThresholdedRelu {
        alpha: f32,
    },
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    HardSwish,
    IsNan,
    IsInf {
        negative: bool,
        positive: bool,
    },
    Not,
    BitwiseNot,
}

/// Two-operand elementwise functions with broadcasting; comparisons give bool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    /// Integer division truncates.
    Div,
    /// The result has the first operand's dtype.
    Pow,
    /// Sign of the divisor (Python's `%`).
    Mod,
    /// Sign of the dividend (C's `fmod`).
    Fmod,
    Min,
    Max,
    /// `x` where `x >= 0`, `slope * x` elsewhere.
    PRelu,
    And,
    Or,
    Xor,
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    ShiftLeft,
    ShiftRight,
}

impl Binary {
    /// Whether the result is bool whatever the operands.
    pub fn is_predicate(self) -> bool {
        use Binary::*;
        matches!(self, And | Or | Xor | Equal | Less | LessOrEqual | Greater | GreaterOrEqual)
    }

    /// Whether the operands may be swapped.
    pub fn commutes(self) -> bool {
        use Binary::*;
        matches!(self, Add | Mul | Min | Max | And | Or | Xor | Equal | BitwiseAnd | BitwiseOr | BitwiseXor)
    }
}

/// Reductions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Reduce {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    SumSquare,
    LogSum,
    LogSumExp,
}

/// What a scatter does with the element already there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum ScatterReduction {
    None,
    Add,
    Mul,
    Max,
    Min,
}

/// Padding modes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum PadMode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

/// Scaled dot-product attention:
/// `softmax(softcap(scale · q kᵀ) + mask) v` over the last axis of the scores.
///
/// Operands: `q [.., Hq, T, d]`, `k [.., Hkv, S, d]`, `v [.., Hkv, S, e]`, and optionally `mask`, bool
/// (false = excluded) or additive float, broadcastable to `[.., Hq, T, S]`, and `sinks`, float, broadcastable
/// to `[.., Hq, T, 1]`: the score of one more key, whose value is zero, and `position`, a rank-0 int64: where
/// the first query stands among the keys (without it, `S - T`). `Hq` is a multiple of `Hkv`
/// (head `h` reads key head `h / (Hq / Hkv)`); leading axes broadcast. Result `[.., Hq, T, e]`.
/// A row whose keys are all excluded by the bool mask is NaN unless `safe`, then zero; with a sink it is zero.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Attention {
    /// Factor on the scores.
    pub scale: f32,
    /// Query `t` sees keys `s <= t + position` only.
    pub causal: bool,
    /// With a window `w`, query `t` sees keys `s > t + position - w` only.
    pub window: Option<u32>,
    /// `c · tanh(scores / c)` before the mask.
    pub softcap: Option<f32>,
    /// Rows without any visible key give zero instead of NaN.
    pub safe: bool,
}

/// How a rotary table's last axis stands to the head's size `d`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RotaryTable {
    /// `[.., d/2]`: each entry serves both halves.
    Half,
    /// `[.., d]`.
    Full,
}

/// Rotary position embedding of `x [.., d]` with `cos` and `sin` broadcastable to `x` (or its half):
/// with `(a, b)` the two halves of the last axis (or its even and odd elements when `interleaved`) the
/// result is `(a·cos - b·sin, b·cos + a·sin)`; a full table's own halves are used for each part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rotary {
    /// Pairs are neighbours instead of halves.
    pub interleaved: bool,
    /// Size of the table.
    pub table: RotaryTable,
}

/// A Newton correction over a segment's `C` units (METHOD §1).
///
/// Operands: `f [C, ..]` the units' evaluations, `s [C, ..]` the old estimates of the units' outputs
/// (or one without the unit axis, shared by all units), and for [`CorrectionForm::Linear`] and
/// [`CorrectionForm::Scan`] matrices. Result: the corrected estimates `[C, ..]`, or the last one alone, without the unit axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Correction {
    /// How the recurrence is solved.
    pub form: CorrectionForm,
    /// Only the last unit's corrected output is wanted.
    pub last_only: bool,
}

/// See [`Correction`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CorrectionForm {
    /// Identity Newton: `cumsum(f) - exclusive_cumsum(s)`.
    Prefix,
    /// `T·f - (T - I)·s` over the unit axis: `t [C, C]`, block lower triangular with a unit diagonal.
    /// With `streams = S > 1` the units' outputs are `[.., S, ..]` with the streams at axis
    /// `stream_axis` of `f` and `t` is `[C·S, C·S]`.
    Linear {
        /// Number of residual streams (1: none).
        streams: u32,
        /// Axis of the streams in `f`.
        stream_axis: u32,
    },
    /// Streams mixed by matrices of each unit and token: `s'_j = f_j + a_j (s'_{j-1} - s_{j-1})`, with
    /// `s'_0 = s_0`. The states are `[.., S, .., D]`, the operand `a [C, tokens.., S, S]` has the states'
    /// other axes as `tokens`; its first unit's matrices are of no account.
    Scan {
        /// Axis of the streams in `f`; neither the first nor the last.
        stream_axis: u32,
    },
}

/// Padding and strides of a convolution or pooling window; spatial axes only.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    /// Step per axis.
    pub strides: Vec<usize>,
    /// Padding before and after each axis: all begins, then all ends.
    pub pads: Vec<usize>,
    /// Spacing of the kernel's elements.
    pub dilations: Vec<usize>,
}

/// Neighbours along one axis that share a scale and a zero point.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Blocks {
    /// The axis, of the result.
    pub axis: usize,
    /// Elements of a block; the last block of the axis may have fewer.
    pub size: usize,
}

/// An attribute of an [`Opaque`] operator.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Bytes(Vec<u8>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    ByteLists(Vec<Vec<u8>>),
    /// Anything else (tensors, graphs, types), as the encoded protobuf attribute.
    Encoded(Vec<u8>),
}

/// An operator that the compiler carries through without knowing what it computes.
#[derive(Clone, PartialEq, Debug)]
pub struct Opaque {
    /// Operator set, `""` for the standard one.
    pub domain: String,
    /// Name within the domain.
    pub op_type: String,
    /// Attributes in file order.
    pub attributes: Vec<(String, Attribute)>,
    /// Names of outer values that subgraph attributes capture, one for each of the trailing inputs.
    pub captures: Vec<String>,
}

/// Operators.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Identity,
    Unary(Unary),
    Binary(Binary),
    /// `condition, then, otherwise`.
    Where,
    Cast {
        to: DType,
    },
    /// `x, min?, max?`.
    Clip,

    /// `x, scale, zero point?`: `saturate(round(x / scale) + zero point)`, halves to even, as integers `to`.
    /// Scale and zero point broadcast to `x` (each entry of theirs stands for a whole block where there are
    /// `blocks`, and they then have as many axes as `x`); a zero point has the type `to`.
    Quantize {
        to: DType,
        blocks: Option<Blocks>,
    },
    /// `x, scale, zero point?`: `(x - zero point) · scale` in the scale's type; the operands lie as those of
    /// `Quantize`.
    Dequantize {
        blocks: Option<Blocks>,
    },
    /// `x` → `u8` integers, scale, zero point of `u8`: `Quantize` by the extremes over `axes` (sorted), which
    /// the scale and the zero point lack. With `low = min(x, 0)` and `high = max(x, 0)` the scale is
    /// `(high - low) / 255`, or 1 where that is 0, and the zero point `round(-low / scale)`.
    DynamicQuantize {
        axes: Vec<usize>,
    },

    /// NumPy matmul with batch broadcasting.
    MatMul,
    /// `a, b, zero point of a?, zero point of b?` of 8 bits: the matrix product of the differences, exact in
    /// `i32` (it wraps beyond). Zero points have their matrix's type and broadcast to `a [.., M, 1]` and
    /// `b [.., 1, N]`.
    MatMulInteger,
    /// `x, w, zero point of x?, zero point of w?` of 8 bits: as `Conv` of the differences, exact in `i32` (it wraps
    /// beyond); padding counts nothing. Zero points have their operand's type; that of `w` broadcasts to it.
    ConvInteger {
        window: Window,
        group: usize,
    },
    /// `alpha·op(a)·op(b) + beta·c?`.
    Gemm {
        alpha: f32,
        beta: f32,
        trans_a: bool,
        trans_b: bool,
    },
    Einsum {
        equation: String,
    },
    /// `x, w, b?`, channels second.
    Conv {
        window: Window,
        group: usize,
    },

    Softmax {
        axis: usize,
    },
    LogSoftmax {
        axis: usize,
    },
    /// Reduced axes; `axes` is sorted and never empty (all axes when ONNX leaves them out).
    Reduce {
        op: Reduce,
        axes: Vec<usize>,
        keepdims: bool,
    },
    ArgMax {
        axis: usize,
        keepdims: bool,
        last: bool,
    },
    ArgMin {
        axis: usize,
        keepdims: bool,
        last: bool,
    },
    /// `x, axis given`.
    CumSum {
        axis: usize,
        exclusive: bool,
        reverse: bool,
    },
    /// `x, k` → values, int64 indices.
    TopK {
        axis: usize,
        largest: bool,
    },
    /// `x, scale?, bias?`; normalises over `axis..`; scale and bias broadcast to `x`'s trailing axes.
    LayerNorm {
        axis: usize,
        epsilon: f32,
    },
    /// `x, scale?`; as `LayerNorm` without the mean.
    RmsNorm {
        axis: usize,
        epsilon: f32,
    },
    /// Inference form: `x, scale, bias, mean, variance`.
    BatchNorm {
        epsilon: f32,
    },
    GlobalAveragePool,
    AveragePool {
        window: Window,
        kernel: Vec<usize>,
        count_include_pad: bool,
    },
    MaxPool {
        window: Window,
        kernel: Vec<usize>,
    },

    /// `x, shape`: the shape has no 0 or -1 with special meaning when its content is known at import;
    /// where it is computed at run time, -1 means "the rest" and 0 means "copy" unless `allow_zero`.
    Reshape {
        allow_zero: bool,
    },
    Transpose {
        perm: Vec<usize>,
    },
    /// Sorted axes.
    Squeeze {
        axes: Vec<usize>,
    },
    /// Sorted axes of the result.
    Unsqueeze {
        axes: Vec<usize>,
    },
    /// `x, shape`; two-way broadcasting.
    Expand,
    Concat {
        axis: usize,
    },
    /// `x, starts, ends` (int64 vectors as long as `axes`).
    Slice {
        axes: Vec<usize>,
        steps: Vec<i64>,
    },
    Gather {
        axis: usize,
    },
    GatherElements {
        axis: usize,
    },
    GatherNd {
        batch_dims: usize,
    },
    /// `data, indices, updates`.
    ScatterElements {
        axis: usize,
        reduction: ScatterReduction,
    },
    ScatterNd {
        reduction: ScatterReduction,
    },
    /// `x, repeats`.
    Tile,
    /// `x, pads, value?`; pads for all axes: begins, then ends.
    Pad {
        mode: PadMode,
    },
    /// `x, k?`.
    Trilu {
        upper: bool,
    },
    OneHot {
        axis: usize,
    },
    NonZero,

    /// Dims `start..end` of `x` (already clamped and non-negative).
    Shape {
        start: usize,
        end: usize,
    },
    Size,
    /// `shape` → filled with the one-element tensor.
    ConstantOfShape {
        value: Tensor,
    },
    /// `start, limit, delta` scalars.
    Range,
    EyeLike {
        dtype: DType,
        k: i64,
    },
    /// A source: the int64 vector (or, when `scalar`, the rank-0 tensor) of these expressions. What the
    /// exporters' shape arithmetic folds to.
    Dims {
        dims: Vec<Dim>,
        scalar: bool,
    },

    /// Axes or steps that are operands not known before the run.
    Dynamic(Dynamic),

    Attention(Attention),
    Rotary(Rotary),
    Correction(Correction),

    Opaque(Box<Opaque>),
}

impl Op {
    /// A short name for people: the ONNX name where there is one.
    pub fn name(&self) -> String {
        match self {
            Op::Unary(u) => {
                let text = format!("{u:?}");
                text.split([' ', '{']).next().unwrap_or_default().to_string()
            }
            Op::Binary(b) => format!("{b:?}"),
            Op::Reduce { op, .. } => format!("Reduce{op:?}"),
            Op::Opaque(o) if o.domain.is_empty() => o.op_type.clone(),
            Op::Opaque(o) => format!("{}::{}", o.domain, o.op_type),
            Op::Dynamic(Dynamic::Reduce { op, .. }) => format!("Reduce{op:?}"),
            Op::Dynamic(dynamic) => {
                let text = format!("{dynamic:?}");
                text.split([' ', '{']).next().unwrap_or_default().to_string()
            }
            Op::LayerNorm { .. } => "LayerNormalization".into(),
            Op::RmsNorm { .. } => "RMSNormalization".into(),
            Op::BatchNorm { .. } => "BatchNormalization".into(),
            Op::Rotary(_) => "RotaryEmbedding".into(),
            Op::GatherNd { .. } => "GatherND".into(),
            Op::ScatterNd { .. } => "ScatterND".into(),
            Op::Quantize { .. } => "QuantizeLinear".into(),
            Op::Dequantize { .. } => "DequantizeLinear".into(),
            Op::DynamicQuantize { .. } => "DynamicQuantizeLinear".into(),
            other => {
                let text = format!("{other:?}");
                text.split([' ', '{', '(']).next().unwrap_or_default().to_string()
            }
        }
    }

    /// Whether the result depends on nothing but the operands and may be computed twice or dropped.
    pub fn is_pure(&self) -> bool {
        !matches!(self, Op::Opaque(_))
    }
}
