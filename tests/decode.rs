//! Converted models with caches in the place of their originals: a small loop feeds what a call leaves
//! back to the next one, in ONNX Runtime and in our runtime, and both choose the same tokens.
//!
//! Needs `SNLP_PYTHON` (numpy, onnxruntime) and an adapter (`REQUIRE_GPU=1` makes a missing one fail);
//! the real exports need `../shared` (or `$SNLP_SHARED`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use snlp::feeds::input_types;
use snlp::passes::ir::{Graph, Tensor};
use snlp::runtime::schedule::Options;
use snlp::runtime::{AdapterChoice, Gpu, Session, adapters};
use snlp::source::Source;

const TOKENS: usize = 32;
const PROMPT: [i64; 5] = [3, 14, 15, 9, 26];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Something that computes a model's outputs from its inputs.
type Forward<'a> = &'a dyn Fn(&[(String, Tensor)]) -> Vec<(String, Tensor)>;

/// The tokens that follow the prompt, one call per token.
fn decode(graph: &Graph, forward: Forward<'_>) -> Vec<i64> {
    let types = input_types(graph);
    let past: Vec<_> = types.iter().filter(|(name, _)| name.starts_with("past")).collect();
    let mut caches: Vec<(String, Tensor)> = past
        .iter()
        .map(|(name, ty)| {
            let size = |axis: usize| ty.shape[axis].known_size().expect("heads have a size");
            (name.to_string(), Tensor::from_vec(vec![1, size(1), 0, size(3)], Vec::<f32>::new()).unwrap())
        })
        .collect();
    let (mut new, mut total, mut tokens) = (PROMPT.to_vec(), 0, vec![]);
    while tokens.len() < TOKENS {
        let before = total;
        total += new.len();
        let row = |ids: Vec<i64>| Tensor::from_vec(vec![1, ids.len()], ids).unwrap();
        let known = |name: &str| match name {
            "input_ids" => Some(row(new.clone())),
            "attention_mask" => Some(row(vec![1; total])),
            "position_ids" => Some(row((before as i64..total as i64).collect())),
            _ => None,
        };
        let mut inputs: Vec<_> =
            types.iter().filter_map(|(name, _)| Some((name.to_string(), known(name)?))).collect();
        inputs.append(&mut caches);
        let outputs = forward(&inputs);
        let present = outputs.iter().filter(|(name, _)| name.starts_with("present"));
        caches = past.iter().zip(present).map(|((name, _), (_, t))| (name.to_string(), t.clone())).collect();
        assert_eq!(caches.len(), past.len());
        let (_, logits) = outputs.iter().find(|(name, _)| name == "logits").expect("logits");
        let width = *logits.shape().last().unwrap();
        let last = logits.to_f32().split_off((logits.shape()[1] - 1) * width);
        let best = (0..width).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        new = vec![best as i64];
        tokens.extend(&new);
    }
    tokens
}

fn convert(model: &Path, plan: &str, folder: &Path) -> PathBuf {
    let out = folder.join("converted.onnx");
    let done = Command::new(env!("CARGO_BIN_EXE_snlp"))
        .args(["convert", "-q", "--plan", plan, "-o"])
        .args([&out, model])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}: {}", model.display(), String::from_utf8_lossy(&done.stderr));
    out
}

fn check(model: &Path, plan: &str, gpu: &std::sync::Arc<Gpu>, python: &std::ffi::OsStr) {
    let folder = tempfile::tempdir().unwrap();
    let file = convert(model, plan, folder.path());
    let done = Command::new(python)
        .arg(root().join("tests/python/decode.py"))
        .arg(&file)
        .args(std::iter::once(TOKENS as i64).chain(PROMPT).map(|n| n.to_string()))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let expected: Vec<i64> = serde_json::from_slice(&done.stdout).unwrap();
    let source = Source::read(&file).unwrap();
    let session = Session::new(gpu, source.graph.clone(), Options::default()).unwrap();
    let tokens = decode(&source.graph, &|inputs| session.run(inputs).unwrap());
    assert_eq!(tokens, expected, "{} with plan {plan}", model.display());
    assert!(tokens.iter().any(|t| *t != tokens[0]), "a model that repeats one token shows nothing");
}

#[test]
fn converted_models_decode_the_same_tokens_in_onnx_runtime_and_here() {
    let Some(python) = std::env::var_os("SNLP_PYTHON") else {
        eprintln!("SKIPPED: SNLP_PYTHON names no Python with numpy and onnxruntime");
        return;
    };
    if adapters().is_empty() {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "REQUIRE_GPU is set, but there is no adapter");
        eprintln!("SKIPPED: there is no adapter");
        return;
    }
    let gpu = Gpu::open(&AdapterChoice::any()).unwrap();
    let fixture = root().join("fixtures/llama-tiny-past/model.onnx");
    for plan in ["sequential", "4xF1", "2xF2", "s1 3xF1[k=2,kv=exact,init=batch_fwd]"] {
        check(&fixture, plan, &gpu, &python);
    }
    let shared = std::env::var_os("SNLP_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    if !shared.join("models").is_dir() {
        eprintln!("SKIPPED: the real exports in ../shared (or $SNLP_SHARED) are not here");
        return;
    }
    for (model, plan) in
        [("gpt2-optimum-past", "3xF2"), ("llama-optimum-past", "6xF1[k=2]"), ("phi-optimum-past", "s2 4xF1")]
    {
        check(&shared.join("models").join(model).join("model.onnx"), plan, &gpu, &python);
    }
}
