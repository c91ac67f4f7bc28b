// Rotary position embedding: one invocation turns one pair of the last axis.

struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_cos: array<vec4<u32>, 2>,
    outer_sin: array<vec4<u32>, 2>,
    outer_out: array<vec4<u32>, 2>,
    // Strides of the last axis, and offsets: x, cos, sin, out.
    along: vec4<u32>,
    offsets: vec4<u32>,
    pairs: u32,
    // Pairs of one row.
    half: u32,
    rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> cos_: array<f32>;
@group(0) @binding(3) var<storage, read> sin_: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

override WG: u32 = 64u;
override INTERLEAVED: bool = false;
override FULL_TABLE: bool = false;

fn strides(d: u32) -> vec4<u32> {
    let q = d / 4u;
    let r = d % 4u;
    return vec4<u32>(p.outer_x[q][r], p.outer_cos[q][r], p.outer_sin[q][r], p.outer_out[q][r]);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (i >= p.pairs) { return; }
    let pair = i % p.half;
    var rest = i / p.half;
    var at = p.offsets;
    for (var d = p.rank - 1u; d > 0u; d--) {
        let size = p.outer[d / 4u][d % 4u];
        at += (rest % size) * strides(d);
        rest = rest / size;
    }
    at += rest * strides(0u);
    let i0 = select(pair, 2u * pair, INTERLEAVED);
    let i1 = select(pair + p.half, 2u * pair + 1u, INTERLEAVED);
    let t0 = select(pair, i0, FULL_TABLE);
    let t1 = select(pair, i1, FULL_TABLE);
    let a = x[at.x + i0 * p.along.x];
    let b = x[at.x + i1 * p.along.x];
    let c0 = cos_[at.y + t0 * p.along.y];
    let c1 = cos_[at.y + t1 * p.along.y];
    let s0 = sin_[at.z + t0 * p.along.z];
    let s1 = sin_[at.z + t1 * p.along.z];
    out[at.w + i0 * p.along.w] = a * c0 - b * s0;
    out[at.w + i1 * p.along.w] = b * c1 + a * s1;
}
