//! Products with matrices in blocks of 4 or 8 bits, as ONNX Runtime's `MatMulNBits`.
//!
//! ```text
//!   MatMul(x, Transpose(Dequantize(w [N, K], scale [N, K/b], zero)))   is written   MatMulNBits(x, w, scale, zero)
//! ```
//!
//! Only models that were written with operators of ONNX Runtime are, since others may run elsewhere.

use snlp_passes::ir::{
    Attribute, Binary, Blocks, DType, Graph, GraphError, Node, NodeId, Op, Opaque, Reduce, Tensor,
    TensorError, Unary, ValueId,
};

/// The operator set that has the operator.
pub(super) const DOMAIN: &str = "com.microsoft";

/// Replaces such products in a graph that is about to be written.
pub(super) fn fuse(graph: &mut Graph) -> Result<(), GraphError> {
    let products: Vec<(NodeId, NodeId)> = graph
        .nodes()
        .filter(|(_, n)| n.op == Op::MatMul)
        .filter_map(|(id, n)| {
            let turned =
                graph.producing(n.input(1)?).filter(|t| t.op == Op::Transpose { perm: vec![1, 0] })?;
            let made = graph.producer(turned.input(0)?)?;
            matrix(graph, graph.node(made)?).map(|_| (id, made))
        })
        .collect();
    for (product, made) in products {
        // A matrix that does not fit was checked above, so that an error leaves the product as it is.
        let Some((op, operands)) = operator(graph, product, made) else { continue };
        let Some((name, old)) = graph.node(product).map(|n| (n.name.clone(), n.outputs[0])) else { continue };
        let inputs = operands.into_iter().map(|operand| match operand {
            Operand::Value(v) => Some(v),
            Operand::Made(of, tensor) => {
                let new = graph.constant(tensor);
                graph.adopt_name(of, new);
                Some(new)
            }
        });
        let inputs = inputs.collect();
        let id = graph.add_node(op, inputs, 1, &name)?;
        let (Some(new), Some(ty)) =
            (graph.node(id).and_then(|n| n.outputs.first().copied()), graph.ty(old).cloned())
        else {
            continue;
        };
        graph.declare_type(new, ty);
        graph.adopt_name(old, new);
        graph.replace_uses(old, new)?;
    }
    graph.remove_dead();
    Ok(())
}

/// An operand: a value of the graph, or a constant made of one.
enum Operand {
    Value(ValueId),
    Made(ValueId, Tensor),
}

fn operator(graph: &Graph, product: NodeId, made: NodeId) -> Option<(Op, Vec<Operand>)> {
    let (mut x, node) = (graph.node(product)?.input(0)?, graph.node(made)?);
    let (size, w, scale) = (matrix(graph, node)?, node.input(0)?, node.input(1)?);
    let tensor = graph.tensor(w)?;
    let &[n, k] = tensor.shape() else { return None };
    let int = |name: &str, n: usize| Some((name.to_string(), Attribute::Int(i64::try_from(n).ok()?)));
    let bits = if tensor.dtype().is_nibble() { 4 } else { 8 };
    let mut attributes = vec![int("K", k)?, int("N", n)?, int("bits", bits)?, int("block_size", size)?];
    if let Some(exact) = before_eight_bits(graph, x, size) {
        x = exact;
        attributes.push(int("accuracy_level", 4)?);
    }
    let mut operands =
        vec![Operand::Value(x), Operand::Made(w, packed(tensor, size).ok()?), Operand::Value(scale)];
    // Single ones are the operator's default.
    if let Some(zero) = node.input(2)
        && let Some(tensor) = graph.tensor(zero).filter(|t| t.shape().len() == 2)
    {
        operands.push(Operand::Made(zero, packed_zeros(tensor).ok()?));
    }
    let op = Opaque { domain: DOMAIN.into(), op_type: "MatMulNBits".into(), attributes, captures: vec![] };
    Some((Op::Opaque(Box::new(op)), operands))
}

/// What was rounded to 8 bits in blocks of this size, by the largest magnitude of each: accuracy level 4.
fn before_eight_bits(graph: &Graph, x: ValueId, size: usize) -> Option<ValueId> {
    let made = |v: ValueId, test: fn(&Op) -> bool| graph.producing(v).filter(|n| test(&n.op));
    let reshape = |op: &Op| matches!(op, Op::Reshape { .. });
    let back = made(made(x, reshape)?.input(0)?, |op| *op == Op::Dequantize { blocks: None })?;
    let there = made(back.input(0)?, |op| *op == Op::Quantize { to: DType::I8, blocks: None })?;
    let (rows, step) = (there.input(0)?, there.input(1)?);
    let largest = made(made(step, |op| *op == Op::Where)?.input(2)?, |op| *op == Op::Binary(Binary::Div))?;
    let largest = made(largest.input(0)?, |op| matches!(op, Op::Reduce { op: Reduce::Max, .. }))?;
    let magnitude = made(largest.input(0)?, |op| *op == Op::Unary(Unary::Abs))?;
    let exact = made(rows, reshape)?.input(0)?;
    let same = back.input(1) == Some(step) && magnitude.input(0) == Some(rows);
    let blocks = graph.shape(rows)?.last()?.known_size() == Some(size);
    (same && blocks && graph.shape(exact) == graph.shape(x)).then_some(exact)
}

/// The size of the blocks of a Dequantize that `MatMulNBits` can do.
fn matrix(graph: &Graph, node: &Node) -> Option<usize> {
    let Op::Dequantize { blocks: Some(Blocks { axis: 1, size }) } = node.op else { return None };
    let (w, scale) = (graph.tensor(node.input(0)?)?, graph.tensor(node.input(1)?)?);
    let &[n, k] = w.shape() else { return None };
    let kinds = matches!(w.dtype(), DType::U4 | DType::U8 | DType::I4 | DType::I8);
    let whole = size >= 16 && size.is_power_of_two() && k % size == 0 && *scale.shape() == [n, k / size];
    // Signed ones are taken as unsigned about the middle, which is the operator's default.
    let zero = match node.input(2) {
        None => matches!(w.dtype(), DType::I4 | DType::I8),
        Some(zero) => {
            let zero = graph.tensor(zero)?;
            let unsigned = matches!(w.dtype(), DType::U4 | DType::U8);
            unsigned && (zero.item() == Some(middle(w.dtype())) || zero.shape() == scale.shape())
        }
    };
    (kinds && whole && zero && matches!(scale.dtype(), DType::F32 | DType::F16)).then_some(size)
}

fn middle(dtype: DType) -> f64 {
    if dtype.is_nibble() { 8.0 } else { 128.0 }
}

/// The integers as the operator has them: unsigned, `[n, blocks, bytes of a block]`.
fn packed(w: &Tensor, size: usize) -> Result<Tensor, TensorError> {
    let (n, k) = (w.shape()[0], w.shape()[1]);
    let shape = vec![n, k / size, w.dtype().bytes(size)];
    let flip = match w.dtype() {
        DType::I4 => 0x88,
        DType::I8 => 0x80,
        _ => 0u8,
    };
    let parts = match flip {
        0 => w.parts().to_vec(),
        flip => vec![w.bytes().iter().map(|b| b ^ flip).collect::<Vec<u8>>().into()],
    };
    Tensor::from_parts(DType::U8, shape, parts)
}

/// Zero points as the operator has them: rows begin on bytes.
fn packed_zeros(zero: &Tensor) -> Result<Tensor, TensorError> {
    let (n, count) = (zero.shape()[0], zero.shape()[1]);
    let whole = if zero.dtype().is_nibble() && count % 2 == 1 {
        let bytes = zero.unpacked().bytes();
        let rows: Vec<u8> = bytes.chunks(count).flat_map(|row| row.iter().copied().chain([0])).collect();
        Tensor::from_vec(vec![n, count + 1], rows)?.packed(zero.dtype())
    } else {
        zero.clone()
    };
    let width = whole.byte_len() / n.max(1);
    Tensor::from_parts(DType::U8, vec![n, width], whole.parts().to_vec())
}
