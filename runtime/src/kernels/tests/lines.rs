use snlp_passes::ir::{
    Correction as CorrectionAttributes, CorrectionForm, Reduce as ReduceOp, Rotary as RotaryAttributes,
    RotaryTable,
};

use super::super::testing::{
    Random, address, bits, close, dense, elements, f32s, gpu, halves, hardware, limits, poison, positions,
    strided,
};
use super::super::{
    ArgMax, Correction, CumSum, HeadPart, Heads, Norm, NormKind, Operand, Reduce, Scalar, Softmax,
};

#[test]
fn norms() {
    let Some(gpu) = gpu() else { return };
    for (n, width) in [1u32, 5, 64, 65, 300].into_iter().enumerate() {
        for kind in [NormKind::Layer, NormKind::Rms] {
            // Units of a segment: per-unit factors over [C, T, D], rows apart from each other.
            let (c, t) = (2u32, 3);
            let x = strided(&[c, t, width], &[t * (width + 2), width + 2, 1], 1);
            let scale = dense(&[c, 1, width], Scalar::F32);
            let bias = Operand { scalar: Scalar::F16, ..dense(&[width], Scalar::F16) };
            let out = dense(&[c, t, width], Scalar::F32);
            let mut random = Random::new(n as u64);
            let xs: Vec<f32> =
                random.floats((c * t * (width + 2) + 1) as usize).iter().map(|v| v + 3.0).collect();
            let (scales, biases) = (random.floats((c * width) as usize), random.floats(width as usize));
            let biases: Vec<f32> = biases.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
            let with = n % 2 == 0;
            let mut expected = vec![];
            for p in positions(&[c, t]) {
                let row: Vec<f64> =
                    (0..width).map(|i| f64::from(xs[address(&x.view, &[p[0], p[1], i])])).collect();
                let mean = match kind {
                    NormKind::Layer => row.iter().sum::<f64>() / f64::from(width),
                    NormKind::Rms => 0.0,
                };
                let square = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(width);
                for (i, v) in row.iter().enumerate() {
                    let mut y = (v - mean) / (square + 1e-5).sqrt();
                    y *= f64::from(scales[p[0] as usize * width as usize + i]);
                    if with {
                        y += f64::from(biases[i]);
                    }
                    expected.push(y as f32);
                }
            }
            for limits in [limits(), hardware()] {
                let bias = with.then_some(&bias);
                let spec = Norm { x: &x, scale: Some(&scale), bias, out: &out, axes: 1, epsilon: 1e-5, kind };
                let launch = spec.launch(&limits).unwrap();
                let biases = halves(&biases);
                let words = gpu.run_one(&launch, &[&bits(&xs), &bits(&scales), &biases], expected.len());
                close(&f32s(&words), &expected, 2e-5, 2e-5);
            }
        }
    }
}

#[test]
fn norms_of_rows_in_any_order() {
    let Some(gpu) = gpu() else { return };
    // No two of the outer axes, which lie in reverse order, merge.
    for outer in [vec![], vec![3u32], vec![2, 3, 2, 2, 3, 2, 2]] {
        let width = 5u32;
        let shape = [&outer[..], &[width]].concat();
        let mut strides = vec![1; shape.len()];
        let mut step = width;
        for (axis, size) in outer.iter().enumerate() {
            strides[axis] = step;
            step *= size;
        }
        let (x, out) = (strided(&shape, &strides, 0), dense(&shape, Scalar::F32));
        let xs = Random::new(3).floats(step as usize);
        let mut expected = vec![];
        for p in positions(&outer) {
            let row = (0..width).map(|i| f64::from(xs[address(&x.view, &[&p[..], &[i]].concat())]));
            let square = row.clone().map(|v| v * v).sum::<f64>() / f64::from(width);
            expected.extend(row.map(|v| (v / (square + 1e-5).sqrt()) as f32));
        }
        for limits in [limits(), hardware()] {
            let kind = NormKind::Rms;
            let spec = Norm { x: &x, scale: None, bias: None, out: &out, axes: 1, epsilon: 1e-5, kind };
            let words = bits(&xs);
            let launch = spec.launch(&limits).unwrap();
            let words = gpu.run_one(&launch, &[&words[..]; 3], expected.len());
            close(&f32s(&words), &expected, 2e-5, 2e-5);
        }
    }
}

#[test]
fn softmaxes() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in [([2u32, 3, 70], 2usize), ([2, 300, 3], 1), ([1, 2, 1], 2), ([5, 4, 3], 0)] {
        let x = dense(&shape, Scalar::F32);
        let len = x.view.len() as usize;
        let mut xs: Vec<f32> = Random::new(7).floats(len).iter().map(|v| v * 40.0).collect();
        if shape[0] == 5 {
            // One row of nothing, one with some of it.
            for i in 0..5 {
                xs[i * 12] = f32::NEG_INFINITY;
            }
            xs[1] = f32::NEG_INFINITY;
        }
        for log in [false, true] {
            let mut expected = vec![0f32; len];
            for p in positions(&shape).iter().filter(|p| p[axis] == 0) {
                let line: Vec<usize> = (0..shape[axis])
                    .map(|i| {
                        let mut p = p.clone();
                        p[axis] = i;
                        address(&x.view, &p)
                    })
                    .collect();
                let most = line.iter().map(|i| f64::from(xs[*i])).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = line.iter().map(|i| (f64::from(xs[*i]) - most).exp()).sum();
                for i in line {
                    let y = f64::from(xs[i]) - most;
                    expected[i] = if log { y - total.ln() } else { y.exp() / total } as f32;
                }
            }
            for limits in [limits(), hardware()] {
                let launch = Softmax { x: &x, out: &x, axis, log }.launch(&limits).unwrap();
                let out = gpu.run_one(&launch, &[&bits(&xs)], len);
                close(&f32s(&out), &expected, 2e-6, 1e-5);
            }
        }
    }
}

fn reduced(op: ReduceOp, terms: &[f32]) -> f32 {
    let all = || terms.iter().map(|t| f64::from(*t));
    let n = terms.len() as f64;
    let sum = all().sum::<f64>();
    (match op {
        ReduceOp::Sum => sum,
        ReduceOp::Mean => sum / n,
        ReduceOp::Max => all().fold(f64::NEG_INFINITY, f64::max),
        ReduceOp::Min => all().fold(f64::INFINITY, f64::min),
        ReduceOp::Prod => all().product(),
        ReduceOp::L1 => all().map(f64::abs).sum(),
        ReduceOp::L2 => all().map(|v| v * v).sum::<f64>().sqrt(),
        ReduceOp::SumSquare => all().map(|v| v * v).sum(),
        ReduceOp::LogSum => sum.ln(),
        ReduceOp::LogSumExp => all().map(f64::exp).sum::<f64>().ln(),
    }) as f32
}

#[test]
fn reductions() {
    let Some(gpu) = gpu() else { return };
    let shape = [3u32, 5, 4, 7];
    let x = dense(&shape, Scalar::F32);
    let xs: Vec<f32> = Random::new(5).floats(420).iter().map(|v| v + 1.1).collect();
    let ops = [
        ReduceOp::Sum,
        ReduceOp::Mean,
        ReduceOp::Max,
        ReduceOp::Min,
        ReduceOp::Prod,
        ReduceOp::L1,
        ReduceOp::L2,
        ReduceOp::SumSquare,
        ReduceOp::LogSum,
        ReduceOp::LogSumExp,
    ];
    let sets: [&[usize]; 4] = [&[3], &[0, 2], &[1, 2, 3], &[0, 1, 2, 3]];
    for (n, op) in ops.into_iter().enumerate() {
        for (axes, keep) in sets.iter().zip([true, false, true, false]) {
            let mut kept = shape.to_vec();
            axes.iter().for_each(|a| kept[*a] = 1);
            let squeezed: Vec<u32> = (0..4).filter(|a| !axes.contains(a)).map(|a| shape[a]).collect();
            let out = dense(if keep { &kept } else { &squeezed }, Scalar::F32);
            let expected: Vec<f32> = positions(&kept)
                .iter()
                .map(|at| {
                    let terms: Vec<f32> = positions(&shape)
                        .iter()
                        .filter(|p| (0..4).all(|a| axes.contains(&a) || p[a] == at[a]))
                        .map(|p| xs[address(&x.view, p)])
                        .collect();
                    reduced(op, &terms)
                })
                .collect();
            // The shared variant for some operations only: pipelines are expensive here.
            let all = [limits(), hardware()];
            for limits in &all[..if matches!(op, ReduceOp::Max | ReduceOp::LogSumExp) { 2 } else { 1 }] {
                let launch = Reduce { x: &x, out: &out, axes, op }.launch(limits).unwrap();
                let words = gpu.run_one(&launch, &[&bits(&xs)], expected.len());
                close(&f32s(&words), &expected, 1e-5, 2e-5);
            }
        }
        if n == 0 || n == 2 {
            let (x, out) = (dense(&[2, 3], Scalar::I32), dense(&[2], Scalar::I32));
            let launch = Reduce { x: &x, out: &out, axes: &[1], op }.launch(&limits()).unwrap();
            let data = [1i32, -5, 3, -7, -8, -9].map(|v| v as u32);
            let words = gpu.run_one(&launch, &[&data], 2);
            let expected = if n == 0 { [-1, -24] } else { [3, -7] };
            assert_eq!(words, expected.map(|v: i32| v as u32));
        }
    }
}

#[test]
fn rotaries() {
    let Some(gpu) = gpu() else { return };
    for (interleaved, table) in [
        (false, RotaryTable::Half),
        (true, RotaryTable::Half),
        (false, RotaryTable::Full),
        (true, RotaryTable::Full),
    ] {
        // Heads in place: [B, T, H, d] seen as [B, H, T, d]; tables [T, d].
        let (b, t, h, d) = (2u32, 3, 4, 6);
        let x = strided(&[b, h, t, d], &[t * h * d, d, h * d, 1], 0);
        let width = if table == RotaryTable::Half { d / 2 } else { d };
        let cos = dense(&[t, width], Scalar::F32);
        let out = dense(&[b, h, t, d], Scalar::F32);
        let mut random = Random::new(1);
        let len = (b * t * h * d) as usize;
        let (xs, cs, ss) = (random.floats(len), random.floats(18), random.floats(18));
        let mut expected = vec![0f32; len];
        for p in positions(&[b, h, t, d / 2]) {
            let pair = p[3];
            let (i, j) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + d / 2) };
            let (ti, tj) = if table == RotaryTable::Half { (pair, pair) } else { (i, j) };
            let get = |i: u32| xs[address(&x.view, &[p[0], p[1], p[2], i])];
            let entry = |table: &[f32], i: u32| table[(p[2] * width + i) as usize];
            let mut put = |i: u32, v: f32| expected[address(&out.view, &[p[0], p[1], p[2], i])] = v;
            put(i, get(i) * entry(&cs, ti) - get(j) * entry(&ss, ti));
            put(j, get(j) * entry(&cs, tj) + get(i) * entry(&ss, tj));
        }
        let attributes = RotaryAttributes { interleaved, table };

        let part = HeadPart { x: &x, norm: None, tables: Some([&cos, &cos]), out: &out, append: false };
        let spec = Heads { parts: vec![part], rotary: Some(attributes), position: None };
        let launch = spec.launch(&limits()).unwrap();
        let words = gpu.run_one(&launch, &[&bits(&xs), &bits(&cs), &bits(&ss)], len);
        close(&f32s(&words), &expected, 1e-6, 1e-6);
    }
}

#[test]
fn cumulative_sums_and_extrema() {
    let Some(gpu) = gpu() else { return };
    let x = Operand { scalar: Scalar::I32, ..dense(&[2, 4, 3], Scalar::I32) };
    let data: Vec<u32> = (0..24u32).map(|i| i * 7 % 11).collect();
    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        let launch = CumSum { x: &x, out: &x, axis: 1, exclusive, reverse }.launch(&limits()).unwrap();
        let out = gpu.run_one(&launch, &[&data], 24);
        for p in positions(&[2, 4, 3]) {
            let wanted: u32 = (0..4)
                .filter(|i| match (exclusive, reverse) {
                    (false, false) => *i <= p[1],
                    (true, false) => *i < p[1],
                    (false, true) => *i >= p[1],
                    (true, true) => *i > p[1],
                })
                .map(|i| data[address(&x.view, &[p[0], i, p[2]])])
                .sum();
            assert_eq!(out[address(&x.view, &p)], wanted);
        }
    }
    for width in [3u32, 300] {
        let x = dense(&[2, width], Scalar::F32);
        let mut xs = Random::new(2).floats(2 * width as usize);
        xs[1] = 9.0;
        xs[width as usize - 1] = 9.0;
        xs[width as usize] = -9.0;
        let out = dense(&[2, 1], Scalar::I32);
        for (last, smallest) in [(false, false), (true, false), (false, true)] {
            for limits in [limits(), hardware()] {
                let launch = ArgMax { x: &x, out: &out, axis: 1, last, smallest }.launch(&limits).unwrap();
                let found = gpu.run_one(&launch, &[&bits(&xs)], 2);
                for (row, at) in found.iter().enumerate() {
                    let line = &xs[row * width as usize..(row + 1) * width as usize];
                    let mut best = 0;
                    for (i, v) in line.iter().enumerate() {
                        let ahead = if smallest { *v < line[best] } else { *v > line[best] };
                        if ahead || (last && *v == line[best]) {
                            best = i;
                        }
                    }
                    assert_eq!(*at as usize, best);
                }
            }
        }
    }
}

#[test]
fn corrections() {
    let Some(gpu) = gpu() else { return };
    let (c, t, d) = (4u32, 3u32, 5u32);
    let f = dense(&[c, t, d], Scalar::F32);
    let mut random = Random::new(9);
    let fs = random.floats(60);
    let ss = random.floats(60);
    for shared in [false, true] {
        for last_only in [false, true] {
            let s = dense(&if shared { vec![t, d] } else { vec![c, t, d] }, Scalar::F32);
            let out = dense(&if last_only { vec![t, d] } else { vec![c, t, d] }, Scalar::F32);
            let at = |u: u32, i: usize| ss[if shared { i } else { u as usize * 15 + i }];
            let mut all = vec![];
            for u in 0..c {
                for i in 0..15usize {
                    let sum: f32 = (0..=u).map(|j| fs[j as usize * 15 + i]).sum();
                    all.push(sum - (0..u).map(|j| at(j, i)).sum::<f32>());
                }
            }
            let expected = if last_only { &all[45..] } else { &all[..] };
            let attributes = CorrectionAttributes { form: CorrectionForm::Prefix, last_only };
            let spec = Correction { f: &f, s: &s, t: None, out: &out, attributes };
            let words = gpu.run_one(
                &spec.launch(&limits()).unwrap(),
                &[&bits(&fs), &bits(&ss), &bits(&fs)],
                expected.len(),
            );
            close(&f32s(&words), expected, 1e-5, 1e-5);
        }
    }
    // Streams within the state: [C, T, S, D].
    let (c, t, n, d) = (3u32, 2u32, 2u32, 4u32);
    let f = dense(&[c, t, n, d], Scalar::F32);
    let order = c * n;
    let matrix = dense(&[order, order], Scalar::F32);
    let mut ts = random.floats((order * order) as usize);
    for p in positions(&[order, order]) {
        if p[1] / n >= p[0] / n {
            ts[(p[0] * order + p[1]) as usize] = f32::from(u8::from(p[0] == p[1]));
        }
    }
    for last_only in [false, true] {
        let out = dense(&if last_only { vec![t, n, d] } else { vec![c, t, n, d] }, Scalar::F32);
        let mut all = vec![];
        for p in positions(&[c, t, n, d]) {
            let mut sum = 0.0;
            for (u, r) in positions(&[c, n]).iter().map(|q| (q[0], q[1])) {
                let weight = ts[((p[0] * n + p[2]) * order + u * n + r) as usize];
                let i = address(&f.view, &[u, p[1], r, p[3]]);
                let own = f32::from(u8::from(u == p[0] && r == p[2]));
                sum += weight * fs[i] - (weight - own) * ss[i];
            }
            all.push(sum);
        }
        let expected = if last_only { &all[32..] } else { &all[..] };
        let form = CorrectionForm::Linear { streams: n, stream_axis: 2 };
        let attributes = CorrectionAttributes { form, last_only };
        let spec = Correction { f: &f, s: &f, t: Some(&matrix), out: &out, attributes };
        let reads = [&bits(&fs)[..], &bits(&ss), &bits(&ts)];
        let words = gpu.run_one(&spec.launch(&limits()).unwrap(), &reads, expected.len());
        close(&f32s(&words), expected, 1e-5, 1e-5);
    }
}

#[test]
fn scans_mix_the_streams_of_each_token() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(12);
    // Units, tokens, streams and features; streams after and before the tokens.
    let sizes = [(3u32, 2u32, 4u32, 17u32), (1, 3, 2, 5), (32, 1, 8, 9), (2, 70, 2, 1), (5, 2, 32, 3)];
    for ((c, tokens, n, d), axis) in sizes.into_iter().flat_map(|s| [(s, 2u32), (s, 1)]) {
        let shape = if axis == 2 { [c, tokens, n, d] } else { [c, n, tokens, d] };
        let f = dense(&shape, Scalar::F32);
        let a = dense(&[c, tokens, n, n], Scalar::F32);
        let size = (tokens * n * d) as usize;
        let (fs, matrices) = (random.floats(c as usize * size), random.floats((c * tokens * n * n) as usize));
        let matrices: Vec<f32> = matrices.iter().map(|a| a * 1.5 / n as f32).collect();
        for (shared, last_only) in [(false, false), (false, true), (true, false), (true, true)] {
            let ss = random.floats(if shared { size } else { c as usize * size });
            let s = dense(if shared { &shape[1..] } else { &shape }, Scalar::F32);
            let out = dense(if last_only { &shape[1..] } else { &shape }, Scalar::F32);
            let at = |u: u32, t: u32, q: u32, i: u32| {
                let place = if axis == 2 { [u, t, q, i] } else { [u, q, t, i] };
                address(&f.view, &place)
            };
            let old = |i: usize| if shared { ss[i % size] } else { ss[i] };
            let mut all = fs.clone();
            for p in positions(&[c, tokens, n, d]).iter().filter(|p| p[0] > 0) {
                let (u, t, q, i) = (p[0], p[1], p[2], p[3]);
                for r in 0..n {
                    let weight = matrices[(((u * tokens + t) * n + q) * n + r) as usize];
                    let before = at(u - 1, t, r, i);
                    all[at(u, t, q, i)] += weight * (all[before] - old(before));
                }
            }
            let expected = if last_only { &all[(c as usize - 1) * size..] } else { &all[..] };
            let form = CorrectionForm::Scan { stream_axis: axis };
            let attributes = CorrectionAttributes { form, last_only };
            let spec = Correction { f: &f, s: &s, t: Some(&a), out: &out, attributes };
            let reads = [&bits(&fs)[..], &bits(&ss), &bits(&matrices)];
            let words = gpu.run_one(&spec.launch(&limits()).unwrap(), &reads, expected.len());
            close(&f32s(&words), expected, 1e-5, 1e-5);
        }
    }
}

#[test]
fn results_may_be_strided() {
    let Some(gpu) = gpu() else { return };
    let x = dense(&[3, 4], Scalar::F32);
    let out = strided(&[3, 4], &[1, 3], 5);
    let xs = Random::new(4).floats(12);
    let launch =
        CumSum { x: &x, out: &out, axis: 1, exclusive: false, reverse: false }.launch(&limits()).unwrap();
    let mut writes = [poison(20)];
    gpu.run(&launch, &[&bits(&xs)], &mut writes);
    let mut expected = vec![];
    for row in xs.chunks(4) {
        expected.extend(row.iter().scan(0.0, |sum, v| {
            *sum += v;
            Some(*sum)
        }));
    }
    close(&elements(&out.view, &f32s(&writes[0])), &expected, 1e-6, 1e-6);
    assert_eq!(writes[0][..5], poison(5));
}
