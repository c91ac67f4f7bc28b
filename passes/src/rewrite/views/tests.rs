use super::*;
use crate::ir::{Binary, Type};
use crate::rewrite::testing::{after, count, f32s, random, size};

/// A graph of one input whose result is `build` of it.
fn graph(shape: &[i64], build: impl FnOnce(&mut Graph, ValueId) -> ValueId) -> Graph {
    let mut g = Graph::new("views");
    let x = g.add_input("x", f32s(shape));
    let y = build(&mut g, x);
    let y = g.un(Unary::Exp, y);
    g.add_output("y", y);
    g
}

fn nodes_left(g: &Graph) -> usize {
    after(g, &PASS).0.node_count() - 1
}

fn reshape(g: &mut Graph, x: ValueId, shape: &[i64]) -> ValueId {
    let dims: Vec<Dim> = shape.iter().map(|n| size(*n)).collect();
    let target = g.dims(&dims).unwrap();
    g.op(Op::Reshape { allow_zero: true }, &[x, target])
}

fn slice(g: &mut Graph, x: ValueId, start: i64, end: i64, step: i64) -> ValueId {
    let (start, end) = (g.ints(&[start]), g.ints(&[end]));
    g.op(Op::Slice { axes: vec![1], steps: vec![step] }, &[x, start, end])
}

#[test]
fn what_does_nothing_goes() {
    type Build = fn(&mut Graph, ValueId) -> ValueId;
    let builds: &[Build] = &[
        |g, x| g.op(Op::Identity, &[x]),
        |g, x| g.op(Op::Cast { to: DType::F32 }, &[x]),
        |g, x| g.op(Op::Transpose { perm: vec![0, 1] }, &[x]),
        |g, x| reshape(g, x, &[-1, 6]),
        |g, x| slice(g, x, 0, i64::MAX, 1),
        |g, x| g.op(Op::Concat { axis: 1 }, &[x]),
        |g, x| {
            let x = g.op(Op::Unsqueeze { axes: vec![1] }, &[x]);
            g.op(Op::Squeeze { axes: vec![1] }, &[x])
        },
        |g, x| {
            let x = g.op(Op::Cast { to: DType::F64 }, &[x]);
            g.op(Op::Cast { to: DType::F32 }, &[x])
        },
        |g, x| {
            let x = g.op(Op::Transpose { perm: vec![1, 0] }, &[x]);
            g.op(Op::Transpose { perm: vec![1, 0] }, &[x])
        },
        |g, x| {
            let (yes, other) = (g.constant(Tensor::from_bools(vec![1], &[true]).unwrap()), g.num(3.0));
            g.op(Op::Where, &[yes, x, other])
        },
    ];
    for (i, build) in builds.iter().enumerate() {
        assert_eq!(nodes_left(&graph(&[-1, 6], build)), 0, "case {i}");
    }
}

#[test]
fn what_does_something_stays() {
    assert_eq!(nodes_left(&graph(&[-1, 6], |g, x| slice(g, x, 0, 5, 1))), 1);
    assert_eq!(nodes_left(&graph(&[-1, 6], |g, x| slice(g, x, 5, -7, -1))), 1);
    assert_eq!(nodes_left(&graph(&[6, 6], |g, x| g.op(Op::Transpose { perm: vec![1, 0] }, &[x]))), 1);
    let rounding = graph(&[-1, 6], |g, x| {
        let x = g.op(Op::Cast { to: DType::F16 }, &[x]);
        g.op(Op::Cast { to: DType::F32 }, &[x])
    });
    assert_eq!(nodes_left(&rounding), 2);
}

#[test]
fn reshapes_compose() {
    let g = graph(&[-1, -2, 6], |g, x| {
        let x = g.op(Op::Unsqueeze { axes: vec![3] }, &[x]);
        let b_t = size(-1) * size(-2);
        let target = g.dims(&[b_t, 6i64.into()]).unwrap();
        let x = g.op(Op::Reshape { allow_zero: false }, &[x, target]);
        reshape(g, x, &[-1, -2, 2, 3])
    });
    let (g, _) = after(&g, &PASS);
    assert_eq!((count(&g, "Reshape"), count(&g, "Unsqueeze")), (1, 0));
}

#[test]
fn a_transpose_between_reshapes_is_one_of_the_last_axes() {
    let g = graph(&[2, 3, 4, 5], |g, x| {
        let x = reshape(g, x, &[6, 4, 5]);
        let x = g.op(Op::Transpose { perm: vec![0, 2, 1] }, &[x]);
        reshape(g, x, &[2, 3, 5, 4])
    });
    let mut clean = g.clone();
    crate::rewrite::clean_up_exact(&mut clean).unwrap();
    crate::rewrite::testing::assert_same(&g, &clean, 0.0);
    assert_eq!((clean.node_count(), count(&clean, "Transpose")), (2, 1));
}

#[test]
fn broadcasting_needs_no_expand() {
    let mut g = Graph::new("expand");
    let (x, y) = (g.add_input("x", f32s(&[1, 6])), g.add_input("y", f32s(&[-2, 6])));
    let target = g.dims(&[size(-2), 6i64.into()]).unwrap();
    let wide = g.op(Op::Expand, &[x, target]);
    let sum = g.bin(Binary::Add, wide, y);
    g.add_output("sum", sum);
    let one = g.num(1.0);
    // Nothing else has the shape here: the Expand moves to the end.
    let more = g.bin(Binary::Add, wide, one);
    let more = g.un(Unary::Exp, more);
    g.add_output("more", more);
    let (clean, _) = after(&g, &PASS);
    assert_eq!((count(&clean, "Expand"), count(&clean, "Add"), count(&clean, "Exp")), (1, 2, 1));
    let last = clean.producing(clean.outputs[1].value).unwrap();
    assert!(matches!(last.op, Op::Expand));
}

#[test]
fn what_is_summed_over_stays_repeated() {
    for (axis, kept) in [(1, 1), (2, 0)] {
        let mut g = Graph::new("streams");
        let x = g.add_input("x", f32s(&[-1, 1, 6]));
        let target = g.dims(&[size(-1), size(4), size(6)]).unwrap();
        let streams = g.op(Op::Expand, &[x, target]);
        let w = g.constant(random(1, &[4, 1]));
        let y = g.bin(Binary::Mul, w, streams);
        let y = g.op(Op::Reduce { op: Reduce::Sum, axes: vec![axis], keepdims: false }, &[y]);
        g.add_output("y", y);
        assert_eq!(count(&after(&g, &PASS).0, "Expand"), kept);
    }
}

#[test]
fn negated_conditions_swap_the_branches() {
    let mut g = Graph::new("where");
    let c = g.add_input("c", Type::new(DType::Bool, f32s(&[4]).shape));
    let x = g.add_input("x", f32s(&[4]));
    let (no, w) = (g.un(Unary::Not, c), g.constant(random(1, &[4])));
    let y = g.op(Op::Where, &[no, x, w]);
    g.add_output("y", y);
    let (clean, _) = after(&g, &PASS);
    assert_eq!((clean.node_count(), count(&clean, "Not")), (1, 0));
}

/// One more view or elementwise node on `x`, chosen by `n`; the result may have another shape.
fn step(g: &mut Graph, x: ValueId, n: u32) -> ValueId {
    let shape: Vec<usize> = g.ty(x).unwrap().known_shape().unwrap();
    let (rank, pick) = (shape.len(), n as usize / 8);
    let ints = |s: &[usize]| s.iter().map(|d| *d as i64).collect::<Vec<_>>();
    match n % 8 {
        0 if rank > 1 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.rotate_left(pick % rank);
            perm.swap(0, pick % rank);
            g.op(Op::Transpose { perm }, &[x])
        }
        1 => {
            // Move one factor of the first axis to the end.
            let mut to = shape.clone();
            let f = (2..=to[0]).find(|f| to[0].is_multiple_of(*f)).unwrap_or(1);
            to[0] /= f;
            to.push(f);
            let target = g.ints(&ints(&to));
            g.op(Op::Reshape { allow_zero: true }, &[x, target])
        }
        2 if rank > 1 => {
            let merged = [&[shape[0] * shape[1]], &shape[2..]].concat();
            let target = g.ints(&ints(&merged));
            g.op(Op::Reshape { allow_zero: false }, &[x, target])
        }
        3 if rank < 6 => g.op(Op::Unsqueeze { axes: vec![pick % (rank + 1)] }, &[x]),
        4 if shape.contains(&1) && rank > 1 => {
            let axis = shape.iter().position(|d| *d == 1).unwrap();
            g.op(Op::Squeeze { axes: vec![axis] }, &[x])
        }
        5 => {
            let axis = pick % rank;
            let (start, end) = (g.ints(&[i64::from(pick % 3 == 0 && shape[axis] > 1)]), g.ints(&[i64::MAX]));
            g.op(Op::Slice { axes: vec![axis], steps: vec![1] }, &[x, start, end])
        }
        6 => {
            let mut to = shape.clone();
            for d in to.iter_mut().filter(|d| **d == 1) {
                *d = 1 + pick % 2;
            }
            let target = g.ints(&ints(&to));
            g.op(Op::Expand, &[x, target])
        }
        _ => {
            let (c, again) = (g.num(pick as f32), g.num(1.0));
            let y = g.bin(if pick % 2 == 0 { Binary::Add } else { Binary::Mul }, x, c);
            g.bin(Binary::Mul, y, again)
        }
    }
}

proptest::proptest! {
    /// Whatever is chained, the exact passes change nothing but the graph.
    #[test]
    fn chains_of_views_compute_the_same(steps in proptest::collection::vec(0u32..96, 1..14)) {
        let mut g = Graph::new("chain");
        let x = g.add_input("x", f32s(&[4, 1, 6]));
        let mut y = x;
        for n in steps {
            y = step(&mut g, y, n);
        }
        g.add_output("y", y);
        let mut clean = g.clone();
        crate::rewrite::clean_up_exact(&mut clean).unwrap();
        crate::rewrite::testing::assert_same(&g, &clean, 0.0);
        proptest::prop_assert!(clean.node_count() <= g.node_count() + 1);
    }
}
