//! Operators that move elements, index, or make tensors from numbers.

use snlp_passes::ir::{Dim, Dynamic, Op, PadMode, Reduce, ScatterReduction};

use super::Writer;
use super::arithmetic::index;
use super::nodes::Call;
use crate::onnx::attributes::{bytes, int, ints, tensor};
use crate::onnx::error::OnnxError;
use crate::onnx::proto::AttributeProto;
use crate::onnx::tensor::{encode, number_of};

impl Writer<'_> {
    /// Writes the node if it is of this family.
    pub(super) fn layout(&mut self, call: &Call<'_>) -> Result<bool, OnnxError> {
        match &call.node.op {
            Op::Reshape { allow_zero } => self.reshape(call, *allow_zero)?,
            Op::Transpose { perm } => {
                let perm: Vec<i64> = perm.iter().copied().map(index).collect();
                self.plain(call, "Transpose", vec![ints("perm", &perm)]);
            }
            Op::Squeeze { axes } => self.axes_since_13(call, "Squeeze", axes),
            Op::Unsqueeze { axes } => self.axes_since_13(call, "Unsqueeze", axes),
            Op::Expand => self.plain(call, "Expand", vec![]),
            Op::Concat { axis } => self.plain(call, "Concat", vec![int("axis", index(*axis))]),
            Op::Slice { axes, steps } => {
                let axes: Vec<i64> = axes.iter().copied().map(index).collect();
                let mut more = vec![self.ints(&axes)];
                if steps.iter().any(|s| *s != 1) {
                    more.push(self.ints(steps));
                }
                self.with(call, "Slice", more, vec![]);
            }
            Op::Tile => self.plain(call, "Tile", vec![]),
            Op::Pad { mode } => self.pad(call, *mode)?,
            Op::Dynamic(dynamic) => self.dynamic(call, *dynamic)?,
            _ => return self.indexing(call),
        }
        Ok(true)
    }

    /// Operators whose axes or steps are operands in ONNX too.
    fn dynamic(&mut self, call: &Call<'_>, dynamic: Dynamic) -> Result<(), OnnxError> {
        match dynamic {
            Dynamic::Reduce { op, keepdims, noop } => {
                let op_type = format!("Reduce{op:?}");
                let since = if op == Reduce::Sum { 13 } else { 18 };
                self.since(since, &format!("{op_type} with computed axes"))?;
                let mut attributes = vec![int("keepdims", keepdims.into())];
                attributes.extend(noop.then(|| int("noop_with_empty_axes", 1)));
                self.plain(call, &op_type, attributes);
            }
            Dynamic::CumSum { exclusive, reverse } => {
                let flags = [("exclusive", exclusive), ("reverse", reverse)];
                let set = flags.iter().filter(|(_, on)| *on).map(|(name, _)| int(name, 1)).collect();
                self.plain(call, "CumSum", set);
            }
            Dynamic::Squeeze | Dynamic::Unsqueeze => {
                let op_type = call.node.op.name();
                self.since(13, &format!("{op_type} with computed axes"))?;
                self.plain(call, &op_type, vec![]);
            }
            Dynamic::Slice => self.plain(call, "Slice", vec![]),
        }
        Ok(())
    }

    fn indexing(&mut self, call: &Call<'_>) -> Result<bool, OnnxError> {
        match &call.node.op {
            Op::Gather { axis } => self.plain(call, "Gather", vec![int("axis", index(*axis))]),
            Op::GatherElements { axis } => {
                self.plain(call, "GatherElements", vec![int("axis", index(*axis))])
            }
            Op::GatherNd { batch_dims } => {
                let mut attributes = vec![];
                if *batch_dims > 0 {
                    self.since(12, "GatherND with batch_dims")?;
                    attributes.push(int("batch_dims", index(*batch_dims)));
                }
                self.plain(call, "GatherND", attributes);
            }
            Op::ScatterElements { axis, reduction } => {
                let mut attributes = vec![int("axis", index(*axis))];
                attributes.extend(self.reduction(*reduction)?);
                self.plain(call, "ScatterElements", attributes);
            }
            Op::ScatterNd { reduction } => {
                let attributes = self.reduction(*reduction)?.into_iter().collect();
                self.plain(call, "ScatterND", attributes);
            }
            Op::Trilu { upper } => {
                self.since(14, "Trilu")?;
                self.plain(call, "Trilu", vec![int("upper", (*upper).into())]);
            }
            Op::OneHot { axis } => self.plain(call, "OneHot", vec![int("axis", index(*axis))]),
            Op::NonZero => self.plain(call, "NonZero", vec![]),
            Op::TopK { axis, largest } => {
                self.plain(call, "TopK", vec![int("axis", index(*axis)), int("largest", (*largest).into())]);
            }
            _ => return self.sources(call),
        }
        Ok(true)
    }

    fn sources(&mut self, call: &Call<'_>) -> Result<bool, OnnxError> {
        match &call.node.op {
            Op::Shape { start, end } => self.shape(call, *start, *end),
            Op::Size => self.plain(call, "Size", vec![]),
            Op::ConstantOfShape { value } => {
                self.plain(call, "ConstantOfShape", vec![tensor("value", encode("", value))]);
            }
            Op::Range => self.plain(call, "Range", vec![]),
            Op::EyeLike { dtype, k } => {
                self.plain(call, "EyeLike", vec![int("dtype", number_of(*dtype).into()), int("k", *k)]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// In the IR a target shape of known content means what it says; in ONNX a 0 in it copies an axis
    /// unless `allowzero`. A symbolic entry may turn out 0. Before opset 14 only a tensor that is empty at
    /// run time could tell the difference.
    fn reshape(&mut self, call: &Call<'_>, allow_zero: bool) -> Result<(), OnnxError> {
        let target = call.value(1).and_then(|v| self.graph.content(v));
        let from = call.value(0).and_then(|v| self.graph.shape(v)).unwrap_or_default();
        let is = |d: &Dim, n: i64| d.known() == Some(n);
        let (literal, zero) = match target {
            None => (allow_zero, allow_zero),
            Some(dims) => {
                let exact = allow_zero || !dims.iter().any(|d| is(d, 0) || is(d, -1));
                let mut changed = dims.iter().enumerate().filter(|(i, d)| from.get(*i) != Some(*d));
                let zero = exact && changed.clone().any(|(_, d)| is(d, 0));
                (exact && changed.any(|(_, d)| is(d, 0) || d.known().is_none()), zero)
            }
        };
        if zero {
            self.since(14, "Reshape with allowzero")?;
        }
        let attributes = if literal && self.opset >= 14 { vec![int("allowzero", 1)] } else { vec![] };
        self.plain(call, "Reshape", attributes);
        Ok(())
    }

    /// Operators whose axes ONNX moved from an attribute to an operand.
    fn axes_since_13(&mut self, call: &Call<'_>, op_type: &str, axes: &[usize]) {
        let axes: Vec<i64> = axes.iter().copied().map(index).collect();
        if self.opset >= 13 {
            let axes = self.ints(&axes);
            self.with(call, op_type, vec![axes], vec![]);
        } else {
            self.plain(call, op_type, vec![ints("axes", &axes)]);
        }
    }

    fn pad(&mut self, call: &Call<'_>, mode: PadMode) -> Result<(), OnnxError> {
        let mode: &[u8] = match mode {
            PadMode::Constant => b"constant",
            PadMode::Reflect => b"reflect",
            PadMode::Edge => b"edge",
            PadMode::Wrap => {
                self.since(19, "Pad in wrap mode")?;
                b"wrap"
            }
        };
        self.plain(call, "Pad", vec![bytes("mode", mode)]);
        Ok(())
    }

    fn reduction(&self, reduction: ScatterReduction) -> Result<Option<AttributeProto>, OnnxError> {
        let (since, name): (i64, &[u8]) = match reduction {
            ScatterReduction::None => return Ok(None),
            ScatterReduction::Add => (16, b"add"),
            ScatterReduction::Mul => (16, b"mul"),
            ScatterReduction::Max => (18, b"max"),
            ScatterReduction::Min => (18, b"min"),
        };
        self.since(since, "a scatter with a reduction")?;
        Ok(Some(bytes("reduction", name)))
    }

    fn shape(&mut self, call: &Call<'_>, start: usize, end: usize) {
        let rank = call.value(0).and_then(|v| self.graph.ty(v)).map(|t| t.rank());
        if start == 0 && rank.is_none_or(|rank| rank == end) {
            return self.plain(call, "Shape", vec![]);
        }
        if self.opset >= 15 {
            return self.plain(call, "Shape", vec![int("start", index(start)), int("end", index(end))]);
        }
        let all = self.helper(call, "Shape", call.inputs.clone(), vec![]);
        let operands = vec![all, self.ints(&[index(start)]), self.ints(&[index(end)])];
        self.push(&call.node.name, "Slice", operands, call.outputs.clone(), vec![]);
    }
}
