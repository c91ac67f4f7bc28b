//! Inference against the evaluator: what evaluates is inferred, with known and with symbolic sizes.

use proptest::prelude::*;

use super::super::{Inferred, Operand, infer};
use crate::eval::eval_op;
use crate::ir::{Binary, Bindings, DType, Dim, Op, PadMode, Reduce, Symbol, Tensor, Type, Unary};

/// A small generator, so that a case is one seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn int(&mut self, from: i64, to: i64) -> i64 {
        from + self.below((to - from) as usize) as i64
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn shape(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).map(|_| self.pick(&[1, 1, 2, 2, 3, 4])).collect()
    }

    fn ints(&mut self, shape: &[usize], from: i64, to: i64) -> Tensor {
        let data = (0..shape.iter().product()).map(|_| self.int(from, to)).collect();
        Tensor::from_vec(shape.to_vec(), data).unwrap()
    }

    fn bools(&mut self, shape: &[usize]) -> Tensor {
        let data: Vec<bool> = (0..shape.iter().product()).map(|_| self.flag()).collect();
        Tensor::from_bools(shape.to_vec(), &data).unwrap()
    }

    /// A shape that broadcasts with `shape`.
    fn beside(&mut self, shape: &[usize]) -> Vec<usize> {
        let skipped = self.below(shape.len() + 1);
        shape[skipped..].iter().map(|n| if self.below(3) == 0 { 1 } else { *n }).collect()
    }

    /// Distinct axes of a rank, sorted.
    fn axes(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|_| self.flag()).collect()
    }
}

type Case = (Op, Vec<Tensor>);

fn elementwise(r: &mut Random) -> Case {
    use Binary::*;
    let rank = r.below(4);
    let shape = r.shape(rank);
    let other = r.beside(&shape);
    let third = r.beside(&shape);
    let ops = [Add, Sub, Mul, Div, Mod, Fmod, Min, Max, Equal, Less, LessOrEqual, Greater, GreaterOrEqual];
    match r.below(6) {
        0 => (Op::Where, vec![r.bools(&third), r.ints(&shape, -3, 9), r.ints(&other, 0, 4)]),
        1 => (Op::Binary(r.pick(&[And, Or, Xor])), vec![r.bools(&shape), r.bools(&other)]),
        2 => {
            let op = r.pick(&[Unary::Neg, Unary::Abs, Unary::Sign]);
            (Op::Unary(op), vec![r.ints(&shape, -3, 9)])
        }
        3 => {
            let to = r.pick(&[DType::I32, DType::I64, DType::Bool, DType::F32, DType::U8]);
            (Op::Cast { to }, vec![r.ints(&shape, -1, 3)])
        }
        _ => (Op::Binary(r.pick(&ops)), vec![r.ints(&shape, -9, 9), r.ints(&other, 1, 5)]),
    }
}

fn views(r: &mut Random) -> Case {
    let rank = 1 + r.below(3);
    let shape = r.shape(rank);
    let x = r.ints(&shape, 0, 9);
    match r.below(7) {
        0 => {
            let mut target: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            target.rotate_left(r.below(rank));
            let at = r.below(rank);
            match r.below(3) {
                0 => target[at] = -1,
                1 => target = vec![-1],
                _ => target.insert(at, 1),
            }
            (Op::Reshape { allow_zero: false }, vec![x, Tensor::ints(&target)])
        }
        1 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.rotate_left(r.below(rank));
            (Op::Transpose { perm }, vec![x])
        }
        2 => (Op::Unsqueeze { axes: r.axes(rank + 1).into_iter().take(1).collect() }, vec![x]),
        3 => (Op::Squeeze { axes: (0..rank).filter(|i| shape[*i] == 1).collect() }, vec![x]),
        4 => {
            let target: Vec<i64> = r.beside(&shape).iter().map(|n| *n as i64).collect();
            (Op::Expand, vec![x, Tensor::ints(&target)])
        }
        5 => (Op::Shape { start: r.below(rank), end: rank }, vec![x]),
        _ => (Op::Size, vec![x]),
    }
}

fn parts(r: &mut Random) -> Case {
    let rank = 1 + r.below(3);
    let shape = r.shape(rank);
    let axis = r.below(rank);
    let x = r.ints(&shape, 0, 9);
    let vector = |r: &mut Random, n: usize, from, to| r.ints(&[n], from, to);
    match r.below(6) {
        0 => {
            let mut other = shape.clone();
            other[axis] = r.below(4);
            let y = r.ints(&other, 0, 9);
            (Op::Concat { axis }, vec![x, y])
        }
        1 => {
            let axes = r.axes(rank);
            let steps = axes.iter().map(|_| r.pick(&[1, 1, 1, 2, -1, -2])).collect();
            let starts = vector(r, axes.len(), -5, 6);
            let ends = vector(r, axes.len(), -6, 7);
            (Op::Slice { axes, steps }, vec![x, starts, ends])
        }
        2 => {
            let n = shape[axis] as i64;
            let rank = r.below(3);
            let indices = r.shape(rank);
            (Op::Gather { axis }, vec![x, r.ints(&indices, -n, n)])
        }
        3 => (Op::Tile, vec![x, vector(r, rank, 0, 3)]),
        4 => (Op::Pad { mode: PadMode::Constant }, vec![x, vector(r, 2 * rank, -1, 3)]),
        _ => (Op::NonZero, vec![x]),
    }
}

fn folds(r: &mut Random) -> Case {
    let rank = 1 + r.below(3);
    let shape = r.shape(rank);
    let axis = r.below(rank);
    let x = r.ints(&shape, -3, 9);
    match r.below(6) {
        0 => {
            let op = r.pick(&[Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::Min]);
            (Op::Reduce { op, axes: r.axes(rank), keepdims: r.flag() }, vec![x])
        }
        1 => (Op::CumSum { axis, exclusive: r.flag(), reverse: r.flag() }, vec![x]),
        2 => (Op::ArgMax { axis, keepdims: r.flag(), last: r.flag() }, vec![x]),
        3 => (Op::TopK { axis, largest: r.flag() }, vec![x, Tensor::ints(&[shape[axis] as i64])]),
        4 => {
            let value = Tensor::ints(&[r.int(-2, 3)]);
            (Op::ConstantOfShape { value }, vec![r.ints(&[rank], 0, 4)])
        }
        _ => {
            let scalars = [r.int(-3, 4), r.int(-3, 9), r.pick(&[1, 1, 2, -1, -3])];
            (Op::Range, scalars.map(Tensor::scalar).to_vec())
        }
    }
}

fn products(r: &mut Random) -> Case {
    let [b, m, k, n] = [0; 4].map(|_| r.pick(&[1, 2, 3]));
    let mut f = |shape: Vec<usize>| {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| r.below(9) as f32).collect();
        Tensor::from_vec(shape, data).unwrap()
    };
    let (a, w) = (f(vec![b, m, k]), f(vec![k, n]));
    let einsum = |equation: &str| Op::Einsum { equation: equation.into() };
    match b + m + k {
        3..5 => (Op::MatMul, vec![f(vec![k]), w]),
        5 => (einsum("bij,jk->bki"), vec![a, w]),
        6 => (einsum("...ij,...jk"), vec![a, w]),
        _ => (Op::MatMul, vec![a, w]),
    }
}

fn case(seed: u64) -> Case {
    let mut r = Random(seed);
    r.below(2);
    match r.below(5) {
        0 => elementwise(&mut r),
        1 => views(&mut r),
        2 => parts(&mut r),
        3 => folds(&mut r),
        _ => products(&mut r),
    }
}

/// The symbol that stands for size `n` in the symbolic runs.
fn named(n: i64) -> Dim {
    if n > 1 { Dim::symbol(&format!("s{n}")) } else { n.into() }
}

fn sizes() -> Bindings {
    (2..10).map(|n| (Symbol::new(&format!("s{n}")), n)).collect()
}

/// Infers with every element above 1 as a symbol, and every size where `shapes` says so; the lengths of
/// vectors that name sizes, bounds or repeats stay.
fn symbolically(op: &Op, tensors: &[Tensor], outputs: usize, shapes: bool) -> Vec<Inferred> {
    let symbolic: Vec<(Type, Option<Vec<Dim>>)> = tensors
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let vector = t.shape().len() == 1 && (i > 0 || matches!(op, Op::ConstantOfShape { .. }));
            let size = |n: &usize| if shapes && !vector { named(*n as i64) } else { Dim::from(*n) };
            let shape = t.shape().iter().map(size).collect();
            let content = t.to_i64().map(|c| c.into_iter().map(named).collect());
            (Type::new(t.dtype(), shape), content)
        })
        .collect();
    let operands: Vec<_> = symbolic
        .iter()
        .map(|(ty, content)| Some(Operand { ty: Some(ty), content: content.as_deref(), constant: None }))
        .collect();
    let mut count = 0;
    infer(op, &operands, outputs, &mut || {
        count += 1;
        Dim::symbol(&format!("new{count}"))
    })
    .expect("what evaluates is inferred")
}

/// Every size and element is the evaluator's, as far as it is known.
fn agrees(inferred: &[Inferred], expected: &[Tensor]) -> Result<(), TestCaseError> {
    for (r, t) in inferred.iter().zip(expected) {
        let Some(ty) = &r.ty else { return Err(TestCaseError::fail(format!("no type for {t:?}"))) };
        prop_assert_eq!(ty.dtype, t.dtype());
        prop_assert_eq!(ty.rank(), t.shape().len());
        for (d, n) in ty.shape.iter().zip(t.shape()) {
            if let Some(d) = d.substitute(&sizes()).known() {
                prop_assert_eq!(d, *n as i64);
            }
        }
        if let Some(content) = &r.content {
            let content: Vec<_> = content.iter().map(|d| d.substitute(&sizes()).known()).collect();
            let expected: Vec<_> = t.to_i64().unwrap_or_default().into_iter().map(Some).collect();
            prop_assert_eq!(content, expected);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn inference_agrees_with_evaluation(seed: u64) {
        let (op, tensors) = case(seed);
        let types: Vec<Type> = tensors.iter().map(Type::of).collect();
        let operands: Vec<_> = tensors
            .iter()
            .zip(&types)
            .map(|(t, ty)| Some(Operand { ty: Some(ty), content: None, constant: Some(t) }))
            .collect();
        let outputs = if matches!(op, Op::TopK { .. }) { 2 } else { 1 };
        let known = infer(&op, &operands, outputs, &mut || Dim::symbol("new"));
        let arguments: Vec<_> = tensors.iter().map(Some).collect();
        match eval_op(&op, &arguments) {
            Ok(expected) => {
                let known = known.map_err(|e| TestCaseError::fail(format!("{op:?} {tensors:?}: {e}")))?;
                agrees(&known, &expected)?;
                let fresh = matches!(op, Op::NonZero);
                let open = known.iter().any(|r| r.ty.as_ref().is_none_or(|t| t.known_shape().is_none()));
                prop_assert!(fresh || !open, "{:?} {:?}: {:?}", op, tensors, known);
                for shapes in [false, true] {
                    agrees(&symbolically(&op, &tensors, outputs, shapes), &expected)?;
                }
            }
            Err(error) => prop_assert!(known.is_err() || tensors.iter().any(Tensor::is_empty),
                "{op:?} {tensors:?}: {error}, but inferred {known:?}"),
        }
    }
}
