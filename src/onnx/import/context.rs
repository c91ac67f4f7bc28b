//! What the importer of one operator works with.

use std::cell::Cell;
use std::collections::HashSet;

use snlp_passes::eval::{eval_op, eval_op_within};
use snlp_passes::ir::{Attribute, DType, Dim, Graph, GraphError, Op, Symbol, Tensor, Type, ValueId};

use crate::onnx::attributes::{Attributes, to_ir};
use crate::onnx::error::OnnxError;
use crate::onnx::external::ExternalFiles;
use crate::onnx::proto::{AttributeProto, NodeProto};

/// Why an operator was not imported as one of the IR's.
pub(super) enum Decline {
    /// The IR cannot express it, or not with what is known: it is carried through. What was looked at last is
    /// the reason.
    Opaque,
    /// It contradicts the specification.
    Error(OnnxError),
}

impl From<OnnxError> for Decline {
    fn from(e: OnnxError) -> Self {
        Decline::Error(e)
    }
}

impl From<GraphError> for Decline {
    fn from(e: GraphError) -> Self {
        let what = match &e {
            GraphError::Infer { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        Decline::Error(OnnxError::invalid(what))
    }
}

/// The results of an imported node, in order; trailing ones that nobody names may be missing.
pub(super) type Built = Result<Vec<ValueId>, Decline>;

/// Imports one operator.
pub(super) type Builder = fn(&mut NodeContext<'_>) -> Built;

/// What the importer of an operator looked at.
#[derive(Clone, Copy)]
pub(super) enum Looked {
    Nothing,
    Attribute(&'static str),
    Operand(usize),
    Result(usize),
    Value(ValueId),
}

/// One node to import, its operands already values of the graph.
pub(super) struct NodeContext<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) node: &'a NodeProto,
    pub(super) attributes: &'a Attributes<'a>,
    /// Version of the operator's set.
    pub(super) opset: i64,
    pub(super) inputs: Vec<Option<ValueId>>,
    /// The node's name.
    pub(super) name: String,
    pub(super) files: &'a ExternalFiles,
    pub(super) sizes: &'a HashSet<Symbol>,
    pub(super) used: &'a HashSet<String>,
    /// What was looked at last.
    pub(super) looked: Cell<Looked>,
}

impl NodeContext<'_> {
    /// Operand `i`, which the operator needs.
    pub(super) fn input(&self, i: usize) -> Result<ValueId, Decline> {
        let missing = || Decline::Error(OnnxError::invalid(format!("lacks operand {i}")));
        self.optional(i).ok_or_else(missing)
    }

    /// Operand `i`, if present.
    pub(super) fn optional(&self, i: usize) -> Option<ValueId> {
        self.looked.set(Looked::Operand(i));
        self.inputs.get(i).copied().flatten()
    }

    /// What was looked at last, in words.
    pub(super) fn looked_at(&self) -> String {
        let typed = |v: ValueId| self.graph.ty(v).map_or("unknown type".into(), Type::to_string);
        match self.looked.get() {
            Looked::Nothing => "in this form".into(),
            Looked::Attribute(name) => match self.attributes.get(name).map(shown) {
                Some(value) => format!("with attribute '{name}' of {value}"),
                None => format!("without attribute '{name}'"),
            },
            Looked::Operand(i) => match self.inputs.get(i).copied().flatten() {
                Some(v) => format!("with operand {i} of {}", typed(v)),
                None => format!("without operand {i}"),
            },
            Looked::Result(i) => format!("with result {i}"),
            Looked::Value(v) => format!("with a value of {}", typed(v)),
        }
    }

    /// All operands of a variadic operator.
    pub(super) fn all_inputs(&self) -> Result<Vec<ValueId>, Decline> {
        (0..self.inputs.len()).map(|i| self.input(i)).collect()
    }

    /// Whether the model uses result `i`.
    pub(super) fn wants(&self, i: usize) -> bool {
        self.looked.set(Looked::Result(i));
        self.node.output.get(i).is_some_and(|name| !name.is_empty() && self.used.contains(name))
    }

    /// Declines when a result beyond the first is used.
    pub(super) fn only_first_result(&self) -> Result<(), Decline> {
        if (1..self.node.output.len()).any(|i| self.wants(i)) { Err(Decline::Opaque) } else { Ok(()) }
    }

    pub(super) fn int(&self, name: &'static str, default: i64) -> Result<i64, Decline> {
        self.looked.set(Looked::Attribute(name));
        Ok(self.attributes.int(name)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, name: &'static str, default: bool) -> Result<bool, Decline> {
        Ok(self.int(name, i64::from(default))? != 0)
    }

    pub(super) fn float(&self, name: &'static str, default: f32) -> Result<f32, Decline> {
        self.looked.set(Looked::Attribute(name));
        Ok(self.attributes.float(name)?.unwrap_or(default))
    }

    pub(super) fn text(&self, name: &'static str, default: &str) -> Result<String, Decline> {
        self.looked.set(Looked::Attribute(name));
        Ok(self.attributes.text(name)?.unwrap_or_else(|| default.into()))
    }

    /// The type of a value; where it is unknown the operator is carried through.
    pub(super) fn ty(&self, v: ValueId) -> Result<Type, Decline> {
        self.looked.set(Looked::Value(v));
        self.graph.ty(v).cloned().ok_or(Decline::Opaque)
    }

    pub(super) fn shape(&self, v: ValueId) -> Result<Vec<Dim>, Decline> {
        Ok(self.ty(v)?.shape)
    }

    pub(super) fn rank(&self, v: ValueId) -> Result<usize, Decline> {
        Ok(self.ty(v)?.rank())
    }

    pub(super) fn dtype(&self, v: ValueId) -> Result<DType, Decline> {
        Ok(self.ty(v)?.dtype)
    }

    /// The non-negative form of an axis of a tensor of `rank` axes.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Decline> {
        resolve_axis(axis, rank)
            .ok_or_else(|| OnnxError::invalid(format!("axis {axis} is outside of rank {rank}")).into())
    }

    /// The sorted non-negative form of axes, which must differ.
    pub(super) fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, Decline> {
        let mut out = axes.iter().map(|a| self.axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
        out.sort_unstable();
        if out.windows(2).any(|w| w[0] == w[1]) {
            return Err(OnnxError::invalid(format!("axes {axes:?} repeat an axis")).into());
        }
        Ok(out)
    }

    /// The integers of operand `i`, known at import; otherwise the operator is carried through.
    pub(super) fn ints(&self, i: usize) -> Result<Vec<i64>, Decline> {
        let v = self.input(i)?;
        known_ints(self.graph, v).ok_or(Decline::Opaque)
    }

    /// Whether operand `i` is there, but its integers are not known at import.
    pub(super) fn is_open(&self, i: usize) -> bool {
        self.optional(i).is_some_and(|v| known_ints(self.graph, v).is_none())
    }

    /// As [`Self::ints`] for an optional operand or, before `opset`, an attribute.
    pub(super) fn ints_since(
        &self,
        opset: i64,
        i: usize,
        attribute: &str,
    ) -> Result<Option<Vec<i64>>, Decline> {
        if self.opset < opset {
            return Ok(self.attributes.ints(attribute)?.map(<[i64]>::to_vec));
        }
        match self.optional(i) {
            Some(_) => self.ints(i).map(Some),
            None => Ok(None),
        }
    }

    /// The elements of an integer value as far as known.
    pub(super) fn content(&self, v: ValueId) -> Option<Vec<Dim>> {
        if let Some(content) = self.graph.content(v) {
            return Some(content.to_vec());
        }
        Some(known_ints(self.graph, v)?.into_iter().map(Dim::from).collect())
    }

    /// Whether every run can compute the expression from the sizes of the graph inputs.
    pub(super) fn computable(&self, dim: &Dim) -> bool {
        dim.symbols().iter().all(|s| self.sizes.contains(s))
    }

    /// An int64 vector of expressions; declines when a run could not compute them.
    pub(super) fn dims(&mut self, dims: &[Dim]) -> Result<ValueId, Decline> {
        if dims.iter().all(|d| self.computable(d)) {
            Ok(self.graph.dims(dims)?)
        } else {
            Err(Decline::Opaque)
        }
    }

    /// Adds a node with one result under the imported node's name.
    pub(super) fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, Decline> {
        Ok(self.graph.add_named(&self.name, op, inputs)?)
    }

    /// As [`Self::add`], with absent operands.
    pub(super) fn add_optional(
        &mut self,
        op: Op,
        mut inputs: Vec<Option<ValueId>>,
    ) -> Result<ValueId, Decline> {
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let id = self.graph.add_node(op, inputs, 1, &self.name)?;
        self.graph.node(id).and_then(|n| n.outputs.first().copied()).ok_or(Decline::Opaque)
    }

    /// The usual case: one operator on all the node's operands.
    pub(super) fn one(&mut self, op: Op) -> Built {
        let inputs = self.inputs.clone();
        Ok(vec![self.add_optional(op, inputs)?])
    }

    /// An operator on the first `n` operands, all present.
    pub(super) fn plain(&mut self, op: Op, n: usize) -> Built {
        let inputs = (0..n).map(|i| self.input(i)).collect::<Result<Vec<_>, _>>()?;
        Ok(vec![self.add(op, &inputs)?])
    }

    /// The value as int64.
    pub(super) fn as_i64(&mut self, v: ValueId) -> Result<ValueId, Decline> {
        match self.dtype(v)? {
            DType::I64 => Ok(v),
            _ => self.add(Op::Cast { to: DType::I64 }, &[v]),
        }
    }
}

/// The value of an attribute, for people.
fn shown(a: &AttributeProto) -> String {
    match to_ir(a).1 {
        Attribute::Int(n) => n.to_string(),
        Attribute::Float(x) => x.to_string(),
        Attribute::Bytes(text) => format!("'{}'", String::from_utf8_lossy(&text)),
        Attribute::Ints(all) => format!("{all:?}"),
        Attribute::Floats(all) => format!("{all:?}"),
        Attribute::ByteLists(_) | Attribute::Encoded(_) => "a kind that is not read".into(),
    }
}

/// The non-negative form of an axis of a tensor of `rank` axes.
pub(super) fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
    if axis < rank { usize::try_from(axis).ok() } else { None }
}

/// The integers of a value known at import.
pub(super) fn known_ints(graph: &Graph, v: ValueId) -> Option<Vec<i64>> {
    if let Some(known) = graph.content(v).and_then(|c| c.iter().map(Dim::known).collect::<Option<Vec<_>>>()) {
        return Some(known);
    }
    constant_of(graph, v)?.to_i64()
}

/// The tensor of a small value that depends on nothing but constants.
pub(super) fn constant_of(graph: &Graph, v: ValueId) -> Option<Tensor> {
    const MAX_STEPS: usize = 200;
    fold(graph, v, &mut { MAX_STEPS })
}

/// The tensor of a value whose elements inference knows, such as sizes.
fn from_content(graph: &Graph, v: ValueId) -> Option<Tensor> {
    let ty = graph.ty(v)?;
    let known = graph.content(v)?.iter().map(Dim::known).collect::<Option<Vec<i64>>>()?;
    let tensor = Tensor::from_vec(ty.known_shape()?, known).ok()?;
    if ty.dtype == DType::I64 {
        return Some(tensor);
    }
    eval_op(&Op::Cast { to: ty.dtype }, &[Some(&tensor)]).ok()?.into_iter().next()
}

fn fold(graph: &Graph, v: ValueId, steps: &mut usize) -> Option<Tensor> {
    const MAX_ELEMENTS: usize = 4096;
    if let Some(tensor) = graph.tensor(v) {
        return (tensor.len() <= MAX_ELEMENTS).then(|| tensor.clone());
    }
    if let Some(tensor) = from_content(graph, v) {
        return Some(tensor);
    }
    *steps = steps.checked_sub(1)?;
    let node = graph.producing(v)?;
    let at = node.outputs.iter().position(|o| *o == v)?;
    let mut operands = Vec::with_capacity(node.inputs.len());
    for input in &node.inputs {
        operands.push(match input {
            Some(input) => Some(fold(graph, *input, steps)?),
            None => None,
        });
    }
    let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
    eval_op_within(MAX_ELEMENTS * size_of::<f64>(), &node.op, &operands).ok()?.into_iter().nth(at)
}
