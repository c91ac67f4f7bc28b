// Batched products of integer matrices less their zero points, exact in 32 bits; then floats, where they are wanted.
// Element (m, k) of a is at offset + batch + m·row + k·column; b and out likewise. Zero points of a vary with
// rows, those of b with columns. Edges are computed by clamping what is loaded and guarding what is stored.

struct Params {
    batch: vec4<u32>,
    batch_a: vec4<u32>,
    batch_b: vec4<u32>,
    batch_zero_a: vec4<u32>,
    batch_zero_b: vec4<u32>,
    batch_scale: vec4<u32>,
    batch_other_scale: vec4<u32>,
    batch_bias: vec4<u32>,
    batch_residual: vec4<u32>,
    batch_out: vec4<u32>,
    // Offset, row stride, column stride.
    a: vec4<u32>,
    b: vec4<u32>,
    zero_a: vec4<u32>,
    zero_b: vec4<u32>,
    scale: vec4<u32>,
    other_scale: vec4<u32>,
    bias: vec4<u32>,
    residual: vec4<u32>,
    out: vec4<u32>,
    m: u32,
    n: u32,
    k: u32,
    tiles_n: u32,
    tiles_m: u32,
    groups: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;
@group(0) @binding(3) var<storage, read> zero_a: array<u32>;
@group(0) @binding(4) var<storage, read> zero_b: array<u32>;
@group(0) @binding(5) var<storage, read> scale: array<f32>;
@group(0) @binding(6) var<storage, read> other_scale: array<f32>;
@group(0) @binding(7) var<storage, read> bias: array<f32>;
@group(0) @binding(8) var<storage, read> residual: array<f32>;
@group(0) @binding(9) var<storage, read_write> out: array<u32>;

override WG: u32 = 64u;
// Fours of columns of a workgroup (gemv), a power of two.
override FOURS: u32 = 8u;
// Rows of an invocation, up to 4, or 8 that the lanes of a subgroup load for each other.
override ROWS: u32 = 4u;
// How elements lie: 0 a word each, 2 i8, 3 u8, 4 i4, 5 u4.
override A_FORM: u32 = 0u;
override B_FORM: u32 = 0u;
override ZERO_A_FORM: u32 = 0u;
override ZERO_B_FORM: u32 = 0u;
override ZERO_A: bool = false;
override ZERO_B: bool = false;
// Four columns of b are one word.
override B_WORDS: bool = false;
// Whether floats are made of the sums, and how.
override FLOATS: bool = false;
// A bit for each.
override SCALES: u32 = 0u;
override BIAS: bool = false;
override RESIDUAL: bool = false;
override ACTIVATION: u32 = 0u;

// 256 · 255² is less than 2^24.
const EXACT: u32 = 256u;

fn load_a(i: u32) -> i32 { return integer(a[i >> density(A_FORM)], i, A_FORM); }
fn load_b(i: u32) -> i32 { return integer(b[i >> density(B_FORM)], i, B_FORM); }

fn load_zero_a(i: u32) -> i32 {
    if (!ZERO_A) { return 0; }
    return integer(zero_a[i >> density(ZERO_A_FORM)], i, ZERO_A_FORM);
}

fn load_zero_b(i: u32) -> i32 {
    if (!ZERO_B) { return 0; }
    return integer(zero_b[i >> density(ZERO_B_FORM)], i, ZERO_B_FORM);
}

// Four columns of b, the first of them at i.
fn load_fours(i: vec4<u32>) -> vec4<i32> {
    if (!B_WORDS) { return vec4<i32>(load_b(i.x), load_b(i.y), load_b(i.z), load_b(i.w)); }
    let word = vec4<u32>(b[i.x >> 2u]) << vec4<u32>(24u, 16u, 8u, 0u);
    if (B_FORM == 2u) { return bitcast<vec4<i32>>(word) >> vec4<u32>(24u); }
    return bitcast<vec4<i32>>(word >> vec4<u32>(24u));
}

// What is stored of a sum at (row, column).
fn finished(sum: i32, t: vec4<u32>, row: u32, column: u32) -> u32 {
    if (!FLOATS) { return bitcast<u32>(sum); }
    var factor = 1.0;
    if ((SCALES & 1u) != 0u) { factor = scale[p.scale.x + dot4(t, p.batch_scale) + row * p.scale.y + column * p.scale.z]; }
    if ((SCALES & 2u) != 0u) { factor *= other_scale[p.other_scale.x + dot4(t, p.batch_other_scale) + row * p.other_scale.y + column * p.other_scale.z]; }
    var value = f32(sum) * factor;
    if (BIAS) { value += bias[p.bias.x + dot4(t, p.batch_bias) + row * p.bias.y + column * p.bias.z]; }
    value = activate(ACTIVATION, value) * p.alpha;
    if (RESIDUAL) { value += residual[p.residual.x + dot4(t, p.batch_residual) + row * p.residual.y + column * p.residual.z]; }
    return bitcast<u32>(value);
}

// Four rows by four columns, with what lies there.
struct Block {
    batch: vec4<u32>,
    row: u32,
    column: u32,
    // First elements of the rows of a, and of the columns of b.
    a: vec4<u32>,
    b: vec4<u32>,
    zero_a: vec4<i32>,
    zero_b: vec4<i32>,
}

// The block that is number `seat` of the `seats` side by side that a group has; beyond the edge the last row and column
// again.
fn block(group: u32, seat: u32, seats: u32) -> Block {
    var own: Block;
    let rest = group / p.tiles_n;
    own.batch = unravel(rest / p.tiles_m, p.batch);
    own.row = (rest % p.tiles_m) * ROWS;
    own.column = ((group % p.tiles_n) * seats + seat) * 4u;
    let four = vec4<u32>(0u, 1u, 2u, 3u);
    let rows = min(own.row + four, vec4<u32>(p.m - 1u));
    let columns = min(own.column + four, vec4<u32>(p.n - 1u));
    own.a = rows * p.a.y + (p.a.x + dot4(own.batch, p.batch_a));
    own.b = columns * p.b.z + (p.b.x + dot4(own.batch, p.batch_b));
    let za = rows * p.zero_a.y + (p.zero_a.x + dot4(own.batch, p.batch_zero_a));
    let zb = columns * p.zero_b.z + (p.zero_b.x + dot4(own.batch, p.batch_zero_b));
    own.zero_a = vec4<i32>(load_zero_a(za.x), load_zero_a(za.y), load_zero_a(za.z), load_zero_a(za.w));
    own.zero_b = vec4<i32>(load_zero_b(zb.x), load_zero_b(zb.y), load_zero_b(zb.z), load_zero_b(zb.w));
    return own;
}

// Stores the sums of one row of a block, those that lie inside.
fn store4(own: Block, r: u32, sums: vec4<i32>) {
    let row = own.row + r;
    if (row >= p.m) { return; }
    let to = p.out.x + dot4(own.batch, p.batch_out) + row * p.out.y;
    for (var q = 0u; q < 4u; q++) {
        let column = own.column + q;
        if (column < p.n) { out[to + column * p.out.z] = finished(sums[q], own.batch, row, column); }
    }
}

// An invocation's part of a group; together, the lanes of a subgroup load a row each.
fn product(together: bool, group: u32, l: u32) {
    if (group >= p.groups) { return; }
    let own = block(group, l, WG);
    // A lane that has left could load nothing for the others.
    if (!together && own.column >= p.n) { return; }
    var mine = 0u;
    var mine_zero = 0;
    if (together) {
        let row = min(own.row + l, p.m - 1u);
        mine = row * p.a.y + p.a.x + dot4(own.batch, p.batch_a);
        mine_zero = load_zero_a(row * p.zero_a.y + p.zero_a.x + dot4(own.batch, p.batch_zero_a));
    }
    let ia = own.a;
    let za = own.zero_a;
    let zb = own.zero_b;
    var i = own.b;
    var j = 0u;
    let depth = p.k + zero;
    let step_a = p.a.z;
    let step_b = p.b.y;
    var sum: array<vec4<i32>, 8>;
    // Floats hold the sum of so many products of 8 bits exactly, and are multiplied faster than integers.
    for (var first = 0u; first < depth; first += EXACT) {
        var part = array<vec4<f32>, 8>();
        let end = min(first + EXACT, depth);
        for (var k = first; k < end; k++) {
            let y = vec4<f32>(load_fours(i) - zb);
            if (together) {
                eight(f32(load_a(mine + j) - mine_zero), y, &part);
            } else {
                part[0] = fma(vec4<f32>(f32(load_a(ia.x + j) - za.x)), y, part[0]);
                if (ROWS > 1u) { part[1] = fma(vec4<f32>(f32(load_a(ia.y + j) - za.y)), y, part[1]); }
                if (ROWS > 2u) { part[2] = fma(vec4<f32>(f32(load_a(ia.z + j) - za.z)), y, part[2]); }
                if (ROWS > 3u) { part[3] = fma(vec4<f32>(f32(load_a(ia.w + j) - za.w)), y, part[3]); }
            }
            i += step_b;
            j += step_a;
        }
        sum[0] += vec4<i32>(part[0]);
        if (ROWS > 1u) { sum[1] += vec4<i32>(part[1]); }
        if (ROWS > 2u) { sum[2] += vec4<i32>(part[2]); }
        if (ROWS > 3u) { sum[3] += vec4<i32>(part[3]); }
        if (ROWS > 4u) {
            sum[4] += vec4<i32>(part[4]);
            sum[5] += vec4<i32>(part[5]);
            sum[6] += vec4<i32>(part[6]);
            sum[7] += vec4<i32>(part[7]);
        }
    }
    var done = sum;
    for (var r = 0u; r < ROWS; r++) { store4(own, r, done[r]); }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    product(false, w.x + n.x * (w.y + n.y * w.z), l);
}

@compute @workgroup_size(WG)
fn subgroup(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    product(true, w.x + n.x * (w.y + n.y * w.z), l);
}

var<workgroup> meeting: array<vec4<i32>, WG>;

// The sum over all invocations that are the same modulo FOURS; that of block l, for l.
fn met(value: vec4<i32>, l: u32) -> vec4<i32> {
    workgroupBarrier();
    meeting[l] = value;
    workgroupBarrier();
    for (var reach = WG / 2u; reach >= FOURS; reach = reach / 2u) {
        if (l < reach) { meeting[l] += meeting[l + reach]; }
        workgroupBarrier();
    }
    return meeting[l % FOURS];
}

// Up to four rows: FOURS blocks side by side, the contraction of each divided among the other invocations.
@compute @workgroup_size(WG)
fn gemv(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    let own = block(group, l % FOURS, FOURS);
    let za = own.zero_a;
    var sum0 = vec4<i32>(0);
    var sum1 = vec4<i32>(0);
    var sum2 = vec4<i32>(0);
    var sum3 = vec4<i32>(0);
    for (var k = l / FOURS; k < p.k; k += WG / FOURS) {
        let y = load_fours(own.b + vec4<u32>(k * p.b.y)) - own.zero_b;
        let j = own.a + vec4<u32>(k * p.a.z);
        sum0 += (load_a(j.x) - za.x) * y;
        if (ROWS > 1u) { sum1 += (load_a(j.y) - za.y) * y; }
        if (ROWS > 2u) { sum2 += (load_a(j.z) - za.z) * y; }
        if (ROWS > 3u) { sum3 += (load_a(j.w) - za.w) * y; }
    }
    let done0 = met(sum0, l);
    if (l < FOURS) { store4(own, 0u, done0); }
    if (ROWS > 1u) {
        let done1 = met(sum1, l);
        if (l < FOURS) { store4(own, 1u, done1); }
    }
    if (ROWS > 2u) {
        let done2 = met(sum2, l);
        if (l < FOURS) { store4(own, 2u, done2); }
    }
    if (ROWS > 3u) {
        let done3 = met(sum3, l);
        if (l < FOURS) { store4(own, 3u, done3); }
    }
}
