//! Real exports on a device, against the answers of ONNX Runtime.
//!
//! Needs the model collection (`../shared` or `$SNLP_SHARED`) and an adapter; says so when one is missing.
//! `SNLP_MODELS=gpt2-ts17,llama-ts17` restricts the test to some models and prints their plans' figures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snlp::compare::{Tolerance, compare};
use snlp::npz::read_npz;
use snlp::onnx::Model;
use snlp_passes::analysis::find_chain;
use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{Graph, Tensor, ValueId};
use snlp_passes::plan::Plan;
use snlp_passes::rewrite::{clean_up, parallelize};
use snlp_runtime::schedule::{Options, Stats};
use snlp_runtime::{AdapterChoice, Gpu, RuntimeError, Session};

/// Models that must run, with their tolerance.
const RUNS: &[(&str, Tolerance)] = &[
    ("bert-dyn18", Tolerance::Close),
    ("bloom-ts14", Tolerance::Close),
    ("gemma2-ts17", Tolerance::Close),
    ("gpt2-optimum-past", Tolerance::Close),
    ("gpt2-ts17", Tolerance::Close),
    ("gpt2-ts17-int8dyn", Tolerance::Loose),
    ("gpt_neox-ts17", Tolerance::Close),
    ("llama-dyn23", Tolerance::Close),
    ("llama-genai-fp32-cpu", Tolerance::Close),
    ("llama-genai-int4-cpu", Tolerance::Loose),
    ("llama-optimum-past", Tolerance::Close),
    ("llama-ts17", Tolerance::Close),
    ("llama-ts17-fp16", Tolerance::Loose),
    ("nano_mhc-ts17-onnxsim", Tolerance::Close),
    ("nano_x0ve-ts17", Tolerance::Close),
    ("olmo2-dyn18", Tolerance::Close),
    ("phi-optimum-past", Tolerance::Close),
    ("qwen2-genai-fp32-cpu", Tolerance::Close),
    ("vit-dyn18", Tolerance::Close),
];

/// Models and plans whose rewritten graphs must run, on the weights of the sequential model.
const PLANS: &[(&str, &[&str])] = &[
    ("gpt2-ts17", &["sequential", "6xF1", "4xF1[k=2]", "3xF2", "1xF6", "6xF1[k=6]"]),
    ("llama-ts17", &["sequential", "4xF1[k=2]", "2xF2"]),
    ("nano_x0ve-ts17", &["sequential", "8xF1", "4xF2[k=2]"]),
];

/// Models that cannot run yet, with a part of the error's text.
const FAILS: &[(&str, &str)] = &[];

fn models() -> Option<PathBuf> {
    let root = match std::env::var_os("SNLP_SHARED") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    let models = root.join("models");
    if models.is_dir() {
        return Some(models);
    }
    eprintln!("SKIPPED: real models on a device: {} does not exist", models.display());
    None
}

fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(&AdapterChoice::any()) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but {error}");
            eprintln!("SKIPPED: real models on a device: {error}");
            None
        }
    }
}

/// The pairs of input and expected files of a model.
fn cases(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut out = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if let Some(case) = name.strip_prefix("inputs").filter(|n| n.ends_with(".npz")) {
            let expected = folder.join(format!("expected{case}"));
            if expected.is_file() {
                out.push((path, expected));
            }
        }
    }
    out.sort();
    assert!(!out.is_empty(), "{} has no cases", folder.display());
    out
}

fn check(gpu: &Arc<Gpu>, folder: &Path, tolerance: Tolerance, verbose: bool) -> Result<(), String> {
    let mut graph = Model::read(folder.join("model.onnx")).map_err(|e| e.to_string())?.graph;
    clean_up(&mut graph).map_err(|e| e.to_string())?;
    let session = Session::new(gpu, graph, Options::default()).map_err(|e| e.to_string())?;
    for (inputs, expected) in cases(folder) {
        let inputs = read_npz(&inputs).map_err(|e| e.to_string())?;
        let run = || -> Result<_, RuntimeError> {
            if verbose {
                let plan = session.plan_for(&session.bindings(&inputs)?)?;
                eprintln!("{}\n{}", plan.dump(), plan.stats());
            }
            session.run(&inputs)
        };
        let outputs = run().map_err(|e| e.to_string())?;
        let case = expected.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (name, want) in read_npz(&expected).map_err(|e| e.to_string())? {
            let Some((_, got)) = outputs.iter().find(|(n, _)| *n == name) else {
                return Err(format!("{case}: no output '{name}'"));
            };
            let found = compare(got, &want, tolerance).map_err(|e| format!("{case}: '{name}': {e}"))?;
            if !found.ok() {
                return Err(format!("{case}: '{name}': {found:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn real_models() {
    let (Some(models), Some(gpu)) = (models(), gpu()) else { return };
    if let Ok(only) = std::env::var("SNLP_MODELS") {
        let mut wrong = vec![];
        for name in only.split(',') {
            let start = std::time::Instant::now();
            let result = check(&gpu, &models.join(name), Tolerance::Close, true);
            eprintln!("{name}: {result:?} in {:?}", start.elapsed());
            wrong.extend(result.err().map(|e| format!("{name}: {e}")));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        return;
    }
    let mut wrong = vec![];
    for (name, tolerance) in RUNS {
        if let Err(error) = check(&gpu, &models.join(name), *tolerance, false) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    for (name, reason) in FAILS {
        match check(&gpu, &models.join(name), Tolerance::Close, false) {
            Ok(()) => wrong.push(format!("{name} runs now: move it to the list of models that must")),
            Err(error) if error.contains(reason) => {}
            Err(error) => wrong.push(format!("{name} fails for another reason: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The inputs of the main case by the graph's value ids, for the evaluator.
fn by_value(graph: &Graph, inputs: &[(String, Tensor)]) -> BTreeMap<ValueId, Tensor> {
    let find = |v: &ValueId| {
        let name = graph.value(*v).name.as_deref()?;
        inputs.iter().find(|(n, _)| n == name).map(|(_, t)| (*v, t.clone()))
    };
    graph.inputs().iter().filter_map(find).collect()
}

#[test]
fn layer_parallel_plans() {
    let (Some(models), Some(gpu)) = (models(), gpu()) else { return };
    let only = std::env::var("SNLP_MODELS").ok();
    for (name, plans) in PLANS {
        if only.as_ref().is_some_and(|o| !o.split(',').any(|m| m == *name)) {
            continue;
        }
        let folder = models.join(name);
        let mut graph = Model::read(folder.join("model.onnx")).unwrap().graph;
        clean_up(&mut graph).unwrap();
        let chain = find_chain(&graph).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let rewritten = |text: &str| {
            let plan: Plan = text.parse().unwrap();
            let placed = plan.place(chain.layers.len()).unwrap();
            let mut graph =
                parallelize(&graph, &chain, &placed).unwrap_or_else(|e| panic!("{name} {text}: {e}")).graph;
            clean_up(&mut graph).unwrap();
            graph
        };
        let graphs: Vec<Graph> = plans.iter().map(|p| rewritten(p)).collect();
        let before = gpu.weights();
        let sessions = Session::group(&gpu, graphs.clone(), &Options::default()).unwrap();
        let inputs = read_npz(&folder.join("inputs.npz")).unwrap();
        let mut sequential = Stats::default();
        for ((plan, graph), session) in plans.iter().zip(&graphs).zip(&sessions) {
            let schedule = session.plan_for(&session.bindings(&inputs).unwrap()).unwrap();
            let stats = schedule.stats();
            eprintln!("{name} {plan}: {stats}");
            if only.is_some() {
                eprintln!("{}", schedule.dump());
            }
            let outputs = session.run(&inputs).unwrap_or_else(|e| panic!("{name} {plan}: {e}"));
            let expected = eval_graph(graph, &by_value(graph, &inputs)).unwrap();
            for ((output, got), want) in outputs.iter().zip(&expected) {
                let found = compare(got, want, Tolerance::Close).unwrap();
                assert!(found.ok(), "{name} {plan}: '{output}': {found:?}");
            }
            // All plans read one copy of the weights, wherever their stacks overlap.
            let held = gpu.weights();
            assert_eq!(held.repeated, before.repeated, "{name} {plan}");
            if sequential.dispatches == 0 {
                sequential = stats;
            } else if !plan.contains("k=") {
                assert!(stats.dispatches < sequential.dispatches, "{name} {plan}: {stats}");
            }
            // Those of the model before went when these came.
            let resident = held.resident;
            assert!(
                resident <= sequential.weight_bytes + sequential.weight_bytes / 50,
                "{name} {plan}: {resident}"
            );
        }
    }
}
