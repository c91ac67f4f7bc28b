// Batched products of integer matrices less their zero points, exact in 32 bits; then floats, where they are wanted.
// Element (m, k) of a is at offset + batch + m·row + k·column; b and out likewise. Zero points of a vary with
// rows, those of b with columns. Edges are computed by clamping what is loaded and guarding what is stored.

struct Params {
    batch: vec4<u32>,
    batch_a: vec4<u32>,
    batch_b: vec4<u32>,
    batch_zero_a: vec4<u32>,
    batch_zero_b: vec4<u32>,
    batch_scale: vec4<u32>,
    batch_other_scale: vec4<u32>,
    batch_bias: vec4<u32>,
    batch_residual: vec4<u32>,
    batch_out: vec4<u32>,
    // Offset, row stride, column stride.
    a: vec4<u32>,
    b: vec4<u32>,
    zero_a: vec4<u32>,
    zero_b: vec4<u32>,
    scale: vec4<u32>,
    other_scale: vec4<u32>,
    bias: vec4<u32>,
    residual: vec4<u32>,
    out: vec4<u32>,
    m: u32,
    n: u32,
    k: u32,
    tiles_n: u32,
    tiles_m: u32,
    groups: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;
@group(0) @binding(3) var<storage, read> zero_a: array<u32>;
@group(0) @binding(4) var<storage, read> zero_b: array<u32>;
@group(0) @binding(5) var<storage, read> scale: array<f32>;
@group(0) @binding(6) var<storage, read> other_scale: array<f32>;
@group(0) @binding(7) var<storage, read> bias: array<f32>;
@group(0) @binding(8) var<storage, read> residual: array<f32>;
@group(0) @binding(9) var<storage, read_write> out: array<u32>;

override WG: u32 = 64u;
// Rows of an invocation, up to 4, or 8 that the lanes of a subgroup load for each other.
override ROWS: u32 = 4u;
// How elements lie: 0 a word each, 2 i8, 3 u8, 4 i4, 5 u4.
override A_FORM: u32 = 0u;
override B_FORM: u32 = 0u;
override ZERO_A_FORM: u32 = 0u;
override ZERO_B_FORM: u32 = 0u;
override ZERO_A: bool = false;
override ZERO_B: bool = false;
// Four columns of b are one word.
override B_WORDS: bool = false;
// Whether floats are made of the sums, and how.
override FLOATS: bool = false;
// A bit for each.
override SCALES: u32 = 0u;
override BIAS: bool = false;
override RESIDUAL: bool = false;
override ACTIVATION: u32 = 0u;

// 256 · 255² is less than 2^24.
const EXACT: u32 = 256u;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> nought: u32;

// The logarithm of the elements to a word.
fn density(form: u32) -> u32 {
    return select(select(0u, 2u, form > 1u), 3u, form > 3u);
}

// Integer i, which lies in this word.
fn integer(word: u32, i: u32, form: u32) -> i32 {
    switch (form) {
        case 0u: { return bitcast<i32>(word); }
        case 2u: { return extractBits(bitcast<i32>(word), (i & 3u) * 8u, 8u); }
        case 3u: { return bitcast<i32>(extractBits(word, (i & 3u) * 8u, 8u)); }
        case 4u: { return extractBits(bitcast<i32>(word), (i & 7u) * 4u, 4u); }
        default: { return bitcast<i32>(extractBits(word, (i & 7u) * 4u, 4u)); }
    }
}

fn load_a(i: u32) -> i32 { return integer(a[i >> density(A_FORM)], i, A_FORM); }
fn load_b(i: u32) -> i32 { return integer(b[i >> density(B_FORM)], i, B_FORM); }

fn load_zero_a(i: u32) -> i32 {
    if (!ZERO_A) { return 0; }
    return integer(zero_a[i >> density(ZERO_A_FORM)], i, ZERO_A_FORM);
}

fn load_zero_b(i: u32) -> i32 {
    if (!ZERO_B) { return 0; }
    return integer(zero_b[i >> density(ZERO_B_FORM)], i, ZERO_B_FORM);
}

// Four columns of b, the first of them at i.
fn load_fours(i: vec4<u32>) -> vec4<i32> {
    if (!B_WORDS) { return vec4<i32>(load_b(i.x), load_b(i.y), load_b(i.z), load_b(i.w)); }
    let word = vec4<u32>(b[i.x >> 2u]) << vec4<u32>(24u, 16u, 8u, 0u);
    if (B_FORM == 2u) { return bitcast<vec4<i32>>(word) >> vec4<u32>(24u); }
    return bitcast<vec4<i32>>(word >> vec4<u32>(24u));
}

fn dot4(x: vec4<u32>, y: vec4<u32>) -> u32 {
    return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}

// Coordinates of a flat index; unused axes have size 0 and are skipped.
fn unravel(index: u32, shape: vec4<u32>) -> vec4<u32> {
    var at = vec4<u32>(0u);
    var rest = index;
    for (var d = 3u; d > 0u; d--) {
        if (shape[d] + nought != 0u) {
            at[d] = rest % shape[d];
            rest = rest / shape[d];
        }
    }
    at.x = rest;
    return at;
}

fn tanh_(x: f32) -> f32 {
    let t = exp(-2.0 * min(abs(x), 20.0));
    return select((1.0 - t) / (1.0 + t), -(1.0 - t) / (1.0 + t), x < 0.0);
}

fn sigmoid(x: f32) -> f32 {
    let e = exp(-min(abs(x), 88.0));
    return select(1.0 / (1.0 + e), e / (1.0 + e), x < 0.0);
}

fn erf_(x: f32) -> f32 {
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

// The functions bound their arguments, which would make numbers of NaN.
fn activate(op: u32, x: f32) -> f32 {
    if ((bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u) { return x; }
    switch (op) {
        case 1u: { return max(x, 0.0); }
        case 2u: { return x * sigmoid(x); }
        case 3u: { return 0.5 * x * (1.0 + erf_(x * 0.70710678)); }
        case 4u: { return 0.5 * x * (1.0 + tanh_(0.7978845608 * (x + 0.044715 * x * x * x))); }
        case 5u: { return sigmoid(x); }
        case 6u: { return tanh_(x); }
        case 7u: { let y = max(x, 0.0); return y * y; }
        default: { return x; }
    }
}

// What is stored of a sum at (row, column).
fn finished(sum: i32, t: vec4<u32>, row: u32, column: u32) -> u32 {
    if (!FLOATS) { return bitcast<u32>(sum); }
    var factor = 1.0;
    if ((SCALES & 1u) != 0u) { factor = scale[p.scale.x + dot4(t, p.batch_scale) + row * p.scale.y + column * p.scale.z]; }
    if ((SCALES & 2u) != 0u) { factor *= other_scale[p.other_scale.x + dot4(t, p.batch_other_scale) + row * p.other_scale.y + column * p.other_scale.z]; }
    var value = f32(sum) * factor;
    if (BIAS) { value += bias[p.bias.x + dot4(t, p.batch_bias) + row * p.bias.y + column * p.bias.z]; }
    value = activate(ACTIVATION, value) * p.alpha;
    if (RESIDUAL) { value += residual[p.residual.x + dot4(t, p.batch_residual) + row * p.residual.y + column * p.residual.z]; }
    return bitcast<u32>(value);
}

// Adds eight rows of products: lane r of x holds row r's element.
fn eight(x: f32, y: vec4<f32>, sum: ptr<function, array<vec4<f32>, 8>>) {
    (*sum)[0] = fma(vec4<f32>(subgroupBroadcast(x, 0u)), y, (*sum)[0]);
    (*sum)[1] = fma(vec4<f32>(subgroupBroadcast(x, 1u)), y, (*sum)[1]);
    (*sum)[2] = fma(vec4<f32>(subgroupBroadcast(x, 2u)), y, (*sum)[2]);
    (*sum)[3] = fma(vec4<f32>(subgroupBroadcast(x, 3u)), y, (*sum)[3]);
    (*sum)[4] = fma(vec4<f32>(subgroupBroadcast(x, 4u)), y, (*sum)[4]);
    (*sum)[5] = fma(vec4<f32>(subgroupBroadcast(x, 5u)), y, (*sum)[5]);
    (*sum)[6] = fma(vec4<f32>(subgroupBroadcast(x, 6u)), y, (*sum)[6]);
    (*sum)[7] = fma(vec4<f32>(subgroupBroadcast(x, 7u)), y, (*sum)[7]);
}

// An invocation's part of a group; together, the lanes of a subgroup load a row each.
fn product(together: bool, group: u32, l: u32) {
    if (group >= p.groups) { return; }
    let rest = group / p.tiles_n;
    let t = unravel(rest / p.tiles_m, p.batch);
    let row = (rest % p.tiles_m) * ROWS;
    let column = ((group % p.tiles_n) * WG + l) * 4u;
    // A lane that has left could load nothing for the others.
    if (!together && column >= p.n) { return; }
    let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.m - 1u));
    let columns = min(vec4<u32>(column, column + 1u, column + 2u, column + 3u), vec4<u32>(p.n - 1u));
    let start_a = p.a.x + dot4(t, p.batch_a);
    let start_za = p.zero_a.x + dot4(t, p.batch_zero_a);
    let ia = rows * p.a.y + start_a;
    let za_at = rows * p.zero_a.y + start_za;
    let zb_at = columns * p.zero_b.z + (p.zero_b.x + dot4(t, p.batch_zero_b));
    let zb = vec4<i32>(load_zero_b(zb_at.x), load_zero_b(zb_at.y), load_zero_b(zb_at.z), load_zero_b(zb_at.w));
    var za = vec4<i32>(0);
    var own = 0u;
    var own_zero = 0;
    if (together) {
        let mine = min(row + l, p.m - 1u);
        own = mine * p.a.y + start_a;
        own_zero = load_zero_a(mine * p.zero_a.y + start_za);
    } else {
        za = vec4<i32>(load_zero_a(za_at.x), load_zero_a(za_at.y), load_zero_a(za_at.z), load_zero_a(za_at.w));
    }
    var i = columns * p.b.z + (p.b.x + dot4(t, p.batch_b));
    var j = 0u;
    let depth = p.k + nought;
    let step_a = p.a.z;
    let step_b = p.b.y;
    var sum: array<vec4<i32>, 8>;
    // Floats hold the sum of so many products of 8 bits exactly, and are multiplied faster than integers.
    for (var first = 0u; first < depth; first += EXACT) {
        var part = array<vec4<f32>, 8>();
        let end = min(first + EXACT, depth);
        for (var k = first; k < end; k++) {
            let y = vec4<f32>(load_fours(i) - zb);
            if (together) {
                eight(f32(load_a(own + j) - own_zero), y, &part);
            } else {
                part[0] = fma(vec4<f32>(f32(load_a(ia.x + j) - za.x)), y, part[0]);
                if (ROWS > 1u) { part[1] = fma(vec4<f32>(f32(load_a(ia.y + j) - za.y)), y, part[1]); }
                if (ROWS > 2u) { part[2] = fma(vec4<f32>(f32(load_a(ia.z + j) - za.z)), y, part[2]); }
                if (ROWS > 3u) { part[3] = fma(vec4<f32>(f32(load_a(ia.w + j) - za.w)), y, part[3]); }
            }
            i += step_b;
            j += step_a;
        }
        sum[0] += vec4<i32>(part[0]);
        if (ROWS > 1u) { sum[1] += vec4<i32>(part[1]); }
        if (ROWS > 2u) { sum[2] += vec4<i32>(part[2]); }
        if (ROWS > 3u) { sum[3] += vec4<i32>(part[3]); }
        if (ROWS > 4u) {
            sum[4] += vec4<i32>(part[4]);
            sum[5] += vec4<i32>(part[5]);
            sum[6] += vec4<i32>(part[6]);
            sum[7] += vec4<i32>(part[7]);
        }
    }
    var done = sum;
    for (var r = 0u; r < ROWS; r++) {
        for (var q = 0u; q < 4u; q++) {
            if (row + r < p.m && column + q < p.n) {
                out[p.out.x + dot4(t, p.batch_out) + (row + r) * p.out.y + (column + q) * p.out.z] = finished(done[r][q], t, row + r, column + q);
            }
        }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    nought = l >> 16u;
    product(false, w.x + n.x * (w.y + n.y * w.z), l);
}

@compute @workgroup_size(WG)
fn subgroup(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    nought = l >> 16u;
    product(true, w.x + n.x * (w.y + n.y * w.z), l);
}
