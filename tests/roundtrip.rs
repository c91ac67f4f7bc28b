//! Reading and writing real exports changes nothing.
//!
//! With `$SNLP_PYTHON` set to a Python that has `onnx` and `onnxruntime`, ONNX Runtime must compute the
//! same from the written file as from the original.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use snlp::onnx::{Model, WriteOptions};
use snlp::passes::analysis::find_chain;
use snlp::passes::plan::Plan;
use snlp::passes::rewrite;

fn models() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("SNLP_SHARED").map_or(here.join("../shared"), PathBuf::from);
    let Ok(folder) = std::fs::read_dir(shared.join("models")) else {
        eprintln!("SKIPPED: no models in {} (set SNLP_SHARED)", shared.display());
        return vec![];
    };
    let mut out: Vec<PathBuf> =
        folder.map(|e| e.unwrap().path().join("model.onnx")).filter(|p| p.exists()).collect();
    out.sort();
    assert!(!out.is_empty(), "{} holds no models", shared.display());
    out
}

fn interface(model: &Model) -> (Vec<String>, Vec<String>) {
    let g = &model.graph;
    let inputs = g.inputs().iter().map(|v| format!("{:?} {:?}", g.value(*v).name, g.ty(*v))).collect();
    (inputs, g.outputs.iter().map(|o| o.name.clone()).collect())
}

fn constants(model: &Model) -> BTreeSet<String> {
    let users = model.graph.users();
    let used = model.graph.values().filter(|(v, _)| !users[v.index()].is_empty());
    let big = used.filter(|(v, _)| model.graph.tensor(*v).is_some_and(|t| t.len() > 64));
    big.map(|(v, value)| format!("{:?} {:?}", value.name, model.graph.tensor(v))).collect()
}

#[test]
fn a_written_model_reads_as_the_original() {
    let out = tempfile::tempdir().unwrap();
    let keep = std::env::var_os("SNLP_ROUNDTRIP_OUT").map(PathBuf::from);
    let out = keep.as_deref().unwrap_or(out.path());
    let mut failures = Vec::new();
    let models = models();
    for path in &models {
        let id = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        if let Err(e) = check(path, &out.join(format!("{id}.onnx"))) {
            failures.push(format!("{id}: {e}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} models:\n{}", failures.len(), models.len(), failures.join("\n"));
    compare_in_onnx_runtime(&models, out);
}

fn check(path: &Path, copy: &Path) -> Result<(), String> {
    let model = Model::read(path).map_err(|e| format!("{e:?}"))?;
    // One way of storing weights per model; both ways must give the same model.
    let other = copy.with_extension("external.onnx");
    for (to, external_data) in [(copy, false), (other.as_path(), true)] {
        let options = WriteOptions { external_data, ..WriteOptions::default() };
        let written = model.write(to, &options).map_err(|e| format!("{e:?}"))?;
        let size = |p: &Path| p.metadata().map_or(0, |m| m.len());
        let on_disk = size(&written.path) + written.data.as_deref().map_or(0, size);
        assert_eq!(on_disk, written.bytes, "{}", to.display());
        let again = Model::read(to).map_err(|e| format!("{e:?}"))?;
        assert_eq!(interface(&again), interface(&model));
        assert_eq!(again.info.opsets, model.info.opsets);
        assert_eq!(again.info.metadata, model.info.metadata);
        assert_eq!(again.info.producer_name, model.info.producer_name);
        assert_eq!(again.graph.name, model.graph.name);
        let (was, is) = (constants(&model), constants(&again));
        assert!(was.is_subset(&is), "lost {:?}", was.difference(&is).collect::<Vec<_>>());
    }
    assert_eq!(
        Model::read(copy)
            .map_err(|e| format!("{e:?}"))?
            .encode(&WriteOptions::default())
            .map_err(|e| format!("{e:?}"))?,
        Model::read(&other)
            .map_err(|e| format!("{e:?}"))?
            .encode(&WriteOptions::default())
            .map_err(|e| format!("{e:?}"))?,
    );
    Ok(())
}

/// Models that this plan may be refused for: caches inside the layers, and hyper-connections.
const DECLINED: [&str; 9] = [
    "gpt2-optimum-past",
    "llama-genai-fp32-cpu",
    "llama-genai-int4-cpu",
    "llama-optimum-past",
    "nano_mhc-ts17",
    "nano_mhc-ts17-onnxsim",
    "nano_mhc_dynamic-ts17",
    "phi-optimum-past",
    "qwen2-genai-fp32-cpu",
];

/// With as many iterations as units, a layer-parallel model computes what the original does; its
/// corrections are calls of functions in one file and plain operators in the other.
#[test]
fn a_converted_model_computes_what_the_original_does() {
    let out = tempfile::tempdir().unwrap();
    let keep = std::env::var_os("SNLP_CONVERTED_OUT").map(PathBuf::from);
    let out = keep.as_deref().unwrap_or(out.path());
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for path in models() {
        let id = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        match convert(&path, &out.join(format!("{id}.onnx"))) {
            Ok(()) => done.push(path),
            Err(e) => failures.push(format!("{id}: {e}")),
        }
    }
    eprintln!("{} models converted; not: {failures:#?}", done.len());
    failures.retain(|e| !DECLINED.iter().any(|id| e.starts_with(&format!("{id}:"))));
    assert!(failures.is_empty(), "{} models:\n{}", failures.len(), failures.join("\n"));
    compare_in_onnx_runtime(&done, out);
}

fn convert(path: &Path, to: &Path) -> Result<(), String> {
    let mut model = Model::read(path).map_err(|e| format!("{e:?}"))?;
    rewrite::clean_up(&mut model.graph).map_err(|e| e.to_string())?;
    let chain = find_chain(&model.graph).map_err(|e| format!("no chain: {} {}", e.reason, e.at))?;
    let plan: Plan = "3xF1[k=3]".parse().map_err(|e| format!("{e}"))?;
    let placed = plan.place(chain.layers.len()).map_err(|e| e.to_string())?;
    let mut parallel = rewrite::parallelize(&model.graph, &chain, &placed).map_err(|e| e.to_string())?;
    rewrite::clean_up(&mut parallel.graph).map_err(|e| e.to_string())?;
    model.graph = parallel.graph;
    for (to, inline) in [(to.to_owned(), false), (to.with_extension("external.onnx"), true)] {
        model.write(to, &WriteOptions { external_data: inline, inline }).map_err(|e| format!("{e:?}"))?;
    }
    Ok(())
}

fn compare_in_onnx_runtime(models: &[PathBuf], out: &Path) {
    let Some(python) = std::env::var_os("SNLP_PYTHON") else {
        eprintln!("SKIPPED: comparison in ONNX Runtime (set SNLP_PYTHON)");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/roundtrip_ort.py");
    let status = Command::new(python).arg(script).arg(out).args(models).status().unwrap();
    assert!(status.success(), "ONNX Runtime disagrees");
}
