//! Einstein summation.

use std::collections::BTreeMap;

use super::context::{Context, broadcast, fail, same_dtype};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{DType, Dim, Op, Type};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    match op {
        Op::Einsum { equation } => Some(one(einsum(cx, equation))),
        _ => None,
    }
}

/// One side's term: labels with the place of the ellipsis, if any.
struct Term {
    before: Vec<char>,
    /// Labels after an ellipsis.
    after: Option<Vec<char>>,
}

impl Term {
    fn parse(text: &str) -> Result<Term, InferError> {
        let labels = |s: &str| match s.chars().find(|c| !c.is_ascii_alphabetic()) {
            Some(c) => fail(format!("'{c}' is no label of an equation")),
            None => Ok(s.chars().collect::<Vec<_>>()),
        };
        match text.split_once("...") {
            Some((before, after)) => Ok(Term { before: labels(before)?, after: Some(labels(after)?) }),
            None => Ok(Term { before: labels(text)?, after: None }),
        }
    }

    fn labels(&self) -> impl Iterator<Item = char> + '_ {
        self.before.iter().chain(self.after.iter().flatten()).copied()
    }
}

/// Sizes that the operands give the labels.
#[derive(Default)]
struct Sizes {
    labels: BTreeMap<char, Dim>,
    ellipsis: Vec<Dim>,
}

impl Sizes {
    fn bind(&mut self, label: char, size: &Dim) -> Result<(), InferError> {
        let merged = match self.labels.get(&label) {
            None => size.clone(),
            Some(old) => match old.broadcast(size) {
                Some(d) => d,
                None => return fail(format!("label {label} is {old} and {size}")),
            },
        };
        self.labels.insert(label, merged);
        Ok(())
    }

    fn bind_term(&mut self, term: &Term, ty: &Type) -> Result<(), InferError> {
        let after = term.after.as_deref().unwrap_or_default();
        let named = term.before.len() + after.len();
        let exact = term.after.is_none();
        if ty.rank() < named || exact && ty.rank() != named {
            return fail(format!("a term of {named} labels stands for an operand of rank {}", ty.rank()));
        }
        let (head, rest) = ty.shape.split_at(term.before.len());
        let (middle, tail) = rest.split_at(rest.len() - after.len());
        for (label, size) in term.before.iter().zip(head).chain(after.iter().zip(tail)) {
            self.bind(*label, size)?;
        }
        self.ellipsis = broadcast(&self.ellipsis, middle)?;
        Ok(())
    }
}

/// `equation` as in NumPy, explicit or implicit, with at most one ellipsis per term.
fn einsum(cx: &mut Context<'_, '_>, equation: &str) -> Result<Inferred, InferError> {
    let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (&text[..], None),
    };
    let terms = left.split(',').map(Term::parse).collect::<Result<Vec<_>, _>>()?;
    if terms.len() != cx.len() {
        return fail(format!("equation '{equation}' has {} terms for {} operands", terms.len(), cx.len()));
    }
    let mut sizes = Sizes::default();
    let mut first: Option<&Type> = None;
    let mut unknown = false;
    for (i, term) in terms.iter().enumerate() {
        let Some(ty) = cx.ty(i, "term")? else {
            unknown = true;
            continue;
        };
        same_dtype(first.unwrap_or(ty), ty)?;
        first = Some(ty);
        sizes.bind_term(term, ty)?;
    }
    let output = match right {
        Some(right) => Term::parse(right)?,
        None => implicit(&terms),
    };
    match first {
        Some(ty) if !unknown => result(ty.dtype, &sizes, &output),
        _ => Ok(Inferred::unknown()),
    }
}

/// Without an arrow the result has the ellipsis, then the labels that occur once, in alphabetic order.
fn implicit(terms: &[Term]) -> Term {
    let mut occurrences: BTreeMap<char, usize> = BTreeMap::new();
    for label in terms.iter().flat_map(Term::labels) {
        *occurrences.entry(label).or_default() += 1;
    }
    let once = occurrences.into_iter().filter(|(_, n)| *n == 1).map(|(c, _)| c).collect();
    Term { before: Vec::new(), after: Some(once) }
}

fn result(dtype: DType, sizes: &Sizes, output: &Term) -> Result<Inferred, InferError> {
    let mut seen = Vec::new();
    let mut size = |label: &char| {
        if seen.contains(label) {
            return fail(format!("label {label} occurs twice in the result"));
        }
        seen.push(*label);
        match sizes.labels.get(label) {
            Some(d) => Ok(d.clone()),
            None => fail(format!("label {label} of the result is in no operand")),
        }
    };
    let mut shape = output.before.iter().map(&mut size).collect::<Result<Vec<_>, _>>()?;
    if let Some(after) = &output.after {
        shape.extend(sizes.ellipsis.iter().cloned());
        shape.extend(after.iter().map(&mut size).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(Inferred::new(dtype, shape))
}
