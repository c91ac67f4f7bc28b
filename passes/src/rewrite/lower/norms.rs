//! Norms: operands as the standard wants them, or plain arithmetic.

use super::Dialect;
use crate::ir::{Binary, DType, Dim, Graph, GraphError, Node, Op, Reduce, Tensor, Unary, ValueId};

/// The norm in the dialect's operators; `None` when it stands as the dialect has it.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    let Some(x) = node.input(0) else { return Ok(None) };
    let Some(ty) = graph.ty(x).cloned() else { return Ok(None) };
    let (native, axis) = match node.op {
        _ if dialect.unrestricted => return Ok(None),
        Op::LayerNorm { axis, .. } => (dialect.layer_norm, axis),
        Op::RmsNorm { axis, .. } => (dialect.rms_norm, axis),
        _ => return Ok(None),
    };
    let normalised = ty.shape.get(axis..).unwrap_or_default().to_vec();
    if !native {
        return decomposed(graph, node, x, axis, ty.dtype).map(Some);
    }
    let (scale, bias) = (node.input(1), node.input(2));
    let fitting = |graph: &Graph, v: Option<ValueId>| {
        v.is_none_or(|v| graph.shape(v).is_some_and(|s| *s == normalised[..]))
    };
    if scale.is_some() && fitting(graph, scale) && fitting(graph, bias) {
        return Ok(None);
    }
    let scale_inside = fitting(graph, scale);
    let bias_inside = bias.is_some() && scale_inside && fitting(graph, bias);
    let inner_scale = match scale.filter(|_| scale_inside) {
        Some(scale) => scale,
        None => ones(graph, ty.dtype, &normalised)?,
    };
    let mut operands = vec![Some(x), Some(inner_scale)];
    operands.extend(bias.filter(|_| bias_inside).map(Some));
    let made = graph.add_node(node.op.clone(), operands, 1, &node.name)?;
    let mut y = graph.node(made).and_then(|n| n.outputs.first().copied()).unwrap_or(x);
    if let Some(scale) = scale.filter(|_| !scale_inside) {
        y = graph.add(Op::Binary(Binary::Mul), &[y, scale])?;
    }
    if let Some(bias) = bias.filter(|_| !bias_inside) {
        y = graph.add(Op::Binary(Binary::Add), &[y, bias])?;
    }
    Ok(Some(y))
}

/// Ones of a shape, as a constant when it is known.
fn ones(graph: &mut Graph, dtype: DType, shape: &[Dim]) -> Result<ValueId, GraphError> {
    let one = graph.float_scalar(dtype, 1.0);
    let known: Option<Vec<usize>> = shape.iter().map(Dim::known_size).collect();
    let item = graph.tensor(one).cloned();
    if let (Some(shape), Some(item)) = (known, item)
        && let Some(n) = crate::ir::element_count(&shape).filter(|n| *n <= 1 << 24)
        && let Ok(tensor) = Tensor::from_bytes(dtype, shape, item.bytes().repeat(n).into())
    {
        return Ok(graph.constant(tensor));
    }
    let target = super::target(graph, shape)?;
    graph.add(Op::Expand, &[one, target])
}

/// `y · (mean(y²) + ε)^-½ · scale + bias`, where `y` is `x` or, for LayerNorm, `x - mean(x)`.
fn decomposed(
    graph: &mut Graph,
    node: &Node,
    x: ValueId,
    axis: usize,
    dtype: DType,
) -> Result<ValueId, GraphError> {
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let widened = |graph: &mut Graph, v| {
        if graph.ty(v).is_some_and(|t| t.dtype == wide) {
            Ok(v)
        } else {
            graph.add(Op::Cast { to: wide }, &[v])
        }
    };
    let rank = graph.ty(x).map_or(0, |t| t.rank());
    let mean = Op::Reduce { op: Reduce::Mean, axes: (axis..rank).collect(), keepdims: true };
    let mut y = widened(graph, x)?;
    let epsilon = match node.op {
        Op::LayerNorm { epsilon, .. } => {
            let centre = graph.add(mean.clone(), &[y])?;
            y = graph.add(Op::Binary(Binary::Sub), &[y, centre])?;
            epsilon
        }
        Op::RmsNorm { epsilon, .. } => epsilon,
        _ => 0.0,
    };
    let square = graph.add(Op::Binary(Binary::Mul), &[y, y])?;
    let variance = graph.add(mean, &[square])?;
    let epsilon = graph.float_scalar(wide, f64::from(epsilon));
    let inside = graph.add(Op::Binary(Binary::Add), &[variance, epsilon])?;
    let root = graph.add(Op::Unary(Unary::Sqrt), &[inside])?;
    let mut y = graph.add(Op::Binary(Binary::Div), &[y, root])?;
    if let Some(scale) = node.input(1) {
        let scale = widened(graph, scale)?;
        y = graph.add(Op::Binary(Binary::Mul), &[y, scale])?;
    }
    if let Some(bias) = node.input(2) {
        let bias = widened(graph, bias)?;
        y = graph.add(Op::Binary(Binary::Add), &[y, bias])?;
    }
    if dtype == wide { Ok(y) } else { graph.add(Op::Cast { to: dtype }, &[y]) }
}
