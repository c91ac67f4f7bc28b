//! Local functions and branches with a known condition, replaced by their content.

use snlp_passes::ir::ValueId;

use super::context::known_ints;
use super::ops::correction;
use super::scope::{Opsets, Scope, domain};
use super::{Importer, check_opset, function_key};
use crate::onnx::attributes::{Arguments, Attributes};
use crate::onnx::error::OnnxError;
use crate::onnx::proto::{FunctionProto, GraphProto, NodeProto};

/// How deep calls and branches may be nested.
const MAX_DEPTH: usize = 60;

impl Importer<'_> {
    /// The results of a node that is replaced by a body; `None` when it is an operator of its own.
    pub(super) fn inlined(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<ValueId>],
        attributes: &Attributes<'_>,
        scope: &Scope<'_>,
    ) -> Result<Option<Vec<ValueId>>, OnnxError> {
        if correction(node).is_some() {
            return Ok(None);
        }
        let key = function_key(node.domain(), node.op_type(), node.overload());
        if let Some(function) = self.library.get(&key).copied() {
            if scope.depth >= MAX_DEPTH {
                return Err(OnnxError::invalid(format!(
                    "functions call each other more than {MAX_DEPTH} deep"
                ))
                .remedy("ONNX functions must not be recursive"));
            }
            return self.call(function, node, inputs, attributes, scope).map(Some);
        }
        if domain(node.domain()).is_empty() && node.op_type() == "If" && scope.depth < MAX_DEPTH {
            let condition = inputs.first().copied().flatten();
            let known = condition.and_then(|v| known_ints(&self.graph, v));
            if let Some([known]) = known.as_deref() {
                let branch = if *known != 0 { "then_branch" } else { "else_branch" };
                let graph = attributes
                    .graph(branch)?
                    .ok_or_else(|| OnnxError::invalid(format!("lacks the attribute '{branch}'")))?;
                return self.branch(graph, node, scope).map(Some);
            }
        }
        Ok(None)
    }

    fn call(
        &mut self,
        function: &FunctionProto,
        node: &NodeProto,
        inputs: &[Option<ValueId>],
        attributes: &Attributes<'_>,
        scope: &Scope<'_>,
    ) -> Result<Vec<ValueId>, OnnxError> {
        let mut arguments: Arguments =
            function.attribute_proto.iter().map(|a| (a.name().to_string(), a.clone())).collect();
        arguments.extend(attributes.iter().map(|a| (a.name().to_string(), a.clone())));
        let opsets = Opsets::new(&function.opset_import)?;
        if opsets.version("").is_some() {
            check_opset(&opsets)?;
        }
        let mut body = scope.body(label(node), &opsets, &arguments);
        if inputs.len() > function.input.len() {
            return Err(OnnxError::invalid(format!(
                "passes {} operands to a function of {}",
                inputs.len(),
                function.input.len()
            )));
        }
        // Reading a parameter that was left out is reading an empty name: the node that reads it must
        // allow that, so rename it in the body.
        let absent: Vec<&String> = function
            .input
            .iter()
            .enumerate()
            .filter(|(i, _)| inputs.get(*i).copied().flatten().is_none())
            .map(|(_, name)| name)
            .collect();
        for (name, value) in function.input.iter().zip(inputs) {
            if let Some(value) = value {
                body.define(name, *value)?;
            }
        }
        let outputs = function.output.iter().map(String::as_str);
        if absent.is_empty() {
            self.nodes(&function.node, outputs, &mut body)?;
        } else {
            let mut nodes = function.node.clone();
            for input in nodes.iter_mut().flat_map(|n| &mut n.input) {
                if absent.contains(&&*input) {
                    input.clear();
                }
            }
            self.nodes(&nodes, outputs, &mut body)?;
        }
        self.results(function.output.iter().map(String::as_str), &body)
    }

    fn branch(
        &mut self,
        graph: &GraphProto,
        node: &NodeProto,
        scope: &Scope<'_>,
    ) -> Result<Vec<ValueId>, OnnxError> {
        let mut inner = scope.branch(label(node));
        self.constants(graph, &mut inner)?;
        self.nodes(&graph.node, graph.output.iter().map(|o| o.name()), &mut inner)?;
        self.results(graph.output.iter().map(|o| o.name()), &inner)
    }

    fn results<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        scope: &Scope<'_>,
    ) -> Result<Vec<ValueId>, OnnxError> {
        names.map(|name| self.lookup(name, scope)).collect()
    }
}

/// A name for what a node is replaced by.
fn label(node: &NodeProto) -> &str {
    let output = node.output.iter().find(|o| !o.is_empty()).map(String::as_str);
    if node.name().is_empty() { output.unwrap_or(node.op_type()) } else { node.name() }
}
