//! Reductions and what selects along an axis.

use snlp_passes::ir::{Binary, Op, Reduce, Unary};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        name if reduction(name).is_some() => reduce,
        "ArgMax" => |c| arg(c, true),
        "ArgMin" => |c| arg(c, false),
        "CumSum" => cum_sum,
        "TopK" => top_k,
        _ => return None,
    })
}

fn reduction(op_type: &str) -> Option<Reduce> {
    Some(match op_type {
        "ReduceSum" => Reduce::Sum,
        "ReduceMean" => Reduce::Mean,
        "ReduceMax" => Reduce::Max,
        "ReduceMin" => Reduce::Min,
        "ReduceProd" => Reduce::Prod,
        "ReduceL1" => Reduce::L1,
        "ReduceL2" => Reduce::L2,
        "ReduceSumSquare" => Reduce::SumSquare,
        "ReduceLogSum" => Reduce::LogSum,
        "ReduceLogSumExp" => Reduce::LogSumExp,
        _ => return None,
    })
}

fn reduce(c: &mut NodeContext<'_>) -> Built {
    let op = reduction(c.node.op_type()).ok_or(Decline::Opaque)?;
    let x = c.input(0)?;
    let since = if op == Reduce::Sum { 13 } else { 18 };
    let given = c.ints_since(since, 1, "axes")?.filter(|axes| !axes.is_empty());
    let keepdims = c.flag("keepdims", true)?;
    let rank = c.rank(x)?;
    let axes = match given {
        Some(axes) => c.axes(&axes, rank)?,
        None if c.flag("noop_with_empty_axes", false)? => vec![],
        None => (0..rank).collect(),
    };
    if axes.is_empty() {
        return over_nothing(c, op);
    }
    c.plain(Op::Reduce { op, axes, keepdims }, 1)
}

/// A reduction over no axes (or of a scalar) still applies its function to each element.
fn over_nothing(c: &mut NodeContext<'_>, op: Reduce) -> Built {
    let x = c.input(0)?;
    let value = match op {
        Reduce::L1 | Reduce::L2 => c.add(Op::Unary(Unary::Abs), &[x])?,
        Reduce::SumSquare => c.add(Op::Binary(Binary::Mul), &[x, x])?,
        Reduce::LogSum => c.add(Op::Unary(Unary::Log), &[x])?,
        _ => c.add(Op::Identity, &[x])?,
    };
    Ok(vec![value])
}

fn arg(c: &mut NodeContext<'_>, max: bool) -> Built {
    let rank = c.rank(c.input(0)?)?;
    let axis = c.axis(c.int("axis", 0)?, rank)?;
    let keepdims = c.flag("keepdims", true)?;
    let last = c.flag("select_last_index", false)?;
    c.plain(if max { Op::ArgMax { axis, keepdims, last } } else { Op::ArgMin { axis, keepdims, last } }, 1)
}

fn cum_sum(c: &mut NodeContext<'_>) -> Built {
    let rank = c.rank(c.input(0)?)?;
    let axis = match c.ints(1)?[..] {
        [axis] => c.axis(axis, rank)?,
        _ => return Err(OnnxError::invalid("needs one axis").into()),
    };
    let (exclusive, reverse) = (c.flag("exclusive", false)?, c.flag("reverse", false)?);
    c.plain(Op::CumSum { axis, exclusive, reverse }, 1)
}

fn top_k(c: &mut NodeContext<'_>) -> Built {
    let (x, k) = (c.input(0)?, c.input(1)?);
    let rank = c.rank(x)?;
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let op = Op::TopK { axis, largest: c.flag("largest", true)? };
    let id = c.graph.add_node(op, vec![Some(x), Some(k)], 2, &c.name)?;
    Ok(c.graph.node(id).map(|n| n.outputs.clone()).unwrap_or_default())
}
