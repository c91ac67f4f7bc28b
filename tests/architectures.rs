//! Small exports of many architectures: layers and style as their makers say, answers as ONNX Runtime's, on the
//! evaluator and on a device, and what plans make of them.
//!
//! The folders of `fixtures/zoo` are made by `fixtures/make_zoo.py`, those of `fixtures/hyper`, all of them
//! hyper-connections, by `fixtures/make_hyper.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use snlp::compare::{Tolerance, compare};
use snlp::npz::read_npz;
use snlp::source::{Source, parse_plan};
use snlp_passes::analysis::{Kind, Transfer, find_chain, other_stacks, unreached};
use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{Graph, Op, Tensor, Unary};
use snlp_runtime::schedule::Options;
use snlp_runtime::{AdapterChoice, Gpu, Session};

/// Plans that fuse, and the part of the reason with which they are refused, if they are.
const FUSED: &[(&str, &str, Option<&str>)] = &[
    ("albert-ts14", "1xF2", Some("a normalisation lies on the skip path")),
    ("falcon_7b-ts17", "2xF2", None),
    ("gemma3-dyn18", "2xF2", None),
    ("hc2-dynamic-merged-dyn18", "2xF2", None),
    ("hc2-dynamic-sums-dyn18", "2xF2[k=2]", None),
    ("hc2-static-rows-ts17", "2xF2[init=batch_fwd]", None),
    ("hc4-dynamic-merged-ts17", "1xF4", None),
    ("hc4-dynamic-rows-ts17", "2xF2", None),
    ("hc4-dynamic-sums-ts17", "2xF2[k=2]", None),
    ("hc4-static-merged-ts17", "2xF2", None),
    ("hc4-static-rows-dyn18", "1xF2", None),
    ("hc2-dynamic-turned-dyn18", "2xF2", None),
    ("hc4-static-turned-ts17", "1xF4", None),
    ("hc8-dynamic-rows-dyn18", "2xF2[elk=0.2]", None),
    ("hc8-static-sums-ts17", "2xF2", None),
    ("modernbert-dyn18", "2xF2", None),
    ("opt-dyn18", "2xF2", None),
    ("t5_encoder-dyn18", "1xF4", None),
    ("mixtral_tiny-ts17", "1xF3", None),
    ("t5_tiny-ts17", "1xF3", None),
    ("whisper_encoder-dyn18", "2xF2[k=2]", None),
    ("xlm_tiny-ts17", "1xF2", Some("a factor per token lies on the skip path")),
];

/// Folders whose layers are evaluated on a device too, fused.
const ON_DEVICE: &[&str] = &[
    "gemma3-dyn18",
    "hc2-dynamic-sums-dyn18",
    "hc4-dynamic-merged-ts17",
    "hc8-static-sums-ts17",
    "mixtral_tiny-ts17",
    "opt-dyn18",
    "t5_tiny-ts17",
];

fn zoo() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut folders: Vec<PathBuf> = ["zoo", "hyper"]
        .into_iter()
        .flat_map(|kind| std::fs::read_dir(root.join(kind)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("model.onnx").is_file())
        .collect();
    folders.sort();
    assert!(folders.len() >= FUSED.len(), "{} models in {}", folders.len(), root.display());
    folders
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

fn meta(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("meta.json")).unwrap()).unwrap()
}

fn source(folder: &Path) -> Source {
    Source::read(&folder.join("model.onnx")).unwrap()
}

/// The graph that a plan makes of the model.
fn planned(source: &Source, plan: &str) -> Result<Graph, String> {
    let rewritten = source.rewrite(&source.place(&parse_plan(plan).unwrap()).unwrap());
    rewritten.map(|r| r.graph).map_err(|e| format!("{e:?}"))
}

type Named = BTreeMap<String, Tensor>;

/// The inputs and expected outputs of each case.
fn cases(folder: &Path) -> Vec<(Named, Named)> {
    let file = |case: &Value, key: &str| -> Named {
        read_npz(&folder.join(case[key].as_str().unwrap())).unwrap().into_iter().collect()
    };
    let meta = meta(folder);
    let cases = meta["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    cases.iter().map(|case| (file(case, "inputs"), file(case, "expected"))).collect()
}

fn evaluated(graph: &Graph, inputs: &Named) -> Named {
    let name = |v| graph.value(v).name.clone().unwrap();
    let given = graph.inputs().iter().map(|v| (*v, inputs[&name(*v)].clone())).collect();
    let results = eval_graph(graph, &given).unwrap();
    graph.outputs.iter().map(|o| o.name.clone()).zip(results).collect()
}

fn agree(what: &str, actual: &Named, expected: &Named) {
    for (name, want) in expected {
        let found = compare(&actual[name], want, Tolerance::Close).unwrap();
        assert!(found.ok(), "{what}: '{name}': {found:?}");
    }
}

fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(&AdapterChoice::any()) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but {error}");
            eprintln!("SKIPPED: architectures on a device: {error}");
            None
        }
    }
}

fn run(gpu: &Arc<Gpu>, graph: Graph, inputs: &Named) -> Named {
    let given: Vec<_> = inputs.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    Session::new(gpu, graph, Options::default()).unwrap().run(&given).unwrap().into_iter().collect()
}

#[test]
fn layers_and_styles_are_what_the_makers_say() {
    for folder in zoo() {
        let (name, meta, source) = (name_of(&folder), meta(&folder), source(&folder));
        let chain = source.chain().unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(Some(chain.layers.len() as u64), meta["n_layers"].as_u64(), "{name}");
        assert_eq!(Some(chain.kind.to_string().as_str()), meta["kind"].as_str(), "{name}");
    }
}

#[test]
fn streams_are_counted_and_their_mixing_told() {
    let mut found = 0;
    for folder in zoo() {
        let (name, meta, source) = (name_of(&folder), meta(&folder), source(&folder));
        let Some(streams) = meta["streams"].as_u64() else { continue };
        let chain = source.chain().unwrap();
        assert_eq!(chain.streams.count as u64, streams, "{name}");
        assert_eq!(Some(chain.surrogate()), meta["surrogate"].as_str(), "{name}");
        for layer in &chain.layers {
            let of_tokens = match layer.transfer(&source.graph) {
                Transfer::TokenMixing => true,
                Transfer::Mixing(m) => {
                    assert_eq!(m.size() as u64, streams, "{name}");
                    false
                }
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(of_tokens, meta["mixing"] == "dynamic", "{name}");
        }
        found += 1;
    }
    assert!(found >= 10, "{found} models with streams");
}

#[test]
fn the_encoder_beside_a_decoder_is_told() {
    for (name, encoder) in [("t5_tiny-ts17", Some((2, Kind::PreNorm))), ("opt-dyn18", None)] {
        let folder = zoo().into_iter().find(|f| name_of(f) == name).unwrap();
        let source = source(&folder);
        let others = other_stacks(&source.graph, source.chain().unwrap());
        let found: Vec<_> = others.iter().map(|o| (o.layers, o.kind)).collect();
        assert_eq!(found, Vec::from_iter(encoder), "{name}");
    }
}

/// Nothing of these models is left out, and where something is it is told.
#[test]
fn attentions_in_no_layer_are_told() {
    for folder in zoo() {
        let (name, source) = (name_of(&folder), source(&folder));
        let chain = source.chain().unwrap();
        let left = unreached(&source.graph, chain).map(|u| u.attentions).unwrap_or(0);
        // The encoder beside the decoder is told as a stack.
        assert_eq!(left > 0, name == "t5_tiny-ts17", "{name}: {left}");
    }
    // A chain that ends after its second layer, as where the state goes through what is no skip path.
    let folder = zoo().into_iter().find(|f| name_of(f) == "opt-dyn18").unwrap();
    let mut graph = source(&folder).graph;
    let cut = find_chain(&graph).unwrap().layers[1].output;
    let state = graph.ty(cut).unwrap().clone();
    let start = graph.add(Op::Unary(Unary::Tanh), &[cut]).unwrap();
    assert_eq!(graph.ty(start), Some(&state));
    let tanh = graph.producer(start).unwrap();
    graph.replace_uses(cut, start).unwrap();
    graph.set_input(tanh, 0, cut);
    let chain = find_chain(&graph).unwrap();
    let told = unreached(&graph, &chain).unwrap();
    assert_eq!((chain.layers.len(), told.attentions), (2, 2));
    assert!(told.readers.iter().all(|r| r.contains("Tanh")), "{told:?}");
}

#[test]
fn the_evaluator_gives_the_expected_answers_with_as_many_iterations_as_units() {
    for folder in zoo() {
        let (name, source) = (name_of(&folder), source(&folder));
        let layers = source.chain().unwrap().layers.len();
        let exact = planned(&source, &format!("{layers}xF1[k={layers}]")).unwrap();
        for (inputs, expected) in cases(&folder) {
            agree(&name, &evaluated(&source.graph, &inputs), &expected);
            agree(&format!("{name}, exact plan"), &evaluated(&exact, &inputs), &expected);
        }
    }
}

#[test]
fn layers_fuse_or_say_why_not() {
    for (name, plan, reason) in FUSED {
        let folder = zoo().into_iter().find(|f| name_of(f) == *name).unwrap();
        match (planned(&source(&folder), plan), reason) {
            (Ok(_), None) => {}
            (Err(e), Some(reason)) => assert!(e.contains(reason), "{name}: {e}"),
            (Ok(_), Some(reason)) => panic!("{name}: not refused: {reason}"),
            (Err(e), None) => panic!("{name}: {e}"),
        }
    }
}

#[test]
fn a_device_gives_the_same_answers() {
    let Some(gpu) = gpu() else { return };
    for folder in zoo() {
        let (name, source) = (name_of(&folder), source(&folder));
        let (inputs, expected) = cases(&folder).remove(0);
        agree(&name, &run(&gpu, source.graph.clone(), &inputs), &expected);
        let plan = FUSED.iter().find(|(n, ..)| *n == name).map(|(_, plan, _)| *plan);
        if let Some(plan) = plan.filter(|_| ON_DEVICE.contains(&&*name)) {
            let graph = planned(&source, plan).unwrap();
            let expected = evaluated(&graph, &inputs);
            agree(&format!("{name}, {plan}"), &run(&gpu, graph, &inputs), &expected);
        }
    }
}
