//! Whole models through the plain evaluator, against what ONNX Runtime computed for them. The evaluator
//! is the oracle of every rewrite and kernel, so this is where its own trust comes from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use snlp::compare::{Tolerance, compare};
use snlp::npz::read_npz;
use snlp::onnx::Model;
use snlp::passes::eval::{EvalError, eval_graph};
use snlp::passes::ir::{Tensor, ValueId};

/// Models with operators that the evaluator does not know; they must be refused as such.
const UNKNOWN_OPERATORS: [&str; 0] = [];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The graph's inputs from an archive keyed by their names.
fn inputs(model: &Model, file: &Path) -> BTreeMap<ValueId, Tensor> {
    let arrays: BTreeMap<String, Tensor> = read_npz(file).unwrap().into_iter().collect();
    let named = |v: &ValueId| {
        let name = model.graph.value(*v).name.clone().unwrap();
        Some((*v, arrays.get(&name)?.clone()))
    };
    model.graph.inputs().iter().filter_map(named).collect()
}

/// Evaluates `model` on the arrays of one file and compares the outputs that another has.
fn check(model: &Model, given: &Path, wanted: &Path, tolerance: Tolerance) -> Result<(), String> {
    let results = match eval_graph(&model.graph, &inputs(model, given)) {
        Err(EvalError::Unsupported(what)) => return Err(format!("unsupported: {what}")),
        other => other.map_err(|e| e.to_string())?,
    };
    let expected: BTreeMap<String, Tensor> = read_npz(wanted).unwrap().into_iter().collect();
    let mut compared = 0;
    for (output, actual) in model.graph.outputs.iter().zip(&results) {
        let Some(expected) = expected.get(&output.name) else { continue };
        let found = compare(actual, expected, tolerance).map_err(|e| format!("{} {e}", output.name))?;
        if let Some(first) = found.first {
            return Err(format!("{}: {} outliers, the first is {first:?}", output.name, found.outliers));
        }
        compared += 1;
    }
    if compared == expected.len() {
        Ok(())
    } else {
        Err(format!("{compared} outputs compared, {} expected", expected.len()))
    }
}

#[test]
fn bundled_models_agree_with_onnx_runtime() {
    let mut cases: Vec<(PathBuf, PathBuf, PathBuf)> = Vec::new();
    for id in ["gpt2-tiny", "llama-tiny", "llama-tiny-dynamo"] {
        let folder = root().join("fixtures").join(id);
        for suffix in ["", "_right", "_plain"] {
            let file = |kind: &str| folder.join(format!("{kind}{suffix}.npz"));
            cases.push((folder.join("model.onnx"), file("inputs"), file("expected")));
        }
    }
    for id in ["cnn", "mlp", "if_const", "functions"] {
        let file = |ending: &str| root().join("fixtures/bad").join(format!("{id}.{ending}"));
        cases.push((file("onnx"), file("inputs.npz"), file("expected.npz")));
    }
    for (path, given, wanted) in cases {
        let model = Model::read(&path).unwrap();
        if let Err(why) = check(&model, &given, &wanted, Tolerance::Close) {
            panic!("{} on {}: {why}", path.display(), given.display());
        }
    }
}

#[test]
fn real_exports_agree_with_onnx_runtime() {
    let shared = std::env::var_os("SNLP_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let Ok(folders) = std::fs::read_dir(shared.join("models")) else {
        eprintln!("skipped: no models under {}", shared.display());
        return;
    };
    let mut folders: Vec<PathBuf> = folders.map(|f| f.unwrap().path()).filter(|f| f.is_dir()).collect();
    folders.sort();
    let (mut failed, mut passed) = (Vec::new(), 0);
    for folder in folders {
        let id = folder.file_name().unwrap().to_str().unwrap().to_string();
        let meta = std::fs::read_to_string(folder.join("meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        let tolerance = if ["fp16", "int4", "int8"].iter().any(|kind| id.contains(kind)) {
            Tolerance::Loose
        } else {
            Tolerance::Close
        };
        let model = match Model::read(folder.join("model.onnx")) {
            Ok(model) => model,
            Err(e) => {
                failed.push(format!("{id}: {e}"));
                continue;
            }
        };
        for case in meta["cases"].as_array().unwrap() {
            // ONNX Runtime itself fails on some cases: they have no expected outputs.
            let (Some(given), Some(wanted)) = (case["inputs"].as_str(), case["expected"].as_str()) else {
                continue;
            };
            let outcome = check(&model, &folder.join(given), &folder.join(wanted), tolerance);
            let unknown = UNKNOWN_OPERATORS.contains(&id.as_str());
            match outcome {
                Ok(()) if unknown => failed.push(format!("{id} is listed as unsupported but passes")),
                Ok(()) => passed += 1,
                Err(why) if unknown && why.starts_with("unsupported") => {}
                Err(why) => failed.push(format!("{id} on {}: {why}", case["name"])),
            }
        }
    }
    assert!(failed.is_empty(), "{passed} cases pass, these do not:\n{}", failed.join("\n"));
    assert!(passed > 0, "no cases under {}", shared.display());
}
