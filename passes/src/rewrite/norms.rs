//! Layer and RMS normalisation in all their spellings.
//!
//! ```text
//!   x · (mean(x²) + ε)^-½                                   becomes  RmsNorm(x)
//!   (x - mean x) · (mean((x - mean x)²) + ε)^-½             becomes  LayerNorm(x)
//!   w · Norm(x)   with w [D] constant                       becomes  Norm(x, w)
//!   Norm(x[, w]) + b                                        becomes  LayerNorm(x, w, b)
//!   Cast₁₆(Norm(Cast₃₂(x)))                                 becomes  Norm(x)
//! ```
//!
//! The power ½ may be Sqrt under a Div, Reciprocal, Div(1, ·) or Pow; squares are Pow or Mul; Casts may
//! stand anywhere between. Norms compute in at least f32 whatever their operand's type.

use super::matching::{behind_casts, binary, dim_from_end, dtype, either, made_by, rank, unary, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::eval::eval_op;
use crate::ir::{Binary, DType, Graph, GraphError, NodeId, Op, Reduce, Tensor, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "norms", fidelity: Fidelity::Rounding, apply };

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        if let Some((op, x)) = decomposed(graph, id, notes) {
            return graph.add(op, &[x]).map(Some);
        }
        if let Some((op, operands)) = with_scale_or_bias(graph, id) {
            return absorbed(graph, op, operands);
        }
        match without_casts(graph, id) {
            Some((op, operands)) => absorbed(graph, op, operands),
            None => Ok(None),
        }
    })
}

/// An operand of a norm: a value there is, or a constant to be made.
enum Operand {
    Value(ValueId),
    Constant(Tensor),
    Absent,
}

fn absorbed(graph: &mut Graph, op: Op, operands: Vec<Operand>) -> Result<Option<ValueId>, GraphError> {
    let inputs = operands
        .into_iter()
        .map(|o| match o {
            Operand::Value(v) => Some(v),
            Operand::Constant(t) => Some(graph.constant(t)),
            Operand::Absent => None,
        })
        .collect();
    let node = graph.add_node(op, inputs, 1, "")?;
    Ok(graph.node(node).and_then(|n| n.outputs.first().copied()))
}

/// The norm that the elementwise arithmetic ending in this node computes.
fn decomposed(graph: &Graph, id: NodeId, notes: &mut Notes) -> Option<(Op, ValueId)> {
    let result = *graph.node(id)?.outputs.first()?;
    let (x, inside) = over_root(graph, result)?;
    let (mean, epsilon) =
        either(graph, behind_casts(graph, inside), Binary::Add, |m, e| Some((m, uniform(graph, e)?)))?;
    let (square, axes) = mean_of(graph, mean)?;
    let squared = squared(graph, square)?;
    if behind_casts(graph, squared) != behind_casts(graph, x) {
        return None;
    }
    if epsilon < 0.0 || !epsilon.is_finite() {
        notes.decline(graph, id, format!("epsilon {epsilon} is not a norm's"));
        return None;
    }
    let axis = *axes.first()?;
    if axes.iter().copied().ne(axis..rank(graph, x)?) {
        notes.decline(graph, id, format!("the mean is over axes {axes:?}, which are not the last ones"));
        return None;
    }
    let (epsilon, wanted) = (epsilon as f32, dtype(graph, result)?);
    if let Some(centred) = centred(graph, behind_casts(graph, x), &axes)
        && dtype(graph, centred) == Some(wanted)
    {
        return Some((Op::LayerNorm { axis, epsilon }, centred));
    }
    (dtype(graph, x) == Some(wanted)).then_some((Op::RmsNorm { axis, epsilon }, x))
}

/// `(x, u)` where the value is `x / sqrt(u)`.
fn over_root(graph: &Graph, v: ValueId) -> Option<(ValueId, ValueId)> {
    if let Some((x, root)) = binary(graph, v, Binary::Div)
        && let Some(u) = root_of(graph, behind_casts(graph, root), 0.5)
    {
        return Some((x, u));
    }
    either(graph, v, Binary::Mul, |x, r| Some((x, inverse_root_of(graph, behind_casts(graph, r))?)))
}

/// `u` where the value is `u^power`.
fn root_of(graph: &Graph, v: ValueId, power: f64) -> Option<ValueId> {
    if power == 0.5
        && let Some(u) = unary(graph, v, Unary::Sqrt)
    {
        return Some(u);
    }
    let (u, p) = binary(graph, v, Binary::Pow)?;
    (uniform(graph, p) == Some(power)).then_some(u)
}

/// `u` where the value is `1 / sqrt(u)`.
fn inverse_root_of(graph: &Graph, v: ValueId) -> Option<ValueId> {
    if let Some(u) = root_of(graph, v, -0.5) {
        return Some(u);
    }
    if let Some(root) = unary(graph, v, Unary::Reciprocal) {
        return root_of(graph, behind_casts(graph, root), 0.5);
    }
    if let Some(inverse) = unary(graph, v, Unary::Sqrt) {
        return unary(graph, behind_casts(graph, inverse), Unary::Reciprocal);
    }
    let (one, root) = binary(graph, v, Binary::Div)?;
    if uniform(graph, one) != Some(1.0) {
        return None;
    }
    root_of(graph, behind_casts(graph, root), 0.5)
}

/// The operand and axes of a mean that keeps its axes.
fn mean_of(graph: &Graph, v: ValueId) -> Option<(ValueId, Vec<usize>)> {
    let node = graph.producing(behind_casts(graph, v))?;
    match &node.op {
        Op::Reduce { op: Reduce::Mean, axes, keepdims: true } => Some((node.input(0)?, axes.clone())),
        _ => None,
    }
}

fn squared(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let v = behind_casts(graph, v);
    if let Some((x, p)) = binary(graph, v, Binary::Pow) {
        return (uniform(graph, p) == Some(2.0)).then_some(x);
    }
    let (a, b) = binary(graph, v, Binary::Mul)?;
    (behind_casts(graph, a) == behind_casts(graph, b)).then_some(a)
}

/// `x` where the value is `x - mean(x)` over these axes.
fn centred(graph: &Graph, v: ValueId, over: &[usize]) -> Option<ValueId> {
    let (x, mean) = binary(graph, v, Binary::Sub)?;
    let (of, axes) = mean_of(graph, mean)?;
    (axes == over && behind_casts(graph, of) == behind_casts(graph, x)).then_some(x)
}

fn is_norm(op: &Op) -> bool {
    matches!(op, Op::LayerNorm { .. } | Op::RmsNorm { .. })
}

/// A norm whose result is multiplied by, or added to, a constant vector over the last axis.
fn with_scale_or_bias(graph: &Graph, id: NodeId) -> Option<(Op, Vec<Operand>)> {
    let node = graph.node(id)?;
    let result = *node.outputs.first()?;
    match node.op {
        Op::Binary(Binary::Mul) => either(graph, result, Binary::Mul, |norm, w| {
            let norm = made_by(graph, norm, is_norm).filter(|n| n.operands().count() == 1)?;
            let w = last_axis_vector(graph, norm.input(0)?, w)?;
            one_axis(graph, &norm.op, norm.input(0)?)?;
            Some((norm.op.clone(), vec![Operand::Value(norm.input(0)?), Operand::Constant(w)]))
        }),
        Op::Binary(Binary::Add) => either(graph, result, Binary::Add, |norm, b| {
            let norm = made_by(graph, norm, |op| matches!(op, Op::LayerNorm { .. }))?;
            let x = norm.input(0)?;
            if norm.input(2).is_some() {
                return None;
            }
            one_axis(graph, &norm.op, x)?;
            let b = last_axis_vector(graph, x, b)?;
            let scale = norm.input(1).map_or(Operand::Absent, Operand::Value);
            Some((norm.op.clone(), vec![Operand::Value(x), scale, Operand::Constant(b)]))
        }),
        _ => None,
    }
}

/// Declines norms over more than the last axis.
fn one_axis(graph: &Graph, op: &Op, x: ValueId) -> Option<()> {
    match op {
        Op::LayerNorm { axis, .. } | Op::RmsNorm { axis, .. } => (axis + 1 == rank(graph, x)?).then_some(()),
        _ => None,
    }
}

/// The constant as a vector over `x`'s last axis, when it varies along no other.
fn last_axis_vector(graph: &Graph, x: ValueId, v: ValueId) -> Option<Tensor> {
    let t = graph.tensor(v)?;
    let last = dim_from_end(graph, x, 0)?.known_size()?;
    let fits = t.len() == last && t.shape().last() == Some(&last) && t.shape().len() <= rank(graph, x)?;
    if fits && dtype(graph, x) == Some(t.dtype()) { t.reshaped(vec![last]).ok() } else { None }
}

/// A norm between Casts from and to a narrower type computes in f32 by itself.
fn without_casts(graph: &Graph, id: NodeId) -> Option<(Op, Vec<Operand>)> {
    let node = graph.node(id)?;
    let Op::Cast { to } = node.op else { return None };
    let norm = made_by(graph, node.input(0)?, is_norm)?;
    let widened = made_by(graph, norm.input(0)?, |op| matches!(op, Op::Cast { to: DType::F32 }))?;
    let x = widened.input(0)?;
    if !matches!(to, DType::F16 | DType::BF16) || dtype(graph, x) != Some(to) {
        return None;
    }
    let mut operands = vec![Operand::Value(x)];
    for v in norm.inputs.iter().skip(1) {
        operands.push(match v {
            None => Operand::Absent,
            Some(v) => Operand::Constant(narrowed(graph.tensor(*v)?, to)?),
        });
    }
    Some((norm.op.clone(), operands))
}

/// The tensor in a narrower type, when that loses nothing.
fn narrowed(t: &Tensor, to: DType) -> Option<Tensor> {
    let cast = |t: &Tensor, to| eval_op(&Op::Cast { to }, &[Some(t)]).ok()?.into_iter().next();
    let narrow = cast(t, to)?;
    (cast(&narrow, t.dtype())? == *t).then_some(narrow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::testing::{after, cleaned, count, f32s, random};

    const EPSILON: f32 = 1e-5;

    /// How the parts are spelled.
    #[derive(Clone, Copy, Default)]
    struct Spelling {
        mul_square: bool,
        root: u8,
        swapped: bool,
        centred: bool,
        scale: Option<usize>,
        bias: bool,
        axes: Option<usize>,
    }

    fn norm(s: Spelling) -> Graph {
        let mut g = Graph::new("norm");
        let x = g.add_input("x", f32s(&[-1, -2, 8]));
        let axis = s.axes.unwrap_or(2);
        let mean =
            |g: &mut Graph, v| g.op(Op::Reduce { op: Reduce::Mean, axes: vec![axis], keepdims: true }, &[v]);
        let y = if s.centred {
            let m = mean(&mut g, x);
            g.bin(Binary::Sub, x, m)
        } else {
            x
        };
        let square = if s.mul_square {
            g.bin(Binary::Mul, y, y)
        } else {
            let two = g.num(2.0);
            g.bin(Binary::Pow, y, two)
        };
        let variance = mean(&mut g, square);
        let epsilon = g.num(EPSILON);
        let inside = if s.swapped {
            g.bin(Binary::Add, epsilon, variance)
        } else {
            g.bin(Binary::Add, variance, epsilon)
        };
        let mut out = match s.root {
            0 => {
                let root = g.un(Unary::Sqrt, inside);
                g.bin(Binary::Div, y, root)
            }
            n => {
                let (one, minus, root) = (g.num(1.0), g.num(-0.5), g.un(Unary::Sqrt, inside));
                let inverse = match n {
                    1 => g.un(Unary::Reciprocal, root),
                    2 => g.bin(Binary::Div, one, root),
                    _ => g.bin(Binary::Pow, inside, minus),
                };
                if s.swapped { g.bin(Binary::Mul, inverse, y) } else { g.bin(Binary::Mul, y, inverse) }
            }
        };
        if let Some(n) = s.scale {
            let w = g.constant(random(5, &[n]));
            out = if s.swapped { g.bin(Binary::Mul, w, out) } else { g.bin(Binary::Mul, out, w) };
        }
        if s.bias {
            let b = g.constant(random(6, &[1, 1, 8]));
            out = g.bin(Binary::Add, out, b);
        }
        g.add_output("y", out);
        g
    }

    #[test]
    fn every_spelling_is_one_node() {
        for root in 0..4 {
            for bits in 0..8 {
                let s = Spelling {
                    root,
                    mul_square: bits & 1 > 0,
                    swapped: bits & 2 > 0,
                    scale: (bits & 4 > 0).then_some(8),
                    ..Spelling::default()
                };
                let rms = cleaned(&norm(s));
                assert_eq!((rms.node_count(), count(&rms, "RMSNormalization")), (1, 1));
                let layer = cleaned(&norm(Spelling { centred: true, bias: true, ..s }));
                assert_eq!((layer.node_count(), count(&layer, "LayerNormalization")), (1, 1));
            }
        }
    }

    #[test]
    fn an_rms_norm_takes_no_bias() {
        let g = cleaned(&norm(Spelling { scale: Some(8), bias: true, ..Spelling::default() }));
        assert_eq!((count(&g, "RMSNormalization"), count(&g, "Add")), (1, 1));
    }

    #[test]
    fn half_precision_is_seen_through() {
        let mut g = Graph::new("norm16");
        let x = g.add_input("x", crate::ir::Type::new(DType::F16, f32s(&[-1, 8]).shape));
        let wide = g.op(Op::Cast { to: DType::F32 }, &[x]);
        let square = g.bin(Binary::Mul, wide, wide);
        let mean = g.op(Op::Reduce { op: Reduce::Mean, axes: vec![1], keepdims: true }, &[square]);
        let epsilon = g.num(EPSILON);
        let inside = g.bin(Binary::Add, mean, epsilon);
        let root = g.un(Unary::Sqrt, inside);
        let y = g.bin(Binary::Div, wide, root);
        let narrow = g.op(Op::Cast { to: DType::F16 }, &[y]);
        let w: Vec<half::f16> = random(3, &[8]).to_f32().iter().map(|x| half::f16::from_f32(*x)).collect();
        let w = g.constant(Tensor::from_vec(vec![8], w).unwrap());
        let y = g.bin(Binary::Mul, narrow, w);
        g.add_output("y", y);
        let mut clean = g.clone();
        crate::rewrite::clean_up(&mut clean).unwrap();
        assert_eq!((clean.node_count(), count(&clean, "RMSNormalization")), (1, 1));
        crate::rewrite::testing::assert_same(&g, &clean, 2e-3);
    }

    #[test]
    fn near_misses_stay() {
        // Another axis than the last.
        let (g, _) = after(&norm(Spelling { axes: Some(1), ..Spelling::default() }), &PASS);
        assert_eq!(count(&g, "RMSNormalization"), 0);
        // A scale of one element only would be a vector of another length.
        let g = cleaned(&norm(Spelling { scale: Some(1), ..Spelling::default() }));
        assert_eq!((count(&g, "RMSNormalization"), count(&g, "Mul")), (1, 1));
        // The mean of another value.
        let mut g = Graph::new("other");
        let (x, z) = (g.add_input("x", f32s(&[-1, 8])), g.add_input("z", f32s(&[-1, 8])));
        let square = g.bin(Binary::Mul, z, z);
        let mean = g.op(Op::Reduce { op: Reduce::Mean, axes: vec![1], keepdims: true }, &[square]);
        let epsilon = g.num(EPSILON);
        let inside = g.bin(Binary::Add, mean, epsilon);
        let root = g.un(Unary::Sqrt, inside);
        let y = g.bin(Binary::Div, x, root);
        g.add_output("y", y);
        assert_eq!(after(&g, &PASS).1, 0);
    }
}
