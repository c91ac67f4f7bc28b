//! Quantised constants, which stay integers on the device.
//!
//! ```text
//!   Dequantize(constant) ─▶ Transpose ─▶ MatMul     the product reads integers, scales and zero points
//!                        └▶ Gather                  rows are gathered as integers, then turned into floats
//!                        └▶ anything else           floats, made when first asked for
//! ```

use snlp_passes::ir::{Blocks, Node, Op, ValueId};

use super::{Done, Failure, Located, Lowering, unsupported};
use crate::kernels::{Bounds, ElementOp, Gather, GatherKind, Program, Reg, Scalar, View};
use crate::schedule::views;

/// Integers with what they stand for, instead of the floats.
#[derive(Clone, Debug)]
pub(super) struct Coded {
    pub x: Located,
    /// Of the rank of `x`, as the zero point.
    pub scale: Located,
    pub zero: Option<Located>,
    pub blocks: Option<Blocks>,
}

/// The coding of a product's right operand.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub scale: Located,
    pub zero: Option<Located>,
    /// Rows that share a scale.
    pub block: u32,
}

impl Code {
    /// The same of scale and zero point.
    pub(super) fn map(&self, f: impl Fn(&Located) -> Done<Located>) -> Done<Code> {
        let zero = self.zero.as_ref().map(&f).transpose()?;
        Ok(Code { scale: f(&self.scale)?, zero, block: self.block })
    }
}

fn seen(at: &Located, view: Option<View>) -> Option<Located> {
    view.map(|view| Located { view, ..at.clone() })
}

/// With leading axes of size 1.
fn of_rank(at: Located, rank: usize) -> Option<Located> {
    let missing: Vec<usize> = (0..rank.checked_sub(at.view.shape.len())?).collect();
    seen(&at, views::unsqueeze(&at.view, &missing))
}

impl Coded {
    /// The same of every part.
    fn map(&self, blocks: Option<Blocks>, f: impl Fn(&Located) -> Option<Located>) -> Option<Coded> {
        let zero = match &self.zero {
            Some(zero) => Some(f(zero)?),
            None => None,
        };
        Some(Coded { x: f(&self.x)?, scale: f(&self.scale)?, zero, blocks })
    }

    fn transposed(&self, perm: &[usize]) -> Option<Coded> {
        let blocks = match self.blocks {
            Some(b) => Some(Blocks { axis: perm.iter().position(|p| *p == b.axis)?, ..b }),
            None => None,
        };
        self.map(blocks, |at| seen(at, views::transpose(&at.view, perm)))
    }

    /// What a view makes of it; `None` where the parameters do not follow.
    fn viewed(&self, op: &Op) -> Option<Coded> {
        match op {
            Op::Identity => Some(self.clone()),
            Op::Transpose { perm } => self.transposed(perm),
            Op::Unsqueeze { axes } => {
                let mut blocks = self.blocks;
                if let Some(b) = &mut blocks {
                    // Axes of the result, ascending.
                    b.axis = axes.iter().fold(b.axis, |at, axis| if *axis <= at { at + 1 } else { at });
                }
                self.map(blocks, |at| seen(at, views::unsqueeze(&at.view, axes)))
            }
            Op::Squeeze { axes } => {
                let mut blocks = self.blocks;
                if let Some(b) = &mut blocks {
                    if axes.contains(&b.axis) {
                        return None;
                    }
                    b.axis -= axes.iter().filter(|a| **a < b.axis).count();
                }
                self.map(blocks, |at| seen(at, views::squeeze(&at.view, axes)))
            }
            _ => None,
        }
    }

    /// The first `count` along an axis.
    fn first(&self, axis: usize, count: u32) -> Option<Coded> {
        let cut = |at: &Located, count: u32| match at.view.shape.get(axis)? {
            1 => Some(at.clone()),
            _ => seen(at, views::slice(&at.view, axis, 0, 1, count)),
        };
        let entries = match self.blocks.filter(|b| b.axis == axis) {
            Some(b) => count.div_ceil(u32::try_from(b.size).ok()?),
            None => count,
        };
        let zero = match &self.zero {
            Some(zero) => Some(cut(zero, entries)?),
            None => None,
        };
        let (x, scale) = (cut(&self.x, count)?, cut(&self.scale, entries)?);
        Some(Coded { x, scale, zero, blocks: self.blocks })
    }

    /// As the right operand `[.., K, N]` of a product; `None` where the kernel does not read it so.
    pub(super) fn for_product(&self, transposed: bool) -> Option<(Located, Code)> {
        let rank = self.x.view.shape.len();
        if rank < 2 {
            return None;
        }
        let turned = if transposed { self.transposed(&[1, 0])? } else { self.clone() };
        let rows = rank - 2;
        let varies = |axis: usize| {
            let along = |at: &Located| at.view.shape[axis] != 1;
            along(&turned.scale) || turned.zero.as_ref().is_some_and(along)
        };
        let block = match turned.blocks {
            Some(b) if b.axis == rows => u32::try_from(b.size).ok()?,
            Some(b) if varies(b.axis) => return None,
            _ => 1,
        };
        if varies(rows) && !block.is_power_of_two() {
            return None;
        }
        Some((turned.x, Code { scale: turned.scale, zero: turned.zero, block }))
    }
}

impl Lowering<'_> {
    /// Whether a node turns constant integers into floats: it is computed where it is read.
    pub(super) fn is_coded(&self, node: &Node) -> bool {
        let constant = node.input(0).is_some_and(|v| self.graph.tensor(v).is_some());
        constant && matches!(node.op, Op::Dequantize { .. })
    }

    /// A Dequantize that no program computes.
    pub(super) fn dequantize(&mut self, node: &Node, blocks: Option<Blocks>) -> Done {
        let [Some(x), Some(scale)] = [node.input(0), node.input(1)] else {
            return unsupported("an operand is missing");
        };
        let name = self.name(node);
        let out = node.outputs[0];
        let shape = self.shape(out)?;
        let (x, rank) = (self.matrix(x)?, shape.len());
        // Scales of several layers spread what the layers share.
        let x = seen(&x, views::broadcast(&x.view, &shape)).ok_or(Failure::Shape(out))?;
        let parameter = |l: &mut Self, v: ValueId| match of_rank(l.matrix(v)?, rank) {
            Some(at) => Ok(at),
            None => unsupported("a scale of more axes than x"),
        };
        let scale = parameter(self, scale)?;
        let zero = node.input(2).map(|v| parameter(self, v)).transpose()?;
        let coded = Coded { x, scale, zero, blocks };
        if self.is_coded(node) {
            self.coded.insert(out, coded);
            return Ok(());
        }
        let to = self.result(out)?;
        self.decode(&name, &coded, &to)?;
        self.set(out, to);
        Ok(())
    }

    /// The floats of a coded value, if it is one and they have not been asked for yet.
    pub(super) fn decoded(&mut self, v: ValueId) -> Done<Option<Located>> {
        let Some(coded) = self.coded.get(&v).cloned() else { return Ok(None) };
        let (shape, name) = (self.shape(v)?, self.value_name(v));
        let out = self.fresh(&shape, Scalar::F32);
        self.decode(&name, &coded, &out)?;
        self.set(v, out.clone());
        Ok(Some(out))
    }

    /// A view of a coded value, where it is one that the view leaves coded.
    pub(super) fn coded_view(&mut self, node: &Node) -> Done<bool> {
        let Some(coded) = node.input(0).and_then(|v| self.coded.get(&v).cloned()) else { return Ok(false) };
        let out = node.outputs[0];
        let viewed = match &node.op {
            Op::Slice { axes, steps } if steps.iter().all(|s| *s == 1) => {
                let starts = node.input(1).and_then(|v| self.statics.ints(v)).unwrap_or_default();
                let shape = self.shape(out)?;
                let from_start = starts.len() == axes.len() && starts.iter().all(|s| *s == 0);
                axes.iter()
                    .try_fold(coded, |coded, axis| coded.first(*axis, *shape.get(*axis)?))
                    .filter(|_| from_start)
            }
            op => coded.viewed(op),
        };
        match viewed {
            Some(viewed) => {
                self.coded.insert(out, viewed);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Rows of a coded table, if `data` is one: integers and parameters are gathered, then decoded.
    pub(super) fn gather_coded(&mut self, node: &Node, data: ValueId, axis: usize) -> Done<bool> {
        let Some(coded) = self.coded.get(&data).cloned() else { return Ok(false) };
        if coded.blocks.is_some_and(|b| b.axis == axis) {
            return Ok(false);
        }
        let (name, out) = (self.name(node), node.outputs[0]);
        let Some(indices) = node.input(1) else { return unsupported("the indices are missing") };
        let size = coded.x.view.shape.get(axis).copied().unwrap_or(0);
        self.check_indices(&name, indices, size);
        let indices = self.located(indices)?;
        let count = indices.view.shape.len();
        let take = |l: &mut Self, from: &Located| -> Done<Located> {
            let mut shape = from.view.shape.clone();
            if shape.get(axis) == Some(&1) && size != 1 {
                shape.splice(axis..=axis, std::iter::repeat_n(1, count));
                return seen(from, views::reshape(&from.view, &shape)).ok_or(Failure::Shape(out));
            }
            shape.splice(axis..=axis, indices.view.shape.iter().copied());
            let to = l.fresh(&shape, from.scalar.unpacked());
            if !to.view.is_empty() {
                let (data, index, result) = (l.bind(from)?, l.bind(&indices)?, l.bind(&to)?);
                let launch = Gather {
                    data: &data.operand,
                    indices: &index.operand,
                    out: &result.operand,
                    axis,
                    kind: GatherKind::Slices,
                    rows: None,
                    bounds: Bounds::Clamp,
                }
                .launch(l.limits)?;
                l.emit(&name, launch, &[&data, &index, &result])?;
            }
            Ok(to)
        };
        let (x, scale) = (take(self, &coded.x)?, take(self, &coded.scale)?);
        let zero = match &coded.zero {
            Some(zero) => Some(take(self, zero)?),
            None => None,
        };
        let shifted =
            |b: Blocks| Blocks { axis: if b.axis > axis { b.axis + count - 1 } else { b.axis }, ..b };
        let rows = Coded { x, scale, zero, blocks: coded.blocks.map(shifted) };
        let to = self.result(out)?;
        self.decode(&name, &rows, &to)?;
        self.set(out, to);
        Ok(true)
    }

    /// `(x - zero) · scale`.
    fn decode(&mut self, name: &str, coded: &Coded, out: &Located) -> Done {
        let [x, scale, zero, out] = self.split_blocks(name, coded, out)?;
        let (Some(x), Some(scale), Some(out)) = (x, scale, out) else {
            return unsupported("blocks that do not divide their axis");
        };
        let mut program = Program::new(if zero.is_some() { 3 } else { 2 });
        let mut integers = Reg::Input(0);
        if zero.is_some() {
            integers = program.step(ElementOp::SubI, &[integers, Reg::Input(2)]);
        }
        let floats = program.step(ElementOp::IToF, &[integers]);
        let product = program.step(ElementOp::MulF, &[floats, Reg::Input(1)]);
        program.results = vec![product];
        let inputs: Vec<Located> = [Some(x), Some(scale), zero].into_iter().flatten().collect();
        self.program(name, &program, &inputs, &[], &out)
    }

    /// Integers, scale, zero point and result with an axis for the elements of a block.
    fn split_blocks(&mut self, name: &str, coded: &Coded, out: &Located) -> Done<[Option<Located>; 4]> {
        let whole = [Some(coded.x.clone()), Some(coded.scale.clone()), coded.zero.clone(), Some(out.clone())];
        let long = |at: &Located, b: Blocks| at.view.shape[b.axis] != 1;
        let blocks = coded
            .blocks
            .filter(|b| long(&coded.scale, *b) || coded.zero.as_ref().is_some_and(|z| long(z, *b)));
        let Some(blocks) = blocks else { return Ok(whole) };
        let mut shape = out.view.shape.clone();
        let size = u32::try_from(blocks.size).unwrap_or(u32::MAX);
        if size == 0 || !shape[blocks.axis].is_multiple_of(size) {
            return Ok([None, None, None, None]);
        }
        shape[blocks.axis] /= size;
        shape.insert(blocks.axis + 1, size);
        let x = match views::reshape(&coded.x.view, &shape) {
            Some(view) => Some(Located { view, ..coded.x.clone() }),
            None => {
                let dense = self.copied(name, &coded.x)?;
                seen(&dense, views::reshape(&dense.view, &shape))
            }
        };
        let spread = |at: &Located| seen(at, views::unsqueeze(&at.view, &[blocks.axis + 1]));
        let zero = coded.zero.as_ref().and_then(spread);
        Ok([x, spread(&coded.scale), zero, seen(out, views::reshape(&out.view, &shape))])
    }
}
