//! Signs, minimum, maximum and broadcasting.

use super::{Atom, Dim, Repr, Term};

/// How many expressions a proof of a sign may look at.
const EFFORT: u32 = 48;

impl Dim {
    /// Whether the value is non-negative whatever the symbols (sufficient, not necessary).
    pub fn is_non_negative(&self) -> bool {
        self.non_negative(&mut EFFORT.clone())
    }

    /// Whether the value is non-negative when every symbol is at least 1, as sizes of tensors that are
    /// not empty are (sufficient, not necessary).
    pub fn is_non_negative_for_sizes(&self) -> bool {
        self.is_non_negative()
            || self.replace(&|s| (!s.is_opaque()).then(|| Dim::from(s.clone()) + Dim::ONE)).is_non_negative()
    }

    fn non_negative(&self, effort: &mut u32) -> bool {
        let poly = match &self.0 {
            Repr::Known(n) => return *n >= 0,
            Repr::Poly(poly) => poly,
        };
        if *effort == 0 {
            return false;
        }
        *effort -= 1;
        let mut plain = true;
        for (m, c) in &poly.terms {
            plain &= *c >= 0 && m.iter().all(|a| a.non_negative(effort));
        }
        plain || poly.terms.iter().any(|term| self.non_negative_by_bound(term, effort))
    }

    /// Tries to replace one composite atom of a term by expressions that bound it from the bad side.
    fn non_negative_by_bound(&self, (m, c): &Term, effort: &mut u32) -> bool {
        let Some(i) = m.iter().position(|a| !matches!(a, Atom::Symbol(_))) else { return false };
        let mut factors = m.clone();
        let atom = factors.remove(i);
        if !factors.iter().all(|a| a.non_negative(effort)) {
            return false;
        }
        let factor = Dim::from_sorted(vec![(factors, *c)]);
        let rest = self - &Dim::from_sorted(vec![(m.clone(), *c)]);
        let mut holds =
            |with: &Dim, scale: i64| (&(&rest * &Dim::from(scale)) + &(&factor * with)).non_negative(effort);
        match (&atom, *c > 0) {
            (Atom::Symbol(_), _) => false,
            (Atom::Min(a, b), false) | (Atom::Max(a, b), true) => holds(a, 1) || holds(b, 1),
            (Atom::Min(a, b), true) | (Atom::Max(a, b), false) => holds(a, 1) && holds(b, 1),
            (Atom::FloorDiv(a, b), positive) => match b.known().filter(|b| *b > 0) {
                // floor(a / b) >= (a - b + 1) / b
                Some(b) if positive => holds(&(a - &Dim::from(b - 1)), b),
                Some(b) => holds(a, b),
                None => false,
            },
            (Atom::Mod(a, b), positive) => match b.known().filter(|b| *b > 0) {
                Some(_) if positive => holds(&Dim::ZERO, 1),
                Some(b) => holds(&Dim::from(b - 1), 1) || a.is_non_negative() && holds(a, 1),
                None => false,
            },
        }
    }

    /// -1, 0 or 1 when the sign is certain; 0 and 1 are not told apart for `n >= 0`.
    fn sign(&self) -> Option<i64> {
        if let Some(n) = self.known() {
            return Some(n.signum());
        }
        if self.is_non_negative() {
            return Some(1);
        }
        (&Dim::ZERO - self).is_non_negative().then_some(-1)
    }

    /// The smaller of two.
    pub fn minimum(&self, other: &Dim) -> Dim {
        match order(self, other) {
            Some(s) if s <= 0 => self.clone(),
            Some(_) => other.clone(),
            None => Dim::atom(Atom::Min(self.min(other).clone(), self.max(other).clone())),
        }
    }

    /// The larger of two.
    pub fn maximum(&self, other: &Dim) -> Dim {
        match order(self, other) {
            Some(s) if s >= 0 => self.clone(),
            Some(_) => other.clone(),
            None => Dim::atom(Atom::Max(self.min(other).clone(), self.max(other).clone())),
        }
    }

    /// The size that two broadcast dimensions give: equal, or one of them 1. `None` when they can never
    /// agree.
    ///
    /// Different expressions may turn out equal, or one of them 1, when bound, so they give their
    /// maximum. Where one is never larger than the other that is the other: `t` against `min(256, t)` (a
    /// slice of a table of 256 positions) is `t`, and `past + t` against `t` is `past + t`. As sizes are never
    /// negative, `n` against `max(0, n)` is `n`. One that is 0 or 1 leaves the other or nothing: their product.
    pub fn broadcast(&self, other: &Dim) -> Option<Dim> {
        if self == other || *other == Dim::ONE {
            return Some(self.clone());
        }
        if *self == Dim::ONE {
            return Some(other.clone());
        }
        if *self == other.maximum(&Dim::ZERO) {
            return Some(other.clone());
        }
        if *other == self.maximum(&Dim::ZERO) {
            return Some(self.clone());
        }
        match (self.known(), other.known()) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(self.clone()),
            (None, Some(_)) => Some(other.clone()),
            (None, None) => {
                let product = order(self, other).is_none() && (self.at_most_one() || other.at_most_one());
                Some(if product { self * other } else { self.maximum(other) })
            }
        }
    }

    fn at_most_one(&self) -> bool {
        (&Dim::ONE - self).is_non_negative()
    }
}

/// The sign of `a - b`, where it is certain.
fn order(a: &Dim, b: &Dim) -> Option<i64> {
    match (a.known(), b.known()) {
        (Some(a), Some(b)) => Some(a.cmp(&b) as i64),
        _ => (a - b).sign(),
    }
}

impl Atom {
    fn non_negative(&self, effort: &mut u32) -> bool {
        match self {
            Atom::Symbol(s) => !s.is_opaque(),
            Atom::FloorDiv(a, b) => a.non_negative(effort) && b.non_negative(effort),
            Atom::Mod(_, b) => b.non_negative(effort),
            Atom::Min(a, b) => a.non_negative(effort) && b.non_negative(effort),
            Atom::Max(a, b) => a.non_negative(effort) || b.non_negative(effort),
        }
    }
}
