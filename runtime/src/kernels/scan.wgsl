// Cumulative sums: one invocation walks one line.
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
override EXCLUSIVE: bool = false;
override REVERSE: bool = false;

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

fn add(a: u32, b: u32) -> u32 {
    if (INTEGER) { return a + b; }
    return bitcast<u32>(bitcast<f32>(a) + bitcast<f32>(b));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let start = starts(row);
    let width = p.width + zero;
    let along = vec2<u32>(p.along_x, p.along_out);
    var sum = 0u;
    for (var s = 0u; s < width; s++) {
        let i = select(s, width - 1u - s, REVERSE);
        let next = add(sum, x[start.x + i * along.x]);
        out[start.y + i * along.y] = select(next, sum, EXCLUSIVE);
        sum = next;
    }
}
