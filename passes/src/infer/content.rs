//! Small integer tensors of symbolic elements.

use super::{MAX_CONTENT, Operand};
use crate::ir::{DType, Dim};

/// The elements of a small integer or bool tensor, in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Small {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<Dim>,
}

/// Whether an element of this value can be stored: contents do not wrap around. Symbolic elements are
/// taken to fit 32 bits, as sizes do.
pub(super) fn fits(dtype: DType, d: &Dim) -> bool {
    let Some(n) = d.known() else {
        return matches!(dtype, DType::I64 | DType::I32)
            || matches!(dtype, DType::U64 | DType::U32) && d.is_non_negative();
    };
    match dtype {
        DType::I64 => true,
        DType::I32 => i32::try_from(n).is_ok(),
        DType::I16 => i16::try_from(n).is_ok(),
        DType::I8 => i8::try_from(n).is_ok(),
        DType::U64 => n >= 0,
        DType::U32 => u32::try_from(n).is_ok(),
        DType::U16 => u16::try_from(n).is_ok(),
        DType::U8 => u8::try_from(n).is_ok(),
        DType::I4 => (-8..8).contains(&n),
        DType::U4 => (0..16).contains(&n),
        DType::Bool => n == 0 || n == 1,
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => false,
    }
}

impl Small {
    /// The elements of an operand, where they are tracked or the operand is a small constant.
    pub(super) fn of(operand: &Operand<'_>) -> Option<Small> {
        let ty = operand.ty?;
        let shape = ty.known_shape()?;
        let count = count(&shape)?;
        let data = match (operand.content, operand.constant) {
            (Some(content), _) => content.to_vec(),
            (None, Some(t)) => t.to_i64()?.into_iter().map(Dim::from).collect(),
            (None, None) => return None,
        };
        (data.len() == count && !ty.dtype.is_float()).then_some(Small { shape, data })
    }

    /// The tensor of `shape` whose element at each position `f` gives; `None` when it is too large or
    /// an element is unknown.
    pub(super) fn build(shape: Vec<usize>, mut f: impl FnMut(&[usize]) -> Option<Dim>) -> Option<Small> {
        let count = count(&shape)?;
        let mut at = vec![0; shape.len()];
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(f(&at)?);
            for (i, n) in at.iter_mut().zip(&shape).rev() {
                *i += 1;
                if *i < *n {
                    break;
                }
                *i = 0;
            }
        }
        Some(Small { shape, data })
    }

    /// The element at a position; `None` outside.
    pub(super) fn get(&self, at: &[usize]) -> Option<&Dim> {
        let mut index = 0;
        for (i, n) in at.iter().zip(&self.shape) {
            if i >= n {
                return None;
            }
            index = index * n + i;
        }
        self.data.get(index)
    }

    /// The element that broadcasting to a shape of at least this rank puts at a position.
    pub(super) fn broadcast_get(&self, at: &[usize]) -> Option<&Dim> {
        let skipped = at.len().checked_sub(self.shape.len())?;
        let at: Vec<usize> =
            at[skipped..].iter().zip(&self.shape).map(|(i, n)| if *n == 1 { 0 } else { *i }).collect();
        self.get(&at)
    }

    /// The same elements under another shape of as many.
    pub(super) fn reshaped(self, shape: Option<Vec<usize>>) -> Option<Small> {
        let shape = shape?;
        (count(&shape)? == self.data.len()).then_some(Small { shape, data: self.data })
    }

    /// The only element.
    pub(super) fn only(&self) -> Option<&Dim> {
        match &self.data[..] {
            [one] => Some(one),
            _ => None,
        }
    }
}

/// Number of elements of a shape small enough to track.
pub(super) fn count(shape: &[usize]) -> Option<usize> {
    crate::ir::element_count(shape).filter(|n| *n <= MAX_CONTENT)
}

/// The sizes of a shape, when all are known.
pub(super) fn known(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(Dim::known_size).collect()
}
