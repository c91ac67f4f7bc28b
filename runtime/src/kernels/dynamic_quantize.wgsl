// Quantisation to u8 by the extremes of a row. A row's elements lie along the inner axes, and one of zero is always
// among them; a NaN among them makes the scale NaN and all integers zero.

struct Params {
    outer: array<vec4<u32>, 2>,
    outer_x: array<vec4<u32>, 2>,
    outer_integers: array<vec4<u32>, 2>,
    outer_scale: array<vec4<u32>, 2>,
    outer_zero: array<vec4<u32>, 2>,
    inner: array<vec4<u32>, 2>,
    inner_x: array<vec4<u32>, 2>,
    inner_integers: array<vec4<u32>, 2>,
    // Of x, the integers, the scale, the zero point.
    offsets: vec4<u32>,
    rows: u32,
    width: u32,
    // Of a row, and the elements of each.
    parts: u32,
    part: u32,
    outer_rank: u32,
    inner_rank: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// Smallest and largest of each part: read, then the same written.
@group(0) @binding(2) var<storage, read> partial: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> extremes: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> integers: array<i32>;
@group(0) @binding(5) var<storage, read_write> scale: array<f32>;
@group(0) @binding(6) var<storage, read_write> zero_point: array<i32>;

override WG: u32 = 64u;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> nought: u32;
var<workgroup> lanes: array<vec2<f32>, 256>;

fn is_nan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }

// The first twelve bits of a number.
fn upper(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u); }

// The nearest number to a quotient, be the driver's own not: an element between two integers would get the other one.
// What the quotient leaves of a is taken from the product of halves, which no rounding touches.
fn divide(a: f32, b: f32) -> f32 {
    let q = a / b;
    // Infinities and NaN.
    if (!(abs(q) < 1e38)) { return q; }
    let qh = upper(q);
    let bh = upper(b);
    let ql = q - qh;
    let bl = b - bh;
    return q + ((((a - qh * bh) - qh * bl) - ql * bh) - ql * bl) / b;
}

// First elements of a row: x, integers, scale, zero point.
fn starts(row: u32) -> vec4<u32> {
    var at = p.offsets;
    var rest = row;
    for (var d = p.outer_rank + nought; d > 0u; d--) {
        let i = d - 1u;
        let size = p.outer[i / 4u][i % 4u];
        let steps = vec4<u32>(p.outer_x[i / 4u][i % 4u], p.outer_integers[i / 4u][i % 4u], p.outer_scale[i / 4u][i % 4u], p.outer_zero[i / 4u][i % 4u]);
        at += (rest % size) * steps;
        rest = rest / size;
    }
    return at;
}

// How far behind a row's first elements one of them lies: x, integers.
fn behind(element: u32) -> vec2<u32> {
    var at = vec2<u32>(0u);
    var rest = element;
    for (var d = p.inner_rank - 1u + nought; d > 0u; d--) {
        let size = p.inner[d / 4u][d % 4u];
        at += (rest % size) * vec2<u32>(p.inner_x[d / 4u][d % 4u], p.inner_integers[d / 4u][d % 4u]);
        rest = rest / size;
    }
    return at + rest * vec2<u32>(p.inner_x[0].x, p.inner_integers[0].x);
}

// Extremes with those of more elements; NaN stays.
fn wider(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(select(a.x, b.x, b.x < a.x || is_nan(b.x)), select(a.y, b.y, b.y > a.y || is_nan(b.y)));
}

// Those of the whole workgroup.
fn of_all(own: vec2<f32>, l: u32) -> vec2<f32> {
    lanes[l] = own;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half = half / 2u) {
        if (l < half) { lanes[l] = wider(lanes[l], lanes[l + half]); }
        workgroupBarrier();
    }
    return lanes[0];
}

// Those of the elements from `first` on up to `end`.
fn find(start: u32, first: u32, end: u32, l: u32) -> vec2<f32> {
    var own = vec2<f32>(0.0);
    for (var i = first + l; i < end; i += WG) { own = wider(own, vec2<f32>(x[start + behind(i).x])); }
    return of_all(own, l);
}

// Quantises the elements from `first` on up to `end`; the first part's first lane writes scale and zero point.
fn quantize(start: vec4<u32>, first: u32, end: u32, l: u32, bounds: vec2<f32>) {
    let range = divide(bounds.y - bounds.x, 255.0);
    let step = select(range, 1.0, range == 0.0);
    let point = 0.0 - divide(bounds.x, step);
    var zero = 0;
    if (!is_nan(point)) { zero = i32(round(clamp(point, 0.0, 255.0))); }
    if (first == 0u && l == 0u) {
        scale[start.z] = step;
        zero_point[start.w] = zero;
    }
    for (var i = first + l; i < end; i += WG) {
        let at = behind(i);
        let steps = round(divide(x[start.x + at.x], step));
        // What is infinite saturates, and what is no number is none.
        var y = zero;
        if (!is_nan(steps)) { y += i32(clamp(steps, -256.0, 256.0)); }
        integers[start.y + at.y] = clamp(y, 0, 255);
    }
}

@compute @workgroup_size(WG)
fn whole(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    nought = l >> 16u;
    let row = w.x + n.x * (w.y + n.y * w.z);
    if (row >= p.rows) { return; }
    let start = starts(row);
    let end = p.width + nought;
    quantize(start, 0u, end, l, find(start.x, 0u, end, l));
}

@compute @workgroup_size(WG)
fn extremes_of_parts(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    nought = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    let row = group / p.parts;
    if (row >= p.rows) { return; }
    let first = (group % p.parts) * p.part;
    let found = find(starts(row).x, first, min(first + p.part, p.width) + nought, l);
    if (l == 0u) { extremes[group] = found; }
}

@compute @workgroup_size(WG)
fn parts(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    nought = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    let row = group / p.parts;
    if (row >= p.rows) { return; }
    let first = (group % p.parts) * p.part;
    var own = vec2<f32>(0.0);
    for (var i = l; i < p.parts + nought; i += WG) { own = wider(own, partial[row * p.parts + i]); }
    quantize(starts(row), first, min(first + p.part, p.width) + nought, l, of_all(own, l));
}
