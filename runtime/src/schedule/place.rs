//! Host or device.
//!
//! A node runs on the host when all its operands are there (constants and integer or bool inputs are)
//! and it is small and no part of a layer, or when it is index arithmetic that must be exact. Everything downstream of a float
//! input or of a node on the device runs on the device.

use std::collections::HashMap;

use snlp_passes::eval::eval_op;
use snlp_passes::ir::{DType, Def, Dim, Graph, Node, NodeId, Op, Tensor, ValueId};

/// Where nodes run and which values are constants.
pub struct Placement {
    /// Nodes that something reads, by index.
    pub live: Vec<bool>,
    /// Nodes that run on the host, by index.
    pub host: Vec<bool>,
}

/// Places the nodes of `order`.
pub fn place(graph: &Graph, order: &[NodeId], host_elements: usize) -> Placement {
    let nodes = order.iter().map(|n| n.index() + 1).max().unwrap_or(0);
    let mut out = Placement { live: vec![false; nodes], host: vec![false; nodes] };
    for output in &graph.outputs {
        if let Some(n) = graph.producer(output.value) {
            out.live[n.index()] = true;
        }
    }
    for id in order.iter().rev() {
        if !out.live[id.index()] {
            continue;
        }
        if let Some(node) = graph.node(*id) {
            for producer in node.operands().filter_map(|v| graph.producer(v)) {
                out.live[producer.index()] = true;
            }
        }
    }
    for id in order {
        if let Some(node) = graph.node(*id) {
            let on_host = |v: ValueId| match &graph.value(v).def {
                Def::Constant(_) => true,
                Def::Input => graph.ty(v).is_some_and(|t| !t.dtype.is_float()),
                Def::Node(n, _) => out.host.get(n.index()).copied().unwrap_or(false),
            };
            out.host[id.index()] = node.operands().all(on_host) && stays(graph, node, host_elements);
        }
    }
    out
}

/// Whether a node whose operands are all on the host stays there.
fn stays(graph: &Graph, node: &Node, host_elements: usize) -> bool {
    let elements = |v: ValueId| {
        let shape = graph.ty(v).and_then(|t| t.known_shape());
        shape.map_or(0, |s| s.iter().fold(1usize, |n, d| n.saturating_mul(*d)))
    };
    let small = node.outputs.iter().all(|v| elements(*v) <= host_elements)
        && node.operands().all(|v| graph.tensor(v).is_none() || elements(v) <= host_elements);
    // Index arithmetic; narrow integers are quantised data.
    let index = |d: DType| !d.is_float() && (d.size() >= 4 || d == DType::Bool);
    let integers = node.outputs.iter().all(|v| graph.ty(*v).is_none_or(|t| index(t.dtype)));
    match &node.op {
        // A constant stays as it is stored: the device turns it into floats where it is read.
        Op::Dequantize { .. } if node.input(0).is_some_and(|v| graph.tensor(v).is_some()) => {
            node.outputs.iter().all(|v| elements(*v) == 1)
        }
        // Tables of floats are looked up where they are used.
        Op::Gather { .. } | Op::GatherElements { .. } | Op::GatherNd { .. } => {
            integers || node.input(0).is_some_and(|v| elements(v) <= 1024)
        }
        op if is_layers_own(op) => false,
        op if device_runs(op) => small,
        _ => true,
    }
}

/// What layers are made of, as opposed to the masks and tables that they read: a small model is none the less
/// the device's.
fn is_layers_own(op: &Op) -> bool {
    matches!(
        op,
        Op::Softmax { .. }
            | Op::LayerNorm { .. }
            | Op::RmsNorm { .. }
            | Op::Attention(_)
            | Op::Correction(_)
            | Op::Conv { .. }
    )
}

/// Operators that the device may take over from the host when they are large.
fn device_runs(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(_)
            | Op::Binary(_)
            | Op::Where
            | Op::Cast { .. }
            | Op::Clip
            | Op::Identity
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Squeeze { .. }
            | Op::Unsqueeze { .. }
            | Op::Expand
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Trilu { .. }
            | Op::Quantize { .. }
            | Op::Dequantize { .. }
            | Op::DynamicQuantize { .. }
            | Op::MatMul
            | Op::MatMulInteger
            | Op::Gemm { .. }
            | Op::Reduce { .. }
            | Op::Rotary(_)
            | Op::ConstantOfShape { .. }
    )
}

/// Values known before the run: constants, tracked integer contents, and small nodes of these.
pub struct Statics<'g> {
    graph: &'g Graph,
    memo: HashMap<ValueId, Option<Tensor>>,
}

/// Largest tensor that is evaluated while scheduling, in elements.
const MAX_STATIC: usize = 1 << 16;

impl<'g> Statics<'g> {
    /// Nothing evaluated yet.
    pub fn new(graph: &'g Graph) -> Self {
        Statics { graph, memo: HashMap::new() }
    }

    /// The tensor of a value, when it is the same in every run.
    pub fn get(&mut self, v: ValueId) -> Option<Tensor> {
        if let Some(tensor) = self.graph.tensor(v) {
            return Some(tensor.clone());
        }
        if let Some(known) = self.memo.get(&v) {
            return known.clone();
        }
        let mut work = vec![v];
        while let Some(at) = work.last().copied() {
            if self.memo.contains_key(&at) {
                work.pop();
                continue;
            }
            match self.attempt(at) {
                Ok(result) => {
                    self.memo.insert(at, result);
                    work.pop();
                }
                Err(needs) => work.extend(needs),
            }
        }
        self.memo.get(&v).cloned().flatten()
    }

    fn known(&self, v: ValueId) -> Option<Option<Tensor>> {
        self.graph.tensor(v).map(|t| Some(t.clone())).or_else(|| self.memo.get(&v).cloned())
    }

    /// The value, or the operands that must be attempted first.
    fn attempt(&self, v: ValueId) -> Result<Option<Tensor>, Vec<ValueId>> {
        if let Some(tensor) = self.content(v) {
            return Ok(Some(tensor));
        }
        let Def::Node(id, at) = self.graph.value(v).def else { return Ok(None) };
        let Some(node) = self.graph.node(id) else { return Ok(None) };
        let size = |v: ValueId| {
            let shape = self.graph.ty(v).and_then(|t| t.known_shape());
            shape.and_then(|s| s.iter().try_fold(1usize, |n, d| n.checked_mul(*d)))
        };
        let small = |v: ValueId| size(v).is_some_and(|n| n <= MAX_STATIC);
        if !node.op.is_pure() || !small(v) || !node.operands().all(small) {
            return Ok(None);
        }
        let needs: Vec<ValueId> = node.operands().filter(|v| self.known(*v).is_none()).collect();
        if !needs.is_empty() {
            return Err(needs);
        }
        let operands: Vec<Option<Option<Tensor>>> =
            node.inputs.iter().map(|v| v.map(|v| self.known(v).flatten())).collect();
        if operands.iter().any(|o| matches!(o, Some(None))) {
            return Ok(None);
        }
        let operands: Vec<Option<&Tensor>> =
            operands.iter().map(|o| o.as_ref().and_then(Option::as_ref)).collect();
        Ok(eval_op(&node.op, &operands).ok().and_then(|outs| outs.into_iter().nth(at)))
    }

    fn content(&self, v: ValueId) -> Option<Tensor> {
        let ty = self.graph.ty(v)?;
        let content = self.graph.content(v)?;
        let values: Vec<i64> = content.iter().map(Dim::known).collect::<Option<_>>()?;
        (ty.dtype == DType::I64).then_some(())?;
        Tensor::ints(&values).reshaped(ty.known_shape()?).ok()
    }

    /// The elements of an integer value that is the same in every run.
    pub fn ints(&mut self, v: ValueId) -> Option<Vec<i64>> {
        self.get(v)?.to_i64()
    }
}
