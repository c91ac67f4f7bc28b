//! The graph: an arena of nodes and values with checked construction.

use std::cmp::Reverse;
use std::fmt;

use super::dim::{Dim, Symbol};
use super::op::Op;
use super::tensor::{DType, Element, Tensor};
use super::types::Type;
use crate::infer::{self, InferError, Operand};

/// Identifies a node of one graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// Identifies a value of one graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

impl NodeId {
    /// Position in the arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl ValueId {
    /// Position in the arena: smaller than [`Graph::value_count`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Debug for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// An operator applied to operands.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands; `None` where an optional one is absent.
    pub inputs: Vec<Option<ValueId>>,
    /// Results. A result that nothing reads keeps its place.
    pub outputs: Vec<ValueId>,
    /// The name in the source model, or one that says where the node came from; may be empty.
    pub name: String,
}

impl Node {
    /// The operand at `i`, if present.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// All operands that are present.
    pub fn operands(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.inputs.iter().filter_map(|v| *v)
    }
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Def {
    /// A graph input.
    Input,
    /// A constant.
    Constant(Tensor),
    /// The result at the given position of a node.
    Node(NodeId, usize),
}

/// A value: everything operands can be.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name in the source model, if it had one.
    pub name: Option<String>,
    /// Definition.
    pub def: Def,
    ty: Option<Type>,
    content: Option<Vec<Dim>>,
}

impl Value {
    /// The node that makes it.
    fn maker(&self) -> Option<NodeId> {
        match self.def {
            Def::Node(node, _) => Some(node),
            _ => None,
        }
    }
}

/// A named result of the graph.
#[derive(Clone, Debug)]
pub struct Output {
    /// Name, unique among the outputs.
    pub name: String,
    /// What is returned.
    pub value: ValueId,
}

/// Why a graph could not be changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The operands do not fit the operator.
    #[error("node '{name}' ({op}): {source}")]
    Infer {
        /// Name of the node, or what it was made for.
        name: String,
        /// Operator.
        op: String,
        /// What does not fit.
        #[source]
        source: InferError,
    },
    /// A value would be replaced by one of another type.
    #[error("cannot replace {old:?} of type {old_type} by {new:?} of type {new_type}")]
    Replace {
        /// The value whose uses were to change.
        old: ValueId,
        /// Its type.
        old_type: String,
        /// The replacement.
        new: ValueId,
        /// Its type.
        new_type: String,
    },
    /// Nodes that need each other.
    #[error("the graph has a cycle through node '{0}'")]
    Cycle(String),
}

/// A dataflow graph. Nodes and values keep their ids for the graph's lifetime.
#[derive(Clone, Default)]
pub struct Graph {
    /// Name in the source model.
    pub name: String,
    /// Named results, in order.
    pub outputs: Vec<Output>,
    nodes: Vec<Option<Node>>,
    values: Vec<Value>,
    inputs: Vec<ValueId>,
    fresh: u32,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Graph { name: name.into(), ..Graph::default() }
    }

    fn push_value(&mut self, name: Option<String>, def: Def, ty: Option<Type>) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { name, def, ty, content: None });
        id
    }

    /// Adds a graph input.
    pub fn add_input(&mut self, name: &str, ty: Type) -> ValueId {
        let id = self.push_value(Some(name.into()), Def::Input, Some(ty));
        self.inputs.push(id);
        id
    }

    /// Graph inputs, in order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The graph input of this name.
    pub fn input(&self, name: &str) -> Option<ValueId> {
        self.inputs.iter().copied().find(|v| self.value(*v).name.as_deref() == Some(name))
    }

    /// Adds a result of the graph.
    pub fn add_output(&mut self, name: &str, value: ValueId) {
        self.outputs.push(Output { name: name.into(), value });
    }

    /// Adds a constant.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        let ty = Type::of(&tensor);
        let content = content_of(&tensor);
        let id = self.push_value(None, Def::Constant(tensor), Some(ty));
        self.values[id.index()].content = content;
        id
    }

    /// Adds a constant with a name.
    pub fn named_constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let id = self.constant(tensor);
        self.values[id.index()].name = Some(name.into());
        id
    }

    /// Adds a rank-0 constant.
    pub fn scalar<T: Element>(&mut self, value: T) -> ValueId {
        self.constant(Tensor::scalar(value))
    }

    /// Adds a rank-0 constant of a float type; other dtypes give f32.
    pub fn float_scalar(&mut self, dtype: DType, value: f64) -> ValueId {
        self.constant(match dtype {
            DType::F16 => Tensor::scalar(half::f16::from_f64(value)),
            DType::BF16 => Tensor::scalar(half::bf16::from_f64(value)),
            DType::F64 => Tensor::scalar(value),
            _ => Tensor::scalar(value as f32),
        })
    }

    /// Adds an int64 vector.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(Tensor::ints(values))
    }

    /// An int64 vector of expressions: a constant where all are known, else a [`Op::Dims`] node.
    pub fn dims(&mut self, dims: &[Dim]) -> Result<ValueId, GraphError> {
        match dims.iter().map(Dim::known).collect::<Option<Vec<_>>>() {
            Some(known) => Ok(self.ints(&known)),
            None => self.add(Op::Dims { dims: dims.to_vec(), scalar: false }, &[]),
        }
    }

    /// An int64 rank-0 value of an expression.
    pub fn dim_scalar(&mut self, dim: &Dim) -> Result<ValueId, GraphError> {
        match dim.known() {
            Some(n) => Ok(self.scalar(n)),
            None => self.add(Op::Dims { dims: vec![dim.clone()], scalar: true }, &[]),
        }
    }

    /// A symbol that no other value of this graph uses.
    pub fn fresh_symbol(&mut self) -> Dim {
        self.fresh += 1;
        Symbol::new(&format!("_{}", self.fresh)).into()
    }

    /// Adds a node with one result and returns the result.
    pub fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let node = self.add_node(op, inputs.iter().map(|v| Some(*v)).collect(), 1, "")?;
        Ok(self.nodes[node.index()].as_ref().map(|n| n.outputs[0]).unwrap_or(ValueId(0)))
    }

    /// Adds a node with one result under a name.
    pub fn add_named(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let value = self.add(op, inputs)?;
        if let Def::Node(node, _) = self.values[value.index()].def
            && let Some(node) = &mut self.nodes[node.index()]
        {
            node.name = name.into();
        }
        Ok(value)
    }

    /// Adds a node with `outputs` results; infers their types and integer contents.
    pub fn add_node(
        &mut self,
        op: Op,
        inputs: Vec<Option<ValueId>>,
        outputs: usize,
        name: &str,
    ) -> Result<NodeId, GraphError> {
        let inferred = self.infer(&op, &inputs, outputs).map_err(|source| GraphError::Infer {
            name: name.into(),
            op: op.name(),
            source,
        })?;
        let id = NodeId(self.nodes.len() as u32);
        let outputs = inferred
            .into_iter()
            .enumerate()
            .map(|(i, r)| {
                let v = self.push_value(None, Def::Node(id, i), r.ty);
                self.values[v.index()].content = r.content;
                v
            })
            .collect();
        self.nodes.push(Some(Node { op, inputs, outputs, name: name.into() }));
        Ok(id)
    }

    fn infer(
        &mut self,
        op: &Op,
        inputs: &[Option<ValueId>],
        outputs: usize,
    ) -> Result<Vec<infer::Inferred>, InferError> {
        let mut next = self.fresh;
        let operands: Vec<Option<Operand<'_>>> = inputs.iter().map(|v| v.map(|v| self.operand(v))).collect();
        let result = infer::infer(op, &operands, outputs, &mut || {
            next += 1;
            Symbol::new(&format!("_{next}")).into()
        });
        self.fresh = next;
        result
    }

    /// What inference knows of a value.
    pub fn operand(&self, v: ValueId) -> Operand<'_> {
        let value = &self.values[v.index()];
        let constant = match &value.def {
            Def::Constant(t) => Some(t),
            _ => None,
        };
        Operand { ty: value.ty.as_ref(), content: value.content.as_deref(), constant }
    }

    /// Gives the result of an opaque operator the type that the model declares.
    pub fn declare_type(&mut self, v: ValueId, ty: Type) {
        self.values[v.index()].ty = Some(ty);
    }

    /// Names a value as the source model does.
    pub fn set_name(&mut self, v: ValueId, name: &str) {
        self.values[v.index()].name = Some(name.into());
    }

    /// The node, unless it was removed.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index()).and_then(Option::as_ref)
    }

    /// What a node is called in messages: its name, or its operator and id where it has none.
    pub fn label(&self, id: NodeId) -> String {
        match self.node(id) {
            Some(n) if !n.name.is_empty() => n.name.clone(),
            Some(n) => format!("{} {id:?}", n.op.name()),
            None => format!("{id:?}"),
        }
    }

    /// Renames a node.
    pub fn set_node_name(&mut self, id: NodeId, name: &str) {
        if let Some(Some(node)) = self.nodes.get_mut(id.index()) {
            node.name = name.into();
        }
    }

    /// All nodes, in the order they were added (not in general an order of evaluation).
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> + '_ {
        self.nodes.iter().enumerate().filter_map(|(i, n)| n.as_ref().map(|n| (NodeId(i as u32), n)))
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.iter().flatten().count()
    }

    /// One past the largest value index.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// The value.
    pub fn value(&self, v: ValueId) -> &Value {
        &self.values[v.index()]
    }

    /// All values ever made, with removed nodes' results among them.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> + '_ {
        self.values.iter().enumerate().map(|(i, v)| (ValueId(i as u32), v))
    }

    /// The type, unless an opaque operator made the value and the model does not declare it.
    pub fn ty(&self, v: ValueId) -> Option<&Type> {
        self.value(v).ty.as_ref()
    }

    /// The shape, where the type is known.
    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.ty(v).map(|t| &t.shape[..])
    }

    /// The tensor of a constant.
    pub fn tensor(&self, v: ValueId) -> Option<&Tensor> {
        match &self.value(v).def {
            Def::Constant(t) => Some(t),
            _ => None,
        }
    }

    /// The elements of an integer value of at most 1 axis (or few elements), as far as known.
    pub fn content(&self, v: ValueId) -> Option<&[Dim]> {
        self.value(v).content.as_deref()
    }

    /// The node that makes the value.
    pub fn producer(&self, v: ValueId) -> Option<NodeId> {
        self.value(v).maker()
    }

    /// The node that makes the value, itself.
    pub fn producing(&self, v: ValueId) -> Option<&Node> {
        self.producer(v).and_then(|n| self.node(n))
    }

    /// For every value, the nodes that read it (once per node).
    pub fn users(&self) -> Vec<Vec<NodeId>> {
        let mut users: Vec<Vec<NodeId>> = vec![Vec::new(); self.values.len()];
        for (id, node) in self.nodes() {
            for v in node.operands() {
                if users[v.index()].last() != Some(&id) {
                    users[v.index()].push(id);
                }
            }
        }
        users
    }

    /// Makes everything that reads `old` read `new`, outputs included. Refused when the types cannot
    /// be the same.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) -> Result<(), GraphError> {
        self.check_replacement(old, new)?;
        for node in self.nodes.iter_mut().flatten() {
            for v in node.inputs.iter_mut().flatten().filter(|v| **v == old) {
                *v = new;
            }
        }
        for output in self.outputs.iter_mut().filter(|o| o.value == old) {
            output.value = new;
        }
        Ok(())
    }

    /// Refuses a replacement whose type cannot be the same.
    pub fn check_replacement(&self, old: ValueId, new: ValueId) -> Result<(), GraphError> {
        if self.compatible(old, new) {
            return Ok(());
        }
        let show = |v| self.ty(v).map(Type::to_string).unwrap_or_else(|| "unknown".into());
        Err(GraphError::Replace { old, old_type: show(old), new, new_type: show(new) })
    }

    /// Infers a node's results again, after operands were replaced by ones of which more is known.
    /// Results whose sizes only the data decides keep the symbols they have. Returns whether anything
    /// changed.
    pub fn reinfer(&mut self, id: NodeId) -> Result<bool, GraphError> {
        let Some(Some(node)) = self.nodes.get(id.index()) else { return Ok(false) };
        let operands: Vec<_> = node.inputs.iter().map(|v| v.map(|v| self.operand(v))).collect();
        let mut data_dependent = false;
        let inferred = infer::infer(&node.op, &operands, node.outputs.len(), &mut || {
            data_dependent = true;
            Dim::symbol("_data")
        });
        let inferred = inferred.map_err(|source| GraphError::Infer {
            name: node.name.clone(),
            op: node.op.name(),
            source,
        })?;
        if data_dependent {
            return Ok(false);
        }
        let mut changed = false;
        for (v, r) in node.outputs.clone().into_iter().zip(inferred) {
            let value = &mut self.values[v.index()];
            if r.ty.is_some() && r.ty != value.ty {
                value.ty = r.ty;
                changed = true;
            }
            if r.content.is_some() && r.content != value.content {
                value.content = r.content;
                changed = true;
            }
        }
        Ok(changed)
    }

    fn compatible(&self, old: ValueId, new: ValueId) -> bool {
        let (Some(a), Some(b)) = (self.ty(old), self.ty(new)) else { return true };
        a.dtype == b.dtype
            && a.rank() == b.rank()
            && a.shape.iter().zip(&b.shape).all(|(x, y)| match (x.known(), y.known()) {
                (Some(x), Some(y)) => x == y,
                _ => true,
            })
    }

    /// Replaces one operand of a node.
    pub fn set_input(&mut self, id: NodeId, at: usize, v: ValueId) {
        if let Some(Some(node)) = self.nodes.get_mut(id.index())
            && let Some(slot) = node.inputs.get_mut(at)
        {
            *slot = Some(v);
        }
    }

    /// Removes a node; whatever still reads its results is invalid.
    pub fn remove(&mut self, id: NodeId) {
        if let Some(slot) = self.nodes.get_mut(id.index()) {
            *slot = None;
        }
    }

    /// Nodes in an order of evaluation, the earliest added first wherever there is a choice.
    pub fn topological(&self) -> Result<Vec<NodeId>, GraphError> {
        // Read off once, in a list that is small: operands lie scattered over all values.
        let makers: Vec<Option<NodeId>> = self.values.iter().map(Value::maker).collect();
        let maker = |v: ValueId| makers[v.index()];
        let earlier = |id, v| maker(v).is_none_or(|m| m < id && self.node(m).is_some());
        if self.nodes().all(|(id, node)| node.operands().all(|v| earlier(id, v))) {
            return Ok(self.nodes().map(|(id, _)| id).collect());
        }
        let reads =
            || self.nodes().flat_map(|(id, n)| n.operands().filter_map(maker).map(move |maker| (maker, id)));
        // The readers of each node's results, as often as they read: those of node `i` at `first[i]..first[i + 1]`.
        let (mut first, mut waiting) = (vec![0; self.nodes.len() + 1], vec![0u32; self.nodes.len()]);
        for (maker, id) in reads() {
            first[maker.index() + 1] += 1;
            waiting[id.index()] += 1;
        }
        for i in 1..first.len() {
            first[i] += first[i - 1];
        }
        let mut next = first.clone();
        let mut readers = vec![NodeId(0); first.last().copied().unwrap_or_default()];
        for (maker, id) in reads() {
            readers[next[maker.index()]] = id;
            next[maker.index()] += 1;
        }
        let mut ready: std::collections::BinaryHeap<_> =
            self.nodes().map(|(id, _)| id).filter(|id| waiting[id.index()] == 0).map(Reverse).collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(Reverse(id)) = ready.pop() {
            order.push(id);
            for reader in &readers[first[id.index()]..first[id.index() + 1]] {
                waiting[reader.index()] -= 1;
                if waiting[reader.index()] == 0 {
                    ready.push(Reverse(*reader));
                }
            }
        }
        if order.len() < self.node_count() {
            let stuck = self.nodes().find(|(id, _)| waiting[id.index()] > 0);
            return Err(GraphError::Cycle(stuck.map(|(_, n)| n.name.clone()).unwrap_or_default()));
        }
        Ok(order)
    }
}

/// The content that inference tracks of a constant: small integer tensors.
fn content_of(tensor: &Tensor) -> Option<Vec<Dim>> {
    let tracked = tensor.dtype().is_int() && tensor.len() <= infer::MAX_CONTENT;
    if tracked { Some(tensor.to_i64()?.into_iter().map(Dim::from).collect()) } else { None }
}
