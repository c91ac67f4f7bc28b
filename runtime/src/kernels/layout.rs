//! What launchers share: broadcasting, merging of axes, grids, the words of a uniform block.

use super::{KernelError, Limits, Operand, Scalar, View};

/// Highest rank of an index space after merging.
pub const MAX_RANK: usize = 8;

/// An index space with the strides of several operands, with as few axes as the strides allow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Space {
    /// Sizes; never empty (a single element is `[1]`).
    pub shape: Vec<u32>,
    /// One list of strides per operand.
    pub strides: Vec<Vec<u32>>,
}

impl Space {
    /// Drops axes of size 1 and joins neighbours that every operand walks in one stride. Strides are
    /// two's complement, so a view may run backwards.
    pub(super) fn merge(shape: &[u32], strides: &[Vec<u32>]) -> Self {
        let mut out = Space { shape: vec![], strides: vec![vec![]; strides.len()] };
        for (axis, size) in shape.iter().enumerate().filter(|(_, size)| **size != 1) {
            let joins = out.shape.last().is_some_and(|_| {
                strides
                    .iter()
                    .zip(&out.strides)
                    .all(|(s, done)| done.last().is_some_and(|outer| *outer == s[axis].wrapping_mul(*size)))
            });
            if joins {
                if let Some(last) = out.shape.last_mut() {
                    *last = last.saturating_mul(*size);
                }
                for (done, s) in out.strides.iter_mut().zip(strides) {
                    if let Some(last) = done.last_mut() {
                        *last = s[axis];
                    }
                }
            } else {
                out.shape.push(*size);
                for (done, s) in out.strides.iter_mut().zip(strides) {
                    done.push(s[axis]);
                }
            }
        }
        if out.shape.is_empty() {
            out.shape.push(1);
            out.strides.iter_mut().for_each(|s| s.push(0));
        }
        out
    }

    /// Checks that at most `limit` axes are left.
    pub(super) fn at_most(self, kernel: &'static str, limit: usize) -> Result<Self, KernelError> {
        if self.shape.len() <= limit {
            return Ok(self);
        }
        let reason = format!("{} axes that do not merge; at most {limit} are supported", self.shape.len());
        Err(KernelError::Unsupported { kernel, reason })
    }
}

/// So many workgroups keep a large GPU busy.
pub(super) const BUSY: u32 = 256;

/// Most elements of an operand: loops over them end though they step beyond, by a workgroup at most.
pub const MAX_ELEMENTS: u32 = u32::MAX - 1024;

/// Number of elements of a shape, checked to fit 32-bit indexing.
pub(super) fn count(kernel: &'static str, shape: &[u32]) -> Result<u32, KernelError> {
    let needed = if shape.contains(&0) {
        0
    } else {
        shape.iter().try_fold(1u64, |n, d| n.checked_mul(u64::from(*d))).unwrap_or(u64::MAX)
    };
    let limit = u64::from(MAX_ELEMENTS);
    if needed > limit {
        return Err(KernelError::Limit { kernel, what: "number of elements", needed, limit });
    }
    Ok(needed as u32)
}

/// The strides of `view` over `shape`, to which it broadcasts with its axes aligned right.
pub(super) fn broadcast(kernel: &'static str, view: &View, shape: &[u32]) -> Result<Vec<u32>, KernelError> {
    let misfit = || KernelError::Unsupported {
        kernel,
        reason: format!("{:?} does not broadcast to {shape:?}", view.shape),
    };
    if view.strides.len() != view.shape.len() || view.shape.len() > shape.len() {
        return Err(misfit());
    }
    let mut strides = vec![0; shape.len() - view.shape.len()];
    for ((size, stride), target) in
        view.shape.iter().zip(&view.strides).zip(&shape[shape.len() - view.shape.len()..])
    {
        match (*size, *target) {
            (a, b) if a == b => strides.push(if a == 1 { 0 } else { *stride }),
            (1, _) => strides.push(0),
            _ => return Err(misfit()),
        }
    }
    Ok(strides)
}

/// The strides of a result over its own shape, which must be `shape`.
pub(super) fn exactly(kernel: &'static str, view: &View, shape: &[u32]) -> Result<Vec<u32>, KernelError> {
    if view.shape == shape && view.strides.len() == shape.len() {
        return Ok(view.strides.clone());
    }
    let reason = format!("the result is {:?} where {shape:?} is expected", view.shape);
    Err(KernelError::Unsupported { kernel, reason })
}

/// Checks an operand's element type.
pub(super) fn expect(
    kernel: &'static str,
    what: &'static str,
    operand: &Operand,
    allowed: &[Scalar],
) -> Result<(), KernelError> {
    if allowed.contains(&operand.scalar) {
        return Ok(());
    }
    let reason = format!("{what} is {:?}; {allowed:?} are supported", operand.scalar);
    Err(KernelError::Unsupported { kernel, reason })
}

/// Folds a number of workgroups into a grid; kernels leave the surplus at once.
pub(super) fn grid(kernel: &'static str, groups: u64, limits: &Limits) -> Result<[u32; 3], KernelError> {
    let most = u64::from(limits.max_grid.max(1));
    let z = groups.div_ceil(most.saturating_mul(most)).max(1);
    if z > most {
        let limit = most.saturating_mul(most).saturating_mul(most);
        return Err(KernelError::Limit { kernel, what: "number of workgroups", needed: groups, limit });
    }
    let plane = groups.div_ceil(z);
    let y = plane.div_ceil(most).max(1);
    let x = plane.div_ceil(y);
    Ok([x as u32, y as u32, z as u32])
}

/// Bytes that a view touches at least once (broadcast axes count once).
pub(super) fn touched(operand: &Operand) -> u64 {
    let axes = operand.view.shape.iter().zip(&operand.view.strides);
    let elements: u64 = axes.map(|(d, s)| if *s == 0 { u64::from(*d != 0) } else { u64::from(*d) }).product();
    (elements * operand.scalar.bits()).div_ceil(8)
}

/// A constant of a pipeline key.
pub(super) fn constant(name: &'static str, value: u32) -> (&'static str, u64) {
    (name, f64::from(value).to_bits())
}

/// The words of a uniform block. Arrays come in fours, as WGSL's uniform layout wants.
#[derive(Default)]
pub(super) struct Words(Vec<u32>);

impl Words {
    pub(super) fn new() -> Self {
        Words(vec![])
    }

    /// One word.
    pub(super) fn word(mut self, value: u32) -> Self {
        self.0.push(value);
        self
    }

    /// One float.
    pub(super) fn float(self, value: f32) -> Self {
        self.word(value.to_bits())
    }

    /// `values`, then zeros up to `len` words (a multiple of four, starting at one).
    pub(super) fn array(mut self, values: &[u32], len: usize) -> Self {
        debug_assert!(len.is_multiple_of(4) && self.0.len().is_multiple_of(4) && values.len() <= len);
        let end = self.0.len() + len;
        self.0.extend(values.iter().take(len));
        self.0.resize(end, 0);
        self
    }

    pub(super) fn done(self) -> Vec<u32> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_merge_when_every_operand_agrees() {
        let dense = View::dense(&[2, 3, 4]).strides;
        let space = Space::merge(&[2, 3, 4], &[dense.clone(), dense.clone()]);
        assert_eq!(space, Space { shape: vec![24], strides: vec![vec![1], vec![1]] });
        let row = broadcast("test", &View::dense(&[4]), &[2, 3, 4]).unwrap();
        let space = Space::merge(&[2, 3, 4], &[dense, row]);
        assert_eq!(space, Space { shape: vec![6, 4], strides: vec![vec![4, 1], vec![0, 1]] });
    }

    #[test]
    fn backward_views_merge_with_wrapping_strides() {
        let strides = vec![(-4i32) as u32, (-1i32) as u32];
        let space = Space::merge(&[3, 4], &[strides]);
        assert_eq!(space, Space { shape: vec![12], strides: vec![vec![u32::MAX]] });
    }

    #[test]
    fn grids_fold_and_cover() {
        let limits = Limits { max_grid: 10, ..crate::kernels::testing::limits() };
        for groups in [1u64, 9, 10, 11, 99, 100, 101, 999, 1000] {
            let [x, y, z] = grid("test", groups, &limits).unwrap();
            assert!(x <= 10 && y <= 10 && z <= 10);
            assert!(u64::from(x) * u64::from(y) * u64::from(z) >= groups);
        }
        assert!(grid("test", 1001, &limits).is_err());
    }
}
