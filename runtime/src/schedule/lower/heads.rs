//! Attentions with what makes their operands ready.
//!
//! ```text
//!   q ─▶ Rotary ─▶ RmsNorm ─────────────────────┐
//!   k ─▶ Rotary ─▶ RmsNorm ─▶ ScatterElements ──┼─▶ Attention
//!   v ─────────────────────▶ ScatterElements ───┘
//! ```
//!
//! A few new tokens behind caches are one dispatch. Otherwise one makes queries, keys and values ready, and one
//! attends. Where neither fits, each node is computed for itself.

use std::collections::HashMap;

use snlp_passes::ir::{Binary, Node, NodeId, Op, Rotary, RotaryTable, ScatterReduction, ValueId};

use super::chain::{Scaled, norm_of};
use super::{Bound, Done, Located, Lowering, unsupported};
use crate::kernels::{
    AttentionStep, HeadNorm, HeadPart, Heads, Launch, MAX_STEP, NormKind, Operand, Ready, Scalar, View,
};
use crate::schedule::views;

/// What makes the operands of one attention.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Of queries, keys and values.
    parts: [Option<Part>; 3],
    /// Nodes that the attention's place computes, in order of evaluation.
    pub members: Vec<NodeId>,
}

/// What makes one operand.
#[derive(Clone, Debug)]
struct Part {
    /// What it starts from.
    x: ValueId,
    /// What is done to it, in order.
    links: Vec<Link>,
    /// Where its rows go.
    append: Option<Append>,
    /// What is done to it, and the scattering behind that.
    members: Vec<NodeId>,
}

#[derive(Clone, Debug)]
enum Link {
    Transpose(Vec<usize>),
    Norm(Scaled),
    Rotary(NodeId),
}

/// Rows that go to `position + 0..T` of a state.
#[derive(Clone, Debug)]
struct Append {
    node: NodeId,
    state: ValueId,
    /// `position + 0..T`.
    rows: ValueId,
    /// One integer.
    position: ValueId,
    /// The state with the rows in it.
    out: ValueId,
}

/// A part with its operands where they lie.
struct Laid {
    x: Located,
    norm: Option<(NormKind, f32)>,
    /// The normalisation comes before the embedding.
    first: bool,
    scale: Option<Located>,
    rotary: Option<(Rotary, [Located; 2])>,
}

/// A part's operands as launchers and the executor need them.
struct Ends {
    x: Bound,
    norm: Option<(NormKind, f32)>,
    first: bool,
    scale: Option<Bound>,
    rotary: Option<(Rotary, [Bound; 2])>,
}

impl Ends {
    fn norm(&self) -> Option<HeadNorm<'_>> {
        let scale = self.scale.as_ref().map(|s| &s.operand);
        self.norm.map(|(kind, epsilon)| HeadNorm { kind, epsilon, scale, first: self.first })
    }

    fn tables(&self) -> Option<[&Operand; 2]> {
        self.rotary.as_ref().map(|(_, [cos, sin])| [&cos.operand, &sin.operand])
    }
}

/// The embedding that all parts share, with its tables; nothing when they have none.
fn shared<'a>(parts: &[&'a Ends]) -> Done<Option<&'a (Rotary, [Bound; 2])>> {
    let mut found: Option<&(Rotary, [Bound; 2])> = None;
    for rotary in parts.iter().filter_map(|p| p.rotary.as_ref()) {
        let bindings = |r: &(Rotary, [Bound; 2])| (r.0, r.1[0].binding, r.1[1].binding);
        if found.is_some_and(|other| bindings(other) != bindings(rotary)) {
            return unsupported("parts with embeddings of their own");
        }
        found = Some(rotary);
    }
    Ok(found)
}

/// A view repeated into a shape.
fn seen(view: &View, shape: &[u32]) -> Done<View> {
    match views::broadcast(view, shape) {
        Some(view) => Ok(view),
        None => unsupported(format!("{view:?} seen as {shape:?}")),
    }
}

/// A part on its way.
struct Made<'a> {
    append: Option<&'a Append>,
    v: ValueId,
    ends: Ends,
    home: Located,
    out: Bound,
}

impl Lowering<'_> {
    /// Finds the attentions whose operands can be made ready together.
    pub(super) fn find_heads(&mut self, live: &[NodeId]) {
        if !self.options.fuse {
            return;
        }
        let place: HashMap<NodeId, usize> = live.iter().enumerate().map(|(n, id)| (*id, n)).collect();
        for id in live {
            let Some(node) = self.graph.node(*id).filter(|n| matches!(n.op, Op::Attention(_))) else {
                continue;
            };
            let [Some(q), Some(k), Some(v)] = [0, 1, 2].map(|n| node.input(n)) else { continue };
            if self.placement.host[id.index()] || q == k || q == v || k == v {
                continue;
            }
            let parts = [self.part(q, *id, false), self.part(k, *id, true), self.part(v, *id, true)];
            let appended: Vec<&Append> = parts.iter().flatten().filter_map(|p| p.append.as_ref()).collect();
            if let [k, v] = appended[..]
                && (k.state == v.state || k.position != v.position)
            {
                continue;
            }
            let mut members: Vec<NodeId> = parts.iter().flatten().flat_map(|p| p.members.clone()).collect();
            members.sort_by_key(|m| place.get(m).copied().unwrap_or(0));
            let computed = parts.iter().flatten().map(|p| {
                p.links.iter().filter(|l| !matches!(l, Link::Transpose(_))).count()
                    + usize::from(p.append.is_some())
            });
            if computed.sum::<usize>() > 1 {
                self.absorbed.extend(&members);
                self.chains.heads.insert(*id, Group { parts, members });
            }
        }
    }

    /// What makes an operand of an attention, if that is anything.
    fn part(&mut self, v: ValueId, attention: NodeId, may_append: bool) -> Option<Part> {
        let append = if may_append { self.append(v, attention) } else { None };
        let (mut at, mut user) = (v, attention);
        if let Some(append) = &append {
            at = self.graph.node(append.node)?.input(2)?;
            user = append.node;
        }
        // Transpositions count only in front of something that is computed.
        let (mut x, mut kept) = (at, 0);
        let (mut links, mut members): (Vec<Link>, Vec<NodeId>) = (vec![], vec![]);
        while self.only_user(at) == Some(user)
            && let Some(id) = self.graph.producer(at).filter(|id| !self.placement.host[id.index()])
            && let Some((link, before, deepest)) = self.link(id)
        {
            let again = links.iter().any(|l| match (l, &link) {
                (Link::Transpose(_), _) => false,
                (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
            });
            if again {
                break;
            }
            let computed = !matches!(link, Link::Transpose(_));
            links.push(link);
            members.push(id);
            (at, user) = (before, deepest);
            if computed {
                (x, kept) = (at, links.len());
            }
        }
        links.truncate(kept);
        members.truncate(kept);
        links.reverse();
        members.extend(append.as_ref().map(|a| a.node));
        (kept > 0 || append.is_some()).then_some(Part { x, links, append, members })
    }

    /// A node as a link, with its operand and the node that reads it.
    fn link(&self, id: NodeId) -> Option<(Link, ValueId, NodeId)> {
        if let Some(norm) = self.chains.norms.get(&id) {
            let node = self.graph.node(norm.node)?;
            let (_, axis, _) = norm_of(&node.op)?;
            let fits = norm.bias.is_none() && self.graph.shape(norm.out)?.len() == axis + 1;
            return (fits && node.outputs.len() == 1).then_some((
                Link::Norm(norm.clone()),
                node.input(0)?,
                norm.node,
            ));
        }
        let node = self.graph.node(id).filter(|_| !self.is_taken(id))?;
        match &node.op {
            Op::Transpose { perm } if perm.last().is_some_and(|p| p + 1 == perm.len()) => {
                Some((Link::Transpose(perm.clone()), node.input(0)?, id))
            }
            Op::Rotary(_) => Some((Link::Rotary(id), node.input(0)?, id)),
            _ => None,
        }
    }

    /// The scattering behind a value, when it appends rows to a state that this attention alone reads.
    fn append(&mut self, v: ValueId, attention: NodeId) -> Option<Append> {
        let id = self.graph.producer(v).filter(|id| !self.placement.host[id.index()])?;
        let node = self.graph.node(id)?;
        let Op::ScatterElements { axis, reduction: ScatterReduction::None } = node.op else { return None };
        let [state, indices, updates] = [node.input(0)?, node.input(1)?, node.input(2)?];
        let name = self.graph.value(state).name.as_deref()?;
        let (_, after) = self.options.states.iter().find(|(before, _)| before == name)?;
        let alone = self.graph.inputs().contains(&state)
            && self.graph.outputs.iter().any(|o| o.name == *after && o.value == v)
            && self.users[v.index()][..] == [attention]
            && self.users[state.index()][..] == [id]
            && !self.results.contains(&state)
            && !self.is_taken(id);
        let (held, shape) = (self.shape(state).ok()?, self.shape(updates).ok()?);
        let rows = axis.checked_add(2).filter(|n| *n == held.len()).and_then(|_| shape.get(axis).copied())?;
        let same = held.len() == shape.len()
            && (0..shape.len()).all(|a| a == axis || held[a] == shape[a])
            && self.shape(indices).ok()? == shape;
        if !alone || !same {
            return None;
        }
        let (rows, position) = self.rows_from(indices, axis, shape.len(), rows)?;
        Some(Append { node: id, state, rows, position, out: v })
    }

    /// `position + 0..count`, and the position, when these are indices that vary along one axis only.
    fn rows_from(
        &mut self,
        indices: ValueId,
        axis: usize,
        rank: usize,
        count: u32,
    ) -> Option<(ValueId, ValueId)> {
        let mut rows = indices;
        if let Some(Node { op: Op::Expand, inputs, .. }) = self.graph.producing(rows) {
            rows = inputs.first().copied()??;
        }
        let shape = self.shape(rows).ok()?;
        let before = rank.checked_sub(shape.len())?;
        let along =
            shape.iter().enumerate().all(|(n, size)| *size == if before + n == axis { count } else { 1 });
        if !along || (axis < before && count != 1) {
            return None;
        }
        rows = self.unviewed(rows);
        if let Some(Node { op: Op::Binary(Binary::Add), inputs, .. }) = self.graph.producing(rows)
            && let [Some(a), Some(b)] = inputs[..]
        {
            for (steps, position) in [(a, b), (b, a)] {
                let counted = self.statics.ints(steps).is_some_and(|s| s.into_iter().eq(0..i64::from(count)));
                if counted && self.is_one(position) {
                    return Some((rows, self.unviewed(position)));
                }
            }
        }
        (count == 1 && self.is_one(rows)).then_some((rows, rows))
    }

    fn is_one(&self, v: ValueId) -> bool {
        self.shape(v).is_ok_and(|s| s.iter().all(|d| *d == 1))
    }

    /// What a value is a reshaping of.
    fn unviewed(&self, mut v: ValueId) -> ValueId {
        while let Some(node) = self.graph.producing(v)
            && let Op::Reshape { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } | Op::Identity = node.op
            && let Some(before) = node.input(0)
        {
            v = before;
        }
        v
    }

    /// A part's operands, seen as the attention sees the result.
    fn lay(&mut self, part: &Part) -> Done<Laid> {
        let x = self.located(part.x)?;
        let mut laid = Laid { x, norm: None, first: false, scale: None, rotary: None };
        for link in &part.links {
            match link {
                Link::Transpose(perm) => {
                    let tables = laid.rotary.iter_mut().flat_map(|(_, tables)| tables);
                    for at in std::iter::once(&mut laid.x).chain(&mut laid.scale).chain(tables) {
                        at.view = match views::transpose(&at.view, perm) {
                            Some(view) => view,
                            None => return unsupported("a permutation of other axes"),
                        };
                    }
                }
                Link::Norm(norm) => {
                    // Factors per unit spread the result over the units.
                    let shape = self.shape(norm.out)?;
                    laid.x.view = seen(&laid.x.view, &shape)?;
                    for at in laid.rotary.iter_mut().flat_map(|(_, tables)| tables) {
                        let mut shape = shape.clone();
                        if let (Some(last), Some(own)) = (shape.last_mut(), at.view.shape.last()) {
                            *last = *own;
                        }
                        at.view = seen(&at.view, &shape)?;
                    }
                    laid.scale = norm.scale.map(|v| self.located(v)).transpose()?;
                    if let Some(at) = &mut laid.scale {
                        at.view = seen(&at.view, &shape)?;
                    }
                    let Some((kind, _, epsilon)) = self.graph.node(norm.node).and_then(|n| norm_of(&n.op))
                    else {
                        return unsupported("not a normalisation");
                    };
                    laid.norm = Some((kind, epsilon));
                    laid.first = laid.rotary.is_none();
                }
                Link::Rotary(id) => {
                    let Some(node) = self.graph.node(*id) else { return unsupported("no such node") };
                    let (Op::Rotary(rotary), [Some(cos), Some(sin)]) =
                        (&node.op, [node.input(1), node.input(2)])
                    else {
                        return unsupported("a table is missing");
                    };
                    let mut shape = laid.x.view.shape.clone();
                    if let Some(d) = shape.last_mut().filter(|_| rotary.table == RotaryTable::Half) {
                        *d /= 2;
                    }
                    let mut tables = [self.located(cos)?, self.located(sin)?];
                    for at in &mut tables {
                        at.view = seen(&at.view, &shape)?;
                    }
                    laid.rotary = Some((*rotary, tables));
                }
            }
        }
        Ok(laid)
    }

    fn ends(&mut self, part: &Part) -> Done<Ends> {
        let laid = self.lay(part)?;
        let rotary = match &laid.rotary {
            Some((rotary, [cos, sin])) => Some((*rotary, [self.bind(cos)?, self.bind(sin)?])),
            None => None,
        };
        let scale = laid.scale.as_ref().map(|s| self.bind(s)).transpose()?;
        Ok(Ends { x: self.bind(&laid.x)?, norm: laid.norm, first: laid.first, scale, rotary })
    }

    /// The attention with all that makes its operands ready, in one dispatch.
    pub(super) fn step(&mut self, node: &Node, group: &Group) -> Done {
        let (Op::Attention(attributes), [q, Some(k), Some(v)]) = (&node.op, &group.parts) else {
            return unsupported("keys or values as they come");
        };
        let (Some(to_k), Some(to_v), Some(of_q), Some(at)) =
            (&k.append, &v.append, node.input(0), node.input(5))
        else {
            return unsupported("keys or values that no cache holds");
        };
        let few = self.shape(of_q)?.iter().rev().nth(1).is_some_and(|t| *t <= MAX_STEP);
        let same = self.unviewed(at) == to_k.position;
        if !few || !same || !v.links.is_empty() || !attributes.causal {
            return unsupported("more than a step");
        }
        let raw = Part { x: of_q, links: vec![], append: None, members: vec![] };
        let (q, k, v) = (self.ends(q.as_ref().unwrap_or(&raw))?, self.ends(k)?, self.ends(v)?);
        let rotary = shared(&[&q, &k])?;
        let mut extra = vec![];
        for input in [3, 4] {
            let at = node.input(input).map(|v| self.located(v)).transpose()?;
            extra.push(at.map(|at| self.bind(&at)).transpose()?);
        }
        let [mask, sinks] = [0, 1].map(|n| extra[n].as_ref());
        let position = self.located(to_k.position)?;
        let position = self.bind(&position)?;
        let (home_k, home_v) = (self.located(to_k.state)?, self.located(to_v.state)?);
        let (k_cache, v_cache) = (self.bind(&home_k)?, self.bind(&home_v)?);
        let home = self.result(node.outputs[0])?;
        let out = self.bind(&home)?;
        let mut spec = AttentionStep {
            q: &q.x.operand,
            k: &k.x.operand,
            v: &v.x.operand,
            ready_q: Ready { norm: q.norm(), tables: q.tables() },
            ready_k: Ready { norm: k.norm(), tables: k.tables() },
            rotary: rotary.map(|(r, _)| *r),
            k_cache: &k_cache.operand,
            v_cache: &v_cache.operand,
            mask: mask.map(|m| &m.operand),
            sinks: sinks.map(|s| &s.operand),
            position: &position.operand,
            out: &out.operand,
            shares: None,
            attributes: *attributes,
        };
        let count = spec.wanted_shares(self.limits)?;
        let shares = if count > 1 { Some(self.shares(&home.view.shape, count)?) } else { None };
        spec.shares = shares.as_ref().map(|s| &s.operand);
        let launch = spec.launch(self.limits)?;
        let mut bound = vec![&q.x, &k.x, &v.x];
        bound.extend(rotary.into_iter().flat_map(|(_, tables)| tables));
        bound.extend([q.scale.as_ref(), k.scale.as_ref(), mask, sinks].into_iter().flatten());
        bound.extend([&position, &k_cache, &v_cache, shares.as_ref().unwrap_or(&out)]);
        let name = self.name(node);
        self.emit_in_place(&name, launch, &bound)?;
        if let Some(shares) = &shares {
            let bound: Vec<&Bound> = sinks.into_iter().chain([shares, &out]).collect();
            self.emit(&name, spec.merge(self.limits)?, &bound)?;
        }
        self.appended(to_k, home_k);
        self.appended(to_v, home_v);
        self.set(node.outputs[0], home);
        Ok(())
    }

    /// Room for what `count` workgroups make of each row of an attention's result.
    fn shares(&mut self, result: &[u32], count: u32) -> Done<Bound> {
        let [rows @ .., width] = result else { return unsupported("an attention without rows") };
        let shape = [rows, &[count, width + 2]].concat();
        let home = self.fresh(&shape, Scalar::F32);
        self.bind(&home)
    }

    /// The rows of a part are in their state, once the host has checked that there is room.
    fn appended(&mut self, append: &Append, home: Located) {
        let size = home.view.shape.iter().rev().nth(1).copied().unwrap_or(0);
        let name = self.graph.node(append.node).map(|n| self.name(n)).unwrap_or_default();
        self.check_indices(&name, append.rows, size);
        self.set(append.out, home);
    }

    /// Queries, keys and values made ready, in one dispatch where that fits and one for each where it does not.
    pub(super) fn make_ready(&mut self, attention: &Node, group: &Group) -> Done {
        let mut made: Vec<Made> = vec![];
        let mut position = None;
        for (n, part) in group.parts.iter().enumerate() {
            let (Some(part), Some(v)) = (part, attention.input(n)) else { continue };
            let home = match &part.append {
                Some(append) => {
                    let at = self.located(append.position)?;
                    position = Some(self.bind(&at)?);
                    self.located(append.state)?
                }
                None => {
                    let shape = self.shape(v)?;
                    self.fresh(&shape, Scalar::F32)
                }
            };
            let (ends, out) = (self.ends(part)?, self.bind(&home)?);
            if ends.x.operand.view.is_empty() {
                return unsupported("nothing to make ready");
            }
            made.push(Made { append: part.append.as_ref(), v, ends, home, out });
        }
        let together = self.heads(&made, position.as_ref()).map(|one| vec![one]);
        let launches = match together {
            Ok(launches) => launches,
            Err(_) => made.chunks(1).map(|one| self.heads(one, position.as_ref())).collect::<Done<_>>()?,
        };
        let last = group.members.last().and_then(|m| self.graph.node(*m));
        let name = last.map(|n| self.name(n)).unwrap_or_default();
        for (launch, bound) in launches {
            // Of a state, other rows stay.
            self.emit_in_place(&name, launch, &bound)?;
        }
        for part in made {
            match part.append {
                Some(append) => self.appended(append, part.home),
                None => self.set(part.v, part.home),
            }
        }
        Ok(())
    }

    /// One dispatch of some parts, and what it binds.
    fn heads<'a>(
        &self,
        parts: &'a [Made<'a>],
        position: Option<&'a Bound>,
    ) -> Done<(Launch, Vec<&'a Bound>)> {
        let position = position.filter(|_| parts.iter().any(|p| p.append.is_some()));
        let rotary = shared(&parts.iter().map(|p| &p.ends).collect::<Vec<_>>())?;
        let launch = Heads {
            parts: parts
                .iter()
                .map(|part| HeadPart {
                    x: &part.ends.x.operand,
                    norm: part.ends.norm(),
                    tables: part.ends.tables(),
                    out: &part.out.operand,
                    append: part.append.is_some(),
                })
                .collect(),
            rotary: rotary.map(|(r, _)| *r),
            position: position.map(|p| &p.operand),
        }
        .launch(self.limits)?;
        let mut bound: Vec<&Bound> = parts.iter().map(|p| &p.ends.x).collect();
        bound.extend(rotary.into_iter().flat_map(|(_, tables)| tables));
        bound.extend(parts.iter().filter_map(|p| p.ends.scale.as_ref()));
        bound.extend(position);
        bound.extend(parts.iter().map(|p| &p.out));
        match bound.len() <= self.limits.max_storage_buffers as usize {
            true => Ok((launch, bound)),
            false => unsupported(format!("{} buffers in one dispatch", bound.len())),
        }
    }
}
