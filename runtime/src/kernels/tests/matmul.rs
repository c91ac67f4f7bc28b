use super::super::testing::{
    Random, address, bits, close, dense, f32s, gpu, halves, hardware, limits, poison, positions, strided,
};
use super::super::{
    Activation, Limits, Matmul, MatmulVariant, NormKind, Operand, Part, RowNorm, Scalar, View, takes_norm,
};

/// The view of a matrix product's operand at a batch position, aligned right.
fn at(view: &View, batch: &[u32], row: u32, column: u32) -> usize {
    let full = [batch, &[row, column]].concat();
    let cut = &full[full.len() - view.shape.len()..];
    let clamped: Vec<u32> = cut.iter().zip(&view.shape).map(|(i, d)| (*i).min(d - 1)).collect();
    address(view, &clamped)
}

#[derive(Clone)]
struct Case {
    a: Operand,
    norm: Option<(NormKind, Option<Operand>, Option<Operand>)>,
    parts: Vec<CasePart>,
    gated: bool,
    contract: usize,
    accumulate: bool,
}

#[derive(Clone)]
struct CasePart {
    b: Operand,
    out: Operand,
    bias: Option<Operand>,
    activation: Activation,
    alpha: f32,
    residual: Option<Operand>,
}

fn part(b: Operand, out: &[u32]) -> CasePart {
    let out = dense(out, Scalar::F32);
    CasePart { b, out, bias: None, activation: Activation::None, alpha: 1.0, residual: None }
}

fn plain(a: Operand, b: Operand, out: &[u32]) -> Case {
    Case { a, norm: None, parts: vec![part(b, out)], gated: false, contract: 0, accumulate: false }
}

/// Products of the widths that share a left operand `[rows, k]`.
fn several(rows: u32, k: u32, widths: &[u32]) -> Case {
    let of = |n: &u32| part(dense(&[k, *n], Scalar::F32), &[rows, *n]);
    let parts = widths.iter().map(of).collect();
    Case { parts, ..plain(dense(&[rows, k], Scalar::F32), dense(&[k, 1], Scalar::F32), &[rows, 1]) }
}

fn size(operand: &Operand) -> usize {
    let view = &operand.view;
    positions(&view.shape).iter().map(|p| address(view, p)).max().map_or(0, |m| m + 1)
}

const EPSILON: f32 = 1e-3;

/// What a function of the epilogue is, in double precision.
fn applied(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::SquaredRelu => x.max(0.0).powi(2),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => unreachable!("no erf in std"),
    }
}

/// An operand with its random data.
type Filled = (Operand, Vec<f32>);

fn check(case: &Case, variant: MatmulVariant, limits: &Limits, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let random = std::cell::RefCell::new(Random::new(seed));
    let fill = |operand: &Operand| -> Filled {
        let mut data = random.borrow_mut().floats(size(operand));
        if operand.scalar == Scalar::F16 {
            data.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
        (operand.clone(), data)
    };
    let maybe = |operand: &Option<Operand>| operand.as_ref().map(fill);
    let a = fill(&case.a);
    let norm = case.norm.as_ref().map(|(kind, scale, bias)| (*kind, maybe(scale), maybe(bias)));
    let parts: Vec<(Filled, Option<Filled>, Option<Filled>, Filled)> =
        case.parts.iter().map(|p| (fill(&p.b), maybe(&p.bias), maybe(&p.residual), fill(&p.out))).collect();
    let rank = case.parts[0].out.view.shape.len();
    let k = case.a.view.shape[case.a.view.shape.len() - 1];
    let read = |of: &Filled, batch: &[u32], row: u32, column: u32| {
        f64::from(of.1[at(&of.0.view, batch, row, column)])
    };
    // Row `row` of a as the products see it.
    let row_of = |batch: &[u32], row: u32| -> Vec<f64> {
        let raw: Vec<f64> = (0..k).map(|i| read(&a, batch, row, i)).collect();
        let Some((kind, scale, bias)) = &norm else { return raw };
        let mean = if *kind == NormKind::Layer { raw.iter().sum::<f64>() / f64::from(k) } else { 0.0 };
        let square = raw.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(k);
        let root = (square + f64::from(EPSILON)).sqrt();
        let factor =
            |of: &Option<Filled>, i: u32, none: f64| of.as_ref().map_or(none, |f| read(f, batch, row, i));
        (0..k)
            .map(|i| (raw[i as usize] - mean) / root * factor(scale, i, 1.0) + factor(bias, i, 0.0))
            .collect()
    };
    // What part `n` has at a position of its result, before the residual.
    let activated = |n: usize, p: &[u32]| {
        let (b, bias, _, _) = &parts[n];
        let (outer, row, column) = (&p[..rank - 2 - case.contract], p[rank - 2], p[rank - 1]);
        let contracted: Vec<u32> = (rank - 2 - case.contract..rank - 2)
            .map(|axis| {
                let of = |v: &View| v.shape.len().checked_sub(rank - axis).map_or(1, |i| v.shape[i]);
                of(&a.0.view).max(of(&b.0.view))
            })
            .collect();
        let mut sum = 0f64;
        for c in positions(&contracted) {
            let batch = [outer, &c].concat();
            let row = row_of(&batch, row);
            sum += (0..k).map(|i| row[i as usize] * read(b, &batch, i, column)).sum::<f64>();
        }
        sum += bias.as_ref().map_or(0.0, |bias| read(bias, &p[..rank - 2], row, column));
        applied(case.parts[n].activation, sum)
    };
    let results = if case.gated { 1 } else { parts.len() };
    let expected: Vec<Vec<f32>> = (0..results)
        .map(|n| {
            let (_, _, residual, old) = &parts[n];
            let at = |p: Vec<u32>| {
                let mut value = activated(n, &p);
                if case.gated {
                    value *= activated(1, &p);
                }
                value *= f64::from(case.parts[n].alpha);
                let (batch, row, column) = (&p[..rank - 2], p[rank - 2], p[rank - 1]);
                value += residual.as_ref().map_or(0.0, |r| read(r, batch, row, column));
                if case.accumulate {
                    value += read(old, batch, row, column);
                }
                value as f32
            };
            positions(&case.parts[n].out.view.shape).into_iter().map(at).collect()
        })
        .collect();

    let factors = |(kind, scale, bias): &(NormKind, Option<Filled>, Option<Filled>)| {
        (*kind, scale.as_ref().map(|s| s.0.clone()), bias.as_ref().map(|b| b.0.clone()))
    };
    let factors = norm.as_ref().map(factors);
    let spec = Matmul {
        a: &case.a,
        norm: factors.as_ref().map(|(kind, scale, bias)| RowNorm {
            kind: *kind,
            epsilon: EPSILON,
            scale: scale.as_ref(),
            bias: bias.as_ref(),
        }),
        parts: case
            .parts
            .iter()
            .map(|p| Part {
                b: &p.b,
                coding: None,
                out: &p.out,
                bias: p.bias.as_ref(),
                activation: p.activation,
                alpha: p.alpha,
                residual: p.residual.as_ref(),
            })
            .collect(),
        gated: case.gated,
        contract: case.contract,
        accumulate: case.accumulate,
    };
    let launch = spec.launch_as(variant, limits).unwrap();
    let words = |of: &Filled| if of.0.scalar == Scalar::F16 { halves(&of.1) } else { bits(&of.1) };
    let mut reads = vec![words(&a)];
    let (scale, bias) = norm.map_or((None, None), |(_, scale, bias)| (scale, bias));
    reads.extend(scale.iter().chain(&bias).map(words));
    for (b, bias, residual, _) in &parts {
        reads.push(words(b));
        reads.extend(bias.iter().chain(residual).map(words));
    }
    let reads: Vec<&[u32]> = reads.iter().map(|r| &r[..]).collect();
    let start = |old: &Filled| if case.accumulate { bits(&old.1) } else { poison(old.1.len()) };
    let mut writes: Vec<Vec<u32>> = parts.iter().take(results).map(|(_, _, _, old)| start(old)).collect();
    gpu.run(&launch, &reads, &mut writes);
    for (n, expected) in expected.iter().enumerate() {
        let all = f32s(&writes[n]);
        let view = &case.parts[n].out.view;
        let actual: Vec<f32> = positions(&view.shape).iter().map(|p| all[address(view, p)]).collect();
        // Factors grow the error of each other.
        let size = expected.iter().fold(1f32, |m, x| m.max(x.abs())).sqrt();
        let absolute = if case.gated { size } else { 1.0 };
        close(&actual, expected, 1e-5 * absolute * (k as f32).sqrt().max(1.0), 1e-5);
    }
}

/// Room for what several parts bind.
fn roomy(limits: Limits) -> Limits {
    Limits { max_storage_buffers: 16, ..limits }
}

fn every(case: &Case, seed: u64) {
    let layer = case.norm.as_ref().is_some_and(|(kind, ..)| *kind == NormKind::Layer);
    if !layer {
        check(case, MatmulVariant::Software, &roomy(limits()), seed);
        if let Some(gpu) = gpu().filter(|g| g.limits().subgroup_size == 8) {
            check(case, MatmulVariant::Subgroup, &roomy(gpu.limits()), seed);
        }
    }
    check(case, MatmulVariant::Gemv, &roomy(hardware()), seed);
    check(case, MatmulVariant::Tiled, &roomy(hardware()), seed);
    if let Some(limits) = cooperative() {
        let mut case = case.clone();
        case.parts.iter_mut().for_each(|p| p.b.scalar = Scalar::F16);
        check(&case, MatmulVariant::Cooperative, &limits, seed);
    }
}

/// Limits of a device with cooperative matrices; nothing, and a line on stderr, where there is none.
fn cooperative() -> Option<Limits> {
    static TOLD: std::sync::Once = std::sync::Once::new();
    let found = gpu()?.cooperative().map(|l| Limits { max_workgroup_memory: 32 << 10, ..roomy(l) });
    if found.is_none() {
        TOLD.call_once(|| eprintln!("SKIPPED: cooperative matrices, which this device has not"));
    }
    found
}

#[test]
fn tile_edges() {
    // Both sides of 1, 4, 8, 16, 64, 256 rows; 4, 32, 64, 128 columns; 16 deep.
    let sizes = [
        (1, 1, 1),
        (7, 3, 5),
        (8, 16, 128),
        (9, 17, 129),
        (16, 5, 32),
        (17, 5, 33),
        (63, 15, 63),
        (64, 16, 64),
        (65, 33, 65),
        (257, 3, 33),
    ];
    for (n, (m, k, columns)) in sizes.into_iter().enumerate() {
        let case = plain(dense(&[m, k], Scalar::F32), dense(&[k, columns], Scalar::F32), &[m, columns]);
        every(&case, n as u64);
    }
}

#[test]
fn transposed_and_half_weights() {
    for (m, k, n) in [(1, 40, 70), (3, 33, 31), (5, 16, 32), (66, 18, 65)] {
        let x = dense(&[m, k], Scalar::F32);
        every(&plain(x.clone(), strided(&[k, n], &[1, k], 0), &[m, n]), 1);
        every(&plain(x.clone(), Operand { scalar: Scalar::F16, ..strided(&[k, n], &[1, k], 3) }, &[m, n]), 2);
        every(&plain(x, Operand { scalar: Scalar::F16, ..dense(&[k, n], Scalar::F16) }, &[m, n]), 3);
    }
}

#[test]
fn batches_broadcast_and_contract() {
    // Units as a batch, a shared left operand.
    let units = plain(dense(&[5, 12], Scalar::F32), dense(&[3, 12, 9], Scalar::F32), &[3, 5, 9]);
    every(&units, 1);
    // Rows of several batch axes join when b lacks them.
    every(&plain(dense(&[2, 3, 4, 8], Scalar::F32), dense(&[8, 9], Scalar::F32), &[2, 3, 4, 9]), 2);
    every(&plain(dense(&[7, 1, 8], Scalar::F32), dense(&[8, 9], Scalar::F32), &[7, 1, 9]), 3);
    // Heads in place: [T, H, d] seen as [H, T, d].
    let heads = strided(&[2, 4, 6, 8], &[6 * 32, 8, 32, 1], 0);
    every(&plain(heads.clone(), dense(&[2, 4, 8, 5], Scalar::F32), &[2, 4, 6, 5]), 4);
    // Sum over units.
    let mut sum = plain(dense(&[2, 3, 5, 12], Scalar::F32), dense(&[3, 12, 9], Scalar::F32), &[2, 1, 5, 9]);
    sum.contract = 1;
    every(&sum, 5);
    let mut both = plain(heads, dense(&[2, 4, 8, 5], Scalar::F32), &[1, 1, 6, 5]);
    both.contract = 2;
    every(&both, 6);
}

#[test]
fn epilogues() {
    let mut case = plain(dense(&[3, 5, 12], Scalar::F32), dense(&[3, 12, 37], Scalar::F32), &[3, 5, 37]);
    case.parts[0].bias = Some(dense(&[3, 1, 37], Scalar::F32));
    case.parts[0].activation = Activation::Silu;
    case.parts[0].alpha = 0.5;
    case.parts[0].residual = Some(dense(&[5, 37], Scalar::F32));
    every(&case, 1);
    case.parts[0].bias = None;
    case.accumulate = true;
    every(&case, 2);
    // A result in place within something larger, and bias along rows.
    let mut piece = plain(dense(&[5, 12], Scalar::F32), dense(&[12, 7], Scalar::F32), &[5, 7]);
    piece.parts[0].out = strided(&[5, 7], &[20, 1], 11);
    piece.parts[0].bias = Some(strided(&[5, 7], &[1, 0], 2));
    every(&piece, 3);
}

#[test]
fn an_empty_contraction_gives_zero() {
    every(&plain(dense(&[3, 0], Scalar::F32), dense(&[0, 4], Scalar::F32), &[3, 4]), 1);
}

#[test]
fn functions_of_the_epilogue() {
    use Activation::{GeluTanh, Relu, Sigmoid, SquaredRelu, Tanh};
    for (seed, activation) in (1..).zip([Relu, GeluTanh, Sigmoid, SquaredRelu, Tanh]) {
        let mut case = plain(dense(&[2, 12], Scalar::F32), dense(&[12, 5], Scalar::F32), &[2, 5]);
        case.parts[0].activation = activation;
        check(&case, MatmulVariant::Gemv, &hardware(), seed);
    }
}

#[test]
fn parts_share_a_dispatch() {
    // Both sides of a tile of columns, in every place; one row, a few, and more than a tile.
    for (seed, (rows, widths)) in (1..).zip([
        (1, &[64, 16, 16][..]),
        (1, &[7, 33, 129, 1]),
        (4, &[31, 32]),
        (5, &[65, 1, 64]),
        (17, &[129, 40, 8, 3]),
        (66, &[32, 63]),
    ]) {
        every(&several(rows, 40, widths), seed);
    }
    // Each with an epilogue of its own, in the units of a batch, the first result within something larger.
    let mut case = several(3, 12, &[20, 9, 33]);
    for (part, n) in case.parts.iter_mut().zip([20, 9, 33]) {
        part.b = dense(&[2, 12, n], Scalar::F32);
        part.out = dense(&[2, 3, n], Scalar::F32);
    }
    case.parts[0].out = strided(&[2, 3, 20], &[100, 30, 1], 5);
    case.parts[0].activation = Activation::Silu;
    case.parts[1].bias = Some(dense(&[2, 1, 9], Scalar::F32));
    case.parts[2].residual = Some(dense(&[3, 33], Scalar::F32));
    case.parts[2].alpha = -2.0;
    every(&case, 9);
    // Weights of both halves of the precision, transposed.
    let mut case = several(3, 14, &[18, 40]);
    for (part, n) in case.parts.iter_mut().zip([18, 40]) {
        part.b = Operand { scalar: Scalar::F16, ..strided(&[14, n], &[1, 14], 1) };
    }
    every(&case, 10);
}

#[test]
fn gated_products() {
    for (seed, (rows, k, n)) in
        (1..).zip([(1, 40, 7), (1, 12, 130), (3, 33, 16), (5, 16, 17), (17, 20, 65), (66, 9, 32)])
    {
        let mut case = several(rows, k, &[n, n]);
        case.gated = true;
        case.parts[0].activation = Activation::Silu;
        every(&case, seed);
        case.parts[0].bias = Some(dense(&[n], Scalar::F32));
        case.parts[1].bias = Some(dense(&[n], Scalar::F32));
        case.parts[1].activation = Activation::Tanh;
        case.parts[0].residual = Some(dense(&[rows, n], Scalar::F32));
        case.parts[0].alpha = 3.0;
        every(&case, seed + 100);
    }
    // The two halves of one matrix, and units of a batch.
    let mut case = several(2, 12, &[9, 9]);
    case.gated = true;
    for (part, offset) in case.parts.iter_mut().zip([0, 9]) {
        part.b = strided(&[3, 12, 9], &[216, 18, 1], offset);
        part.out = dense(&[3, 2, 9], Scalar::F32);
    }
    every(&case, 50);
}

#[test]
fn rows_are_normalised_as_they_are_read() {
    let factor = |shape: &[u32]| Some(dense(shape, Scalar::F32));
    for (seed, (rows, k)) in (1..).zip([(1, 40), (1, 3), (4, 300), (5, 33), (9, 16), (65, 17), (70, 260)]) {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let mut case = several(rows, k, &[33, 5]);
            case.norm = Some((kind, None, None));
            every(&case, seed);
            case.norm = Some((kind, factor(&[k]), None));
            case.gated = true;
            case.parts[0] = part(dense(&[k, 5], Scalar::F32), &[rows, 5]);
            every(&case, seed + 100);
        }
        let mut case = several(rows, k, &[33]);
        case.norm = Some((NormKind::Layer, factor(&[k]), factor(&[1, k])));
        every(&case, seed + 200);
    }
    // A shared state, with factors of each unit.
    let mut case = plain(dense(&[1, 5, 12], Scalar::F32), dense(&[3, 12, 9], Scalar::F32), &[3, 5, 9]);
    case.norm = Some((NormKind::Rms, factor(&[3, 1, 12]), None));
    every(&case, 1);
    case.norm = Some((NormKind::Layer, factor(&[3, 1, 12]), factor(&[3, 1, 12])));
    every(&case, 2);
}

#[test]
fn a_norm_with_a_factor_for_each_row_is_refused() {
    // One row of each batch element, whose factors differ: rows and batch are one axis to the kernel.
    let (a, b) = (dense(&[3, 1, 16], Scalar::F32), dense(&[16, 4], Scalar::F32));
    let out = dense(&[3, 1, 4], Scalar::F32);
    for (shape, fits) in [(&[3, 1, 16][..], false), (&[1, 1, 16], true), (&[16], true)] {
        let scale = dense(shape, Scalar::F32);
        let norm = RowNorm { kind: NormKind::Rms, epsilon: 0.0, scale: Some(&scale), bias: None };
        let parts = vec![Part::new(&b, &out)];
        let spec = Matmul { a: &a, norm: Some(norm), parts, gated: false, contract: 0, accumulate: false };
        assert_eq!(spec.launch(&hardware()).is_ok(), fits, "{shape:?}");
    }
}

#[test]
fn misfits_are_refused() {
    let (a, b, out) = (dense(&[2, 3], Scalar::F32), dense(&[4, 5], Scalar::F32), dense(&[2, 5], Scalar::F32));
    let spec = |a, b, out| Matmul {
        a,
        norm: None,
        parts: vec![Part::new(b, out)],
        gated: false,
        contract: 0,
        accumulate: false,
    };
    assert!(spec(&a, &b, &out).launch(&limits()).is_err());
    let b = dense(&[3, 5], Scalar::I32);
    assert!(spec(&a, &b, &out).launch(&limits()).is_err());
    let b = dense(&[3, 5], Scalar::F32);
    assert!(spec(&a, &b, &out).launch(&limits()).is_ok());
    // Parts that are not alike, too many of them, and more buffers than there may be.
    let half = Operand { scalar: Scalar::F16, ..b.clone() };
    let with = |parts: Vec<_>| Matmul { parts, ..spec(&a, &b, &out) };
    let one = Part::new(&b, &out);
    assert!(with(vec![one, Part::new(&half, &out)]).launch(&limits()).is_err());
    assert!(with(vec![one; 5]).launch(&roomy(limits())).is_err());
    assert!(with(vec![one; 4]).launch(&roomy(limits())).is_ok());
    assert!(with(vec![one; 4]).launch(&Limits { max_storage_buffers: 8, ..limits() }).is_err());
    assert!(Matmul { gated: true, ..with(vec![one; 3]) }.launch(&limits()).is_err());
    assert!(Matmul { accumulate: true, ..with(vec![one; 2]) }.launch(&limits()).is_err());
    // Norms that no product takes.
    let (wide, each) = (dense(&[3], Scalar::F32), dense(&[2, 3], Scalar::F32));
    let norm = |kind, scale, bias| RowNorm { kind, epsilon: 0.0, scale, bias };
    let under = |norm| Matmul { norm: Some(norm), ..spec(&a, &b, &out) };
    assert!(under(norm(NormKind::Rms, Some(&wide), None)).launch(&limits()).is_ok());
    assert!(under(norm(NormKind::Rms, Some(&each), None)).launch(&limits()).is_err());
    assert!(under(norm(NormKind::Rms, None, Some(&wide))).launch(&limits()).is_err());
    assert!(under(norm(NormKind::Layer, None, Some(&wide))).launch(&limits()).is_err());
    assert!(under(norm(NormKind::Layer, None, Some(&wide))).launch(&hardware()).is_ok());
    for kind in [NormKind::Rms, NormKind::Layer] {
        for limits in [limits(), hardware()] {
            let taken = takes_norm(kind, false, 2, &limits);
            assert_eq!(taken, under(norm(kind, None, None)).launch(&limits).is_ok());
        }
    }
}

/// Prints rates; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn rates() {
    let Some(gpu) = gpu() else { return };
    for (m, k, n, transposed) in [
        (256, 256, 256, false),
        (256, 256, 256, true),
        (64, 640, 2560, false),
        (1, 1024, 1024, false),
        (1, 1024, 1024, true),
        (4, 1024, 1024, false),
    ] {
        let a = dense(&[m, k], Scalar::F32);
        let b = if transposed { strided(&[k, n], &[1, k], 0) } else { dense(&[k, n], Scalar::F32) };
        let out = dense(&[m, n], Scalar::F32);
        let parts = vec![Part::new(&b, &out)];
        let spec = Matmul { a: &a, norm: None, parts, gated: false, contract: 0, accumulate: false };
        let mut random = Random::new(1);
        let x = bits(&random.floats((m * k) as usize));
        let w = bits(&random.floats((k * n) as usize));
        for variant in
            [MatmulVariant::Software, MatmulVariant::Subgroup, MatmulVariant::Gemv, MatmulVariant::Tiled]
        {
            let Ok(launch) = spec.launch_as(variant, &gpu.limits()) else { continue };
            let mut writes = [vec![0; (m * n) as usize]];
            let seconds = gpu.run_timed(&launch, &[&x, &w], &mut writes, 4);
            let rate = launch.flops as f64 / seconds / 1e9;
            eprintln!("{m}x{k}x{n} transposed={transposed} {variant:?}: {rate:.2} GFLOP/s");
        }
    }
}

#[test]
fn cooperative_matrices_keep_rows_of_any_size() {
    let Some((gpu, limits)) = gpu().zip(cooperative()) else { return };
    let (m, k, n) = (40u32, 33u32, 35u32);
    let (a, out) = (dense(&[m, k], Scalar::F32), dense(&[m, n], Scalar::F32));
    let b = dense(&[k, n], Scalar::F16);
    let parts = vec![Part::new(&b, &out)];
    let spec = Matmul { a: &a, norm: None, parts, gated: false, contract: 0, accumulate: false };
    let launch = spec.launch_as(MatmulVariant::Cooperative, &limits).unwrap();
    let mut random = Random::new(5);
    let size = |row: u32| if row == 0 { 0.0 } else { 10f64.powi(2 * row as i32 - 40) };
    let mut x: Vec<f32> = random.floats((m * k) as usize);
    x.iter_mut().enumerate().for_each(|(i, v)| *v = (f64::from(*v) * size(i as u32 / k)) as f32);
    // Rows 38 and 39 have one element each that is no number.
    x[38 * 33 + 4] = f32::INFINITY;
    x[39 * 33 + 20] = f32::NAN;
    let w: Vec<f32> = random
        .floats((k * n) as usize)
        .iter()
        .map(|v| half::f16::from_f32(v.abs() + 0.01).to_f32())
        .collect();
    let got = f32s(&gpu.run_one(&launch, &[&bits(&x), &halves(&w)], (m * n) as usize));
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let actual = got[(i * n + j) as usize];
        match i {
            38 => assert_eq!(actual, f32::INFINITY),
            39 => assert!(actual.is_nan()),
            _ => {
                let terms =
                    (0..k).map(|p| f64::from(x[(i * k + p) as usize]) * f64::from(w[(p * n + j) as usize]));
                let expected: f64 = terms.sum();
                // Sums of f32 have denormal numbers at best below.
                let allowed = 1e-6 * size(i) * f64::from(k) + 1e-37;
                assert!((f64::from(actual) - expected).abs() <= allowed, "({i}, {j}): {actual}, {expected}");
            }
        }
    }
}

#[test]
fn rows_of_next_to_nothing_are_normalised() {
    let Some(gpu) = gpu() else { return };
    let (m, k, n) = (24u32, 40u32, 20u32);
    let (a, out, factor) =
        (dense(&[m, k], Scalar::F32), dense(&[m, n], Scalar::F32), dense(&[k], Scalar::F32));
    let b = dense(&[k, n], Scalar::F16);
    let mut random = Random::new(11);
    let w: Vec<f32> =
        random.floats((k * n) as usize).iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    let drawn = random.floats((m * k) as usize);
    // Zeros, constants, and rows of 1e-36 to 1e2.
    let x: Vec<f32> = (0..m * k)
        .map(|i| match i / k {
            0 => 0.0,
            1 => 0.25,
            row => (f64::from(drawn[i as usize]) * 10f64.powi(2 * row as i32 - 40)) as f32,
        })
        .collect();
    let plain: Vec<f32> = random.floats(k as usize);
    for (kind, factors) in [
        (NormKind::Rms, None),
        (NormKind::Rms, Some(&plain)),
        (NormKind::Rms, Some(&vec![0.0; k as usize])),
        (NormKind::Layer, None),
        (NormKind::Layer, Some(&plain)),
    ] {
        let norm = RowNorm { kind, epsilon: 1e-6, scale: factors.map(|_| &factor), bias: None };
        let parts = vec![Part::new(&b, &out)];
        let spec = Matmul { a: &a, norm: Some(norm), parts, gated: false, contract: 0, accumulate: false };
        let of = |factors: Option<&Vec<f32>>, p: usize| factors.map_or(1.0, |f| f64::from(f[p]));
        // Each with the size of its summands.
        let expected: Vec<(f64, f64)> = (0..m * n)
            .map(|at| {
                let row = &x[(at / n * k) as usize..][..k as usize];
                let each = row.iter().map(|v| f64::from(*v));
                let mean =
                    if kind == NormKind::Layer { each.clone().sum::<f64>() / f64::from(k) } else { 0.0 };
                let square = each.clone().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(k);
                let root = 1.0 / (square + 1e-6).sqrt();
                each.enumerate().fold((0.0, 0.0), |(sum, size), (p, v)| {
                    let factor = root * of(factors, p) * f64::from(w[p * n as usize + (at % n) as usize]);
                    (sum + (v - mean) * factor, size + (v.abs() + mean.abs()) * factor.abs())
                })
            })
            .collect();
        let mut devices = vec![(MatmulVariant::Tiled, hardware())];
        devices.extend(cooperative().map(|l| (MatmulVariant::Cooperative, l)));
        for (variant, limits) in devices {
            let launch = spec.launch_as(variant, &limits).unwrap();
            let (x, w, f) = (bits(&x), halves(&w), factors.map(|f| bits(f)));
            let reads: Vec<&[u32]> =
                [Some(&x), f.as_ref(), Some(&w)].into_iter().flatten().map(Vec::as_slice).collect();
            let got = f32s(&gpu.run_one(&launch, &reads, (m * n) as usize));
            for (i, (actual, (expected, size))) in got.iter().zip(&expected).enumerate() {
                let off = (f64::from(*actual) - expected).abs();
                // Denormal products may be lost before the root, of 1e3, is taken.
                assert!(off <= 1e-6 * size + 1e-34, "{variant:?} {kind:?} {i}: {actual}, {expected}");
            }
        }
    }
}
