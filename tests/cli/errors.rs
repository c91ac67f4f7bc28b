//! Every class of bad input: its exit code, and what the message names.

use snlp::npz::write_npz;
use snlp::passes::ir::Tensor;

use crate::support::{Folder, fixture, snlp};

/// Broken files: whatever reads them says which file, and where.
#[test]
fn broken_models_are_3() {
    for (file, parts) in [
        ("truncated", &[][..]),
        ("not_onnx", &[]),
        ("empty_graph", &[]),
        ("cyclic", &["n_a"]),
        ("missing_initializer", &["mm", "W_missing"]),
        ("duplicate_names", &["a"]),
        ("wrong_dims", &["W"]),
        ("huge_dims", &["W"]),
        ("external_missing", &["no_such_file.bin"]),
        ("external_short", &["external_short.bin"]),
        ("external_absolute", &["/etc/hostname"]),
        ("external_dotdot", &["../x.bin"]),
    ] {
        let model = fixture(&format!("bad/{file}.onnx"));
        let folder = Folder::new();
        let out = folder.text("out.onnx");
        let name = format!("{file}.onnx");
        for args in
            [&["inspect", &model][..], &["convert", &model, "-o", &out, "--plan", "2xF1"], &["run", &model]]
        {
            let ran = snlp(args).code(3).says(&[&name]).says(parts);
            assert!(ran.stdout.is_empty());
        }
        assert!(folder.files().is_empty(), "{file}: nothing is written");
    }
}

#[test]
fn unsupported_operators_are_listed_together() {
    let model = fixture("bad/unsupported_ops.onnx");
    let folder = Folder::new();
    let out = folder.text("out.onnx");
    for args in [&["run", &model][..], &["convert", &model, "-o", &out, "--plan", "2xF1"]] {
        let all = ["FancyAttentionXL", "com.example::QuantumNorm", "com.example::TeleportRows", "help:"];
        snlp(args).code(3).says(&all);
    }
    let found = snlp(&["inspect", &model, "--json"]).code(0).json();
    assert_eq!(found["unsupported"].as_array().map(Vec::len), Some(3), "{found}");
}

#[test]
fn what_is_not_understood_of_a_known_operator_is_said() {
    for (file, reason) in [
        ("odd_form", &["com.microsoft::MatMulNBits", "node 'product'", "attribute 'bits' of 2"][..]),
        ("if_input", &["If", "by the input 'use_cache_branch'", "'--no-post-process'"]),
    ] {
        let model = fixture(&format!("bad/{file}.onnx"));
        let folder = Folder::new();
        let out = folder.text("out.onnx");
        for args in [&["run", &model][..], &["convert", &model, "-o", &out, "--plan", "2xF1"]] {
            snlp(args).code(3).says(reason).says(&["help:"]);
        }
        let found = snlp(&["inspect", &model, "--json"]).code(0).json();
        let said = found["unsupported"][0]["reason"].as_str().unwrap_or_default();
        assert!(reason.last().is_some_and(|r| said.contains(r)), "{found}");
        assert!(folder.files().is_empty());
    }
}

#[test]
fn a_model_without_a_chain_is_explained_and_not_converted() {
    let folder = Folder::new();
    for name in ["cnn", "mlp"] {
        let model = fixture(&format!("bad/{name}.onnx"));
        let found = snlp(&["inspect", &model, "--json"]).code(0).json();
        assert!(found["chain"].is_null());
        assert!(found["stopped"]["reason"].as_str().is_some_and(|r| !r.is_empty()), "{found}");
        assert!(found["stopped"]["at"].is_string());
        let text = snlp(&["inspect", &model]).code(0).stdout;
        assert!(text.contains("none:"), "{text}");
        let out = folder.text("out.onnx");
        snlp(&["convert", &model, "-o", &out, "--plan", "2xF1"])
            .code(3)
            .says(&["no chain of layers", "help:"]);
    }
    assert!(folder.files().is_empty());
}

#[test]
fn plans_must_fit_the_model() {
    let model = fixture("nano/model.onnx");
    let folder = Folder::new();
    let out = folder.text("out.onnx");
    let refused = ["nano/model.onnx", "has 12", "help:"];
    snlp(&["convert", &model, "-o", &out, "--plan", "13xF1"]).code(3).says(&["13 layers"]).says(&refused);
    snlp(&["inspect", &model, "--plan", "s8 12xF2"]).code(3).says(&["32 layers"]).says(&refused);
    let missing = ["there is no", "preheat.safetensors", "snlp calibrate"];
    snlp(&["inspect", &model, "--plan", "6xF1[init=preheat]"]).code(3).says(&missing);
    let decoding = ["only decoding knows", "snlp generate"];
    snlp(&["convert", &model, "-o", &out, "--plan", "6xF1[init=warm]"]).code(3).says(&decoding);
    assert!(folder.files().is_empty());
}

#[test]
fn missing_files_are_5() {
    snlp(&["inspect", "no/such.onnx"]).code(5).says(&["no/such.onnx"]);
    let model = fixture("gpt2-tiny/model.onnx");
    snlp(&["run", &model, "--inputs", "no/such.npz"]).code(5).says(&["no/such.npz"]);
    snlp(&["eval", &model, "--tokens", "no/such.npz"]).code(5).says(&["no/such.npz"]);
    snlp(&["inspect", &model, "-o", "no/such/folder/out.txt"]).code(5).says(&["no/such/folder/out.txt"]);
    snlp(&["convert", &model, "-o", "no/such/folder/out.onnx", "--plan", "4xF1"])
        .code(5)
        .says(&["no/such/folder"]);
}

#[test]
fn the_model_is_never_overwritten() {
    let folder = Folder::new();
    let model = folder.text("model.onnx");
    std::fs::copy(fixture("gpt2-tiny/model.onnx"), &model).expect("copied");
    let before = std::fs::read(&model).expect("read");
    let convert = |out: &str| snlp(&["convert", &model, "-o", out, "--plan", "4xF1"]);
    convert(&model).code(2).says(&["the model itself"]);
    #[cfg(unix)]
    {
        let link = folder.text("link.onnx");
        std::os::unix::fs::symlink(&model, &link).expect("linked");
        convert(&link).code(2).says(&["the model itself"]);
        let hard = folder.text("hard.onnx");
        std::fs::hard_link(&model, &hard).expect("linked");
        convert(&hard).code(2).says(&["the model itself"]);
    }
    assert_eq!(std::fs::read(&model).expect("read"), before);
}

fn archive(folder: &Folder, name: &str, arrays: &[(&str, Tensor)]) -> String {
    let file = std::fs::File::create(folder.path(name)).expect("created");
    write_npz(file, arrays.iter().map(|(n, t)| (*n, t))).expect("written");
    folder.text(name)
}

fn whole(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_vec(shape.to_vec(), values.to_vec()).expect("fits")
}

#[test]
fn wrong_inputs_are_3() {
    let model = fixture("gpt2-tiny/model.onnx");
    let folder = Folder::new();
    let ids = || whole(&[1, 3], &[1, 2, 3]);
    let ones = || whole(&[1, 3], &[1, 1, 1]);
    let floats = |x: f32| Tensor::from_vec(vec![1, 3], vec![x; 3]).expect("fits");
    type Case = (&'static str, Vec<(&'static str, Tensor)>, &'static [&'static str]);
    let cases: [Case; 7] = [
        ("missing", vec![("input_ids", ids())], &["missing: attention_mask", "input_ids i64"]),
        (
            "unknown",
            vec![("input_ids", ids()), ("attention_mask", ones()), ("pixels", ids())],
            &["unknown: pixels"],
        ),
        ("rank", vec![("input_ids", whole(&[3], &[1, 2, 3])), ("attention_mask", ones())], &["input_ids"]),
        (
            "size",
            vec![("input_ids", ids()), ("attention_mask", whole(&[1, 4], &[1; 4]))],
            &["attention_mask"],
        ),
        ("fraction", vec![("input_ids", floats(0.5)), ("attention_mask", ones())], &["input_ids", "0.5"]),
        (
            "range",
            vec![("input_ids", whole(&[1, 3], &[1, 96, 2])), ("attention_mask", ones())],
            &["input_ids", "96", "0..96", "node"],
        ),
        (
            "negative",
            vec![("input_ids", whole(&[1, 3], &[1, -1, 2])), ("attention_mask", ones())],
            &["input_ids", "index -1 at element 1", "0..96"],
        ),
    ];
    for (name, arrays, parts) in cases {
        let inputs = archive(&folder, &format!("{name}.npz"), &arrays);
        snlp(&["run", &model, "--inputs", &inputs])
            .code(3)
            .says(parts)
            .says(&["gpt2-tiny/model.onnx", "help:"]);
    }
    let windows = archive(&folder, "w.npz", &[("tokens", whole(&[1, 3], &[1, 2, 3]))]);
    snlp(&["eval", &model, "--tokens", &windows]).code(3).says(&["no array 'windows'", "tokens"]);
    let windows = archive(&folder, "w.npz", &[("windows", floats(1.0))]);
    snlp(&["eval", &model, "--tokens", &windows]).code(3).says(&["[n, T + 1]"]);
    let windows = archive(&folder, "w.npz", &[("windows", whole(&[1, 3], &[1, 2000, 3]))]);
    snlp(&["eval", &model, "--tokens", &windows]).code(3).says(&["2000", "input_ids"]);
    let windows = archive(&folder, "w.npz", &[("windows", whole(&[1, 3], &[1, -1, 3]))]);
    snlp(&["eval", &model, "--tokens", &windows]).code(3).says(&["-1", "input_ids", "0..96", "help:"]);
    let windows = archive(&folder, "w.npz", &[("windows", whole(&[1, 3], &[1, 2, 3]))]);
    let mlp = fixture("bad/mlp.onnx");
    snlp(&["eval", &mlp, "--tokens", &windows]).code(3).says(&["bad/mlp.onnx: no output", "logits", "help:"]);
    let text = folder.text("text.npz");
    std::fs::write(&text, "no archive").expect("written");
    snlp(&["run", &model, "--inputs", &text]).code(3).says(&["text.npz", "numpy"]);
}

#[test]
fn no_device_is_4() {
    let model = fixture("gpt2-tiny/model.onnx");
    let inputs = fixture("gpt2-tiny/inputs_plain.npz");
    snlp(&["run", &model, "--inputs", &inputs, "--backend", "gpu", "--adapter", "no such adapter"])
        .code(4)
        .says(&["no such adapter", "help:"]);
}
