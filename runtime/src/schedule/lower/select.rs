//! Nodes that select by index.
//!
//! Indices that the host knows are checked there before each run; indices known now that step evenly are a
//! slice.

use snlp_passes::ir::{Node, Op, ValueId};

use super::{Done, Located, Lowering, unsupported};
use crate::kernels::{Bounds, Gather, GatherKind, Scatter};
use crate::schedule::constants::scalar_bytes;
use crate::schedule::plan::{HostValue, IndexCheck, Place};
use crate::schedule::views;

impl Lowering<'_> {
    pub(super) fn select(&mut self, node: &Node) -> Done {
        match &node.op {
            Op::Gather { axis } => self.gather(node, *axis, GatherKind::Slices),
            Op::GatherElements { axis } => self.gather(node, *axis, GatherKind::Elements),
            _ => self.scatter(node),
        }
    }

    fn gather(&mut self, node: &Node, axis: usize, kind: GatherKind) -> Done {
        let [Some(data), Some(indices)] = [node.input(0), node.input(1)] else {
            return unsupported("an operand is missing");
        };
        if kind == GatherKind::Slices && self.gather_coded(node, data, axis)? {
            return Ok(());
        }
        let name = self.name(node);
        let table = self.matrix(data)?;
        let out = node.outputs[0];
        if kind == GatherKind::Slices
            && let Some(view) = self.even_slice(&table, axis, indices)
        {
            self.set(out, Located { view, ..table });
            return Ok(());
        }
        let Some(size) = table.view.shape.get(axis).copied() else {
            return unsupported(format!("axis {axis} of {:?}", table.view.shape));
        };
        self.check_indices(&name, indices, size);
        let indices = self.located(indices)?;
        let to = self.result(out)?;
        if !to.view.is_empty() {
            self.gather_rows(&name, &table, &indices, &to, axis, kind, (0, size))?;
        }
        self.set(out, to);
        Ok(())
    }

    /// Gathers from rows `low..` of a table, in parts where one binding does not cover it.
    #[allow(clippy::too_many_arguments)]
    fn gather_rows(
        &mut self,
        name: &str,
        table: &Located,
        indices: &Located,
        out: &Located,
        axis: usize,
        kind: GatherKind,
        (low, total): (u32, u32),
    ) -> Done {
        let held = table.view.shape[axis];
        let (start, end) = views::extent(&table.view);
        let slot = self.plan.slots.get(table.slot).map_or(0, |s| s.bytes);
        let bytes = scalar_bytes(table.scalar, end - start) + super::PIECE_ALIGN;
        if slot > self.limits.max_storage_binding && bytes > self.limits.max_storage_binding && held > 1 {
            let first = views::slice(&table.view, axis, 0, 1, held / 2);
            let second = views::slice(&table.view, axis, held / 2, 1, held - held / 2);
            let (Some(first), Some(second)) = (first, second) else {
                return unsupported("the table cannot be split");
            };
            let part = |view| Located { view, ..table.clone() };
            self.gather_rows(name, &part(first), indices, out, axis, kind, (low, total))?;
            return self.gather_rows(name, &part(second), indices, out, axis, kind, (low + held / 2, total));
        }
        let (data, index, to) = (self.bind(table)?, self.bind(indices)?, self.bind(out)?);
        let launch = Gather {
            data: &data.operand,
            indices: &index.operand,
            out: &to.operand,
            axis,
            kind,
            rows: (held < total).then_some((low, total)),
            bounds: Bounds::Clamp,
        }
        .launch(self.limits)?;
        self.emit(name, launch, &[&data, &index, &to])
    }

    /// The view that indices select when they are known now and step evenly.
    fn even_slice(&mut self, table: &Located, axis: usize, indices: ValueId) -> Option<crate::kernels::View> {
        let tensor = self.statics.get(indices)?;
        let size = i64::from(*table.view.shape.get(axis)?);
        let at: Vec<i64> = tensor.to_i64()?.into_iter().map(|i| if i < 0 { i + size } else { i }).collect();
        if at.is_empty() || at.iter().any(|i| *i < 0 || *i >= size) {
            return None;
        }
        let step = at.get(1).map_or(1, |second| second - at[0]);
        if at.windows(2).any(|w| w[1] - w[0] != step) {
            return None;
        }
        let start = u32::try_from(at[0]).ok()?;
        let count = u32::try_from(at.len()).ok()?;
        let view = views::slice(&table.view, axis, start, i32::try_from(step).ok()?, count)?;
        match tensor.shape().len() {
            0 => views::squeeze(&view, &[axis]),
            1 => Some(view),
            _ => None,
        }
    }

    /// Has the host check indices that it knows; others are clamped by the kernel.
    pub(super) fn check_indices(&mut self, name: &str, indices: ValueId, size: u32) {
        let value: Option<HostValue> = self.host_value(indices);
        if let Some(value) = value {
            self.plan.checks.push(IndexCheck { node: name.into(), value, size: u64::from(size) });
        }
    }

    fn scatter(&mut self, node: &Node) -> Done {
        let Op::ScatterElements { axis, reduction } = node.op else {
            return unsupported(format!("{} has no kernel", node.op.name()));
        };
        let [Some(data), Some(indices), Some(updates)] = [node.input(0), node.input(1), node.input(2)] else {
            return unsupported("an operand is missing");
        };
        let name = self.name(node);
        let from = self.located(data)?;
        let size = from.view.shape.get(axis).copied().unwrap_or(0);
        self.check_indices(&name, indices, size);
        let out = match self.is_spare(data, &from) {
            true => from,
            false => {
                let out = self.result(node.outputs[0])?;
                self.copy_into(&name, &from, &out)?;
                out
            }
        };
        let updates = self.located(updates)?;
        if !updates.view.is_empty() {
            let indices = self.located(indices)?;
            let updates = self.as_words(&name, updates)?;
            let (i, u, o) = (self.bind(&indices)?, self.bind(&updates)?, self.bind(&out)?);
            let launch =
                Scatter { indices: &i.operand, updates: &u.operand, out: &o.operand, axis, reduction }
                    .launch(self.limits)?;
            self.emit_in_place(&name, launch, &[&i, &u, &o])?;
        }
        self.set(node.outputs[0], out);
        Ok(())
    }

    /// Whether nothing else reads a value that a step of its own makes.
    fn is_spare(&self, v: ValueId, at: &Located) -> bool {
        let made = self.graph.producing(v).is_some_and(|n| matches!(n.op, Op::Where | Op::Concat { .. }));
        let own = match self.plan.slots.get(at.slot).map(|s| &s.place) {
            Some(Place::Activation(_)) => made,
            Some(Place::State(_)) => true,
            _ => false,
        };
        own && at.view.is_dense() && self.users[v.index()].len() == 1 && !self.results.contains(&v)
    }
}
