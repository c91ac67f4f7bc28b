//! The node cases of the ONNX project: each operator, read and evaluated, and written and read again.
//!
//! Runs when `$SNLP_PYTHON` is a Python with the `onnx` package, which holds the cases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use snlp::npz::read_npz;
use snlp::onnx::{ErrorKind, Model, WriteOptions};
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{Graph, Op, Tensor};

/// What became of a case.
#[derive(Debug, PartialEq)]
enum Outcome {
    Same,
    /// An operator that the IR does not know.
    Opaque,
    /// Not representable: opset, element type.
    Unsupported,
    Wrong(String),
}

fn arrays(path: &Path) -> Vec<Tensor> {
    let mut list = read_npz(path).unwrap();
    list.sort_by_key(|(name, _)| name.parse::<usize>().unwrap());
    list.into_iter().map(|(_, t)| t).collect()
}

fn evaluate(graph: &Graph, inputs: &[Tensor], expected: &[Tensor]) -> Result<(), String> {
    let feed: BTreeMap<_, _> = graph.inputs().iter().copied().zip(inputs.iter().cloned()).collect();
    let got = eval_graph(graph, &feed).map_err(|e| e.to_string())?;
    for (i, (got, want)) in got.iter().zip(expected).enumerate() {
        if got.shape() != want.shape() || got.dtype() != want.dtype() {
            return Err(format!("output {i} is {got:?} instead of {want:?}"));
        }
        let tolerance = if want.dtype().size() == 2 { 1e-2 } else { 1e-4 };
        let differs = |(a, b): (&f64, &f64)| {
            !(a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs().max(1.0))
        };
        let (a, b) = (got.to_f64(), want.to_f64());
        if let Some(at) = a.iter().zip(&b).position(differs) {
            return Err(format!("output {i} at {at}: {} instead of {}", a[at], b[at]));
        }
    }
    Ok(())
}

fn check(folder: &Path) -> Outcome {
    let model = match Model::read(folder.join("model.onnx")) {
        Ok(model) => model,
        Err(e) if e.kind() == ErrorKind::Unsupported => return Outcome::Unsupported,
        Err(e) => return Outcome::Wrong(format!("{e:?}")),
    };
    let opaque = model.graph.nodes().any(|(_, n)| matches!(n.op, Op::Opaque(_)));
    let (inputs, expected) = (arrays(&folder.join("inputs.npz")), arrays(&folder.join("expected.npz")));
    let run = |model: &Model, what: &str| {
        if opaque {
            return Ok(());
        }
        evaluate(&model.graph, &inputs, &expected).map_err(|e| format!("{what}: {e}"))
    };
    let written = || -> Result<(), String> {
        run(&model, "as read")?;
        let bytes = match model.encode(&WriteOptions::default()) {
            Ok(bytes) => bytes,
            Err(e) => return Err(format!("cannot be written: {e:?}")),
        };
        let again = Model::decode(bytes, folder).map_err(|e| format!("cannot be read again: {e:?}"))?;
        run(&again, "as written")
    };
    match written() {
        Err(e) => Outcome::Wrong(e),
        Ok(()) if opaque => Outcome::Opaque,
        Ok(()) => Outcome::Same,
    }
}

#[test]
fn operators_mean_what_the_standard_says() {
    let Some(python) = std::env::var_os("SNLP_PYTHON") else {
        eprintln!("SKIPPED: the node cases of ONNX (set SNLP_PYTHON)");
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/node_cases.py");
    assert!(Command::new(python).arg(script).arg(temporary.path()).status().unwrap().success());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for entry in temporary.path().read_dir().unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let outcome = check(&folder);
        if std::env::var_os("SNLP_VERBOSE").is_some() {
            eprintln!("{name}: {outcome:?}");
        }
        let key = match outcome {
            Outcome::Same => "same",
            Outcome::Opaque => "opaque",
            Outcome::Unsupported => "unsupported",
            Outcome::Wrong(why) => {
                wrong.push(format!("{name}: {why}"));
                "wrong"
            }
        };
        *counts.entry(key).or_default() += 1;
    }
    wrong.sort();
    eprintln!("{counts:?}");
    assert!(counts["same"] > 400, "too few cases were understood");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
