// ScatterElements: one invocation walks one line along the indexed axis, so collisions, which stay
// within a line, need no atomics and are resolved in order.

struct Params {
    lines: array<vec4<u32>, 2>,
    lines_indices: array<vec4<u32>, 2>,
    lines_updates: array<vec4<u32>, 2>,
    lines_out: array<vec4<u32>, 2>,
    // Strides of the axis, and offsets: indices, updates, out.
    along: vec4<u32>,
    offsets: vec4<u32>,
    rows: u32,
    width: u32,
    // Size of the axis of out.
    size: u32,
    rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> indices: array<i32>;
@group(0) @binding(2) var<storage, read> updates: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

override WG: u32 = 64u;
override INTEGER: bool = false;
// 0 replace, 1 add, 2 multiply, 3 max, 4 min.
override OP: u32 = 0u;

fn combine(a: u32, b: u32) -> u32 {
    if (INTEGER) {
        let u = bitcast<i32>(a);
        let v = bitcast<i32>(b);
        switch (OP) {
            case 1u: { return bitcast<u32>(u + v); }
            case 2u: { return bitcast<u32>(u * v); }
            case 3u: { return bitcast<u32>(max(u, v)); }
            case 4u: { return bitcast<u32>(min(u, v)); }
            default: { return b; }
        }
    }
    let u = bitcast<f32>(a);
    let v = bitcast<f32>(b);
    switch (OP) {
        case 1u: { return bitcast<u32>(u + v); }
        case 2u: { return bitcast<u32>(u * v); }
        case 3u: { return bitcast<u32>(max(u, v)); }
        case 4u: { return bitcast<u32>(min(u, v)); }
        default: { return b; }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    var at = p.offsets.xyz;
    var rest = row;
    for (var d = p.rank; d > 0u; d--) {
        let q = (d - 1u) / 4u;
        let r = (d - 1u) % 4u;
        let size = p.lines[q][r];
        at += (rest % size) * vec3<u32>(p.lines_indices[q][r], p.lines_updates[q][r], p.lines_out[q][r]);
        rest = rest / size;
    }
    for (var i = 0u; i < p.width; i++) {
        var index = indices[at.x + i * p.along.x];
        index = select(index, index + i32(p.size), index < 0);
        if (index >= 0 && index < i32(p.size)) {
            let j = at.z + u32(index) * p.along.z;
            out[j] = combine(out[j], updates[at.y + i * p.along.y]);
        }
    }
}
