//! Products of one left operand in one dispatch, with the norm that makes it.
//!
//! ```text
//!   RmsNorm ─┬▶ MatMul(q) ─▶ Add
//!            ├▶ MatMul(k)             one dispatch, three results
//!            └▶ MatMul(v)
//!
//!   RmsNorm ─┬▶ MatMul(gate) ─▶ Silu ─▶ Mul      one dispatch, one result
//!            └▶ MatMul(up) ─────────────┘
//! ```
//!
//! Gate and up may be the two halves of one product, told apart by slices. A group is computed where its first product
//! stands. So whatever it reads must be there already: it lies on an earlier level of the graph than the products. Where
//! a kernel refuses a group, its members are computed one by one.

use std::collections::HashMap;

use snlp_passes::ir::{Binary, Node, NodeId, Op, ValueId};

use super::chain::{Added, Product, Scaled, epilogue, norm_of};
use super::linear::Operands;
use super::{Done, Failure, Home, Lowering, unsupported};
use crate::kernels::{Activation, MAX_PARTS, Scalar, takes_norm};
use crate::schedule::constants::scalar_bytes;

/// Products of one dispatch.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// The norm that makes their left operand and that nothing else reads.
    norm: Option<Scaled>,
    products: Vec<Product>,
    /// The product of the two, instead of each.
    gate: Option<NodeId>,
    /// Where the two are halves of one: that, and what stands between it and the gate, in order.
    whole: Option<(Product, Vec<NodeId>)>,
}

impl Group {
    fn of(products: Vec<Product>, gate: Option<NodeId>) -> Self {
        Group { norm: None, products, gate, whole: None }
    }
}

impl Lowering<'_> {
    /// Groups the products that were found, in the order `live`.
    pub(super) fn find_groups(&mut self, live: &[NodeId], levels: &[usize]) {
        let mut lefts: Vec<ValueId> = vec![];
        let mut by_left: HashMap<ValueId, Vec<Product>> = HashMap::new();
        let ends = self.chains.products.values().map(|p| (p.node, p.clone()));
        let mut ends: HashMap<NodeId, Product> = ends.collect();
        for product in live.iter().filter_map(|id| ends.remove(id)) {
            if let Some(left) = self.left_of_group(&product, levels) {
                let found = by_left.entry(left).or_default();
                if found.is_empty() {
                    lefts.push(left);
                }
                found.push(product);
            }
        }
        for left in lefts {
            let mut alone = by_left.remove(&left).unwrap_or_default();
            let mut groups: Vec<Group> = vec![];
            while let Some((first, second, gate)) = self.gate_among(&alone) {
                let second = alone.remove(second);
                let first = alone.remove(first);
                // The factor with a function comes first.
                let plain = first.activation == Activation::None;
                let products = if plain { vec![second, first] } else { vec![first, second] };
                groups.push(Group::of(products, Some(gate)));
            }
            for product in alone {
                if let Some(group) = self.halves_of(&product) {
                    groups.push(group);
                    continue;
                }
                match groups.iter_mut().find(|g| self.has_room_for(g, &product)) {
                    Some(group) => group.products.push(product),
                    None => groups.push(Group::of(vec![product], None)),
                }
            }
            let norm = self.norm_for(left, &groups);
            if norm.is_some()
                && let Some(last) = self.graph.producer(left)
            {
                self.chains.norms.remove(&last);
                self.absorbed.insert(last);
            }
            for mut group in groups {
                group.norm.clone_from(&norm);
                if group.products.len() > 1 || norm.is_some() {
                    self.form(group, live);
                }
            }
        }
    }

    /// What a product that may join others reads from the left.
    fn left_of_group(&self, product: &Product, levels: &[usize]) -> Option<ValueId> {
        let node = self.graph.node(product.node)?;
        let (left, right) = (node.input(0)?, node.input(1)?);
        let plain = match node.op {
            Op::MatMul => true,
            Op::Gemm { alpha, trans_a, .. } => alpha == 1.0 && !trans_a,
            _ => false,
        };
        let device = |v: ValueId| self.graph.producer(v).is_some_and(|p| !self.placement.host[p.index()]);
        let ranks = [left, right].map(|v| self.graph.shape(v).map_or(0, <[_]>::len));
        if !plain || left == right || !device(left) || ranks.iter().any(|r| *r < 2) {
            return None;
        }
        let level = |v: ValueId| self.graph.producer(v).map_or(0, |p| levels[p.index()] + 1);
        let own = levels[product.node.index()];
        let early =
            [&product.bias, &product.residual].into_iter().flatten().all(|addend| match addend.what {
                Added::Value(v) => level(v) <= own,
                Added::Tensor(_) => true,
            });
        let bindable = [left, right, product.out].into_iter().all(|v| {
            let elements = self.shape(v).map_or(u64::MAX, |s| s.iter().map(|d| u64::from(*d)).product());
            elements < u64::MAX / 8 && scalar_bytes(Scalar::F32, elements) <= self.limits.max_storage_binding
        });
        // All that a group reads is there as soon as the left operand is.
        (product.contract.is_empty() && own == level(left) && early && bindable).then_some(left)
    }

    /// Two of the products whose results are multiplied with each other and read by nothing else.
    fn gate_among(&self, products: &[Product]) -> Option<(usize, usize, NodeId)> {
        let whole = |p: &Product| p.residual.is_none() && p.alpha == 1.0;
        for (j, second) in products.iter().enumerate() {
            let Some(gate) = self.only_user(second.out).filter(|g| !self.is_taken(*g)) else { continue };
            let Some(node) = self.graph.node(gate).filter(|n| n.op == Op::Binary(Binary::Mul)) else {
                continue;
            };
            if self.placement.host[gate.index()] {
                continue;
            }
            for (i, first) in products.iter().enumerate().take(j) {
                let both = [node.input(0), node.input(1)];
                let factors = [Some(first.out), Some(second.out)];
                let swapped = [factors[1], factors[0]];
                let shape = |v: ValueId| self.graph.shape(v);
                let alike =
                    shape(first.out) == shape(second.out) && shape(first.out) == shape(node.outputs[0]);
                if (both == factors || both == swapped)
                    && self.only_user(first.out) == Some(gate)
                    && alike
                    && whole(first)
                    && whole(second)
                    && self.are_alike(first, second)
                {
                    return Some((i, j, gate));
                }
            }
        }
        None
    }

    /// A product of which one half of the columns, behind a function, is multiplied with the other.
    fn halves_of(&mut self, product: &Product) -> Option<Group> {
        let whole = product.is_biased() && !self.results.contains(&product.out);
        let slices = match self.users[product.out.index()][..] {
            [a, b] if whole => [a, b],
            _ => return None,
        };
        let last = self.shape(product.out).ok()?.len().checked_sub(1)?;
        let wide = *self.shape(product.out).ok()?.last()?;
        let mut halves = vec![];
        for slice in slices {
            let node = self.graph.node(slice).filter(|_| !self.placement.host[slice.index()])?;
            let out = node.outputs[0];
            let (Op::Slice { axes, steps }, Some(start)) = (&node.op, node.input(1)) else { return None };
            let start = *self.statics.ints(start)?.first()?;
            let width = *self.shape(out).ok()?.last()?;
            if axes[..] != [last]
                || steps[..] != [1]
                || node.input(0) != Some(product.out)
                || 2 * width != wide
            {
                return None;
            }
            let start = u32::try_from(if start < 0 { start + i64::from(wide) } else { start }).ok()?;
            let mut half = Product { columns: Some((start, width)), out, ..product.clone() };
            half.bias.iter_mut().for_each(|bias| bias.like = out);
            let mut nodes = vec![slice];
            let mut user = self.only_user(out)?;
            if let Some(Node { op: Op::Unary(u), outputs, .. }) = self.graph.node(user) {
                half.activation = epilogue(*u)?;
                half.out = outputs[0];
                nodes.push(user);
                user = self.only_user(outputs[0])?;
            }
            if nodes.iter().any(|n| self.is_taken(*n)) {
                return None;
            }
            halves.push((half, nodes, user));
        }
        let [(first, mut nodes, gate), (second, more, other)] = <[_; 2]>::try_from(halves).ok()?;
        let node = self.graph.node(gate).filter(|n| n.op == Op::Binary(Binary::Mul) && gate == other)?;
        let starts = [first.columns?.0, second.columns?.0];
        let apart = starts == [0, wide / 2] || starts == [wide / 2, 0];
        if !apart || self.is_taken(gate) || self.shape(node.outputs[0]).ok()? != self.shape(first.out).ok()? {
            return None;
        }
        nodes.extend(more);
        Some(Group { whole: Some((product.clone(), nodes)), ..Group::of(vec![first, second], Some(gate)) })
    }

    /// Whether right operands are of one type and differ in the number of their columns at most.
    fn are_alike(&self, one: &Product, other: &Product) -> bool {
        let right = |p: &Product| self.graph.node(p.node).and_then(|n| n.input(1));
        let transposed = |p: &Product| {
            let op = self.graph.node(p.node).map(|n| &n.op);
            matches!(op, Some(Op::Gemm { trans_b: true, .. }))
        };
        let (Some(a), Some(b)) = (right(one), right(other)) else { return false };
        let (Some(x), Some(y)) = (self.graph.shape(a), self.graph.shape(b)) else { return false };
        let batch = |shape: &[snlp_passes::ir::Dim]| shape[..shape.len().saturating_sub(2)].to_vec();
        let out = |p: &Product| self.graph.shape(p.out).map(batch);
        self.dtype(a) == self.dtype(b)
            && transposed(one) == transposed(other)
            && batch(x) == batch(y)
            && out(one) == out(other)
    }

    fn has_room_for(&self, group: &Group, product: &Product) -> bool {
        let Some(first) = group.products.first().filter(|_| group.gate.is_none()) else { return false };
        // What a kernel binds at most: the left operand and a norm's factors; then of each part.
        let of = |p: &Product| {
            let right = self.graph.node(p.node).and_then(|n| n.input(1)).and_then(|v| self.graph.producer(v));
            let coded =
                right.and_then(|n| self.graph.node(n)).is_some_and(|n| matches!(n.op, Op::Dequantize { .. }));
            2 + usize::from(p.bias.is_some()) + usize::from(p.residual.is_some()) + if coded { 2 } else { 0 }
        };
        let buffers = 3 + group.products.iter().chain([product]).map(of).sum::<usize>();
        group.products.len() < MAX_PARTS
            && self.are_alike(first, product)
            && buffers <= self.limits.max_storage_buffers as usize
    }

    /// The norm that makes `left`, when only these groups read it and they had better compute it themselves.
    fn norm_for(&self, left: ValueId, groups: &[Group]) -> Option<Scaled> {
        let norm = self.chains.norms.get(&self.graph.producer(left)?)?;
        let node = self.graph.node(norm.node)?;
        let shape = self.shape(left).ok()?;
        let (kind, axis, _) = norm_of(&node.op)?;
        let products = || groups.iter().flat_map(|g| &g.products);
        let readers = &self.users[left.index()];
        let others = readers.iter().any(|r| !products().any(|p| p.node == *r));
        let statistics = node.outputs.iter().skip(1).any(|v| !self.users[v.index()].is_empty());
        if others || statistics || self.results.contains(&left) || axis + 1 != shape.len() {
            return None;
        }
        // Rows of one batch element of the right operand.
        let right = products().next().and_then(|p| self.graph.node(p.node)?.input(1))?;
        let right = self.shape(right).ok()?;
        let batch: u64 = right.iter().rev().skip(2).map(|d| u64::from(*d)).product();
        let rows: u64 = shape.iter().rev().skip(1).map(|d| u64::from(*d)).product();
        let rows = u32::try_from((rows / batch.max(1)).max(1)).unwrap_or(u32::MAX);
        takes_norm(kind, norm.bias.is_some(), rows, self.limits).then(|| norm.clone())
    }

    /// Makes a group known by the first of its products.
    fn form(&mut self, group: Group, live: &[NodeId]) {
        let nodes: Vec<NodeId> = group.products.iter().map(|p| p.node).collect();
        let Some(key) = live.iter().find(|id| nodes.contains(id)).copied() else { return };
        let whole = group.whole.iter().map(|(product, _)| product);
        for product in group.products.iter().chain(whole) {
            if let Some(last) = self.graph.producer(product.out) {
                self.chains.products.remove(&last);
                self.absorbed.insert(last);
            }
            self.absorbed.insert(product.node);
        }
        self.absorbed.extend(group.gate);
        self.absorbed.extend(group.whole.iter().flat_map(|(_, nodes)| nodes));
        self.chains.groups.insert(key, group);
    }

    /// Lowers a group.
    pub(super) fn group(&mut self, group: &Group) -> Done {
        match self.group_at_once(group) {
            Err(Failure::Unsupported(_)) => self.one_by_one(group),
            done => done,
        }
    }

    fn group_at_once(&mut self, group: &Group) -> Done {
        let gate = group.gate.and_then(|g| self.graph.node(g));
        let ends: Vec<&Node> = group
            .products
            .iter()
            .filter_map(|p| self.graph.producer(p.out).and_then(|n| self.graph.node(n)))
            .collect();
        let Some(last) = gate.or(ends.last().copied()) else {
            return unsupported("a group without products");
        };
        let name = self.name(last);
        let Some(left) = group.products.first().and_then(|p| self.graph.node(p.node)?.input(0)) else {
            return unsupported("an operand is missing");
        };
        let norm = group.norm.as_ref().map(|scaled| self.normed(scaled)).transpose()?;
        let a = match &norm {
            Some(normed) => self.as_words(&name, normed.x.clone())?,
            None => self.in_words(&name, left)?,
        };
        let mut parts: Vec<Operands> = vec![];
        for product in &group.products {
            let Some(node) = self.graph.node(product.node) else { return Ok(()) };
            let Some(b) = node.input(1) else { return unsupported("an operand is missing") };
            let (a, mut b, mut code) = self.factors(node, a.clone(), b)?;
            if product.columns.is_some() {
                b = product.cut(&b)?;
                code = code.map(|c| c.map(|at| product.cut(at))).transpose()?;
            }
            let shared = if gate.is_some() { parts.first().map(|p| p.made.clone()) } else { None };
            let to = gate.map_or(product.out, |g| g.outputs[0]);
            parts.push(self.arranged(&name, product, (&a, &b, &code), to, shared)?);
        }
        self.multiply_parts(&name, norm.as_ref(), &parts, gate.is_some())?;
        match gate {
            Some(gate) => {
                let Some(first) = parts.into_iter().next() else { return Ok(()) };
                self.set(gate.outputs[0], first.made);
            }
            None => {
                for (product, part) in group.products.iter().zip(parts) {
                    self.set(product.out, part.made);
                }
            }
        }
        Ok(())
    }

    fn one_by_one(&mut self, group: &Group) -> Done {
        if let Some(scaled) = &group.norm
            && !matches!(self.homes[scaled.out.index()], Some(Home::Device(_)))
            && let Some(last) = self.graph.producer(scaled.out).and_then(|n| self.graph.node(n))
        {
            self.norm(last, scaled)?;
        }
        let products = match &group.whole {
            Some((whole, _)) => std::slice::from_ref(whole),
            None => &group.products,
        };
        for product in products {
            if let Some(id) = self.graph.producer(product.out)
                && let Some(last) = self.graph.node(id)
            {
                self.chains.products.insert(id, product.clone());
                self.product(id, last)?;
            }
        }
        for id in group.whole.iter().flat_map(|(_, nodes)| nodes) {
            let Some(node) = self.graph.node(*id) else { continue };
            if let Op::Slice { .. } = node.op {
                self.view(node)?;
            } else {
                self.chains.programs.insert(*id, vec![*id]);
                self.elementwise(*id)?;
            }
        }
        if let Some(gate) = group.gate {
            self.chains.programs.insert(gate, vec![gate]);
            self.elementwise(gate)?;
        }
        Ok(())
    }
}

/// Levels of nodes, by index: one more than the highest of the nodes that they read from.
pub(super) fn levels(graph: &snlp_passes::ir::Graph, order: &[NodeId]) -> Vec<usize> {
    let nodes = order.iter().map(|n| n.index() + 1).max().unwrap_or(0);
    let mut levels = vec![0; nodes];
    for id in order {
        let operands = graph.node(*id).into_iter().flat_map(|n| n.operands().collect::<Vec<_>>());
        let made = operands.filter_map(|v| graph.producer(v)).map(|p| levels[p.index()] + 1);
        levels[id.index()] = made.max().unwrap_or(0);
    }
    levels
}
