// Heads made ready for attention, up to three parts in one dispatch: rows that are normalised, turned by a
// rotary embedding, or both in either order, and written as they come or at rows `position + t` of a cache.
// Elements are taken in pairs, since a rotary embedding mixes two.

// Strides of the leading axes; then of row and column, and the offset.
struct View {
    lead: vec4<u32>,
    tail: vec4<u32>,
}

struct Part {
    // Sizes of the leading axes, the innermost last.
    lead: vec4<u32>,
    x: View,
    cos: View,
    sin: View,
    scale: View,
    out: View,
    // Rows to a leading element, rows in all, columns, rows of the result to a leading element.
    sizes: vec4<u32>,
    // Bits of epsilon, the first workgroup, the one behind the last, offset of the position.
    rest: vec4<u32>,
}

struct Params {
    parts: array<Part, 3>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x0: array<f32>;
@group(0) @binding(2) var<storage, read> x1: array<f32>;
@group(0) @binding(3) var<storage, read> x2: array<f32>;
@group(0) @binding(4) var<storage, read> cos_: array<f32>;
@group(0) @binding(5) var<storage, read> sin_: array<f32>;
@group(0) @binding(6) var<storage, read> scale0: array<f32>;
@group(0) @binding(7) var<storage, read> scale1: array<f32>;
@group(0) @binding(8) var<storage, read> scale2: array<f32>;
@group(0) @binding(9) var<storage, read> position: array<i32>;
@group(0) @binding(10) var<storage, read_write> out0: array<f32>;
@group(0) @binding(11) var<storage, read_write> out1: array<f32>;
@group(0) @binding(12) var<storage, read_write> out2: array<f32>;

override WG: u32 = 64u;
override PARTS: u32 = 1u;
// 0 none; RMS norm 1 before or 3 after the embedding; layer norm 2 before or 4 after it.
override NORM0: u32 = 0u;
override NORM1: u32 = 0u;
override NORM2: u32 = 0u;
override SCALE0: bool = false;
override SCALE1: bool = false;
override SCALE2: bool = false;
override ROTARY0: bool = false;
override ROTARY1: bool = false;
override ROTARY2: bool = false;
// Rows count from the position.
override ROWS0: bool = false;
override ROWS1: bool = false;
override ROWS2: bool = false;
override INTERLEAVED: bool = false;
override FULL_TABLE: bool = false;

// Zero, as no driver can know. A software driver compiles a kernel anew for each value of a uniform that
// alone decides a branch or the end of a loop, unless this is added to it.
var<private> zero: u32;

fn load(part: u32, i: u32) -> f32 {
    switch part {
        case 0u: { return x0[i]; }
        case 1u: { return x1[i]; }
        default: { return x2[i]; }
    }
}

fn load_scale(part: u32, i: u32) -> f32 {
    switch part {
        case 0u: { return scale0[i]; }
        case 1u: { return scale1[i]; }
        default: { return scale2[i]; }
    }
}

fn store(part: u32, i: u32, value: f32) {
    switch part {
        case 0u: { out0[i] = value; }
        case 1u: { out1[i] = value; }
        default: { out2[i] = value; }
    }
}

// Where a row starts in each operand, and what normalises it.
struct Row {
    x: u32,
    cos: u32,
    sin: u32,
    scale: u32,
    out: u32,
    // Whether the result has a place for it.
    inside: bool,
    mean: f32,
    factor: f32,
}

fn start(view: View, lead: vec4<u32>, t: u32) -> u32 {
    let at = lead * view.lead;
    return at.x + at.y + at.z + at.w + t * view.tail.x + view.tail.z;
}

fn row_of(part: u32, index: u32) -> Row {
    let size = p.parts[part].sizes;
    let t = index % size.x;
    var rest = index / size.x;
    var lead: vec4<u32>;
    for (var d = 3u; d > 0u; d--) {
        lead[d] = rest % p.parts[part].lead[d];
        rest = rest / p.parts[part].lead[d];
    }
    lead.x = rest;
    var to = i32(t);
    if (select(select(ROWS2, ROWS1, part == 1u), ROWS0, part == 0u)) {
        to += position[p.parts[part].rest.w];
        to += select(0, i32(size.w), to < 0);
    }
    let inside = to >= 0 && to < i32(size.w);
    var row = Row(start(p.parts[part].x, lead, t), 0u, 0u, 0u, 0u, inside, 0.0, 1.0);
    row.out = start(p.parts[part].out, lead, u32(to));
    if (select(select(SCALE2, SCALE1, part == 1u), SCALE0, part == 0u)) {
        row.scale = start(p.parts[part].scale, lead, t);
    }
    if (select(select(ROTARY2, ROTARY1, part == 1u), ROTARY0, part == 0u)) {
        row.cos = start(p.parts[part].cos, lead, t);
        row.sin = start(p.parts[part].sin, lead, t);
    }
    return row;
}

fn pairs_of(part: u32) -> u32 { return (p.parts[part].sizes.z + 1u) / 2u; }

// Columns of a pair. The last one of an odd row has no partner: its second column is outside.
fn columns(part: u32, pair: u32) -> vec2<u32> {
    if (INTERLEAVED) { return vec2<u32>(2u * pair, 2u * pair + 1u); }
    return vec2<u32>(pair, pair + pairs_of(part));
}

fn turn(part: u32, row: Row, pair: u32, v: vec2<f32>) -> vec2<f32> {
    var i = vec2<u32>(pair);
    if (FULL_TABLE) { i = columns(part, pair); }
    let c = vec2<u32>(row.cos) + i * p.parts[part].cos.tail.y;
    let s = vec2<u32>(row.sin) + i * p.parts[part].sin.tail.y;
    return vec2<f32>(v.x * cos_[c.x] - v.y * sin_[s.x], v.y * cos_[c.y] + v.x * sin_[s.y]);
}

// A pair as the normalisation finds it; zero outside the row.
fn found(part: u32, row: Row, pair: u32) -> vec2<f32> {
    let i = columns(part, pair);
    let last = p.parts[part].sizes.z - 1u;
    let at = vec2<u32>(row.x) + min(i, vec2<u32>(last)) * p.parts[part].x.tail.y;
    var v = vec2<f32>(load(part, at.x), load(part, at.y));
    v.y = select(0.0, v.y, i.y <= last);
    let norm = select(select(NORM2, NORM1, part == 1u), NORM0, part == 0u);
    if (select(select(ROTARY2, ROTARY1, part == 1u), ROTARY0, part == 0u)) {
        if (norm != 1u) { if (norm != 2u) { v = turn(part, row, pair, v); } }
    }
    return v;
}

// Sums of a pair's distances from the mean, squared.
fn squares(part: u32, row: Row, pair: u32) -> f32 {
    let d = found(part, row, pair) - row.mean;
    let inside = columns(part, pair).y < p.parts[part].sizes.z;
    return d.x * d.x + select(0.0, d.y * d.y, inside);
}

fn write(part: u32, row: Row, pair: u32) {
    var v = found(part, row, pair);
    let i = columns(part, pair);
    let inside = i.y < p.parts[part].sizes.z;
    let norm = select(select(NORM2, NORM1, part == 1u), NORM0, part == 0u);
    if (norm != 0u) { v = (v - row.mean) * row.factor; }
    if (select(select(SCALE2, SCALE1, part == 1u), SCALE0, part == 0u)) {
        let last = p.parts[part].sizes.z - 1u;
        let at = vec2<u32>(row.scale) + min(i, vec2<u32>(last)) * p.parts[part].scale.tail.y;
        v *= vec2<f32>(load_scale(part, at.x), load_scale(part, at.y));
    }
    if (select(select(ROTARY2, ROTARY1, part == 1u), ROTARY0, part == 0u)) {
        if (norm == 1u) { v = turn(part, row, pair, v); }
        if (norm == 2u) { v = turn(part, row, pair, v); }
    }
    let along = p.parts[part].out.tail.y;
    store(part, row.out + i.x * along, v.x);
    if (inside) { store(part, row.out + i.y * along, v.y); }
}

fn one_pair(part: u32, i: u32) {
    let pairs = pairs_of(part);
    if (i >= p.parts[part].sizes.y * pairs) { return; }
    let row = row_of(part, i / pairs);
    if (row.inside) { write(part, row, i % pairs); }
}

// Without norms: an invocation for a pair.
@compute @workgroup_size(WG)
fn by_pair(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group < p.parts[0].rest.z) {
        one_pair(0u, group * WG + l);
        return;
    }
    if (PARTS > 1u) {
        if (group < p.parts[1].rest.z) {
            one_pair(1u, (group - p.parts[1].rest.y) * WG + l);
            return;
        }
    }
    if (PARTS > 2u) {
        if (group < p.parts[2].rest.z) { one_pair(2u, (group - p.parts[2].rest.y) * WG + l); }
    }
}

fn one_row(part: u32, index: u32) {
    if (index >= p.parts[part].sizes.y) { return; }
    var row = row_of(part, index);
    if (!row.inside) { return; }
    let pairs = pairs_of(part) + zero;
    let width = f32(p.parts[part].sizes.z);
    let norm = select(select(NORM2, NORM1, part == 1u), NORM0, part == 0u);
    if (norm != 0u) {
        if (select(norm == 4u, true, norm == 2u)) {
            var sum = 0.0;
            for (var i = 0u; i < pairs; i++) {
                let v = found(part, row, i);
                sum += v.x + v.y;
            }
            row.mean = sum / width;
        }
        var sum = 0.0;
        for (var i = 0u; i < pairs; i++) { sum += squares(part, row, i); }
        row.factor = 1.0 / sqrt(sum / width + bitcast<f32>(p.parts[part].rest.x));
    }
    for (var i = 0u; i < pairs; i++) { write(part, row, i); }
}

// An invocation for a row; no workgroup memory.
@compute @workgroup_size(WG)
fn by_row(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    zero = l >> 16u;
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group < p.parts[0].rest.z) {
        one_row(0u, group * WG + l);
        return;
    }
    if (PARTS > 1u) {
        if (group < p.parts[1].rest.z) {
            one_row(1u, (group - p.parts[1].rest.y) * WG + l);
            return;
        }
    }
    if (PARTS > 2u) {
        if (group < p.parts[2].rest.z) { one_row(2u, (group - p.parts[2].rest.y) * WG + l); }
    }
}

// Invocations to a row.
const LANES: u32 = 32u;
var<workgroup> partial: array<f32, 128>;

// The sum over the row's invocations, in all of them.
fn sum(value: f32, l: u32) -> f32 {
    workgroupBarrier();
    partial[l] = value;
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < LANES; i++) { total += partial[l / LANES * LANES + i]; }
    return total;
}

fn rows_of_group(part: u32, group: u32, l: u32) {
    let rows = p.parts[part].sizes.y;
    let index = group * (WG / LANES) + l / LANES;
    var row = row_of(part, min(index, rows - 1u));
    let pairs = pairs_of(part);
    let width = f32(p.parts[part].sizes.z);
    let norm = select(select(NORM2, NORM1, part == 1u), NORM0, part == 0u);
    if (norm != 0u) {
        if (select(norm == 4u, true, norm == 2u)) {
            var value = 0.0;
            for (var i = l % LANES; i < pairs; i += LANES) {
                let v = found(part, row, i);
                value += v.x + v.y;
            }
            row.mean = sum(value, l) / width;
        }
        var value = 0.0;
        for (var i = l % LANES; i < pairs; i += LANES) { value += squares(part, row, i); }
        row.factor = 1.0 / sqrt(sum(value, l) / width + bitcast<f32>(p.parts[part].rest.x));
    }
    if (index < rows && row.inside) {
        for (var i = l % LANES; i < pairs; i += LANES) { write(part, row, i); }
    }
}

// 32 invocations for a row.
@compute @workgroup_size(WG)
fn by_group(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
    let group = w.x + n.x * (w.y + n.y * w.z);
    if (group < p.parts[0].rest.z) {
        rows_of_group(0u, group, l);
        return;
    }
    if (PARTS > 1u) {
        if (group < p.parts[1].rest.z) {
            rows_of_group(1u, group - p.parts[1].rest.y, l);
            return;
        }
    }
    if (PARTS > 2u) {
        if (group < p.parts[2].rest.z) { rows_of_group(2u, group - p.parts[2].rest.y, l); }
    }
}
