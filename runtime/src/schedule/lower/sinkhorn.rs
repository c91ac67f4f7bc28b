//! Chains of divisions by sums of rows and columns in one dispatch.
//!
//! ```text
//!   x ─┬────────────────▶ Div ─┬──────────────────▶ Div ─▶ ..
//!      └▶ ReduceSum(row) ─┘    └▶ ReduceSum(column) ─┘
//! ```

use snlp_passes::ir::{Binary, Node, NodeId, Op, Reduce, ValueId};

use super::{Done, Lowering};
use crate::kernels::{SINKHORN_ELEMENTS, SINKHORN_STEPS, Sinkhorn, Sums};

/// A chain of divisions, known by the last of them.
#[derive(Clone, Debug)]
pub(super) struct Balance {
    x: ValueId,
    steps: Vec<Sums>,
    epsilon: f32,
}

/// One division.
struct Division {
    x: ValueId,
    sums: Sums,
    epsilon: f32,
    /// What computes it.
    nodes: Vec<NodeId>,
}

impl<'g> Lowering<'g> {
    /// Finds the chains, each from its last division, in the order `live`.
    pub(super) fn find_balances(&mut self, live: &[NodeId]) {
        for id in live.iter().rev() {
            if self.is_taken(*id) {
                continue;
            }
            let Some(last) = self.division(*id) else { continue };
            let mut balance = Balance { x: last.x, steps: vec![last.sums], epsilon: last.epsilon };
            let mut nodes = last.nodes;
            while balance.steps.len() < SINKHORN_STEPS
                && self.read_by_one_division(balance.x, &nodes)
                && let Some(before) = self.graph.producer(balance.x).and_then(|n| self.division(n))
                && before.epsilon == balance.epsilon
            {
                balance.x = before.x;
                balance.steps.push(before.sums);
                nodes.extend(before.nodes);
            }
            balance.steps.reverse();
            self.absorbed.extend(nodes.iter().filter(|n| *n != id));
            self.chains.balances.insert(*id, balance);
        }
    }

    /// Whether only nodes of a chain read a value.
    fn read_by_one_division(&self, v: ValueId, nodes: &[NodeId]) -> bool {
        !self.results.contains(&v) && self.users[v.index()].iter().all(|user| nodes.contains(user))
    }

    /// `x / (ReduceSum(x) + epsilon)` over one of the last two axes, where nothing else reads the sum.
    fn division(&mut self, id: NodeId) -> Option<Division> {
        let node = self.on_device_as(id, &Op::Binary(Binary::Div))?;
        let (x, mut sum) = (node.input(0)?, node.input(1)?);
        let mut nodes = vec![id];
        let mut epsilon = 0.0;
        if let Some(add) = self.graph.producer(sum).filter(|_| self.only_user(sum) == Some(id))
            && let Some(node) = self.on_device_as(add, &Op::Binary(Binary::Add))
        {
            let (a, b) = (node.input(0)?, node.input(1)?);
            let (value, other) = if self.graph.tensor(b).is_some() { (b, a) } else { (a, b) };
            epsilon = *self.statics.get(value).filter(|t| t.len() == 1)?.to_f32().first()?;
            nodes.push(add);
            sum = other;
        }
        let reduce = self.graph.producer(sum).filter(|_| self.only_user(sum) == nodes.last().copied())?;
        let reducing = self.graph.node(reduce).filter(|_| !self.is_taken(reduce))?;
        let Op::Reduce { op: Reduce::Sum, axes, keepdims: true } = &reducing.op else { return None };
        nodes.push(reduce);
        let shape = self.shape(x).ok()?;
        let rank = shape.len();
        let sums = match axes[..] {
            [axis] if axis + 1 == rank => Sums::Rows,
            [axis] if axis + 2 == rank => Sums::Columns,
            _ => return None,
        };
        let small = rank >= 2 && shape[rank - 2].saturating_mul(shape[rank - 1]) <= SINKHORN_ELEMENTS;
        let fits = small && reducing.input(0) == Some(x) && self.shape(node.outputs[0]).ok()? == shape;
        (fits && self.dtype(x).is_float()).then_some(Division { x, sums, epsilon, nodes })
    }

    /// A node of this operator that runs on the device and belongs to nothing yet.
    fn on_device_as(&self, id: NodeId, op: &Op) -> Option<&'g Node> {
        let free = !self.is_taken(id) && !self.placement.host[id.index()];
        self.graph.node(id).filter(|n| free && n.op == *op)
    }

    pub(super) fn balance(&mut self, node: &Node, balance: &Balance) -> Done {
        self.of_one(node, balance.x, |x, out, limits| {
            let (x, out) = (&x.operand, &out.operand);
            Ok(Sinkhorn { x, out, steps: &balance.steps, epsilon: balance.epsilon }.launch(limits)?)
        })
    }
}
