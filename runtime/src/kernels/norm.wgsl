// LayerNorm and RmsNorm: rows of `width` elements, with factors of their own strides.
// LayerNorm takes the mean first and the variance around it second, so it does not cancel.

struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_scale: array<vec4<u32>, 2>,
    outer_bias: array<vec4<u32>, 2>,
    outer_out: array<vec4<u32>, 2>,
    // Strides along the row, and offsets: x, scale, bias, out.
    along: vec4<u32>,
    offsets: vec4<u32>,
    rows: u32,
    width: u32,
    epsilon: f32,
    rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> scale: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

override WG: u32 = 64u;
override CENTER: bool = false;
override SCALE: bool = false;
override BIAS: bool = false;
override X_HALF: bool = false;
override SCALE_HALF: bool = false;
override BIAS_HALF: bool = false;

fn decode(word: u32, i: u32, is_half: bool) -> f32 {
    if (is_half) {
        let pair = unpack2x16float(word);
        return select(pair.x, pair.y, (i & 1u) == 1u);
    }
    return bitcast<f32>(word);
}

fn load_x(i: u32) -> f32 { return decode(x[select(i, i / 2u, X_HALF)], i, X_HALF); }
fn load_scale(i: u32) -> f32 { return decode(scale[select(i, i / 2u, SCALE_HALF)], i, SCALE_HALF); }
fn load_bias(i: u32) -> f32 { return decode(bias[select(i, i / 2u, BIAS_HALF)], i, BIAS_HALF); }

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// Strides of one outer axis: x, scale, bias, out.
fn strides(d: u32) -> vec4<u32> {
    let q = d / 4u;
    let r = d % 4u;
    return vec4<u32>(p.outer_x[q][r], p.outer_scale[q][r], p.outer_bias[q][r], p.outer_out[q][r]);
}

// First elements of a row: x, scale, bias, out.
fn starts(row: u32) -> vec4<u32> {
    var at = p.offsets;
    var rest = row;
    for (var d = p.rank + zero; d > 1u; d--) {
        let size = p.outer[(d - 1u) / 4u][(d - 1u) % 4u];
        at += (rest % size) * strides(d - 1u);
        rest = rest / size;
    }
    return at + rest * strides(0u);
}

fn write(at: vec4<u32>, mean: f32, factor: f32) {
    var y = (load_x(at.x) - mean) * factor;
    if (SCALE) { y *= load_scale(at.y); }
    if (BIAS) { y += load_bias(at.z); }
    out[at.w] = y;
}

@compute @workgroup_size(WG)
fn by_row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let start = starts(row);
    let along = p.along;
    let width = p.width + zero;
    var mean = 0.0;
    if (CENTER) {
        for (var i = 0u; i < width; i++) { mean += load_x(start.x + i * along.x); }
        mean = mean / f32(width);
    }
    var square = 0.0;
    for (var i = 0u; i < width; i++) {
        let d = load_x(start.x + i * along.x) - mean;
        square += d * d;
    }
    let factor = 1.0 / sqrt(square / f32(width) + p.epsilon);
    for (var i = 0u; i < width; i++) { write(start + along * i, mean, factor); }
}

var<workgroup> partial: array<f32, 256>;

// The sum of every invocation's value, in all of them.
fn sum(value: f32, l: u32) -> f32 {
    workgroupBarrier();
    partial[l] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
        if (l < half) { partial[l] += partial[l + half]; }
        workgroupBarrier();
    }
    return partial[0];
}

@compute @workgroup_size(WG)
fn by_group(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.rows) { return; }
    let start = starts(row);
    var mean = 0.0;
    if (CENTER) {
        for (var i = l; i < p.width; i += WG) { mean += load_x(start.x + i * p.along.x); }
        mean = sum(mean, l) / f32(p.width);
    }
    var square = 0.0;
    for (var i = l; i < p.width; i += WG) {
        let d = load_x(start.x + i * p.along.x) - mean;
        square += d * d;
    }
    let factor = 1.0 / sqrt(sum(square, l) / f32(p.width) + p.epsilon);
    for (var i = l; i < p.width; i += WG) { write(start + p.along * i, mean, factor); }
}
