//! The plain evaluator: every operator as straightforward loops over dense tensors (but for products of
//! float matrices, which are blocked).
//!
//! It folds constants and is the oracle of every kernel and every rewrite. Float arithmetic is in the
//! operator's dtype for f32 and f64; f16 and bf16 compute in f32 and round once per operator. Integer
//! arithmetic wraps. Nothing here panics on bad operands: shapes, indices and sizes are checked first.
//!
//! ```text
//!   mod (families) ── elementwise, cast ── functions of single elements
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

use crate::ir::{DType, Op, Tensor, TensorError};

pub use graph::{bind_symbols, eval_graph};

/// Results of more bytes than this are refused.
pub const MAX_RESULT_BYTES: usize = 1 << 33;

/// The number of elements of a tensor that is to be made, whatever declares its sizes.
///
/// # Errors
/// When it would have more than [`MAX_RESULT_BYTES`].
pub fn allocation(dtype: DType, shape: &[usize]) -> std::result::Result<usize, EvalError> {
    shape::count(dtype, shape)
}

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
    if takes_packed(op) { evaluated(op, o) } else { eval_unpacked(op, o) }
}

/// As [`eval_op`], for results that are of no use when they are large: neither they nor anything on the way to them may
/// have more than `bytes` and a few times what the operands have.
pub fn eval_op_within(
    bytes: usize,
    op: &Op,
    operands: &[Option<&Tensor>],
) -> std::result::Result<Vec<Tensor>, EvalError> {
    // Elements of 4 bits become 32 on the way.
    let given: usize = operands.iter().flatten().map(|t| t.byte_len().saturating_mul(16)).sum();
    let _within = shape::Within::bytes(bytes.saturating_add(given));
    eval_op(op, operands)
}

/// What a family says of an operator: `None` for those of others.
type Answer = Result<Option<Vec<Tensor>>>;

/// A family of operators.
type Family = fn(&Op, Operands<'_>) -> Answer;

const FAMILIES: [Family; 15] = [
    elementwise::eval,
    movement::eval,
    cast::eval,
    matmul::eval,
    indexing::eval,
    sources::eval,
    reduce::eval,
    norm::eval,
    attention::eval,
    quantize::eval,
    scan::eval,
    scatter::eval,
    einsum::eval,
    window::eval,
    correction::eval,
];

/// The answer of an operator with one result.
fn one(result: Tensor) -> Option<Vec<Tensor>> {
    Some(vec![result])
}

fn evaluated(op: &Op, o: Operands<'_>) -> Result<Vec<Tensor>> {
    for family in FAMILIES {
        if let Some(results) = family(op, o)? {
            return Ok(results);
        }
    }
    Err(EvalError::Unsupported(op.name()))
}

/// Operators that read elements of 4 bits as they are stored, or never.
fn takes_packed(op: &Op) -> bool {
    use Op::*;
    matches!(
        op,
        Identity | Reshape { .. } | Cast { .. } | Dequantize { .. } | DynamicQuantize { .. } | TopK { .. }
    )
}

/// Operators to which elements of 4 bits are integers of 8 bits: those that move them, in the main. Results
/// of such a type are packed again.
fn eval_unpacked(op: &Op, o: Operands<'_>) -> Result<Vec<Tensor>> {
    let packed = o.0.iter().flatten().map(|t| t.dtype()).find(|d| d.is_nibble());
    let Some(dtype) = packed else { return evaluated(op, o) };
    let wide: Vec<Option<Tensor>> = o.0.iter().map(|t| t.map(Tensor::unpacked)).collect();
    let wide: Vec<Option<&Tensor>> = wide.iter().map(Option::as_ref).collect();
    Ok(evaluated(op, Operands(&wide))?.into_iter().map(|t| t.packed(dtype)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_within_a_limit() {
        let op = Op::ConstantOfShape { value: Tensor::scalar(1u8) };
        let filled = |n: i64| eval_op_within(1 << 10, &op, &[Some(&Tensor::ints(&[n]))]);
        assert_eq!(filled(1 << 10).map(|t| t[0].len()), Ok(1 << 10));
        assert!(filled(1 << 32).unwrap_err().to_string().contains("larger than"));
        // The limit ends with the call.
        assert!(eval_op(&op, &[Some(&Tensor::ints(&[1 << 12]))]).is_ok());
        let range = [Tensor::scalar(0f32), Tensor::scalar(1e9f32), Tensor::scalar(1f32)];
        let range: Vec<_> = range.iter().map(Some).collect();
        assert!(eval_op_within(1 << 10, &Op::Range, &range).is_err());
    }
}
