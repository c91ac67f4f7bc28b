//! Expectations worked out by hand from the operators' definitions, properties against the evaluator,
//! and operands that no sane model has.

use super::{InferError, Inferred, Operand, infer};
use crate::ir::{DType, Dim, Op, Tensor, Type};

mod chains;
mod elementwise;
mod gather;
mod hostile;
mod laws;
mod linalg;
mod nn;
mod reduce;
mod shape_ops;
mod slice;

/// An operand: `None` is absent.
#[derive(Clone, Debug, Default)]
struct Arg {
    ty: Option<Type>,
    content: Option<Vec<Dim>>,
    constant: Option<Tensor>,
}

/// A size or symbol from text.
fn d(text: &str) -> Dim {
    text.parse::<i64>().map(Dim::from).unwrap_or_else(|_| Dim::symbol(text))
}

/// A type such as `f32[b, 3]`.
fn ty(text: &str) -> Type {
    let (dtype, shape) = text.strip_suffix(']').unwrap().split_once('[').unwrap();
    let all = [
        DType::F32,
        DType::F16,
        DType::F64,
        DType::I64,
        DType::I32,
        DType::I8,
        DType::U8,
        DType::U64,
        DType::Bool,
    ];
    let dtype = all.into_iter().find(|d| d.to_string() == dtype).unwrap();
    Type::new(dtype, shape.split(',').map(str::trim).filter(|s| !s.is_empty()).map(d).collect())
}

/// An operand of this type and nothing else known.
fn x(text: &str) -> Option<Arg> {
    Some(Arg { ty: Some(ty(text)), ..Arg::default() })
}

/// An operand of this type whose elements are expressions.
fn with(text: &str, content: &[&str]) -> Option<Arg> {
    Some(Arg { ty: Some(ty(text)), content: Some(content.iter().map(|e| d(e)).collect()), constant: None })
}

/// An int64 vector of expressions.
fn ints(content: &[&str]) -> Option<Arg> {
    with(&format!("i64[{}]", content.len()), content)
}

/// An operand of unknown type.
fn unknown() -> Option<Arg> {
    Some(Arg::default())
}

/// A constant without tracked content.
fn constant(tensor: Tensor) -> Option<Arg> {
    Some(Arg { ty: Some(Type::of(&tensor)), content: None, constant: Some(tensor) })
}

fn run(op: &Op, args: &[Option<Arg>], outputs: usize) -> Result<Vec<Inferred>, InferError> {
    let operands: Vec<Option<Operand<'_>>> = args
        .iter()
        .map(|a| {
            a.as_ref().map(|a| Operand {
                ty: a.ty.as_ref(),
                content: a.content.as_deref(),
                constant: a.constant.as_ref(),
            })
        })
        .collect();
    let mut count = 0;
    infer(op, &operands, outputs, &mut || {
        count += 1;
        Dim::symbol(&format!("new{count}"))
    })
}

/// The first result's type as text, `?` when unknown, or the error.
fn result(op: Op, args: &[Option<Arg>]) -> String {
    match run(&op, args, 1) {
        Ok(results) => results[0].ty.as_ref().map(Type::to_string).unwrap_or_else(|| "?".into()),
        Err(error) => format!("error: {error}"),
    }
}

/// The first result's elements as text, `?` when unknown.
fn content(op: Op, args: &[Option<Arg>]) -> String {
    let results = run(&op, args, 1).expect("the operands fit");
    results[0].content.as_ref().map(|c| format!("{c:?}")).unwrap_or_else(|| "?".into())
}
