use super::{constant, content, ints, result, unknown, with, x};
use crate::ir::{Binary, DType, Op, Tensor, Unary};

fn bin(op: Binary) -> Op {
    Op::Binary(op)
}

#[test]
fn shapes_broadcast() {
    let add = || bin(Binary::Add);
    assert_eq!(result(add(), &[x("f32[b, 1, 64]"), x("f32[t, 64]")]), "f32[b, t, 64]");
    assert_eq!(result(add(), &[x("f32[b, t]"), x("f32[]")]), "f32[b, t]");
    assert_eq!(result(add(), &[x("f32[t]"), x("f32[7]")]), "f32[7]");
    assert_eq!(result(add(), &[x("f32[a]"), x("f32[b]")]), "f32[max(a, b)]");
    assert_eq!(result(add(), &[x("f32[0]"), x("f32[1]")]), "f32[0]");
    assert_eq!(
        result(add(), &[x("f32[2, 3]"), x("f32[2, 4]")]),
        "error: [2, 3] and [2, 4] do not broadcast: 3 against 4"
    );
    assert_eq!(result(add(), &[x("f32[2]"), x("i64[2]")]), "error: operands are f32 and i64");
    assert_eq!(result(add(), &[x("f32[2]"), unknown()]), "?");
    assert_eq!(result(add(), &[x("f32[2]"), None]), "error: operand 1 (b) is missing");
    assert_eq!(result(add(), &[x("f32[2]")]), "error: operand 1 (b) is missing");
}

#[test]
fn dtypes_follow_the_operator() {
    assert_eq!(result(bin(Binary::Less), &[x("f32[2]"), x("f32[2]")]), "bool[2]");
    assert_eq!(result(bin(Binary::Pow), &[x("f32[2]"), x("i64[]")]), "f32[2]");
    assert_eq!(result(bin(Binary::And), &[x("f32[2]"), x("f32[2]")]), "error: operands are f32, not bool");
    assert_eq!(result(Op::Unary(Unary::IsNan), &[x("f32[b, 2]")]), "bool[b, 2]");
    assert_eq!(result(Op::Unary(Unary::Sqrt), &[x("f16[b, 2]")]), "f16[b, 2]");
    assert_eq!(result(Op::Unary(Unary::Not), &[x("i64[2]")]), "error: x is i64, not bool");
    assert_eq!(result(Op::Where, &[x("bool[b, 1]"), x("f32[]"), x("f32[t]")]), "f32[b, t]");
    assert_eq!(
        result(Op::Where, &[x("i64[b, 1]"), x("f32[]"), x("f32[t]")]),
        "error: the condition is i64, not bool"
    );
    assert_eq!(result(Op::Cast { to: DType::F16 }, &[x("f32[b, 2]")]), "f16[b, 2]");
    assert_eq!(result(Op::Clip, &[x("f32[b]"), None, x("f32[]")]), "f32[b]");
    assert_eq!(
        result(Op::Clip, &[x("f32[b]"), x("f32[3]")]),
        "error: min has the shape [3], not one element"
    );
}

#[test]
fn integers_compute() {
    let two = |op| content(bin(op), &[ints(&["7", "-7", "b"]), ints(&["2"])]);
    assert_eq!(two(Binary::Add), "[9, -5, b + 2]");
    assert_eq!(two(Binary::Mul), "[14, -14, 2*b]");
    assert_eq!(two(Binary::Sub), "[5, -9, b - 2]");
    // C's division truncates, Python's remainder has the sign of the divisor.
    assert_eq!(two(Binary::Div), "[3, -3, floor((b)/(2))]");
    assert_eq!(two(Binary::Mod), "[1, 1, mod(b, 2)]");
    assert_eq!(content(bin(Binary::Fmod), &[ints(&["-7"]), ints(&["2"])]), "[-1]");
    assert_eq!(two(Binary::Max), "[7, 2, max(2, b)]");
    assert_eq!(content(bin(Binary::Pow), &[ints(&["3", "b"]), ints(&["2"])]), "[9, b*b]");
    assert_eq!(content(Op::Unary(Unary::Neg), &[ints(&["3", "b"])]), "[-3, -b]");
    assert_eq!(content(Op::Unary(Unary::Abs), &[ints(&["-3", "b"])]), "[3, b]");
}

#[test]
fn uncertain_arithmetic_has_no_content() {
    // (b - 4) / 3 truncates or floors, as the sign goes.
    let difference = with("i64[1]", &["b"]);
    let less = super::run(&bin(Binary::Sub), &[difference, ints(&["4"])], 1).unwrap().remove(0);
    let less = Some(super::Arg { ty: less.ty, content: less.content, constant: None });
    assert_eq!(content(bin(Binary::Div), &[less.clone(), ints(&["3"])]), "?");
    assert_eq!(content(Op::Unary(Unary::Abs), &[less]), "?");
    assert_eq!(content(bin(Binary::Div), &[ints(&["3"]), ints(&["0"])]), "?");
    let max = i64::MAX.to_string();
    assert_eq!(content(bin(Binary::Add), &[ints(&[&max]), ints(&["1"])]), "?");
    assert_eq!(content(bin(Binary::Mul), &[with("i32[]", &["65536"]), with("i32[]", &["65536"])]), "?");
}

#[test]
fn comparisons_are_decided_where_certain() {
    let minus = || with("i64[]", &["-1"]);
    assert_eq!(content(bin(Binary::Equal), &[ints(&["b", "-1", "64"]), minus()]), "[0, 1, 0]");
    assert_eq!(content(bin(Binary::Equal), &[ints(&["b"]), ints(&["1"])]), "?");
    assert_eq!(content(bin(Binary::Less), &[minus(), ints(&["b"])]), "[1]");
    assert_eq!(content(bin(Binary::GreaterOrEqual), &[ints(&["b"]), ints(&["0"])]), "[1]");
    assert_eq!(content(bin(Binary::Greater), &[ints(&["b"]), ints(&["0"])]), "?");
    let flags = || with("bool[2]", &["1", "0"]);
    assert_eq!(content(Op::Unary(Unary::Not), &[flags()]), "[0, 1]");
    assert_eq!(content(bin(Binary::Or), &[flags(), with("bool[]", &["0"])]), "[1, 0]");
    assert_eq!(content(bin(Binary::Xor), &[flags(), with("bool[]", &["1"])]), "[0, 1]");
    assert_eq!(content(Op::Where, &[flags(), ints(&["b", "t"]), ints(&["5", "6"])]), "[b, 6]");
    assert_eq!(content(Op::Where, &[x("bool[2]"), ints(&["b", "t"]), ints(&["b", "6"])]), "?");
    assert_eq!(content(Op::Where, &[x("bool[2]"), ints(&["b", "t"]), ints(&["b", "t"])]), "[b, t]");
}

#[test]
fn casts_keep_what_fits() {
    let cast = |to, arg| content(Op::Cast { to }, &[arg]);
    assert_eq!(cast(DType::I32, ints(&["b", "7"])), "[b, 7]");
    assert_eq!(cast(DType::I32, ints(&["4294967296"])), "?");
    assert_eq!(cast(DType::U8, ints(&["b"])), "?");
    assert_eq!(cast(DType::U8, ints(&["255"])), "[255]");
    assert_eq!(cast(DType::F32, ints(&["3"])), "?");
    assert_eq!(cast(DType::Bool, ints(&["3", "0"])), "[1, 0]");
    assert_eq!(cast(DType::Bool, ints(&["b"])), "?");
    assert_eq!(cast(DType::I64, with("bool[2]", &["1", "0"])), "[1, 0]");
    assert_eq!(cast(DType::I64, constant(Tensor::scalar(2.5f32))), "?");
    assert_eq!(cast(DType::I64, constant(Tensor::from_bools(vec![2], &[true, false]).unwrap())), "[1, 0]");
    assert_eq!(content(Op::Clip, &[ints(&["-3", "9"]), with("i64[]", &["0"]), None]), "[0, 9]");
    assert_eq!(content(Op::Clip, &[ints(&["-3", "9"]), None, x("i64[]")]), "?");
}
