use super::{content, ints, result, run, with, x};
use crate::ir::{Op, Reduce};

fn reduce(op: Reduce, axes: &[usize], keepdims: bool) -> Op {
    Op::Reduce { op, axes: axes.to_vec(), keepdims }
}

#[test]
fn axes_vanish_or_become_one() {
    let mean = |axes: &[usize], keepdims| result(reduce(Reduce::Mean, axes, keepdims), &[x("f32[b, t, 64]")]);
    assert_eq!(mean(&[2], true), "f32[b, t, 1]");
    assert_eq!(mean(&[0, 2], false), "f32[t]");
    assert_eq!(mean(&[0, 1, 2], false), "f32[]");
    assert_eq!(mean(&[3], true), "error: axis 3 is outside rank 3");
    assert_eq!(mean(&[1, 1], true), "error: axis 1 is named twice");
    let arg = |axis, keepdims| result(Op::ArgMax { axis, keepdims, last: false }, &[x("f32[b, t, 64]")]);
    assert_eq!(arg(2, false), "i64[b, t]");
    assert_eq!(arg(0, true), "i64[1, t, 64]");
    assert_eq!(arg(5, true), "error: axis 5 is outside rank 3");
}

#[test]
fn contents_fold() {
    let shape = || ints(&["b", "t", "2"]);
    let all = |op| content(reduce(op, &[0], false), &[shape()]);
    assert_eq!(all(Reduce::Prod), "[2*b*t]");
    assert_eq!(all(Reduce::Sum), "[t + b + 2]");
    assert_eq!(all(Reduce::Mean), "?");
    assert_eq!(content(reduce(Reduce::Max, &[0], true), &[ints(&["3", "9", "-4"])]), "[9]");
    assert_eq!(content(reduce(Reduce::Min, &[0], true), &[ints(&["3", "9", "-4"])]), "[-4]");
    assert_eq!(content(reduce(Reduce::Prod, &[0], false), &[ints(&[])]), "[1]");
    assert_eq!(content(reduce(Reduce::Max, &[0], false), &[ints(&[])]), "?");
    let rows = || with("i64[2, 3]", &["1", "2", "3", "4", "5", "6"]);
    assert_eq!(content(reduce(Reduce::Sum, &[1], false), &[rows()]), "[6, 15]");
    assert_eq!(content(reduce(Reduce::Sum, &[0], true), &[rows()]), "[5, 7, 9]");
}

#[test]
fn running_sums() {
    let sum =
        |exclusive, reverse| content(Op::CumSum { axis: 0, exclusive, reverse }, &[ints(&["1", "b", "3"])]);
    assert_eq!(sum(false, false), "[1, b + 1, b + 4]");
    assert_eq!(sum(true, false), "[0, 1, b + 1]");
    assert_eq!(sum(false, true), "[b + 4, b + 3, 3]");
    assert_eq!(sum(true, true), "[b + 3, 3, 0]");
    let outside = result(Op::CumSum { axis: 1, exclusive: false, reverse: false }, &[x("i64[3]")]);
    assert_eq!(outside, "error: axis 1 is outside rank 1");
    assert_eq!(result(Op::Softmax { axis: 1 }, &[x("f32[b, 3]")]), "f32[b, 3]");
    assert_eq!(result(Op::Softmax { axis: 0 }, &[x("f32[]")]), "error: axis 0 is outside rank 0");
}

#[test]
fn the_largest_k() {
    let top = Op::TopK { axis: 1, largest: true };
    let both = run(&top, &[x("f32[b, 9]"), ints(&["2"])], 2).unwrap();
    assert_eq!(both[0].ty, Some(super::ty("f32[b, 2]")));
    assert_eq!(both[1].ty, Some(super::ty("i64[b, 2]")));
    assert_eq!(result(top.clone(), &[x("f32[b, 9]"), x("i64[1]")]), "f32[b, new1]");
    assert_eq!(
        result(top.clone(), &[x("f32[b, 9]"), ints(&["10"])]),
        "error: k is 10 but axis 1 has the size 9"
    );
    assert_eq!(run(&top, &[x("f32[b, 9]"), ints(&["2"])], 3).unwrap_err().0, "has 2 results, not 3");
}
