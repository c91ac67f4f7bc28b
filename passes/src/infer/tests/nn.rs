use super::{result, x};
use crate::ir::{Attention, Correction, CorrectionForm, Op, Rotary, RotaryTable, Window};

#[test]
fn norms_keep_the_type() {
    let layer = |axis| Op::LayerNorm { axis, epsilon: 1e-5 };
    assert_eq!(result(layer(2), &[x("f32[b, t, 64]"), x("f32[64]"), x("f32[64]")]), "f32[b, t, 64]");
    assert_eq!(result(layer(2), &[x("f32[b, t, 64]"), None, None]), "f32[b, t, 64]");
    assert_eq!(
        result(layer(2), &[x("f32[b, t, 64]"), x("f32[63]")]),
        "error: scale [63] does not broadcast to [b, t, 64]"
    );
    assert_eq!(result(layer(3), &[x("f32[b, t, 64]")]), "error: axis 3 is outside rank 3");
    let rms = Op::RmsNorm { axis: 2, epsilon: 1e-5 };
    assert_eq!(result(rms, &[x("f16[2, b, 64]"), x("f16[2, 1, 64]")]), "f16[2, b, 64]");
    let batch = |scale| {
        let factor = || x("f32[3]");
        result(Op::BatchNorm { epsilon: 1e-5 }, &[x("f32[b, 3, 8, 8]"), scale, factor(), factor(), factor()])
    };
    assert_eq!(batch(x("f32[3]")), "f32[b, 3, 8, 8]");
    assert_eq!(batch(x("f32[4]")), "error: scale for channels of 3 with 4");
    assert_eq!(batch(None), "error: operand 1 (scale) is missing");
}

fn window(strides: [usize; 2], pads: [usize; 4], dilations: [usize; 2]) -> Window {
    Window { strides: strides.to_vec(), pads: pads.to_vec(), dilations: dilations.to_vec() }
}

#[test]
fn windows_count_places() {
    let conv = |group, w: Window, x_ty, w_ty| result(Op::Conv { window: w, group }, &[x(x_ty), x(w_ty)]);
    let patches = || window([8, 8], [0; 4], [1, 1]);
    assert_eq!(conv(1, patches(), "f32[b, 3, 32, 40]", "f32[64, 3, 8, 8]"), "f32[b, 64, 4, 5]");
    let same = || window([1, 1], [1; 4], [1, 1]);
    assert_eq!(conv(1, same(), "f32[b, 3, h, w]", "f32[6, 3, 3, 3]"), "f32[b, 6, h, w]");
    assert_eq!(conv(3, same(), "f32[b, 3, 5, 5]", "f32[6, 1, 3, 3]"), "f32[b, 6, 5, 5]");
    // (5 + 2 - (2·2 + 1)) / 2 + 1
    let spread = || window([2, 2], [1; 4], [2, 2]);
    assert_eq!(conv(1, spread(), "f32[1, 1, 5, 5]", "f32[1, 1, 3, 3]"), "f32[1, 1, 2, 2]");
    assert_eq!(conv(1, same(), "f32[1, 3, 5, 5]", "f32[1, 2, 3, 3]"), "error: channels of 3 with 2");
    assert_eq!(conv(2, same(), "f32[1, 2, 5, 5]", "f32[3, 1, 3, 3]"), "error: 3 output channels in 2 groups");
    assert_eq!(
        conv(1, patches(), "f32[1, 3, 5, 5]", "f32[1, 3, 8, 8]"),
        "error: a window of 8 does not fit 5 at spatial axis 0"
    );
    assert_eq!(
        conv(1, window([0, 1], [0; 4], [1, 1]), "f32[1, 3, 5, 5]", "f32[1, 3, 1, 1]"),
        "error: the stride of spatial axis 0 is 0"
    );
    let pool = Op::MaxPool { window: window([2, 2], [0; 4], [1, 1]), kernel: vec![2, 2] };
    assert_eq!(result(pool, &[x("f32[b, 3, 9, 8]")]), "f32[b, 3, 4, 4]");
    assert_eq!(result(Op::GlobalAveragePool, &[x("f32[b, 3, h, w]")]), "f32[b, 3, 1, 1]");
    assert_eq!(result(Op::GlobalAveragePool, &[x("f32[b, 3]")]), "error: x has rank 2, below 3");
}

fn attention(args: [&str; 3], mask: Option<&str>) -> String {
    let op = Op::Attention(Attention { scale: 1.0, causal: true, window: None, softcap: None, safe: false });
    let [q, k, v] = args.map(x);
    result(op, &[q, k, v, mask.and_then(x)])
}

#[test]
fn attention_groups_heads() {
    let (q, k, v) = ("f32[b, 8, t, 16]", "f32[b, 2, s, 16]", "f32[b, 2, s, 24]");
    assert_eq!(attention([q, k, v], None), "f32[b, 8, t, 24]");
    assert_eq!(attention([q, k, v], Some("bool[1, 1, t, s]")), "f32[b, 8, t, 24]");
    assert_eq!(attention(["f32[6, b, 8, t, 16]", k, v], None), "f32[6, b, 8, t, 24]");
    assert_eq!(
        attention(["f32[b, 7, t, 16]", k, v], None),
        "error: 7 query heads are no multiple of 2 key heads"
    );
    assert_eq!(attention(["f32[b, 8, t, 8]", k, v], None), "error: head sizes of q and k: of 8 with 16");
    assert_eq!(
        attention([q, k, v], Some("bool[3, t, s]")),
        "error: mask [3, t, s] does not broadcast to [b, 8, t, s]"
    );
    assert_eq!(attention(["f32[8, t]", k, v], None), "error: q has rank 2, below 3");
}

#[test]
fn rotary_keeps_the_type() {
    let run = |table, cos: &str| {
        result(
            Op::Rotary(Rotary { interleaved: false, table }),
            &[x("f32[b, 4, t, 16]"), x(cos), x("f32[t, 1]")],
        )
    };
    assert_eq!(run(RotaryTable::Half, "f32[t, 8]"), "f32[b, 4, t, 16]");
    assert_eq!(run(RotaryTable::Full, "f32[b, 1, t, 16]"), "f32[b, 4, t, 16]");
    assert_eq!(run(RotaryTable::Full, "f32[t, 8]"), "error: cos [t, 8] does not broadcast to [b, 4, t, 16]");
}

#[test]
fn corrections_keep_or_drop_the_units() {
    let prefix = |last_only| Op::Correction(Correction { form: CorrectionForm::Prefix, last_only });
    let f = || x("f32[6, b, t, 64]");
    assert_eq!(result(prefix(false), &[f(), x("f32[b, t, 64]")]), "f32[6, b, t, 64]");
    assert_eq!(result(prefix(true), &[f(), x("f32[6, b, t, 64]")]), "f32[b, t, 64]");
    assert_eq!(
        result(prefix(true), &[f(), x("f32[5, b, t, 64]")]),
        "error: s [5, b, t, 64] is neither [6, b, t, 64] nor [b, t, 64]"
    );
    let linear = |streams, t: Option<&str>| {
        let form = CorrectionForm::Linear { streams, stream_axis: 3 };
        let op = Op::Correction(Correction { form, last_only: false });
        result(op, &[x("f32[6, b, t, 4, 64]"), x("f32[b, t, 4, 64]"), t.and_then(x)])
    };
    assert_eq!(linear(1, Some("f32[6, 6]")), "f32[6, b, t, 4, 64]");
    assert_eq!(linear(4, Some("f32[24, 24]")), "f32[6, b, t, 4, 64]");
    assert_eq!(linear(4, Some("f32[6, 6]")), "error: t is [6, 6], not [24, 24]");
    assert_eq!(linear(3, Some("f32[18, 18]")), "error: streams: of 4 with 3");
    assert_eq!(linear(4, None), "error: operand 2 (t) is missing");
    assert_eq!(linear(4, Some("f16[24, 24]")), "error: operands are f32 and f16");
    assert_eq!(result(prefix(true), &[f(), x("f64[b, t, 64]")]), "error: operands are f32 and f64");
}
