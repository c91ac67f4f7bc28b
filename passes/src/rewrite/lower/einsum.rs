//! Einsum as transposes, reshapes and MatMul.
//!
//! ```text
//!   Einsum "ij,bjkl->bikl" (a, x)   becomes   Reshape(MatMul(a [1, i, j], Reshape(x → [b, j, k·l])) → [b, i, k, l])
//! ```
//!
//! Letters of both operands and the result are batch axes, letters of both operands alone are contracted,
//! and so are the others rows or columns. Rows and columns that lead in the result become batch axes too,
//! which spares transposes.

use std::collections::BTreeMap;

use super::{Dialect, target};
use crate::ir::{Binary, Dim, Graph, GraphError, Node, Op, Reduce, ValueId};

/// A value with a letter for each axis.
struct Labelled {
    value: ValueId,
    letters: Vec<char>,
}

/// `None` where the equation has what this does not cover: an ellipsis whose axes broadcast.
pub(super) fn lower(
    graph: &mut Graph,
    node: &Node,
    dialect: &Dialect,
) -> Result<Option<ValueId>, GraphError> {
    let Op::Einsum { equation } = &node.op else { return Ok(None) };
    if dialect.einsum {
        return Ok(None);
    }
    let mut values: Vec<ValueId> = node.operands().collect();
    let Some(ranks) = values.iter().map(|v| graph.shape(*v).map(<[Dim]>::len)).collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    let Some((mut operands, result)) = parsed(equation, &ranks) else { return Ok(None) };
    for (letters, value) in operands.iter_mut().zip(&mut values) {
        let Some(plain) = diagonals(graph, *value, letters)? else { return Ok(None) };
        *value = plain;
    }
    let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
    if operands.len() != values.len() || operands.is_empty() {
        return Ok(None);
    }
    for (letters, v) in operands.iter().zip(&values) {
        let Some(shape) = graph.shape(*v).filter(|s| s.len() == letters.len()) else { return Ok(None) };
        for (letter, d) in letters.iter().zip(shape) {
            let size = sizes.entry(*letter).or_insert_with(|| d.clone());
            if size.known().zip(d.known()).is_some_and(|(a, b)| a != b) {
                return Ok(None);
            }
            if size.known().is_none() {
                *size = d.clone();
            }
        }
    }
    let mut rest = operands.into_iter().zip(values).map(|(letters, value)| Labelled { value, letters });
    let Some(mut sum) = rest.next() else { return Ok(None) };
    let mut waiting: Vec<Labelled> = rest.collect();
    while !waiting.is_empty() {
        let next = waiting.remove(0);
        let needed = |c: &char| result.contains(c) || waiting.iter().any(|w| w.letters.contains(c));
        let mut letters: Vec<char> =
            sum.letters.iter().chain(&next.letters).copied().filter(needed).collect();
        letters = if waiting.is_empty() { result.clone() } else { distinct(letters) };
        sum = product(graph, sum, next, letters, &sizes)?;
    }
    let kept = result.clone();
    let sum = summed(graph, sum, &kept)?;
    transposed(graph, sum, &result).map(|v| Some(v.value))
}

/// The letter of an ellipsis's axis, counted from its last.
fn ellipsis(i: usize) -> Option<char> {
    char::from_u32(0xe000 + u32::try_from(i).ok().filter(|i| *i < 64)?)
}

/// A term with letters in place of its ellipsis, which stands for `axes` axes.
fn spelled(term: &str, axes: Option<usize>) -> Option<Vec<char>> {
    match term.split_once("...") {
        None => Some(term.chars().collect()),
        Some((before, after)) => {
            let middle = (0..axes?).rev().map(ellipsis).collect::<Option<Vec<char>>>()?;
            Some(before.chars().chain(middle).chain(after.chars()).collect())
        }
    }
}

/// The operand with each letter once: of axes that share a letter the diagonal.
fn diagonals(
    graph: &mut Graph,
    mut x: ValueId,
    letters: &mut Vec<char>,
) -> Result<Option<ValueId>, GraphError> {
    while let Some((i, j)) = twice(letters) {
        let (Some(ty), rank) = (graph.ty(x).cloned(), letters.len()) else { return Ok(None) };
        let mut places = vec![];
        for axis in [i, j] {
            let size = super::axis_size(graph, x, axis)?;
            let (zero, one) = (graph.scalar(0i64), graph.scalar(1i64));
            let along = graph.add(Op::Range, &[zero, size, one])?;
            let axes: Vec<usize> = (0..rank).filter(|a| *a != axis).collect();
            places.push(graph.add(Op::Unsqueeze { axes }, &[along])?);
        }
        let on = graph.add(Op::Binary(Binary::Equal), &places)?;
        let zero = graph.float_scalar(ty.dtype, 0.0);
        let zero = graph.add(Op::Cast { to: ty.dtype }, &[zero])?;
        let kept = graph.add(Op::Where, &[on, x, zero])?;
        x = graph.add(Op::Reduce { op: Reduce::Sum, axes: vec![j], keepdims: false }, &[kept])?;
        letters.remove(j);
    }
    Ok(Some(x))
}

/// The first two places of a letter that occurs more than once.
fn twice(letters: &[char]) -> Option<(usize, usize)> {
    let second = |i: usize| letters.iter().skip(i + 1).position(|c| *c == letters[i]).map(|j| (i, i + 1 + j));
    (0..letters.len()).find_map(second)
}

/// The letters of the operands, which have these ranks, and of the result; axes of an ellipsis have characters of
/// the private use area.
pub(in crate::rewrite) fn parsed(equation: &str, ranks: &[usize]) -> Option<(Vec<Vec<char>>, Vec<char>)> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l.to_string(), Some(r.to_string())),
        None => (equation, None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    let rests = terms.iter().zip(ranks).map(|(term, rank)| {
        let (before, after) = term.split_once("...")?;
        rank.checked_sub(before.len() + after.len())
    });
    let rests: Vec<Option<usize>> = rests.collect();
    let wide = rests.iter().flatten().max().copied();
    let operands =
        terms.iter().zip(&rests).map(|(term, rest)| spelled(term, *rest)).collect::<Option<Vec<_>>>()?;
    let all: Vec<char> = operands.concat();
    let result: Vec<char> = match right {
        Some(r) => spelled(&r, Some(wide.unwrap_or(0)))?,
        None => {
            let mut once: Vec<char> =
                all.iter().copied().filter(|c| all.iter().filter(|d| *d == c).count() == 1).collect();
            once.retain(char::is_ascii_alphabetic);
            once.sort_unstable();
            let middle = (0..wide.unwrap_or(0)).rev().map(ellipsis).collect::<Option<Vec<char>>>()?;
            [middle, once].concat()
        }
    };
    let named = |c: &char| c.is_ascii_alphabetic() || ('\u{e000}'..'\u{e040}').contains(c);
    let plain = all.iter().all(named) && distinct(result.clone()).len() == result.len();
    let known = result.iter().all(|c| all.contains(c));
    (plain && known).then_some((operands, result))
}

fn distinct(mut letters: Vec<char>) -> Vec<char> {
    let mut seen = vec![];
    letters.retain(|c| {
        let new = !seen.contains(c);
        seen.push(*c);
        new
    });
    letters
}

/// Sums out the letters that are not kept.
fn summed(graph: &mut Graph, x: Labelled, kept: &[char]) -> Result<Labelled, GraphError> {
    let axes: Vec<usize> = (0..x.letters.len()).filter(|i| !kept.contains(&x.letters[*i])).collect();
    if axes.is_empty() {
        return Ok(x);
    }
    let value = graph.add(Op::Reduce { op: Reduce::Sum, axes, keepdims: false }, &[x.value])?;
    Ok(Labelled { value, letters: x.letters.into_iter().filter(|c| kept.contains(c)).collect() })
}

fn transposed(graph: &mut Graph, x: Labelled, order: &[char]) -> Result<Labelled, GraphError> {
    let perm: Vec<usize> = order.iter().filter_map(|c| x.letters.iter().position(|d| d == c)).collect();
    if perm.iter().enumerate().all(|(i, p)| i == *p) {
        return Ok(x);
    }
    let value = graph.add(Op::Transpose { perm }, &[x.value])?;
    Ok(Labelled { value, letters: order.to_vec() })
}

/// The letters of a pair by their part.
struct Parts {
    batch: Vec<char>,
    rows: Vec<char>,
    columns: Vec<char>,
    contracted: Vec<char>,
}

impl Parts {
    fn of(a: &[char], b: &[char], result: &[char]) -> Self {
        let both = |c: &char| a.contains(c) && b.contains(c);
        let contracted: Vec<char> = a.iter().copied().filter(|c| both(c) && !result.contains(c)).collect();
        let mut rows: Vec<char> = result.iter().copied().filter(|c| a.contains(c) && !both(c)).collect();
        let mut columns: Vec<char> = result.iter().copied().filter(|c| b.contains(c) && !both(c)).collect();
        // What leads in the result and stands before the contracted axes of its operand may stay there.
        let mut batch = vec![];
        let place = |letters: &[char], c: char| letters.iter().position(|d| *d == c).unwrap_or(usize::MAX);
        let inner = |letters: &[char]| contracted.iter().map(|c| place(letters, *c)).min().unwrap_or(0);
        let (row_end, column_end) = (inner(a), inner(b));
        for c in result {
            let leads = both(c)
                || (columns.contains(c) && place(b, *c) < column_end)
                || (rows.contains(c) && rows.len() > 1 && place(a, *c) < row_end);
            if !leads {
                break;
            }
            batch.push(*c);
            rows.retain(|d| d != c);
            columns.retain(|d| d != c);
        }
        batch.extend(result.iter().copied().filter(|c| both(c) && !batch.contains(c)).collect::<Vec<_>>());
        Parts { batch, rows, columns, contracted }
    }
}

fn product(
    graph: &mut Graph,
    a: Labelled,
    b: Labelled,
    result: Vec<char>,
    sizes: &BTreeMap<char, Dim>,
) -> Result<Labelled, GraphError> {
    let kept = |own: &[char], other: &[char]| -> Vec<char> {
        own.iter().copied().filter(|c| other.contains(c) || result.contains(c)).collect()
    };
    let (keep_a, keep_b) = (kept(&a.letters, &b.letters), kept(&b.letters, &a.letters));
    let (a, b) = (summed(graph, a, &keep_a)?, summed(graph, b, &keep_b)?);
    let parts = Parts::of(&a.letters, &b.letters, &result);
    let left = matrix(graph, a, &parts, &parts.rows, &parts.contracted, sizes)?;
    let right = matrix(graph, b, &parts, &parts.contracted, &parts.columns, sizes)?;
    let y = graph.add(Op::MatMul, &[left, right])?;
    let letters: Vec<char> = [&parts.batch[..], &parts.rows, &parts.columns].concat();
    let y = reshaped(graph, y, letters.iter().map(|c| size(sizes, *c)).collect())?;
    transposed(graph, Labelled { value: y, letters }, &result)
}

fn size(sizes: &BTreeMap<char, Dim>, letter: char) -> Dim {
    sizes.get(&letter).cloned().unwrap_or(Dim::ONE)
}

/// The operand as `[batch.., rows, columns]`, with 1 for batch axes that it does not have.
fn matrix(
    graph: &mut Graph,
    x: Labelled,
    parts: &Parts,
    rows: &[char],
    columns: &[char],
    sizes: &BTreeMap<char, Dim>,
) -> Result<ValueId, GraphError> {
    let own = |c: &&char| x.letters.contains(*c);
    let order: Vec<char> = parts.batch.iter().filter(own).chain(rows).chain(columns).copied().collect();
    let mut shape: Vec<Dim> =
        parts.batch.iter().map(|c| if x.letters.contains(c) { size(sizes, *c) } else { Dim::ONE }).collect();
    for group in [rows, columns] {
        let group: Vec<Dim> = group.iter().map(|c| size(sizes, *c)).collect();
        shape.push(Dim::product(&group));
    }
    let x = transposed(graph, x, &order)?;
    reshaped(graph, x.value, shape)
}

fn reshaped(graph: &mut Graph, x: ValueId, shape: Vec<Dim>) -> Result<ValueId, GraphError> {
    if graph.shape(x).is_some_and(|s| *s == shape[..]) {
        return Ok(x);
    }
    let target = target(graph, &shape)?;
    graph.add(Op::Reshape { allow_zero: true }, &[x, target])
}
