//! Sums, products and division.

use super::{Atom, Dim, MAX_TERMS, Monomial, Repr, Term};

/// Merges two sorted lists of terms; `None` when a coefficient leaves i64.
fn merge(a: &Dim, b: &Dim, sign: i64) -> Option<Vec<Term>> {
    let (mut left, mut right) = (a.terms().peekable(), b.terms().peekable());
    let mut out: Vec<Term> = Vec::with_capacity(a.term_count() + b.term_count());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return Some(out),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((x, _)), Some((y, _))) => x.cmp(y),
        };
        let x = if order.is_le() { left.next() } else { None };
        let y = if order.is_ge() { right.next() } else { None };
        let negated = |c: i64| c.checked_mul(sign);
        let (m, c) = match (x, y) {
            (Some((m, c)), Some((_, d))) => (m, c.checked_add(negated(d)?)?),
            (Some((m, c)), None) => (m, c),
            (None, Some((m, d))) => (m, negated(d)?),
            (None, None) => return Some(out),
        };
        if c != 0 {
            out.push((m.to_vec(), c));
        }
    }
}

fn sum(a: &Dim, b: &Dim, sign: i64) -> Dim {
    if *b == Dim::ZERO {
        return a.clone();
    }
    match merge(a, b, sign) {
        Some(terms) => Dim::from_sorted(terms),
        None => Dim::opaque(&("sum", a, b, sign)),
    }
}

/// The sorted union of two products.
fn joined(a: &[Atom], b: &[Atom]) -> Monomial {
    let mut m = Vec::with_capacity(a.len() + b.len());
    m.extend_from_slice(a);
    m.extend_from_slice(b);
    if !a.is_empty() && !b.is_empty() {
        m.sort();
    }
    m
}

fn product(a: &Dim, b: &Dim) -> Dim {
    match (a.known(), b.known()) {
        (Some(0), _) | (_, Some(0)) => return Dim::ZERO,
        (Some(1), _) => return b.clone(),
        (_, Some(1)) => return a.clone(),
        _ => {}
    }
    expanded(a, b).unwrap_or_else(|| Dim::opaque(&("product", a.min(b), a.max(b))))
}

/// The product multiplied out; `None` when a coefficient leaves i64.
fn expanded(a: &Dim, b: &Dim) -> Option<Dim> {
    let mut terms: Vec<Term> = Vec::with_capacity(a.term_count() * b.term_count());
    for (ma, ca) in a.terms() {
        for (mb, cb) in b.terms() {
            terms.push((joined(ma, mb), ca.checked_mul(cb)?));
        }
    }
    terms.sort();
    let mut out: Vec<Term> = Vec::with_capacity(terms.len());
    for (m, c) in terms {
        match out.last_mut() {
            Some((last, sum)) if *last == m => *sum = sum.checked_add(c)?,
            _ => out.push((m, c)),
        }
    }
    out.retain(|(_, c)| *c != 0);
    Some(Dim::from_sorted(out))
}

/// `m` without the atoms of `divisor`; `None` when one is missing.
fn quotient(m: &[Atom], divisor: &[Atom]) -> Option<Monomial> {
    let mut rest = Vec::with_capacity(m.len());
    let mut wanted = divisor.iter().peekable();
    for atom in m {
        if wanted.peek() == Some(&atom) {
            wanted.next();
        } else {
            rest.push(atom.clone());
        }
    }
    wanted.peek().is_none().then_some(rest)
}

/// `c / d` when exact.
fn exact(c: i64, d: i64) -> Option<i64> {
    if c.checked_rem(d)? == 0 { c.checked_div(d) } else { None }
}

/// Floor of `a / b`; `None` for a zero divisor and for a quotient beyond i64.
fn floor_known(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    let inexact = a.checked_rem(b)? != 0;
    Some(quotient - i64::from(inexact && (a < 0) != (b < 0)))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Dim {
    /// The term of highest degree, in an order that products preserve.
    fn leading(&self) -> Option<(&[Atom], i64)> {
        self.terms().max_by(|(a, _), (b, _)| a.len().cmp(&b.len()).then_with(|| a.cmp(b)))
    }

    /// `self / divisor` when the division is exact as polynomials.
    pub fn div_exact(&self, divisor: &Dim) -> Option<Dim> {
        let (divisor_m, divisor_c) = divisor.leading()?;
        if self == divisor {
            return Some(Dim::ONE);
        }
        if divisor.term_count() == 1 {
            let mut terms = self
                .terms()
                .map(|(m, c)| Some((quotient(m, divisor_m)?, exact(c, divisor_c)?)))
                .collect::<Option<Vec<Term>>>()?;
            terms.sort();
            return Some(Dim::from_sorted(terms));
        }
        let (mut rest, mut result) = (self.clone(), Dim::ZERO);
        for _ in 0..MAX_TERMS {
            let Some((m, c)) = rest.leading() else { return Some(result) };
            let step = Dim::from_sorted(vec![(quotient(m, divisor_m)?, exact(c, divisor_c)?)]);
            rest = &rest - &(&step * divisor);
            result = &result + &step;
        }
        None
    }

    /// `self = quotient * divisor + rest`, with every term in the quotient that divides exactly. Only
    /// for divisors of one term.
    fn split(&self, divisor: &Dim) -> Option<(Dim, Dim)> {
        let (divisor_m, divisor_c) = divisor.leading()?;
        if divisor.term_count() != 1 {
            return None;
        }
        let (mut whole, mut rest) = (Vec::new(), Vec::new());
        for (m, c) in self.terms() {
            match (quotient(m, divisor_m), exact(c, divisor_c)) {
                (Some(m), Some(c)) => whole.push((m, c)),
                _ => rest.push((m.to_vec(), c)),
            }
        }
        whole.sort();
        Some((Dim::from_sorted(whole), Dim::from_sorted(rest)))
    }

    /// `floor(self / divisor)`; `None` on a known zero divisor.
    pub fn floor_div(&self, divisor: &Dim) -> Option<Dim> {
        if *divisor == Dim::ZERO {
            return None;
        }
        if let (Some(a), Some(b)) = (self.known(), divisor.known()) {
            return Some(floor_known(a, b).unwrap_or(i64::MAX).into());
        }
        if let Some(exact) = self.div_exact(divisor) {
            return Some(exact);
        }
        match self.split(divisor) {
            Some((whole, rest)) if whole != Dim::ZERO => Some(whole + rest.floor_div(divisor)?),
            _ if self.is_within(divisor) => Some(Dim::ZERO),
            _ => Some(self.reduced_quotient(divisor)),
        }
    }

    /// The quotient as an atom, its common constant factor cancelled.
    fn reduced_quotient(&self, divisor: &Dim) -> Dim {
        let factors = self.terms().chain(divisor.terms()).map(|(_, c)| c.unsigned_abs());
        let common = i64::try_from(factors.fold(0, gcd)).unwrap_or(1);
        if common <= 1 {
            return Dim::atom(Atom::FloorDiv(self.clone(), divisor.clone()));
        }
        let common = Dim::from(common);
        let (a, b) = (self.div_exact(&common), divisor.div_exact(&common));
        let (a, b) = (a.unwrap_or_else(|| self.clone()), b.unwrap_or_else(|| divisor.clone()));
        a.floor_div(&b).unwrap_or(Dim::ZERO)
    }

    /// Whether `0 <= self < divisor` is certain.
    fn is_within(&self, divisor: &Dim) -> bool {
        self.is_non_negative() && (&(divisor - self) - &Dim::ONE).is_non_negative()
    }

    /// `self mod divisor` with the sign of the divisor; `None` on a known zero divisor.
    pub fn modulo(&self, divisor: &Dim) -> Option<Dim> {
        if *divisor == Dim::ZERO {
            return None;
        }
        if let (Some(a), Some(b)) = (self.known(), divisor.known()) {
            let r = a.checked_rem(b).unwrap_or(0);
            return Some(if r != 0 && (r < 0) != (b < 0) { r + b } else { r }.into());
        }
        if self.div_exact(divisor).is_some() {
            return Some(Dim::ZERO);
        }
        match self.split(divisor) {
            Some((whole, rest)) if whole != Dim::ZERO => rest.modulo(divisor),
            _ if self.is_within(divisor) => Some(self.clone()),
            _ => Some(Dim::atom(Atom::Mod(self.clone(), divisor.clone()))),
        }
    }
}

impl std::ops::Add for &Dim {
    type Output = Dim;
    fn add(self, other: &Dim) -> Dim {
        match (&self.0, &other.0) {
            (Repr::Known(a), Repr::Known(b)) => a.saturating_add(*b).into(),
            (Repr::Known(0), _) => other.clone(),
            _ => sum(self, other, 1),
        }
    }
}

impl std::ops::Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: &Dim) -> Dim {
        match (&self.0, &other.0) {
            (Repr::Known(a), Repr::Known(b)) => a.saturating_sub(*b).into(),
            _ => sum(self, other, -1),
        }
    }
}

impl std::ops::Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: &Dim) -> Dim {
        match (&self.0, &other.0) {
            (Repr::Known(a), Repr::Known(b)) => a.saturating_mul(*b).into(),
            _ => product(self, other),
        }
    }
}

impl std::ops::Add for Dim {
    type Output = Dim;
    fn add(self, other: Dim) -> Dim {
        &self + &other
    }
}

impl std::ops::Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        &self - &other
    }
}

impl std::ops::Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        &self * &other
    }
}
