//! What attention's operands say of attention itself.
//!
//! ```text
//!   Attention(q, Reshape(Expand(Unsqueeze(k))), ..)     becomes  Attention(q, k, ..)      grouped heads
//!   Attention(.., Where(c, 0, -inf))                    becomes  Attention(.., c)         bool mask
//!   Attention(.., Expand(m))                            becomes  Attention(.., m)
//! ```

use super::matching::{made_by, rank, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Dim, Graph, GraphError, NodeId, Op, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "attention-operands", fidelity: Fidelity::Rounding, apply };

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some(Op::Attention(_)) = graph.node(id).map(|n| &n.op) else { return Ok(None) };
        if let Some(found) = grouped(graph, id, notes) {
            return regrouped(graph, id, found);
        }
        plainer_mask(graph, id)
    })
}

/// Heads repeated for the queries: what is repeated, and the permutation that stood after the repetition.
struct Repeated {
    /// `[.., h, 1, ..]`
    source: ValueId,
    /// The axis of size 1.
    at: usize,
    perm: Option<Vec<usize>>,
}

fn grouped(graph: &Graph, id: NodeId, notes: &mut Notes) -> Option<[Repeated; 2]> {
    let node = graph.node(id)?;
    let (k, v) = (repeated(graph, node.input(1)?), repeated(graph, node.input(2)?));
    match (k, v) {
        (Some(k), Some(v)) => Some([k, v]),
        (None, None) => None,
        _ => {
            notes.decline(graph, id, "only one of k and v repeats heads");
            None
        }
    }
}

/// `Transpose?(Reshape(Expand(s [.., h, 1, ..] → [.., h, r, ..]) → [.., h·r, ..]))`, the heads last but two.
fn repeated(graph: &Graph, v: ValueId) -> Option<Repeated> {
    let heads = rank(graph, v)?.checked_sub(3)?;
    let (merged, perm) = match graph.producing(v).map(|n| (&n.op, n.input(0))) {
        Some((Op::Transpose { perm }, Some(x))) => (x, Some(perm.clone())),
        _ => (v, None),
    };
    let axis = perm.as_ref().map_or(Some(heads), |p| p.get(heads).copied())?;
    let expanded = made_by(graph, merged, |op| matches!(op, Op::Reshape { .. }))?.input(0)?;
    let source = made_by(graph, expanded, |op| matches!(op, Op::Expand))?.input(0)?;
    let (narrow, wide, flat) = (graph.shape(source)?, graph.shape(expanded)?, graph.shape(merged)?);
    let at = axis + 1;
    let repeats_one = narrow.len() == wide.len()
        && wide.len() == flat.len() + 1
        && *narrow.get(at)? == Dim::ONE
        && narrow.iter().zip(wide).enumerate().all(|(i, (a, b))| i == at || a == b);
    let merges = flat.get(..axis)? == wide.get(..axis)?
        && flat.get(axis + 1..)? == wide.get(at + 1..)?
        && *flat.get(axis)? == wide.get(axis)?.clone() * wide.get(at)?.clone();
    (repeats_one && merges).then_some(Repeated { source, at, perm })
}

fn regrouped(graph: &mut Graph, id: NodeId, found: [Repeated; 2]) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(None) };
    let mut inputs = node.inputs.clone();
    for (slot, r) in inputs[1..].iter_mut().zip(found) {
        let mut x = graph.add(Op::Squeeze { axes: vec![r.at] }, &[r.source])?;
        if let Some(perm) = r.perm {
            x = graph.add(Op::Transpose { perm }, &[x])?;
        }
        *slot = Some(x);
    }
    remade(graph, node.op, inputs)
}

fn remade(graph: &mut Graph, op: Op, inputs: Vec<Option<ValueId>>) -> Result<Option<ValueId>, GraphError> {
    let node = graph.add_node(op, inputs, 1, "")?;
    Ok(graph.node(node).and_then(|n| n.outputs.first().copied()))
}

fn plainer_mask(graph: &mut Graph, id: NodeId) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(None) };
    let Some(mask) = node.input(3) else { return Ok(None) };
    let Some(plain) = condition(graph, mask)? else { return Ok(None) };
    let mut inputs = node.inputs;
    inputs[3] = Some(plain);
    remade(graph, node.op, inputs)
}

/// What a mask expands, or the condition of a mask that is 0 or -inf.
fn condition(graph: &mut Graph, mask: ValueId) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.producing(mask) else { return Ok(None) };
    let (first, op) = (node.input(0), node.op.clone());
    match op {
        Op::Expand => Ok(first),
        Op::Where => {
            let (then, otherwise) = (node.input(1), node.input(2));
            let is = |v: Option<ValueId>, x: f64| v.and_then(|v| uniform(graph, v)) == Some(x);
            if is(then, 0.0) && is(otherwise, f64::NEG_INFINITY) {
                return Ok(first);
            }
            if is(then, f64::NEG_INFINITY) && is(otherwise, 0.0) {
                let Some(first) = first else { return Ok(None) };
                return graph.add(Op::Unary(Unary::Not), &[first]).map(Some);
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}
