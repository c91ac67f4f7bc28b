//! Small graphs on a device, against the plain evaluator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use snlp_passes::ir::{Binary, DType, Dim, Graph, Op, ScatterReduction, Tensor, Type, Unary, ValueId};
use snlp_runtime::schedule::{Options, WeightDtype};
use snlp_runtime::{AdapterChoice, Gpu, RuntimeError, Session};

fn input(name: &str, tensor: Tensor) -> (String, Tensor) {
    (name.into(), tensor)
}

#[track_caller]
fn close(actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((actual.dtype(), actual.shape()), (expected.dtype(), expected.shape()));
    for (i, (a, e)) in actual.to_f64().iter().zip(expected.to_f64()).enumerate() {
        let fits = (a - e).abs() <= tolerance * (1.0 + e.abs()) || (a.is_nan() && e.is_nan()) || *a == e;
        assert!(fits, "element {i} is {a}, not {e}");
    }
}

/// Runs a graph with and without fusion, on the kernels for software and for hardware, and compares with the evaluator.
#[track_caller]
fn agrees(g: &Graph, inputs: &[(String, Tensor)], tolerance: f64) {
    let (Some(gpu), Some(hardware)) = (gpu(), gpu_as_hardware()) else { return };
    let expected = oracle(g, inputs);
    for (gpu, fuse) in [(&gpu, true), (&gpu, false), (&hardware, true)] {
        let session = Session::new(gpu, g.clone(), Options { fuse, ..Options::default() }).unwrap();
        for _ in 0..2 {
            let actual = session.run(inputs).unwrap();
            assert_eq!(actual.len(), expected.len());
            for ((name, a), (output, e)) in actual.iter().zip(g.outputs.iter().zip(&expected)) {
                assert_eq!(*name, output.name);
                close(a, e, tolerance);
            }
        }
    }
}

#[test]
fn mlp_of_any_size() {
    let g = mlp(Dim::symbol("batch"), Dim::symbol("time"), 20);
    for (b, t) in [(1, 1), (2, 5), (1, 9)] {
        agrees(&g, &[input("x", noise(9, &[b, t, 20]))], 2e-4);
    }
}

#[test]
fn attention_block() {
    let g = attention(2, 5, 4, 8);
    let mask = Tensor::from_vec(vec![2, 5], vec![1i64, 1, 1, 1, 1, 1, 1, 1, 0, 0]).unwrap();
    agrees(&g, &[input("x", noise(7, &[2, 5, 32])), input("mask", mask)], 2e-4);
}

#[test]
fn quantised_weights() {
    let ids = Tensor::from_vec(vec![2, 3], vec![0i64, 39, 7, 7, -1, 20]).unwrap();
    agrees(&quantised(), &[input("ids", ids), input("x", noise(3, &[2, 3, 24]))], 2e-4);
}

#[test]
fn dynamically_quantised_products() {
    for (units, rows) in [(None, 1), (None, 5), (None, 1000), (Some(3), 1), (Some(3), 7)] {
        let lead: Vec<usize> = units.into_iter().collect();
        let of = |seed, columns| noise(seed, &[&lead[..], &[rows, columns]].concat());
        let inputs = [input("x", of(3, 24)), input("residual", of(4, 20))];
        let (g, on_the_way) = projections(units, rows);
        agrees(&g, &inputs, 2e-4);
        if rows < 6 {
            for v in on_the_way {
                let mut g = g.clone();
                g.add_output("besides", v);
                agrees(&g, &inputs, 2e-4);
            }
        }
    }
}

#[test]
fn batched_units() {
    let w = layers(3, 12);
    for sum in [true, false] {
        agrees(&units(&w, 2, 5, sum), &[input("x", noise(3, &[2, 5, 12]))], 2e-4);
    }
}

#[test]
fn fused_layers() {
    agrees(&fused_units(3, 12, 2, 5), &[input("x", noise(3, &[2, 5, 12]))], 2e-4);
}

#[test]
fn sessions_share_one_copy_of_the_weights() {
    // On a device of its own: other tests place weights at the same time.
    let choice = AdapterChoice::any();
    let Some(gpu) = gpu().and_then(|_| Gpu::open(&choice).ok()) else { return };
    let w = layers(5, 12);
    let graphs = vec![sequential(&w, 1, 3), units(&w[1..], 1, 3, true), units(&w[..3], 1, 3, false)];
    let before = gpu.weights();
    let sessions = Session::group(&gpu, graphs.clone(), &Options::default()).unwrap();
    let x = [input("x", noise(3, &[1, 3, 12]))];
    for (session, g) in sessions.iter().zip(&graphs) {
        close(&session.run(&x).unwrap()[0].1, &oracle(g, &x)[0], 2e-4);
    }
    let after = gpu.weights();
    let one = (12u64 * 12 * 4).next_multiple_of(256);
    assert_eq!(after.resident - before.resident, 5 * one);
    assert_eq!(after.repeated, before.repeated);
}

#[test]
fn indices_are_checked() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new("embed");
    let ids = g.add_input("ids", Type::new(DType::I64, vec![Dim::symbol("t")]));
    let table = g.constant(noise(1, &[7, 200]));
    let y = g.add_named("wte/Gather", Op::Gather { axis: 0 }, &[table, ids]).unwrap();
    g.add_output("y", y);
    agrees(&g, &[input("ids", Tensor::ints(&[0, 6, -1, 3]))], 0.0);
    let session = Session::new(&gpu, g, Options::default()).unwrap();
    let error = session.run(&[input("ids", Tensor::ints(&[0, 7]))]).unwrap_err();
    assert!(matches!(error, RuntimeError::Index { value: 7, size: 7, .. }), "{error}");
    assert!(error.to_string().contains("wte/Gather"), "{error}");
    // An index outside its own axis is no other row's, although the flattened table has one there.
    let mut g = Graph::new("rows");
    let at = g.add_input("at", Type::new(DType::I64, vec![Dim::symbol("n"), 2i64.into()]));
    let table = g.constant(noise(1, &[2, 3, 40]));
    let y = g.add_named("pick", Op::GatherNd { batch_dims: 0 }, &[table, at]).unwrap();
    g.add_output("y", y);
    let pairs = |at: [i64; 4]| input("at", Tensor::from_vec(vec![2, 2], at.to_vec()).unwrap());
    agrees(&g, &[pairs([0, 2, -1, -3])], 0.0);
    let session = Session::new(&gpu, g, Options::default()).unwrap();
    let error = session.run(&[pairs([0, 3, 1, 0])]).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("pick") && said.contains("outside axis 0"), "{said}");
}

#[test]
fn inputs_are_checked() {
    let Some(gpu) = gpu() else { return };
    let session = Session::new(&gpu, attention(2, 5, 4, 8), Options::default()).unwrap();
    let x = noise(7, &[2, 5, 32]);
    let error = session.run(&[input("x", x.clone()), input("masks", x.clone())]).unwrap_err();
    assert_eq!(error.to_string(), "inputs do not match the model: missing mask unknown masks");
    let error = session.run(&[input("x", x.clone()), input("mask", x.clone())]).unwrap_err();
    assert!(error.to_string().contains("'mask'") && error.to_string().contains("i64"), "{error}");
    let mask = Tensor::from_vec(vec![2, 4], vec![1i64; 8]).unwrap();
    let error = session.run(&[input("x", x), input("mask", mask)]).unwrap_err();
    assert!(error.to_string().contains("mask"), "{error}");
}

fn graph_of(f: impl FnOnce(&mut Graph, ValueId) -> ValueId, shape: &[usize]) -> Graph {
    let mut g = Graph::new("one");
    let x = float_input(&mut g, "x", known(shape));
    let y = f(&mut g, x);
    g.add_output("y", y);
    g
}

#[test]
fn views_and_copies() {
    let x = [input("x", noise(5, &[2, 6, 4]))];
    let cases: Vec<Graph> = vec![
        graph_of(|g, x| add(g, Op::Transpose { perm: vec![2, 0, 1] }, &[x]), &[2, 6, 4]),
        graph_of(
            |g, x| {
                let t = add(g, Op::Transpose { perm: vec![0, 2, 1] }, &[x]);
                let shape = g.ints(&[8, 6]);
                let r = add(g, Op::Reshape { allow_zero: false }, &[t, shape]);
                let shape = g.ints(&[48]);
                add(g, Op::Reshape { allow_zero: false }, &[r, shape])
            },
            &[2, 6, 4],
        ),
        graph_of(
            |g, x| {
                let (s, e) = (g.ints(&[1, -1]), g.ints(&[i64::MAX, i64::MIN]));
                let y = add(g, Op::Slice { axes: vec![1, 2], steps: vec![2, -1] }, &[x, s, e]);
                let z = add(g, Op::Unary(Unary::Exp), &[y]);
                add(g, Op::Concat { axis: 2 }, &[y, z])
            },
            &[2, 6, 4],
        ),
        graph_of(|g, x| add(g, Op::Trilu { upper: false }, &[x]), &[2, 6, 4]),
        graph_of(
            |g, x| {
                let k = g.scalar(1i64);
                add(g, Op::Trilu { upper: true }, &[x, k])
            },
            &[2, 6, 4],
        ),
        graph_of(
            |g, x| {
                let i = g.ints(&[3, 1]);
                let y = add(g, Op::Gather { axis: 1 }, &[x, i]);
                let shape = g.ints(&[3, 2, 2, 4]);
                let y = add(g, Op::Expand, &[y, shape]);
                let one = g.scalar(2i64);
                add(g, Op::Gather { axis: 0 }, &[y, one])
            },
            &[2, 6, 4],
        ),
    ];
    for g in &cases {
        agrees(g, &x, 1e-5);
    }
}

/// A scatter changes a copy of its data, or the data itself where nothing else reads it: in either case after
/// what made them, however early its other operands are known.
#[test]
fn scatters_come_after_their_data() {
    let at = |g: &mut Graph| {
        let at = Tensor::from_vec(vec![2, 2], vec![4i64, 1, 0, 3]).unwrap();
        g.constant(at)
    };
    for shared in [false, true] {
        let mut g = Graph::new("scatter");
        let x = g.add_input("x", Type::new(DType::F32, vec![2usize.into(), 3usize.into()]));
        let y = g.add_input("y", Type::new(DType::F32, vec![2usize.into(), 2usize.into()]));
        let longer = g.add(Op::Concat { axis: 1 }, &[x, y]).unwrap();
        let (zero, at) = (g.scalar(0f32), at(&mut g));
        let positive = g.add(Op::Binary(Binary::Greater), &[longer, zero]).unwrap();
        let data = g.add(Op::Where, &[positive, longer, zero]).unwrap();
        let op = Op::ScatterElements { axis: 1, reduction: ScatterReduction::None };
        let z = g.add(op, &[data, at, y]).unwrap();
        g.add_output("z", z);
        if shared {
            g.add_output("data", data);
        }
        agrees(&g, &[input("x", noise(3, &[2, 3])), input("y", noise(4, &[2, 2]))], 0.0);
    }
}

#[test]
fn gemm_in_all_forms() {
    for (alpha, beta, trans_a, trans_b) in
        [(1.0, 1.0, false, true), (0.5, 2.0, true, false), (2.0, 0.0, true, true)]
    {
        let shape = if trans_a { [3, 5] } else { [5, 3] };
        let g = graph_of(
            |g, x| {
                let w = g.constant(noise(2, if trans_b { &[7, 3] } else { &[3, 7] }));
                let c = g.constant(noise(3, &[7]));
                let y = add(g, Op::Gemm { alpha, beta, trans_a, trans_b }, &[x, w, c]);
                let to = g.ints(&[1, 5, 7]);
                let y = add(g, Op::Reshape { allow_zero: false }, &[y, to]);
                let r = g.constant(noise(4, &[1, 5, 7]));
                binary(g, Binary::Add, r, y)
            },
            &shape,
        );
        agrees(&g, &[input("x", noise(1, &shape))], 1e-4);
    }
}

#[test]
fn half_weights_stay_close() {
    let Some(gpu) = gpu() else { return };
    let g = mlp(n(1), n(3), 16);
    let x = [input("x", noise(9, &[1, 3, 16]))];
    let options = Options { weights: WeightDtype::F16, ..Options::default() };
    let session = Session::new(&gpu, g.clone(), options).unwrap();
    close(&session.run(&x).unwrap()[0].1, &oracle(&g, &x)[0], 2e-2);
}

#[test]
fn integers_come_back_as_they_were() {
    let mut g = Graph::new("argmax");
    let x = float_input(&mut g, "x", known(&[3, 5]));
    let best = add(&mut g, Op::ArgMax { axis: 1, keepdims: false, last: false }, &[x]);
    let zero = g.scalar(0f32);
    let positive = binary(&mut g, Binary::Greater, x, zero);
    let half = add(&mut g, Op::Cast { to: DType::F16 }, &[x]);
    let echo = g.add_input("n", Type::new(DType::I64, known(&[2])));
    for (name, v) in [("best", best), ("positive", positive), ("half", half), ("echo", echo), ("x again", x)]
    {
        g.add_output(name, v);
    }
    agrees(&g, &[input("x", noise(1, &[3, 5])), input("n", Tensor::ints(&[1 << 40, -3]))], 1e-3);
}

/// Devices allow 65,535 workgroups along an axis at least, and most of them no more.
#[test]
fn grids_beyond_an_axis_are_folded() {
    let Some(gpu) = gpu() else { return };
    let shape = [1 << 16, 300];
    let g = graph_of(|g, x| add(g, Op::Unary(Unary::Neg), &[x]), &[1, 300]);
    let many = graph_of(
        |g, x| {
            let all = g.ints(&shape);
            let x = add(g, Op::Expand, &[x, all]);
            add(g, Op::Unary(Unary::Neg), &[x])
        },
        &[1, 300],
    );
    let plan = snlp_runtime::schedule::plan(
        snlp_passes::ir::validate(&many).unwrap(),
        &snlp_runtime::kernels::Limits { max_grid: 65_535, ..gpu.limits().clone() },
        &Options::default(),
    );
    let grids: Vec<_> = plan.unwrap().steps.iter().map(|s| s.launch.grid).collect();
    assert!(grids.iter().any(|[x, y, z]| x * y * z > 65_535 && *x <= 65_535), "{grids:?}");
    let x = [input("x", noise(1, &[1, 300]))];
    let row = Session::new(&gpu, g, Options::default()).unwrap().run(&x).unwrap();
    let rows = Session::new(&gpu, many, Options::default()).unwrap().run(&x).unwrap();
    assert_eq!(rows[0].1.to_f32(), row[0].1.to_f32().repeat(1 << 16));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(gpu) = gpu() else { return };
    let g = graph_of(
        |g, x| {
            let shape = g.ints(&[1 << 15, 1 << 15]);
            let y = add(g, Op::Expand, &[x, shape]);
            add(g, Op::Unary(Unary::Exp), &[y])
        },
        &[1, 1],
    );
    let session = Session::new(&gpu, g, Options::default()).unwrap();
    let error = session.run(&[input("x", noise(1, &[1, 1]))]).unwrap_err();
    assert!(matches!(error, RuntimeError::Schedule(_) | RuntimeError::OutOfMemory { .. }), "{error}");
}

#[test]
fn a_lost_device_is_an_error() {
    if gpu().is_none() {
        return;
    }
    let own = Gpu::open(&AdapterChoice::any()).unwrap();
    let session = Session::new(&own, mlp(n(1), n(3), 8), Options::default()).unwrap();
    let x = [input("x", noise(9, &[1, 3, 8]))];
    session.run(&x).unwrap();
    own.destroy();
    let error = session.run(&x).unwrap_err();
    assert!(matches!(error, RuntimeError::DeviceLost(_) | RuntimeError::Gpu { .. }), "{error:?}");
}

#[test]
fn threads_share_a_device() {
    let Some(gpu) = gpu() else { return };
    let x = [input("x", noise(9, &[1, 3, 8]))];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let session = Session::new(&gpu, mlp(n(1), n(3), 8), Options::default()).unwrap();
                for _ in 0..100 {
                    session.run(&x).unwrap();
                }
            });
        }
    });
}

#[test]
fn each_dispatch_can_be_timed() {
    let Some(gpu) = gpu().filter(|g| g.has_timestamps()) else { return };
    let session = Session::new(&gpu, mlp(n(1), n(3), 8), Options::default()).unwrap();
    let x = [input("x", noise(9, &[1, 3, 8]))];
    assert_eq!(session.profile(&x).unwrap().len(), 3);
    assert_eq!(session.time(&x, 3).unwrap().len(), 3);
}

/// Takes tokens in pieces, some of them twice, and compares with the evaluator; then one piece too many.
fn steps_agree(of: &Cached, pieces: &[(usize, i64)]) {
    let Some(gpu) = gpu() else { return };
    let (g, capacity) = (of.graph(), of.capacity.unwrap());
    for fuse in [true, false] {
        let options = Options { states: of.states(), fuse, ..Options::default() };
        let session = Session::new(&gpu, g.clone(), options).unwrap();
        let zeros = |name: &str| {
            let shape = [of.units, of.heads[1], capacity, HEAD];
            input(name, Tensor::from_vec(shape.to_vec(), vec![0f32; shape.iter().product()]).unwrap())
        };
        let mut states = [zeros("k"), zeros("v")];
        for (n, (t, position)) in pieces.iter().enumerate() {
            let x = noise(n as u32 + 50, &[of.units, *t, 12]);
            let feeds = [input("x", x), input("position", Tensor::scalar(*position))];
            let all: Vec<_> = feeds.iter().chain(&states).cloned().collect();
            let expected = oracle(&g, &all);
            close(&session.run(&feeds).unwrap()[0].1, &expected[0], 2e-4);
            for (state, next) in states.iter_mut().zip(&expected[1..]) {
                state.1 = next.clone();
            }
        }
        let beyond = [
            input("x", noise(1, &[of.units, 2, 12])),
            input("position", Tensor::scalar(capacity as i64 - 1)),
        ];
        let error = session.run(&beyond).unwrap_err();
        assert!(matches!(error, RuntimeError::Index { .. }), "{error}");
        assert!(error.to_string().contains("append"), "{error}");
    }
}

#[test]
fn steps_behind_caches() {
    let pieces = [(5, 0), (1, 5), (1, 6), (9, 7), (3, 14), (8, 16), (1, 20)];
    let plain = Cached::new(Dim::symbol("t"));
    steps_agree(&plain, &pieces);
    steps_agree(&Cached { units: 3, norm_first: true, ..plain.clone() }, &pieces);
    steps_agree(&Cached { heads: [3, 3], window: Some(4), ..plain }, &pieces);
}

#[test]
fn heads_without_caches() {
    let of = Cached { capacity: None, units: 2, ..Cached::new(Dim::symbol("t")) };
    for t in [1, 10] {
        let x = noise(t as u32, &[2, t, 12]);
        agrees(&of.graph(), &[input("x", x), input("position", Tensor::scalar(3i64))], 2e-4);
    }
}

/// A state `[2, 5, 12]`, normalised, and products of it that are told by name.
struct Shared {
    g: Graph,
    x: ValueId,
    normed: ValueId,
}

impl Shared {
    fn new() -> Self {
        let mut g = Graph::new("shared");
        let x = float_input(&mut g, "x", known(&[2, 5, 12]));
        let scale = g.constant(noise(7, &[12]));
        let normed = add(&mut g, Op::RmsNorm { axis: 2, epsilon: 1e-5 }, &[x, scale]);
        Shared { g, x, normed }
    }

    fn product(&mut self, seed: u32, columns: usize) -> ValueId {
        let w = self.g.constant(noise(seed, &[12, columns]));
        add(&mut self.g, Op::MatMul, &[self.normed, w])
    }

    /// Half of the columns of a value `[2, 5, 2 n]`.
    fn half(&mut self, v: ValueId, n: i64, upper: bool) -> ValueId {
        let (start, end) = if upper { (n, i64::MAX) } else { (0, n) };
        let bounds = [self.g.ints(&[start]), self.g.ints(&[end])];
        add(&mut self.g, Op::Slice { axes: vec![2], steps: vec![1] }, &[v, bounds[0], bounds[1]])
    }

    #[track_caller]
    fn agrees(&mut self, outputs: &[ValueId]) {
        self.g.outputs.clear();
        for (n, v) in outputs.iter().enumerate() {
            self.g.add_output(&format!("y{n}"), *v);
        }
        agrees(&self.g, &[input("x", noise(1, &[2, 5, 12]))], 1e-5);
    }
}

#[test]
fn products_of_one_operand() {
    let mut s = Shared::new();
    let (q, k, v) = (s.product(1, 12), s.product(2, 4), s.product(3, 4));
    s.agrees(&[q, k, v]);
    // Epilogues: a bias, a function, a factor, the state itself.
    let bias = s.g.constant(noise(9, &[12]));
    let q = binary(&mut s.g, Binary::Add, q, bias);
    let k = add(&mut s.g, Op::Unary(Unary::Silu), &[k]);
    let factor = s.g.scalar(-0.25f32);
    let w = s.product(4, 12);
    let w = binary(&mut s.g, Binary::Mul, w, factor);
    let w = binary(&mut s.g, Binary::Add, w, s.x);
    s.agrees(&[q, k, v, w]);
    // What is made of another of them comes later.
    let chained = s.product(5, 12);
    let chained = binary(&mut s.g, Binary::Add, chained, q);
    s.agrees(&[q, chained, v]);
    // The norm's result is read elsewhere too.
    let also = add(&mut s.g, Op::Unary(Unary::Neg), &[s.normed]);
    s.agrees(&[q, k, also]);
    s.agrees(&[q, k, s.normed]);
}

#[test]
fn gates_and_squares() {
    for u in [Unary::Silu, Unary::GeluTanh, Unary::Sigmoid, Unary::Relu] {
        let mut s = Shared::new();
        let (gate, up) = (s.product(1, 9), s.product(2, 9));
        let open = add(&mut s.g, Op::Unary(u), &[gate]);
        let y = binary(&mut s.g, Binary::Mul, open, up);
        let turned = binary(&mut s.g, Binary::Mul, up, open);
        s.agrees(&[y]);
        s.agrees(&[turned]);
        s.agrees(&[y, turned]);
        s.agrees(&[y, open]);
    }
    let mut s = Shared::new();
    let relu = s.product(1, 9);
    let relu = add(&mut s.g, Op::Unary(Unary::Relu), &[relu]);
    let square = binary(&mut s.g, Binary::Mul, relu, relu);
    s.agrees(&[square]);
    s.agrees(&[square, relu]);
    for power in [2.0f32, 3.0] {
        let power = s.g.scalar(power);
        let y = binary(&mut s.g, Binary::Pow, relu, power);
        s.agrees(&[y]);
    }
}

#[test]
fn halves_of_one_product_as_gate() {
    for (bias, upper) in [(false, false), (true, true), (true, false)] {
        let mut s = Shared::new();
        let mut both = s.product(1, 14);
        if bias {
            let bias = s.g.constant(noise(5, &[14]));
            both = binary(&mut s.g, Binary::Add, both, bias);
        }
        let (gate, up) = (s.half(both, 7, upper), s.half(both, 7, !upper));
        let open = add(&mut s.g, Op::Unary(Unary::Silu), &[gate]);
        let y = binary(&mut s.g, Binary::Mul, open, up);
        s.agrees(&[y]);
        s.agrees(&[y, up]);
        s.agrees(&[y, both]);
    }
    // Twice the same half is no gate of two.
    let mut s = Shared::new();
    let both = s.product(1, 14);
    let (a, b) = (s.half(both, 7, true), s.half(both, 7, true));
    let y = binary(&mut s.g, Binary::Mul, a, b);
    s.agrees(&[y]);
}

#[test]
fn products_that_wait_for_more_than_their_left_operand() {
    // A product with a transposition of another, as in linear attention; and one behind a softmax of its own.
    let mut s = Shared::new();
    let k = s.product(1, 12);
    let turned = add(&mut s.g, Op::Transpose { perm: vec![0, 2, 1] }, &[k]);
    let y = add(&mut s.g, Op::MatMul, &[s.normed, turned]);
    s.agrees(&[k, y]);
    let soft = add(&mut s.g, Op::Softmax { axis: 2 }, &[turned]);
    let z = add(&mut s.g, Op::MatMul, &[s.normed, soft]);
    s.agrees(&[y, z]);
    s.agrees(&[k, y, z]);
    // The first has no columns.
    let none = s.product(5, 0);
    let some = s.product(6, 8);
    s.agrees(&[none, some]);
}

#[test]
fn epilogues_keep_what_is_no_number() {
    for u in [Unary::Relu, Unary::Sigmoid, Unary::Tanh, Unary::Silu, Unary::GeluErf, Unary::GeluTanh] {
        let mut g = Graph::new("nan");
        let x = float_input(&mut g, "x", known(&[1, 3]));
        let w = g.constant(noise(1, &[3, 2]));
        let y = add(&mut g, Op::MatMul, &[x, w]);
        let y = add(&mut g, Op::Unary(u), &[y]);
        let y = if u == Unary::Relu { binary(&mut g, Binary::Mul, y, y) } else { y };
        g.add_output("y", y);
        let x = Tensor::from_vec(vec![1, 3], vec![1.0f32, f32::NAN, 2.0]).unwrap();
        agrees(&g, &[input("x", x)], 1e-6);
    }
}
