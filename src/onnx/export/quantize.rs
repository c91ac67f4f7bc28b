//! Quantised operators.

use snlp_passes::ir::{Blocks, DType, Dim, Op, Tensor, Type, ValueId};
use snlp_passes::rewrite::{ScaleForm, scale_form};

use super::Writer;
use super::arithmetic::{index, window_attributes};
use super::nodes::Call;
use crate::onnx::attributes::{int, ints};
use crate::onnx::error::OnnxError;
use crate::onnx::proto::AttributeProto;
use crate::onnx::tensor::number_of;

impl Writer<'_> {
    /// Writes the node if it is of this family.
    pub(super) fn quantization(&mut self, call: &Call<'_>) -> Result<bool, OnnxError> {
        match &call.node.op {
            Op::Quantize { to, blocks } => self.linear(call, "QuantizeLinear", *to, *blocks)?,
            Op::Dequantize { blocks } => {
                let from = call.value(0).and_then(|v| self.graph.ty(v)).map_or(DType::U8, |t| t.dtype);
                self.linear(call, "DequantizeLinear", from, *blocks)?;
            }
            Op::DynamicQuantize { .. } => self.plain(call, "DynamicQuantizeLinear", vec![]),
            Op::MatMulInteger => self.plain(call, "MatMulInteger", vec![]),
            Op::ConvInteger { window, group } => {
                let mut inputs = call.inputs.clone();
                if let Some(zero) = call.value(3) {
                    inputs[3] = self.parameter(call, zero, 3, ScaleForm::Axis(0), 1)?;
                }
                let mut attributes = window_attributes(window);
                attributes.push(int("group", index(*group)));
                self.push(&call.node.name, "ConvInteger", inputs, call.outputs.clone(), attributes);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `QuantizeLinear` or `DequantizeLinear` with parameters in the form that ONNX has for them.
    fn linear(
        &mut self,
        call: &Call<'_>,
        op_type: &str,
        integers: DType,
        blocks: Option<Blocks>,
    ) -> Result<(), OnnxError> {
        if !matches!(integers, DType::I8 | DType::U8 | DType::I32) {
            self.since(21, &format!("{op_type} of {integers}"))?;
        }
        let types = [0, 1].map(|i| call.value(i).and_then(|v| self.graph.ty(v)).cloned());
        let [Some(x), Some(scale)] = types else {
            return Err(OnnxError::unsupported("cannot be written where its operands have no known types"));
        };
        let form = scale_form(&x, &scale, blocks, self.opset)
            .ok_or_else(|| OnnxError::unsupported(format!("has no form in ONNX for {x} by {scale}")))?;
        let mut inputs = vec![call.inputs[0].clone()];
        for i in [1, 2] {
            inputs.push(match call.value(i) {
                Some(v) => self.parameter(call, v, i, form, x.rank())?,
                None => String::new(),
            });
        }
        let mut attributes = match form {
            ScaleForm::Tensor => vec![],
            ScaleForm::Axis(axis) => vec![int("axis", index(axis))],
            ScaleForm::Blocks(b) => vec![int("axis", index(b.axis)), int("block_size", index(b.size))],
        };
        // The default is a zero of u8; optimisers are surest of what is written out.
        let vector = matches!(form, ScaleForm::Axis(_));
        if call.value(2).is_none() && if op_type == "QuantizeLinear" { integers != DType::U8 } else { vector }
        {
            match zeros(integers, &scale, form, x.rank()) {
                Some(zeros) => {
                    inputs[2] = self.names.fresh(&format!("{}_zero_point", call.output()));
                    self.initializers.push((inputs[2].clone(), zeros));
                }
                None if op_type == "DequantizeLinear" => {}
                None => {
                    self.since(21, &format!("{op_type} to {integers} by a scale of unknown size"))?;
                    attributes.push(int("output_dtype", number_of(integers).into()));
                }
            }
        }
        self.push(&call.node.name, op_type, inputs, call.outputs.clone(), attributes);
        Ok(())
    }

    /// The name of a scale or zero point in its form.
    fn parameter(
        &mut self,
        call: &Call<'_>,
        v: ValueId,
        at: usize,
        form: ScaleForm,
        rank: usize,
    ) -> Result<String, OnnxError> {
        let shape = self.graph.shape(v).unwrap_or_default().to_vec();
        let name = call.inputs[at].clone();
        let wanted = written(form, &shape, rank);
        let small = matches!(form, ScaleForm::Tensor) && shape.len() <= 1;
        if small || wanted == shape {
            return Ok(name);
        }
        let known = wanted.iter().map(Dim::known_size).collect::<Option<Vec<_>>>();
        if let (Some(tensor), Some(known)) = (self.graph.tensor(v), known) {
            let tensor = tensor.reshaped(known).map_err(|e| OnnxError::invalid(e.to_string()))?;
            return Ok(self.instead(v, tensor));
        }
        Ok(match form {
            ScaleForm::Tensor => {
                let target = self.ints(&[1]);
                self.helper(call, "Reshape", vec![name, target], vec![])
            }
            ScaleForm::Axis(_) => {
                let target = self.ints(&[-1]);
                self.helper(call, "Reshape", vec![name, target], vec![])
            }
            ScaleForm::Blocks(_) => {
                let axes: Vec<i64> = (0..rank - shape.len()).map(index).collect();
                self.unsqueezed(call, name, &axes)
            }
        })
    }

    fn unsqueezed(&mut self, call: &Call<'_>, name: String, axes: &[i64]) -> String {
        let (more, attributes): (Vec<String>, Vec<AttributeProto>) = if self.opset >= 13 {
            (vec![self.ints(axes)], vec![])
        } else {
            (vec![], vec![ints("axes", axes)])
        };
        self.helper(call, "Unsqueeze", [vec![name], more].concat(), attributes)
    }
}

/// The shape in which a parameter of this shape is written.
fn written(form: ScaleForm, shape: &[Dim], rank: usize) -> Vec<Dim> {
    match form {
        ScaleForm::Tensor => vec![],
        ScaleForm::Axis(_) => shape.iter().filter(|d| **d != Dim::ONE).cloned().collect(),
        ScaleForm::Blocks(_) => {
            let mut full = vec![Dim::ONE; rank.saturating_sub(shape.len())];
            full.extend(shape.iter().cloned());
            full
        }
    }
}

/// A zero point of zeros in the form of the scale.
fn zeros(dtype: DType, scale: &Type, form: ScaleForm, rank: usize) -> Option<Tensor> {
    let shape: Vec<usize> =
        written(form, &scale.shape, rank).iter().map(Dim::known_size).collect::<Option<_>>()?;
    let bytes = dtype.bytes(snlp_passes::ir::element_count(&shape)?);
    Tensor::from_bytes(dtype, shape, vec![0u8; bytes].into()).ok()
}
