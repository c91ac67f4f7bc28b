//! Quantised models, end to end: what ONNX Runtime computed, plans, and the bytes that reach file and device.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snlp::compare::{Tolerance, compare};
use snlp::npz::read_npz;
use snlp::onnx::{Model, WriteOptions};
use snlp::passes::analysis::find_chain;
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{DType, Graph, Tensor, ValueId};
use snlp::passes::plan::Plan;
use snlp::passes::rewrite::{Dialect, bind, bindings_from, clean_up, lower, parallelize};
use snlp_runtime::schedule::Options;
use snlp_runtime::{AdapterChoice, Gpu, Session};

const MODELS: [&str; 3] = ["gpt2-tiny-int8", "gpt2-tiny-qdq", "llama-tiny-int4"];

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(model)
}

fn read(model: &str) -> Model {
    let mut model = Model::read(folder(model).join("model.onnx")).unwrap();
    clean_up(&mut model.graph).unwrap();
    model
}

fn evaluated(graph: &Graph, inputs: &[(String, Tensor)]) -> Tensor {
    let value = |v: &ValueId| {
        let (_, tensor) = inputs.iter().find(|(n, _)| Some(n) == graph.value(*v).name.as_ref()).unwrap();
        (*v, tensor.clone())
    };
    let given: BTreeMap<ValueId, Tensor> = graph.inputs().iter().map(value).collect();
    eval_graph(graph, &given).unwrap().remove(0)
}

fn rewritten(graph: &Graph, plan: &str) -> Graph {
    let chain = find_chain(graph).unwrap();
    let plan: Plan = plan.parse().unwrap();
    let mut graph = parallelize(graph, &chain, &plan.place(chain.layers.len()).unwrap()).unwrap().graph;
    clean_up(&mut graph).unwrap();
    graph
}

#[track_caller]
fn agree(actual: &Tensor, expected: &Tensor, tolerance: Tolerance, what: &str) {
    let found = compare(actual, expected, tolerance).unwrap();
    assert!(found.ok(), "{what}: {found:?}");
}

/// Bytes of narrow integers among the constants that nodes read, as they are stored.
fn quantised_bytes(graph: &Graph) -> usize {
    let read: BTreeSet<ValueId> = graph.nodes().flat_map(|(_, n)| n.operands()).collect();
    let narrow = |t: &&Tensor| t.dtype() != DType::Bool && t.dtype().size() == 1;
    read.into_iter().filter_map(|v| graph.tensor(v)).filter(narrow).map(Tensor::byte_len).sum()
}

#[test]
fn evaluator_and_device_agree_with_onnx_runtime() {
    let gpu = gpu();
    for model in MODELS {
        let graph = read(model).graph;
        let inputs = read_npz(&folder(model).join("inputs.npz")).unwrap();
        let (_, expected) = read_npz(&folder(model).join("expected.npz")).unwrap().remove(0);
        agree(&evaluated(&graph, &inputs), &expected, Tolerance::Close, model);
        if let Some(gpu) = &gpu {
            let session = Session::new(gpu, graph, Options::default()).unwrap();
            agree(&session.run(&inputs).unwrap()[0].1, &expected, Tolerance::Loose, model);
        }
    }
}

#[test]
fn layers_evaluated_together_keep_their_integers() {
    let gpu = gpu();
    for model in MODELS {
        let source = read(model);
        let inputs = read_npz(&folder(model).join("inputs.npz")).unwrap();
        let sequential = evaluated(&source.graph, &inputs);
        let chain = find_chain(&source.graph).unwrap();
        assert_eq!(
            (chain.layers.len(), chain.classes.len(), chain.surrogate()),
            (4, 1, "identity"),
            "{model}"
        );
        // All units at once, and two layers fused.
        for (plan, same) in [("4xF1[k=4]", true), ("2xF2", false)] {
            let graph = rewritten(&source.graph, plan);
            let own = evaluated(&graph, &inputs);
            if same {
                agree(&own, &sequential, Tolerance::Close, &format!("{model} {plan}"));
            }
            let (before, held) = (quantised_bytes(&source.graph), quantised_bytes(&graph));
            assert!(
                before > 20_000 && held.abs_diff(before) < 600,
                "{model} {plan}: {held} of {before} bytes"
            );

            let written = Model { graph: graph.clone(), info: source.info.clone() };
            let bytes = written.encode(&WriteOptions::default()).unwrap();
            let mut again = Model::decode(bytes, &folder(model)).unwrap().graph;
            let stored = quantised_bytes(&again);
            assert!(stored.abs_diff(held) < 600, "{model} {plan} written: {stored} of {held} bytes");
            clean_up(&mut again).unwrap();
            agree(&evaluated(&again, &inputs), &own, Tolerance::Close, &format!("{model} {plan} written"));

            if let Some(gpu) = &gpu {
                let session = Session::new(gpu, graph, Options::default()).unwrap();
                let out = session.run(&inputs).unwrap().remove(0).1;
                agree(&out, &own, Tolerance::Loose, &format!("{model} {plan} on the device"));
            }
        }
    }
}

/// Graphs of plain operators, as the CPU backend gets them, compute the same.
#[test]
fn plain_operators_compute_the_same() {
    for model in MODELS {
        let graph = read(model).graph;
        let inputs = read_npz(&folder(model).join("inputs.npz")).unwrap();
        let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
        let mut plain = bind(&graph, &bindings_from(&graph, &shapes).unwrap()).unwrap();
        lower(&mut plain, &Dialect::basic()).unwrap();
        agree(&evaluated(&plain, &inputs), &evaluated(&graph, &inputs), Tolerance::Close, model);
    }
}

fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(&AdapterChoice::any()) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but {error}");
            eprintln!("SKIPPED: quantised models on a device: {error}");
            None
        }
    }
}
