//! Chains of operators as exporters write them.

use crate::ir::{Binary, DType, Dim, Graph, Op, Tensor, Type, ValueId};

fn input(g: &mut Graph, name: &str, dtype: DType, shape: &[Dim]) -> ValueId {
    g.add_input(name, Type::new(dtype, shape.to_vec()))
}

fn add(g: &mut Graph, op: Op, inputs: &[ValueId]) -> ValueId {
    g.add(op, inputs).expect("the operands fit")
}

fn sizes(g: &Graph, v: ValueId) -> String {
    g.ty(v).expect("the type is known").to_string()
}

#[test]
fn heads_are_split_by_computed_shapes() {
    let mut g = Graph::new("");
    let x = input(&mut g, "x", DType::F32, &[Dim::symbol("b"), Dim::symbol("t"), 64i64.into()]);
    let shape = add(&mut g, Op::Shape { start: 0, end: 3 }, &[x]);
    let mut parts = Vec::new();
    for i in 0..2i64 {
        let i = g.scalar(i);
        let d = add(&mut g, Op::Gather { axis: 0 }, &[shape, i]);
        parts.push(add(&mut g, Op::Unsqueeze { axes: vec![0] }, &[d]));
    }
    parts.push(g.ints(&[-1]));
    parts.push(g.ints(&[16]));
    let target = add(&mut g, Op::Concat { axis: 0 }, &parts);
    let split = add(&mut g, Op::Reshape { allow_zero: false }, &[x, target]);
    assert_eq!(sizes(&g, split), "f32[b, t, 4, 16]");
    let moved = add(&mut g, Op::Transpose { perm: vec![0, 2, 1, 3] }, &[split]);
    let keys = add(&mut g, Op::Transpose { perm: vec![0, 2, 3, 1] }, &[split]);
    let scores = add(&mut g, Op::MatMul, &[moved, keys]);
    assert_eq!(sizes(&g, scores), "f32[b, 4, t, t]");
}

#[test]
fn expand_chain_with_where_is_decided() {
    let mut g = Graph::new("");
    let x = input(&mut g, "x", DType::F32, &[Dim::ONE, Dim::ONE, Dim::ONE, Dim::symbol("t")]);
    let target = g
        .dims(&[Dim::symbol("b"), 1i64.into(), Dim::symbol("t"), Dim::symbol("t")])
        .expect("four expressions");
    let rank = g.ints(&[4]);
    let ones = add(&mut g, Op::ConstantOfShape { value: Tensor::ints(&[1]) }, &[rank]);
    let minus = g.scalar(-1i64);
    let negative = add(&mut g, Op::Binary(Binary::Mul), &[ones, minus]);
    let is_rest = add(&mut g, Op::Binary(Binary::Equal), &[target, negative]);
    let shape = add(&mut g, Op::Where, &[is_rest, ones, target]);
    let y = add(&mut g, Op::Expand, &[x, shape]);
    assert_eq!(sizes(&g, y), "f32[b, 1, t, t]");
}

#[test]
fn contraction_clash_is_named() {
    let mut g = Graph::new("");
    let a = input(&mut g, "a", DType::F32, &[Dim::symbol("b"), 64i64.into()]);
    let b = input(&mut g, "b", DType::F32, &[128i64.into(), 32i64.into()]);
    let error = g.add(Op::MatMul, &[a, b]).expect_err("64 is not 128").to_string();
    assert!(error.ends_with("contraction of 64 with 128"), "{error}");
}
