//! What every family's inference needs: access to operands, errors, comparison of sizes.

use super::content::Small;
use super::{InferError, Inferred, Operand};
use crate::ir::{DType, Dim, Type};

/// The largest rank that inference makes.
pub(super) const MAX_RANK: usize = 64;

/// An error with this text.
pub(super) fn fail<T>(text: impl Into<String>) -> Result<T, InferError> {
    Err(InferError(text.into()))
}

/// The operands of one node.
pub(super) struct Context<'a, 'f> {
    operands: &'a [Option<Operand<'a>>],
    fresh: &'f mut (dyn FnMut() -> Dim + 'f),
}

impl<'a, 'f> Context<'a, 'f> {
    pub(super) fn new(operands: &'a [Option<Operand<'a>>], fresh: &'f mut (dyn FnMut() -> Dim + 'f)) -> Self {
        Context { operands, fresh }
    }

    /// The same node seen as another operator on other operands.
    pub(super) fn nested<'b, 's>(&'s mut self, operands: &'b [Option<Operand<'b>>]) -> Context<'b, 's> {
        Context { operands, fresh: &mut *self.fresh }
    }

    /// Number of operand places.
    pub(super) fn len(&self) -> usize {
        self.operands.len()
    }

    /// The operand at `i`, which the operator calls `role`.
    pub(super) fn required(&self, i: usize, role: &str) -> Result<Operand<'a>, InferError> {
        match self.optional(i) {
            Some(operand) => Ok(operand),
            None => fail(format!("operand {i} ({role}) is missing")),
        }
    }

    /// The operand at `i`, if present.
    pub(super) fn optional(&self, i: usize) -> Option<Operand<'a>> {
        self.operands.get(i).copied().flatten()
    }

    /// The type of a required operand; `None` when unknown.
    pub(super) fn ty(&self, i: usize, role: &str) -> Result<Option<&'a Type>, InferError> {
        Ok(self.required(i, role)?.ty)
    }

    /// A symbol for a size that only the data decides.
    pub(super) fn fresh(&mut self) -> Dim {
        (self.fresh)()
    }

    /// The sizes that a shape operand names: its elements, or as many fresh symbols; `None` when even
    /// their number is unknown.
    pub(super) fn sizes(&mut self, i: usize, role: &str) -> Result<Option<Vec<Dim>>, InferError> {
        let operand = self.required(i, role)?;
        let Some(ty) = operand.ty else { return Ok(None) };
        if !ty.dtype.is_int() {
            return fail(format!("{role} is {}, not an integer vector", ty.dtype));
        }
        let [length] = &ty.shape[..] else {
            return fail(format!("{role} has rank {}, not 1", ty.rank()));
        };
        let Some(length) = length.known_size() else { return Ok(None) };
        if length > MAX_RANK {
            return fail(format!("{role} has {length} elements; ranks above {MAX_RANK} are not supported"));
        }
        Ok(Some(match Small::of(&operand) {
            Some(small) => small.data,
            None => (0..length).map(|_| self.fresh()).collect(),
        }))
    }
}

impl Inferred {
    /// A result of unknown type.
    pub(super) fn unknown() -> Self {
        Inferred::default()
    }

    /// A result of this type.
    pub(super) fn new(dtype: DType, shape: Vec<Dim>) -> Self {
        Inferred { ty: Some(Type::new(dtype, shape)), content: None }
    }

    /// With these elements, if known.
    pub(super) fn with(mut self, content: Option<Small>) -> Self {
        self.content = content.map(|c| c.data);
        self
    }
}

/// `axis` if it is one of `rank`.
pub(super) fn axis_within(axis: usize, rank: usize) -> Result<usize, InferError> {
    if axis < rank { Ok(axis) } else { fail(format!("axis {axis} is outside rank {rank}")) }
}

/// For every axis of `rank` whether `axes` names it; an axis outside or named twice is an error.
pub(super) fn axis_set(axes: &[usize], rank: usize) -> Result<Vec<bool>, InferError> {
    let mut named = vec![false; rank];
    for axis in axes {
        if std::mem::replace(&mut named[axis_within(*axis, rank)?], true) {
            return fail(format!("axis {axis} is named twice"));
        }
    }
    Ok(named)
}

/// Whether two sizes may be equal: only two different known sizes clash.
pub(super) fn may_equal(a: &Dim, b: &Dim) -> bool {
    match (a.known(), b.known()) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}

/// The better known of two sizes that must be equal; `what` names them in the error.
pub(super) fn agree(a: &Dim, b: &Dim, what: &str) -> Result<Dim, InferError> {
    match (a.known(), b.known()) {
        (Some(x), Some(y)) if x != y => fail(format!("{what} of {x} with {y}")),
        (None, Some(_)) => Ok(b.clone()),
        (Some(_), _) => Ok(a.clone()),
        (None, None) => Ok(if a.as_symbol().is_none() && b.as_symbol().is_some() { b } else { a }.clone()),
    }
}

/// Two operands must have one element type.
pub(super) fn same_dtype(a: &Type, b: &Type) -> Result<(), InferError> {
    if a.dtype == b.dtype { Ok(()) } else { fail(format!("operands are {} and {}", a.dtype, b.dtype)) }
}

/// NumPy's broadcasting of two shapes.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, InferError> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Dim], i: usize| (i + shape.len()).checked_sub(rank).map(|i| shape[i].clone());
    (0..rank)
        .map(|i| {
            let (x, y) = (at(a, i).unwrap_or(Dim::ONE), at(b, i).unwrap_or(Dim::ONE));
            match x.broadcast(&y) {
                Some(d) => Ok(d),
                None => fail(format!("{a:?} and {b:?} do not broadcast: {x} against {y}")),
            }
        })
        .collect()
}

/// `part` must broadcast to `whole` without enlarging it.
pub(super) fn broadcasts_to(part: &[Dim], whole: &[Dim], role: &str) -> Result<(), InferError> {
    let fits = part.len() <= whole.len()
        && part.iter().rev().zip(whole.iter().rev()).all(|(p, w)| *p == Dim::ONE || may_equal(p, w));
    if fits { Ok(()) } else { fail(format!("{role} {part:?} does not broadcast to {whole:?}")) }
}
