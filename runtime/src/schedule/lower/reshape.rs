//! Nodes that move no data, or only copy it: views, concatenations, fills, triangles.

use snlp_passes::ir::{Node, Op, ValueId};

use super::{Done, Failure, Home, Located, Lowering, unsupported};
use crate::kernels::View;
use crate::kernels::{ElementOp, Program, Reg, scalar_of};
use crate::schedule::views;

/// Float constants of at least this many elements may lie on the device as f16 when they are read through
/// views.
const MATRIX: u64 = 4096;

impl Lowering<'_> {
    /// An operand of a node that passes it on unchanged: a constant matrix keeps its narrow form.
    fn passed_on(&mut self, node: &Node) -> Done<Located> {
        let Some(v) = node.input(0) else { return unsupported("the operand is missing") };
        let large = self.graph.tensor(v).is_some_and(|t| t.len() as u64 >= MATRIX && t.shape().len() >= 2);
        if large { self.matrix(v) } else { self.located(v) }
    }

    pub(super) fn view(&mut self, node: &Node) -> Done {
        if self.coded_view(node)? {
            return Ok(());
        }
        let at = self.passed_on(node)?;
        let out = node.outputs[0];
        let view = match &node.op {
            Op::Identity => Some(at.view.clone()),
            Op::Transpose { perm } => views::transpose(&at.view, perm),
            Op::Expand => {
                let shape = self.shape(out)?;
                views::broadcast(&at.view, &shape)
            }
            Op::Squeeze { axes } => views::squeeze(&at.view, axes),
            Op::Unsqueeze { axes } => views::unsqueeze(&at.view, axes),
            Op::Slice { axes, steps } => Some(self.slice(node, &at, axes, steps)?),
            _ => {
                let shape = self.shape(out)?;
                let view = views::reshape(&at.view, &shape);
                if view.is_none() {
                    let name = self.name(node);
                    let dense = self.copied(&name, &at)?;
                    let view = views::reshape(&dense.view, &shape).ok_or(Failure::Shape(out))?;
                    self.set(out, Located { view, ..dense });
                    return Ok(());
                }
                view
            }
        };
        match view {
            Some(view) => {
                self.set(out, Located { view, ..at });
                Ok(())
            }
            None => unsupported(format!("{:?} cannot be viewed so", at.view)),
        }
    }

    fn slice(&mut self, node: &Node, at: &Located, axes: &[usize], steps: &[i64]) -> Done<View> {
        let mut bounds = vec![];
        for operand in [1, 2] {
            let Some(v) = node.input(operand) else { return unsupported("starts or ends are missing") };
            match self.statics.ints(v) {
                Some(values) if values.len() == axes.len() => bounds.push(values),
                _ => return unsupported("starts or ends are not known before the run"),
            }
        }
        let shape = self.shape(node.outputs[0])?;
        let mut view = at.view.clone();
        for (i, (axis, step)) in axes.iter().zip(steps).enumerate() {
            let (Some(size), Some(count)) = (view.shape.get(*axis).copied(), shape.get(*axis).copied())
            else {
                return unsupported(format!("axis {axis} of {:?}", view.shape));
            };
            let start = bounds[0][i];
            let size = i64::from(size);
            let from = if start < 0 { start.saturating_add(size) } else { start };
            let last = if *step < 0 { size - 1 } else { size };
            let from = u32::try_from(from.clamp(0, last.max(0))).unwrap_or(0);
            let step = i32::try_from(*step).unwrap_or(if *step < 0 { i32::MIN } else { i32::MAX });
            match views::slice(&view, *axis, from, step, count) {
                Some(next) => view = next,
                None => return unsupported(format!("slice from {from} by {step} of {:?}", view.shape)),
            }
        }
        Ok(view)
    }

    pub(super) fn arrange(&mut self, node: &Node) -> Done {
        let name = self.name(node);
        let out = node.outputs[0];
        match &node.op {
            Op::Concat { axis } => self.concat(&name, node, *axis),
            Op::Trilu { upper } => {
                let k = match node.input(1) {
                    Some(v) => self.statics.ints(v).and_then(|k| k.first().copied()),
                    None => Some(0),
                };
                let Some(k) = k.and_then(|k| i32::try_from(k).ok()) else {
                    return unsupported("k is not known before the run");
                };
                self.triangle(&name, node, *upper, k)
            }
            Op::ConstantOfShape { value } => {
                let shape = self.shape(out)?;
                let scalar = scalar_of(self.dtype(out));
                let at = self.constant(out, value, scalar)?;
                let one = views::reshape(&at.view, &[]).ok_or(Failure::Shape(out))?;
                let view = views::broadcast(&one, &shape).ok_or(Failure::Shape(out))?;
                self.set(out, Located { view, ..at });
                Ok(())
            }
            other => unsupported(format!("{} has no kernel", other.name())),
        }
    }

    fn concat(&mut self, name: &str, node: &Node, axis: usize) -> Done {
        let out = self.concat_home(node)?;
        let mut start = 0;
        for v in node.operands() {
            let size = self.shape(v)?.get(axis).copied().unwrap_or(0);
            let piece = views::slice(&out.view, axis, start, 1, size);
            start += size;
            let Some(view) = piece else { return unsupported("the pieces do not fit the result") };
            let to = Located { view, ..out.clone() };
            let from = self.located(v)?;
            let there = from.slot == to.slot && from.view == to.view;
            if !there && size > 0 {
                self.copy_into(name, &from, &to)?;
            }
        }
        self.set(node.outputs[0], out);
        Ok(())
    }

    /// Where a concatenation is written; decided when the first of its pieces is computed.
    fn concat_home(&mut self, node: &Node) -> Done<Located> {
        let v = node.outputs[0];
        if let Some(Home::Device(at)) = &self.homes[v.index()] {
            return Ok(at.clone());
        }
        let shape = self.shape(v)?;
        let at = self.fresh(&shape, scalar_of(self.dtype(v)));
        self.set(v, at.clone());
        Ok(at)
    }

    /// A home for a node's result in the layout that suits its reader: a piece of a concatenation, or
    /// dense as the reader's transposition sees it.
    pub(super) fn result(&mut self, v: ValueId) -> Done<Located> {
        let shape = self.shape(v)?;
        let scalar = scalar_of(self.dtype(v));
        let reader = self.only_user(v).filter(|r| !self.placement.host[r.index()]);
        let Some(node) = reader.and_then(|r| self.graph.node(r)).filter(|_| self.options.fuse) else {
            return Ok(self.fresh(&shape, scalar));
        };
        match &node.op {
            Op::Transpose { perm } if perm.len() == shape.len() => {
                let Some(turned) = views::transpose(&View::dense(&shape), perm) else {
                    return Ok(self.fresh(&shape, scalar));
                };
                let dense = self.fresh(&turned.shape, scalar);
                let mut back = vec![0; perm.len()];
                for (i, p) in perm.iter().enumerate() {
                    back[*p] = i;
                }
                match views::transpose(&dense.view, &back) {
                    Some(view) => Ok(Located { view, ..dense }),
                    None => unsupported("the permutation is not one"),
                }
            }
            Op::Concat { axis } if node.operands().filter(|o| *o == v).count() == 1 => {
                let whole = self.concat_home(node)?;
                let mut start = 0;
                for piece in node.operands().take_while(|o| *o != v) {
                    start += self.shape(piece)?.get(*axis).copied().unwrap_or(0);
                }
                let size = shape.get(*axis).copied().unwrap_or(0);
                match views::slice(&whole.view, *axis, start, 1, size) {
                    Some(view) => Ok(Located { view, ..whole }),
                    None => Ok(self.fresh(&shape, scalar)),
                }
            }
            _ => Ok(self.fresh(&shape, scalar)),
        }
    }

    /// The triangle of the last two axes; the rest is zero.
    fn triangle(&mut self, name: &str, node: &Node, upper: bool, k: i32) -> Done {
        let Some(v) = node.input(0) else { return unsupported("the operand is missing") };
        let x = self.located(v)?;
        let out = self.result(node.outputs[0])?;
        let rank = x.view.shape.len();
        if rank < 2 {
            return unsupported("an operand of fewer than two axes");
        }
        // The index input is `row + k - column`: at least 0 below the diagonal, at most 0 above it.
        let mut strides = vec![0; rank];
        strides[rank - 2] = 1;
        strides[rank - 1] = u32::MAX;
        let index = View { shape: x.view.shape.clone(), strides, offset: k as u32 };
        let mut program = Program::new(1);
        let distance = program.index();
        let zero = program.int(0);
        let order = if upper { [distance, zero] } else { [zero, distance] };
        let inside = program.step(ElementOp::LeI, &order);
        let kept = program.step(ElementOp::Select, &[inside, Reg::Input(0), zero]);
        program.results = vec![kept];
        self.program(name, &program, &[x], &[&index], &out)?;
        self.set(node.outputs[0], out);
        Ok(())
    }
}
