//! The evaluator against outputs that NumPy and ONNX Runtime computed (`eval_cases/cases.json`, written
//! by `make_cases.py` beside it).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use half::{bf16, f16};
use serde_json::{Map, Value};
use snlp_passes::eval::eval_op;
use snlp_passes::ir::{
    Attention, Binary, DType, Op, PadMode, Reduce, Rotary, RotaryTable, ScatterReduction, Tensor, Unary,
    Window,
};

struct Case {
    op: String,
    attributes: Map<String, Value>,
    inputs: Vec<Option<Tensor>>,
    outputs: Vec<Option<Tensor>>,
}

fn dtype(name: &str) -> DType {
    use DType::*;
    [F32, F16, BF16, F64, I8, I16, I32, I64, U8, U16, U32, U64, Bool]
        .into_iter()
        .find(|d| d.to_string() == name)
        .unwrap()
}

fn tensor(v: &Value) -> Tensor {
    let dtype = dtype(v["dtype"].as_str().unwrap());
    let shape: Vec<usize> =
        v["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let data = v["data"].as_array().unwrap();
    let real = |x: &Value| x.as_f64().unwrap_or_else(|| x.as_str().unwrap().parse().unwrap());
    let int = |x: &Value| x.as_i64().unwrap_or_else(|| x.as_u64().unwrap() as i64);
    let flags: Vec<bool> =
        if dtype == DType::Bool { data.iter().map(|x| int(x) != 0).collect() } else { vec![] };
    match dtype {
        DType::F32 => Tensor::from_vec(shape, data.iter().map(|x| real(x) as f32).collect()),
        DType::F16 => Tensor::from_vec(shape, data.iter().map(|x| f16::from_f64(real(x))).collect()),
        DType::BF16 => Tensor::from_vec(shape, data.iter().map(|x| bf16::from_f64(real(x))).collect()),
        DType::F64 => Tensor::from_vec(shape, data.iter().map(real).collect()),
        DType::I8 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as i8).collect()),
        DType::I16 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as i16).collect()),
        DType::I32 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as i32).collect()),
        DType::I64 => Tensor::from_vec(shape, data.iter().map(int).collect()),
        DType::U8 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as u8).collect()),
        DType::U16 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as u16).collect()),
        DType::U32 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as u32).collect()),
        DType::U64 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as u64).collect()),
        DType::I4 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as i8).collect()),
        DType::U4 => Tensor::from_vec(shape, data.iter().map(|x| int(x) as u8).collect()),
        DType::Bool => Tensor::from_bools(shape, &flags),
    }
    .unwrap()
    .packed(dtype)
}

impl Case {
    fn new(v: &Value) -> Self {
        let tensors = |key: &str| {
            v[key].as_array().unwrap().iter().map(|t| (!t.is_null()).then(|| tensor(t))).collect::<Vec<_>>()
        };
        Case {
            op: v["op"].as_str().unwrap().into(),
            attributes: v["attributes"].as_object().unwrap().clone(),
            inputs: tensors("inputs"),
            outputs: tensors("outputs"),
        }
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.attributes.get(name).map_or(default, |v| v.as_i64().unwrap())
    }

    fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name, default.into()) != 0
    }

    fn float(&self, name: &str, default: f32) -> f32 {
        self.attributes.get(name).map_or(default, |v| v.as_f64().unwrap() as f32)
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.attributes.get(name).map_or(default, |v| v.as_str().unwrap()).into()
    }

    fn sizes(&self, name: &str) -> Option<Vec<usize>> {
        let values = self.attributes.get(name)?.as_array().unwrap();
        Some(values.iter().map(|v| v.as_u64().unwrap() as usize).collect())
    }

    fn input(&self, i: usize) -> Option<&Tensor> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    fn rank(&self) -> usize {
        self.input(0).unwrap().shape().len()
    }

    /// An axis attribute, counted from the end of `rank` when negative.
    fn axis(&self, default: i64, rank: usize) -> usize {
        wrap(self.int("axis", default), rank)
    }

    /// Takes an integer operand out, as the importer does with those that are attributes of the `Op`.
    fn take(&mut self, i: usize) -> Option<Vec<i64>> {
        let taken = self.input(i)?.to_i64();
        self.inputs.truncate(i);
        taken
    }

    fn take_axes(&mut self, i: usize, rank: usize) -> Option<Vec<usize>> {
        let mut axes: Vec<usize> = self.take(i)?.into_iter().map(|a| wrap(a, rank)).collect();
        axes.sort();
        Some(axes)
    }

    fn window(&self, kernel: &[usize]) -> Window {
        let ones = vec![1; kernel.len()];
        Window {
            strides: self.sizes("strides").unwrap_or_else(|| ones.clone()),
            pads: self.sizes("pads").unwrap_or_else(|| vec![0; 2 * kernel.len()]),
            dilations: self.sizes("dilations").unwrap_or(ones),
        }
    }
}

fn wrap(axis: i64, rank: usize) -> usize {
    (if axis < 0 { axis + rank as i64 } else { axis }) as usize
}

fn unary(c: &Case) -> Option<Unary> {
    use Unary::*;
    let alpha = |default| c.float("alpha", default);
    Some(match c.op.as_str() {
        "Celu" => Celu { alpha: alpha(1.0) },
        "Elu" => Elu { alpha: alpha(1.0) },
        "Gelu" if c.text("approximate", "none") == "tanh" => GeluTanh,
        "Gelu" => GeluErf,
        "HardSigmoid" => HardSigmoid { alpha: alpha(0.2), beta: c.float("beta", 0.5) },
        "IsInf" => {
            IsInf { negative: c.flag("detect_negative", true), positive: c.flag("detect_positive", true) }
        }
        "IsNaN" => IsNan,
        "LeakyRelu" => LeakyRelu { alpha: alpha(0.01) },
        "Selu" => Selu { alpha: alpha(1.673_263_2), gamma: c.float("gamma", 1.050_701) },
        "Swish" => Swish { alpha: alpha(1.0) },
        "ThresholdedRelu" => ThresholdedRelu { alpha: alpha(1.0) },
        name => {
            let plain = [
                Neg, Abs, Sign, Exp, Log, Sqrt, Reciprocal, Sin, Cos, Tan, Asin, Acos, Atan, Sinh, Cosh,
                Asinh, Acosh, Atanh, Tanh, Erf, Floor, Ceil, Round, Relu, Sigmoid, Softplus, Softsign, Mish,
                HardSwish, Not, BitwiseNot,
            ];
            return plain.into_iter().find(|u| Op::Unary(*u).name() == name);
        }
    })
}

fn binary(c: &Case) -> Option<Binary> {
    use Binary::*;
    match c.op.as_str() {
        "Mod" if c.flag("fmod", false) => Some(Fmod),
        "BitShift" if c.text("direction", "") == "LEFT" => Some(ShiftLeft),
        "BitShift" => Some(ShiftRight),
        name => {
            let plain = [
                Add,
                Sub,
                Mul,
                Div,
                Pow,
                Mod,
                Min,
                Max,
                PRelu,
                And,
                Or,
                Xor,
                Equal,
                Less,
                LessOrEqual,
                Greater,
                GreaterOrEqual,
                BitwiseAnd,
                BitwiseOr,
                BitwiseXor,
            ];
            plain.into_iter().find(|b| format!("{b:?}") == name)
        }
    }
}

fn reduction(c: &Case) -> ScatterReduction {
    match c.text("reduction", "none").as_str() {
        "none" => ScatterReduction::None,
        "add" => ScatterReduction::Add,
        "mul" => ScatterReduction::Mul,
        "max" => ScatterReduction::Max,
        "min" => ScatterReduction::Min,
        other => panic!("reduction {other}"),
    }
}

fn reduce(c: &mut Case) -> Option<Op> {
    use Reduce::*;
    let all = [Sum, Mean, Max, Min, Prod, L1, L2, SumSquare, LogSum, LogSumExp];
    let op = all.into_iter().find(|r| format!("Reduce{r:?}") == c.op)?;
    let rank = c.rank();
    let axes = c.take_axes(1, rank).filter(|a| !a.is_empty()).unwrap_or_else(|| (0..rank).collect());
    Some(Op::Reduce { op, axes, keepdims: c.flag("keepdims", true) })
}

/// What the importer makes of ONNX's axes and attributes.
fn op(c: &mut Case) -> Op {
    if let Some(u) = unary(c) {
        return Op::Unary(u);
    }
    if let Some(b) = binary(c) {
        return Op::Binary(b);
    }
    if let Some(op) = reduce(c) {
        return op;
    }
    nn(c).or_else(|| movement(c)).unwrap_or_else(|| panic!("{} is not mapped", c.op))
}

fn nn(c: &mut Case) -> Option<Op> {
    let epsilon = c.float("epsilon", 1e-5);
    Some(match c.op.as_str() {
        "MatMul" => Op::MatMul,
        "Gemm" => Op::Gemm {
            alpha: c.float("alpha", 1.0),
            beta: c.float("beta", 1.0),
            trans_a: c.flag("transA", false),
            trans_b: c.flag("transB", false),
        },
        "Einsum" => Op::Einsum { equation: c.text("equation", "") },
        "Conv" => {
            let window = c.window(&c.input(1).unwrap().shape()[2..]);
            Op::Conv { window, group: c.int("group", 1) as usize }
        }
        "AveragePool" => {
            let kernel = c.sizes("kernel_shape").unwrap();
            let count_include_pad = c.flag("count_include_pad", false);
            Op::AveragePool { window: c.window(&kernel), kernel, count_include_pad }
        }
        "MaxPool" => {
            let kernel = c.sizes("kernel_shape").unwrap();
            Op::MaxPool { window: c.window(&kernel), kernel }
        }
        "GlobalAveragePool" => Op::GlobalAveragePool,
        "Softmax" => Op::Softmax { axis: c.axis(-1, c.rank()) },
        "LogSoftmax" => Op::LogSoftmax { axis: c.axis(-1, c.rank()) },
        "LayerNormalization" => Op::LayerNorm { axis: c.axis(-1, c.rank()), epsilon },
        "RMSNormalization" => Op::RmsNorm { axis: c.axis(-1, c.rank()), epsilon },
        "BatchNormalization" => Op::BatchNorm { epsilon },
        "ArgMax" | "ArgMin" => {
            let (axis, keepdims) = (c.axis(0, c.rank()), c.flag("keepdims", true));
            let last = c.flag("select_last_index", false);
            match c.op.as_str() {
                "ArgMax" => Op::ArgMax { axis, keepdims, last },
                _ => Op::ArgMin { axis, keepdims, last },
            }
        }
        "CumSum" => {
            let rank = c.rank();
            let axis = wrap(c.take(1).unwrap()[0], rank);
            Op::CumSum { axis, exclusive: c.flag("exclusive", false), reverse: c.flag("reverse", false) }
        }
        "TopK" => Op::TopK { axis: c.axis(-1, c.rank()), largest: c.flag("largest", true) },
        "Attention" => {
            let d = *c.input(0).unwrap().shape().last().unwrap();
            Op::Attention(Attention {
                scale: c.float("scale", 1.0 / (d as f32).sqrt()),
                causal: c.flag("is_causal", false),
                window: None,
                softcap: Some(c.float("softcap", 0.0)).filter(|s| *s != 0.0),
                safe: true,
            })
        }
        "RotaryEmbedding" => {
            // The tables are [batch, position, d / 2]: they lack the head axis.
            for table in c.inputs[1..].iter_mut().flatten() {
                let [b, t, d] = *table.shape() else { panic!("table") };
                *table = table.reshaped(vec![b, 1, t, d]).unwrap();
            }
            Op::Rotary(Rotary { interleaved: c.flag("interleaved", false), table: RotaryTable::Half })
        }
        _ => return None,
    })
}

fn movement(c: &mut Case) -> Option<Op> {
    let rank = if c.inputs.is_empty() { 0 } else { c.rank() };
    Some(match c.op.as_str() {
        "Identity" => Op::Identity,
        "Where" => Op::Where,
        "Clip" => Op::Clip,
        "Cast" => Op::Cast { to: c.outputs[0].as_ref().unwrap().dtype() },
        "Reshape" => Op::Reshape { allow_zero: c.flag("allowzero", false) },
        "Transpose" => Op::Transpose { perm: c.sizes("perm").unwrap_or_else(|| (0..rank).rev().collect()) },
        "Squeeze" => Op::Squeeze { axes: c.take_axes(1, rank).unwrap() },
        "Unsqueeze" => {
            let added = c.input(1).unwrap().len();
            Op::Unsqueeze { axes: c.take_axes(1, rank + added).unwrap() }
        }
        "Expand" => Op::Expand,
        "Concat" => Op::Concat { axis: c.axis(0, rank) },
        "Slice" => {
            let n = c.input(1).unwrap().len();
            let steps = c.take(4).unwrap_or_else(|| vec![1; n]);
            let axes = c.take(3).unwrap_or_else(|| (0..n as i64).collect());
            Op::Slice { axes: axes.into_iter().map(|a| wrap(a, rank)).collect(), steps }
        }
        "Gather" => Op::Gather { axis: c.axis(0, rank) },
        "GatherElements" => Op::GatherElements { axis: c.axis(0, rank) },
        "GatherND" => Op::GatherNd { batch_dims: c.int("batch_dims", 0) as usize },
        "ScatterElements" => Op::ScatterElements { axis: c.axis(0, rank), reduction: reduction(c) },
        "ScatterND" => Op::ScatterNd { reduction: reduction(c) },
        "Tile" => Op::Tile,
        "Pad" => {
            if let Some(axes) = c.take_axes(3, rank) {
                let given = c.input(1).unwrap().to_i64().unwrap();
                let mut pads = vec![0; 2 * rank];
                for (i, axis) in axes.iter().enumerate() {
                    pads[*axis] = given[i];
                    pads[axis + rank] = given[i + axes.len()];
                }
                c.inputs[1] = Some(Tensor::ints(&pads));
            }
            let mode = match c.text("mode", "constant").as_str() {
                "constant" => PadMode::Constant,
                "reflect" => PadMode::Reflect,
                "edge" => PadMode::Edge,
                "wrap" => PadMode::Wrap,
                other => panic!("mode {other}"),
            };
            Op::Pad { mode }
        }
        "Trilu" => Op::Trilu { upper: c.flag("upper", true) },
        "OneHot" => Op::OneHot { axis: c.axis(-1, rank + 1) },
        "NonZero" => Op::NonZero,
        "Shape" => {
            let clamp = |a: i64| wrap(a, rank).min(rank);
            let end =
                c.attributes.get("end").map_or(rank, |v| clamp(v.as_i64().unwrap().max(-(rank as i64))));
            Op::Shape { start: clamp(c.int("start", 0).max(-(rank as i64))), end }
        }
        "Size" => Op::Size,
        "ConstantOfShape" => Op::ConstantOfShape {
            value: c.attributes.get("value").map_or_else(|| Tensor::scalar(0f32), tensor),
        },
        "Range" => Op::Range,
        "EyeLike" => {
            let dtype = c.outputs[0].as_ref().unwrap().dtype();
            Op::EyeLike { dtype, k: c.int("k", 0) }
        }
        _ => return None,
    })
}

/// Relative tolerance of one operator in a dtype; integers and bools must agree exactly.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-9,
        DType::F32 => 1e-5,
        DType::F16 => 2e-3,
        DType::BF16 => 1e-2,
        _ => 0.0,
    }
}

fn check(c: &mut Case) -> Result<(), String> {
    let op = op(c);
    let operands: Vec<Option<&Tensor>> = c.inputs.iter().map(Option::as_ref).collect();
    let results = eval_op(&op, &operands).map_err(|e| e.to_string())?;
    for (i, (got, want)) in results.iter().zip(&c.outputs).enumerate() {
        let Some(want) = want else { continue };
        if (got.dtype(), got.shape()) != (want.dtype(), want.shape()) {
            return Err(format!("output {i} is {got:?}, expected {want:?}"));
        }
        let (x, y) = (got.to_f64(), want.to_f64());
        let scale = y.iter().filter(|v| v.is_finite()).fold(1e-3, |m: f64, v| m.max(v.abs()));
        let close = |(a, b): &(&f64, &f64)| {
            a == b || (a.is_nan() && b.is_nan()) || (*a - *b).abs() <= tolerance(want.dtype()) * scale
        };
        if let Some((at, (a, b))) = x.iter().zip(&y).enumerate().find(|(_, pair)| !close(pair)) {
            return Err(format!("output {i} element {at} is {a}, expected {b}"));
        }
    }
    Ok(())
}

#[test]
fn operators_agree_with_numpy_and_onnx_runtime() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("eval_cases/cases.json")).unwrap();
    assert!(cases.len() > 300, "only {} cases", cases.len());
    let mut failed = Vec::new();
    for case in &cases {
        if let Err(why) = check(&mut Case::new(case)) {
            failed.push(format!("{}: {why}", case["name"]));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases fail:\n{}", failed.len(), cases.len(), failed.join("\n"));
}
