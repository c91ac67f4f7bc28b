use snlp_passes::eval::eval_op;
use snlp_passes::ir::{Op, Tensor};

use super::super::testing::{Random, bits, dense, gpu, hardware, limits, poison};
use super::super::{Scalar, TopK};

#[test]
fn the_best_come_first_and_equal_ones_by_position() {
    let Some(gpu) = gpu() else { return };
    for (width, k) in [(1u32, 1u32), (5, 5), (64, 3), (255, 2), (257, 4), (300, 7)] {
        for axis in [0usize, 1] {
            let shape = if axis == 0 { [width, 3] } else { [3, width] };
            let result = if axis == 0 { [k, 3] } else { [3, k] };
            let mut xs: Vec<f32> = Random::new(u64::from(width))
                .floats((3 * width) as usize)
                .iter()
                .map(|v| (v * 20.0).round())
                .collect();
            if width > 4 {
                // Both zeros are equal, and NaN is above all numbers.
                (xs[0], xs[1], xs[4], xs[7]) = (-0.0, 0.0, f32::NAN, f32::NEG_INFINITY);
            }
            let tensor = Tensor::from_vec(shape.iter().map(|d| *d as usize).collect(), xs.clone()).unwrap();
            let x = dense(&shape, Scalar::F32);
            let (values, places) = (dense(&result, Scalar::F32), dense(&result, Scalar::I32));
            for smallest in [false, true] {
                let op = Op::TopK { axis, largest: !smallest };
                let k = Tensor::ints(&[i64::from(k)]);
                let expected = eval_op(&op, &[Some(&tensor), Some(&k)]).unwrap();
                for limits in [limits(), hardware()] {
                    let launch = TopK { x: &x, values: &values, places: &places, axis, smallest };
                    let launch = launch.launch(&limits).unwrap();
                    let len = expected[0].len();
                    let mut writes = [poison(len), poison(len)];
                    gpu.run(&launch, &[&bits(&xs)], &mut writes);
                    let at: Vec<i64> = writes[1].iter().map(|w| i64::from(*w)).collect();
                    assert_eq!(expected[1].to_i64().unwrap(), at, "{width} {axis} {smallest}");
                    let same = |a: &f32, b: &u32| a.to_bits() == *b || *a == f32::from_bits(*b);
                    assert!(expected[0].to_f32().iter().zip(&writes[0]).all(|(a, b)| same(a, b)));
                }
            }
        }
    }
}

#[test]
fn integers_are_ordered_as_such() {
    let Some(gpu) = gpu() else { return };
    let xs = [3i32, i32::MIN, -1, i32::MAX, 0, -1];
    let x = dense(&[6], Scalar::I32);
    let (values, places) = (dense(&[4], Scalar::I32), dense(&[4], Scalar::I32));
    for (smallest, best) in [(false, [3u32, 0, 4, 2]), (true, [1, 2, 5, 4])] {
        let launch =
            TopK { x: &x, values: &values, places: &places, axis: 0, smallest }.launch(&limits()).unwrap();
        let mut writes = [poison(4), poison(4)];
        gpu.run(&launch, &[&xs.map(|v| v as u32)], &mut writes);
        assert_eq!(writes[1], best);
        assert_eq!(writes[0], best.map(|i| xs[i as usize] as u32));
    }
}

#[test]
fn more_than_there_are_is_refused() {
    let (x, out) = (dense(&[3], Scalar::F32), dense(&[4], Scalar::F32));
    let places = dense(&[4], Scalar::I32);
    let launch = TopK { x: &x, values: &out, places: &places, axis: 0, smallest: false }.launch(&limits());
    assert!(launch.unwrap_err().to_string().contains("best 4 of 3"));
}
