// Batched matrix products with an epilogue: out = act(sum a·b + bias) + residual (+ out).
// Element (m, k) of a is at offset + batch + contracted + m·row + k·column; b, out, bias and residual
// likewise. Every variant computes edges by clamping what it loads and guarding what it stores.

struct Params {
    batch: vec4<u32>,
    batch_a: vec4<u32>,
    batch_b: vec4<u32>,
    batch_out: vec4<u32>,
    batch_bias: vec4<u32>,
    batch_residual: vec4<u32>,
    batch_scale: vec4<u32>,
    batch_zero: vec4<u32>,
    contract: vec4<u32>,
    contract_a: vec4<u32>,
    contract_b: vec4<u32>,
    contract_scale: vec4<u32>,
    contract_zero: vec4<u32>,
    // Offset, row stride, column stride.
    a: vec4<u32>,
    b: vec4<u32>,
    out: vec4<u32>,
    bias: vec4<u32>,
    residual: vec4<u32>,
    scale: vec4<u32>,
    zero_point: vec4<u32>,
    m: u32,
    n: u32,
    k: u32,
    // Product of the contracted axes.
    contracted: u32,
    tiles_n: u32,
    tiles_m: u32,
    groups: u32,
    // Row k of b has the scale and the zero point number k >> shift.
    shift: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;
@group(0) @binding(3) var<storage, read> scale: array<u32>;
@group(0) @binding(4) var<storage, read> zero_point: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> residual: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

override WG: u32 = 32u;
// Rows of an invocation (software), a subgroup (16 or 32), or a workgroup (gemv).
override ROWS: u32 = 8u;
// How elements lie: 0 a word each, 1 f16, 2 i8, 3 u8, 4 i4, 5 u4.
override B_FORM: u32 = 0u;
override SCALE_FORM: u32 = 0u;
override ZERO_FORM: u32 = 0u;
// b is integers: with a scale (1), and with a zero point (2).
override CODED: u32 = 0u;
override ACCUMULATE: bool = false;
override BIAS: bool = false;
override RESIDUAL: bool = false;
override ACTIVATION: u32 = 0u;
// Which axis neighbouring invocations walk when they fill tiles.
override A_ALONG_K: bool = false;
override B_ALONG_K: bool = false;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// The logarithm of the elements to a word.
fn density(form: u32) -> u32 {
    return select(select(select(0u, 1u, form > 0u), 2u, form > 1u), 3u, form > 3u);
}

fn half(word: u32, i: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}

// Integer i, which lies in this word.
fn integer(word: u32, i: u32, form: u32) -> i32 {
    switch (form) {
        case 0u: { return bitcast<i32>(word); }
        case 2u: { return extractBits(bitcast<i32>(word), (i & 3u) * 8u, 8u); }
        case 3u: { return bitcast<i32>(extractBits(word, (i & 3u) * 8u, 8u)); }
        case 4u: { return extractBits(bitcast<i32>(word), (i & 7u) * 4u, 4u); }
        default: { return bitcast<i32>(extractBits(word, (i & 7u) * 4u, 4u)); }
    }
}

// Element i of b; of a coded one, the integer.
fn load_b(i: u32) -> f32 {
    if (CODED > 0u) { return f32(integer(b[i >> density(B_FORM)], i, B_FORM)); }
    if (B_FORM == 1u) { return half(b[i / 2u], i); }
    return bitcast<f32>(b[i]);
}

fn load_scale(i: u32) -> f32 {
    if (SCALE_FORM == 1u) { return half(scale[i / 2u], i); }
    return bitcast<f32>(scale[i]);
}

fn load_zero(i: u32) -> f32 {
    return f32(integer(zero_point[i >> density(ZERO_FORM)], i, ZERO_FORM));
}

// Where scales and zero points of four columns begin.
struct Code {
    scale: vec4<u32>,
    zero_point: vec4<u32>,
}

fn code(t: vec4<u32>, contracted: vec4<u32>, columns: vec4<u32>) -> Code {
    var c: Code;
    if (CODED > 0u) {
        c.scale = columns * p.scale.z + (p.scale.x + dot4(t, p.batch_scale) + dot4(contracted, p.contract_scale));
    }
    if (CODED > 1u) {
        c.zero_point = columns * p.zero_point.z
            + (p.zero_point.x + dot4(t, p.batch_zero) + dot4(contracted, p.contract_zero));
    }
    return c;
}

fn scales(c: Code, block: u32) -> vec4<f32> {
    if (CODED == 0u) { return vec4<f32>(1.0); }
    let i = c.scale + block * p.scale.y;
    return vec4<f32>(load_scale(i.x), load_scale(i.y), load_scale(i.z), load_scale(i.w));
}

fn zeros(c: Code, block: u32) -> vec4<f32> {
    if (CODED < 2u) { return vec4<f32>(0.0); }
    let i = c.zero_point + block * p.zero_point.y;
    return vec4<f32>(load_zero(i.x), load_zero(i.y), load_zero(i.z), load_zero(i.w));
}

// Four elements of b from what is stored of them.
fn decoded(y: vec4<f32>, scale4: vec4<f32>, zero4: vec4<f32>) -> vec4<f32> {
    if (CODED == 0u) { return y; }
    return (y - zero4) * scale4;
}

fn dot4(x: vec4<u32>, y: vec4<u32>) -> u32 {
    return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}

// Coordinates of a flat index; unused axes have size 0 and are skipped.
fn unravel(index: u32, shape: vec4<u32>) -> vec4<u32> {
    var at = vec4<u32>(0u);
    var rest = index;
    for (var d = 3u; d > 0u; d--) {
        if (shape[d] + zero != 0u) {
            at[d] = rest % shape[d];
            rest = rest / shape[d];
        }
    }
    at.x = rest;
    return at;
}

fn tanh_(x: f32) -> f32 {
    let t = exp(-2.0 * min(abs(x), 20.0));
    return select((1.0 - t) / (1.0 + t), -(1.0 - t) / (1.0 + t), x < 0.0);
}

fn sigmoid(x: f32) -> f32 {
    let e = exp(-min(abs(x), 88.0));
    return select(1.0 / (1.0 + e), e / (1.0 + e), x < 0.0);
}

fn erf_(x: f32) -> f32 {
    let y = abs(x);
    if (y < 0.5) {
        let s = x * x;
        return 1.1283792 * x * (1.0 + s * (-0.33333333 + s * (0.1 + s * (-0.023809524 + s * (0.004629630 - s * 0.00075757576)))));
    }
    let t = 1.0 / (1.0 + 0.5 * min(y, 10.0));
    let q = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    let c = t * exp(q - min(y * y, 100.0));
    return select(1.0 - c, c - 1.0, x < 0.0);
}

fn activate(x: f32) -> f32 {
    switch (ACTIVATION) {
        case 1u: { return max(x, 0.0); }
        case 2u: { return x * sigmoid(x); }
        case 3u: { return 0.5 * x * (1.0 + erf_(x * 0.70710678)); }
        case 4u: { return 0.5 * x * (1.0 + tanh_(0.7978845608 * (x + 0.044715 * x * x * x))); }
        case 5u: { return sigmoid(x); }
        case 6u: { return tanh_(x); }
        default: { return x; }
    }
}

// Stores one sum at (row, column) if it lies inside.
fn store(at: vec4<u32>, row: u32, column: u32, sum: f32) {
    if (row >= p.m || column >= p.n) { return; }
    var value = sum;
    if (BIAS) {
        value += bias[p.bias.x + dot4(at, p.batch_bias) + row * p.bias.y + column * p.bias.z];
    }
    value = activate(value);
    if (RESIDUAL) {
        value += residual[p.residual.x + dot4(at, p.batch_residual) + row * p.residual.y + column * p.residual.z];
    }
    let i = p.out.x + dot4(at, p.batch_out) + row * p.out.y + column * p.out.z;
    if (ACCUMULATE) { value += out[i]; }
    out[i] = value;
}

struct Tile {
    // Batch coordinates.
    at: vec4<u32>,
    row: u32,
    column: u32,
}

// The tile of a workgroup: columns vary fastest, then rows, then the batch.
fn tile(group: u32) -> Tile {
    let rest = group / p.tiles_n;
    return Tile(unravel(rest / p.tiles_m, p.batch), rest % p.tiles_m, group % p.tiles_n);
}

// Every load counts, so parameters are read before the loop; sums with constant indices stay in registers.
@compute @workgroup_size(WG)
fn software(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    let t = tile(group);
    let row = t.row * ROWS;
    let column = (t.column * WG + l) * 4u;
    if (column >= p.n) { return; }
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = p.b.x + dot4(t.at, p.batch_b);
    let inside = min(vec4<u32>(column, column + 1u, column + 2u, column + 3u), vec4<u32>(p.n - 1u));
    let columns = inside * p.b.z;
    let near = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.m - 1u)) * p.a.y;
    let far = min(vec4<u32>(row + 4u, row + 5u, row + 6u, row + 7u), vec4<u32>(p.m - 1u)) * p.a.y;
    let contracted = p.contracted + zero;
    let depth = p.k + zero;
    let fresh = (1u << p.shift) - 1u;
    let step_a = p.a.z;
    let step_b = p.b.y;
    var sum: array<vec4<f32>, 8>;
    for (var q = 0u; q < contracted; q++) {
        let at = unravel(q, p.contract);
        var j = base_a + dot4(at, p.contract_a);
        var i = columns + (base_b + dot4(at, p.contract_b));
        let c = code(t.at, at, inside);
        var s4 = vec4<f32>(1.0);
        var z4 = vec4<f32>(0.0);
        for (var k = 0u; k < depth; k++) {
            if (CODED > 0u && (k & fresh) == 0u) {
                s4 = scales(c, k >> p.shift);
                z4 = zeros(c, k >> p.shift);
            }
            let y = decoded(vec4<f32>(load_b(i.x), load_b(i.y), load_b(i.z), load_b(i.w)), s4, z4);
            sum[0] = fma(vec4<f32>(a[j + near.x]), y, sum[0]);
            if (ROWS > 1u) { sum[1] = fma(vec4<f32>(a[j + near.y]), y, sum[1]); }
            if (ROWS > 2u) { sum[2] = fma(vec4<f32>(a[j + near.z]), y, sum[2]); }
            if (ROWS > 3u) { sum[3] = fma(vec4<f32>(a[j + near.w]), y, sum[3]); }
            if (ROWS > 4u) { sum[4] = fma(vec4<f32>(a[j + far.x]), y, sum[4]); }
            if (ROWS > 5u) { sum[5] = fma(vec4<f32>(a[j + far.y]), y, sum[5]); }
            if (ROWS > 6u) { sum[6] = fma(vec4<f32>(a[j + far.z]), y, sum[6]); }
            if (ROWS > 7u) { sum[7] = fma(vec4<f32>(a[j + far.w]), y, sum[7]); }
            i += step_b;
            j += step_a;
        }
    }
    var done = sum;
    for (var r = 0u; r < ROWS; r++) {
        for (var q = 0u; q < 4u; q++) {
            store(t.at, row + r, column + q, done[r][q]);
        }
    }
}

// Adds eight rows of products: lane r of x holds row r's element.
fn eight(x: f32, y: vec4<f32>, sum: ptr<function, array<vec4<f32>, 8>>) {
    (*sum)[0] = fma(vec4<f32>(subgroupBroadcast(x, 0u)), y, (*sum)[0]);
    (*sum)[1] = fma(vec4<f32>(subgroupBroadcast(x, 1u)), y, (*sum)[1]);
    (*sum)[2] = fma(vec4<f32>(subgroupBroadcast(x, 2u)), y, (*sum)[2]);
    (*sum)[3] = fma(vec4<f32>(subgroupBroadcast(x, 3u)), y, (*sum)[3]);
    (*sum)[4] = fma(vec4<f32>(subgroupBroadcast(x, 4u)), y, (*sum)[4]);
    (*sum)[5] = fma(vec4<f32>(subgroupBroadcast(x, 5u)), y, (*sum)[5]);
    (*sum)[6] = fma(vec4<f32>(subgroupBroadcast(x, 6u)), y, (*sum)[6]);
    (*sum)[7] = fma(vec4<f32>(subgroupBroadcast(x, 7u)), y, (*sum)[7]);
}

// Stores eight rows, from a copy, since this index varies.
fn store8(at: vec4<u32>, row: u32, column: u32, sum: array<vec4<f32>, 8>) {
    var done = sum;
    for (var r = 0u; r < 8u; r++) {
        for (var q = 0u; q < 4u; q++) {
            store(at, row + r, column + 8u * q, done[r][q]);
        }
    }
}

// A subgroup of eight lanes computes ROWS rows by 32 columns. A lane has every eighth column, and loads one
// row in eight for all; sums with constant indices stay in registers, and parameters are read before the loop.
@compute @workgroup_size(WG)
fn subgroup(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    let t = tile(group);
    let row = t.row * ROWS;
    let column = t.column * 32u + l;
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = p.b.x + dot4(t.at, p.batch_b);
    let inside = min(vec4<u32>(column, column + 8u, column + 16u, column + 24u), vec4<u32>(p.n - 1u));
    let columns = inside * p.b.z;
    let lane = row + l;
    let rows = min(vec4<u32>(lane, lane + 8u, lane + 16u, lane + 24u), vec4<u32>(p.m - 1u)) * p.a.y;
    let contracted = p.contracted + zero;
    let depth = p.k + zero;
    let fresh = (1u << p.shift) - 1u;
    let step_a = p.a.z;
    let step_b = p.b.y;
    var sum0: array<vec4<f32>, 8>;
    var sum1: array<vec4<f32>, 8>;
    var sum2: array<vec4<f32>, 8>;
    var sum3: array<vec4<f32>, 8>;
    for (var q = 0u; q < contracted; q++) {
        let at = unravel(q, p.contract);
        var j = base_a + dot4(at, p.contract_a);
        var i = columns + (base_b + dot4(at, p.contract_b));
        let c = code(t.at, at, inside);
        var s4 = vec4<f32>(1.0);
        var z4 = vec4<f32>(0.0);
        for (var k = 0u; k < depth; k++) {
            if (CODED > 0u && (k & fresh) == 0u) {
                s4 = scales(c, k >> p.shift);
                z4 = zeros(c, k >> p.shift);
            }
            let y = decoded(vec4<f32>(load_b(i.x), load_b(i.y), load_b(i.z), load_b(i.w)), s4, z4);
            eight(a[j + rows.x], y, &sum0);
            eight(a[j + rows.y], y, &sum1);
            if (ROWS > 16u) {
                eight(a[j + rows.z], y, &sum2);
                eight(a[j + rows.w], y, &sum3);
            }
            i += step_b;
            j += step_a;
        }
    }
    store8(t.at, row, column, sum0);
    store8(t.at, row + 8u, column, sum1);
    if (ROWS > 16u) {
        store8(t.at, row + 16u, column, sum2);
        store8(t.at, row + 24u, column, sum3);
    }
}

var<workgroup> partial: array<f32, 1024>;

// 256 invocations as 32 columns by 8 slices of K, or, where b runs along K, 8 columns at a time by 32
// slices; the slices meet in workgroup memory.
@compute @workgroup_size(WG)
fn gemv(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    let t = tile(group);
    let row = t.row * ROWS;
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = p.b.x + dot4(t.at, p.batch_b);
    let lanes = select(8u, 32u, B_ALONG_K);
    let wide = 256u / lanes;
    let slice = select(l / wide, l % lanes, B_ALONG_K);
    let lane = select(l % wide, l / lanes, B_ALONG_K);
    for (var pass_ = 0u; pass_ < 32u / wide; pass_++) {
        let column = t.column * 32u + pass_ * wide + lane;
        let at_b = min(column, p.n - 1u) * p.b.z;
        var sum = vec4<f32>(0.0);
        for (var c = 0u; c < p.contracted; c++) {
            let at = unravel(c, p.contract);
            let start_a = base_a + dot4(at, p.contract_a);
            let start_b = base_b + dot4(at, p.contract_b) + at_b;
            let code1 = code(t.at, at, vec4<u32>(min(column, p.n - 1u)));
            for (var k = slice; k < p.k; k += lanes) {
                var y = load_b(start_b + k * p.b.y);
                if (CODED > 1u) { y -= load_zero(code1.zero_point.x + (k >> p.shift) * p.zero_point.y); }
                if (CODED > 0u) { y *= load_scale(code1.scale.x + (k >> p.shift) * p.scale.y); }
                let j = start_a + k * p.a.z;
                for (var r = 0u; r < ROWS; r++) {
                    sum[r] = fma(a[j + min(row + r, p.m - 1u) * p.a.y], y, sum[r]);
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            partial[r * 256u + slice * wide + lane] = sum[r];
        }
        workgroupBarrier();
        for (var i = l; i < ROWS * wide; i += 256u) {
            var total = 0.0;
            for (var s = 0u; s < lanes; s++) {
                total += partial[(i / wide) * 256u + s * wide + i % wide];
            }
            store(t.at, row + i / wide, t.column * 32u + pass_ * wide + i % wide, total);
        }
        workgroupBarrier();
    }
}

// One K-slice of 16 by 64 rows of a and 64 columns of b.
var<workgroup> tile_a: array<vec4<f32>, 256>;
var<workgroup> tile_b: array<vec4<f32>, 256>;

// 256 invocations, each a 4×4 block of a 64×64 tile.
@compute @workgroup_size(WG)
fn tiled(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    let t = tile(group);
    let row = t.row * 64u;
    let column = t.column * 64u;
    let base_a = p.a.x + dot4(t.at, p.batch_a);
    let base_b = p.b.x + dot4(t.at, p.batch_b);
    // Each invocation fills four rows (columns) of one k.
    let ka = select(l / 16u, l % 16u, A_ALONG_K);
    let qa = select(l % 16u, l / 16u, A_ALONG_K);
    let kb = select(l / 16u, l % 16u, B_ALONG_K);
    let qb = select(l % 16u, l / 16u, B_ALONG_K);
    let step = vec4<u32>(0u, 1u, 2u, 3u);
    let rows = min(vec4<u32>(row + qa * 4u) + step, vec4<u32>(p.m - 1u)) * p.a.y;
    let inside = min(vec4<u32>(column + qb * 4u) + step, vec4<u32>(p.n - 1u));
    let columns = inside * p.b.z;
    let x = l % 16u;
    let y = l / 16u;
    var sum: array<vec4<f32>, 4>;
    for (var c = 0u; c < p.contracted; c++) {
        let at = unravel(c, p.contract);
        let start_a = base_a + dot4(at, p.contract_a);
        let start_b = base_b + dot4(at, p.contract_b);
        let code4 = code(t.at, at, inside);
        for (var k = 0u; k < p.k; k += 16u) {
            var va = vec4<f32>(0.0);
            if (k + ka < p.k) {
                let i = rows + (start_a + (k + ka) * p.a.z);
                va = vec4<f32>(a[i.x], a[i.y], a[i.z], a[i.w]);
            }
            var vb = vec4<f32>(0.0);
            if (k + kb < p.k) {
                let i = columns + (start_b + (k + kb) * p.b.y);
                vb = vec4<f32>(load_b(i.x), load_b(i.y), load_b(i.z), load_b(i.w));
                let block = (k + kb) >> p.shift;
                vb = decoded(vb, scales(code4, block), zeros(code4, block));
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
    for (var r = 0u; r < 4u; r++) {
        for (var q = 0u; q < 4u; q++) {
            store(t.at, row + y * 4u + r, column + x * 4u + q, sum[r][q]);
        }
    }
}
