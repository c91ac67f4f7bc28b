//! First guesses that the token before left (METHOD §3, `warm`).
//!
//! ```text
//!   warm.N [C + 1, 1, 1, D]     the units' outputs for the last token, and a row that says that there was one
//!      │
//!      ▼
//!   s = there was one ? rows 0..C : h          …  K iterations  …  ─▶ warm.N.next
//! ```
//!
//! `N` is the number of the segment's first layer. At first all is zero.

use super::super::batch::cast;
use super::super::vectorize::VectorizeError;
use super::Solver;
use crate::analysis::Mismatch;
use crate::ir::{Binary, Dim, Graph, Op, Tensor, Type, ValueId};

impl Solver<'_> {
    /// The guess, `[C, B, T, D]`.
    pub(super) fn warmed(&self, graph: &mut Graph) -> Result<ValueId, VectorizeError> {
        let refuse = |graph: &Graph, reason: &str| Mismatch::at_value(graph, self.input, reason);
        let Some(state) = graph.ty(self.input).cloned() else {
            return Err(refuse(graph, "the type of the state is not known").into());
        };
        let [Dim::ONE, _, width] = &state.shape[..] else {
            return Err(refuse(graph, "init=warm needs states [1, t, width] of one sequence").into());
        };
        let count = self.count() as i64;
        let shape = vec![Dim::from(count + 1), Dim::ONE, Dim::ONE, width.clone()];
        let warm = graph.add_input(&self.warm_name(), Type::new(state.dtype, shape));
        let rows = |graph: &mut Graph, from: i64, to: i64| {
            let (start, end) = (graph.ints(&[from]), graph.ints(&[to]));
            graph.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[warm, start, end])
        };
        let (units, said) = (rows(graph, 0, count)?, rows(graph, count, count + 1)?);
        let zero = graph.float_scalar(state.dtype, 0.0);
        let there = graph.add(Op::Binary(Binary::Greater), &[said, zero])?;
        let h = graph.add(Op::Unsqueeze { axes: vec![0] }, &[self.input])?;
        Ok(graph.add_named("warm", Op::Where, &[there, units, h])?)
    }

    /// Leaves the last token's part of the units' outputs `[C, B, T, D]` for the next step.
    pub(super) fn keep_warm(&self, graph: &mut Graph, outputs: ValueId) -> Result<(), VectorizeError> {
        let (start, end) = (graph.ints(&[-1]), graph.ints(&[i64::MAX]));
        let last = graph.add(Op::Slice { axes: vec![2], steps: vec![1] }, &[outputs, start, end])?;
        let Some(ty) = graph.ty(last).cloned() else {
            return Err(Mismatch::at_value(graph, self.input, "the type of the state is not known").into());
        };
        let width = ty.shape.last().and_then(Dim::known_size).unwrap_or(1);
        let ones = Tensor::from_vec(vec![1, 1, 1, width], vec![1f32; width])
            .map_err(|e| Mismatch::at_value(graph, self.input, e.to_string()))?;
        let ones = graph.constant(ones);
        let ones = cast(graph, ones, ty.dtype)?;
        let next = graph.add(Op::Concat { axis: 0 }, &[last, ones])?;
        graph.add_output(&format!("{}.next", self.warm_name()), next);
        Ok(())
    }

    fn warm_name(&self) -> String {
        format!("warm.{}", self.first)
    }
}
