enable f16;
enable wgpu_cooperative_matrix;

// Batched matrix products with an epilogue: out = alpha · act(sum a·b + bias) + residual (+ out).
// Element (m, k) of a is at offset + batch + contracted + m·row + k·column; the others likewise. Every variant
// computes edges by clamping what it loads and guarding what it stores.
//
// Up to four parts share a: each has its own b, epilogue and result, and a workgroup works for one of them. When
// GATED, the two parts make one result, act(a·b0 + bias0) · act(a·b1 + bias1): two of the four columns that an
// invocation has are those of part 1.
//
// a may be normalised along k as it is read. The scale of an RMS norm is put into b, its root comes in the end, of
// squares that are summed up on the way; mean and variance of a layer norm are taken before, in two passes.

struct Part {
    batch_b: vec4<u32>,
    batch_scale: vec4<u32>,
    batch_zero: vec4<u32>,
    batch_bias: vec4<u32>,
    batch_residual: vec4<u32>,
    batch_out: vec4<u32>,
    contract_b: vec4<u32>,
    contract_scale: vec4<u32>,
    contract_zero: vec4<u32>,
    // Offset, row stride, column stride.
    b: vec4<u32>,
    scale: vec4<u32>,
    zero_point: vec4<u32>,
    bias: vec4<u32>,
    residual: vec4<u32>,
    out: vec4<u32>,
    n: u32,
    // Its first tile of columns.
    first: u32,
    alpha: f32,
    unused: u32,
}

struct Params {
    batch: vec4<u32>,
    batch_a: vec4<u32>,
    batch_norm_scale: vec4<u32>,
    batch_norm_bias: vec4<u32>,
    contract: vec4<u32>,
    contract_a: vec4<u32>,
    a: vec4<u32>,
    norm_scale: vec4<u32>,
    norm_bias: vec4<u32>,
    m: u32,
    k: u32,
    // Product of the contracted axes.
    contracted: u32,
    // Of all parts.
    tiles_n: u32,
    tiles_m: u32,
    groups: u32,
    // Row k of b has the scale and the zero point number k >> shift.
    shift: u32,
    epsilon: f32,
    parts: array<Part, 4>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> norm_scale: array<f32>;
@group(0) @binding(3) var<storage, read> norm_bias: array<f32>;
@group(0) @binding(4) var<storage, read> b0: array<u32>;
@group(0) @binding(5) var<storage, read> scale0: array<u32>;
@group(0) @binding(6) var<storage, read> zero0: array<u32>;
@group(0) @binding(7) var<storage, read> bias0: array<f32>;
@group(0) @binding(8) var<storage, read> residual0: array<f32>;
@group(0) @binding(9) var<storage, read_write> out0: array<f32>;
@group(0) @binding(10) var<storage, read> b1: array<u32>;
@group(0) @binding(11) var<storage, read> scale1: array<u32>;
@group(0) @binding(12) var<storage, read> zero1: array<u32>;
@group(0) @binding(13) var<storage, read> bias1: array<f32>;
@group(0) @binding(14) var<storage, read> residual1: array<f32>;
@group(0) @binding(15) var<storage, read_write> out1: array<f32>;
@group(0) @binding(16) var<storage, read> b2: array<u32>;
@group(0) @binding(17) var<storage, read> scale2: array<u32>;
@group(0) @binding(18) var<storage, read> zero2: array<u32>;
@group(0) @binding(19) var<storage, read> bias2: array<f32>;
@group(0) @binding(20) var<storage, read> residual2: array<f32>;
@group(0) @binding(21) var<storage, read_write> out2: array<f32>;
@group(0) @binding(22) var<storage, read> b3: array<u32>;
@group(0) @binding(23) var<storage, read> scale3: array<u32>;
@group(0) @binding(24) var<storage, read> zero3: array<u32>;
@group(0) @binding(25) var<storage, read> bias3: array<f32>;
@group(0) @binding(26) var<storage, read> residual3: array<f32>;
@group(0) @binding(27) var<storage, read_write> out3: array<f32>;

// Cooperative matrices, SIDE by SIDE.
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

override WG: u32 = 32u;
// Rows of an invocation (software), a subgroup (16 or 32), or a workgroup (gemv).
override ROWS: u32 = 8u;
// Fours of columns of a workgroup (gemv).
override FOURS: u32 = 8u;
override PARTS: u32 = 1u;
override GATED: bool = false;
// How elements lie: 0 a word each, 1 f16, 2 i8, 3 u8, 4 i4, 5 u4.
override B_FORM: u32 = 0u;
override SCALE_FORM: u32 = 0u;
override ZERO_FORM: u32 = 0u;
// The first two columns of four lie in one word of b, and the other two; the first of each at an even place.
override PAIRED: bool = false;
// b is integers: with a scale (1), and with a zero point (2).
override CODED: u32 = 0u;
// 1 RMS, 2 layer.
override NORM: u32 = 0u;
override NORM_SCALE: bool = false;
override NORM_BIAS: bool = false;
override ACCUMULATE: bool = false;
// A bit for each part.
override BIAS: u32 = 0u;
override RESIDUAL: u32 = 0u;
// Four bits for each part.
override ACTIVATION: u32 = 0u;
// Which axis neighbouring invocations walk when they fill tiles.
override A_ALONG_K: bool = false;
override B_ALONG_K: bool = false;

fn half(word: u32, i: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}

fn word_b(part: u32, i: u32) -> u32 {
    switch (part) {
        case 0u: { return b0[i]; }
        case 1u: { return b1[i]; }
        case 2u: { return b2[i]; }
        default: { return b3[i]; }
    }
}

fn word_scale(part: u32, i: u32) -> u32 {
    switch (part) {
        case 0u: { return scale0[i]; }
        case 1u: { return scale1[i]; }
        case 2u: { return scale2[i]; }
        default: { return scale3[i]; }
    }
}

fn word_zero(part: u32, i: u32) -> u32 {
    switch (part) {
        case 0u: { return zero0[i]; }
        case 1u: { return zero1[i]; }
        case 2u: { return zero2[i]; }
        default: { return zero3[i]; }
    }
}

fn load_bias(part: u32, i: u32) -> f32 {
    switch (part) {
        case 0u: { return bias0[i]; }
        case 1u: { return bias1[i]; }
        case 2u: { return bias2[i]; }
        default: { return bias3[i]; }
    }
}

fn load_residual(part: u32, i: u32) -> f32 {
    switch (part) {
        case 0u: { return residual0[i]; }
        case 1u: { return residual1[i]; }
        case 2u: { return residual2[i]; }
        default: { return residual3[i]; }
    }
}

fn put(part: u32, i: u32, value: f32) {
    switch (part) {
        case 0u: { if (ACCUMULATE) { out0[i] += value; } else { out0[i] = value; } }
        case 1u: { out1[i] = value; }
        case 2u: { out2[i] = value; }
        default: { out3[i] = value; }
    }
}

// Element i of b; of a coded one, the integer.
fn load_b(part: u32, i: u32) -> f32 {
    if (CODED > 0u) { return f32(integer(word_b(part, i >> density(B_FORM)), i, B_FORM)); }
    if (B_FORM == 1u) { return half(word_b(part, i / 2u), i); }
    return bitcast<f32>(word_b(part, i));
}

fn load_scale(part: u32, i: u32) -> f32 {
    if (SCALE_FORM == 1u) { return half(word_scale(part, i / 2u), i); }
    return bitcast<f32>(word_scale(part, i));
}

fn load_zero(part: u32, i: u32) -> f32 {
    return f32(integer(word_zero(part, i >> density(ZERO_FORM)), i, ZERO_FORM));
}

fn load4_b(part: u32, i: vec4<u32>) -> vec4<f32> {
    if (PAIRED) {
        let first = word_b(select(part, 0u, GATED), i.x >> density(B_FORM));
        let second = word_b(select(part, 1u, GATED), i.z >> density(B_FORM));
        if (B_FORM == 1u) { return vec4<f32>(unpack2x16float(first), unpack2x16float(second)); }
        return vec4<f32>(
            f32(integer(first, i.x, B_FORM)),
            f32(integer(first, i.y, B_FORM)),
            f32(integer(second, i.z, B_FORM)),
            f32(integer(second, i.w, B_FORM)),
        );
    }
    if (GATED) { return vec4<f32>(load_b(0u, i.x), load_b(0u, i.y), load_b(1u, i.z), load_b(1u, i.w)); }
    return vec4<f32>(load_b(part, i.x), load_b(part, i.y), load_b(part, i.z), load_b(part, i.w));
}

// Two numbers of the parts that four columns belong to.
fn twice(x: u32, y: u32) -> vec4<u32> {
    return vec4<u32>(x, x, y, y);
}

// Where batch element `at` of four columns of b begins, without the contracted axes.
fn start4(part: u32, at: vec4<u32>) -> vec4<u32> {
    let x = p.parts[part].b.x + dot4(at, p.parts[part].batch_b);
    if (GATED) { return twice(x, p.parts[1].b.x + dot4(at, p.parts[1].batch_b)); }
    return vec4<u32>(x);
}

// Where scales and zero points of four columns begin.
struct Code {
    scale: vec4<u32>,
    zero_point: vec4<u32>,
}

fn code_scale(part: u32, t: vec4<u32>, contracted: vec4<u32>) -> u32 {
    return p.parts[part].scale.x + dot4(t, p.parts[part].batch_scale) + dot4(contracted, p.parts[part].contract_scale);
}

fn code_zero(part: u32, t: vec4<u32>, contracted: vec4<u32>) -> u32 {
    return p.parts[part].zero_point.x + dot4(t, p.parts[part].batch_zero)
        + dot4(contracted, p.parts[part].contract_zero);
}

fn code(part: u32, t: vec4<u32>, contracted: vec4<u32>, columns: vec4<u32>) -> Code {
    var c: Code;
    if (CODED > 0u) {
        let y = select(part, 1u, GATED);
        c.scale = columns * twice(p.parts[part].scale.z, p.parts[y].scale.z)
            + twice(code_scale(part, t, contracted), code_scale(y, t, contracted));
    }
    if (CODED > 1u) {
        let y = select(part, 1u, GATED);
        c.zero_point = columns * twice(p.parts[part].zero_point.z, p.parts[y].zero_point.z)
            + twice(code_zero(part, t, contracted), code_zero(y, t, contracted));
    }
    return c;
}

fn scales(part: u32, c: Code, block: u32) -> vec4<f32> {
    if (CODED == 0u) { return vec4<f32>(1.0); }
    let y = select(part, 1u, GATED);
    let i = c.scale + block * twice(p.parts[part].scale.y, p.parts[y].scale.y);
    return vec4<f32>(load_scale(part, i.x), load_scale(part, i.y), load_scale(y, i.z), load_scale(y, i.w));
}

fn zeros(part: u32, c: Code, block: u32) -> vec4<f32> {
    if (CODED < 2u) { return vec4<f32>(0.0); }
    let y = select(part, 1u, GATED);
    let i = c.zero_point + block * twice(p.parts[part].zero_point.y, p.parts[y].zero_point.y);
    return vec4<f32>(load_zero(part, i.x), load_zero(part, i.y), load_zero(y, i.z), load_zero(y, i.w));
}

// Four elements of b from what is stored of them.
fn decoded(y: vec4<f32>, scale4: vec4<f32>, zero4: vec4<f32>) -> vec4<f32> {
    if (CODED == 0u) { return y; }
    return (y - zero4) * scale4;
}

// One sum with its bias and activation.
fn activated(part: u32, at: vec4<u32>, row: u32, column: u32, sum: f32) -> f32 {
    var value = sum;
    if (((BIAS >> part) & 1u) == 1u) {
        let bias = p.parts[part].bias;
        value += load_bias(part, bias.x + dot4(at, p.parts[part].batch_bias) + row * bias.y + column * bias.z);
    }
    return activate((ACTIVATION >> (part * 4u)) & 15u, value);
}

// Stores what is activated at (row, column), which lies inside.
fn store(part: u32, at: vec4<u32>, row: u32, column: u32, activated: f32) {
    var value = activated * p.parts[part].alpha;
    if (((RESIDUAL >> part) & 1u) == 1u) {
        let residual = p.parts[part].residual;
        value += load_residual(part, residual.x + dot4(at, p.parts[part].batch_residual) + row * residual.y + column * residual.z);
    }
    let out = p.parts[part].out;
    put(part, out.x + dot4(at, p.parts[part].batch_out) + row * out.y + column * out.z, value);
}

// Stores four sums of a row, those that lie inside.
fn store4(part: u32, at: vec4<u32>, row: u32, columns: vec4<u32>, sums: vec4<f32>) {
    if (row >= p.m) { return; }
    var sum = sums;
    var column = columns;
    if (GATED) {
        for (var q = 0u; q < 2u; q++) {
            if (column[q] < p.parts[0].n) {
                let gate = activated(0u, at, row, column[q], sum[q]);
                store(0u, at, row, column[q], gate * activated(1u, at, row, column[q], sum[q + 2u]));
            }
        }
    } else {
        for (var q = 0u; q < 4u; q++) {
            if (column[q] < p.parts[part].n) {
                store(part, at, row, column[q], activated(part, at, row, column[q], sum[q]));
            }
        }
    }
}

// Four columns of which the first is `column`, and the others follow after `step`.
fn columns4(column: u32, step: u32) -> vec4<u32> {
    if (GATED) { return vec4<u32>(column, column + step, column, column + step); }
    return vec4<u32>(column, column + step, column + 2u * step, column + 3u * step);
}

// How many columns of the result four sums make.
fn width() -> u32 {
    return select(4u, 2u, GATED);
}

struct Tile {
    // Batch coordinates.
    at: vec4<u32>,
    row: u32,
    // Within the part.
    column: u32,
}

// The part that a tile of columns belongs to.
fn part_of(tile: u32) -> u32 {
    var part = 0u;
    if (PARTS > 1u && tile >= p.parts[1].first) { part = 1u; }
    if (PARTS > 2u && tile >= p.parts[2].first) { part = 2u; }
    if (PARTS > 3u && tile >= p.parts[3].first) { part = 3u; }
    return part;
}

// The tile of a workgroup: columns vary fastest, then rows, then the batch.
fn tile(group: u32, part: u32) -> Tile {
    let rest = group / p.tiles_n;
    let column = group % p.tiles_n - p.parts[part].first;
    return Tile(unravel(rest / p.tiles_m, p.batch), rest % p.tiles_m, column);
}

// Where scale and bias of the norm begin.
fn start_norm(at: vec4<u32>) -> vec2<u32> {
    return vec2<u32>(
        p.norm_scale.x + dot4(at, p.batch_norm_scale),
        p.norm_bias.x + dot4(at, p.batch_norm_bias),
    );
}

fn norm_factor(start: vec2<u32>, k: u32) -> f32 {
    if (NORM_SCALE) { return norm_scale[start.x + k * p.norm_scale.z]; }
    return 1.0;
}

fn norm_summand(start: vec2<u32>, k: u32) -> f32 {
    if (NORM_BIAS) { return norm_bias[start.y + k * p.norm_bias.z]; }
    return 0.0;
}

// What an RMS norm multiplies four rows with, by the sums of their squares.
fn roots(squares: vec4<f32>) -> vec4<f32> {
    return inverseSqrt(squares / f32(p.k) + vec4<f32>(p.epsilon));
}

// Every load counts, so parameters are read before the loop; sums with constant indices stay in registers.
fn software_part(part: u32, group: u32, l: u32) {
    let t = tile(group, part);
    let row = t.row * ROWS;
    let wanted = columns4((t.column * WG + l) * width(), 1u);
    let n = p.parts[part].n;
    if (wanted.x >= n) { return; }
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = start4(part, t.at);
    let inside = min(wanted, vec4<u32>(n - 1u));
    let columns = inside * p.parts[part].b.z;
    let near = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.m - 1u)) * p.a.y;
    let far = min(vec4<u32>(row + 4u, row + 5u, row + 6u, row + 7u), vec4<u32>(p.m - 1u)) * p.a.y;
    let contracted = p.contracted + zero;
    let depth = p.k + zero;
    let fresh = (1u << p.shift) - 1u;
    let step_a = p.a.z;
    let step_b = p.parts[part].b.y;
    let norm = start_norm(t.at);
    var sum: array<vec4<f32>, 8>;
    var square_near = vec4<f32>(0.0);
    var square_far = vec4<f32>(0.0);
    for (var q = 0u; q < contracted; q++) {
        let at = unravel(q, p.contract);
        var j = base_a + dot4(at, p.contract_a);
        var i = columns + base_b + dot4(at, p.parts[part].contract_b);
        let c = code(part, t.at, at, inside);
        var s4 = vec4<f32>(1.0);
        var z4 = vec4<f32>(0.0);
        for (var k = 0u; k < depth; k++) {
            if (CODED > 0u && (k & fresh) == 0u) {
                s4 = scales(part, c, k >> p.shift);
                z4 = zeros(part, c, k >> p.shift);
            }
            var y = decoded(load4_b(part, i), s4, z4);
            if (NORM_SCALE) { y *= norm_factor(norm, k); }
            let x0 = a[j + near.x];
            sum[0] = fma(vec4<f32>(x0), y, sum[0]);
            if (NORM > 0u) { square_near.x = fma(x0, x0, square_near.x); }
            if (ROWS > 1u) {
                let x1 = a[j + near.y];
                sum[1] = fma(vec4<f32>(x1), y, sum[1]);
                if (NORM > 0u) { square_near.y = fma(x1, x1, square_near.y); }
            }
            if (ROWS > 2u) {
                let x2 = a[j + near.z];
                sum[2] = fma(vec4<f32>(x2), y, sum[2]);
                if (NORM > 0u) { square_near.z = fma(x2, x2, square_near.z); }
            }
            if (ROWS > 3u) {
                let x3 = a[j + near.w];
                sum[3] = fma(vec4<f32>(x3), y, sum[3]);
                if (NORM > 0u) { square_near.w = fma(x3, x3, square_near.w); }
            }
            if (ROWS > 4u) {
                let x4 = a[j + far.x];
                sum[4] = fma(vec4<f32>(x4), y, sum[4]);
                if (NORM > 0u) { square_far.x = fma(x4, x4, square_far.x); }
            }
            if (ROWS > 5u) {
                let x5 = a[j + far.y];
                sum[5] = fma(vec4<f32>(x5), y, sum[5]);
                if (NORM > 0u) { square_far.y = fma(x5, x5, square_far.y); }
            }
            if (ROWS > 6u) {
                let x6 = a[j + far.z];
                sum[6] = fma(vec4<f32>(x6), y, sum[6]);
                if (NORM > 0u) { square_far.z = fma(x6, x6, square_far.z); }
            }
            if (ROWS > 7u) {
                let x7 = a[j + far.w];
                sum[7] = fma(vec4<f32>(x7), y, sum[7]);
                if (NORM > 0u) { square_far.w = fma(x7, x7, square_far.w); }
            }
            i += vec4<u32>(step_b);
            j += step_a;
        }
    }
    var done = sum;
    var near_roots = roots(square_near);
    var far_roots = roots(square_far);
    for (var r = 0u; r < ROWS; r++) {
        if (NORM > 0u) { done[r] *= select(near_roots[r & 3u], far_roots[r & 3u], r > 3u); }
        store4(part, t.at, row + r, wanted, done[r]);
    }
}

@compute @workgroup_size(WG)
fn software(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    if (select(PARTS, 1u, GATED) == 1u) {
        software_part(0u, group, l);
        return;
    }
    switch (part_of(group % p.tiles_n)) {
        case 0u: { software_part(0u, group, l); }
        case 1u: { software_part(1u, group, l); }
        case 2u: { if (PARTS > 2u) { software_part(2u, group, l); } }
        default: { if (PARTS > 3u) { software_part(3u, group, l); } }
    }
}

// Multiplies eight rows: lane r of x holds row r's factor.
fn times_eight(x: f32, sum: ptr<function, array<vec4<f32>, 8>>) {
    (*sum)[0] *= subgroupBroadcast(x, 0u);
    (*sum)[1] *= subgroupBroadcast(x, 1u);
    (*sum)[2] *= subgroupBroadcast(x, 2u);
    (*sum)[3] *= subgroupBroadcast(x, 3u);
    (*sum)[4] *= subgroupBroadcast(x, 4u);
    (*sum)[5] *= subgroupBroadcast(x, 5u);
    (*sum)[6] *= subgroupBroadcast(x, 6u);
    (*sum)[7] *= subgroupBroadcast(x, 7u);
}

// Stores eight rows, from a copy, since this index varies.
fn store8(part: u32, at: vec4<u32>, row: u32, columns: vec4<u32>, sum: array<vec4<f32>, 8>) {
    var done = sum;
    for (var r = 0u; r < 8u; r++) { store4(part, at, row + r, columns, done[r]); }
}

// A subgroup of eight lanes computes ROWS rows by 32 columns. A lane has every eighth column, and loads one
// row in eight for all; sums with constant indices stay in registers, and parameters are read before the loop.
fn subgroup_part(part: u32, group: u32, l: u32) {
    let t = tile(group, part);
    let row = t.row * ROWS;
    let wanted = columns4(t.column * 8u * width() + l, 8u);
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = start4(part, t.at);
    let inside = min(wanted, vec4<u32>(p.parts[part].n - 1u));
    let columns = inside * p.parts[part].b.z;
    let lane = row + l;
    let rows = min(vec4<u32>(lane, lane + 8u, lane + 16u, lane + 24u), vec4<u32>(p.m - 1u)) * p.a.y;
    let contracted = p.contracted + zero;
    let depth = p.k + zero;
    let fresh = (1u << p.shift) - 1u;
    let step_a = p.a.z;
    let step_b = p.parts[part].b.y;
    let norm = start_norm(t.at);
    var squares = vec4<f32>(0.0);
    var sum0: array<vec4<f32>, 8>;
    var sum1: array<vec4<f32>, 8>;
    var sum2: array<vec4<f32>, 8>;
    var sum3: array<vec4<f32>, 8>;
    for (var q = 0u; q < contracted; q++) {
        let at = unravel(q, p.contract);
        var j = base_a + dot4(at, p.contract_a);
        var i = columns + base_b + dot4(at, p.parts[part].contract_b);
        let c = code(part, t.at, at, inside);
        var s4 = vec4<f32>(1.0);
        var z4 = vec4<f32>(0.0);
        for (var k = 0u; k < depth; k++) {
            if (CODED > 0u && (k & fresh) == 0u) {
                s4 = scales(part, c, k >> p.shift);
                z4 = zeros(part, c, k >> p.shift);
            }
            var y = decoded(load4_b(part, i), s4, z4);
            if (NORM_SCALE) { y *= norm_factor(norm, k); }
            let x0 = a[j + rows.x];
            let x1 = a[j + rows.y];
            if (NORM > 0u) {
                squares.x = fma(x0, x0, squares.x);
                squares.y = fma(x1, x1, squares.y);
            }
            eight(x0, y, &sum0);
            eight(x1, y, &sum1);
            if (ROWS > 16u) {
                let x2 = a[j + rows.z];
                let x3 = a[j + rows.w];
                if (NORM > 0u) {
                    squares.z = fma(x2, x2, squares.z);
                    squares.w = fma(x3, x3, squares.w);
                }
                eight(x2, y, &sum2);
                eight(x3, y, &sum3);
            }
            i += vec4<u32>(step_b);
            j += step_a;
        }
    }
    if (NORM > 0u) {
        let root = roots(squares);
        times_eight(root.x, &sum0);
        times_eight(root.y, &sum1);
        if (ROWS > 16u) {
            times_eight(root.z, &sum2);
            times_eight(root.w, &sum3);
        }
    }
    store8(part, t.at, row, wanted, sum0);
    store8(part, t.at, row + 8u, wanted, sum1);
    if (ROWS > 16u) {
        store8(part, t.at, row + 16u, wanted, sum2);
        store8(part, t.at, row + 24u, wanted, sum3);
    }
}

@compute @workgroup_size(WG)
fn subgroup(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    if (select(PARTS, 1u, GATED) == 1u) {
        subgroup_part(0u, group, l);
        return;
    }
    switch (part_of(group % p.tiles_n)) {
        case 0u: { subgroup_part(0u, group, l); }
        case 1u: { subgroup_part(1u, group, l); }
        case 2u: { if (PARTS > 2u) { subgroup_part(2u, group, l); } }
        default: { if (PARTS > 3u) { subgroup_part(3u, group, l); } }
    }
}

var<workgroup> meeting: array<vec4<f32>, 256>;

// The sum over all invocations whose seats are the same modulo `lanes`, a power of two; that of seat l, for l.
fn met(value: vec4<f32>, seat: u32, l: u32, lanes: u32) -> vec4<f32> {
    workgroupBarrier();
    meeting[seat] = value;
    workgroupBarrier();
    for (var reach = 128u; reach >= lanes; reach = reach / 2u) {
        if (l < reach) { meeting[l] += meeting[l + reach]; }
        workgroupBarrier();
    }
    return meeting[l % lanes];
}

// Mean and reciprocal deviation of four rows, which start at these places.
struct Statistics {
    mean: vec4<f32>,
    root: vec4<f32>,
}

fn statistics(rows: vec4<u32>, l: u32) -> Statistics {
    var s: Statistics;
    var total = vec4<f32>(0.0);
    for (var k = l; k < p.k; k += 256u) { total += load4_a(rows, k); }
    s.mean = met(total, l, l, 1u) / f32(p.k);
    total = vec4<f32>(0.0);
    for (var k = l; k < p.k; k += 256u) {
        let x = load4_a(rows, k) - s.mean;
        total = fma(x, x, total);
    }
    s.root = roots(met(total, l, l, 1u));
    return s;
}

// Element k of four rows.
fn load4_a(rows: vec4<u32>, k: u32) -> vec4<f32> {
    let j = rows + vec4<u32>(k * p.a.z);
    return vec4<f32>(a[j.x], a[j.y], a[j.z], a[j.w]);
}

// 256 invocations: FOURS fours of columns by slices of K, which neighbours walk where b runs along K. The slices meet
// in workgroup memory.
fn gemv_part(part: u32, group: u32, l: u32) {
    let t = tile(group, part);
    let row = t.row * ROWS;
    let slices = 256u / FOURS;
    let slice = select(l / FOURS, l % slices, B_ALONG_K);
    let lane = select(l % FOURS, l / slices, B_ALONG_K);
    let wanted = columns4((t.column * FOURS + lane) * width(), 1u);
    let inside = min(wanted, vec4<u32>(p.parts[part].n - 1u));
    let columns = inside * p.parts[part].b.z + start4(part, t.at);
    let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.m - 1u)) * p.a.y
        + vec4<u32>(p.a.x + dot4(t.at, p.batch_a));
    let norm = start_norm(t.at);
    var s: Statistics;
    if (NORM == 2u) { s = statistics(rows, l); }
    var squares = vec4<f32>(0.0);
    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    var sum2 = vec4<f32>(0.0);
    var sum3 = vec4<f32>(0.0);
    for (var q = 0u; q < p.contracted; q++) {
        let at = unravel(q, p.contract);
        let rows_q = rows + dot4(at, p.contract_a);
        let start = columns + dot4(at, p.parts[part].contract_b);
        let c = code(part, t.at, at, inside);
        for (var k = slice; k < p.k; k += slices) {
            var y = load4_b(part, start + k * p.parts[part].b.y);
            y = decoded(y, scales(part, c, k >> p.shift), zeros(part, c, k >> p.shift));
            var x = vec4<f32>(0.0);
            let j = rows_q + vec4<u32>(k * p.a.z);
            x.x = a[j.x];
            if (ROWS > 1u) { x.y = a[j.y]; }
            if (ROWS > 2u) { x.z = a[j.z]; }
            if (ROWS > 3u) { x.w = a[j.w]; }
            if (NORM == 1u) { squares = fma(x, x, squares); }
            if (NORM == 2u) { x = (x - s.mean) * s.root; }
            if (NORM_SCALE) { x *= norm_factor(norm, k); }
            if (NORM_BIAS) { x += norm_summand(norm, k); }
            sum0 = fma(vec4<f32>(x.x), y, sum0);
            if (ROWS > 1u) { sum1 = fma(vec4<f32>(x.y), y, sum1); }
            if (ROWS > 2u) { sum2 = fma(vec4<f32>(x.z), y, sum2); }
            if (ROWS > 3u) { sum3 = fma(vec4<f32>(x.w), y, sum3); }
        }
    }
    let seat = slice * FOURS + lane;
    let to = columns4((t.column * FOURS + l) * width(), 1u);
    var root = vec4<f32>(1.0);
    if (NORM == 1u) { root = roots(met(squares, seat, l, FOURS)); }
    let done0 = met(sum0, seat, l, FOURS) * root.x;
    if (l < FOURS) { store4(part, t.at, row, to, done0); }
    if (ROWS > 1u) {
        let done1 = met(sum1, seat, l, FOURS) * root.y;
        if (l < FOURS) { store4(part, t.at, row + 1u, to, done1); }
    }
    if (ROWS > 2u) {
        let done2 = met(sum2, seat, l, FOURS) * root.z;
        if (l < FOURS) { store4(part, t.at, row + 2u, to, done2); }
    }
    if (ROWS > 3u) {
        let done3 = met(sum3, seat, l, FOURS) * root.w;
        if (l < FOURS) { store4(part, t.at, row + 3u, to, done3); }
    }
}

@compute @workgroup_size(WG)
fn gemv(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    if (select(PARTS, 1u, GATED) == 1u) {
        gemv_part(0u, group, l);
        return;
    }
    switch (part_of(group % p.tiles_n)) {
        case 0u: { gemv_part(0u, group, l); }
        case 1u: { gemv_part(1u, group, l); }
        case 2u: { if (PARTS > 2u) { gemv_part(2u, group, l); } }
        default: { if (PARTS > 3u) { gemv_part(3u, group, l); } }
    }
}

// One K-slice of 16 by 64 rows of a and 64 columns of b.
var<workgroup> tile_a: array<vec4<f32>, 256>;
var<workgroup> tile_b: array<vec4<f32>, 256>;

// Puts mean and reciprocal deviation of 64 rows into the first places of the meeting, four invocations a row.
fn row_statistics(start: u32, row: u32, l: u32) {
    let j = start + min(row + l / 4u, p.m - 1u) * p.a.y;
    let lane = l % 4u;
    let first = l - lane;
    var total = 0.0;
    for (var k = lane; k < p.k; k += 4u) { total += a[j + k * p.a.z]; }
    meeting[l].x = total;
    workgroupBarrier();
    let mean = (meeting[first].x + meeting[first + 1u].x + meeting[first + 2u].x + meeting[first + 3u].x) / f32(p.k);
    total = 0.0;
    for (var k = lane; k < p.k; k += 4u) {
        let x = a[j + k * p.a.z] - mean;
        total = fma(x, x, total);
    }
    meeting[l].y = total;
    workgroupBarrier();
    let square = meeting[first].y + meeting[first + 1u].y + meeting[first + 2u].y + meeting[first + 3u].y;
    workgroupBarrier();
    if (lane == 0u) { meeting[l / 4u] = vec4<f32>(mean, roots(vec4<f32>(square)).x, 0.0, 0.0); }
    workgroupBarrier();
}

// 256 invocations, each a 4×4 block of a tile of 64 rows by 64 columns of b.
fn tiled_part(part: u32, group: u32, l: u32) {
    let t = tile(group, part);
    let row = t.row * 64u;
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = start4(part, t.at);
    // Each invocation fills four rows (columns) of one k.
    let ka = select(l / 16u, l % 16u, A_ALONG_K);
    let qa = select(l % 16u, l / 16u, A_ALONG_K);
    let kb = select(l / 16u, l % 16u, B_ALONG_K);
    let qb = select(l % 16u, l / 16u, B_ALONG_K);
    let rows = min(vec4<u32>(row + qa * 4u) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.m - 1u)) * p.a.y;
    let inside = min(columns4((t.column * 16u + qb) * width(), 1u), vec4<u32>(p.parts[part].n - 1u));
    let columns = inside * p.parts[part].b.z + base_b;
    let norm = start_norm(t.at);
    var mean = vec4<f32>(0.0);
    var root = vec4<f32>(1.0);
    if (NORM == 2u) {
        row_statistics(base_a, row, l);
        let i = qa * 4u;
        mean = vec4<f32>(meeting[i].x, meeting[i + 1u].x, meeting[i + 2u].x, meeting[i + 3u].x);
        root = vec4<f32>(meeting[i].y, meeting[i + 1u].y, meeting[i + 2u].y, meeting[i + 3u].y);
    }
    let x = l % 16u;
    let y = l / 16u;
    var squares = vec4<f32>(0.0);
    var sum: array<vec4<f32>, 4>;
    for (var c = 0u; c < p.contracted; c++) {
        let at = unravel(c, p.contract);
        let start_a = base_a + dot4(at, p.contract_a);
        let start_b = columns + dot4(at, p.parts[part].contract_b);
        let code4 = code(part, t.at, at, inside);
        for (var k = 0u; k < p.k; k += 16u) {
            var va = vec4<f32>(0.0);
            if (k + ka < p.k) {
                let i = rows + (start_a + (k + ka) * p.a.z);
                va = vec4<f32>(a[i.x], a[i.y], a[i.z], a[i.w]);
                if (NORM == 1u) { squares = fma(va, va, squares); }
                if (NORM == 2u) { va = (va - mean) * root; }
                if (NORM_SCALE) { va *= norm_factor(norm, k + ka); }
                if (NORM_BIAS) { va += norm_summand(norm, k + ka); }
            }
            var vb = vec4<f32>(0.0);
            if (k + kb < p.k) {
                vb = load4_b(part, start_b + (k + kb) * p.parts[part].b.y);
                let block = (k + kb) >> p.shift;
                vb = decoded(vb, scales(part, code4, block), zeros(part, code4, block));
            }
            workgroupBarrier();
            tile_a[ka * 16u + qa] = va;
            tile_b[kb * 16u + qb] = vb;
            workgroupBarrier();
            for (var i = 0u; i < 16u; i++) {
                let u = tile_a[i * 16u + y];
                let v = tile_b[i * 16u + x];
                sum[0] = fma(vec4<f32>(u.x), v, sum[0]);
                sum[1] = fma(vec4<f32>(u.y), v, sum[1]);
                sum[2] = fma(vec4<f32>(u.z), v, sum[2]);
                sum[3] = fma(vec4<f32>(u.w), v, sum[3]);
            }
        }
    }
    if (NORM == 1u) {
        workgroupBarrier();
        tile_a[ka * 16u + qa] = squares;
        workgroupBarrier();
        var total = vec4<f32>(0.0);
        for (var i = 0u; i < 16u; i++) { total += tile_a[i * 16u + y]; }
        root = roots(total);
        for (var r = 0u; r < 4u; r++) { sum[r] *= root[r]; }
    }
    let to = columns4((t.column * 16u + x) * width(), 1u);
    for (var r = 0u; r < 4u; r++) { store4(part, t.at, row + y * 4u + r, to, sum[r]); }
}

@compute @workgroup_size(WG)
fn tiled(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    if (select(PARTS, 1u, GATED) == 1u) {
        tiled_part(0u, group, l);
        return;
    }
    switch (part_of(group % p.tiles_n)) {
        case 0u: { tiled_part(0u, group, l); }
        case 1u: { tiled_part(1u, group, l); }
        case 2u: { if (PARTS > 2u) { tiled_part(2u, group, l); } }
        default: { if (PARTS > 3u) { tiled_part(3u, group, l); } }
    }
}

// Cooperative matrices. Four subgroups compute a tile of SPAN rows by SPAN columns of b, each a quarter of it.
//
// b is f16. Each element of a becomes two f16 numbers, it and what that leaves of it, so that products keep some
// 22 bits of it. A row is first scaled by a power of two such that its largest element lies near the end of the range.
override SIDE: u32 = 16u;
override SPAN: u32 = 4u * SIDE;
// Elements of the contraction to a slice.
override DEPTH: u32 = 2u * SIDE;
// Rows in workgroup memory begin at different banks, and at sixteen bytes.
override PITCH: u32 = DEPTH + 8u;
override PITCH_B: u32 = SPAN + 8u;
override LEFT_ELEMENTS: u32 = SPAN * PITCH;
override RIGHT_ELEMENTS: u32 = DEPTH * PITCH_B;
override LANDING: u32 = 4u * SIDE * SIDE;
var<workgroup> high: array<f16, LEFT_ELEMENTS>;
var<workgroup> low: array<f16, LEFT_ELEMENTS>;
var<workgroup> right: array<f16, RIGHT_ELEMENTS>;
var<workgroup> landing: array<f32, LANDING>;
// Of each row: mean, root, scale, and its reciprocal. Together root and scale may be beyond every number.
var<workgroup> rows_: array<vec4<f32>, SPAN>;

// What makes numbers up to `bound` end below 2^15, with its reciprocal; powers of two.
fn scaling(bound: f32) -> vec2<f32> {
    let up = clamp(268u - (bitcast<u32>(bound) >> 23u), 1u, 253u);
    return vec2<f32>(bitcast<f32>(up << 23u), bitcast<f32>((254u - up) << 23u));
}

// Fills rows_: a subgroup takes four rows at a time.
fn measure(at: vec4<u32>, start: u32, norm: vec2<u32>, row: u32, group: u32, lane: u32, lanes: u32) {
    var largest_factor = 1.0;
    var largest_summand = 0.0;
    if (NORM_SCALE) {
        largest_factor = 0.0;
        for (var k = lane; k < p.k; k += lanes) { largest_factor = max(largest_factor, abs(norm_factor(norm, k))); }
        largest_factor = subgroupMax(largest_factor);
    }
    if (NORM_BIAS) {
        for (var k = lane; k < p.k; k += lanes) { largest_summand = max(largest_summand, abs(norm_summand(norm, k))); }
        largest_summand = subgroupMax(largest_summand);
    }
    for (var first = group * 4u; first < SPAN; first += 16u) {
        let rows = min(vec4<u32>(row + first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.m - 1u)) * p.a.y
            + vec4<u32>(start);
        var mean = vec4<f32>(0.0);
        if (NORM == 2u) {
            for (var k = lane; k < p.k; k += lanes) { mean += load4_a(rows, k); }
            mean = subgroupAdd(mean) / f32(p.k);
        }
        var squares = vec4<f32>(0.0);
        var largest = vec4<f32>(0.0);
        for (var c = 0u; c < p.contracted; c++) {
            let rows_c = rows + vec4<u32>(dot4(unravel(c, p.contract), p.contract_a));
            for (var k = lane; k < p.k; k += lanes) {
                let x = load4_a(rows_c, k) - mean;
                if (NORM > 0u) { squares = fma(x, x, squares); }
                largest = max(largest, abs(x));
            }
        }
        var root = vec4<f32>(1.0);
        if (NORM > 0u) { root = roots(subgroupAdd(squares)); }
        let bound = subgroupMax(largest) * root * largest_factor + vec4<f32>(largest_summand);
        if (lane < 4u) {
            let scale = scaling(bound[lane]);
            rows_[first + lane] = vec4<f32>(mean[lane], root[lane], scale.x, scale.y);
        }
    }
}

// Puts an element of a, already scaled, into workgroup memory.
fn halve(to: u32, x: f32) {
    // Rounded to the eleven bits of f16; drivers may take a conversion there and back for nothing.
    let bits = bitcast<u32>(x);
    let top = bitcast<f32>((bits + 0x1000u) & 0xffffe000u);
    // Infinities and NaN.
    let beyond = (bits & 0x7fffffffu) > 0x477fe000u;
    high[to] = f16(select(top, x, beyond));
    low[to] = f16(select(x - top, 0.0, beyond));
}

// Elements of a: 16 of an invocation, four rows at a time.
struct Sixteen {
    x: vec4<f32>,
    y: vec4<f32>,
    z: vec4<f32>,
    w: vec4<f32>,
}

// Which of `wide` and `deep` places invocation l has as its number n, neighbours walking `deep` or `wide`.
fn seat_of(l: u32, n: u32, wide: u32, deep: u32, along: bool) -> vec2<u32> {
    let i = l + n * WG;
    if (along) { return vec2<u32>(i / deep, i % deep); }
    return vec2<u32>(i % wide, i / wide);
}

fn fetch_a(start: u32, row: u32, norm: vec2<u32>, k: u32, l: u32, n: u32) -> vec4<f32> {
    let seat = seat_of(l, n, SPAN / 4u, DEPTH, A_ALONG_K);
    let first = seat.x * 4u;
    let rows = min(vec4<u32>(row + first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.m - 1u)) * p.a.y + vec4<u32>(start);
    let at = k + seat.y;
    if (at >= p.k) { return vec4<f32>(0.0); }
    var x = load4_a(rows, at);
    if (NORM == 2u) {
        x -= vec4<f32>(rows_[first].x, rows_[first + 1u].x, rows_[first + 2u].x, rows_[first + 3u].x);
    }
    if (NORM > 0u) { x *= vec4<f32>(rows_[first].y, rows_[first + 1u].y, rows_[first + 2u].y, rows_[first + 3u].y); }
    if (NORM_SCALE) { x *= norm_factor(norm, at); }
    if (NORM_BIAS) { x += norm_summand(norm, at); }
    return x * vec4<f32>(rows_[first].z, rows_[first + 1u].z, rows_[first + 2u].z, rows_[first + 3u].z);
}

fn keep_a(x: vec4<f32>, l: u32, n: u32) {
    let seat = seat_of(l, n, SPAN / 4u, DEPTH, A_ALONG_K);
    let to = seat.x * 4u * PITCH + seat.y;
    halve(to, x.x);
    halve(to + PITCH, x.y);
    halve(to + 2u * PITCH, x.z);
    halve(to + 3u * PITCH, x.w);
}

fn fetch_b(part: u32, start: vec4<u32>, column: u32, k: u32, l: u32, n: u32) -> vec4<f32> {
    let seat = seat_of(l, n, SPAN / 4u, DEPTH, B_ALONG_K);
    let inside = min(columns4((column + seat.x) * width(), 1u), vec4<u32>(p.parts[part].n - 1u));
    let at = k + seat.y;
    if (at >= p.k) { return vec4<f32>(0.0); }
    return load4_b(part, start + inside * p.parts[part].b.z + vec4<u32>(at * p.parts[part].b.y));
}

fn keep_b(y: vec4<f32>, l: u32, n: u32) {
    let seat = seat_of(l, n, SPAN / 4u, DEPTH, B_ALONG_K);
    let to = seat.y * PITCH_B + seat.x * 4u;
    right[to] = f16(y.x);
    right[to + 1u] = f16(y.y);
    right[to + 2u] = f16(y.z);
    right[to + 3u] = f16(y.w);
}

// Stores a matrix of sums, which a subgroup has at (row, column) of the tile.
fn land(part: u32, t: Tile, row: u32, column: u32, group: u32, lane: u32, lanes: u32, sums: Sums) {
    let start = group * SIDE * SIDE;
    workgroupBarrier();
    coopStoreT(sums, &landing[start], SIDE);
    workgroupBarrier();
    for (var f = lane; f < SIDE * SIDE / 4u; f += lanes) {
        let r = row + f / (SIDE / 4u);
        let i = start + f * 4u;
        let four = vec4<f32>(landing[i], landing[i + 1u], landing[i + 2u], landing[i + 3u]) * rows_[r].w;
        let to = columns4((t.column * (SPAN / 4u) + column / 4u + f % (SIDE / 4u)) * width(), 1u);
        store4(part, t.at, t.row * SPAN + r, to, four);
    }
}

fn cooperative_part(part: u32, index: u32, l: u32, group: u32, lane: u32, lanes: u32) {
    let t = tile(index, part);
    let row = t.row * SPAN;
    let column = t.column * (SPAN / 4u);
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = start4(part, t.at);
    let norm = start_norm(t.at);
    measure(t.at, base_a, norm, row, group, lane, lanes);
    workgroupBarrier();
    let own_row = group / 2u * 2u * SIDE;
    let own_column = group % 2u * 2u * SIDE;
    var s00 = Sums();
    var s01 = Sums();
    var s10 = Sums();
    var s11 = Sums();
    for (var c = 0u; c < p.contracted; c++) {
        let at = unravel(c, p.contract);
        let start_a = base_a + dot4(at, p.contract_a);
        let start_b = base_b + vec4<u32>(dot4(at, p.parts[part].contract_b));
        for (var k = 0u; k < p.k; k += DEPTH) {
            let a0 = fetch_a(start_a, row, norm, k, l, 0u);
            let a1 = fetch_a(start_a, row, norm, k, l, 1u);
            let a2 = fetch_a(start_a, row, norm, k, l, 2u);
            let a3 = fetch_a(start_a, row, norm, k, l, 3u);
            let b0 = fetch_b(part, start_b, column, k, l, 0u);
            let b1 = fetch_b(part, start_b, column, k, l, 1u);
            let b2 = fetch_b(part, start_b, column, k, l, 2u);
            let b3 = fetch_b(part, start_b, column, k, l, 3u);
            workgroupBarrier();
            keep_a(a0, l, 0u);
            keep_a(a1, l, 1u);
            keep_a(a2, l, 2u);
            keep_a(a3, l, 3u);
            keep_b(b0, l, 0u);
            keep_b(b1, l, 1u);
            keep_b(b2, l, 2u);
            keep_b(b3, l, 3u);
            workgroupBarrier();
            for (var i = 0u; i < DEPTH; i += SIDE) {
                let from_a = own_row * PITCH + i;
                let from_b = i * PITCH_B + own_column;
                let y0 = coopLoadT<Right>(&right[from_b], PITCH_B);
                let y1 = coopLoadT<Right>(&right[from_b + SIDE], PITCH_B);
                let h0 = coopLoadT<Left>(&high[from_a], PITCH);
                let h1 = coopLoadT<Left>(&high[from_a + SIDE * PITCH], PITCH);
                s00 = coopMultiplyAdd(h0, y0, s00);
                s01 = coopMultiplyAdd(h0, y1, s01);
                s10 = coopMultiplyAdd(h1, y0, s10);
                s11 = coopMultiplyAdd(h1, y1, s11);
                let l0 = coopLoadT<Left>(&low[from_a], PITCH);
                let l1 = coopLoadT<Left>(&low[from_a + SIDE * PITCH], PITCH);
                s00 = coopMultiplyAdd(l0, y0, s00);
                s01 = coopMultiplyAdd(l0, y1, s01);
                s10 = coopMultiplyAdd(l1, y0, s10);
                s11 = coopMultiplyAdd(l1, y1, s11);
            }
        }
    }
    land(part, t, own_row, own_column, group, lane, lanes, s00);
    land(part, t, own_row, own_column + SIDE, group, lane, lanes, s01);
    land(part, t, own_row + SIDE, own_column, group, lane, lanes, s10);
    land(part, t, own_row + SIDE, own_column + SIDE, group, lane, lanes, s11);
}

@compute @workgroup_size(WG)
fn cooperative(
    @builtin(workgroup_id) w: vec3<u32>,
    @builtin(num_workgroups) n: vec3<u32>,
    @builtin(local_invocation_index) l: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    if (select(PARTS, 1u, GATED) == 1u) {
        cooperative_part(0u, group, l, subgroup, lane, lanes);
        return;
    }
    switch (part_of(group % p.tiles_n)) {
        case 0u: { cooperative_part(0u, group, l, subgroup, lane, lanes); }
        case 1u: { cooperative_part(1u, group, l, subgroup, lane, lanes); }
        case 2u: { if (PARTS > 2u) { cooperative_part(2u, group, l, subgroup, lane, lanes); } }
        default: { if (PARTS > 3u) { cooperative_part(3u, group, l, subgroup, lane, lanes); } }
    }
}
