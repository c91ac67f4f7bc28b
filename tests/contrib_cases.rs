//! ONNX Runtime's own operators: what they are read as, against its answers.
//!
//! Runs when `$SNLP_PYTHON` is a Python with `numpy`, `onnx` and `onnxruntime`. Every case is evaluated as read,
//! cleaned up, as written and read again, and on a device where there is one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use snlp::compare::{Tolerance, compare};
use snlp::npz::read_npz;
use snlp::onnx::{Model, WriteOptions};
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{Graph, Op, Tensor};
use snlp_passes::rewrite::clean_up;
use snlp_runtime::schedule::Options;
use snlp_runtime::{AdapterChoice, Gpu, Session};

fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(&AdapterChoice::any()) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but {error}");
            eprintln!("SKIPPED: the cases of ONNX Runtime's operators on a device: {error}");
            None
        }
    }
}

fn arrays(path: &Path) -> Vec<Tensor> {
    let mut list = read_npz(path).unwrap();
    list.sort_by_key(|(name, _)| name.parse::<usize>().unwrap());
    list.into_iter().map(|(_, t)| t).collect()
}

fn agree(got: &[Tensor], want: &[Tensor]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} outputs instead of {}", got.len(), want.len()));
    }
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let found = compare(got, want, Tolerance::Close).map_err(|e| format!("output {i}: {e}"))?;
        if !found.ok() {
            return Err(format!("output {i}: {found:?}"));
        }
    }
    Ok(())
}

fn evaluated(graph: &Graph, inputs: &[Tensor], want: &[Tensor]) -> Result<(), String> {
    let feed: BTreeMap<_, _> = graph.inputs().iter().copied().zip(inputs.iter().cloned()).collect();
    agree(&eval_graph(graph, &feed).map_err(|e| e.to_string())?, want)
}

fn on_device(gpu: &Arc<Gpu>, graph: &Graph, inputs: &[Tensor], want: &[Tensor]) -> Result<(), String> {
    let name = |v| graph.value(v).name.clone().unwrap_or_default();
    let feed: Vec<(String, Tensor)> =
        graph.inputs().iter().map(|v| name(*v)).zip(inputs.iter().cloned()).collect();
    let session = Session::new(gpu, graph.clone(), Options::default()).map_err(|e| e.to_string())?;
    let outputs = session.run(&feed).map_err(|e| e.to_string())?;
    agree(&outputs.into_iter().map(|(_, t)| t).collect::<Vec<_>>(), want)
}

fn check(folder: &Path, gpu: Option<&Arc<Gpu>>) -> Result<(), String> {
    let model = Model::read(folder.join("model.onnx")).map_err(|e| format!("{e:?}"))?;
    if let Some((_, node)) = model.graph.nodes().find(|(_, n)| matches!(n.op, Op::Opaque(_))) {
        return Err(format!("{} is not understood", node.op.name()));
    }
    let (inputs, want) = (arrays(&folder.join("inputs.npz")), arrays(&folder.join("expected.npz")));
    evaluated(&model.graph, &inputs, &want).map_err(|e| format!("as read: {e}"))?;
    let mut clean = model.graph.clone();
    clean_up(&mut clean).map_err(|e| e.to_string())?;
    evaluated(&clean, &inputs, &want).map_err(|e| format!("cleaned up: {e}"))?;
    let bytes = model.encode(&WriteOptions::default()).map_err(|e| format!("cannot be written: {e:?}"))?;
    let again = Model::decode(bytes, folder).map_err(|e| format!("cannot be read again: {e:?}"))?;
    evaluated(&again.graph, &inputs, &want).map_err(|e| format!("as written: {e}"))?;
    match gpu {
        Some(gpu) => on_device(gpu, &clean, &inputs, &want).map_err(|e| format!("on the device: {e}")),
        None => Ok(()),
    }
}

#[test]
fn operators_mean_what_onnx_runtime_computes() {
    let Some(python) = std::env::var_os("SNLP_PYTHON") else {
        eprintln!("SKIPPED: the cases of ONNX Runtime's operators (set SNLP_PYTHON)");
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/contrib_cases.py");
    assert!(Command::new(python).arg(script).arg(temporary.path()).status().unwrap().success());
    let gpu = gpu();
    let only = std::env::var("SNLP_CASES").unwrap_or_default();
    let mut seen = 0;
    let mut wrong = vec![];
    for entry in temporary.path().read_dir().unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if !name.contains(&only) {
            continue;
        }
        seen += 1;
        if let Err(why) = check(&folder, gpu.as_ref()) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    wrong.sort();
    assert!(seen > 90 || !only.is_empty(), "only {seen} cases");
    assert!(wrong.is_empty(), "{} of {seen} cases:\n{}", wrong.len(), wrong.join("\n"));
}
