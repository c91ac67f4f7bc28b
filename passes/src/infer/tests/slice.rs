use super::{content, ints, result, with, x};
use crate::ir::Op;

const MAX: &str = "9223372036854775807";
const MIN: &str = "-9223372036854775808";

fn slice(from: &str, start: &str, end: &str, step: i64) -> String {
    result(Op::Slice { axes: vec![0], steps: vec![step] }, &[x(from), ints(&[start]), ints(&[end])])
}

#[test]
fn bounds_clamp() {
    assert_eq!(slice("f32[10]", "2", "5", 1), "f32[3]");
    assert_eq!(slice("f32[10]", "-3", MAX, 1), "f32[3]");
    assert_eq!(slice("f32[10]", "2", "-2", 1), "f32[6]");
    assert_eq!(slice("f32[10]", "7", "5", 1), "f32[0]");
    assert_eq!(slice("f32[10]", "-99", "99", 3), "f32[4]");
    assert_eq!(slice("f32[10]", "20", "30", 1), "f32[0]");
    assert_eq!(slice("f32[0]", "0", "3", 1), "f32[0]");
}

#[test]
fn negative_steps_go_back() {
    // As Python's x[start:end:step] with None for the two limits.
    assert_eq!(slice("f32[10]", "-1", MIN, -1), "f32[10]");
    assert_eq!(slice("f32[10]", MAX, MIN, -3), "f32[4]");
    assert_eq!(slice("f32[10]", "5", "2", -1), "f32[3]");
    assert_eq!(slice("f32[10]", "-20", MIN, -1), "f32[0]");
    assert_eq!(slice("f32[10]", "2", "5", -1), "f32[0]");
    assert_eq!(slice("f32[t]", "-1", MIN, -1), "f32[t]");
    assert_eq!(slice("f32[t]", "-1", MIN, -2), "f32[floor((t + 1)/(2))]");
    assert_eq!(slice("f32[t]", "3", "1", -1), "f32[new1]");
    assert_eq!(slice("f32[4]", "0", "1", 0), "error: the step of axis 0 is 0");
    assert_eq!(slice("f32[4]", "-1", MIN, i64::MIN), "f32[1]");
}

#[test]
fn symbolic_axes_and_bounds() {
    assert_eq!(slice("f32[t]", "0", MAX, 1), "f32[t]");
    assert_eq!(slice("f32[t]", "0", "2147483647", 1), "f32[t]");
    assert_eq!(slice("f32[t]", "1", MAX, 1), "f32[max(0, t - 1)]");
    assert_eq!(slice("f32[t]", "-1", MAX, 1), "f32[min(1, t)]");
    assert_eq!(slice("f32[t]", "-4", MAX, 1), "f32[min(4, t)]");
    assert_eq!(slice("f32[t]", "0", "-1", 1), "f32[max(0, t - 1)]");
    assert_eq!(slice("f32[256]", "0", "t", 1), "f32[min(256, t)]");
    assert_eq!(slice("f32[t]", "0", "t", 1), "f32[t]");
    assert_eq!(slice("f32[t]", "0", MAX, 2), "f32[floor((t + 1)/(2))]");
    assert_eq!(slice("f32[t]", "0", "s", 1), "f32[min(s, t)]");
}

#[test]
fn operands_are_checked() {
    let op = |axes: &[usize], steps: &[i64]| Op::Slice { axes: axes.to_vec(), steps: steps.to_vec() };
    let two = || ints(&["0", "0"]);
    let run = |op, ends| result(op, &[x("f32[4, b]"), two(), ends]);
    assert_eq!(run(op(&[0, 1], &[1, 1]), ints(&["2", "3"])), "f32[2, min(3, b)]");
    assert_eq!(run(op(&[0, 1], &[1, 1]), x("i64[2]")), "f32[new1, new2]");
    assert_eq!(run(op(&[0, 2], &[1, 1]), two()), "error: axis 2 is outside rank 2");
    assert_eq!(run(op(&[0, 0], &[1, 1]), two()), "error: axis 0 is named twice");
    assert_eq!(run(op(&[0, 1], &[1]), two()), "error: 1 steps for 2 axes");
    assert_eq!(run(op(&[0], &[1]), two()), "error: 2 starts for 1 axes");
}

#[test]
fn contents_are_cut() {
    let op = |step| Op::Slice { axes: vec![0], steps: vec![step] };
    let shape = || ints(&["b", "t", "64"]);
    assert_eq!(content(op(1), &[shape(), ints(&["-1"]), ints(&[MAX])]), "[64]");
    assert_eq!(content(op(1), &[shape(), ints(&["0"]), ints(&["-1"])]), "[b, t]");
    assert_eq!(content(op(-1), &[shape(), ints(&["-1"]), ints(&[MIN])]), "[64, t, b]");
    assert_eq!(content(op(2), &[shape(), ints(&["0"]), ints(&[MAX])]), "[b, 64]");
    assert_eq!(content(op(1), &[shape(), x("i64[1]"), x("i64[1]")]), "?");
    let rows = with("i64[2, 2]", &["1", "2", "3", "4"]);
    let column = Op::Slice { axes: vec![1], steps: vec![1] };
    assert_eq!(content(column, &[rows, ints(&["1"]), ints(&["2"])]), "[2, 4]");
}
