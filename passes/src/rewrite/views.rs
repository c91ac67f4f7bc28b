//! Views that do nothing, undo each other or compose.
//!
//! ```text
//!   Identity(x), Cast(x: f32, f32), Reshape(x, shape of x), x[0:], Concat(x)     become  x
//!   Transpose(Transpose(x, p), q)     becomes  Transpose(x, p∘q)
//!   Reshape(Reshape(x, ·), s)         becomes  Reshape(x, s)
//!   Add(Expand(x), y)                 becomes  Add(x, y)          (y has the expanded shape)
//!   Exp(Expand(x)), Add(Expand(x), 1) becomes  Expand(Exp(x)), Expand(Add(x, 1))
//! ```

use std::collections::HashSet;

use super::matching::{ints, made_by, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{
    Binary, DType, Dim, Graph, GraphError, Node, NodeId, Op, Reduce, Symbol, Tensor, Unary, ValueId,
};

pub(crate) const PASS: Pass = Pass { name: "views", fidelity: Fidelity::Exact, apply };

fn apply(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    let symbols = input_symbols(graph);
    let mut users = None;
    sweep_first(graph, |graph, id| {
        if let Some(same) = stands_for_operand(graph, id) {
            return Ok(Some(same));
        }
        let Some(op) = graph.node(id).map(|n| n.op.clone()) else { return Ok(None) };
        match op {
            Op::Cast { to } => match cast(graph, id, to)? {
                Some(same) => Ok(Some(same)),
                // Streams start as copies of one value, and the skip path's casts stay on the skip path.
                None if to.is_float() && is_float(graph, id) => Ok(None),
                None => sunk_expand(graph, id, &op),
            },
            Op::Transpose { perm } => transpose(graph, id, &perm),
            Op::Reshape { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } => {
                reshape(graph, id, &op, &symbols)
            }
            Op::Expand => expand(graph, id),
            Op::Binary(_) | Op::Where => match broadcast(graph, id, &op, &symbols, &mut users)? {
                Some(same) => Ok(Some(same)),
                None => sunk_expand(graph, id, &op),
            },
            Op::Concat { axis } => concat(graph, id, axis),
            Op::Unary(_) => sunk_expand(graph, id, &op),
            _ => Ok(None),
        }
    })
}

/// The symbols that the graph's inputs bind: sizes made of these may stand in [`Op::Dims`].
pub(crate) fn input_symbols(graph: &Graph) -> HashSet<Symbol> {
    let shapes = graph.inputs().iter().filter_map(|v| graph.shape(*v));
    shapes.flatten().filter_map(|d| d.as_symbol().cloned()).collect()
}

/// Whether sizes are made of bound symbols alone.
pub(crate) fn expressible(dims: &[Dim], symbols: &HashSet<Symbol>) -> bool {
    dims.iter().all(|d| d.symbols().iter().all(|s| symbols.contains(s)))
}

/// The operand that a node passes on unchanged.
fn stands_for_operand(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let node = graph.node(id)?;
    let x = node.input(0)?;
    if matches!(node.op, Op::Identity) {
        return Some(x);
    }
    let (from, to) = (graph.ty(x)?, graph.ty(*node.outputs.first()?)?);
    let is_own = match &node.op {
        Op::Cast { .. } => true,
        Op::Reshape { .. } | Op::Expand => true,
        Op::Squeeze { axes } | Op::Unsqueeze { axes } => axes.is_empty(),
        Op::Transpose { perm } => perm.iter().enumerate().all(|(i, p)| i == *p),
        // With steps of 1, as many elements as there are leave no choice of which.
        Op::Slice { steps, .. } => steps.iter().all(|s| *s == 1),
        Op::Concat { .. } => node.inputs.len() == 1,
        Op::Tile => ints(graph, node.input(1)?)?.iter().all(|n| *n == 1),
        Op::Pad { .. } => ints(graph, node.input(1)?)?.iter().all(|n| *n == 0),
        _ => false,
    };
    (is_own && from == to).then_some(x)
}

fn cast(graph: &mut Graph, id: NodeId, to: DType) -> Result<Option<ValueId>, GraphError> {
    let found = (|| {
        let middle = graph.node(id)?.input(0)?;
        let inner = made_by(graph, middle, |op| matches!(op, Op::Cast { .. }))?;
        let x = inner.input(0)?;
        let (from, via) = (graph.ty(x)?.dtype, graph.ty(middle)?.dtype);
        // An integer that a float carried to an integer type which cannot hold it is undefined in ONNX.
        let defined = !to.is_int() || via.is_int() || from.is_float() || embeds(from, to);
        (embeds(from, via) && defined).then_some((x, from))
    })();
    match found {
        Some((x, from)) if from == to => Ok(Some(x)),
        Some((x, _)) => graph.add(Op::Cast { to }, &[x]).map(Some),
        None => Ok(None),
    }
}

/// Whether every value of `from` is a value of `to`.
fn embeds(from: DType, to: DType) -> bool {
    use DType::*;
    // Bits of the largest integer range that the type holds exactly, and whether it has a sign.
    let range = |d: DType| match d {
        Bool => (1, false),
        U8 => (8, false),
        U16 => (16, false),
        U32 => (32, false),
        U64 => (64, false),
        I8 => (7, true),
        I16 => (15, true),
        I32 => (31, true),
        I64 => (63, true),
        F16 => (11, true),
        BF16 => (8, true),
        F32 => (24, true),
        F64 => (53, true),
        I4 => (3, true),
        U4 => (4, false),
    };
    if from == to {
        return true;
    }
    if from.is_float() {
        return matches!((from, to), (F16 | BF16, F32 | F64) | (F32, F64));
    }
    let ((bits, signed), (room, sign)) = (range(from), range(to));
    to != Bool && bits <= room && (sign || !signed)
}

fn transpose(graph: &mut Graph, id: NodeId, perm: &[usize]) -> Result<Option<ValueId>, GraphError> {
    let found = (|| {
        let inner = graph.producing(graph.node(id)?.input(0)?)?;
        let Op::Transpose { perm: first } = &inner.op else { return None };
        let composed: Option<Vec<usize>> = perm.iter().map(|p| first.get(*p).copied()).collect();
        Some((inner.input(0)?, composed?))
    })();
    match found {
        Some((x, perm)) if perm.iter().enumerate().all(|(i, p)| i == *p) => Ok(Some(x)),
        Some((x, perm)) => graph.add(Op::Transpose { perm }, &[x]).map(Some),
        None => Ok(None),
    }
}

/// Whether a node's first operand is of floats.
fn is_float(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).and_then(|n| graph.ty(n.input(0)?)).is_some_and(|t| t.dtype.is_float())
}

fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. })
}

/// Compositions of Reshape, Squeeze and Unsqueeze; the shape operand spelled out.
fn reshape(
    graph: &mut Graph,
    id: NodeId,
    op: &Op,
    symbols: &HashSet<Symbol>,
) -> Result<Option<ValueId>, GraphError> {
    let Some((x, result)) = ends(graph, id) else { return Ok(None) };
    let Some(shape) = graph.shape(result).map(<[Dim]>::to_vec) else { return Ok(None) };
    if let Some((merged, split)) = transposed_view(graph, x, &shape).filter(|_| expressible(&shape, symbols))
    {
        let target = graph.dims(&split)?;
        let split = graph.add(Op::Reshape { allow_zero: true }, &[merged, target])?;
        let mut perm: Vec<usize> = (0..shape.len()).collect();
        perm.swap(shape.len() - 2, shape.len() - 1);
        return graph.add(Op::Transpose { perm }, &[split]).map(Some);
    }
    let inner = made_by(graph, x, is_view).and_then(|n| Some((n.op.clone(), n.input(0)?)));
    match (op, inner.clone()) {
        (Op::Unsqueeze { axes }, Some((Op::Squeeze { axes: gone }, source))) if *axes == gone => {
            return Ok(graph.shape(source).is_some_and(|s| s == shape).then_some(source));
        }
        (Op::Squeeze { axes }, Some((Op::Unsqueeze { axes: added }, source))) if *axes == added => {
            return Ok(Some(source));
        }
        (Op::Unsqueeze { axes }, Some((Op::Unsqueeze { axes: first }, source))) => {
            let axes = composed_unsqueeze(&first, axes, shape.len());
            return graph.add(Op::Unsqueeze { axes }, &[source]).map(Some);
        }
        _ => {}
    }
    if !expressible(&shape, symbols) {
        return Ok(None);
    }
    let reshapes = |op: &Op| matches!(op, Op::Reshape { .. });
    let source = match inner {
        Some((inner, source)) if reshapes(op) || reshapes(&inner) => source,
        _ if reshapes(op) => x,
        _ => return Ok(None),
    };
    if source == x && spelled_out(graph, id, &shape) {
        return Ok(None);
    }
    if graph.shape(source).is_some_and(|s| s == shape) {
        return Ok(Some(source));
    }
    let target = graph.dims(&shape)?;
    graph.add(Op::Reshape { allow_zero: true }, &[source, target]).map(Some)
}

fn ends(graph: &Graph, id: NodeId) -> Option<(ValueId, ValueId)> {
    let node = graph.node(id)?;
    Some((node.input(0)?, *node.outputs.first()?))
}

/// Whether the shape operand is what the result's type says, literally.
fn spelled_out(graph: &Graph, id: NodeId, shape: &[Dim]) -> bool {
    let Some(node) = graph.node(id) else { return true };
    matches!(node.op, Op::Reshape { allow_zero: true })
        && node.input(1).and_then(|s| graph.content(s)).is_some_and(|c| c == shape)
}

fn composed_unsqueeze(first: &[usize], second: &[usize], rank: usize) -> Vec<usize> {
    // Positions that the second leaves for the axes of its operand, in order.
    let kept: Vec<usize> = (0..rank).filter(|i| !second.contains(i)).collect();
    let mut axes: Vec<usize> = first.iter().filter_map(|a| kept.get(*a).copied()).collect();
    axes.extend(second);
    axes.sort_unstable();
    axes
}

/// `Reshape(Transpose(m [n, p, q], [0, 2, 1]) → [.., q, p])` where `m` is a Reshape itself: the last two
/// axes of `Reshape(m → [.., p, q])` change places. Returns `m` and that shape.
fn transposed_view(graph: &Graph, x: ValueId, shape: &[Dim]) -> Option<(ValueId, Vec<Dim>)> {
    let turned = graph.producing(x)?;
    let Op::Transpose { perm } = &turned.op else { return None };
    if perm[..] != [0, 2, 1] || shape.len() < 3 {
        return None;
    }
    let merged = turned.input(0)?;
    made_by(graph, merged, |op| matches!(op, Op::Reshape { .. }))?;
    let [n, p, q] = graph.shape(merged)? else { return None };
    let lead = shape.len() - 2;
    let fits = shape[lead] == *q && shape[lead + 1] == *p && Dim::product(&shape[..lead]) == *n;
    fits.then(|| shape[..lead].iter().chain([p, q]).cloned().collect()).map(|s| (merged, s))
}

fn expand(graph: &mut Graph, id: NodeId) -> Result<Option<ValueId>, GraphError> {
    let found = (|| {
        let node = graph.node(id)?;
        let inner = made_by(graph, node.input(0)?, |op| matches!(op, Op::Expand))?;
        let (shape, result) = (node.input(1)?, graph.shape(*node.outputs.first()?)?);
        // The outer shape must say everything: where it has a 1, the inner shape decides.
        let all = graph.content(shape)? == result;
        all.then_some([inner.input(0)?, shape])
    })();
    match found {
        Some(operands) => graph.add(Op::Expand, &operands).map(Some),
        None => Ok(None),
    }
}

/// Broadcasting nodes read operands before their Expand where that gives the same shape, except products that
/// are summed over what is repeated: residual streams that are equal yet. A Where whose condition is constant
/// is one of its branches.
fn broadcast(
    graph: &mut Graph,
    id: NodeId,
    op: &Op,
    symbols: &HashSet<Symbol>,
    users: &mut Option<Vec<Vec<NodeId>>>,
) -> Result<Option<ValueId>, GraphError> {
    if matches!(op, Op::Where)
        && let Some(branch) = decided(graph, id, symbols)?
    {
        return Ok(Some(branch));
    }
    let Some(node) = graph.node(id) else { return Ok(None) };
    let Some(mut operands) = node.inputs.iter().copied().collect::<Option<Vec<_>>>() else { return Ok(None) };
    let Some(result) = node.outputs.first().copied() else { return Ok(None) };
    let Some(shape) = graph.shape(result).map(<[Dim]>::to_vec) else { return Ok(None) };
    let mut changed = false;
    if matches!(op, Op::Where)
        && let Some(inner) = made_by(graph, operands[0], |op| matches!(op, Op::Unary(Unary::Not)))
        && let Some(condition) = inner.input(0)
    {
        operands[0] = condition;
        operands.swap(1, 2);
        changed = true;
    }
    for i in 0..operands.len() {
        let Some(plain) = unexpanded(graph, operands[i]) else { continue };
        if *op == Op::Binary(Binary::Mul)
            && summed_over_repeats(graph, result, operands[i], users.get_or_insert_with(|| graph.users()))
        {
            continue;
        }
        let mut tried = operands.clone();
        tried[i] = plain.value(graph);
        if broadcast_shape(graph, &tried).is_some_and(|s| s == shape) {
            operands = tried;
            changed = true;
        }
    }
    if changed { graph.add(op.clone(), &operands).map(Some) } else { Ok(None) }
}

/// Whether the product is summed over an axis along which an Expand repeats `factor`.
fn summed_over_repeats(graph: &Graph, product: ValueId, factor: ValueId, users: &[Vec<NodeId>]) -> bool {
    let repeats = |axis: usize| {
        let narrow = graph.shape(made_by(graph, factor, |op| matches!(op, Op::Expand))?.input(0)?)?;
        let (wide, rank) = (graph.shape(factor)?, graph.shape(product)?.len());
        let at = |shape: &[Dim]| shape.get((axis + shape.len()).checked_sub(rank)?).cloned();
        Some(at(narrow).is_none_or(|d| d == Dim::ONE) && at(wide)? != Dim::ONE)
    };
    users.get(product.index()).into_iter().flatten().filter_map(|n| graph.node(*n)).any(|n| match &n.op {
        Op::Reduce { op: Reduce::Sum, axes, .. } => axes.iter().any(|a| repeats(*a) == Some(true)),
        _ => false,
    })
}

/// What an Expand or a fill repeats.
enum Repeated {
    Value(ValueId),
    Fill(Tensor),
}

impl Repeated {
    fn value(self, graph: &mut Graph) -> ValueId {
        match self {
            Repeated::Value(v) => v,
            Repeated::Fill(t) => graph.constant(t),
        }
    }
}

fn unexpanded(graph: &Graph, v: ValueId) -> Option<Repeated> {
    let node = graph.producing(v)?;
    match &node.op {
        Op::Expand => node.input(0).map(Repeated::Value),
        Op::ConstantOfShape { value } => value.reshaped(vec![]).ok().map(Repeated::Fill),
        _ => None,
    }
}

/// The shape that the operands broadcast to.
fn broadcast_shape(graph: &Graph, operands: &[ValueId]) -> Option<Vec<Dim>> {
    let mut out: Vec<Dim> = vec![];
    for v in operands {
        let shape = graph.shape(*v)?;
        let rank = out.len().max(shape.len());
        let at = |s: &[Dim], i: usize| {
            (i + s.len()).checked_sub(rank).and_then(|i| s.get(i)).cloned().unwrap_or(Dim::ONE)
        };
        out = (0..rank).map(|i| at(&out, i).broadcast(&at(shape, i))).collect::<Option<_>>()?;
    }
    Some(out)
}

/// The branch that a constant condition takes, expanded to the result's shape if need be.
fn decided(graph: &mut Graph, id: NodeId, symbols: &HashSet<Symbol>) -> Result<Option<ValueId>, GraphError> {
    let Some((branch, shape)) = graph.node(id).and_then(|n| branch(graph, n)) else { return Ok(None) };
    if graph.shape(branch).is_some_and(|s| s == shape) {
        return Ok(Some(branch));
    }
    if !expressible(&shape, symbols) {
        return Ok(None);
    }
    let target = graph.dims(&shape)?;
    graph.add(Op::Expand, &[branch, target]).map(Some)
}

fn branch(graph: &Graph, node: &Node) -> Option<(ValueId, Vec<Dim>)> {
    let (condition, then, otherwise) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let branch = match uniform(graph, condition) {
        Some(c) if c != 0.0 => then,
        Some(_) => otherwise,
        None if then == otherwise => then,
        None => return None,
    };
    Some((branch, graph.shape(*node.outputs.first()?)?.to_vec()))
}

/// Operands without elements contribute nothing.
fn concat(graph: &mut Graph, id: NodeId, axis: usize) -> Result<Option<ValueId>, GraphError> {
    let Some(node) = graph.node(id) else { return Ok(None) };
    let operands: Vec<ValueId> = node.operands().collect();
    let empty = |v: &ValueId| graph.shape(*v).and_then(|s| s.get(axis)).is_some_and(|d| *d == Dim::ZERO);
    let kept: Vec<ValueId> = operands.iter().copied().filter(|v| !empty(v)).collect();
    if kept.is_empty() || kept.len() == operands.len() {
        return Ok(None);
    }
    graph.add(Op::Concat { axis }, &kept).map(Some)
}

/// An elementwise function of one repeated value and constants of one element is repeated itself.
fn sunk_expand(graph: &mut Graph, id: NodeId, op: &Op) -> Result<Option<ValueId>, GraphError> {
    if let Op::Unary(Unary::Not) = op
        && let Some(same) = not(graph, id)
    {
        return Ok(Some(same));
    }
    let found = (|| {
        let node = graph.node(id)?;
        let mut operands: Vec<ValueId> = node.inputs.iter().copied().collect::<Option<_>>()?;
        let expand = |v: ValueId| {
            let n = made_by(graph, v, |op| matches!(op, Op::Expand))?;
            n.input(0).zip(n.input(1))
        };
        let (x, shape) = operands.iter().find_map(|v| expand(*v))?;
        let narrow = graph.shape(x)?;
        let mut wide = None;
        for v in &mut operands {
            match expand(*v) {
                // All must be repeated alike.
                Some((inner, to)) if to == shape && graph.shape(inner)? == narrow => {
                    wide = graph.shape(*v);
                    *v = inner;
                }
                None if graph.tensor(*v).is_some_and(|t| t.len() == 1 && t.shape().len() <= narrow.len()) => {
                }
                _ => return None,
            }
        }
        // The result must be as large as the repeated operands.
        if wide? != graph.shape(*node.outputs.first()?)? {
            return None;
        }
        Some((operands, shape))
    })();
    let Some((operands, shape)) = found else { return Ok(None) };
    let small = graph.add(op.clone(), &operands)?;
    graph.add(Op::Expand, &[small, shape]).map(Some)
}

fn not(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let inner = made_by(graph, graph.node(id)?.input(0)?, |op| matches!(op, Op::Unary(Unary::Not)))?;
    inner.input(0)
}

#[cfg(test)]
mod tests;
