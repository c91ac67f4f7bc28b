//! Result types of operators that the compiler carries through but that real models are full of.
//!
//! Without them everything downstream would be untyped. A rule that does not apply gives unknown types;
//! it never fails, since the compiler does not know what such an operator allows.

use super::{Inferred, Operand};
use crate::ir::{Attribute, DType, Dim, Opaque, Type};

/// The results of `op` as far as known; the rest is unknown.
pub(super) fn opaque(op: &Opaque, operands: &[Option<Operand<'_>>], outputs: usize) -> Vec<Inferred> {
    let ty = |i: usize| operands.get(i).copied().flatten().and_then(|o| o.ty);
    let known = match (op.domain.as_str(), op.op_type.as_str()) {
        ("", "DynamicQuantizeLinear") => dynamic_quantize(ty(0)),
        ("", "QuantizeLinear") => one(ty(0), ty(2).map_or(DType::U8, |t| t.dtype)),
        ("", "DequantizeLinear") => ty(1).map_or(vec![], |scale| one(ty(0), scale.dtype)),
        ("", "MatMulInteger") => matmul(ty(0), ty(1), DType::I32),
        ("com.microsoft", "DequantizeLinear") => ty(1).map_or(vec![], |scale| one(ty(0), scale.dtype)),
        ("com.microsoft", "DynamicQuantizeMatMul") => matmul(ty(0), ty(1), DType::F32),
        ("com.microsoft", "MatMulIntegerToFloat") => matmul(ty(0), ty(1), DType::F32),
        ("com.microsoft", "MatMulNBits") => matmul_nbits(op, ty(0)),
        ("com.microsoft", "GroupQueryAttention") => group_query(op, ty(0), ty(2)),
        ("com.microsoft", "RotaryEmbedding") => ty(0).map_or(vec![], |x| one(Some(x), x.dtype)),
        _ => vec![],
    };
    let mut results = vec![Inferred::default(); outputs];
    for (slot, ty) in results.iter_mut().zip(known) {
        slot.ty = Some(ty);
    }
    results
}

fn one(like: Option<&Type>, dtype: DType) -> Vec<Type> {
    like.map(|t| Type::new(dtype, t.shape.clone())).into_iter().collect()
}

fn dynamic_quantize(x: Option<&Type>) -> Vec<Type> {
    let Some(x) = x else { return vec![] };
    vec![Type::new(DType::U8, x.shape.clone()), Type::new(DType::F32, vec![]), Type::new(DType::U8, vec![])]
}

/// A product of matrices of which the second has no batch axes.
fn matmul(a: Option<&Type>, b: Option<&Type>, dtype: DType) -> Vec<Type> {
    match (a.and_then(|a| a.shape.split_last()), b.map(|b| &b.shape[..])) {
        (Some((_, lead)), Some([_, n])) => vec![Type::new(dtype, [lead, std::slice::from_ref(n)].concat())],
        _ => vec![],
    }
}

fn int(op: &Opaque, name: &str) -> Option<i64> {
    op.attributes.iter().find_map(|(n, a)| match a {
        Attribute::Int(i) if n == name => Some(*i),
        _ => None,
    })
}

fn matmul_nbits(op: &Opaque, x: Option<&Type>) -> Vec<Type> {
    match (x.and_then(|x| Some((x, x.shape.split_last()?.1))), int(op, "N")) {
        (Some((x, lead)), Some(n)) if n > 0 => vec![Type::new(x.dtype, [lead, &[Dim::from(n)]].concat())],
        _ => vec![],
    }
}

/// The attention's result only: the caches' length is what the caller passes.
fn group_query(op: &Opaque, query: Option<&Type>, value: Option<&Type>) -> Vec<Type> {
    let (Some(query), Some(heads), Some(kv_heads)) = (query, int(op, "num_heads"), int(op, "kv_num_heads"))
    else {
        return vec![];
    };
    let [batch, length, width] = &query.shape[..] else { return vec![] };
    // Without a value operand the query holds queries, keys and values.
    let packed = if value.is_some() {
        Some(heads)
    } else {
        kv_heads.checked_mul(2).and_then(|n| n.checked_add(heads))
    };
    match packed.filter(|n| *n > 0).and_then(|n| width.div_exact(&n.into())) {
        Some(head) => {
            let width = head * Dim::from(heads);
            vec![Type::new(query.dtype, vec![batch.clone(), length.clone(), width])]
        }
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(op_type: &str, attributes: &[(&str, i64)], operands: &[Option<Type>]) -> Vec<Option<String>> {
        let op = Opaque {
            domain: if op_type.contains("Linear") { "" } else { "com.microsoft" }.into(),
            op_type: op_type.into(),
            attributes: attributes.iter().map(|(n, i)| ((*n).into(), Attribute::Int(*i))).collect(),
            captures: vec![],
        };
        let operands: Vec<_> = operands
            .iter()
            .map(|t| t.as_ref().map(|t| Operand { ty: Some(t), content: None, constant: None }))
            .collect();
        opaque(&op, &operands, 3).into_iter().map(|r| r.ty.map(|t| t.to_string())).collect()
    }

    #[test]
    fn common_operators_have_types() {
        let x = Some(Type::new(DType::F32, vec![Dim::symbol("b"), Dim::symbol("t"), 64i64.into()]));
        let text = |s: &str| Some(s.to_string());
        assert_eq!(
            types("DynamicQuantizeLinear", &[], std::slice::from_ref(&x)),
            [text("u8[b, t, 64]"), text("f32[]"), text("u8[]")]
        );
        assert_eq!(types("MatMulNBits", &[("N", 96)], std::slice::from_ref(&x))[0], text("f32[b, t, 96]"));
        let heads = [("num_heads", 4), ("kv_num_heads", 2)];
        assert_eq!(types("GroupQueryAttention", &heads, std::slice::from_ref(&x))[0], text("f32[b, t, 32]"));
        assert_eq!(
            types("GroupQueryAttention", &heads, &[x.clone(), x.clone(), x.clone()])[0],
            text("f32[b, t, 64]")
        );
        assert_eq!(types("GroupQueryAttention", &[("num_heads", 3)], &[x])[0], None);
        assert_eq!(types("DequantizeLinear", &[], &[None, None]), [None, None, None]);
        assert_eq!(types("SomethingElse", &[], &[]), [None, None, None]);
    }
}
