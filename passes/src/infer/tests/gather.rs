use super::{content, ints, result, unknown, with, x};
use crate::ir::{Op, ScatterReduction};

#[test]
fn gather_replaces_an_axis() {
    let gather = |axis, data, indices| result(Op::Gather { axis }, &[data, indices]);
    assert_eq!(gather(0, x("f32[320, 64]"), x("i64[b, t]")), "f32[b, t, 64]");
    assert_eq!(gather(1, x("f32[b, 3, 64]"), x("i64[]")), "f32[b, 64]");
    assert_eq!(gather(2, x("f32[b, 3]"), x("i64[]")), "error: axis 2 is outside rank 2");
    assert_eq!(gather(0, x("f32[]"), x("i64[]")), "error: axis 0 is outside rank 0");
    assert_eq!(gather(0, x("f32[3]"), x("f32[]")), "error: indices are f32, not integers");
    assert_eq!(gather(0, x("f32[3]"), with("i64[]", &["3"])), "error: index 3 is outside axis 0 of size 3");
    assert_eq!(gather(0, x("f32[3]"), with("i64[]", &["-4"])), "error: index -4 is outside axis 0 of size 3");
    assert_eq!(gather(0, unknown(), x("i64[]")), "?");
}

#[test]
fn gather_picks_contents() {
    let shape = || ints(&["b", "t", "64"]);
    let gather = |axis, data, indices| content(Op::Gather { axis }, &[data, indices]);
    assert_eq!(gather(0, shape(), with("i64[]", &["1"])), "[t]");
    assert_eq!(gather(0, shape(), with("i64[]", &["-1"])), "[64]");
    assert_eq!(gather(0, shape(), with("i32[2, 1]", &["2", "0"])), "[64, b]");
    assert_eq!(gather(0, shape(), with("i64[]", &["b"])), "?");
    assert_eq!(gather(1, with("i64[2, 2]", &["1", "2", "3", "4"]), ints(&["1"])), "[2, 4]");
}

#[test]
fn gather_by_position() {
    let elements = |axis, indices| result(Op::GatherElements { axis }, &[x("f32[b, 9]"), indices]);
    assert_eq!(elements(1, x("i64[b, 2]")), "f32[b, 2]");
    assert_eq!(elements(1, x("i64[2]")), "error: indices have rank 1 but data has rank 2");
    assert_eq!(elements(2, x("i64[b, 2]")), "error: axis 2 is outside rank 2");
    let nd = |batch_dims, indices| result(Op::GatherNd { batch_dims }, &[x("f32[b, 5, 9]"), indices]);
    assert_eq!(nd(0, x("i64[n, 2]")), "f32[n, 9]");
    assert_eq!(nd(1, x("i64[b, 7, 1]")), "f32[b, 7, 9]");
    assert_eq!(nd(0, x("i64[n, 4]")), "error: 4 indices after 0 batch axes exceed the rank 3");
    assert_eq!(nd(3, x("i64[n, 1]")), "error: 3 batch axes with data of rank 3 and indices of rank 2");
    assert_eq!(nd(0, x("i64[]")), "error: indices have rank 0");
    assert_eq!(nd(2, x("i64[b, 4, 1]")), "error: batch axis 1 is 5 in data and 4 in indices");
}

#[test]
fn scatter_keeps_the_data() {
    let elements = Op::ScatterElements { axis: 0, reduction: ScatterReduction::None };
    let run = |indices, updates| result(elements.clone(), &[x("f32[b, 5]"), indices, updates]);
    assert_eq!(run(x("i64[2, 5]"), x("f32[2, 5]")), "f32[b, 5]");
    assert_eq!(run(x("i64[2, 5]"), x("f32[2, 4]")), "error: indices [2, 5] and updates [2, 4] differ");
    assert_eq!(run(x("i64[2]"), x("f32[2]")), "error: indices have rank 1 but data has rank 2");
    let nd = Op::ScatterNd { reduction: ScatterReduction::Add };
    let run = |indices, updates| result(nd.clone(), &[x("f32[b, 5]"), indices, updates]);
    assert_eq!(run(x("i64[n, 1]"), x("f32[n, 5]")), "f32[b, 5]");
    assert_eq!(run(x("i64[n, 2]"), x("f32[n]")), "f32[b, 5]");
    assert_eq!(run(x("i64[n, 1]"), x("f32[n, 4]")), "error: updates are [n, 4], not [n, 5]");
    assert_eq!(run(x("i64[n, 3]"), x("f32[n]")), "error: 3 indices exceed the rank 2");
}

#[test]
fn one_hot_and_non_zero() {
    let one_hot = |axis, depth| result(Op::OneHot { axis }, &[x("i64[b, t]"), depth, x("f32[2]")]);
    assert_eq!(one_hot(2, with("i64[]", &["8"])), "f32[b, t, 8]");
    assert_eq!(one_hot(0, ints(&["8"])), "f32[8, b, t]");
    assert_eq!(one_hot(1, x("i64[]")), "f32[b, new1, t]");
    assert_eq!(one_hot(3, x("i64[]")), "error: axis 3 is outside rank 3");
    assert_eq!(result(Op::NonZero, &[x("bool[b, t]")]), "i64[2, new1]");
    assert_eq!(result(Op::NonZero, &[x("bool[]")]), "i64[1, new1]");
    let known = || with("bool[2, 2]", &["1", "0", "1", "1"]);
    assert_eq!(result(Op::NonZero, &[known()]), "i64[2, 3]");
    assert_eq!(content(Op::NonZero, &[known()]), "[0, 1, 1, 0, 0, 1]");
    assert_eq!(result(Op::NonZero, &[with("i64[3]", &["1", "b", "0"])]), "i64[1, new1]");
}
