//! Properties: normal-form arithmetic agrees with plain evaluation under any binding.

use proptest::prelude::*;

use super::{Bindings, Dim, Symbol};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// An expression tree, evaluated without any normal form.
#[derive(Clone, Debug)]
enum Tree {
    Number(i64),
    Symbol(usize),
    Add(Box<Tree>, Box<Tree>),
    Sub(Box<Tree>, Box<Tree>),
    Mul(Box<Tree>, Box<Tree>),
    FloorDiv(Box<Tree>, Box<Tree>),
    Mod(Box<Tree>, Box<Tree>),
    Min(Box<Tree>, Box<Tree>),
    Max(Box<Tree>, Box<Tree>),
}

impl Tree {
    /// The value; `None` where a divisor is 0.
    fn value(&self, sizes: &[i64; 3]) -> Option<i128> {
        let both = |a: &Tree, b: &Tree| Some((a.value(sizes)?, b.value(sizes)?));
        Some(match self {
            Tree::Number(n) => i128::from(*n),
            Tree::Symbol(i) => i128::from(sizes[*i]),
            Tree::Add(a, b) => both(a, b).map(|(a, b)| a + b)?,
            Tree::Sub(a, b) => both(a, b).map(|(a, b)| a - b)?,
            Tree::Mul(a, b) => both(a, b).map(|(a, b)| a * b)?,
            Tree::Min(a, b) => both(a, b).map(|(a, b)| a.min(b))?,
            Tree::Max(a, b) => both(a, b).map(|(a, b)| a.max(b))?,
            Tree::FloorDiv(a, b) => floor(both(a, b)?)?,
            Tree::Mod(a, b) => {
                let (a, b) = both(a, b)?;
                a - b * floor((a, b))?
            }
        })
    }

    /// The normal form; `None` where a divisor is the constant 0.
    fn dim(&self) -> Option<Dim> {
        let both = |a: &Tree, b: &Tree| Some((a.dim()?, b.dim()?));
        match self {
            Tree::Number(n) => Some(Dim::from(*n)),
            Tree::Symbol(i) => Some(Dim::symbol(NAMES[*i])),
            Tree::Add(a, b) => both(a, b).map(|(a, b)| a + b),
            Tree::Sub(a, b) => both(a, b).map(|(a, b)| a - b),
            Tree::Mul(a, b) => both(a, b).map(|(a, b)| a * b),
            Tree::Min(a, b) => both(a, b).map(|(a, b)| a.minimum(&b)),
            Tree::Max(a, b) => both(a, b).map(|(a, b)| a.maximum(&b)),
            Tree::FloorDiv(a, b) => both(a, b).and_then(|(a, b)| a.floor_div(&b)),
            Tree::Mod(a, b) => both(a, b).and_then(|(a, b)| a.modulo(&b)),
        }
    }
}

fn floor((a, b): (i128, i128)) -> Option<i128> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
}

/// Polynomials: no operation but `+`, `-`, `*`.
fn polynomial(depth: u32) -> impl Strategy<Value = Tree> {
    leaf().prop_recursive(depth, 16, 2, |inner| {
        let pair = (inner.clone(), inner).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
        (pair, 0..3).prop_map(|((a, b), op)| match op {
            0 => Tree::Add(a, b),
            1 => Tree::Sub(a, b),
            _ => Tree::Mul(a, b),
        })
    })
}

fn leaf() -> impl Strategy<Value = Tree> {
    prop_oneof![(-5i64..10).prop_map(Tree::Number), (0usize..3).prop_map(Tree::Symbol)]
}

fn tree() -> impl Strategy<Value = Tree> {
    leaf().prop_recursive(4, 24, 2, |inner| {
        let pair = (inner.clone(), inner).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
        (pair, 0..7).prop_map(|((a, b), op)| match op {
            0 => Tree::Add(a, b),
            1 => Tree::Sub(a, b),
            2 => Tree::Mul(a, b),
            3 => Tree::FloorDiv(a, b),
            4 => Tree::Mod(a, b),
            5 => Tree::Min(a, b),
            _ => Tree::Max(a, b),
        })
    })
}

fn bindings(sizes: &[i64; 3]) -> Bindings {
    NAMES.iter().zip(sizes).map(|(name, n)| (Symbol::new(name), *n)).collect()
}

fn value(d: &Dim, sizes: &[i64; 3]) -> Option<i128> {
    d.substitute(&bindings(sizes)).known().map(i128::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn evaluation_agrees(tree in tree(), sizes in [0i64..9, 0..9, 0..9]) {
        if let (Some(expected), Some(dim)) = (tree.value(&sizes), tree.dim()) {
            prop_assert_eq!(value(&dim, &sizes), Some(expected), "{}", dim);
        }
    }

    #[test]
    fn binding_in_two_steps_is_binding_at_once(tree in tree(), sizes in [1i64..9, 1..9, 1..9]) {
        if let (Some(expected), Some(dim)) = (tree.value(&sizes), tree.dim()) {
            let first = Bindings::from([(Symbol::new("b"), sizes[1])]);
            prop_assert_eq!(value(&dim.substitute(&first), &sizes), Some(expected), "{}", dim);
        }
    }

    #[test]
    fn certain_signs_hold(tree in tree(), sizes in [0i64..9, 0..9, 0..9]) {
        if let (Some(n), Some(dim)) = (tree.value(&sizes), tree.dim()) {
            prop_assert!(n >= 0 || !dim.is_non_negative(), "{} is {}", dim, n);
            let positive = sizes.iter().all(|n| *n > 0);
            prop_assert!(n >= 0 || !positive || !dim.is_non_negative_for_sizes(), "{} is {}", dim, n);
        }
    }

    #[test]
    fn polynomials_are_normal(a in polynomial(3), b in polynomial(3), c in polynomial(2)) {
        let (a, b, c) = (a.dim().unwrap(), b.dim().unwrap(), c.dim().unwrap());
        prop_assert_eq!((&a + &b) + c.clone(), &a + &(&b + &c));
        prop_assert_eq!((&a + &b) - b.clone(), a.clone());
        prop_assert_eq!(&a * &b, &b * &a);
        prop_assert_eq!(&(&a + &b) * &c, &(&a * &c) + &(&b * &c));
    }

    #[test]
    fn products_divide_by_their_factors(a in polynomial(3), b in polynomial(3)) {
        let (a, b) = (a.dim().unwrap(), b.dim().unwrap());
        if b != Dim::ZERO {
            prop_assert_eq!((&a * &b).div_exact(&b), Some(a));
        } else {
            prop_assert_eq!(a.div_exact(&b), None);
        }
    }

    #[test]
    fn exact_quotients_multiply_back(a in polynomial(3), b in polynomial(2)) {
        let (a, b) = (a.dim().unwrap(), b.dim().unwrap());
        if let Some(q) = a.div_exact(&b) {
            prop_assert_eq!(&q * &b, a);
        }
    }

    #[test]
    fn broadcasting_is_numpys(a in tree(), b in tree(), sizes in [1i64..9, 1..9, 1..9]) {
        let (Some(x), Some(y)) = (a.value(&sizes), b.value(&sizes)) else { return Ok(()) };
        let (Some(a), Some(b)) = (a.dim(), b.dim()) else { return Ok(()) };
        if x > 0 && y > 0 && (x == y || x == 1 || y == 1) {
            let size = a.broadcast(&b);
            prop_assert!(size.is_some(), "{} and {}", a, b);
            prop_assert_eq!(value(&size.unwrap(), &sizes), Some(x.max(y)), "{} and {}", a, b);
        }
    }
}
