// Newton corrections over the unit axis.
// prefix: s'_1 = f_1, s'_j = f_j + (s'_{j-1} - s_{j-1}); one invocation walks the units of one element.
// scan: s'_j = f_j + t_j (s'_{j-1} - s_{j-1}) with a matrix t_j per token; one invocation walks the units of
// one feature of a token, its streams in registers.
// linear: s'_(j,q) = s_(j,q) + sum over i <= j, r of t[(j,q), (i,r)] (f - s)_(i,r).

struct Params {
    state: array<vec4<u32>, 2>,
    state_f: array<vec4<u32>, 2>,
    state_s: array<vec4<u32>, 2>,
    state_out: array<vec4<u32>, 2>,
    state_t: array<vec4<u32>, 2>,
    // f, s, out, t.
    offsets: vec4<u32>,
    // Strides of the unit axis: f, s, out, t.
    unit: vec4<u32>,
    // Strides of the streams: f, s, out.
    stream: vec4<u32>,
    t_row: u32,
    t_column: u32,
    units: u32,
    streams: u32,
    elements: u32,
    rank: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> f: array<f32>;
@group(0) @binding(2) var<storage, read> s: array<f32>;
@group(0) @binding(3) var<storage, read> t: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

override WG: u32 = 64u;
override LAST_ONLY: bool = false;

const MAX_STREAMS: u32 = 32u;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// First elements: f, s, out, t.
fn starts(element: u32) -> vec4<u32> {
    var at = p.offsets;
    var rest = element;
    for (var d = p.rank + zero; d > 0u; d--) {
        let a = (d - 1u) / 4u;
        let b = (d - 1u) % 4u;
        let size = p.state[a][b];
        at += (rest % size) * vec4<u32>(p.state_f[a][b], p.state_s[a][b], p.state_out[a][b], p.state_t[a][b]);
        rest = rest / size;
    }
    return at;
}

@compute @workgroup_size(WG)
fn prefix(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let i = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (i >= p.count) { return; }
    let at = starts(i);
    var carry = 0.0;
    let units = p.units + zero;
    let unit = p.unit;
    for (var j = 0u; j < units; j++) {
        let corrected = f[at.x + j * unit.x] + carry;
        if (!LAST_ONLY || j + 1u == units) { out[at.z + j * unit.z] = corrected; }
        carry = corrected - s[at.y + j * unit.y];
    }
}

@compute @workgroup_size(WG)
fn scan(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let i = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (i >= p.count) { return; }
    let at = starts(i);
    let units = p.units + zero;
    let streams = min(p.streams + zero, MAX_STREAMS);
    var change: array<f32, MAX_STREAMS>;
    for (var j = 0u; j < units; j++) {
        let unit = at + j * p.unit;
        var next: array<f32, MAX_STREAMS>;
        for (var q = 0u; q < streams; q++) {
            var corrected = f[unit.x + q * p.stream.x];
            if (j > 0u) {
                let row = unit.w + q * p.t_row;
                for (var r = 0u; r < streams; r++) { corrected += t[row + r * p.t_column] * change[r]; }
            }
            if (!LAST_ONLY || j + 1u == units) { out[unit.z + q * p.stream.z] = corrected; }
            next[q] = corrected - s[unit.y + q * p.stream.y];
        }
        change = next;
    }
}

@compute @workgroup_size(WG)
fn linear(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let i = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (i >= p.count) { return; }
    let at = starts(i % p.elements);
    let rest = i / p.elements;
    let streams = p.streams + zero;
    let q = rest % streams;
    let j = select(rest / p.streams, p.units - 1u, LAST_ONLY);
    let row = p.offsets.w + (j * p.streams + q) * p.t_row;
    var sum = s[at.y + j * p.unit.y + q * p.stream.y];
    for (var u = 0u; u <= j; u++) {
        for (var r = 0u; r < streams; r++) {
            let change = f[at.x + u * p.unit.x + r * p.stream.x] - s[at.y + u * p.unit.y + r * p.stream.y];
            sum += t[row + (u * p.streams + r) * p.t_column] * change;
        }
    }
    out[at.z + j * p.unit.z + q * p.stream.z] = sum;
}
