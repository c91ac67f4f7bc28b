//! Chain detection and the layer-parallel rewrite against a reference that shares no code with them.
//!
//! ```text
//!   Spec ──▶ Model (weights) ──▶ build:     ir::Graph ─▶ clean_up ─▶ find_chain ─▶ parallelize ─▶ eval_graph
//!                            └─▶ reference: METHOD's recurrences as loops over Vec<f64>       ≟
//! ```
//!
//! `spec` draws models of many architectures, `plans` holds the properties of the rewrite, `chain` those
//! of the detection, `caches` those of models that keep keys and values, `correction` those of the Newton corrections, `sharing` that weights are moved and
//! not copied.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod build;
mod caches;
mod chain;
mod correction;
mod hyper;
mod measured;
mod plans;
mod reference;
mod sharing;
mod spec;

use std::collections::BTreeMap;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{Graph, Tensor, ValueId, dump};

/// Runs a property on cases that are the same in every run, unless `PROPTEST_CASES` or
/// `PROPTEST_RNG_SEED` ask for others.
fn cases<S: Strategy>(count: u32, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = count;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(0);
    }
    if let Err(e) = TestRunner::new(config).run(strategy, test) {
        panic!("{e}");
    }
}

/// A graph as text.
fn text(graph: &Graph) -> String {
    dump(graph).expect("has an order")
}

/// Evaluates a graph on inputs given by name; every output as f64, by name.
fn run(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<f64>> {
    let given: BTreeMap<ValueId, Tensor> = graph
        .inputs()
        .iter()
        .map(|v| (*v, inputs[graph.value(*v).name.as_deref().expect("inputs have names")].clone()))
        .collect();
    let results = eval_graph(graph, &given).expect("the graph evaluates");
    graph.outputs.iter().zip(results).map(|(o, t)| (o.name.clone(), t.to_f64())).collect()
}

/// Whether two results agree to `tolerance` of the scale of `expected`; if not, the first outlier.
fn agree(
    what: &str,
    expected: &BTreeMap<String, Vec<f64>>,
    actual: &BTreeMap<String, Vec<f64>>,
    tolerance: f64,
) -> Result<(), String> {
    if !expected.keys().eq(actual.keys()) {
        return Err(format!("{what}: outputs {:?}, expected {:?}", actual.keys(), expected.keys()));
    }
    for (name, want) in expected {
        let got = &actual[name];
        if want.len() != got.len() {
            return Err(format!("{what}: '{name}' has {} elements, expected {}", got.len(), want.len()));
        }
        let scale = want.iter().fold(1f64, |m, x| m.max(x.abs()));
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            // A NaN fails too.
            let distance = (w - g).abs();
            if distance.is_nan() || distance > tolerance * scale {
                return Err(format!("{what}: '{name}'[{i}] is {g}, expected {w} (scale {scale:.3})"));
            }
        }
    }
    Ok(())
}
