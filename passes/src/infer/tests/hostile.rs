//! Nothing that a file can say makes inference panic or run away.

use proptest::prelude::*;

use super::super::{Operand, infer};
use super::laws::Random;
use crate::ir::{
    Attention, Binary, Blocks, Correction, CorrectionForm, DType, Dim, Op, PadMode, Reduce, Rotary,
    RotaryTable, ScatterReduction, Tensor, Type, Unary, Window,
};

const NUMBERS: [i64; 14] =
    [0, 1, 1, 2, 3, 64, -1, -2, i64::MAX, i64::MIN, i64::MAX - 1, 1 << 40, i32::MAX as i64, -4294967296];

fn dim(r: &mut Random) -> Dim {
    let (a, t) = (Dim::symbol("a"), Dim::symbol("t"));
    match r.below(12) {
        0 => a,
        1 => t,
        2 => a * t - Dim::from(3i64),
        3 => Dim::ZERO - a,
        4 => a.minimum(&t),
        5 => a * Dim::from(i64::MAX) + t,
        6 => (0..80).fold(Dim::ONE, |p, i| p * (Dim::symbol(&format!("x{i}")) + Dim::ONE)),
        _ => Dim::from(NUMBERS[r.below(NUMBERS.len())]),
    }
}

fn axis(r: &mut Random) -> usize {
    [0, 1, 2, 3, 5, 64, usize::MAX][r.below(7)]
}

fn axes(r: &mut Random) -> Vec<usize> {
    (0..r.below(5)).map(|_| axis(r)).collect()
}

fn window(r: &mut Random) -> Window {
    let mut list = |n| (0..n).map(|_| axis(r)).collect();
    Window { strides: list(2), pads: list(4), dilations: list(2) }
}

fn blocks(r: &mut Random) -> Option<Blocks> {
    (r.below(2) == 0).then(|| Blocks { axis: axis(r), size: axis(r) })
}

fn op(r: &mut Random) -> Op {
    let flag = r.below(2) == 0;
    match r.below(56) {
        0 => Op::Identity,
        1 => Op::Unary([Unary::Neg, Unary::Abs, Unary::Not, Unary::Sign, Unary::Relu][r.below(5)]),
        2..8 => {
            use Binary::*;
            let all = [Add, Sub, Mul, Div, Mod, Fmod, Pow, Min, Max, Equal, Less, GreaterOrEqual, And];
            Op::Binary(all[r.below(all.len())])
        }
        8 => Op::Where,
        9 => Op::Cast { to: [DType::Bool, DType::I32, DType::U8][r.below(3)] },
        10 => Op::Clip,
        11 => Op::MatMul,
        12 => Op::Gemm { alpha: 1.0, beta: 0.0, trans_a: flag, trans_b: !flag },
        13 => {
            let all = ["", "->", ",", "i,j->k", "...", "......", "i...,...i->i...", "ii", "i->ii", "é", "-"];
            Op::Einsum { equation: all[r.below(all.len())].into() }
        }
        14 => Op::Conv { window: window(r), group: axis(r) },
        15 => Op::Softmax { axis: axis(r) },
        16..19 => {
            let op = [Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::L2][r.below(4)];
            Op::Reduce { op, axes: axes(r), keepdims: flag }
        }
        19 => Op::ArgMax { axis: axis(r), keepdims: flag, last: flag },
        20 => Op::CumSum { axis: axis(r), exclusive: flag, reverse: flag },
        21 => Op::TopK { axis: axis(r), largest: flag },
        22 => Op::LayerNorm { axis: axis(r), epsilon: 0.0 },
        23 => Op::BatchNorm { epsilon: 0.0 },
        24 => Op::GlobalAveragePool,
        25 => Op::MaxPool { window: window(r), kernel: axes(r) },
        26..29 => Op::Reshape { allow_zero: flag },
        29 => Op::Transpose { perm: axes(r) },
        30 => Op::Squeeze { axes: axes(r) },
        31 => Op::Unsqueeze { axes: axes(r) },
        32 => Op::Expand,
        33 => Op::Concat { axis: axis(r) },
        34..38 => {
            let axes = axes(r);
            let steps = axes.iter().map(|_| NUMBERS[r.below(NUMBERS.len())]).collect();
            Op::Slice { axes, steps }
        }
        38 => Op::Gather { axis: axis(r) },
        39 => Op::GatherElements { axis: axis(r) },
        40 => Op::GatherNd { batch_dims: axis(r) },
        41 => Op::ScatterElements { axis: axis(r), reduction: ScatterReduction::None },
        42 => Op::ScatterNd { reduction: ScatterReduction::None },
        43 => Op::Tile,
        44 => Op::Pad { mode: PadMode::Edge },
        45 => Op::OneHot { axis: axis(r) },
        46 => Op::Shape { start: axis(r), end: axis(r) },
        47 => Op::Range,
        48 => Op::Attention(Attention { scale: 1.0, causal: flag, window: None, softcap: None, safe: flag }),
        49 => Op::Rotary(Rotary { interleaved: flag, table: RotaryTable::Half }),
        50 => {
            let form = CorrectionForm::Linear { streams: u32::MAX, stream_axis: r.below(9) as u32 };
            Op::Correction(Correction { form, last_only: flag })
        }
        51 => Op::Quantize { to: [DType::U4, DType::I8, DType::I64][r.below(3)], blocks: blocks(r) },
        52 => Op::Dequantize { blocks: blocks(r) },
        53 => Op::DynamicQuantize { axes: axes(r) },
        54 => Op::MatMulInteger,
        _ => Op::ConstantOfShape { value: Tensor::ints(&[7]) },
    }
}

#[derive(Debug)]
struct Hostile {
    ty: Option<Type>,
    content: Option<Vec<Dim>>,
    constant: Option<Tensor>,
}

fn operand(r: &mut Random) -> Hostile {
    let dtypes = [DType::I64, DType::I64, DType::I64, DType::I32, DType::F32, DType::Bool, DType::U8];
    let dtype = dtypes[r.below(dtypes.len())];
    let content = r.below(2) == 0;
    let rank = if content { r.below(2) } else { r.below(5) };
    let length = r.below(6);
    let shape = (0..rank).map(|_| if content { Dim::from(length) } else { dim(r) }).collect();
    let elements = if rank == 0 { 1 } else { length };
    let constant = (r.below(8) == 0).then(|| {
        let data = (0..length).map(|_| NUMBERS[r.below(NUMBERS.len())]).collect::<Vec<_>>();
        Tensor::ints(&data)
    });
    Hostile {
        ty: (r.below(12) > 0).then(|| Type::new(dtype, shape)),
        content: (content && r.below(8) > 0).then(|| (0..elements).map(|_| dim(r)).collect()),
        constant,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_panics(seed: u64) {
        let mut r = Random(seed);
        let op = op(&mut r);
        let operands: Vec<Option<Hostile>> =
            (0..r.below(6)).map(|_| (r.below(15) > 0).then(|| operand(&mut r))).collect();
        let operands: Vec<_> = operands
            .iter()
            .map(|o| o.as_ref().map(|o| Operand {
                ty: o.ty.as_ref(),
                content: o.content.as_deref(),
                constant: o.constant.as_ref(),
            }))
            .collect();
        if let Ok(results) = infer(&op, &operands, 1, &mut || Dim::symbol("new")) {
            for ty in results.iter().filter_map(|r| r.ty.as_ref()) {
                prop_assert!(ty.rank() < 200);
                prop_assert!(ty.shape.iter().all(|d| d.known().is_none_or(|n| n >= 0)));
            }
        }
    }
}
