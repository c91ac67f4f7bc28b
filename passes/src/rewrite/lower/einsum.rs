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

use super::target;
use crate::ir::{Dim, Graph, GraphError, Node, Op, Reduce, ValueId};

/// A value with a letter for each axis.
struct Labelled {
    value: ValueId,
    letters: Vec<char>,
}

/// `None` where the equation has what this does not cover: an ellipsis, a letter twice in one operand.
pub(super) fn lower(graph: &mut Graph, equation: &str, node: &Node) -> Result<Option<ValueId>, GraphError> {
    let Some((operands, result)) = parsed(equation) else { return Ok(None) };
    let values: Vec<ValueId> = node.operands().collect();
    let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
    if operands.len() != values.len() || operands.is_empty() {
        return Ok(None);
    }
    for (letters, v) in operands.iter().zip(&values) {
        let Some(shape) = graph.shape(*v).filter(|s| s.len() == letters.len()) else { return Ok(None) };
        for (letter, d) in letters.iter().zip(shape) {
            let size = sizes.entry(*letter).or_insert_with(|| d.clone());
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

/// The letters of the operands and of the result.
fn parsed(equation: &str) -> Option<(Vec<Vec<char>>, Vec<char>)> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l.to_string(), Some(r.to_string())),
        None => (equation, None),
    };
    let operands: Vec<Vec<char>> = left.split(',').map(|o| o.chars().collect()).collect();
    let all: Vec<char> = operands.concat();
    let result: Vec<char> = match right {
        Some(r) => r.chars().collect(),
        None => {
            let mut once: Vec<char> =
                all.iter().copied().filter(|c| all.iter().filter(|d| *d == c).count() == 1).collect();
            once.sort_unstable();
            once
        }
    };
    let plain = |letters: &Vec<char>| {
        letters.iter().all(char::is_ascii_alphabetic) && distinct(letters.clone()).len() == letters.len()
    };
    let known = result.iter().all(|c| all.contains(c));
    (operands.iter().all(plain) && plain(&result) && known).then_some((operands, result))
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
