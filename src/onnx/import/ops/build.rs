//! Short forms for the graphs that fused operators are taken apart into.

use snlp_passes::ir::{Binary, DType, Dim, Op, Tensor, ValueId};

use super::{Decline, NodeContext};

impl NodeContext<'_> {
    pub(super) fn binary(&mut self, op: Binary, a: ValueId, b: ValueId) -> Result<ValueId, Decline> {
        self.add(Op::Binary(op), &[a, b])
    }

    pub(super) fn unsqueeze(&mut self, v: ValueId, axes: &[usize]) -> Result<ValueId, Decline> {
        self.add(Op::Unsqueeze { axes: axes.to_vec() }, &[v])
    }

    pub(super) fn transpose(&mut self, v: ValueId, perm: &[usize]) -> Result<ValueId, Decline> {
        self.add(Op::Transpose { perm: perm.to_vec() }, &[v])
    }

    /// Elements `from..to` of an axis.
    pub(super) fn slice(&mut self, v: ValueId, axis: usize, from: i64, to: i64) -> Result<ValueId, Decline> {
        let (from, to) = (self.graph.ints(&[from]), self.graph.ints(&[to]));
        self.add(Op::Slice { axes: vec![axis], steps: vec![1] }, &[v, from, to])
    }

    /// The size as an int64 scalar.
    pub(super) fn size(&mut self, dim: &Dim) -> Result<ValueId, Decline> {
        if !self.computable(dim) {
            return Err(Decline::Opaque);
        }
        Ok(self.graph.dim_scalar(dim)?)
    }

    /// `0..n` as int64 `[n]`.
    pub(super) fn positions(&mut self, n: &Dim) -> Result<ValueId, Decline> {
        let (zero, one, end) = (self.graph.scalar(0i64), self.graph.scalar(1i64), self.size(n)?);
        self.add(Op::Range, &[zero, end, one])
    }

    /// `v` spread over `shape`.
    pub(super) fn expand(&mut self, v: ValueId, shape: &[Dim]) -> Result<ValueId, Decline> {
        let shape = self.dims(shape)?;
        self.add(Op::Expand, &[v, shape])
    }

    /// A tensor of one number.
    pub(super) fn filled(&mut self, dtype: DType, value: f64, shape: &[Dim]) -> Result<ValueId, Decline> {
        let value = self.graph.float_scalar(dtype, value);
        self.expand(value, shape)
    }

    /// `v` longer by `value`s at the end of an axis, which becomes `size`.
    pub(super) fn padded(
        &mut self,
        v: ValueId,
        axis: usize,
        size: &Dim,
        value: f64,
    ) -> Result<ValueId, Decline> {
        let ty = self.ty(v)?;
        let mut rest = ty.shape.clone();
        let Some(own) = rest.get_mut(axis) else { return Err(Decline::Opaque) };
        *own = size.clone() - own.clone();
        if *own == Dim::ZERO {
            return Ok(v);
        }
        let rest = if ty.dtype == DType::Bool {
            let value = Tensor::from_bools(vec![], &[value != 0.0]).map_err(|_| Decline::Opaque)?;
            let value = self.graph.constant(value);
            self.expand(value, &rest)?
        } else {
            self.filled(ty.dtype, value, &rest)?
        };
        self.add(Op::Concat { axis }, &[v, rest])
    }

    /// `v` with the sizes that it must have where its own are not known.
    pub(super) fn sized(&mut self, v: ValueId, shape: &[Option<i64>]) -> Result<ValueId, Decline> {
        let own = self.shape(v)?;
        if own.len() != shape.len() {
            return Err(Decline::Opaque);
        }
        if own.iter().zip(shape).all(|(own, wanted)| wanted.is_none() || own.known().is_some()) {
            return Ok(v);
        }
        let target: Vec<i64> = shape.iter().map(|n| n.unwrap_or(0)).collect();
        let target = self.graph.ints(&target);
        self.add(Op::Reshape { allow_zero: false }, &[v, target])
    }

    /// Both conditions.
    pub(super) fn both(&mut self, a: Option<ValueId>, b: ValueId) -> Result<ValueId, Decline> {
        match a {
            Some(a) => self.binary(Binary::And, a, b),
            None => Ok(b),
        }
    }
}
