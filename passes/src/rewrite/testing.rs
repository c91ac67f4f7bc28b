//! What the passes' tests share: small graphs, random inputs, comparison under the evaluator.

use std::collections::BTreeMap;

use super::{Notes, Pass, apply_pass, clean_up};
use crate::eval::eval_graph;
use crate::ir::{Binary, Bindings, DType, Dim, Graph, Op, Symbol, Tensor, Type, Unary, ValueId};

/// A float type with these sizes; negative ones are the symbols `b` (-1), `t` (-2) and `s` (-3).
pub(crate) fn f32s(shape: &[i64]) -> Type {
    Type::new(DType::F32, shape.iter().map(|n| size(*n)).collect())
}

pub(crate) fn size(n: i64) -> Dim {
    match n {
        -1 => Dim::symbol("b"),
        -2 => Dim::symbol("t"),
        -3 => Dim::symbol("s"),
        n => n.into(),
    }
}

/// Pseudo-random numbers, about normal.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / ((1u64 << 24) as f32) - 0.5
    };
    let data = (0..shape.iter().product()).map(|_| (next() + next() + next()) * 2.0).collect();
    Tensor::from_vec(shape.to_vec(), data).unwrap()
}

impl Graph {
    pub(crate) fn bin(&mut self, f: Binary, a: ValueId, b: ValueId) -> ValueId {
        self.add(Op::Binary(f), &[a, b]).unwrap()
    }

    pub(crate) fn un(&mut self, f: Unary, x: ValueId) -> ValueId {
        self.add(Op::Unary(f), &[x]).unwrap()
    }

    pub(crate) fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
        self.add(op, operands).unwrap()
    }

    pub(crate) fn num(&mut self, x: f32) -> ValueId {
        self.scalar(x)
    }
}

/// How often each operator occurs.
pub(crate) fn histogram(graph: &Graph) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for (_, node) in graph.nodes() {
        *out.entry(node.op.name()).or_insert(0) += 1;
    }
    out
}

pub(crate) fn count(graph: &Graph, op: &str) -> usize {
    histogram(graph).get(op).copied().unwrap_or(0)
}

/// Random inputs: `b` is 2, `t` is 5, `s` is 7; integers are 0 to 3.
pub(crate) fn inputs(graph: &Graph) -> BTreeMap<ValueId, Tensor> {
    let sizes = Bindings::from([("b", 2), ("t", 5), ("s", 7)].map(|(s, n)| (Symbol::new(s), n)));
    let mut out = BTreeMap::new();
    for (i, v) in graph.inputs().iter().enumerate() {
        let ty = graph.ty(*v).unwrap();
        let shape: Vec<usize> =
            ty.shape.iter().map(|d| d.substitute(&sizes).known_size().expect("a bound size")).collect();
        let floats = random(i as u64 + 1, &shape);
        let tensor = match ty.dtype {
            DType::F32 => floats,
            DType::I64 => {
                let data = floats.to_f32().iter().map(|x| (x.abs() * 2.0) as i64 % 4).collect();
                Tensor::from_vec::<i64>(shape, data).unwrap()
            }
            DType::Bool => {
                Tensor::from_bools(shape, &floats.to_f32().iter().map(|x| *x > -0.3).collect::<Vec<_>>())
                    .unwrap()
            }
            DType::F16 => {
                let data = floats.to_f32().iter().map(|x| half::f16::from_f32(*x)).collect();
                Tensor::from_vec::<half::f16>(shape, data).unwrap()
            }
            other => panic!("no random {other}"),
        };
        out.insert(*v, tensor);
    }
    out
}

/// Asserts that two graphs with the same inputs compute the same, within `tolerance` of the scale.
pub(crate) fn assert_same(before: &Graph, after: &Graph, tolerance: f64) {
    let given = inputs(before);
    let translated =
        before.inputs().iter().zip(after.inputs()).map(|(a, b)| (*b, given[a].clone())).collect();
    let (expected, actual) = (eval_graph(before, &given).unwrap(), eval_graph(after, &translated).unwrap());
    assert_eq!(expected.len(), actual.len());
    for (e, a) in expected.iter().zip(&actual) {
        assert_eq!((e.dtype(), e.shape()), (a.dtype(), a.shape()));
        let (e, a) = (e.to_f64(), a.to_f64());
        let scale = e.iter().filter(|x| x.is_finite()).fold(1e-3, |m: f64, x| m.max(x.abs()));
        for (i, (e, a)) in e.iter().zip(&a).enumerate() {
            let equal = e == a || (e.is_nan() && a.is_nan()) || (e - a).abs() <= tolerance * scale;
            assert!(equal, "element {i}: {a} instead of {e}");
        }
    }
}

/// Applies one pass and the removal of dead code; checks that the result computes the same.
pub(crate) fn after(before: &Graph, pass: &Pass) -> (Graph, usize) {
    let mut graph = before.clone();
    let changes = apply_pass(&mut graph, pass, &mut Notes::default()).unwrap();
    graph.remove_dead();
    assert_same(before, &graph, if pass.fidelity == super::Fidelity::Exact { 0.0 } else { 1e-5 });
    (graph, changes)
}

/// Cleans up; checks that the result computes the same.
pub(crate) fn cleaned(before: &Graph) -> Graph {
    let mut graph = before.clone();
    clean_up(&mut graph).unwrap();
    assert_same(before, &graph, 1e-5);
    graph
}
