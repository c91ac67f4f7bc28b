//! The validator, run after every pass in every build.

use std::collections::HashSet;

use super::graph::{Def, Graph, GraphError, NodeId, ValueId};

/// Proof that a graph is valid, demanded by planning and export.
#[derive(Clone, Copy)]
pub struct Valid<'g>(&'g Graph);

impl<'g> Valid<'g> {
    /// The graph that was validated.
    pub fn graph(self) -> &'g Graph {
        self.0
    }
}

impl std::ops::Deref for Valid<'_> {
    type Target = Graph;
    fn deref(&self) -> &Graph {
        self.0
    }
}

/// What is wrong with a graph.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// An operand's defining node does not exist.
    #[error("node '{node}' ({op}) reads {value:?}, whose node was removed")]
    Dangling {
        /// Name of the reader.
        node: String,
        /// Its operator.
        op: String,
        /// The value read.
        value: ValueId,
    },
    /// An output's defining node does not exist.
    #[error("output '{0}' is made by a node that was removed")]
    DanglingOutput(String),
    /// Two outputs of one name.
    #[error("two outputs are called '{0}'")]
    DuplicateOutput(String),
    /// A node and its result disagree on who makes it.
    #[error("result {1:?} of node {0:?} does not name that node as its definition")]
    Definition(NodeId, ValueId),
    /// A recorded type is not what inference gives.
    #[error("{value:?} of node '{node}' ({op}) is recorded as {recorded} but inferred as {inferred}")]
    Type {
        /// Name of the node.
        node: String,
        /// Its operator.
        op: String,
        /// The value.
        value: ValueId,
        /// Type on record.
        recorded: String,
        /// Type that inference gives.
        inferred: String,
    },
    /// The graph cannot be ordered or a node cannot be inferred.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Checks every invariant of the IR.
pub fn validate(graph: &Graph) -> Result<Valid<'_>, Invalid> {
    let made = |v: ValueId| match graph.value(v).def {
        Def::Node(n, _) => graph.node(n).is_some(),
        _ => true,
    };
    for (id, node) in graph.nodes() {
        if let Some(value) = node.operands().find(|v| !made(*v)) {
            return Err(Invalid::Dangling { node: node.name.clone(), op: node.op.name(), value });
        }
        for (i, v) in node.outputs.iter().enumerate() {
            if !matches!(graph.value(*v).def, Def::Node(n, at) if n == id && at == i) {
                return Err(Invalid::Definition(id, *v));
            }
        }
    }
    let mut names = HashSet::new();
    for output in &graph.outputs {
        if !made(output.value) {
            return Err(Invalid::DanglingOutput(output.name.clone()));
        }
        if !names.insert(&output.name) {
            return Err(Invalid::DuplicateOutput(output.name.clone()));
        }
    }
    for id in graph.topological()? {
        check_types(graph, id)?;
    }
    Ok(Valid(graph))
}

fn check_types(graph: &Graph, id: NodeId) -> Result<(), Invalid> {
    let Some(node) = graph.node(id) else { return Ok(()) };
    let operands: Vec<_> = node.inputs.iter().map(|v| v.map(|v| graph.operand(v))).collect();
    let mut fresh = 0;
    let mut next = || {
        fresh += 1;
        super::dim::Dim::symbol(&format!("_check{fresh}"))
    };
    let inferred = crate::infer::infer(&node.op, &operands, node.outputs.len(), &mut next)
        .map_err(|source| GraphError::Infer { name: node.name.clone(), op: node.op.name(), source })?;
    for (v, r) in node.outputs.iter().zip(inferred) {
        let (Some(recorded), Some(ty)) = (graph.ty(*v), r.ty) else { continue };
        let clash = recorded.dtype != ty.dtype
            || recorded.rank() != ty.rank()
            || recorded.shape.iter().zip(&ty.shape).any(|(a, b)| match (a.known(), b.known()) {
                (Some(a), Some(b)) => a != b,
                _ => false,
            });
        if clash {
            return Err(Invalid::Type {
                node: node.name.clone(),
                op: node.op.name(),
                value: *v,
                recorded: recorded.to_string(),
                inferred: ty.to_string(),
            });
        }
    }
    Ok(())
}
