//! Reductions and what selects along an axis.

use snlp_passes::ir::{Dynamic, Op, Reduce, over_nothing};

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
    let keepdims = c.flag("keepdims", true)?;
    let noop = c.flag("noop_with_empty_axes", false)?;
    if c.opset >= since && c.is_open(1) {
        return c.plain(Op::Dynamic(Dynamic::Reduce { op, keepdims, noop }), 2);
    }
    let given = c.ints_since(since, 1, "axes")?.filter(|axes| !axes.is_empty());
    let rank = c.rank(x)?;
    let axes = match given {
        Some(axes) => c.axes(&axes, rank)?,
        None if noop => vec![],
        None => (0..rank).collect(),
    };
    if axes.is_empty() {
        let each = over_nothing(op);
        return Ok(vec![c.add(each.op, &vec![x; each.operands.len()])?]);
    }
    c.plain(Op::Reduce { op, axes, keepdims }, 1)
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
    let (exclusive, reverse) = (c.flag("exclusive", false)?, c.flag("reverse", false)?);
    if c.is_open(1) {
        return c.plain(Op::Dynamic(Dynamic::CumSum { exclusive, reverse }), 2);
    }
    let axis = match c.ints(1)?[..] {
        [axis] => c.axis(axis, rank)?,
        _ => return Err(OnnxError::invalid("needs one axis").into()),
    };
    c.plain(Op::CumSum { axis, exclusive, reverse }, 1)
}

fn top_k(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    let k = if c.opset >= 10 {
        c.input(1)?
    } else {
        let k = c.attributes.int("k")?.ok_or_else(|| OnnxError::invalid("lacks the attribute 'k'"))?;
        c.graph.ints(&[k])
    };
    let rank = c.rank(x)?;
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    let op = Op::TopK { axis, largest: c.flag("largest", true)? };
    let id = c.graph.add_node(op, vec![Some(x), Some(k)], 2, &c.name)?;
    Ok(c.graph.node(id).map(|n| n.outputs.clone()).unwrap_or_default())
}
