use snlp_passes::ir::{Attention as Attributes, DType, Op, Rotary, RotaryTable, Tensor};

use super::super::testing::{Random, bits, close, dense, elements, f32s, gpu, hardware, limits, poison};
use super::super::{AttentionStep, HeadNorm, Limits, NormKind, Operand, Ready, Scalar};
use super::heads::{EPSILON, Turn, tensor, turned};

struct Case {
    lead: Vec<u32>,
    /// Of queries, of keys.
    heads: [u32; 2],
    /// New tokens, and rows of the caches.
    rows: [u32; 2],
    /// Of queries and keys, of values.
    width: [u32; 2],
    position: i32,
    turns: [Turn; 2],
    mask: Option<Scalar>,
    sinks: bool,
    attributes: Attributes,
}

fn plain(heads: [u32; 2], rows: [u32; 2], width: [u32; 2], position: i32) -> Case {
    Case {
        lead: vec![],
        heads,
        rows,
        width,
        position,
        turns: [Turn { norm: None, rotary: None }, Turn { norm: None, rotary: None }],
        mask: None,
        sinks: false,
        attributes: Attributes { scale: 0.4, causal: true, window: None, softcap: None, safe: true },
    }
}

/// `[lead.., rows, heads, width]` seen as `[lead.., heads, rows, width]`.
fn split(lead: &[u32], heads: u32, rows: u32, width: u32) -> Operand {
    let mut x = dense(&[lead, &[rows, heads, width]].concat(), Scalar::F32);
    x.view.shape.swap(lead.len(), lead.len() + 1);
    x.view.strides.swap(lead.len(), lead.len() + 1);
    x
}

struct Filled {
    operand: Operand,
    values: Vec<f32>,
}

impl Filled {
    fn new(random: &mut Random, operand: Operand) -> Self {
        let values = random.floats(operand.view.len() as usize).iter().map(|v| 1.5 * v).collect();
        Filled { operand, values }
    }

    fn tensor(&self) -> Tensor {
        tensor(&self.operand.view.shape, elements(&self.operand.view, &self.values))
    }
}

/// The cache with the new rows in it.
fn appended(cache: &Filled, rows: &Tensor, position: i32) -> Vec<f32> {
    let shape = &cache.operand.view.shape;
    let (held, width) = (shape[shape.len() - 2] as usize, shape[shape.len() - 1] as usize);
    let new = rows.to_f32();
    let t = rows.shape()[rows.shape().len() - 2];
    let mut out = cache.values.clone();
    for (n, row) in new.chunks(width).enumerate() {
        let to = position + (n % t) as i32;
        let to = if to < 0 { to + held as i32 } else { to };
        if (0..held as i32).contains(&to) {
            let at = (n / t * held + to as usize) * width;
            out[at..at + width].copy_from_slice(row);
        }
    }
    out
}

fn check(case: &Case) {
    let Some(gpu) = gpu() else { return };
    let ([hq, hk], [t, s], [d, e]) = (case.heads, case.rows, case.width);
    let mut random = Random::new(u64::from(t * 31 + s));
    let with = |tail: [u32; 3]| dense(&[&case.lead[..], &tail].concat(), Scalar::F32);
    let mut draw = |operand: Operand| Filled::new(&mut random, operand);
    let q = draw(split(&case.lead, hq, t, d));
    let k = draw(split(&case.lead, hk, t, d));
    let v = draw(split(&case.lead, hk, t, e));
    let (kc, vc) = (draw(with([hk, s, d])), draw(with([hk, s, e])));
    let rotary = case.turns.iter().find_map(|t| t.rotary);
    let half = rotary.is_some_and(|r| r.table == RotaryTable::Half);
    let table = dense(&[t, if half { d / 2 } else { d }], Scalar::F32);
    let tables = [draw(table.clone()), draw(table.clone())];
    let scales = [0, 1].map(|n| {
        let shape = case.turns[n].norm.as_ref().map_or(vec![], |(_, factors, _)| factors.clone());
        draw(dense(&shape, Scalar::F32))
    });
    let mask = draw(with([1, t, s]));
    let sinks = draw(dense(&[hq, 1, 1], Scalar::F32));

    // The reference. Rows of the mask that exclude everything, too.
    let [cos, sin] = [tables[0].tensor(), tables[1].tensor()];
    let turn = |x: &Filled, n: usize| turned(&x.tensor(), &case.turns[n], &scales[n].tensor(), [&cos, &sin]);
    let (new_q, new_k, new_v) = (turn(&q, 0), turn(&k, 1), v.tensor());
    let full_k = appended(&kc, &new_k, case.position);
    let full_v = appended(&vc, &new_v, case.position);
    let shown: Vec<bool> = mask
        .values
        .iter()
        .enumerate()
        .map(|(i, v)| i >= s as usize * (t as usize - 1) && *v > -0.9)
        .collect();
    let mask_shape: Vec<usize> = mask.operand.view.shape.iter().map(|d| *d as usize).collect();
    let masked: Vec<f32> =
        mask.values.iter().zip(&shown).map(|(v, b)| if *b { *v } else { f32::NEG_INFINITY }).collect();
    let mask_tensor = match case.mask {
        Some(Scalar::Bool) => {
            let bits = Tensor::from_vec(mask_shape, shown.iter().map(|b| i64::from(*b)).collect()).unwrap();
            Some(super::heads::one(&Op::Cast { to: DType::Bool }, &[Some(&bits)]))
        }
        Some(_) => Some(Tensor::from_vec(mask_shape, masked.clone()).unwrap()),
        None => None,
    };
    let sink_tensor = case.sinks.then(|| sinks.tensor());
    let position = Tensor::ints(&[i64::from(case.position)]).reshaped(vec![]).unwrap();
    let (caches_k, caches_v) =
        (tensor(&kc.operand.view.shape, full_k.clone()), tensor(&vc.operand.view.shape, full_v.clone()));
    let operands = [
        Some(&new_q),
        Some(&caches_k),
        Some(&caches_v),
        mask_tensor.as_ref(),
        sink_tensor.as_ref(),
        Some(&position),
    ];
    let expected = super::heads::one(&Op::Attention(case.attributes), &operands).to_f32();

    // What a workgroup must not read: rows of the caches that another writes, and those behind them.
    let poisoned = |cache: &Filled| {
        let width = *cache.operand.view.shape.last().unwrap() as usize;
        let row = |i: usize| (i / width % s as usize) as i32;
        let unread = |i: usize| row(i) >= case.position;
        let of = cache.values.iter().enumerate();
        of.map(|(i, v)| if unread(i) { poison(1)[0] } else { v.to_bits() }).collect::<Vec<u32>>()
    };
    let written = |full: &[f32], cache: &Filled| {
        let old = poisoned(cache);
        let new = full.iter().zip(&cache.values).zip(old);
        new.map(|((f, c), old)| if f == c { f32::from_bits(old) } else { *f }).collect::<Vec<f32>>()
    };
    let out = split(&case.lead, hq, t, e);
    let at = dense(&[], Scalar::I32);
    let mask_operand = case.mask.map(|scalar| Operand { scalar, ..mask.operand.clone() });
    let ready = |n: usize| Ready {
        norm: case.turns[n].norm.as_ref().map(|(kind, factors, first)| HeadNorm {
            kind: *kind,
            epsilon: EPSILON,
            scale: (!factors.is_empty()).then_some(&scales[n].operand),
            first: *first,
        }),
        tables: case.turns[n].rotary.map(|_| [&table, &table]),
    };
    let spec = AttentionStep {
        q: &q.operand,
        k: &k.operand,
        v: &v.operand,
        ready_q: ready(0),
        ready_k: ready(1),
        rotary,
        k_cache: &kc.operand,
        v_cache: &vc.operand,
        mask: mask_operand.as_ref(),
        sinks: case.sinks.then_some(&sinks.operand),
        position: &at,
        out: &out,
        shares: None,
        attributes: case.attributes,
    };
    let mut reads = vec![bits(&q.values), bits(&k.values), bits(&v.values)];
    if rotary.is_some() {
        reads.extend(tables.iter().map(|t| bits(&t.values)));
    }
    for (turn, scale) in case.turns.iter().zip(&scales) {
        if turn.norm.as_ref().is_some_and(|(_, factors, _)| !factors.is_empty()) {
            reads.push(bits(&scale.values));
        }
    }
    match case.mask {
        Some(Scalar::Bool) => reads.push(shown.iter().map(|b| u32::from(*b)).collect()),
        Some(_) => reads.push(bits(&masked)),
        None => {}
    }
    if case.sinks {
        reads.push(bits(&sinks.values));
    }
    reads.push(vec![case.position as u32]);
    let reads: Vec<&[u32]> = reads.iter().map(Vec::as_slice).collect();
    // As much memory as desktop adapters have.
    for device in [gpu.limits(), limits(), hardware()].map(|l| Limits { max_workgroup_memory: 32 << 10, ..l })
    {
        let launch = spec.launch(&device).unwrap();
        if !gpu.binds(&launch) {
            continue;
        }
        let mut writes = [poisoned(&kc), poisoned(&vc), poison(expected.len())];
        gpu.run(&launch, &reads, &mut writes);
        close(&elements(&out.view, &f32s(&writes[2])), &expected, 2e-5, 2e-5);
        close(&f32s(&writes[0]), &written(&full_k, &kc), 2e-5, 2e-5);
        close(&f32s(&writes[1]), &written(&full_v, &vc), 0.0, 0.0);
    }
    // Several workgroups to a query: as many as there are blocks of keys, more, and fewer.
    let device = Limits { max_workgroup_memory: 32 << 10, ..hardware() };
    for count in [2, 3, 7] {
        let shares = dense(&[&case.lead[..], &[hq, t, count, e + 2]].concat(), Scalar::F32);
        let spec = AttentionStep { shares: Some(&shares), ..spec.clone() };
        let (launch, merge) = (spec.launch(&device).unwrap(), spec.merge(&device).unwrap());
        if !gpu.binds(&launch) {
            continue;
        }
        let mut writes = [poisoned(&kc), poisoned(&vc), poison(shares.view.len() as usize)];
        gpu.run(&launch, &reads, &mut writes);
        close(&f32s(&writes[0]), &written(&full_k, &kc), 2e-5, 2e-5);
        close(&f32s(&writes[1]), &written(&full_v, &vc), 0.0, 0.0);
        let sinks = bits(&sinks.values);
        let mut reads: Vec<&[u32]> = if case.sinks { vec![&sinks] } else { vec![] };
        reads.push(&writes[2]);
        let done = gpu.run_one(&merge, &reads, expected.len());
        close(&elements(&out.view, &f32s(&done)), &expected, 2e-5, 2e-5);
    }
}

const HALF: Rotary = Rotary { interleaved: false, table: RotaryTable::Half };
const FULL: Rotary = Rotary { interleaved: true, table: RotaryTable::Full };

#[test]
fn positions_on_both_sides_of_every_block() {
    for (t, s, position) in [(1, 9, 0), (1, 9, 8), (8, 33, 25), (3, 140, 127), (2, 140, 128), (1, 600, 512)] {
        check(&plain([4, 2], [t, s], [8, 8], position));
    }
    // Rows that the caches have no place for, and those that count from the end.
    for (t, position) in [(3, 7), (1, 9), (2, 12), (3, -1), (3, -2), (1, -4)] {
        check(&plain([2, 1], [t, 9], [8, 8], position));
    }
}

#[test]
fn norms_and_embeddings_in_either_order() {
    for (n, kind) in [NormKind::Rms, NormKind::Layer].into_iter().enumerate() {
        for first in [true, false] {
            for rotary in [None, Some(HALF), Some(FULL)] {
                let mut case = plain([4, 2], [1 + 2 * n as u32, 20], [16, 12], 7);
                let factors = if first { vec![16] } else { vec![] };
                case.turns[0] = Turn { norm: Some((kind, factors.clone(), first)), rotary };
                case.turns[1] = Turn { norm: Some((kind, factors, first)), rotary };
                check(&case);
            }
        }
    }
    // Keys alone, and queries alone.
    for n in [0, 1] {
        let mut case = plain([2, 2], [2, 20], [8, 8], 3);
        case.turns[n] = Turn { norm: Some((NormKind::Rms, vec![8], true)), rotary: Some(HALF) };
        case.turns[1 - n].rotary = (n == 1).then_some(HALF);
        check(&case);
    }
}

#[test]
fn odd_and_large_heads() {
    let rms = |width: u32| Turn { norm: Some((NormKind::Rms, vec![width], true)), rotary: None };
    for (d, e) in [(7, 5), (65, 130), (256, 256)] {
        let mut case = plain([2, 1], [if d > 100 { 8 } else { 2 }, 40], [d, e], 20);
        case.turns = [rms(d), rms(d)];
        check(&case);
    }
}

#[test]
fn units_have_factors_of_their_own() {
    let mut case = plain([4, 2], [2, 20], [8, 8], 9);
    case.lead = vec![2, 3, 1];
    let own = Turn { norm: Some((NormKind::Rms, vec![2, 3, 1, 1, 1, 8], false)), rotary: Some(HALF) };
    case.turns = [own.clone(), own];
    check(&case);
}

#[test]
fn masks_windows_caps_and_sinks() {
    for (mask, safe, sinks) in
        [(Scalar::Bool, false, false), (Scalar::F32, true, false), (Scalar::Bool, true, true)]
    {
        let mut case = plain([4, 2], [3, 40], [8, 8], 33);
        case.lead = vec![2];
        case.mask = Some(mask);
        case.sinks = sinks;
        case.attributes.safe = safe;
        check(&case);
    }
    for (window, position) in [(1, 20), (5, 3), (5, 200), (1000, 20)] {
        let mut case = plain([2, 2], [3, 210], [8, 8], position);
        case.attributes.window = Some(window);
        case.attributes.softcap = Some(1.5);
        check(&case);
    }
}

#[test]
fn long_caches_are_shared() {
    let at = dense(&[1], Scalar::I32);
    let wanted = |device: &Limits, heads: u32, rows: u32, window: Option<u32>| {
        let (new, cache) = (dense(&[heads, 1, 8], Scalar::F32), dense(&[heads, rows, 8], Scalar::F32));
        let (q, k, v, out, k_cache, v_cache) = (&new, &new, &new, &new, &cache, &cache);
        let attributes = Attributes { window, ..plain([1, 1], [1, 1], [8, 8], 0).attributes };
        AttentionStep {
            q,
            k,
            v,
            ready_q: Ready::default(),
            ready_k: Ready::default(),
            rotary: None,
            k_cache,
            v_cache,
            mask: None,
            sinks: None,
            position: &at,
            out,
            shares: None,
            attributes,
        }
        .wanted_shares(device)
        .unwrap()
    };
    assert_eq!(wanted(&hardware(), 4, 512, None), 1, "a short cache");
    assert_eq!(wanted(&hardware(), 4, 4096, None), 8);
    assert_eq!(wanted(&hardware(), 64, 4096, None), 4, "many heads");
    assert_eq!(wanted(&hardware(), 4, 4096, Some(600)), 1, "a window");
    assert_eq!(wanted(&limits(), 4, 4096, None), 1, "software");
}

#[test]
fn says_what_does_not_fit() {
    let shape = |rows: u32, width: u32| dense(&[1, rows, width], Scalar::F32);
    let at = dense(&[1], Scalar::I32);
    let attributes = plain([1, 1], [1, 1], [8, 8], 0).attributes;
    let launch_on = |device: Limits, rows: u32, width: u32, attributes| {
        let (new, cache) = (shape(rows, width), shape(40, width));
        let (ready_q, ready_k) = (Ready::default(), Ready::default());
        let (q, k, v, out, k_cache, v_cache) = (&new, &new, &new, &new, &cache, &cache);
        let (mask, sinks, position, rotary) = (None, None, &at, None);
        AttentionStep {
            q,
            k,
            v,
            ready_q,
            ready_k,
            rotary,
            k_cache,
            v_cache,
            mask,
            sinks,
            position,
            out,
            shares: None,
            attributes,
        }
        .launch(&device)
    };
    let launch = |rows, width, attributes| launch_on(limits(), rows, width, attributes);
    assert!(launch(8, 256, attributes).is_ok());
    assert!(launch_on(hardware(), 8, 256, attributes).is_ok());
    let small = Limits { max_workgroup_memory: 8 << 10, ..hardware() };
    assert!(launch_on(small, 8, 256, attributes).is_err(), "new keys that workgroup memory does not hold");
    assert!(launch(8, 64, attributes).is_ok());
    assert!(launch(9, 64, attributes).is_err(), "many tokens");
    assert!(launch(1, 260, attributes).is_err(), "a large head");
    assert!(launch(1, 64, Attributes { causal: false, ..attributes }).is_err());
}
