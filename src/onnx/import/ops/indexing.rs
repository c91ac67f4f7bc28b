//! Operators that read or write elements by index.

use snlp_passes::ir::{Op, ScatterReduction};

use super::{Builder, Built, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Gather" => |c| along_axis(c, 2, |axis| Op::Gather { axis }),
        "GatherElements" => |c| along_axis(c, 2, |axis| Op::GatherElements { axis }),
        "GatherND" => gather_nd,
        "ScatterElements" => |c| {
            let reduction = reduction(c)?;
            let rank = c.rank(c.input(0)?)?;
            let axis = c.axis(c.int("axis", 0)?, rank)?;
            c.plain(Op::ScatterElements { axis, reduction }, 3)
        },
        "ScatterND" => |c| {
            let reduction = reduction(c)?;
            c.plain(Op::ScatterNd { reduction }, 3)
        },
        "Trilu" => |c| {
            let upper = c.flag("upper", true)?;
            c.input(0)?;
            c.one(Op::Trilu { upper })
        },
        "OneHot" => one_hot,
        "NonZero" => |c| c.plain(Op::NonZero, 1),
        _ => return None,
    })
}

fn along_axis(c: &mut NodeContext<'_>, operands: usize, op: fn(usize) -> Op) -> Built {
    let rank = c.rank(c.input(0)?)?;
    let axis = c.axis(c.int("axis", 0)?, rank)?;
    c.plain(op(axis), operands)
}

fn gather_nd(c: &mut NodeContext<'_>) -> Built {
    let given = c.int("batch_dims", 0)?;
    let batch_dims =
        usize::try_from(given).map_err(|_| OnnxError::invalid(format!("has batch_dims {given}")))?;
    c.plain(Op::GatherNd { batch_dims }, 2)
}

fn reduction(c: &NodeContext<'_>) -> Result<ScatterReduction, OnnxError> {
    Ok(match c.attributes.text("reduction")?.as_deref() {
        None | Some("none") => ScatterReduction::None,
        Some("add") => ScatterReduction::Add,
        Some("mul") => ScatterReduction::Mul,
        Some("max") => ScatterReduction::Max,
        Some("min") => ScatterReduction::Min,
        Some(other) => return Err(OnnxError::invalid(format!("reduction '{other}' is unknown"))),
    })
}

fn one_hot(c: &mut NodeContext<'_>) -> Built {
    let rank = c.rank(c.input(0)?)? + 1;
    let axis = c.axis(c.int("axis", -1)?, rank)?;
    c.plain(Op::OneHot { axis }, 3)
}
