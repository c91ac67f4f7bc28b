//! Rotary position embeddings.
//!
//! ```text
//!   x·cos + Concat(-x₂, x₁)·sin                         becomes  Rotary { table: Full }(x, cos, sin)
//!   Concat(x₁·cos - x₂·sin, x₂·cos + x₁·sin)            becomes  Rotary { table: Half }(x, cos, sin)
//!   Concat(x₁·cos + x₂·sin, x₂·cos - x₁·sin)            becomes  the same with -sin
//! ```
//!
//! `x₁, x₂` are the halves of the last axis, or its even and odd elements (`interleaved`), which are put
//! together again by Reshape. A rotation of a part of the head is one of a Slice; the Concat with the rest
//! stays.

use super::matching::{binary, dim_from_end, either, ints, made_by, rank, unary};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Binary, Dim, Graph, GraphError, NodeId, Op, Rotary, RotaryTable, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "rotary", fidelity: Fidelity::Rounding, apply };

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let found = full_table(graph, id).or_else(|| half_table(graph, id, notes));
        let Some(found) = found else { return Ok(None) };
        let sin = if found.negated { graph.add(Op::Unary(Unary::Neg), &[found.sin])? } else { found.sin };
        graph.add(Op::Rotary(found.rotary), &[found.x, found.cos, sin]).map(Some)
    })
}

struct Found {
    rotary: Rotary,
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    /// The table is the negative of the sine that Rotary wants.
    negated: bool,
}

/// One of the two parts that are rotated into each other.
#[derive(Clone, Copy, PartialEq)]
struct Part {
    x: ValueId,
    second: bool,
    interleaved: bool,
}

/// The value as a part of another value's last axis.
fn part(graph: &Graph, v: ValueId) -> Option<Part> {
    let node = graph.producing(v)?;
    let Op::Slice { axes, steps } = &node.op else { return None };
    let x = node.input(0)?;
    let size = dim_from_end(graph, x, 0)?.known()?;
    let ([axis], [step]) = (&axes[..], &steps[..]) else { return None };
    if axis + 1 != rank(graph, x)? || size % 2 != 0 {
        return None;
    }
    let (start, end) = (*ints(graph, node.input(1)?)?.first()?, *ints(graph, node.input(2)?)?.first()?);
    let end = end.min(size);
    let part = |second, interleaved| Some(Part { x, second, interleaved });
    match (start, end, *step) {
        (0, e, 1) if e == size / 2 => part(false, false),
        (s, e, 1) if s == size / 2 && e == size => part(true, false),
        (0, e, 2) if e >= size - 1 => part(false, true),
        (1, e, 2) if e == size => part(true, true),
        _ => None,
    }
}

/// The two values that are put side by side, or interleaved, along the last axis.
fn pair(graph: &Graph, v: ValueId) -> Option<(ValueId, ValueId, bool)> {
    let node = graph.producing(v)?;
    let two = |n: &crate::ir::Node| if n.inputs.len() == 2 { n.input(0).zip(n.input(1)) } else { None };
    match &node.op {
        Op::Concat { axis } if axis + 1 == rank(graph, v)? => two(node).map(|(a, b)| (a, b, false)),
        Op::Reshape { .. } => {
            let stacked = node.input(0)?;
            let concat = graph.producing(stacked)?;
            let last = rank(graph, v)?;
            if !matches!(concat.op, Op::Concat { axis } if axis == last) {
                return None;
            }
            let lead = |v| graph.shape(v).map(|s| s[..last - 1].to_vec());
            let (from, to) = (graph.shape(stacked)?, graph.shape(v)?);
            if from.len() != last + 1
                || from[..last - 1] != to[..last - 1]
                || *from.get(last)? != Dim::from(2usize)
            {
                return None;
            }
            let (a, b) = two(concat)?;
            let column = |v| {
                let n = made_by(graph, v, |op| matches!(op, Op::Unsqueeze { axes } if axes[..] == [last]))?;
                n.input(0)
            };
            let (a, b) = (column(a)?, column(b)?);
            (lead(a)? == lead(b)?).then_some((a, b, true))
        }
        _ => None,
    }
}

/// `x·cos + Concat(-x₂, x₁)·sin`.
fn full_table(graph: &Graph, id: NodeId) -> Option<Found> {
    let node = graph.node(id)?;
    if !matches!(node.op, Op::Binary(Binary::Add)) {
        return None;
    }
    let result = *node.outputs.first()?;
    either(graph, result, Binary::Add, |straight, turned| {
        either(graph, turned, Binary::Mul, |rotated, sin| {
            let (first, second, interleaved) = pair(graph, rotated)?;
            let (first, second) = (part(graph, unary(graph, first, Unary::Neg)?)?, part(graph, second)?);
            let halves = first.second && !second.second && first.x == second.x;
            if !halves || first.interleaved != interleaved || second.interleaved != interleaved {
                return None;
            }
            let x = first.x;
            let cos = either(graph, straight, Binary::Mul, |a, cos| (a == x).then_some(cos))?;
            let size = dim_from_end(graph, x, 0)?;
            let tables_fit = [cos, sin].iter().all(|t| dim_from_end(graph, *t, 0) == Some(size));
            (tables_fit && graph.ty(x) == graph.ty(result)).then_some(Found {
                rotary: Rotary { interleaved, table: RotaryTable::Full },
                x,
                cos,
                sin,
                negated: false,
            })
        })
    })
}

/// `±part · table`.
#[derive(Clone, Copy)]
struct Term {
    part: Part,
    table: ValueId,
    negative: bool,
}

fn term(graph: &Graph, v: ValueId, negative: bool) -> Option<Term> {
    if let Some(inner) = unary(graph, v, Unary::Neg) {
        return term(graph, inner, !negative);
    }
    either(graph, v, Binary::Mul, |x, table| {
        let (x, x_negative) = signed(graph, x);
        let (table, table_negative) = signed(graph, table);
        let part = part(graph, x)?;
        Some(Term { part, table, negative: negative ^ x_negative ^ table_negative })
    })
}

fn signed(graph: &Graph, v: ValueId) -> (ValueId, bool) {
    match unary(graph, v, Unary::Neg) {
        Some(x) => (x, true),
        None => (v, false),
    }
}

/// The two terms of a sum or difference, the one of the first part first.
fn terms(graph: &Graph, v: ValueId) -> Option<(Term, Term)> {
    let (a, b, minus) = match (binary(graph, v, Binary::Add), binary(graph, v, Binary::Sub)) {
        (Some((a, b)), _) => (a, b, false),
        (_, Some((a, b))) => (a, b, true),
        _ => return None,
    };
    let (a, b) = (term(graph, a, false)?, term(graph, b, minus)?);
    match (a.part.second, b.part.second) {
        (false, true) => Some((a, b)),
        (true, false) => Some((b, a)),
        _ => None,
    }
}

/// `Concat(x₁·cos ∓ x₂·sin, x₂·cos ± x₁·sin)`.
fn half_table(graph: &Graph, id: NodeId, notes: &mut Notes) -> Option<Found> {
    let result = *graph.node(id)?.outputs.first()?;
    let (first, second, interleaved) = pair(graph, result)?;
    let ((a1, b1), (a2, b2)) = (terms(graph, first)?, terms(graph, second)?);
    let parts = [a1, b1, a2, b2].map(|t| t.part);
    if parts.iter().any(|p| p.x != a1.part.x || p.interleaved != interleaved) {
        notes.decline(graph, id, "the rotated parts are not the two halves of one value");
        return None;
    }
    let (cos, sin, x) = (a1.table, b1.table, a1.part.x);
    let (rotates, upright) = (b1.negative != a2.negative, !a1.negative && !b2.negative);
    if b2.table != cos || a2.table != sin || !rotates || !upright {
        notes.decline(graph, id, "tables or signs are not those of a rotation");
        return None;
    }
    let half = dim_from_end(graph, x, 0)?.known()? / 2;
    let fits = [cos, sin].iter().all(|t| dim_from_end(graph, *t, 0) == Some(&Dim::from(half)));
    if !fits || graph.ty(x) != graph.ty(result) {
        notes.decline(graph, id, "the tables are not as wide as half of the rotated axis");
        return None;
    }
    Some(Found {
        rotary: Rotary { interleaved, table: RotaryTable::Half },
        x,
        cos,
        sin,
        negated: a2.negative,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::testing::{after, cleaned, count, f32s};

    fn slice(g: &mut Graph, x: ValueId, start: i64, end: i64, step: i64) -> ValueId {
        let axis = rank(g, x).unwrap() - 1;
        let (start, end) = (g.ints(&[start]), g.ints(&[end]));
        g.op(Op::Slice { axes: vec![axis], steps: vec![step] }, &[x, start, end])
    }

    fn stack(g: &mut Graph, a: ValueId, b: ValueId, like: ValueId) -> ValueId {
        let a = g.op(Op::Unsqueeze { axes: vec![4] }, &[a]);
        let b = g.op(Op::Unsqueeze { axes: vec![4] }, &[b]);
        let pairs = g.op(Op::Concat { axis: 4 }, &[a, b]);
        let shape = g.shape(like).unwrap().to_vec();
        let target = g.dims(&shape).unwrap();
        g.op(Op::Reshape { allow_zero: true }, &[pairs, target])
    }

    fn full(interleaved: bool, commuted: bool, start: i64) -> Graph {
        let mut g = Graph::new("rotary");
        let x = g.add_input("x", f32s(&[-1, 2, -2, 8]));
        let (cos, sin) = (g.add_input("cos", f32s(&[-2, 8])), g.add_input("sin", f32s(&[-2, 8])));
        let (a, b) = if interleaved {
            (slice(&mut g, x, start, i64::MAX, 2), slice(&mut g, x, 1, i64::MAX, 2))
        } else {
            (slice(&mut g, x, start, 4 + start, 1), slice(&mut g, x, 4, i64::MAX, 1))
        };
        let b = g.un(Unary::Neg, b);
        let rotated =
            if interleaved { stack(&mut g, b, a, x) } else { g.op(Op::Concat { axis: 3 }, &[b, a]) };
        let (s, c) = (g.bin(Binary::Mul, rotated, sin), g.bin(Binary::Mul, cos, x));
        let y = if commuted { g.bin(Binary::Add, s, c) } else { g.bin(Binary::Add, c, s) };
        g.add_output("y", y);
        g
    }

    #[test]
    fn rotate_half_with_full_tables() {
        for (interleaved, commuted) in [(false, false), (false, true), (true, false), (true, true)] {
            let g = cleaned(&full(interleaved, commuted, 0));
            assert_eq!((g.node_count(), count(&g, "RotaryEmbedding")), (1, 1));
        }
    }

    /// `Concat(a·c + σ b·s, b·c - σ a·s)` for the signs given.
    fn halves(b_minus: bool, a_minus: bool, other_table: bool) -> Graph {
        let mut g = Graph::new("rotary");
        let x = g.add_input("x", f32s(&[-1, -2, 2, 8]));
        let (cos, sin) = (g.add_input("cos", f32s(&[1, -2, 1, 4])), g.add_input("sin", f32s(&[1, -2, 1, 4])));
        let (a, b) = (slice(&mut g, x, 0, 4, 1), slice(&mut g, x, 4, 8, 1));
        let second_cos = if other_table { sin } else { cos };
        let (ac, bs) = (g.bin(Binary::Mul, a, cos), g.bin(Binary::Mul, b, sin));
        let (bc, sa) = (g.bin(Binary::Mul, b, second_cos), g.bin(Binary::Mul, sin, a));
        let sign = |minus| if minus { Binary::Sub } else { Binary::Add };
        let (first, second) = (g.bin(sign(b_minus), ac, bs), g.bin(sign(a_minus), bc, sa));
        let y = g.op(Op::Concat { axis: 3 }, &[first, second]);
        g.add_output("y", y);
        g
    }

    #[test]
    fn halves_with_half_tables() {
        let plain = cleaned(&halves(true, false, false));
        assert_eq!((plain.node_count(), count(&plain, "RotaryEmbedding")), (1, 1));
        let inverse = cleaned(&halves(false, true, false));
        assert_eq!((count(&inverse, "Neg"), count(&inverse, "RotaryEmbedding")), (1, 1));
    }

    #[test]
    fn near_misses_stay() {
        for g in [halves(true, true, false), halves(true, false, true), full(false, false, 1)] {
            assert_eq!(after(&g, &PASS).1, 0);
        }
    }
}
