use super::*;

fn s(name: &str) -> Dim {
    Dim::symbol(name)
}

fn n(value: i64) -> Dim {
    Dim::from(value)
}

#[test]
fn arithmetic_is_normal() {
    let (b, t) = (s("b"), s("t"));
    let left = (b.clone() + t.clone()) * n(2) - t.clone();
    assert_eq!(left, b.clone() * n(2) + t.clone());
    assert_eq!(left.to_string(), "t + 2*b");
    assert_eq!(b.clone() - b.clone(), Dim::ZERO);
    assert_eq!((b.clone() - n(1)).to_string(), "b - 1");
}

#[test]
fn division_is_exact_where_it_can_be() {
    let (b, t) = (s("b"), s("t"));
    let total = b.clone() * t.clone() * n(64);
    assert_eq!(total.floor_div(&(b.clone() * t.clone())), Some(n(64)));
    assert_eq!(total.floor_div(&n(16)), Some(b.clone() * t.clone() * n(4)));
    let sum = b.clone() + t.clone();
    assert_eq!((sum.clone() * n(8)).div_exact(&sum), Some(n(8)));
    assert_eq!((&sum * &sum).div_exact(&sum), Some(sum.clone()));
    assert_eq!((&sum * &(&b + &n(2))).div_exact(&(&b + &n(2))), Some(sum));
    assert_eq!(total.floor_div(&Dim::ZERO), None);
    let odd = t.floor_div(&n(2)).expect("not zero");
    assert_eq!(odd.substitute(&Bindings::from([(Symbol::new("t"), 9)])), n(4));
}

#[test]
fn quotients_take_out_what_divides() {
    let (b, t) = (s("b"), s("t"));
    assert_eq!((&b * &n(4) + n(3)).floor_div(&n(4)), Some(b.clone()));
    assert_eq!((&b * &n(4) + n(3)).modulo(&n(4)), Some(n(3)));
    let half = (&t + &n(6)).floor_div(&n(2)).expect("not zero");
    assert_eq!(half, t.floor_div(&n(2)).expect("not zero") + n(3));
    let reduced = (&t * &n(6)).floor_div(&n(4)).expect("not zero");
    assert_eq!(reduced, (&t * &n(3)).floor_div(&n(2)).expect("not zero"));
    assert_eq!(t.floor_div(&(&t + &n(1))), Some(Dim::ZERO));
}

#[test]
fn known_division_floors() {
    for a in -9i64..9 {
        for b in [-4i64, -3, -1, 1, 2, 5] {
            let floor = (a as f64 / b as f64).floor() as i64;
            assert_eq!(n(a).floor_div(&b.into()), Some(floor.into()), "{a}/{b}");
            assert_eq!(n(a).modulo(&b.into()), Some((a - b * floor).into()), "{a}%{b}");
        }
    }
}

#[test]
fn order_is_used_where_certain() {
    let (p, t) = (s("past"), s("t"));
    let total = p.clone() + t.clone();
    assert_eq!(total.maximum(&t), total);
    assert_eq!(total.minimum(&t), t);
    assert!(p.minimum(&t).known().is_none());
    assert_eq!(p.broadcast(&Dim::ONE), Some(p.clone()));
    assert_eq!(n(3).broadcast(&n(4)), None);
}

#[test]
fn what_is_at_most_one_broadcasts_to_the_other_or_to_nothing() {
    let (found, some) = (s("_1"), s("b").minimum(&Dim::ONE));
    let size = found.broadcast(&some).expect("may agree");
    for (count, batch, both) in [(0i64, 4i64, 0i64), (5, 4, 5), (1, 0, 0), (0, 0, 0), (1, 1, 1)] {
        let bound = size.replace(&|s| Some(n(if s.name() == "b" { batch } else { count })));
        assert_eq!(bound, n(both), "{count} and {batch}: {size}");
    }
    assert_eq!(s("b").broadcast(&some), Some(s("b")));
}

#[test]
fn slices_of_tables_broadcast_with_the_length() {
    let (p, t, limit) = (s("past"), s("t"), n(256));
    let slice = t.minimum(&limit);
    assert_eq!(slice.broadcast(&t), Some(t.clone()));
    assert_eq!(t.broadcast(&slice), Some(t.clone()));
    // table[past : past + t]
    let window = (&p + &t).minimum(&limit) - p.minimum(&limit);
    assert_eq!(window.broadcast(&t), Some(t.clone()));
    // A maximum is an upper bound, so that the maximum stays.
    let longest = p.maximum(&t);
    assert_eq!(longest.broadcast(&t), Some(longest));
}

#[test]
fn known_numbers_saturate() {
    let (max, min) = (n(i64::MAX), n(i64::MIN));
    assert_eq!(&max + &n(1), max);
    assert_eq!(&min - &n(1), min);
    assert_eq!(&max * &n(2), max);
    assert_eq!(min.floor_div(&n(-1)), Some(max));
    assert_eq!(min.modulo(&n(-1)), Some(Dim::ZERO));
    assert_eq!(min.div_exact(&n(-1)), None);
}

#[test]
fn coefficients_beyond_i64_are_opaque() {
    let large = s("t") * n(i64::MAX);
    let sum = &large + &large;
    assert!(sum.as_symbol().is_some_and(Symbol::is_opaque));
    assert!(!sum.is_non_negative());
    assert_eq!(sum, &large + &large);
    assert_ne!(sum, &large * &n(3));
}

#[test]
fn hostile_growth_is_cut() {
    // Squaring a sum again and again, nesting quotients, products of many different sums.
    let mut square = s("a") + s("b") + n(1);
    let mut nested = s("a");
    let mut product = Dim::ONE;
    for i in 0..300 {
        square = &square * &square;
        nested = nested.maximum(&(&s("b") - &nested)).floor_div(&s(&format!("d{i}"))).expect("not zero");
        product = &product * &(s(&format!("x{i}")) + n(1));
        for d in [&square, &nested, &product] {
            assert!(d.term_count() <= MAX_TERMS && d.weight() <= MAX_WEIGHT);
            assert!(d.to_string().len() < 100_000);
            let _ = (d.symbols(), d.is_non_negative_for_sizes(), d.minimum(&square));
        }
    }
}
