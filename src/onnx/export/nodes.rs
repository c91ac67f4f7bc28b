//! From nodes of the IR to ONNX nodes: the common part, and the choice by family.

use snlp_passes::ir::{Attribute, Node, Op, Opaque, Tensor, ValueId};

use super::Writer;
use crate::onnx::attributes::from_ir;
use crate::onnx::error::OnnxError;
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto};

/// One node being written: its name, operands and results.
pub(super) struct Call<'n> {
    pub(super) node: &'n Node,
    /// Names of the operands, empty where absent.
    pub(super) inputs: Vec<String>,
    /// Names of the results.
    pub(super) outputs: Vec<String>,
}

impl Call<'_> {
    /// The name of the first result.
    pub(super) fn output(&self) -> String {
        self.outputs.first().cloned().unwrap_or_default()
    }

    /// Operand `i` of the node in the IR.
    pub(super) fn value(&self, i: usize) -> Option<ValueId> {
        self.node.input(i)
    }
}

impl Writer<'_> {
    /// Writes every node that an output needs.
    pub(super) fn nodes(&mut self) -> Result<(), OnnxError> {
        let order = self.graph.topological().map_err(|e| OnnxError::invalid(e.to_string()))?;
        for id in order {
            let Some(node) = self.graph.node(id) else { continue };
            if node.outputs.iter().all(|v| self.reads[v.index()] == 0) {
                continue;
            }
            self.node(node).map_err(|e| e.at(format!("node '{}' ({})", node.name, node.op.name())))?;
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), OnnxError> {
        let inputs =
            node.inputs.iter().map(|v| v.map_or(String::new(), |v| self.name(v).to_string())).collect();
        let opaque = matches!(node.op, Op::Opaque(_));
        let outputs = node
            .outputs
            .iter()
            .map(|v| {
                // An optional result that the source leaves out has no name.
                let left_out = opaque && self.reads[v.index()] == 0 && self.graph.value(*v).name.is_none();
                if left_out { String::new() } else { self.result_name(*v, &node.name) }
            })
            .collect();
        let call = Call { node, inputs, outputs };
        match &node.op {
            Op::Opaque(opaque) => self.opaque(&call, opaque),
            Op::Correction(correction) => self.correction(&call, correction),
            Op::Dims { dims, scalar } => self.dims(&call, dims, *scalar),
            _ if self.arithmetic(&call)? => Ok(()),
            _ if self.quantization(&call)? => Ok(()),
            _ if self.layout(&call)? => Ok(()),
            other => {
                Err(OnnxError::unsupported(format!("operator {} cannot be written as ONNX", other.name())))
            }
        }
    }

    /// Appends a node. Its own name is unique; `name` may be empty.
    pub(super) fn push(
        &mut self,
        name: &str,
        op_type: &str,
        inputs: Vec<String>,
        outputs: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) -> &mut NodeProto {
        let name = if name.is_empty() { None } else { Some(self.node_names.fresh(name)) };
        let mut input = inputs;
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        let at = self.nodes.len();
        let node = NodeProto {
            op_type: Some(op_type.into()),
            name,
            input,
            output: outputs,
            attribute,
            ..NodeProto::default()
        };
        self.nodes.push(node);
        &mut self.nodes[at]
    }

    /// The usual case: the ONNX operator takes the operands and gives the results.
    pub(super) fn plain(&mut self, call: &Call<'_>, op_type: &str, attribute: Vec<AttributeProto>) {
        self.push(&call.node.name, op_type, call.inputs.clone(), call.outputs.clone(), attribute);
    }

    /// As [`Self::plain`], with further operands.
    pub(super) fn with(
        &mut self,
        call: &Call<'_>,
        op_type: &str,
        more: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        let mut inputs = call.inputs.clone();
        inputs.extend(more);
        self.push(&call.node.name, op_type, inputs, call.outputs.clone(), attribute);
    }

    /// A helper node with one result, which gets a name made from the call's.
    pub(super) fn helper(
        &mut self,
        call: &Call<'_>,
        op_type: &str,
        inputs: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) -> String {
        let suffix = op_type.to_lowercase();
        let name =
            if call.node.name.is_empty() { String::new() } else { format!("{}/{suffix}", call.node.name) };
        let result = self.names.fresh(&format!("{}_{suffix}", call.output()));
        self.push(&name, op_type, inputs, vec![result.clone()], attribute);
        result
    }

    /// An int64 vector among the constants, shared.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        self.integer_constant(values, false)
    }

    /// An int64 scalar among the constants, shared.
    pub(super) fn int_scalar(&mut self, value: i64) -> String {
        self.integer_constant(&[value], true)
    }

    fn integer_constant(&mut self, values: &[i64], scalar: bool) -> String {
        let key = (values.to_vec(), scalar);
        if let Some(name) = self.integers.get(&key) {
            return name.clone();
        }
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let kind = if scalar { "int" } else { "ints" };
        let name = self.names.fresh(&format!("{kind}_{}", text.join("_")));
        let tensor = if scalar { Tensor::scalar(values[0]) } else { Tensor::ints(values) };
        self.initializers.push((name.clone(), tensor));
        self.integers.insert(key, name.clone());
        name
    }

    /// Refuses an operator that the model's operator set does not have yet.
    pub(super) fn since(&self, opset: i64, op_type: &str) -> Result<(), OnnxError> {
        if self.opset >= opset {
            return Ok(());
        }
        Err(OnnxError::unsupported(format!(
            "cannot be written: {op_type} needs opset {opset}, but the model uses opset {}",
            self.opset
        ))
        .remedy("export the original model for a newer opset"))
    }

    /// An opaque operator as it was read. Names that its subgraphs capture follow the values.
    fn opaque(&mut self, call: &Call<'_>, opaque: &Opaque) -> Result<(), OnnxError> {
        let own = call.inputs.len().saturating_sub(opaque.captures.len());
        let renamed: Vec<(&String, &String)> =
            opaque.captures.iter().zip(&call.inputs[own..]).filter(|(a, b)| a != b).collect();
        let mut attributes = Vec::with_capacity(opaque.attributes.len());
        for (name, value) in &opaque.attributes {
            let mut a = from_ir(name, value)?;
            if !renamed.is_empty() && matches!(value, Attribute::Encoded(_)) {
                for graph in a.g.iter_mut().chain(&mut a.graphs) {
                    rename(graph, &renamed);
                }
            }
            attributes.push(a);
        }
        let inputs = call.inputs[..own].to_vec();
        let node = self.push(&call.node.name, &opaque.op_type, inputs, call.outputs.clone(), attributes);
        if !opaque.domain.is_empty() {
            node.domain = Some(opaque.domain.clone());
        }
        Ok(())
    }
}

/// Renames the outer values that a subgraph reads, unless it defines the name itself.
fn rename(graph: &mut GraphProto, names: &[(&String, &String)]) {
    let own: Vec<String> = graph
        .input
        .iter()
        .map(|i| i.name().to_string())
        .chain(graph.initializer.iter().map(|t| t.name().to_string()))
        .chain(graph.node.iter().flat_map(|n| n.output.iter().cloned()))
        .collect();
    let names: Vec<_> = names.iter().copied().filter(|(old, _)| !own.contains(old)).collect();
    let new_name = |old: &str| names.iter().find(|(o, _)| o.as_str() == old).map(|(_, n)| (*n).clone());
    for node in &mut graph.node {
        for input in &mut node.input {
            if let Some(new) = new_name(input) {
                *input = new;
            }
        }
        for inner in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            rename(inner, &names);
        }
    }
    for output in &mut graph.output {
        if let Some(new) = new_name(output.name()) {
            output.name = Some(new);
        }
    }
}
