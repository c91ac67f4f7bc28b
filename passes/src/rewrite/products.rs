//! Products of matrices, however they are written.
//!
//! ```text
//!   Einsum "...ij,...jd->...id"(h, x)                     becomes  Einsum "ABij,ABjd->ABid"(h, x)
//!   ReduceSum(Mul(h [i, j, 1], x [b, t, 1, j, d]), j)     becomes  Einsum "ij,btjd->btid"(h, x)
//!   MatMul(a [.., n, m], x)[.., 1:, :]                    becomes  MatMul(a[.., 1:, :], x)
//!   Transpose(MatMul(Transpose(x [b, t, j, d]), h [j, i]))  becomes  Einsum "ji,btjd->btid"(h, x)
//!   MatMul(h, x) + MatMul(g, x),  x + MatMul(h, x)        becomes  MatMul(h + g, x),  MatMul(h + I, x)
//! ```
//!
//! Hyper-connections mix and read their streams so: by a sum over a broadcast axis, with one matrix for
//! both whose rows are told apart behind the product, from the right with the streams turned to the end, and with
//! a matrix in two parts.

use std::collections::BTreeMap;

use super::lower::einsum::parsed;
use super::matching::{binary, ints, same_type};
use super::sweep::sweep_first;
use super::{Fidelity, Notes, Pass};
use crate::analysis::Mixing;
use crate::ir::{Binary, DType, Dim, Graph, GraphError, Node, NodeId, Op, Reduce, Tensor, ValueId};

/// Equations name every axis.
pub(crate) const EQUATIONS: Pass = Pass { name: "equations", fidelity: Fidelity::Exact, apply: equations };

/// Sums over a broadcast axis.
pub(crate) const SUMS: Pass = Pass { name: "sums-of-products", fidelity: Fidelity::Rounding, apply: sums };

/// Rows told apart. Exact: each element of a product is a sum of its own.
pub(crate) const ROWS: Pass = Pass { name: "rows-of-products", fidelity: Fidelity::Exact, apply: rows };

/// Transposes beside a product along one axis of a state.
pub(crate) const TURNED: Pass =
    Pass { name: "transposes-of-products", fidelity: Fidelity::Rounding, apply: turned };

/// Mixings of one state that are added.
pub(crate) const ADDED: Pass = Pass { name: "sums-of-mixings", fidelity: Fidelity::Rounding, apply: added };

/// More rows than this are tokens, not streams.
const MAX_ROWS: i64 = 33;

fn equations(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some((equation, operands)) = spelled_out(graph, id, notes) else { return Ok(None) };
        graph.add(Op::Einsum { equation }, &operands).map(Some)
    })
}

/// An equation with a letter for each axis of its ellipsis, and with a result.
fn spelled_out(graph: &Graph, id: NodeId, notes: &mut Notes) -> Option<(String, Vec<ValueId>)> {
    let node = graph.node(id)?;
    let Op::Einsum { equation } = &node.op else { return None };
    if !equation.contains('.') && equation.contains("->") {
        return None;
    }
    let operands: Vec<ValueId> = node.operands().collect();
    let shapes = operands.iter().map(|v| graph.shape(*v)).collect::<Option<Vec<_>>>()?;
    let ranks: Vec<usize> = shapes.iter().map(|s| s.len()).collect();
    let (terms, result) = parsed(equation, &ranks)?;
    let mut sizes: BTreeMap<char, &Dim> = BTreeMap::new();
    for (letter, size) in terms.iter().zip(&shapes).flat_map(|(term, shape)| term.iter().zip(*shape)) {
        if *sizes.entry(*letter).or_insert(size) != size {
            notes.decline(graph, id, "axes of the equation's ellipsis may have size 1 in one operand");
            return None;
        }
    }
    let mut free = ('A'..='Z').chain('a'..='z').filter(|c| !equation.contains(*c));
    let mut names: BTreeMap<char, char> = BTreeMap::new();
    for letter in sizes.keys() {
        let name = if letter.is_ascii_alphabetic() { *letter } else { free.next()? };
        names.insert(*letter, name);
    }
    let named = |term: &[char]| term.iter().filter_map(|c| names.get(c)).collect::<String>();
    let left: Vec<String> = terms.iter().map(|t| named(t)).collect();
    Some((format!("{}->{}", left.join(","), named(&result)), operands))
}

fn sums(graph: &mut Graph, notes: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some(found) = sum_of_products(graph, id, notes) else { return Ok(None) };
        let mut terms = Vec::new();
        let mut operands = Vec::new();
        for factor in found.factors {
            let mut v = factor.value;
            if !factor.unit_axes.is_empty() {
                v = graph.add(Op::Squeeze { axes: factor.unit_axes }, &[v])?;
            }
            if factor.perm.windows(2).any(|w| w[0] > w[1]) {
                v = graph.add(Op::Transpose { perm: factor.perm.clone() }, &[v])?;
            }
            terms.push(factor.perm.iter().map(|at| letter(factor.axes[*at])).collect::<String>());
            operands.push(v);
        }
        let result: String = (0..found.rank).filter(|i| *i != found.axis).map(letter).collect();
        let equation = format!("{}->{result}", terms.join(","));
        let product = graph.add(Op::Einsum { equation }, &operands)?;
        if !found.keepdims {
            return Ok(Some(product));
        }
        graph.add(Op::Unsqueeze { axes: vec![found.axis] }, &[product]).map(Some)
    })
}

fn letter(axis: usize) -> char {
    char::from(b'a' + axis as u8)
}

struct SumOfProducts {
    factors: [Factor; 2],
    /// Number of axes of the product before the sum, and the one that is summed over.
    rank: usize,
    axis: usize,
    keepdims: bool,
}

struct Factor {
    value: ValueId,
    /// Axes of size 1 along which it is repeated.
    unit_axes: Vec<usize>,
    /// The product's axes that it has, in order.
    axes: Vec<usize>,
    /// Order in which the equation names them.
    perm: Vec<usize>,
}

/// A sum, over an axis that both factors have, of products of which each has an axis that the other lacks.
fn sum_of_products(graph: &Graph, id: NodeId, notes: &mut Notes) -> Option<SumOfProducts> {
    let node = graph.node(id)?;
    let Op::Reduce { op: Reduce::Sum, axes, keepdims } = &node.op else { return None };
    let [axis] = axes[..] else { return None };
    let product = node.input(0)?;
    let (a, b) = binary(graph, product, Binary::Mul)?;
    let wide = graph.shape(product)?;
    if wide.len() > 26 || !graph.ty(product)?.dtype.is_float() {
        return None;
    }
    let (mut a, mut b) = (factor(graph, a, wide)?, factor(graph, b, wide)?);
    let own = |x: &Factor, y: &Factor| -> Vec<usize> {
        x.axes.iter().copied().filter(|i| !y.axes.contains(i)).collect()
    };
    let (of_a, of_b) = (own(&a, &b), own(&b, &a));
    if of_a.is_empty() || of_b.is_empty() {
        return None;
    }
    if !a.axes.contains(&axis) || !b.axes.contains(&axis) {
        notes.decline(graph, id, "the axis summed over is not one of both factors");
        return None;
    }
    // The matrix, which has one more axis, has it and the sum's last.
    let last = wide.len() - 1;
    for (factor, own) in [(&mut a, &of_a), (&mut b, &of_b)] {
        if let [row] = own[..]
            && row != last
        {
            factor.perm.sort_by_key(|at| {
                let i = factor.axes[*at];
                (i == axis, i == row, i)
            });
        }
    }
    Some(SumOfProducts { factors: [a, b], rank: wide.len(), axis, keepdims: *keepdims })
}

/// How a factor lies in the product; `None` where its sizes may or may not be the product's.
fn factor(graph: &Graph, value: ValueId, wide: &[Dim]) -> Option<Factor> {
    let shape = graph.shape(value)?;
    let lead = wide.len().checked_sub(shape.len())?;
    let (mut unit_axes, mut axes) = (vec![], vec![]);
    for (at, size) in shape.iter().enumerate() {
        match &wide[lead + at] {
            d if d == size => axes.push(lead + at),
            _ if *size == Dim::ONE => unit_axes.push(at),
            _ => return None,
        }
    }
    let perm = (0..axes.len()).collect();
    Some(Factor { value, unit_axes, axes, perm })
}

fn turned(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some((equation, operands)) = graph.node(id).and_then(|n| equation_of_state(graph, n)) else {
            return Ok(None);
        };
        graph.add(Op::Einsum { equation }, &operands).map(Some)
    })
}

fn added(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    sweep_first(graph, |graph, id| {
        let Some(sum) = graph.node(id).and_then(|n| sum_of_mixings(graph, n)) else { return Ok(None) };
        let SumOfMixings { product, mixing, other } = sum;
        let other = match other {
            Some(matrix) => matrix,
            None => {
                let n = mixing.streams;
                let identity = (0..n * n).map(|i| f64::from(u8::from(i % (n + 1) == 0))).collect();
                let dtype = graph.ty(mixing.matrix).map_or(DType::F32, |t| t.dtype);
                let Ok(identity) = Tensor::from_vec::<f64>(vec![n, n], identity) else { return Ok(None) };
                let identity = graph.constant(identity);
                graph.add(Op::Cast { to: dtype }, &[identity])?
            }
        };
        let matrix = graph.add(Op::Binary(Binary::Add), &[mixing.matrix, other])?;
        let Some(node) = graph.node(product) else { return Ok(None) };
        let operands: Vec<ValueId> =
            node.operands().map(|v| if v == mixing.matrix { matrix } else { v }).collect();
        let op = node.op.clone();
        graph.add(op, &operands).map(Some)
    })
}

/// Two mixings of one state, or the state and one of it.
struct SumOfMixings {
    /// The product whose matrix has the tokens of both.
    product: NodeId,
    mixing: Mixing,
    /// The other matrix; `None` for the identity.
    other: Option<ValueId>,
}

fn sum_of_mixings(graph: &Graph, node: &Node) -> Option<SumOfMixings> {
    let (Op::Binary(Binary::Add), [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else { return None };
    let mixing = |v: ValueId| {
        let id = graph.producer(v)?;
        let mixing = Mixing::of(graph, graph.node(id)?)?;
        // With fewer axes the matrix may be attention's.
        (graph.shape(mixing.state)?.len() > 3).then_some((id, mixing))
    };
    match (mixing(*a), mixing(*b)) {
        (Some((product, x)), Some((other, y))) => {
            let alike = (x.state, x.axis, x.transposed) == (y.state, y.axis, y.transposed);
            let (product, mixing, other) = match () {
                () if alike && y.tokens.is_empty() => (product, x, y.matrix),
                () if alike && x.tokens.is_empty() => (other, y, x.matrix),
                () if alike && x.tokens == y.tokens && same_type(graph, x.matrix, y.matrix) => {
                    (product, x, y.matrix)
                }
                () => return None,
            };
            Some(SumOfMixings { product, mixing, other: Some(other) })
        }
        (Some((product, mixing)), None) if mixing.state == *b => {
            Some(SumOfMixings { product, mixing, other: None })
        }
        (None, Some((product, mixing))) if mixing.state == *a => {
            Some(SumOfMixings { product, mixing, other: None })
        }
        _ => None,
    }
}

/// A product of two values as an equation: the values, a term for each, and the result's.
struct Product {
    operands: [ValueId; 2],
    terms: [Vec<char>; 2],
    result: Vec<char>,
}

/// The equation of a product whose Transposes it makes up for: one that replaces an axis of a state, other
/// than its features, by another.
fn equation_of_state(graph: &Graph, node: &Node) -> Option<(String, Vec<ValueId>)> {
    let (product, turn) = match &node.op {
        Op::Transpose { perm } => (graph.producing(node.input(0)?)?, Some(perm)),
        _ => (node, None),
    };
    let mut product = Product::of(graph, product)?;
    if let Some(perm) = turn {
        product.result = perm.iter().map(|at| product.result.get(*at).copied()).collect::<Option<_>>()?;
    }
    let plain = [0, 1].map(|at| behind_transpose(graph, product.operands[at], &product.terms[at]));
    [0, 1].into_iter().find_map(|of_state| {
        let of_matrix = 1 - of_state;
        let mut found = [0, 1].map(|at| (product.operands[at], product.terms[at].clone()));
        if let Some(plain) = &plain[of_state] {
            found[of_state] = plain.clone();
        }
        let (state, term) = found[of_state].clone();
        let [before, after] = replaced(graph, state, &term, &product.result)?;
        let fits = |(matrix, letters): &(ValueId, Vec<char>)| {
            let (tokens, square) = letters.split_at(letters.len().saturating_sub(2));
            let tokens_fit = tokens.iter().all(|c| *c != before && term[..term.len() - 1].contains(c));
            let sizes = graph.shape(*matrix).and_then(|s| s.last_chunk::<2>());
            tokens_fit
                && sizes.is_some_and(|[p, q]| match square {
                    [a, b] if [*a, *b] == [after, before] => mixes(p, q),
                    [a, b] if [*a, *b] == [before, after] => mixes(q, p),
                    _ => false,
                })
        };
        if let Some(plain) = plain[of_matrix].as_ref().filter(|plain| fits(plain)) {
            found[of_matrix] = plain.clone();
        }
        let turned = turn.is_some() || (0..2).any(|at| found[at].0 != product.operands[at]);
        if !turned || !fits(&found[of_matrix]) {
            return None;
        }
        let [a, b] = found.each_ref().map(|(_, term)| term.iter().collect::<String>());
        let result: String = product.result.iter().collect();
        Some((format!("{a},{b}->{result}"), found.map(|(v, _)| v).to_vec()))
    })
}

/// Whether so many streams after and before are a connection's: mixed, read, or both at once.
fn mixes(after: &Dim, before: &Dim) -> bool {
    let (Some(after), Some(before)) = (after.known(), before.known()) else { return false };
    (2..MAX_ROWS).contains(&before) && [1, before, before + 1].contains(&after)
}

impl Product {
    /// `None` where axes may be repeated.
    fn of(graph: &Graph, node: &Node) -> Option<Product> {
        let [Some(a), Some(b)] = node.inputs[..] else { return None };
        let (terms, result) = match &node.op {
            Op::Einsum { equation } if !equation.contains('.') && equation.contains("->") => {
                let ranks = [graph.shape(a)?.len(), graph.shape(b)?.len()];
                let (terms, result) = parsed(equation, &ranks)?;
                (<[Vec<char>; 2]>::try_from(terms).ok()?, result)
            }
            Op::MatMul => {
                let (s, t) = (graph.shape(a)?, graph.shape(b)?);
                let (lead_a, lead_b) = (s.len().checked_sub(2)?, t.len().checked_sub(2)?);
                let lead = lead_a.max(lead_b);
                let equal = s[..lead_a].iter().rev().zip(t[..lead_b].iter().rev()).all(|(x, y)| x == y);
                if !equal || lead > 20 {
                    return None;
                }
                let batch = |own: usize| (lead - own..lead).map(letter);
                let [row, sum, column] = [lead, lead + 1, lead + 2].map(letter);
                let terms =
                    [batch(lead_a).chain([row, sum]).collect(), batch(lead_b).chain([sum, column]).collect()];
                (terms, batch(lead).chain([row, column]).collect())
            }
            _ => return None,
        };
        Some(Product { operands: [a, b], terms, result })
    }
}

/// The value before a Transpose, with its term.
fn behind_transpose(graph: &Graph, v: ValueId, term: &[char]) -> Option<(ValueId, Vec<char>)> {
    let node = graph.producing(v)?;
    let Op::Transpose { perm } = &node.op else { return None };
    let mut before: Vec<(usize, char)> = perm.iter().copied().zip(term.iter().copied()).collect();
    before.sort_unstable();
    Some((node.input(0)?, before.into_iter().map(|(_, c)| c).collect()))
}

/// The letter of a state's term that the result has not, and the one in its place: of an axis before the
/// features.
fn replaced(graph: &Graph, state: ValueId, term: &[char], result: &[char]) -> Option<[char; 2]> {
    if graph.tensor(state).is_some() || term.len() != result.len() || term.len() < 3 {
        return None;
    }
    let mut changed = (0..term.len()).filter(|at| term[*at] != result[*at]);
    let (at, None) = (changed.next()?, changed.next()) else { return None };
    (at + 1 < term.len() && !term.contains(&result[at])).then_some([term[at], result[at]])
}

fn rows(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    let users = graph.users();
    sweep_first(graph, |graph, id| {
        let Some(part) = graph.node(id).and_then(|n| part(graph, n)) else { return Ok(None) };
        let Some((op, mut operands, at, axis)) = rows_of(graph, &part, &users) else { return Ok(None) };
        let (start, end) = match part.range {
            Range::Slice(start, end) => (start, end),
            Range::Row(row) => (graph.ints(&[row]), graph.ints(&[row + 1])),
        };
        let cut = Op::Slice { axes: vec![axis], steps: vec![part.step] };
        operands[at] = graph.add(cut, &[operands[at], start, end])?;
        let product = graph.add(op, &operands)?;
        match part.range {
            Range::Slice(..) => Ok(Some(product)),
            Range::Row(_) => graph.add(Op::Squeeze { axes: vec![part.axis] }, &[product]).map(Some),
        }
    })
}

/// Some entries of a value along one axis.
struct Part {
    of: ValueId,
    axis: usize,
    range: Range,
    step: i64,
}

enum Range {
    Slice(ValueId, ValueId),
    /// One entry, without the axis.
    Row(i64),
}

fn part(graph: &Graph, node: &Node) -> Option<Part> {
    let of = node.input(0)?;
    match &node.op {
        Op::Slice { axes, steps } => {
            let ([axis], [step]) = (&axes[..], &steps[..]) else { return None };
            let range = Range::Slice(node.input(1)?, node.input(2)?);
            Some(Part { of, axis: *axis, range, step: *step })
        }
        Op::Gather { axis } => {
            let index = node.input(1)?;
            let [row] = ints(graph, index).filter(|_| graph.shape(index).is_some_and(<[Dim]>::is_empty))?[..]
            else {
                return None;
            };
            let size = graph.shape(of)?.get(*axis)?.known()?;
            let row = if row < 0 { row + size } else { row };
            (0..size).contains(&row).then_some(Part { of, axis: *axis, range: Range::Row(row), step: 1 })
        }
        _ => None,
    }
}

/// The product, its operands, which of them has the rows, and along which axis, where the product is of two
/// computed values and read by rows alone.
fn rows_of(graph: &Graph, wanted: &Part, users: &[Vec<NodeId>]) -> Option<(Op, Vec<ValueId>, usize, usize)> {
    let node = graph.producing(wanted.of)?;
    let ([Some(a), Some(b)], [_]) = (&node.inputs[..], &node.outputs[..]) else { return None };
    let shape = graph.shape(wanted.of)?;
    let few = shape.get(wanted.axis)?.known().is_some_and(|n| n <= MAX_ROWS);
    let by_rows = users.get(wanted.of.index())?.iter().all(|user| {
        let read = graph.node(*user).and_then(|n| part(graph, n));
        read.is_some_and(|p| p.axis == wanted.axis)
    });
    if !few || !by_rows || graph.outputs.iter().any(|o| o.value == wanted.of) {
        return None;
    }
    let (at, axis) = match &node.op {
        Op::MatMul => {
            let (rows, columns) = (graph.shape(*a)?.len(), graph.shape(*b)?.len());
            (rows > 1 && columns > 1 && wanted.axis + 2 == shape.len()).then(|| (0, rows - 2))?
        }
        Op::Einsum { equation } => {
            let (terms, result) = equation.split_once("->")?;
            let (first, second) = terms.split_once(',')?;
            let row = result.chars().nth(wanted.axis).filter(char::is_ascii_alphabetic)?;
            let places =
                |term: &str| term.chars().enumerate().filter(|(_, c)| *c == row).map(|(i, _)| i).collect();
            let (in_first, in_second): (Vec<usize>, Vec<usize>) = (places(first), places(second));
            match (&in_first[..], &in_second[..]) {
                _ if equation.contains('.') => return None,
                ([axis], []) => (0, *axis),
                ([], [axis]) => (1, *axis),
                _ => return None,
            }
        }
        _ => return None,
    };
    let other = if at == 0 { *b } else { *a };
    graph.tensor(other).is_none().then(|| (node.op.clone(), vec![*a, *b], at, axis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::testing::{after, cleaned, count, f32s, random};

    fn summed(a: &[i64], b: &[i64], axis: usize, keepdims: bool) -> Graph {
        let mut g = Graph::new("sum");
        let (a, b) = (g.add_input("a", f32s(a)), g.add_input("b", f32s(b)));
        let y = g.bin(Binary::Mul, a, b);
        let y = g.op(Op::Reduce { op: Reduce::Sum, axes: vec![axis], keepdims }, &[y]);
        g.add_output("y", y);
        g
    }

    fn equation(g: &Graph) -> Option<String> {
        g.nodes().find_map(|(_, n)| match &n.op {
            Op::Einsum { equation } => Some(equation.clone()),
            _ => None,
        })
    }

    #[test]
    fn equations_name_every_axis() {
        for (given, a, b, found) in [
            ("...st,...sd->...td", &[-1, -2, 4, 5][..], &[-1, -2, 4, 6][..], Some("BAst,BAsd->BAtd")),
            ("...sd,st->...td", &[-1, -2, 4, 6], &[4, 5], Some("BAsd,st->BAtd")),
            ("ij,jk", &[3, 4], &[4, 5], Some("ij,jk->ik")),
            ("ij,jk->ki", &[3, 4], &[4, 5], None),
            // The batch of the first is repeated.
            ("...st,...sd->...td", &[1, -2, 4, 5], &[-1, -2, 4, 6], None),
        ] {
            let mut g = Graph::new("equation");
            let (a, b) = (g.add_input("a", f32s(a)), g.add_input("b", f32s(b)));
            let y = g.op(Op::Einsum { equation: given.into() }, &[a, b]);
            g.add_output("y", y);
            let (g, changes) = after(&g, &EQUATIONS);
            assert_eq!(changes, usize::from(found.is_some()), "{given}");
            assert_eq!(equation(&g).as_deref(), found.or(Some(given)));
        }
    }

    #[test]
    fn sums_over_a_broadcast_axis_are_products() {
        for (a, b, axis, found) in [
            // One matrix for all tokens; the streams behind the tokens, before them, and transposed.
            (&[4, 4, 1][..], &[-1, -2, 1, 4, 6][..], 3, "cd,abde->abce"),
            (&[4, 4, 1, 1], &[-1, 1, 4, -2, 6], 2, "bc,acde->abde"),
            (&[4, 4, 1], &[-1, -2, 4, 1, 6], 2, "dc,abce->abde"),
            // A matrix for each token, with its square behind the tokens or before them.
            (&[-1, -2, 4, 4, 1], &[-1, -2, 1, 4, 6], 3, "abcd,abde->abce"),
            (&[-1, 4, 4, -2, 1], &[-1, 1, 4, -2, 6], 2, "adbc,acde->abde"),
        ] {
            for (commuted, keepdims) in [(false, false), (true, false), (false, true)] {
                let g = if commuted { summed(b, a, axis, keepdims) } else { summed(a, b, axis, keepdims) };
                let (g, changes) = after(&g, &SUMS);
                let found = match (commuted, found.split_once("->").zip(found.split_once(','))) {
                    (true, Some(((terms, result), (first, _)))) => {
                        format!("{},{first}->{result}", &terms[first.len() + 1..])
                    }
                    _ => found.to_string(),
                };
                assert_eq!((changes, equation(&g)), (1, Some(found)));
                assert_eq!(count(&g, "Unsqueeze"), usize::from(keepdims));
            }
        }
    }

    #[test]
    fn other_sums_stay() {
        for (a, b, axis) in [
            // Streams weighted and summed: nothing is made of more.
            (&[4, 1][..], &[-1, -2, 4, 6][..], 2),
            // An axis that only one has is summed over.
            (&[4, 1, 1], &[-1, -2, 1, 5, 6], 3),
            // Sizes of which only the run tells whether they broadcast.
            (&[4, -3, 1], &[-1, -2, 1, 7, 6], 3),
        ] {
            let (_, changes) = after(&summed(a, b, axis, false), &SUMS);
            assert_eq!(changes, 0, "{a:?} {b:?}");
        }
        // Two axes at once; a mean.
        for (op, axes) in [(Reduce::Sum, vec![2, 3]), (Reduce::Mean, vec![3])] {
            let mut g = Graph::new("other");
            let (a, b) = (g.add_input("a", f32s(&[4, 4, 1])), g.add_input("b", f32s(&[-1, 2, 1, 4, 6])));
            let y = g.bin(Binary::Mul, a, b);
            let y = g.op(Op::Reduce { op, axes, keepdims: false }, &[y]);
            g.add_output("y", y);
            assert_eq!(after(&g, &SUMS).1, 0);
        }
    }

    /// A product of five rows, read as its first row and the others.
    fn told_apart(equation: Option<&str>, gathered: bool, more: impl FnOnce(&mut Graph, ValueId)) -> Graph {
        let mut g = Graph::new("rows");
        let (a, x) = (g.add_input("a", f32s(&[-1, -2, 5, 4])), g.add_input("x", f32s(&[-1, -2, 4, 6])));
        let product = match equation {
            None => g.op(Op::MatMul, &[a, x]),
            Some(equation) => g.op(Op::Einsum { equation: equation.into() }, &[a, x]),
        };
        let read = if gathered {
            let at = g.scalar(-5i64);
            g.op(Op::Gather { axis: 2 }, &[product, at])
        } else {
            let (start, end) = (g.ints(&[0]), g.ints(&[1]));
            g.op(Op::Slice { axes: vec![2], steps: vec![1] }, &[product, start, end])
        };
        let (start, end) = (g.ints(&[1]), g.ints(&[i64::MAX]));
        let rest = g.op(Op::Slice { axes: vec![2], steps: vec![1] }, &[product, start, end]);
        g.add_output("read", read);
        g.add_output("rest", rest);
        more(&mut g, product);
        g
    }

    #[test]
    fn rows_told_apart_are_products_of_rows() {
        for equation in [None, Some("btij,btjd->btid")] {
            for gathered in [false, true] {
                let g = cleaned(&told_apart(equation, gathered, |_, _| {}));
                let products = count(&g, "MatMul") + count(&g, "Einsum");
                assert_eq!((products, count(&g, "Slice"), count(&g, "Gather")), (2, 2, 0));
                assert_eq!(count(&g, "Squeeze"), usize::from(gathered));
                let cut = g.nodes().filter(|(_, n)| matches!(n.op, Op::Slice { .. }));
                assert!(cut.into_iter().all(|(_, n)| n.input(0) == g.inputs().first().copied()));
            }
        }
    }

    #[test]
    fn products_that_are_read_otherwise_stay() {
        // Whole, by an output or a node; along another axis.
        let mores: [fn(&mut Graph, ValueId); 3] = [
            |g, product| g.add_output("whole", product),
            |g, product| {
                let y = g.un(crate::ir::Unary::Exp, product);
                g.add_output("whole", y);
            },
            |g, product| {
                let (start, end) = (g.ints(&[0]), g.ints(&[2]));
                let y = g.op(Op::Slice { axes: vec![3], steps: vec![1] }, &[product, start, end]);
                g.add_output("columns", y);
            },
        ];
        for more in mores {
            assert_eq!(after(&told_apart(None, false, more), &ROWS).1, 0);
        }
        // Packed weights and tokens.
        for (a, x, axis) in [(&[-1, 7, 4][..], &[4, 6][..], 1), (&[-1, -2, 4], &[-1, 4, 6], 1)] {
            let mut g = Graph::new("tokens");
            let a = g.add_input("a", f32s(a));
            let x = if x.len() == 2 { g.constant(random(1, &[4, 6])) } else { g.add_input("x", f32s(x)) };
            let y = g.op(Op::MatMul, &[a, x]);
            let (start, end) = (g.ints(&[0]), g.ints(&[1]));
            let y = g.op(Op::Slice { axes: vec![axis], steps: vec![1] }, &[y, start, end]);
            g.add_output("y", y);
            assert_eq!(after(&g, &ROWS).1, 0);
        }
    }

    /// `x [b, t, j, d]` (constant where `table`) turned by `perm`, times `h`, turned by `back`.
    fn turned_product(
        equation: Option<&str>,
        x: &[i64],
        perm: [&[usize]; 2],
        h: &[i64],
        back: &[usize],
    ) -> Graph {
        let mut g = Graph::new("turned");
        let (mut x, mut h) = (g.add_input("x", f32s(x)), g.add_input("h", f32s(h)));
        for (v, perm) in [(&mut x, perm[0]), (&mut h, perm[1])] {
            if !perm.is_empty() {
                *v = g.op(Op::Transpose { perm: perm.to_vec() }, &[*v]);
            }
        }
        let mut y = match equation {
            None => g.op(Op::MatMul, &[x, h]),
            Some(equation) => g.op(Op::Einsum { equation: equation.into() }, &[x, h]),
        };
        if !back.is_empty() {
            y = g.op(Op::Transpose { perm: back.to_vec() }, &[y]);
        }
        g.add_output("y", y);
        g
    }

    #[test]
    fn products_beside_transposes_are_equations_of_the_state() {
        const SWAP: &[usize] = &[0, 1, 3, 2];
        let state = &[-1, -2, 4, 6][..];
        for (given, perm, h, back, found) in [
            // From the right: one matrix, one for each token, that one turned too, and more rows than streams.
            (None, [SWAP, &[]], &[4, 4][..], SWAP, "abdc,de->abec"),
            (None, [SWAP, &[]], &[-1, -2, 4, 4], SWAP, "abdc,abde->abec"),
            (None, [SWAP, SWAP], &[-1, -2, 4, 4], SWAP, "abdc,abed->abec"),
            (None, [SWAP, &[]], &[4, 5], SWAP, "abdc,de->abec"),
            // Equations that are turned before or behind.
            (Some("btjd,ij->btdi"), [&[], &[]], &[4, 4], SWAP, "btjd,ij->btid"),
            (Some("btdj,ij->btid"), [SWAP, &[]], &[4, 4], &[], "btjd,ij->btid"),
            (Some("btdj,btij->btdi"), [SWAP, &[]], &[-1, -2, 4, 4], SWAP, "btjd,btij->btid"),
            // A matrix that only stands right once it is turned; tokens behind its square stay turned.
            (Some("btdj,ijbt->btid"), [SWAP, &[2, 3, 0, 1]], &[-1, -2, 4, 4], &[], "btjd,btij->btid"),
        ] {
            let before = turned_product(given, state, perm, h, back);
            let (g, changes) = after(&before, &TURNED);
            assert_eq!((changes, count(&g, "Transpose"), equation(&g)), (1, 0, Some(found.to_string())));
        }
    }

    #[test]
    fn other_turned_products_stay() {
        const SWAP: &[usize] = &[0, 1, 3, 2];
        for (equation, x, perm, h, back) in [
            // Features are no streams, nor are many rows.
            (None, &[-1, -2, 4, 6][..], [&[][..], &[]], &[6, 6][..], SWAP),
            (None, &[-1, -2, 64, 6], [SWAP, &[]], &[64, 64], SWAP),
            (None, &[-1, -2, 4, 6], [SWAP, &[]], &[4, 7], SWAP),
            (None, &[-1, 4, -2, 6], [SWAP, &[]], &[-2, -2], SWAP),
            // It does not come back to where it was.
            (None, &[-1, -2, 4, 6], [SWAP, &[]], &[4, 4], &[]),
            // Nothing is turned.
            (Some("btjd,ij->btid"), &[-1, -2, 4, 6], [&[], &[]], &[4, 4], &[]),
            // Tokens that may be repeated.
            (None, &[-1, -2, 4, 6], [SWAP, &[]], &[1, 1, 4, 4], SWAP),
        ] {
            let before = turned_product(equation, x, perm, h, back);
            assert_eq!(after(&before, &TURNED).1, 0, "{equation:?} {x:?} {h:?}");
        }
    }

    #[test]
    fn mixings_of_one_state_that_are_added_are_one() {
        let state = &[-1, -2, 4, 6][..];
        for (h, g_shape) in [
            (&[4, 4][..], None),
            (&[-1, -2, 4, 4], None),
            (&[4, 4], Some(&[-1, -2, 4, 4][..])),
            (&[-1, -2, 4, 4], Some(&[4, 4][..])),
            (&[-1, -2, 4, 4], Some(&[-1, -2, 4, 4][..])),
        ] {
            for equation in [None, Some(("btij,btjd->btid", "ij,btjd->btid"))] {
                let mut g = Graph::new("added");
                let (x, h_value) = (g.add_input("x", f32s(state)), g.add_input("h", f32s(h)));
                let product = |g: &mut Graph, m: ValueId, rank: usize| match equation {
                    None => g.op(Op::MatMul, &[m, x]),
                    Some((of_tokens, of_all)) => {
                        let equation = if rank > 2 { of_tokens } else { of_all };
                        g.op(Op::Einsum { equation: equation.into() }, &[m, x])
                    }
                };
                let a = product(&mut g, h_value, h.len());
                let b = match g_shape {
                    None => x,
                    Some(shape) => {
                        let other = g.add_input("g", f32s(shape));
                        product(&mut g, other, shape.len())
                    }
                };
                let y = g.bin(Binary::Add, b, a);
                g.add_output("y", y);
                let (g, changes) = after(&g, &ADDED);
                let products = count(&g, "MatMul") + count(&g, "Einsum");
                assert_eq!((changes, products), (1, 1), "{h:?} {g_shape:?} {equation:?}");
            }
        }
        // One head of attention to the state itself; mixings of two states.
        for (x, h, two) in [(&[-1, 7, 6][..], &[-1, 7, 7][..], false), (state, &[4, 4][..], true)] {
            let mut g = Graph::new("other");
            let (x_value, h) = (g.add_input("x", f32s(x)), g.add_input("h", f32s(h)));
            let a = g.op(Op::MatMul, &[h, x_value]);
            let b = if two { g.add_input("other", f32s(x)) } else { x_value };
            let y = g.bin(Binary::Add, a, b);
            g.add_output("y", y);
            assert_eq!(after(&g, &ADDED).1, 0, "{x:?}");
        }
    }
}
