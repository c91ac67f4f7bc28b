//! Residual streams mixed on the skip path of hyper-connections (METHOD §1: HC Newton).
//!
//! A state of `S` streams, `[.., S, .., D]`, passes through an S×S matrix that acts on the stream axis:
//!
//! ```text
//!   MatMul(H [S, S], x [.., S, D])          Einsum "ij,bjtd->bitd"(H, x [B, S, T, D])
//! ```
//!
//! The matrix is a constant, or computed for each token (its other axes are the state's). The clean-up has made
//! these of sums over a broadcast axis, of equations with an ellipsis, and of rows of larger products.

use crate::ir::{Dim, Graph, Node, Op, ValueId};

/// More streams than this are no streams but a product with a weight.
const MAX_STREAMS: i64 = 32;

/// A node that mixes the streams of a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mixing {
    /// The state before.
    pub state: ValueId,
    /// The matrix: its last two axes are the streams after and before, or before and after when
    /// `transposed`; axes in front of them are the tokens'.
    pub matrix: ValueId,
    /// The state's axis that each of the axes in front belongs to.
    pub tokens: Vec<usize>,
    /// Whether the matrix acts from the right.
    pub transposed: bool,
    /// Axis of the streams in the state.
    pub axis: usize,
    /// Number of streams.
    pub streams: usize,
}

impl Mixing {
    /// What `node` mixes, if it does.
    pub fn of(graph: &Graph, node: &Node) -> Option<Mixing> {
        let found = match (&node.op, &node.inputs[..]) {
            (Op::MatMul, [Some(matrix), Some(state)]) => product(graph, *matrix, *state),
            (Op::Einsum { equation }, [Some(a), Some(b)]) => einsum(graph, equation, [*a, *b]),
            _ => None,
        }?;
        // A table that is read is no state.
        graph.tensor(found.state).is_none().then_some(found)
    }

    /// The matrix, where it is a constant: row-major `[streams after, streams before]`.
    pub fn constant(&self, graph: &Graph) -> Option<Vec<f64>> {
        let tensor = graph.tensor(self.matrix)?;
        let n = self.streams;
        if tensor.len() != n * n {
            return None;
        }
        let data = tensor.to_f64();
        Some(match self.transposed {
            false => data,
            true => (0..n * n).map(|i| data[i % n * n + i / n]).collect(),
        })
    }
}

/// `[(tokens,) S, S] · [.., S, D]`.
fn product(graph: &Graph, matrix: ValueId, state: ValueId) -> Option<Mixing> {
    let (m, s) = (graph.shape(matrix)?, graph.shape(state)?);
    let axis = s.len().checked_sub(2).filter(|axis| *axis > 0)?;
    let (tokens, square) = m.split_at(m.len().checked_sub(2)?);
    let streams = streams_of(&s[axis]).filter(|_| square.iter().all(|d| *d == s[axis]))?;
    // As operands of products are aligned: the last axes with the last.
    let first = axis.checked_sub(tokens.len())?;
    let fits = tokens.iter().zip(&s[first..]).all(|(own, d)| *own == Dim::ONE || own == d);
    let tokens = (first..axis).collect();
    fits.then_some(Mixing { state, matrix, tokens, transposed: false, axis, streams })
}

fn streams_of(dim: &Dim) -> Option<usize> {
    dim.known().filter(|n| (2..=MAX_STREAMS).contains(n)).and_then(|n| usize::try_from(n).ok())
}

/// An equation whose result is one operand's term with one letter, `before`, replaced by another, `after`,
/// while the other operand's term ends in both.
fn einsum(graph: &Graph, equation: &str, operands: [ValueId; 2]) -> Option<Mixing> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, result) = equation.split_once("->")?;
    let (a, b) = left.split_once(',')?;
    if !result.chars().chain(left.chars()).all(|c| c == ',' || c.is_ascii_alphabetic()) {
        return None;
    }
    let [first, second] = operands;
    [(a, first, b, second), (b, second, a, first)].into_iter().find_map(|(term, matrix, of_state, state)| {
        let (m, s, r) = (letters(term), letters(of_state), letters(result));
        let shape = graph.shape(state)?;
        if s.len() != r.len() || shape.len() != s.len() || m.len() < 2 {
            return None;
        }
        let mut changed = (0..s.len()).filter(|i| s[*i] != r[*i]);
        let (axis, None) = (changed.next()?, changed.next()) else { return None };
        let (before, after) = (s[axis], r[axis]);
        let (tokens, square) = m.split_at(m.len() - 2);
        let transposed = match square {
            [p, q] if *p == after && *q == before => false,
            [p, q] if *p == before && *q == after => true,
            _ => return None,
        };
        let places = tokens.iter().map(|c| s.iter().position(|own| own == c && *c != before));
        let places: Vec<usize> = places.collect::<Option<_>>()?;
        let streams = streams_of(&shape[axis])?;
        let square_fits = graph.shape(matrix)?.iter().rev().take(2).all(|d| *d == shape[axis]);
        let features_stay = axis + 1 < s.len() && !tokens.contains(&s[s.len() - 1]);
        (square_fits && features_stay && !s.contains(&after)).then_some(Mixing {
            state,
            matrix,
            tokens: places,
            transposed,
            axis,
            streams,
        })
    })
}

fn letters(term: &str) -> Vec<char> {
    term.chars().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Tensor, Type};

    fn f32s(dims: &[i64]) -> Type {
        let symbols = ["batch", "seq"];
        let dim = |d: &i64| if *d < 0 { Dim::symbol(symbols[(-d - 1) as usize]) } else { Dim::from(*d) };
        Type::new(DType::F32, dims.iter().map(dim).collect())
    }

    fn square(g: &mut Graph, data: &[f32]) -> ValueId {
        g.constant(Tensor::from_vec(vec![2, 2], data.to_vec()).unwrap())
    }

    fn found(g: &Graph, v: ValueId) -> Option<Mixing> {
        Mixing::of(g, g.producing(v).unwrap())
    }

    #[test]
    fn products_from_the_left_mix_the_axis_before_the_features() {
        let mut g = Graph::new("g");
        let h = square(&mut g, &[0.9, 0.2, 0.1, 0.8]);
        let x = g.add_input("x", f32s(&[-1, -2, 2, 8]));
        let y = g.add(Op::MatMul, &[h, x]).unwrap();
        let expected = Mixing { state: x, matrix: h, tokens: vec![], transposed: false, axis: 2, streams: 2 };
        assert_eq!(found(&g, y), Some(expected.clone()));
        let f32_exact = |x: f64| f64::from(x as f32);
        assert_eq!(expected.constant(&g), Some([0.9, 0.2, 0.1, 0.8].map(f32_exact).to_vec()));
        let of_tokens = g.add_input("h", f32s(&[-1, -2, 2, 2]));
        let y = g.add(Op::MatMul, &[of_tokens, x]).unwrap();
        assert_eq!(found(&g, y).map(|m| (m.state, m.matrix)), Some((x, of_tokens)));
        assert_eq!(found(&g, y).unwrap().constant(&g), None);
        // One for each sequence, or for each position.
        for (shape, tokens) in [(&[-1, 1, 2, 2][..], vec![0, 1]), (&[-2, 2, 2], vec![1])] {
            let h = g.add_input("h", f32s(shape));
            let y = g.add(Op::MatMul, &[h, x]).unwrap();
            assert_eq!(found(&g, y).map(|m| m.tokens), Some(tokens));
        }
    }

    #[test]
    fn equations_mix_any_axis_from_either_side() {
        let mut g = Graph::new("g");
        let h = square(&mut g, &[1.0, 2.0, 3.0, 4.0]);
        let x = g.add_input("x", f32s(&[-1, 2, -2, 8]));
        for (equation, swapped, matrix) in [
            ("ij,bjtd->bitd", false, [1.0, 2.0, 3.0, 4.0]),
            ("b j t d, j i -> b i t d", true, [1.0, 3.0, 2.0, 4.0]),
        ] {
            let operands = if swapped { [x, h] } else { [h, x] };
            let y = g.add(Op::Einsum { equation: equation.into() }, &operands).unwrap();
            let mixing = found(&g, y).unwrap();
            assert_eq!((mixing.axis, mixing.streams), (1, 2));
            assert_eq!(mixing.constant(&g), Some(matrix.to_vec()));
        }
        let of_tokens = g.add_input("h", f32s(&[-1, -2, 2, 2]));
        let y = g.add(Op::Einsum { equation: "btij,bjtd->bitd".into() }, &[of_tokens, x]).unwrap();
        assert_eq!(found(&g, y).map(|m| (m.matrix, m.tokens)), Some((of_tokens, vec![0, 2])));
    }

    #[test]
    fn weights_scores_and_sums_over_streams_are_none() {
        let mut g = Graph::new("g");
        let h = square(&mut g, &[1.0, 2.0, 3.0, 4.0]);
        let x = g.add_input("x", f32s(&[-1, 2, -2, 8]));
        let row = g.add_input("row", f32s(&[2]));
        let sum = g.add(Op::Einsum { equation: "j,bjtd->btd".into() }, &[row, x]).unwrap();
        let features = g.add_input("features", f32s(&[-1, 2, -2, 2]));
        let on_features = g.add(Op::Einsum { equation: "ij,bstj->bsti".into() }, &[h, features]).unwrap();
        let weight = g.add(Op::MatMul, &[features, h]).unwrap();
        let scores = g.add_input("scores", f32s(&[-1, 2, -2, -2]));
        let attention = g.add(Op::MatMul, &[scores, x]).unwrap();
        for v in [sum, on_features, weight, attention] {
            assert_eq!(found(&g, v), None, "{v:?}");
        }
    }
}
