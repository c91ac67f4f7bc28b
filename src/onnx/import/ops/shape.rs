//! Shapes, and tensors made from nothing but numbers.

use snlp_passes::ir::{Op, Tensor};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;
use crate::onnx::tensor::{decode, dtype_of};

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Shape" => shape,
        "Size" => |c| c.plain(Op::Size, 1),
        "ConstantOfShape" => constant_of_shape,
        "Range" => |c| c.plain(Op::Range, 3),
        "EyeLike" => eye_like,
        "Constant" => constant,
        _ => return None,
    })
}

fn shape(c: &mut NodeContext<'_>) -> Built {
    let rank = c.rank(c.input(0)?)?;
    let clamp = |n: i64| {
        let limit = i64::try_from(rank).unwrap_or(i64::MAX);
        let n = if n < 0 { n.saturating_add(limit) } else { n };
        usize::try_from(n.clamp(0, limit)).unwrap_or(rank)
    };
    let start = clamp(c.int("start", 0)?);
    let end = clamp(c.int("end", i64::MAX)?).max(start);
    c.plain(Op::Shape { start, end }, 1)
}

fn constant_of_shape(c: &mut NodeContext<'_>) -> Built {
    let value = match c.attributes.tensor("value")? {
        Some(t) => decode(t, c.files)?,
        None => Tensor::scalar(0f32),
    };
    if value.len() != 1 {
        return Err(OnnxError::invalid(format!("fills with {} elements instead of one", value.len())).into());
    }
    let value = value.reshaped(vec![1]).map_err(|e| OnnxError::invalid(e.to_string()))?;
    c.plain(Op::ConstantOfShape { value }, 1)
}

fn eye_like(c: &mut NodeContext<'_>) -> Built {
    let dtype = match c.attributes.int("dtype")? {
        Some(n) => i32::try_from(n).ok().and_then(dtype_of).ok_or(Decline::Opaque)?,
        None => c.dtype(c.input(0)?)?,
    };
    let k = c.int("k", 0)?;
    c.plain(Op::EyeLike { dtype, k }, 1)
}

fn constant(c: &mut NodeContext<'_>) -> Built {
    let tensor = constant_tensor(c)?;
    let name = c.node.output.first().map(String::as_str).unwrap_or_default();
    let prefix = c.name.strip_suffix(c.node.name()).unwrap_or_default();
    let name = format!("{prefix}{name}");
    Ok(vec![c.graph.named_constant(&name, tensor)])
}

fn constant_tensor(c: &NodeContext<'_>) -> Result<Tensor, Decline> {
    let a = c.attributes;
    if let Some(t) = a.tensor("value")? {
        return Ok(decode(t, c.files)?);
    }
    if let Some(x) = a.float("value_float")? {
        return Ok(Tensor::scalar(x));
    }
    if let Some(x) = a.int("value_int")? {
        return Ok(Tensor::scalar(x));
    }
    if let Some(v) = a.ints("value_ints")? {
        return Ok(Tensor::ints(v));
    }
    if let Some(v) = a.get("value_floats") {
        let tensor = Tensor::from_vec(vec![v.floats.len()], v.floats.clone());
        return tensor.map_err(|e| OnnxError::invalid(e.to_string()).into());
    }
    if a.iter().next().is_some() {
        return Err(Decline::Opaque);
    }
    Err(OnnxError::invalid("has no value").into())
}
