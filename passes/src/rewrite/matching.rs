//! What the rules ask of a graph: who makes a value, with which operands, from which constants.

use crate::ir::{Binary, DType, Dim, Graph, Node, Op, Tensor, Unary, ValueId};

/// The operand of the unary function that makes `v`.
pub(crate) fn unary(graph: &Graph, v: ValueId, function: Unary) -> Option<ValueId> {
    let node = graph.producing(v)?;
    if matches!(node.op, Op::Unary(u) if u == function) { node.input(0) } else { None }
}

/// The operands of the binary function that makes `v`, in order.
pub(crate) fn binary(graph: &Graph, v: ValueId, function: Binary) -> Option<(ValueId, ValueId)> {
    let node = graph.producing(v)?;
    if matches!(node.op, Op::Binary(b) if b == function) {
        Some((node.input(0)?, node.input(1)?))
    } else {
        None
    }
}

/// The first match of `rule` on the operands of the binary function that makes `v`, in either order
/// when the function commutes.
pub(crate) fn either<T>(
    graph: &Graph,
    v: ValueId,
    function: Binary,
    rule: impl Fn(ValueId, ValueId) -> Option<T>,
) -> Option<T> {
    let (a, b) = binary(graph, v, function)?;
    rule(a, b).or_else(|| if function.commutes() { rule(b, a) } else { None })
}

/// The node that makes `v`, when `test` holds of its operator.
pub(crate) fn made_by(graph: &Graph, v: ValueId, test: impl Fn(&Op) -> bool) -> Option<&Node> {
    graph.producing(v).filter(|n| test(&n.op))
}

/// The operand of the MatMul that makes `v`, in order.
pub(crate) fn matmul(graph: &Graph, v: ValueId) -> Option<(ValueId, ValueId)> {
    let node = made_by(graph, v, |op| matches!(op, Op::MatMul))?;
    Some((node.input(0)?, node.input(1)?))
}

/// `v` behind any Casts between float types, and behind Identity.
pub(crate) fn behind_casts(graph: &Graph, mut v: ValueId) -> ValueId {
    while let Some(node) = graph.producing(v) {
        let inner = node.input(0);
        let passes = match node.op {
            Op::Identity => true,
            Op::Cast { to } => {
                to.is_float() && inner.and_then(|i| dtype(graph, i)).is_some_and(DType::is_float)
            }
            _ => false,
        };
        match inner {
            Some(i) if passes => v = i,
            _ => break,
        }
    }
    v
}

/// The element type.
pub(crate) fn dtype(graph: &Graph, v: ValueId) -> Option<DType> {
    graph.ty(v).map(|t| t.dtype)
}

/// Number of axes.
pub(crate) fn rank(graph: &Graph, v: ValueId) -> Option<usize> {
    graph.ty(v).map(|t| t.rank())
}

/// The size of the axis counted from the last (0: the last).
pub(crate) fn dim_from_end(graph: &Graph, v: ValueId, back: usize) -> Option<&Dim> {
    let shape = graph.shape(v)?;
    shape.len().checked_sub(back + 1).and_then(|i| shape.get(i))
}

/// Whether both have the same dtype and certainly the same shape.
pub(crate) fn same_type(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    match (graph.ty(a), graph.ty(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// The value that every element of a constant has (of a constant behind views and fills too).
pub(crate) fn uniform(graph: &Graph, v: ValueId) -> Option<f64> {
    if let Some(t) = graph.tensor(v) {
        return uniform_tensor(t);
    }
    let node = graph.producing(v)?;
    match &node.op {
        Op::ConstantOfShape { value } => value.item(),
        Op::Identity | Op::Expand | Op::Unsqueeze { .. } | Op::Squeeze { .. } | Op::Reshape { .. } => {
            uniform(graph, node.input(0)?)
        }
        Op::Cast { to } if to.is_float() => uniform(graph, node.input(0)?),
        _ => None,
    }
}

fn uniform_tensor(t: &Tensor) -> Option<f64> {
    if t.len() == 1 {
        return t.item();
    }
    // Large tensors are weights; reading them all for every candidate would be wasted.
    if t.is_empty() || t.len() > 1 << 16 {
        return None;
    }
    let (bytes, size) = (t.bytes(), t.dtype().size());
    let first = bytes.get(..size)?;
    if bytes.chunks_exact(size).any(|x| x != first) {
        return None;
    }
    let first = Tensor::from_bytes(t.dtype(), vec![], bytes.slice(..size)).ok()?;
    first.item().filter(|x| !x.is_nan())
}

/// The value of a one-element constant of any rank.
pub(crate) fn scalar(graph: &Graph, v: ValueId) -> Option<f64> {
    graph.tensor(v).and_then(Tensor::item)
}

/// Whether two numbers agree to the precision of the element type that carries them.
pub(crate) fn close(a: f64, b: f64, dtype: Option<DType>) -> bool {
    let relative = match dtype {
        Some(DType::F16) => 2e-3,
        Some(DType::BF16) => 1e-2,
        _ => 2e-6,
    };
    (a - b).abs() <= relative * b.abs()
}

/// Known integer elements of a value.
pub(crate) fn ints(graph: &Graph, v: ValueId) -> Option<Vec<i64>> {
    graph.content(v)?.iter().map(Dim::known).collect()
}

/// The axis of a value of shape `from` that a Reshape to `to` leaves as it is, as axis `axis` there: of the same
/// size behind as many elements.
pub(crate) fn reshaped_axis(from: &[Dim], to: &[Dim], axis: usize) -> Option<usize> {
    let before = Dim::product(&to[..axis]);
    (0..from.len()).find(|i| from[*i] == to[axis] && Dim::product(&from[..*i]) == before)
}
