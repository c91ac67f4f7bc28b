//! Tensors as functions of their indices.
//!
//! ```text
//!   LessOrEqual(Unsqueeze(Range(0, t), 0), Unsqueeze(Range(0, t), 1)) [i, j]   is   j - i ≤ 0
//! ```
//!
//! Masks and index tables are made of ranges, comparisons and views. [`element`] evaluates such a tensor at
//! a symbolic position: the index along axis `a` is a [`Dim`] (usually the symbol of that axis), and what
//! comes out is a number, a condition, or a choice between two numbers. `None` wherever data comes in.

use crate::ir::{Binary, DType, Dim, Graph, Node, Op, Reduce, Symbol, Tensor, Unary, ValueId};

/// A condition on indices.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Formula {
    /// `d ≤ 0`
    AtMostZero(Dim),
    And(Vec<Formula>),
    Or(Vec<Formula>),
}

impl Formula {
    pub(crate) fn truth(yes: bool) -> Self {
        if yes { Formula::And(vec![]) } else { Formula::Or(vec![]) }
    }

    fn le(a: Dim, b: Dim) -> Self {
        let d = a - b;
        match d.known() {
            Some(n) => Formula::truth(n <= 0),
            None => Formula::AtMostZero(d),
        }
    }

    fn and(self, other: Formula) -> Self {
        match (self, other) {
            (Formula::And(mut a), Formula::And(b)) => {
                a.extend(b);
                Formula::And(a)
            }
            (Formula::And(mut a), b) | (b, Formula::And(mut a)) => {
                a.push(b);
                Formula::And(a)
            }
            (a, b) => Formula::And(vec![a, b]),
        }
    }

    fn or(self, other: Formula) -> Self {
        self.not().and(other.not()).not()
    }

    pub(crate) fn not(self) -> Self {
        match self {
            Formula::AtMostZero(d) => Formula::le(Dim::ONE, d),
            Formula::And(all) => Formula::Or(all.into_iter().map(Formula::not).collect()),
            Formula::Or(any) => Formula::And(any.into_iter().map(Formula::not).collect()),
        }
    }

    /// The conditions that must all hold; `None` where alternatives are left.
    pub(crate) fn conjuncts(&self) -> Option<Vec<Dim>> {
        match self {
            Formula::AtMostZero(d) => Some(vec![d.clone()]),
            Formula::And(all) => {
                let parts: Option<Vec<_>> = all.iter().map(Formula::conjuncts).collect();
                Some(parts?.concat())
            }
            Formula::Or(any) => match &any[..] {
                [one] => one.conjuncts(),
                _ => None,
            },
        }
    }
}

/// What stands at a position.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Element {
    /// An integer.
    Index(Dim),
    /// A bool.
    Truth(Formula),
    /// One of two numbers.
    Choice(Formula, f64, f64),
}

/// The symbol of the index along axis `axis`; no model's symbol is called like it.
pub(crate) fn index_symbol(axis: usize) -> Symbol {
    Symbol::new(&format!("\u{0}index{axis}"))
}

/// The index symbols of all axes.
pub(crate) fn index_symbols(rank: usize) -> Vec<Dim> {
    (0..rank).map(|a| index_symbol(a).into()).collect()
}

/// Nodes followed at most.
const DEPTH: usize = 40;

/// The element of `v` at a position.
pub(crate) fn element(graph: &Graph, v: ValueId, at: &[Dim]) -> Option<Element> {
    Reader { graph }.value(v, at, DEPTH)
}

struct Reader<'g> {
    graph: &'g Graph,
}

impl Reader<'_> {
    fn value(&self, v: ValueId, at: &[Dim], depth: usize) -> Option<Element> {
        let depth = depth.checked_sub(1)?;
        let ty = self.graph.ty(v)?;
        if ty.rank() != at.len() {
            return None;
        }
        if let Some(content) = self.graph.content(v)
            && content.len() == 1
        {
            return integer(ty.dtype, content.first()?.clone());
        }
        if let Some(t) = self.graph.tensor(v) {
            return constant(t, at);
        }
        let node = self.graph.producing(v)?;
        self.node(node, at, depth)
    }

    fn node(&self, node: &Node, at: &[Dim], depth: usize) -> Option<Element> {
        let x = node.input(0);
        match &node.op {
            Op::Identity => self.value(x?, at, depth),
            Op::Range => {
                let (start, delta) = (self.scalar(x?)?, self.scalar(node.input(2)?)?);
                Some(Element::Index(start + at.first()?.clone() * delta))
            }
            Op::Cast { to } => cast(self.value(x?, at, depth)?, *to),
            Op::ConstantOfShape { value } => number(value.dtype(), value.item()?),
            Op::Unsqueeze { axes } => {
                let kept = at.iter().enumerate().filter(|(i, _)| !axes.contains(i));
                let inner: Vec<Dim> = kept.map(|(_, d)| d.clone()).collect();
                self.value(x?, &inner, depth)
            }
            Op::Squeeze { .. } | Op::Reshape { .. } => {
                let inner = self.same_elements(x?, *node.outputs.first()?, at)?;
                self.value(x?, &inner, depth)
            }
            Op::Expand => self.broadcast(x?, at, depth),
            Op::Transpose { perm } => {
                let mut inner = vec![Dim::ZERO; perm.len()];
                for (i, p) in perm.iter().enumerate() {
                    *inner.get_mut(*p)? = at.get(i)?.clone();
                }
                self.value(x?, &inner, depth)
            }
            Op::Slice { axes, steps } => {
                let mut inner = at.to_vec();
                let (starts, shape) = (self.graph.content(node.input(1)?)?, self.graph.shape(x?)?);
                for ((axis, step), start) in axes.iter().zip(steps).zip(starts) {
                    let start = from_front(start, shape.get(*axis)?)?;
                    let i = inner.get_mut(*axis)?;
                    *i = start + i.clone() * Dim::from(*step);
                }
                self.value(x?, &inner, depth)
            }
            Op::Trilu { upper } => self.triangle(node, *upper, at, depth),
            Op::Reduce { op: Reduce::Sum, axes, keepdims } => self.sum(x?, axes, *keepdims, at, depth),
            Op::Unary(Unary::Not) => match self.value(x?, at, depth)? {
                Element::Truth(f) => Some(Element::Truth(f.not())),
                _ => None,
            },
            Op::Unary(Unary::Neg) => match self.value(x?, at, depth)? {
                Element::Index(d) => Some(Element::Index(Dim::ZERO - d)),
                Element::Choice(f, a, b) => Some(Element::Choice(f, -a, -b)),
                Element::Truth(_) => None,
            },
            Op::Binary(f) => {
                let (a, b) = (self.broadcast(x?, at, depth)?, self.broadcast(node.input(1)?, at, depth)?);
                binary(*f, a, b)
            }
            Op::Where => {
                let condition = match self.broadcast(x?, at, depth)? {
                    Element::Truth(f) => f,
                    _ => return None,
                };
                let a = self.broadcast(node.input(1)?, at, depth)?;
                let b = self.broadcast(node.input(2)?, at, depth)?;
                select(condition, a, b)
            }
            _ => None,
        }
    }

    /// A sum of integers that are equal along the axes.
    fn sum(&self, x: ValueId, axes: &[usize], keepdims: bool, at: &[Dim], depth: usize) -> Option<Element> {
        let ty = self.graph.ty(x)?;
        let mut kept = at.iter().cloned();
        let mut inner = vec![];
        for axis in 0..ty.rank() {
            let summed = axes.contains(&axis);
            let given = if summed && !keepdims { None } else { kept.next() };
            let any = || Dim::from(Symbol::new(&format!("\u{0}summed{axis}")));
            inner.push(if summed { any() } else { given? });
        }
        let Element::Index(d) = self.value(x, &inner, depth)? else { return None };
        let count = Dim::product(axes.iter().filter_map(|a| ty.shape.get(*a)));
        let equal = d.symbols().iter().all(|s| !s.name().starts_with("\u{0}summed"));
        (ty.dtype.is_int() && equal).then(|| Element::Index(d * count))
    }

    /// The element of an operand that broadcasts to the position's rank.
    fn broadcast(&self, v: ValueId, at: &[Dim], depth: usize) -> Option<Element> {
        let shape = self.graph.shape(v)?;
        let lead = at.len().checked_sub(shape.len())?;
        let inner: Vec<Dim> = shape
            .iter()
            .zip(&at[lead..])
            .map(|(d, i)| if *d == Dim::ONE { Dim::ZERO } else { i.clone() })
            .collect();
        self.value(v, &inner, depth)
    }

    /// The known value of a one-element integer.
    fn scalar(&self, v: ValueId) -> Option<Dim> {
        match self.graph.content(v)? {
            [one] => Some(one.clone()),
            _ => None,
        }
    }

    /// The position in `x` of a position in a view that only adds or drops axes of size 1.
    fn same_elements(&self, x: ValueId, view: ValueId, at: &[Dim]) -> Option<Vec<Dim>> {
        let (from, to) = (self.graph.shape(x)?, self.graph.shape(view)?);
        let mut moved = to.iter().zip(at).filter(|(d, _)| **d != Dim::ONE);
        let mut out = vec![];
        for d in from {
            out.push(if *d == Dim::ONE {
                Dim::ZERO
            } else {
                let (same, i) = moved.next()?;
                if same != d {
                    return None;
                }
                i.clone()
            });
        }
        moved.next().is_none().then_some(out)
    }

    fn triangle(&self, node: &Node, upper: bool, at: &[Dim], depth: usize) -> Option<Element> {
        let [.., row, column] = at else { return None };
        let k = match node.input(1) {
            Some(k) => self.scalar(k)?,
            None => Dim::ZERO,
        };
        let edge = row.clone() + k;
        let kept = if upper { Formula::le(edge, column.clone()) } else { Formula::le(column.clone(), edge) };
        match self.value(node.input(0)?, at, depth)? {
            Element::Truth(f) => Some(Element::Truth(kept.and(f))),
            Element::Index(d) => Some(Element::Choice(kept, d.known()? as f64, 0.0)),
            Element::Choice(f, a, b) if f == Formula::truth(true) || a == b => {
                Some(Element::Choice(kept, a, 0.0))
            }
            Element::Choice(..) => None,
        }
    }
}

/// A start of a slice counted from the front and inside the axis.
fn from_front(start: &Dim, size: &Dim) -> Option<Dim> {
    match start.known() {
        Some(n) if n < 0 => Some(start.clone() + size.clone()),
        _ if start.is_non_negative() => Some(start.clone()),
        _ => None,
    }
}

fn integer(dtype: DType, d: Dim) -> Option<Element> {
    if dtype == DType::Bool {
        d.known().map(|n| Element::Truth(Formula::truth(n != 0)))
    } else {
        Some(Element::Index(d))
    }
}

/// A number that is the same everywhere.
fn number(dtype: DType, x: f64) -> Option<Element> {
    if dtype == DType::Bool {
        return Some(Element::Truth(Formula::truth(x != 0.0)));
    }
    if dtype.is_int() || (x.fract() == 0.0 && x.abs() < 1e9) {
        return Some(Element::Index(Dim::from(x as i64)));
    }
    Some(Element::Choice(Formula::truth(true), x, x))
}

/// A constant that is uniform, counts along one axis, or is a triangle of bools.
fn constant(t: &Tensor, at: &[Dim]) -> Option<Element> {
    if t.len() == 1 {
        return number(t.dtype(), t.item()?);
    }
    let known: Option<Vec<usize>> = at.iter().map(Dim::known_size).collect();
    if let Some(known) = known
        && let Some(flat) = flat_index(t.shape(), &known)
    {
        return number(t.dtype(), *t.to_f64().get(flat)?);
    }
    if t.dtype() == DType::Bool {
        return triangle_constant(t, at);
    }
    let varying: Vec<usize> = (0..at.len()).filter(|i| t.shape()[*i] != 1).collect();
    let data = t.to_i64()?;
    match (&varying[..], &data[..]) {
        ([axis], [first, second, ..]) => {
            let step = second.checked_sub(*first)?;
            let counts = data.windows(2).all(|w| w[1].checked_sub(w[0]) == Some(step));
            counts.then(|| Element::Index(Dim::from(*first) + at[*axis].clone() * Dim::from(step)))
        }
        _ => None,
    }
}

fn flat_index(shape: &[usize], at: &[usize]) -> Option<usize> {
    let mut flat = 0usize;
    for (n, i) in shape.iter().zip(at) {
        if i >= n {
            return None;
        }
        flat = flat.checked_mul(*n)?.checked_add(*i)?;
    }
    Some(flat)
}

/// A bool constant `[1.., n, m]` that is `column ≤ row + k`, or its complement, or uniform.
fn triangle_constant(t: &Tensor, at: &[Dim]) -> Option<Element> {
    let data = t.as_slice::<u8>()?;
    let first = data.first().copied()? != 0;
    if data.iter().all(|b| (*b != 0) == first) {
        return Some(Element::Truth(Formula::truth(first)));
    }
    let ([lead @ .., n, m], [.., row, column]) = (t.shape(), at) else { return None };
    if lead.iter().any(|d| *d != 1) || *n == 0 || *m == 0 {
        return None;
    }
    let width = data.iter().take(*m).take_while(|b| (**b != 0) == first).count() as i64;
    let lower = |i: i64, j: i64| j < i + width;
    let agrees = data.iter().enumerate().all(|(at, b)| {
        let (i, j) = ((at / m) as i64, (at % m) as i64);
        (*b != 0) == (lower(i, j) == first)
    });
    if !agrees {
        return None;
    }
    let kept = Formula::le(column.clone(), row.clone() + Dim::from(width - 1));
    Some(Element::Truth(if first { kept } else { kept.not() }))
}

fn cast(x: Element, to: DType) -> Option<Element> {
    match (x, to) {
        (Element::Truth(f), DType::Bool) => Some(Element::Truth(f)),
        (Element::Truth(f), _) => Some(Element::Choice(f, 1.0, 0.0)),
        (Element::Index(d), DType::Bool) => d.known().map(|n| Element::Truth(Formula::truth(n != 0))),
        (Element::Choice(f, a, b), DType::Bool) => choose(f, a != 0.0, b != 0.0),
        (x, _) => Some(x),
    }
}

fn choose(f: Formula, a: bool, b: bool) -> Option<Element> {
    Some(Element::Truth(match (a, b) {
        (true, true) => Formula::truth(true),
        (true, false) => f,
        (false, true) => f.not(),
        (false, false) => Formula::truth(false),
    }))
}

/// A number as a choice that is none.
fn as_choice(x: &Element) -> Option<(Formula, f64, f64)> {
    match x {
        Element::Index(d) => {
            let n = d.known()? as f64;
            Some((Formula::truth(true), n, n))
        }
        Element::Choice(f, a, b) => Some((f.clone(), *a, *b)),
        Element::Truth(_) => None,
    }
}

fn select(f: Formula, a: Element, b: Element) -> Option<Element> {
    if let (Element::Truth(a), Element::Truth(b)) = (&a, &b) {
        let (a, b) = (a.clone(), b.clone());
        return Some(Element::Truth(f.clone().and(a).or(f.not().and(b))));
    }
    let ((_, x, x2), (_, y, y2)) = (as_choice(&a)?, as_choice(&b)?);
    (x == x2 && y == y2).then_some(Element::Choice(f, x, y))
}

fn binary(f: Binary, a: Element, b: Element) -> Option<Element> {
    if let (Element::Truth(a), Element::Truth(b)) = (&a, &b) {
        let (a, b) = (a.clone(), b.clone());
        return match f {
            Binary::And | Binary::BitwiseAnd | Binary::Mul => Some(Element::Truth(a.and(b))),
            Binary::Or | Binary::BitwiseOr => Some(Element::Truth(a.or(b))),
            _ => None,
        };
    }
    if let (Element::Index(a), Element::Index(b)) = (&a, &b) {
        return of_integers(f, a.clone(), b.clone());
    }
    of_choices(f, as_choice(&a)?, as_choice(&b)?)
}

fn of_integers(f: Binary, a: Dim, b: Dim) -> Option<Element> {
    let truth = |f| Some(Element::Truth(f));
    match f {
        Binary::Add => Some(Element::Index(a + b)),
        Binary::Sub => Some(Element::Index(a - b)),
        Binary::Mul => Some(Element::Index(a * b)),
        Binary::Min => Some(Element::Index(a.minimum(&b))),
        Binary::Max => Some(Element::Index(a.maximum(&b))),
        Binary::LessOrEqual => truth(Formula::le(a, b)),
        Binary::GreaterOrEqual => truth(Formula::le(b, a)),
        Binary::Less => truth(Formula::le(a + Dim::ONE, b)),
        Binary::Greater => truth(Formula::le(b + Dim::ONE, a)),
        Binary::Equal => truth(Formula::le(a.clone(), b.clone()).and(Formula::le(b, a))),
        _ => None,
    }
}

/// Two choices by one condition, or one choice and a number.
fn of_choices(f: Binary, a: (Formula, f64, f64), b: (Formula, f64, f64)) -> Option<Element> {
    let (condition, pairs) = if a.1 == a.2 {
        (b.0, [(a.1, b.1), (a.1, b.2)])
    } else if b.1 == b.2 || a.0 == b.0 {
        (a.0, [(a.1, b.1), (a.2, b.2)])
    } else {
        return None;
    };
    let [x, y] = pairs;
    let numbers = |f: fn(f64, f64) -> f64| Some(Element::Choice(condition.clone(), f(x.0, x.1), f(y.0, y.1)));
    let truths = |f: fn(f64, f64) -> bool| choose(condition.clone(), f(x.0, x.1), f(y.0, y.1));
    match f {
        Binary::Add => numbers(|a, b| a + b),
        Binary::Sub => numbers(|a, b| a - b),
        Binary::Mul => numbers(|a, b| a * b),
        Binary::Min => numbers(f64::min),
        Binary::Max => numbers(f64::max),
        Binary::Equal => truths(|a, b| a == b),
        Binary::Less => truths(|a, b| a < b),
        Binary::LessOrEqual => truths(|a, b| a <= b),
        Binary::Greater => truths(|a, b| a > b),
        Binary::GreaterOrEqual => truths(|a, b| a >= b),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_without_elements_have_none() {
        for tensor in [
            Tensor::from_bools(vec![0, 3], &[]).unwrap(),
            Tensor::from_vec(vec![0, 3], Vec::<i64>::new()).unwrap(),
        ] {
            let mut g = Graph::new("empty");
            let v = g.constant(tensor);
            assert_eq!(element(&g, v, &index_symbols(2)), None);
        }
    }
}
