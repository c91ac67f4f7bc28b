//! What is wanted of an operator's operands, given what is wanted of its result.
//!
//! Every axis whose size depends on the number of positions is wanted in rows (those of the new positions,
//! perhaps shifted) or whole. Sizes are `length + c`: row `r` of any axis is position `r` shifted by what
//! slices and concatenations in between say, which is what the rules account for.

use super::Frame;
use crate::ir::{Attention, CorrectionForm, Dim, Node, Op, RotaryTable, Tensor, ValueId};
use crate::rewrite::matching::reshaped_axis;

/// What is wanted along an axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(super) enum Span {
    /// Everything of an axis that has nothing to do with positions.
    Whole,
    /// Rows `position + lo .. position + step + hi`.
    Rows { lo: Dim, hi: Dim },
    /// Every row that there is room for; those beyond the present position hold anything.
    All,
}

/// One span for each axis.
pub(super) type Want = Vec<Span>;

/// How a part of a value is made.
pub(super) struct Recipe {
    /// Parts of operands.
    pub operands: Vec<Option<(ValueId, Want)>>,
    pub make: Make,
}

pub(super) enum Make {
    /// The operator on the operands' parts.
    Op(Op),
    /// The operator on the first operand, if there is one, and sizes.
    Sized(Op, Vec<Dim>),
    Constant(Tensor),
    /// Rows of a table.
    Lookup {
        axis: usize,
        lo: Dim,
        hi: Dim,
    },
    /// Rows of more rows, which begin at `from`.
    Narrow {
        axis: usize,
        from: Dim,
        lo: Dim,
        hi: Dim,
    },
    /// A slice of the first operand.
    Cut(Cut),
    /// The input.
    Tokens,
    /// The operand written into a cache.
    Store {
        axis: usize,
    },
    /// Attention whose first query stands at `position + lo`.
    Attention(Attention, Dim),
    /// Rows of a concatenation along the positions.
    Join {
        axis: usize,
        offsets: Vec<Piece>,
        lo: Dim,
        hi: Dim,
    },
}

/// Bounds of a slice.
#[derive(Default)]
pub(super) struct Cut {
    pub axes: Vec<usize>,
    pub steps: Vec<i64>,
    pub starts: Vec<Dim>,
    pub ends: Vec<Dim>,
}

impl Cut {
    fn push(&mut self, axis: usize, step: i64, start: &Dim, end: &Dim) {
        self.axes.push(axis);
        self.steps.push(step);
        self.starts.push(start.clone());
        self.ends.push(end.clone());
    }
}

/// A piece of fixed size in a concatenation along the positions.
pub(super) struct Piece {
    /// The first row that it holds, and the first behind it.
    pub offset: i64,
    pub end: i64,
    /// Rows it has, where they have to be looked up; else it comes in the rows wanted.
    pub lookup: Option<i64>,
}

type Rule<T = Recipe> = Result<T, String>;

fn stop<T>(reason: impl Into<String>) -> Rule<T> {
    Err(reason.into())
}

const MIXES: &str = "it mixes positions otherwise than causal attention does";
const LENGTH: &str = "what it computes depends on the length of the whole sequence";

/// The rows of the new positions, along the one axis of positions.
pub(super) fn rows_of(frame: &Frame<'_>, v: ValueId) -> Rule<Want> {
    let Some(shape) = frame.shape(v) else { return stop("its type is not known") };
    let along: Vec<usize> = (0..shape.len()).filter(|i| frame.has_length(&shape[*i])).collect();
    match along[..] {
        [axis] if frame.beyond_length(&shape[axis]) == Some(0) => {
            Ok(with(shape.len(), axis, Span::Rows { lo: Dim::ZERO, hi: Dim::ZERO }))
        }
        // The result for the last position alone, or one that has nothing to do with positions.
        [] => Ok(vec![Span::Whole; shape.len()]),
        _ => stop(format!("it has the shape {shape:?}, which is not one row for each position")),
    }
}

fn with(rank: usize, axis: usize, span: Span) -> Want {
    let mut want = vec![Span::Whole; rank];
    want[axis] = span;
    want
}

/// Whether `a ≤ b` for every number of new positions from one on.
pub(super) fn at_most(a: &Dim, b: &Dim) -> bool {
    (b.clone() - a.clone()).is_non_negative_for_sizes()
}

/// The only axis wanted otherwise than whole.
fn single(want: &Want) -> Option<(usize, &Span)> {
    let mut spans = want.iter().enumerate().filter(|(_, s)| **s != Span::Whole);
    spans.next().filter(|_| spans.next().is_none())
}

/// Where all rows of something that depends on the tokens are wanted, they are kept in a cache: the recipe,
/// and the rows to write. Where some rows are wanted of something that does not, they are looked up: the
/// recipe, and the whole table.
pub(super) fn stored(frame: &Frame<'_>, v: ValueId, want: &Want) -> Rule<Option<(Recipe, Want)>> {
    let Some((axis, span)) = single(want) else { return Ok(None) };
    let shape = frame.shape(v).unwrap_or_default();
    match span {
        Span::All if frame.varies(v) => {
            let dtype = frame.graph.ty(v).map(|t| t.dtype);
            if frame.beyond_length(&shape[axis]) != Some(0) {
                return stop(MIXES);
            }
            if !dtype.is_some_and(|d| d.is_float()) {
                return stop("it wants all positions of something that is no float");
            }
            if shape.iter().enumerate().any(|(i, d)| i != axis && d.known().is_none()) {
                return stop(format!("a cache of shape {shape:?} has no size"));
            }
            let rows = with(shape.len(), axis, Span::Rows { lo: Dim::ZERO, hi: Dim::ZERO });
            let recipe = Recipe { operands: vec![Some((v, rows.clone()))], make: Make::Store { axis } };
            Ok(Some((recipe, rows)))
        }
        _ => Ok(looked_up(frame, v, want)),
    }
}

/// Rows of one axis of a table whose other axes are wanted whole or entirely, with the table.
pub(super) fn looked_up(frame: &Frame<'_>, v: ValueId, want: &Want) -> Option<(Recipe, Want)> {
    let rows = |s: &Span| matches!(s, Span::Rows { .. });
    let axis = want.iter().position(rows)?;
    if frame.varies(v) || want.iter().filter(|s| rows(s)).count() != 1 {
        return None;
    }
    let Span::Rows { lo, hi } = &want[axis] else { return None };
    let mut table = want.clone();
    table[axis] = Span::All;
    let make = Make::Lookup { axis, lo: lo.clone(), hi: hi.clone() };
    Some((Recipe { operands: vec![Some((v, table.clone()))], make }, table))
}

/// The wants with those united that differ in the bounds of one axis of rows.
pub(super) fn united(wants: &[Want]) -> Vec<Want> {
    let mut out: Vec<Want> = vec![];
    for want in wants {
        let joined = out.iter_mut().find_map(|other| union(other, want).map(|u| (other, u)));
        match joined {
            Some((other, union)) => *other = union,
            None => out.push(want.clone()),
        }
    }
    out
}

/// One want for both, if they differ in the bounds of rows at most and it is known which bound is outer.
fn union(a: &Want, b: &Want) -> Option<Want> {
    let outer = |x: &Dim, y: &Dim| {
        if at_most(x, y) { Some(x.clone()) } else { at_most(y, x).then(|| y.clone()) }
    };
    let mut differ = 0;
    let spans = a.iter().zip(b).map(|(a, b)| match (a, b) {
        (a, b) if a == b => Some(a.clone()),
        (Span::Rows { lo, hi }, Span::Rows { lo: low, hi: high }) => {
            differ += 1;
            let negated = |d: &Dim| Dim::ZERO - d.clone();
            let hi = negated(&outer(&negated(hi), &negated(high))?);
            Some(Span::Rows { lo: outer(lo, low)?, hi })
        }
        _ => None,
    });
    let spans: Option<Want> = spans.collect();
    spans.filter(|_| differ <= 1)
}

/// How a want is cut out of the one among `whole` that holds it; `None` where it is one of them.
pub(super) fn narrowed(v: ValueId, want: &Want, whole: &[Want]) -> Option<Recipe> {
    if whole.contains(want) {
        return None;
    }
    let outer = whole.iter().find(|w| union(w, want).as_ref() == Some(*w))?;
    let axis = (0..want.len()).find(|i| want[*i] != outer[*i])?;
    let (Span::Rows { lo, hi }, Span::Rows { lo: from, .. }) = (&want[axis], &outer[axis]) else {
        return None;
    };
    let make = Make::Narrow { axis, from: from.clone(), lo: lo.clone(), hi: hi.clone() };
    Some(Recipe { operands: vec![Some((v, outer.clone()))], make })
}

/// What is wanted of `node`'s operands for a part of its result number `at`.
pub(super) fn rule(frame: &Frame<'_>, node: &Node, at: usize, want: &Want) -> Rule {
    let Some(shape) = node.outputs.get(at).and_then(|v| frame.shape(*v)) else {
        return stop("its type is not known");
    };
    for (d, span) in shape.iter().zip(want) {
        let fits = match span {
            Span::Whole => !frame.has_length(d),
            _ => frame.beyond_length(d).is_some(),
        };
        if !fits {
            return stop(format!("an axis has the size {d}"));
        }
    }
    Rules { frame, node, shape, want }.rule()
}

struct Rules<'a> {
    frame: &'a Frame<'a>,
    node: &'a Node,
    shape: &'a [Dim],
    want: &'a Want,
}

impl Rules<'_> {
    fn rule(&self) -> Rule {
        let rank = self.shape.len();
        match &self.node.op {
            Op::Identity | Op::Unary(_) | Op::Binary(_) | Op::Where | Op::Cast { .. } | Op::Clip => {
                self.elementwise()
            }
            Op::Quantize { blocks: None, .. } | Op::Dequantize { blocks: None } => self.elementwise(),
            Op::Quantize { .. } | Op::Dequantize { .. } => self.fixed_operands(),
            Op::Rotary(rotary) => self.rotary(rotary.table),
            Op::MatMul | Op::MatMulInteger => self.matmul(),
            Op::Gemm { trans_a, trans_b, .. } => self.gemm(*trans_a, *trans_b),
            Op::Einsum { equation } => self.einsum(equation),
            Op::Softmax { axis } | Op::LogSoftmax { axis } => self.along(&[*axis], None),
            Op::TopK { axis, .. } => self.along(&[*axis], None),
            Op::CumSum { axis, exclusive: false, reverse: false } => self.cumulative(*axis),
            Op::CumSum { axis, .. } => self.along(&[*axis], None),
            Op::Reduce { axes, keepdims, .. } => self.along(axes, Some(*keepdims)),
            Op::ArgMax { axis, keepdims, .. } | Op::ArgMin { axis, keepdims, .. } => {
                self.along(&[*axis], Some(*keepdims))
            }
            Op::DynamicQuantize { axes } => self.dynamic_quantize(axes),
            Op::LayerNorm { axis, .. } | Op::RmsNorm { axis, .. } => {
                self.along(&(*axis..rank).collect::<Vec<_>>(), None)
            }
            Op::Transpose { perm } => {
                let mut part = vec![Span::Whole; rank];
                perm.iter().zip(self.want).for_each(|(from, span)| part[*from] = span.clone());
                self.same(vec![Some(part)])
            }
            Op::Squeeze { axes } => {
                let mut spans = self.want.iter().cloned();
                let n = rank + axes.len();
                let part = (0..n).map(|i| if axes.contains(&i) { None } else { spans.next() });
                self.same(vec![Some(part.map(|s| s.unwrap_or(Span::Whole)).collect())])
            }
            Op::Unsqueeze { axes } => {
                let kept = (0..rank).filter(|i| !axes.contains(i)).map(|i| self.want[i].clone());
                self.same(vec![Some(kept.collect())])
            }
            Op::Reshape { .. } => self.reshape(),
            Op::Expand => {
                let part = self.broadcast(0, self.shape, self.want)?;
                Ok(Recipe { operands: vec![part], make: Make::Sized(Op::Expand, self.sizes()) })
            }
            Op::ConstantOfShape { .. } => {
                Ok(Recipe { operands: vec![], make: Make::Sized(self.node.op.clone(), self.sizes()) })
            }
            Op::Range => self.range(),
            Op::Dims { .. } => self.dims(),
            Op::Concat { axis } => self.concat(*axis),
            Op::Slice { axes, steps } => self.slice(axes, steps),
            Op::Gather { axis } => self.gather(*axis),
            Op::GatherElements { axis } | Op::ScatterElements { axis, .. } => self.elements(*axis),
            Op::OneHot { axis } => self.one_hot(*axis),
            Op::Trilu { .. } => self.trilu(),
            Op::Attention(attention) => self.attention(attention),
            Op::Correction(correction) => self.correction(correction.form, correction.last_only),
            _ => self.fixed_operands(),
        }
    }

    fn sizes(&self) -> Vec<Dim> {
        self.frame.sizes(self.shape, self.want)
    }

    /// The sizes of an operand.
    fn operand(&self, i: usize) -> Rule<(ValueId, &[Dim])> {
        let v = self.node.input(i).ok_or("an operand is missing")?;
        Ok((v, self.frame.shape(v).ok_or("the type of an operand is not known")?))
    }

    /// The same operator on these parts; operands without one are wanted whole.
    fn same(&self, parts: Vec<Option<Want>>) -> Rule {
        let mut operands = vec![];
        for (i, v) in self.node.inputs.iter().enumerate() {
            operands.push(match (v, parts.get(i).cloned().flatten()) {
                (None, _) => None,
                (Some(v), Some(part)) => Some((*v, part)),
                (Some(_), None) => Some(self.whole(i)?),
            });
        }
        Ok(Recipe { operands, make: Make::Op(self.node.op.clone()) })
    }

    /// An operand that has nothing to do with positions.
    fn whole(&self, i: usize) -> Rule<(ValueId, Want)> {
        let (v, shape) = self.operand(i)?;
        if shape.iter().any(|d| self.frame.has_length(d)) {
            return stop(MIXES);
        }
        Ok((v, vec![Span::Whole; shape.len()]))
    }

    /// An operator of which nothing is known but that nothing of it has to do with positions.
    fn fixed_operands(&self) -> Rule {
        if self.want.iter().any(|s| *s != Span::Whole) {
            return stop(format!("no rule says which positions {} reads", self.node.op.name()));
        }
        self.same(vec![])
    }

    /// The part of an operand that is broadcast to `shape`, of which `want` is wanted.
    fn broadcast(&self, i: usize, shape: &[Dim], want: &[Span]) -> Rule<Option<(ValueId, Want)>> {
        if self.node.input(i).is_none() {
            return Ok(None);
        }
        let (v, sizes) = self.operand(i)?;
        let Some(lead) = shape.len().checked_sub(sizes.len()) else { return stop("its operands do not fit") };
        let mut part = vec![];
        for (d, (whole, span)) in sizes.iter().zip(shape[lead..].iter().zip(&want[lead..])) {
            part.push(match span {
                Span::Whole if self.frame.has_length(d) => return stop(MIXES),
                Span::Whole => Span::Whole,
                _ if d == whole => span.clone(),
                _ if *d == Dim::ONE => Span::Whole,
                _ => return stop(format!("sizes {d} and {whole} meet")),
            });
        }
        Ok(Some((v, part)))
    }

    fn broadcast_all(
        &self,
        count: usize,
        shape: &[Dim],
        want: &[Span],
    ) -> Rule<Vec<Option<(ValueId, Want)>>> {
        (0..count).map(|i| self.broadcast(i, shape, want)).collect()
    }

    fn elementwise(&self) -> Rule {
        let operands = self.broadcast_all(self.node.inputs.len(), self.shape, self.want)?;
        Ok(Recipe { operands, make: Make::Op(self.node.op.clone()) })
    }

    fn rotary(&self, table: RotaryTable) -> Rule {
        let mut tables = self.shape.to_vec();
        if let (RotaryTable::Half, Some(last)) = (table, tables.last_mut()) {
            *last = last.floor_div(&Dim::from(2usize)).ok_or("a head of odd size")?;
        }
        let mut operands = vec![self.broadcast(0, self.shape, self.want)?];
        for i in [1, 2] {
            operands.push(self.broadcast(i, &tables, self.want)?);
        }
        Ok(Recipe { operands, make: Make::Op(self.node.op.clone()) })
    }

    /// A batch of products: rows of the first operand, columns of the second.
    fn matmul(&self) -> Rule {
        let ((_, a), (_, b)) = (self.operand(0)?, self.operand(1)?);
        let n = self.shape.len();
        if a.len() < 2 || b.len() < 2 || n < 2 {
            return self.fixed_operands();
        }
        let inner = a[a.len() - 1].clone();
        if self.frame.has_length(&inner) {
            return stop(MIXES);
        }
        let frame_of = |row: Option<usize>, column: Option<usize>| -> (Vec<Dim>, Want) {
            let axis = |i: Option<usize>| {
                i.map_or((Dim::ONE, Span::Whole), |i| (self.shape[i].clone(), self.want[i].clone()))
            };
            let tail = [axis(row), axis(column)];
            let lead = self.shape[..n - 2].iter().cloned().zip(self.want[..n - 2].iter().cloned());
            lead.chain(tail).unzip()
        };
        // The contracted axis is wanted whole, whatever its size.
        let part = |i, row, column, contracted: usize| -> Rule<Option<(ValueId, Want)>> {
            let (mut shape, want) = frame_of(row, column);
            let at = shape.len() - contracted;
            shape[at] = inner.clone();
            self.broadcast(i, &shape, &want)
        };
        let mut operands = vec![part(0, Some(n - 2), None, 1)?, part(1, None, Some(n - 1), 2)?];
        if self.node.inputs.len() > 2 {
            operands.push(self.broadcast(
                2,
                &frame_of(Some(n - 2), None).0,
                &frame_of(Some(n - 2), None).1,
            )?);
            operands.push(self.broadcast(
                3,
                &frame_of(None, Some(n - 1)).0,
                &frame_of(None, Some(n - 1)).1,
            )?);
            operands.truncate(self.node.inputs.len());
        }
        Ok(Recipe { operands, make: Make::Op(self.node.op.clone()) })
    }

    fn gemm(&self, trans_a: bool, trans_b: bool) -> Rule {
        let [rows, columns] = &self.want[..] else { return stop("its result is no matrix") };
        let turned = |turned: bool, pair: [Span; 2]| {
            let mut pair = pair.to_vec();
            if turned {
                pair.reverse();
            }
            pair
        };
        for (i, inner) in [(0, usize::from(!trans_a)), (1, usize::from(trans_b))] {
            if self.operand(i)?.1.get(inner).is_none_or(|d| self.frame.has_length(d)) {
                return stop(MIXES);
            }
        }
        let a = turned(trans_a, [rows.clone(), Span::Whole]);
        let b = turned(trans_b, [Span::Whole, columns.clone()]);
        let mut recipe = self.same(vec![Some(a), Some(b), Some(vec![])])?;
        if self.node.input(2).is_some() {
            recipe.operands[2] = self.broadcast(2, self.shape, self.want)?;
        }
        Ok(recipe)
    }

    fn einsum(&self, equation: &str) -> Rule {
        let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let Some((operands, result)) = equation.split_once("->") else {
            return stop("its equation has no result");
        };
        if equation.contains('.') {
            return stop("its equation has an ellipsis");
        }
        let mut parts = vec![];
        for (i, letters) in operands.split(',').enumerate() {
            let (_, shape) = self.operand(i)?;
            let mut part = vec![];
            for (letter, d) in letters.chars().zip(shape) {
                part.push(match result.chars().position(|c| c == letter) {
                    Some(at) if *d == self.shape[at] => self.want[at].clone(),
                    _ if self.frame.has_length(d) => return stop(MIXES),
                    _ => Span::Whole,
                });
            }
            parts.push(Some(part));
        }
        self.same(parts)
    }

    /// An operator along `axes`, which it may remove; other axes pass through. Further operands have
    /// nothing to do with positions or lie along the axes that stay.
    fn along(&self, axes: &[usize], keepdims: Option<bool>) -> Rule {
        let (_, x) = self.operand(0)?;
        if axes.iter().any(|a| x.get(*a).is_none_or(|d| self.frame.has_length(d))) {
            return stop(MIXES);
        }
        let mut spans = self.want.iter().cloned();
        let part = (0..x.len()).map(|i| match axes.contains(&i) {
            true if keepdims == Some(false) => Span::Whole,
            true => {
                spans.next();
                Span::Whole
            }
            false => spans.next().unwrap_or(Span::Whole),
        });
        self.same(vec![Some(part.collect())])
    }

    /// A running sum over positions that do not depend on the tokens: the table of all.
    fn cumulative(&self, axis: usize) -> Rule {
        let (v, x) = self.operand(0)?;
        match (&self.want[axis], self.frame.varies(v)) {
            (Span::Whole, _) | (Span::All, false) if x.len() == self.want.len() => {
                self.same(vec![Some(self.want.clone())])
            }
            _ => stop(MIXES),
        }
    }

    fn dynamic_quantize(&self, axes: &[usize]) -> Rule {
        let (_, x) = self.operand(0)?;
        if axes.iter().any(|a| x.get(*a).is_none_or(|d| self.frame.has_length(d))) {
            return stop("the scale of a dynamic quantisation depends on all positions");
        }
        if self.shape.len() != x.len() {
            return self.along(axes, Some(false));
        }
        self.same(vec![Some(self.want.clone())])
    }

    /// The axis of positions must be one of the operand's too.
    fn reshape(&self) -> Rule {
        let (v, from) = self.operand(0)?;
        let mut part = vec![Span::Whole; from.len()];
        for (i, span) in self.want.iter().enumerate().filter(|(_, s)| **s != Span::Whole) {
            let Some(at) = reshaped_axis(from, self.shape, i) else {
                return stop(format!("it makes {:?} of {from:?}, which hides the positions", self.shape));
            };
            part[at] = span.clone();
        }
        if from.iter().zip(&part).any(|(d, s)| *s == Span::Whole && self.frame.has_length(d)) {
            return stop(format!("it makes {:?} of {from:?}, which hides the positions", self.shape));
        }
        let op = Op::Reshape { allow_zero: true };
        Ok(Recipe { operands: vec![Some((v, part))], make: Make::Sized(op, self.sizes()) })
    }

    fn known(&self, i: usize) -> Rule<Vec<Dim>> {
        let v = self.node.input(i).ok_or("an operand is missing")?;
        self.frame.graph.content(v).map(<[Dim]>::to_vec).ok_or_else(|| LENGTH.to_string())
    }

    fn range(&self) -> Rule {
        let number = |i| self.known(i)?.first().and_then(Dim::known).ok_or_else(|| LENGTH.to_string());
        if self.want.iter().all(|s| *s == Span::Whole) {
            return self.same(vec![]);
        }
        let (start, delta) = (number(0)?, number(2)?);
        let (Some(n), Span::All) = (self.sizes()[0].known(), &self.want[0]) else { return stop(LENGTH) };
        let dtype = self.node.outputs.first().and_then(|v| self.frame.graph.ty(*v)).map(|t| t.dtype);
        let nth = |i: i64| start.saturating_add(i.saturating_mul(delta));
        let table = Tensor::ints(&(0..n).map(nth).collect::<Vec<_>>());
        match dtype {
            Some(crate::ir::DType::I64) => Ok(Recipe { operands: vec![], make: Make::Constant(table) }),
            other => stop(format!("a range of {other:?}")),
        }
    }

    fn dims(&self) -> Rule {
        match &self.node.op {
            Op::Dims { dims, .. } if dims.iter().any(|d| self.frame.has_length(d)) => stop(LENGTH),
            op => Ok(Recipe { operands: vec![], make: Make::Op(op.clone()) }),
        }
    }

    fn concat(&self, axis: usize) -> Rule {
        let Span::Rows { lo, hi } = &self.want[axis] else {
            let mut parts = vec![];
            for i in 0..self.node.inputs.len() {
                let (v, shape) = self.operand(i)?;
                let mut part = self.want.clone();
                if self.want[axis] == Span::All {
                    // Pieces of a table follow one another; only the last one grows.
                    let last = i + 1 == self.node.inputs.len();
                    part[axis] = match self.frame.has_length(&shape[axis]) {
                        true if last && !self.frame.varies(v) => Span::All,
                        false if !last => Span::Whole,
                        _ => return stop(MIXES),
                    };
                }
                parts.push(Some(part));
            }
            return self.same(parts);
        };
        let mut at = 0;
        let (mut offsets, mut operands) = (vec![], vec![]);
        for i in 0..self.node.inputs.len() {
            let (v, shape) = self.operand(i)?;
            let mut part = self.want.clone();
            let last = i + 1 == self.node.inputs.len();
            match shape[axis].known() {
                Some(n) if !last => {
                    // A piece of what has a row for each position serves these rows in its place.
                    let beside = self.frame.varies(v).then(|| self.leading(v, axis, at)).flatten();
                    let lookup = beside.is_none().then_some(n);
                    if lookup.is_some() {
                        if self.frame.varies(v) {
                            return stop(MIXES);
                        }
                        part[axis] = Span::Whole;
                    }
                    operands.push(Some((beside.unwrap_or(v), part)));
                    offsets.push(Piece { offset: at, end: at + n, lookup });
                    at += n;
                }
                None if last => {
                    let by = |d: &Dim| d.clone() - Dim::from(at);
                    part[axis] = Span::Rows { lo: by(lo), hi: by(hi) };
                    operands.push(Some((v, part)));
                }
                _ => return stop(MIXES),
            }
        }
        let make = Make::Join { axis, offsets, lo: lo.clone(), hi: hi.clone() };
        Ok(Recipe { operands, make })
    }

    /// `x` where `v` is `x[at .. at + n]` along `axis`.
    fn leading(&self, v: ValueId, axis: usize, at: i64) -> Option<ValueId> {
        let node = self.frame.graph.producing(v)?;
        let Op::Slice { axes, steps } = &node.op else { return None };
        let start = self.frame.graph.content(node.input(1)?)?;
        let fits = axes[..] == [axis] && steps[..] == [1] && start.first()?.known() == Some(at);
        let x = node.input(0)?;
        let whole = self.frame.beyond_length(self.frame.shape(x)?.get(axis)?) == Some(0);
        (fits && whole).then_some(x)
    }

    fn slice(&self, axes: &[usize], steps: &[i64]) -> Rule {
        let (v, from) = self.operand(0)?;
        let positions = |axis: &usize| self.frame.has_length(&from[*axis]);
        if !axes.iter().any(|a| positions(a) || self.want[*a] != Span::Whole) {
            return self.same(vec![Some(self.want.clone())]);
        }
        let (starts, ends) = (self.known(1)?, self.known(2)?);
        let mut part = self.want.clone();
        // What remains to be cut after the operand came in the rows wanted.
        let mut cut = Cut::default();
        for (n, axis) in axes.iter().copied().enumerate() {
            let (Some(start), Some(end)) = (starts.get(n), ends.get(n)) else { return stop("no bounds") };
            let negative = start.known().is_some_and(|s| s < 0);
            let first = if negative { from[axis].clone() + start.clone() } else { start.clone() };
            if !positions(&axis) {
                match self.want[axis] {
                    Span::Whole => cut.push(axis, steps[n], start, end),
                    // The beginning of a table, as far as there is room.
                    Span::All if steps[n] == 1 && !self.frame.has_length(&first) => {
                        let size = self.frame.size(&self.shape[axis], &Span::All);
                        cut.push(axis, 1, &first, &(first.clone() + size));
                        part[axis] = Span::Whole;
                    }
                    _ => return stop(MIXES),
                }
                continue;
            }
            if steps[n] != 1 {
                return stop(MIXES);
            }
            part[axis] = match &self.want[axis] {
                Span::Rows { lo, hi } => {
                    if self.frame.has_length(&first) {
                        return stop(LENGTH);
                    }
                    Span::Rows { lo: lo.clone() + first.clone(), hi: hi.clone() + first }
                }
                Span::All if first == Dim::ZERO && self.shape[axis] == from[axis] => Span::All,
                Span::All => return stop(MIXES),
                // A few rows counted from the end are counted from the last position.
                Span::Whole => match self.frame.beyond_length(&first) {
                    Some(c) => Span::Rows {
                        lo: self.frame.step.clone() + Dim::from(c),
                        hi: Dim::from(c) + self.shape[axis].clone(),
                    },
                    None => return stop(MIXES),
                },
            };
        }
        let make = if cut.axes.is_empty() { Make::Op(Op::Identity) } else { Make::Cut(cut) };
        Ok(Recipe { operands: vec![Some((v, part))], make })
    }

    fn gather(&self, axis: usize) -> Rule {
        let ((v, data), (_, indices)) = (self.operand(0)?, self.operand(1)?);
        let (lead, rest) = self.want.split_at(axis);
        let (of_indices, tail) = rest.split_at(indices.len());
        let mut part = lead.to_vec();
        part.push(match self.frame.has_length(&data[axis]) {
            false => Span::Whole,
            true if !self.frame.varies(v) => Span::All,
            true => return stop(MIXES),
        });
        part.extend(tail.iter().cloned());
        self.same(vec![Some(part), Some(of_indices.to_vec())])
    }

    /// All operands have the result's axes, but for one that has nothing to do with positions.
    fn elements(&self, axis: usize) -> Rule {
        let mut parts = vec![];
        for i in 0..self.node.inputs.len() {
            let (_, shape) = self.operand(i)?;
            let others = |i: &usize| *i != axis;
            let equal = shape.len() == self.shape.len()
                && (0..shape.len()).filter(others).all(|i| shape[i] == self.shape[i]);
            if !equal || self.frame.has_length(&shape[axis]) {
                return stop(MIXES);
            }
            parts.push(Some(self.want.clone()));
        }
        self.same(parts)
    }

    fn one_hot(&self, axis: usize) -> Rule {
        let mut part = self.want.clone();
        if part.remove(axis) != Span::Whole {
            return stop(MIXES);
        }
        self.same(vec![Some(part)])
    }

    /// The triangle of a table.
    fn trilu(&self) -> Rule {
        let (v, _) = self.operand(0)?;
        let rows = |s: &Span| matches!(s, Span::Rows { .. });
        if self.frame.varies(v) || self.want.iter().any(rows) {
            return stop(MIXES);
        }
        self.same(vec![Some(self.want.clone())])
    }

    fn attention(&self, attention: &Attention) -> Rule {
        let ((_, q), (_, k)) = (self.operand(0)?, self.operand(1)?);
        let n = self.shape.len();
        let (t, s) = (&q[q.len() - 2], &k[k.len() - 2]);
        if !self.frame.has_length(t) && !self.frame.has_length(s) {
            return self.fixed_operands();
        }
        if !attention.causal || t != s {
            return stop("attention sees later positions, or it cannot be shown that it does not");
        }
        let Span::Rows { lo, .. } = &self.want[n - 2] else { return stop(MIXES) };
        let whole = |span: &Span| *span == Span::Whole;
        if !self.want[..n - 2].iter().all(whole) || !whole(&self.want[n - 1]) {
            return stop(MIXES);
        }
        let mut operands =
            vec![Some((self.operand(0)?.0, with(q.len(), q.len() - 2, self.want[n - 2].clone())))];
        for i in [1, 2] {
            let (v, shape) = self.operand(i)?;
            operands.push(Some((v, with(shape.len(), shape.len() - 2, Span::All))));
        }
        for (i, last) in [(3, (s.clone(), Span::All)), (4, (Dim::ONE, Span::Whole))] {
            let mut shape = self.shape.to_vec();
            let mut want = self.want.clone();
            (shape[n - 1], want[n - 1]) = last;
            operands.push(self.broadcast(i, &shape, &want)?);
        }
        Ok(Recipe { operands, make: Make::Attention(*attention, lo.clone()) })
    }

    fn correction(&self, form: CorrectionForm, last_only: bool) -> Rule {
        let (_, f) = self.operand(0)?;
        let mut whole = self.want.clone();
        if last_only {
            whole.insert(0, Span::Whole);
        }
        if whole.len() != f.len() || whole[0] != Span::Whole {
            return stop("its units do not fit");
        }
        let (_, s) = self.operand(1)?;
        let of_s = if s.len() == f.len() { whole.clone() } else { whole[1..].to_vec() };
        let mut parts = vec![Some(whole.clone()), Some(of_s)];
        if let CorrectionForm::Scan { stream_axis } = form {
            let mut tokens = whole[..whole.len() - 1].to_vec();
            tokens.remove(stream_axis as usize);
            tokens.extend([Span::Whole, Span::Whole]);
            parts.push(Some(tokens));
        }
        self.same(parts)
    }
}
