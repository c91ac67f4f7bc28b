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
//!
//! An operator without a rule (an opaque one, or one whose result has a size that only the data decides) is
//! evaluated beside itself, once per lane, and the lanes are laid together again where an operator with a
//! rule reads them (METHOD §2: what cannot be batched runs beside).

use std::collections::{HashMap, HashSet};

use super::batch;
use crate::analysis::{Mismatch, Reach, descendants};
use crate::ir::{Def, Dim, Graph, GraphError, Node, NodeId, Op, Tensor, ValueId};

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

/// What the lanes' values became.
#[derive(Clone, Debug)]
enum Laned {
    /// One value for all.
    Together(Batched),
    /// One value per lane, of types that may differ.
    Apart(Vec<ValueId>),
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
    memo: HashMap<Vec<ValueId>, Laned>,
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
        self.memo.insert(tuple, Laned::Together(value));
    }

    /// What the value `v` of lane number `lane` was evaluated as, if it was.
    pub(super) fn evaluated(&self, lane: usize, v: ValueId) -> Option<Batched> {
        let found = self.memo.iter().filter(|(tuple, _)| tuple.get(lane) == Some(&v));
        found.min_by_key(|(tuple, _)| *tuple).and_then(|(_, result)| match result {
            Laned::Together(batched) => Some(*batched),
            Laned::Apart(values) => values.get(lane).copied().map(Batched::shared),
        })
    }

    /// The batched form of corresponding branches or skip-path maps. (Results of maps are themselves
    /// among the states that a lane may not read.)
    pub(super) fn vectorize_result(
        &mut self,
        graph: &mut Graph,
        tuple: &[ValueId],
    ) -> Result<Batched, VectorizeError> {
        let known = self.memo.get(tuple).cloned();
        let result = match known {
            Some(known) => known,
            None if tuple.iter().any(|v| self.forbidden.contains(v)) => {
                let result = self.zip(graph, tuple, 0)?;
                self.memo.insert(tuple.to_vec(), result.clone());
                result
            }
            None => self.visit(graph, tuple, 0)?,
        };
        self.together(graph, &result)?.ok_or_else(|| {
            let reason = "what the layers add to the state differs in size between them";
            Mismatch::at_value(graph, tuple[0], reason).into()
        })
    }

    fn visit(&mut self, graph: &mut Graph, tuple: &[ValueId], depth: usize) -> Result<Laned, VectorizeError> {
        if let Some(known) = self.memo.get(tuple) {
            return Ok(known.clone());
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
            Laned::Together(Batched::shared(first))
        } else if let Some(stacked) = self.stack_constants(graph, tuple)? {
            Laned::Together(stacked)
        } else {
            match self.zip(graph, tuple, depth) {
                Err(VectorizeError::Mismatch(_)) if !inside => Laned::Apart(tuple.to_vec()),
                other => other?,
            }
        };
        self.memo.insert(tuple.to_vec(), result.clone());
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

    /// One value for all lanes, where they have one type.
    fn together(&self, graph: &mut Graph, laned: &Laned) -> Result<Option<Batched>, VectorizeError> {
        let values = match laned {
            Laned::Together(batched) => return Ok(Some(*batched)),
            Laned::Apart(values) => values,
        };
        let ty = graph.ty(values[0]);
        if ty.is_none() || values.iter().any(|v| graph.ty(*v) != ty) {
            return Ok(None);
        }
        if values.windows(2).all(|w| w[0] == w[1]) {
            return Ok(Some(Batched::shared(values[0])));
        }
        self.stack_values(graph, values).map(Some)
    }

    /// The lane's own row of a value for all.
    fn row(&self, graph: &mut Graph, batched: Batched, lane: usize) -> Result<ValueId, VectorizeError> {
        if !batched.batched || self.prefix.is_empty() {
            return Ok(batched.value);
        }
        let axes: Vec<usize> = (0..self.prefix.len()).collect();
        let mut rest = lane;
        let mut starts = vec![0i64; axes.len()];
        for axis in axes.iter().rev() {
            let at = rest % self.prefix[*axis];
            rest /= self.prefix[*axis];
            let agree = graph.shape(batched.value).and_then(|s| s.get(*axis)) == Some(&Dim::ONE);
            starts[*axis] = if agree { 0 } else { at as i64 };
        }
        let ends: Vec<i64> = starts.iter().map(|s| s + 1).collect();
        let (starts, ends) = (graph.ints(&starts), graph.ints(&ends));
        let steps = vec![1; axes.len()];
        let row = graph.add(Op::Slice { axes: axes.clone(), steps }, &[batched.value, starts, ends])?;
        Ok(graph.add(Op::Squeeze { axes }, &[row])?)
    }

    /// Each lane's node on its own operands.
    fn beside(
        &self,
        graph: &mut Graph,
        lanes: &[NodeId],
        operands: &[Option<Laned>],
    ) -> Result<Vec<Laned>, VectorizeError> {
        let mut results: Vec<Vec<ValueId>> = Vec::new();
        for (lane, id) in lanes.iter().enumerate() {
            let Some(node) = graph.node(*id).cloned() else { continue };
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for (own, operand) in node.inputs.iter().zip(operands) {
                inputs.push(match (own, operand) {
                    (Some(own), _) if graph.tensor(*own).is_some() => Some(*own),
                    (Some(_), Some(Laned::Apart(values))) => values.get(lane).copied(),
                    (Some(_), Some(Laned::Together(batched))) => Some(self.row(graph, *batched, lane)?),
                    _ => None,
                });
            }
            let copy = batch::copy_node(graph, &node, inputs)?;
            results.resize(copy.len(), Vec::new());
            for (all, value) in results.iter_mut().zip(copy) {
                all.push(value);
            }
        }
        Ok(results.into_iter().map(Laned::Apart).collect())
    }

    /// One value per lane laid along the lane axes.
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
    fn zip(&mut self, graph: &mut Graph, tuple: &[ValueId], depth: usize) -> Result<Laned, VectorizeError> {
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
        let results = match self.batched(graph, &template, &operands)? {
            Some(results) => results.into_iter().map(Laned::Together).collect(),
            None => self.beside(graph, &lanes, &operands)?,
        };
        for (i, result) in results.iter().enumerate() {
            let tuple: Option<Vec<ValueId>> =
                lanes.iter().map(|id| graph.node(*id).and_then(|n| n.outputs.get(i).copied())).collect();
            if let Some(tuple) = tuple {
                self.memo.insert(tuple, result.clone());
            }
        }
        let at = position.unwrap_or(0);
        let result = results.get(at).cloned();
        result.ok_or_else(|| Mismatch::at_value(graph, first, "a result is missing").into())
    }

    /// The node's results on the lanes' operands together, where it has a rule for them.
    fn batched(
        &self,
        graph: &mut Graph,
        template: &Node,
        operands: &[Option<Laned>],
    ) -> Result<Option<Vec<Batched>>, VectorizeError> {
        let mut laid = Vec::with_capacity(operands.len());
        for operand in operands {
            laid.push(match operand {
                None => None,
                Some(operand) => match self.together(graph, operand)? {
                    Some(batched) => Some(batched),
                    None => return Ok(None),
                },
            });
        }
        match batch::apply(graph, template, &laid, &self.prefix) {
            Ok(results) => Ok(Some(results)),
            Err(VectorizeError::Mismatch(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The first lane's node, when all lanes have the same operator.
    fn template(&self, graph: &Graph, lanes: &[NodeId], first: ValueId) -> Result<Node, VectorizeError> {
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
