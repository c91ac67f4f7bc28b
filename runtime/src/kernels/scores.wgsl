// What both attentions make of scores.

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

const LOWEST: f32 = -3.4028234e38;

fn tanh_(x: f32) -> f32 {
    let y = abs(x);
    if (y < 0.25) {
        let s = x * x;
        return x * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869488))));
    }
    let t = exp(-2.0 * min(y, 20.0));
    return select((1.0 - t) / (1.0 + t), -(1.0 - t) / (1.0 + t), x < 0.0);
}

// The score of a dot product; -inf for excluded keys.
fn score(product: f32, at: u32) -> f32 {
    var s = product * p.scale;
    if (SOFTCAP) { s = p.softcap * tanh_(s / p.softcap); }
    if (FLOAT_MASK) { s += bitcast<f32>(mask[at]); }
    if (BOOL_MASK && mask[at] == 0u) { s = minus_infinity(); }
    return s;
}

// Not a constant expression, which may not be infinite.
fn minus_infinity() -> f32 { return bitcast<f32>(0xff800000u + (p.heads & 0u)); }

fn excluded(s: f32) -> bool { return bitcast<u32>(s) == 0xff800000u; }

// exp of a non-positive number.
fn exp_(x: f32) -> f32 { return select(exp(x), 0.0, x < -103.0); }

// What the sum of weights, which are relative to the largest score, divides by: nothing seen makes zero or
// NaN.
fn divisor(total: f32, seen: bool, most: f32, sink: u32) -> f32 {
    if (SINKS) { return select(0.0, 1.0 / (total + exp(min(sinks[sink] - most, 88.0))), seen); }
    if (seen) { return 1.0 / total; }
    return bitcast<f32>(select(0x7fc00000u, 0u, SAFE) + (p.heads & 0u));
}
