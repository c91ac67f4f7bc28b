//! Operators that index.

use super::content::{Small, known};
use super::context::{Context, axis_within, broadcasts_to, fail, may_equal, same_dtype};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{DType, Dim, Op, Type};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    let result = match op {
        Op::Gather { axis } => gather(cx, *axis),
        Op::GatherElements { axis } => gather_elements(cx, *axis),
        Op::GatherNd { batch_dims } => gather_nd(cx, *batch_dims),
        Op::ScatterElements { axis, .. } => scatter_elements(cx, *axis),
        Op::ScatterNd { .. } => scatter_nd(cx),
        Op::OneHot { axis } => one_hot(cx, *axis),
        Op::NonZero => non_zero(cx),
        _ => return None,
    };
    Some(one(result))
}

/// Indices must be integers.
fn integers(ty: &Type, role: &str) -> Result<(), InferError> {
    if ty.dtype.is_int() { Ok(()) } else { fail(format!("{role} are {}, not integers", ty.dtype)) }
}

/// `data, indices`.
fn gather(cx: &mut Context<'_, '_>, axis: usize) -> Result<Inferred, InferError> {
    let (data, indices) = (cx.required(0, "data")?, cx.required(1, "indices")?);
    if let Some(ty) = indices.ty {
        integers(ty, "indices")?;
    }
    if let Some(ty) = data.ty {
        axis_within(axis, ty.rank())?;
    }
    let (Some(ty), Some(at)) = (data.ty, indices.ty) else { return Ok(Inferred::unknown()) };
    let (before, rest) = ty.shape.split_at(axis);
    let shape: Vec<Dim> = before.iter().chain(&at.shape).chain(&rest[1..]).cloned().collect();
    let indices = Small::of(&indices);
    if let (Some(indices), Some(n)) = (&indices, ty.shape[axis].known())
        && let Some(i) =
            indices.data.iter().filter_map(Dim::known).find(|i| *i < n.saturating_neg() || *i >= n)
    {
        return fail(format!("index {i} is outside axis {axis} of size {n}"));
    }
    let content = match (Small::of(&data), indices, known(&shape)) {
        (Some(data), Some(indices), Some(shape)) => gather_content(&data, &indices, axis, shape),
        _ => None,
    };
    Ok(Inferred::new(ty.dtype, shape).with(content))
}

fn gather_content(data: &Small, indices: &Small, axis: usize, shape: Vec<usize>) -> Option<Small> {
    let picked = axis + indices.shape.len();
    let size = i64::try_from(data.shape[axis]).ok()?;
    Small::build(shape, |at| {
        let i = indices.get(&at[axis..picked])?.known()?;
        let i = usize::try_from(if i < 0 { i + size } else { i }).ok()?;
        let from: Vec<usize> =
            at[..axis].iter().copied().chain([i]).chain(at[picked..].iter().copied()).collect();
        data.get(&from).cloned()
    })
}

/// `data, indices` of one rank; the result has the indices' shape.
fn gather_elements(cx: &mut Context<'_, '_>, axis: usize) -> Result<Inferred, InferError> {
    let (data, indices) = (cx.ty(0, "data")?, cx.ty(1, "indices")?);
    let (Some(data), Some(indices)) = (data, indices) else { return Ok(Inferred::unknown()) };
    integers(indices, "indices")?;
    axis_within(axis, data.rank())?;
    if indices.rank() != data.rank() {
        return fail(format!("indices have rank {} but data has rank {}", indices.rank(), data.rank()));
    }
    Ok(Inferred::new(data.dtype, indices.shape.clone()))
}

/// `data, indices [.., k]`: the last axis indexes `k` axes of the data.
fn gather_nd(cx: &mut Context<'_, '_>, batch_dims: usize) -> Result<Inferred, InferError> {
    let (data, indices) = (cx.ty(0, "data")?, cx.ty(1, "indices")?);
    let (Some(data), Some(indices)) = (data, indices) else { return Ok(Inferred::unknown()) };
    integers(indices, "indices")?;
    let Some((k, lead)) = indices.shape.split_last() else { return fail("indices have rank 0") };
    if batch_dims > lead.len() || batch_dims > data.rank() {
        return fail(format!(
            "{batch_dims} batch axes with data of rank {} and indices of rank {}",
            data.rank(),
            indices.rank()
        ));
    }
    for (axis, (a, b)) in lead.iter().zip(&data.shape).take(batch_dims).enumerate() {
        if !may_equal(a, b) {
            return fail(format!("batch axis {axis} is {b} in data and {a} in indices"));
        }
    }
    let Some(k) = k.known_size() else { return Ok(Inferred::unknown()) };
    let Some(rest) = batch_dims.checked_add(k).and_then(|n| data.shape.get(n..)) else {
        return fail(format!("{k} indices after {batch_dims} batch axes exceed the rank {}", data.rank()));
    };
    Ok(Inferred::new(data.dtype, lead.iter().chain(rest).cloned().collect()))
}

/// `data, indices, updates` of one rank; the result has the data's shape.
fn scatter_elements(cx: &mut Context<'_, '_>, axis: usize) -> Result<Inferred, InferError> {
    let (data, indices) = (cx.ty(0, "data")?, cx.ty(1, "indices")?);
    let updates = cx.ty(2, "updates")?;
    let Some(data) = data else { return Ok(Inferred::unknown()) };
    axis_within(axis, data.rank())?;
    for (ty, role) in [(indices, "indices"), (updates, "updates")] {
        if let Some(ty) = ty
            && ty.rank() != data.rank()
        {
            return fail(format!("{role} have rank {} but data has rank {}", ty.rank(), data.rank()));
        }
    }
    if let (Some(indices), Some(updates)) = (indices, updates) {
        integers(indices, "indices")?;
        same_dtype(data, updates)?;
        if !indices.shape.iter().zip(&updates.shape).all(|(a, b)| may_equal(a, b)) {
            return fail(format!("indices {:?} and updates {:?} differ", indices.shape, updates.shape));
        }
    }
    Ok(Inferred::new(data.dtype, data.shape.clone()))
}

/// `data, indices [.., k], updates`; the result has the data's shape.
fn scatter_nd(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let (data, indices) = (cx.ty(0, "data")?, cx.ty(1, "indices")?);
    let updates = cx.ty(2, "updates")?;
    let Some(data) = data else { return Ok(Inferred::unknown()) };
    if let (Some(indices), Some(updates)) = (indices, updates) {
        integers(indices, "indices")?;
        same_dtype(data, updates)?;
        let Some((k, lead)) = indices.shape.split_last() else { return fail("indices have rank 0") };
        if let Some(k) = k.known_size() {
            let Some(rest) = data.shape.get(k..) else {
                return fail(format!("{k} indices exceed the rank {}", data.rank()));
            };
            let expected: Vec<Dim> = lead.iter().chain(rest).cloned().collect();
            let fits = expected.len() == updates.rank()
                && expected.iter().zip(&updates.shape).all(|(a, b)| may_equal(a, b));
            if !fits {
                return fail(format!("updates are {:?}, not {expected:?}", updates.shape));
            }
        }
    }
    Ok(Inferred::new(data.dtype, data.shape.clone()))
}

/// `indices, depth, values [2]`: a new axis of size `depth`.
fn one_hot(cx: &mut Context<'_, '_>, axis: usize) -> Result<Inferred, InferError> {
    let indices = cx.ty(0, "indices")?;
    let depth = cx.required(1, "depth")?;
    let values = cx.ty(2, "values")?;
    let (Some(indices), Some(values)) = (indices, values) else { return Ok(Inferred::unknown()) };
    broadcasts_to(&values.shape, &[Dim::from(2usize)], "values")?;
    axis_within(axis, indices.rank() + 1)?;
    let float = depth.constant.filter(|t| t.dtype().is_float()).and_then(|t| t.item());
    let size = match (Small::of(&depth).and_then(|d| d.only().cloned()), float) {
        (Some(d), _) => d,
        (None, Some(d)) => Dim::from(d as i64),
        (None, None) => cx.fresh(),
    };
    let mut shape = indices.shape.clone();
    shape.insert(axis, size);
    Ok(Inferred::new(values.dtype, shape))
}

/// Positions of the non-zero elements: `[rank, n]`.
fn non_zero(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    let rank = ty.rank().max(1);
    let operand = cx.required(0, "x")?;
    if let Some(found) = Small::of(&operand).and_then(|x| positions(&x)) {
        let shape = vec![rank, found.len()];
        let content = Small::build(shape.clone(), |at| Some(found.get(at[1])?.get(at[0]).copied()?.into()));
        return Ok(Inferred::new(DType::I64, shape.into_iter().map(Dim::from).collect()).with(content));
    }
    Ok(Inferred::new(DType::I64, vec![rank.into(), cx.fresh()]))
}

/// Where the elements are not zero, if that is certain of each.
fn positions(x: &Small) -> Option<Vec<Vec<usize>>> {
    let mut found = Vec::new();
    for (i, element) in x.data.iter().enumerate() {
        if element.known()? == 0 {
            continue;
        }
        let mut rest = i;
        let mut at: Vec<usize> = x.shape.iter().rev().map(|n| (rest % n, rest /= n).0).collect();
        at.reverse();
        at.resize(x.shape.len().max(1), 0);
        found.push(at);
    }
    Some(found)
}
