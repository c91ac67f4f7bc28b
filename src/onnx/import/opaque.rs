//! Operators that the compiler carries through.

use snlp_passes::ir::{Op, Opaque, ValueId};

use super::scope::{Scope, captured, domain};
use super::{Importer, function_key};
use crate::onnx::attributes::{Attributes, subgraphs, to_ir};
use crate::onnx::error::OnnxError;
use crate::onnx::external::ExternalFiles;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto};
use crate::onnx::tensor;

impl Importer<'_> {
    /// Adds an opaque node. The outer values that its subgraphs read become trailing inputs.
    pub(super) fn opaque(
        &mut self,
        node: &NodeProto,
        mut inputs: Vec<Option<ValueId>>,
        attributes: &Attributes<'_>,
        scope: &Scope<'_>,
    ) -> Result<Vec<ValueId>, OnnxError> {
        let captures: Vec<String> = captured(node).into_iter().collect();
        for name in &captures {
            inputs.push(Some(self.lookup(name, scope)?));
        }
        subgraphs(node).for_each(|g| self.keep_called(g));
        let mut carried = Vec::new();
        for a in attributes.iter() {
            let mut a = a.clone();
            take_inside(&mut a, &self.files)?;
            carried.push(to_ir(&a));
        }
        let op = Op::Opaque(Box::new(Opaque {
            domain: domain(node.domain()).into(),
            op_type: node.op_type().into(),
            attributes: carried,
            captures,
        }));
        let name = format!("{}{}", scope.prefix, node.name());
        let id = self
            .graph
            .add_node(op, inputs, node.output.len(), &name)
            .map_err(|e| OnnxError::invalid(e.to_string()))?;
        Ok(self.graph.node(id).map(|n| n.outputs.clone()).unwrap_or_default())
    }

    /// Remembers the local functions that a carried subgraph calls: they must travel with it.
    fn keep_called(&mut self, graph: &GraphProto) {
        let mut stack: Vec<&NodeProto> = graph.node.iter().collect();
        while let Some(node) = stack.pop() {
            stack.extend(subgraphs(node).flat_map(|g| &g.node));
            let key = function_key(node.domain(), node.op_type(), node.overload());
            if let Some(function) = self.library.get(&key).copied()
                && self.kept.insert(key)
            {
                stack.extend(&function.node);
            }
        }
    }

    /// The functions that must be exported with the model, in a fixed order.
    pub(super) fn kept_functions(&self) -> Vec<FunctionProto> {
        let mut keys: Vec<_> = self.kept.iter().collect();
        keys.sort();
        keys.into_iter().filter_map(|k| self.library.get(k)).map(|f| (*f).clone()).collect()
    }
}

/// Loads the external data of tensors inside an attribute: the copy may be written to another folder.
fn take_inside(a: &mut AttributeProto, files: &ExternalFiles) -> Result<(), OnnxError> {
    let take = |t: &mut TensorProto| -> Result<(), OnnxError> {
        if t.data_location() == DataLocation::External {
            let loaded = tensor::decode(t, files)?;
            *t = tensor::encode(t.name(), &loaded);
        }
        Ok(())
    };
    a.t.iter_mut().chain(&mut a.tensors).try_for_each(take)?;
    for graph in a.g.iter_mut().chain(&mut a.graphs) {
        graph.initializer.iter_mut().try_for_each(take)?;
        for node in &mut graph.node {
            node.attribute.iter_mut().try_for_each(|a| take_inside(a, files))?;
        }
    }
    Ok(())
}
