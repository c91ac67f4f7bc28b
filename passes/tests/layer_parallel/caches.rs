//! Models with caches: a decode step equals the full forward of the same plan (METHOD §5).

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use snlp_passes::ir::{Graph, Tensor};
use snlp_passes::plan::{KvCache, Parallel, Plan, Segment};

use crate::cases;
use crate::plans::{Prepared, refusal};
use crate::reference::forward;
use crate::run;
use crate::spec::{Spec, fit, segments, specs};

type Tensors = BTreeMap<String, Tensor>;

/// Causal models that keep keys and values.
fn cached(max_layers: usize) -> impl Strategy<Value = Spec> {
    specs(max_layers).prop_map(|spec| Spec {
        cached: true,
        fused_attention: true,
        causal: true,
        mask: false,
        seq: spec.seq.max(3),
        ..spec
    })
}

/// Evaluates a graph; outputs by name.
fn evaluate(graph: &Graph, inputs: &Tensors) -> Tensors {
    let by_id = graph
        .inputs()
        .iter()
        .map(|v| (*v, inputs[graph.value(*v).name.as_deref().expect("inputs have names")].clone()))
        .collect();
    let results = snlp_passes::eval::eval_graph(graph, &by_id).expect("the graph evaluates");
    graph.outputs.iter().map(|o| o.name.clone()).zip(results).collect()
}

/// Positions `from..to` of a tensor `[b, t, ..]`.
fn positions(tensor: &Tensor, from: usize, to: usize) -> Tensor {
    let shape = tensor.shape();
    let inner: usize = shape[2..].iter().product();
    let rows = (0..shape[0]).flat_map(|b| (from..to).map(move |t| b * shape[1] + t));
    let picked: Vec<usize> = rows.flat_map(|r| r * inner..(r + 1) * inner).collect();
    let new_shape = [&[shape[0], to - from], &shape[2..]].concat();
    if let Some(ints) = tensor.to_i64() {
        return Tensor::from_vec(new_shape, picked.iter().map(|i| ints[*i]).collect()).expect("fits");
    }
    let data = tensor.to_f64();
    let data: Vec<f64> = picked.iter().map(|i| data[*i]).collect();
    crate::build::tensor(tensor.dtype(), &new_shape, &data)
}

/// The inputs of a graph at positions `from..to`, with these caches (empty ones where there are none).
fn feed(graph: &Graph, all: &Tensors, (from, to): (usize, usize), caches: &Tensors) -> Tensors {
    let names = graph.inputs().iter().filter_map(|v| graph.value(*v).name.clone());
    names
        .map(|name| {
            let tensor = match (caches.get(&name), name.rsplit_once(".iter")) {
                (Some(cache), _) => cache.clone(),
                (None, Some((base, _))) => all[base].clone(),
                (None, None) if name.starts_with("past.") => all[&name].clone(),
                (None, None) => positions(&all[&name], from, to),
            };
            (name, tensor)
        })
        .collect()
}

/// What a call leaves for the next one.
fn kept(outputs: &Tensors) -> Tensors {
    let rename = |name: &String| name.strip_prefix("present.").map(|rest| format!("past.{rest}"));
    outputs.iter().filter_map(|(name, t)| Some((rename(name)?, t.clone()))).collect()
}

/// The states and results at the last position, after a prefill of all others and one step.
fn decoded(graph: &Graph, all: &Tensors, seq: usize) -> BTreeMap<String, Vec<f64>> {
    let mut caches = Tensors::new();
    let mut last = Tensors::new();
    for (from, to) in [(0, seq - 2), (seq - 2, seq - 1), (seq - 1, seq)] {
        last = evaluate(graph, &feed(graph, all, (from, to), &caches));
        caches = kept(&last);
    }
    results(&last, |t| t.clone())
}

fn results(outputs: &Tensors, at: impl Fn(&Tensor) -> Tensor) -> BTreeMap<String, Vec<f64>> {
    let is_result = |name: &&String| !name.starts_with("present.");
    outputs.keys().filter(is_result).map(|name| (name.clone(), at(&outputs[name]).to_f64())).collect()
}

/// The same at the last position of a forward over all positions.
fn whole(graph: &Graph, all: &Tensors, seq: usize) -> BTreeMap<String, Vec<f64>> {
    let outputs = evaluate(graph, &feed(graph, all, (0, seq), &Tensors::new()));
    results(&outputs, |t| positions(t, seq - 1, seq))
}

fn with_kv(plan: &[Segment], kv: KvCache) -> Vec<Segment> {
    let set = |s: &Segment| match s {
        Segment::Parallel(p) => Segment::Parallel(Parallel { kv: Some(kv), ..*p }),
        sequential => *sequential,
    };
    plan.iter().map(set).collect()
}

#[test]
fn a_decode_step_equals_the_full_forward_of_the_plan() {
    cases(96, &(cached(6), segments(3)), |(spec, raw)| {
        let plan = with_kv(&fit(&raw, spec.layers.len()), KvCache::Exact);
        if refusal(&spec, &plan).is_some() {
            return Ok(());
        }
        let prepared = Prepared::new(&spec);
        let graph = prepared.rewritten(&plan).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let full = whole(&graph, &prepared.inputs, spec.seq);
        let what = Plan { segments: plan.clone() }.to_string();
        prepared.check(&what, &full, &decoded(&graph, &prepared.inputs, spec.seq))?;
        // With empty caches the forward is that of a model without any.
        let expected = forward(&prepared.model, &plan);
        let all = feed(&graph, &prepared.inputs, (0, spec.seq), &Tensors::new());
        let mut actual = run(&graph, &all);
        actual.retain(|name, _| !name.starts_with("present."));
        prepared.check(&what, &expected, &actual)
    });
}

/// One cache per layer, as the original has: the same inputs and outputs, and exact where every state is.
#[test]
fn a_converted_model_takes_the_place_of_its_original() {
    cases(48, &(cached(5), any::<bool>()), |(spec, iterated)| {
        let prepared = Prepared::new(&spec);
        let units = spec.layers.len();
        let mut p = Parallel { kv: Some(KvCache::Shared), ..Parallel::new(units, 1) };
        p.iterations = if iterated { units } else { 1 };
        let graph =
            prepared.rewritten(&[Segment::Parallel(p)]).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let signature = |g: &Graph| -> Vec<String> {
            let typed = |v, name: &str| format!("{name} {}", g.ty(v).expect("typed"));
            let inputs = g.inputs().iter().map(|v| typed(*v, g.value(*v).name.as_deref().expect("named")));
            inputs.chain(g.outputs.iter().map(|o| typed(o.value, &o.name))).collect()
        };
        prop_assert_eq!(signature(&graph), signature(&prepared.graph));
        let reference = if iterated { &prepared.graph } else { &graph };
        let full = whole(reference, &prepared.inputs, spec.seq);
        prepared.check("decoded", &full, &decoded(&graph, &prepared.inputs, spec.seq))
    });
}

/// `kv=shared` is an approximation: it must not agree by accident.
#[test]
fn shared_caches_differ_from_the_full_forward() {
    let spec = Spec { cached: true, seq: 4, ..Spec::plain(4) };
    let prepared = Prepared::new(&spec);
    let outcome = |kv| {
        let p = Parallel { kv: Some(kv), iterations: 2, ..Parallel::new(4, 1) };
        let graph = prepared.rewritten(&[Segment::Parallel(p)]).expect("applies");
        let full = whole(&graph, &prepared.inputs, spec.seq);
        prepared.check("decoded", &full, &decoded(&graph, &prepared.inputs, spec.seq))
    };
    outcome(KvCache::Exact).expect("exact caches agree");
    outcome(KvCache::Shared).expect_err("shared caches cannot");
}

#[test]
fn caches_are_found_and_paired() {
    let prepared = Prepared::new(&Spec { cached: true, ..Spec::plain(3) });
    let graph = &prepared.graph;
    let name = |v| graph.value(v).name.clone().expect("named");
    let output = |v| graph.outputs.iter().find(|o| o.value == v).expect("an output").name.clone();
    let found: Vec<_> =
        prepared.chain.caches.iter().map(|c| (c.layer, name(c.input), output(c.output))).collect();
    let expected: Vec<_> = (0..3)
        .flat_map(|l| {
            ["value", "key"].map(|what| (l, format!("past.{l}.{what}"), format!("present.{l}.{what}")))
        })
        .collect();
    assert_eq!(found, expected);
    assert!(Prepared::new(&Spec::plain(3)).chain.caches.is_empty());
}
