//! Einstein summation.

use super::number::{Number, load, same_dtype, store, with_number};
use super::shape::{Walk, count, strides};
use super::{Answer, Operands, Result, bad, one};
use crate::ir::{Op, Tensor};

/// The results of the operators of this family.
pub(super) fn eval(op: &Op, o: Operands<'_>) -> Answer {
    match op {
        Op::Einsum { equation } => einsum(equation, &o.all()?).map(one),
        _ => Ok(None),
    }
}

/// An axis of an einsum: a letter, or the `i`-th from the last of those that `...` stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    /// Ordered before letters, the last axis last, as implicit outputs are.
    Rest(std::cmp::Reverse<usize>),
    Letter(char),
}

/// Sums the product of the operands over the labels that the output leaves out. Sizes of 1 broadcast.
fn einsum(equation: &str, operands: &[&Tensor]) -> Result<Tensor> {
    let first = *operands.first().ok_or_else(|| bad("Einsum without operands"))?;
    operands.iter().try_for_each(|x| same_dtype(first, x))?;
    let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (&text[..], None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != operands.len() {
        return Err(bad(format!("'{equation}' names {} operands, found {}", terms.len(), operands.len())));
    }
    let ranks = operands.iter().map(|x| x.shape().len());
    let labels: Vec<Vec<Label>> =
        terms.iter().zip(ranks).map(|(t, rank)| parse(t, Some(rank), 0)).collect::<Result<_>>()?;
    let rest = |ls: &Vec<Label>| ls.iter().filter(|l| matches!(l, Label::Rest(_))).count();
    let rest = labels.iter().map(rest).max().unwrap_or(0);
    let output = match right {
        Some(text) => parse(text, None, rest)?,
        None => implicit_output(&labels),
    };
    let sizes = sizes(equation, &labels, operands)?;
    let size = |l: &Label| sizes.iter().find(|(x, _)| x == l).map(|(_, n)| *n);
    let unknown = || bad(format!("the output of '{equation}' has a label that no operand has, or one twice"));
    let distinct = output.iter().enumerate().all(|(i, l)| !output[..i].contains(l));
    let shape: Vec<usize> =
        output.iter().map(size).collect::<Option<_>>().filter(|_| distinct).ok_or_else(unknown)?;
    let summed: Vec<(Label, usize)> = sizes.iter().filter(|(l, _)| !output.contains(l)).copied().collect();
    count(first.dtype(), &summed.iter().map(|(_, n)| *n).collect::<Vec<_>>())?;
    let all: Vec<Label> = output.iter().copied().chain(summed.iter().map(|(l, _)| *l)).collect();
    // Per operand: the offset of each summed position, and the stride of each output axis.
    let steps: Vec<Vec<isize>> = operands.iter().zip(&labels).map(|(x, ls)| steps(x, ls, &all)).collect();
    with_number!(first.dtype(), "Einsum", T => {
        let data: Vec<_> = operands.iter().map(|x| load::<T>(x)).collect::<Result<_>>()?;
        let mut out = vec![T::ZERO; count(first.dtype(), &shape)?];
        let inner_shape: Vec<usize> = summed.iter().map(|(_, n)| *n).collect();
        let split = |part: &[isize]| (part[..shape.len()].to_vec(), part[shape.len()..].to_vec());
        let inner: Vec<Vec<usize>> = steps.iter()
            .map(|s| Walk::new(&inner_shape, [split(s).1]).map(|[o]| o).collect())
            .collect();
        let mut walks: Vec<_> = steps.iter().map(|s| Walk::new(&shape, [split(s).0])).collect();
        for sum in &mut out {
            let bases: Vec<usize> = walks.iter_mut().map(|w| w.next().map_or(0, |[o]| o)).collect();
            for i in 0..inner.first().map_or(0, Vec::len) {
                let factors = data.iter().zip(&bases).zip(&inner).map(|((d, base), offsets)| d[base + offsets[i]]);
                *sum = sum.plus(factors.fold(T::ONE, T::times));
            }
        }
        store(first.dtype(), shape, out)
    })
}

/// The labels of a term. `...` stands for the axes that an operand's `rank` leaves, or for `rest` axes
/// in the output.
fn parse(term: &str, rank: Option<usize>, rest: usize) -> Result<Vec<Label>> {
    let fail = || bad(format!("'{term}' is not a term of an einsum over {rank:?} axes"));
    let (before, after) = term.split_once("...").map_or((term, None), |(b, a)| (b, Some(a)));
    let letters = |s: &str| {
        s.chars().map(|c| c.is_ascii_alphabetic().then_some(Label::Letter(c))).collect::<Option<Vec<_>>>()
    };
    let (mut labels, tail) =
        (letters(before).ok_or_else(fail)?, letters(after.unwrap_or("")).ok_or_else(fail)?);
    let named = labels.len() + tail.len();
    let rest = match (rank, after) {
        (Some(rank), Some(_)) => rank.checked_sub(named).ok_or_else(fail)?,
        (Some(rank), None) if rank != named => return Err(fail()),
        (None, Some(_)) => rest,
        _ => 0,
    };
    labels.extend((0..rest).rev().map(|i| Label::Rest(std::cmp::Reverse(i))));
    labels.extend(tail);
    Ok(labels)
}

/// The `...` axes, then every letter that occurs once, in alphabetical order.
fn implicit_output(labels: &[Vec<Label>]) -> Vec<Label> {
    let mut all: Vec<Label> = labels.iter().flatten().copied().collect();
    all.sort_unstable();
    let once = |l: &Label| all.iter().filter(|x| *x == l).count() == 1;
    let mut out: Vec<Label> =
        all.iter().filter(|l| matches!(l, Label::Rest(_)) || once(l)).copied().collect();
    out.dedup();
    out
}

/// The size of each label, in order of appearance.
fn sizes(equation: &str, labels: &[Vec<Label>], operands: &[&Tensor]) -> Result<Vec<(Label, usize)>> {
    let mut sizes: Vec<(Label, usize)> = Vec::new();
    for (label, d) in labels.iter().zip(operands).flat_map(|(ls, x)| ls.iter().zip(x.shape())) {
        match sizes.iter_mut().find(|(l, _)| l == label) {
            None => sizes.push((*label, *d)),
            Some((_, n)) if *n == *d || *d == 1 => {}
            Some((_, n)) if *n == 1 => *n = *d,
            Some((_, n)) => return Err(bad(format!("'{equation}': sizes {n} and {d} under one label"))),
        }
    }
    Ok(sizes)
}

/// The stride of an operand along each label: repeated labels walk the diagonal, absent ones and sizes
/// of 1 stand still.
fn steps(x: &Tensor, own: &[Label], all: &[Label]) -> Vec<isize> {
    let step = |l: &Label| {
        let axes = own.iter().zip(strides(x.shape())).zip(x.shape());
        axes.filter(|((o, _), d)| *o == l && **d != 1).map(|((_, s), _)| s).sum()
    };
    all.iter().map(step).collect()
}
