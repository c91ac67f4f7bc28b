//! The plain evaluator: every operator as straightforward loops over dense tensors (but for products of
//! float matrices, which are blocked).
//!
//! It folds constants and is the oracle of every kernel and every rewrite. Float arithmetic is in the
//! operator's dtype for f32 and f64; f16 and bf16 compute in f32 and round once per operator. Integer
//! arithmetic wraps. Nothing here panics on bad operands: shapes, indices and sizes are checked first.
//!
//! ```text
//!   mod (dispatch) ── elementwise, cast ── functions of single elements
//!     │               movement, indexing ─ elements copied, never computed with: works on bytes
//!     │               reduce, scan, norm, matmul, einsum, window, attention, correction
//!     └── graph       walks a graph        shape, number: index arithmetic and element types
//! ```

mod attention;
mod cast;
mod correction;
mod einsum;
mod elementwise;
mod graph;
mod indexing;
mod matmul;
mod movement;
mod norm;
mod number;
mod quantize;
mod reduce;
mod scan;
mod scatter;
mod shape;
mod sources;
mod window;

use crate::ir::{Op, Tensor, TensorError};

pub use graph::{bind_symbols, eval_graph};

/// Results of more bytes than this are refused.
pub const MAX_RESULT_BYTES: usize = 1 << 33;

/// Why an operator could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// These operators (or these dtypes of them) have no evaluation.
    #[error("cannot evaluate {0}")]
    Unsupported(String),
    /// The operands do not fit: shapes, ranges, an index outside.
    #[error("{0}")]
    Operand(String),
    /// Within a graph.
    #[error("node '{node}' ({op}): {source}")]
    Node {
        /// Name of the node.
        node: String,
        /// Its operator.
        op: String,
        /// What failed.
        #[source]
        source: Box<EvalError>,
    },
}

impl From<TensorError> for EvalError {
    fn from(error: TensorError) -> Self {
        EvalError::Operand(error.to_string())
    }
}

type Result<T> = std::result::Result<T, EvalError>;

/// An [`EvalError::Operand`].
fn bad(message: impl Into<String>) -> EvalError {
    EvalError::Operand(message.into())
}

/// The operands of one operator.
#[derive(Clone, Copy)]
struct Operands<'a>(&'a [Option<&'a Tensor>]);

impl<'a> Operands<'a> {
    fn optional(self, i: usize) -> Option<&'a Tensor> {
        self.0.get(i).copied().flatten()
    }

    fn get(self, i: usize) -> Result<&'a Tensor> {
        self.optional(i).ok_or_else(|| bad(format!("operand {i} is missing")))
    }

    /// The elements of an integer operand.
    fn ints(self, i: usize) -> Result<Vec<i64>> {
        let t = self.get(i)?;
        t.to_i64().ok_or_else(|| bad(format!("operand {i} must be integers, found {}", t.dtype())))
    }

    /// The elements of an integer operand that are sizes.
    fn sizes(self, i: usize) -> Result<Vec<usize>> {
        let size =
            |n: i64| usize::try_from(n).map_err(|_| bad(format!("operand {i} holds a negative size {n}")));
        self.ints(i)?.into_iter().map(size).collect()
    }

    /// The only element of an integer operand.
    fn int(self, i: usize) -> Result<i64> {
        match self.ints(i)?[..] {
            [n] => Ok(n),
            ref other => Err(bad(format!("operand {i} must be one integer, found {} elements", other.len()))),
        }
    }

    /// All operands, none of them absent.
    fn all(self) -> Result<Vec<&'a Tensor>> {
        (0..self.0.len()).map(|i| self.get(i)).collect()
    }
}

/// Evaluates one operator on constants. `Op::Dims` must have known dims.
pub fn eval_op(op: &Op, operands: &[Option<&Tensor>]) -> std::result::Result<Vec<Tensor>, EvalError> {
    let o = Operands(operands);
    for operand in operands.iter().flatten() {
        shape::count(operand.dtype(), operand.shape())?;
    }
    if let Op::Dynamic(dynamic) = op {
        let parameters = dynamic.parameters().map(|i| o.ints(i)).collect::<Result<Vec<_>>>()?;
        let resolved = dynamic.resolve(o.get(0)?.shape().len(), &parameters).map_err(bad)?;
        let operands: Vec<_> = resolved.operands.iter().map(|i| o.optional(*i)).collect();
        return eval_op(&resolved.op, &operands);
    }
    match op {
        Op::TopK { axis, largest } => scan::top_k(o.get(0)?, o.int(1)?, *axis, *largest),
        Op::DynamicQuantize { axes } => quantize::dynamic(o.get(0)?, axes),
        Op::Identity | Op::Reshape { .. } | Op::Cast { .. } | Op::Dequantize { .. } => {
            eval_single(op, o).map(|t| vec![t])
        }
        _ => eval_unpacked(op, o),
    }
}

/// Operators to which elements of 4 bits are integers of 8 bits: those that move them, in the main. Results
/// of such a type are packed again.
fn eval_unpacked(op: &Op, o: Operands<'_>) -> Result<Vec<Tensor>> {
    let packed = o.0.iter().flatten().map(|t| t.dtype()).find(|d| d.is_nibble());
    let Some(dtype) = packed else { return eval_single(op, o).map(|t| vec![t]) };
    let wide: Vec<Option<Tensor>> = o.0.iter().map(|t| t.map(Tensor::unpacked)).collect();
    let wide: Vec<Option<&Tensor>> = wide.iter().map(Option::as_ref).collect();
    Ok(vec![eval_single(op, Operands(&wide))?.packed(dtype)])
}

/// Operators of one result.
fn eval_single(op: &Op, o: Operands<'_>) -> Result<Tensor> {
    match op {
        Op::Identity => o.get(0).cloned(),
        Op::Unary(u) => elementwise::unary(*u, o.get(0)?),
        Op::Binary(b) => elementwise::binary(*b, o.get(0)?, o.get(1)?),
        Op::Where => elementwise::select(o.get(0)?, o.get(1)?, o.get(2)?),
        Op::Cast { to } => cast::cast(o.get(0)?, *to),
        Op::Clip => elementwise::clip(o.get(0)?, o.optional(1), o.optional(2)),
        Op::Quantize { to, blocks } => quantize::quantize(o.get(0)?, o.get(1)?, o.optional(2), *to, *blocks),
        Op::Dequantize { blocks } => quantize::dequantize(o.get(0)?, o.get(1)?, o.optional(2), *blocks),
        Op::MatMul => matmul::matmul(o.get(0)?, o.get(1)?),
        Op::MatMulInteger => quantize::matmul_integer(o.get(0)?, o.get(1)?, o.optional(2), o.optional(3)),
        Op::Gemm { alpha, beta, trans_a, trans_b } => {
            matmul::gemm(o.get(0)?, o.get(1)?, o.optional(2), [*alpha, *beta], [*trans_a, *trans_b])
        }
        Op::Einsum { equation } => einsum::einsum(equation, &o.all()?),
        Op::Conv { window, group } => window::conv(o.get(0)?, o.get(1)?, o.optional(2), window, *group),
        Op::GlobalAveragePool => window::global_average_pool(o.get(0)?),
        Op::AveragePool { window, kernel, count_include_pad } => {
            window::average_pool(o.get(0)?, window, kernel, *count_include_pad)
        }
        Op::MaxPool { window, kernel } => window::max_pool(o.get(0)?, window, kernel),
        Op::Attention(a) => {
            attention::attention(a, [o.get(0)?, o.get(1)?, o.get(2)?], o.optional(3), o.optional(4))
        }
        Op::Rotary(r) => attention::rotary(r, o.get(0)?, o.get(1)?, o.get(2)?),
        Op::Correction(c) => correction::correction(c, o.get(0)?, o.get(1)?, o.optional(2)),
        Op::Softmax { .. }
        | Op::LogSoftmax { .. }
        | Op::Reduce { .. }
        | Op::ArgMax { .. }
        | Op::ArgMin { .. }
        | Op::CumSum { .. }
        | Op::LayerNorm { .. }
        | Op::RmsNorm { .. }
        | Op::BatchNorm { .. } => eval_along_axes(op, o),
        Op::Dims { .. }
        | Op::Shape { .. }
        | Op::Size
        | Op::ConstantOfShape { .. }
        | Op::Range
        | Op::EyeLike { .. }
        | Op::OneHot { .. } => eval_source(op, o),
        _ => eval_movement(op, o),
    }
}

/// Reductions, scans and normalisations.
fn eval_along_axes(op: &Op, o: Operands<'_>) -> Result<Tensor> {
    let x = o.get(0)?;
    match op {
        Op::Softmax { axis } => norm::softmax(x, *axis, false),
        Op::LogSoftmax { axis } => norm::softmax(x, *axis, true),
        Op::Reduce { op, axes, keepdims } => reduce::reduce(*op, x, axes, *keepdims),
        Op::ArgMax { axis, keepdims, last } => reduce::arg_extreme(x, *axis, *keepdims, *last, true),
        Op::ArgMin { axis, keepdims, last } => reduce::arg_extreme(x, *axis, *keepdims, *last, false),
        Op::CumSum { axis, exclusive, reverse } => scan::cumsum(x, *axis, *exclusive, *reverse),
        Op::LayerNorm { axis, epsilon } => {
            norm::layer_norm(x, o.optional(1), o.optional(2), *axis, *epsilon, true)
        }
        Op::RmsNorm { axis, epsilon } => norm::layer_norm(x, o.optional(1), None, *axis, *epsilon, false),
        Op::BatchNorm { epsilon } => {
            norm::batch_norm(x, [o.get(1)?, o.get(2)?, o.get(3)?, o.get(4)?], *epsilon)
        }
        other => Err(EvalError::Unsupported(other.name())),
    }
}

/// Operators that make a tensor from shapes and sizes.
fn eval_source(op: &Op, o: Operands<'_>) -> Result<Tensor> {
    match op {
        Op::Dims { dims, scalar } => sources::dims(dims, *scalar),
        Op::Shape { start, end } => sources::shape(o.get(0)?, *start, *end),
        Op::Size => sources::size(o.get(0)?),
        Op::ConstantOfShape { value } => sources::filled(value, o.sizes(0)?),
        Op::Range => sources::range(o.get(0)?, o.get(1)?, o.get(2)?),
        Op::EyeLike { dtype, k } => sources::eye_like(o.get(0)?, *dtype, *k),
        Op::OneHot { axis } => indexing::one_hot(o.get(0)?, o.get(1)?, o.get(2)?, *axis),
        other => Err(EvalError::Unsupported(other.name())),
    }
}

/// Operators that copy elements from place to place.
fn eval_movement(op: &Op, o: Operands<'_>) -> Result<Tensor> {
    match op {
        Op::Reshape { allow_zero } => movement::reshape(o.get(0)?, &o.ints(1)?, *allow_zero),
        Op::Transpose { perm } => movement::transpose(o.get(0)?, perm),
        Op::Squeeze { axes } => movement::squeeze(o.get(0)?, axes),
        Op::Unsqueeze { axes } => movement::unsqueeze(o.get(0)?, axes),
        Op::Expand => movement::expand(o.get(0)?, &o.sizes(1)?),
        Op::Concat { axis } => movement::concat(&o.all()?, *axis),
        Op::Slice { axes, steps } => movement::slice(o.get(0)?, &o.ints(1)?, &o.ints(2)?, axes, steps),
        Op::Tile => movement::tile(o.get(0)?, &o.sizes(1)?),
        Op::Pad { mode } => movement::pad(o.get(0)?, &o.ints(1)?, o.optional(2), *mode),
        Op::Trilu { upper } => {
            let k = if o.optional(1).is_some() { o.int(1)? } else { 0 };
            movement::trilu(o.get(0)?, k, *upper)
        }
        Op::Gather { axis } => indexing::gather(o.get(0)?, o.get(1)?, *axis),
        Op::GatherElements { axis } => indexing::gather_elements(o.get(0)?, o.get(1)?, *axis),
        Op::GatherNd { batch_dims } => indexing::gather_nd(o.get(0)?, o.get(1)?, *batch_dims),
        Op::NonZero => indexing::non_zero(o.get(0)?),
        Op::ScatterElements { axis, reduction } => {
            scatter::scatter_elements(o.get(0)?, o.get(1)?, o.get(2)?, *axis, *reduction)
        }
        Op::ScatterNd { reduction } => scatter::scatter_nd(o.get(0)?, o.get(1)?, o.get(2)?, *reduction),
        other => Err(EvalError::Unsupported(other.name())),
    }
}
