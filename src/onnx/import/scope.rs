//! Names in force while nodes are imported.

use std::collections::{BTreeSet, HashMap, HashSet};

use snlp_passes::ir::ValueId;

use crate::onnx::attributes::{Arguments, subgraphs};
use crate::onnx::error::OnnxError;
use crate::onnx::proto::{GraphProto, NodeProto, OperatorSetIdProto};

/// Operator sets by normalised domain.
#[derive(Clone, Default)]
pub(super) struct Opsets(Vec<(String, i64)>);

/// The standard domain has two spellings.
pub(super) fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

impl Opsets {
    /// # Errors
    /// When two versions of one set are imported.
    pub(super) fn new(imports: &[OperatorSetIdProto]) -> Result<Self, OnnxError> {
        let mut list: Vec<(String, i64)> = Vec::new();
        for o in imports {
            let (name, version) = (domain(o.domain()), o.version());
            match list.iter().find(|(d, _)| d == name) {
                Some((_, other)) if *other != version => {
                    let set = if name.is_empty() { "the standard operator set" } else { name };
                    return Err(OnnxError::invalid(format!(
                        "imports versions {other} and {version} of {set}"
                    ))
                    .remedy("keep one of the two opset imports"));
                }
                Some(_) => {}
                None => list.push((name.into(), version)),
            }
        }
        Ok(Opsets(list))
    }

    pub(super) fn version(&self, domain: &str) -> Option<i64> {
        self.0.iter().find(|(d, _)| d == domain).map(|(_, v)| *v)
    }

    pub(super) fn list(&self) -> &[(String, i64)] {
        &self.0
    }
}

/// The values that names stand for in a graph, a subgraph or a function body.
pub(super) struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    values: HashMap<String, ValueId>,
    /// Names that a node or an output reads.
    pub(super) used: HashSet<String>,
    /// Operator sets that the nodes are written for.
    pub(super) opsets: &'a Opsets,
    /// What the attributes of the enclosing function call stand for.
    pub(super) arguments: Option<&'a Arguments>,
    /// Goes before the names of nodes and values, so that those of inlined bodies stay apart.
    pub(super) prefix: String,
    /// Function calls and branches around this one.
    pub(super) depth: usize,
}

impl<'a> Scope<'a> {
    pub(super) fn top(opsets: &'a Opsets) -> Self {
        Scope {
            outer: None,
            values: HashMap::new(),
            used: HashSet::new(),
            opsets,
            arguments: None,
            prefix: String::new(),
            depth: 0,
        }
    }

    /// The scope of a branch, which sees the names around it.
    pub(super) fn branch(&'a self, name: &str) -> Self {
        Scope {
            outer: Some(self),
            values: HashMap::new(),
            used: HashSet::new(),
            opsets: self.opsets,
            arguments: self.arguments,
            prefix: format!("{}{name}/", self.prefix),
            depth: self.depth + 1,
        }
    }

    /// The scope of a function body, which sees its parameters only.
    pub(super) fn body(&self, name: &str, opsets: &'a Opsets, arguments: &'a Arguments) -> Self {
        Scope {
            outer: None,
            values: HashMap::new(),
            used: HashSet::new(),
            opsets,
            arguments: Some(arguments),
            prefix: format!("{}{name}/", self.prefix),
            depth: self.depth + 1,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<ValueId> {
        self.values.get(name).copied().or_else(|| self.outer.and_then(|o| o.get(name)))
    }

    /// Gives `name` its meaning; ONNX allows that once.
    pub(super) fn define(&mut self, name: &str, value: ValueId) -> Result<(), OnnxError> {
        match self.values.insert(name.into(), value) {
            None => Ok(()),
            Some(_) => Err(OnnxError::invalid(format!("value '{name}' is defined twice"))
                .remedy("an ONNX graph gives each value one definition; export the model again")),
        }
    }
}

/// How messages name a node.
pub(super) fn place(node: &NodeProto, prefix: &str) -> String {
    let op = match domain(node.domain()) {
        "" => node.op_type().to_string(),
        d => format!("{d}::{}", node.op_type()),
    };
    if !node.name().is_empty() {
        return format!("node '{prefix}{}' ({op})", node.name());
    }
    match node.output.iter().find(|o| !o.is_empty()) {
        Some(output) => format!("the {op} node that makes '{prefix}{output}'"),
        None => format!("a {op} node"),
    }
}

/// The outer names that a node's subgraphs read, sorted.
pub(super) fn captured(node: &NodeProto) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for graph in subgraphs(node) {
        free_names(graph, &mut out);
    }
    out
}

fn free_names(graph: &GraphProto, out: &mut BTreeSet<String>) {
    let inputs = graph.input.iter().map(|i| i.name());
    let constants = graph.initializer.iter().map(|t| t.name());
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|t| t.name());
    let results = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let own: HashSet<&str> = inputs.chain(constants).chain(sparse).chain(results).collect();
    let mut used = BTreeSet::new();
    for node in &graph.node {
        used.extend(node.input.iter().filter(|i| !i.is_empty()).cloned());
        used.extend(captured(node));
    }
    used.extend(graph.output.iter().map(|o| o.name().to_string()));
    out.extend(used.into_iter().filter(|name| !own.contains(name.as_str())));
}

/// The positions of `nodes` in an order of evaluation: the file's order wherever that is one. `known`
/// tells names defined outside of the nodes.
pub(super) fn order(
    nodes: &[NodeProto],
    prefix: &str,
    known: &dyn Fn(&str) -> bool,
) -> Result<Vec<usize>, OnnxError> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            maker.insert(output, i);
        }
    }
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut waiting = vec![0usize; nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        let captured = captured(node);
        let reads = node.input.iter().filter(|n| !n.is_empty()).chain(&captured);
        let mut makers = BTreeSet::new();
        for name in reads {
            match maker.get(name.as_str()) {
                Some(m) => drop(makers.insert(*m)),
                None if known(name) => {}
                None => {
                    return Err(OnnxError::invalid(format!("reads '{name}', which nothing defines"))
                        .remedy("the model is incomplete; export it again")
                        .at(place(node, prefix)));
                }
            }
        }
        waiting[i] = makers.len();
        makers.into_iter().for_each(|m| users[m].push(i));
    }
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|i| waiting[*i] == 0).collect();
    let mut out = Vec::with_capacity(nodes.len());
    while let Some(i) = ready.pop_first() {
        out.push(i);
        for user in &users[i] {
            waiting[*user] -= 1;
            if waiting[*user] == 0 {
                ready.insert(*user);
            }
        }
    }
    if out.len() < nodes.len() {
        let stuck = waiting.iter().position(|w| *w > 0).map(|i| place(&nodes[i], prefix));
        return Err(OnnxError::invalid("needs its own result: the graph has a cycle")
            .remedy("an ONNX graph must be acyclic; export the model again")
            .at(stuck.unwrap_or_default()));
    }
    Ok(out)
}
