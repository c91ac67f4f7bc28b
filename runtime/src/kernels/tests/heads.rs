use snlp_passes::eval::eval_op;
use snlp_passes::ir::{Op, Rotary, RotaryTable, Tensor};

use super::super::testing::{Random, bits, close, dense, elements, f32s, gpu, hardware, limits, poison};
use super::super::{HeadNorm, HeadPart, Heads, Limits, NormKind, Operand, Scalar};

/// What makes a part ready, of any operand.
#[derive(Clone)]
pub(super) struct Turn {
    /// Kind, shape of the factors, and whether it comes first.
    pub norm: Option<(NormKind, Vec<u32>, bool)>,
    pub rotary: Option<Rotary>,
}

pub(super) const EPSILON: f32 = 1e-3;

pub(super) fn tensor(shape: &[u32], data: Vec<f32>) -> Tensor {
    Tensor::from_vec(shape.iter().map(|d| *d as usize).collect(), data).unwrap()
}

pub(super) fn one(op: &Op, operands: &[Option<&Tensor>]) -> Tensor {
    eval_op(op, operands).unwrap().remove(0)
}

/// What the evaluator makes of `x`, with factors and tables as given.
pub(super) fn turned(x: &Tensor, turn: &Turn, scale: &Tensor, tables: [&Tensor; 2]) -> Tensor {
    let mut y = x.clone();
    for rotary in [false, true] {
        let first = turn.norm.as_ref().is_none_or(|(_, _, first)| *first);
        if rotary == first {
            if let Some(rotary) = turn.rotary {
                y = one(&Op::Rotary(rotary), &[Some(&y), Some(tables[0]), Some(tables[1])]);
            }
        } else if let Some((kind, factors, _)) = &turn.norm {
            let (axis, epsilon) = (x.shape().len() - 1, EPSILON);
            let op = match kind {
                NormKind::Layer => Op::LayerNorm { axis, epsilon },
                NormKind::Rms => Op::RmsNorm { axis, epsilon },
            };
            y = one(&op, &[Some(&y), None]);
            if !factors.is_empty() {
                y = one(&Op::Binary(snlp_passes::ir::Binary::Mul), &[Some(&y), Some(scale)]);
            }
        }
    }
    y
}

fn norm<'a>(turn: &Turn, scale: &'a Operand) -> Option<HeadNorm<'a>> {
    turn.norm.as_ref().map(|(kind, factors, first)| HeadNorm {
        kind: *kind,
        epsilon: EPSILON,
        scale: (!factors.is_empty()).then_some(scale),
        first: *first,
    })
}

/// Parts of heads `[lead.., H, T, d]` that lie as `[lead.., T, H, d]`; the second and third go to caches of 7 rows.
struct Case {
    lead: Vec<u32>,
    heads: [u32; 3],
    width: [u32; 3],
    t: u32,
    position: i32,
    turns: [Turn; 3],
    tables: u32,
}

const ROWS: u32 = 7;

fn check(case: &Case, parts: usize) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(u64::from(case.t + 7 * case.position.unsigned_abs()));
    let rotary = case.turns.iter().find_map(|t| t.rotary);
    let half = rotary.is_some_and(|r| r.table == RotaryTable::Half);
    let table_shape = [case.t, if half { case.tables / 2 } else { case.tables }];
    let len = (table_shape[0] * table_shape[1]) as usize;
    let (cos, sin) = (random.floats(len), random.floats(len));
    let table = dense(&table_shape, Scalar::F32);
    let tables = [&cos, &sin].map(|t| tensor(&table_shape, t.clone()));
    let (mut operands, mut data, mut scales, mut expected) = (vec![], vec![], vec![], vec![]);
    for ((heads, d), turn) in case.heads.into_iter().zip(case.width).zip(&case.turns).take(parts) {
        let lie = dense(&[&case.lead[..], &[case.t, heads, d]].concat(), Scalar::F32);
        let mut x = lie.clone();
        let axis = case.lead.len();
        x.view.shape.swap(axis, axis + 1);
        x.view.strides.swap(axis, axis + 1);
        let values: Vec<f32> = random.floats(lie.view.len() as usize).iter().map(|v| v + 0.5).collect();
        let factors = turn.norm.as_ref().map_or(vec![], |(_, shape, _)| shape.clone());
        let scale = random.floats(factors.iter().product::<u32>() as usize);
        let factor = tensor(&factors, scale.clone());
        let scale = if factors.is_empty() { vec![] } else { scale };
        let plain = tensor(&x.view.shape, elements(&x.view, &values));
        let ready = turned(&plain, turn, &factor, [&tables[0], &tables[1]]);
        let append = !expected.is_empty();
        let shape = [&case.lead[..], &[heads, if append { ROWS } else { case.t }, d]].concat();
        let out = dense(&shape, Scalar::F32);
        let mut want = f32s(&poison(out.view.len() as usize));
        let every = ready.to_f32();
        let row = |lead: usize, r: usize, rows: u32| (lead * rows as usize + r) * d as usize;
        for lead in 0..every.len() / (case.t * d) as usize {
            for t in 0..case.t {
                let to = if append { case.position + t as i32 } else { t as i32 };
                let to = if append && to < 0 { to + ROWS as i32 } else { to };
                if (0..shape[shape.len() - 2] as i32).contains(&to) {
                    let from = row(lead, t as usize, case.t);
                    let at = row(lead, to as usize, shape[shape.len() - 2]);
                    want[at..at + d as usize].copy_from_slice(&every[from..from + d as usize]);
                }
            }
        }
        expected.push(want);
        operands.push((x, dense(&factors, Scalar::F32), out, append));
        data.push(bits(&values));
        scales.push(bits(&scale));
    }
    let position = dense(&[1], Scalar::I32);
    let spec = Heads {
        parts: operands
            .iter()
            .zip(&case.turns)
            .map(|((x, scale, out, append), turn)| HeadPart {
                x,
                norm: norm(turn, scale),
                tables: turn.rotary.map(|_| [&table, &table]),
                out,
                append: *append,
            })
            .collect(),
        rotary,
        position: Some(&position),
    };
    let (cos, sin, at) = (bits(&cos), bits(&sin), vec![case.position as u32]);
    let used = case.turns.iter().take(parts);
    let mut reads: Vec<&[u32]> = data.iter().map(Vec::as_slice).collect();
    if used.clone().any(|t| t.rotary.is_some()) {
        reads.extend([&cos[..], &sin]);
    }
    reads.extend(scales.iter().filter(|s| !s.is_empty()).map(Vec::as_slice));
    reads.push(&at);
    // Workgroups that fold into a second axis, too.
    for device in [limits(), hardware(), Limits { max_grid: 5, ..hardware() }] {
        let launch = spec.launch(&device).unwrap();
        if !gpu.binds(&launch) {
            continue;
        }
        let mut writes: Vec<Vec<u32>> = expected.iter().map(|e| poison(e.len())).collect();
        gpu.run(&launch, &reads, &mut writes);
        for (words, want) in writes.iter().zip(&expected) {
            close(&f32s(words), want, 2e-5, 2e-5);
        }
    }
}

fn turn(norm: Option<(NormKind, Vec<u32>, bool)>, rotary: Option<Rotary>) -> Turn {
    Turn { norm, rotary }
}

const ROTARIES: [Rotary; 4] = [
    Rotary { interleaved: false, table: RotaryTable::Half },
    Rotary { interleaved: true, table: RotaryTable::Half },
    Rotary { interleaved: false, table: RotaryTable::Full },
    Rotary { interleaved: true, table: RotaryTable::Full },
];

#[test]
fn queries_keys_and_values_in_one_dispatch() {
    for (n, rotary) in ROTARIES.into_iter().enumerate() {
        for (kind, first) in
            [(NormKind::Rms, true), (NormKind::Rms, false), (NormKind::Layer, true), (NormKind::Layer, false)]
        {
            let factors = if n % 2 == 0 { vec![8] } else { vec![] };
            check(
                &Case {
                    lead: vec![2],
                    heads: [3, 1, 1],
                    width: [8, 8, 5],
                    t: 3,
                    position: 2,
                    turns: [
                        turn(Some((kind, factors, first)), Some(rotary)),
                        turn(Some((kind, vec![], first)), Some(rotary)),
                        turn(None, None),
                    ],
                    tables: 8,
                },
                3,
            );
        }
    }
}

#[test]
fn rows_on_both_sides_of_every_edge() {
    let rotary = Some(ROTARIES[0]);
    // Pairs of a row against 32 lanes, rows against workgroups; positions before, at and beyond the end.
    for (width, t, position) in [(2, 1, 0), (62, 4, 3), (64, 5, 6), (66, 7, -2), (130, 2, 7), (256, 1, 6)] {
        let of = |norm| turn(norm, rotary);
        let rms = |first| Some((NormKind::Rms, vec![width], first));
        let case = |turns, tables| Case {
            lead: vec![],
            heads: [5, 2, 2],
            width: [width; 3],
            t,
            position,
            turns,
            tables,
        };
        check(&case([of(rms(true)), of(rms(false)), of(None)], width), 3);
        check(&case([of(None), of(None), turn(None, None)], width), 3);
        check(&case([of(rms(false)), of(None), of(None)], width), 1);
    }
    // An odd width has no rotary embedding, and a middle without a partner.
    for kind in [NormKind::Layer, NormKind::Rms] {
        let odd = turn(Some((kind, vec![7], true)), None);
        let turns = [odd.clone(), odd, turn(None, None)];
        check(
            &Case { lead: vec![], heads: [2, 2, 1], width: [7, 7, 3], t: 4, position: 1, turns, tables: 8 },
            3,
        );
    }
}

#[test]
fn units_have_factors_of_their_own() {
    let own = turn(Some((NormKind::Rms, vec![3, 1, 1, 1, 1, 6], false)), Some(ROTARIES[2]));
    let turns = [own.clone(), own, turn(None, None)];
    check(
        &Case { lead: vec![3, 2, 1], heads: [2, 2, 2], width: [6; 3], t: 3, position: 4, turns, tables: 6 },
        3,
    );
}

#[test]
fn says_what_does_not_fit() {
    let (x, odd) = (dense(&[2, 3, 4], Scalar::F32), dense(&[2, 3, 5], Scalar::F32));
    let table = dense(&[3, 2], Scalar::F32);
    let launch = |x, out, tables, append| {
        let part = HeadPart { x, norm: None, tables, out, append };
        Heads { parts: vec![part], rotary: Some(ROTARIES[0]), position: None }.launch(&limits())
    };
    assert!(launch(&x, &x, Some([&table, &table]), false).is_ok());
    assert!(launch(&odd, &odd, Some([&table, &table]), false).is_err());
    assert!(launch(&x, &odd, None, false).is_err());
    assert!(launch(&x, &x, None, true).is_err(), "no position");
    assert!(Heads { parts: vec![], rotary: None, position: None }.launch(&limits()).is_err());
}
