// Elementwise programs. One invocation computes one element: it finds its coordinates, loads the
// registers 0.. from the inputs, runs up to 16 steps and stores the results.
//
// Registers: 0-5 inputs, 6-7 positions, 8-15 constants, 16-31 steps; 32-bit words that each operation
// reads as its own type. Operations and register numbers are pipeline constants, so the driver sees
// straight-line code; with INTERPRET they are read from the uniform block instead.

struct Params {
    shape: array<vec4<u32>, 2>,
    // For each slot (0-5 inputs, 6-7 positions, 8-9 results): a stride per axis.
    strides: array<array<vec4<u32>, 2>, 10>,
    offsets: array<vec4<u32>, 3>,
    constants: array<vec4<u32>, 2>,
    // Operation and operands, when interpreting.
    steps: array<vec4<u32>, 16>,
    results: vec4<u32>,
    count: u32,
    steps_len: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// Results follow the inputs, so a binding's role depends on the entry point, which names how many of
// each there are.
@group(0) @binding(1) var<storage, read> in0: array<u32>;
@group(0) @binding(2) var<storage, read> in1: array<u32>;
@group(0) @binding(3) var<storage, read> in2: array<u32>;
@group(0) @binding(4) var<storage, read> in3: array<u32>;
@group(0) @binding(5) var<storage, read> in4: array<u32>;
@group(0) @binding(6) var<storage, read> in5: array<u32>;
@group(0) @binding(1) var<storage, read_write> out0: array<u32>;
@group(0) @binding(2) var<storage, read_write> out1: array<u32>;
@group(0) @binding(3) var<storage, read_write> out2: array<u32>;
@group(0) @binding(4) var<storage, read_write> out3: array<u32>;
@group(0) @binding(5) var<storage, read_write> out4: array<u32>;
@group(0) @binding(6) var<storage, read_write> out5: array<u32>;
@group(0) @binding(7) var<storage, read_write> out6: array<u32>;
@group(0) @binding(8) var<storage, read_write> out7: array<u32>;

override WG: u32 = 64u;
override RANK: u32 = 1u;
override INTERPRET: bool = false;
override STEPS: u32 = 0u;
override RESULT0: u32 = 0u;
override RESULT1: u32 = 0u;
override FORM0: u32 = 0u;
override FORM1: u32 = 0u;
override FORM2: u32 = 0u;
override FORM3: u32 = 0u;
override FORM4: u32 = 0u;
override FORM5: u32 = 0u;
override OP0: u32 = 0u; override A0: u32 = 0u; override B0: u32 = 0u; override C0: u32 = 0u;
override OP1: u32 = 0u; override A1: u32 = 0u; override B1: u32 = 0u; override C1: u32 = 0u;
override OP2: u32 = 0u; override A2: u32 = 0u; override B2: u32 = 0u; override C2: u32 = 0u;
override OP3: u32 = 0u; override A3: u32 = 0u; override B3: u32 = 0u; override C3: u32 = 0u;
override OP4: u32 = 0u; override A4: u32 = 0u; override B4: u32 = 0u; override C4: u32 = 0u;
override OP5: u32 = 0u; override A5: u32 = 0u; override B5: u32 = 0u; override C5: u32 = 0u;
override OP6: u32 = 0u; override A6: u32 = 0u; override B6: u32 = 0u; override C6: u32 = 0u;
override OP7: u32 = 0u; override A7: u32 = 0u; override B7: u32 = 0u; override C7: u32 = 0u;
override OP8: u32 = 0u; override A8: u32 = 0u; override B8: u32 = 0u; override C8: u32 = 0u;
override OP9: u32 = 0u; override A9: u32 = 0u; override B9: u32 = 0u; override C9: u32 = 0u;
override OP10: u32 = 0u; override A10: u32 = 0u; override B10: u32 = 0u; override C10: u32 = 0u;
override OP11: u32 = 0u; override A11: u32 = 0u; override B11: u32 = 0u; override C11: u32 = 0u;
override OP12: u32 = 0u; override A12: u32 = 0u; override B12: u32 = 0u; override C12: u32 = 0u;
override OP13: u32 = 0u; override A13: u32 = 0u; override B13: u32 = 0u; override C13: u32 = 0u;
override OP14: u32 = 0u; override A14: u32 = 0u; override B14: u32 = 0u; override C14: u32 = 0u;
override OP15: u32 = 0u; override A15: u32 = 0u; override B15: u32 = 0u; override C15: u32 = 0u;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

var<private> r: array<u32, 32>;
var<private> coord: array<u32, 8>;

fn address(slot: u32) -> u32 {
    var a = p.offsets[slot / 4u][slot % 4u];
    for (var d = 0u; d < RANK; d++) {
        a += coord[d] * p.strides[slot][d / 4u][d % 4u];
    }
    return a;
}

// Finds this invocation's coordinates and index inputs; false beyond the last element.
fn locate(w: vec3<u32>, n: vec3<u32>, l: u32) -> bool {
    if (INTERPRET) { zero = l >> 16u; }
    let i = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (i >= p.count) { return false; }
    var rest = i;
    for (var d = RANK - 1u; d > 0u; d--) {
        let size = p.shape[d / 4u][d % 4u];
        coord[d] = rest % size;
        rest = rest / size;
    }
    coord[0] = rest;
    r[6] = address(6u);
    r[7] = address(7u);
    return true;
}

// How elements lie: 0 a word each, 1 f16, 2 i8, 3 u8, 4 i4, 5 u4.

// The logarithm of the elements to a word.
fn density(form: u32) -> u32 {
    return select(select(1u, 2u, form > 1u), 3u, form > 3u);
}

// Element i, which lies in this word, as a word.
fn unpack(word: u32, i: u32, form: u32) -> u32 {
    switch (form) {
        case 1u: {
            let pair = unpack2x16float(word);
            return bitcast<u32>(select(pair.x, pair.y, (i & 1u) == 1u));
        }
        case 2u: { return bitcast<u32>(extractBits(bitcast<i32>(word), (i & 3u) * 8u, 8u)); }
        case 3u: { return extractBits(word, (i & 3u) * 8u, 8u); }
        case 4u: { return bitcast<u32>(extractBits(bitcast<i32>(word), (i & 7u) * 4u, 4u)); }
        default: { return extractBits(word, (i & 7u) * 4u, 4u); }
    }
}

fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn is_inf(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u; }
fn negative(x: f32) -> bool { return (bitcast<u32>(x) >> 31u) == 1u; }

// Exact at the ends, where exp's own argument or result leaves the range of f32.
fn exp_(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    let e = exp(clamp(x, -104.0, 88.72283));
    if (x > 88.72283) { return bitcast<f32>(0x7f800000u + (p.count & 0u)); }
    return select(e, 0.0, x < -103.97);
}

fn log_(x: f32) -> f32 {
    if (is_nan(x) || x < 0.0) { return bitcast<f32>(0x7fc00000u + (p.count & 0u)); }
    if (x == 0.0) { return bitcast<f32>(0xff800000u + (p.count & 0u)); }
    if (is_inf(x)) { return x; }
    return log(x);
}

fn tanh_(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    let y = abs(x);
    if (y < 0.25) {
        let s = x * x;
        return x * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869488))));
    }
    let t = exp(-2.0 * min(y, 20.0));
    return select((1.0 - t) / (1.0 + t), -(1.0 - t) / (1.0 + t), x < 0.0);
}

// Taylor near zero; elsewhere the Chebyshev fit of Numerical Recipes' erfc, relative error 1.2e-7.
fn erf_(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    let y = abs(x);
    if (y < 0.5) {
        let s = x * x;
        return 1.1283792 * x * (1.0 + s * (-0.33333333 + s * (0.1 + s * (-0.023809524 + s * (0.004629630 - s * 0.00075757576)))));
    }
    let t = 1.0 / (1.0 + 0.5 * min(y, 10.0));
    let q = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    let c = t * exp(q - min(y * y, 100.0));
    return select(1.0 - c, c - 1.0, x < 0.0);
}

fn sigmoid(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    let e = exp(-min(abs(x), 88.0));
    return select(1.0 / (1.0 + e), e / (1.0 + e), x < 0.0);
}

// log(1 + x) for x >= 0, precise for small x.
fn log1p(x: f32) -> f32 {
    if (x < 0.01) { return x * (1.0 - x * (0.5 - x * (0.33333333 - x * 0.25))); }
    return log(1.0 + x);
}

fn expm1(x: f32) -> f32 {
    if (abs(x) < 0.1) { return x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666667 + x * 0.0083333333)))); }
    return exp_(x) - 1.0;
}

fn softplus(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    return max(x, 0.0) + log1p(exp(-min(abs(x), 88.0)));
}

fn pow_(x: f32, y: f32) -> f32 {
    if (y == 0.0 || x == 1.0) { return 1.0; }
    if (is_nan(x) || is_nan(y)) { return bitcast<f32>(0x7fc00000u + (p.count & 0u)); }
    if (y == 1.0) { return x; }
    if (y == 2.0) { return x * x; }
    if (y == 3.0) { return x * x * x; }
    if (y == 0.5 && !negative(x)) { return sqrt(x); }
    if (y == -0.5 && x > 0.0 && !is_inf(x)) { return 1.0 / sqrt(x); }
    if (y == -1.0) { return recip(x); }
    let whole = abs(y) >= 16777216.0 || floor(y) == y;
    let odd = whole && abs(y) < 16777216.0 && (i32(y) & 1) == 1;
    if (x < 0.0 && !whole && !is_inf(x)) { return bitcast<f32>(0x7fc00000u + (p.count & 0u)); }
    let size = abs(x);
    var z = 1.0;
    if (size == 0.0 || is_inf(x)) {
        z = bitcast<f32>(select(0u, 0x7f800000u, (size == 0.0) != (y > 0.0)) + (p.count & 0u));
    } else if (size != 1.0) {
        z = exp_(clamp(y * log(size), -200.0, 200.0));
    }
    return select(z, -z, negative(x) && odd);
}

fn recip(x: f32) -> f32 {
    if (x == 0.0) { return bitcast<f32>((bitcast<u32>(x) | 0x7f800000u) + (p.count & 0u)); }
    return 1.0 / x;
}

fn divide(x: f32, y: f32) -> f32 {
    if (y == 0.0 && !is_nan(x)) {
        let sign = (bitcast<u32>(x) ^ bitcast<u32>(y)) & 0x80000000u;
        return bitcast<f32>(select(sign | 0x7f800000u, 0x7fc00000u, x == 0.0) + (p.count & 0u));
    }
    return x / y;
}

// An infinite divisor leaves what is finite as it is.
fn fmod_(x: f32, y: f32) -> f32 {
    return select(x - y * trunc(x / y), x, is_inf(y) && !is_inf(x) && !is_nan(x));
}

fn mod_(x: f32, y: f32) -> f32 {
    let m = fmod_(x, y);
    return select(m, m + y, m != 0.0 && (m < 0.0) != (y < 0.0));
}

fn sign_(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    return select(select(0.0, -1.0, x < 0.0), 1.0, x > 0.0);
}

// Round half to even, on the low `drop` bits of the pattern.
fn round_bits(x: u32, drop: u32) -> u32 {
    let keep_odd = (x >> drop) & 1u;
    return (x + ((1u << (drop - 1u)) - 1u) + keep_odd) & ~((1u << drop) - 1u);
}

fn round_f16(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    let sign = bits & 0x80000000u;
    if (size >= 0x7f800000u) { return x; }
    // 65520 and beyond round to infinity.
    if (size >= 0x477ff000u) { return bitcast<f32>((sign | 0x7f800000u) + (p.count & 0u)); }
    if (size < 0x38800000u) {
        // Subnormal: multiples of 2^-24.
        let y = round(bitcast<f32>(size) * 16777216.0) * 0.000000059604645;
        return bitcast<f32>(bitcast<u32>(y) | sign);
    }
    return bitcast<f32>(sign | round_bits(size, 13u));
}

fn round_bf16(x: f32) -> f32 {
    if (is_nan(x)) { return x; }
    return bitcast<f32>(round_bits(bitcast<u32>(x), 16u));
}

fn to_int(x: f32) -> i32 {
    if (is_nan(x)) { return 0; }
    if (x >= 2147483648.0) { return 2147483647; }
    if (x <= -2147483648.0) { return -2147483647 - 1; }
    return i32(x);
}

fn div_int(x: i32, y: i32) -> i32 {
    if (y == 0) { return 0; }
    if (y == -1) { return -x; }
    return x / y;
}

fn rem_int(x: i32, y: i32) -> i32 { return x - y * div_int(x, y); }

fn mod_int(x: i32, y: i32) -> i32 {
    let m = rem_int(x, y);
    return select(m, m + y, m != 0 && (m < 0) != (y < 0));
}

fn pow_int(x: i32, y: i32) -> i32 {
    if (y < 0) {
        if (x == 1) { return 1; }
        if (x == -1) { return select(-1, 1, (y & 1) == 0); }
        return 0;
    }
    var z = 1;
    var base = x;
    for (var e = u32(y); e != 0u; e = e >> 1u) {
        if ((e & 1u) == 1u) { z = z * base; }
        base = base * base;
    }
    return z;
}

fn words(x: f32) -> u32 { return bitcast<u32>(x); }
fn wordi(x: i32) -> u32 { return bitcast<u32>(x); }
fn wordb(x: bool) -> u32 { return select(0u, 1u, x); }

fn float_op(op: u32, x: f32, y: f32, z: f32) -> f32 {
    // Drivers' trigonometric functions may lose a NaN.
    if (op >= 8u && op <= 18u && is_nan(x)) { return x; }
    switch (op) {
        case 1u: { return bitcast<f32>(words(x) ^ 0x80000000u); }
        case 2u: { return abs(x); }
        case 3u: { return sign_(x); }
        case 4u: { return exp_(x); }
        case 5u: { return log_(x); }
        case 6u: { return sqrt(x); }
        case 7u: { return recip(x); }
        case 8u: { return sin(x); }
        case 9u: { return cos(x); }
        case 10u: { return tan(x); }
        case 11u: { return asin(x); }
        case 12u: { return acos(x); }
        case 13u: { return atan(x); }
        case 14u: {
            if (abs(x) < 0.5) { let s = x * x; return x * (1.0 + s * (0.16666667 + s * (0.0083333333 + s * 0.00019841270))); }
            return 0.5 * (exp_(x) - exp_(-x));
        }
        case 15u: { return 0.5 * (exp_(x) + exp_(-x)); }
        case 16u: {
            let y = abs(x);
            let v = log1p(y + y * y / (1.0 + sqrt(y * y + 1.0)));
            return select(v, -v, x < 0.0);
        }
        case 17u: { return log_(x + sqrt(x * x - 1.0)); }
        case 18u: {
            if (abs(x) < 0.1) { let s = x * x; return x * (1.0 + s * (0.33333333 + s * (0.2 + s * 0.14285714))); }
            return 0.5 * log_((1.0 + x) / (1.0 - x));
        }
        case 19u: { return tanh_(x); }
        case 20u: { return erf_(x); }
        case 21u: { return floor(x); }
        case 22u: { return ceil(x); }
        case 23u: { return round(x); }
        case 24u: { return select(max(x, 0.0), x, is_nan(x)); }
        case 25u: { return sigmoid(x); }
        case 26u: { return softplus(x); }
        case 27u: { return x / (1.0 + abs(x)); }
        case 28u: { return x * tanh_(softplus(x)); }
        case 29u: { return x * sigmoid(x); }
        case 30u: { return 0.5 * x * (1.0 + erf_(x * 0.70710678)); }
        case 31u: { return 0.5 * x * (1.0 + tanh_(0.7978845608 * (x + 0.044715 * x * x * x))); }
        case 32u: { return x * clamp(x / 6.0 + 0.5, 0.0, 1.0); }
        case 33u: { return round_f16(x); }
        case 34u: { return round_bf16(x); }
        case 35u: { return x * sigmoid(y * x); }
        case 36u: { return select(x, y * x, x < 0.0); }
        case 37u: { return select(x, y * expm1(min(x, 0.0)), x < 0.0); }
        case 38u: { return select(x, y * expm1(min(x / y, 0.0)), x < 0.0); }
        case 39u: { return z * select(x, y * expm1(min(x, 0.0)), x <= 0.0); }
        case 40u: { return select(0.0, x, x > y); }
        case 41u: { return select(clamp(y * x + z, 0.0, 1.0), x, is_nan(x)); }
        case 45u: { return x + y; }
        case 46u: { return x - y; }
        case 47u: { return x * y; }
        case 48u: { return divide(x, y); }
        case 49u: { return pow_(x, y); }
        case 50u: { return mod_(x, y); }
        case 51u: { return fmod_(x, y); }
        case 52u: { return select(select(min(x, y), y, is_nan(y)), x, is_nan(x)); }
        case 53u: { return select(select(max(x, y), y, is_nan(y)), x, is_nan(x)); }
        case 54u: { return select(x, y * x, x < 0.0); }
        case 58u: { return x * y + z; }
        case 59u: { return select(min(max(x, y), z), x, is_nan(x)); }
        default: { return x; }
    }
}

fn int_op(op: u32, x: i32, y: i32, z: i32) -> i32 {
    switch (op) {
        case 60u: { return -x; }
        case 61u: { return abs(x); }
        case 62u: { return sign(x); }
        case 63u: { return x + y; }
        case 64u: { return x - y; }
        case 65u: { return x * y; }
        case 66u: { return div_int(x, y); }
        case 67u: { return mod_int(x, y); }
        case 68u: { return rem_int(x, y); }
        case 69u: { return min(x, y); }
        case 70u: { return max(x, y); }
        case 71u: { return i32(x == y); }
        case 72u: { return i32(x < y); }
        case 73u: { return i32(x <= y); }
        case 74u: { return x & y; }
        case 75u: { return x | y; }
        case 76u: { return x ^ y; }
        case 77u: { return ~x; }
        case 78u: { return select(0, x << (u32(y) & 31u), u32(y) < 32u); }
        case 79u: { return x >> min(u32(y), 31u); }
        case 80u: { return min(max(x, y), z); }
        case 81u: { return pow_int(x, y); }
        case 82u: { return 1 - x; }
        case 87u: { return i32(x != 0); }
        case 88u: { let s = 32u - u32(y); return (x << s) >> s; }
        default: { return x; }
    }
}

fn apply(op: u32, a: u32, b: u32, c: u32) -> u32 {
    let x = bitcast<f32>(a);
    let y = bitcast<f32>(b);
    switch (op) {
        case 0u: { return a; }
        case 42u: { return wordb(is_nan(x)); }
        case 43u: { return wordb(a == 0x7f800000u); }
        case 44u: { return wordb(a == 0xff800000u); }
        case 55u: { return wordb(x == y && !is_nan(x) && !is_nan(y)); }
        case 56u: { return wordb(x < y && !is_nan(x) && !is_nan(y)); }
        case 57u: { return wordb(x <= y && !is_nan(x) && !is_nan(y)); }
        case 83u: { return select(c, b, a != 0u); }
        case 84u: { return wordi(to_int(x)); }
        case 85u: { return words(f32(bitcast<i32>(a))); }
        case 86u: { return wordb((a & 0x7fffffffu) != 0u); }
        default: {
            if (op < 60u) { return words(float_op(op, x, y, bitcast<f32>(c))); }
            return wordi(int_op(op, bitcast<i32>(a), bitcast<i32>(b), bitcast<i32>(c)));
        }
    }
}

// Runs the program on the loaded registers.
fn run() {
    for (var n = 0u; n < 8u; n++) {
        r[8u + n] = p.constants[n / 4u][n % 4u];
    }
    if (INTERPRET) {
        for (var s = 0u; s < p.steps_len + zero; s++) {
            let q = p.steps[s];
            r[16u + s] = apply(q.x, r[q.y], r[q.z], r[q.w]);
        }
        return;
    }
    if (STEPS > 0u) { r[16] = apply(OP0, r[A0], r[B0], r[C0]); }
    if (STEPS > 1u) { r[17] = apply(OP1, r[A1], r[B1], r[C1]); }
    if (STEPS > 2u) { r[18] = apply(OP2, r[A2], r[B2], r[C2]); }
    if (STEPS > 3u) { r[19] = apply(OP3, r[A3], r[B3], r[C3]); }
    if (STEPS > 4u) { r[20] = apply(OP4, r[A4], r[B4], r[C4]); }
    if (STEPS > 5u) { r[21] = apply(OP5, r[A5], r[B5], r[C5]); }
    if (STEPS > 6u) { r[22] = apply(OP6, r[A6], r[B6], r[C6]); }
    if (STEPS > 7u) { r[23] = apply(OP7, r[A7], r[B7], r[C7]); }
    if (STEPS > 8u) { r[24] = apply(OP8, r[A8], r[B8], r[C8]); }
    if (STEPS > 9u) { r[25] = apply(OP9, r[A9], r[B9], r[C9]); }
    if (STEPS > 10u) { r[26] = apply(OP10, r[A10], r[B10], r[C10]); }
    if (STEPS > 11u) { r[27] = apply(OP11, r[A11], r[B11], r[C11]); }
    if (STEPS > 12u) { r[28] = apply(OP12, r[A12], r[B12], r[C12]); }
    if (STEPS > 13u) { r[29] = apply(OP13, r[A13], r[B13], r[C13]); }
    if (STEPS > 14u) { r[30] = apply(OP14, r[A14], r[B14], r[C14]); }
    if (STEPS > 15u) { r[31] = apply(OP15, r[A15], r[B15], r[C15]); }
}

fn result0() -> u32 { return r[select(RESULT0, p.results[0], INTERPRET)]; }
fn result1() -> u32 { return r[select(RESULT1, p.results[1], INTERPRET)]; }

fn load0() -> u32 {
    let i = address(0u);
    if (FORM0 != 0u) { return unpack(in0[i >> density(FORM0)], i, FORM0); }
    return in0[i];
}

fn load1() -> u32 {
    let i = address(1u);
    if (FORM1 != 0u) { return unpack(in1[i >> density(FORM1)], i, FORM1); }
    return in1[i];
}

fn load2() -> u32 {
    let i = address(2u);
    if (FORM2 != 0u) { return unpack(in2[i >> density(FORM2)], i, FORM2); }
    return in2[i];
}

fn load3() -> u32 {
    let i = address(3u);
    if (FORM3 != 0u) { return unpack(in3[i >> density(FORM3)], i, FORM3); }
    return in3[i];
}

fn load4() -> u32 {
    let i = address(4u);
    if (FORM4 != 0u) { return unpack(in4[i >> density(FORM4)], i, FORM4); }
    return in4[i];
}

fn load5() -> u32 {
    let i = address(5u);
    if (FORM5 != 0u) { return unpack(in5[i >> density(FORM5)], i, FORM5); }
    return in5[i];
}

@compute @workgroup_size(WG)
fn in0_out1(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    run();
    out0[address(8u)] = result0();
}

@compute @workgroup_size(WG)
fn in0_out2(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    run();
    out0[address(8u)] = result0();
    out1[address(9u)] = result1();
}

@compute @workgroup_size(WG)
fn in1_out1(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    run();
    out1[address(8u)] = result0();
}

@compute @workgroup_size(WG)
fn in1_out2(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    run();
    out1[address(8u)] = result0();
    out2[address(9u)] = result1();
}

@compute @workgroup_size(WG)
fn in2_out1(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    run();
    out2[address(8u)] = result0();
}

@compute @workgroup_size(WG)
fn in2_out2(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    run();
    out2[address(8u)] = result0();
    out3[address(9u)] = result1();
}

@compute @workgroup_size(WG)
fn in3_out1(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    run();
    out3[address(8u)] = result0();
}

@compute @workgroup_size(WG)
fn in3_out2(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    run();
    out3[address(8u)] = result0();
    out4[address(9u)] = result1();
}

@compute @workgroup_size(WG)
fn in4_out1(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    r[3] = load3();
    run();
    out4[address(8u)] = result0();
}

@compute @workgroup_size(WG)
fn in4_out2(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    r[3] = load3();
    run();
    out4[address(8u)] = result0();
    out5[address(9u)] = result1();
}

@compute @workgroup_size(WG)
fn in5_out1(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    r[3] = load3();
    r[4] = load4();
    run();
    out5[address(8u)] = result0();
}

@compute @workgroup_size(WG)
fn in5_out2(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    r[3] = load3();
    r[4] = load4();
    run();
    out5[address(8u)] = result0();
    out6[address(9u)] = result1();
}

@compute @workgroup_size(WG)
fn in6_out1(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    r[3] = load3();
    r[4] = load4();
    r[5] = load5();
    run();
    out6[address(8u)] = result0();
}

@compute @workgroup_size(WG)
fn in6_out2(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    if (!locate(w, n, l)) { return; }
    r[0] = load0();
    r[1] = load1();
    r[2] = load2();
    r[3] = load3();
    r[4] = load4();
    r[5] = load5();
    run();
    out6[address(8u)] = result0();
    out7[address(9u)] = result1();
}
