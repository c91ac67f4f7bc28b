//! Pooling and batch normalisation, by strided slices and arithmetic.
//!
//! ```text
//!   MaxPool(x, 2, step 2)      becomes  Max(x[0::2], x[1::2]), one spatial axis after the other
//!   AveragePool(x, 2, step 2)  becomes  Add(x[0::2], x[1::2]).. / how many elements each window has
//!   GlobalAveragePool(x)       becomes  ReduceMean(x)
//!   BatchNormalization         becomes  (x - mean) · scale / Sqrt(variance + ε) + bias
//! ```

use super::{Dialect, movement, slice};
use crate::eval::allocation;
use crate::ir::{
    Binary, DType, Dim, Graph, GraphError, Node, Op, PadMode, Reduce, Tensor, Unary, ValueId, Window,
};

pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    if dialect.composites {
        return Ok(None);
    }
    let Some(x) = node.input(0) else { return Ok(None) };
    let Some(ty) = graph.ty(x).cloned() else { return Ok(None) };
    match &node.op {
        Op::GlobalAveragePool => {
            let axes = (2..ty.rank()).collect();
            graph.add(Op::Reduce { op: Reduce::Mean, axes, keepdims: true }, &[x]).map(Some)
        }
        Op::MaxPool { window, kernel } => {
            let lowest = lowest(ty.dtype);
            pool(graph, x, &Pool { window, kernel, fill: lowest, join: Binary::Max })
        }
        Op::AveragePool { window, kernel, count_include_pad } => {
            let zero = float(ty.dtype, 0.0);
            let sum = pool(graph, x, &Pool { window, kernel, fill: zero, join: Binary::Add })?;
            let (Some(sum), Some(counts)) = (sum, counts(&ty.shape, window, kernel, *count_include_pad))
            else {
                return Ok(None);
            };
            let counts = graph.constant(counts);
            let counts = graph.add(Op::Cast { to: ty.dtype }, &[counts])?;
            graph.add(Op::Binary(Binary::Div), &[sum, counts]).map(Some)
        }
        Op::BatchNorm { epsilon } => batch_norm(graph, node, *epsilon, ty.rank(), ty.dtype),
        _ => Ok(None),
    }
}

/// How the elements of a window become one.
struct Pool<'a> {
    window: &'a Window,
    kernel: &'a [usize],
    /// What padding holds.
    fill: Tensor,
    join: Binary,
}

fn pool(graph: &mut Graph, x: ValueId, pool: &Pool<'_>) -> Result<Option<ValueId>, GraphError> {
    let (n, window) = (pool.kernel.len(), pool.window);
    if pool.kernel.iter().any(|taps| *taps > MOST_TAPS) {
        return Ok(None);
    }
    let mut pads = vec![0i64; 2 * (n + 2)];
    for axis in 0..n {
        pads[2 + axis] = i64::try_from(window.pads[axis]).unwrap_or(i64::MAX);
        pads[n + 4 + axis] = i64::try_from(window.pads[n + axis]).unwrap_or(i64::MAX);
    }
    let fill = graph.constant(pool.fill.clone());
    let Some(mut x) = movement::pad(graph, x, fill, &pads, PadMode::Constant)? else { return Ok(None) };
    for i in 0..n {
        let axis = i + 2;
        let size = graph.shape(x).and_then(|s| s.get(axis)?.known_size());
        let Some(out) = size.and_then(|size| places(size, i, window, pool.kernel)) else { return Ok(None) };
        let span = (out - 1) * window.strides[i] + 1;
        let mut joined: Option<ValueId> = None;
        for k in 0..pool.kernel[i] {
            let start = k * window.dilations[i];
            let bounds =
                [start, start + span, window.strides[i]].map(|b| i64::try_from(b).unwrap_or(i64::MAX));
            let part = slice(graph, x, axis, (bounds[0], bounds[1], bounds[2]))?;
            joined = Some(match joined {
                None => part,
                Some(so_far) => graph.add(Op::Binary(pool.join), &[so_far, part])?,
            });
        }
        match joined {
            Some(joined) => x = joined,
            None => return Ok(None),
        }
    }
    Ok(Some(x))
}

/// Windows that are longer along an axis are not spelt out.
const MOST_TAPS: usize = 4096;

/// Number of places of the window along spatial axis `i` of `size` padded elements.
fn places(size: usize, i: usize, window: &Window, kernel: &[usize]) -> Option<usize> {
    let reach = kernel[i].checked_sub(1)?.checked_mul(window.dilations[i])?.checked_add(1)?;
    Some(size.checked_sub(reach)?.checked_div(window.strides[i])? + 1)
}

/// How many elements the mean of each place is of, over the spatial axes.
fn counts(shape: &[Dim], window: &Window, kernel: &[usize], padding: bool) -> Option<Tensor> {
    if padding {
        return Some(Tensor::scalar(kernel.iter().map(|n| *n as f32).product::<f32>()));
    }
    let mut counts = vec![1f32];
    let mut sizes = vec![];
    for i in 0..kernel.len() {
        let size = shape.get(i + 2)?.known_size()?;
        let (begin, end) = (window.pads[i], window.pads[kernel.len() + i]);
        let out = places(size.checked_add(begin)?.checked_add(end)?, i, window, kernel)?;
        allocation(DType::F32, &[&sizes[..], &[out]].concat()).ok()?;
        let inside = |place: usize| {
            let taps = (0..kernel[i]).map(|k| place * window.strides[i] + k * window.dilations[i]);
            taps.filter(|at| (begin..begin + size).contains(at)).count() as f32
        };
        let along: Vec<f32> = (0..out).map(inside).collect();
        counts = counts.iter().flat_map(|c| along.iter().map(move |n| c * n)).collect();
        sizes.push(out);
    }
    Tensor::from_vec(sizes, counts).ok()
}

fn batch_norm(
    graph: &mut Graph,
    node: &Node,
    epsilon: f32,
    rank: usize,
    dtype: DType,
) -> Result<Option<ValueId>, GraphError> {
    let (Some(x), Some(scale), Some(bias), Some(mean), Some(variance)) =
        (node.input(0), node.input(1), node.input(2), node.input(3), node.input(4))
    else {
        return Ok(None);
    };
    let epsilon = graph.float_scalar(dtype, epsilon.into());
    let epsilon = match graph.ty(variance).map(|t| t.dtype) {
        Some(own) if own != dtype => graph.add(Op::Cast { to: own }, &[epsilon])?,
        _ => epsilon,
    };
    let shifted = graph.add(Op::Binary(Binary::Add), &[variance, epsilon])?;
    let deviation = graph.add(Op::Unary(Unary::Sqrt), &[shifted])?;
    let mut y = x;
    let steps = [(Binary::Sub, mean), (Binary::Div, deviation), (Binary::Mul, scale), (Binary::Add, bias)];
    for (op, mut factor) in steps {
        if graph.ty(factor).is_some_and(|t| t.dtype != dtype) {
            factor = graph.add(Op::Cast { to: dtype }, &[factor])?;
        }
        if rank > 2 {
            factor = graph.add(Op::Unsqueeze { axes: (1..rank - 1).collect() }, &[factor])?;
        }
        y = graph.add(Op::Binary(op), &[y, factor])?;
    }
    Ok(Some(y))
}

fn float(dtype: DType, value: f64) -> Tensor {
    match dtype {
        DType::F16 => Tensor::scalar(half::f16::from_f64(value)),
        DType::BF16 => Tensor::scalar(half::bf16::from_f64(value)),
        DType::F64 => Tensor::scalar(value),
        _ => Tensor::scalar(value as f32),
    }
}

/// What every element is at least.
fn lowest(dtype: DType) -> Tensor {
    match dtype {
        DType::I8 => Tensor::scalar(i8::MIN),
        DType::I16 => Tensor::scalar(i16::MIN),
        DType::I32 => Tensor::scalar(i32::MIN),
        DType::I64 => Tensor::scalar(i64::MIN),
        DType::U8 => Tensor::scalar(0u8),
        DType::U16 => Tensor::scalar(0u16),
        DType::U32 => Tensor::scalar(0u32),
        DType::U64 => Tensor::scalar(0u64),
        _ => float(dtype, f64::NEG_INFINITY),
    }
}
