//! Attention, rotary embedding, the Newton correction, convolution: one node, one kernel.

use snlp_passes::ir::{Node, Op, ValueId};

use super::{Bound, Done, Located, Lowering, unsupported};
use crate::kernels::{Attention, Conv, Correction, HeadPart, Heads, Launch, Limits};

impl Lowering<'_> {
    pub(super) fn block(&mut self, node: &Node) -> Done {
        match &node.op {
            Op::Attention(attributes) => self.with_operands(node, 3, |o, out, limits| {
                let [q, k, v, rest @ ..] = o else { return unsupported("q, k or v is missing") };
                let mut rest = rest.iter().map(|o| &o.operand);
                let mask = node.input(3).and_then(|_| rest.next());
                let sinks = node.input(4).and_then(|_| rest.next());
                let position = node.input(5).and_then(|_| rest.next());
                let (q, k, v, out) = (&q.operand, &k.operand, &v.operand, &out.operand);
                let kernel = Attention { q, k, v, mask, sinks, position, out, attributes: *attributes };
                Ok((kernel.launch(limits)?, 6))
            }),
            Op::Rotary(attributes) => self.with_operands(node, 3, |o, out, limits| {
                let [x, cos, sin, ..] = o else { return unsupported("a table is missing") };
                let tables = Some([&cos.operand, &sin.operand]);
                let part = HeadPart { x: &x.operand, norm: None, tables, out: &out.operand, append: false };
                let kernel = Heads { parts: vec![part], rotary: Some(*attributes), position: None };
                Ok((kernel.launch(limits)?, 3))
            }),
            Op::Correction(attributes) => self.with_operands(node, 2, |o, out, limits| {
                let [f, s, rest @ ..] = o else { return unsupported("f or s is missing") };
                let t = rest.first().map(|t| &t.operand);
                let (f, s) = (&f.operand, &s.operand);
                let kernel = Correction { f, s, t, out: &out.operand, attributes: *attributes };
                Ok((kernel.launch(limits)?, 3))
            }),
            Op::Conv { window, group } => self.with_operands(node, 2, |o, out, limits| {
                let [x, w, rest @ ..] = o else { return unsupported("x or w is missing") };
                let bias = rest.first().map(|b| &b.operand);
                let group = u32::try_from(*group).unwrap_or(u32::MAX);
                let kernel = Conv { x: &x.operand, w: &w.operand, bias, out: &out.operand, window, group };
                Ok((kernel.launch(limits)?, 3))
            }),
            other => unsupported(format!("{} has no kernel", other.name())),
        }
    }

    /// A node of several f32 (or bool) operands and one result. `launch` also says how many bindings the
    /// kernel reads: absent operands are bound as the first.
    fn with_operands(
        &mut self,
        node: &Node,
        at_least: usize,
        launch: impl FnOnce(&[Bound], &Bound, &Limits) -> Done<(Launch, usize)>,
    ) -> Done {
        let name = self.name(node);
        let operands: Vec<ValueId> = node.operands().collect();
        if operands.len() < at_least {
            return unsupported(format!("{} of {at_least} operands", operands.len()));
        }
        let mut located: Vec<Located> = vec![];
        for v in operands {
            located.push(self.in_words(&name, v)?);
        }
        let out = self.result(node.outputs[0])?;
        if !out.view.is_empty() {
            let bound = located.iter().map(|l| self.bind(l)).collect::<Done<Vec<_>>>()?;
            let to = self.bind(&out)?;
            let (launch, reads) = launch(&bound, &to, self.limits)?;
            let Some(first) = bound.first() else { return unsupported("no operand") };
            let mut present = bound.iter();
            let mut all: Vec<&Bound> =
                (0..reads).map(|i| node.input(i).and_then(|_| present.next()).unwrap_or(first)).collect();
            all.push(&to);
            self.emit(&name, launch, &all)?;
        }
        self.set(node.outputs[0], out);
        Ok(())
    }
}
