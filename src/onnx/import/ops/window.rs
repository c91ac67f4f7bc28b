//! Convolutions, pooling, resizing.

use snlp_passes::ir::{Dim, Op, PadMode, ValueId, Window};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Conv" => conv,
        "AveragePool" => average_pool,
        "MaxPool" => max_pool,
        "Resize" => super::resize::resize,
        "GlobalAveragePool" => |c| c.plain(Op::GlobalAveragePool, 1),
        _ => return None,
    })
}

fn conv(c: &mut NodeContext<'_>) -> Built {
    let (x, w) = (c.input(0)?, c.input(1)?);
    let (window, group) = convolution(c, x, w)?;
    c.one(Op::Conv { window, group })
}

/// The window and the number of groups of a convolution of `x` by `w`.
pub(super) fn convolution(c: &NodeContext<'_>, x: ValueId, w: ValueId) -> Result<(Window, usize), Decline> {
    let kernel = match sizes(c, "kernel_shape")? {
        Some(kernel) => kernel,
        None => {
            c.shape(w)?.iter().skip(2).map(Dim::known_size).collect::<Option<_>>().ok_or(Decline::Opaque)?
        }
    };
    let window = window(c, x, &kernel)?;
    let given = c.int("group", 1)?;
    let group = usize::try_from(given)
        .ok()
        .filter(|g| *g > 0)
        .ok_or_else(|| OnnxError::invalid(format!("has {given} groups")))?;
    Ok((window, group))
}

fn average_pool(c: &mut NodeContext<'_>) -> Built {
    let mut x = c.input(0)?;
    let (kernel, mut window) = pool(c)?;
    let mut count_include_pad = c.flag("count_include_pad", false)?;
    if count_include_pad && c.flag("ceil_mode", false)? {
        // What rounding up adds does not count, other padding does: it becomes part of the operand.
        let n = kernel.len();
        let (whole, dtype) = (c.rank(x)?, c.dtype(x)?);
        let floor = self::window(c, x, &kernel)?.pads;
        let mut pads = vec![0i64; 2 * whole];
        for (axis, pad) in floor.iter().enumerate() {
            let at = if axis < n { 2 + axis } else { whole + 2 + axis - n };
            pads[at] = i64::try_from(*pad).unwrap_or(i64::MAX);
        }
        window.pads.iter_mut().zip(&floor).for_each(|(pad, own)| *pad -= own);
        let (pads, zero) = (c.graph.ints(&pads), c.graph.float_scalar(dtype, 0.0));
        x = c.add(Op::Pad { mode: PadMode::Constant }, &[x, pads, zero])?;
        count_include_pad = false;
    }
    Ok(vec![c.add(Op::AveragePool { window, kernel, count_include_pad }, &[x])?])
}

fn max_pool(c: &mut NodeContext<'_>) -> Built {
    c.only_first_result()?;
    let (kernel, window) = pool(c)?;
    c.plain(Op::MaxPool { window, kernel }, 1)
}

fn pool(c: &mut NodeContext<'_>) -> Result<(Vec<usize>, Window), Decline> {
    let x = c.input(0)?;
    let kernel =
        sizes(c, "kernel_shape")?.ok_or_else(|| OnnxError::invalid("lacks the attribute 'kernel_shape'"))?;
    let mut window = window(c, x, &kernel)?;
    // Automatic padding has no remainder to round.
    if c.flag("ceil_mode", false)? && c.text("auto_pad", "NOTSET")? == "NOTSET" {
        round_up(&c.shape(x)?, &kernel, &mut window)?;
    }
    Ok((kernel, window))
}

/// Pads the end so that a last window which begins inside the operand or its padding has a place.
fn round_up(shape: &[Dim], kernel: &[usize], window: &mut Window) -> Result<(), Decline> {
    let n = kernel.len();
    for (axis, kernel) in kernel.iter().enumerate() {
        let size = shape.get(axis + 2).and_then(Dim::known_size).ok_or(Decline::Opaque)?;
        let (begin, end, stride) = (window.pads[axis], window.pads[n + axis], window.strides[axis]);
        let reach = kernel.saturating_sub(1).saturating_mul(window.dilations[axis]).saturating_add(1);
        let span = size.saturating_add(begin).saturating_add(end).saturating_sub(reach);
        let last = span.div_ceil(stride).saturating_mul(stride);
        if last < size.saturating_add(begin) {
            let needed = last.saturating_add(reach).saturating_sub(size).saturating_sub(begin);
            window.pads[n + axis] = end.max(needed);
        }
    }
    Ok(())
}

fn sizes(c: &NodeContext<'_>, name: &str) -> Result<Option<Vec<usize>>, Decline> {
    let Some(given) = c.attributes.ints(name)? else { return Ok(None) };
    let sizes = given.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<Vec<_>>>();
    match sizes {
        Some(sizes) => Ok(Some(sizes)),
        None if name == "pads" => Err(Decline::Opaque),
        None => Err(OnnxError::invalid(format!("attribute '{name}' is negative: {given:?}")).into()),
    }
}

fn window(c: &NodeContext<'_>, x: ValueId, kernel: &[usize]) -> Result<Window, Decline> {
    let n = kernel.len();
    let strides = sizes(c, "strides")?.unwrap_or_else(|| vec![1; n]);
    let dilations = sizes(c, "dilations")?.unwrap_or_else(|| vec![1; n]);
    let pads = match c.text("auto_pad", "NOTSET")?.as_str() {
        "NOTSET" => sizes(c, "pads")?.unwrap_or_else(|| vec![0; 2 * n]),
        "VALID" => vec![0; 2 * n],
        "SAME_UPPER" => same_pads(c, x, kernel, &strides, &dilations, false)?,
        "SAME_LOWER" => same_pads(c, x, kernel, &strides, &dilations, true)?,
        other => return Err(OnnxError::invalid(format!("auto_pad '{other}' is unknown")).into()),
    };
    if strides.len() != n || dilations.len() != n || pads.len() != 2 * n {
        return Err(OnnxError::invalid("strides, dilations, pads and kernel_shape differ in length").into());
    }
    if strides.contains(&0) || dilations.contains(&0) {
        return Err(OnnxError::invalid("a stride or dilation is 0").into());
    }
    Ok(Window { strides, pads, dilations })
}

/// Pads such that the result has `ceil(size / stride)` elements per axis; an odd one goes to the lower
/// or the upper side.
fn same_pads(
    c: &NodeContext<'_>,
    x: ValueId,
    kernel: &[usize],
    strides: &[usize],
    dilations: &[usize],
    lower: bool,
) -> Result<Vec<usize>, Decline> {
    let spatial: Vec<_> = c.shape(x)?.iter().skip(2).map(Dim::known_size).collect();
    let (mut begins, mut ends) = (Vec::new(), Vec::new());
    for (((size, k), stride), dilation) in spatial.iter().zip(kernel).zip(strides).zip(dilations) {
        let size = size.ok_or(Decline::Opaque)?;
        if *stride == 0 {
            return Err(OnnxError::invalid("a stride is 0").into());
        }
        let reach = k.saturating_sub(1).saturating_mul(*dilation).saturating_add(1);
        let steps = size.div_ceil(*stride).saturating_sub(1);
        let total = steps.saturating_mul(*stride).saturating_add(reach).saturating_sub(size);
        let (small, large) = (total / 2, total - total / 2);
        begins.push(if lower { large } else { small });
        ends.push(if lower { small } else { large });
    }
    begins.extend(ends);
    Ok(begins)
}
