// Scaled dot-product attention with an online softmax.
// Heads of q share the heads of k and v in groups. Excluded keys are skipped; a row that sees none is
// NaN, or zero when SAFE.
// As attention.wgsl, whose modules must compile where there are no subgroup operations.

struct Params {
    batch: vec4<u32>,
    // Strides of the batch axes in xyz, the offset in w.
    q_batch: vec4<u32>,
    k_batch: vec4<u32>,
    v_batch: vec4<u32>,
    mask_batch: vec4<u32>,
    out_batch: vec4<u32>,
    // Strides of head, row, column.
    q: vec4<u32>,
    k: vec4<u32>,
    v: vec4<u32>,
    mask: vec4<u32>,
    out: vec4<u32>,
    heads: u32,
    // Query heads per key head.
    group: u32,
    queries: u32,
    keys: u32,
    d: u32,
    e: u32,
    // Queries of all heads and batches.
    rows: u32,
    window: u32,
    scale: f32,
    softcap: f32,
    groups: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

override WG: u32 = 8u;
// Eights of d and e, at most 8.
override D8: u32 = 8u;
override E8: u32 = 8u;
override BOOL_MASK: bool = false;
override FLOAT_MASK: bool = false;
override CAUSAL: bool = false;
override WINDOW: bool = false;
override SOFTCAP: bool = false;
override SAFE: bool = false;

const LOWEST: f32 = -3.4028234e38;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// Where one head of one batch element starts.
struct Head {
    q: u32,
    k: u32,
    v: u32,
    mask: u32,
    out: u32,
}

fn head(index: u32) -> Head {
    let h = index % p.heads;
    var rest = index / p.heads;
    var at = vec4<u32>(0u, 0u, 0u, 1u);
    for (var d = 2u; d > 0u; d--) {
        if (p.batch[d] + zero != 0u) {
            at[d] = rest % p.batch[d];
            rest = rest / p.batch[d];
        }
    }
    at.x = rest;
    let shared_ = h / p.group;
    return Head(
        dot4(at, p.q_batch) + h * p.q.x,
        dot4(at, p.k_batch) + shared_ * p.k.x,
        dot4(at, p.v_batch) + shared_ * p.v.x,
        dot4(at, p.mask_batch) + h * p.mask.x,
        dot4(at, p.out_batch) + h * p.out.x,
    );
}

fn dot4(a: vec4<u32>, b: vec4<u32>) -> u32 {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// Keys first..end that query t may see by causality and window.
fn range(t: u32) -> vec2<u32> {
    let last = i32(t) + i32(p.keys) - i32(p.queries);
    var first = 0;
    var end = i32(p.keys);
    if (CAUSAL) { end = clamp(last + 1, 0, end); }
    // A window of at least all keys and queries excludes nothing.
    if (WINDOW && p.window < p.keys + p.queries + zero) { first = clamp(last - i32(p.window) + 1, 0, i32(p.keys)); }
    return vec2<u32>(u32(first), u32(max(end, first)));
}

fn tanh_(x: f32) -> f32 {
    let y = abs(x);
    if (y < 0.25) {
        let s = x * x;
        return x * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869488))));
    }
    let t = exp(-2.0 * min(y, 20.0));
    return select((1.0 - t) / (1.0 + t), -(1.0 - t) / (1.0 + t), x < 0.0);
}

// The score of a dot product; LOWEST * 2, which is -inf, for excluded keys.
fn score(product: f32, at: u32) -> f32 {
    var s = product * p.scale;
    if (SOFTCAP) { s = p.softcap * tanh_(s / p.softcap); }
    if (FLOAT_MASK) { s += bitcast<f32>(mask[at]); }
    if (BOOL_MASK && mask[at] == 0u) { s = minus_infinity(); }
    return s;
}

// Not a constant expression, which may not be infinite.
fn minus_infinity() -> f32 { return bitcast<f32>(0xff800000u + (p.heads & 0u)); }

fn excluded(s: f32) -> bool { return bitcast<u32>(s) == 0xff800000u; }

// exp of non-positive numbers.
fn exp_(x: vec2<f32>) -> vec2<f32> { return select(exp(x), vec2<f32>(0.0), x < vec2<f32>(-103.0)); }

// What the sum of weights divides by: nothing seen makes zero or NaN.
fn divisor(total: f32, seen: bool) -> f32 {
    if (seen) { return 1.0 / total; }
    return bitcast<f32>(select(0x7fc00000u, 0u, SAFE) + (p.heads & 0u));
}

// Eight columns of two queries; zeros beyond d.
fn load(at: vec2<u32>, first: u32) -> array<vec2<f32>, 8> {
    var x: array<vec2<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let j = at + min(first + i, p.d - 1u) * p.q.z;
        x[i] = select(vec2<f32>(0.0), vec2<f32>(q[j.x], q[j.y]), first + i < p.d);
    }
    return x;
}

// Eight terms of two dot products: lane i holds the key's column i.
fn products(x: ptr<function, array<vec2<f32>, 8>>, key: f32) -> vec2<f32> {
    var sum = (*x)[0] * subgroupBroadcast(key, 0u);
    sum = fma((*x)[1], vec2<f32>(subgroupBroadcast(key, 1u)), sum);
    sum = fma((*x)[2], vec2<f32>(subgroupBroadcast(key, 2u)), sum);
    sum = fma((*x)[3], vec2<f32>(subgroupBroadcast(key, 3u)), sum);
    sum = fma((*x)[4], vec2<f32>(subgroupBroadcast(key, 4u)), sum);
    sum = fma((*x)[5], vec2<f32>(subgroupBroadcast(key, 5u)), sum);
    sum = fma((*x)[6], vec2<f32>(subgroupBroadcast(key, 6u)), sum);
    sum = fma((*x)[7], vec2<f32>(subgroupBroadcast(key, 7u)), sum);
    return sum;
}

// Adds eight columns of a weighted value, of which lane i holds column i, to two shrunk sums.
fn add(sum: ptr<function, array<vec2<f32>, 8>>, shrink: vec2<f32>, weight: vec2<f32>, value: f32) {
    (*sum)[0] = fma(weight, vec2<f32>(subgroupBroadcast(value, 0u)), (*sum)[0] * shrink);
    (*sum)[1] = fma(weight, vec2<f32>(subgroupBroadcast(value, 1u)), (*sum)[1] * shrink);
    (*sum)[2] = fma(weight, vec2<f32>(subgroupBroadcast(value, 2u)), (*sum)[2] * shrink);
    (*sum)[3] = fma(weight, vec2<f32>(subgroupBroadcast(value, 3u)), (*sum)[3] * shrink);
    (*sum)[4] = fma(weight, vec2<f32>(subgroupBroadcast(value, 4u)), (*sum)[4] * shrink);
    (*sum)[5] = fma(weight, vec2<f32>(subgroupBroadcast(value, 5u)), (*sum)[5] * shrink);
    (*sum)[6] = fma(weight, vec2<f32>(subgroupBroadcast(value, 6u)), (*sum)[6] * shrink);
    (*sum)[7] = fma(weight, vec2<f32>(subgroupBroadcast(value, 7u)), (*sum)[7] * shrink);
}

// Stores eight columns of one or two queries.
fn store(at: vec2<u32>, both: bool, first: u32, sum: array<vec2<f32>, 8>, factor: vec2<f32>) {
    var done = sum;
    for (var i = 0u; i < 8u; i++) {
        if (first + i < p.e) {
            let value = done[i] * factor;
            let j = at + (first + i) * p.out.z;
            out[j.x] = value.x;
            if (both) { out[j.y] = value.y; }
        }
    }
}

// A subgroup of eight lanes for 16 queries, two to a lane. Lanes share each key and value that they load;
// arrays with constant indices stay in registers, and parameters are read before the loop.
@compute @workgroup_size(WG)
fn software(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    let blocks = (p.queries + 15u) / 16u;
    let h = head(group / blocks);
    let first = (group % blocks) * 16u;
    let t = vec2<u32>(first + l, first + 8u + l);
    let row = min(t, vec2<u32>(p.queries - 1u));
    let at_q = h.q + row * p.q.y;
    let keys_x = range(row.x);
    let keys_y = range(row.y);
    // The keys that any query sees: ranges move with t.
    let begin = range(first).x;
    let end = range(min(first + 15u, p.queries - 1u)).y;
    let step_k = p.k.y;
    let step_v = p.v.y;
    let step_mask = p.mask.z;
    let last_k = p.d - 1u;
    let last_v = p.e - 1u;
    let along_k = p.k.z;
    let along_v = p.v.z;
    let k0 = min(l, last_k) * along_k;
    let k1 = min(8u + l, last_k) * along_k;
    let k2 = min(16u + l, last_k) * along_k;
    let k3 = min(24u + l, last_k) * along_k;
    let k4 = min(32u + l, last_k) * along_k;
    let k5 = min(40u + l, last_k) * along_k;
    let k6 = min(48u + l, last_k) * along_k;
    let k7 = min(56u + l, last_k) * along_k;
    let v0 = min(l, last_v) * along_v;
    let v1 = min(8u + l, last_v) * along_v;
    let v2 = min(16u + l, last_v) * along_v;
    let v3 = min(24u + l, last_v) * along_v;
    let v4 = min(32u + l, last_v) * along_v;
    let v5 = min(40u + l, last_v) * along_v;
    let v6 = min(48u + l, last_v) * along_v;
    let v7 = min(56u + l, last_v) * along_v;
    var x0: array<vec2<f32>, 8>;
    var x1: array<vec2<f32>, 8>;
    var x2: array<vec2<f32>, 8>;
    var x3: array<vec2<f32>, 8>;
    var x4: array<vec2<f32>, 8>;
    var x5: array<vec2<f32>, 8>;
    var x6: array<vec2<f32>, 8>;
    var x7: array<vec2<f32>, 8>;
    x0 = load(at_q, 0u);
    if (D8 > 1u) { x1 = load(at_q, 8u); }
    if (D8 > 2u) { x2 = load(at_q, 16u); }
    if (D8 > 3u) { x3 = load(at_q, 24u); }
    if (D8 > 4u) { x4 = load(at_q, 32u); }
    if (D8 > 5u) { x5 = load(at_q, 40u); }
    if (D8 > 6u) { x6 = load(at_q, 48u); }
    if (D8 > 7u) { x7 = load(at_q, 56u); }
    var sum0: array<vec2<f32>, 8>;
    var sum1: array<vec2<f32>, 8>;
    var sum2: array<vec2<f32>, 8>;
    var sum3: array<vec2<f32>, 8>;
    var sum4: array<vec2<f32>, 8>;
    var sum5: array<vec2<f32>, 8>;
    var sum6: array<vec2<f32>, 8>;
    var sum7: array<vec2<f32>, 8>;
    var at_k = h.k + begin * step_k;
    var at_v = h.v + begin * step_v;
    var at_mask = h.mask + row * p.mask.y + begin * step_mask;
    var most = vec2<f32>(LOWEST);
    var total = vec2<f32>(0.0);
    var seen = vec2<bool>(false);
    for (var s = begin; s < end; s++) {
        var product = products(&x0, k[at_k + k0]);
        if (D8 > 1u) { product += products(&x1, k[at_k + k1]); }
        if (D8 > 2u) { product += products(&x2, k[at_k + k2]); }
        if (D8 > 3u) { product += products(&x3, k[at_k + k3]); }
        if (D8 > 4u) { product += products(&x4, k[at_k + k4]); }
        if (D8 > 5u) { product += products(&x5, k[at_k + k5]); }
        if (D8 > 6u) { product += products(&x6, k[at_k + k6]); }
        if (D8 > 7u) { product += products(&x7, k[at_k + k7]); }
        var value = vec2<f32>(score(product.x, at_mask.x), score(product.y, at_mask.y));
        // Broadcasts want every lane, so excluded keys weigh nothing instead of being skipped.
        let some = vec2<bool>(
            s >= keys_x.x && s < keys_x.y && !excluded(value.x),
            s >= keys_y.x && s < keys_y.y && !excluded(value.y),
        );
        value = select(vec2<f32>(LOWEST), value, some);
        seen = seen | some;
        let top = max(most, value);
        let shrink = exp_(most - top);
        let weight = select(vec2<f32>(0.0), exp_(value - top), some);
        most = top;
        total = fma(total, shrink, weight);
        add(&sum0, shrink, weight, v[at_v + v0]);
        if (E8 > 1u) { add(&sum1, shrink, weight, v[at_v + v1]); }
        if (E8 > 2u) { add(&sum2, shrink, weight, v[at_v + v2]); }
        if (E8 > 3u) { add(&sum3, shrink, weight, v[at_v + v3]); }
        if (E8 > 4u) { add(&sum4, shrink, weight, v[at_v + v4]); }
        if (E8 > 5u) { add(&sum5, shrink, weight, v[at_v + v5]); }
        if (E8 > 6u) { add(&sum6, shrink, weight, v[at_v + v6]); }
        if (E8 > 7u) { add(&sum7, shrink, weight, v[at_v + v7]); }
        at_k += step_k;
        at_v += step_v;
        at_mask += vec2<u32>(step_mask);
    }
    if (t.x >= p.queries) { return; }
    let both = t.y < p.queries;
    let factor = vec2<f32>(divisor(total.x, seen.x), divisor(total.y, seen.y));
    let at_out = h.out + row * p.out.y;
    store(at_out, both, 0u, sum0, factor);
    if (E8 > 1u) { store(at_out, both, 8u, sum1, factor); }
    if (E8 > 2u) { store(at_out, both, 16u, sum2, factor); }
    if (E8 > 3u) { store(at_out, both, 24u, sum3, factor); }
    if (E8 > 4u) { store(at_out, both, 32u, sum4, factor); }
    if (E8 > 5u) { store(at_out, both, 40u, sum5, factor); }
    if (E8 > 6u) { store(at_out, both, 48u, sum6, factor); }
    if (E8 > 7u) { store(at_out, both, 56u, sum7, factor); }
}
