//! Operators that index, by those that index along one axis.
//!
//! ```text
//!   OneHot(i, n, [off, on])    becomes  Where(Equal(i, Range(n)), on, off)
//!   GatherND(x [a, b, ..], i)  becomes  Gather(x [a·b, ..], i₀·b + i₁)
//!   ScatterND(x, i, u)         becomes  ScatterElements on the same rows
//!   EyeLike(x)                 becomes  Equal(Range(rows) + k, Range(columns))
//! ```

use super::{Dialect, slice};
use crate::ir::{Binary, DType, Dim, Graph, GraphError, Node, Op, ScatterReduction, Tensor, ValueId};
use crate::rewrite::reshape;

pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    if dialect.composites {
        return if dialect.counts_back { Ok(None) } else { from_the_start(graph, node) };
    }
    match (&node.op, node.input(0), node.input(1), node.input(2)) {
        (Op::OneHot { axis }, Some(indices), Some(depth), Some(values)) => {
            one_hot(graph, *axis, [indices, depth, values])
        }
        (Op::GatherNd { batch_dims }, Some(data), Some(indices), _) => {
            gather_nd(graph, *batch_dims, data, indices)
        }
        (Op::ScatterNd { reduction }, Some(data), Some(indices), Some(updates)) => {
            scatter_nd(graph, *reduction, [data, indices, updates])
        }
        (Op::EyeLike { dtype, k }, Some(x), _, _) => eye_like(graph, *dtype, *k, x),
        _ => Ok(None),
    }
}

/// `0, 1, ..` up to a scalar.
fn range(graph: &mut Graph, limit: ValueId) -> Result<ValueId, GraphError> {
    let (zero, one) = (graph.scalar(0i64), graph.scalar(1i64));
    graph.add(Op::Range, &[zero, limit, one])
}

/// The value as an int64 scalar.
fn scalar(graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
    if let Some(known) = graph.tensor(v).and_then(Tensor::item) {
        return Ok(graph.scalar(known as i64));
    }
    let v = graph.add(Op::Cast { to: DType::I64 }, &[v])?;
    let shape = graph.ints(&[]);
    graph.add(Op::Reshape { allow_zero: false }, &[v, shape])
}

/// Negative indices counted from the end of an axis of `size` elements.
fn from_start(graph: &mut Graph, index: ValueId, size: ValueId) -> Result<ValueId, GraphError> {
    let zero = graph.scalar(0i64);
    let negative = graph.add(Op::Binary(Binary::Less), &[index, zero])?;
    let wrapped = graph.add(Op::Binary(Binary::Add), &[index, size])?;
    graph.add(Op::Where, &[negative, wrapped, index])
}

fn one_hot(
    graph: &mut Graph,
    axis: usize,
    [indices, depth, values]: [ValueId; 3],
) -> Result<Option<ValueId>, GraphError> {
    let Some(rank) = graph.shape(indices).map(<[Dim]>::len) else { return Ok(None) };
    let depth = scalar(graph, depth)?;
    let index = graph.add(Op::Cast { to: DType::I64 }, &[indices])?;
    let index = from_start(graph, index, depth)?;
    let index = graph.add(Op::Unsqueeze { axes: vec![axis] }, &[index])?;
    let mut places = range(graph, depth)?;
    if axis < rank {
        places = graph.add(Op::Unsqueeze { axes: (1..=rank - axis).collect() }, &[places])?;
    }
    let hit = graph.add(Op::Binary(Binary::Equal), &[index, places])?;
    let mut choice = vec![hit];
    for at in [1, 0] {
        let one = slice(graph, values, 0, (at, at + 1, 1))?;
        choice.push(graph.add(Op::Squeeze { axes: vec![0] }, &[one])?);
    }
    graph.add(Op::Where, &choice).map(Some)
}

/// Numbers of the rows that `indices [.., k]` select from the first `k` axes of `sizes`, with the last
/// axis of size 1. An index outside its axis gives a row outside of all `count` rows, not another one's.
fn rows(
    graph: &mut Graph,
    indices: ValueId,
    sizes: &[Dim],
    count: &Dim,
) -> Result<Option<ValueId>, GraphError> {
    let Some(axis) = graph.shape(indices).and_then(|s| s.len().checked_sub(1)) else { return Ok(None) };
    let indices = graph.add(Op::Cast { to: DType::I64 }, &[indices])?;
    let zero = graph.scalar(0i64);
    let (mut sum, mut outside): (Option<ValueId>, Option<ValueId>) = (None, None);
    for (size, i) in sizes.iter().zip(0i64..) {
        let index = slice(graph, indices, axis, (i, i + 1, 1))?;
        let size = graph.dim_scalar(size)?;
        let index = from_start(graph, index, size)?;
        let below = graph.add(Op::Binary(Binary::Less), &[index, zero])?;
        let beyond = graph.add(Op::Binary(Binary::GreaterOrEqual), &[index, size])?;
        for wrong in [below, beyond] {
            outside = Some(match outside {
                None => wrong,
                Some(before) => graph.add(Op::Binary(Binary::Or), &[before, wrong])?,
            });
        }
        sum = Some(match sum {
            None => index,
            Some(sum) => {
                let before = graph.add(Op::Binary(Binary::Mul), &[sum, size])?;
                graph.add(Op::Binary(Binary::Add), &[before, index])?
            }
        });
    }
    let (Some(sum), Some(outside)) = (sum, outside) else { return Ok(None) };
    let nowhere = graph.dim_scalar(count)?;
    graph.add(Op::Where, &[outside, nowhere, sum]).map(Some)
}

/// `GatherND` or `ScatterND` with indices that count from the start of their axes; `None` where they do already.
fn from_the_start(graph: &mut Graph, node: &Node) -> Result<Option<ValueId>, GraphError> {
    let batch = match node.op {
        Op::GatherNd { batch_dims } => batch_dims,
        Op::ScatterNd { .. } => 0,
        _ => return Ok(None),
    };
    let (Some(data), Some(indices)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let plain = graph.tensor(indices).and_then(Tensor::to_i64).is_some_and(|at| at.iter().all(|i| *i >= 0));
    let count = graph.shape(indices).and_then(|s| s.last()?.known_size());
    let sizes = count.and_then(|k| graph.shape(data)?.get(batch..batch.checked_add(k)?)).map(<[Dim]>::to_vec);
    let Some(sizes) = sizes.filter(|_| !plain) else { return Ok(None) };
    let sizes = graph.dims(&sizes)?;
    let index = graph.add(Op::Cast { to: DType::I64 }, &[indices])?;
    let index = from_start(graph, index, sizes)?;
    let operands = [Some(data), Some(index), node.input(2)].into_iter().flatten().collect::<Vec<_>>();
    graph.add(node.op.clone(), &operands).map(Some)
}

fn gather_nd(
    graph: &mut Graph,
    batch_dims: usize,
    data: ValueId,
    indices: ValueId,
) -> Result<Option<ValueId>, GraphError> {
    let (Some(shape), Some(index_shape)) = (graph.shape(data), graph.shape(indices)) else { return Ok(None) };
    let (shape, index_shape) = (shape.to_vec(), index_shape.to_vec());
    let Some((k, lead)) = index_shape.split_last() else { return Ok(None) };
    let Some(k) = k.known_size().filter(|k| *k > 0) else { return Ok(None) };
    let (batch, inner) = shape.split_at(batch_dims.min(shape.len()));
    let (indexed, rest) = inner.split_at(k.min(inner.len()));
    let count = Dim::product(batch) * Dim::product(indexed);
    let Some(mut at) = rows(graph, indices, indexed, &count)? else { return Ok(None) };
    if batch_dims > 0 {
        let batches = graph.dim_scalar(&Dim::product(batch))?;
        let number = range(graph, batches)?;
        let wide: Vec<Dim> =
            batch.iter().cloned().chain(lead[batch_dims..].iter().map(|_| Dim::ONE)).collect();
        let number = reshape(graph, number, &[wide, vec![Dim::ONE]].concat())?;
        let step = graph.dim_scalar(&Dim::product(indexed))?;
        let first = graph.add(Op::Binary(Binary::Mul), &[number, step])?;
        at = graph.add(Op::Binary(Binary::Add), &[first, at])?;
    }
    let at = graph.add(Op::Squeeze { axes: vec![lead.len()] }, &[at])?;
    let table = reshape(graph, data, &[std::slice::from_ref(&count), rest].concat())?;
    graph.add(Op::Gather { axis: 0 }, &[table, at]).map(Some)
}

fn scatter_nd(
    graph: &mut Graph,
    reduction: ScatterReduction,
    [data, indices, updates]: [ValueId; 3],
) -> Result<Option<ValueId>, GraphError> {
    let (Some(shape), Some(index_shape)) = (graph.shape(data), graph.shape(indices)) else { return Ok(None) };
    let (shape, index_shape) = (shape.to_vec(), index_shape.to_vec());
    let Some((k, lead)) = index_shape.split_last() else { return Ok(None) };
    let Some(k) = k.known_size().filter(|k| *k > 0) else { return Ok(None) };
    let (indexed, rest) = shape.split_at(k.min(shape.len()));
    let table_rows = Dim::product(indexed);
    let Some(at) = rows(graph, indices, indexed, &table_rows)? else { return Ok(None) };
    let (count, width) = (Dim::product(lead), Dim::product(rest));
    let at = reshape(graph, at, &[count.clone(), Dim::ONE])?;
    let wide = graph.dims(&[count.clone(), width.clone()])?;
    let at = graph.add(Op::Expand, &[at, wide])?;
    let table = reshape(graph, data, &[table_rows, width.clone()])?;
    let updates = reshape(graph, updates, &[count, width])?;
    let done = graph.add(Op::ScatterElements { axis: 0, reduction }, &[table, at, updates])?;
    reshape(graph, done, &shape).map(Some)
}

fn eye_like(graph: &mut Graph, dtype: DType, k: i64, x: ValueId) -> Result<Option<ValueId>, GraphError> {
    let Some([rows, columns]) =
        graph.shape(x).map(<[Dim]>::to_vec).and_then(|s| <[Dim; 2]>::try_from(s).ok())
    else {
        return Ok(None);
    };
    let (rows, columns) = (graph.dim_scalar(&rows)?, graph.dim_scalar(&columns)?);
    let (rows, columns) = (range(graph, rows)?, range(graph, columns)?);
    let shift = graph.scalar(k);
    let rows = graph.add(Op::Binary(Binary::Add), &[rows, shift])?;
    let rows = graph.add(Op::Unsqueeze { axes: vec![1] }, &[rows])?;
    let on = graph.add(Op::Binary(Binary::Equal), &[rows, columns])?;
    graph.add(Op::Cast { to: dtype }, &[on]).map(Some)
}
