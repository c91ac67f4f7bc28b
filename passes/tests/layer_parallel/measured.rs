//! Measured surrogates on layers whose Jacobian is known: `x + tanh(w x)`, element by element, and an attention
//! whose values are zero.

use std::collections::BTreeMap;

use snlp_passes::analysis::find_chain;
use snlp_passes::ir::{Binary, DType, Dim, Graph, Op, Tensor, Type, Unary};
use snlp_passes::plan::Plan;
use snlp_passes::rewrite::{clean_up, parallelize};

use crate::run;
use crate::spec::Rng;

const LAYERS: usize = 5;
const FEATURES: usize = 6;
const POSITIONS: usize = 4;

/// The model and its weights.
fn model() -> (Graph, Vec<Vec<f64>>) {
    let mut rng = Rng::new(11);
    let mut g = Graph::new("elementwise");
    let shape = vec![Dim::ONE, Dim::symbol("t"), Dim::from(FEATURES)];
    let mut x = g.add_input("x", Type::new(DType::F64, shape));
    let mut weights = vec![];
    x = g.add(Op::Unary(Unary::Tanh), &[x]).expect("typed");
    let nothing = g.constant(Tensor::from_vec(vec![FEATURES], vec![0f64; FEATURES]).expect("fits"));
    for _ in 0..LAYERS {
        let w = rng.vector(FEATURES, 0.5);
        let constant = g.constant(Tensor::from_vec(vec![FEATURES], w.clone()).expect("fits"));
        let scaled = g.add(Op::Binary(Binary::Mul), &[x, constant]).expect("typed");
        let branch = g.add(Op::Unary(Unary::Tanh), &[scaled]).expect("typed");
        x = g.add(Op::Binary(Binary::Add), &[x, branch]).expect("typed");
        let keys = g.add(Op::Transpose { perm: vec![0, 2, 1] }, &[x]).expect("typed");
        let scores = g.add(Op::MatMul, &[x, keys]).expect("typed");
        let seen = g.add(Op::Softmax { axis: 2 }, &[scores]).expect("typed");
        let values = g.add(Op::Binary(Binary::Mul), &[x, nothing]).expect("typed");
        let attended = g.add(Op::MatMul, &[seen, values]).expect("typed");
        x = g.add(Op::Binary(Binary::Add), &[x, attended]).expect("typed");
        weights.push(w);
    }
    let y = g.add(Op::RmsNorm { axis: 2, epsilon: 0.0 }, &[x]).expect("typed");
    g.add_output("y", y);
    (g, weights)
}

/// Newton's iterations with the derivative `1 + w (1 - tanh²(w x))`. Layers begin with their attention: what the
/// first weights do lies before the chain, and the last layer does nothing.
fn newton(weights: &[Vec<f64>], x: &[f64], iterations: usize) -> Vec<f64> {
    let first = |(i, x): (usize, &f64)| x.tanh() + (weights[0][i % FEATURES] * x.tanh()).tanh();
    let x: Vec<f64> = x.iter().enumerate().map(first).collect();
    let nothing = vec![0.0; FEATURES];
    let mut s = vec![x.clone(); LAYERS + 1];
    for _ in 0..iterations {
        let mut new = vec![x.clone()];
        for (l, w) in weights[1..].iter().chain([&nothing]).enumerate() {
            let next = (0..x.len()).map(|i| {
                let w = w[i % FEATURES];
                let t = (w * s[l][i]).tanh();
                s[l][i] + t + (1.0 + w * (1.0 - t * t)) * (new[l][i] - s[l][i])
            });
            new.push(next.collect());
        }
        s = new;
    }
    let norm = |row: &[f64]| {
        let size = (row.iter().map(|x| x * x).sum::<f64>() / FEATURES as f64).sqrt();
        row.iter().map(|x| x / size).collect::<Vec<_>>()
    };
    s[LAYERS].chunks(FEATURES).flat_map(norm).collect()
}

#[test]
fn known_jacobians_are_found() {
    let (mut graph, weights) = model();
    clean_up(&mut graph).expect("cleans up");
    let chain = find_chain(&graph).expect("has a chain");
    assert_eq!(chain.layers.len(), LAYERS);
    let x = Rng::new(3).vector(POSITIONS * FEATURES, 1.0);
    let tensor = Tensor::from_vec(vec![1, POSITIONS, FEATURES], x.clone()).expect("fits");
    let inputs = BTreeMap::from([("x".to_string(), tensor)]);
    let under = |options: &str| {
        let plan: Plan = format!("{LAYERS}xF1[{options}]").parse().expect("a plan");
        let made = parallelize(&graph, &chain, &plan.place(LAYERS).expect("fits")).expect("applies");
        run(&made.graph, &inputs).remove("y").expect("there")
    };
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    for k in 1..=3 {
        let expected = newton(&weights, &x, k);
        let identity = apart(&under(&format!("k={k},surrogate=identity")), &expected);
        for surrogate in ["exact", "diagonal"] {
            let found = apart(&under(&format!("k={k},surrogate={surrogate}")), &expected);
            assert!(found < 2e-3 && found * 20.0 < identity, "{surrogate}, k={k}: {found} beside {identity}");
        }
    }
}
