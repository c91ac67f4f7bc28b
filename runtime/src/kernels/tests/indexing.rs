use snlp_passes::ir::{ScatterReduction, Window};

use super::super::testing::{
    Random, bits, close, dense, f32s, gpu, halves, limits, poison, positions, strided,
};
use super::super::{Bounds, Conv, Gather, GatherKind, Operand, Scalar, Scatter};

fn ints(values: &[i32]) -> Vec<u32> {
    values.iter().map(|v| *v as u32).collect()
}

#[test]
fn gathers() {
    let Some(gpu) = gpu() else { return };
    let table: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let indices = [2i32, -1, 0, -3, 1, 1];
    let at = dense(&[2, 3], Scalar::I32);
    // Rows, f32 and f16.
    let out = dense(&[2, 3, 8], Scalar::F32);
    let expected: Vec<f32> =
        indices.iter().flat_map(|i| (0..8).map(move |c| (i.rem_euclid(3) * 8 + c) as f32)).collect();
    for scalar in [Scalar::F32, Scalar::F16] {
        let data = Operand { scalar, ..dense(&[3, 8], scalar) };
        let spec = Gather {
            data: &data,
            indices: &at,
            out: &out,
            axis: 0,
            kind: GatherKind::Slices,
            rows: None,
            bounds: Bounds::Clamp,
        };
        let words = if scalar == Scalar::F16 { halves(&table) } else { bits(&table) };
        let found = gpu.run_one(&spec.launch(&limits()).unwrap(), &[&words, &ints(&indices)], 48);
        assert_eq!(f32s(&found), expected);
    }
    // A middle axis.
    let data = dense(&[2, 3, 4], Scalar::F32);
    let at = dense(&[2], Scalar::I32);
    let out = dense(&[2, 2, 4], Scalar::F32);
    let spec = Gather {
        data: &data,
        indices: &at,
        out: &out,
        axis: 1,
        kind: GatherKind::Slices,
        rows: None,
        bounds: Bounds::Clamp,
    };
    let found = gpu.run_one(&spec.launch(&limits()).unwrap(), &[&bits(&table), &ints(&[-1, 0])], 16);
    let expected: Vec<f32> =
        [8, 9, 10, 11, 0, 1, 2, 3, 20, 21, 22, 23, 12, 13, 14, 15].iter().map(|v| *v as f32).collect();
    assert_eq!(f32s(&found), expected);
}

#[test]
fn gathers_by_parts_report_what_lies_outside() {
    let Some(gpu) = gpu() else { return };
    let table: Vec<f32> = (0..10).map(|i| i as f32).collect();
    let indices = ints(&[0, 4, -1, 7, 2]);
    let (at, out) = (dense(&[5], Scalar::I32), dense(&[5, 2], Scalar::F32));
    let (low, high) = (dense(&[3, 2], Scalar::F32), strided(&[2, 2], &[2, 1], 0));
    let part = |data, rows| {
        Gather {
            data,
            indices: &at,
            out: &out,
            axis: 0,
            kind: GatherKind::Slices,
            rows: Some(rows),
            bounds: Bounds::Status(5),
        }
        .launch(&limits())
        .unwrap()
    };
    let mut writes = [vec![0], poison(10)];
    gpu.run(&part(&low, (0, 5)), &[&bits(&table[..6]), &indices], &mut writes);
    assert_eq!(f32s(&writes[1])[..2], [0.0, 1.0]);
    assert!(f32::from_bits(writes[1][2]).is_nan(), "the other part's rows are left alone");
    gpu.run(&part(&high, (3, 5)), &[&bits(&table[6..]), &indices], &mut writes);
    assert_eq!(f32s(&writes[1]), [0.0, 1.0, 8.0, 9.0, 8.0, 9.0, 8.0, 9.0, 4.0, 5.0]);
    assert_eq!(writes[0], [5], "index 7 lies outside");
    writes[0] = vec![0];
    gpu.run(&part(&low, (0, 5)), &[&bits(&table[..6]), &ints(&[0, 4, -5, 3, 2])], &mut writes);
    assert_eq!(writes[0], [0]);
}

#[test]
fn elements_gather_and_scatter() {
    let Some(gpu) = gpu() else { return };
    let data = dense(&[3, 4], Scalar::F32);
    let values: Vec<f32> = Random::new(1).floats(12);
    let index = [1i32, 0, -1, 2, 2, 1, 0, 1];
    let at = dense(&[2, 4], Scalar::I32);
    let out = dense(&[2, 4], Scalar::F32);
    let spec = Gather {
        data: &data,
        indices: &at,
        out: &out,
        axis: 0,
        kind: GatherKind::Elements,
        rows: None,
        bounds: Bounds::Clamp,
    };
    let found = gpu.run_one(&spec.launch(&limits()).unwrap(), &[&bits(&values), &ints(&index)], 8);
    let expected: Vec<f32> = positions(&[2, 4])
        .iter()
        .enumerate()
        .map(|(n, p)| values[(index[n].rem_euclid(3) * 4) as usize + p[1] as usize])
        .collect();
    assert_eq!(f32s(&found), expected);

    let updates = Random::new(2).floats(8);
    for reduction in [ScatterReduction::None, ScatterReduction::Add, ScatterReduction::Max] {
        let mut expected = values.clone();
        for (n, p) in positions(&[2, 4]).iter().enumerate() {
            let slot = &mut expected[(index[n].rem_euclid(3) * 4) as usize + p[1] as usize];
            *slot = match reduction {
                ScatterReduction::Add => *slot + updates[n],
                ScatterReduction::Max => slot.max(updates[n]),
                _ => updates[n],
            };
        }
        let spec = Scatter { indices: &at, updates: &out, out: &data, axis: 0, reduction };
        let mut writes = [bits(&values)];
        gpu.run(&spec.launch(&limits()).unwrap(), &[&ints(&index), &bits(&updates)], &mut writes);
        close(&f32s(&writes[0]), &expected, 1e-6, 1e-6);
    }
}

#[test]
fn convolutions() {
    let Some(gpu) = gpu() else { return };
    let (n, c, h, w, m) = (2usize, 4usize, 7usize, 6usize, 6usize);
    let (kh, kw, group) = (3usize, 2usize, 2usize);
    let window = Window { strides: vec![2, 1], pads: vec![1, 1, 2, 0], dilations: vec![1, 2] };
    let oh = (h + 1 + 2 - kh) / 2 + 1;
    let ow = w + 1 - (2 * (kw - 1) + 1) + 1;
    let mut random = Random::new(6);
    let xs = random.floats(n * c * h * w);
    let ws = random.floats(m * (c / group) * kh * kw);
    let bs = random.floats(m);
    let mut expected = vec![];
    for p in positions(&[n as u32, m as u32, oh as u32, ow as u32]) {
        let [i, o, y, x] = [p[0] as usize, p[1] as usize, p[2] as usize, p[3] as usize];
        let mut sum = f64::from(bs[o]);
        for q in positions(&[(c / group) as u32, kh as u32, kw as u32]) {
            let [k, a, b] = [q[0] as usize, q[1] as usize, q[2] as usize];
            let (row, column) = ((2 * y + a).wrapping_sub(1), (x + 2 * b).wrapping_sub(1));
            if row < h && column < w {
                let channel = o / (m / group) * (c / group) + k;
                let weight = ws[((o * (c / group) + k) * kh + a) * kw + b];
                sum += f64::from(xs[((i * c + channel) * h + row) * w + column]) * f64::from(weight);
            }
        }
        expected.push(sum as f32);
    }
    let u = |v: &[usize]| v.iter().map(|d| *d as u32).collect::<Vec<u32>>();
    let (x, weights) =
        (dense(&u(&[n, c, h, w]), Scalar::F32), dense(&u(&[m, c / group, kh, kw]), Scalar::F32));
    let (bias, out) = (dense(&u(&[m]), Scalar::F32), dense(&u(&[n, m, oh, ow]), Scalar::F32));
    let spec =
        Conv { x: &x, w: &weights, bias: Some(&bias), out: &out, window: &window, group: group as u32 };
    let words =
        gpu.run_one(&spec.launch(&limits()).unwrap(), &[&bits(&xs), &bits(&ws), &bits(&bs)], expected.len());
    close(&f32s(&words), &expected, 1e-5, 1e-5);

    // One spatial axis.
    let (x, weights, out) =
        (dense(&[1, 1, 5], Scalar::F32), dense(&[1, 1, 3], Scalar::F32), dense(&[1, 1, 5], Scalar::F32));
    let window = Window { strides: vec![1], pads: vec![1, 1], dilations: vec![1] };
    let spec = Conv { x: &x, w: &weights, bias: None, out: &out, window: &window, group: 1 };
    let xs = bits(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    let words = gpu.run_one(&spec.launch(&limits()).unwrap(), &[&xs, &bits(&[1.0, 10.0, 100.0]), &xs], 5);
    assert_eq!(f32s(&words), [210.0, 321.0, 432.0, 543.0, 54.0]);
}
