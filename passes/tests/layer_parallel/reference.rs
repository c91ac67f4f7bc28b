//! METHOD's formulas as loops over vectors: no graph, no matrix of corrections, no prefix sum.

use std::collections::BTreeMap;

use snlp_passes::plan::{Init, Parallel, Segment, SurrogateChoice, TapRule};

use crate::build::order;
use crate::spec::{
    Activation, Blocks, EPSILON, Matrix, Mlp, Model, Norm, NormWeights, Placement, Prefix, Side, calibrated,
};

/// A state, `[batch, seq, hidden]`.
type State = Vec<f64>;

/// The outputs of the model under a plan that covers its last layers, by name.
pub fn forward(model: &Model, plan: &[Segment]) -> BTreeMap<String, Vec<f64>> {
    let n = model.spec.layers.len();
    let covered: usize = plan.iter().map(Segment::layers).sum();
    let x0 = chain_input(model);
    // `states[t]` is what is read where the original reads the state after layer t.
    let mut states: Vec<State> = vec![x0; n + 1];
    let mut first = 0;
    for segment in std::iter::once(&Segment::Sequential(n - covered)).chain(plan) {
        match segment {
            Segment::Sequential(count) => {
                for l in first..first + count {
                    states[l + 1] = unit(model, &[l], &states[l], false, 1).0;
                }
            }
            Segment::Parallel(p) => solve(model, p, first, &mut states),
        }
        first += segment.layers();
    }
    let mut outputs = BTreeMap::new();
    let mut end = states[n].clone();
    for (i, tap) in model.spec.taps.iter().enumerate() {
        let state = &states[tap.after_layer];
        match tap.factor {
            None => drop(outputs.insert(format!("hidden.{i}"), state.clone())),
            Some(c) => end.iter_mut().zip(state).for_each(|(e, s)| *e -= c * s),
        }
    }
    outputs.insert("y".into(), normalised(model, &end, &model.final_norm));
    outputs
}

/// The largest state of the sequential forward.
pub fn largest_state(model: &Model) -> f64 {
    let mut h = chain_input(model);
    let mut largest: f64 = 0.0;
    for l in 0..model.spec.layers.len() {
        h = unit(model, &[l], &h, false, 1).0;
        largest = h.iter().fold(largest, |m, x| m.max(x.abs()));
    }
    largest
}

fn chain_input(model: &Model) -> State {
    match model.spec.prefix {
        Prefix::None => model.x.clone(),
        Prefix::Norm => normalised(model, &model.x, &model.prefix_norm),
        Prefix::Scale => model.x.iter().map(|x| 0.5 * x).collect(),
        Prefix::Embedding => rows(&model.embedding, &model.ids),
    }
}

/// METHOD §3: what the calibration says of the state behind a layer.
fn predicted(model: &Model, layer: usize) -> State {
    let d = model.spec.hidden;
    let [bias, down, up] = calibrated(&model.spec, layer);
    let rows = chain_input(model);
    rows.chunks(d)
        .flat_map(|x| {
            let inner = [0, 1].map(|r| (0..d).map(|i| x[i] * down[2 * i + r]).sum::<f64>());
            (0..d).map(|i| bias[i] + inner[0] * up[i] + inner[1] * up[d + i]).collect::<Vec<_>>()
        })
        .collect()
}

/// METHOD §1 to §4: a parallel segment whose input is `states[first]`.
fn solve(model: &Model, p: &Parallel, first: usize, states: &mut [State]) {
    let h = states[first].clone();
    let unit_layers = |j: usize| -> Vec<usize> { (first + j * p.fused..first + (j + 1) * p.fused).collect() };
    // s[0] = h_init is exact, s[j] the estimate of the output of unit j.
    let mut s = vec![h.clone()];
    for j in 0..p.units {
        s.push(match p.init {
            // What the token before left is for steps alone.
            Init::H0 | Init::Warm => h.clone(),
            Init::BatchForward => unit(model, &unit_layers(j), &h, p.avg, p.fused).0,
            Init::Preheat => predicted(model, first + (j + 1) * p.fused - 1),
        });
    }
    for k in 1..=p.iterations {
        let f: Vec<State> =
            (0..p.units).map(|j| unit(model, &unit_layers(j), &s[j], p.avg, p.fused).0).collect();
        let mut corrected = vec![h.clone()];
        for j in 1..=p.units {
            let moved: State = corrected[j - 1].iter().zip(&s[j - 1]).map(|(new, old)| new - old).collect();
            let change: State = match p.surrogate {
                SurrogateChoice::Exact => along(model, p, &unit_layers(j - 1), &s[j - 1], &moved),
                _ => moved.iter().map(|m| surrogate(model, p, &unit_layers(j - 1)) * m).collect(),
            };
            let sum = f[j - 1].iter().zip(change).map(|(f, c)| f + (1.0 - p.elk) * c);
            corrected.push(sum.collect());
        }
        if k == p.iterations {
            for j in 0..p.units {
                for place in 1..=p.fused {
                    let mut state = corrected[j + 1].clone();
                    if place < p.fused && p.tap == TapRule::Partial {
                        let partial = unit(model, &unit_layers(j), &s[j], p.avg, place).1;
                        for (i, x) in state.iter_mut().enumerate() {
                            *x += partial[i] - f[j][i];
                        }
                    }
                    states[first + j * p.fused + place] = state;
                }
            }
        }
        s = corrected;
    }
}

/// The Jacobian of a unit times a direction, by central differences.
fn along(model: &Model, p: &Parallel, layers: &[usize], s: &State, direction: &State) -> State {
    let length = direction.iter().fold(0.0, |m: f64, x| m.max(x.abs())).max(1e-12);
    let step = 1e-5 / length;
    let at = |sign: f64| {
        let moved: State = s.iter().zip(direction).map(|(s, d)| s + sign * step * d).collect();
        unit(model, layers, &moved, p.avg, p.fused).0
    };
    at(1.0).iter().zip(at(-1.0)).map(|(a, b)| (a - b) / (2.0 * step)).collect()
}

/// The factor that stands for the Jacobian of a unit.
fn surrogate(model: &Model, p: &Parallel, layers: &[usize]) -> f64 {
    match p.surrogate {
        SurrogateChoice::Jacobi => 0.0,
        SurrogateChoice::Transfer => {
            mean(layers.iter().map(|l| model.spec.layers[*l].map.map_or(1.0, |m| m.0)))
        }
        _ => 1.0,
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// METHOD §2: fused layers on one state; the output, and what it would be if only the first `keep`
/// layers' branches counted (while all of them see the whole unit's states).
fn unit(model: &Model, layers: &[usize], h: &[f64], avg: bool, keep: usize) -> (State, State) {
    let mut x = h.to_vec();
    let mut partial = h.to_vec();
    let maps: Vec<(f64, f64)> = layers.iter().filter_map(|l| model.spec.layers[*l].map).collect();
    if !maps.is_empty() {
        let x0 = chain_input(model);
        let lambda = mean(maps.iter().map(|m| m.0));
        let mu = mean(maps.iter().map(|m| m.1));
        for i in 0..x.len() {
            x[i] = lambda * x[i] + mu * x0[i];
            partial[i] = lambda * partial[i] + mu * x0[i];
        }
    }
    let share = if avg { 1.0 / layers.len() as f64 } else { 1.0 };
    let entry = x.clone();
    for block in 0..model.spec.layers[layers[0]].blocks.joins() {
        let state = x.clone();
        for (i, l) in layers.iter().enumerate() {
            let g = branch(model, *l, block, &entry, &state);
            for (at, y) in g.iter().enumerate() {
                x[at] += share * y;
                if i < keep {
                    partial[at] += share * y;
                }
            }
        }
        if model.spec.placement == Placement::Post {
            let w = &model.layers[layers[0]];
            x = normalised(model, &x, if block == 0 { &w.norm } else { &w.mlps[block - 1].norm });
        }
    }
    (x, partial)
}

/// What sub-block `block` of a layer adds, given the layer's state after its map and its state now.
fn branch(model: &Model, l: usize, block: usize, entry: &[f64], state: &[f64]) -> State {
    let mlps = &model.layers[l].mlps;
    match (model.spec.layers[l].blocks, block) {
        (Blocks::ParallelSum, _) => {
            let mut sum = attention(model, l, entry);
            sum.iter_mut().zip(parallel_mlp(model, l, entry)).for_each(|(a, b)| *a += b);
            sum
        }
        (Blocks::ParallelNested, 0) | (Blocks::ParallelNestedMlpFirst, 1) => attention(model, l, entry),
        (Blocks::ParallelNested | Blocks::ParallelNestedMlpFirst, _) => parallel_mlp(model, l, entry),
        (_, 0) => attention(model, l, state),
        (_, i) => mlp(model, &mlps[i - 1], &mlps[i - 1].norm, state),
    }
}

fn parallel_mlp(model: &Model, l: usize, x: &[f64]) -> State {
    let w = &model.layers[l];
    let shared = model.spec.swapped(order::SHARED_NORM);
    mlp(model, &w.mlps[0], if shared { &w.norm } else { &w.mlps[0].norm }, x)
}

fn branch_norm(model: &Model, x: &[f64], w: &NormWeights) -> State {
    match model.spec.placement {
        Placement::Pre => normalised(model, x, w),
        Placement::Post => x.to_vec(),
    }
}

fn normalised(model: &Model, x: &[f64], w: &NormWeights) -> State {
    let n = w.scale.len();
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(n) {
        let centre = match model.spec.norm {
            Norm::Rms => 0.0,
            Norm::Layer => mean(row.iter().copied()),
        };
        let variance = mean(row.iter().map(|x| (x - centre) * (x - centre)));
        for (i, x) in row.iter().enumerate() {
            let bias = if model.spec.norm == Norm::Layer { w.bias[i] } else { 0.0 };
            out.push((x - centre) / (variance + EPSILON).sqrt() * w.scale[i] + bias);
        }
    }
    out
}

fn product(x: &[f64], w: &Matrix) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len() / w.rows * w.cols);
    for row in x.chunks(w.rows) {
        for c in 0..w.cols {
            out.push((0..w.rows).map(|r| row[r] * w.data[r * w.cols + c]).sum());
        }
    }
    out
}

fn rows(table: &Matrix, ids: &[usize]) -> Vec<f64> {
    ids.iter().flat_map(|i| table.data[i * table.cols..][..table.cols].to_vec()).collect()
}

fn add_bias(model: &Model, x: &mut [f64], bias: &[f64]) {
    if model.spec.bias {
        x.iter_mut().enumerate().for_each(|(i, x)| *x += bias[i % bias.len()]);
    }
}

fn mlp(model: &Model, w: &Mlp, norm: &NormWeights, x: &[f64]) -> State {
    let mut hidden = product(&branch_norm(model, x, norm), &w.up);
    add_bias(model, &mut hidden, &w.up_bias);
    for x in &mut hidden {
        *x = match model.spec.activation {
            Activation::Relu => x.max(0.0),
            Activation::GeluErf => 0.5 * *x * (1.0 + erf(*x / std::f64::consts::SQRT_2)),
        };
    }
    let mut out = product(&hidden, &w.down);
    add_bias(model, &mut out, &w.down_bias);
    out
}

/// The Maclaurin series, which converges to rounding for the small arguments here.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn attention(model: &Model, l: usize, x: &[f64]) -> State {
    let spec = &model.spec;
    let w = &model.layers[l];
    let normed = branch_norm(model, x, &w.norm);
    let (q, k) = (product(&normed, &w.q), product(&normed, &w.k));
    let mut v = product(&normed, &w.v);
    let width = w.v.cols;
    match spec.layers[l].side {
        Side::None | Side::SharedGate => {}
        Side::SharedValue => v.iter_mut().zip(&model.shared_side).for_each(|(v, s)| *v += s),
        Side::OwnValue => v.iter_mut().zip(&w.own_side).for_each(|(v, s)| *v += s),
        Side::GatedTable => {
            let gate = product(&normed, &w.gate);
            let side = rows(&w.table, &model.ids);
            for (i, v) in v.iter_mut().enumerate() {
                *v += side[i] / (1.0 + (-gate[i / width]).exp());
            }
        }
    }
    let (d, head) = (spec.hidden, spec.hidden / spec.heads);
    let mut out = vec![0.0; spec.batch * spec.seq * d];
    for b in 0..spec.batch {
        for h in 0..spec.heads {
            let kv_head = h / (spec.heads / spec.kv_heads);
            for t in 0..spec.seq {
                let query = &q[(b * spec.seq + t) * d + h * head..][..head];
                let last = if spec.causal { t } else { spec.seq - 1 };
                let mut weights = Vec::new();
                for s in 0..=last {
                    let key = &k[(b * spec.seq + s) * width + kv_head * head..][..head];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    let mask = if spec.mask { model.mask[(b * spec.seq + t) * spec.seq + s] } else { 0.0 };
                    weights.push((dot / (head as f64).sqrt() + mask).exp());
                }
                let total: f64 = weights.iter().sum();
                for (s, weight) in weights.iter().enumerate() {
                    let value = &v[(b * spec.seq + s) * width + kv_head * head..][..head];
                    for (i, value) in value.iter().enumerate() {
                        out[(b * spec.seq + t) * d + h * head + i] += weight / total * value;
                    }
                }
            }
        }
    }
    if spec.layers[l].side == Side::SharedGate {
        out.iter_mut().zip(&model.shared_gate).for_each(|(o, g)| *o *= g);
    }
    let mut out = product(&out, &w.o);
    add_bias(model, &mut out, &w.o_bias);
    out
}
