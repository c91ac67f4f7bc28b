//! Symbolic dimensions: integers, symbols and the arithmetic that exporters do with them.
//!
//! A [`Dim`] is a polynomial with integer coefficients over *atoms*, kept in a normal form, so that two
//! expressions that are equal as polynomials are equal as values. An atom is a symbol (`batch`) or an
//! operation that does not distribute (floor division, remainder, minimum, maximum). Symbols stand for
//! non-negative integers.
//!
//! ```text
//!   4·b·t + floor(t / 2)   =   { [b, t]: 4,  [floor(t / 2)]: 1 }
//! ```
//!
//! Arithmetic never fails and never grows without bound. Known numbers saturate; an expression of more
//! than [`MAX_TERMS`] terms or [`MAX_WEIGHT`] symbols, or with a coefficient beyond i64, becomes an *opaque
//! symbol*, named `?` and a digest of the expression: equal expressions give the same one, nothing is
//! known of its sign, and nobody binds it.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

mod arith;
#[cfg(test)]
mod laws;
mod order;
#[cfg(test)]
mod tests;
mod text;

/// The largest number of terms of a polynomial.
const MAX_TERMS: usize = 64;

/// The largest number of symbols, operations and terms of an expression.
const MAX_WEIGHT: u32 = 512;

/// The name of a symbolic dimension, unique within a graph.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// The symbol called `name`; two symbols of one name are the same symbol.
    pub fn new(name: &str) -> Self {
        Symbol(name.into())
    }

    /// The name as written in the model.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether the symbol stands for an expression too large to keep, whose sign is unknown.
    pub fn is_opaque(&self) -> bool {
        self.0.starts_with('?')
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Sizes for symbols.
pub type Bindings = std::collections::BTreeMap<Symbol, i64>;

/// What a polynomial's monomials are made of.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Atom {
    /// A symbol.
    Symbol(Symbol),
    /// `floor(a / b)`.
    FloorDiv(Dim, Dim),
    /// `a - b * floor(a / b)`.
    Mod(Dim, Dim),
    /// The smaller of two.
    Min(Dim, Dim),
    /// The larger of two.
    Max(Dim, Dim),
}

/// A product of atoms, sorted, with repetitions.
type Monomial = Vec<Atom>;

/// A monomial with its coefficient.
type Term = (Monomial, i64);

/// A symbolic integer in normal form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Known(i64),
    Poly(Arc<Poly>),
}

/// Never a lone constant, and within the limits.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Poly {
    /// Sorted by monomial; no coefficient is zero.
    terms: Vec<Term>,
    weight: u32,
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Dim(Repr::Known(n))
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Dim(Repr::Known(i64::try_from(n).unwrap_or(i64::MAX)))
    }
}

impl From<Symbol> for Dim {
    fn from(s: Symbol) -> Self {
        Dim::atom(Atom::Symbol(s))
    }
}

impl Dim {
    /// The dimension 1, which broadcasts.
    pub const ONE: Dim = Dim(Repr::Known(1));
    /// The dimension 0.
    pub const ZERO: Dim = Dim(Repr::Known(0));

    /// The symbol called `name`.
    pub fn symbol(name: &str) -> Self {
        Symbol::new(name).into()
    }

    fn atom(atom: Atom) -> Self {
        Dim::from_sorted(vec![(vec![atom], 1)])
    }

    /// The value, when no symbol occurs.
    pub fn known(&self) -> Option<i64> {
        match self.0 {
            Repr::Known(n) => Some(n),
            Repr::Poly(_) => None,
        }
    }

    /// The value as a size, when known and not negative.
    pub fn known_size(&self) -> Option<usize> {
        self.known().and_then(|n| usize::try_from(n).ok())
    }

    /// The symbol, when the dimension is nothing else.
    pub fn as_symbol(&self) -> Option<&Symbol> {
        let Repr::Poly(p) = &self.0 else { return None };
        let [(m, 1)] = &p.terms[..] else { return None };
        match &m[..] {
            [Atom::Symbol(s)] => Some(s),
            _ => None,
        }
    }

    /// The terms in order; a constant is a term without atoms, zero has none.
    fn terms(&self) -> impl DoubleEndedIterator<Item = (&[Atom], i64)> {
        let (known, terms) = match &self.0 {
            Repr::Known(0) => (None, &[][..]),
            Repr::Known(n) => (Some((&[][..], *n)), &[][..]),
            Repr::Poly(p) => (None, &p.terms[..]),
        };
        known.into_iter().chain(terms.iter().map(|(m, c)| (&m[..], *c)))
    }

    fn term_count(&self) -> usize {
        match &self.0 {
            Repr::Known(n) => usize::from(*n != 0),
            Repr::Poly(p) => p.terms.len(),
        }
    }

    fn weight(&self) -> u32 {
        match &self.0 {
            Repr::Known(_) => 1,
            Repr::Poly(p) => p.weight,
        }
    }

    /// The polynomial of these terms, which are sorted, distinct and not zero.
    fn from_sorted(terms: Vec<Term>) -> Self {
        match &terms[..] {
            [] => return Dim::ZERO,
            [(m, c)] if m.is_empty() => return Dim::from(*c),
            _ => {}
        }
        let atoms = terms.iter().flat_map(|(m, _)| m).map(Atom::weight);
        let weight = atoms.fold(terms.len() as u32, u32::saturating_add);
        if terms.len() > MAX_TERMS || weight > MAX_WEIGHT {
            return Dim::opaque(&terms);
        }
        Dim(Repr::Poly(Arc::new(Poly { terms, weight })))
    }

    /// The opaque symbol of what cannot be kept.
    fn opaque(what: &impl Hash) -> Self {
        let mut digest = DefaultHasher::new();
        what.hash(&mut digest);
        let symbol = Symbol::new(&format!("?{:016x}", digest.finish()));
        let poly = Poly { terms: vec![(vec![Atom::Symbol(symbol)], 1)], weight: 2 };
        Dim(Repr::Poly(Arc::new(poly)))
    }

    /// The polynomial as `(coefficient, atoms)` pairs; a constant has no atoms.
    pub fn monomials(&self) -> Vec<(i64, Vec<Atom>)> {
        self.terms().map(|(m, c)| (c, m.to_vec())).collect()
    }

    /// The expression with symbols replaced by sizes where `bindings` has them. A quotient whose divisor
    /// becomes 0 becomes 0.
    pub fn substitute(&self, bindings: &Bindings) -> Dim {
        self.replace(&|s| bindings.get(s).map(|n| Dim::from(*n)))
    }

    /// The expression with symbols replaced by expressions where `with` gives one.
    pub fn replace(&self, with: &dyn Fn(&Symbol) -> Option<Dim>) -> Dim {
        let Repr::Poly(poly) = &self.0 else { return self.clone() };
        let mut sum = Dim::ZERO;
        for (m, c) in &poly.terms {
            let product = m.iter().fold(Dim::from(*c), |p, atom| p * atom.replace(with));
            sum = sum + product;
        }
        sum
    }

    /// All symbols that occur.
    pub fn symbols(&self) -> BTreeSet<Symbol> {
        let mut out = BTreeSet::new();
        self.collect_symbols(&mut out);
        out
    }

    fn collect_symbols(&self, out: &mut BTreeSet<Symbol>) {
        for atom in self.terms().flat_map(|(m, _)| m) {
            match atom {
                Atom::Symbol(s) => {
                    out.insert(s.clone());
                }
                Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                    a.collect_symbols(out);
                    b.collect_symbols(out);
                }
            }
        }
    }

    /// The product of `dims` (1 for none).
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::ONE, |p, d| &p * d)
    }
}

impl Atom {
    fn weight(&self) -> u32 {
        match self {
            Atom::Symbol(_) => 1,
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                a.weight().saturating_add(b.weight()).saturating_add(1)
            }
        }
    }

    fn replace(&self, with: &dyn Fn(&Symbol) -> Option<Dim>) -> Dim {
        let both = |a: &Dim, b: &Dim| (a.replace(with), b.replace(with));
        match self {
            Atom::Symbol(s) => with(s).unwrap_or_else(|| s.clone().into()),
            Atom::FloorDiv(a, b) => {
                let (a, b) = both(a, b);
                a.floor_div(&b).unwrap_or(Dim::ZERO)
            }
            Atom::Mod(a, b) => {
                let (a, b) = both(a, b);
                a.modulo(&b).unwrap_or(Dim::ZERO)
            }
            Atom::Min(a, b) => {
                let (a, b) = both(a, b);
                a.minimum(&b)
            }
            Atom::Max(a, b) => {
                let (a, b) = both(a, b);
                a.maximum(&b)
            }
        }
    }
}
