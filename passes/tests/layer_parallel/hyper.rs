//! Hyper-connections: streams mixed by matrices, constant or of each token, against METHOD's recurrence.
//!
//! The reference evaluates each layer alone, as a graph of its own, and does the Newton iterations as
//! loops over vectors; it shares nothing with the rewrite but the evaluator.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use snlp_passes::analysis::{Chain, Kind, Transfer, find_chain};
use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{Attention, Binary, DType, Dim, Graph, Op, Reduce, Tensor, Type, Unary, ValueId};
use snlp_passes::plan::{Init, Parallel, Plan, Segment, SurrogateChoice};
use snlp_passes::rewrite::{clean_up, parallelize};

use crate::cases;

/// Where the streams lie and how they are mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// `[B, T, S, D]`, `MatMul(H, x)`.
    Product,
    /// `[B, S, T, D]`, `Einsum("ij,bjtd->bitd")`.
    Equation,
}

#[derive(Clone, Debug)]
struct Spec {
    form: Form,
    /// The matrices are computed from the state, for each token.
    of_tokens: bool,
    layers: usize,
    streams: usize,
    batch: usize,
    seq: usize,
    width: usize,
    seed: u64,
}

fn specs() -> impl Strategy<Value = Spec> {
    let form = prop_oneof![Just(Form::Product), Just(Form::Equation)];
    let sizes = (2usize..=5, prop_oneof![Just(2usize), Just(4)], 1usize..=2, 1usize..=3);
    (form, any::<bool>(), sizes, any::<u64>()).prop_map(
        |(form, of_tokens, (layers, streams, batch, seq), seed)| Spec {
            form,
            of_tokens,
            layers,
            streams,
            batch,
            seq,
            width: 6,
            seed,
        },
    )
}

/// Numbers from -1 to 1 that depend on a place and the seed.
fn draw(seed: u64, place: &str, n: usize) -> Vec<f64> {
    let mut state = place.bytes().fold(seed | 1, |s, b| (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

impl Spec {
    /// A matrix whose columns sum to one, near the identity.
    fn residual(&self, place: &str) -> Vec<f64> {
        let n = self.streams;
        let mut h = draw(self.seed, place, n * n);
        for column in 0..n {
            let weight = |row: usize, x: f64| (x + if row == column { 2.0 } else { 0.0 }).exp();
            let sum: f64 = (0..n).map(|row| weight(row, h[row * n + column])).sum();
            for row in 0..n {
                h[row * n + column] = weight(row, h[row * n + column]) / sum;
            }
        }
        h
    }

    fn state_shape(&self) -> Vec<usize> {
        match self.form {
            Form::Product => vec![self.batch, self.seq, self.streams, self.width],
            Form::Equation => vec![self.batch, self.streams, self.seq, self.width],
        }
    }

    fn state_dims(&self) -> Vec<Dim> {
        let (b, t) = (Dim::symbol("batch"), Dim::symbol("seq"));
        let (s, d) = (Dim::from(self.streams), Dim::from(self.width));
        match self.form {
            Form::Product => vec![b, t, s, d],
            Form::Equation => vec![b, s, t, d],
        }
    }

    fn stream_axis(&self) -> usize {
        if self.form == Form::Product { 2 } else { 1 }
    }
}

struct Build<'a> {
    spec: &'a Spec,
    graph: Graph,
    /// The matrices of the tokens, in order.
    matrices: Vec<ValueId>,
}

impl Build<'_> {
    fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add(op, inputs).expect("well typed")
    }

    fn weights(&mut self, place: &str, shape: &[usize], scale: f64) -> ValueId {
        let data = draw(self.spec.seed, place, shape.iter().product());
        let tensor =
            Tensor::from_vec(shape.to_vec(), data.iter().map(|x| x * scale).collect()).expect("fits");
        self.graph.constant(tensor)
    }

    /// The matrix of a connection: a constant, or for each token `[B, T, S, S]` from its state.
    fn residual(&mut self, place: &str, x: ValueId) -> ValueId {
        let (n, d) = (self.spec.streams, self.spec.width);
        let base = Tensor::from_vec(vec![n, n], self.spec.residual(place)).expect("fits");
        let base = self.graph.constant(base);
        if !self.spec.of_tokens {
            return base;
        }
        let (b, t) = (Dim::symbol("batch"), Dim::symbol("seq"));
        let x = match self.spec.form {
            Form::Product => x,
            Form::Equation => self.op(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[x]),
        };
        let flat = self.graph.dims(&[b.clone(), t.clone(), Dim::from(n * d)]).expect("dims");
        let x = self.op(Op::Reshape { allow_zero: true }, &[x, flat]);
        let x = self.op(Op::RmsNorm { axis: 2, epsilon: 0.01 }, &[x]);
        let w = self.weights(&format!("{place}.phi"), &[n * d, n * n], 0.2);
        let logits = self.op(Op::MatMul, &[x, w]);
        let square = self.graph.dims(&[b, t, Dim::from(n), Dim::from(n)]).expect("dims");
        let logits = self.op(Op::Reshape { allow_zero: true }, &[logits, square]);
        let changed = self.op(Op::Binary(Binary::Add), &[base, logits]);
        let h = self.op(Op::Softmax { axis: 2 }, &[changed]);
        self.matrices.push(h);
        h
    }

    fn connection(
        &mut self,
        place: &str,
        x: ValueId,
        branch: impl FnOnce(&mut Self, ValueId) -> ValueId,
    ) -> ValueId {
        let n = self.spec.streams;
        let axis = self.spec.stream_axis();
        let h = self.residual(place, x);
        let equation = if self.spec.of_tokens { "btij,bjtd->bitd" } else { "ij,bjtd->bitd" };
        let mixed = match self.spec.form {
            Form::Product => self.op(Op::MatMul, &[h, x]),
            Form::Equation => self.op(Op::Einsum { equation: equation.into() }, &[h, x]),
        };
        let mut per_stream = vec![1; 4 - axis];
        per_stream[0] = n;
        let pre = self.weights(&format!("{place}.pre"), &per_stream, 1.0);
        let weighted = self.op(Op::Binary(Binary::Mul), &[pre, x]);
        let read = self.op(Op::Reduce { op: Reduce::Sum, axes: vec![axis], keepdims: false }, &[weighted]);
        let y = branch(self, read);
        let y = self.op(Op::Unsqueeze { axes: vec![axis] }, &[y]);
        let post = self.weights(&format!("{place}.post"), &per_stream, 1.0);
        let y = self.op(Op::Binary(Binary::Mul), &[post, y]);
        self.op(Op::Binary(Binary::Add), &[mixed, y])
    }

    fn layer(&mut self, l: usize, x: ValueId) -> ValueId {
        let d = self.spec.width;
        let x = self.connection(&format!("{l}.attention"), x, |b, x| {
            let x = b.op(Op::RmsNorm { axis: 2, epsilon: 0.01 }, &[x]);
            let heads = ["q", "k", "v"].map(|what| {
                let w = b.weights(&format!("{l}.{what}"), &[d, d], 0.5);
                let y = b.op(Op::MatMul, &[x, w]);
                b.op(Op::Unsqueeze { axes: vec![1] }, &[y])
            });
            let attention = Attention { scale: 0.5, causal: true, window: None, softcap: None, safe: false };
            let y = b.op(Op::Attention(attention), &heads);
            b.op(Op::Squeeze { axes: vec![1] }, &[y])
        });
        self.connection(&format!("{l}.mlp"), x, |b, x| {
            let x = b.op(Op::RmsNorm { axis: 2, epsilon: 0.01 }, &[x]);
            let w = b.weights(&format!("{l}.up"), &[d, 2 * d], 0.5);
            let x = b.op(Op::MatMul, &[x, w]);
            let x = b.op(Op::Unary(Unary::Tanh), &[x]);
            let w = b.weights(&format!("{l}.down"), &[2 * d, d], 0.5);
            b.op(Op::MatMul, &[x, w])
        })
    }

    /// Layers `range` from the input `x`; the last state is the output `y`.
    fn layers(spec: &Spec, range: std::ops::Range<usize>) -> Graph {
        let mut build = Build { spec, graph: Graph::new("hyper"), matrices: vec![] };
        let mut x = build.graph.add_input("x", Type::new(DType::F64, spec.state_dims()));
        for l in range {
            x = build.layer(l, x);
        }
        build.graph.add_output("y", x);
        build.graph
    }

    /// One layer with the matrices of the tokens as further outputs.
    fn layer_alone(spec: &Spec, l: usize) -> Graph {
        let mut build = Build { spec, graph: Graph::new("layer"), matrices: vec![] };
        let x = build.graph.add_input("x", Type::new(DType::F64, spec.state_dims()));
        let y = build.layer(l, x);
        build.graph.add_output("y", y);
        for (i, h) in build.matrices.clone().into_iter().enumerate() {
            build.graph.add_output(&format!("h{i}"), h);
        }
        build.graph
    }
}

fn evaluate_all(spec: &Spec, graph: &Graph, x: &[f64]) -> Vec<Vec<f64>> {
    let tensor = Tensor::from_vec(spec.state_shape(), x.to_vec()).expect("fits");
    let by_id = BTreeMap::from([(graph.inputs()[0], tensor)]);
    eval_graph(graph, &by_id).expect("evaluates").iter().map(Tensor::to_f64).collect()
}

fn evaluate(spec: &Spec, graph: &Graph, x: &[f64]) -> Vec<f64> {
    evaluate_all(spec, graph, x).remove(0)
}

/// `A_l · delta` over the stream axis, with `A_l = H_mlp · H_attention`, where the two matrices are those of
/// all tokens or `[B, T, S, S]`.
fn transferred(spec: &Spec, matrices: &[Vec<f64>], delta: &[f64]) -> Vec<f64> {
    let shape = spec.state_shape();
    let n = spec.streams;
    let inner: usize = shape[spec.stream_axis() + 1..].iter().product();
    let mut x = delta.to_vec();
    for h in matrices {
        x = (0..x.len())
            .map(|i| {
                let (outer, to, rest) = (i / inner / n, i / inner % n, i % inner);
                let token = match (h.len() == n * n, spec.form) {
                    (true, _) => 0,
                    (_, Form::Product) => outer,
                    (_, Form::Equation) => outer * spec.seq + rest / spec.width,
                };
                let row = &h[(token * n + to) * n..][..n];
                (0..n).map(|from| row[from] * x[(outer * n + from) * inner + rest]).sum()
            })
            .collect();
    }
    x
}

/// METHOD §1 on the layers `first..` as units of one layer.
fn reference(spec: &Spec, p: &Parallel, first: usize, x: &[f64]) -> Vec<f64> {
    let layer: Vec<Graph> = (0..spec.layers).map(|l| Build::layer_alone(spec, l)).collect();
    let run = |l: usize, x: &[f64]| evaluate(spec, &layer[l], x);
    let constant = |l: usize| ["attention", "mlp"].map(|what| spec.residual(&format!("{l}.{what}"))).to_vec();
    let h = (0..first).fold(x.to_vec(), |x, l| run(l, &x));
    let mut s = vec![h.clone()];
    for j in 0..p.units {
        s.push(if p.init == Init::BatchForward { run(first + j, &h) } else { h.clone() });
    }
    for _ in 0..p.iterations {
        let f: Vec<Vec<f64>> = (0..p.units).map(|j| run(first + j, &s[j])).collect();
        let mut new = vec![h.clone()];
        for j in 1..=p.units {
            let moved: Vec<f64> = new[j - 1].iter().zip(&s[j - 1]).map(|(a, b)| a - b).collect();
            let moved = match p.surrogate {
                SurrogateChoice::Identity => moved,
                SurrogateChoice::Jacobi => vec![0.0; moved.len()],
                _ => {
                    let l = first + j - 1;
                    let computed = evaluate_all(spec, &layer[l], &s[j - 1]).split_off(1);
                    let matrices = if spec.of_tokens { computed } else { constant(l) };
                    transferred(spec, &matrices, &moved)
                }
            };
            new.push(f[j - 1].iter().zip(moved).map(|(f, m)| f + (1.0 - p.elk) * m).collect());
        }
        s = new;
    }
    s[p.units].clone()
}

fn prepared(spec: &Spec) -> (Graph, Chain) {
    let mut graph = Build::layers(spec, 0..spec.layers);
    clean_up(&mut graph).expect("cleans up");
    let chain = find_chain(&graph).expect("has a chain");
    (graph, chain)
}

fn rewritten(graph: &Graph, chain: &Chain, p: Parallel) -> Result<Graph, TestCaseError> {
    let placed = Plan { segments: vec![Segment::Parallel(p)] }.place(chain.layers.len()).expect("fits");
    let out = parallelize(graph, chain, &placed);
    let mut graph =
        out.map_err(|e| TestCaseError::fail(format!("{e}: {:?}", std::error::Error::source(&e))))?.graph;
    clean_up(&mut graph).expect("cleans up");
    Ok(graph)
}

fn close(what: &str, expected: &[f64], actual: &[f64]) -> Result<(), TestCaseError> {
    let scale = expected.iter().fold(1f64, |m, x| m.max(x.abs()));
    let worst = expected.iter().zip(actual).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    prop_assert!(expected.len() == actual.len() && worst <= 1e-6 * scale, "{what}: off by {worst}");
    Ok(())
}

#[test]
fn streams_are_found_with_their_mixing() {
    cases(16, &specs(), |spec| {
        let (graph, chain) = prepared(&spec);
        prop_assert_eq!(chain.layers.len(), spec.layers);
        prop_assert_eq!(chain.kind, Kind::HyperConnection);
        prop_assert_eq!((chain.streams.count, chain.streams.axis), (spec.streams, spec.stream_axis()));
        prop_assert_eq!(chain.classes.len(), 1);
        let n = spec.streams;
        for (l, layer) in chain.layers.iter().enumerate() {
            let m = match (layer.transfer(&graph), spec.of_tokens) {
                (Transfer::Mixing(m), false) => m,
                (Transfer::TokenMixing, true) => continue,
                (other, _) => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            let unit = |from: usize| (0..n).map(|i| f64::from(u8::from(i == from))).collect::<Vec<_>>();
            let one = Spec { form: Form::Product, batch: 1, seq: 1, width: 1, ..spec.clone() };
            let matrices = ["attention", "mlp"].map(|what| spec.residual(&format!("{l}.{what}")));
            for from in 0..n {
                let column: Vec<f64> = (0..n).map(|to| m.data()[to * n + from]).collect();
                close("transfer", &transferred(&one, &matrices, &unit(from)), &column)?;
            }
        }
        Ok(())
    });
}

#[test]
fn plans_agree_with_the_recurrence() {
    let options = (1usize..=5, 1usize..=3, any::<bool>(), 0u8..4, prop_oneof![Just(0.0), Just(0.25)]);
    cases(48, &(specs(), options), |(spec, (units, iterations, batch, surrogate, elk))| {
        let (graph, chain) = prepared(&spec);
        let mut p = Parallel::new(units.min(spec.layers), 1);
        p.iterations = iterations.min(p.units);
        p.init = if batch { Init::BatchForward } else { Init::H0 };
        p.elk = elk;
        p.surrogate = match surrogate {
            0 => SurrogateChoice::Identity,
            1 => SurrogateChoice::Jacobi,
            2 => SurrogateChoice::Transfer,
            _ => SurrogateChoice::Auto,
        };
        let x = draw(spec.seed, "x", spec.state_shape().iter().product());
        let expected = reference(&spec, &p, spec.layers - p.units, &x);
        close(&p.to_string(), &expected, &evaluate(&spec, &rewritten(&graph, &chain, p)?, &x))?;
        // As many iterations as units give the sequential model.
        p.iterations = p.units;
        let sequential = evaluate(&spec, &graph, &x);
        close("exact", &sequential, &evaluate(&spec, &rewritten(&graph, &chain, p)?, &x))
    });
}
