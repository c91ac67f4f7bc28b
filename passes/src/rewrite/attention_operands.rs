//! What attention's operands say of attention itself.
//!
//! ```text
//!   Attention(q, Reshape(Expand(Unsqueeze(k))), ..)     becomes  Attention(q, k, ..)      grouped heads
//!   Attention(.., Where(c, 0, -inf))                    becomes  Attention(.., c)         bool mask
//!   Attention(.., Expand(m))                            becomes  Attention(.., m)
//!   Attention {scale s}(q · c, ..)                      becomes  Attention {scale s·c}(q, ..)
//!   Attention(Reshape(q) [b,g,r,t,d], k [b,g,1,s,d], ..)  becomes  Reshape(Attention(q [b,g·r,t,d], k [b,g,s,d], ..))
//! ```

use super::attention::{reframe, reframed, scaled};
use super::matching::{made_by, rank, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Attention, Dim, Graph, GraphError, NodeId, Op, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "attention-operands", fidelity: Fidelity::Rounding, apply };

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some(Op::Attention(_)) = graph.node(id).map(|n| &n.op) else { return Ok(None) };
        if let Some(found) = grouped(graph, id, notes) {
            return regrouped(graph, id, found);
        }
        if let Some(found) = folded(graph, id) {
            return fold(graph, id, found).map(Some);
        }
        if let Some((op, inputs)) = unscaled(graph, id) {
            return remade(graph, op, inputs);
        }
        plainer_mask(graph, id)
    })
}

/// The operator with a constant factor on q or k as part of its scale.
fn unscaled(graph: &Graph, id: NodeId) -> Option<(Op, Vec<Option<ValueId>>)> {
    let node = graph.node(id)?;
    let Op::Attention(attention) = node.op else { return None };
    let (at, (x, factor)) = [0, 1].into_iter().find_map(|i| Some((i, scaled(graph, node.input(i)?)?)))?;
    let mut inputs = node.inputs.clone();
    inputs[at] = Some(x);
    let scale = (f64::from(attention.scale) * factor) as f32;
    Some((Op::Attention(Attention { scale, ..attention }), inputs))
}

/// Queries with an axis of groups, which the query heads of plain attention have no need for.
struct Folded {
    /// `[.., g·r, t, d]`
    q: ValueId,
    /// The axis of size 1 of `k` and `v`.
    at: usize,
    /// Shape of the scores before and after.
    scores: [Vec<Dim>; 2],
}

fn folded(graph: &Graph, id: NodeId) -> Option<Folded> {
    let node = graph.node(id)?;
    let (q, k, v) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let (wide, keys, values) = (graph.shape(q)?, graph.shape(k)?, graph.shape(v)?);
    let at = wide.len().checked_sub(3).filter(|at| *at > 0)?;
    let shared = |s: &[Dim]| s.len() == wide.len() && s[at] == Dim::ONE && s[..at] == wide[..at];
    let narrow = made_by(graph, q, |op| matches!(op, Op::Reshape { .. }))?.input(0)?;
    let merge = |s: &[Dim]| [&s[..at - 1], &[&s[at - 1] * &s[at]], &s[at + 1..]].concat();
    if !shared(keys) || !shared(values) || graph.shape(narrow)? != merge(wide) {
        return None;
    }
    let before = [&wide[..at + 2], &keys[at + 1..at + 2]].concat();
    let after = merge(&before);
    if let Some(mask) = node.input(3) {
        reframed(graph.shape(mask)?, &before, &after)?;
    }
    Some(Folded { q: narrow, at, scores: [before, after] })
}

fn fold(graph: &mut Graph, id: NodeId, found: Folded) -> Result<ValueId, GraphError> {
    let Some(node) = graph.node(id).cloned() else { return Ok(found.q) };
    let mut inputs = node.inputs.clone();
    inputs[0] = Some(found.q);
    for slot in &mut inputs[1..3] {
        if let Some(v) = slot {
            *slot = Some(graph.add(Op::Squeeze { axes: vec![found.at] }, &[*v])?);
        }
    }
    if let Some(Some(mask)) = inputs.get_mut(3) {
        let [before, after] = &found.scores;
        *mask = reframe(graph, *mask, before, after)?;
    }
    let shape = node.outputs.first().and_then(|v| graph.shape(*v)).unwrap_or_default().to_vec();
    let made = graph.add_node(node.op, inputs, 1, &node.name)?;
    let attended = graph.node(made).and_then(|n| n.outputs.first().copied()).unwrap_or(found.q);
    let target = graph.dims(&shape)?;
    graph.add(Op::Reshape { allow_zero: true }, &[attended, target])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Type};
    use crate::rewrite::testing::{cleaned, count, f32s};
    use crate::rewrite::{Dialect, lower};

    /// Lowered attention with grouped heads is found again, masks included, whatever sizes agree by chance
    /// (`b`, the groups and the heads of a group are all 2).
    #[test]
    fn grouped_heads_survive_lowering() {
        for lead in [&[][..], &[3]] {
            for mask in [
                None,
                Some(&[-1, 1, 1, -3][..]),
                Some(&[-1, 1, -2, -3]),
                Some(&[-1, 4, -2, -3]),
                Some(&[-2, -3]),
            ] {
                let mut g = Graph::new("grouped");
                let q = g.add_input("q", f32s(&[lead, &[-1, 4, -2, 8]].concat()));
                let k = g.add_input("k", f32s(&[lead, &[-1, 2, -3, 8]].concat()));
                let v = g.add_input("v", f32s(&[lead, &[-1, 2, -3, 6]].concat()));
                let mut operands = vec![q, k, v];
                if let Some(shape) = mask {
                    operands.push(g.add_input("keep", Type::new(DType::Bool, f32s(shape).shape)));
                }
                let op = Attention { scale: 0.5, causal: false, window: None, softcap: None, safe: true };
                let y = g.op(Op::Attention(op), &operands);
                g.add_output("y", y);
                let mut lowered = g.clone();
                lower(&mut lowered, &Dialect::onnx(17)).unwrap();
                assert_eq!(count(&lowered, "Attention"), 0);
                let found = cleaned(&lowered);
                crate::rewrite::testing::assert_same(&g, &found, 1e-5);
                assert_eq!(
                    (count(&found, "Attention"), count(&found, "Softmax")),
                    (1, 0),
                    "{lead:?} {mask:?}"
                );
                let attention = found.nodes().find(|(_, n)| matches!(n.op, Op::Attention(_))).unwrap().1;
                let rank = found.shape(attention.input(0).unwrap()).unwrap().len();
                assert_eq!(rank, 4 + lead.len(), "{lead:?} {mask:?}");
            }
        }
    }

    /// Causality beside padding is an attribute again, and so is the scale.
    #[test]
    fn grouped_causal_heads_survive_lowering() {
        let mut g = Graph::new("causal");
        let q = g.add_input("q", f32s(&[3, -1, 4, -2, 8]));
        let k = g.add_input("k", f32s(&[3, -1, 2, -2, 8]));
        let keep = g.add_input("keep", Type::new(DType::Bool, f32s(&[-1, 1, 1, -2]).shape));
        let op = Attention { scale: 0.5, causal: true, window: None, softcap: None, safe: true };
        let y = g.op(Op::Attention(op), &[q, k, k, keep]);
        g.add_output("y", y);
        let mut lowered = g.clone();
        lower(&mut lowered, &Dialect::onnx(17)).unwrap();
        let found = cleaned(&lowered);
        crate::rewrite::testing::assert_same(&g, &found, 1e-5);
        let ops: Vec<&Op> = found.nodes().map(|(_, n)| &n.op).collect();
        assert!(ops.contains(&&Op::Attention(op)), "{ops:?}");
    }
}
