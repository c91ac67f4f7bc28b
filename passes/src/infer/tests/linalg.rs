use super::{result, unknown, x};
use crate::ir::Op;

#[test]
fn matmul_of_all_ranks() {
    let matmul = |a, b| result(Op::MatMul, &[x(a), x(b)]);
    assert_eq!(matmul("f32[b, t, 64]", "f32[64, 128]"), "f32[b, t, 128]");
    assert_eq!(matmul("f32[b, 4, t, 16]", "f32[b, 4, 16, s]"), "f32[b, 4, t, s]");
    assert_eq!(matmul("f32[3, 1, 2, 5]", "f32[7, 5, 6]"), "f32[3, 7, 2, 6]");
    assert_eq!(matmul("f32[5]", "f32[5]"), "f32[]");
    assert_eq!(matmul("f32[5]", "f32[b, 5, 6]"), "f32[b, 6]");
    assert_eq!(matmul("f32[b, 4, 5]", "f32[5]"), "f32[b, 4]");
    assert_eq!(matmul("f32[b, t]", "f32[64, 2]"), "f32[b, 2]");
    assert_eq!(matmul("f32[b, 64]", "f32[128, 2]"), "error: contraction of 64 with 128");
    assert_eq!(matmul("f32[]", "f32[128, 2]"), "error: a has rank 0");
    assert_eq!(matmul("f32[2, 3, 4]", "f32[3, 4, 5]"), "error: [2] and [3] do not broadcast: 2 against 3");
    assert_eq!(matmul("f32[2, 2]", "f16[2, 2]"), "error: operands are f32 and f16");
    assert_eq!(result(Op::MatMul, &[unknown(), x("f32[2, 2]")]), "?");
    assert_eq!(result(Op::MatMul, &[unknown(), x("f32[]")]), "error: b has rank 0");
}

#[test]
fn gemm_transposes_and_adds() {
    let gemm =
        |trans_a, trans_b, args: &[_]| result(Op::Gemm { alpha: 1.0, beta: 1.0, trans_a, trans_b }, args);
    assert_eq!(gemm(false, false, &[x("f32[n, 4]"), x("f32[4, 6]"), x("f32[6]")]), "f32[n, 6]");
    assert_eq!(gemm(true, true, &[x("f32[4, n]"), x("f32[6, 4]"), x("f32[n, 1]")]), "f32[n, 6]");
    assert_eq!(gemm(false, true, &[x("f32[n, 4]"), x("f32[4, 6]")]), "error: contraction of 4 with 6");
    assert_eq!(
        gemm(false, false, &[x("f32[n, 4]"), x("f32[4, 6]"), x("f32[5]")]),
        "error: c [5] does not broadcast to [n, 6]"
    );
    assert_eq!(gemm(false, false, &[x("f32[1, n, 4]"), x("f32[4, 6]")]), "error: a has rank 3, not 2");
}

#[test]
fn einsum_reads_equations() {
    let einsum = |equation: &str, args: &[_]| result(Op::Einsum { equation: equation.into() }, args);
    let (q, k) = (|| x("f32[b, t, 4, 16]"), || x("f32[b, s, 4, 16]"));
    assert_eq!(einsum("bqhd,bkhd->bhqk", &[q(), k()]), "f32[b, 4, t, s]");
    assert_eq!(einsum(" i j , j k ", &[x("f32[2, 3]"), x("f32[3, 4]")]), "f32[2, 4]");
    assert_eq!(einsum("ba", &[x("f32[2, 3]")]), "f32[3, 2]");
    assert_eq!(einsum("ii->i", &[x("f32[3, 3]")]), "f32[3]");
    assert_eq!(einsum("ij->", &[x("f32[2, 3]")]), "f32[]");
    assert_eq!(einsum("...ij,...jk->...ik", &[x("f32[b, 1, 2, 3]"), x("f32[7, 3, 4]")]), "f32[b, 7, 2, 4]");
    assert_eq!(einsum("...i,i->...", &[x("f32[b, t, 3]"), x("f32[3]")]), "f32[b, t]");
    assert_eq!(einsum("ij,jk->ik", &[x("f32[2, 3]"), x("f32[4, 5]")]), "error: label j is 3 and 4");
    assert_eq!(einsum("ij->ik", &[x("f32[2, 3]")]), "error: label k of the result is in no operand");
    assert_eq!(einsum("ij->ii", &[x("f32[2, 3]")]), "error: label i occurs twice in the result");
    assert_eq!(einsum("ijk", &[x("f32[2, 3]")]), "error: a term of 3 labels stands for an operand of rank 2");
    assert_eq!(einsum("i?", &[x("f32[2, 3]")]), "error: '?' is no label of an equation");
    assert_eq!(einsum("i,j", &[x("f32[2]")]), "error: equation 'i,j' has 2 terms for 1 operands");
}
