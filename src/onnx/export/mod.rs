//! From the graph IR to protobuf messages.
//!
//! ```text
//!   Graph ─▶ lowered to the opset ─▶ nodes that an output needs, in order ─▶ NodeProto (`nodes`, by family)
//!             │ Op::Dims       → Shape of the graph inputs and arithmetic on it (`sizes`)
//!             └ Op::Correction → a call of an `ai.snlp` function, or its body (`correction`)
//! ```
//!
//! Graph inputs, outputs, constants and nodes keep their names; whatever has none gets a fresh one.

mod arithmetic;
mod correction;
mod file;
mod layout;
mod names;
mod nbits;
mod nodes;
mod quantize;
mod sizes;
#[cfg(test)]
mod tests;

pub(crate) use correction::function as correction_function;
pub(super) use correction::{DOMAIN as CORRECTION_DOMAIN, recognise as recognise_correction};
pub use file::Written;
pub(super) use file::{encode, write};

use std::collections::{BTreeMap, HashMap, HashSet};

use snlp_passes::ir::{Def, Graph, Op, Tensor, Type, ValueId, validate};
use snlp_passes::rewrite::{Dialect, lower};

use self::names::Names;
use super::dims::{agree, value_info};
use super::error::OnnxError;
use super::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    ValueInfoProto,
};
use super::{Model, ModelInfo, OPSETS};

/// A model in pieces: the messages, and the constants that belong into `graph.initializer`.
pub(super) struct Exported {
    pub(super) model: ModelProto,
    pub(super) graph: GraphProto,
    pub(super) initializers: Vec<(String, Tensor)>,
}

/// Translates a model; with `inline`, corrections become plain operators instead of function calls.
pub(super) fn export(model: &Model, inline: bool) -> Result<Exported, OnnxError> {
    let mut graph = model.graph.clone();
    let inconsistent = || OnnxError::invalid("the graph to be written is inconsistent");
    validate(&graph).map_err(|e| inconsistent().because(e))?;
    if model.info.opsets.iter().any(|(domain, _)| domain == nbits::DOMAIN) {
        nbits::fuse(&mut graph).map_err(|e| inconsistent().because(e))?;
    }
    let opset = standard_opset(&model.info, &graph)?;
    let dialect = Dialect { corrections: !inline, dims: true, ..Dialect::onnx(opset) };
    lower(&mut graph, &dialect).map_err(|e| inconsistent().because(e))?;
    let graph = &graph;
    let mut writer = Writer::new(graph, opset)?;
    writer.nodes()?;
    let outputs = writer.outputs(&model.info.outputs);
    let proto = GraphProto {
        name: Some(if graph.name.is_empty() { "graph".into() } else { graph.name.clone() }),
        doc_string: text(&model.info.graph_doc_string),
        input: graph.inputs().iter().map(|v| writer.info(*v, writer.name(*v))).collect(),
        output: outputs,
        value_info: writer.value_infos(),
        node: writer.nodes,
        ..GraphProto::default()
    };
    let mut functions: Vec<FunctionProto> = writer.functions.into_values().collect();
    functions.extend(model.info.functions.iter().cloned());
    let mut info = model.info.clone();
    for (_, version) in info.opsets.iter_mut().filter(|(domain, _)| domain.is_empty()) {
        if opset > *version && opset >= NIBBLES.0 {
            info.ir_version = info.ir_version.max(NIBBLES.1);
        }
        *version = opset;
    }
    let initializers = writer.initializers;
    let initializers = initializers.into_iter().filter(|(name, _)| !writer.replaced.contains(name)).collect();
    Ok(Exported { model: envelope(&info, functions), graph: proto, initializers })
}

/// The oldest operator set that is written: in older ones many operands are attributes.
const OLDEST_WRITTEN: i64 = 11;

/// The first opset with elements of 4 bits, and the IR version that came with it.
const NIBBLES: (i64, i64) = (21, 10);

/// The version of the standard operator set that the model is written for: its own, or a newer one where that
/// is too old for what is written and every operator is known here, and so can follow.
fn standard_opset(info: &ModelInfo, graph: &Graph) -> Result<i64, OnnxError> {
    let version = info.opsets.iter().find(|(domain, _)| domain.is_empty()).map(|(_, version)| *version);
    let unknown = |op: &Op| matches!(op, Op::Opaque(o) if o.domain.is_empty());
    let carried = graph.nodes().find(|(_, n)| unknown(&n.op));
    let nibble = |v: ValueId| graph.ty(v).is_some_and(|t| t.dtype.is_nibble());
    let nibbles = graph.nodes().any(|(_, n)| n.operands().chain(n.outputs.iter().copied()).any(nibble));
    match version {
        Some(v) if OPSETS.contains(&v) && nibbles && carried.is_none() => Ok(v.max(NIBBLES.0)),
        Some(v) if v >= OLDEST_WRITTEN && OPSETS.contains(&v) => Ok(v),
        Some(v) if OPSETS.contains(&v) => match carried {
            None => Ok(OLDEST_WRITTEN),
            Some((_, n)) => Err(OnnxError::unsupported(format!(
                "uses opset {v} and is written for opset {OLDEST_WRITTEN}, where {} may mean something else",
                n.op.name()
            ))
            .remedy("convert it with onnx.version_converter first")
            .at(format!("node '{}'", n.name))),
        },
        other => Err(OnnxError::unsupported(format!(
            "cannot be written for opset {}: supported are {} to {}",
            other.map_or("none".into(), |v| v.to_string()),
            OPSETS.start(),
            OPSETS.end()
        ))),
    }
}

fn text(s: &str) -> Option<String> {
    if s.is_empty() { None } else { Some(s.into()) }
}

/// Everything but the graph.
fn envelope(info: &ModelInfo, functions: Vec<FunctionProto>) -> ModelProto {
    // Functions came with IR version 8; before version 4 constants had to be graph inputs.
    let least = if functions.is_empty() { 4 } else { 8 };
    let mut opsets = info.opsets.clone();
    for f in &functions {
        if !opsets.iter().any(|(domain, _)| domain == f.domain()) {
            opsets.push((f.domain().into(), 1));
        }
    }
    let opset = |(domain, version): &(String, i64)| OperatorSetIdProto {
        domain: Some(domain.clone()),
        version: Some(*version),
    };
    ModelProto {
        ir_version: Some(info.ir_version.max(least)),
        opset_import: opsets.iter().map(opset).collect(),
        producer_name: text(&info.producer_name),
        producer_version: text(&info.producer_version),
        domain: text(&info.domain),
        model_version: (info.model_version != 0).then_some(info.model_version),
        doc_string: text(&info.doc_string),
        metadata_props: info
            .metadata
            .iter()
            .map(|(k, v)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) })
            .collect(),
        functions,
        ..ModelProto::default()
    }
}

/// The state of one export.
struct Writer<'g> {
    graph: &'g Graph,
    opset: i64,
    /// Names of values of the written graph.
    names: Names,
    node_names: Names,
    /// By index of the value.
    value_names: Vec<Option<String>>,
    /// How many operands and outputs read a value, by index.
    reads: Vec<usize>,
    nodes: Vec<NodeProto>,
    initializers: Vec<(String, Tensor)>,
    integers: HashMap<(Vec<i64>, bool), String>,
    sizes: sizes::Sizes,
    functions: BTreeMap<String, FunctionProto>,
    /// Constants that all readers read in another shape, and how often each is so read.
    shaped: HashMap<(ValueId, Vec<usize>), String>,
    reshaped: HashMap<ValueId, usize>,
    replaced: HashSet<String>,
}

impl<'g> Writer<'g> {
    fn new(graph: &'g Graph, opset: i64) -> Result<Self, OnnxError> {
        let mut writer = Writer {
            graph,
            opset,
            names: Names::default(),
            node_names: Names::default(),
            value_names: vec![None; graph.value_count()],
            reads: vec![0; graph.value_count()],
            nodes: Vec::new(),
            initializers: Vec::new(),
            integers: HashMap::new(),
            sizes: sizes::Sizes::of(graph),
            functions: BTreeMap::new(),
            shaped: HashMap::new(),
            reshaped: HashMap::new(),
            replaced: HashSet::new(),
        };
        writer.count_reads();
        writer.name_interface()?;
        Ok(writer)
    }

    /// Counts the reads of everything that an output needs.
    fn count_reads(&mut self) {
        let mut stack: Vec<ValueId> = self.graph.outputs.iter().map(|o| o.value).collect();
        let mut visited = vec![false; self.reads.len()];
        while let Some(v) = stack.pop() {
            self.reads[v.index()] += 1;
            let Some(id) = self.graph.producer(v) else { continue };
            let Some(node) = self.graph.node(id) else { continue };
            let first = node.outputs.first().copied().unwrap_or(v);
            if !std::mem::replace(&mut visited[first.index()], true) {
                stack.extend(node.operands());
            }
        }
    }

    /// Graph inputs and outputs have the first choice of names; a result that is an output takes its
    /// name (the first, where there are several).
    fn name_interface(&mut self) -> Result<(), OnnxError> {
        for v in self.graph.inputs() {
            let name = self.graph.value(*v).name.clone().unwrap_or_default();
            if name.is_empty() || !self.names.reserve(&name) {
                return Err(OnnxError::invalid(format!(
                    "two graph inputs are called '{name}', or one has no name"
                )));
            }
            self.value_names[v.index()] = Some(name);
        }
        for output in &self.graph.outputs {
            let slot = &mut self.value_names[output.value.index()];
            if slot.as_deref() == Some(output.name.as_str()) {
                continue;
            }
            if !self.names.reserve(&output.name) {
                let what = format!("graph output '{}' is called like another value", output.name);
                return Err(OnnxError::invalid(what));
            }
            if slot.is_none() && self.graph.producer(output.value).is_some() {
                *slot = Some(output.name.clone());
            }
        }
        let constants = self.graph.values().filter(|(v, _)| self.reads[v.index()] > 0);
        for (v, value) in constants {
            if let Def::Constant(tensor) = &value.def {
                let name = self.names.fresh(value.name.as_deref().unwrap_or("constant"));
                self.initializers.push((name.clone(), tensor.clone()));
                self.value_names[v.index()] = Some(name);
            }
        }
        Ok(())
    }

    /// The name of a value that is defined by now.
    fn name(&self, v: ValueId) -> &str {
        self.value_names[v.index()].as_deref().unwrap_or_default()
    }

    /// The name of a constant in another shape, for one of its readers. Nothing is stored twice: where no
    /// reader is left, the constant itself goes.
    fn instead(&mut self, v: ValueId, tensor: Tensor) -> String {
        let reads = self.reshaped.entry(v).or_default();
        *reads += 1;
        if *reads == self.reads[v.index()] {
            self.replaced.extend(self.value_names[v.index()].clone());
        }
        let key = (v, tensor.shape().to_vec());
        if let Some(name) = self.shaped.get(&key) {
            return name.clone();
        }
        let name = self.names.fresh(self.graph.value(v).name.as_deref().unwrap_or("constant"));
        self.initializers.push((name.clone(), tensor));
        self.shaped.insert(key, name.clone());
        name
    }

    /// The name of a node's result, made where it has none yet.
    fn result_name(&mut self, v: ValueId, node_name: &str) -> String {
        if let Some(name) = &self.value_names[v.index()] {
            return name.clone();
        }
        let base = match (&self.graph.value(v).name, node_name) {
            (Some(name), _) if !name.is_empty() => name.clone(),
            (_, "") => format!("value_{}", v.index()),
            (_, node) => format!("{node}_output"),
        };
        let name = self.names.fresh(&base);
        self.value_names[v.index()] = Some(name.clone());
        name
    }

    fn info(&self, v: ValueId, name: &str) -> ValueInfoProto {
        match self.graph.ty(v) {
            Some(ty) => value_info(name, ty),
            None => ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() },
        }
    }

    /// The graph outputs; those that are no node's own result become copies. `declared` tells their shapes by the
    /// original's names, where these do not contradict what is known.
    fn outputs(&mut self, declared: &[ValueInfoProto]) -> Vec<ValueInfoProto> {
        let mut out = Vec::new();
        for output in &self.graph.outputs {
            let from = self.name(output.value).to_string();
            if from != output.name {
                self.push("", "Identity", vec![from], vec![output.name.clone()], vec![]);
            }
            let info = self.info(output.value, &output.name);
            let own = declared.iter().find(|d| d.name() == output.name && agree(d, &info));
            out.push(own.cloned().unwrap_or(info));
        }
        out
    }

    /// Declared types of the intermediate values: of what shape inference cannot know, and of those that keep
    /// the name they were given, for viewers; the many that repeated iterations add would bloat the file.
    fn value_infos(&self) -> Vec<ValueInfoProto> {
        let is_output = |name: &str| self.graph.outputs.iter().any(|o| o.name == name);
        let named = |(v, _): (ValueId, _)| {
            let name = self.value_names[v.index()].as_deref()?;
            let ty: &Type = self.graph.ty(v)?;
            let made = self.graph.producing(v)?;
            let unknown = matches!(made.op, Op::Opaque(_) | Op::Correction(_));
            let own = self.graph.value(v).name.as_deref() == Some(name);
            let shown = (unknown || own) && !is_output(name);
            shown.then(|| value_info(name, ty))
        };
        self.graph.values().filter_map(named).collect()
    }
}
