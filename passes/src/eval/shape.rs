//! Index arithmetic: strides, broadcasting, walks over strided data.

use std::cell::Cell;

use super::{EvalError, MAX_RESULT_BYTES, Result, bad};
use crate::ir::{DType, element_count};
use crate::memory::room;

/// Strides in elements of a dense row-major tensor.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    strides
}

thread_local! {
    /// What the operator at hand may make.
    static LIMIT: Cell<usize> = const { Cell::new(MAX_RESULT_BYTES) };
}

/// A lower limit on what operators make, until it is dropped.
pub(super) struct Within(usize);

impl Within {
    pub(super) fn bytes(most: usize) -> Self {
        Within(LIMIT.replace(most.min(LIMIT.get())))
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        LIMIT.set(self.0);
    }
}

/// The number of elements of a tensor, if it may be allocated. Axes of size 0 excuse nothing, so that the
/// product of any axes of a checked shape is in range.
pub(super) fn count(dtype: DType, shape: &[usize]) -> Result<usize> {
    let bytes = LIMIT.get();
    let limit = bytes / dtype.size();
    let extent = element_count(&shape.iter().map(|d| (*d).max(1)).collect::<Vec<_>>());
    if extent.is_none_or(|n| n > limit) {
        let reason = format!("a {dtype} tensor of shape {shape:?} is larger than {bytes} bytes");
        return Err(bad(reason));
    }
    let n = product(shape);
    room(dtype.bytes(n)).map_err(|e| bad(format!("a {dtype} tensor of shape {shape:?}: {e}")))?;
    Ok(n)
}

/// The product of sizes of some axes of a checked shape.
pub(super) fn product(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// The shape that both broadcast to.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(bad(format!("shapes {a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

/// Strides that read a dense tensor of `shape` as if it had the shape `to`.
pub(super) fn broadcast_strides(shape: &[usize], to: &[usize]) -> Result<Vec<isize>> {
    let fail = || bad(format!("shape {shape:?} does not broadcast to {to:?}"));
    let lead = to.len().checked_sub(shape.len()).ok_or_else(fail)?;
    let mut out = vec![0; lead];
    for ((d, stride), to) in shape.iter().zip(strides(shape)).zip(&to[lead..]) {
        out.push(match (*d, *to) {
            (d, to) if d == to => stride,
            (1, _) => 0,
            _ => return Err(fail()),
        });
    }
    Ok(out)
}

/// Checks that `axis` is an axis of `shape`.
pub(super) fn check_axis(axis: usize, shape: &[usize]) -> Result<()> {
    if axis < shape.len() {
        Ok(())
    } else {
        Err(bad(format!("axis {axis} is outside a tensor of {} axes", shape.len())))
    }
}

/// A tensor seen as `[outer, size, inner]` around one axis.
#[derive(Clone, Copy)]
pub(super) struct Around {
    pub(super) outer: usize,
    pub(super) size: usize,
    pub(super) inner: usize,
}

/// Splits `shape` around `axis`.
pub(super) fn around(shape: &[usize], axis: usize) -> Result<Around> {
    check_axis(axis, shape)?;
    Ok(Around { outer: product(&shape[..axis]), size: shape[axis], inner: product(&shape[axis + 1..]) })
}

/// The position that an index means: negative ones count from the end.
pub(super) fn wrap_index(index: i64, size: usize, axis: usize) -> Result<usize> {
    let n = i64::try_from(size).unwrap_or(i64::MAX);
    let at = if index < 0 { index.saturating_add(n) } else { index };
    if (0..n).contains(&at) {
        Ok(at as usize)
    } else {
        Err(bad(format!("index {index} is outside axis {axis} of size {size}")))
    }
}

/// Steps through `shape` in row-major order and yields the offset into each of `N` strided operands.
pub(super) struct Walk<const N: usize> {
    shape: Vec<usize>,
    strides: [Vec<isize>; N],
    index: Vec<usize>,
    at: [isize; N],
    left: usize,
}

impl<const N: usize> Walk<N> {
    /// A walk over `shape`, whose elements must be countable; `strides` are as long as `shape`.
    pub(super) fn new(shape: &[usize], strides: [Vec<isize>; N]) -> Self {
        let index = vec![0; shape.len()];
        Walk { shape: shape.to_vec(), strides, index, at: [0; N], left: product(shape) }
    }

    /// The same walk with the first element at these offsets.
    pub(super) fn starting_at(mut self, at: [isize; N]) -> Self {
        self.at = at;
        self
    }
}

impl<const N: usize> Iterator for Walk<N> {
    type Item = [usize; N];

    fn next(&mut self) -> Option<[usize; N]> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let out = self.at.map(|offset| offset as usize);
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            if self.index[axis] < self.shape[axis] {
                for (at, strides) in self.at.iter_mut().zip(&self.strides) {
                    *at += strides[axis];
                }
                break;
            }
            self.index[axis] = 0;
            for (at, strides) in self.at.iter_mut().zip(&self.strides) {
                *at -= strides[axis] * (self.shape[axis] as isize - 1);
            }
        }
        Some(out)
    }
}

/// The error of an operator on a dtype that it is not defined for.
pub(super) fn undefined(op: impl std::fmt::Display, dtype: DType) -> EvalError {
    EvalError::Unsupported(format!("{op} on {dtype}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_follow_strides() {
        let transposed: Vec<_> = Walk::new(&[3, 2], [vec![1, 3]]).map(|[o]| o).collect();
        assert_eq!(transposed, [0, 3, 1, 4, 2, 5]);
        let reversed: Vec<_> = Walk::new(&[3], [vec![-1]]).starting_at([2]).map(|[o]| o).collect();
        assert_eq!(reversed, [2, 1, 0]);
        assert_eq!(Walk::new(&[], [vec![]]).count(), 1);
        assert_eq!(Walk::new(&[2, 0], [vec![0, 1]]).count(), 0);
    }

    #[test]
    fn broadcasting_says_what_does_not_fit() {
        assert_eq!(broadcast(&[3, 1], &[2, 1, 4]), Ok(vec![2, 3, 4]));
        assert_eq!(broadcast(&[0], &[1]), Ok(vec![0]));
        assert!(broadcast(&[3], &[2]).unwrap_err().to_string().contains("[3] and [2]"));
        assert_eq!(broadcast_strides(&[3, 1], &[2, 3, 4]), Ok(vec![0, 1, 0]));
        assert!(broadcast_strides(&[3], &[1]).is_err());
    }

    #[test]
    fn huge_results_are_refused() {
        assert!(count(DType::F32, &[1 << 31]).is_ok());
        assert!(count(DType::F32, &[(1 << 31) + 1]).is_err());
        assert!(count(DType::U8, &[usize::MAX, usize::MAX]).is_err());
        assert!(count(DType::U8, &[0, usize::MAX]).is_err());
    }
}
