//! Runs the checks against ONNX Runtime and against the published reference code's numbers
//! (`tests/python/`). They need a Python with numpy, onnx and onnxruntime, named by `SNLP_PYTHON`, and a
//! Vulkan adapter (`REQUIRE_GPU=1` makes a missing one fail); those on real models need `../shared`.
//! `SNLP_FULL=1` runs every model, plan and row instead of a selection that CI has time for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

const SELECTION: [&str; 5] =
    ["gpt2-ts17-ortopt", "llama-dyn23", "llama-ts17-extdata", "gpt_neox-ts17", "nano_x0ve-ts17"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shared() -> Option<PathBuf> {
    let path = std::env::var_os("SNLP_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let found = path.is_dir();
    if !found {
        eprintln!("skipped: the models in ../shared (or $SNLP_SHARED) are not here");
    }
    found.then_some(path)
}

/// Whether the checks run on a GPU; without an adapter they run on the CPU backend, unless CI forbids it.
fn backend() -> &'static str {
    if snlp::runtime::adapters().is_empty() {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "REQUIRE_GPU is set, but there is no adapter");
        eprintln!("no adapter: the checks run on the CPU backend");
        return "cpu";
    }
    "gpu"
}

fn python(script: &str, backend: &str, words: &[&str]) {
    let Some(python) = std::env::var_os("SNLP_PYTHON") else {
        eprintln!("skipped: SNLP_PYTHON names no Python with numpy, onnx and onnxruntime");
        return;
    };
    let done = Command::new(python)
        .arg(root().join("tests/python").join(script))
        .args(["--snlp", env!("CARGO_BIN_EXE_snlp"), "--backend", backend])
        .args(words)
        .output()
        .expect("python runs");
    let text = String::from_utf8_lossy(&done.stdout);
    println!("{text}");
    assert!(
        done.status.success(),
        "{script} {words:?}:\n{}{}",
        text.lines().filter(|l| l.starts_with("FAIL")).collect::<Vec<_>>().join("\n"),
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(text.contains("ok "), "{script} checked nothing");
}

fn full() -> bool {
    std::env::var_os("SNLP_FULL").is_some()
}

#[test]
fn converted_fixtures_agree_with_onnx_runtime() {
    let models = root().join("fixtures");
    let models = models.to_str().expect("utf-8");
    let words = ["--models", models, "--only", "gpt2-tiny", "llama-tiny", "llama-tiny-dynamo"];
    python("converted.py", backend(), &words);
    let words =
        ["--models", models, "--plans", "1", "--only", "gpt2-tiny-int8", "gpt2-tiny-qdq", "llama-tiny-int4"];
    python("converted.py", backend(), &words);
    let models = root().join("fixtures/hyper");
    let mut words = vec!["--models", models.to_str().expect("utf-8"), "--plans", "1"];
    let kinds = [
        "hc2-dynamic-sums-dyn18",
        "hc4-dynamic-merged-ts17",
        "hc8-dynamic-rows-dyn18",
        "hc8-static-sums-ts17",
    ];
    words.push("--only");
    words.extend(kinds);
    python("converted.py", backend(), &words);
}

#[test]
fn converted_models_agree_with_onnx_runtime() {
    let Some(shared) = shared() else { return };
    let models = shared.join("models");
    let mut words = vec!["--models", models.to_str().expect("utf-8")];
    if !full() {
        words.extend(["--plans", "2", "--only"]);
        words.extend(SELECTION);
    }
    python("converted.py", backend(), &words);
}

#[test]
fn golden_logits_of_the_trained_models() {
    let Some(shared) = shared() else { return };
    let oracle = shared.join("oracle");
    for model in ["nox0ve_idn", "mhc_hcn"] {
        let words = ["--skip-table", "--model", model, "--oracle", oracle.to_str().expect("utf-8")];
        python("oracle.py", backend(), &words);
    }
}

/// A software GPU takes minutes per row, so CI asks the CPU backend.
#[test]
#[cfg(feature = "cpu")]
fn perplexities_of_the_trained_model() {
    let Some(shared) = shared() else { return };
    let oracle = shared.join("oracle");
    let oracle = oracle.to_str().expect("utf-8");
    let rows = if full() { "0" } else { "10" };
    python("oracle.py", "cpu", &["--skip-golden", "--oracle", oracle, "--rows", rows]);
    if full() {
        python("oracle.py", backend(), &["--skip-golden", "--oracle", oracle, "--rows", "16"]);
    }
}
