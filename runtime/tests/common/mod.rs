//! Small graphs, and inputs for them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{
    Attention, Binary, Blocks, Correction, CorrectionForm, DType, Dim, Graph, Op, Reduce, Rotary,
    RotaryTable, ScatterReduction, Tensor, Type, Unary, ValueId,
};
use snlp_runtime::kernels::Limits;
use snlp_runtime::{AdapterChoice, Gpu};

/// One device for all tests; `None` (said once) without an adapter, unless `REQUIRE_GPU=1`.
pub fn gpu() -> Option<Arc<Gpu>> {
    static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
    open(&GPU, &AdapterChoice::any())
}

/// The same with the kernels for hardware, be it in software.
pub fn gpu_as_hardware() -> Option<Arc<Gpu>> {
    static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
    open(&GPU, &AdapterChoice { hardware_kernels: true, ..AdapterChoice::any() })
}

fn open(found: &OnceLock<Option<Arc<Gpu>>>, choice: &AdapterChoice) -> Option<Arc<Gpu>> {
    found
        .get_or_init(|| match Gpu::open(choice) {
            Ok(gpu) => Some(gpu),
            Err(error) => {
                assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but {error}");
                eprintln!("SKIPPED: tests on a device: {error}");
                None
            }
        })
        .clone()
}

/// Limits like those of a small discrete GPU.
pub fn limits() -> Limits {
    Limits {
        max_storage_binding: 128 << 20,
        max_buffer: 1 << 31,
        max_storage_buffers: 8,
        max_grid: 65535,
        max_invocations: 256,
        max_workgroup_memory: 16384,
        min_offset_alignment: 256,
        software: true,
        subgroup_size: 0,
        cooperative: 0,
    }
}

/// Reproducible numbers in -1..1.
pub fn noise(seed: u32, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let n: usize = shape.iter().product();
    let data: Vec<f32> = (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(shape.to_vec(), data).unwrap()
}

pub fn known(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|d| Dim::from(*d)).collect()
}

pub fn float_input(g: &mut Graph, name: &str, shape: Vec<Dim>) -> ValueId {
    g.add_input(name, Type::new(DType::F32, shape))
}

pub fn add(g: &mut Graph, op: Op, inputs: &[ValueId]) -> ValueId {
    g.add(op, inputs).unwrap()
}

pub fn binary(g: &mut Graph, op: Binary, a: ValueId, b: ValueId) -> ValueId {
    add(g, Op::Binary(op), &[a, b])
}

/// `x + W2 gelu(W1 norm(x) + b1) + b2`.
pub fn mlp(batch: Dim, time: Dim, d: usize) -> Graph {
    let mut g = Graph::new("mlp");
    let x = float_input(&mut g, "x", vec![batch, time, d.into()]);
    let y = mlp_block(&mut g, x, d, 1);
    g.add_output("y", y);
    g
}

pub fn mlp_block(g: &mut Graph, x: ValueId, d: usize, seed: u32) -> ValueId {
    let scale = g.constant(noise(seed, &[d]));
    let shift = g.constant(noise(seed + 1, &[d]));
    let rank = g.ty(x).unwrap().rank();
    let n = add(g, Op::LayerNorm { axis: rank - 1, epsilon: 1e-5 }, &[x, scale, shift]);
    let w1 = g.constant(noise(seed + 2, &[d, 4 * d]));
    let b1 = g.constant(noise(seed + 3, &[4 * d]));
    let w2 = g.constant(noise(seed + 4, &[4 * d, d]));
    let b2 = g.constant(noise(seed + 5, &[d]));
    let h = add(g, Op::MatMul, &[n, w1]);
    let h = binary(g, Binary::Add, b1, h);
    let h = add(g, Op::Unary(Unary::GeluErf), &[h]);
    let h = add(g, Op::MatMul, &[h, w2]);
    let h = binary(g, Binary::Add, h, b2);
    binary(g, Binary::Add, h, x)
}

/// Multi-head attention in the exporters' way: split heads, scores, softmax, merge heads.
pub fn attention(batch: usize, time: usize, heads: usize, head: usize) -> Graph {
    let d = heads * head;
    let mut g = Graph::new("attention");
    let x = float_input(&mut g, "x", known(&[batch, time, d]));
    let mask = g.add_input("mask", Type::new(DType::I64, known(&[batch, time])));
    let scale = g.constant(noise(20, &[d]));
    let n = add(&mut g, Op::RmsNorm { axis: 2, epsilon: 1e-6 }, &[x, scale]);
    let mut parts = vec![];
    for seed in 0..3 {
        let w = g.constant(noise(21 + seed, &[d, d]));
        let p = add(&mut g, Op::MatMul, &[n, w]);
        let shape = g.ints(&[batch as i64, time as i64, heads as i64, head as i64]);
        let p = add(&mut g, Op::Reshape { allow_zero: false }, &[p, shape]);
        let perm = if seed == 1 { vec![0, 2, 3, 1] } else { vec![0, 2, 1, 3] };
        parts.push(add(&mut g, Op::Transpose { perm }, &[p]));
    }
    let s = add(&mut g, Op::MatMul, &[parts[0], parts[1]]);
    let factor = g.scalar(1.0 / (head as f32).sqrt());
    let s = binary(&mut g, Binary::Mul, s, factor);
    let visible = add(&mut g, Op::Cast { to: DType::Bool }, &[mask]);
    let visible = add(&mut g, Op::Unsqueeze { axes: vec![1, 2] }, &[visible]);
    let (zero, low) = (g.scalar(0f32), g.scalar(-1e9f32));
    let bias = add(&mut g, Op::Where, &[visible, zero, low]);
    let s = binary(&mut g, Binary::Add, s, bias);
    let p = add(&mut g, Op::Softmax { axis: 3 }, &[s]);
    let o = add(&mut g, Op::MatMul, &[p, parts[2]]);
    let o = add(&mut g, Op::Transpose { perm: vec![0, 2, 1, 3] }, &[o]);
    let shape = g.ints(&[batch as i64, time as i64, d as i64]);
    let o = add(&mut g, Op::Reshape { allow_zero: false }, &[o, shape]);
    let w = g.constant(noise(30, &[d, d]));
    let o = add(&mut g, Op::MatMul, &[o, w]);
    let y = binary(&mut g, Binary::Add, x, o);
    g.add_output("y", y);
    g
}

/// Stacked weights of `units` layers, and the layers' own.
pub fn layers(units: usize, d: usize) -> Vec<Tensor> {
    (0..units).map(|i| noise(50 + i as u32, &[d, d])).collect()
}

/// `units` layers `x + W x` on one input, corrected; or with `sum`, added up.
pub fn units(weights: &[Tensor], batch: usize, time: usize, sum: bool) -> Graph {
    let d = weights[0].shape()[0];
    let mut g = Graph::new("units");
    let x = float_input(&mut g, "x", known(&[batch, time, d]));
    let w = Tensor::stack(weights).unwrap().reshaped(vec![weights.len(), 1, d, d]).unwrap();
    let w = g.named_constant("stack", w);
    let f = add(&mut g, Op::MatMul, &[x, w]);
    let y = if sum {
        let s = add(&mut g, Op::Reduce { op: Reduce::Sum, axes: vec![0], keepdims: false }, &[f]);
        binary(&mut g, Binary::Add, s, x)
    } else {
        let f = binary(&mut g, Binary::Add, f, x);
        let c = Correction { form: CorrectionForm::Prefix, last_only: true };
        add(&mut g, Op::Correction(c), &[f, x])
    };
    g.add_output("y", y);
    g
}

/// Fused layers: one norm, factors per unit, two products with biases per unit, summed over the units.
pub fn fused_units(units: usize, d: usize, batch: usize, time: usize) -> Graph {
    let mut g = Graph::new("fused");
    let x = float_input(&mut g, "x", known(&[batch, time, d]));
    let n = add(&mut g, Op::LayerNorm { axis: 2, epsilon: 1e-5 }, &[x]);
    let scale = g.constant(noise(1, &[units, 1, 1, d]));
    let shift = g.constant(noise(2, &[units, 1, 1, d]));
    let n = binary(&mut g, Binary::Mul, n, scale);
    let n = binary(&mut g, Binary::Add, shift, n);
    let w1 = g.constant(noise(3, &[units, 1, d, 2 * d]));
    let b1 = g.constant(noise(4, &[units, 1, 1, 2 * d]));
    let h = add(&mut g, Op::MatMul, &[n, w1]);
    let h = binary(&mut g, Binary::Add, h, b1);
    let h = add(&mut g, Op::Unary(Unary::Relu), &[h]);
    let w2 = g.constant(noise(5, &[units, 1, 2 * d, d]));
    let b2 = g.constant(noise(6, &[units, 1, 1, d]));
    let h = add(&mut g, Op::MatMul, &[h, w2]);
    let h = binary(&mut g, Binary::Add, h, b2);
    let h = add(&mut g, Op::Reduce { op: Reduce::Sum, axes: vec![0], keepdims: false }, &[h]);
    let y = binary(&mut g, Binary::Add, x, h);
    g.add_output("y", y);
    g
}

/// Layers `x + W x` one after the other.
pub fn sequential(weights: &[Tensor], batch: usize, time: usize) -> Graph {
    let d = weights[0].shape()[0];
    let mut g = Graph::new("sequential");
    let mut x = float_input(&mut g, "x", known(&[batch, time, d]));
    for w in weights {
        let w = g.constant(w.clone());
        let f = add(&mut g, Op::MatMul, &[x, w]);
        x = binary(&mut g, Binary::Add, f, x);
    }
    g.add_output("y", x);
    g
}

/// The evaluator's answer.
pub fn oracle(g: &Graph, inputs: &[(String, Tensor)]) -> Vec<Tensor> {
    let by_id: BTreeMap<ValueId, Tensor> = g
        .inputs()
        .iter()
        .map(|v| {
            let name = g.value(*v).name.clone().unwrap();
            let (_, t) = inputs.iter().find(|(n, _)| *n == name).expect("an input for every name");
            (*v, t.clone())
        })
        .collect();
    eval_graph(g, &by_id).unwrap()
}

/// A known size.
pub fn n(size: i64) -> Dim {
    size.into()
}

/// Integers that look random.
fn codes(shape: &[usize]) -> Vec<u8> {
    let n: usize = shape.iter().product();
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

/// A table of i8 with a scale per row, the matrices `[2, 24, 16]` of two layers in blocks of 4 bits, and a
/// product of integers that each layer quantises by its own extremes. Inputs: `ids` `[2, 3]`, `x` `[2, 3, 24]`.
pub fn quantised() -> Graph {
    let mut g = Graph::new("quantised");
    let ids = g.add_input("ids", Type::new(DType::I64, known(&[2, 3])));
    let x = float_input(&mut g, "x", known(&[2, 3, 24]));
    let signed = |shape: &[usize]| {
        let data = codes(shape).iter().map(|b| *b as i8).collect();
        Tensor::from_vec::<i8>(shape.to_vec(), data).unwrap()
    };
    let plain = Op::Dequantize { blocks: None };
    let (table, scales) = (g.constant(signed(&[40, 16])), g.constant(noise(1, &[40, 1])));
    let table = add(&mut g, plain, &[table, scales]);
    let rows = add(&mut g, Op::Gather { axis: 0 }, &[table, ids]);
    let rows = add(&mut g, Op::Unsqueeze { axes: vec![0] }, &[rows]);

    let part = || Tensor::from_vec(vec![24, 16], codes(&[24, 16])).unwrap().packed(DType::U4);
    let w = g.constant(Tensor::stack(&[part(), part()]).unwrap());
    let (scales, zero) =
        (g.constant(noise(2, &[2, 24, 2])), g.constant(Tensor::scalar(8u8).packed(DType::U4)));
    let blocks = Some(Blocks { axis: 2, size: 8 });
    let w = add(&mut g, Op::Dequantize { blocks }, &[w, scales, zero]);
    let w = add(&mut g, Op::Transpose { perm: vec![0, 2, 1] }, &[w]);
    let w = add(&mut g, Op::Unsqueeze { axes: vec![1] }, &[w]);
    let y = add(&mut g, Op::MatMul, &[rows, w]);
    let y = add(&mut g, Op::Reduce { op: Reduce::Sum, axes: vec![0], keepdims: false }, &[y]);
    g.add_output("y", y);

    let id = g.add_node(Op::DynamicQuantize { axes: vec![1, 2] }, vec![Some(x)], 3, "").unwrap();
    let [q, scale, zero] = g.node(id).unwrap().outputs[..] else { panic!("three results") };
    let zero = add(&mut g, Op::Unsqueeze { axes: vec![1, 2] }, &[zero]);
    let scale = add(&mut g, Op::Unsqueeze { axes: vec![1, 2] }, &[scale]);
    let b = g.constant(signed(&[2, 24, 5]));
    let z = add(&mut g, Op::MatMulInteger, &[q, b, zero]);
    let z = add(&mut g, Op::Cast { to: DType::F32 }, &[z]);
    let z = binary(&mut g, Binary::Mul, z, scale);
    g.add_output("z", z);
    snlp_passes::rewrite::lower(&mut g, &snlp_passes::rewrite::Dialect::runtime()).unwrap();
    g
}

/// Three projections of one activation as dynamic quantisation leaves them, in units that each have a range of
/// their own where there are any; the first one with a function and a summand. Besides, what the first one computes
/// on its way: sum, floats, scale and scaled floats.
pub fn projections(units: Option<usize>, rows: usize) -> (Graph, Vec<ValueId>) {
    let mut g = Graph::new("projections");
    let of = |sizes: &[usize]| units.iter().chain(sizes).copied().collect::<Vec<_>>();
    let x = float_input(&mut g, "x", known(&of(&[rows, 24])));
    let lead = usize::from(units.is_some());
    let id = g.add_node(Op::DynamicQuantize { axes: vec![lead, lead + 1] }, vec![Some(x)], 3, "").unwrap();
    let [q, scale, zero] = g.node(id).unwrap().outputs[..] else { panic!("three results") };
    let spread = |g: &mut Graph, v, axes: &[usize]| match units {
        Some(_) => add(g, Op::Unsqueeze { axes: axes.to_vec() }, &[v]),
        None => v,
    };
    let (scale, zero) = (spread(&mut g, scale, &[1]), spread(&mut g, zero, &[1, 2]));
    let mut on_the_way = vec![];
    for seed in 0..3 {
        let columns = 20 + 2 * seed as usize;
        let bytes = |shape: &[usize]| Tensor::from_vec(shape.to_vec(), codes(shape)).unwrap();
        let (b, zeros) = (g.constant(bytes(&of(&[24, columns]))), g.constant(bytes(&[columns])));
        let factors = g.constant(noise(seed + 1, &of(&[columns])));
        let factor = binary(&mut g, Binary::Mul, scale, factors);
        let factor = spread(&mut g, factor, &[1]);
        let sum = add(&mut g, Op::MatMulInteger, &[q, b, zero, zeros]);
        let floats = add(&mut g, Op::Cast { to: DType::F32 }, &[sum]);
        let scaled = binary(&mut g, Binary::Mul, floats, factor);
        let bias = g.constant(noise(seed + 4, &[columns]));
        let mut y = binary(&mut g, Binary::Add, scaled, bias);
        if seed == 0 {
            y = add(&mut g, Op::Unary(Unary::GeluTanh), &[y]);
            let residual = float_input(&mut g, "residual", known(&of(&[rows, columns])));
            y = binary(&mut g, Binary::Add, residual, y);
            on_the_way = vec![sum, floats, factor, scaled];
        }
        g.add_output(&format!("y{seed}"), y);
    }
    (g, on_the_way)
}

/// Attention as decoders have it.
#[derive(Clone)]
pub struct Cached {
    /// New tokens.
    pub time: Dim,
    /// Units that share the tokens.
    pub units: usize,
    /// Heads of queries, and of keys and values.
    pub heads: [usize; 2],
    /// RmsNorm with factors per unit before the rotary embedding, or without them behind it.
    pub norm_first: bool,
    pub window: Option<u32>,
    /// Rows of the caches; none where the new tokens are all there is.
    pub capacity: Option<usize>,
}

/// Columns of a head of [`Cached::graph`].
pub const HEAD: usize = 8;

impl Cached {
    pub fn new(time: Dim) -> Self {
        Cached { time, units: 1, heads: [4, 2], norm_first: false, window: None, capacity: Some(24) }
    }

    /// The inputs that stay on the device, and the outputs that take their place.
    pub fn states(&self) -> Vec<(String, String)> {
        let all = ["k", "v"].map(|name| (name.to_string(), format!("{name}.next")));
        all.into_iter().filter(|_| self.capacity.is_some()).collect()
    }

    /// `x [units, time, 12]` and `position` to `y [units, time, ..]`.
    pub fn graph(&self) -> Graph {
        let mut g = Graph::new("cached");
        let (t, u) = (self.time.clone(), Dim::from(self.units));
        let x = float_input(&mut g, "x", vec![u.clone(), t.clone(), n(12)]);
        let position = g.add_input("position", Type::new(DType::I64, vec![]));
        let (zero, one) = (g.scalar(0i64), g.scalar(1i64));
        let count = add(&mut g, Op::Dims { dims: vec![t.clone()], scalar: true }, &[]);
        let steps = add(&mut g, Op::Range, &[zero, count, one]);
        let rows = binary(&mut g, Binary::Add, steps, position);
        let tables = [1, 2].map(|seed| {
            let table = g.constant(noise(seed, &[64, HEAD / 2]));
            add(&mut g, Op::Gather { axis: 0 }, &[table, rows])
        });
        let mut made = vec![];
        for (seed, name, heads) in [(3, "q", self.heads[0]), (4, "k", self.heads[1]), (5, "v", self.heads[1])]
        {
            let w = g.constant(noise(seed, &[self.units, 12, heads * HEAD]));
            let y = add(&mut g, Op::MatMul, &[x, w]);
            let dims = vec![u.clone(), t.clone(), heads.into(), HEAD.into()];
            let shape = add(&mut g, Op::Dims { dims, scalar: false }, &[]);
            let y = add(&mut g, Op::Reshape { allow_zero: true }, &[y, shape]);
            let mut y = add(&mut g, Op::Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
            if name != "v" {
                for rotary in [!self.norm_first, self.norm_first] {
                    let norm = Op::RmsNorm { axis: 3, epsilon: 1e-5 };
                    y = if rotary {
                        let op = Op::Rotary(Rotary { interleaved: false, table: RotaryTable::Half });
                        add(&mut g, op, &[y, tables[0], tables[1]])
                    } else if self.norm_first {
                        let factors = g.constant(noise(seed + 9, &[self.units, 1, 1, HEAD]));
                        let y = add(&mut g, norm, &[y]);
                        binary(&mut g, Binary::Mul, y, factors)
                    } else {
                        add(&mut g, norm, &[y])
                    };
                }
            }
            g.set_name(y, &format!("new {name}"));
            if let Some(capacity) = self.capacity.filter(|_| name != "q") {
                let state = float_input(&mut g, name, known(&[self.units, heads, capacity, HEAD]));
                let column = add(&mut g, Op::Unsqueeze { axes: vec![1] }, &[rows]);
                let dims = vec![u.clone(), heads.into(), t.clone(), HEAD.into()];
                let shape = add(&mut g, Op::Dims { dims, scalar: false }, &[]);
                let indices = add(&mut g, Op::Expand, &[column, shape]);
                let op = Op::ScatterElements { axis: 2, reduction: ScatterReduction::None };
                y = g.add_named(&format!("append {name}"), op, &[state, indices, y]).unwrap();
            }
            made.push(y);
        }
        let op = Op::Attention(Attention {
            scale: 0.4,
            causal: true,
            window: self.window,
            softcap: None,
            safe: false,
        });
        let mut operands: Vec<Option<ValueId>> = made.iter().map(|v| Some(*v)).collect();
        if self.capacity.is_some() {
            operands.extend([None, None, Some(position)]);
        }
        let attention = g.add_node(op, operands, 1, "attend").unwrap();
        let y = g.node(attention).unwrap().outputs[0];
        let y = add(&mut g, Op::Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
        let dims = vec![u, t, (self.heads[0] * HEAD).into()];
        let shape = add(&mut g, Op::Dims { dims, scalar: false }, &[]);
        let y = add(&mut g, Op::Reshape { allow_zero: true }, &[y, shape]);
        g.add_output("y", y);
        for ((_, after), v) in self.states().iter().zip(&made[1..]) {
            g.add_output(after, *v);
        }
        g
    }
}
