//! Plans as data: dispatch counts, recycling, hazards. No GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};

use common::*;
use snlp_passes::ir::{
    Attention, Binary, DType, Dim, Graph, Op, Opaque, Reduce, Tensor, Type, Unary, ValueId, validate,
};
use snlp_runtime::kernels::{Limits, Scalar};
use snlp_runtime::schedule::{HostValue, Options, OutputSource, Place, Plan, ScheduleError, plan};

fn planned(g: &Graph) -> Plan {
    let p = plan(validate(g).unwrap(), &limits(), &Options::default()).unwrap();
    check(&p);
    p
}

/// What every plan must satisfy.
fn check(p: &Plan) {
    let buffer_of = |slot: usize| match p.slots[slot].place {
        Place::Activation(b) => Some(b),
        _ => None,
    };
    // Which slot's data each buffer holds: a buffer may change hands between levels only, and a reader
    // must find its own data.
    let mut holds: HashMap<usize, usize> = HashMap::new();
    let mut end = 0;
    for level in &p.levels {
        assert_eq!(level.start, end, "levels are contiguous");
        end = level.end;
        let steps = &p.steps[level.clone()];
        let read: HashSet<_> =
            steps.iter().flat_map(|s| s.reads()).filter_map(|b| buffer_of(b.slot)).collect();
        let written: HashSet<_> =
            steps.iter().flat_map(|s| s.writes()).filter_map(|b| buffer_of(b.slot)).collect();
        assert!(read.is_disjoint(&written), "a buffer is read and written in one level:\n{}", p.dump());
        for b in steps.iter().flat_map(|s| s.reads()) {
            if let Some(buffer) = buffer_of(b.slot) {
                assert_eq!(holds.get(&buffer), Some(&b.slot), "a reader finds another's data:\n{}", p.dump());
            }
        }
        for b in steps.iter().flat_map(|s| s.writes()) {
            holds.insert(buffer_of(b.slot).expect("results are activations"), b.slot);
        }
    }
    assert_eq!(end, p.steps.len());
    for output in &p.outputs {
        if let OutputSource::Device { binding, .. } = &output.source {
            assert_eq!(holds.get(&buffer_of(binding.slot).unwrap()), Some(&binding.slot));
        }
    }
    for step in &p.steps {
        assert!(step.params_at.is_multiple_of(256));
        for b in &step.bindings {
            let slot = &p.slots[b.slot];
            assert!(b.offset + b.bytes <= slot.bytes.max(4), "{b:?} of {slot:?}");
            if let Place::Activation(n) = slot.place {
                assert!(slot.bytes <= p.buffers[n]);
            }
        }
    }
}

#[test]
fn an_mlp_is_three_dispatches() {
    let p = planned(&mlp(n(2), n(3), 8));
    let stats = p.stats();
    assert_eq!((stats.dispatches, stats.levels), (3, 3), "{}", p.dump());
    assert_eq!(stats.kernels.iter().find(|(k, _)| k.starts_with("matmul")).map(|(_, n)| *n), Some(2));
    assert!(stats.activation_bytes < stats.unshared_bytes + 256 * 4);
}

#[test]
fn a_gate_is_one_dispatch_with_its_norm() {
    // Two products, or the halves of one.
    for together in [false, true] {
        let mut g = Graph::new("gate");
        let x = float_input(&mut g, "x", known(&[2, 5, 12]));
        let normed = add(&mut g, Op::RmsNorm { axis: 2, epsilon: 1e-5 }, &[x]);
        let mut product = |seed, columns: usize| {
            let w = g.constant(noise(seed, &[12, columns]));
            add(&mut g, Op::MatMul, &[normed, w])
        };
        let [gate, up] = if together {
            let both = product(1, 18);
            [[0, 9], [9, 18]].map(|[start, end]| {
                let bounds = [g.ints(&[start]), g.ints(&[end])];
                add(&mut g, Op::Slice { axes: vec![2], steps: vec![1] }, &[both, bounds[0], bounds[1]])
            })
        } else {
            [product(1, 9), product(2, 9)]
        };
        let open = add(&mut g, Op::Unary(Unary::Silu), &[gate]);
        let y = binary(&mut g, Binary::Mul, open, up);
        g.add_output("y", y);
        assert_eq!(planned(&g).stats().dispatches, 1, "{}", planned(&g).dump());
        // Read by something else, the gate has a result of its own.
        g.add_output("gate", open);
        assert!(planned(&g).stats().dispatches > 1, "{}", planned(&g).dump());
    }
}

/// `rounds` divisions by sums of rows and columns in turns; what each of them makes.
fn balanced(rounds: usize, epsilon: Option<f32>) -> (Graph, Vec<ValueId>) {
    let mut g = Graph::new("balanced");
    let x = float_input(&mut g, "x", known(&[3, 4, 4]));
    let mut made = vec![add(&mut g, Op::Unary(Unary::Exp), &[x])];
    for round in 0..rounds {
        let x = made[round];
        let axes = vec![2 - round % 2];
        let mut sum = add(&mut g, Op::Reduce { op: Reduce::Sum, axes, keepdims: true }, &[x]);
        if let Some(epsilon) = epsilon {
            let epsilon = g.scalar(epsilon);
            sum = binary(&mut g, Binary::Add, sum, epsilon);
        }
        made.push(binary(&mut g, Binary::Div, x, sum));
    }
    (g, made)
}

#[test]
fn divisions_by_sums_of_rows_and_columns_are_one_dispatch() {
    for epsilon in [None, Some(1e-6)] {
        let (mut g, made) = balanced(7, epsilon);
        g.add_output("y", made[7]);
        assert_eq!(planned(&g).stats().dispatches, 2, "{}", planned(&g).dump());
        // What is returned or read on the way parts the chain.
        g.add_output("z", made[4]);
        assert_eq!(planned(&g).stats().dispatches, 3, "{}", planned(&g).dump());
        let read = add(&mut g, Op::Unary(Unary::Neg), &[made[2]]);
        g.add_output("r", read);
        assert_eq!(planned(&g).stats().dispatches, 5, "{}", planned(&g).dump());
    }
}

#[test]
fn software_adapters_share_loads_where_subgroups_have_eight_lanes() {
    let kernels = |rows: i64, software: bool, subgroup_size: u32| {
        let g = mlp(n(2), n(rows), 8);
        let device = Limits { software, subgroup_size, ..limits() };
        let p = plan(validate(&g).unwrap(), &device, &Options::default()).unwrap();
        let keys = p.steps.iter().map(|s| &s.launch.pipeline).filter(|k| k.source.starts_with("matmul"));
        let found: HashSet<_> = keys.map(|k| (k.source, k.entry)).collect();
        let grid = p.steps.iter().find(|s| s.launch.pipeline.entry == "subgroup");
        (found.into_iter().collect::<Vec<_>>(), grid.map_or(0, |s| s.launch.grid[0]))
    };
    assert_eq!(kernels(8, true, 8), (vec![("matmul", "subgroup")], 1));
    // 16 rows of 258, or 32 of 258.
    assert_eq!(kernels(128, true, 8).1, 16);
    assert_eq!(kernels(129, true, 8).1, 9);
    // Few rows, other subgroups, none, hardware.
    assert_eq!(kernels(2, true, 8).0, [("matmul", "software")]);
    assert_eq!(kernels(8, true, 4).0, [("matmul", "software")]);
    assert_eq!(kernels(8, true, 0).0, [("matmul", "software")]);
    assert_eq!(kernels(8, false, 8).0, [("matmul", "tiled")]);
}

#[test]
fn attention_shares_loads_in_heads_that_fit_registers() {
    let kernel = |queries: i64, head: i64, subgroup_size: u32| {
        let mut g = Graph::new("attention");
        let x = float_input(&mut g, "x", vec![n(2), n(3), n(queries), n(head)]);
        let op = Attention { scale: 1.0, causal: true, window: None, softcap: None, safe: false };
        let y = add(&mut g, Op::Attention(op), &[x, x, x]);
        g.add_output("y", y);
        let device = Limits { subgroup_size, ..limits() };
        let p = plan(validate(&g).unwrap(), &device, &Options::default()).unwrap();
        let [step] = &p.steps[..] else { panic!("{}", p.dump()) };
        (step.launch.pipeline.entry, step.launch.grid[0])
    };
    // Sixteen queries of one of six heads.
    assert_eq!(kernel(17, 64, 8), ("subgroup", 12));
    assert_eq!(kernel(17, 65, 8).0, "software");
    assert_eq!(kernel(4, 64, 8).0, "software");
    assert_eq!(kernel(17, 64, 0).0, "software");
}

#[test]
fn fusion_can_be_turned_off() {
    let g = mlp(n(2), n(3), 8);
    let options = Options { fuse: false, ..Options::default() };
    let p = plan(validate(&g).unwrap(), &limits(), &options).unwrap();
    check(&p);
    assert_eq!(p.stats().dispatches, 7);
}

#[test]
fn heads_split_and_merge_without_copies() {
    let p = planned(&attention(2, 5, 4, 8));
    // norm + q + k, norm + v (a dispatch may bind eight buffers), scores + scale + mask, softmax, values,
    // projection + residual.
    assert_eq!(p.stats().dispatches, 6, "{}", p.dump());
    assert_eq!(p.stats().levels, 5, "{}", p.dump());
    assert!(p.stats().host_steps > 0, "the mask is made on the host");
    assert_eq!(p.uploads.len(), 1);
}

#[test]
fn a_sum_over_units_is_one_product() {
    let p = planned(&units(&layers(3, 8), 2, 5, true));
    assert_eq!(p.stats().dispatches, 1, "{}", p.dump());
    let p = planned(&units(&layers(3, 8), 2, 5, false));
    assert_eq!(p.stats().dispatches, 2, "{}", p.dump());
}

#[test]
fn unit_factors_and_biases_join_their_neighbours() {
    let p = planned(&fused_units(3, 8, 2, 5));
    assert_eq!(p.stats().dispatches, 3, "{}", p.dump());
}

#[test]
fn products_that_meet_in_an_add() {
    let mut g = Graph::new("parallel");
    let x = float_input(&mut g, "x", known(&[3, 8]));
    let (a, b) = (g.constant(noise(1, &[8, 8])), g.constant(noise(2, &[8, 8])));
    let a = add(&mut g, Op::MatMul, &[x, a]);
    let b = add(&mut g, Op::MatMul, &[x, b]);
    let y = binary(&mut g, Binary::Add, a, b);
    let y = binary(&mut g, Binary::Add, y, x);
    g.add_output("y", y);
    assert_eq!(planned(&g).stats().dispatches, 2);
}

#[test]
fn deep_chains_recycle_buffers() {
    let p = planned(&sequential(&layers(12, 16), 2, 5));
    assert_eq!(p.stats().dispatches, 12);
    assert!(p.buffers.len() <= 2, "{:?}", p.buffers);
}

#[test]
fn long_elementwise_chains_split_at_the_kernels_maxima() {
    let mut g = Graph::new("chain");
    let x = float_input(&mut g, "x", known(&[4, 4]));
    let mut y = x;
    for i in 0..40 {
        y = if i % 2 == 0 {
            add(&mut g, Op::Unary(Unary::Tanh), &[y])
        } else {
            binary(&mut g, Binary::Add, y, x)
        };
    }
    g.add_output("y", y);
    let p = planned(&g);
    assert_eq!(p.stats().dispatches, 3, "{}", p.dump());
}

#[test]
fn values_read_twice_are_computed_once() {
    let mut g = Graph::new("diamond");
    let x = float_input(&mut g, "x", known(&[4, 4]));
    let a = add(&mut g, Op::Unary(Unary::Exp), &[x]);
    let b = add(&mut g, Op::Unary(Unary::Neg), &[a]);
    let c = add(&mut g, Op::Unary(Unary::Abs), &[a]);
    let y = binary(&mut g, Binary::Mul, b, c);
    g.add_output("y", y);
    assert_eq!(planned(&g).stats().dispatches, 1);
    g.add_output("a", a);
    assert_eq!(planned(&g).stats().dispatches, 2);
}

#[test]
fn concatenation_is_written_in_place() {
    let mut g = Graph::new("concat");
    let x = float_input(&mut g, "x", known(&[2, 3]));
    let past = float_input(&mut g, "past", known(&[4, 3]));
    let a = add(&mut g, Op::Unary(Unary::Exp), &[x]);
    let y = add(&mut g, Op::Concat { axis: 0 }, &[past, a]);
    let z = add(&mut g, Op::Unary(Unary::Neg), &[y]);
    g.add_output("y", y);
    g.add_output("z", z);
    let p = planned(&g);
    assert_eq!(p.stats().dispatches, 3, "{}", p.dump());
    assert_eq!(p.stats().levels, 2);
}

#[test]
fn everything_unsupported_is_listed() {
    let mut g = Graph::new("bad");
    let x = float_input(&mut g, "x", known(&[2]));
    let opaque = |name: &str| {
        Op::Opaque(Box::new(Opaque {
            domain: "com.example".into(),
            op_type: name.into(),
            attributes: vec![],
            captures: vec![],
        }))
    };
    let a = g.add_named("first", opaque("Foo"), &[x]).unwrap();
    g.declare_type(a, Type::new(DType::F32, known(&[2])));
    let b = add(&mut g, Op::Unary(Unary::Exp), &[a]);
    let c = g.add_named("second", opaque("Bar"), &[b]).unwrap();
    g.declare_type(c, Type::new(DType::F32, known(&[2])));
    g.add_output("y", c);
    let error = plan(validate(&g).unwrap(), &limits(), &Options::default()).unwrap_err();
    let ScheduleError::Unsupported(list) = &error else { panic!("{error}") };
    assert_eq!(list.len(), 2, "{error}");
    assert!(error.to_string().contains("'first' (com.example::Foo)"), "{error}");
    assert!(error.to_string().contains("'second' (com.example::Bar)"), "{error}");
}

#[test]
fn unknown_shapes_are_refused() {
    let g = mlp(Dim::symbol("batch"), n(3), 8);
    let error = plan(validate(&g).unwrap(), &limits(), &Options::default()).unwrap_err();
    assert!(matches!(error, ScheduleError::UnknownShape { .. }), "{error}");
}

/// `exp(expand(x))` of a shape.
fn expanded(shape: &[i64]) -> Graph {
    let mut g = Graph::new("expanded");
    let x = g.add_input("x", Type::new(DType::F32, known(&[1, 1])));
    let shape = g.ints(shape);
    let y = add(&mut g, Op::Expand, &[x, shape]);
    let y = add(&mut g, Op::Unary(Unary::Exp), &[y]);
    g.add_output("y", y);
    g
}

#[test]
fn sizes_beyond_the_device_are_refused_with_numbers() {
    let refused = |shape: &[i64], limits: &Limits| {
        plan(validate(&expanded(shape)).unwrap(), limits, &Options::default()).unwrap_err().to_string()
    };
    // Axes of size 0 and products beyond 64 bits are no way around it.
    for shape in [[1 << 31, 1 << 31], [1 << 16, 1 << 17], [0, 1 << 40]] {
        let why = refused(&shape, &limits());
        assert!(why.contains("elements, the device allows 4294966271"), "{why}");
    }
    let small = Limits { max_buffer: 1 << 16, max_storage_binding: 1 << 20, ..limits() };
    let why = refused(&[128, 256], &small);
    assert!(why.contains("needs 131072 bytes, the device allows 65536"), "{why}");
    assert!(plan(validate(&expanded(&[64, 256])).unwrap(), &small, &Options::default()).is_ok());
    let mut g = Graph::new("input");
    let x = g.add_input("x", Type::new(DType::F32, known(&[128, 256])));
    let y = add(&mut g, Op::Unary(Unary::Exp), &[x]);
    g.add_output("y", y);
    let why = plan(validate(&g).unwrap(), &small, &Options::default()).unwrap_err().to_string();
    assert!(why.contains("input 'x' needs 131072 bytes"), "{why}");
}

#[test]
fn large_tables_and_matrices_are_split() {
    let mut g = Graph::new("large");
    let ids = g.add_input("ids", Type::new(DType::I64, known(&[1, 4])));
    let table = g.constant(noise(1, &[300, 16]));
    let x = add(&mut g, Op::Gather { axis: 0 }, &[table, ids]);
    let turned = add(&mut g, Op::Transpose { perm: vec![1, 0] }, &[table]);
    let y = add(&mut g, Op::MatMul, &[x, turned]);
    g.add_output("y", y);
    let small = Limits { max_storage_binding: 8192, ..limits() };
    let p = plan(validate(&g).unwrap(), &small, &Options::default()).unwrap();
    check(&p);
    assert!(p.stats().dispatches >= 6, "{}", p.dump());
    for b in p.steps.iter().flat_map(|s| &s.bindings) {
        assert!(b.bytes <= 8192);
    }
    assert_eq!(p.checks.len(), 1);
    assert_eq!(p.checks[0].value, HostValue::Input(0));
}

#[test]
fn constants_outside_any_reader_are_not_uploaded() {
    let mut g = mlp(n(1), n(1), 8);
    let _ = g.constant(Tensor::ints(&[1, 2, 3]));
    let bytes = planned(&g).stats().weight_bytes;
    assert!(bytes < 2 * (8 * 32 * 4 * 2 + 5 * 256), "{bytes}");
}

#[test]
fn quantised_weights_stay_quantised() {
    let p = planned(&quantised());
    let held = |scalar: Scalar| -> u64 {
        let of = p.constants.iter().filter(|c| c.scalar == scalar);
        of.flat_map(|c| &c.pieces).map(|piece| piece.bytes()).sum()
    };
    // The table and the product's matrices, the packed matrices and their zero point.
    assert_eq!((held(Scalar::I8), held(Scalar::U4)), (40 * 16 + 2 * 24 * 5, 2 * 24 * 16 / 2 + 1));
    // Nothing is as large as a matrix of floats, and none is uploaded anew for each run.
    assert!(p.buffers.iter().all(|bytes| *bytes < 24 * 16 * 4), "{}", p.dump());
    assert!(p.upload_bytes < 1024, "{}", p.dump());
    let kernels = |name: &str| p.steps.iter().filter(|s| s.launch.pipeline.source == name).count();
    assert_eq!((kernels("matmul"), kernels("matmul_integer"), kernels("gather")), (1, 1, 2), "{}", p.dump());
}

#[test]
fn a_dynamically_quantised_product_is_one_dispatch_behind_its_quantisation() {
    let most = Limits { max_storage_buffers: 16, ..limits() };
    let count = |g: &Graph, device: &Limits| {
        let p = plan(validate(g).unwrap(), device, &Options::default()).unwrap();
        check(&p);
        p.stats().dispatches
    };
    for units in [None, Some(3)] {
        let (g, on_the_way) = projections(units, 5);
        assert_eq!(count(&g, &most), 1 + 3, "{}", planned(&g).dump());
        // A large activation is quantised in two.
        assert_eq!(count(&projections(units, 1000).0, &most), 2 + 3);
        // Where a dispatch binds no more, the residual is added by another one.
        assert_eq!(count(&g, &Limits { max_storage_buffers: 8, ..most.clone() }), 1 + 3 + 1);
        // What something else reads has a dispatch of its own.
        for v in on_the_way {
            let mut g = g.clone();
            g.add_output("besides", v);
            let found = count(&g, &most);
            assert!(found > 1 + 3 && found <= 1 + 3 + 3, "{found}");
        }
    }
}

/// Dispatches of attentions and what makes their operands ready, by kernel.
fn around_attention(g: &Graph, states: Vec<(String, String)>, device: &Limits) -> BTreeMap<String, usize> {
    let options = Options { states, ..Options::default() };
    let p = plan(validate(g).unwrap(), device, &options).unwrap();
    let mut kernels = p.stats().kernels;
    kernels.retain(|name, _| !name.starts_with("matmul") && !name.starts_with("gather"));
    assert!(p.checks.iter().filter(|c| c.node.starts_with("append")).all(|c| c.size == 24));
    kernels
}

fn counted(kernels: &[(&str, usize)]) -> BTreeMap<String, usize> {
    kernels.iter().map(|(name, n)| (name.to_string(), *n)).collect()
}

#[test]
fn a_step_behind_caches_is_one_dispatch_and_a_longer_one_two() {
    let wide = Limits { max_storage_buffers: 16, ..limits() };
    for units in [1, 3] {
        for norm_first in [false, true] {
            let kernels = |t: i64, device: &Limits| {
                let of = Cached { units, norm_first, ..Cached::new(n(t)) };
                around_attention(&of.graph(), of.states(), device)
            };
            assert_eq!(kernels(1, &wide), counted(&[("attention_step.software", 1)]));
            assert_eq!(kernels(8, &wide), counted(&[("attention_step.software", 1)]));
            assert_eq!(kernels(9, &wide), counted(&[("attention.software", 1), ("heads.by_row", 1)]));
            let hardware = Limits { software: false, ..wide.clone() };
            assert_eq!(kernels(1, &hardware), counted(&[("attention_step.by_group", 1)]));
            // Where a dispatch has few buffers: queries, keys, and values, which are copied.
            let few = counted(&[("attention.software", 1), ("heads.by_pair", 1), ("heads.by_row", 2)]);
            assert_eq!(kernels(1, &limits()), few);
        }
    }
    // Without caches there is nothing to append.
    let of = Cached { capacity: None, ..Cached::new(n(5)) };
    let two = counted(&[("attention.software", 1), ("heads.by_row", 1)]);
    assert_eq!(around_attention(&of.graph(), vec![], &wide), two);
}

#[test]
fn a_step_checks_the_rows_that_it_writes() {
    let of = Cached::new(n(2));
    let options = Options { states: of.states(), ..Options::default() };
    let wide = Limits { max_storage_buffers: 16, ..limits() };
    let p = plan(validate(&of.graph()).unwrap(), &wide, &options).unwrap();
    let checked: Vec<_> = p.checks.iter().filter(|c| c.node.starts_with("append")).collect();
    assert_eq!(checked.len(), 2, "{:?}", p.checks);
    let step = p.steps.iter().find(|s| s.launch.pipeline.source == "attention_step").unwrap();
    assert!(step.in_place);
    let states = step.writes().iter().filter(|b| matches!(p.slots[b.slot].place, Place::State(_)));
    assert_eq!(states.count(), 2);
}

#[test]
fn what_others_read_is_made_for_itself() {
    let wide = Limits { max_storage_buffers: 16, ..limits() };
    let of = Cached::new(n(1));
    let value = |g: &Graph, name: &str| {
        g.values().find(|(_, v)| v.name.as_deref() == Some(name)).map(|(id, _)| id).unwrap()
    };
    // New keys that are a result: the step takes them as they are.
    let mut g = of.graph();
    let keys = value(&g, "new k");
    g.add_output("keys", keys);
    let kernels = around_attention(&g, of.states(), &wide);
    let three = counted(&[("attention_step.software", 1), ("heads.by_pair", 1), ("norm.by_row", 1)]);
    assert_eq!(kernels, three);
    // A position of its own: rows go to their places first.
    let mut g = of.graph();
    let elsewhere = g.add_input("elsewhere", Type::new(DType::I64, vec![]));
    let attention = g.nodes().find(|(_, node)| node.name == "attend").map(|(id, _)| id).unwrap();
    g.set_input(attention, 5, elsewhere);
    let two = counted(&[("attention.software", 1), ("heads.by_row", 1)]);
    assert_eq!(around_attention(&g, of.states(), &wide), two);
    // Rows in another order are no step.
    let mut g = Cached::new(n(3)).graph();
    let (rows, shape) = (g.ints(&[2, 0, 1]), g.ints(&[1, 2, 3, HEAD as i64]));
    let rows = add(&mut g, Op::Unsqueeze { axes: vec![1] }, &[rows]);
    let rows = add(&mut g, Op::Expand, &[rows, shape]);
    let append = g.nodes().find(|(_, node)| node.name == "append k").map(|(id, _)| id).unwrap();
    g.set_input(append, 1, rows);
    let kernels = around_attention(&g, of.states(), &wide);
    assert_eq!(kernels.get("scatter"), Some(&1), "{kernels:?}");
    assert_eq!(kernels.get("attention.software"), Some(&1), "{kernels:?}");
    // Caches that are not states are copied first, and changed there.
    let g = of.graph();
    let kernels = around_attention(&g, vec![], &wide);
    assert_eq!(kernels.get("scatter"), Some(&2), "{kernels:?}");
    // One by one without fusion.
    let options = Options { states: of.states(), fuse: false, ..Options::default() };
    let p = plan(validate(&g).unwrap(), &wide, &options).unwrap();
    let kernels = p.stats().kernels;
    assert_eq!((kernels["scatter"], kernels["norm.by_row"], kernels["heads.by_pair"]), (2, 2, 2));
}
