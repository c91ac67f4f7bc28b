use super::*;
use crate::ir::{
    Attention, Binary, Blocks, Correction, CorrectionForm, DType, PadMode, Rotary, RotaryTable,
    ScatterReduction, Tensor, Type, Unary, Window,
};
use crate::rewrite::testing::{assert_same, count, f32s, histogram, random};

fn lowered(graph: &Graph, dialect: &Dialect) -> Graph {
    let mut out = graph.clone();
    lower(&mut out, dialect).unwrap();
    assert_same(graph, &out, 2e-6);
    out
}

fn assert_basic(graph: &Graph) {
    let foreign = [
        "GeluErf",
        "GeluTanh",
        "Silu",
        "Swish",
        "Mish",
        "LayerNormalization",
        "RMSNormalization",
        "RotaryEmbedding",
        "Attention",
        "Correction",
        "Dims",
        "Einsum",
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
    ];
    let found = histogram(graph);
    assert!(!foreign.iter().any(|op| found.contains_key(*op)), "{found:?}");
}

fn one(op: Op, operands: &[Type]) -> Graph {
    let mut g = Graph::new("one");
    let inputs: Vec<ValueId> =
        operands.iter().enumerate().map(|(i, t)| g.add_input(&format!("x{i}"), t.clone())).collect();
    let y = g.op(op, &inputs);
    g.add_output("y", y);
    g
}

#[test]
fn activations_become_arithmetic() {
    for f in [
        Unary::Silu,
        Unary::GeluErf,
        Unary::GeluTanh,
        Unary::Swish { alpha: 1.702 },
        Unary::Mish,
        Unary::HardSwish,
    ] {
        assert_basic(&lowered(&one(Op::Unary(f), &[f32s(&[-1, 6])]), &Dialect::basic()));
    }
    let kept = lowered(&one(Op::Unary(Unary::GeluTanh), &[f32s(&[-1, 6])]), &Dialect::onnx(20));
    assert_eq!(count(&kept, "GeluTanh"), 1);
}

#[test]
fn norms_become_arithmetic_or_get_their_scale() {
    let (layer, rms) = (Op::LayerNorm { axis: 2, epsilon: 1e-5 }, Op::RmsNorm { axis: 2, epsilon: 1e-5 });
    let x = f32s(&[-1, -2, 8]);
    for operands in [vec![x.clone()], vec![x.clone(), f32s(&[8])], vec![x.clone(), f32s(&[-1, 1, 8])]] {
        for op in [&layer, &rms] {
            let g = one(op.clone(), &operands);
            assert_basic(&lowered(&g, &Dialect::basic()));
            let kept = lowered(&g, &Dialect::onnx(23));
            let (_, norm) = kept.nodes().find(|(_, n)| n.op == *op).unwrap();
            assert_eq!(kept.shape(norm.input(1).unwrap()).unwrap(), [8i64.into()]);
            assert_eq!(count(&kept, "Mul"), usize::from(operands.get(1).is_some_and(|t| t.rank() == 3)));
        }
        let g = one(layer.clone(), &[operands, vec![f32s(&[8])]].concat());
        if g.nodes().all(|(_, n)| n.inputs.len() == 3) {
            assert_basic(&lowered(&g, &Dialect::basic()));
            lowered(&g, &Dialect::onnx(17));
        }
    }
}

#[test]
fn rotations_become_slices() {
    for interleaved in [false, true] {
        for (table, width) in [(RotaryTable::Half, 4), (RotaryTable::Full, 8)] {
            let tables = f32s(&[-2, width]);
            let g = one(
                Op::Rotary(Rotary { interleaved, table }),
                &[f32s(&[-1, 2, -2, 8]), tables.clone(), tables],
            );
            assert_basic(&lowered(&g, &Dialect::basic()));
        }
    }
}

fn attention(a: Attention, kv_heads: i64, lead: &[i64], mask: Option<Type>) -> Graph {
    let with = |tail: &[i64]| f32s(&[lead, tail].concat());
    let mut operands = vec![with(&[4, -2, 8]), with(&[kv_heads, -3, 8]), with(&[kv_heads, -3, 6])];
    operands.extend(mask);
    one(Op::Attention(a), &operands)
}

const PLAIN: Attention = Attention { scale: 0.3, causal: false, window: None, softcap: None, safe: false };

#[test]
fn attention_becomes_matmuls() {
    let bools = Type::new(DType::Bool, f32s(&[-1, 1, -2, -3]).shape);
    for (causal, window) in [(false, None), (true, None), (true, Some(3)), (false, Some(2))] {
        for (kv_heads, lead) in [(4, &[-1][..]), (2, &[-1]), (1, &[]), (2, &[3, -1])] {
            for mask in [None, Some(f32s(&[-2, -3])), Some(bools.clone()).filter(|_| lead == [-1])] {
                for (softcap, safe) in [(None, false), (Some(2.0), true)] {
                    let a = Attention { causal, window, softcap, safe, ..PLAIN };
                    assert_basic(&lowered(&attention(a, kv_heads, lead, mask.clone()), &Dialect::basic()));
                }
            }
        }
    }
}

#[test]
fn only_standard_attention_stays() {
    let standard = Dialect::onnx(23);
    assert_eq!(count(&lowered(&attention(PLAIN, 2, &[-1], None), &standard), "Attention"), 1);
    for other in [
        attention(Attention { causal: true, ..PLAIN }, 2, &[-1], None),
        attention(Attention { window: Some(2), ..PLAIN }, 2, &[-1], None),
        attention(PLAIN, 2, &[3, -1], None),
        attention(Attention { softcap: Some(2.0), ..PLAIN }, 2, &[-1], Some(f32s(&[-2, -3]))),
    ] {
        assert_eq!(count(&lowered(&other, &standard), "Attention"), 0);
    }
}

#[test]
fn corrections_become_sums() {
    let f = f32s(&[3, -1, 2, 4]);
    for shared in [false, true] {
        let s = if shared { f32s(&[-1, 2, 4]) } else { f.clone() };
        for last_only in [false, true] {
            let prefix = Op::Correction(Correction { form: CorrectionForm::Prefix, last_only });
            assert_basic(&lowered(&one(prefix, &[f.clone(), s.clone()]), &Dialect::basic()));
            for (streams, stream_axis, order) in [(1, 0, 3), (2, 2, 6), (4, 3, 12)] {
                let form = CorrectionForm::Linear { streams, stream_axis };
                let linear = Op::Correction(Correction { form, last_only });
                let g = one(linear, &[f.clone(), s.clone(), f32s(&[order, order])]);
                assert_basic(&lowered(&g, &Dialect::basic()));
            }
            for (stream_axis, matrices) in [(2, f32s(&[3, -1, 2, 2])), (1, f32s(&[3, 2, -1, -1]))] {
                let scan = Correction { form: CorrectionForm::Scan { stream_axis }, last_only };
                let g = one(Op::Correction(scan), &[f.clone(), s.clone(), matrices]);
                assert_basic(&lowered(&g, &Dialect::basic()));
            }
        }
    }
}

#[test]
fn kept_corrections_stay() {
    let f = f32s(&[3, -1, 4]);
    let op = Op::Correction(Correction { form: CorrectionForm::Prefix, last_only: true });
    let dialect = Dialect { corrections: true, ..Dialect::onnx(17) };
    assert_eq!(count(&lowered(&one(op, &[f.clone(), f]), &dialect), "Correction"), 1);
}

#[test]
fn sizes_come_from_the_inputs() {
    let mut g = Graph::new("sizes");
    let x = g.add_input("x", f32s(&[-1, -2]));
    let (b, t) = (Dim::symbol("b"), Dim::symbol("t"));
    let sizes = [
        b.clone() * t.clone(),
        t.clone() - b.clone() * 3i64.into(),
        (t.clone() - b.clone() * 4i64.into()).floor_div(&2i64.into()).unwrap(),
        t.modulo(&b).unwrap(),
        t.maximum(&b),
        t.minimum(&b),
        7i64.into(),
    ];
    let v = g.dims(&sizes).unwrap();
    let scalar = g.dim_scalar(&(t + b)).unwrap();
    let all = g.bin(Binary::Add, v, scalar);
    g.add_output("y", all);
    let y = g.un(Unary::Exp, x);
    g.add_output("z", y);
    assert_basic(&lowered(&g, &Dialect::basic()));
}

#[test]
fn f16_norms_compute_wide() {
    let half = |shape: &[i64]| Type::new(DType::F16, f32s(shape).shape);
    let mut g = one(Op::RmsNorm { axis: 1, epsilon: 1e-5 }, &[half(&[-1, 8]), half(&[8])]);
    let w: Vec<half::f16> = random(9, &[8]).to_f32().iter().map(|x| half::f16::from_f32(*x)).collect();
    let w = g.constant(Tensor::from_vec(vec![8], w).unwrap());
    let y = g.outputs[0].value;
    let y = g.bin(Binary::Mul, y, w);
    g.outputs[0].value = y;
    let mut out = g.clone();
    lower(&mut out, &Dialect::basic()).unwrap();
    assert_same(&g, &out, 2e-3);
}

#[test]
fn our_runtime_takes_attention_and_norms() {
    for g in [
        attention(Attention { causal: true, window: Some(2), ..PLAIN }, 2, &[3, -1], None),
        one(Op::RmsNorm { axis: 2, epsilon: 1e-5 }, &[f32s(&[-1, -2, 8])]),
        one(Op::Unary(Unary::Silu), &[f32s(&[-1, 6])]),
    ] {
        let before = histogram(&g);
        assert_eq!(histogram(&lowered(&g, &Dialect::runtime())), before);
    }
}

#[test]
fn einsum_becomes_matmul() {
    let sizes = |letters: &str| {
        let size = |c| match c {
            'b' => -1,
            't' => -2,
            's' => -3,
            'i' | 'j' => 4,
            'h' => 2,
            _ => 3,
        };
        f32s(&letters.chars().map(size).collect::<Vec<_>>())
    };
    for (equation, transposes) in [
        ("ij,bjkl->bikl", 0),
        ("j,bjkl->bkl", 0),
        ("btd,dn->btn", 0),
        ("bij,bjd->bid", 0),
        ("bthd,bshd->bhts", 2),
        ("bhts,bshd->bthd", 2),
        ("bi,bj->bij", 0),
        ("bt,bt->b", 0),
        ("bt,t", 0),
        ("ij->ji", 1),
        ("btd->bd", 0),
        ("bi,ij,jd->bd", 0),
        ("bkd,nd->nbk", 1),
    ] {
        let operands = equation.split("->").next().unwrap();
        let types: Vec<Type> = operands.split(',').map(sizes).collect();
        let g = lowered(&one(Op::Einsum { equation: equation.into() }, &types), &Dialect::basic());
        assert_basic(&g);
        assert!(count(&g, "Transpose") <= transposes, "{equation}: {:?}", histogram(&g));
    }
}

/// Lowers for our runtime and compares; nothing composite may be left.
fn without_composites(g: &Graph) {
    let out = lowered(g, &Dialect::runtime());
    let composite = |op: &Op| {
        matches!(
            op,
            Op::OneHot { .. }
                | Op::GatherNd { .. }
                | Op::ScatterNd { .. }
                | Op::EyeLike { .. }
                | Op::Tile
                | Op::Pad { .. }
                | Op::BatchNorm { .. }
                | Op::GlobalAveragePool
                | Op::AveragePool { .. }
                | Op::MaxPool { .. }
                | Op::Einsum { .. }
        )
    };
    assert!(!out.nodes().any(|(_, n)| composite(&n.op)), "{:?}", histogram(&out));
}

/// A graph of `op` on a random `x` of this shape and constants.
fn on_constants(op: Op, shape: &[i64], constants: Vec<Tensor>) -> Graph {
    let mut g = Graph::new("one");
    let mut inputs = vec![g.add_input("x", f32s(shape))];
    inputs.extend(constants.into_iter().map(|t| g.constant(t)));
    let y = g.op(op, &inputs);
    g.add_output("y", y);
    g
}

fn ints(shape: &[usize], data: &[i64]) -> Tensor {
    Tensor::from_vec(shape.to_vec(), data.to_vec()).unwrap()
}

#[test]
fn one_hot_compares_with_a_range() {
    for axis in 0..3 {
        let mut g = Graph::new("hot");
        let indices = g.constant(ints(&[2, 3], &[0, 3, -1, -4, 4, -5]));
        let (depth, values) = (g.num(4.0), g.add_input("values", f32s(&[2])));
        let y = g.op(Op::OneHot { axis }, &[indices, depth, values]);
        g.add_output("y", y);
        without_composites(&g);
    }
}

#[test]
fn indices_of_several_axes_become_rows() {
    let picks = ints(&[2, 2, 2], &[0, 1, 1, -1, -2, 2, 1, 0]);
    without_composites(&on_constants(Op::GatherNd { batch_dims: 0 }, &[2, 3, 4], vec![picks.clone()]));
    let one = ints(&[2, 2, 1], &[0, -1, 2, 1]);
    without_composites(&on_constants(Op::GatherNd { batch_dims: 1 }, &[2, 3, 4], vec![one]));
    use ScatterReduction::*;
    for reduction in [None, Add, Mul, Max, Min] {
        // Two updates meet in one place.
        let at = ints(&[3, 1], &[1, -1, 1]);
        let op = Op::ScatterNd { reduction };
        without_composites(&on_constants(op.clone(), &[2, 3], vec![at, random(3, &[3, 3])]));
        let at = ints(&[2, 2], &[1, 0, 1, 0]);
        without_composites(&on_constants(op, &[2, 3], vec![at, random(3, &[2])]));
    }
}

#[test]
fn targets_that_count_from_the_start_get_such_indices() {
    let at = ints(&[2, 2, 2], &[0, 1, 1, -1, -2, 2, 1, 0]);
    let g = on_constants(Op::GatherNd { batch_dims: 0 }, &[2, 3, 4], vec![at.clone()]);
    assert_eq!(count(&lowered(&g, &Dialect::basic()), "Where"), 1);
    assert_eq!(count(&lowered(&g, &Dialect::onnx(17)), "Where"), 0);
    let op = Op::ScatterNd { reduction: ScatterReduction::Add };
    let g = on_constants(op, &[2, 3, 4], vec![at, random(3, &[2, 2, 4])]);
    assert_eq!(count(&lowered(&g, &Dialect::basic()), "Where"), 1);
    let at = ints(&[2, 2, 1], &[0, -1, 2, 1]);
    let g = on_constants(Op::GatherNd { batch_dims: 1 }, &[2, 3, 4], vec![at]);
    assert_eq!(count(&lowered(&g, &Dialect::basic()), "Where"), 1);
    // Nothing counts from the end.
    let g = on_constants(Op::GatherNd { batch_dims: 0 }, &[2, 3], vec![ints(&[2, 1], &[0, 1])]);
    assert_eq!(count(&lowered(&g, &Dialect::basic()), "Where"), 0);
}

#[test]
fn running_sums_of_integers_are_those_of_floats() {
    let mut g = Graph::new("sums");
    let x = g.add_input("x", Type::new(DType::I64, f32s(&[-1, 4]).shape));
    let y = g.op(Op::CumSum { axis: 1, exclusive: true, reverse: false }, &[x]);
    g.add_output("y", y);
    assert_eq!(count(&lowered(&g, &Dialect::basic()), "Cast"), 2);
    assert_eq!(count(&lowered(&g, &Dialect::runtime()), "Cast"), 0);
}

#[test]
fn an_index_outside_one_axis_reads_no_other_row() {
    let fails = |op: Op, shape: &[i64], constants: Vec<Tensor>| {
        let g = on_constants(op, shape, constants);
        let mut out = g.clone();
        lower(&mut out, &Dialect::runtime()).unwrap();
        let x = crate::rewrite::testing::inputs(&g);
        [g, out].map(|g| crate::eval::eval_graph(&g, &x).is_err())
    };
    // More than inference looks at; flattened, each of these is a row of the table.
    const N: usize = 40;
    for at in [[0, 3], [1, -4], [-3, 1]] {
        let at = || ints(&[N, 2], &at.repeat(N));
        assert_eq!(fails(Op::GatherNd { batch_dims: 0 }, &[2, 3, 4], vec![at()]), [true; 2]);
        let op = Op::ScatterNd { reduction: ScatterReduction::Add };
        assert_eq!(fails(op, &[2, 3], vec![at(), random(3, &[N])]), [true; 2]);
    }
    for at in [[0, 3], [-4, 0]] {
        let at: Vec<i64> = at.iter().flat_map(|i| [*i; N]).collect();
        let op = Op::GatherNd { batch_dims: 1 };
        assert_eq!(fails(op, &[2, 3, 4], vec![ints(&[2, N, 1], &at)]), [true; 2]);
    }
}

#[test]
fn repetition_and_padding_become_views_and_gathers() {
    without_composites(&on_constants(Op::Tile, &[2, 3, 1], vec![ints(&[3], &[2, 1, 3])]));
    without_composites(&on_constants(Op::Tile, &[-1, -2], vec![ints(&[2], &[2, 3])]));
    for mode in [PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Wrap] {
        for pads in [[0, 1, 0, 2], [2, 0, 1, 0], [1, 3, 2, 1], [0, -1, 0, 2], [-1, 0, -1, -1]] {
            let op = Op::Pad { mode };
            without_composites(&on_constants(op.clone(), &[3, 4], vec![ints(&[4], &pads)]));
            let value = Tensor::scalar(1.5f32);
            without_composites(&on_constants(op, &[3, 4], vec![ints(&[4], &pads), value]));
        }
    }
}

#[test]
fn pooling_becomes_strided_slices() {
    let window = |strides: &[usize], pads: &[usize], dilations: &[usize]| Window {
        strides: strides.to_vec(),
        pads: pads.to_vec(),
        dilations: dilations.to_vec(),
    };
    let windows = [
        (vec![2, 3], window(&[1, 1], &[0; 4], &[1, 1])),
        (vec![2, 2], window(&[2, 2], &[1, 0, 0, 1], &[1, 1])),
        (vec![3, 2], window(&[2, 1], &[1, 1, 1, 1], &[2, 2])),
    ];
    for (kernel, window) in windows {
        let max = Op::MaxPool { window: window.clone(), kernel: kernel.clone() };
        without_composites(&on_constants(max, &[2, 3, 7, 6], vec![]));
        for count_include_pad in [false, true] {
            let (window, kernel) = (window.clone(), kernel.clone());
            let mean = Op::AveragePool { window, kernel, count_include_pad };
            without_composites(&on_constants(mean, &[2, 3, 7, 6], vec![]));
        }
    }
    without_composites(&on_constants(Op::GlobalAveragePool, &[2, 3, 4, 5], vec![]));
    let factors = [1, 2, 3].map(|seed| random(seed, &[3]));
    let variance = Tensor::from_vec(vec![3], vec![0.5f32, 1.0, 2.0]).unwrap();
    let operands = [&factors[..], &[variance]].concat();
    without_composites(&on_constants(Op::BatchNorm { epsilon: 1e-5 }, &[2, 3, 4, 5], operands));
    let eye = Op::EyeLike { dtype: DType::F32, k: -1 };
    without_composites(&on_constants(eye, &[3, 4], vec![]));
}

#[test]
fn ellipses_and_diagonals_are_spelled_out() {
    for (equation, shapes) in [
        ("...ii->...i", vec![vec![2i64, 3, 3]]),
        ("ii", vec![vec![4, 4]]),
        ("iij->j", vec![vec![3, 3, 2]]),
        ("...ij,...jk->...ik", vec![vec![2, 3, 4, 5], vec![2, 3, 5, 2]]),
        ("b...,b->b...", vec![vec![3, 2, 4], vec![3]]),
        ("...j", vec![vec![2, 3, 4]]),
    ] {
        let types: Vec<Type> = shapes.iter().map(|s| f32s(s)).collect();
        without_composites(&one(Op::Einsum { equation: equation.into() }, &types));
    }
}

fn bytes(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let data = (0..n).map(|i| (i as u32).wrapping_mul(2654435761).to_be_bytes()[0]).collect();
    Tensor::from_vec::<u8>(shape.to_vec(), data).unwrap()
}

fn positive(seed: u64, shape: &[usize]) -> Tensor {
    let data = random(seed, shape).to_f32().iter().map(|x| x.abs() * 0.1 + 0.01).collect();
    Tensor::from_vec::<f32>(shape.to_vec(), data).unwrap()
}

#[test]
fn dynamic_quantisation_per_layer_is_exact_in_every_dialect() {
    // Three layers: `a [3, t, 4]` quantised apart, times `b [3, 4, 5]` with a zero point per column.
    let mut g = Graph::new("dynamic");
    let x = g.add_input("x", f32s(&[3, -2, 4]));
    let id = g.add_node(Op::DynamicQuantize { axes: vec![1, 2] }, vec![Some(x)], 3, "").unwrap();
    let [q, scale, zero] = g.node(id).unwrap().outputs[..] else { panic!("three results") };
    let zero = g.op(Op::Unsqueeze { axes: vec![1, 2] }, &[zero]);
    let (b, zero_b) = (g.constant(bytes(&[3, 4, 5])), g.constant(bytes(&[3, 1, 5])));
    let y = g.op(Op::MatMulInteger, &[q, b, zero, zero_b]);
    g.add_output("y", y);
    g.add_output("scale", scale);
    for dialect in [Dialect::basic(), Dialect::onnx(13), Dialect::onnx(21), Dialect::runtime()] {
        let mut out = g.clone();
        lower(&mut out, &dialect).unwrap();
        assert_same(&g, &out, 0.0);
        let stands = usize::from(dialect == Dialect::runtime());
        assert_eq!(count(&out, "DynamicQuantizeLinear"), stands);
    }
    let onnx = lowered(&g, &Dialect::onnx(17));
    // No product has a zero point of `a`; those of `b` are as they were.
    for (_, node) in onnx.nodes().filter(|(_, n)| n.op == Op::MatMulInteger) {
        assert!(node.input(2).is_none() && node.input(3) == Some(zero_b), "{node:?}");
    }
    assert_eq!(count(&onnx, "MatMulInteger"), 2);
    assert_eq!(count(&lowered(&g, &Dialect::basic()), "MatMulInteger"), 0);
}

#[test]
fn scales_take_the_forms_of_the_opset() {
    let per_layer = |shape: &[usize], zero: &[usize]| {
        let mut g = Graph::new("scales");
        let x = g.add_input("x", f32s(&[3, -2, 4]));
        let (scale, zero) = (g.constant(positive(3, shape)), g.constant(bytes(zero)));
        let q = g.op(Op::Quantize { to: DType::U8, blocks: None }, &[x, scale, zero]);
        let y = g.op(Op::Dequantize { blocks: None }, &[q, scale, zero]);
        g.add_output("y", y);
        g
    };
    let kept = |g: &Graph, opset: i64| {
        let out = lowered(g, &Dialect::onnx(opset));
        (count(&out, "QuantizeLinear"), count(&out, "Expand"))
    };
    let (layers, columns) = (per_layer(&[3, 1, 1], &[3, 1, 1]), per_layer(&[4], &[4]));
    assert_eq!((kept(&layers, 11), kept(&layers, 13), kept(&columns, 13)), ((0, 0), (1, 0), (1, 0)));
    // One zero point for all scales is repeated; scales along two axes are blocks of the third, whose size
    // is not known here.
    let (mixed, both) = (per_layer(&[3, 1, 1], &[]), per_layer(&[3, 1, 4], &[3, 1, 4]));
    assert_eq!((kept(&mixed, 13), kept(&both, 21)), ((1, 1), (0, 0)));
    assert_basic(&lowered(&both, &Dialect::basic()));
}

#[test]
fn blocks_of_four_bits_stay_packed_until_a_target_lacks_them() {
    for (columns, blocks) in [(8, 2), (6, 2)] {
        let mut g = Graph::new("blocks");
        let x = g.add_input("x", f32s(&[-2, columns as i64]));
        let w = g.constant(bytes(&[3, columns]).packed(DType::U4));
        let (scale, zero) =
            (g.constant(positive(1, &[3, blocks])), g.constant(Tensor::scalar(8u8).packed(DType::U4)));
        let blocks = Some(Blocks { axis: 1, size: 4 });
        let w = g.op(Op::Dequantize { blocks }, &[w, scale, zero]);
        let wt = g.op(Op::Transpose { perm: vec![1, 0] }, &[w]);
        let y = g.op(Op::MatMul, &[x, wt]);
        g.add_output("y", y);
        assert_eq!(count(&lowered(&g, &Dialect::onnx(21)), "DequantizeLinear"), 1);
        let plain = lowered(&g, &Dialect::basic());
        assert_eq!(count(&plain, "DequantizeLinear"), 0);
        assert!(
            plain
                .values()
                .all(|(v, _)| plain.producer(v).is_none() || !plain.ty(v).unwrap().dtype.is_nibble())
        );
        // Our kernels have whole blocks.
        let ours = lowered(&g, &Dialect::runtime());
        let whole = ours.nodes().all(|(_, n)| match n.op {
            Op::Dequantize { blocks } => blocks.is_some() == (columns == 8),
            _ => true,
        });
        assert!(whole);
    }
}
