use super::{content, ints, result, unknown, with, x};
use crate::ir::{DType, Op, PadMode, Tensor};

fn reshape(from: &str, to: &[&str]) -> String {
    result(Op::Reshape { allow_zero: false }, &[x(from), ints(to)])
}

#[test]
fn reshape_resolves_its_shape() {
    assert_eq!(reshape("f32[b, t, 64]", &["b", "t", "4", "16"]), "f32[b, t, 4, 16]");
    assert_eq!(reshape("f32[b, t, 64]", &["b", "-1", "16"]), "f32[b, 4*t, 16]");
    assert_eq!(reshape("f32[b, t, 64]", &["0", "0", "-1", "16"]), "f32[b, t, 4, 16]");
    assert_eq!(reshape("f32[b, t, 64]", &["-1", "64"]), "f32[b*t, 64]");
    assert_eq!(reshape("f32[b, t]", &["c", "-1"]), "f32[c, floor((b*t)/(c))]");
    assert_eq!(reshape("f32[]", &["1", "1"]), "f32[1, 1]");
    assert_eq!(reshape("f32[1]", &[]), "f32[]");
    assert_eq!(reshape("f32[0, 3]", &["3", "0"]), "error: 0 elements [0, 3] do not fill 9 [3, 3]");
    assert_eq!(result(Op::Reshape { allow_zero: true }, &[x("f32[0, 3]"), ints(&["3", "0"])]), "f32[3, 0]");
}

#[test]
fn reshape_refuses_what_does_not_fit() {
    assert_eq!(reshape("f32[3, 4]", &["5", "3"]), "error: 12 elements [3, 4] do not fill 15 [5, 3]");
    assert_eq!(reshape("f32[3, 4]", &["-1", "5"]), "error: 12 elements [3, 4] are no multiple of 5 [1, 5]");
    assert_eq!(reshape("f32[3, 4]", &["-1", "-1"]), "error: the shape has two sizes of -1");
    assert_eq!(reshape("f32[3, 4]", &["12", "1", "0"]), "error: size 0 at axis 2 copies from rank 2");
    assert_eq!(reshape("f32[b, 4]", &["-2", "2"]), "error: axis 0 of the result would have the size -2");
    let float = result(Op::Reshape { allow_zero: false }, &[x("f32[3]"), x("f32[1]")]);
    assert_eq!(float, "error: shape is f32, not an integer vector");
    let matrix = result(Op::Reshape { allow_zero: false }, &[x("f32[3]"), x("i64[1, 1]")]);
    assert_eq!(matrix, "error: shape has rank 2, not 1");
}

#[test]
fn reshape_to_unknown_shapes() {
    let to = |shape| result(Op::Reshape { allow_zero: false }, &[x("f32[b, 4]"), shape]);
    assert_eq!(to(x("i64[3]")), "f32[new1, new2, new3]");
    assert_eq!(to(x("i64[1]")), "f32[4*b]");
    assert_eq!(to(x("i64[n]")), "?");
    assert_eq!(to(unknown()), "?");
    assert_eq!(to(x("i64[1000000]")), "error: shape has 1000000 elements; ranks above 64 are not supported");
}

#[test]
fn axes_move() {
    let transpose = |perm: &[usize]| result(Op::Transpose { perm: perm.to_vec() }, &[x("f32[b, t, 4, 16]")]);
    assert_eq!(transpose(&[0, 2, 1, 3]), "f32[b, 4, t, 16]");
    assert_eq!(transpose(&[0, 2, 1]), "error: [0, 2, 1] is no permutation of 4 axes");
    assert_eq!(transpose(&[0, 2, 2, 3]), "error: [0, 2, 2, 3] is no permutation of 4 axes");
    assert_eq!(transpose(&[0, 1, 2, 9]), "error: [0, 1, 2, 9] is no permutation of 4 axes");
    assert_eq!(
        content(Op::Transpose { perm: vec![1, 0] }, &[with("i64[2, 3]", &["1", "2", "3", "4", "5", "b"])]),
        "[1, 4, 2, 5, 3, b]"
    );
    let squeeze = |axes: &[usize]| result(Op::Squeeze { axes: axes.to_vec() }, &[x("f32[1, b, 1, 3]")]);
    assert_eq!(squeeze(&[0, 2]), "f32[b, 3]");
    assert_eq!(squeeze(&[1]), "f32[1, 1, 3]");
    assert_eq!(squeeze(&[3]), "error: axis 3 has the size 3, not 1");
    assert_eq!(squeeze(&[4]), "error: axis 4 is outside rank 4");
    assert_eq!(squeeze(&[0, 0]), "error: axis 0 is named twice");
    let unsqueeze = |axes: &[usize]| result(Op::Unsqueeze { axes: axes.to_vec() }, &[x("f32[b, 3]")]);
    assert_eq!(unsqueeze(&[0, 2]), "f32[1, b, 1, 3]");
    assert_eq!(unsqueeze(&[2, 3]), "f32[b, 3, 1, 1]");
    assert_eq!(unsqueeze(&[4]), "error: axis 4 is outside rank 3");
    assert_eq!(unsqueeze(&[1, 1]), "error: axis 1 is named twice");
    assert_eq!(content(Op::Unsqueeze { axes: vec![0] }, &[with("i64[]", &["b"])]), "[b]");
    assert_eq!(content(Op::Squeeze { axes: vec![0] }, &[ints(&["b"])]), "[b]");
}

#[test]
fn expand_broadcasts_both_ways() {
    let expand = |from: &str, to: &[&str]| result(Op::Expand, &[x(from), ints(to)]);
    assert_eq!(expand("f32[b, 1, t]", &["1", "4", "1"]), "f32[b, 4, t]");
    assert_eq!(expand("f32[1, 3]", &["b", "t", "1"]), "f32[b, t, 3]");
    assert_eq!(expand("f32[]", &["b"]), "f32[b]");
    assert_eq!(expand("f32[3]", &["4"]), "error: [3] and [4] do not broadcast: 3 against 4");
    assert_eq!(expand("f32[3]", &["-1"]), "error: the shape names the size -1");
    assert_eq!(result(Op::Expand, &[x("f32[3, 1, b]"), x("i64[4]")]), "f32[new1, 3, new3, new4]");
    assert_eq!(result(Op::Expand, &[x("f32[3, 1, b]"), x("i64[1]")]), "f32[3, 1, new1]");
    assert_eq!(content(Op::Expand, &[with("i64[2, 1]", &["b", "2"]), ints(&["2", "2"])]), "[b, b, 2, 2]");
}

#[test]
fn parts_are_joined() {
    let concat = |axis, args: &[_]| result(Op::Concat { axis }, args);
    assert_eq!(concat(1, &[x("f32[b, p]"), x("f32[b, t]")]), "f32[b, t + p]");
    assert_eq!(concat(1, &[x("f32[b, 2]"), x("f32[3, 4]"), x("f32[b, 1]")]), "f32[3, 7]");
    assert_eq!(concat(1, &[x("f32[2, 2]"), x("f32[3, 4]")]), "error: axis 0 of 2 with 3");
    assert_eq!(concat(0, &[x("f32[2]"), x("f32[3, 4]")]), "error: parts have the ranks 1 and 2");
    assert_eq!(concat(2, &[x("f32[2, 2]")]), "error: axis 2 is outside rank 2");
    assert_eq!(concat(0, &[x("f32[2]"), unknown()]), "?");
    assert_eq!(concat(0, &[]), "error: operand 0 (part) is missing");
    assert_eq!(content(Op::Concat { axis: 0 }, &[ints(&["b"]), ints(&[]), ints(&["t", "64"])]), "[b, t, 64]");
    assert_eq!(content(Op::Concat { axis: 0 }, &[ints(&["b"]), x("i64[1]")]), "?");
    let rows = with("i64[2, 1]", &["1", "2"]);
    assert_eq!(
        content(Op::Concat { axis: 1 }, &[rows, with("i64[2, 2]", &["3", "4", "5", "6"])]),
        "[1, 3, 4, 2, 5, 6]"
    );
}

#[test]
fn repeats_and_pads() {
    assert_eq!(result(Op::Tile, &[x("f32[b, 3]"), ints(&["2", "r"])]), "f32[2*b, 3*r]");
    assert_eq!(result(Op::Tile, &[x("f32[b, 3]"), ints(&["2"])]), "error: 1 repeats for rank 2");
    assert_eq!(result(Op::Tile, &[x("f32[b]"), ints(&["-2"])]), "error: an axis is repeated -2 times");
    assert_eq!(result(Op::Tile, &[x("f32[b, 3]"), x("i64[2]")]), "f32[new1, new2]");
    assert_eq!(content(Op::Tile, &[ints(&["b", "2"]), ints(&["2"])]), "[b, 2, b, 2]");
    let pad = |pads| result(Op::Pad { mode: PadMode::Constant }, &[x("f32[b, 3]"), pads]);
    assert_eq!(pad(ints(&["0", "1", "0", "-2"])), "f32[b, 2]");
    assert_eq!(pad(ints(&["0", "1"])), "error: 2 pads for rank 2");
    assert_eq!(pad(ints(&["0", "-3", "0", "-3"])), "error: axis 1 of the result would have the size -3");
    assert_eq!(pad(x("i64[4]")), "f32[new1, new2]");
}

#[test]
fn sizes_become_contents() {
    let shape = |start, end| Op::Shape { start, end };
    assert_eq!(result(shape(0, 3), &[x("f32[b, t, 64]")]), "i64[3]");
    assert_eq!(content(shape(0, 3), &[x("f32[b, t, 64]")]), "[b, t, 64]");
    assert_eq!(content(shape(1, 2), &[x("f32[b, t, 64]")]), "[t]");
    assert_eq!(content(shape(0, 0), &[x("f32[]")]), "[]");
    assert_eq!(result(shape(0, 4), &[x("f32[b]")]), "error: sizes 0..4 are outside rank 1");
    assert_eq!(result(shape(1, 0), &[x("f32[b]")]), "error: sizes 1..0 are outside rank 1");
    assert_eq!(content(Op::Size, &[x("f32[b, t, 64]")]), "[64*b*t]");
}

#[test]
fn tensors_are_made_from_sizes() {
    let ones = || Op::ConstantOfShape { value: Tensor::ints(&[1]) };
    assert_eq!(result(ones(), &[ints(&["b", "3"])]), "i64[b, 3]");
    assert_eq!(content(ones(), &[ints(&["2", "2"])]), "[1, 1, 1, 1]");
    assert_eq!(content(ones(), &[ints(&[])]), "[1]");
    assert_eq!(content(ones(), &[ints(&["100"])]), "?");
    assert_eq!(result(ones(), &[x("i64[2]")]), "i64[new1, new2]");
    assert_eq!(result(ones(), &[ints(&["-3"])]), "error: axis 0 of the result would have the size -3");
    let two = Op::ConstantOfShape { value: Tensor::ints(&[1, 2]) };
    assert_eq!(result(two, &[ints(&["2"])]), "error: the value has 2 elements, not 1");
    let range = |a: &str, b: &str, c: &str| {
        [a, b, c].map(|s| if s == "?" { x("i64[]") } else { with("i64[]", &[s]) })
    };
    assert_eq!(result(Op::Range, &range("0", "t", "1")), "i64[t]");
    assert_eq!(result(Op::Range, &range("p", "t", "1")), "i64[max(0, t - p)]");
    assert_eq!(result(Op::Range, &range("0", "t", "2")), "i64[floor((t + 1)/(2))]");
    assert_eq!(result(Op::Range, &range("5", "0", "1")), "i64[0]");
    assert_eq!(result(Op::Range, &range("?", "t", "1")), "i64[new1]");
    assert_eq!(result(Op::Range, &range("0", "t", "0")), "error: delta is 0");
    assert_eq!(content(Op::Range, &range("5", "0", "-2")), "[5, 3, 1]");
    let float = |v: f32| super::constant(Tensor::scalar(v));
    assert_eq!(result(Op::Range, &[float(0.0), float(1.0), float(0.3)]), "f32[4]");
    let endless = result(Op::Range, &[float(0.0), float(1.0), float(0.0)]);
    assert_eq!(endless, "error: the range from 0 to 1 by 0 has no length");
    assert_eq!(result(Op::EyeLike { dtype: DType::F32, k: 0 }, &[x("i64[b, 3]")]), "f32[b, 3]");
    assert_eq!(result(Op::Trilu { upper: true }, &[x("f32[3]")]), "error: x has rank 1, below 2");
}
