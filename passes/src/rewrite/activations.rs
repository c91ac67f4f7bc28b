//! Gated activations `x · F(x)` in all their spellings.
//!
//! ```text
//!   ½ · x · (1 + erf(x / √2))                             becomes  GeluErf(x)
//!   ½ · x · (1 + tanh(√(2/π) · (x + 0.044715 x³)))        becomes  GeluTanh(x)
//!   x · sigmoid(x)                                        becomes  Silu(x)
//!   x · sigmoid(α x)                                      becomes  Swish { α }
//! ```
//!
//! The product may be associated in any way and in any order. What stands inside erf, tanh or sigmoid is
//! read as a polynomial of `x`, so `x³` may be Pow or products and constants may be factored out.

use super::matching::{binary, close, dtype, either, scalar, unary, uniform};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Binary, DType, Graph, GraphError, NodeId, Op, Unary, ValueId};

pub(crate) const PASS: Pass = Pass { name: "activations", fidelity: Fidelity::Rounding, apply };

fn apply(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| match recognised(graph, id, notes) {
        Some((function, x)) => graph.add(Op::Unary(function), &[x]).map(Some),
        None => Ok(None),
    })
}

/// How deep products and polynomials are followed.
const DEPTH: usize = 6;

fn recognised(graph: &Graph, id: NodeId, notes: &mut Notes) -> Option<(Unary, ValueId)> {
    let result = *graph.node(id)?.outputs.first()?;
    let product = gated(graph, result, DEPTH)?;
    let float = dtype(graph, result);
    let mut found = None;
    for (x, factor) in &product.candidates {
        let Some(inside) = polynomial(graph, product.inside, *x, DEPTH) else { continue };
        if let Some(function) = product.gate.function(product.coefficient * factor, inside, float) {
            found = Some((function, *x));
            break;
        }
    }
    let (function, x) = match found {
        Some(found) => found,
        None => {
            if !product.candidates.is_empty() && product.gate != Gate::Sigmoid {
                notes.decline(graph, id, format!("the constants are not those of Gelu ({:?})", product.gate));
            }
            return None;
        }
    };
    (graph.ty(x) == graph.ty(result)).then_some((function, x))
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Gate {
    /// `1 + erf`
    Erf,
    /// `1 + tanh`
    Tanh,
    Sigmoid,
}

impl Gate {
    /// The activation `coefficient · x · F(inside(x))`.
    fn function(self, coefficient: f64, inside: Polynomial, float: Option<DType>) -> Option<Unary> {
        let is = |i: usize, expected: f64| {
            if expected == 0.0 { inside[i] == 0.0 } else { close(inside[i], expected, float) }
        };
        let linear = inside[0] == 0.0 && inside[2] == 0.0 && inside[3] == 0.0;
        match self {
            Gate::Erf => (close(coefficient, 0.5, float) && linear && is(1, std::f64::consts::FRAC_1_SQRT_2))
                .then_some(Unary::GeluErf),
            Gate::Tanh => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let fits = is(0, 0.0) && is(1, root) && is(2, 0.0) && is(3, root * 0.044715);
                (close(coefficient, 0.5, float) && fits).then_some(Unary::GeluTanh)
            }
            Gate::Sigmoid if close(coefficient, 1.0, float) && linear && inside[1] != 0.0 => {
                Some(if close(inside[1], 1.0, float) {
                    Unary::Silu
                } else {
                    Unary::Swish { alpha: inside[1] as f32 }
                })
            }
            Gate::Sigmoid => None,
        }
    }
}

/// A product with one gate among its factors.
struct Product {
    gate: Gate,
    /// The operand of erf, tanh or sigmoid.
    inside: ValueId,
    /// The constant factors.
    coefficient: f64,
    /// The other factor, as a value with a constant factor, in all the ways to split it; none yet where
    /// the factors met so far are constant.
    candidates: Vec<(ValueId, f64)>,
}

/// The value as a product with a gate among its factors and one other factor that is not constant.
fn gated(graph: &Graph, v: ValueId, depth: usize) -> Option<Product> {
    if let Some((gate, inside)) = gate(graph, v) {
        return Some(Product { gate, inside, coefficient: 1.0, candidates: vec![] });
    }
    let depth = depth.checked_sub(1)?;
    if let Some((product, divisor)) = binary(graph, v, Binary::Div) {
        let c = scalar(graph, divisor)?;
        let product = gated(graph, product, depth)?;
        return Some(Product { coefficient: product.coefficient / c, ..product });
    }
    either(graph, v, Binary::Mul, |with, other| {
        let product = gated(graph, with, depth)?;
        match uniform(graph, other) {
            Some(c) => Some(Product { coefficient: product.coefficient * c, ..product }),
            None if product.candidates.is_empty() => {
                Some(Product { candidates: splits(graph, other), ..product })
            }
            None => None,
        }
    })
}

fn gate(graph: &Graph, v: ValueId) -> Option<(Gate, ValueId)> {
    if let Some(inside) = unary(graph, v, Unary::Sigmoid) {
        return Some((Gate::Sigmoid, inside));
    }
    either(graph, v, Binary::Add, |f, one| {
        if uniform(graph, one) != Some(1.0) {
            return None;
        }
        let erf = unary(graph, f, Unary::Erf).map(|x| (Gate::Erf, x));
        erf.or_else(|| unary(graph, f, Unary::Tanh).map(|x| (Gate::Tanh, x)))
    })
}

/// The value as `c · y`, from the value itself down.
fn splits(graph: &Graph, v: ValueId) -> Vec<(ValueId, f64)> {
    let mut out = vec![(v, 1.0)];
    let (mut v, mut c) = (v, 1.0);
    for _ in 0..DEPTH {
        let step = either(graph, v, Binary::Mul, |y, k| Some((y, scalar(graph, k)?)))
            .or_else(|| binary(graph, v, Binary::Div).and_then(|(y, k)| Some((y, 1.0 / scalar(graph, k)?))));
        let Some((y, k)) = step else { break };
        (v, c) = (y, c * k);
        out.push((v, c));
    }
    out
}

/// Coefficients of 1, x, x² and x³.
type Polynomial = [f64; 4];

/// The value as a polynomial of `x` of degree three at most.
fn polynomial(graph: &Graph, v: ValueId, x: ValueId, depth: usize) -> Option<Polynomial> {
    if v == x {
        return Some([0.0, 1.0, 0.0, 0.0]);
    }
    if let Some(c) = scalar(graph, v) {
        return Some([c, 0.0, 0.0, 0.0]);
    }
    let depth = depth.checked_sub(1)?;
    let of = |v| polynomial(graph, v, x, depth);
    let node = graph.producing(v)?;
    match node.op {
        Op::Unary(Unary::Neg) => Some(of(node.input(0)?)?.map(|c| -c)),
        Op::Binary(function) => {
            let (a, b) = (node.input(0)?, node.input(1)?);
            match function {
                Binary::Add => Some(added(of(a)?, of(b)?, 1.0)),
                Binary::Sub => Some(added(of(a)?, of(b)?, -1.0)),
                Binary::Mul => multiplied(of(a)?, of(b)?),
                Binary::Div => {
                    let c = scalar(graph, b)?;
                    Some(of(a)?.map(|k| k / c))
                }
                Binary::Pow => power(of(a)?, scalar(graph, b)?),
                _ => None,
            }
        }
        _ => None,
    }
}

fn added(a: Polynomial, b: Polynomial, sign: f64) -> Polynomial {
    std::array::from_fn(|i| a[i] + sign * b[i])
}

fn multiplied(a: Polynomial, b: Polynomial) -> Option<Polynomial> {
    let mut out = [0.0; 4];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            if x * y != 0.0 {
                *out.get_mut(i + j)? += x * y;
            }
        }
    }
    Some(out)
}

fn power(a: Polynomial, exponent: f64) -> Option<Polynomial> {
    match exponent {
        1.0 => Some(a),
        2.0 => multiplied(a, a),
        3.0 => multiplied(a, multiplied(a, a)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::testing::{after, cleaned, count, f32s};

    fn graph(build: impl FnOnce(&mut Graph, ValueId) -> ValueId) -> Graph {
        let mut g = Graph::new("activation");
        let x = g.add_input("x", f32s(&[-1, 6]));
        let y = build(&mut g, x);
        g.add_output("y", y);
        g
    }

    fn gate_of(g: &mut Graph, f: Unary, inside: ValueId) -> ValueId {
        let (f, one) = (g.un(f, inside), g.num(1.0));
        g.bin(Binary::Add, f, one)
    }

    fn cubic(g: &mut Graph, x: ValueId, spelling: u8) -> ValueId {
        let (root, k, three, one) = (g.num(0.797_884_6), g.num(0.044715), g.num(3.0), g.num(1.0));
        match spelling {
            // √(2/π) (x + k x³)
            0 => {
                let cube = g.bin(Binary::Pow, x, three);
                let term = g.bin(Binary::Mul, cube, k);
                let sum = g.bin(Binary::Add, x, term);
                g.bin(Binary::Mul, sum, root)
            }
            // x √(2/π) (1 + k x x)
            _ => {
                let kx = g.bin(Binary::Mul, k, x);
                let kxx = g.bin(Binary::Mul, kx, x);
                let sum = g.bin(Binary::Add, one, kxx);
                let left = g.bin(Binary::Mul, x, root);
                g.bin(Binary::Mul, left, sum)
            }
        }
    }

    #[test]
    fn gelu_by_tanh() {
        for (spelling, commuted) in [(0, false), (0, true), (1, false), (1, true)] {
            let g = graph(|g, x| {
                let inside = cubic(g, x, spelling);
                let gate = gate_of(g, Unary::Tanh, inside);
                let half = g.num(0.5);
                if commuted {
                    let product = g.bin(Binary::Mul, gate, x);
                    g.bin(Binary::Mul, product, half)
                } else {
                    let left = g.bin(Binary::Mul, half, x);
                    g.bin(Binary::Mul, left, gate)
                }
            });
            let clean = cleaned(&g);
            assert_eq!((clean.node_count(), count(&clean, "GeluTanh")), (1, 1));
        }
    }

    #[test]
    fn gelu_by_erf() {
        for divides in [false, true] {
            let g = graph(|g, x| {
                let (root, inverse) =
                    (g.num(std::f32::consts::SQRT_2), g.num(std::f32::consts::FRAC_1_SQRT_2));
                let inside =
                    if divides { g.bin(Binary::Div, x, root) } else { g.bin(Binary::Mul, inverse, x) };
                let gate = gate_of(g, Unary::Erf, inside);
                let product = g.bin(Binary::Mul, x, gate);
                let half = g.num(0.5);
                g.bin(Binary::Mul, product, half)
            });
            let clean = cleaned(&g);
            assert_eq!((clean.node_count(), count(&clean, "GeluErf")), (1, 1));
        }
    }

    #[test]
    fn silu_and_swish() {
        let silu = cleaned(&graph(|g, x| {
            let s = g.un(Unary::Sigmoid, x);
            g.bin(Binary::Mul, s, x)
        }));
        assert_eq!((silu.node_count(), count(&silu, "Silu")), (1, 1));
        let quick = cleaned(&graph(|g, x| {
            let alpha = g.num(1.702);
            let ax = g.bin(Binary::Mul, x, alpha);
            let s = g.un(Unary::Sigmoid, ax);
            g.bin(Binary::Mul, x, s)
        }));
        assert_eq!((quick.node_count(), count(&quick, "Swish")), (1, 1));
    }

    #[test]
    fn near_misses_stay() {
        let wrong_constant = graph(|g, x| {
            let k = g.num(0.8);
            let inside = g.bin(Binary::Mul, x, k);
            let gate = gate_of(g, Unary::Erf, inside);
            let half = g.num(0.5);
            let left = g.bin(Binary::Mul, half, x);
            g.bin(Binary::Mul, left, gate)
        });
        let no_half = graph(|g, x| {
            let inside = cubic(g, x, 0);
            let gate = gate_of(g, Unary::Tanh, inside);
            g.bin(Binary::Mul, x, gate)
        });
        let gate_of_another = graph(|g, x| {
            let y = g.un(Unary::Exp, x);
            let s = g.un(Unary::Sigmoid, y);
            g.bin(Binary::Mul, x, s)
        });
        for g in [wrong_constant, no_half, gate_of_another] {
            assert_eq!(after(&g, &PASS).1, 0);
        }
    }
}
