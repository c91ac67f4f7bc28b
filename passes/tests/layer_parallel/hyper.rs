//! Hyper-connections: streams mixed by matrices, constant or of each token, against METHOD's recurrence.
//!
//! The reference evaluates the pieces of each layer alone, as graphs of their own, and does the means, the
//! sums and the Newton iterations as loops over vectors; it shares nothing with the rewrite but the evaluator.

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
    /// `[B, T, S, D]`, `(xᵀ Hᵀ)ᵀ`.
    Turned,
    /// `[B, S, T, D]`, `Einsum("ij,bjtd->bitd")`.
    Equation,
    /// `[B, T, S, D]`, a product with a broadcast axis and a sum over it.
    Sum,
    /// `[B·S, T, D]` where branches are added, `[B, S, T, D]` with equations between.
    Merged,
}

impl Form {
    fn streams_follow_tokens(self) -> bool {
        matches!(self, Form::Product | Form::Turned | Form::Sum)
    }
}

const SUB_BLOCKS: [&str; 2] = ["attention", "mlp"];

#[derive(Clone, Debug)]
struct Spec {
    form: Form,
    /// The matrices are computed from the state, for each token.
    of_tokens: bool,
    /// Which of the tokens' axes have one of the matrices that mix for all, if one has: 0 sequences, 1 positions.
    common: Option<usize>,
    /// What the state is scaled by before it is mixed.
    scale: f64,
    /// The state is rounded to f32 between what is computed of it in f64.
    narrow: bool,
    layers: usize,
    streams: usize,
    batch: usize,
    seq: usize,
    width: usize,
    seed: u64,
}

fn specs() -> impl Strategy<Value = Spec> {
    let form = prop_oneof![
        Just(Form::Product),
        Just(Form::Turned),
        Just(Form::Equation),
        Just(Form::Sum),
        Just(Form::Merged)
    ];
    let streams = prop_oneof![Just(2usize), Just(4), Just(8)];
    let sizes = (2usize..=5, streams, 1usize..=3, 1usize..=3, 5usize..=6);
    let common = prop_oneof![2 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(1))];
    let scale = prop_oneof![3 => Just(1.0), 1 => Just(0.75)];
    (form, any::<(bool, bool)>(), (common, scale), sizes, any::<u64>()).prop_map(
        |(form, (of_tokens, narrow), (common, scale), (layers, streams, batch, seq, width), seed)| Spec {
            form,
            of_tokens,
            common: common.filter(|_| of_tokens && form != Form::Turned),
            scale,
            narrow,
            layers,
            streams,
            batch,
            seq,
            width,
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
        match self.form.streams_follow_tokens() {
            true => vec![self.batch, self.seq, self.streams, self.width],
            false => vec![self.batch, self.streams, self.seq, self.width],
        }
    }

    fn state_dims(&self) -> Vec<Dim> {
        let (b, t) = (Dim::symbol("batch"), Dim::symbol("seq"));
        let (s, d) = (Dim::from(self.streams), Dim::from(self.width));
        match self.form.streams_follow_tokens() {
            true => vec![b, t, s, d],
            false => vec![b, s, t, d],
        }
    }

    fn stream_axis(&self) -> usize {
        if self.form.streams_follow_tokens() { 2 } else { 1 }
    }
}

struct Build<'a> {
    spec: &'a Spec,
    graph: Graph,
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

    /// `n` numbers for each token `[B, T, n]`, from its state.
    fn of_token(&mut self, place: &str, x: ValueId, n: usize) -> ValueId {
        let width = self.spec.streams * self.spec.width;
        let (b, t) = (Dim::symbol("batch"), Dim::symbol("seq"));
        let x = match self.spec.form.streams_follow_tokens() {
            true => x,
            false => self.op(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[x]),
        };
        let flat = self.graph.dims(&[b, t, Dim::from(width)]).expect("dims");
        let x = self.op(Op::Reshape { allow_zero: true }, &[x, flat]);
        let x = self.op(Op::RmsNorm { axis: 2, epsilon: 0.01 }, &[x]);
        let w = self.weights(&format!("{place}.phi"), &[width, n], 0.2);
        self.op(Op::MatMul, &[x, w])
    }

    /// The matrix of a connection: a constant, or for each token `[B, T, S, S]` from its state; with size 1 where
    /// tokens have one together.
    fn residual(&mut self, place: &str, x: ValueId) -> ValueId {
        let n = self.spec.streams;
        let base = Tensor::from_vec(vec![n, n], self.spec.residual(place)).expect("fits");
        let base = self.graph.constant(base);
        if !self.spec.of_tokens {
            return base;
        }
        let logits = self.of_token(place, x, n * n);
        let dims = [Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(n), Dim::from(n)];
        let square = self.graph.dims(&dims).expect("dims");
        let logits = self.op(Op::Reshape { allow_zero: true }, &[logits, square]);
        let changed = self.op(Op::Binary(Binary::Add), &[base, logits]);
        let h = self.op(Op::Softmax { axis: 2 }, &[changed]);
        match self.spec.common {
            None => h,
            Some(axis) => self.op(Op::Reduce { op: Reduce::Mean, axes: vec![axis], keepdims: true }, &[h]),
        }
    }

    /// The matrix of every token.
    fn residual_of_all(&mut self, place: &str, x: ValueId) -> ValueId {
        let n = self.spec.streams;
        let h = self.residual(place, x);
        let dims = [Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(n), Dim::from(n)];
        let shape = self.graph.dims(&dims).expect("dims");
        self.op(Op::Expand, &[h, shape])
    }

    /// `pre · x`: the streams weighted and summed.
    fn read(&mut self, place: &str, x: ValueId) -> ValueId {
        let (n, axis) = (self.spec.streams, self.spec.stream_axis());
        let place = format!("{place}.pre");
        if !self.spec.of_tokens {
            let pre = self.weights(&place, &[vec![n], vec![1; 3 - axis]].concat(), 1.0);
            let weighted = self.op(Op::Binary(Binary::Mul), &[pre, x]);
            return self.op(Op::Reduce { op: Reduce::Sum, axes: vec![axis], keepdims: false }, &[weighted]);
        }
        let pre = self.of_token(&place, x, n);
        match self.spec.form.streams_follow_tokens() {
            false => self.op(Op::Einsum { equation: "btj,bjtd->btd".into() }, &[pre, x]),
            true => {
                let row = self.op(Op::Unsqueeze { axes: vec![2] }, &[pre]);
                let sum = self.op(Op::MatMul, &[row, x]);
                self.op(Op::Squeeze { axes: vec![2] }, &[sum])
            }
        }
    }

    /// `post ⊗ y`: what is added to each stream.
    fn written(&mut self, place: &str, x: ValueId, y: ValueId) -> ValueId {
        let (n, axis) = (self.spec.streams, self.spec.stream_axis());
        let place = format!("{place}.post");
        let post = if self.spec.of_tokens {
            let post = self.of_token(&place, x, n);
            if !self.spec.form.streams_follow_tokens() {
                return self.op(Op::Einsum { equation: "bti,btd->bitd".into() }, &[post, y]);
            }
            self.op(Op::Unsqueeze { axes: vec![3] }, &[post])
        } else {
            self.weights(&place, &[vec![n], vec![1; 3 - axis]].concat(), 1.0)
        };
        let y = self.op(Op::Unsqueeze { axes: vec![axis] }, &[y]);
        self.op(Op::Binary(Binary::Mul), &[post, y])
    }

    /// What the sub-block `what` of a layer computes of its reading `[B, T, D]`.
    fn branch(&mut self, l: usize, what: &str, x: ValueId) -> ValueId {
        let d = self.spec.width;
        let x = self.op(Op::RmsNorm { axis: 2, epsilon: 0.01 }, &[x]);
        if what == "mlp" {
            let w = self.weights(&format!("{l}.up"), &[d, 2 * d], 0.5);
            let x = self.op(Op::MatMul, &[x, w]);
            let x = self.op(Op::Unary(Unary::Tanh), &[x]);
            let w = self.weights(&format!("{l}.down"), &[2 * d, d], 0.5);
            return self.op(Op::MatMul, &[x, w]);
        }
        let heads = ["q", "k", "v"].map(|what| {
            let w = self.weights(&format!("{l}.{what}"), &[d, d], 0.5);
            let y = self.op(Op::MatMul, &[x, w]);
            self.op(Op::Unsqueeze { axes: vec![1] }, &[y])
        });
        let attention = Attention { scale: 0.5, causal: true, window: None, softcap: None, safe: false };
        let y = self.op(Op::Attention(attention), &heads);
        self.op(Op::Squeeze { axes: vec![1] }, &[y])
    }

    fn layer(&mut self, l: usize, mut x: ValueId) -> ValueId {
        for what in SUB_BLOCKS {
            let place = format!("{l}.{what}");
            let wide = if self.spec.narrow { self.cast(DType::F64, x) } else { x };
            let h = self.residual(&place, wide);
            let scaled = match self.spec.scale {
                1.0 => wide,
                factor => {
                    let factor = self.graph.scalar(factor);
                    self.op(Op::Binary(Binary::Mul), &[wide, factor])
                }
            };
            let mixed = self.mixed(h, scaled);
            let read = self.read(&place, wide);
            let y = self.branch(l, what, read);
            let written = self.written(&place, wide, y);
            let [mixed, written] =
                [mixed, written].map(|v| if self.spec.narrow { self.cast(DType::F32, v) } else { v });
            x = self.sum(mixed, written);
        }
        x
    }

    fn cast(&mut self, to: DType, x: ValueId) -> ValueId {
        self.op(Op::Cast { to }, &[x])
    }

    /// `h · x` over the streams.
    fn mixed(&mut self, h: ValueId, x: ValueId) -> ValueId {
        let equation = match (self.spec.of_tokens, self.spec.common) {
            (false, _) => "ij,bjtd->bitd",
            (true, None) => "btij,bjtd->bitd",
            (true, Some(0)) => "tij,bjtd->bitd",
            (true, Some(_)) => "bij,bjtd->bitd",
        };
        let h = match (self.spec.common, self.spec.form) {
            (Some(axis), Form::Equation | Form::Merged) => self.op(Op::Squeeze { axes: vec![axis] }, &[h]),
            _ => h,
        };
        match self.spec.form {
            Form::Product => self.op(Op::MatMul, &[h, x]),
            Form::Turned => {
                let rank = if self.spec.of_tokens { 4 } else { 2 };
                let swap = |n: usize| Op::Transpose { perm: (0..n - 2).chain([n - 1, n - 2]).collect() };
                let (h, x) = (self.op(swap(rank), &[h]), self.op(swap(4), &[x]));
                let product = self.op(Op::MatMul, &[x, h]);
                self.op(swap(4), &[product])
            }
            Form::Equation | Form::Merged => self.op(Op::Einsum { equation: equation.into() }, &[h, x]),
            Form::Sum => {
                let columns = if self.spec.of_tokens { 4 } else { 2 };
                let h = self.op(Op::Unsqueeze { axes: vec![columns] }, &[h]);
                let x = self.op(Op::Unsqueeze { axes: vec![2] }, &[x]);
                let product = self.op(Op::Binary(Binary::Mul), &[h, x]);
                self.op(Op::Reduce { op: Reduce::Sum, axes: vec![3], keepdims: false }, &[product])
            }
        }
    }

    /// Two states added.
    fn sum(&mut self, a: ValueId, b: ValueId) -> ValueId {
        if self.spec.form != Form::Merged {
            return self.op(Op::Binary(Binary::Add), &[a, b]);
        }
        let dims = self.spec.state_dims();
        let merged = [&[dims[0].clone() * dims[1].clone()], &dims[2..]].concat();
        let merged = self.graph.dims(&merged).expect("dims");
        let [a, b] = [a, b].map(|v| self.op(Op::Reshape { allow_zero: true }, &[v, merged]));
        let sum = self.op(Op::Binary(Binary::Add), &[a, b]);
        let dims = self.graph.dims(&dims).expect("dims");
        self.op(Op::Reshape { allow_zero: true }, &[sum, dims])
    }

    /// Layers `range` from the input `x`; the last state is the output `y`.
    fn layers(spec: &Spec, range: std::ops::Range<usize>) -> Graph {
        let mut build = Build { spec, graph: Graph::new("hyper") };
        let mut x = build.graph.add_input("x", Type::new(DType::F64, spec.state_dims()));
        if spec.narrow {
            x = build.cast(DType::F32, x);
        }
        for l in range {
            x = build.layer(l, x);
        }
        build.graph.add_output("y", x);
        build.graph
    }

    /// A graph of one input or two that gives what `make` makes of them.
    fn piece(spec: &Spec, dims: &[Vec<Dim>], make: impl FnOnce(&mut Build, &[ValueId]) -> ValueId) -> Graph {
        let mut build = Build { spec, graph: Graph::new("piece") };
        let inputs: Vec<ValueId> = dims
            .iter()
            .enumerate()
            .map(|(i, d)| build.graph.add_input(&format!("in{i}"), Type::new(DType::F64, d.clone())))
            .collect();
        let y = make(&mut build, &inputs);
        build.graph.add_output("y", y);
        build.graph
    }
}

/// Evaluates a graph on tensors of these shapes.
fn evaluate_on(graph: &Graph, inputs: &[(&[usize], &[f64])]) -> Vec<f64> {
    let tensor =
        |(shape, data): &(&[usize], &[f64])| Tensor::from_vec(shape.to_vec(), data.to_vec()).expect("fits");
    let by_id = graph.inputs().iter().copied().zip(inputs.iter().map(tensor)).collect::<BTreeMap<_, _>>();
    eval_graph(graph, &by_id).expect("evaluates").remove(0).to_f64()
}

fn evaluate(spec: &Spec, graph: &Graph, x: &[f64]) -> Vec<f64> {
    evaluate_on(graph, &[(&spec.state_shape(), x)])
}

/// METHOD §2 for layers that see one state: the unit's output and the matrices on its skip path, one per
/// sub-block, of all tokens or `[B, T, S, S]`.
fn unit(spec: &Spec, layers: &[usize], x: &[f64], avg: bool) -> (Vec<f64>, Vec<Vec<f64>>) {
    let state = spec.state_dims();
    let reading = vec![Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(spec.width)];
    let (state_shape, reading_shape) = (spec.state_shape(), [spec.batch, spec.seq, spec.width]);
    let mean = |all: Vec<Vec<f64>>| -> Vec<f64> {
        (0..all[0].len()).map(|i| all.iter().map(|x| x[i]).sum::<f64>() / all.len() as f64).collect()
    };
    let (mut x, mut matrices) = (x.to_vec(), vec![]);
    for what in SUB_BLOCKS {
        let place = |l: &usize| format!("{l}.{what}");
        let of_state = |make: &dyn Fn(&mut Build, &usize, ValueId) -> ValueId| {
            mean(
                layers
                    .iter()
                    .map(|l| {
                        evaluate(
                            spec,
                            &Build::piece(spec, std::slice::from_ref(&state), |b, v| make(b, l, v[0])),
                            &x,
                        )
                    })
                    .collect(),
            )
        };
        let h = match spec.of_tokens {
            true => of_state(&|b, l, x| b.residual_of_all(&place(l), x)),
            false => mean(layers.iter().map(|l| spec.residual(&place(l))).collect()),
        };
        let h: Vec<f64> = h.iter().map(|x| x * spec.scale).collect();
        let read = of_state(&|b, l, x| b.read(&place(l), x));
        let branches = layers.iter().map(|l| {
            let piece = Build::piece(spec, std::slice::from_ref(&reading), |b, v| b.branch(*l, what, v[0]));
            evaluate_on(&piece, &[(&reading_shape, &read)])
        });
        let factor = if avg { 1.0 } else { layers.len() as f64 };
        let sum: Vec<f64> = mean(branches.collect()).iter().map(|y| y * factor).collect();
        let written = mean(
            layers
                .iter()
                .map(|l| {
                    let dims = [state.clone(), reading.clone()];
                    let piece = Build::piece(spec, &dims, |b, v| b.written(&place(l), v[0], v[1]));
                    evaluate_on(&piece, &[(&state_shape, &x), (&reading_shape, &sum)])
                })
                .collect(),
        );
        let mixed = transferred(spec, std::slice::from_ref(&h), &x);
        x = mixed.iter().zip(written).map(|(a, b)| a + b).collect();
        matrices.push(h);
    }
    (x, matrices)
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
                let token = match (h.len() == n * n, spec.form.streams_follow_tokens()) {
                    (true, _) => 0,
                    (_, true) => outer,
                    (_, false) => outer * spec.seq + rest / spec.width,
                };
                let row = &h[(token * n + to) * n..][..n];
                (0..n).map(|from| row[from] * x[(outer * n + from) * inner + rest]).sum()
            })
            .collect();
    }
    x
}

/// METHOD §1 on the layers `first..`, after those before them.
fn reference(spec: &Spec, p: &Parallel, first: usize, x: &[f64]) -> Vec<f64> {
    let h = (0..first).fold(x.to_vec(), |x, l| unit(spec, &[l], &x, false).0);
    segment(spec, p, first, h)
}

/// METHOD §1 on the layers `first..`, which `h` enters.
fn segment(spec: &Spec, p: &Parallel, first: usize, h: Vec<f64>) -> Vec<f64> {
    let unit_layers = |j: usize| -> Vec<usize> { (first + j * p.fused..first + (j + 1) * p.fused).collect() };
    let run = |j: usize, x: &[f64]| unit(spec, &unit_layers(j), x, p.avg);
    let mut s = vec![h.clone()];
    for j in 0..p.units {
        s.push(if p.init == Init::BatchForward { run(j, &h).0 } else { h.clone() });
    }
    for _ in 0..p.iterations {
        let f: Vec<_> = (0..p.units).map(|j| run(j, &s[j])).collect();
        let mut new = vec![h.clone()];
        for j in 1..=p.units {
            let (value, matrices) = &f[j - 1];
            let moved: Vec<f64> = new[j - 1].iter().zip(&s[j - 1]).map(|(a, b)| a - b).collect();
            let moved = match p.surrogate {
                SurrogateChoice::Identity => moved,
                SurrogateChoice::Jacobi => vec![0.0; moved.len()],
                _ => transferred(spec, matrices, &moved),
            };
            new.push(value.iter().zip(moved).map(|(f, m)| f + (1.0 - p.elk) * m).collect());
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

fn rewritten(graph: &Graph, chain: &Chain, segments: &[Parallel]) -> Result<Graph, TestCaseError> {
    let segments = segments.iter().copied().map(Segment::Parallel).collect();
    let placed = Plan { segments }.place(chain.layers.len()).expect("fits");
    let out = parallelize(graph, chain, &placed);
    let mut graph =
        out.map_err(|e| TestCaseError::fail(format!("{e}: {:?}", std::error::Error::source(&e))))?.graph;
    clean_up(&mut graph).expect("cleans up");
    Ok(graph)
}

/// Whether numbers agree, as far as states are precise.
fn agree(spec: &Spec, what: &str, expected: &[f64], actual: &[f64]) -> Result<(), TestCaseError> {
    within(if spec.narrow { 1e-4 } else { 1e-6 }, what, expected, actual)
}

fn within(tolerance: f64, what: &str, expected: &[f64], actual: &[f64]) -> Result<(), TestCaseError> {
    let scale = expected.iter().fold(1f64, |m, x| m.max(x.abs()));
    let worst = expected.iter().zip(actual).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    prop_assert!(expected.len() == actual.len() && worst <= tolerance * scale, "{what}: off by {worst}");
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
            let matrices = ["attention", "mlp"].map(|what| {
                let h = spec.residual(&format!("{l}.{what}"));
                h.into_iter().map(|x| x * spec.scale).collect()
            });
            for from in 0..n {
                let column: Vec<f64> = (0..n).map(|to| m.data()[to * n + from]).collect();
                within(1e-6, "transfer", &transferred(&one, &matrices, &unit(from)), &column)?;
            }
        }
        Ok(())
    });
}

#[test]
fn plans_agree_with_the_recurrence() {
    let options = (
        1usize..=5,
        1usize..=3,
        1usize..=3,
        any::<(bool, bool)>(),
        0u8..4,
        prop_oneof![Just(0.0), Just(0.25)],
    );
    cases(64, &(specs(), options), |(spec, (units, fused, iterations, (batch, avg), surrogate, elk))| {
        let (graph, chain) = prepared(&spec);
        let fused = fused.min(spec.layers);
        let mut p = Parallel::new(units.min(spec.layers / fused), fused);
        p.avg = avg;
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
        let expected = reference(&spec, &p, spec.layers - p.layers(), &x);
        agree(&spec, &p.to_string(), &expected, &evaluate(&spec, &rewritten(&graph, &chain, &[p])?, &x))?;
        // As many iterations as units give the sequential model.
        let mut p = Parallel { fused: 1, units: spec.layers, ..p };
        p.iterations = p.units;
        let sequential = evaluate(&spec, &graph, &x);
        agree(&spec, "exact", &sequential, &evaluate(&spec, &rewritten(&graph, &chain, &[p])?, &x))
    });
}

#[test]
fn segments_follow_one_another() {
    let shapes = (1usize..=2, 1usize..=2, 1usize..=2);
    cases(24, &(specs(), shapes.clone(), shapes), |(spec, first, second)| {
        let [first, second] = [first, second].map(|(units, fused, iterations)| {
            let mut p = Parallel::new(units, fused);
            p.iterations = iterations.min(units);
            p
        });
        let layers = first.layers() + second.layers();
        let spec = Spec { layers, ..spec };
        let (graph, chain) = prepared(&spec);
        let x = draw(spec.seed, "x", spec.state_shape().iter().product());
        let expected = segment(&spec, &second, first.layers(), reference(&spec, &first, 0, &x));
        let graph = rewritten(&graph, &chain, &[first, second])?;
        agree(&spec, &format!("{first} {second}"), &expected, &evaluate(&spec, &graph, &x))
    });
}
