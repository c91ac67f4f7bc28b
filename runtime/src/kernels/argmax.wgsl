// Positions of extrema along one axis. The result is deterministic: ties go by position.
struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_out: array<vec4<u32>, 2>,
    offset_x: u32,
    offset_out: u32,
    // Strides along the line.
    along_x: u32,
    along_out: u32,
    rows: u32,
    width: u32,
    rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

override WG: u32 = 64u;
override INTEGER: bool = false;
override LAST: bool = false;
override SMALLEST: bool = false;

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

struct Best {
    word: u32,
    at: u32,
}

// Whether a is ahead of b.
fn ahead(a: Best, b: Best) -> bool {
    var more: bool;
    var less: bool;
    if (INTEGER) {
        more = bitcast<i32>(a.word) > bitcast<i32>(b.word);
        less = bitcast<i32>(a.word) < bitcast<i32>(b.word);
    } else {
        more = bitcast<f32>(a.word) > bitcast<f32>(b.word);
        less = bitcast<f32>(a.word) < bitcast<f32>(b.word);
    }
    if (more || less) { return select(more, less, SMALLEST); }
    if (LAST) { return a.at > b.at; }
    return a.at < b.at;
}

@compute @workgroup_size(WG)
fn by_row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let start = starts(row);
    let width = p.width + zero;
    let along = p.along_x;
    var best = Best(x[start.x], 0u);
    for (var i = 1u; i < width; i++) {
        let next = Best(x[start.x + i * along], i);
        if (ahead(next, best)) { best = next; }
    }
    out[start.y] = best.at;
}

var<workgroup> partial: array<Best, 256>;

@compute @workgroup_size(WG)
fn by_group(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.rows) { return; }
    let start = starts(row);
    let first = min(l, p.width - 1u);
    var best = Best(x[start.x + first * p.along_x], first);
    for (var i = l + WG; i < p.width; i += WG) {
        let next = Best(x[start.x + i * p.along_x], i);
        if (ahead(next, best)) { best = next; }
    }
    partial[l] = best;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
        if (l < half) {
            let other = partial[l + half];
            if (ahead(other, partial[l])) { partial[l] = other; }
        }
        workgroupBarrier();
    }
    if (l == 0u) { out[start.y] = partial[0].at; }
}
