//! Operands that are quantised integers, packed in words.

use super::super::testing::{Random, bits, close, dense, f32s, gpu, hardware, limits};
use super::super::{
    Activation, Bounds, Coding, ElementOp, Elementwise, Epilogue, Gather, GatherKind, Limits, Matmul,
    MatmulInteger, MatmulVariant, Operand, Part, Program, Reg, Scalar, View,
};

/// Integers of a form, and the words in which they lie.
fn integers(random: &mut Random, n: usize, scalar: Scalar) -> (Vec<i32>, Vec<u32>) {
    let width = scalar.bits() as u32;
    let per_word = 32 / width;
    let mut values = vec![];
    let mut words = vec![0u32; n.div_ceil(per_word as usize)];
    for i in 0..n {
        let raw = random.next() >> 3 & ((1u64 << width) - 1) as u32;
        let signed = matches!(scalar, Scalar::I8 | Scalar::I4) && raw >> (width - 1) == 1;
        values.push(if signed { raw as i32 - (1 << width) } else { raw as i32 });
        words[i / per_word as usize] |= raw << (width * (i as u32 % per_word));
    }
    (values, words)
}

/// `[batch, M, K]` by `[batch, K, N]`, or by the transpose of `[batch, N, K]`, in blocks of `block` along `K`.
fn check_coded(variant: MatmulVariant, limits: &Limits, scalar: Scalar, zeros: bool, half: bool, block: u32) {
    for (n, transposed) in [(37, true), (37, false), (38, false)] {
        check_layout(variant, limits, scalar, zeros, half, block, (n, transposed));
    }
}

fn check_layout(
    variant: MatmulVariant,
    limits: &Limits,
    scalar: Scalar,
    zeros: bool,
    half: bool,
    block: u32,
    (n, transposed): (u32, bool),
) {
    let Some(gpu) = gpu() else { return };
    let (batch, m, k) = (2u32, 9u32, 24u32);
    // Where the element of row `p` of `rows`, and of column `j`, lies.
    let place = |u: u32, rows: u32, p: u32, j: u32| {
        (if transposed { (u * n + j) * rows + p } else { (u * rows + p) * n + j }) as usize
    };
    let blocks = k.div_ceil(block);
    let mut random = Random::new(7);
    let a = random.floats((batch * m * k) as usize);
    let (b, b_words) = integers(&mut random, (batch * n * k) as usize, scalar);
    let (zero, zero_words) = integers(&mut random, (batch * n * blocks) as usize, scalar);
    let mut scale = random.floats((batch * n * blocks) as usize);
    if half {
        scale.iter_mut().for_each(|s| *s = half::f16::from_f32(*s).to_f32());
    }
    let scale_words = if half { super::super::testing::halves(&scale) } else { bits(&scale) };
    let laid = |columns: u32, scalar| Operand {
        view: View {
            shape: vec![batch, columns, n],
            strides: if transposed { vec![n * columns, 1, columns] } else { vec![n * columns, n, 1] },
            offset: 0,
        },
        scalar,
    };
    let (scale_at, zero_at) =
        (laid(blocks, if half { Scalar::F16 } else { Scalar::F32 }), laid(blocks, scalar));
    let coding = Coding { scale: &scale_at, zero: zeros.then_some(&zero_at), block };
    let (left, right, to) =
        (dense(&[batch, m, k], Scalar::F32), laid(k, scalar), dense(&[batch, m, n], Scalar::F32));
    let launch = Matmul {
        a: &left,
        norm: None,
        parts: vec![Part { coding: Some(coding), ..Part::new(&right, &to) }],
        gated: false,
        contract: 0,
        accumulate: false,
    }
    .launch_as(variant, limits)
    .unwrap();
    let mut expected = vec![];
    for (u, i, j) in (0..batch).flat_map(|u| (0..m).flat_map(move |i| (0..n).map(move |j| (u, i, j)))) {
        let at = |p: u32| {
            let entry = place(u, blocks, p / block, j);
            let code = b[place(u, k, p, j)] - if zeros { zero[entry] } else { 0 };
            f64::from(code) * f64::from(scale[entry])
        };
        let sum: f64 = (0..k).map(|p| f64::from(a[((u * m + i) * k + p) as usize]) * at(p)).sum();
        expected.push(sum as f32);
    }
    let a = bits(&a);
    let reads: [&[u32]; 4] = [&a, &b_words, &scale_words, &zero_words];
    let out = gpu.run_one(&launch, if zeros { &reads } else { &reads[..3] }, expected.len());
    let largest = scalar.bits() as f32 * 2.0;
    close(&f32s(&out), &expected, 1e-5 * largest.exp2().min(512.0), 1e-5);
}

#[test]
fn products_read_quantised_matrices() {
    use MatmulVariant::{Gemv, Software, Subgroup, Tiled};
    let Some(gpu) = gpu() else { return };
    check_coded(Software, &limits(), Scalar::U4, true, false, 8);
    check_coded(Software, &limits(), Scalar::I8, false, true, 32);
    check_coded(Tiled, &hardware(), Scalar::I4, false, false, 4);
    check_coded(Tiled, &hardware(), Scalar::U8, true, false, 16);
    check_coded(Gemv, &hardware(), Scalar::I4, true, true, 8);
    if gpu.limits().subgroup_size == 8 {
        check_coded(Subgroup, &gpu.limits(), Scalar::U4, true, false, 16);
    }
}

#[test]
fn blocks_must_be_powers_of_two() {
    let (a, b) = (dense(&[2, 12], Scalar::F32), dense(&[12, 4], Scalar::U8));
    let (scale, out) = (dense(&[2, 4], Scalar::F32), dense(&[2, 4], Scalar::F32));
    let coded = |coding| Matmul {
        a: &a,
        norm: None,
        parts: vec![Part { coding, ..Part::new(&b, &out) }],
        gated: false,
        contract: 0,
        accumulate: false,
    };
    let coding = Coding { scale: &scale, zero: None, block: 6 };
    assert!(coded(Some(coding)).launch(&limits()).unwrap_err().to_string().contains("blocks of 6"));
    assert!(coded(None).launch(&limits()).is_err());
}

/// `[batch, M, K]` words by packed `[batch, K, N]`, zero points per batch and per column.
#[test]
fn integer_products_are_exact() {
    let Some(gpu) = gpu() else { return };
    for (m, n, k, scalar) in [
        (1u32, 5u32, 300u32, Scalar::I8),
        (9, 65, 7, Scalar::I8),
        (6, 257, 16, Scalar::I8),
        (5, 260, 9, Scalar::I8),
        (1, 4, 33, Scalar::U8),
        (4, 256, 5, Scalar::U8),
        (8, 31, 255, Scalar::U8),
        (17, 33, 513, Scalar::I8),
    ] {
        check_integers(&limits(), [m, n, k], scalar);
        check_integers(&hardware(), [m, n, k], scalar);
        // With subgroups, where there are any.
        check_integers(&gpu.limits(), [m, n, k], scalar);
    }
    // The largest products of all, more of them than a float counts.
    for (rows, a, b, zero) in [(5, 255, -128, 0), (3, 0, -128, 255), (5, 255, 127, 0), (1, 255, -128, 0)] {
        let k = 1000;
        for limits in [limits(), gpu.limits(), hardware()] {
            let launch = MatmulInteger {
                a: &dense(&[rows, k], Scalar::I32),
                b: &dense(&[k, 4], Scalar::I8),
                zero_a: Some(&dense(&[1, 1], Scalar::I32)),
                zero_b: None,
                epilogue: None,
                out: &dense(&[rows, 4], Scalar::I32),
            }
            .launch(&limits)
            .unwrap();
            let words = vec![u32::from_ne_bytes([b as i8 as u8; 4]); k as usize];
            let left = vec![a as u32; (rows * k) as usize];
            let out = gpu.run_one(&launch, &[&left, &words, &[zero as u32]], rows as usize * 4);
            assert_eq!(out, vec![((a - zero) * b * k as i32) as u32; rows as usize * 4]);
        }
    }
}

fn check_integers(limits: &Limits, [m, n, k]: [u32; 3], scalar: Scalar) {
    let Some(gpu) = gpu() else { return };
    let batch = 3u32;
    let mut random = Random::new(u64::from(m));
    let (a, _) = integers(&mut random, (batch * m * k) as usize, Scalar::U8);
    let (b, b_words) = integers(&mut random, (batch * k * n) as usize, scalar);
    let (zero_a, _) = integers(&mut random, batch as usize, Scalar::U8);
    let (zero_b, zero_b_words) = integers(&mut random, n as usize, scalar);
    let launch = MatmulInteger {
        a: &dense(&[batch, m, k], Scalar::I32),
        b: &dense(&[batch, k, n], scalar),
        zero_a: Some(&dense(&[batch, 1, 1], Scalar::I32)),
        zero_b: Some(&dense(&[n], scalar)),
        epilogue: None,
        out: &dense(&[batch, m, n], Scalar::I32),
    }
    .launch(limits)
    .unwrap();
    let mut expected = vec![];
    for (u, i, j) in (0..batch).flat_map(|u| (0..m).flat_map(move |i| (0..n).map(move |j| (u, i, j)))) {
        let at = |p: u32| {
            let left = a[((u * m + i) * k + p) as usize] - zero_a[u as usize];
            left * (b[((u * k + p) * n + j) as usize] - zero_b[j as usize])
        };
        expected.push((0..k).map(at).sum::<i32>() as u32);
    }
    let words = |v: &[i32]| v.iter().map(|x| *x as u32).collect::<Vec<u32>>();
    let (a, zero_a) = (words(&a), words(&zero_a));
    let out = gpu.run_one(&launch, &[&a, &b_words, &zero_a, &zero_b_words], expected.len());
    assert_eq!(out, expected);
}

/// `[batch, M, K]` by columns of a packed matrix that lies wider, with every operand of the epilogue or none.
fn check_epilogue(device: &Limits, [m, n, start]: [u32; 3], all: bool, activation: Activation) {
    let Some(gpu) = gpu() else { return };
    let (batch, k, wide) = (2u32, 19u32, 272u32);
    let mut random = Random::new(u64::from(m + n));
    let (a, _) = integers(&mut random, (batch * m * k) as usize, Scalar::U8);
    let (b, b_words) = integers(&mut random, (batch * k * wide) as usize, Scalar::U8);
    let (zero_a, _) = integers(&mut random, batch as usize, Scalar::U8);
    let (zero_b, zero_b_words) = integers(&mut random, n as usize, Scalar::U8);
    let scale: Vec<f32> = random.floats(batch as usize).iter().map(|s| s * 1e-2).collect();
    let (columns, bias) = (random.floats((batch * n) as usize), random.floats(n as usize));
    let residual = random.floats((batch * m * n) as usize);
    let right = View { shape: vec![batch, k, n], strides: vec![k * wide, wide, 1], offset: start };
    let [per_batch, per_column] = [&[batch, 1, 1], &[batch, 1, n]].map(|shape| dense(shape, Scalar::F32));
    let (row, whole) = (dense(&[n], Scalar::F32), dense(&[batch, m, n], Scalar::F32));
    let (zero, zeros) = (dense(&[batch, 1, 1], Scalar::I32), dense(&[n], Scalar::U8));
    let launch = |limits: &Limits| {
        MatmulInteger {
            a: &dense(&[batch, m, k], Scalar::I32),
            b: &Operand { view: right.clone(), scalar: Scalar::U8 },
            zero_a: Some(&zero),
            zero_b: all.then_some(&zeros),
            epilogue: Some(Epilogue {
                scales: [Some(&per_batch), all.then_some(&per_column)],
                bias: all.then_some(&row),
                activation,
                alpha: if all { 0.5 } else { 1.0 },
                residual: all.then_some(&whole),
            }),
            out: &whole,
        }
        .launch(limits)
    };
    assert_eq!(launch(&limits()).is_err(), all, "eight buffers");
    let launch = launch(&Limits { max_storage_buffers: 9, ..device.clone() }).unwrap();
    if !gpu.binds(&launch) {
        return;
    }
    let mut expected = vec![];
    for (u, i, j) in (0..batch).flat_map(|u| (0..m).flat_map(move |i| (0..n).map(move |j| (u, i, j)))) {
        let at = |p: u32| {
            let left = a[((u * m + i) * k + p) as usize] - zero_a[u as usize];
            let taken = if all { zero_b[j as usize] } else { 0 };
            left * (b[((u * k + p) * wide + start + j) as usize] - taken)
        };
        let sum = (0..k).map(at).sum::<i32>() as f32;
        let mut value = sum * scale[u as usize];
        if all {
            value = sum * (scale[u as usize] * columns[(u * n + j) as usize]) + bias[j as usize];
        }
        if activation == Activation::Relu {
            value = value.max(0.0);
        }
        if all {
            value = value * 0.5 + residual[((u * m + i) * n + j) as usize];
        }
        expected.push(value);
    }
    let words = |v: &[i32]| v.iter().map(|x| *x as u32).collect::<Vec<u32>>();
    let (a, zero_a) = (words(&a), words(&zero_a));
    let floats = [&scale, &columns, &bias, &residual].map(|f| bits(f));
    let [scale, columns, bias, residual] = floats.each_ref();
    let reads: &[&[u32]] = if all {
        &[&a, &b_words, &zero_a, &zero_b_words, scale, columns, bias, residual]
    } else {
        &[&a, &b_words, &zero_a, scale]
    };
    close(&f32s(&gpu.run_one(&launch, reads, expected.len())), &expected, 1e-6, 1e-6);
}

#[test]
fn floats_are_made_of_the_sums() {
    let Some(gpu) = gpu() else { return };
    for sizes in [[1, 4, 0], [1, 255, 4], [3, 256, 8], [4, 257, 12], [5, 260, 3], [8, 31, 0], [9, 33, 4]] {
        for device in [limits(), gpu.limits(), hardware()] {
            check_epilogue(&device, sizes, true, Activation::None);
            check_epilogue(&device, sizes, true, Activation::Relu);
            check_epilogue(&device, sizes, false, Activation::None);
        }
    }
}

#[test]
fn packed_elements_are_read_one_by_one() {
    let Some(gpu) = gpu() else { return };
    for scalar in [Scalar::I4, Scalar::U4, Scalar::I8, Scalar::U8] {
        let mut random = Random::new(3);
        let (values, words) = integers(&mut random, 9 * 5, scalar);
        let rows = [7u32, 0, 8];
        let launch = Gather {
            data: &dense(&[9, 5], scalar),
            indices: &dense(&[3], Scalar::I32),
            out: &dense(&[3, 5], Scalar::I32),
            axis: 0,
            kind: GatherKind::Slices,
            rows: None,
            bounds: Bounds::Clamp,
        }
        .launch(&limits())
        .unwrap();
        let out = gpu.run_one(&launch, &[&words, &rows], 15);
        let expected: Vec<u32> = rows
            .iter()
            .flat_map(|r| (0..5).map(|c| values[(r * 5 + c) as usize] as u32).collect::<Vec<_>>())
            .collect();
        assert_eq!(out, expected);
    }
    // A transposed copy, as floats.
    let mut random = Random::new(4);
    let (values, words) = integers(&mut random, 45, Scalar::I4);
    let mut program = Program::new(1);
    let float = program.step(ElementOp::IToF, &[Reg::Input(0)]);
    program.results = vec![float];
    let x = Operand { view: View { shape: vec![5, 9], strides: vec![1, 5], offset: 0 }, scalar: Scalar::I4 };
    let out = dense(&[5, 9], Scalar::F32);
    let launch = Elementwise { program: &program, inputs: &[&x], indices: &[], outputs: &[&out] };
    let got = f32s(&gpu.run_one(&launch.launch(&limits()).unwrap(), &[&words], 45));
    let expected: Vec<f32> = (0..45).map(|i| values[i % 9 * 5 + i / 9] as f32).collect();
    assert_eq!(got, expected);
}
