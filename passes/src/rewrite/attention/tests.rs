use super::*;
use crate::ir::Type;
use crate::rewrite::testing::{after, cleaned, count, f32s, inputs};

/// The parts of a graph that ends in attention.
#[derive(Clone, Copy, Default)]
struct Spelling {
    scale: u8,
    mask: u8,
    softcap: bool,
    safe: bool,
    commuted: bool,
    repeats: u8,
    flat: bool,
}

fn attention(s: Spelling) -> Graph {
    let mut g = Graph::new("attention");
    let lead: &[i64] = if s.flat { &[12] } else { &[3, 4] };
    let kv: &[i64] = if s.repeats > 0 { &[3, 2] } else { lead };
    let q = g.add_input("q", f32s(&[lead, &[-2, 8]].concat()));
    let k = g.add_input("k", f32s(&[kv, &[-3, 8]].concat()));
    let v = g.add_input("v", f32s(&[kv, &[-3, 6]].concat()));
    let (q, k, v) = (q, repeated(&mut g, k, s.repeats), repeated(&mut g, v, s.repeats));
    let rank = lead.len() + 2;
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    let kt = g.op(Op::Transpose { perm }, &[k]);
    let (half, two, tenth) = (g.num(0.5), g.num(2.0), g.num(0.1));
    let (q, kt) = match s.scale {
        1 => (g.bin(Binary::Mul, q, half), g.bin(Binary::Mul, half, kt)),
        _ => (q, kt),
    };
    let mut x = g.op(Op::MatMul, &[q, kt]);
    match s.scale {
        2 => x = g.bin(Binary::Div, x, two),
        3 => x = g.bin(Binary::Mul, tenth, x),
        _ => {}
    }
    if s.softcap {
        let inside = g.bin(Binary::Div, x, two);
        let t = g.un(Unary::Tanh, inside);
        x = g.bin(Binary::Mul, t, two);
    }
    x = masked(&mut g, x, s);
    if s.flat && s.mask > 0 {
        x = flattened(&mut g, x, true);
    }
    let axis = rank - 1;
    let mut p = g.op(Op::Softmax { axis }, &[x]);
    if s.safe {
        let nan = g.un(Unary::IsNan, p);
        let zero = g.num(0.0);
        p = g.op(Op::Where, &[nan, zero, p]);
    }
    let y = g.op(Op::MatMul, &[p, v]);
    g.add_output("y", y);
    g
}

fn repeated(g: &mut Graph, v: ValueId, how: u8) -> ValueId {
    if how == 0 {
        return v;
    }
    let sizes = g.shape(v).unwrap().to_vec();
    let x = g.op(Op::Unsqueeze { axes: vec![2] }, &[v]);
    let wide = g.dims(&[3i64.into(), 2i64.into(), 2i64.into(), sizes[2].clone(), sizes[3].clone()]).unwrap();
    let x = g.op(Op::Expand, &[x, wide]);
    let flat = g.dims(&[3i64.into(), 4i64.into(), sizes[2].clone(), sizes[3].clone()]).unwrap();
    g.op(Op::Reshape { allow_zero: true }, &[x, flat])
}

fn flattened(g: &mut Graph, x: ValueId, flat: bool) -> ValueId {
    let lead: &[i64] = if flat { &[12] } else { &[3, 4] };
    let shape = f32s(&[lead, &[-2, -3]].concat()).shape;
    let target = g.dims(&shape).unwrap();
    g.op(Op::Reshape { allow_zero: true }, &[x, target])
}

fn masked(g: &mut Graph, x: ValueId, s: Spelling) -> ValueId {
    let x = if s.flat && s.mask > 0 { flattened(g, x, false) } else { x };
    let bools = |g: &mut Graph| g.add_input("keep", Type::new(DType::Bool, f32s(&[3, 1, -2, -3]).shape));
    match s.mask {
        1 => {
            let m = g.add_input("mask", f32s(&[3, 1, -2, -3]));
            if s.commuted { g.bin(Binary::Add, m, x) } else { g.bin(Binary::Add, x, m) }
        }
        2 => {
            let (keep, fill) = (bools(g), g.num(f32::NEG_INFINITY));
            if s.commuted {
                let drop = g.un(Unary::Not, keep);
                g.op(Op::Where, &[drop, fill, x])
            } else {
                g.op(Op::Where, &[keep, x, fill])
            }
        }
        3 => {
            let (keep, zero, fill) = (bools(g), g.num(0.0), g.num(f32::NEG_INFINITY));
            let m = g.op(Op::Where, &[keep, zero, fill]);
            if s.commuted { g.bin(Binary::Add, m, x) } else { g.bin(Binary::Add, x, m) }
        }
        4 => {
            let (keep, fill) = (bools(g), g.num(f32::MIN));
            let bias = g.add_input("bias", f32s(&[4, 1, -3]));
            let x = g.bin(Binary::Add, x, bias);
            g.op(Op::Where, &[keep, x, fill])
        }
        _ => x,
    }
}

#[test]
fn every_spelling_is_one_node() {
    for scale in 0..4 {
        for mask in 0..5 {
            for (softcap, safe, commuted) in [(false, false, false), (true, true, true)] {
                let s = Spelling { scale, mask, softcap, safe, commuted, ..Spelling::default() };
                let g = cleaned(&attention(s));
                assert_eq!(count(&g, "Attention"), 1, "scale {scale} mask {mask}");
                assert_eq!(count(&g, "MatMul") + count(&g, "Softmax"), 0);
                if mask < 4 {
                    assert_eq!(g.node_count(), 1, "scale {scale} mask {mask}");
                }
            }
        }
    }
}

#[test]
fn repeated_heads_are_grouped() {
    let g = cleaned(&attention(Spelling { scale: 1, repeats: 1, ..Spelling::default() }));
    assert_eq!((g.node_count(), count(&g, "Attention")), (1, 1));
}

#[test]
fn flattened_heads_are_split_for_the_mask() {
    for mask in 0..4 {
        let g = cleaned(&attention(Spelling { mask, flat: true, ..Spelling::default() }));
        assert_eq!((count(&g, "Attention"), count(&g, "Softmax")), (1, 0), "mask {mask}");
    }
}

#[test]
fn attributes_are_read() {
    let s = Spelling { scale: 2, softcap: true, safe: true, ..Spelling::default() };
    let (g, _) = after(&attention(s), &PASS);
    let found = g.nodes().find_map(|(_, n)| match n.op {
        Op::Attention(a) => Some(a),
        _ => None,
    });
    let a = found.unwrap();
    assert_eq!((a.scale, a.softcap, a.safe, a.causal), (0.5, Some(2.0), true, false));
    assert_eq!(inputs(&g).len(), 3);
}

#[test]
fn near_misses_stay() {
    // Softmax over the queries.
    let mut g = Graph::new("queries");
    let q = g.add_input("q", f32s(&[2, 5, 8]));
    let kt = g.add_input("kt", f32s(&[2, 8, 5]));
    let scores = g.op(Op::MatMul, &[q, kt]);
    let p = g.op(Op::Softmax { axis: 1 }, &[scores]);
    let y = g.op(Op::MatMul, &[p, q]);
    g.add_output("y", y);
    assert_eq!(after(&g, &PASS).1, 0);
    // A Where that selects a score of ordinary size.
    let mut g = Graph::new("small");
    let (q, kt) = (g.add_input("q", f32s(&[2, 5, 8])), g.add_input("kt", f32s(&[2, 8, 5])));
    let keep = g.add_input("keep", Type::new(DType::Bool, f32s(&[5, 5]).shape));
    let fill = g.num(-1.0);
    let scores = g.op(Op::MatMul, &[q, kt]);
    let scores = g.op(Op::Where, &[keep, scores, fill]);
    let p = g.op(Op::Softmax { axis: 2 }, &[scores]);
    let y = g.op(Op::MatMul, &[p, q]);
    g.add_output("y", y);
    assert_eq!(after(&g, &PASS).1, 0);
    // Two axes: no heads.
    let mut g = Graph::new("flat");
    let (q, kt) = (g.add_input("q", f32s(&[5, 8])), g.add_input("kt", f32s(&[8, 5])));
    let scores = g.op(Op::MatMul, &[q, kt]);
    let p = g.op(Op::Softmax { axis: 1 }, &[scores]);
    let y = g.op(Op::MatMul, &[p, q]);
    g.add_output("y", y);
    assert_eq!(after(&g, &PASS).1, 0);
}
