//! Sizes that values decide, on a device: the same graph, the same shapes, other values.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use snlp_passes::ir::{Binary, DType, Dim, Dynamic, Graph, Op, Reduce, Tensor, Type, Unary};
use snlp_passes::rewrite::clean_up;
use snlp_runtime::Session;
use snlp_runtime::schedule::Options;

/// Runs all sets of inputs in turn, twice, on one session, and compares with the evaluator.
fn agrees(g: &Graph, sets: &[Vec<(&str, Tensor)>]) {
    let Some(gpu) = gpu() else { return };
    let mut clean = g.clone();
    clean_up(&mut clean).unwrap();
    let session = Session::new(&gpu, clean, Options::default()).unwrap();
    for set in sets.iter().chain(sets) {
        let inputs: Vec<(String, Tensor)> = set.iter().map(|(n, t)| ((*n).into(), t.clone())).collect();
        let expected = oracle(g, &inputs);
        let actual = session.run(&inputs).unwrap();
        assert_eq!(actual.len(), expected.len());
        for ((name, a), e) in actual.iter().zip(&expected) {
            assert_eq!((a.dtype(), a.shape()), (e.dtype(), e.shape()), "{name}");
            for (a, e) in a.to_f64().iter().zip(e.to_f64()) {
                assert!((a - e).abs() <= 1e-4 * (1.0 + e.abs()), "{name}: {a} instead of {e}");
            }
        }
        assert_eq!(session.time(&inputs, 2).unwrap().len(), 2);
    }
}

fn ints(shape: &[usize], data: &[i64]) -> Tensor {
    Tensor::from_vec(shape.to_vec(), data.to_vec()).unwrap()
}

fn i64s(shape: Vec<Dim>) -> Type {
    Type::new(DType::I64, shape)
}

#[test]
fn positions_from_a_mask_are_not_baked_in() {
    let mut g = Graph::new("positions");
    let t = Dim::symbol("t");
    let mask = g.add_input("mask", i64s(vec![Dim::ONE, t.clone()]));
    let x = float_input(&mut g, "x", vec![Dim::ONE, t, 8i64.into()]);
    let one = g.scalar(1i64);
    let counted = add(&mut g, Op::CumSum { axis: 1, exclusive: false, reverse: false }, &[mask]);
    let positions = binary(&mut g, Binary::Sub, counted, one);
    let table = g.constant(noise(1, &[16, 8]));
    let embedded = add(&mut g, Op::Gather { axis: 0 }, &[table, positions]);
    let y = binary(&mut g, Binary::Add, x, embedded);
    // Only the tokens that the mask shows, and as many positions.
    let axes = vec![0, 1];
    let n = add(&mut g, Op::Reduce { op: Reduce::Sum, axes, keepdims: false }, &[mask]);
    let end = add(&mut g, Op::Unsqueeze { axes: vec![0] }, &[n]);
    let start = g.ints(&[0]);
    let shown = add(&mut g, Op::Slice { axes: vec![1], steps: vec![1] }, &[y, start, end]);
    let y = add(&mut g, Op::Unary(Unary::Tanh), &[shown]);
    g.add_output("y", y);
    let zero = g.scalar(0i64);
    let range = add(&mut g, Op::Range, &[zero, n, one]);
    g.add_output("range", range);
    let x = noise(2, &[1, 4, 8]);
    let sets = [[1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]]
        .map(|m| vec![("mask", ints(&[1, 4], &m)), ("x", x.clone())]);
    agrees(&g, &sets);
}

#[test]
fn experts_are_given_the_tokens_that_a_router_chooses() {
    let mut g = Graph::new("experts");
    let x = float_input(&mut g, "x", vec![Dim::symbol("t"), 8i64.into()]);
    let x0 = add(&mut g, Op::Unary(Unary::GeluErf), &[x]);
    let router = g.constant(noise(1, &[8, 3]));
    let scores = add(&mut g, Op::MatMul, &[x0, router]);
    let scores = add(&mut g, Op::Softmax { axis: 1 }, &[scores]);
    let k = g.ints(&[2]);
    let top = g.add_node(Op::TopK { axis: 1, largest: true }, vec![Some(scores), Some(k)], 2, "top").unwrap();
    let [weights, choice] = g.node(top).unwrap().outputs[..] else { panic!("two results") };
    let mut sum = add(&mut g, Op::Unary(Unary::Sin), &[x]);
    for expert in 0..3i64 {
        let number = g.scalar(expert);
        let chosen = binary(&mut g, Binary::Equal, choice, number);
        let at = add(&mut g, Op::NonZero, &[chosen]);
        let at = add(&mut g, Op::Transpose { perm: vec![1, 0] }, &[at]);
        let (zero, one) = (g.ints(&[0]), g.ints(&[1]));
        let rows = add(&mut g, Op::Slice { axes: vec![1], steps: vec![1] }, &[at, zero, one]);
        let weight = add(&mut g, Op::GatherNd { batch_dims: 0 }, &[weights, at]);
        let weight = add(&mut g, Op::Unsqueeze { axes: vec![1] }, &[weight]);
        let token = add(&mut g, Op::GatherNd { batch_dims: 0 }, &[x0, rows]);
        let w = g.constant(noise(10 + expert as u32, &[8, 8]));
        let y = add(&mut g, Op::MatMul, &[token, w]);
        let y = binary(&mut g, Binary::Mul, y, weight);
        let reduction = snlp_passes::ir::ScatterReduction::Add;
        sum = add(&mut g, Op::ScatterNd { reduction }, &[sum, rows, y]);
    }
    g.add_output("y", sum);
    let sets: Vec<_> = (1..4).map(|seed| vec![("x", noise(seed, &[5, 8]))]).collect();
    agrees(&g, &sets);
}

#[test]
fn axes_and_shapes_may_be_inputs() {
    let mut g = Graph::new("axes");
    let x = float_input(&mut g, "x", known(&[2, 3, 4]));
    let axes = g.add_input("axes", i64s(known(&[1])));
    let shape = g.add_input("shape", i64s(known(&[2])));
    let k = g.add_input("k", i64s(known(&[1])));
    let mean = Dynamic::Reduce { op: Reduce::Mean, keepdims: false, noop: false };
    let y = add(&mut g, Op::Dynamic(mean), &[x, axes]);
    let y = add(&mut g, Op::Reshape { allow_zero: false }, &[y, shape]);
    let top = g.add_node(Op::TopK { axis: 1, largest: false }, vec![Some(y), Some(k)], 2, "top").unwrap();
    let [values, at] = g.node(top).unwrap().outputs[..] else { panic!("two results") };
    g.add_output("values", values);
    g.add_output("at", at);
    let set = |axis: i64, shape: [i64; 2], k: i64| {
        vec![
            ("x", noise(3, &[2, 3, 4])),
            ("axes", ints(&[1], &[axis])),
            ("shape", ints(&[2], &shape)),
            ("k", ints(&[1], &[k])),
        ]
    };
    agrees(&g, &[set(0, [3, 4], 2), set(-1, [-1, 3], 1), set(1, [2, 4], 4), set(0, [2, 6], 5)]);
}
