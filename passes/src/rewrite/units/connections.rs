//! Hyper-connections: what units do to streams, and fused layers that share how they read and write them.
//!
//! All layers of a fused unit see the mean of their readings, and the sum of what they compute is written
//! with the mean of their weights (METHOD §2). Reading and writing are linear, so that the means are taken
//! of their results:
//!
//! ```text
//!   read = mean(pre_i · x)     Y = sum(g_i(read))     x + mean(post_i ⊗ Y)
//! ```

use std::collections::{BTreeMap, HashSet};

use super::super::batch;
use super::super::class_lanes::{expanded, sum_per_unit};
use super::super::vectorize::{Batched, VectorizeError};
use super::{Group, PartialTaps};
use crate::analysis::{Connection, Event, Matrix, Mismatch, Mixing, Streams, Transfer};
use crate::ir::{Binary, DType, Dim, Graph, GraphError, Op, Tensor, ValueId};

impl Group<'_> {
    /// What join `e` adds to the streams of fused layers.
    pub(super) fn connected(
        &mut self,
        graph: &mut Graph,
        e: usize,
        taps: &PartialTaps,
        tapped: &mut BTreeMap<usize, ValueId>,
    ) -> Result<Batched, VectorizeError> {
        let mut connections = BTreeMap::new();
        for lane in self.classes.iter().flat_map(|c| &c.members) {
            let layer = &self.context.chain.layers[lane.layer];
            // As the graph now has them: a segment before this one has replaced the first.
            let states: HashSet<ValueId> =
                (0..=layer.events.len()).map(|at| self.state_value(lane.layer, at)).collect();
            let event = self.event(lane.layer, e);
            let found = event
                .branch()
                .and_then(|branch| Connection::of(graph, branch, &states, self.context.chain.streams));
            let reason = "layers cannot be fused: how the branch reads and writes the streams is not plain";
            let found = found.ok_or_else(|| Mismatch::at_value(graph, event.output(), reason))?;
            connections.insert(event.output(), found);
            if !tapped.is_empty() && layer.transfer(graph) == Transfer::TokenMixing {
                let reason = "a state inside a fused unit is read, but each token mixes its streams by its own \
                              matrix: use tap=unit or smaller units";
                return Err(Mismatch::at_value(graph, event.output(), reason).into());
            }
        }
        let read = |event: Event| connections.get(&event.output()).map(|c: &Connection| c.read);
        let core = |event: Event| connections.get(&event.output()).map(|c: &Connection| c.core);
        let mean = 1.0 / self.fused as f64;
        let (shared, _) = self.reduced(graph, &read, e, mean)?;
        self.define(graph, &read, e, shared)?;
        let scale = self.share();
        let (sum, results) = self.reduced(graph, &core, e, scale)?;
        for (unit, value) in tapped.iter_mut() {
            if let Some(part) = self.with_part(graph, &results, taps, *unit, scale, None)? {
                let mut alone = Group::new(self.context, vec![self.units[*unit]], self.own);
                alone.define(graph, &core, e, Batched::shared(part))?;
                let (written, _) = alone.reduced(graph, &|event| event.branch(), e, mean)?;
                *value = graph.add(Op::Binary(Binary::Add), &[*value, written.value])?;
            }
        }
        self.define(graph, &core, e, sum)?;
        let (written, _) = self.reduced(graph, &|event| event.branch(), e, mean)?;
        Ok(written)
    }

    /// Says what the value that `of` tells of event `e` is, for all layers of a unit.
    fn define(
        &mut self,
        graph: &mut Graph,
        of: &dyn Fn(Event) -> Option<ValueId>,
        e: usize,
        value: Batched,
    ) -> Result<(), VectorizeError> {
        for c in 0..self.classes.len() {
            let tuple = self.tuple(c, of, e);
            let spread = self.classes[c].spread(graph, value)?;
            self.classes[c].lanes.define(tuple, spread);
        }
        Ok(())
    }

    /// The product of the matrices on the skip path, each the mean over a unit's layers, for every unit and
    /// token: `[units, tokens.., S, S]` (no unit axis for a single one).
    pub(super) fn transfers(&mut self, graph: &mut Graph, state: Batched) -> Result<Batched, VectorizeError> {
        let streams = self.context.chain.streams;
        let first = self.classes[0].members[0].layer;
        let mut product: Option<Batched> = None;
        for e in 0..self.context.chain.layers[first].events.len() {
            let Some(factor) = self.transfer_of(graph, e)? else { continue };
            product = Some(match product {
                None => factor,
                Some(before) => {
                    let both = of_one_type(graph, [factor.value, before.value])?;
                    Batched {
                        value: graph.add(Op::MatMul, &both)?,
                        batched: factor.batched || before.batched,
                    }
                }
            });
        }
        let output = self.context.chain.layers[first].output;
        let missing = || Mismatch::at_value(graph, output, "the streams of the layer are not mixed");
        let product = product.ok_or_else(missing)?;
        // Tokens that share a matrix get one each.
        let mut dims = graph.shape(state.value).unwrap_or_default().to_vec();
        dims.pop();
        let lead = usize::from(state.batched);
        if dims.len() <= streams.axis + lead {
            return Err(Mismatch::at_value(graph, output, "the state has no axis of streams").into());
        }
        let size = dims.remove(streams.axis + lead);
        dims.extend([size.clone(), size]);
        if lead == 1 && !product.batched {
            let row = batch::insert_axes(graph, product.value, 0, 1)?;
            return expanded(graph, row, &dims).map(Batched::lanes);
        }
        if lead == 0 && product.batched {
            return Err(Mismatch::at_value(graph, output, "units that share a state differ in mixing").into());
        }
        Ok(Batched { value: expanded(graph, product.value, &dims)?, batched: product.batched })
    }

    /// The factors of event `e` where it only scales the state, as matrices; `None` where it leaves it alone.
    fn scales(&self, graph: &mut Graph, e: usize) -> Result<Option<Batched>, VectorizeError> {
        let Streams { count: n, tokens, .. } = self.context.chain.streams;
        let mut diagonals = vec![];
        for unit in &self.units {
            let mut sum = 0.0;
            for layer in &self.context.units[*unit] {
                let event = self.event(*layer, e);
                sum += match Transfer::of(graph, &event) {
                    Transfer::Identity => 1.0,
                    Transfer::Scale(factor) => factor,
                    _ => {
                        let reason = "surrogate=transfer needs a skip path that does nothing but mix and scale streams";
                        return Err(Mismatch::at_value(graph, event.output(), reason).into());
                    }
                };
            }
            diagonals.push(sum / self.fused as f64);
        }
        if diagonals.iter().all(|d| *d == 1.0) {
            return Ok(None);
        }
        let batched = diagonals.len() > 1;
        let data = diagonals.iter().flat_map(|d| Matrix::diagonal(n, *d).data().to_vec()).collect();
        let lanes = batched.then_some(diagonals.len());
        let shape = lanes.into_iter().chain(std::iter::repeat_n(1, tokens)).chain([n, n]).collect();
        let state = self.context.chain.input;
        let tensor = Tensor::from_vec::<f64>(shape, data)
            .map_err(|e| Mismatch::at_value(graph, state, e.to_string()))?;
        let value = graph.constant(tensor);
        let to = graph.ty(state).map_or(DType::F32, |t| t.dtype);
        Ok(Some(Batched { value: graph.add(Op::Cast { to }, &[value])?, batched }))
    }

    /// Matrices whose axes behind the first `lead` are those of `tokens`, as axes of a state, with all the tokens'
    /// axes in a state's order; size 1 where they had none.
    fn of_tokens(
        &self,
        graph: &mut Graph,
        mut matrices: ValueId,
        lead: usize,
        tokens: &[usize],
    ) -> Result<ValueId, VectorizeError> {
        let streams = self.context.chain.streams;
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|i| tokens[*i]);
        if !order.is_sorted() {
            let behind = lead + tokens.len();
            let perm = (0..lead).chain(order.iter().map(|i| lead + i)).chain([behind, behind + 1]).collect();
            matrices = graph.add(Op::Transpose { perm }, &[matrices])?;
        }
        let all = (0..=streams.tokens).filter(|axis| *axis != streams.axis);
        for (i, axis) in all.enumerate() {
            if !tokens.contains(&axis) {
                matrices = batch::insert_axes(graph, matrices, lead + i, 1)?;
            }
        }
        Ok(matrices)
    }

    /// The matrices of event `e`, `[units, tokens.., S, S]`; `None` where it leaves the streams alone.
    fn transfer_of(&mut self, graph: &mut Graph, e: usize) -> Result<Option<Batched>, VectorizeError> {
        let mut all = vec![];
        for c in 0..self.classes.len() {
            let layers: Vec<usize> = self.classes[c].members.iter().map(|l| l.layer).collect();
            let events: Vec<Event> = layers.iter().map(|l| self.event(*l, e)).collect();
            let mixings: Option<Vec<Mixing>> = events.iter().map(|event| event.mixing(graph)).collect();
            let Some(mixings) = mixings else {
                return self.scales(graph, e);
            };
            let tuple: Vec<ValueId> = mixings.iter().map(|m| m.matrix).collect();
            let mut matrices = self.classes[c].lanes.vectorize_result(graph, &tuple)?;
            let lead = if matrices.batched { self.classes[c].lanes.prefix.len() } else { 0 };
            matrices.value = self.of_tokens(graph, matrices.value, lead, &mixings[0].tokens)?;
            if mixings[0].transposed {
                let last = graph.shape(matrices.value).map_or(0, <[Dim]>::len).saturating_sub(1);
                let perm = (0..last - 1).chain([last, last - 1]).collect();
                matrices.value = graph.add(Op::Transpose { perm }, &[matrices.value])?;
            }
            all.push(matrices);
        }
        sum_per_unit(graph, &self.classes, &all, self.units.len(), 1.0 / self.fused as f64)
    }
}

/// The values in the wider of their types.
fn of_one_type(graph: &mut Graph, values: [ValueId; 2]) -> Result<[ValueId; 2], GraphError> {
    let dtype = |v: ValueId| graph.ty(v).map_or(DType::F32, |t| t.dtype);
    let [a, b] = values.map(dtype);
    let to = if a.size() < b.size() { b } else { a };
    let [x, y] = values;
    Ok([batch::cast(graph, x, to)?, batch::cast(graph, y, to)?])
}
