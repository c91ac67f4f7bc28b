//! Quantisation.
//!
//! Scales and zero points are brought to where they broadcast: a vector along an axis gets the axes behind
//! it. The zero points of symmetrically quantised weights are zeros, and left out.

use snlp_passes::ir::{Binary, Blocks, DType, Dim, Op, ValueId};
use snlp_passes::rewrite::reshape;

use super::{Builder, Built, Decline, NodeContext, window};
use crate::onnx::error::OnnxError;
use crate::onnx::tensor::dtype_of;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "QuantizeLinear" => quantize,
        "DequantizeLinear" => dequantize,
        "DynamicQuantizeLinear" => |c| {
            let x = c.input(0)?;
            Ok(dynamic(c, x)?.to_vec())
        },
        "MatMulInteger" => |c| {
            let (a, b) = (c.input(0)?, c.input(1)?);
            let (zero_a, zero_b) = (c.optional(2), c.optional(3));
            Ok(vec![product(c, a, b, zero_a, zero_b)?])
        },
        "QLinearMatMul" => linear_matmul,
        "ConvInteger" => |c| {
            let (x, w) = (c.input(0)?, c.input(1)?);
            let (zero_x, zero_w) = (c.optional(2), c.optional(3));
            Ok(vec![convolved(c, x, w, zero_x, zero_w)?])
        },
        "QLinearConv" => linear_conv,
        _ => return None,
    })
}

/// The zero point of `x`, unless it is one of zeros for a constant of a signed type: weights quantised
/// symmetrically, as they are in all layers. (Any other zero point may be zero in one layer by chance, and the
/// layers should look alike.)
pub(super) fn zero_point(c: &NodeContext<'_>, x: ValueId, zero: Option<ValueId>) -> Option<ValueId> {
    let symmetric = |zero: ValueId| {
        let weights = c.graph.tensor(x).is_some_and(|t| t.dtype().range().is_some_and(|(low, _)| low < 0));
        let zeros = c.graph.tensor(zero).and_then(|t| t.to_i64());
        weights && zeros.is_some_and(|t| t.iter().all(|n| *n == 0))
    };
    zero.filter(|z| !symmetric(*z))
}

/// A scale or zero point of `x` as it broadcasts: single, along `axis`, or of the rank of `x`.
fn parameter(c: &mut NodeContext<'_>, v: ValueId, rank: usize, axis: i64) -> Result<ValueId, Decline> {
    let shape = c.shape(v)?;
    match &shape[..] {
        [] => Ok(v),
        [one] if *one == Dim::ONE => Ok(v),
        [size] => {
            let axis = c.axis(axis, rank)?;
            let mut dims = vec![size.clone()];
            dims.resize(rank - axis, Dim::ONE);
            Ok(reshape(c.graph, v, &dims)?)
        }
        _ => Ok(v),
    }
}

/// The blocks that the attributes name, for a scale of this rank.
fn blocks(c: &NodeContext<'_>, rank: usize, scale_rank: usize) -> Result<Option<Blocks>, Decline> {
    match c.int("block_size", 0)? {
        0 if scale_rank > 1 => {
            Err(OnnxError::invalid("has a scale of several axes but no block_size").into())
        }
        0 => Ok(None),
        size => match usize::try_from(size) {
            Ok(size) if scale_rank == rank => {
                Ok(Some(Blocks { axis: c.axis(c.int("axis", 1)?, rank)?, size }))
            }
            _ => {
                Err(OnnxError::invalid(format!("has blocks of {size} and a scale of {scale_rank} axes"))
                    .into())
            }
        },
    }
}

fn quantize(c: &mut NodeContext<'_>) -> Built {
    let (mut x, scale) = (c.input(0)?, c.input(1)?);
    let (rank, scale_rank) = (c.rank(x)?, c.rank(scale)?);
    let asked = i32::try_from(c.int("output_dtype", 0)?).unwrap_or(0);
    let to = match (c.optional(2), asked) {
        (Some(zero), _) => c.dtype(zero)?,
        (None, 0) => DType::U8,
        (None, number) => dtype_of(number).ok_or(Decline::Opaque)?,
    };
    if to.range().is_none() || to.size() > 2 || c.int("precision", 0)? != 0 {
        return Err(Decline::Opaque);
    }
    if !c.dtype(x)?.is_float() {
        let float = c.dtype(scale)?;
        x = c.add(Op::Cast { to: float }, &[x])?;
    }
    let blocks = blocks(c, rank, scale_rank)?;
    let axis = c.int("axis", 1)?;
    let scale = parameter(c, scale, rank, axis)?;
    let zero = zero_point(c, x, c.optional(2)).map(|z| parameter(c, z, rank, axis)).transpose()?;
    Ok(vec![c.add_optional(Op::Quantize { to, blocks }, vec![Some(x), Some(scale), zero])?])
}

fn dequantize(c: &mut NodeContext<'_>) -> Built {
    let (x, scale) = (c.input(0)?, c.input(1)?);
    let (rank, scale_rank) = (c.rank(x)?, c.rank(scale)?);
    let float = c.dtype(scale)?;
    let asked = i32::try_from(c.int("output_dtype", 0)?).unwrap_or(0);
    if c.dtype(x)?.range().is_none() || (asked != 0 && dtype_of(asked) != Some(float)) {
        return Err(Decline::Opaque);
    }
    let blocks = blocks(c, rank, scale_rank)?;
    let axis = c.int("axis", 1)?;
    let scale = parameter(c, scale, rank, axis)?;
    let zero = zero_point(c, x, c.optional(2)).map(|z| parameter(c, z, rank, axis)).transpose()?;
    Ok(vec![c.add_optional(Op::Dequantize { blocks }, vec![Some(x), Some(scale), zero])?])
}

/// Integers, scale and zero point by the extremes of all of `x`.
pub(super) fn dynamic(c: &mut NodeContext<'_>, x: ValueId) -> Result<[ValueId; 3], Decline> {
    let axes = (0..c.rank(x)?).collect();
    let name = c.name.clone();
    let id = c.graph.add_node(Op::DynamicQuantize { axes }, vec![Some(x)], 3, &name)?;
    match c.graph.node(id).map(|n| &n.outputs[..]) {
        Some([y, scale, zero]) => Ok([*y, *scale, *zero]),
        _ => Err(Decline::Opaque),
    }
}

/// The product of two matrices of integers with optional zero points: single, per row of `a` (a vector or
/// `[.., M, 1]`), per column of `b` (a vector or `[.., 1, N]`).
pub(super) fn product(
    c: &mut NodeContext<'_>,
    a: ValueId,
    b: ValueId,
    zero_a: Option<ValueId>,
    zero_b: Option<ValueId>,
) -> Result<ValueId, Decline> {
    let eight_bits = |d| matches!(d, DType::I8 | DType::U8);
    if c.rank(a)? < 2 || c.rank(b)? < 2 || !eight_bits(c.dtype(a)?) || !eight_bits(c.dtype(b)?) {
        return Err(Decline::Opaque);
    }
    let zero_a = zero_point(c, a, zero_a).map(|z| parameter(c, z, 2, 0)).transpose()?;
    let zero_b = zero_point(c, b, zero_b);
    c.add_optional(Op::MatMulInteger, vec![Some(a), Some(b), zero_a, zero_b])
}

/// The convolution of two tensors of integers with optional zero points: that of `x` single, that of `w` single or
/// for each filter.
fn convolved(
    c: &mut NodeContext<'_>,
    x: ValueId,
    w: ValueId,
    zero_x: Option<ValueId>,
    zero_w: Option<ValueId>,
) -> Result<ValueId, Decline> {
    let (window, group) = window::convolution(c, x, w)?;
    let rank = c.rank(w)?;
    let zero_w = zero_point(c, w, zero_w).map(|z| parameter(c, z, rank, 0)).transpose()?;
    c.add_optional(Op::ConvInteger { window, group }, vec![Some(x), Some(w), zero_x, zero_w])
}

/// `x, its scale and zero point, w, its scale and zero point, those of the result, bias?`: the bias is of i32, at
/// the scale of the products.
fn linear_conv(c: &mut NodeContext<'_>) -> Built {
    let [x, scale_x, zero_x, w, scale_w, zero_w, scale, zero] = inputs::<8>(c)?;
    let rank = c.rank(x)?;
    let mut integers = convolved(c, x, w, Some(zero_x), Some(zero_w))?;
    if let Some(bias) = c.optional(8) {
        let bias = parameter(c, bias, rank, 1)?;
        integers = c.add(Op::Binary(Binary::Add), &[integers, bias])?;
    }
    let scale_w = parameter(c, scale_w, rank, 1)?;
    let factor = c.add(Op::Binary(Binary::Mul), &[scale_x, scale_w])?;
    let factor = c.add(Op::Binary(Binary::Div), &[factor, scale])?;
    let y = scaled(c, integers, factor)?;
    Ok(vec![rounded(c, y, zero)?])
}

/// The integers of [`product`] as floats, times `factor` (which broadcasts).
pub(super) fn scaled(
    c: &mut NodeContext<'_>,
    integers: ValueId,
    factor: ValueId,
) -> Result<ValueId, Decline> {
    let to = c.dtype(factor)?;
    let real = c.add(Op::Cast { to }, &[integers])?;
    c.add(Op::Binary(Binary::Mul), &[real, factor])
}

/// Rounds to integers of the type of `zero` and adds it.
pub(super) fn rounded(c: &mut NodeContext<'_>, x: ValueId, zero: ValueId) -> Result<ValueId, Decline> {
    let (to, float) = (c.dtype(zero)?, c.dtype(x)?);
    let one = c.graph.float_scalar(float, 1.0);
    c.add(Op::Quantize { to, blocks: None }, &[x, one, zero])
}

/// `a, its scale and zero point, b, its scale and zero point, those of the result`: the product in integers,
/// then one factor, as runtimes compute it.
fn linear_matmul(c: &mut NodeContext<'_>) -> Built {
    let [a, scale_a, zero_a, b, scale_b, zero_b, scale, zero] = inputs::<8>(c)?;
    let integers = product(c, a, b, Some(zero_a), Some(zero_b))?;
    let scale_a = parameter(c, scale_a, 2, 0)?;
    let scale = parameter(c, scale, 2, 0)?;
    let factor = c.add(Op::Binary(Binary::Mul), &[scale_a, scale_b])?;
    let factor = c.add(Op::Binary(Binary::Div), &[factor, scale])?;
    let y = scaled(c, integers, factor)?;
    Ok(vec![rounded(c, y, zero)?])
}

/// The first `N` operands, all present.
pub(super) fn inputs<const N: usize>(c: &NodeContext<'_>) -> Result<[ValueId; N], Decline> {
    let all = (0..N).map(|i| c.input(i)).collect::<Result<Vec<_>, _>>()?;
    all.try_into().map_err(|_| Decline::Opaque)
}
