//! Quantisation by extremes, to the bit of the evaluator.

use snlp_passes::eval::eval_op;
use snlp_passes::ir::{Op, Tensor};

use super::super::testing::{
    Random, address, bits, dense, f32s, gpu, hardware, limits, poison, positions, strided,
};
use super::super::{DynamicQuantize, Limits, Operand, Scalar, View};

/// Quantises `data`, over which `x` is a view, and compares with the evaluator.
#[track_caller]
fn check_views(
    x: &Operand,
    integers: &Operand,
    axes: &[usize],
    data: &[f32],
    limits: &Limits,
    dispatches: u32,
) {
    let Some(gpu) = gpu() else { return };
    let shape = &x.view.shape;
    let at: Vec<Vec<u32>> = positions(shape);
    let values: Vec<f32> = at.iter().map(|p| data[address(&x.view, p)]).collect();
    let sizes = shape.iter().map(|d| *d as usize).collect();
    let tensor = Tensor::from_vec(sizes, values).unwrap();
    let op = Op::DynamicQuantize { axes: axes.to_vec() };
    let wanted = eval_op(&op, &[Some(&tensor)]).unwrap();

    let kept: Vec<u32> = (0..shape.len()).filter(|a| !axes.contains(a)).map(|a| shape[a]).collect();
    let (scale, zero) = (dense(&kept, Scalar::F32), dense(&kept, Scalar::I32));
    let kernel = DynamicQuantize { x, axes, integers, scale: &scale, zero: &zero };
    let places: Vec<usize> = at.iter().map(|p| address(&integers.view, p)).collect();
    let (length, rows) = (places.iter().max().map_or(0, |m| m + 1), kept.iter().product::<u32>() as usize);
    let mut writes = [poison(length), poison(rows), poison(rows)];
    let words = bits(data);
    match kernel.partial_shape(limits) {
        None => {
            assert_eq!(dispatches, 1, "{shape:?}");
            gpu.run(&kernel.launch(limits).unwrap(), &[&words], &mut writes);
        }
        Some(shape) => {
            assert_eq!(dispatches, 2, "{shape:?}");
            let partial = dense(&shape, Scalar::F32);
            let mut found = [poison(shape.iter().product::<u32>() as usize)];
            gpu.run(&kernel.extremes(&partial, limits).unwrap(), &[&words], &mut found);
            gpu.run(&kernel.quantize(&partial, limits).unwrap(), &[&words, &found[0]], &mut writes);
        }
    }
    let numbers = |t: &Tensor| t.to_i64().unwrap().iter().map(|n| *n as u32).collect::<Vec<_>>();
    let made: Vec<u32> = places.iter().map(|p| writes[0][*p]).collect();
    let same = |(a, e): (&f32, &f32)| a.to_bits() == e.to_bits() || (a.is_nan() && e.is_nan());
    let (scales, expected) = (f32s(&writes[1]), wanted[1].to_f32());
    assert!(scales.iter().zip(&expected).all(same), "{shape:?} {axes:?}: {scales:?}, not {expected:?}");
    assert_eq!(writes[2], numbers(&wanted[2]), "zero points of {shape:?} {axes:?}");
    assert_eq!(made, numbers(&wanted[0]), "{shape:?} {axes:?}");
}

#[track_caller]
fn check(shape: &[u32], axes: &[usize], data: &[f32], limits: &Limits, dispatches: u32) {
    let (x, integers) = (dense(shape, Scalar::F32), dense(shape, Scalar::I32));
    check_views(&x, &integers, axes, data, limits, dispatches);
}

fn random(shape: &[u32], seed: u64) -> Vec<f32> {
    Random::new(seed).floats(shape.iter().product::<u32>() as usize)
}

#[test]
fn rows_of_every_length() {
    for width in [1u32, 2, 63, 64, 65, 255, 256, 257, 1000] {
        for device in [limits(), hardware()] {
            check(&[width], &[0], &random(&[width], 1), &device, 1);
            check(&[3, width], &[1], &random(&[3, width], 2), &device, 1);
        }
    }
    // Long ones are cut into parts, up to a number of them.
    for width in [4096u32, 4097, 6143, 6144, 6145] {
        check(&[2, width], &[1], &random(&[2, width], 3), &hardware(), if width > 4096 { 2 } else { 1 });
    }
    for width in [16384u32, 16385] {
        check(&[width], &[0], &random(&[width], 4), &limits(), if width > 16384 { 2 } else { 1 });
    }
    check(&[600_001], &[0], &random(&[600_001], 5), &hardware(), 2);
}

#[test]
fn any_axes_of_any_views() {
    let shape = [2, 3, 5, 4];
    let data = random(&shape, 1);
    for axes in [&[][..], &[0], &[1], &[0, 2], &[1, 3], &[2, 3], &[0, 1, 2, 3]] {
        check(&shape, axes, &data, &limits(), 1);
    }
    // Turned, in part, and written as another sees it.
    let x = strided(&[2, 3, 4], &[50, 1, 3], 7);
    let view = View { shape: vec![2, 3, 4], strides: vec![1, 8, 2], offset: 2 };
    let integers = Operand { view, scalar: Scalar::I32 };
    for axes in [&[1, 2][..], &[2], &[0, 1]] {
        check_views(&x, &integers, axes, &random(&[100], 2), &hardware(), 1);
    }
    let x = strided(&[70, 90], &[1, 71], 3);
    let view = View { shape: vec![70, 90], strides: vec![91, 1], offset: 1 };
    let integers = Operand { view, scalar: Scalar::I32 };
    check_views(&x, &integers, &[0, 1], &random(&[7000], 3), &hardware(), 2);
}

#[test]
fn numbers_out_of_the_ordinary() {
    let inf = f32::INFINITY;
    let rows: [[f32; 5]; 12] = [
        [0.0; 5],
        [-0.0, 0.0, -0.0, -0.0, 0.0],
        [3.0; 5],
        [-3.0; 5],
        [1.0, 2.0, 3.0, 4.0, 255.0],
        [-0.5, 0.5, 1.5, 2.5, 254.5],
        [-1.0, -2.0, -3.0, -4.0, -255.0],
        [1.0, f32::NAN, -1.0, 0.0, 2.0],
        [1.0, inf, -1.0, 0.0, 2.0],
        [1.0, -inf, -1.0, 0.0, 2.0],
        [inf, -inf, f32::NAN, 0.0, 2.0],
        [3e38, -3e38, 1.0, 0.0, 2.0],
    ];
    for row in &rows {
        check(&[5], &[0], row, &limits(), 1);
    }
    check(&[12, 5], &[1], &rows.concat(), &limits(), 1);
    check(&[12, 5], &[0], &rows.concat(), &limits(), 1);
    // In one part of a long row.
    for odd in [f32::NAN, inf, 1e30] {
        let mut data = random(&[2, 5000], 9);
        data[7000] = odd;
        check(&[2, 5000], &[1], &data, &hardware(), 2);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, integers) = (dense(&[2, 3], Scalar::F32), dense(&[2, 3], Scalar::I32));
    let launch = |axes: &[usize], kept: &[u32]| {
        let (scale, zero) = (dense(kept, Scalar::F32), dense(kept, Scalar::I32));
        DynamicQuantize { x: &x, axes, integers: &integers, scale: &scale, zero: &zero }.launch(&limits())
    };
    assert!(launch(&[1], &[2]).is_ok());
    assert!(launch(&[1], &[3]).is_err() && launch(&[2], &[2, 3]).is_err());
}
