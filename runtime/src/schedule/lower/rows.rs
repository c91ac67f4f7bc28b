//! Nodes that work along axes: normalisations, softmax, reductions, scans, extrema.

use snlp_passes::ir::{Node, Op, ValueId};

use super::chain::{Scaled, norm_of};
use super::{Bound, Done, Located, Lowering, unsupported};
use crate::kernels::{ArgMax, CumSum, Launch, Limits, Norm, NormKind, Reduce, Softmax, TopK};
use crate::schedule::views;

/// A normalisation's operands.
pub(super) struct Normed {
    pub x: Located,
    pub kind: NormKind,
    /// Number of trailing axes normalised together.
    pub axes: usize,
    pub epsilon: f32,
    pub scale: Option<Located>,
    pub bias: Option<Located>,
}

impl Lowering<'_> {
    pub(super) fn rows(&mut self, node: &Node) -> Done {
        match &node.op {
            Op::Softmax { axis } | Op::LogSoftmax { axis } => {
                let log = matches!(node.op, Op::LogSoftmax { .. });
                self.one_to_one(node, |x, out, limits| {
                    Ok(Softmax { x: &x.operand, out: &out.operand, axis: *axis, log }.launch(limits)?)
                })
            }
            Op::Reduce { op, axes, .. } => self.one_to_one(node, |x, out, limits| {
                Ok(Reduce { x: &x.operand, out: &out.operand, axes, op: *op }.launch(limits)?)
            }),
            Op::CumSum { axis, exclusive, reverse } => self.one_to_one(node, |x, out, limits| {
                let (exclusive, reverse) = (*exclusive, *reverse);
                Ok(CumSum { x: &x.operand, out: &out.operand, axis: *axis, exclusive, reverse }
                    .launch(limits)?)
            }),
            Op::ArgMax { axis, last, .. } | Op::ArgMin { axis, last, .. } => {
                let smallest = matches!(node.op, Op::ArgMin { .. });
                self.one_to_one(node, |x, out, limits| {
                    Ok(ArgMax { x: &x.operand, out: &out.operand, axis: *axis, last: *last, smallest }
                        .launch(limits)?)
                })
            }
            Op::TopK { axis, largest } => self.top_k(node, *axis, !largest),
            other => unsupported(format!("{} has no kernel", other.name())),
        }
    }

    fn top_k(&mut self, node: &Node, axis: usize, smallest: bool) -> Done {
        let name = self.name(node);
        let (Some(v), [values, places]) = (node.input(0), &node.outputs[..]) else {
            return unsupported("an operand or a result is missing");
        };
        let x = self.in_words(&name, v)?;
        let (to, at) = (self.result(*values)?, self.result(*places)?);
        if !to.view.is_empty() {
            let (bx, bv, bp) = (self.bind(&x)?, self.bind(&to)?, self.bind(&at)?);
            let (x, values, places) = (&bx.operand, &bv.operand, &bp.operand);
            let launch = TopK { x, values, places, axis, smallest }.launch(self.limits)?;
            self.emit(&name, launch, &[&bx, &bv, &bp])?;
        }
        self.set(*values, to);
        self.set(*places, at);
        Ok(())
    }

    /// A node of one operand and one result.
    pub(super) fn one_to_one(
        &mut self,
        node: &Node,
        launch: impl FnOnce(&Bound, &Bound, &Limits) -> Done<Launch>,
    ) -> Done {
        match node.input(0) {
            Some(v) => self.of_one(node, v, launch),
            None => unsupported("the operand is missing"),
        }
    }

    /// A node's one result, made of one value.
    pub(super) fn of_one(
        &mut self,
        node: &Node,
        v: ValueId,
        launch: impl FnOnce(&Bound, &Bound, &Limits) -> Done<Launch>,
    ) -> Done {
        let name = self.name(node);
        let x = self.in_words(&name, v)?;
        let out = self.result(node.outputs[0])?;
        if !out.view.is_empty() {
            let (bx, bo) = (self.bind(&x)?, self.bind(&out)?);
            let launch = launch(&bx, &bo, self.limits)?;
            self.emit(&name, launch, &[&bx, &bo])?;
        }
        self.set(node.outputs[0], out);
        Ok(())
    }

    /// What a normalisation reads, as wide as its result, and what it does.
    pub(super) fn normed(&mut self, scaled: &Scaled) -> Done<Normed> {
        let Some(node) = self.graph.node(scaled.node) else {
            return unsupported("the normalisation is missing");
        };
        let Some((kind, axis, epsilon)) = norm_of(&node.op) else {
            return unsupported("not a normalisation");
        };
        let Some(v) = node.input(0) else { return unsupported("the operand is missing") };
        let mut x = self.located(v)?;
        let axes = x.view.shape.len().saturating_sub(axis);
        let scale = scaled.scale.map(|v| self.located(v)).transpose()?;
        let bias = scaled.bias.map(|v| self.located(v)).transpose()?;
        // Factors per unit spread the result over the units.
        let shape = self.shape(scaled.out)?;
        match views::broadcast(&x.view, &shape) {
            Some(view) => x.view = view,
            None => return unsupported(format!("{:?} normalised into {shape:?}", x.view)),
        }
        Ok(Normed { x, kind, axes, epsilon, scale, bias })
    }

    /// A normalisation with its factors; `last` is the node whose result it computes.
    pub(super) fn norm(&mut self, last: &Node, scaled: &Scaled) -> Done {
        let Some(node) = self.graph.node(scaled.node) else { return Ok(()) };
        if node.outputs.iter().skip(1).any(|v| !self.users[v.index()].is_empty() || self.results.contains(v))
        {
            return unsupported("the mean and deviation as results");
        }
        let name = self.name(last);
        let Normed { x, kind, axes, epsilon, scale, bias } = self.normed(scaled)?;
        let out = self.result(scaled.out)?;
        if !out.view.is_empty() {
            let (bx, bo) = (self.bind(&x)?, self.bind(&out)?);
            let scale = scale.map(|f| self.bind(&f)).transpose()?;
            let bias = bias.map(|f| self.bind(&f)).transpose()?;
            let launch = Norm {
                x: &bx.operand,
                scale: scale.as_ref().map(|b| &b.operand),
                bias: bias.as_ref().map(|b| &b.operand),
                out: &bo.operand,
                axes,
                epsilon,
                kind,
            }
            .launch(self.limits)?;
            let bound = [&bx, scale.as_ref().unwrap_or(&bx), bias.as_ref().unwrap_or(&bx), &bo];
            self.emit(&name, launch, &bound)?;
        }
        self.set(scaled.out, out);
        Ok(())
    }
}
