// Direct convolution, two spatial axes: one invocation computes one element.

struct Params {
    // Strides of [batch, channel, row, column] of x and out; of [filter, channel, row, column] of w.
    x: vec4<u32>,
    w: vec4<u32>,
    out: vec4<u32>,
    // Filters, rows, columns and elements of the result.
    size: vec4<u32>,
    // Channels of a group, rows and columns of the window, filters of a group.
    window: vec4<u32>,
    // Steps of rows and columns, then their dilations.
    steps: vec4<u32>,
    // Padding before rows and columns, then x's rows and columns.
    edges: vec4<u32>,
    // x, w, out, bias.
    offsets: vec4<u32>,
    bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

override WG: u32 = 64u;
override BIAS: bool = false;
override HALF: bool = false;

fn load_w(i: u32) -> f32 {
    if (HALF) {
        let pair = unpack2x16float(w[i / 2u]);
        return select(pair.x, pair.y, (i & 1u) == 1u);
    }
    return bitcast<f32>(w[i]);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let i = (g.x + n.x * (g.y + n.y * g.z)) * WG + l;
    if (i >= p.size.w) { return; }
    let column = i % p.size.z;
    let row = (i / p.size.z) % p.size.y;
    let plane = i / p.size.z / p.size.y;
    let filter_ = plane % p.size.x;
    let sample = plane / p.size.x;
    let first = (filter_ / p.window.w) * p.window.x;
    let start_x = p.offsets.x + sample * p.x.x + first * p.x.y;
    let start_w = p.offsets.y + filter_ * p.w.x;
    var sum = 0.0;
    if (BIAS) { sum = bias[p.offsets.w + filter_ * p.bias]; }
    for (var r = 0u; r < p.window.y; r++) {
        // Positions before the first row wrap to large numbers and fail the comparison.
        let y = row * p.steps.x + r * p.steps.z - p.edges.x;
        if (y >= p.edges.z) { continue; }
        for (var c = 0u; c < p.window.z; c++) {
            let z = column * p.steps.y + c * p.steps.w - p.edges.y;
            if (z >= p.edges.w) { continue; }
            let at_x = start_x + y * p.x.z + z * p.x.w;
            let at_w = start_w + r * p.w.z + c * p.w.w;
            for (var k = 0u; k < p.window.x; k++) {
                sum = fma(x[at_x + k * p.x.y], load_w(at_w + k * p.w.y), sum);
            }
        }
    }
    out[p.offsets.z + sample * p.out.x + filter_ * p.out.y + row * p.out.z + column * p.out.w] = sum;
}
