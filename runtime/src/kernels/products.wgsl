// What products of floats and of integers have in common: elements that share words, addresses, functions of the
// epilogue.

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// The logarithm of the elements to a word.
fn density(form: u32) -> u32 {
    return select(select(select(0u, 1u, form > 0u), 2u, form > 1u), 3u, form > 3u);
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

fn dot4(x: vec4<u32>, y: vec4<u32>) -> u32 {
    return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}

// Coordinates of a flat index; unused axes have size 0 and are skipped.
fn unravel(index: u32, shape: vec4<u32>) -> vec4<u32> {
    var at = vec4<u32>(0u);
    var rest = index;
    for (var d = 3u; d > 0u; d--) {
        if (shape[d] + zero != 0u) {
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
