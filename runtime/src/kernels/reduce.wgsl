// Reductions over any axes: `rows` results of `width` terms each. Values are 32-bit words, f32 or i32.

struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_out: array<vec4<u32>, 2>,
    inner: array<vec4<u32>, 2>,
    inner_x: array<vec4<u32>, 2>,
    offset_x: u32,
    offset_out: u32,
    rows: u32,
    width: u32,
    outer_rank: u32,
    inner_rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

override WG: u32 = 64u;
override INTEGER: bool = false;
// 0 sum, 1 mean, 2 max, 3 min, 4 product, 5 l1, 6 l2, 7 sum of squares, 8 log of the sum,
// 9 log of the sum of exponentials.
override OP: u32 = 0u;

fn is_nan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// First elements of a row: x, out.
fn starts(row: u32) -> vec2<u32> {
    var at = vec2<u32>(p.offset_x, p.offset_out);
    var rest = row;
    for (var d = p.outer_rank - 1u + zero; d > 0u; d--) {
        let size = p.outer[d / 4u][d % 4u];
        at += (rest % size) * vec2<u32>(p.outer_x[d / 4u][d % 4u], p.outer_out[d / 4u][d % 4u]);
        rest = rest / size;
    }
    return at + rest * vec2<u32>(p.outer_x[0].x, p.outer_out[0].x);
}

fn load(start: u32, term: u32) -> u32 {
    var at = start;
    var rest = term;
    for (var d = p.inner_rank - 1u + zero; d > 0u; d--) {
        let size = p.inner[d / 4u][d % 4u];
        at += (rest % size) * p.inner_x[d / 4u][d % 4u];
        rest = rest / size;
    }
    return x[at + rest * p.inner_x[0].x];
}

// The first pass of a log-sum-exp is a maximum; all others reduce in one pass by OP itself.
fn neutral(op: u32) -> u32 {
    switch (op) {
        case 2u: { return select(0xff800000u, 0x80000000u, INTEGER); }
        case 3u: { return select(0x7f800000u, 0x7fffffffu, INTEGER); }
        case 4u: { return select(0x3f800000u, 1u, INTEGER); }
        default: { return 0u; }
    }
}

// What a term contributes; `most` is the row's maximum, for log-sum-exp.
fn term(op: u32, word: u32, most: f32) -> u32 {
    if (INTEGER) {
        let v = bitcast<i32>(word);
        switch (op) {
            case 5u: { return bitcast<u32>(abs(v)); }
            case 7u: { return bitcast<u32>(v * v); }
            default: { return word; }
        }
    }
    let v = bitcast<f32>(word);
    switch (op) {
        case 5u: { return bitcast<u32>(abs(v)); }
        case 6u, 7u: { return bitcast<u32>(v * v); }
        case 9u: { return bitcast<u32>(select(exp(v - most), 0.0, v - most < -103.0)); }
        default: { return word; }
    }
}

fn combine(op: u32, a: u32, b: u32) -> u32 {
    if (INTEGER) {
        let u = bitcast<i32>(a);
        let v = bitcast<i32>(b);
        switch (op) {
            case 2u: { return bitcast<u32>(max(u, v)); }
            case 3u: { return bitcast<u32>(min(u, v)); }
            case 4u: { return bitcast<u32>(u * v); }
            default: { return bitcast<u32>(u + v); }
        }
    }
    let u = bitcast<f32>(a);
    let v = bitcast<f32>(b);
    switch (op) {
        case 2u, 3u: {
            if (is_nan(u)) { return a; }
            if (is_nan(v)) { return b; }
            return bitcast<u32>(select(min(u, v), max(u, v), op == 2u));
        }
        case 4u: { return bitcast<u32>(u * v); }
        default: { return bitcast<u32>(u + v); }
    }
}

fn finish(word: u32, most: f32) -> u32 {
    if (INTEGER) {
        if (OP == 1u && p.width + zero > 0u) { return bitcast<u32>(bitcast<i32>(word) / i32(p.width)); }
        return word;
    }
    let v = bitcast<f32>(word);
    switch (OP) {
        case 1u: { return bitcast<u32>(v / f32(p.width)); }
        case 6u: { return bitcast<u32>(sqrt(v)); }
        case 8u: { return bitcast<u32>(log(v)); }
        case 9u: { return bitcast<u32>(log(v) + most); }
        default: { return word; }
    }
}

// An infinite maximum would make infinity minus infinity of the row's largest terms.
fn anchor(word: u32) -> f32 {
    let v = bitcast<f32>(word);
    return select(v, 0.0, abs(v) > 3.4e38);
}

@compute @workgroup_size(WG)
fn by_row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let start = starts(row);
    let width = p.width + zero;
    var most = 0.0;
    if (OP == 9u) {
        var top = neutral(2u);
        for (var i = 0u; i < width; i++) { top = combine(2u, top, load(start.x, i)); }
        most = anchor(top);
    }
    var sum = neutral(OP);
    for (var i = 0u; i < width; i++) { sum = combine(OP, sum, term(OP, load(start.x, i), most)); }
    out[start.y] = finish(sum, most);
}

var<workgroup> partial: array<u32, 256>;

fn all(op: u32, value: u32, l: u32) -> u32 {
    workgroupBarrier();
    partial[l] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
        if (l < half) { partial[l] = combine(op, partial[l], partial[l + half]); }
        workgroupBarrier();
    }
    return partial[0];
}

@compute @workgroup_size(WG)
fn by_group(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.rows) { return; }
    let start = starts(row);
    var most = 0.0;
    if (OP == 9u) {
        var top = neutral(2u);
        for (var i = l; i < p.width; i += WG) { top = combine(2u, top, load(start.x, i)); }
        most = anchor(all(2u, top, l));
    }
    var sum = neutral(OP);
    for (var i = l; i < p.width; i += WG) { sum = combine(OP, sum, term(OP, load(start.x, i), most)); }
    sum = all(OP, sum, l);
    if (l == 0u) { out[start.y] = finish(sum, most); }
}
