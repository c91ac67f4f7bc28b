//! Comparing two layers node by node.
//!
//! Two layers are of one class when the layer-parallel rewrite can evaluate them as one batched
//! computation: the same events, and branches that are the same operators on operands that correspond.
//! Corresponding float constants may differ in content (they are stacked), so may large integer ones and
//! values from outside the chain; small integer constants may not: they are shapes, axes and bounds (but to
//! operators that quantise, which have zero points).

use std::collections::{HashMap, HashSet};

use super::chain::Layer;
use super::region::Reach;
use super::stream::Event;
use crate::ir::{Def, Graph, Node, Op, ValueId};

/// Unnamed nodes that a description passes on its way to a name.
const STEPS: usize = 4;

/// Why a rule declined, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason} (at {at})")]
pub struct Mismatch {
    /// What differs or is missing.
    pub reason: String,
    /// The node.
    pub at: String,
}

impl Mismatch {
    /// A mismatch at the node that makes `v`.
    pub(crate) fn at_value(graph: &Graph, v: ValueId, reason: impl Into<String>) -> Self {
        Mismatch { reason: reason.into(), at: describe(graph, v) }
    }
}

/// The name of the node that makes `v`, or of the value itself.
pub(crate) fn describe(graph: &Graph, v: ValueId) -> String {
    match graph.producing(v) {
        Some(node) if !node.name.is_empty() => format!("node '{}'", node.name),
        Some(node) => match &graph.value(v).name {
            Some(name) => format!("{} '{name}'", node.op.name()),
            None => format!("{} {}", node.op.name(), origin(graph, node)).trim_end().to_string(),
        },
        None => graph.value(v).name.clone().map_or_else(|| "an unnamed value".into(), |n| format!("'{n}'")),
    }
}

/// What an unnamed node computes from, up to the nearest name: `of Mul of '/Slice'`.
fn origin(graph: &Graph, node: &Node) -> String {
    let mut text = String::new();
    let mut node = node;
    for _ in 0..STEPS {
        let varying = node.operands().find(|v| graph.tensor(*v).is_none());
        let Some(v) = varying.or_else(|| node.operands().next()) else { break };
        let before = graph.producing(v);
        let name = before.map(|n| &n.name).filter(|n| !n.is_empty()).or(graph.value(v).name.as_ref());
        if let Some(name) = name {
            return text + &format!("of '{name}'");
        }
        let Some(before) = before else { break };
        text += &format!("of {} ", before.op.name());
        node = before;
    }
    text
}

/// Whether `a` and `b` are of one class; if not, the first difference.
pub fn same_class(graph: &Graph, a: &Layer, b: &Layer, reach: &Reach) -> Result<(), Mismatch> {
    if a.skeleton() != b.skeleton() {
        let reason = "the layers differ in the number or order of their sub-blocks";
        return Err(Mismatch::at_value(graph, b.output, reason));
    }
    let index = |layer: &Layer| -> HashMap<ValueId, usize> {
        layer.states().into_iter().enumerate().map(|(i, v)| (v, i)).collect()
    };
    let mut walk = Lockstep { graph, reach, a: index(a), b: index(b), seen: HashSet::new() };
    for (ea, eb) in a.events.iter().zip(&b.events) {
        match (ea, eb) {
            (Event::Join { branch: x, .. }, Event::Join { branch: y, .. }) => walk.compare(*x, *y)?,
            _ => walk.nodes(ea.output(), eb.output())?,
        }
    }
    Ok(())
}

/// Operators to which small integer constants are data: zero points and quantised vectors.
fn quantises(op: &Op) -> bool {
    matches!(op, Op::Quantize { .. } | Op::Dequantize { .. } | Op::MatMulInteger)
}

struct Lockstep<'g> {
    graph: &'g Graph,
    reach: &'g Reach,
    a: HashMap<ValueId, usize>,
    b: HashMap<ValueId, usize>,
    seen: HashSet<(ValueId, ValueId)>,
}

impl Lockstep<'_> {
    /// Compares what makes two values, whatever the values themselves are.
    fn nodes(&mut self, x: ValueId, y: ValueId) -> Result<(), Mismatch> {
        let mut stack = Vec::new();
        self.operands(x, y, &mut stack)?;
        while let Some((x, y)) = stack.pop() {
            self.visit(x, y, &mut stack)?;
        }
        Ok(())
    }

    fn compare(&mut self, x: ValueId, y: ValueId) -> Result<(), Mismatch> {
        let mut stack = vec![(x, y)];
        while let Some((x, y)) = stack.pop() {
            self.visit(x, y, &mut stack)?;
        }
        Ok(())
    }

    fn visit(&mut self, x: ValueId, y: ValueId, stack: &mut Vec<(ValueId, ValueId)>) -> Result<(), Mismatch> {
        if !self.seen.insert((x, y)) {
            return Ok(());
        }
        match (self.a.get(&x), self.b.get(&y)) {
            (Some(i), Some(j)) if i == j => return Ok(()),
            // The chain's input is both the first layer's state and a side input of all layers.
            _ if x == y => return Ok(()),
            (None, None) => {}
            _ => {
                return Err(Mismatch::at_value(
                    self.graph,
                    y,
                    "one layer reads its state where the other does not",
                ));
            }
        }
        if let (Def::Constant(s), Def::Constant(t)) = (&self.graph.value(x).def, &self.graph.value(y).def) {
            let data = s.dtype().is_float() || s.len() > crate::infer::MAX_CONTENT;
            let alike = s.dtype() == t.dtype() && s.shape() == t.shape() && (data || s == t);
            return if alike {
                Ok(())
            } else {
                Err(Mismatch::at_value(self.graph, y, format!("constants {s:?} and {t:?} differ")))
            };
        }
        let outside = !self.reach.contains(x) && !self.reach.contains(y);
        match self.operands(x, y, stack) {
            Err(_) if outside && self.graph.ty(x) == self.graph.ty(y) => Ok(()),
            result => result,
        }
    }

    fn operands(&self, x: ValueId, y: ValueId, stack: &mut Vec<(ValueId, ValueId)>) -> Result<(), Mismatch> {
        let differ = |what: String| Err(Mismatch::at_value(self.graph, y, what));
        let (Def::Node(nx, ix), Def::Node(ny, iy)) = (&self.graph.value(x).def, &self.graph.value(y).def)
        else {
            return differ("one is computed, the other is not".into());
        };
        let (Some(m), Some(n)) = (self.graph.node(*nx), self.graph.node(*ny)) else {
            return differ("an operand was removed".into());
        };
        if m.op != n.op || ix != iy {
            return differ(format!("operators differ: {:?} and {:?}", m.op, n.op));
        }
        if m.inputs.len() != n.inputs.len()
            || m.inputs.iter().zip(&n.inputs).any(|(p, q)| p.is_some() != q.is_some())
        {
            return differ(format!("{} has different operands", m.op.name()));
        }
        let pairs = m.inputs.iter().zip(&n.inputs).filter_map(|(p, q)| Some(((*p)?, (*q)?)));
        stack.extend(pairs.filter(|(p, q)| !(quantises(&m.op) && self.alike(*p, *q))));
        Ok(())
    }

    /// Constants of one type.
    fn alike(&self, x: ValueId, y: ValueId) -> bool {
        let both = self.graph.tensor(x).is_some() && self.graph.tensor(y).is_some();
        both && self.graph.ty(x) == self.graph.ty(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Binary, DType, Dim, Tensor, Type, Unary};

    #[test]
    fn what_has_no_name_is_told_by_its_operator_and_a_name_nearby() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Type::new(DType::F32, vec![Dim::symbol("t")]));
        let named = g.add_named("/Exp", Op::Unary(Unary::Exp), &[x]).unwrap();
        let two = g.constant(Tensor::scalar(2f32));
        let twice = g.add(Op::Binary(Binary::Mul), &[two, named]).unwrap();
        let neg = g.add(Op::Unary(Unary::Neg), &[twice]).unwrap();
        let of_input = g.add(Op::Unary(Unary::Neg), &[x]).unwrap();
        let of_constant = g.add(Op::Unary(Unary::Neg), &[two]).unwrap();
        assert_eq!(describe(&g, x), "'x'");
        assert_eq!(describe(&g, named), "node '/Exp'");
        assert_eq!(describe(&g, twice), "Mul of '/Exp'");
        assert_eq!(describe(&g, neg), "Neg of Mul of '/Exp'");
        assert_eq!(describe(&g, of_input), "Neg of 'x'");
        assert_eq!(describe(&g, of_constant), "Neg");
        g.set_name(neg, "sin");
        assert_eq!(describe(&g, neg), "Neg 'sin'");
    }
}
