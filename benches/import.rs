//! How the time to read, clean up and analyse a model grows with its nodes.
//!
//! Generated decoders in the form that TorchScript exports them (decomposed norms, activations and attention,
//! shape arithmetic in every layer), and real exports where the collection is there (`../shared` or
//! `$SNLP_SHARED`). `cargo bench --bench import`; `BENCHMARKS.md` has the figures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use snlp::onnx::{Model, ModelInfo, WriteOptions};
use snlp::passes::analysis::find_chain;
use snlp::passes::ir::{Binary, DType, Dim, Graph, Op, Reduce, Tensor, Type, Unary, ValueId};
use snlp::passes::rewrite::clean_up;
use snlp::source::Source;

const WIDTH: usize = 16;
const HEADS: usize = 2;

/// A decoder being built.
struct Decoder {
    graph: Graph,
    seed: u32,
}

impl Decoder {
    fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add(op, inputs).unwrap()
    }

    fn bin(&mut self, op: Binary, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Binary(op), &[a, b])
    }

    fn num(&mut self, value: f32) -> ValueId {
        self.graph.scalar(value)
    }

    /// Weights that no other constant equals.
    fn weight(&mut self, shape: &[usize]) -> ValueId {
        let mut next = || {
            self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let data = (0..shape.iter().product::<usize>()).map(|_| next()).collect();
        self.graph.constant(Tensor::from_vec(shape.to_vec(), data).unwrap())
    }

    fn norm(&mut self, x: ValueId) -> ValueId {
        let mean =
            |d: &mut Self, v| d.op(Op::Reduce { op: Reduce::Mean, axes: vec![2], keepdims: true }, &[v]);
        let average = mean(self, x);
        let centred = self.bin(Binary::Sub, x, average);
        let two = self.num(2.0);
        let square = self.bin(Binary::Pow, centred, two);
        let variance = mean(self, square);
        let epsilon = self.num(1e-5);
        let shifted = self.bin(Binary::Add, variance, epsilon);
        let deviation = self.op(Op::Unary(Unary::Sqrt), &[shifted]);
        let y = self.bin(Binary::Div, centred, deviation);
        let (scale, bias) = (self.weight(&[WIDTH]), self.weight(&[WIDTH]));
        let y = self.bin(Binary::Mul, y, scale);
        self.bin(Binary::Add, y, bias)
    }

    fn linear(&mut self, x: ValueId, from: usize, to: usize) -> ValueId {
        let (w, b) = (self.weight(&[from, to]), self.weight(&[to]));
        let y = self.op(Op::MatMul, &[x, w]);
        self.bin(Binary::Add, y, b)
    }

    /// One size of `x` as a vector, as exporters compute it.
    fn size(&mut self, x: ValueId, axis: i64) -> ValueId {
        let shape = self.op(Op::Shape { start: 0, end: 3 }, &[x]);
        let axis = self.graph.scalar(axis);
        let size = self.op(Op::Gather { axis: 0 }, &[shape, axis]);
        self.op(Op::Unsqueeze { axes: vec![0] }, &[size])
    }

    fn heads(&mut self, x: ValueId) -> ValueId {
        let (batch, length) = (self.size(x, 0), self.size(x, 1));
        let (heads, width) = (self.graph.ints(&[HEADS as i64]), self.graph.ints(&[(WIDTH / HEADS) as i64]));
        let shape = self.op(Op::Concat { axis: 0 }, &[batch, length, heads, width]);
        let split = self.op(Op::Reshape { allow_zero: false }, &[x, shape]);
        self.op(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[split])
    }

    fn layer(&mut self, x: ValueId, mask: ValueId) -> ValueId {
        let h = self.norm(x);
        let [q, k, v] = [(); 3].map(|()| {
            let projected = self.linear(h, WIDTH, WIDTH);
            self.heads(projected)
        });
        let k = self.op(Op::Transpose { perm: vec![0, 1, 3, 2] }, &[k]);
        let scores = self.op(Op::MatMul, &[q, k]);
        let scale = self.num(((WIDTH / HEADS) as f32).sqrt());
        let scores = self.bin(Binary::Div, scores, scale);
        let scores = self.bin(Binary::Add, scores, mask);
        let weights = self.op(Op::Softmax { axis: 3 }, &[scores]);
        let mixed = self.op(Op::MatMul, &[weights, v]);
        let mixed = self.op(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[mixed]);
        let (batch, length) = (self.size(h, 0), self.size(h, 1));
        let width = self.graph.ints(&[WIDTH as i64]);
        let shape = self.op(Op::Concat { axis: 0 }, &[batch, length, width]);
        let joined = self.op(Op::Reshape { allow_zero: false }, &[mixed, shape]);
        let out = self.linear(joined, WIDTH, WIDTH);
        let x = self.bin(Binary::Add, x, out);
        let h = self.norm(x);
        let h = self.linear(h, WIDTH, 4 * WIDTH);
        let (root, one, half) = (self.num(std::f32::consts::SQRT_2), self.num(1.0), self.num(0.5));
        let inner = self.bin(Binary::Div, h, root);
        let inner = self.op(Op::Unary(Unary::Erf), &[inner]);
        let inner = self.bin(Binary::Add, inner, one);
        let h = self.bin(Binary::Mul, h, inner);
        let h = self.bin(Binary::Mul, h, half);
        let h = self.linear(h, 4 * WIDTH, WIDTH);
        self.bin(Binary::Add, x, h)
    }
}

/// A model of at least so many nodes, as the bytes of its file, and its number of nodes.
fn decoder(nodes: usize) -> (Bytes, usize) {
    let mut d = Decoder { graph: Graph::new("decoder"), seed: 1 };
    let ids = Type::new(DType::I64, vec![Dim::symbol("batch"), Dim::symbol("length")]);
    let ids = d.graph.add_input("ids", ids);
    let mask = vec![Dim::ONE, Dim::ONE, Dim::symbol("length"), Dim::symbol("length")];
    let mask = d.graph.add_input("mask", Type::new(DType::F32, mask));
    let table = d.weight(&[64, WIDTH]);
    let mut x = d.op(Op::Gather { axis: 0 }, &[table, ids]);
    while d.graph.node_count() < nodes {
        x = d.layer(x, mask);
    }
    let x = d.norm(x);
    let head = d.weight(&[WIDTH, 64]);
    let logits = d.op(Op::MatMul, &[x, head]);
    d.graph.add_output("logits", logits);
    let count = d.graph.node_count();
    let model = Model { graph: d.graph, info: ModelInfo::standard(17) };
    (model.encode(&WriteOptions::default()).unwrap(), count)
}

fn read(bytes: &Bytes) -> Graph {
    Model::decode(bytes.clone(), Path::new(".")).unwrap().graph
}

fn generated(c: &mut Criterion) {
    for (name, work) in [
        ("import", (|bytes, _| drop(black_box(read(bytes)))) as fn(&Bytes, &Graph)),
        ("clean-up", |_, graph| {
            let mut graph = graph.clone();
            clean_up(&mut graph).unwrap();
            black_box(graph);
        }),
    ] {
        let mut group = c.benchmark_group(name);
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        for nodes in [500, 2_000, 8_000, 20_000] {
            let (bytes, count) = decoder(nodes);
            let graph = read(&bytes);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::from_parameter(count), |b| b.iter(|| work(&bytes, &graph)));
        }
        group.finish();
    }
    let mut group = c.benchmark_group("find-chain");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for nodes in [500, 2_000, 8_000, 20_000] {
        let (bytes, count) = decoder(nodes);
        let mut graph = read(&bytes);
        clean_up(&mut graph).unwrap();
        assert!(find_chain(&graph).is_ok(), "the generated decoder has layers");
        group.throughput(Throughput::Elements(count as u64));
        group
            .bench_function(BenchmarkId::from_parameter(count), |b| b.iter(|| find_chain(black_box(&graph))));
    }
    group.finish();
}

/// The largest real exports.
fn exports(c: &mut Criterion) {
    let root = match std::env::var_os("SNLP_SHARED") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    let mut group = c.benchmark_group("read");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for name in ["nano_mhc-ts17", "gemma2-ts17", "gpt2-ts17", "llama-dyn18"] {
        let path = root.join("models").join(name).join("model.onnx");
        if !path.is_file() {
            eprintln!("SKIPPED: {} does not exist", path.display());
            continue;
        }
        let count = Model::read(&path).unwrap().graph.node_count();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new(name, count), |b| {
            b.iter(|| Source::read(black_box(&path)).unwrap())
        });
    }
    group.finish();
}

criterion_group!(benches, generated, exports);
criterion_main!(benches);
