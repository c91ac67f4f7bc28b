// Softmax and LogSoftmax along one axis of any stride.

struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_out: array<vec4<u32>, 2>,
    offset_x: u32,
    offset_out: u32,
    along_x: u32,
    along_out: u32,
    rows: u32,
    width: u32,
    rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

override WG: u32 = 64u;
override LOG: bool = false;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// First elements of a row: x, out.
fn starts(row: u32) -> vec2<u32> {
    var at = vec2<u32>(p.offset_x, p.offset_out);
    var rest = row;
    for (var d = p.rank - 1u + zero; d > 0u; d--) {
        let size = p.outer[d / 4u][d % 4u];
        at += (rest % size) * vec2<u32>(p.outer_x[d / 4u][d % 4u], p.outer_out[d / 4u][d % 4u]);
        rest = rest / size;
    }
    return at + rest * vec2<u32>(p.outer_x[0].x, p.outer_out[0].x);
}

// Far below zero exp gives exactly 0, NaN stays: -inf minus -inf must show.
fn exp_(v: f32) -> f32 { return select(exp(v), 0.0, v < -103.0); }

fn write(i: u32, v: f32, most: f32, total: f32) {
    if (LOG) {
        out[i] = (v - most) - log(total);
    } else {
        out[i] = exp_(v - most) / total;
    }
}

const LOWEST: f32 = -3.4028234e38;

// A row of -inf alone must give NaN: its maximum stays at -inf then.
fn top(most: f32, first: f32) -> f32 { return select(most, first, most == LOWEST); }

@compute @workgroup_size(WG)
fn by_row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let start = starts(row);
    let width = p.width + zero;
    let along = vec2<u32>(p.along_x, p.along_out);
    var most = LOWEST;
    for (var i = 0u; i < width; i++) { most = max(most, x[start.x + i * along.x]); }
    most = top(most, x[start.x]);
    var total = 0.0;
    for (var i = 0u; i < width; i++) { total += exp_(x[start.x + i * along.x] - most); }
    for (var i = 0u; i < width; i++) {
        write(start.y + i * along.y, x[start.x + i * along.x], most, total);
    }
}

var<workgroup> partial: array<f32, 256>;

fn largest(value: f32, l: u32) -> f32 {
    partial[l] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
        if (l < half) { partial[l] = max(partial[l], partial[l + half]); }
        workgroupBarrier();
    }
    return partial[0];
}

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
    var most = LOWEST;
    for (var i = l; i < p.width; i += WG) { most = max(most, x[start.x + i * p.along_x]); }
    most = top(largest(most, l), x[start.x]);
    var total = 0.0;
    for (var i = l; i < p.width; i += WG) { total += exp_(x[start.x + i * p.along_x] - most); }
    total = sum(total, l);
    for (var i = l; i < p.width; i += WG) {
        write(start.y + i * p.along_out, x[start.x + i * p.along_x], most, total);
    }
}
