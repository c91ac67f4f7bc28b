// Gathers along one axis by indices; slices and elements differ in strides only.

struct Params {
    shape: array<vec4<u32>, 2>,
    data: array<vec4<u32>, 2>,
    indices: array<vec4<u32>, 2>,
    out: array<vec4<u32>, 2>,
    offset_data: u32,
    offset_indices: u32,
    offset_out: u32,
    // Stride of the indexed axis.
    along: u32,
    count: u32,
    rank: u32,
    // Rows low..high of `rows` are bound.
    low: u32,
    high: u32,
    rows: u32,
    mark: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> data: array<u32>;
@group(0) @binding(2) var<storage, read> indices: array<i32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read_write> out_checked: array<u32>;

override WG: u32 = 64u;
// How the table's elements lie: 0 a word each, 1 f16, 2 i8, 3 u8, 4 i4, 5 u4.
override FORM: u32 = 0u;

fn load(i: u32) -> u32 {
    switch (FORM) {
        case 0u: { return data[i]; }
        case 1u: {
            let pair = unpack2x16float(data[i / 2u]);
            return bitcast<u32>(select(pair.x, pair.y, (i & 1u) == 1u));
        }
        case 2u: { return bitcast<u32>(extractBits(bitcast<i32>(data[i / 4u]), (i & 3u) * 8u, 8u)); }
        case 3u: { return extractBits(data[i / 4u], (i & 3u) * 8u, 8u); }
        case 4u: { return bitcast<u32>(extractBits(bitcast<i32>(data[i / 8u]), (i & 7u) * 4u, 4u)); }
        default: { return extractBits(data[i / 8u], (i & 7u) * 4u, 4u); }
    }
}

struct Found {
    // Whether this element is to be written.
    here: bool,
    outside: bool,
    at: u32,
    word: u32,
}

fn find(i: u32) -> Found {
    var at = vec3<u32>(p.offset_data, p.offset_indices, p.offset_out);
    var rest = i;
    for (var d = p.rank; d > 0u; d--) {
        let q = (d - 1u) / 4u;
        let r = (d - 1u) % 4u;
        let size = p.shape[q][r];
        at += (rest % size) * vec3<u32>(p.data[q][r], p.indices[q][r], p.out[q][r]);
        rest = rest / size;
    }
    var index = indices[at.y];
    let rows = i32(p.rows);
    let outside = index < -rows || index >= rows;
    index = clamp(select(index, index + rows, index < 0), 0, rows - 1);
    let row = u32(index);
    var found = Found(row >= p.low && row < p.high, outside, at.z, 0u);
    if (found.here) {
        let j = at.x + (row - p.low) * p.along;
        found.word = load(j);
    }
    return found;
}

@compute @workgroup_size(WG)
fn clamped(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (i >= p.count) { return; }
    let found = find(i);
    if (found.here) { out[found.at] = found.word; }
}

@compute @workgroup_size(WG)
fn checked(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (i >= p.count) { return; }
    let found = find(i);
    if (found.outside) { atomicMax(&status[0], p.mark); }
    if (found.here) { out_checked[found.at] = found.word; }
}
