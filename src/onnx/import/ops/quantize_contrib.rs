//! Quantised operators of ONNX Runtime (`com.microsoft`) that are short for standard ones.

use snlp_passes::ir::{Binary, Blocks, DType, Dim, Op, Reduce, Tensor, Unary, ValueId};
use snlp_passes::rewrite::reshape;

use super::quantize::{self, dynamic, inputs, product, rounded, scaled, zero_point};
use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "QuantizeLinear" | "DequantizeLinear" => quantize::lookup(op_type)?,
        "MatMulNBits" => matmul_nbits,
        "GatherBlockQuantized" => gather_blocks,
        "DynamicQuantizeMatMul" => dynamic_matmul,
        "MatMulIntegerToFloat" => matmul_to_float,
        "QGemm" => gemm,
        "QLinearAdd" => |c| linear_binary(c, Binary::Add),
        "QLinearMul" => |c| linear_binary(c, Binary::Mul),
        "QLinearSigmoid" => |c| linear_unary(c, |_| Ok(Op::Unary(Unary::Sigmoid))),
        "QLinearLeakyRelu" => {
            |c| linear_unary(c, |c| Ok(Op::Unary(Unary::LeakyRelu { alpha: c.float("alpha", 0.01)? })))
        }
        "QLinearSoftmax" => |c| {
            linear_unary(c, |c| {
                let rank = c.rank(c.input(0)?)?;
                let axis = c.axis(c.int("axis", -1)?, rank)?;
                // Before opset 13 a softmax runs over all axes from the given one on.
                let plain = c.int("opset", 13)? >= 13 || axis + 1 == rank;
                if plain { Ok(Op::Softmax { axis }) } else { Err(Decline::Opaque) }
            })
        },
        "QLinearConcat" => linear_concat,
        "QLinearWhere" => |c| {
            let (condition, then, otherwise) = (c.input(0)?, floats(c, 1)?, floats(c, 4)?);
            let y = c.add(Op::Where, &[condition, then, otherwise])?;
            integers(c, y, 7, 1)
        },
        _ => return None,
    })
}

/// `x [.., K] · wᵀ + bias?`, the matrix `[N, K]` in blocks along `K` of 4 or 8 bits.
fn matmul_nbits(c: &mut NodeContext<'_>) -> Built {
    let (x, packed, scales) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let size = |name: &'static str| {
        let n = c.int(name, 0)?;
        let fail = || OnnxError::invalid(format!("has the attribute '{name}' of {n}"));
        usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| Decline::from(fail()))
    };
    let (k, n, block) = (size("K")?, size("N")?, size("block_size")?);
    let dtype = match c.int("bits", 4)? {
        4 if block % 2 == 0 => DType::U4,
        8 => DType::U8,
        _ => return Err(Decline::Opaque),
    };
    let count = k.div_ceil(block);
    let order = match c.optional(4) {
        Some(groups) => Some(by_group(c, groups, k, block)?),
        None => None,
    };
    // The identity, for weights whose groups are their neighbours.
    let order = order.filter(|order| order.iter().enumerate().any(|(at, k)| at != *k));
    let Some(tensor) = c.graph.tensor(packed).filter(|t| t.dtype() == DType::U8) else {
        return Err(Decline::Opaque);
    };
    let whole = Tensor::from_parts(dtype, vec![n, count * block], tensor.parts().to_vec())
        .map_err(|e| OnnxError::invalid(format!("the packed matrix does not fit: {e}")))?;
    let (mut x, mut whole) = (x, whole);
    if let Some(order) = &order {
        let bytes = whole.unpacked().bytes();
        let ordered: Vec<u8> = bytes.chunks(k).flat_map(|row| order.iter().map(|k| row[*k])).collect();
        let fits = |e| OnnxError::invalid(format!("the packed matrix does not fit: {e}"));
        whole = Tensor::from_vec(vec![n, k], ordered).map_err(fits)?.packed(dtype);
        let axis = c.rank(x)?.checked_sub(1).ok_or(Decline::Opaque)?;
        let places = c.graph.ints(&order.iter().map(|k| *k as i64).collect::<Vec<_>>());
        x = c.add(Op::Gather { axis }, &[x, places])?;
    }
    let zero = match c.optional(3) {
        None => middle(dtype),
        Some(zero) => packed_zeros(c, zero, dtype, n, count)?,
    };
    let name = c.graph.value(packed).name.clone().unwrap_or_default();
    let w = c.graph.named_constant(&name, whole);
    let zero = c.graph.constant(zero);
    let scales = reshape(c.graph, scales, &[Dim::from(n), Dim::from(count)])?;
    let w = dequantized(c, w, scales, Some(zero), Blocks { axis: 1, size: block })?;
    let w = match count * block == k {
        true => w,
        false => {
            let (start, end) = (c.graph.ints(&[0]), c.graph.ints(&[k as i64]));
            c.graph.add(Op::Slice { axes: vec![1], steps: vec![1] }, &[w, start, end])?
        }
    };
    let w = c.graph.add(Op::Transpose { perm: vec![1, 0] }, &[w])?;
    let x = match c.int("accuracy_level", 0)? {
        // With groups of its own ONNX Runtime computes in floats.
        4 if c.optional(4).is_none() => in_eight_bits(c, x, k, block)?,
        _ => x,
    };
    let y = c.add(Op::MatMul, &[x, w])?;
    match c.optional(5) {
        Some(bias) => Ok(vec![c.add(Op::Binary(Binary::Add), &[y, bias])?]),
        None => Ok(vec![y]),
    }
}

/// The columns in the order of the groups that they belong to (`g_idx`), each of which must fill a block.
fn by_group(c: &NodeContext<'_>, groups: ValueId, k: usize, block: usize) -> Result<Vec<usize>, Decline> {
    let groups = c.graph.tensor(groups).and_then(Tensor::to_i64).filter(|g| g.len() == k);
    let groups = groups.ok_or(Decline::Opaque)?;
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by_key(|at| groups[*at]);
    let filled = order.iter().enumerate().all(|(at, k)| usize::try_from(groups[*k]) == Ok(at / block));
    if filled && k.is_multiple_of(block) { Ok(order) } else { Err(Decline::Opaque) }
}

/// Rows rounded to 8 bits, each block by its largest magnitude: what accuracy level 4 lets ONNX Runtime do with
/// the left operand, and what it does.
fn in_eight_bits(c: &mut NodeContext<'_>, x: ValueId, k: usize, block: usize) -> Result<ValueId, Decline> {
    let ty = c.ty(x)?;
    let lead = ty.shape.split_last().map(|(_, lead)| lead.to_vec()).unwrap_or_default();
    if ty.dtype != DType::F32 || !k.is_multiple_of(block) || !lead.iter().all(|d| c.computable(d)) {
        return Ok(x);
    }
    let axis = lead.len() + 1;
    let blocks = [&lead[..], &[Dim::from(k / block), Dim::from(block)]].concat();
    let whole = [&lead[..], &[Dim::from(k)]].concat();
    let rows = reshape(c.graph, x, &blocks)?;
    let (zero, one, steps) = (c.graph.scalar(0f32), c.graph.scalar(1f32), c.graph.scalar(127f32));
    let size = c.graph.add(Op::Unary(Unary::Abs), &[rows])?;
    let size = c.graph.add(Op::Reduce { op: Reduce::Max, axes: vec![axis], keepdims: true }, &[size])?;
    let step = c.graph.add(Op::Binary(Binary::Div), &[size, steps])?;
    let none = c.graph.add(Op::Binary(Binary::Equal), &[step, zero])?;
    let step = c.graph.add(Op::Where, &[none, one, step])?;
    let integers = c.graph.add(Op::Quantize { to: DType::I8, blocks: None }, &[rows, step])?;
    let rows = c.graph.add(Op::Dequantize { blocks: None }, &[integers, step])?;
    Ok(reshape(c.graph, rows, &whole)?)
}

/// Zero points `[n, count]`, whose rows begin on bytes in the file.
pub(super) fn packed_zeros(
    c: &NodeContext<'_>,
    v: ValueId,
    dtype: DType,
    n: usize,
    count: usize,
) -> Result<Tensor, Decline> {
    let tensor = c.graph.tensor(v).filter(|t| t.dtype() == DType::U8).ok_or(Decline::Opaque)?;
    let padded = if dtype == DType::U4 { count.next_multiple_of(2) } else { count };
    let misfit = |e| OnnxError::invalid(format!("the zero points do not fit: {e}"));
    let rows = Tensor::from_parts(dtype, vec![n, padded], tensor.parts().to_vec()).map_err(misfit)?;
    if padded == count {
        return Ok(rows);
    }
    let bytes = rows.unpacked().bytes();
    let cut: Vec<u8> = bytes.chunks(padded).flat_map(|row| &row[..count]).copied().collect();
    Ok(Tensor::from_vec(vec![n, count], cut).map_err(misfit)?.packed(dtype))
}

fn dequantized(
    c: &mut NodeContext<'_>,
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    blocks: Blocks,
) -> Result<ValueId, Decline> {
    let zero = zero_point(c, x, zero);
    let operands = [Some(x), Some(scale)].into_iter().chain(zero.map(Some)).collect();
    let id = c.graph.add_node(Op::Dequantize { blocks: Some(blocks) }, operands, 1, "")?;
    c.graph.node(id).and_then(|n| n.outputs.first().copied()).ok_or(Decline::Opaque)
}

/// `table, indices, scales, zero points?`: rows of a table that is quantised in blocks.
fn gather_blocks(c: &mut NodeContext<'_>) -> Built {
    let (table, indices, scales) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let rank = c.rank(table)?;
    let gathered = c.axis(c.int("gather_axis", 0)?, rank)?;
    let axis = c.axis(c.int("quantize_axis", 1)?, rank)?;
    let size = usize::try_from(c.int("block_size", 128)?).map_err(|_| Decline::Opaque)?;
    if gathered == axis || size == 0 {
        return Err(Decline::Opaque);
    }
    let (table, zero) = match c.dtype(table)? {
        DType::U8 => bytes_of_blocks(c, table, axis, size)?,
        _ => (table, c.optional(3)),
    };
    let rows = dequantized(c, table, scales, zero, Blocks { axis, size })?;
    Ok(vec![c.add(Op::Gather { axis: gathered }, &[rows, indices])?])
}

/// A table `[V, bytes]` whose bytes hold two elements or one, and its zero points: the middle of the range
/// where there are none.
fn bytes_of_blocks(
    c: &mut NodeContext<'_>,
    table: ValueId,
    axis: usize,
    size: usize,
) -> Result<(ValueId, Option<ValueId>), Decline> {
    let tensor = c.graph.tensor(table).cloned().ok_or(Decline::Opaque)?;
    let (dtype, per_byte) = match c.int("bits", 4)? {
        4 => (DType::U4, 2),
        8 => (DType::U8, 1),
        _ => return Err(Decline::Opaque),
    };
    let (&[rows, bytes], 1) = (tensor.shape(), axis) else { return Err(Decline::Opaque) };
    let columns = bytes * per_byte;
    let whole = Tensor::from_parts(dtype, vec![rows, columns], tensor.parts().to_vec())
        .map_err(|e| OnnxError::invalid(format!("the packed table does not fit: {e}")))?;
    let zero = match c.optional(3) {
        Some(zero) => packed_zeros(c, zero, dtype, rows, columns.div_ceil(size))?,
        None => middle(dtype),
    };
    let name = c.graph.value(table).name.clone().unwrap_or_default();
    Ok((c.graph.named_constant(&name, whole), Some(c.graph.constant(zero))))
}

/// The zero point in the middle of the range of an unsigned type.
pub(super) fn middle(dtype: DType) -> Tensor {
    Tensor::scalar(1u8 << if dtype == DType::U4 { 3 } else { 7 }).packed(dtype)
}

/// `a, b, scale of b, zero point of b?, bias?`.
fn dynamic_matmul(c: &mut NodeContext<'_>) -> Built {
    let [a, b, scale_b] = inputs::<3>(c)?;
    let (zero_b, bias) = (c.optional(3), c.optional(4));
    let [a, scale_a, zero_a] = dynamic(c, a)?;
    to_float(c, [a, b], [scale_a, scale_b], [Some(zero_a), zero_b], bias)
}

/// `a, b, their scales, their zero points?, bias?`.
fn matmul_to_float(c: &mut NodeContext<'_>) -> Built {
    let [a, b, scale_a, scale_b] = inputs::<4>(c)?;
    let (zeros, bias) = ([c.optional(4), c.optional(5)], c.optional(6));
    to_float(c, [a, b], [scale_a, scale_b], zeros, bias)
}

fn to_float(
    c: &mut NodeContext<'_>,
    [a, b]: [ValueId; 2],
    [scale_a, scale_b]: [ValueId; 2],
    [zero_a, zero_b]: [Option<ValueId>; 2],
    bias: Option<ValueId>,
) -> Built {
    let integers = product(c, a, b, zero_a, zero_b)?;
    let factor = c.add(Op::Binary(Binary::Mul), &[scale_a, scale_b])?;
    let y = scaled(c, integers, factor)?;
    match bias {
        Some(bias) => Ok(vec![c.add(Op::Binary(Binary::Add), &[y, bias])?]),
        None => Ok(vec![y]),
    }
}

/// `a, its scale and zero point, b, its scale and zero point, c?, scale and zero point of the result?`: the
/// summand is of i32, at the scale of the product.
fn gemm(c: &mut NodeContext<'_>) -> Built {
    let [mut a, scale_a, zero_a, mut b, scale_b, zero_b] = inputs::<6>(c)?;
    for (v, name) in [(&mut a, "transA"), (&mut b, "transB")] {
        if c.flag(name, false)? {
            *v = c.add(Op::Transpose { perm: vec![1, 0] }, &[*v])?;
        }
    }
    let mut integers = product(c, a, b, Some(zero_a), Some(zero_b))?;
    if let Some(summand) = c.optional(6) {
        integers = c.add(Op::Binary(Binary::Add), &[integers, summand])?;
    }
    let mut factor = c.add(Op::Binary(Binary::Mul), &[scale_a, scale_b])?;
    let alpha = c.float("alpha", 1.0)?;
    if alpha != 1.0 {
        let alpha = c.graph.scalar(alpha);
        factor = c.add(Op::Binary(Binary::Mul), &[factor, alpha])?;
    }
    match (c.optional(7), c.optional(8)) {
        (Some(scale), Some(zero)) => {
            let factor = c.add(Op::Binary(Binary::Div), &[factor, scale])?;
            let y = scaled(c, integers, factor)?;
            Ok(vec![rounded(c, y, zero)?])
        }
        _ => Ok(vec![scaled(c, integers, factor)?]),
    }
}

/// Operand `i` with the scale and the zero point behind it, as floats. The scale is single.
fn floats(c: &mut NodeContext<'_>, i: usize) -> Result<ValueId, Decline> {
    let (x, scale) = (c.input(i)?, c.input(i + 1)?);
    if c.shape(scale)?.iter().any(|d| *d != Dim::ONE) {
        return Err(Decline::Opaque);
    }
    let zero = zero_point(c, x, c.optional(i + 2));
    c.add_optional(Op::Dequantize { blocks: None }, vec![Some(x), Some(scale), zero])
}

/// Quantised by the scale and the zero point at operands `i` and `i + 1`, to the type of operand `like`.
fn integers(c: &mut NodeContext<'_>, y: ValueId, i: usize, like: usize) -> Built {
    let to = c.dtype(c.input(like)?)?;
    let scale = c.input(i)?;
    let zero = c.optional(i + 1);
    Ok(vec![c.add_optional(Op::Quantize { to, blocks: None }, vec![Some(y), Some(scale), zero])?])
}

fn linear_binary(c: &mut NodeContext<'_>, f: Binary) -> Built {
    let (a, b) = (floats(c, 0)?, floats(c, 3)?);
    let y = c.add(Op::Binary(f), &[a, b])?;
    integers(c, y, 6, 0)
}

fn linear_unary(c: &mut NodeContext<'_>, op: fn(&NodeContext<'_>) -> Result<Op, Decline>) -> Built {
    let op = op(c)?;
    let x = floats(c, 0)?;
    let y = c.add(op, &[x])?;
    integers(c, y, 3, 0)
}

fn linear_concat(c: &mut NodeContext<'_>) -> Built {
    let axis = c.attributes.int("axis")?.ok_or_else(|| OnnxError::invalid("lacks the attribute 'axis'"))?;
    let axis = c.axis(axis, c.rank(c.input(2)?)?)?;
    let mut pieces = Vec::new();
    for i in (2..c.inputs.len()).step_by(3) {
        pieces.push(floats(c, i)?);
    }
    let y = c.add(Op::Concat { axis }, &pieces)?;
    integers(c, y, 0, 2)
}
