// Scaled dot-product attention with an online softmax.
// Heads of q share the heads of k and v in groups. Excluded keys are skipped; a row that sees none is
// NaN, or zero when SAFE. A sink is the score of one more key, whose value is zero.

struct Params {
    batch: vec4<u32>,
    // Strides of the batch axes in xyz, the offset in w.
    q_batch: vec4<u32>,
    k_batch: vec4<u32>,
    v_batch: vec4<u32>,
    mask_batch: vec4<u32>,
    sink_batch: vec4<u32>,
    out_batch: vec4<u32>,
    // Strides of head, row, column.
    q: vec4<u32>,
    k: vec4<u32>,
    v: vec4<u32>,
    mask: vec4<u32>,
    sink: vec4<u32>,
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
    // Offset of the position.
    position: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
// Where the first query stands among the keys, when POSITION.
@group(0) @binding(6) var<storage, read> position: array<i32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

override WG: u32 = 32u;
// Fours of d and e.
override D4: u32 = 16u;
override E4: u32 = 16u;
// Eights of them, at most 8, for subgroups.
override D8: u32 = 8u;
override E8: u32 = 8u;
override BOOL_MASK: bool = false;
override FLOAT_MASK: bool = false;
override CAUSAL: bool = false;
override WINDOW: bool = false;
override SOFTCAP: bool = false;
override SAFE: bool = false;
override SINKS: bool = false;
override POSITION: bool = false;

// Where one head of one batch element starts.
struct Head {
    q: u32,
    k: u32,
    v: u32,
    mask: u32,
    sink: u32,
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
        dot4(at, p.sink_batch) + h * p.sink.x,
        dot4(at, p.out_batch) + h * p.out.x,
    );
}

fn dot4(a: vec4<u32>, b: vec4<u32>) -> u32 {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// Keys first..end that query t may see by causality and window.
fn range(t: u32) -> vec2<u32> {
    var last = i32(t) + i32(p.keys) - i32(p.queries);
    if (POSITION) { last = i32(t) + position[p.position]; }
    var first = 0;
    var end = i32(p.keys);
    if (CAUSAL) { end = clamp(last + 1, 0, end); }
    // A window of at least all keys and queries excludes nothing.
    if (WINDOW && p.window < p.keys + p.queries + zero) { first = clamp(last - i32(p.window) + 1, 0, i32(p.keys)); }
    return vec2<u32>(u32(first), u32(max(end, first)));
}

fn load4_q(at: u32, c: u32) -> vec4<f32> {
    let i = vec4<u32>(c * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    let j = at + min(i, vec4<u32>(p.d - 1u)) * p.q.z;
    let value = vec4<f32>(q[j.x], q[j.y], q[j.z], q[j.w]);
    return select(vec4<f32>(0.0), value, i < vec4<u32>(p.d));
}

fn load4_k(at: u32, c: u32) -> vec4<f32> {
    let i = vec4<u32>(c * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    let j = at + min(i, vec4<u32>(p.d - 1u)) * p.k.z;
    return vec4<f32>(k[j.x], k[j.y], k[j.z], k[j.w]);
}

fn load4_v(at: u32, c: u32) -> vec4<f32> {
    let i = vec4<u32>(c * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    let j = at + min(i, vec4<u32>(p.e - 1u)) * p.v.z;
    return vec4<f32>(v[j.x], v[j.y], v[j.z], v[j.w]);
}

fn store4(at: u32, c: u32, value: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if (c * 4u + i < p.e) { out[at + (c * 4u + i) * p.out.z] = value[i]; }
    }
}

@compute @workgroup_size(WG)
fn software(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let t = row % p.queries;
    let h = head(row / p.queries);
    let at_mask = h.mask + t * p.mask.y;
    let keys = range(t);
    var x: array<vec4<f32>, 64>;
    var sum: array<vec4<f32>, 64>;
    for (var c = 0u; c < D4; c++) { x[c] = load4_q(h.q + t * p.q.y, c); }
    for (var c = 0u; c < E4; c++) { sum[c] = vec4<f32>(0.0); }
    var most = LOWEST;
    var total = 0.0;
    var seen = false;
    for (var s = keys.x; s < keys.y; s++) {
        var product = vec4<f32>(0.0);
        for (var c = 0u; c < D4; c++) { product = fma(x[c], load4_k(h.k + s * p.k.y, c), product); }
        let value = score(product.x + product.y + product.z + product.w, at_mask + s * p.mask.z);
        if (excluded(value)) { continue; }
        seen = true;
        let top = max(most, value);
        let shrink = exp_(most - top);
        let weight = exp_(value - top);
        most = top;
        total = total * shrink + weight;
        for (var c = 0u; c < E4; c++) {
            sum[c] = fma(vec4<f32>(weight), load4_v(h.v + s * p.v.y, c), sum[c] * shrink);
        }
    }
    let factor = divisor(total, seen, most, h.sink + t * p.sink.y);
    for (var c = 0u; c < E4; c++) { store4(h.out + t * p.out.y, c, sum[c] * factor); }
}

// exp of non-positive numbers.
fn exp_pair(x: vec2<f32>) -> vec2<f32> { return select(exp(x), vec2<f32>(0.0), x < vec2<f32>(-103.0)); }

// Eight columns of two queries; zeros beyond d.
fn load_pair(at: vec2<u32>, first: u32) -> array<vec2<f32>, 8> {
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
fn add_pair(sum: ptr<function, array<vec2<f32>, 8>>, shrink: vec2<f32>, weight: vec2<f32>, value: f32) {
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
fn store_pair(at: vec2<u32>, both: bool, first: u32, sum: array<vec2<f32>, 8>, factor: vec2<f32>) {
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
fn subgroup(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
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
    x0 = load_pair(at_q, 0u);
    if (D8 > 1u) { x1 = load_pair(at_q, 8u); }
    if (D8 > 2u) { x2 = load_pair(at_q, 16u); }
    if (D8 > 3u) { x3 = load_pair(at_q, 24u); }
    if (D8 > 4u) { x4 = load_pair(at_q, 32u); }
    if (D8 > 5u) { x5 = load_pair(at_q, 40u); }
    if (D8 > 6u) { x6 = load_pair(at_q, 48u); }
    if (D8 > 7u) { x7 = load_pair(at_q, 56u); }
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
        let shrink = exp_pair(most - top);
        let weight = select(vec2<f32>(0.0), exp_pair(value - top), some);
        most = top;
        total = fma(total, shrink, weight);
        add_pair(&sum0, shrink, weight, v[at_v + v0]);
        if (E8 > 1u) { add_pair(&sum1, shrink, weight, v[at_v + v1]); }
        if (E8 > 2u) { add_pair(&sum2, shrink, weight, v[at_v + v2]); }
        if (E8 > 3u) { add_pair(&sum3, shrink, weight, v[at_v + v3]); }
        if (E8 > 4u) { add_pair(&sum4, shrink, weight, v[at_v + v4]); }
        if (E8 > 5u) { add_pair(&sum5, shrink, weight, v[at_v + v5]); }
        if (E8 > 6u) { add_pair(&sum6, shrink, weight, v[at_v + v6]); }
        if (E8 > 7u) { add_pair(&sum7, shrink, weight, v[at_v + v7]); }
        at_k += step_k;
        at_v += step_v;
        at_mask += vec2<u32>(step_mask);
    }
    if (t.x >= p.queries) { return; }
    let both = t.y < p.queries;
    let at_sink = h.sink + row * p.sink.y;
    let factor = vec2<f32>(
        divisor(total.x, seen.x, most.x, at_sink.x),
        divisor(total.y, seen.y, most.y, at_sink.y),
    );
    let at_out = h.out + row * p.out.y;
    store_pair(at_out, both, 0u, sum0, factor);
    if (E8 > 1u) { store_pair(at_out, both, 8u, sum1, factor); }
    if (E8 > 2u) { store_pair(at_out, both, 16u, sum2, factor); }
    if (E8 > 3u) { store_pair(at_out, both, 24u, sum3, factor); }
    if (E8 > 4u) { store_pair(at_out, both, 32u, sum4, factor); }
    if (E8 > 5u) { store_pair(at_out, both, 40u, sum5, factor); }
    if (E8 > 6u) { store_pair(at_out, both, 48u, sum6, factor); }
    if (E8 > 7u) { store_pair(at_out, both, 56u, sum7, factor); }
}

var<workgroup> query: array<f32, 256>;
var<workgroup> weights: array<f32, 128>;
var<workgroup> partial: array<f32, 128>;

fn reduce_max(value: f32, l: u32) -> f32 {
    workgroupBarrier();
    partial[l] = value;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half = half / 2u) {
        if (l < half) { partial[l] = max(partial[l], partial[l + half]); }
        workgroupBarrier();
    }
    return partial[0];
}

fn reduce_sum(value: f32, l: u32) -> f32 {
    workgroupBarrier();
    partial[l] = value;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half = half / 2u) {
        if (l < half) { partial[l] += partial[l + half]; }
        workgroupBarrier();
    }
    return partial[0];
}

// 128 invocations for one query: each scores one key of a block of 128, then each sums one or two
// columns of v over a slice of the block.
@compute @workgroup_size(WG)
fn decode(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.groups) { return; }
    let t = row % p.queries;
    let h = head(row / p.queries);
    let keys = range(t);
    for (var i = l; i < D4 * 4u; i += 128u) {
        query[i] = select(0.0, q[h.q + t * p.q.y + min(i, p.d - 1u) * p.q.z], i < p.d);
    }
    let wide = min(p.e, 128u);
    let slices = 128u / wide;
    let slice = l / wide;
    let column = l % wide;
    var sum = vec2<f32>(0.0);
    var most = LOWEST;
    var total = 0.0;
    for (var block = keys.x; block < keys.y; block += 128u) {
        let s = block + l;
        var value = minus_infinity();
        workgroupBarrier();
        if (s < keys.y) {
            let at = h.k + s * p.k.y;
            var product = 0.0;
            for (var i = 0u; i < p.d; i++) { product = fma(query[i], k[at + i * p.k.z], product); }
            value = score(product, h.mask + t * p.mask.y + s * p.mask.z);
        }
        let top = max(most, reduce_max(max(value, LOWEST), l));
        let weight = select(exp_(value - top), 0.0, excluded(value));
        let shrink = exp_(most - top);
        weights[l] = weight;
        total = total * shrink + reduce_sum(weight, l);
        most = top;
        sum = sum * shrink;
        if (slice < slices) {
            for (var i = slice; i < min(128u, keys.y - block); i += slices) {
                let at = h.v + (block + i) * p.v.y;
                sum.x = fma(weights[i], v[at + column * p.v.z], sum.x);
                if (column + 128u < p.e) { sum.y = fma(weights[i], v[at + (column + 128u) * p.v.z], sum.y); }
            }
        }
    }
    workgroupBarrier();
    partial[l] = sum.x;
    workgroupBarrier();
    if (l < wide) {
        for (var i = 1u; i < slices; i++) { sum.x += partial[l + i * wide]; }
        let factor = divisor(total, total != 0.0, most, h.sink + t * p.sink.y);
        let at = h.out + t * p.out.y;
        out[at + l * p.out.z] = sum.x * factor;
        if (l + 128u < p.e) { out[at + (l + 128u) * p.out.z] = sum.y * factor; }
    }
}

// Fours of d of 16 queries, of a slice of 16 of d of 32 keys (padded to 5 fours), and weights.
override QUERY_TILE: u32 = 16u * D4;
var<workgroup> queries: array<vec4<f32>, QUERY_TILE>;
var<workgroup> key_tile: array<vec4<f32>, 160>;
var<workgroup> weight_tile: array<f32, 528>;

// 128 invocations for 16 queries: 8 invocations for a query, each scoring 4 keys of a block of 32 and
// summing every eighth four of v's columns.
@compute @workgroup_size(WG)
fn tiled(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.groups) { return; }
    let blocks = (p.queries + 15u) / 16u;
    let h = head(group / blocks);
    let first = (group % blocks) * 16u;
    let r = l / 8u;
    let lane = l % 8u;
    let t = min(first + r, p.queries - 1u);
    for (var i = l; i < 16u * D4; i += 128u) {
        queries[i] = load4_q(h.q + min(first + i / D4, p.queries - 1u) * p.q.y, i % D4);
    }
    let mine = range(t);
    // The keys that any query of the tile sees: ranges move with t.
    let begin = range(first).x;
    let end = range(min(first + 15u, p.queries - 1u)).y;
    var sum: array<vec4<f32>, 8>;
    for (var j = 0u; j < 8u; j++) { sum[j] = vec4<f32>(0.0); }
    var most = LOWEST;
    var total = 0.0;
    for (var block = begin; block < end; block += 32u) {
        var product: array<vec4<f32>, 4>;
        for (var j = 0u; j < 4u; j++) { product[j] = vec4<f32>(0.0); }
        for (var c = 0u; c < D4; c += 4u) {
            workgroupBarrier();
            // 32 keys by 4 fours: one each.
            let s = min(block + l / 4u, p.keys - 1u);
            if (c + l % 4u < D4) { key_tile[(l / 4u) * 5u + l % 4u] = load4_k(h.k + s * p.k.y, c + l % 4u); }
            workgroupBarrier();
            for (var i = 0u; i < min(4u, D4 - c); i++) {
                let x = queries[r * D4 + c + i];
                for (var j = 0u; j < 4u; j++) {
                    product[j] = fma(x, key_tile[(lane + 8u * j) * 5u + i], product[j]);
                }
            }
        }
        var value: vec4<f32>;
        for (var j = 0u; j < 4u; j++) {
            let s = block + lane + 8u * j;
            value[j] = minus_infinity();
            if (s >= mine.x && s < mine.y) {
                value[j] = score(dot(product[j], vec4<f32>(1.0)), h.mask + t * p.mask.y + s * p.mask.z);
            }
            weight_tile[r * 33u + lane + 8u * j] = max(value[j], LOWEST);
        }
        workgroupBarrier();
        var top = most;
        for (var i = 0u; i < 32u; i++) { top = max(top, weight_tile[r * 33u + i]); }
        workgroupBarrier();
        for (var j = 0u; j < 4u; j++) {
            weight_tile[r * 33u + lane + 8u * j] = select(exp_(value[j] - top), 0.0, excluded(value[j]));
        }
        workgroupBarrier();
        let shrink = exp_(most - top);
        most = top;
        total = total * shrink;
        for (var j = 0u; j < 8u; j++) { sum[j] = sum[j] * shrink; }
        for (var i = 0u; i < min(32u, end - block); i++) {
            let weight = weight_tile[r * 33u + i];
            total += weight;
            let at = h.v + (block + i) * p.v.y;
            for (var j = 0u; j < (E4 + 7u) / 8u; j++) {
                if (lane + 8u * j < E4) { sum[j] = fma(vec4<f32>(weight), load4_v(at, lane + 8u * j), sum[j]); }
            }
        }
    }
    if (first + r < p.queries) {
        let factor = divisor(total, total != 0.0, most, h.sink + t * p.sink.y);
        for (var j = 0u; j < (E4 + 7u) / 8u; j++) {
            if (lane + 8u * j < E4) { store4(h.out + t * p.out.y, lane + 8u * j, sum[j] * factor); }
        }
    }
}
