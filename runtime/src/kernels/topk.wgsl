// The k largest or smallest elements along one axis, best first. The order is total: NaN is above all
// numbers, and equal elements go by position, so that the next element after one that was chosen needs no
// marks.

struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_values: array<vec4<u32>, 2>,
    outer_places: array<vec4<u32>, 2>,
    // Offsets and strides along the line: x, values, places.
    offsets: vec4<u32>,
    along: vec4<u32>,
    rows: u32,
    width: u32,
    k: u32,
    rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> places: array<u32>;

override WG: u32 = 64u;
override INTEGER: bool = false;
override SMALLEST: bool = false;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

// First elements of a row: x, values, places.
fn starts(row: u32) -> vec3<u32> {
    var at = p.offsets.xyz;
    var rest = row;
    for (var d = p.rank + zero; d > 0u; d--) {
        let q = (d - 1u) / 4u;
        let r = (d - 1u) % 4u;
        let size = p.outer[q][r];
        at += (rest % size) * vec3<u32>(p.outer_x[q][r], p.outer_values[q][r], p.outer_places[q][r]);
        rest = rest / size;
    }
    return at;
}

// A number that is larger the better the element is.
fn rating(word: u32) -> u32 {
    var key: u32;
    if (INTEGER) {
        key = word ^ 0x80000000u;
    } else {
        let magnitude = word & 0x7fffffffu;
        if (magnitude > 0x7f800000u) {
            key = 0xffffffffu;
        } else if (magnitude == 0u) {
            key = 0x80000000u;
        } else {
            key = select(word | 0x80000000u, ~word, (word & 0x80000000u) != 0u);
        }
    }
    return select(key, ~key, SMALLEST);
}

struct Chosen {
    some: bool,
    rating: u32,
    at: u32,
}

// Whether a comes before b.
fn ahead(a: Chosen, b: Chosen) -> bool {
    if (!a.some || !b.some) { return a.some; }
    return a.rating > b.rating || (a.rating == b.rating && a.at < b.at);
}

// The best of every step-th element from first on that comes after last.
fn next(start: u32, first: u32, step: u32, last: Chosen) -> Chosen {
    var best = Chosen(false, 0u, 0u);
    for (var i = first; i < p.width + zero; i += step) {
        let one = Chosen(true, rating(x[start + i * p.along.x]), i);
        if ((!last.some || ahead(last, one)) && ahead(one, best)) { best = one; }
    }
    return best;
}

fn store(start: vec3<u32>, n: u32, one: Chosen) {
    values[start.y + n * p.along.y] = x[start.x + one.at * p.along.x];
    places[start.z + n * p.along.z] = one.at;
}

@compute @workgroup_size(WG)
fn by_row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let row = (w.x + n.x * (w.y + n.y * w.z)) * WG + l;
    if (row >= p.rows) { return; }
    let start = starts(row);
    var last = Chosen(false, 0u, 0u);
    for (var i = 0u; i < p.k + zero; i++) {
        last = next(start.x, 0u, 1u, last);
        store(start, i, last);
    }
}

var<workgroup> shared_some: array<u32, 256>;
var<workgroup> shared_rating: array<u32, 256>;
var<workgroup> shared_at: array<u32, 256>;

fn shared_(i: u32) -> Chosen { return Chosen(shared_some[i] != 0u, shared_rating[i], shared_at[i]); }

fn share(i: u32, one: Chosen) {
    shared_some[i] = select(0u, 1u, one.some);
    shared_rating[i] = one.rating;
    shared_at[i] = one.at;
}

@compute @workgroup_size(WG)
fn by_group(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.rows) { return; }
    let start = starts(row);
    var last = Chosen(false, 0u, 0u);
    for (var i = 0u; i < p.k; i++) {
        share(l, next(start.x, l, WG, last));
        workgroupBarrier();
        for (var half = WG / 2u; half > 0u; half = half / 2u) {
            if (l < half) {
                let other = shared_(l + half);
                if (ahead(other, shared_(l))) { share(l, other); }
            }
            workgroupBarrier();
        }
        last = shared_(0u);
        if (l == 0u) { store(start, i, last); }
        workgroupBarrier();
    }
}
