use snlp_passes::ir::{Binary, DType, Unary};

use super::super::testing::{
    Random, address, bits, close, dense, elements, f32s, gpu, halves, hardware, limits, poison, positions,
    strided,
};
use super::super::{ElementOp as E, Elementwise, Limits, Operand, Program, Reg, Scalar, View};

/// Runs a program over flat inputs of one length.
fn flat(program: &Program, inputs: &[Vec<u32>], limits: &Limits) -> Option<Vec<Vec<u32>>> {
    let gpu = gpu()?;
    let len = inputs[0].len();
    let operand = dense(&[len as u32], Scalar::F32);
    let reads: Vec<&Operand> = inputs.iter().map(|_| &operand).collect();
    let outputs: Vec<&Operand> = program.results.iter().map(|_| &operand).collect();
    let spec = Elementwise { program, inputs: &reads, indices: &[], outputs: &outputs };
    let launch = spec.launch(limits).unwrap();
    let reads: Vec<&[u32]> = inputs.iter().map(|i| &i[..]).collect();
    let mut writes = vec![poison(len); program.results.len()];
    gpu.run(&launch, &reads, &mut writes);
    Some(writes)
}

/// Abramowitz and Stegun would not do: the series and the continued fraction, in f64.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.2 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn unary(op: E, x: f64, b: f64, c: f64) -> f64 {
    match op {
        E::NegF => -x,
        E::AbsF => x.abs(),
        E::SignF => {
            if x == 0.0 || x.is_nan() {
                x
            } else {
                x.signum()
            }
        }
        E::Exp => x.exp(),
        E::Log => x.ln(),
        E::Sqrt => x.sqrt(),
        E::Reciprocal => 1.0 / x,
        E::Sin => x.sin(),
        E::Cos => x.cos(),
        E::Tan => x.tan(),
        E::Asin => x.asin(),
        E::Acos => x.acos(),
        E::Atan => x.atan(),
        E::Sinh => x.sinh(),
        E::Cosh => x.cosh(),
        E::Asinh => x.asinh(),
        E::Acosh => x.acosh(),
        E::Atanh => x.atanh(),
        E::Tanh => x.tanh(),
        E::Erf => erf(x),
        E::Floor => x.floor(),
        E::Ceil => x.ceil(),
        E::Round => x.round_ties_even(),
        E::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        E::Sigmoid => sigmoid(x),
        E::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        E::Softsign => x / (1.0 + x.abs()),
        E::Mish => x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
        E::Silu => x * sigmoid(x),
        E::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        E::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        E::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        E::RoundF16 => half::f16::from_f64(x).to_f64(),
        E::RoundBf16 => half::bf16::from_f64(x).to_f64(),
        E::Swish => x * sigmoid(b * x),
        E::LeakyRelu => {
            if x < 0.0 {
                b * x
            } else {
                x
            }
        }
        E::Elu => {
            if x < 0.0 {
                b * x.exp_m1()
            } else {
                x
            }
        }
        E::Celu => {
            if x < 0.0 {
                b * (x / b).exp_m1()
            } else {
                x
            }
        }
        E::Selu => c * if x <= 0.0 { b * x.exp_m1() } else { x },
        E::ThresholdedRelu => {
            if x > b {
                x
            } else {
                0.0
            }
        }
        E::HardSigmoid => (b * x + c).clamp(0.0, 1.0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_float_function() {
    let everywhere: Vec<f32> = (-60..=60)
        .map(|i| i as f32 * 0.173)
        .chain([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, 1e-4, -3e-6, 25.0, -40.0, 6.1e-5, 3e-7, 1e-3])
        .collect();
    let extremes = [88.0f32, -200.0, 1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let all: Vec<f32> = everywhere.iter().chain(&extremes).copied().collect();
    let positive: Vec<f32> = all.iter().copied().filter(|x| *x >= 0.0 || x.is_nan()).collect();
    let unit: Vec<f32> = (-50..=50).map(|i| i as f32 / 50.0).collect();
    let from_one: Vec<f32> = (0..50).map(|i| 1.0 + i as f32 * 0.3).collect();
    let inside: Vec<f32> = (-49..=49).map(|i| i as f32 / 50.0).collect();
    let half_range: Vec<f32> = all.iter().copied().chain([65519.0, 65520.0, 70000.0]).collect();
    let cases: Vec<(E, &[f32])> = [
        E::NegF,
        E::AbsF,
        E::SignF,
        E::Exp,
        E::Reciprocal,
        E::Atan,
        E::Tanh,
        E::Erf,
        E::Floor,
        E::Ceil,
        E::Round,
        E::Relu,
        E::Sigmoid,
        E::Softplus,
        E::LeakyRelu,
        E::Elu,
        E::Celu,
        E::Selu,
        E::ThresholdedRelu,
        E::HardSigmoid,
    ]
    .into_iter()
    .map(|op| (op, &all[..]))
    .chain([E::Log, E::Sqrt].into_iter().map(|op| (op, &positive[..])))
    .chain(
        [
            E::Sin,
            E::Cos,
            E::Sinh,
            E::Cosh,
            E::Asinh,
            E::Softsign,
            E::Mish,
            E::Silu,
            E::GeluErf,
            E::GeluTanh,
            E::HardSwish,
            E::Swish,
        ]
        .into_iter()
        .map(|op| (op, &everywhere[..])),
    )
    .chain([
        (E::Tan, &unit[..]),
        (E::Asin, &unit),
        (E::Acos, &unit),
        (E::Acosh, &from_one),
        (E::Atanh, &inside),
    ])
    .chain([(E::RoundF16, &half_range[..]), (E::RoundBf16, &everywhere)])
    .collect();
    for (op, values) in cases {
        let mut program = Program::new(1);
        let (b, c) = (0.7f32, 1.05f32);
        let operands = [Reg::Input(0), program.float(b), program.float(c)];
        let result = program.step(op, &operands);
        program.results = vec![result];
        let Some(out) = flat(&program, &[bits(values)], &limits()) else { return };
        let expected: Vec<f32> =
            values.iter().map(|x| unary(op, f64::from(*x), f64::from(b), f64::from(c)) as f32).collect();
        eprintln!("{op:?}");
        let (absolute, relative) = match op {
            E::RoundF16 | E::RoundBf16 | E::Floor | E::Ceil | E::Round | E::NegF | E::AbsF => (0.0, 0.0),
            // The driver's approximations of these are coarse.
            E::Asin | E::Acos | E::Atan | E::Tan | E::Sin | E::Cos | E::Acosh => (1e-3, 1e-4),
            E::Exp | E::Cosh | E::Sinh => (1e-7, 4e-6),
            _ => (1e-6, 3e-6),
        };
        close(&f32s(&out[0]), &expected, absolute, relative);
    }
}

fn pairs(values: &[f32]) -> (Vec<f32>, Vec<f32>) {
    values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))).unzip()
}

#[test]
fn float_pairs() {
    let values = [
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        2.0,
        -2.0,
        3.0,
        0.5,
        -0.5,
        7.25,
        -3.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    let (a, b) = pairs(&values);
    let cases: [(Binary, fn(f64, f64) -> f64); 13] = [
        (Binary::Add, |a, b| a + b),
        (Binary::Sub, |a, b| a - b),
        (Binary::Mul, |a, b| a * b),
        (Binary::Div, |a, b| a / b),
        (Binary::Pow, |a, b| a.powf(b)),
        (Binary::Min, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }),
        (Binary::Max, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }),
        (Binary::PRelu, |a, b| if a < 0.0 { a * b } else { a }),
        (Binary::Equal, |a, b| f64::from(u8::from(a == b))),
        (Binary::Less, |a, b| f64::from(u8::from(a < b))),
        (Binary::LessOrEqual, |a, b| f64::from(u8::from(a <= b))),
        (Binary::Greater, |a, b| f64::from(u8::from(a > b))),
        (Binary::GreaterOrEqual, |a, b| f64::from(u8::from(a >= b))),
    ];
    for (op, reference) in cases {
        let mut program = Program::new(2);
        let mut result = program.binary(op, Reg::Input(0), Reg::Input(1), Scalar::F32).unwrap();
        if op.is_predicate() {
            result = program.cast(result, Scalar::Bool, DType::F32);
        }
        program.results = vec![result];
        let Some(out) = flat(&program, &[bits(&a), bits(&b)], &limits()) else { return };
        let expected: Vec<f32> =
            a.iter().zip(&b).map(|(a, b)| reference(f64::from(*a), f64::from(*b)) as f32).collect();
        eprintln!("{op:?}");
        close(&f32s(&out[0]), &expected, 0.0, 3e-6);
    }
    let finite = [1.0f32, -1.0, 2.5, -2.5, 7.0, -7.0, 0.75];
    let (a, b) = pairs(&finite);
    let cases: [(Binary, fn(f32, f32) -> f32); 2] =
        [(Binary::Mod, |a, b| a - b * (a / b).floor()), (Binary::Fmod, |a, b| a % b)];
    for (op, reference) in cases {
        let mut program = Program::new(2);
        program.results = vec![program.binary(op, Reg::Input(0), Reg::Input(1), Scalar::F32).unwrap()];
        let Some(out) = flat(&program, &[bits(&a), bits(&b)], &limits()) else { return };
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| reference(*a, *b)).collect();
        close(&f32s(&out[0]), &expected, 1e-6, 1e-6);
    }
}

#[test]
fn integer_pairs() {
    let values = [0i32, 1, -1, 2, -2, 3, 7, -7, 13, 100, i32::MAX, i32::MIN];
    let (a, b): (Vec<i32>, Vec<i32>) =
        values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))).unzip();
    let cases: [(Binary, fn(i32, i32) -> i32); 15] = [
        (Binary::Add, i32::wrapping_add),
        (Binary::Sub, i32::wrapping_sub),
        (Binary::Mul, i32::wrapping_mul),
        (Binary::Div, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
        (Binary::Mod, |a, b| {
            let r = if b == 0 { a } else { a.wrapping_rem(b) };
            if r != 0 && (r < 0) != (b < 0) { r.wrapping_add(b) } else { r }
        }),
        (Binary::Fmod, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        (Binary::Min, std::cmp::Ord::min),
        (Binary::Max, std::cmp::Ord::max),
        (Binary::Equal, |a, b| i32::from(a == b)),
        (Binary::Less, |a, b| i32::from(a < b)),
        (Binary::GreaterOrEqual, |a, b| i32::from(a >= b)),
        (Binary::BitwiseAnd, |a, b| a & b),
        (Binary::BitwiseXor, |a, b| a ^ b),
        (Binary::ShiftLeft, |a, b| if (0..32).contains(&b) { a << b } else { 0 }),
        (Binary::Pow, |a, b| match (a, b) {
            (_, 0..) => a.wrapping_pow(b as u32),
            (1, _) => 1,
            (-1, _) => {
                if b % 2 == 0 {
                    1
                } else {
                    -1
                }
            }
            _ => 0,
        }),
    ];
    let words = |v: &[i32]| v.iter().map(|x| *x as u32).collect::<Vec<_>>();
    for (op, reference) in cases {
        let mut program = Program::new(2);
        program.results = vec![program.binary(op, Reg::Input(0), Reg::Input(1), Scalar::I32).unwrap()];
        let Some(out) = flat(&program, &[words(&a), words(&b)], &limits()) else { return };
        for (i, actual) in out[0].iter().enumerate() {
            // A zero divisor has no meaning in ONNX; it must only not fail.
            if !(b[i] == 0 && matches!(op, Binary::Mod | Binary::Fmod)) {
                assert_eq!(*actual as i32, reference(a[i], b[i]), "{op:?} of {} and {}", a[i], b[i]);
            }
        }
    }
}

#[test]
fn casts_and_predicates() {
    let values = [0.0f32, -0.0, 1.7, -1.7, 300.0, -129.0, 3e9, -3e9, f32::NAN, f32::INFINITY];
    let cases: [(DType, fn(f32) -> u32); 4] = [
        (DType::I32, |x| x as i32 as u32),
        (DType::Bool, |x| u32::from(x != 0.0)),
        (DType::I8, |x| i32::from(x as i32 as i8) as u32),
        (DType::U8, |x| u32::from(x as i32 as u8)),
    ];
    for (to, reference) in cases {
        let mut program = Program::new(1);
        program.results = vec![program.cast(Reg::Input(0), Scalar::F32, to)];
        let Some(out) = flat(&program, &[bits(&values)], &limits()) else { return };
        let expected: Vec<u32> = values.iter().map(|x| reference(*x)).collect();
        assert_eq!(out[0], expected, "to {to}");
    }
    for (op, reference) in [
        (Unary::IsNan, f32::is_nan as fn(f32) -> bool),
        (Unary::IsInf { negative: true, positive: true }, f32::is_infinite),
        (Unary::IsInf { negative: true, positive: false }, |x| x == f32::NEG_INFINITY),
    ] {
        let mut program = Program::new(1);
        program.results = vec![program.unary(op, Reg::Input(0), Scalar::F32).unwrap()];
        let Some(out) = flat(&program, &[bits(&values)], &limits()) else { return };
        let expected: Vec<u32> = values.iter().map(|x| u32::from(reference(*x))).collect();
        assert_eq!(out[0], expected, "{op:?}");
    }
}

/// A program of all parts, specialised and interpreted, over strided and half inputs.
#[test]
fn a_fused_chain_over_views() {
    let Some(gpu) = gpu() else { return };
    let shape = [3u32, 5, 7];
    let x = strided(&shape, &[5, 1, 15], 2);
    let row = Operand { scalar: Scalar::F16, ..dense(&[7], Scalar::F16) };
    let per_plane = dense(&[3, 1, 1], Scalar::F32);
    let first = strided(&shape, &[35, 7, 1], 4);
    let second = strided(&shape, &[1, 3, 15], 0);
    let mut program = Program::new(3);
    let column = program.index();
    let line = program.index();
    let half = program.float(0.5);
    let product = program.step(E::MulAddF, &[Reg::Input(0), Reg::Input(1), Reg::Input(2)]);
    let upper = program.step(E::LeI, &[line, column]);
    let halved = program.step(E::MulF, &[product, half]);
    let result = program.step(E::Select, &[upper, product, halved]);
    program.results = vec![result, upper];
    let columns = View { shape: shape.to_vec(), strides: vec![0, 0, 1], offset: 0 };
    let lines = View { shape: shape.to_vec(), strides: vec![0, 1, 0], offset: 1 };

    let mut random = Random::new(3);
    let (xs, rows, planes) = (random.floats(110), random.floats(7), random.floats(3));
    let rows: Vec<f32> = rows.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    let mut values = vec![];
    let mut flags = vec![];
    for p in positions(&shape) {
        let v = xs[address(&x.view, &p)].mul_add(rows[p[2] as usize], planes[p[0] as usize]);
        let upper = p[1] < p[2];
        values.push(if upper { v } else { 0.5 * v });
        flags.push(u32::from(upper));
    }
    for limits in [limits(), hardware()] {
        let spec = Elementwise {
            program: &program,
            inputs: &[&x, &row, &per_plane],
            indices: &[&columns, &lines],
            outputs: &[&first, &second],
        };
        let launch = spec.launch(&limits).unwrap();
        let mut writes = [poison(120), poison(120)];
        gpu.run(&launch, &[&bits(&xs), &halves(&rows), &bits(&planes)], &mut writes);
        close(&elements(&first.view, &f32s(&writes[0])), &values, 1e-6, 1e-6);
        assert_eq!(elements(&second.view, &writes[1]), flags);
        assert_eq!(&writes[0][..4], &poison(4), "nothing outside the view is written");
    }
}

#[test]
fn copies_of_any_rank_fills_and_long_programs() {
    let Some(gpu) = gpu() else { return };
    // A reversal of axes, of which none merge.
    let shape = [2u32, 3, 2, 2, 3, 2, 2, 2];
    let len = shape.iter().product::<u32>() as usize;
    let mut strides = vec![1u32; 8];
    for i in 1..8 {
        strides[i] = strides[i - 1] * shape[i - 1];
    }
    let from = strided(&shape, &strides, 0);
    let to = dense(&shape, Scalar::F32);
    let program = Program::copy();
    let spec = Elementwise { program: &program, inputs: &[&from], indices: &[], outputs: &[&to] };
    let data: Vec<u32> = (0..len as u32).collect();
    let out = gpu.run_one(&spec.launch(&limits()).unwrap(), &[&data], len);
    assert_eq!(out, elements(&from.view, &data));
    // Backwards.
    let from = strided(&[5], &[u32::MAX], 4);
    let to = dense(&[5], Scalar::F32);
    let spec = Elementwise { program: &program, inputs: &[&from], indices: &[], outputs: &[&to] };
    assert_eq!(gpu.run_one(&spec.launch(&limits()).unwrap(), &[&data], 5), [4, 3, 2, 1, 0]);
    // A fill, and a range, without inputs.
    let mut fill = Program::new(0);
    let index = fill.index();
    let five = fill.int(5);
    fill.results = vec![five, index];
    let view = View { shape: vec![70], strides: vec![3], offset: 10 };
    let to = dense(&[70], Scalar::I32);
    let spec = Elementwise { program: &fill, inputs: &[], indices: &[&view], outputs: &[&to, &to] };
    let mut writes = [poison(70), poison(70)];
    gpu.run(&spec.launch(&limits()).unwrap(), &[], &mut writes);
    assert_eq!(writes[0], vec![5; 70]);
    assert_eq!(writes[1], (0..70).map(|i| 10 + 3 * i).collect::<Vec<u32>>());
    // As many steps as fit, specialised.
    let mut long = Program::new(1);
    let one = long.float(1.0);
    let mut x = Reg::Input(0);
    for _ in 0..16 {
        x = long.step(E::AddF, &[x, one]);
    }
    long.results = vec![x];
    let Some(out) = flat(&long, &[bits(&[0.0, 1.0])], &hardware()) else { return };
    assert_eq!(f32s(&out[0]), [16.0, 17.0]);
    long.step(E::AddF, &[x, one]);
    assert!(long.validate().is_err());
}
