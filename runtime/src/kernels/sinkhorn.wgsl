// Sinkhorn normalisation: small matrices are divided by the sums of their rows or columns, many times over.
// One invocation has one matrix in its registers; sizes are constants so that the loops over it unroll.

struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_out: array<vec4<u32>, 2>,
    // Of x, then of out: offset, row stride, column stride.
    x: vec4<u32>,
    out: vec4<u32>,
    // A bit for each step, from the lowest: sums along columns of a row (0), or along rows of a column (1).
    axes: vec4<u32>,
    matrices: u32,
    steps: u32,
    epsilon: f32,
    rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

override WG: u32 = 32u;
override ROWS: u32 = 4u;
override COLUMNS: u32 = 4u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let matrix = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (matrix >= p.matrices) { return; }
    var from_ = p.x.x;
    var to = p.out.x;
    var rest = matrix;
    for (var d = p.rank; d > 0u; d--) {
        let size = p.outer[(d - 1u) / 4u][(d - 1u) % 4u];
        let at = rest % size;
        from_ += at * p.outer_x[(d - 1u) / 4u][(d - 1u) % 4u];
        to += at * p.outer_out[(d - 1u) / 4u][(d - 1u) % 4u];
        rest = rest / size;
    }
    var value: array<f32, 64>;
    for (var i = 0u; i < ROWS; i++) {
        for (var j = 0u; j < COLUMNS; j++) { value[i * COLUMNS + j] = x[from_ + i * p.x.y + j * p.x.z]; }
    }
    for (var s = 0u; s < p.steps; s++) {
        if (((p.axes[s / 32u] >> (s % 32u)) & 1u) == 0u) {
            for (var i = 0u; i < ROWS; i++) {
                var sum = 0.0;
                for (var j = 0u; j < COLUMNS; j++) { sum += value[i * COLUMNS + j]; }
                sum += p.epsilon;
                for (var j = 0u; j < COLUMNS; j++) { value[i * COLUMNS + j] = value[i * COLUMNS + j] / sum; }
            }
        } else {
            for (var j = 0u; j < COLUMNS; j++) {
                var sum = 0.0;
                for (var i = 0u; i < ROWS; i++) { sum += value[i * COLUMNS + j]; }
                sum += p.epsilon;
                for (var i = 0u; i < ROWS; i++) { value[i * COLUMNS + j] = value[i * COLUMNS + j] / sum; }
            }
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        for (var j = 0u; j < COLUMNS; j++) { out[to + i * p.out.y + j * p.out.z] = value[i * COLUMNS + j]; }
    }
}
