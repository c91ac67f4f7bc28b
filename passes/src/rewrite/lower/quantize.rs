//! Quantisation as a target has it: the forms of an ONNX opset, or plain arithmetic.
//!
//! ```text
//!   DynamicQuantize(x)           becomes  extremes ─▶ scale, zero point ─▶ Quantize
//!   Dequantize(q, s, z)          becomes  Mul(Sub(Cast(q), Cast(z)), s)
//!   MatMulInteger(a, b, za, zb)  becomes  MatMulInteger(a, b, 0, zb) - za · (column sums of b - zb)
//! ```
//!
//! The last one is exact, and gives every layer of a batch the zero point of its own, which runtimes that
//! take one zero point of `a` cannot. The column sums are a product with a row of ones.

use super::Dialect;
use crate::ir::{
    Binary, Blocks, DType, Dim, Graph, GraphError, Node, NodeId, Op, Reduce, Tensor, Type, Unary, ValueId,
};
use crate::rewrite::batch::reshape;

/// What a target has of quantisation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quantization {
    /// Nothing: integers are cast, and elements of 4 bits that are constant take 8.
    Plain,
    /// The standard operators of an opset, in the forms that ONNX Runtime takes.
    Onnx(i64),
    /// `Quantize`, `Dequantize` and `MatMulInteger` in every form, and `DynamicQuantize` of f32.
    Every,
}

/// How ONNX writes the scale of `QuantizeLinear` and `DequantizeLinear`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScaleForm {
    /// One scale.
    Tensor,
    /// A vector along an axis.
    Axis(usize),
    /// One per block of neighbours along an axis.
    Blocks(Blocks),
}

/// The form in which a Quantize or Dequantize of `x` stands in an opset; `None` where it has none, and where
/// `x` or a parameter would have to be expanded first.
pub fn scale_form(x: &Type, scale: &Type, blocks: Option<Blocks>, opset: i64) -> Option<ScaleForm> {
    let lead = x.rank().checked_sub(scale.rank())?;
    let own: Vec<&Dim> = std::iter::repeat_n(&Dim::ONE, lead).chain(&scale.shape).collect();
    let fits = |axis: usize| *own[axis] == x.shape[axis];
    let long: Vec<usize> = (0..own.len()).filter(|a| *own[*a] != Dim::ONE).collect();
    let one_of_each = |but: usize| (0..own.len()).all(|a| a == but || fits(a));
    match (blocks, &long[..]) {
        (_, []) => Some(ScaleForm::Tensor),
        (None, [axis]) => (opset >= 13 && fits(*axis)).then_some(ScaleForm::Axis(*axis)),
        (Some(blocks), _) => (opset >= 21 && one_of_each(blocks.axis)).then_some(ScaleForm::Blocks(blocks)),
        // A block as long as its axis.
        (None, _) => {
            let axis = (0..own.len()).find(|a| !fits(*a))?;
            let size = x.shape[axis].known_size()?;
            let whole = opset >= 21 && *own[axis] == Dim::ONE && one_of_each(axis);
            whole.then_some(ScaleForm::Blocks(Blocks { axis, size }))
        }
    }
}

/// Whether an opset has the types: integers, and floats of the scale.
fn has_types(integers: DType, float: DType, opset: i64) -> bool {
    let integers = match integers {
        DType::I8 | DType::U8 | DType::I32 => true,
        // Casts from 4 bits come with the same opset, so the plain form is no way out.
        DType::I4 | DType::U4 => true,
        _ => opset >= 21,
    };
    integers && (float == DType::F32 || (float == DType::F16 && opset >= 19))
}

/// The node in the dialect's operators; `None` when it stands as the dialect has it.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    match (&node.op, dialect.quantization) {
        (
            Op::Quantize { blocks: Some(blocks), .. } | Op::Dequantize { blocks: Some(blocks) },
            Quantization::Every,
        ) => whole_blocks(graph, node, *blocks),
        (_, Quantization::Every) => Ok(None),
        (Op::MatMulInteger, Quantization::Plain) => plain_product(graph, node),
        (Op::MatMulInteger, Quantization::Onnx(_)) => onnx_product(graph, node),
        (Op::Quantize { to, blocks }, Quantization::Plain) => plain_quantize(graph, node, *to, *blocks),
        (Op::Dequantize { blocks }, Quantization::Plain) => plain_dequantize(graph, node, *blocks),
        (Op::Quantize { to, blocks }, Quantization::Onnx(opset)) => {
            match onnx_form(graph, node, *blocks, *to, opset)? {
                Some(done) => Ok(done),
                None => plain_quantize(graph, node, *to, *blocks),
            }
        }
        (Op::Dequantize { blocks }, Quantization::Onnx(opset)) => {
            let integers = node.input(0).and_then(|v| graph.ty(v)).map_or(DType::I8, |t| t.dtype);
            match onnx_form(graph, node, *blocks, integers, opset)? {
                Some(done) => Ok(done),
                None => plain_dequantize(graph, node, *blocks),
            }
        }
        _ => Ok(None),
    }
}

/// The node with parameters of one shape that ONNX has a form for: `Some(None)` when it is so already,
/// `None` when there is none.
fn onnx_form(
    graph: &mut Graph,
    node: &Node,
    blocks: Option<Blocks>,
    integers: DType,
    opset: i64,
) -> Result<Option<Option<ValueId>>, GraphError> {
    let (Some(mut x), Some(scale)) = (node.input(0), node.input(1)) else { return Ok(Some(None)) };
    let mut zero = node.input(2);
    let centred = zero.and_then(|z| centred(graph, x, z));
    if let Some(tensor) = centred.filter(|_| graph.ty(scale).is_some_and(|t| t.elements() != Dim::ONE)) {
        (x, zero) = (in_place_of(graph, x, tensor), None);
    }
    let types = (graph.ty(x).cloned(), graph.ty(scale).cloned());
    let (Some(x_type), Some(scale_type)) = types else { return Ok(Some(None)) };
    let result = node.outputs.first().and_then(|v| graph.shape(*v));
    if !has_types(integers, scale_type.dtype, opset) || result != Some(&x_type.shape) {
        return Ok(None);
    }
    let common = common_shape(graph, &x_type, &[Some(scale), zero], blocks);
    let (Some(common), rank) = (common, x_type.rank()) else { return Ok(None) };
    let wanted = Type::new(scale_type.dtype, common.clone());
    if scale_form(&x_type, &wanted, blocks, opset).is_none() {
        return Ok(None);
    }
    // Single scales need no axes; any other parameter gets the shape that all have.
    let single = common.iter().all(|d| *d == Dim::ONE);
    let fits = |graph: &Graph, v: ValueId| {
        graph.shape(v).is_some_and(|s| {
            single
                || (s.len() <= rank
                    && common.ends_with(s)
                    && common[..rank - s.len()].iter().all(|d| *d == Dim::ONE))
        })
    };
    if Some(x) == node.input(0) && fits(graph, scale) && zero.is_none_or(|z| fits(graph, z)) {
        return Ok(Some(None));
    }
    let target = graph.dims(&common)?;
    let mut operands = vec![Some(x)];
    for parameter in [Some(scale), zero] {
        operands.push(match parameter {
            Some(v) if fits(graph, v) => Some(v),
            Some(v) => Some(graph.add(Op::Expand, &[v, target])?),
            None => None,
        });
    }
    let id = graph.add_node(node.op.clone(), operands, 1, &node.name)?;
    Ok(Some(graph.node(id).and_then(|n| n.outputs.first().copied())))
}

/// Constant unsigned integers about the middle of their range as signed ones about zero: a zero point that
/// ONNX would want repeated for every scale is none at all.
fn centred(graph: &Graph, x: ValueId, zero: ValueId) -> Option<Tensor> {
    let (x, zero) = (graph.tensor(x)?, graph.tensor(zero)?);
    let (dtype, middle, flip) = match x.dtype() {
        DType::U4 => (DType::I4, 8.0, 0x88),
        DType::U8 => (DType::I8, 128.0, 0x80),
        _ => return None,
    };
    if zero.item() != Some(middle) {
        return None;
    }
    let flipped: Vec<u8> = x.bytes().iter().map(|b| b ^ flip).collect();
    Tensor::from_bytes(dtype, x.shape().to_vec(), flipped.into()).ok()
}

/// The shape of `x`'s rank that parameters have in common, with all axes but that of the blocks at full size
/// where there are any.
fn common_shape(
    graph: &Graph,
    x: &Type,
    parameters: &[Option<ValueId>],
    blocks: Option<Blocks>,
) -> Option<Vec<Dim>> {
    let mut common = vec![Dim::ONE; x.rank()];
    for v in parameters.iter().flatten() {
        let shape = graph.shape(*v)?;
        let lead = x.rank().checked_sub(shape.len())?;
        for (axis, d) in shape.iter().enumerate() {
            common[lead + axis] = common[lead + axis].broadcast(d)?;
        }
    }
    if let Some(blocks) = blocks
        && common.iter().any(|d| *d != Dim::ONE)
    {
        for (axis, d) in common.iter_mut().enumerate().filter(|(a, _)| *a != blocks.axis) {
            *d = x.shape[axis].clone();
        }
    }
    Some(common)
}

/// A parameter with one entry per element where there are blocks.
fn spread(graph: &mut Graph, v: ValueId, x: &[Dim], blocks: Option<Blocks>) -> Result<ValueId, GraphError> {
    let Some(blocks) = blocks else { return Ok(v) };
    let shape = graph.shape(v).unwrap_or_default().to_vec();
    let (Some(count), Some(size)) = (shape.get(blocks.axis), x.get(blocks.axis)) else { return Ok(v) };
    if *count == Dim::ONE {
        return Ok(v);
    }
    let at = blocks.axis;
    let mut wide = shape.clone();
    wide.insert(at + 1, Dim::from(blocks.size));
    let mut whole = shape.clone();
    whole[at] = count.clone() * Dim::from(blocks.size);
    let v = graph.add(Op::Unsqueeze { axes: vec![at + 1] }, &[v])?;
    let target = graph.dims(&wide)?;
    let v = graph.add(Op::Expand, &[v, target])?;
    let v = reshape(graph, v, &whole)?;
    if whole[at] == *size {
        return Ok(v);
    }
    let (start, end) = (graph.ints(&[0]), graph.dims(std::slice::from_ref(size))?);
    graph.add(Op::Slice { axes: vec![at], steps: vec![1] }, &[v, start, end])
}

/// Kernels know blocks that divide their axis; parameters of others are laid out per element. (No kernel
/// quantises in blocks.)
fn whole_blocks(graph: &mut Graph, node: &Node, blocks: Blocks) -> Result<Option<ValueId>, GraphError> {
    let Some(shape) = node.input(0).and_then(|v| graph.shape(v)).map(<[Dim]>::to_vec) else {
        return Ok(None);
    };
    let size = shape.get(blocks.axis).and_then(Dim::known_size);
    let op = match node.op {
        Op::Dequantize { .. } if size.is_some_and(|n| n % blocks.size.max(1) == 0) => return Ok(None),
        Op::Quantize { to, .. } => Op::Quantize { to, blocks: None },
        _ => Op::Dequantize { blocks: None },
    };
    let mut operands = vec![node.input(0)];
    for i in 1..node.inputs.len() {
        operands.push(match node.input(i) {
            Some(v) => Some(spread(graph, v, &shape, Some(blocks))?),
            None => None,
        });
    }
    let id = graph.add_node(op, operands, 1, &node.name)?;
    Ok(graph.node(id).and_then(|n| n.outputs.first().copied()))
}

/// What halves compute in.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

fn cast(graph: &mut Graph, v: ValueId, to: DType) -> Result<ValueId, GraphError> {
    if graph.ty(v).is_some_and(|t| t.dtype == to) { Ok(v) } else { graph.add(Op::Cast { to }, &[v]) }
}

fn plain_quantize(
    graph: &mut Graph,
    node: &Node,
    to: DType,
    blocks: Option<Blocks>,
) -> Result<Option<ValueId>, GraphError> {
    let (Some(x), Some(scale)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let (Some(ty), Some((low, high))) = (graph.ty(x).cloned(), to.range()) else { return Ok(None) };
    let float = wide(ty.dtype);
    let x = cast(graph, x, float)?;
    let scale = spread(graph, scale, &ty.shape, blocks)?;
    let scale = cast(graph, scale, float)?;
    let steps = graph.add(Op::Binary(Binary::Div), &[x, scale])?;
    let mut y = graph.add(Op::Unary(Unary::Round), &[steps])?;
    if let Some(zero) = node.input(2) {
        let zero = spread(graph, zero, &ty.shape, blocks)?;
        let zero = cast(graph, zero, float)?;
        y = graph.add(Op::Binary(Binary::Add), &[y, zero])?;
    }
    let low = graph.float_scalar(float, low as f64);
    let high = graph.float_scalar(float, high as f64);
    let y = graph.add(Op::Clip, &[y, low, high])?;
    cast(graph, y, to).map(Some)
}

fn plain_dequantize(
    graph: &mut Graph,
    node: &Node,
    blocks: Option<Blocks>,
) -> Result<Option<ValueId>, GraphError> {
    let (Some(x), Some(scale)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let (Some(shape), Some(dtype)) = (graph.shape(x).map(<[Dim]>::to_vec), graph.ty(scale).map(|t| t.dtype))
    else {
        return Ok(None);
    };
    let float = wide(dtype);
    let x = unpacked(graph, x)?;
    let mut y = cast(graph, x, float)?;
    if let Some(zero) = node.input(2) {
        let zero = unpacked(graph, zero)?;
        let zero = spread(graph, zero, &shape, blocks)?;
        let zero = cast(graph, zero, float)?;
        y = graph.add(Op::Binary(Binary::Sub), &[y, zero])?;
    }
    let scale = spread(graph, scale, &shape, blocks)?;
    let scale = cast(graph, scale, float)?;
    let y = graph.add(Op::Binary(Binary::Mul), &[y, scale])?;
    cast(graph, y, dtype).map(Some)
}

/// A constant with the name of another.
fn in_place_of(graph: &mut Graph, v: ValueId, tensor: Tensor) -> ValueId {
    let new = graph.constant(tensor);
    graph.adopt_name(v, new);
    new
}

/// Elements of 4 bits as 8 bits each, where they are constant or moved constants.
fn unpacked(graph: &mut Graph, v: ValueId) -> Result<ValueId, GraphError> {
    if !graph.ty(v).is_some_and(|t| t.dtype.is_nibble()) {
        return Ok(v);
    }
    if let Some(tensor) = graph.tensor(v) {
        let tensor = tensor.unpacked();
        return Ok(in_place_of(graph, v, tensor));
    }
    let moves = |op: &Op| {
        matches!(
            op,
            Op::Gather { .. }
                | Op::Transpose { .. }
                | Op::Reshape { .. }
                | Op::Slice { .. }
                | Op::Squeeze { .. }
                | Op::Unsqueeze { .. }
        )
    };
    let Some(node) = graph.producing(v).filter(|n| moves(&n.op)).cloned() else { return Ok(v) };
    let mut inputs = node.inputs.clone();
    if let Some(first) = node.input(0) {
        inputs[0] = Some(unpacked(graph, first)?);
    }
    let id = graph.add_node(node.op, inputs, 1, &node.name)?;
    Ok(graph.node(id).and_then(|n| n.outputs.first().copied()).unwrap_or(v))
}

/// The matrix less its zero point, in i32.
fn shifted(graph: &mut Graph, x: ValueId, zero: Option<ValueId>) -> Result<ValueId, GraphError> {
    let x = cast(graph, x, DType::I32)?;
    let Some(zero) = zero else { return Ok(x) };
    let zero = cast(graph, zero, DType::I32)?;
    graph.add(Op::Binary(Binary::Sub), &[x, zero])
}

fn plain_product(graph: &mut Graph, node: &Node) -> Result<Option<ValueId>, GraphError> {
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let (a, b) = (shifted(graph, a, node.input(2))?, shifted(graph, b, node.input(3))?);
    graph.add_named(&node.name, Op::MatMul, &[a, b]).map(Some)
}

/// At most one zero point of `a`, and zero points of `b` that are one, a vector for a matrix, or one per
/// column of each matrix.
fn onnx_product(graph: &mut Graph, node: &Node) -> Result<Option<ValueId>, GraphError> {
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let Some(shape) = graph.shape(b).map(<[Dim]>::to_vec) else { return Ok(None) };
    let (zero_a, zero_b) = (node.input(2), node.input(3));
    let single = |graph: &Graph, v: ValueId| graph.ty(v).is_some_and(|t| t.elements() == Dim::ONE);
    let scalar = |graph: &Graph, v: ValueId| graph.ty(v).is_some_and(|t| t.rank() == 0);
    let wanted_b = match zero_b {
        Some(z) if !single(graph, z) => Some(columns(graph, z, &shape)?),
        Some(z) => Some(reshape(graph, z, &[])?),
        None => None,
    };
    match zero_a {
        Some(z) if !single(graph, z) => {
            let product = [Some(a), Some(b), None, wanted_b];
            let product = add_optional(graph, &node.name, &product)?;
            let Some(depth) = shape.get(shape.len().wrapping_sub(2)).and_then(Dim::known_size) else {
                return Ok(None);
            };
            let Ok(ones) = Tensor::from_vec(vec![1, depth], vec![1u8; depth]) else { return Ok(None) };
            let ones = graph.constant(ones);
            let sums = add_optional(graph, "", &[Some(ones), Some(b), None, wanted_b])?;
            let z = cast(graph, z, DType::I32)?;
            let correction = graph.add(Op::Binary(Binary::Mul), &[z, sums])?;
            graph.add(Op::Binary(Binary::Sub), &[product, correction]).map(Some)
        }
        _ if wanted_b == zero_b && zero_a.is_none_or(|z| scalar(graph, z)) => Ok(None),
        _ => {
            let zero_a = zero_a.map(|z| reshape(graph, z, &[])).transpose()?;
            add_optional(graph, &node.name, &[Some(a), Some(b), zero_a, wanted_b]).map(Some)
        }
    }
}

fn add_optional(graph: &mut Graph, name: &str, operands: &[Option<ValueId>]) -> Result<ValueId, GraphError> {
    let last = operands.iter().rposition(Option::is_some).map_or(0, |n| n + 1);
    let operands = operands[..last].to_vec();
    let id = graph.add_node(Op::MatMulInteger, operands.clone(), 1, name)?;
    let made = graph.node(id).and_then(|n| n.outputs.first().copied());
    Ok(made.or(operands[0]).unwrap_or_else(|| graph.scalar(0i32)))
}

/// Zero points of `b`, which has this shape, as ONNX Runtime wants them.
fn columns(graph: &mut Graph, zero: ValueId, shape: &[Dim]) -> Result<ValueId, GraphError> {
    let Some((columns, rest)) = shape.split_last() else { return Ok(zero) };
    if let [_] = rest {
        return reshape(graph, zero, std::slice::from_ref(columns));
    }
    let mut wanted = shape.to_vec();
    wanted[shape.len() - 2] = Dim::ONE;
    if graph.shape(zero) == Some(&wanted) {
        return Ok(zero);
    }
    let target = graph.dims(&wanted)?;
    graph.add(Op::Expand, &[zero, target])
}

/// The three results of a DynamicQuantize that the dialect lacks, in its operators.
pub(super) fn dynamic(
    graph: &mut Graph,
    id: NodeId,
    dialect: &Dialect,
) -> Result<Vec<(ValueId, ValueId)>, GraphError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(vec![]) };
    let (Op::DynamicQuantize { axes }, Some(x)) = (&node.op, node.input(0)) else { return Ok(vec![]) };
    let Some(ty) = graph.ty(x).cloned() else { return Ok(vec![]) };
    let stands = match dialect.quantization {
        Quantization::Plain => false,
        Quantization::Onnx(_) => axes.len() == ty.rank(),
        Quantization::Every => true,
    };
    if stands && ty.dtype == DType::F32 {
        return Ok(vec![]);
    }
    let zero = graph.float_scalar(ty.dtype, 0.0);
    let one = graph.float_scalar(ty.dtype, 1.0);
    let most = graph.float_scalar(ty.dtype, 255.0);
    // Rows first: each of the two steps then has many results to compute at once.
    let steps: Vec<Vec<usize>> = match &axes[..] {
        [] => vec![],
        [one] => vec![vec![*one]],
        [rest @ .., last] => vec![vec![*last], rest.to_vec()],
    };
    let mut extreme = |op, f| {
        let mut r = x;
        for axes in steps.iter().cloned() {
            if !axes.iter().all(|a| ty.shape[*a] == Dim::ONE) {
                r = graph.add(Op::Reduce { op, axes, keepdims: true }, &[r])?;
            }
        }
        graph.add(Op::Binary(f), &[r, zero])
    };
    let (low, high) = (extreme(Reduce::Min, Binary::Min)?, extreme(Reduce::Max, Binary::Max)?);
    let range = graph.add(Op::Binary(Binary::Sub), &[high, low])?;
    let range = graph.add(Op::Binary(Binary::Div), &[range, most])?;
    let none = graph.add(Op::Binary(Binary::Equal), &[range, zero])?;
    let scale = graph.add(Op::Where, &[none, one, range])?;
    let point = graph.add(Op::Binary(Binary::Div), &[low, scale])?;
    let point = graph.add(Op::Binary(Binary::Sub), &[zero, point])?;
    let point = graph.add(Op::Clip, &[point, zero, most])?;
    let point = graph.add(Op::Unary(Unary::Round), &[point])?;
    let point = graph.add(Op::Cast { to: DType::U8 }, &[point])?;
    let quantize = Op::Quantize { to: DType::U8, blocks: None };
    let integers = graph.add_named(&node.name, quantize, &[x, scale, point])?;
    let squeeze = |graph: &mut Graph, v| match &axes[..] {
        [] => Ok(v),
        axes => graph.add(Op::Squeeze { axes: axes.to_vec() }, &[v]),
    };
    let results = [integers, squeeze(graph, scale)?, squeeze(graph, point)?];
    Ok(node.outputs.iter().copied().zip(results).collect())
}
