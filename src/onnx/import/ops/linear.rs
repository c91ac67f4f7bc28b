//! Matrix products.

use snlp_passes::ir::Op;

use super::{Builder, Built, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "MatMul" => |c| c.plain(Op::MatMul, 2),
        "Gemm" => gemm,
        "Einsum" => einsum,
        _ => return None,
    })
}

pub(super) fn gemm(c: &mut NodeContext<'_>) -> Built {
    let op = Op::Gemm {
        alpha: c.float("alpha", 1.0)?,
        beta: c.float("beta", 1.0)?,
        trans_a: c.flag("transA", false)?,
        trans_b: c.flag("transB", false)?,
    };
    c.input(1)?;
    c.one(op)
}

fn einsum(c: &mut NodeContext<'_>) -> Built {
    let equation = c.attributes.text("equation")?;
    let equation = equation.ok_or_else(|| OnnxError::invalid("lacks the attribute 'equation'"))?;
    c.all_inputs()?;
    c.one(Op::Einsum { equation: equation.replace(' ', "") })
}
