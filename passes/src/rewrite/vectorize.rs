//! Evaluating corresponding values of several layers as one batched computation.
//!
//! As JAX's `vmap` does: the *lanes* are layers of one class; a tuple of corresponding values, one per
//! lane, becomes one value with the lane axes in front. Operators have batching rules ([`super::batch`]);
//! constants are stacked into one initializer; equal values from outside stay shared; different ones are
//! vectorised in turn, or stacked.
//!
//! ```text
//!   norm(x1)·W1   norm(x2)·W2        ⇒        norm(X)·W      X [2, ..], W [2, K, N]
//! ```

use std::collections::{HashMap, HashSet};

use super::batch;
use crate::analysis::{Mismatch, Reach, descendants};
use crate::ir::{Def, Dim, Graph, GraphError, NodeId, Op, Tensor, ValueId};

/// A value that stands for one value per lane: with the lane axes in front, or shared by all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batched {
    /// The value.
    pub value: ValueId,
    /// Whether the lane axes are there; each may have size 1 where the lanes along it agree.
    pub batched: bool,
}

impl Batched {
    pub(super) fn shared(value: ValueId) -> Self {
        Batched { value, batched: false }
    }

    pub(super) fn lanes(value: ValueId) -> Self {
        Batched { value, batched: true }
    }
}

/// Why a rewrite stopped.
#[derive(Debug, thiserror::Error)]
pub enum VectorizeError {
    /// The lanes do not correspond, or an operator has no batching rule.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// An edit was refused.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Graphs are layered, but files can be hostile: deeper recursion is refused.
const MAX_DEPTH: usize = 1500;

/// Lanes of one class within a segment.
pub(super) struct Lanes<'a> {
    /// Sizes of the lane axes: none for a single lane, else one or two.
    pub prefix: Vec<usize>,
    /// Values that depend on the segment's input.
    reach: &'a Reach,
    /// States inside the segment: what a lane may not read except through `env`.
    forbidden: &'a HashSet<ValueId>,
    /// Inputs of the model that this evaluation has its own of.
    own: &'a OwnInputs,
    memo: HashMap<Vec<ValueId>, Batched>,
}

/// Inputs of the model in whose place an evaluation reads others of its own, and what is computed from them.
pub(super) struct OwnInputs {
    replacements: HashMap<ValueId, ValueId>,
    reach: Reach,
}

impl OwnInputs {
    pub(super) fn new(graph: &Graph, replacements: HashMap<ValueId, ValueId>) -> Self {
        let reach = descendants(graph, replacements.keys().copied());
        OwnInputs { replacements, reach }
    }
}

impl<'a> Lanes<'a> {
    pub(super) fn new(
        prefix: Vec<usize>,
        reach: &'a Reach,
        forbidden: &'a HashSet<ValueId>,
        own: &'a OwnInputs,
    ) -> Self {
        Lanes { prefix, reach, forbidden, own, memo: HashMap::new() }
    }

    /// Says what the lanes' values `tuple` are: the states.
    pub(super) fn define(&mut self, tuple: Vec<ValueId>, value: Batched) {
        self.memo.insert(tuple, value);
    }

    /// What the value `v` of lane number `lane` was evaluated as, if it was.
    pub(super) fn evaluated(&self, lane: usize, v: ValueId) -> Option<Batched> {
        let found = self.memo.iter().filter(|(tuple, _)| tuple.get(lane) == Some(&v));
        found.min_by_key(|(tuple, _)| *tuple).map(|(_, result)| *result)
    }

    /// The batched form of corresponding branches or skip-path maps. (Results of maps are themselves
    /// among the states that a lane may not read.)
    pub(super) fn vectorize_result(
        &mut self,
        graph: &mut Graph,
        tuple: &[ValueId],
    ) -> Result<Batched, VectorizeError> {
        if let Some(known) = self.memo.get(tuple) {
            return Ok(*known);
        }
        if tuple.iter().any(|v| self.forbidden.contains(v)) {
            let result = self.zip(graph, tuple, 0)?;
            self.memo.insert(tuple.to_vec(), result);
            return Ok(result);
        }
        self.visit(graph, tuple, 0)
    }

    fn visit(
        &mut self,
        graph: &mut Graph,
        tuple: &[ValueId],
        depth: usize,
    ) -> Result<Batched, VectorizeError> {
        if let Some(known) = self.memo.get(tuple) {
            return Ok(*known);
        }
        if tuple.iter().any(|v| self.own.replacements.contains_key(v)) {
            let renewed = |v: &ValueId| self.own.replacements.get(v).copied().unwrap_or(*v);
            let tuple: Vec<ValueId> = tuple.iter().map(renewed).collect();
            return self.visit(graph, &tuple, depth);
        }
        let first = tuple[0];
        if depth > MAX_DEPTH {
            return Err(Mismatch::at_value(graph, first, "the layer is nested too deeply").into());
        }
        let same = tuple.iter().all(|v| *v == first);
        let depends = |v: &ValueId| self.reach.contains(*v) || self.own.reach.contains(*v);
        let inside = tuple.iter().any(|v| depends(v) || self.forbidden.contains(v));
        if let Some(state) = tuple.iter().find(|v| self.forbidden.contains(v)) {
            let reason = "a layer of the parallel segment reads a state of another layer of it";
            return Err(Mismatch::at_value(graph, *state, reason).into());
        }
        let result = if same && !inside {
            Batched::shared(first)
        } else if let Some(stacked) = self.stack_constants(graph, tuple)? {
            stacked
        } else {
            match self.zip(graph, tuple, depth) {
                Err(VectorizeError::Mismatch(_)) if !inside => self.stack_values(graph, tuple)?,
                other => other?,
            }
        };
        self.memo.insert(tuple.to_vec(), result);
        Ok(result)
    }

    fn stack_constants(
        &self,
        graph: &mut Graph,
        tuple: &[ValueId],
    ) -> Result<Option<Batched>, VectorizeError> {
        let tensors: Option<Vec<Tensor>> = tuple.iter().map(|v| graph.tensor(*v).cloned()).collect();
        let Some(tensors) = tensors else { return Ok(None) };
        if tensors.windows(2).all(|w| w[0].byte_len() <= 4096 && w[0] == w[1]) {
            return Ok(Some(Batched::shared(tuple[0])));
        }
        let refuse = |e: crate::ir::TensorError| Mismatch::at_value(graph, tuple[0], e.to_string());
        let mut shape = self.prefix.clone();
        shape.extend(tensors[0].shape());
        let stacked = Tensor::stack(&tensors).and_then(|t| t.reshaped(shape)).map_err(refuse)?;
        let name = self.stacked_name(graph, tuple);
        let value = graph.constant(stacked);
        if let Some(name) = name {
            graph.set_name(value, &name);
        }
        Ok(Some(Batched::lanes(value)))
    }

    fn stacked_name(&self, graph: &Graph, tuple: &[ValueId]) -> Option<String> {
        let first = graph.value(tuple[0]).name.as_ref()?;
        Some(format!("{first}.x{}", tuple.len()))
    }

    /// One value per lane, computed outside the segment, laid along the lane axes.
    fn stack_values(&self, graph: &mut Graph, tuple: &[ValueId]) -> Result<Batched, VectorizeError> {
        let mut rows = Vec::new();
        for v in tuple {
            rows.push(graph.add(Op::Unsqueeze { axes: vec![0] }, &[*v])?);
        }
        let stacked = graph.add(Op::Concat { axis: 0 }, &rows)?;
        if self.prefix.len() == 1 {
            return Ok(Batched::lanes(stacked));
        }
        let mut dims: Vec<Dim> = self.prefix.iter().map(|n| Dim::from(*n)).collect();
        dims.extend(graph.shape(tuple[0]).unwrap_or_default().iter().cloned());
        Ok(Batched::lanes(batch::reshape(graph, stacked, &dims)?))
    }

    /// Vectorises the nodes that make the values: the same operator on corresponding operands.
    fn zip(&mut self, graph: &mut Graph, tuple: &[ValueId], depth: usize) -> Result<Batched, VectorizeError> {
        let first = tuple[0];
        let mut lanes: Vec<NodeId> = Vec::with_capacity(tuple.len());
        let mut position = None;
        for v in tuple {
            let Def::Node(id, at) = graph.value(*v).def else {
                return Err(Mismatch::at_value(graph, *v, "one lane's value is not computed").into());
            };
            if *position.get_or_insert(at) != at {
                return Err(Mismatch::at_value(graph, *v, "different results of an operator").into());
            }
            lanes.push(id);
        }
        let template = self.template(graph, &lanes, first)?;
        let mut operands = Vec::with_capacity(template.inputs.len());
        for i in 0..template.inputs.len() {
            let tuple: Option<Vec<ValueId>> =
                lanes.iter().map(|id| graph.node(*id).and_then(|n| n.input(i))).collect();
            operands.push(match tuple {
                Some(tuple) => Some(self.visit(graph, &tuple, depth + 1)?),
                None => None,
            });
        }
        let results = batch::apply(graph, &template, &operands, &self.prefix)?;
        for (i, result) in results.iter().enumerate() {
            let tuple: Option<Vec<ValueId>> =
                lanes.iter().map(|id| graph.node(*id).and_then(|n| n.outputs.get(i).copied())).collect();
            if let Some(tuple) = tuple {
                self.memo.insert(tuple, *result);
            }
        }
        let at = position.unwrap_or(0);
        let result = results.get(at).copied();
        result.ok_or_else(|| Mismatch::at_value(graph, first, "a result is missing").into())
    }

    /// The first lane's node, when all lanes have the same operator.
    fn template(
        &self,
        graph: &Graph,
        lanes: &[NodeId],
        first: ValueId,
    ) -> Result<crate::ir::Node, VectorizeError> {
        let missing = || Mismatch::at_value(graph, first, "an operand was removed");
        let template = graph.node(lanes[0]).ok_or_else(missing)?;
        for id in &lanes[1..] {
            let node = graph.node(*id).ok_or_else(missing)?;
            let same_operands = node.inputs.len() == template.inputs.len()
                && node.inputs.iter().zip(&template.inputs).all(|(a, b)| a.is_some() == b.is_some());
            if node.op != template.op || !same_operands {
                let reason = format!("operators differ: {:?} and {:?}", template.op, node.op);
                return Err(Mismatch::at_value(graph, first, reason).into());
            }
        }
        Ok(template.clone())
    }
}
