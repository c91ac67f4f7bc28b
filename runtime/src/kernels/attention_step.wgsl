// Attention of a few new tokens behind caches, in one dispatch: the query and the new keys are normalised and
// turned, the new rows are attended to and written into the caches.
// A workgroup takes one query. It makes the new keys that its query sees itself, and reads none but the cache's rows
// below the position, which no workgroup writes; so the order of workgroups does not matter. Row t of a cache is
// written for query t of the first head that reads it.
// Of long caches, several workgroups take shares of a query's keys, and another dispatch merges what they make.

// Strides of the batch axes in xyz, the offset in w; then of head, row and column.
struct View {
    batch: vec4<u32>,
    tail: vec4<u32>,
}

struct Params {
    batch: vec4<u32>,
    views: array<View, 14>,
    heads: u32,
    // Query heads per key head.
    group: u32,
    queries: u32,
    // Rows of the caches.
    keys: u32,
    window: u32,
    // Queries of all heads and batches.
    rows: u32,
    // Offset of the position.
    position: u32,
    spare: u32,
    scale: f32,
    softcap: f32,
    epsilon_q: f32,
    epsilon_k: f32,
}

const Q = 0u;
const K = 1u;
const V = 2u;
const K_CACHE = 3u;
const V_CACHE = 4u;
const MASK = 5u;
const SINK = 6u;
const OUT = 7u;
const COS_Q = 8u;
const SIN_Q = 9u;
const COS_K = 10u;
const SIN_K = 11u;
const SCALE_Q = 12u;
const SCALE_K = 13u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> cos_: array<f32>;
@group(0) @binding(5) var<storage, read> sin_: array<f32>;
@group(0) @binding(6) var<storage, read> scale_q: array<f32>;
@group(0) @binding(7) var<storage, read> scale_k: array<f32>;
@group(0) @binding(8) var<storage, read> mask: array<u32>;
@group(0) @binding(9) var<storage, read> sinks: array<f32>;
// Where the first query stands among the keys.
@group(0) @binding(10) var<storage, read> position: array<i32>;
@group(0) @binding(11) var<storage, read_write> k_cache: array<f32>;
@group(0) @binding(12) var<storage, read_write> v_cache: array<f32>;
@group(0) @binding(13) var<storage, read_write> out: array<f32>;
// The caches, when FOURS.
@group(0) @binding(14) var<storage, read_write> k_fours: array<vec4<f32>>;
@group(0) @binding(15) var<storage, read_write> v_fours: array<vec4<f32>>;
// What shares make: of each its largest score, the sum of its weights relative to that, and its weighted values.
@group(0) @binding(16) var<storage, read_write> shares: array<f32>;
// The same, when they are merged.
@group(0) @binding(17) var<storage, read> made: array<f32>;

override WG: u32 = 128u;
// Columns of keys and values.
override D: u32 = 64u;
override E: u32 = 64u;
// Queries.
override T: u32 = 1u;
// 0 none; RMS norm 1 before or 3 after the embedding; layer norm 2 before or 4 after it.
override NORM_Q: u32 = 0u;
override NORM_K: u32 = 0u;
override SCALE_Q_ON: bool = false;
override SCALE_K_ON: bool = false;
override ROTARY_Q: bool = false;
override ROTARY_K: bool = false;
override INTERLEAVED: bool = false;
override FULL_TABLE: bool = false;
override BOOL_MASK: bool = false;
override FLOAT_MASK: bool = false;
override WINDOW: bool = false;
override SOFTCAP: bool = false;
override SAFE: bool = false;
override SINKS: bool = false;
// Workgroups to a query.
override SHARES: u32 = 1u;
// Columns of the caches lie side by side, and rows begin at fours of them.
override FOURS: bool = false;

// Invocations that make a row ready together.
const LANES: u32 = 32u;

// Rows before the attention: the query, then the new keys.
override ROWS: u32 = T + 1u;
override PARTIALS: u32 = ROWS * LANES;
override TURNED: u32 = ROWS * D;
var<workgroup> sums: array<f32, PARTIALS>;
var<workgroup> squares: array<f32, PARTIALS>;
var<workgroup> turned: array<f32, TURNED>;

// One query of one head of one batch element.
struct Place {
    batch: vec4<u32>,
    head: u32,
    // The head of keys and values.
    shared_: u32,
    t: u32,
    position: i32,
}

fn place(row: u32, position: i32) -> Place {
    var rest = row / p.queries;
    let h = rest % p.heads;
    rest = rest / p.heads;
    var at = vec4<u32>(0u, 0u, 0u, 1u);
    for (var d = 2u; d > 0u; d--) {
        if (p.batch[d] + zero != 0u) {
            at[d] = rest % p.batch[d];
            rest = rest / p.batch[d];
        }
    }
    at.x = rest;
    return Place(at, h, h / p.group, row % p.queries, position);
}

fn start(view: u32, batch: vec4<u32>, head: u32, row: u32) -> u32 {
    let at = batch * p.views[view].batch;
    return at.x + at.y + at.z + at.w + head * p.views[view].tail.x + row * p.views[view].tail.y;
}

// A row before the attention.
struct Row {
    x: u32,
    cos: u32,
    sin: u32,
    scale: u32,
}

fn row_of(key: bool, at: Place, t: u32) -> Row {
    if (key) {
        var row = Row(start(K, at.batch, at.shared_, t), 0u, 0u, 0u);
        if (ROTARY_K) {
            row.cos = start(COS_K, at.batch, at.shared_, t);
            row.sin = start(SIN_K, at.batch, at.shared_, t);
        }
        if (SCALE_K_ON) { row.scale = start(SCALE_K, at.batch, at.shared_, t); }
        return row;
    }
    var row = Row(start(Q, at.batch, at.head, t), 0u, 0u, 0u);
    if (ROTARY_Q) {
        row.cos = start(COS_Q, at.batch, at.head, t);
        row.sin = start(SIN_Q, at.batch, at.head, t);
    }
    if (SCALE_Q_ON) { row.scale = start(SCALE_Q, at.batch, at.head, t); }
    return row;
}

// Columns of a pair. The last one of an odd row has no partner: its second column is outside.
fn columns(pair: u32) -> vec2<u32> {
    if (INTERLEAVED) { return vec2<u32>(2u * pair, 2u * pair + 1u); }
    return vec2<u32>(pair, pair + (D + 1u) / 2u);
}

fn turn(key: bool, row: Row, pair: u32, x: vec2<f32>) -> vec2<f32> {
    var i = vec2<u32>(pair);
    if (FULL_TABLE) { i = columns(pair); }
    let c = vec2<u32>(row.cos) + i * p.views[select(COS_Q, COS_K, key)].tail.z;
    let s = vec2<u32>(row.sin) + i * p.views[select(SIN_Q, SIN_K, key)].tail.z;
    return vec2<f32>(x.x * cos_[c.x] - x.y * sin_[s.x], x.y * cos_[c.y] + x.x * sin_[s.y]);
}

// A pair as the normalisation finds it; zero outside the row.
fn found(key: bool, row: Row, pair: u32) -> vec2<f32> {
    let i = min(columns(pair), vec2<u32>(D - 1u));
    let at = vec2<u32>(row.x) + i * p.views[select(Q, K, key)].tail.z;
    var x: vec2<f32>;
    if (key) { x = vec2<f32>(k[at.x], k[at.y]); } else { x = vec2<f32>(q[at.x], q[at.y]); }
    x.y = select(0.0, x.y, columns(pair).y < D);
    let norm = select(NORM_Q, NORM_K, key);
    if (select(ROTARY_Q, ROTARY_K, key)) {
        if (norm != 1u) { if (norm != 2u) { x = turn(key, row, pair, x); } }
    }
    return x;
}

// A pair as the attention wants it.
fn finished(key: bool, row: Row, pair: u32, around: f32, factor: f32) -> vec2<f32> {
    let norm = select(NORM_Q, NORM_K, key);
    var x = found(key, row, pair);
    if (norm != 0u) { x = (x - around) * factor; }
    if (select(SCALE_Q_ON, SCALE_K_ON, key)) {
        let at = vec2<u32>(row.scale)
            + min(columns(pair), vec2<u32>(D - 1u)) * p.views[select(SCALE_Q, SCALE_K, key)].tail.z;
        if (key) { x *= vec2<f32>(scale_k[at.x], scale_k[at.y]); }
        else { x *= vec2<f32>(scale_q[at.x], scale_q[at.y]); }
    }
    if (select(ROTARY_Q, ROTARY_K, key)) {
        if (norm == 1u) { x = turn(key, row, pair, x); }
        if (norm == 2u) { x = turn(key, row, pair, x); }
    }
    return x;
}

fn add_sum(key: bool, row: Row, at: u32, lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < (D + 1u) / 2u; i += LANES) {
        let x = found(key, row, i);
        sum += x.x + x.y;
    }
    sums[at] = sum;
}

// The mean of a row, where that is wanted.
fn mean(key: bool, n: u32) -> f32 {
    let norm = select(NORM_Q, NORM_K, key);
    var sum = 0.0;
    if (select(norm == 4u, true, norm == 2u)) {
        for (var i = 0u; i < LANES; i++) { sum += sums[n * LANES + i]; }
    }
    return sum / f32(D);
}

fn add_squares(key: bool, row: Row, n: u32, lane: u32) {
    let around = mean(key, n);
    var sum = 0.0;
    for (var i = lane; i < (D + 1u) / 2u; i += LANES) {
        let x = found(key, row, i) - around;
        sum += x.x * x.x + select(0.0, x.y * x.y, columns(i).y < D);
    }
    squares[n * LANES + lane] = sum;
}

fn write_turned(key: bool, row: Row, n: u32, lane: u32) {
    let norm = select(NORM_Q, NORM_K, key);
    var around = 0.0;
    var factor = 1.0;
    if (norm != 0u) {
        around = mean(key, n);
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) { sum += squares[n * LANES + i]; }
        factor = 1.0 / sqrt(sum / f32(D) + select(p.epsilon_q, p.epsilon_k, key));
    }
    for (var i = lane; i < (D + 1u) / 2u; i += LANES) {
        let c = columns(i);
        let x = finished(key, row, i, around, factor);
        turned[n * D + c.x] = x.x;
        if (c.y < D) { turned[n * D + c.y] = x.y; }
    }
}

// Fills `turned` with the query and the new keys that it sees; the query's first share writes its rows of the caches.
fn prepare(at: Place, share: u32, l: u32) {
    let lane = l % LANES;
    let rows = at.t + 2u;
    if (select(NORM_Q == 4u, true, NORM_Q == 2u)) {
        if (l < LANES) { add_sum(false, row_of(false, at, at.t), l, lane); }
    }
    if (select(NORM_K == 4u, true, NORM_K == 2u)) {
        for (var n = l / LANES; n < rows; n += WG / LANES) {
            if (n > 0u) { add_sum(true, row_of(true, at, n - 1u), n * LANES + lane, lane); }
        }
    }
    if (select(select(select(NORM_K == 2u, true, NORM_K == 4u), true, NORM_Q == 2u), true, NORM_Q == 4u)) {
        workgroupBarrier();
    }
    if (NORM_Q != 0u) {
        if (l < LANES) { add_squares(false, row_of(false, at, at.t), 0u, lane); }
    }
    if (NORM_K != 0u) {
        for (var n = l / LANES; n < rows; n += WG / LANES) {
            if (n > 0u) { add_squares(true, row_of(true, at, n - 1u), n, lane); }
        }
    }
    if (select(NORM_K != 0u, true, NORM_Q != 0u)) { workgroupBarrier(); }
    if (l < LANES) { write_turned(false, row_of(false, at, at.t), 0u, lane); }
    for (var n = l / LANES; n < rows; n += WG / LANES) {
        if (n > 0u) { write_turned(true, row_of(true, at, n - 1u), n, lane); }
    }
    workgroupBarrier();
    var to = at.position + i32(at.t);
    to += select(0, i32(p.keys), to < 0);
    if (share == 0u && at.head % p.group == 0u && to >= 0 && to < i32(p.keys)) {
        let to_k = start(K_CACHE, at.batch, at.shared_, u32(to));
        let to_v = start(V_CACHE, at.batch, at.shared_, u32(to));
        let source = start(V, at.batch, at.shared_, at.t);
        for (var i = l; i < D; i += WG) { k_cache[to_k + i * p.views[K_CACHE].tail.z] = turned[(at.t + 1u) * D + i]; }
        for (var i = l; i < E; i += WG) { v_cache[to_v + i * p.views[V_CACHE].tail.z] = v[source + i * p.views[V].tail.z]; }
    }
}

// Keys first..end that the query sees, those of the cache before `fresh`, which count from the position.
struct Keys {
    first: u32,
    fresh: u32,
    end: u32,
}

fn keys_of(at: Place) -> Keys {
    let all = i32(p.keys);
    let last = at.position + i32(at.t);
    let end = clamp(last + 1, 0, all);
    var first = 0;
    // A window of at least all keys and queries excludes nothing.
    if (WINDOW && p.window < p.keys + p.queries + zero) { first = clamp(last - i32(p.window) + 1, 0, end); }
    return Keys(u32(first), u32(clamp(at.position, first, end)), u32(end));
}

// Eight invocations add up products of a key, so that they read neighbouring columns; padded to nine.
override PRODUCTS: u32 = 9u * WG;
var<workgroup> products: array<f32, PRODUCTS>;
var<workgroup> weights: array<f32, WG>;
var<workgroup> partial: array<f32, WG>;

fn reduce_max(value: f32, l: u32) -> f32 {
    partial[l] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
        if (l < half) { partial[l] = max(partial[l], partial[l + half]); }
        workgroupBarrier();
    }
    return partial[0];
}

fn reduce_sum(value: f32, l: u32) -> f32 {
    partial[l] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
        if (l < half) { partial[l] += partial[l + half]; }
        workgroupBarrier();
    }
    return partial[0];
}

// WG invocations: eight to a key for the scores of a block of WG keys, then each sums one or two columns of the
// values over a slice of the block. The shares of a query take blocks in turn.
@compute @workgroup_size(WG)
fn by_group(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group >= p.rows * SHARES) { return; }
    let share = group % SHARES;
    let at = place(group / SHARES, position[p.position]);
    prepare(at, share, l);
    let keys = keys_of(at);
    let k_start = start(K_CACHE, at.batch, at.shared_, 0u);
    let v_start = start(V_CACHE, at.batch, at.shared_, 0u);
    let v_fresh = start(V, at.batch, at.shared_, 0u);
    let mask_start = start(MASK, at.batch, at.head, at.t);
    let along_k = p.views[K_CACHE].tail.z;
    let along_v = p.views[V_CACHE].tail.z;
    let along_fresh = p.views[V].tail.z;
    let wide = min(E, WG);
    let slices = WG / wide;
    let slice = l / wide;
    let column = l % wide;
    let eighth = l % 8u;
    var sum = vec2<f32>(0.0);
    var most = LOWEST;
    var total = 0.0;
    for (var block = keys.first + share * WG; block < keys.end; block += WG * SHARES) {
        for (var i = l / 8u; i < WG; i += WG / 8u) {
            let s = block + i;
            var product = 0.0;
            if (s < keys.fresh) {
                let source = k_start + s * p.views[K_CACHE].tail.y;
                for (var c = eighth; c < D; c += 8u) { product = fma(turned[c], k_cache[source + c * along_k], product); }
            } else if (s < keys.end) {
                let source = u32(i32(s) - at.position + 1) * D;
                for (var c = eighth; c < D; c += 8u) { product = fma(turned[c], turned[source + c], product); }
            }
            products[i * 9u + eighth] = product;
        }
        workgroupBarrier();
        let s = block + l;
        var value = minus_infinity();
        if (s < keys.end) {
            var product = 0.0;
            for (var i = 0u; i < 8u; i++) { product += products[l * 9u + i]; }
            value = score(product, mask_start + s * p.views[MASK].tail.z);
        }
        let top = max(most, reduce_max(max(value, LOWEST), l));
        let weight = select(exp_(value - top), 0.0, excluded(value));
        let shrink = exp_(most - top);
        weights[l] = weight;
        total = total * shrink + weight;
        most = top;
        sum = sum * shrink;
        workgroupBarrier();
        if (slice < slices) {
            for (var i = slice; i < min(WG, keys.end - block); i += slices) {
                let s = block + i;
                if (s < keys.fresh) {
                    let source = v_start + s * p.views[V_CACHE].tail.y;
                    sum.x = fma(weights[i], v_cache[source + column * along_v], sum.x);
                    if (column + WG < E) { sum.y = fma(weights[i], v_cache[source + (column + WG) * along_v], sum.y); }
                } else {
                    let source = v_fresh + u32(i32(s) - at.position) * p.views[V].tail.y;
                    sum.x = fma(weights[i], v[source + column * along_fresh], sum.x);
                    if (column + WG < E) { sum.y = fma(weights[i], v[source + (column + WG) * along_fresh], sum.y); }
                }
            }
        }
    }
    workgroupBarrier();
    total = reduce_sum(total, l);
    workgroupBarrier();
    partial[l] = sum.x;
    workgroupBarrier();
    if (l < wide) {
        for (var i = 1u; i < slices; i++) { sum.x += partial[l + i * wide]; }
        if (SHARES > 1u) {
            let to = group * (E + 2u);
            if (l == 0u) {
                shares[to] = most;
                shares[to + 1u] = total;
            }
            shares[to + 2u + l] = sum.x;
            if (l + WG < E) { shares[to + 2u + l + WG] = sum.y; }
            return;
        }
        let factor = divisor(total, total != 0.0, most, start(SINK, at.batch, at.head, at.t));
        let to = start(OUT, at.batch, at.head, at.t);
        let along = p.views[OUT].tail.z;
        out[to + l * along] = sum.x * factor;
        if (l + WG < E) { out[to + (l + WG) * along] = sum.y * factor; }
    }
}

// The shares of a query become its row.
@compute @workgroup_size(WG)
fn merge(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.rows) { return; }
    let at = place(row, 0);
    let source = row * SHARES * (E + 2u);
    var most = LOWEST;
    for (var s = 0u; s < SHARES; s++) { most = max(most, made[source + s * (E + 2u)]); }
    var total = 0.0;
    for (var s = 0u; s < SHARES; s++) {
        let from_ = source + s * (E + 2u);
        total = fma(exp_(made[from_] - most), made[from_ + 1u], total);
    }
    let factor = divisor(total, total != 0.0, most, start(SINK, at.batch, at.head, at.t));
    let to = start(OUT, at.batch, at.head, at.t);
    for (var column = l; column < E; column += WG) {
        var sum = 0.0;
        for (var s = 0u; s < SHARES; s++) {
            let from_ = source + s * (E + 2u);
            sum = fma(exp_(made[from_] - most), made[from_ + 2u + column], sum);
        }
        out[to + column * p.views[OUT].tail.z] = sum * factor;
    }
}

// A row as the attention wants it, by one invocation.
fn make_row(key: bool, row: Row, into: ptr<function, array<f32, 256>>) {
    let norm = select(NORM_Q, NORM_K, key);
    var around = 0.0;
    var factor = 1.0;
    if (select(norm == 4u, true, norm == 2u)) {
        for (var i = 0u; i < (D + 1u) / 2u; i++) {
            let x = found(key, row, i);
            around += x.x + x.y;
        }
        around = around / f32(D);
    }
    if (norm != 0u) {
        var sum = 0.0;
        for (var i = 0u; i < (D + 1u) / 2u; i++) {
            let x = found(key, row, i) - around;
            sum += x.x * x.x + select(0.0, x.y * x.y, columns(i).y < D);
        }
        factor = 1.0 / sqrt(sum / f32(D) + select(p.epsilon_q, p.epsilon_k, key));
    }
    for (var i = 0u; i < (D + 1u) / 2u; i++) {
        let c = columns(i);
        let x = finished(key, row, i, around, factor);
        (*into)[c.x] = x.x;
        if (c.y < D) { (*into)[c.y] = x.y; }
    }
}

// Fours of columns.
override D4: u32 = (D + 3u) / 4u;
override E4: u32 = (E + 3u) / 4u;

// Columns of a four, the last one again beyond the row.
fn four(c: u32, width: u32, along: u32) -> vec4<u32> {
    return min(vec4<u32>(c * 4u) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(width - 1u)) * along;
}

// Zeros beyond the row.
fn four_of(x: ptr<function, array<f32, 256>>, c: u32) -> vec4<f32> {
    let j = four(c, D, 1u);
    let inside = vec4<u32>(c * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(D);
    return select(vec4<f32>(0.0), vec4<f32>((*x)[j.x], (*x)[j.y], (*x)[j.z], (*x)[j.w]), inside);
}

// What an invocation has seen.
struct Seen {
    most: f32,
    total: f32,
}

// Takes one more score; gives the factor of the sums so far and its own weight.
fn see(seen: ptr<function, Seen>, value: f32) -> vec2<f32> {
    let top = max((*seen).most, value);
    let shrink = exp_((*seen).most - top);
    let weight = select(exp_(value - top), 0.0, excluded(value));
    (*seen).most = top;
    (*seen).total = (*seen).total * shrink + weight;
    return vec2<f32>(shrink, weight);
}

// The sums of weighted values over each `lanes`th key, from that of this lane on. Lanes make rows each for
// themselves, so nothing waits; parameters are read before the loop.
fn attend(at: Place, lane: u32, lanes: u32, sum: ptr<function, array<vec4<f32>, 64>>) -> Seen {
    let keys = keys_of(at);
    let mask_start = start(MASK, at.batch, at.head, at.t);
    let along_mask = p.views[MASK].tail.z;
    let step_k = p.views[K_CACHE].tail.y;
    let step_v = p.views[V_CACHE].tail.y;
    let along_k = p.views[K_CACHE].tail.z;
    let along_v = p.views[V_CACHE].tail.z;
    var scratch: array<f32, 256>;
    var x: array<vec4<f32>, 64>;
    make_row(false, row_of(false, at, at.t), &scratch);
    for (var c = 0u; c < D4; c++) { x[c] = four_of(&scratch, c); }
    for (var c = 0u; c < E4; c++) { (*sum)[c] = vec4<f32>(0.0); }
    var seen = Seen(LOWEST, 0.0);
    var at_k = start(K_CACHE, at.batch, at.shared_, keys.first + lane);
    var at_v = start(V_CACHE, at.batch, at.shared_, keys.first + lane);
    for (var s = keys.first + lane; s < keys.fresh; s += lanes) {
        var product = vec4<f32>(0.0);
        for (var c = 0u; c < D4; c++) {
            if (FOURS) {
                product = fma(x[c], k_fours[at_k / 4u + c], product);
            } else {
                let j = vec4<u32>(at_k) + four(c, D, along_k);
                product = fma(x[c], vec4<f32>(k_cache[j.x], k_cache[j.y], k_cache[j.z], k_cache[j.w]), product);
            }
        }
        let value = score(product.x + product.y + product.z + product.w, mask_start + s * along_mask);
        let now = see(&seen, value);
        for (var c = 0u; c < E4; c++) {
            if (FOURS) {
                (*sum)[c] = fma(vec4<f32>(now.y), v_fours[at_v / 4u + c], (*sum)[c] * now.x);
            } else {
                let j = vec4<u32>(at_v) + four(c, E, along_v);
                let row = vec4<f32>(v_cache[j.x], v_cache[j.y], v_cache[j.z], v_cache[j.w]);
                (*sum)[c] = fma(vec4<f32>(now.y), row, (*sum)[c] * now.x);
            }
        }
        at_k += lanes * step_k;
        at_v += lanes * step_v;
    }
    for (var n = lane; n <= at.t; n += lanes) {
        make_row(true, row_of(true, at, n), &scratch);
        let at_v = start(V, at.batch, at.shared_, n);
        let along = p.views[V].tail.z;
        let s = at.position + i32(n);
        if (s >= i32(keys.first) && s < i32(keys.end)) {
            var product = vec4<f32>(0.0);
            for (var c = 0u; c < D4; c++) { product = fma(x[c], four_of(&scratch, c), product); }
            let value =
                score(product.x + product.y + product.z + product.w, mask_start + u32(s) * along_mask);
            let now = see(&seen, value);
            for (var c = 0u; c < E4; c++) {
                let j = vec4<u32>(at_v) + four(c, E, along);
                (*sum)[c] = fma(vec4<f32>(now.y), vec4<f32>(v[j.x], v[j.y], v[j.z], v[j.w]), (*sum)[c] * now.x);
            }
        }
        let to = s + select(0, i32(p.keys), s < 0);
        if (n == at.t && at.head % p.group == 0u && to >= 0 && to < i32(p.keys)) {
            let to_k = start(K_CACHE, at.batch, at.shared_, u32(to));
            let to_v = start(V_CACHE, at.batch, at.shared_, u32(to));
            if (FOURS) {
                for (var c = 0u; c < D4; c++) { k_fours[to_k / 4u + c] = four_of(&scratch, c); }
                for (var c = 0u; c < E4; c++) {
                    let j = vec4<u32>(at_v) + four(c, E, along);
                    v_fours[to_v / 4u + c] = vec4<f32>(v[j.x], v[j.y], v[j.z], v[j.w]);
                }
            } else {
                for (var i = 0u; i < D; i++) { k_cache[to_k + i * along_k] = scratch[i]; }
                for (var i = 0u; i < E; i++) { v_cache[to_v + i * along_v] = v[at_v + i * along]; }
            }
        }
    }
    return seen;
}

// An invocation for a query; no workgroup memory.
@compute @workgroup_size(WG)
fn software(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let at = place(row, position[p.position]);
    var sum: array<vec4<f32>, 64>;
    let seen = attend(at, 0u, 1u, &sum);
    let factor = divisor(seen.total, seen.total != 0.0, seen.most, start(SINK, at.batch, at.head, at.t));
    let to = start(OUT, at.batch, at.head, at.t);
    for (var c = 0u; c < E4; c++) {
        for (var i = 0u; i < 4u; i++) {
            if (c * 4u + i < E) { out[to + (c * 4u + i) * p.views[OUT].tail.z] = sum[c][i] * factor; }
        }
    }
}

// A subgroup of eight lanes for a query; they divide the keys.
@compute @workgroup_size(WG)
fn subgroup(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.rows) { return; }
    let at = place(row, position[p.position]);
    var sum: array<vec4<f32>, 64>;
    let seen = attend(at, l, 8u, &sum);
    let most = subgroupMax(seen.most);
    let shrink = exp_(seen.most - most);
    let total = subgroupAdd(seen.total * shrink);
    let factor = divisor(total, total != 0.0, most, start(SINK, at.batch, at.head, at.t));
    let to = start(OUT, at.batch, at.head, at.t);
    for (var c = 0u; c < E4; c++) {
        let all = subgroupAdd(sum[c] * shrink) * factor;
        for (var i = 0u; i < 4u; i++) {
            if (l == i && c * 4u + i < E) { out[to + (c * 4u + i) * p.views[OUT].tail.z] = all[i]; }
        }
    }
}
