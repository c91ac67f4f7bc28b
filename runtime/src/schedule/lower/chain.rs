//! Which nodes share a dispatch.
//!
//! ```text
//!   MatMul ─▶ ReduceSum(unit) ─▶ Add(bias) ─▶ Gelu ─▶ Add(residual)      one product with its epilogue
//!   LayerNorm ─▶ Mul(per unit) ─▶ Add(per unit)                          one normalisation
//!   Mul ─▶ Add ─▶ Tanh ─▶ Mul                                            one elementwise program
//! ```
//!
//! An intermediate value is absorbed only when nothing else reads it, so no cycle can arise: the group is
//! computed where its last node stands.

use std::collections::HashMap;

use snlp_passes::eval::eval_op;
use snlp_passes::ir::{Binary, Node, NodeId, Op, Reduce, Tensor, Unary, ValueId};

use super::group::Group;
use super::integer::Factor;
use super::sinkhorn::Balance;
use super::{Lowering, elementwise, heads};
use crate::kernels::{Activation, NormKind};

/// A matrix product with what is computed in the same dispatch.
#[derive(Clone, Debug)]
pub(super) struct Product {
    /// The MatMul, Gemm or MatMulInteger.
    pub node: NodeId,
    /// What makes floats of a product of integers.
    pub scales: Vec<Factor>,
    /// The first and the number of those of its columns that are computed; all of them by default.
    pub columns: Option<(u32, u32)>,
    /// Axes of its result that are summed over.
    pub contract: Vec<usize>,
    /// Added first.
    pub bias: Option<Addend>,
    /// Then applied.
    pub activation: Activation,
    /// Then multiplied with.
    pub alpha: f32,
    /// Added last.
    pub residual: Option<Addend>,
    /// What is computed in the end.
    pub out: ValueId,
}

impl Product {
    /// Whether nothing but a bias and a factor follows the product so far.
    fn is_affine(&self) -> bool {
        self.activation == Activation::None && self.residual.is_none()
    }

    /// Whether nothing but a bias does.
    pub fn is_biased(&self) -> bool {
        self.is_affine() && self.alpha == 1.0
    }
}

/// What a product's epilogue adds.
#[derive(Clone, Debug)]
pub(super) struct Addend {
    /// The value, or a tensor that is made here.
    pub what: Added,
    /// A value of the shape to which it broadcasts.
    pub like: ValueId,
}

/// See [`Addend`].
#[derive(Clone, Debug)]
pub(super) enum Added {
    /// A value of the graph.
    Value(ValueId),
    /// A tensor computed from constants.
    Tensor(Tensor),
}

/// A normalisation with the factors applied after it.
#[derive(Clone, Debug)]
pub(super) struct Scaled {
    /// The normalisation.
    pub node: NodeId,
    /// Its own or the following factor.
    pub scale: Option<ValueId>,
    /// Its own or the following summand.
    pub bias: Option<ValueId>,
    /// What is computed in the end.
    pub out: ValueId,
}

/// Groups, by the node where they are computed.
#[derive(Default)]
pub(super) struct Chains {
    pub products: HashMap<NodeId, Product>,
    /// By the first of their products.
    pub groups: HashMap<NodeId, Group>,
    pub norms: HashMap<NodeId, Scaled>,
    pub programs: HashMap<NodeId, Vec<NodeId>>,
    /// By their last division.
    pub balances: HashMap<NodeId, Balance>,
    /// By their attention.
    pub heads: HashMap<NodeId, heads::Group>,
}

/// Operators that a program's steps can compute.
pub(super) fn is_elementwise(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(_)
            | Op::Binary(_)
            | Op::Where
            | Op::Cast { .. }
            | Op::Clip
            | Op::Quantize { blocks: None, .. }
            | Op::Dequantize { blocks: None }
    )
}

/// Which normalisation an operator is, over the axes from which on, with which epsilon.
pub(super) fn norm_of(op: &Op) -> Option<(NormKind, usize, f32)> {
    match *op {
        Op::LayerNorm { axis, epsilon } => Some((NormKind::Layer, axis, epsilon)),
        Op::RmsNorm { axis, epsilon } => Some((NormKind::Rms, axis, epsilon)),
        _ => None,
    }
}

/// The product's epilogue for an activation.
pub(super) fn epilogue(u: Unary) -> Option<Activation> {
    Some(match u {
        Unary::Relu => Activation::Relu,
        Unary::Silu => Activation::Silu,
        Unary::GeluErf => Activation::GeluErf,
        Unary::GeluTanh => Activation::GeluTanh,
        Unary::Sigmoid => Activation::Sigmoid,
        Unary::Tanh => Activation::Tanh,
        _ => return None,
    })
}

impl Lowering<'_> {
    /// Fills `self.chains` and `self.absorbed` from the live nodes in order, with their levels by index.
    pub(super) fn find_chains(&mut self, live: &[NodeId], levels: &[usize]) {
        for id in live {
            let Some(node) = self.graph.node(*id) else { continue };
            if norm_of(&node.op).is_some() {
                self.find_norm(*id, node);
            }
            let gemm_bias = match &node.op {
                Op::MatMul => None,
                Op::Gemm { alpha, beta, .. } if *alpha == 1.0 && *beta == 1.0 => node.input(2),
                Op::Gemm { beta, .. } if *beta == 0.0 || node.input(2).is_none() => None,
                Op::MatMulInteger if self.options.fuse => None,
                _ => continue,
            };
            if self.placement.host[id.index()] {
                continue;
            }
            let mut product = Product {
                node: *id,
                scales: vec![],
                columns: None,
                contract: vec![],
                bias: gemm_bias.map(|v| Addend { what: Added::Value(v), like: node.outputs[0] }),
                activation: Activation::None,
                alpha: 1.0,
                residual: None,
                out: node.outputs[0],
            };
            if node.op == Op::MatMulInteger && !self.scale_product(&mut product) {
                continue;
            }
            if self.options.fuse {
                self.grow_product(&mut product);
            }
            if let Some(last) = self.graph.producer(product.out) {
                self.chains.products.insert(last, product);
            }
        }
        self.find_heads(live);
        if self.options.fuse {
            self.find_groups(live, levels);
            self.find_balances(live);
        }
        for id in live.iter().rev() {
            if !self.is_taken(*id) && self.is_program_node(*id) {
                let members = self.grow_program(*id);
                self.absorbed.extend(members.iter().filter(|m| *m != id));
                self.chains.programs.insert(*id, members);
            }
        }
    }

    /// The only node that reads a value, unless the graph returns the value.
    pub(super) fn only_user(&self, v: ValueId) -> Option<NodeId> {
        match &self.users[v.index()][..] {
            [one] if !self.results.contains(&v) => Some(*one),
            _ => None,
        }
    }

    /// Whether a node belongs to a product or normalisation already.
    pub(super) fn is_taken(&self, id: NodeId) -> bool {
        self.absorbed.contains(&id)
            || self.chains.products.contains_key(&id)
            || self.chains.norms.contains_key(&id)
            || self.chains.balances.contains_key(&id)
    }

    /// A normalisation over the last axis takes the factors behind it when it has none of its own.
    fn find_norm(&mut self, id: NodeId, node: &Node) {
        if self.placement.host[id.index()] {
            return;
        }
        let mut norm = Scaled { node: id, scale: node.input(1), bias: node.input(2), out: node.outputs[0] };
        let last_axis = norm_of(&node.op)
            .is_some_and(|(_, axis, _)| self.graph.shape(norm.out).is_some_and(|s| axis + 1 == s.len()));
        let bare = norm.scale.is_none() && norm.bias.is_none();
        for wanted in [Binary::Mul, Binary::Add] {
            let Some(user) = self.only_user(norm.out).filter(|_| bare && last_axis && self.options.fuse)
            else {
                break;
            };
            let Some(next) = self.graph.node(user).filter(|n| n.op == Op::Binary(wanted)) else { break };
            if self.is_taken(user) || self.placement.host[user.index()] || next.input(0) == next.input(1) {
                break;
            }
            let other = if next.input(0) == Some(norm.out) { next.input(1) } else { next.input(0) };
            let same_width = |a: ValueId, b: ValueId| {
                self.graph.shape(a).and_then(<[_]>::last) == self.graph.shape(b).and_then(<[_]>::last)
            };
            if !same_width(norm.out, next.outputs[0]) {
                break;
            }
            match wanted {
                Binary::Mul => norm.scale = other,
                _ => norm.bias = other,
            }
            if let Some(before) = self.graph.producer(norm.out) {
                self.absorbed.insert(before);
            }
            norm.out = next.outputs[0];
        }
        if let Some(last) = self.graph.producer(norm.out) {
            self.chains.norms.insert(last, norm);
        }
    }

    /// Whether `axes` of `at` are batch axes of the product: at the front and untouched by the reshapes in
    /// between, if there are any.
    fn are_batch_axes(&self, product: NodeId, at: ValueId, axes: &[usize], reshaped: bool) -> bool {
        let made = self.graph.node(product).and_then(|n| self.graph.shape(n.outputs[0]));
        let (Some(made), Some(seen)) = (made, self.graph.shape(at)) else { return false };
        let inner = |a: &usize| a + 2 >= made.len() || a + 2 >= seen.len();
        if axes.iter().any(inner) {
            return false;
        }
        let front = axes.iter().enumerate().all(|(i, a)| i == *a);
        !reshaped || (front && made[..axes.len()] == seen[..axes.len()])
    }

    /// What a bias adds up to over the reduced axes of a value like `like`, when it is known now.
    fn summed(&mut self, bias: &Addend, axes: &[usize], keepdims: bool) -> Option<Tensor> {
        let Added::Value(v) = bias.what else { return None };
        let full = self.graph.ty(bias.like)?.known_shape()?;
        let tensor = self.statics.get(v).filter(|t| t.dtype().is_float())?;
        let mut shape = vec![1; full.len().checked_sub(tensor.shape().len())?];
        shape.extend(tensor.shape());
        // Axes along which the bias does not vary count as often as they are long.
        let times: usize = axes.iter().filter(|a| shape[**a] == 1).map(|a| full[*a]).product();
        let times = Tensor::scalar(times as f32);
        let tensor = Tensor::from_vec(shape, tensor.to_f32()).ok()?;
        let reduce = Op::Reduce { op: Reduce::Sum, axes: axes.to_vec(), keepdims };
        let sum = eval_op(&reduce, &[Some(&tensor)]).ok()?.into_iter().next()?;
        eval_op(&Op::Binary(Binary::Mul), &[Some(&sum), Some(&times)]).ok()?.into_iter().next()
    }

    fn grow_product(&mut self, product: &mut Product) {
        let scaled = matches!(self.graph.node(product.node).map(|n| &n.op), Some(Op::Gemm { alpha, .. }) if *alpha != 1.0);
        if scaled {
            return;
        }
        let mut at = product.out;
        let mut reshaped = false;
        let mut passed: Vec<NodeId> = self.graph.producer(at).into_iter().collect();
        while let Some(id) = self.only_user(at) {
            let Some(node) = self.graph.node(id) else { return };
            // Two products may meet in one Add: the first takes it.
            if self.is_taken(id) || self.placement.host[id.index()] || node.outputs.len() != 1 {
                return;
            }
            let out = node.outputs[0];
            let same_shape = self.graph.shape(out) == self.graph.shape(at);
            match &node.op {
                Op::Reshape { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } | Op::Identity
                    if node.input(0) == Some(at) =>
                {
                    passed.push(id);
                    reshaped |= node.op != Op::Identity;
                    at = out;
                    continue;
                }
                Op::Reduce { op: Reduce::Sum, axes, keepdims }
                    if product.contract.is_empty() && product.is_affine() && product.scales.is_empty() =>
                {
                    if !self.are_batch_axes(product.node, at, axes, reshaped) {
                        return;
                    }
                    if let Some(bias) = &product.bias {
                        let Some(sum) = self.summed(bias, axes, *keepdims) else { return };
                        let width = sum.shape().last().copied().unwrap_or(1);
                        if reshaped && sum.len() != width {
                            return;
                        }
                        product.bias = Some(Addend { what: Added::Tensor(sum), like: out });
                    }
                    product.contract = axes.clone();
                }
                Op::Binary(Binary::Add)
                    if same_shape && node.input(0) != node.input(1) && self.has_room_to_add(product) =>
                {
                    let other = if node.input(0) == Some(at) { node.input(1) } else { node.input(0) };
                    let added = other.map(|v| Addend { what: Added::Value(v), like: out });
                    if product.bias.is_none() && product.is_biased() {
                        product.bias = added;
                    } else if product.residual.is_none() {
                        product.residual = added;
                    } else {
                        return;
                    }
                }
                Op::Unary(u) if product.is_biased() => match epilogue(*u) {
                    Some(activation) => product.activation = activation,
                    None => return,
                },
                Op::Binary(Binary::Mul | Binary::Pow)
                    if product.activation == Activation::Relu
                        && product.residual.is_none()
                        && product.alpha == 1.0
                        && self.is_square(node, at) =>
                {
                    product.activation = Activation::SquaredRelu;
                }
                Op::Binary(Binary::Mul) if same_shape && product.residual.is_none() => {
                    let other = if node.input(0) == Some(at) { node.input(1) } else { node.input(0) };
                    match other.and_then(|v| self.statics.get(v)).filter(|t| t.len() == 1) {
                        Some(factor) => product.alpha *= factor.to_f32().first().copied().unwrap_or(1.0),
                        None => return,
                    }
                }
                _ => return,
            }
            self.absorbed.extend(passed.drain(..));
            passed.push(id);
            at = out;
            product.out = out;
        }
    }

    /// Whether a node squares a value.
    fn is_square(&mut self, node: &Node, v: ValueId) -> bool {
        let two = |t: Tensor| t.len() == 1 && t.to_f32() == [2.0];
        node.input(0) == Some(v)
            && match (&node.op, node.input(1)) {
                (Op::Binary(Binary::Mul), other) => other == Some(v),
                (_, Some(power)) => self.statics.get(power).is_some_and(two),
                _ => false,
            }
    }

    fn is_program_node(&self, id: NodeId) -> bool {
        let host = self.placement.host.get(id.index()).copied().unwrap_or(true);
        let live = self.placement.live.get(id.index()).copied().unwrap_or(false);
        live && !host
            && self.graph.node(id).is_some_and(|n| {
                let computed = !self.is_plain_cast(n) && !self.is_coded(n);
                n.outputs.len() == 1 && is_elementwise(&n.op) && computed
            })
    }

    /// The nodes that one program can compute together with `root`.
    fn grow_program(&mut self, root: NodeId) -> Vec<NodeId> {
        let mut members = vec![root];
        let Some(out) = self.graph.node(root).map(|n| n.outputs[0]) else { return members };
        let shape = self.graph.shape(out);
        let mut next = 0;
        while self.options.fuse && next < members.len() {
            let operands: Vec<ValueId> =
                self.graph.node(members[next]).map(|n| n.operands().collect()).unwrap_or_default();
            next += 1;
            for v in operands {
                let Some(p) = self.graph.producer(v) else { continue };
                let free = !members.contains(&p)
                    && !self.is_taken(p)
                    && self.is_program_node(p)
                    && self.graph.shape(v) == shape
                    && !self.results.contains(&v)
                    && self.users[v.index()].iter().all(|u| members.contains(u));
                if !free {
                    continue;
                }
                members.push(p);
                let fits = elementwise::build(self, root, &members)
                    .is_ok_and(|built| built.inputs.len() < self.limits.max_storage_buffers as usize);
                if !fits {
                    members.pop();
                }
            }
        }
        members
    }
}
