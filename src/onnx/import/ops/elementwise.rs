//! Elementwise operators.

use snlp_passes::ir::{Binary, DType, Op, Tensor, Unary};

use super::{Builder, Built, Decline, NodeContext};
use crate::onnx::error::OnnxError;
use crate::onnx::tensor::dtype_of;

pub(super) fn lookup(op_type: &str) -> Option<Builder> {
    Some(match op_type {
        "Identity" => |c| c.plain(Op::Identity, 1),
        "Dropout" => dropout,
        "Where" => |c| c.plain(Op::Where, 3),
        "Cast" => cast,
        "CastLike" => cast_like,
        "Clip" => clip,
        "Sum" => |c| variadic(c, Binary::Add),
        "Max" => |c| variadic(c, Binary::Max),
        "Min" => |c| variadic(c, Binary::Min),
        "Mean" => mean,
        "Mod" => modulo,
        "BitShift" => bit_shift,
        "Gelu" => gelu,
        "Swish" => swish,
        name if binary(name).is_some() => |c| {
            let op = binary(c.node.op_type()).ok_or(Decline::Opaque)?;
            c.plain(Op::Binary(op), 2)
        },
        name if plain_unary(name).is_some() => |c| {
            let op = plain_unary(c.node.op_type()).ok_or(Decline::Opaque)?;
            c.plain(Op::Unary(op), 1)
        },
        "LeakyRelu" | "Elu" | "Celu" | "Selu" | "ThresholdedRelu" | "HardSigmoid" | "IsInf" => |c| {
            let op = parametric(c)?;
            c.plain(Op::Unary(op), 1)
        },
        _ => return None,
    })
}

fn plain_unary(op_type: &str) -> Option<Unary> {
    use Unary::*;
    Some(match op_type {
        "Neg" => Neg,
        "Abs" => Abs,
        "Sign" => Sign,
        "Exp" => Exp,
        "Log" => Log,
        "Sqrt" => Sqrt,
        "Reciprocal" => Reciprocal,
        "Sin" => Sin,
        "Cos" => Cos,
        "Tan" => Tan,
        "Asin" => Asin,
        "Acos" => Acos,
        "Atan" => Atan,
        "Sinh" => Sinh,
        "Cosh" => Cosh,
        "Asinh" => Asinh,
        "Acosh" => Acosh,
        "Atanh" => Atanh,
        "Tanh" => Tanh,
        "Erf" => Erf,
        "Floor" => Floor,
        "Ceil" => Ceil,
        "Round" => Round,
        "Relu" => Relu,
        "Sigmoid" => Sigmoid,
        "Softplus" => Softplus,
        "Softsign" => Softsign,
        "Mish" => Mish,
        "HardSwish" => HardSwish,
        "IsNaN" => IsNan,
        "Not" => Not,
        "BitwiseNot" => BitwiseNot,
        _ => return None,
    })
}

/// Functions with parameters; the defaults are the specification's.
fn parametric(c: &NodeContext<'_>) -> Result<Unary, Decline> {
    Ok(match c.node.op_type() {
        "LeakyRelu" => Unary::LeakyRelu { alpha: c.float("alpha", 0.01)? },
        "Elu" => Unary::Elu { alpha: c.float("alpha", 1.0)? },
        "Celu" => Unary::Celu { alpha: c.float("alpha", 1.0)? },
        "Selu" => Unary::Selu { alpha: c.float("alpha", 1.673_263_2)?, gamma: c.float("gamma", 1.050_701)? },
        "ThresholdedRelu" => Unary::ThresholdedRelu { alpha: c.float("alpha", 1.0)? },
        "HardSigmoid" => Unary::HardSigmoid { alpha: c.float("alpha", 0.2)?, beta: c.float("beta", 0.5)? },
        "IsInf" => Unary::IsInf {
            negative: c.flag("detect_negative", true)?,
            positive: c.flag("detect_positive", true)?,
        },
        _ => return Err(Decline::Opaque),
    })
}

fn binary(op_type: &str) -> Option<Binary> {
    use Binary::*;
    Some(match op_type {
        "Add" => Add,
        "Sub" => Sub,
        "Mul" => Mul,
        "Div" => Div,
        "Pow" => Pow,
        "PRelu" => PRelu,
        "And" => And,
        "Or" => Or,
        "Xor" => Xor,
        "Equal" => Equal,
        "Less" => Less,
        "LessOrEqual" => LessOrEqual,
        "Greater" => Greater,
        "GreaterOrEqual" => GreaterOrEqual,
        "BitwiseAnd" => BitwiseAnd,
        "BitwiseOr" => BitwiseOr,
        "BitwiseXor" => BitwiseXor,
        _ => return None,
    })
}

fn modulo(c: &mut NodeContext<'_>) -> Built {
    let op = if c.flag("fmod", false)? { Binary::Fmod } else { Binary::Mod };
    c.plain(Op::Binary(op), 2)
}

fn bit_shift(c: &mut NodeContext<'_>) -> Built {
    let op = match c.text("direction", "")?.as_str() {
        "LEFT" => Binary::ShiftLeft,
        "RIGHT" => Binary::ShiftRight,
        other => {
            return Err(OnnxError::invalid(format!("direction '{other}' is neither LEFT nor RIGHT")).into());
        }
    };
    c.plain(Op::Binary(op), 2)
}

/// Up to opset 10 the bounds were attributes.
fn clip(c: &mut NodeContext<'_>) -> Built {
    let x = c.input(0)?;
    if c.opset >= 11 {
        return c.one(Op::Clip);
    }
    let dtype = c.dtype(x)?;
    let mut inputs = vec![Some(x)];
    for name in ["min", "max"] {
        let bound = c.attributes.float(name)?;
        inputs.push(bound.map(|b| c.graph.float_scalar(dtype, b.into())));
    }
    Ok(vec![c.add_optional(Op::Clip, inputs)?])
}

/// A chain of binary operators, first to last.
fn variadic(c: &mut NodeContext<'_>, op: Binary) -> Built {
    let inputs = c.all_inputs()?;
    let Some((first, rest)) = inputs.split_first() else {
        return Err(OnnxError::invalid("has no operands").into());
    };
    if rest.is_empty() {
        return c.plain(Op::Identity, 1);
    }
    let mut value = *first;
    for operand in rest {
        value = c.add(Op::Binary(op), &[value, *operand])?;
    }
    Ok(vec![value])
}

fn mean(c: &mut NodeContext<'_>) -> Built {
    let dtype = c.dtype(c.input(0)?)?;
    let count = c.graph.float_scalar(dtype, c.inputs.len() as f64);
    let sum = variadic(c, Binary::Add)?;
    match sum[..] {
        [sum] if c.inputs.len() > 1 => Ok(vec![c.add(Op::Binary(Binary::Div), &[sum, count])?]),
        _ => Ok(sum),
    }
}

/// At inference a dropout does nothing.
fn dropout(c: &mut NodeContext<'_>) -> Built {
    let off = match c.optional(2) {
        None => true,
        Some(_) => c.ints(2)? == [0],
    };
    if !off {
        return Err(Decline::Opaque);
    }
    let mut results = c.plain(Op::Identity, 1)?;
    if c.wants(1) {
        let x = c.input(0)?;
        let rank = c.rank(x)?;
        let shape = c.add(Op::Shape { start: 0, end: rank }, &[x])?;
        let kept = Tensor::from_bools(vec![], &[true]).map_err(|e| OnnxError::invalid(e.to_string()))?;
        let kept = c.graph.constant(kept);
        results.push(c.add(Op::Expand, &[kept, shape])?);
    }
    Ok(results)
}

fn cast(c: &mut NodeContext<'_>) -> Built {
    let number = c.attributes.int("to")?.ok_or_else(|| OnnxError::invalid("lacks the attribute 'to'"))?;
    let to = i32::try_from(number).ok().and_then(dtype_of).ok_or(Decline::Opaque)?;
    c.plain(Op::Cast { to }, 1)
}

fn cast_like(c: &mut NodeContext<'_>) -> Built {
    let to: DType = c.dtype(c.input(1)?)?;
    c.plain(Op::Cast { to }, 1)
}

fn gelu(c: &mut NodeContext<'_>) -> Built {
    let op = match c.text("approximate", "none")?.as_str() {
        "none" => Unary::GeluErf,
        "tanh" => Unary::GeluTanh,
        other => return Err(OnnxError::invalid(format!("approximation '{other}' is unknown")).into()),
    };
    c.plain(Op::Unary(op), 1)
}

fn swish(c: &mut NodeContext<'_>) -> Built {
    let alpha = c.float("alpha", 1.0)?;
    let op = if alpha == 1.0 { Unary::Silu } else { Unary::Swish { alpha } };
    c.plain(Op::Unary(op), 1)
}
