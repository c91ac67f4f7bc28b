use super::super::testing::{
    Random, address, bits, close, dense, f32s, gpu, limits, poison, positions, strided,
};
use super::super::{Operand, Scalar, Sinkhorn, Sums};

/// The divisions one after the other, in double precision.
fn expected(values: &mut [f64], rows: usize, columns: usize, steps: &[Sums], epsilon: f64) {
    for step in steps {
        let old = values.to_vec();
        for i in 0..rows {
            for j in 0..columns {
                let sum: f64 = match step {
                    Sums::Rows => (0..columns).map(|k| old[i * columns + k]).sum(),
                    Sums::Columns => (0..rows).map(|k| old[k * columns + j]).sum(),
                };
                values[i * columns + j] = old[i * columns + j] / (sum + epsilon);
            }
        }
    }
}

fn check(x: &Operand, out: &Operand, steps: &[Sums], epsilon: f32, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let shape = &x.view.shape;
    let (rows, columns) = (shape[shape.len() - 2] as usize, shape[shape.len() - 1] as usize);
    let places: Vec<usize> = positions(shape).iter().map(|p| address(&x.view, p)).collect();
    let length = places.iter().max().map_or(0, |m| m + 1);
    let data: Vec<f32> = Random::new(seed).floats(length).iter().map(|v| v.exp()).collect();
    let mut wanted: Vec<f64> = places.iter().map(|at| f64::from(data[*at])).collect();
    wanted.chunks_mut(rows * columns).for_each(|m| expected(m, rows, columns, steps, f64::from(epsilon)));
    let wanted: Vec<f32> = wanted.iter().map(|v| *v as f32).collect();
    let to: Vec<usize> = positions(shape).iter().map(|p| address(&out.view, p)).collect();
    let launch = Sinkhorn { x, out, steps, epsilon }.launch(&limits()).unwrap();
    let mut writes = [poison(to.iter().max().map_or(0, |m| m + 1))];
    gpu.run(&launch, &[&bits(&data)], &mut writes);
    let all = f32s(&writes[0]);
    let actual: Vec<f32> = to.iter().map(|at| all[*at]).collect();
    close(&actual, &wanted, 1e-6, 1e-5);
}

#[test]
fn rows_and_columns_in_turns() {
    use Sums::{Columns, Rows};
    let turns: Vec<Sums> = (0..128).map(|n| if n % 2 == 0 { Rows } else { Columns }).collect();
    let sizes = [[1, 1, 1], [31, 4, 4], [32, 2, 3], [33, 8, 8], [65, 1, 64], [5, 64, 1], [3, 5, 7]];
    for (seed, shape) in (1..).zip(sizes) {
        let x = dense(&shape, Scalar::F32);
        check(&x, &x, &turns[..40], 0.0, seed);
        check(&x, &x, &turns, 1e-2, seed);
        check(&x, &x, &[Columns], 0.0, seed);
        check(&x, &x, &[Rows, Rows, Columns], 0.5, seed);
    }
    // Turned, in part, and with axes that do not merge.
    let x = strided(&[2, 3, 4, 4], &[100, 16, 1, 4], 3);
    let out = strided(&[2, 3, 4, 4], &[16, 40, 4, 1], 2);
    check(&x, &out, &turns[..33], 0.0, 20);
}

#[test]
fn what_is_too_large_is_refused() {
    let launch = |shape: &[u32], steps: usize| {
        let x = dense(shape, Scalar::F32);
        Sinkhorn { x: &x, out: &x, steps: &vec![Sums::Rows; steps], epsilon: 0.0 }.launch(&limits()).is_ok()
    };
    assert!(launch(&[3, 8, 8], 128));
    assert!(!launch(&[3, 8, 9], 1) && !launch(&[3, 4, 4], 129) && !launch(&[4], 1));
}
