use snlp_passes::ir::Attention as Attributes;

use super::super::testing::{
    Random, address, bits, close, dense, f32s, gpu, hardware, limits, positions, strided,
};
use super::super::{Attention, AttentionVariant, Operand, Scalar, View};

struct Case {
    q: Operand,
    k: Operand,
    v: Operand,
    mask: Option<Operand>,
    sinks: Option<Operand>,
    /// Where the first query stands, if not such that the last stands at the last key.
    position: Option<i32>,
    attributes: Attributes,
}

fn attributes() -> Attributes {
    Attributes { scale: 0.4, causal: false, window: None, softcap: None, safe: false }
}

fn at(view: &View, p: &[u32]) -> usize {
    let cut = &p[p.len() - view.shape.len()..];
    let clamped: Vec<u32> = cut.iter().zip(&view.shape).map(|(i, d)| (*i).min(d - 1)).collect();
    address(view, &clamped)
}

fn size(operand: &Operand) -> usize {
    positions(&operand.view.shape).iter().map(|p| address(&operand.view, p)).max().map_or(0, |m| m + 1)
}

fn reference(case: &Case, data: [&[f32]; 3], mask: &[f32], sinks: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let tail = |o: &Operand, back: usize| o.view.shape[o.view.shape.len() - back];
    let (d, e, keys) = (tail(&case.q, 1), tail(&case.v, 1), tail(&case.k, 2));
    let group = tail(&case.q, 3) / tail(&case.k, 3);
    let mut shape = case.q.view.shape.clone();
    let last = shape.len() - 1;
    shape[last] = e;
    let a = case.attributes;
    let mut out = vec![];
    for p in positions(&shape[..last]) {
        let (lead, h, t) = (&p[..last - 2], p[last - 2], p[last - 1]);
        let mut scores = vec![];
        for s in 0..keys {
            let mut sum = 0f64;
            for i in 0..d {
                let q = data[0][at(&case.q.view, &[lead, &[h, t, i]].concat())];
                let k = data[1][at(&case.k.view, &[lead, &[h / group, s, i]].concat())];
                sum += f64::from(q) * f64::from(k);
            }
            let mut score = sum * f64::from(a.scale);
            if let Some(cap) = a.softcap {
                score = f64::from(cap) * (score / f64::from(cap)).tanh();
            }
            if let Some(m) = &case.mask {
                let value = mask[at(&m.view, &[lead, &[h, t, s]].concat())];
                score = match m.scalar {
                    Scalar::Bool if value == 0.0 => f64::NEG_INFINITY,
                    Scalar::Bool => score,
                    _ => score + f64::from(value),
                };
            }
            let first = case.position.map(i64::from);
            let first = first.unwrap_or(i64::from(keys) - i64::from(tail(&case.q, 2)));
            let position = i64::from(t) + first;
            let late = a.causal && i64::from(s) > position;
            let early = a.window.is_some_and(|w| i64::from(s) <= position - i64::from(w));
            scores.push(if late || early { f64::NEG_INFINITY } else { score });
        }
        let sink = match &case.sinks {
            Some(o) => f64::from(sinks[at(&o.view, &[lead, &[h, t, 0]].concat())]),
            None => f64::NEG_INFINITY,
        };
        let most = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + (sink - most).exp();
        for c in 0..e {
            let mut sum = 0f64;
            for (s, w) in weights.iter().enumerate() {
                sum += w * f64::from(data[2][at(&case.v.view, &[lead, &[h / group, s as u32, c]].concat())]);
            }
            let empty = most == f64::NEG_INFINITY;
            out.push(if empty && a.safe {
                0.0
            } else if empty {
                f32::NAN
            } else {
                (sum / total) as f32
            });
        }
    }
    (shape, out)
}

fn check(case: &Case, seed: u64, variants: &[AttentionVariant]) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(seed);
    let mut draw = |o: &Operand| random.floats(size(o)).iter().map(|v| 2.0 * v).collect::<Vec<f32>>();
    let (q, k, v) = (draw(&case.q), draw(&case.k), draw(&case.v));
    let mask: Vec<f32> = case.mask.as_ref().map_or(vec![], |m| {
        let all = draw(m);
        // Some excluded, in either form; the first row entirely.
        let width = m.view.shape.last().copied().unwrap_or(1) as usize;
        let excluded = |(i, v): (usize, f32)| i < width || v < -0.4;
        all.into_iter()
            .enumerate()
            .map(|(i, v)| match (m.scalar, excluded((i, v))) {
                (Scalar::Bool, no) => f32::from(u8::from(!no)),
                (_, true) => f32::NEG_INFINITY,
                (_, false) => v,
            })
            .collect()
    });
    let sinks = case.sinks.as_ref().map_or(vec![], &mut draw);
    let (shape, expected) = reference(case, [&q, &k, &v], &mask, &sinks);
    let out = dense(&shape, Scalar::F32);
    let position = dense(&[], Scalar::I32);
    let spec = Attention {
        position: case.position.map(|_| &position),
        q: &case.q,
        k: &case.k,
        v: &case.v,
        mask: case.mask.as_ref(),
        sinks: case.sinks.as_ref(),
        out: &out,
        attributes: case.attributes,
    };
    let (q, k, v) = (bits(&q), bits(&k), bits(&v));
    let mask = case.mask.as_ref().map(|m| match m.scalar {
        Scalar::Bool => mask.iter().map(|v| *v as u32).collect(),
        _ => bits(&mask),
    });
    let sinks = if sinks.is_empty() { q.clone() } else { bits(&sinks) };
    let position = case.position.map_or(q.clone(), |p| vec![p as u32]);
    for variant in variants {
        let device = match variant {
            AttentionVariant::Software => limits(),
            AttentionVariant::Subgroup => gpu.limits(),
            AttentionVariant::Decode | AttentionVariant::Tiled => hardware(),
        };
        let large = [&case.q, &case.v].iter().any(|o| o.view.shape.last() > Some(&64));
        if *variant == AttentionVariant::Subgroup && (gpu.limits().subgroup_size != 8 || large) {
            assert!(spec.launch_as(*variant, &device).is_err());
            continue;
        }
        let launch = spec.launch_as(*variant, &device).unwrap();
        let mask = mask.as_ref().unwrap_or(&q);
        let words = gpu.run_one(&launch, &[&q, &k, &v, mask, &sinks, &position], expected.len());
        eprintln!("{variant:?} {:?}", case.q.view);
        close(&f32s(&words), &expected, 2e-5, 2e-5);
    }
}

const ALL: [AttentionVariant; 4] = [
    AttentionVariant::Software,
    AttentionVariant::Subgroup,
    AttentionVariant::Decode,
    AttentionVariant::Tiled,
];

fn plain(lead: &[u32], heads: [u32; 2], [t, s]: [u32; 2], [d, e]: [u32; 2]) -> Case {
    let with = |tail: [u32; 3]| dense(&[lead, &tail].concat(), Scalar::F32);
    Case {
        q: with([heads[0], t, d]),
        k: with([heads[1], s, d]),
        v: with([heads[1], s, e]),
        mask: None,
        sinks: None,
        position: None,
        attributes: attributes(),
    }
}

#[test]
fn tile_edges_causal_and_grouped() {
    for (n, (t, s)) in [(1, 1), (1, 129), (15, 31), (16, 32), (17, 33), (5, 2)].into_iter().enumerate() {
        let mut case = plain(&[2], [4, 2], [t, s], [8, 8]);
        case.attributes.causal = true;
        case.attributes.safe = true;
        check(&case, n as u64, &ALL);
    }
}

#[test]
fn queries_stand_where_the_position_says() {
    for (n, position) in [0, 1, 7, 30, 32, -2].into_iter().enumerate() {
        for t in [1, 3, 17] {
            let mut case = plain(&[2], [4, 2], [t, 33], [8, 8]);
            case.position = Some(position);
            case.attributes = Attributes { causal: true, safe: true, ..attributes() };
            check(&case, n as u64, &ALL);
            case.attributes.window = Some(4);
            check(&case, n as u64, &ALL);
        }
    }
}

#[test]
fn odd_and_large_heads() {
    check(&plain(&[], [2, 1], [18, 35], [6, 10]), 1, &ALL);
    check(&plain(&[1, 2], [1, 1], [3, 130], [40, 200]), 2, &ALL);
    check(&plain(&[], [1, 1], [2, 5], [256, 256]), 3, &ALL);
    // Both sides of every eighth column.
    for (d, e) in [(7, 9), (32, 33), (64, 57)] {
        let mut case = plain(&[], [1, 1], [17, 20], [d, e]);
        case.attributes.causal = true;
        check(&case, 4, &[AttentionVariant::Subgroup]);
    }
    let large = plain(&[], [1, 1], [2, 5], [260, 8]);
    let out = dense(&[1, 2, 8], Scalar::F32);
    let spec = Attention {
        q: &large.q,
        k: &large.k,
        v: &large.v,
        mask: None,
        sinks: None,
        position: None,
        out: &out,
        attributes: attributes(),
    };
    assert!(spec.launch(&limits()).is_err());
}

#[test]
fn masks_windows_and_caps() {
    for (scalar, safe) in
        [(Scalar::Bool, false), (Scalar::Bool, true), (Scalar::F32, false), (Scalar::F32, true)]
    {
        let mut case = plain(&[2], [4, 4], [17, 33], [8, 8]);
        // [B, 1, T, S], broadcast over the heads.
        case.mask = Some(Operand { scalar, ..dense(&[2, 1, 17, 33], scalar) });
        case.attributes.safe = safe;
        check(&case, 1, &ALL);
    }
    let mut case = plain(&[], [2, 2], [20, 40], [8, 8]);
    case.attributes.causal = true;
    case.attributes.window = Some(5);
    case.attributes.softcap = Some(1.5);
    check(&case, 2, &ALL);
}

#[test]
fn sinks_take_weight() {
    // Per head, and per row of the batch; beside rows that see nothing.
    for (shape, masked) in [(&[4, 1, 1][..], false), (&[2, 4, 1, 1], true)] {
        let mut case = plain(&[2], [4, 2], [17, 33], [8, 8]);
        case.sinks = Some(dense(shape, Scalar::F32));
        case.mask = masked.then(|| dense(&[2, 1, 17, 33], Scalar::Bool));
        check(&case, 5, &ALL);
    }
}

#[test]
fn strided_heads_and_units() {
    // Units share q's layout [B, T, C, H, d] seen as [C, B, H, T, d]; k of one head; a shared batch.
    let (c, b, h, t, d) = (3u32, 2u32, 2u32, 5u32, 8u32);
    let q = strided(&[c, b, h, t, d], &[h * d, t * c * h * d, d, c * h * d, 1], 0);
    let case = Case {
        q: q.clone(),
        k: strided(&[c, b, 1, t, d], &[d, t * c * d, 0, c * d, 1], 0),
        v: q,
        mask: None,
        sinks: None,
        position: None,
        attributes: attributes(),
    };
    let case = Case { v: strided(&[c, 1, 1, t, d], &[t * d, 0, 0, d, 1], 3), ..case };
    check(&case, 1, &ALL);
}
