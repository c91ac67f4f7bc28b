//! Normalisation, windows, attention and the corrections.

use super::context::{Context, agree, axis_within, broadcast, broadcasts_to, fail, may_equal, same_dtype};
use super::{Answer, InferError, Inferred, one};
use crate::ir::{Correction, CorrectionForm, DType, Dim, Op, Rotary, RotaryTable, Type, Window};

/// The results of the operators of this family.
pub(super) fn infer(op: &Op, cx: &mut Context<'_, '_>) -> Option<Answer> {
    let result = match op {
        Op::Conv { window, group } => conv(cx, window, *group),
        Op::ConvInteger { window, group } => conv_integer(cx, window, *group),
        Op::LayerNorm { axis, .. } => norm(cx, *axis, &["scale", "bias"]),
        Op::RmsNorm { axis, .. } => norm(cx, *axis, &["scale"]),
        Op::BatchNorm { .. } => batch_norm(cx),
        Op::GlobalAveragePool => global_pool(cx),
        Op::AveragePool { window, kernel, .. } | Op::MaxPool { window, kernel } => pool(cx, window, kernel),
        Op::Attention(_) => attention(cx),
        Op::Rotary(r) => rotary(cx, r),
        Op::Correction(c) => correction(cx, c),
        _ => return None,
    };
    Some(one(result))
}

/// `x` with factors that broadcast to its trailing axes.
fn norm(cx: &mut Context<'_, '_>, axis: usize, factors: &[&str]) -> Result<Inferred, InferError> {
    let Some(ty) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    axis_within(axis, ty.rank())?;
    for (i, role) in factors.iter().enumerate() {
        if let Some(factor) = cx.optional(i + 1).and_then(|f| f.ty) {
            broadcasts_to(&factor.shape, &ty.shape, role)?;
        }
    }
    Ok(Inferred::new(ty.dtype, ty.shape.clone()))
}

/// `x [n, c, ..], scale [c], bias [c], mean [c], variance [c]`.
fn batch_norm(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let x = cx.ty(0, "x")?;
    let mut factors = Vec::new();
    for (i, role) in ["scale", "bias", "mean", "variance"].into_iter().enumerate() {
        factors.extend(cx.ty(i + 1, role)?.map(|ty| (ty, role)));
    }
    let Some(ty) = x else { return Ok(Inferred::unknown()) };
    let Some(channels) = ty.shape.get(1) else { return fail(format!("x has rank {}, below 2", ty.rank())) };
    for (factor, role) in factors {
        let [size] = &factor.shape[..] else {
            return fail(format!("{role} has rank {}, not 1", factor.rank()));
        };
        agree(channels, size, &format!("{role} for channels"))?;
    }
    Ok(Inferred::new(ty.dtype, ty.shape.clone()))
}

/// Batch, channels and spatial sizes of `x [n, c, ..]`.
fn channels_second(ty: &Type) -> Result<(&Dim, &Dim, &[Dim]), InferError> {
    match &ty.shape[..] {
        [n, c, spatial @ ..] if !spatial.is_empty() => Ok((n, c, spatial)),
        _ => fail(format!("x has rank {}, below 3", ty.rank())),
    }
}

/// Number of places of a window along each spatial axis.
fn windowed(spatial: &[Dim], kernel: &[Dim], window: &Window) -> Result<Vec<Dim>, InferError> {
    let rank = spatial.len();
    let lengths = [kernel.len(), window.strides.len(), window.dilations.len(), window.pads.len() / 2];
    if lengths.iter().any(|n| *n != rank) || !window.pads.len().is_multiple_of(2) {
        return fail(format!("the window {window:?} does not have {rank} spatial axes"));
    }
    let (begins, ends) = window.pads.split_at(rank);
    let mut sizes = Vec::with_capacity(rank);
    for axis in 0..rank {
        let extent = (kernel[axis].clone() - Dim::ONE) * window.dilations[axis].into() + Dim::ONE;
        let padded = spatial[axis].clone() + begins[axis].into() + ends[axis].into();
        let room = padded.clone() - extent.clone();
        if room.known().is_some_and(|n| n < 0) {
            return fail(format!("a window of {extent} does not fit {padded} at spatial axis {axis}"));
        }
        match room.floor_div(&window.strides[axis].into()) {
            Some(steps) => sizes.push(steps + Dim::ONE),
            None => return fail(format!("the stride of spatial axis {axis} is 0")),
        }
    }
    Ok(sizes)
}

/// `x [n, c, ..], w [m, c / group, kernel ..], b? [m]`.
fn conv(cx: &mut Context<'_, '_>, window: &Window, group: usize) -> Result<Inferred, InferError> {
    let (x, w) = (cx.ty(0, "x")?, cx.ty(1, "w")?);
    let (Some(x), Some(w)) = (x, w) else { return Ok(Inferred::unknown()) };
    let shape = convolved(x, w, window, group)?;
    if let Some(b) = cx.optional(2).and_then(|b| b.ty) {
        broadcasts_to(&b.shape, &shape[1..2], "b")?;
    }
    Ok(Inferred::new(x.dtype, shape))
}

/// `x, w, zero points?` of 8 bits → i32.
fn conv_integer(cx: &mut Context<'_, '_>, window: &Window, group: usize) -> Result<Inferred, InferError> {
    let (x, w) = (cx.ty(0, "x")?, cx.ty(1, "w")?);
    let (Some(x), Some(w)) = (x, w) else { return Ok(Inferred::unknown()) };
    for (i, (ty, role)) in [(x, "x"), (w, "w")].into_iter().enumerate() {
        if !matches!(ty.dtype, DType::I8 | DType::U8) {
            return fail(format!("{role} is {}, not an integer of 8 bits", ty.dtype));
        }
        if let Some(zero) = cx.optional(2 + i).and_then(|z| z.ty) {
            if zero.dtype != ty.dtype {
                return fail(format!("the zero point of {role} is {}, {role} is {}", zero.dtype, ty.dtype));
            }
            broadcasts_to(&zero.shape, &ty.shape, "the zero point")?;
        }
    }
    Ok(Inferred::new(DType::I32, convolved(x, w, window, group)?))
}

fn convolved(x: &Type, w: &Type, window: &Window, group: usize) -> Result<Vec<Dim>, InferError> {
    let (n, c, spatial) = channels_second(x)?;
    let [m, per_group, kernel @ ..] = &w.shape[..] else {
        return fail(format!("w has rank {}, below 2", w.rank()));
    };
    agree(c, &(per_group.clone() * group.into()), "channels")?;
    if let Some(m) = m.known_size()
        && (group == 0 || m % group != 0)
    {
        return fail(format!("{m} output channels in {group} groups"));
    }
    let mut shape = vec![n.clone(), m.clone()];
    shape.extend(windowed(spatial, kernel, window)?);
    Ok(shape)
}

fn pool(cx: &mut Context<'_, '_>, window: &Window, kernel: &[usize]) -> Result<Inferred, InferError> {
    let Some(x) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    let (n, c, spatial) = channels_second(x)?;
    let kernel: Vec<Dim> = kernel.iter().map(|k| Dim::from(*k)).collect();
    let mut shape = vec![n.clone(), c.clone()];
    shape.extend(windowed(spatial, &kernel, window)?);
    Ok(Inferred::new(x.dtype, shape))
}

fn global_pool(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let Some(x) = cx.ty(0, "x")? else { return Ok(Inferred::unknown()) };
    let (n, c, spatial) = channels_second(x)?;
    let mut shape = vec![n.clone(), c.clone()];
    shape.extend(spatial.iter().map(|_| Dim::ONE));
    Ok(Inferred::new(x.dtype, shape))
}

/// Leading axes, heads, positions and head size of an attention operand.
fn heads<'t>(ty: &'t Type, role: &str) -> Result<(&'t [Dim], &'t Dim, &'t Dim, &'t Dim), InferError> {
    match &ty.shape[..] {
        [lead @ .., h, t, d] => Ok((lead, h, t, d)),
        _ => fail(format!("{role} has rank {}, below 3", ty.rank())),
    }
}

/// `q [.., Hq, T, d], k [.., Hkv, S, d], v [.., Hkv, S, e], mask?, sinks?, position?` → `[.., Hq, T, e]`.
fn attention(cx: &mut Context<'_, '_>) -> Result<Inferred, InferError> {
    let (q, k) = (cx.ty(0, "q")?, cx.ty(1, "k")?);
    let v = cx.ty(2, "v")?;
    let [mask, sinks] = [3, 4].map(|i| cx.optional(i).and_then(|m| m.ty));
    let (Some(q), Some(k), Some(v)) = (q, k, v) else { return Ok(Inferred::unknown()) };
    let (q_lead, q_heads, t, q_size) = heads(q, "q")?;
    let (k_lead, k_heads, k_len, k_size) = heads(k, "k")?;
    let (v_lead, v_heads, v_len, e) = heads(v, "v")?;
    agree(q_size, k_size, "head sizes of q and k:")?;
    agree(k_heads, v_heads, "heads of k and v:")?;
    let s = agree(k_len, v_len, "lengths of k and v:")?;
    if let (Some(hq), Some(hkv)) = (q_heads.known(), k_heads.known())
        && hq.checked_rem(hkv) != Some(0)
    {
        return fail(format!("{hq} query heads are no multiple of {hkv} key heads"));
    }
    let mut shape = broadcast(q_lead, &broadcast(k_lead, v_lead)?)?;
    shape.extend([q_heads.clone(), t.clone()]);
    for (operand, last, role) in [(mask, s, "mask"), (sinks, Dim::ONE, "sinks")] {
        if let Some(ty) = operand {
            let whole: Vec<Dim> = shape.iter().cloned().chain([last]).collect();
            broadcasts_to(&ty.shape, &whole, role)?;
        }
    }
    shape.push(e.clone());
    if let Some(position) = cx.optional(5).and_then(|p| p.ty)
        && (position.dtype != crate::ir::DType::I64 || position.rank() != 0)
    {
        return fail(format!("position is {position}, not one i64"));
    }
    Ok(Inferred::new(q.dtype, shape))
}

/// `x [.., d], cos, sin`.
fn rotary(cx: &mut Context<'_, '_>, rotary: &Rotary) -> Result<Inferred, InferError> {
    let x = cx.ty(0, "x")?;
    let tables = [(cx.ty(1, "cos")?, "cos"), (cx.ty(2, "sin")?, "sin")];
    let Some(ty) = x else { return Ok(Inferred::unknown()) };
    let Some((d, lead)) = ty.shape.split_last() else { return fail("x has rank 0") };
    if let Some(n) = d.known().filter(|n| n % 2 != 0) {
        return fail(format!("the last axis has the odd size {n}"));
    }
    let width = match rotary.table {
        RotaryTable::Full => Some(d.clone()),
        RotaryTable::Half => d.floor_div(&Dim::from(2usize)),
    };
    let whole: Vec<Dim> = lead.iter().cloned().chain(width).collect();
    for (table, role) in tables {
        if let Some(table) = table {
            broadcasts_to(&table.shape, &whole, role)?;
        }
    }
    Ok(Inferred::new(ty.dtype, ty.shape.clone()))
}

/// `f [C, ..], s, matrices?`: the corrected estimates, or the last one.
fn correction(cx: &mut Context<'_, '_>, correction: &Correction) -> Result<Inferred, InferError> {
    let (f, s) = (cx.ty(0, "f")?, cx.ty(1, "s")?);
    let t = match correction.form {
        CorrectionForm::Prefix => None,
        CorrectionForm::Linear { .. } | CorrectionForm::Scan { .. } => cx.ty(2, "t")?,
    };
    let Some(f) = f else { return Ok(Inferred::unknown()) };
    for other in [s, t].into_iter().flatten() {
        same_dtype(f, other)?;
    }
    let Some((units, unit_shape)) = f.shape.split_first() else { return fail("f has rank 0") };
    if let Some(s) = s {
        let whole = if s.rank() == f.rank() { &f.shape[..] } else { unit_shape };
        if s.rank() != whole.len() || !s.shape.iter().zip(whole).all(|(a, b)| may_equal(a, b)) {
            return fail(format!("s {:?} is neither {:?} nor {unit_shape:?}", s.shape, f.shape));
        }
    }
    if let CorrectionForm::Linear { streams, stream_axis } = correction.form {
        let axis = usize::try_from(stream_axis).unwrap_or(usize::MAX);
        if streams > 1 {
            axis_within(axis, f.rank())?;
            agree(&f.shape[axis], &i64::from(streams).into(), "streams:")?;
        }
        if let Some(t) = t {
            let side = units.clone() * Dim::from(i64::from(streams.max(1)));
            if t.rank() != 2 || !t.shape.iter().all(|d| may_equal(d, &side)) {
                return fail(format!("t is {:?}, not [{side}, {side}]", t.shape));
            }
        }
    }
    if let CorrectionForm::Scan { stream_axis } = correction.form {
        let axis = usize::try_from(stream_axis).unwrap_or(usize::MAX);
        if axis == 0 || axis + 1 >= f.rank() {
            return fail(format!("streams cannot lie along axis {stream_axis} of {:?}", f.shape));
        }
        if let Some(a) = t {
            let mut wanted = f.shape[..f.rank() - 1].to_vec();
            let streams = wanted.remove(axis);
            wanted.extend([streams.clone(), streams]);
            if a.rank() != wanted.len() || !a.shape.iter().zip(&wanted).all(|(x, y)| may_equal(x, y)) {
                return fail(format!("the matrices are {:?}, not {wanted:?}", a.shape));
            }
        }
    }
    let shape = if correction.last_only { unit_shape.to_vec() } else { f.shape.clone() };
    Ok(Inferred::new(f.dtype, shape))
}
