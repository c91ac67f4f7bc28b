//! From protobuf messages to the graph IR.
//!
//! ```text
//!   ModelProto ─▶ inputs, initializers ─▶ nodes in an order of evaluation ─▶ outputs
//!                                          │ local function → its body, inlined
//!                                          │ If with a constant condition → the branch, inlined
//!                                          │ known operator → `ops`, which resolve opsets and axes
//!                                          └ anything else → Op::Opaque
//! ```
//!
//! An operator that the IR cannot express (or not with what is known at import) becomes opaque, never an
//! error; what contradicts the ONNX specification is an error with its place.

mod context;
mod inline;
mod opaque;
mod ops;
mod scope;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use snlp_passes::ir::{Def, Dim, Graph, NodeId, Symbol, Type, ValueId};

use self::context::{Decline, Looked, NodeContext, constant_of};
use self::scope::{Opsets, Scope, captured, domain, order, place};
use super::attributes::Attributes;
use super::dims::{Symbols, declared_type, input_type};
use super::error::OnnxError;
use super::external::ExternalFiles;
use super::proto::{FunctionProto, GraphProto, ModelProto, NodeProto};
use super::tensor;
use super::{Fingerprint, Model, ModelInfo, OPSETS};

/// More nodes than any model has, even with all its functions inlined.
const MAX_NODES: usize = if cfg!(test) { 10_000 } else { 1_000_000 };

/// Whether the IR has a counterpart of an operator. One that it has is opaque nevertheless where its attributes
/// or the types of its operands are not understood.
pub(crate) fn knows(domain_name: &str, op_type: &str) -> bool {
    ops::lookup(domain(domain_name), op_type).is_some()
}

/// Reads a model from the bytes of its file; external data lies beside `path`.
pub(super) fn read(data: Bytes, path: &Path) -> Result<Model, OnnxError> {
    let fingerprint = Fingerprint::new(data.clone());
    let proto = decode(data)?;
    let graph = proto.graph.as_ref().ok_or_else(|| {
        OnnxError::invalid("holds no graph").remedy("it is not an ONNX model, or it is truncated")
    })?;
    if proto.ir_version() < 1 {
        return Err(OnnxError::invalid(format!(
            "has IR version {}; versions begin with 1",
            proto.ir_version()
        ))
        .remedy("it is not an ONNX model, or it is damaged"));
    }
    let opsets = Opsets::new(&proto.opset_import)?;
    check_opset(&opsets)?;
    let mut importer = Importer::new(&proto, graph, path);
    importer.import(graph, &opsets)?;
    let functions = importer.kept_functions();
    let info = ModelInfo {
        path: path.to_owned(),
        data_files: importer.files.opened(),
        ir_version: proto.ir_version(),
        opsets: opsets.list().to_vec(),
        producer_name: proto.producer_name().into(),
        producer_version: proto.producer_version().into(),
        domain: proto.domain().into(),
        model_version: proto.model_version(),
        doc_string: proto.doc_string().into(),
        graph_doc_string: graph.doc_string().into(),
        metadata: proto.metadata_props.iter().map(|e| (e.key().into(), e.value().into())).collect(),
        fingerprint,
        declined: importer.declined,
        functions,
        outputs: graph.output.clone(),
    };
    Ok(Model { graph: importer.graph, info })
}

fn decode(data: Bytes) -> Result<ModelProto, OnnxError> {
    if data.is_empty() {
        return Err(OnnxError::invalid("the file is empty"));
    }
    if data.starts_with(b"version https://git-lfs") {
        return Err(
            OnnxError::invalid("is a Git LFS pointer, not the model itself").remedy("run `git lfs pull`")
        );
    }
    ModelProto::decode(data)
        .map_err(|e| OnnxError::invalid("is not an ONNX model, or it is truncated").because(e))
}

/// The standard operator set must be one whose operators the importer knows.
fn check_opset(opsets: &Opsets) -> Result<(), OnnxError> {
    let (first, last) = (OPSETS.start(), OPSETS.end());
    match opsets.version("") {
        None if opsets.list().is_empty() => {
            Err(OnnxError::invalid("imports no operator set")
                .remedy("the file is truncated or no ONNX model"))
        }
        None => Err(OnnxError::unsupported("imports no version of the standard operator set")),
        Some(v) if OPSETS.contains(&v) => Ok(()),
        Some(v) => {
            Err(OnnxError::unsupported(format!("uses opset {v}; supported are the opsets {first} to {last}"))
                .remedy("convert it with onnx.version_converter, or export it for a supported opset"))
        }
    }
}

/// Why an `If` is carried through: what decides its branch is known at the run only.
fn unknown_branch(
    domain: &str,
    node: &NodeProto,
    inputs: &[Option<ValueId>],
    graph: &Graph,
) -> Option<String> {
    if !domain.is_empty() || node.op_type() != "If" {
        return None;
    }
    let condition = graph.value(inputs.first().copied().flatten()?);
    Some(match (&condition.def, &condition.name) {
        (Def::Input, Some(name)) => format!(
            "its branch is chosen by the input '{name}' at each run; export the branches as models of their own: \
             optimum merges decoders unless told '--no-post-process'"
        ),
        _ => "its branch is chosen by a value that only a run computes".into(),
    })
}

struct Importer<'m> {
    graph: Graph,
    files: ExternalFiles,
    library: HashMap<(String, String, String), &'m FunctionProto>,
    declared: HashMap<String, Type>,
    /// Symbols that are the size of a graph input's axis: every run can compute them.
    sizes: HashSet<Symbol>,
    /// Local functions that opaque subgraphs call.
    kept: HashSet<(String, String, String)>,
    /// Why nodes of known operators are carried through.
    declined: BTreeMap<NodeId, String>,
    nodes: usize,
}

/// Identifies a local function.
fn function_key(node_domain: &str, name: &str, overload: &str) -> (String, String, String) {
    (domain(node_domain).into(), name.into(), overload.into())
}

impl<'m> Importer<'m> {
    fn new(proto: &'m ModelProto, graph: &GraphProto, path: &Path) -> Self {
        let key = |f: &FunctionProto| function_key(f.domain(), f.name(), f.overload());
        Importer {
            graph: Graph::new(graph.name()),
            files: ExternalFiles::beside(path),
            library: proto.functions.iter().map(|f| (key(f), f)).collect(),
            declared: HashMap::new(),
            sizes: HashSet::new(),
            kept: HashSet::new(),
            declined: BTreeMap::new(),
            nodes: 0,
        }
    }

    fn import(&mut self, proto: &GraphProto, opsets: &Opsets) -> Result<(), OnnxError> {
        let mut scope = Scope::top(opsets);
        self.constants(proto, &mut scope)?;
        let inputs: Vec<_> = proto.input.iter().filter(|i| scope.get(i.name()).is_none()).collect();
        let symbols = Symbols::of_inputs(inputs.iter().copied());
        for info in inputs {
            let ty = input_type(info, &symbols, &mut self.graph)?;
            self.sizes.extend(ty.shape.iter().filter_map(|d| d.as_symbol().cloned()));
            let value = self.graph.add_input(info.name(), ty);
            scope.define(info.name(), value)?;
        }
        for info in proto.value_info.iter().chain(&proto.output) {
            if let Some(ty) = declared_type(info, &symbols, &mut self.graph) {
                self.declared.insert(info.name().into(), ty);
            }
        }
        self.nodes(&proto.node, proto.output.iter().map(|o| o.name()), &mut scope)?;
        if proto.output.is_empty() {
            return Err(OnnxError::invalid("the graph has no outputs"));
        }
        let mut seen = HashSet::new();
        for output in proto.output.iter().map(|o| o.name()) {
            let value = scope.get(output).ok_or_else(|| {
                OnnxError::invalid("is defined by no node, input or initializer")
                    .at(format!("graph output '{output}'"))
            })?;
            if !seen.insert(output) {
                return Err(OnnxError::invalid("is listed twice").at(format!("graph output '{output}'")));
            }
            self.graph.add_output(output, value);
        }
        Ok(())
    }

    /// Defines the initializers; one that is also a graph input is a constant.
    fn constants(&mut self, proto: &GraphProto, scope: &mut Scope<'_>) -> Result<(), OnnxError> {
        if let Some(sparse) = proto.sparse_initializer.first() {
            let name = sparse.values.as_ref().map(|v| v.name()).unwrap_or_default();
            return Err(OnnxError::unsupported("sparse initializers are not supported")
                .remedy("store it as a dense tensor")
                .at(format!("tensor '{name}'")));
        }
        for t in &proto.initializer {
            let name = format!("{}{}", scope.prefix, t.name());
            let value = self.graph.named_constant(&name, tensor::decode(t, &self.files)?);
            scope.define(t.name(), value)?;
        }
        Ok(())
    }

    /// Imports the nodes of a graph or body whose results are `outputs`.
    fn nodes<'n>(
        &mut self,
        nodes: &[NodeProto],
        outputs: impl Iterator<Item = &'n str>,
        scope: &mut Scope<'_>,
    ) -> Result<(), OnnxError> {
        scope.used = outputs.map(String::from).collect();
        scope.used.extend(nodes.iter().flat_map(|n| n.input.iter().cloned().chain(captured(n))));
        self.nodes = self.nodes.saturating_add(nodes.len());
        if self.nodes > MAX_NODES {
            let what = format!("has more than {MAX_NODES} nodes after inlining its functions");
            return Err(OnnxError::unsupported(what));
        }
        for i in order(nodes, &scope.prefix, &|name| scope.get(name).is_some())? {
            self.node(&nodes[i], scope).map_err(|e| e.at(place(&nodes[i], &scope.prefix)))?;
        }
        Ok(())
    }

    fn node(&mut self, node: &NodeProto, scope: &mut Scope<'_>) -> Result<(), OnnxError> {
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            inputs.push(if name.is_empty() { None } else { Some(self.lookup(name, scope)?) });
        }
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let attributes = Attributes::of(node, scope.arguments);
        let results = match self.inlined(node, &inputs, &attributes, scope)? {
            Some(results) => results,
            None => self.operator(node, inputs, &attributes, scope)?,
        };
        self.bind(node, &results, scope)
    }

    fn lookup(&self, name: &str, scope: &Scope<'_>) -> Result<ValueId, OnnxError> {
        scope.get(name).ok_or_else(|| OnnxError::invalid(format!("reads '{name}', which nothing defines")))
    }

    fn operator(
        &mut self,
        node: &NodeProto,
        inputs: Vec<Option<ValueId>>,
        attributes: &Attributes<'_>,
        scope: &Scope<'_>,
    ) -> Result<Vec<ValueId>, OnnxError> {
        let domain = domain(node.domain());
        let opset = scope.opsets.version(domain).ok_or_else(|| {
            OnnxError::invalid(format!("the model imports no version of its operator set '{domain}'"))
        })?;
        let mut reason = unknown_branch(domain, node, &inputs, &self.graph);
        if let Some(build) = ops::lookup(domain, node.op_type()) {
            let inputs = self.sharpened(domain, node.op_type(), inputs.clone());
            let mut context = NodeContext {
                graph: &mut self.graph,
                node,
                attributes,
                opset,
                inputs,
                name: format!("{}{}", scope.prefix, node.name()),
                files: &self.files,
                sizes: &self.sizes,
                used: &scope.used,
                looked: Cell::new(Looked::Nothing),
            };
            match build(&mut context) {
                Ok(results) => return Ok(results),
                Err(Decline::Error(e)) => return Err(e),
                Err(Decline::Opaque) => reason = Some(format!("not {}", context.looked_at())),
            }
        }
        let results = self.opaque(node, inputs, attributes, scope)?;
        if let (Some(reason), Some(id)) = (reason, results.first().and_then(|v| self.graph.producer(*v))) {
            self.declined.insert(id, reason);
        }
        Ok(results)
    }

    /// The operands of an operator whose results' sizes they decide, with constants in the place of those that
    /// depend on nothing else: inference follows integers, but not the floats that some sizes come from.
    fn sharpened(
        &mut self,
        domain: &str,
        op_type: &str,
        mut inputs: Vec<Option<ValueId>>,
    ) -> Vec<Option<ValueId>> {
        let first = match (domain, op_type) {
            ("", "Range" | "ConstantOfShape") => 0,
            ("", "Reshape" | "Expand" | "Tile" | "Slice" | "Pad" | "Resize") => 1,
            _ => return inputs,
        };
        for input in inputs.iter_mut().skip(first).flatten() {
            let known = |d: &[Dim]| d.iter().all(|d| d.known().is_some());
            if self.graph.tensor(*input).is_none()
                && !self.graph.content(*input).is_some_and(known)
                && let Some(tensor) = constant_of(&self.graph, *input)
            {
                *input = self.graph.constant(tensor);
            }
        }
        inputs
    }

    /// Names the results of a node, and gives those of unknown type the one that the model declares.
    fn bind(
        &mut self,
        node: &NodeProto,
        results: &[ValueId],
        scope: &mut Scope<'_>,
    ) -> Result<(), OnnxError> {
        for (i, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let used = scope.used.contains(name);
            let Some(value) = results.get(i).copied() else {
                if !used {
                    continue;
                }
                return Err(OnnxError::invalid(format!("has no result {i} ('{name}')")));
            };
            scope.define(name, value)?;
            if !used {
                continue;
            }
            if self.graph.value(value).name.is_none() && matches!(self.graph.value(value).def, Def::Node(..))
            {
                self.graph.set_name(value, &format!("{}{name}", scope.prefix));
            }
            if self.graph.ty(value).is_none()
                && scope.prefix.is_empty()
                && let Some(ty) = self.declared.get(name)
            {
                self.graph.declare_type(value, ty.clone());
            }
        }
        Ok(())
    }
}
