//! Gathers at computed positions that are plain views.
//!
//! ```text
//!   GatherND(mask [b, s], (i, j))  →  [b, 1, 1, s]        becomes  Reshape(mask → [b, 1, 1, s])
//!   Gather(Reshape(mask → [b·s]), i·s + j)                becomes  the same
//!   Gather(positions [n, d], Unsqueeze(Range(0, t)))      becomes  Unsqueeze(positions[0..t])
//!   ScatterElements(cache [t, d], Range(0, t), x [t, d])  becomes  x
//! ```
//!
//! Exporters write indexing with ranges so. Exact wherever the original is defined: an index out of range is
//! an error there.

use std::collections::HashSet;

use super::index_expr::{Element, element, index_symbol, index_symbols};
use super::matching::{made_by, same_type};
use super::sweep::sweep_first;
use super::views::{expressible, input_symbols};
use super::{Fidelity, Notes, Pass};
use crate::ir::{Dim, Graph, GraphError, NodeId, Op, ScatterReduction, Symbol, ValueId};

pub(crate) const PASS: Pass = Pass { name: "index-gathers", fidelity: Fidelity::Exact, apply };

fn apply(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    let symbols = input_symbols(graph);
    sweep_first(graph, |graph, id| {
        if let Some(updates) = overwritten(graph, id) {
            return Ok(Some(updates));
        }
        let Some(found) = by_position(graph, id).or_else(|| of_rows(graph, id)) else { return Ok(None) };
        built(graph, id, found, &symbols)
    })
}

/// Axis `a` of the data runs along axis `axes[a]` of the result, from `starts[a]`.
struct Found {
    data: ValueId,
    starts: Vec<Dim>,
    axes: Vec<usize>,
}

/// GatherND whose index tuple is one index per axis, and Gather on a flattened value.
fn by_position(graph: &Graph, id: NodeId) -> Option<Found> {
    let node = graph.node(id)?;
    let (data, indices) = (node.input(0)?, node.input(1)?);
    let rank = graph.shape(*node.outputs.first()?)?.len();
    match node.op {
        Op::GatherNd { batch_dims: 0 } => {
            let shape = graph.shape(indices)?;
            let n = shape.last()?.known_size()?;
            // Trailing axes that the tuple does not index would follow the position's axes.
            if n != graph.shape(data)?.len() || shape.len() != rank + 1 {
                return None;
            }
            let positions = tuple(graph, indices, n, rank)?;
            let mut found = Found { data, starts: vec![], axes: vec![] };
            for p in positions {
                let (start, axis) = along(&p, rank)?;
                found.starts.push(start);
                found.axes.push(axis);
            }
            Some(found)
        }
        Op::Gather { axis: 0 } => {
            let source = made_by(graph, data, |op| matches!(op, Op::Reshape { .. }))?.input(0)?;
            let (flat, shape) = (graph.shape(data)?, graph.shape(source)?);
            let tail = flat.iter().skip(1).all(|d| *d == Dim::ONE);
            if !tail || shape.len() < 2 || flat.first()? != &Dim::product(shape) {
                return None;
            }
            let at = index_symbols(rank - (flat.len() - 1));
            let Element::Index(position) = element(graph, indices, &at)? else { return None };
            let axes = strides(&position, shape, at.len())?;
            Some(Found { data: source, starts: vec![Dim::ZERO; shape.len()], axes })
        }
        _ => None,
    }
}

/// The elements of an index tuple: a Concat along the last axis.
fn tuple(graph: &Graph, indices: ValueId, n: usize, rank: usize) -> Option<Vec<Dim>> {
    let concat = made_by(graph, indices, |op| matches!(op, Op::Concat { axis } if *axis == rank))?;
    if concat.inputs.len() != n {
        return None;
    }
    let mut at = index_symbols(rank);
    at.push(Dim::ZERO);
    let mut out = vec![];
    for part in concat.operands() {
        let Element::Index(d) = element(graph, part, &at)? else { return None };
        out.push(d);
    }
    Some(out)
}

/// `start + index` along one of `rank` axes.
fn along(position: &Dim, rank: usize) -> Option<(Dim, usize)> {
    (0..rank).find_map(|axis| {
        let start = position.clone() - index_symbol(axis).into();
        let free = (0..rank).all(|a| !start.symbols().contains(&index_symbol(a)));
        (free && start.is_non_negative()).then_some((start, axis))
    })
}

/// The result's axes along which a row-major position in `shape` runs.
fn strides(position: &Dim, shape: &[Dim], rank: usize) -> Option<Vec<usize>> {
    let (mut rest, mut axes) = (position.clone(), vec![]);
    for i in 0..shape.len() {
        let stride = Dim::product(&shape[i + 1..]);
        let axis = (0..rank).find(|axis| {
            let symbol = index_symbol(*axis);
            let at = |n: i64| position.replace(&|s| (*s == symbol).then(|| n.into()));
            !axes.contains(axis) && at(1) - at(0) == stride && at(2) - at(1) == stride
        })?;
        rest = rest - Dim::from(index_symbol(axis)) * stride;
        axes.push(axis);
    }
    (rest == Dim::ZERO).then_some(axes)
}

/// What ScatterElements writes, where that is every element in its own place.
fn overwritten(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let node = graph.node(id)?;
    let Op::ScatterElements { axis, reduction: ScatterReduction::None } = node.op else { return None };
    let (data, indices, updates) = (node.input(0)?, node.input(1)?, node.input(2)?);
    if !same_type(graph, data, updates) || graph.shape(indices)? != graph.shape(data)? {
        return None;
    }
    let at = index_symbols(graph.shape(data)?.len());
    (element(graph, indices, &at)? == Element::Index(at.get(axis)?.clone())).then_some(updates)
}

/// Gather along one axis at `start + i`: a slice.
fn of_rows(graph: &Graph, id: NodeId) -> Option<Found> {
    let node = graph.node(id)?;
    let Op::Gather { axis } = node.op else { return None };
    let (data, indices) = (node.input(0)?, node.input(1)?);
    let (rank, data_rank) = (graph.shape(indices)?.len(), graph.shape(data)?.len());
    let Element::Index(position) = element(graph, indices, &index_symbols(rank))? else { return None };
    let (start, along) = along(&position, rank)?;
    let mut starts = vec![Dim::ZERO; data_rank];
    *starts.get_mut(axis)? = start;
    let axes = (0..data_rank)
        .map(|a| match a.cmp(&axis) {
            std::cmp::Ordering::Less => a,
            std::cmp::Ordering::Equal => axis + along,
            std::cmp::Ordering::Greater => a + rank - 1,
        })
        .collect();
    Some(Found { data, starts, axes })
}

fn built(
    graph: &mut Graph,
    id: NodeId,
    found: Found,
    symbols: &HashSet<Symbol>,
) -> Result<Option<ValueId>, GraphError> {
    let Some(result) = graph.node(id).and_then(|n| n.outputs.first().copied()) else { return Ok(None) };
    let (Some(shape), Some(data)) = (graph.shape(result), graph.shape(found.data)) else { return Ok(None) };
    let (shape, data) = (shape.to_vec(), data.to_vec());
    let in_order = found.axes.windows(2).all(|w| w[0] < w[1]);
    let others_are_one = (0..shape.len()).all(|a| found.axes.contains(&a) || shape[a] == Dim::ONE);
    if !in_order || !others_are_one || !expressible(&shape, symbols) {
        return Ok(None);
    }
    let mut x = found.data;
    let mut cut: Vec<(usize, Dim, Dim)> = vec![];
    for (axis, start) in found.starts.into_iter().enumerate() {
        let size = shape[found.axes[axis]].clone();
        if size != data[axis] || start != Dim::ZERO {
            cut.push((axis, start.clone(), start + size));
        }
    }
    if !cut.is_empty() {
        let starts: Vec<Dim> = cut.iter().map(|(_, s, _)| s.clone()).collect();
        let ends: Vec<Dim> = cut.iter().map(|(_, _, e)| e.clone()).collect();
        if !expressible(&starts, symbols) {
            return Ok(None);
        }
        let (starts, ends) = (graph.dims(&starts)?, graph.dims(&ends)?);
        let axes: Vec<usize> = cut.iter().map(|(a, _, _)| *a).collect();
        let steps = vec![1; axes.len()];
        x = graph.add(Op::Slice { axes, steps }, &[x, starts, ends])?;
    }
    let added: Vec<usize> = (0..shape.len()).filter(|a| !found.axes.contains(a)).collect();
    if !added.is_empty() {
        x = graph.add(Op::Unsqueeze { axes: added }, &[x])?;
    }
    if graph.shape(x).is_some_and(|s| s == shape) {
        return Ok(Some(x));
    }
    // A slice of data whose size is unrelated to the number of positions: they say how many there are.
    let target = graph.dims(&shape)?;
    graph.add(Op::Reshape { allow_zero: true }, &[x, target]).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Binary, DType, Type, Unary};
    use crate::rewrite::testing::{after, count, f32s, random, size};

    fn range(g: &mut Graph, start: i64, size: &Dim, axes: &[usize]) -> ValueId {
        let limit = size.clone() + start.into();
        let (start, limit, one) = (g.scalar(start), g.dim_scalar(&limit).unwrap(), g.scalar(1i64));
        let r = g.op(Op::Range, &[start, limit, one]);
        g.op(Op::Unsqueeze { axes: axes.to_vec() }, &[r])
    }

    fn mask_input(g: &mut Graph) -> ValueId {
        g.add_input("mask", Type::new(DType::I64, vec![size(-1), size(-2)]))
    }

    #[test]
    fn an_indexed_mask_is_a_view() {
        let mut g = Graph::new("nd");
        let mask = mask_input(&mut g);
        let (b, t) = (range(&mut g, 0, &size(-1), &[1, 2, 3]), range(&mut g, 0, &size(-2), &[0, 1, 2]));
        let shape = g.dims(&[size(-1), Dim::ONE, Dim::ONE, size(-2)]).unwrap();
        let (b, t) = (g.op(Op::Expand, &[b, shape]), g.op(Op::Expand, &[t, shape]));
        let (b, t) =
            (g.op(Op::Unsqueeze { axes: vec![4] }, &[b]), g.op(Op::Unsqueeze { axes: vec![4] }, &[t]));
        let pairs = g.op(Op::Concat { axis: 4 }, &[b, t]);
        let y = g.op(Op::GatherNd { batch_dims: 0 }, &[mask, pairs]);
        let y = g.un(Unary::Neg, y);
        g.add_output("y", y);
        let (clean, _) = after(&g, &PASS);
        assert_eq!((clean.node_count(), count(&clean, "GatherND")), (2, 0));
    }

    #[test]
    fn a_flat_position_is_two_axes() {
        for stride in [size(-2), 3i64.into()] {
            let mut g = Graph::new("flat");
            let mask = mask_input(&mut g);
            let flat = g.dims(&[size(-1) * size(-2), Dim::ONE]).unwrap();
            let flat = g.op(Op::Reshape { allow_zero: true }, &[mask, flat]);
            let (b, t) = (range(&mut g, 0, &size(-1), &[1, 2, 3]), range(&mut g, 0, &size(-2), &[0, 1, 2]));
            let row = g.dim_scalar(&stride).unwrap();
            let at = g.bin(Binary::Mul, b, row);
            let at = g.bin(Binary::Add, t, at);
            let y = g.op(Op::Gather { axis: 0 }, &[flat, at]);
            g.add_output("y", y);
            let whole = stride == size(-2);
            assert_eq!(count(&after(&g, &PASS).0, "Gather"), usize::from(!whole));
        }
    }

    #[test]
    fn positions_are_a_slice() {
        let mut g = Graph::new("rows");
        let table = g.constant(random(1, &[16, 3]));
        g.add_input("x", f32s(&[-2]));
        let at = range(&mut g, 2, &size(-2), &[0]);
        let y = g.op(Op::Gather { axis: 0 }, &[table, at]);
        g.add_output("y", y);
        let (clean, _) = after(&g, &PASS);
        assert_eq!((count(&clean, "Gather"), count(&clean, "Slice")), (0, 1));
    }

    #[test]
    fn what_is_written_over_whole_is_not_read() {
        // The position of the first token is counted, as masks of ones are: n - n = 0.
        for (first, times) in [(0, 1), (1, 1), (0, 2)] {
            let mut g = Graph::new("scatter");
            let x = g.add_input("x", f32s(&[-1, 4]));
            let cache = g.un(Unary::Neg, x);
            let (n, shape) = (g.dims(&[size(-1)]).unwrap(), g.dims(&[size(-1), 4i64.into()]).unwrap());
            let ones = g.op(Op::ConstantOfShape { value: crate::ir::Tensor::scalar(1i64) }, &[n]);
            let sum = Op::Reduce { op: crate::ir::Reduce::Sum, axes: vec![0], keepdims: true };
            let counted = g.op(sum, &[ones]);
            let start = g.bin(Binary::Sub, counted, n);
            let at = range(&mut g, first, &size(-1), &[1]);
            let at = g.bin(Binary::Add, at, start);
            let factor = g.scalar(times as i64);
            let at = g.bin(Binary::Mul, at, factor);
            let at = g.op(Op::Expand, &[at, shape]);
            let scatter = Op::ScatterElements { axis: 0, reduction: ScatterReduction::None };
            let y = g.op(scatter, &[cache, at, x]);
            let y = g.un(Unary::Exp, y);
            g.add_output("y", y);
            let mut clean = g.clone();
            apply(&mut clean, &mut Notes::default()).unwrap();
            clean.remove_dead();
            let gone = count(&clean, "ScatterElements") == 0;
            assert_eq!(gone, first == 0 && times == 1, "from {first}, times {times}");
        }
    }

    #[test]
    fn data_dependent_gathers_stay() {
        let mut g = Graph::new("data");
        let table = g.constant(random(1, &[16, 3]));
        let ids = g.add_input("ids", Type::new(DType::I64, vec![size(-2)]));
        let y = g.op(Op::Gather { axis: 0 }, &[table, ids]);
        g.add_output("y", y);
        // Steps of two are no range of rows.
        let (start, limit, two) = (g.scalar(0i64), g.scalar(6i64), g.scalar(2i64));
        let even = g.op(Op::Range, &[start, limit, two]);
        let z = g.op(Op::Gather { axis: 0 }, &[table, even]);
        g.add_output("z", z);
        assert_eq!(after(&g, &PASS).1, 0);
    }
}
