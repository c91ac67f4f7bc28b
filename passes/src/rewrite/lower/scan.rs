//! Running sums of integers, where a target has those of floats only.

use super::Dialect;
use crate::ir::{DType, Graph, GraphError, Node, Op, ValueId};

/// `CumSum(x)` as a sum in f64, exact up to 2^53; `None` where the dialect has it.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    let (Op::CumSum { .. }, Some(x)) = (&node.op, node.input(0)) else { return Ok(None) };
    if dialect.long_sums || graph.ty(x).is_none_or(|t| t.dtype != DType::I64) {
        return Ok(None);
    }
    let x = graph.add(Op::Cast { to: DType::F64 }, &[x])?;
    let sum = graph.add(node.op.clone(), &[x])?;
    graph.add(Op::Cast { to: DType::I64 }, &[sum]).map(Some)
}
