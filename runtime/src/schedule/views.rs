//! View arithmetic: what moves no data.
//!
//! Each function gives the view of the result over the operand's buffer, or `None` where strides cannot
//! express it (then the schedule copies). Strides are two's complement: a view may run backwards.

use crate::kernels::View;

/// The same elements, in row-major order, under another shape; `None` when that needs a copy.
pub fn reshape(view: &View, shape: &[u32]) -> Option<View> {
    if view.len() != shape.iter().map(|d| u64::from(*d)).product::<u64>() {
        return None;
    }
    if view.is_empty() {
        return Some(View { offset: view.offset, ..View::dense(shape) });
    }
    // Axes of size 1 carry no information; the others are matched group by group.
    let old: Vec<(u32, u32)> =
        view.shape.iter().copied().zip(view.strides.iter().copied()).filter(|(d, _)| *d != 1).collect();
    let mut strides = vec![0u32; shape.len()];
    let (mut o, mut n) = (0, 0);
    while o < old.len() {
        let (o_start, n_start) = (o, n);
        let mut have = u64::from(old[o].0);
        let mut want = 1u64;
        o += 1;
        while have != want {
            if want < have {
                want = want.checked_mul(u64::from(*shape.get(n)?))?;
                n += 1;
            } else {
                have = have.checked_mul(u64::from(old.get(o)?.0))?;
                o += 1;
            }
        }
        let group = &old[o_start..o];
        if group.windows(2).any(|w| w[0].1 != w[1].1.wrapping_mul(w[1].0)) {
            return None;
        }
        let mut stride = group.last()?.1;
        for i in (n_start..n).rev() {
            strides[i] = stride;
            stride = stride.wrapping_mul(shape[i]);
        }
    }
    // What is left has size 1; any stride will do.
    Some(View { shape: shape.to_vec(), strides, offset: view.offset })
}

/// Axis `i` of the result is axis `perm[i]` of the operand.
pub fn transpose(view: &View, perm: &[usize]) -> Option<View> {
    let pick = |from: &[u32]| perm.iter().map(|p| from.get(*p).copied()).collect::<Option<Vec<_>>>();
    Some(View { shape: pick(&view.shape)?, strides: pick(&view.strides)?, offset: view.offset })
}

/// Elements `start, start + step, ..` (`count` of them) of an axis.
pub fn slice(view: &View, axis: usize, start: u32, step: i32, count: u32) -> Option<View> {
    let mut out = view.clone();
    let stride = *view.strides.get(axis)?;
    let size = std::mem::replace(out.shape.get_mut(axis)?, count);
    if count == 0 {
        return Some(out);
    }
    let last = i64::from(start) + i64::from(step) * i64::from(count - 1);
    if start >= size || last < 0 || last >= i64::from(size) {
        return None;
    }
    *out.strides.get_mut(axis)? = stride.wrapping_mul(step as u32);
    out.offset = out.offset.wrapping_add(stride.wrapping_mul(start));
    Some(out)
}

/// The view repeated along new leading axes and along axes of size 1.
pub fn broadcast(view: &View, shape: &[u32]) -> Option<View> {
    let lead = shape.len().checked_sub(view.shape.len())?;
    let mut strides = vec![0; lead];
    for (i, (d, s)) in view.shape.iter().zip(&view.strides).enumerate() {
        match (*d, shape[lead + i]) {
            (a, b) if a == b => strides.push(*s),
            (1, _) => strides.push(0),
            _ => return None,
        }
    }
    Some(View { shape: shape.to_vec(), strides, offset: view.offset })
}

/// The view with axes of size 1 inserted so that they stand at `axes` of the result (sorted).
pub fn unsqueeze(view: &View, axes: &[usize]) -> Option<View> {
    let mut out = view.clone();
    for axis in axes {
        if *axis > out.shape.len() {
            return None;
        }
        out.shape.insert(*axis, 1);
        out.strides.insert(*axis, 0);
    }
    Some(out)
}

/// The view without the axes `axes` (sorted), which have size 1.
pub fn squeeze(view: &View, axes: &[usize]) -> Option<View> {
    let mut out = view.clone();
    for axis in axes.iter().rev() {
        if out.shape.get(*axis) != Some(&1) {
            return None;
        }
        out.shape.remove(*axis);
        out.strides.remove(*axis);
    }
    Some(out)
}

/// First element and one past the last that a view touches, in elements of its binding.
pub fn extent(view: &View) -> (u64, u64) {
    let (mut low, mut high) = (i64::from(view.offset), i64::from(view.offset));
    if view.is_empty() {
        return (low as u64, low as u64);
    }
    for (d, s) in view.shape.iter().zip(&view.strides) {
        let span = i64::from(*d - 1) * i64::from(*s as i32);
        if span < 0 { low += span } else { high += span }
    }
    (low.max(0) as u64, high as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Positions of the elements in row-major order.
    fn positions(view: &View) -> Vec<u64> {
        let mut out = vec![u64::from(view.offset)];
        for (d, s) in view.shape.iter().zip(&view.strides) {
            out = out
                .iter()
                .flat_map(|p| {
                    (0..u64::from(*d)).map(move |i| p.wrapping_add_signed(i as i64 * i64::from(*s as i32)))
                })
                .collect();
        }
        out
    }

    #[test]
    fn heads_split_and_merge() {
        let x = View::dense(&[2, 3, 8]);
        let heads = transpose(&reshape(&x, &[2, 3, 4, 2]).unwrap(), &[0, 2, 1, 3]).unwrap();
        assert_eq!(heads.strides, [24, 2, 8, 1]);
        assert_eq!(reshape(&heads, &[2, 4, 6]), None, "merging heads after a transpose needs a copy");
        assert!(reshape(&heads, &[8, 3, 2]).is_some() == (24 == 2 * 4), "8 heads in all have no one stride");
        let padded = View { shape: vec![4, 6], strides: vec![64, 1], offset: 0 };
        assert_eq!(reshape(&padded, &[2, 2, 3, 2]).unwrap().strides, [128, 64, 2, 1]);
        assert_eq!(reshape(&padded, &[24]), None);
        assert_eq!(reshape(&padded, &[1, 4, 1, 6, 1]).map(|v| v.shape), Some(vec![1, 4, 1, 6, 1]));
    }

    #[test]
    fn slices_run_both_ways() {
        let x = View::dense(&[2, 5]);
        assert_eq!(positions(&slice(&x, 1, 1, 2, 2).unwrap()), [1, 3, 6, 8]);
        let back = slice(&x, 1, 4, -2, 3).unwrap();
        assert_eq!(positions(&back), [4, 2, 0, 9, 7, 5]);
        assert_eq!(extent(&back), (0, 10));
        assert_eq!(slice(&x, 1, 4, 1, 2), None);
        assert_eq!(slice(&x, 1, 5, 1, 0).unwrap().len(), 0);
    }

    #[test]
    fn mismatches_are_declined() {
        let x = View::dense(&[2, 3]);
        assert_eq!(reshape(&x, &[5]), None);
        assert_eq!(broadcast(&x, &[2, 4]), None);
        assert_eq!(squeeze(&x, &[0]), None);
        assert_eq!(unsqueeze(&x, &[4]), None);
        assert_eq!(broadcast(&x, &[3]), None);
    }

    proptest! {
        /// Whatever reshape accepts addresses the same elements in the same order.
        #[test]
        fn reshape_keeps_order(
            dims in prop::collection::vec(1u32..4, 1..5),
            cut in prop::collection::vec(any::<bool>(), 0..5),
            perm_seed in 0usize..24,
        ) {
            let base = View::dense(&dims);
            let mut perm: Vec<usize> = (0..dims.len()).collect();
            perm.rotate_left(perm_seed % dims.len());
            let view = transpose(&base, &perm).unwrap();
            let mut shape: Vec<u32> = vec![];
            for (i, d) in view.shape.iter().enumerate() {
                match (shape.last_mut(), cut.get(i).copied().unwrap_or(true)) {
                    (Some(last), false) => *last *= d,
                    _ => shape.push(*d),
                }
            }
            if let Some(out) = reshape(&view, &shape) {
                prop_assert_eq!(positions(&out), positions(&view));
                prop_assert_eq!(reshape(&out, &view.shape).map(|v| positions(&v)), Some(positions(&view)));
            }
            prop_assert_eq!(reshape(&base, &shape).is_some(), base.len() == shape.iter().map(|d| u64::from(*d)).product::<u64>());
        }
    }
}
