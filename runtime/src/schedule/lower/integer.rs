//! Products of integers with the floats around them.
//!
//! ```text
//!   x ─▶ DynamicQuantize ─┬─ integers, zero point ─▶ MatMulInteger ─▶ Cast ─▶ Mul ─▶ Add(bias) ─▶ ..
//!                         └─ scale ─▶ Mul(scale of b) ────────────────────────┘
//! ```
//!
//! One or two dispatches quantise, and every product is another one. The sums are floats as soon as they are
//! scaled; from there on a product grows as one of floats does.

use snlp_passes::ir::{Binary, DType, Node, NodeId, Op, ValueId};

use super::chain::Product;
use super::linear::Operands;
use super::{Done, Located, Lowering, unsupported};
use crate::kernels::{DynamicQuantize, Epilogue, MatmulInteger, Scalar};
use crate::schedule::views;

/// A factor of a product's scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    value: ValueId,
    /// A value of the shape to which it broadcasts,
    like: ValueId,
    /// and one of the shape in which it is then read.
    seen: ValueId,
}

impl Lowering<'_> {
    /// Takes the cast and the scales behind a product of integers; whether they are there.
    pub(super) fn scale_product(&mut self, product: &mut Product) -> bool {
        let Some((scales, nodes, out)) = self.scales_of(product.node) else { return false };
        product.scales = scales;
        product.out = out;
        self.absorbed.extend(nodes);
        true
    }

    /// The scales of a product of integers, what computes them and the floats but for the last node, and the floats.
    fn scales_of(&self, id: NodeId) -> Option<(Vec<Factor>, Vec<NodeId>, ValueId)> {
        let integers = self.graph.node(id)?;
        let sum = *integers.outputs.first()?;
        if [integers.input(0)?, integers.input(1)?]
            .iter()
            .any(|v| self.graph.shape(*v).map_or(0, <[_]>::len) < 2)
        {
            return None;
        }
        let cast = self.only_user(sum)?;
        let floats = self.of_device(cast, &Op::Cast { to: DType::F32 })?.outputs[0];
        let last = self.only_user(floats)?;
        let scaled = self.of_device(last, &Op::Binary(Binary::Mul))?;
        let out = scaled.outputs[0];
        let scale = match [scaled.input(0)?, scaled.input(1)?] {
            [a, b] if a == b => return None,
            [a, b] if a == floats => b,
            [a, _] => a,
        };
        if self.dtype(scale) != DType::F32 || self.graph.shape(out) != self.graph.shape(sum) {
            return None;
        }
        let mut nodes = vec![id, cast];
        let factors = match self.factors_of(scale, last) {
            Some((factors, more)) => {
                nodes.extend(more);
                factors
            }
            None => vec![Factor { value: scale, like: scale, seen: scale }],
        };
        Some((factors, nodes, out))
    }

    /// The factors of a scale that one node reads, and what multiplies them.
    fn factors_of(&self, scale: ValueId, reader: NodeId) -> Option<(Vec<Factor>, Vec<NodeId>)> {
        let (mut at, mut reader, mut nodes) = (scale, reader, vec![]);
        loop {
            let id = self.graph.producer(at).filter(|_| self.only_user(at) == Some(reader))?;
            let node = self.graph.node(id).filter(|_| self.is_free(id))?;
            nodes.push(id);
            match node.op {
                Op::Identity | Op::Reshape { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } => {
                    (at, reader) = (node.input(0)?, id);
                }
                Op::Binary(Binary::Mul) => {
                    let factor = |value| Factor { value, like: at, seen: scale };
                    return Some((vec![factor(node.input(0)?), factor(node.input(1)?)], nodes));
                }
                _ => return None,
            }
        }
    }

    /// Whether a node runs on the device and belongs to nothing yet.
    fn is_free(&self, id: NodeId) -> bool {
        !self.is_taken(id) && !self.placement.host[id.index()]
    }

    fn of_device(&self, id: NodeId, op: &Op) -> Option<&Node> {
        self.graph.node(id).filter(|n| n.op == *op && self.is_free(id))
    }

    /// Whether the kernel binds one more summand of a product.
    pub(super) fn has_room_to_add(&self, product: &Product) -> bool {
        let integers = self.graph.node(product.node).filter(|n| n.op == Op::MatMulInteger);
        let Some(node) = integers else { return true };
        let added = usize::from(product.bias.is_some()) + usize::from(product.residual.is_some());
        let buffers = node.operands().count() + product.scales.len() + added + 1;
        buffers < self.limits.max_storage_buffers as usize
    }

    /// A product of integers with its epilogue.
    pub(super) fn scaled_product(&mut self, name: &str, node: &Node, product: &Product) -> Done {
        let [Some(a), Some(b)] = [node.input(0), node.input(1)] else {
            return unsupported("an operand is missing");
        };
        let (a, b) = (self.matrix(a)?, self.matrix(b)?);
        let operands = self.arranged(name, product, (&a, &b, &None), product.out, None)?;
        let mut scales = vec![];
        for factor in &product.scales {
            scales.push(self.factor(name, factor)?);
        }
        self.multiply_integers(name, node, &operands, Some((product, &scales)))?;
        self.set(product.out, operands.made);
        Ok(())
    }

    /// A factor as the product's shape has it, but for leading axes.
    fn factor(&mut self, name: &str, factor: &Factor) -> Done<Located> {
        let at = self.located(factor.value)?;
        let at = self.as_words(name, at)?;
        let (like, seen) = (self.shape(factor.like)?, self.shape(factor.seen)?);
        let Some(view) = views::broadcast(&at.view, &like) else {
            return unsupported(format!("a scale of {:?} for {like:?}", at.view));
        };
        let wide = Located { view, ..at };
        if let Some(view) = views::reshape(&wide.view, &seen) {
            return Ok(Located { view, ..wide });
        }
        let dense = self.copied(name, &wide)?;
        match views::reshape(&dense.view, &seen) {
            Some(view) => Ok(Located { view, ..dense }),
            None => unsupported(format!("a scale of {like:?} as {seen:?}")),
        }
    }

    /// A product of integers that stay integers.
    pub(super) fn integer_product(&mut self, node: &Node) -> Done {
        let name = self.name(node);
        let [Some(a), Some(b)] = [node.input(0), node.input(1)] else {
            return unsupported("an operand is missing");
        };
        let (a, b) = (self.matrix(a)?, self.matrix(b)?);
        let out = self.result(node.outputs[0])?;
        self.multiply_integers(&name, node, &Operands::plain(a, b, None, out.clone()), None)?;
        self.set(node.outputs[0], out);
        Ok(())
    }

    fn multiply_integers(
        &mut self,
        name: &str,
        node: &Node,
        operands: &Operands,
        scaled: Option<(&Product, &[Located])>,
    ) -> Done {
        if operands.out.view.is_empty() {
            return Ok(());
        }
        let zero_a = node.input(2).map(|v| self.matrix(v)).transpose()?;
        let zero_b = node.input(3).map(|v| self.matrix(v)).transpose()?;
        let scales = scaled.map_or(&[][..], |(_, scales)| scales);
        let read = [
            Some(&operands.a),
            Some(&operands.b),
            zero_a.as_ref(),
            zero_b.as_ref(),
            scales.first(),
            scales.get(1),
            operands.bias.as_ref(),
            operands.residual.as_ref(),
            Some(&operands.out),
        ];
        let mut bound = vec![];
        for at in read {
            bound.push(at.map(|at| self.bind(at)).transpose()?);
        }
        let operand = |i: usize| bound[i].as_ref().map(|b| &b.operand);
        let (Some(a), Some(b), Some(out)) = (operand(0), operand(1), operand(8)) else {
            return unsupported("an operand is missing");
        };
        let epilogue = scaled.map(|(product, _)| Epilogue {
            scales: [operand(4), operand(5)],
            bias: operand(6),
            activation: product.activation,
            alpha: product.alpha,
            residual: operand(7),
        });
        let (zero_a, zero_b) = (operand(2), operand(3));
        let launch = MatmulInteger { a, b, zero_a, zero_b, epilogue, out }.launch(self.limits)?;
        let bound: Vec<_> = bound.iter().flatten().collect();
        self.emit(name, launch, &bound)
    }

    /// Integers, scale and zero point in one dispatch, or in two where there are many elements.
    pub(super) fn dynamic_quantize(&mut self, node: &Node, axes: &[usize]) -> Done {
        let name = self.name(node);
        let (Some(v), [integers, scale, zero]) = (node.input(0), &node.outputs[..]) else {
            return unsupported("an operand or a result is missing");
        };
        let x = self.in_words(&name, v)?;
        let to = [self.result(*integers)?, self.result(*scale)?, self.result(*zero)?];
        if !to[1].view.is_empty() {
            let bx = self.bind(&x)?;
            let [bi, bs, bz] = [self.bind(&to[0])?, self.bind(&to[1])?, self.bind(&to[2])?];
            let (x, integers, scale, zero) = (&bx.operand, &bi.operand, &bs.operand, &bz.operand);
            let kernel = DynamicQuantize { x, axes, integers, scale, zero };
            match kernel.partial_shape(self.limits) {
                None => {
                    let launch = kernel.launch(self.limits)?;
                    self.emit(&name, launch, &[&bx, &bi, &bs, &bz])?;
                }
                Some(shape) => {
                    let partial = self.fresh(&shape, Scalar::F32);
                    let partial = self.bind(&partial)?;
                    let launch = kernel.extremes(&partial.operand, self.limits)?;
                    self.emit(&name, launch, &[&bx, &partial])?;
                    let launch = kernel.quantize(&partial.operand, self.limits)?;
                    self.emit(&name, launch, &[&bx, &partial, &bi, &bs, &bz])?;
                }
            }
        }
        for (v, at) in node.outputs.iter().zip(to) {
            self.set(*v, at);
        }
        Ok(())
    }
}
