//! Elementwise operators, products, reductions and normalisations.

use snlp_passes::eval::{EvalError, allocation};
use snlp_passes::ir::{Attention, Binary, DType, Dim, Op, Reduce, Tensor, Unary, Window};

use super::Writer;
use super::nodes::Call;
use crate::onnx::attributes::{bytes, float, int, ints};
use crate::onnx::error::OnnxError;
use crate::onnx::proto::AttributeProto;
use crate::onnx::tensor::number_of;

impl Writer<'_> {
    /// Writes the node if it is of this family.
    pub(super) fn arithmetic(&mut self, call: &Call<'_>) -> Result<bool, OnnxError> {
        match &call.node.op {
            Op::Identity => self.plain(call, "Identity", vec![]),
            Op::Unary(u) => self.unary(call, *u)?,
            Op::Binary(b) => self.binary(call, *b)?,
            Op::Where => self.plain(call, "Where", vec![]),
            Op::Cast { to } => self.plain(call, "Cast", vec![int("to", number_of(*to).into())]),
            Op::Clip => self.plain(call, "Clip", vec![]),
            Op::MatMul => self.plain(call, "MatMul", vec![]),
            Op::Gemm { alpha, beta, trans_a, trans_b } => {
                let attributes = gemm(*alpha, *beta, *trans_a, *trans_b);
                self.plain(call, "Gemm", attributes);
            }
            Op::Einsum { equation } => {
                self.since(12, "Einsum")?;
                self.plain(call, "Einsum", vec![bytes("equation", equation.as_bytes())]);
            }
            Op::Softmax { axis } => self.softmax(call, "Softmax", *axis),
            Op::LogSoftmax { axis } => self.softmax(call, "LogSoftmax", *axis),
            Op::Reduce { op, axes, keepdims } => self.reduce(call, *op, axes, *keepdims),
            Op::ArgMax { axis, keepdims, last } => self.arg(call, "ArgMax", *axis, *keepdims, *last)?,
            Op::ArgMin { axis, keepdims, last } => self.arg(call, "ArgMin", *axis, *keepdims, *last)?,
            Op::CumSum { axis, exclusive, reverse } => {
                let axis = self.int_scalar(index(*axis));
                let flags = [("exclusive", *exclusive), ("reverse", *reverse)];
                let set = flags.iter().filter(|(_, on)| *on).map(|(name, _)| int(name, 1)).collect();
                self.with(call, "CumSum", vec![axis], set);
            }
            Op::LayerNorm { axis, epsilon } => self.norm(call, "LayerNormalization", 17, *axis, *epsilon)?,
            Op::RmsNorm { axis, epsilon } => self.norm(call, "RMSNormalization", 23, *axis, *epsilon)?,
            Op::BatchNorm { epsilon } => {
                self.plain(call, "BatchNormalization", vec![float("epsilon", *epsilon)])
            }
            Op::Attention(attention) => self.attention(call, attention)?,
            _ => return self.windows(call),
        }
        Ok(true)
    }

    fn unary(&mut self, call: &Call<'_>, op: Unary) -> Result<(), OnnxError> {
        let name = Op::Unary(op).name();
        let (op_type, since, attributes) = match op {
            Unary::IsNan => ("IsNaN", 9, vec![]),
            Unary::IsInf { negative, positive } => (
                "IsInf",
                10,
                vec![int("detect_negative", negative.into()), int("detect_positive", positive.into())],
            ),
            Unary::GeluErf => ("Gelu", 20, vec![]),
            Unary::GeluTanh => ("Gelu", 20, vec![bytes("approximate", b"tanh")]),
            Unary::Silu => ("Swish", 24, vec![]),
            Unary::Swish { alpha } => ("Swish", 24, vec![float("alpha", alpha)]),
            Unary::LeakyRelu { alpha } | Unary::Elu { alpha } | Unary::ThresholdedRelu { alpha } => {
                (name.as_str(), 10, vec![float("alpha", alpha)])
            }
            Unary::Celu { alpha } => ("Celu", 12, vec![float("alpha", alpha)]),
            Unary::Selu { alpha, gamma } => ("Selu", 6, vec![float("alpha", alpha), float("gamma", gamma)]),
            Unary::HardSigmoid { alpha, beta } => {
                ("HardSigmoid", 6, vec![float("alpha", alpha), float("beta", beta)])
            }
            Unary::HardSwish => ("HardSwish", 14, vec![]),
            Unary::Mish | Unary::BitwiseNot => (name.as_str(), 18, vec![]),
            _ => (name.as_str(), 11, vec![]),
        };
        self.since(since, op_type)?;
        self.plain(call, op_type, attributes);
        Ok(())
    }

    fn binary(&mut self, call: &Call<'_>, op: Binary) -> Result<(), OnnxError> {
        let name = Op::Binary(op).name();
        let (op_type, since, attributes) = match op {
            Binary::Fmod => ("Mod", 10, vec![int("fmod", 1)]),
            Binary::ShiftLeft => ("BitShift", 11, vec![bytes("direction", b"LEFT")]),
            Binary::ShiftRight => ("BitShift", 11, vec![bytes("direction", b"RIGHT")]),
            Binary::BitwiseAnd | Binary::BitwiseOr | Binary::BitwiseXor => (name.as_str(), 18, vec![]),
            Binary::LessOrEqual | Binary::GreaterOrEqual => (name.as_str(), 12, vec![]),
            Binary::Min | Binary::Max => (name.as_str(), if self.is_float(call, 0) { 8 } else { 12 }, vec![]),
            Binary::Pow => ("Pow", if self.is_float(call, 0) { 7 } else { 12 }, vec![]),
            _ => (name.as_str(), 11, vec![]),
        };
        self.since(since, op_type)?;
        self.plain(call, op_type, attributes);
        Ok(())
    }

    fn is_float(&self, call: &Call<'_>, i: usize) -> bool {
        call.value(i).and_then(|v| self.graph.ty(v)).is_some_and(|t| t.dtype.is_float())
    }

    /// Before opset 13 a softmax runs over all axes from the given one on: move it to the end.
    fn softmax(&mut self, call: &Call<'_>, op_type: &str, axis: usize) {
        let rank = call.value(0).and_then(|v| self.graph.ty(v)).map_or(axis + 1, |t| t.rank());
        if self.opset >= 13 || axis + 1 == rank {
            return self.plain(call, op_type, vec![int("axis", index(axis))]);
        }
        let mut swap: Vec<i64> = (0..rank).map(index).collect();
        swap.swap(axis, rank - 1);
        let moved = self.helper(call, "Transpose", call.inputs.clone(), vec![ints("perm", &swap)]);
        let result = self.helper(call, op_type, vec![moved], vec![int("axis", index(rank - 1))]);
        self.push(
            &call.node.name,
            "Transpose",
            vec![result],
            call.outputs.clone(),
            vec![ints("perm", &swap)],
        );
    }

    fn reduce(&mut self, call: &Call<'_>, op: Reduce, axes: &[usize], keepdims: bool) {
        let op_type = format!("Reduce{op:?}");
        let axes: Vec<i64> = axes.iter().copied().map(index).collect();
        let keepdims = int("keepdims", keepdims.into());
        let since = if op == Reduce::Sum { 13 } else { 18 };
        if self.opset >= since {
            let axes = self.ints(&axes);
            self.with(call, &op_type, vec![axes], vec![keepdims]);
        } else {
            self.plain(call, &op_type, vec![ints("axes", &axes), keepdims]);
        }
    }

    fn arg(
        &mut self,
        call: &Call<'_>,
        op_type: &str,
        axis: usize,
        keepdims: bool,
        last: bool,
    ) -> Result<(), OnnxError> {
        let mut attributes = vec![int("axis", index(axis)), int("keepdims", keepdims.into())];
        if last {
            self.since(12, &format!("{op_type} of the last index"))?;
            attributes.push(int("select_last_index", 1));
        }
        self.plain(call, op_type, attributes);
        Ok(())
    }

    /// ONNX's norms need a scale.
    fn norm(
        &mut self,
        call: &Call<'_>,
        op_type: &str,
        since: i64,
        axis: usize,
        epsilon: f32,
    ) -> Result<(), OnnxError> {
        self.since(since, op_type)?;
        let mut inputs = call.inputs.clone();
        if inputs.get(1).is_none_or(String::is_empty) {
            let ones = self.ones(call, axis)?;
            inputs.resize(inputs.len().max(2), String::new());
            inputs[1] = ones;
        }
        let attributes = vec![int("axis", index(axis)), float("epsilon", epsilon)];
        self.push(&call.node.name, op_type, inputs, call.outputs.clone(), attributes);
        Ok(())
    }

    fn ones(&mut self, call: &Call<'_>, axis: usize) -> Result<String, OnnxError> {
        let ty = call.value(0).and_then(|v| self.graph.ty(v));
        let shape =
            ty.and_then(|t| t.shape.get(axis..)?.iter().map(Dim::known_size).collect::<Option<Vec<_>>>());
        let (Some(ty), Some(shape)) = (ty, shape) else {
            return Err(OnnxError::unsupported("a norm without scale needs axes of known size"));
        };
        let tensor = ones(ty.dtype, shape).map_err(|e| OnnxError::invalid(e.to_string()))?;
        let name = self.names.fresh(&format!("{}_scale", call.output()));
        self.initializers.push((name.clone(), tensor));
        Ok(name)
    }

    fn attention(&mut self, call: &Call<'_>, a: &Attention) -> Result<(), OnnxError> {
        self.since(23, "Attention")?;
        let mut attributes = vec![float("scale", a.scale)];
        if a.causal {
            attributes.push(int("is_causal", 1));
        }
        attributes.extend(a.softcap.map(|cap| float("softcap", cap)));
        self.plain(call, "Attention", attributes);
        Ok(())
    }

    fn windows(&mut self, call: &Call<'_>) -> Result<bool, OnnxError> {
        match &call.node.op {
            Op::Conv { window, group } => {
                let mut attributes = window_attributes(window);
                attributes.push(int("group", index(*group)));
                self.plain(call, "Conv", attributes);
            }
            Op::GlobalAveragePool => self.plain(call, "GlobalAveragePool", vec![]),
            Op::AveragePool { window, kernel, count_include_pad } => {
                let mut attributes = window_attributes(window);
                if window.dilations.iter().any(|d| *d != 1) {
                    self.since(19, "AveragePool with dilations")?;
                } else {
                    attributes.retain(|a| a.name() != "dilations");
                }
                attributes.push(sizes("kernel_shape", kernel));
                attributes.push(int("count_include_pad", (*count_include_pad).into()));
                self.plain(call, "AveragePool", attributes);
            }
            Op::MaxPool { window, kernel } => {
                let mut attributes = window_attributes(window);
                attributes.push(sizes("kernel_shape", kernel));
                self.plain(call, "MaxPool", attributes);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// An index as ONNX stores it.
pub(super) fn index(i: usize) -> i64 {
    i64::try_from(i).unwrap_or(i64::MAX)
}

fn sizes(name: &str, values: &[usize]) -> AttributeProto {
    ints(name, &values.iter().copied().map(index).collect::<Vec<_>>())
}

pub(super) fn window_attributes(window: &Window) -> Vec<AttributeProto> {
    vec![
        sizes("strides", &window.strides),
        sizes("pads", &window.pads),
        sizes("dilations", &window.dilations),
    ]
}

/// Only what differs from the defaults.
fn gemm(alpha: f32, beta: f32, trans_a: bool, trans_b: bool) -> Vec<AttributeProto> {
    let mut out = Vec::new();
    if alpha != 1.0 {
        out.push(float("alpha", alpha));
    }
    if beta != 1.0 {
        out.push(float("beta", beta));
    }
    if trans_a {
        out.push(int("transA", 1));
    }
    if trans_b {
        out.push(int("transB", 1));
    }
    out
}

fn ones(dtype: DType, shape: Vec<usize>) -> Result<Tensor, EvalError> {
    let count = allocation(dtype, &shape)?;
    let tensor = match dtype {
        DType::F16 => Tensor::from_vec(shape, vec![half::f16::ONE; count]),
        DType::BF16 => Tensor::from_vec(shape, vec![half::bf16::ONE; count]),
        DType::F64 => Tensor::from_vec(shape, vec![1f64; count]),
        _ => Tensor::from_vec(shape, vec![1f32; count]),
    };
    Ok(tensor?)
}
