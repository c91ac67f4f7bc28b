use super::super::testing::{
    Random, address, bits, close, dense, f32s, gpu, halves, hardware, limits, positions, strided,
};
use super::super::{ElementOp, Limits, Matmul, MatmulVariant, Operand, Scalar, View};

/// The view of a matrix product's operand at a batch position, aligned right.
fn at(view: &View, batch: &[u32], row: u32, column: u32) -> usize {
    let full = [batch, &[row, column]].concat();
    let cut = &full[full.len() - view.shape.len()..];
    let clamped: Vec<u32> = cut.iter().zip(&view.shape).map(|(i, d)| (*i).min(d - 1)).collect();
    address(view, &clamped)
}

struct Case {
    a: Operand,
    b: Operand,
    out: Operand,
    contract: usize,
    bias: Option<Operand>,
    residual: Option<Operand>,
    accumulate: bool,
    activation: Option<ElementOp>,
}

fn plain(a: Operand, b: Operand, out: &[u32]) -> Case {
    let out = dense(out, Scalar::F32);
    Case { a, b, out, contract: 0, bias: None, residual: None, accumulate: false, activation: None }
}

fn size(operand: &Operand) -> usize {
    let view = &operand.view;
    positions(&view.shape).iter().map(|p| address(view, p)).max().map_or(0, |m| m + 1)
}

fn check(case: &Case, variant: MatmulVariant, limits: &Limits, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(seed);
    let a = random.floats(size(&case.a));
    let mut b = random.floats(size(&case.b));
    if case.b.scalar == Scalar::F16 {
        b.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
    }
    let extra = |o: &Option<Operand>, random: &mut Random| o.as_ref().map(|o| random.floats(size(o)));
    let bias = extra(&case.bias, &mut random);
    let residual = extra(&case.residual, &mut random);
    let old = random.floats(size(&case.out));

    let shape = &case.out.view.shape;
    let rank = shape.len();
    let k = case.a.view.shape[case.a.view.shape.len() - 1];
    let contracted: Vec<u32> = (rank - 2 - case.contract..rank - 2)
        .map(|axis| {
            let back = rank - axis;
            let of = |v: &View| v.shape.len().checked_sub(back).map_or(1, |i| v.shape[i]);
            of(&case.a.view).max(of(&case.b.view))
        })
        .collect();
    let mut expected = vec![];
    for p in positions(shape) {
        let (outer, row, column) = (&p[..rank - 2 - case.contract], p[rank - 2], p[rank - 1]);
        let mut sum = 0f64;
        for c in positions(&contracted) {
            let batch = [outer, &c].concat();
            for i in 0..k {
                sum += f64::from(a[at(&case.a.view, &batch, row, i)])
                    * f64::from(b[at(&case.b.view, &batch, i, column)]);
            }
        }
        if let (Some(o), Some(v)) = (&case.bias, &bias) {
            sum += f64::from(v[at(&o.view, &p[..rank - 2], row, column)]);
        }
        if case.activation == Some(ElementOp::Silu) {
            sum /= 1.0 + (-sum).exp();
        }
        if let (Some(o), Some(v)) = (&case.residual, &residual) {
            sum += f64::from(v[at(&o.view, &p[..rank - 2], row, column)]);
        }
        if case.accumulate {
            sum += f64::from(old[address(&case.out.view, &p)]);
        }
        expected.push(sum as f32);
    }

    let spec = Matmul {
        a: &case.a,
        b: &case.b,
        coding: None,
        out: &case.out,
        contract: case.contract,
        accumulate: case.accumulate,
        bias: case.bias.as_ref(),
        activation: case.activation,
        residual: case.residual.as_ref(),
    };
    let launch = spec.launch_as(variant, limits).unwrap();
    let a = bits(&a);
    let b = if case.b.scalar == Scalar::F16 { halves(&b) } else { bits(&b) };
    let bias = bias.map(|v| bits(&v));
    let residual = residual.map(|v| bits(&v));
    let start = if case.accumulate { bits(&old) } else { super::super::testing::poison(old.len()) };
    let mut writes = [start];
    gpu.run(
        &launch,
        &[&a, &b, &a, &a, bias.as_ref().unwrap_or(&a), residual.as_ref().unwrap_or(&a)],
        &mut writes,
    );
    let all = f32s(&writes[0]);
    let actual: Vec<f32> = positions(shape).iter().map(|p| all[address(&case.out.view, p)]).collect();
    close(&actual, &expected, 1e-5 * (k as f32).sqrt().max(1.0), 1e-5);
}

fn every(case: &Case, seed: u64) {
    check(case, MatmulVariant::Software, &limits(), seed);
    if let Some(gpu) = gpu().filter(|g| g.limits().subgroup_size == 8) {
        check(case, MatmulVariant::Subgroup, &gpu.limits(), seed);
    }
    check(case, MatmulVariant::Gemv, &hardware(), seed);
    check(case, MatmulVariant::Tiled, &hardware(), seed);
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
    case.bias = Some(dense(&[3, 1, 37], Scalar::F32));
    case.activation = Some(ElementOp::Silu);
    case.residual = Some(dense(&[5, 37], Scalar::F32));
    every(&case, 1);
    case.bias = None;
    case.accumulate = true;
    every(&case, 2);
    // A result in place within something larger, and bias along rows.
    let mut piece = plain(dense(&[5, 12], Scalar::F32), dense(&[12, 7], Scalar::F32), &[5, 7]);
    piece.out = strided(&[5, 7], &[20, 1], 11);
    piece.bias = Some(strided(&[5, 7], &[1, 0], 2));
    every(&piece, 3);
}

#[test]
fn an_empty_contraction_gives_zero() {
    every(&plain(dense(&[3, 0], Scalar::F32), dense(&[0, 4], Scalar::F32), &[3, 4]), 1);
}

#[test]
fn misfits_are_refused() {
    let (a, b, out) = (dense(&[2, 3], Scalar::F32), dense(&[4, 5], Scalar::F32), dense(&[2, 5], Scalar::F32));
    let spec = |a, b, out| Matmul {
        a,
        b,
        coding: None,
        out,
        contract: 0,
        accumulate: false,
        bias: None,
        activation: None,
        residual: None,
    };
    assert!(spec(&a, &b, &out).launch(&limits()).is_err());
    let b = dense(&[3, 5], Scalar::I32);
    assert!(spec(&a, &b, &out).launch(&limits()).is_err());
    let b = dense(&[3, 5], Scalar::F32);
    assert!(spec(&a, &b, &out).launch(&limits()).is_ok());
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
        let spec = Matmul {
            a: &a,
            b: &b,
            coding: None,
            out: &out,
            contract: 0,
            accumulate: false,
            bias: None,
            activation: None,
            residual: None,
        };
        let mut random = Random::new(1);
        let x = bits(&random.floats((m * k) as usize));
        let w = bits(&random.floats((k * n) as usize));
        for variant in
            [MatmulVariant::Software, MatmulVariant::Subgroup, MatmulVariant::Gemv, MatmulVariant::Tiled]
        {
            let Ok(launch) = spec.launch_as(variant, &gpu.limits()) else { continue };
            let mut writes = [vec![0; (m * n) as usize]];
            let seconds = gpu.run_timed(&launch, &[&x, &w, &x, &x, &x, &x], &mut writes, 4);
            let rate = launch.flops as f64 / seconds / 1e9;
            eprintln!("{m}x{k}x{n} transposed={transposed} {variant:?}: {rate:.2} GFLOP/s");
        }
    }
}
