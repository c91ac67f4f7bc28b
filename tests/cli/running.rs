//! `run`, `convert --verify` and `eval` on every backend there is.

use serde_json::Value;
use snlp::onnx::{Model, ModelInfo, WriteOptions};
use snlp::passes::ir::{Binary, DType, Graph, Op, Tensor, Type, Unary};

use crate::support::{Folder, backends, fixture, snlp};

#[test]
fn outputs_agree_with_the_expected_ones() {
    for backend in backends() {
        for model in ["gpt2-tiny", "llama-tiny", "llama-tiny-dynamo"] {
            let file = fixture(&format!("{model}/model.onnx"));
            let inputs = fixture(&format!("{model}/inputs_plain.npz"));
            let expected = fixture(&format!("{model}/expected_plain.npz"));
            let args =
                ["run", &file, "--inputs", &inputs, "--expect", &expected, "--backend", backend, "--json"];
            let found = snlp(&args).code(0).json();
            assert!(found["device"].as_str().is_some_and(|d| !d.is_empty()), "{found}");
            let output = &found["outputs"][0];
            assert_eq!(
                (&output["name"], &output["dtype"], &output["ok"]),
                (&"logits".into(), &"f32".into(), &true.into())
            );
            assert!(output["max_rel"].as_f64().is_some_and(|x| x < 1e-4), "{output}");
            assert_eq!(output["sha256"].as_str().map(str::len), Some(64));
            // K = N equals the sequential model.
            let exact: Vec<&str> = args.iter().copied().chain(["--plan", "4xF1[k=4]"]).collect();
            assert_eq!(snlp(&exact).code(0).json()["ok"], true);
            // Left and right padding.
            for side in ["", "_right"] {
                let [inputs, expected] =
                    ["inputs", "expected"].map(|n| fixture(&format!("{model}/{n}{side}.npz")));
                snlp(&["run", &file, "--inputs", &inputs, "--expect", &expected, "--backend", backend])
                    .code(0);
            }
            // One iteration is another function: the comparison must notice.
            let other: Vec<&str> = args.iter().copied().chain(["--plan", "4xF1"]).collect();
            let found = snlp(&other).code(1).says(&["output 'logits'[", "was expected", "allows"]).json();
            assert!(found["outputs"][0]["first_outlier"]["index"].is_array(), "{found}");
        }
    }
}

/// A model with two outputs, `x` and `2 x`.
fn two_outputs(folder: &Folder) -> String {
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::new(DType::F32, vec![2i64.into()]));
    let y = g.add_named("twice", Op::Binary(Binary::Add), &[x, x]).expect("typed");
    let z = g.add_named("minus", Op::Unary(Unary::Neg), &[x]).expect("typed");
    g.add_output("y", y);
    g.add_output("z", z);
    let model = Model { graph: g, info: ModelInfo::standard(17) };
    model.write(folder.path("two.onnx"), &WriteOptions::default()).expect("written");
    folder.text("two.onnx")
}

#[test]
fn every_expected_output_is_compared() {
    let folder = Folder::new();
    let model = two_outputs(&folder);
    let archive = |name: &str, arrays: &[(&str, Tensor)]| {
        let file = std::fs::File::create(folder.path(name)).expect("created");
        snlp::npz::write_npz(file, arrays.iter().map(|(n, t)| (*n, t))).expect("written");
        folder.text(name)
    };
    let floats = |x: &[f32]| Tensor::from_vec(vec![x.len()], x.to_vec()).expect("fits");
    let inputs = archive("in.npz", &[("x", floats(&[1.0, 2.0]))]);
    for backend in backends() {
        let run = |expected: &str, more: &[&str]| {
            let args = ["run", &model, "--inputs", &inputs, "--expect", expected, "--backend", backend];
            snlp(&[&args[..], more].concat())
        };
        let good = archive("e.npz", &[("z", floats(&[-1.0, -2.0]))]);
        run(&good, &[]).code(0);
        // Nothing compared is no agreement.
        let none = archive("e.npz", &[]);
        run(&none, &[]).code(3).says(&["e.npz", "no arrays", "y, z", "help:"]);
        let other = archive("e.npz", &[("z", floats(&[-1.0, -2.0])), ("w", floats(&[1.0]))]);
        run(&other, &["--json"]).code(3).says(&["e.npz", "'w'", "y, z", "help:"]);
        // A mismatch of one output does not keep the others from being compared.
        for (wrong, what) in [(floats(&[2.0]), "shape"), (Tensor::ints(&[2, 4]), "dtype")] {
            let expected = archive("e.npz", &[("y", wrong), ("z", floats(&[-1.0, -3.0]))]);
            let ran =
                run(&expected, &["--json"]).code(1).says(&["output 'y' has", what, "output 'z'[1] is -2"]);
            let found = ran.json();
            let (y, z) = (&found["outputs"][0], &found["outputs"][1]);
            assert_eq!((&found["ok"], &y["ok"], &z["ok"]), (&false.into(), &false.into(), &false.into()));
            assert!(y["mismatch"].as_str().is_some_and(|m| m.contains(what)), "{found}");
            assert_eq!(z["first_outlier"]["index"], serde_json::json!([1]), "{found}");
            let ran = run(&expected, &[]).code(1).says(&["output 'y' has", what, "output 'z'[1] is -2"]);
            assert!(ran.stdout.contains(what) && ran.stdout.contains("1 element outside"), "{}", ran.stdout);
        }
    }
}

#[test]
fn products_over_an_axis_along_which_an_operand_repeats_itself() {
    // Each row of the product is the sum of the weights' row times one row that is repeated.
    let folder = Folder::new();
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::new(DType::F32, vec![1i64.into(), 3i64.into(), 1i64.into()]));
    let shape = g.ints(&[1, 3, 4]);
    let wide = g.add(Op::Expand, &[x, shape]).expect("typed");
    let wide = g.add(Op::Transpose { perm: vec![0, 2, 1] }, &[wide]).expect("typed");
    let w = g.constant(Tensor::from_vec(vec![2, 4], (0..8u8).map(f32::from).collect()).expect("fits"));
    let y = g.add(Op::MatMul, &[w, wide]).expect("typed");
    g.add_output("y", y);
    let model = Model { graph: g, info: ModelInfo::standard(17) };
    model.write(folder.path("m.onnx"), &WriteOptions::default()).expect("written");
    let archive = |name: &str, array: (&str, Tensor)| {
        let file = std::fs::File::create(folder.path(name)).expect("created");
        snlp::npz::write_npz(file, [(array.0, &array.1)]).expect("written");
        folder.text(name)
    };
    let floats = |shape: &[usize], x: &[f32]| Tensor::from_vec(shape.to_vec(), x.to_vec()).expect("fits");
    let inputs = archive("in.npz", ("x", floats(&[1, 3, 1], &[1.0, -2.0, 0.5])));
    let expected = archive("e.npz", ("y", floats(&[1, 2, 3], &[6.0, -12.0, 3.0, 22.0, -44.0, 11.0])));
    let model = folder.text("m.onnx");
    for backend in backends() {
        snlp(&["run", &model, "--inputs", &inputs, "--expect", &expected, "--backend", backend]).code(0);
    }
}

#[test]
fn integers_computed_from_floats_index_and_add_up() {
    // Counting from the end, and running sums, of what a run alone knows.
    let folder = Folder::new();
    let mut g = Graph::new("g");
    let x = g.add_input("x", Type::new(DType::F32, vec![3i64.into(), 2i64.into()]));
    let whole = g.add(Op::Cast { to: DType::I64 }, &[x]).expect("typed");
    let sums = g.add(Op::CumSum { axis: 0, exclusive: false, reverse: false }, &[whole]).expect("typed");
    let sums = g.add(Op::Cast { to: DType::F32 }, &[sums]).expect("typed");
    g.add_output("sums", sums);
    let table = Tensor::from_vec(vec![3, 2], (0..6u8).map(f32::from).collect()).expect("fits");
    let table = g.constant(table);
    let rows = g.add(Op::GatherNd { batch_dims: 0 }, &[table, whole]).expect("typed");
    g.add_output("rows", rows);
    let model = Model { graph: g, info: ModelInfo::standard(17) };
    model.write(folder.path("m.onnx"), &WriteOptions::default()).expect("written");
    let archive = |name: &str, arrays: &[(&str, Tensor)]| {
        let file = std::fs::File::create(folder.path(name)).expect("created");
        snlp::npz::write_npz(file, arrays.iter().map(|(n, t)| (*n, t))).expect("written");
        folder.text(name)
    };
    let floats = |shape: &[usize], x: &[f32]| Tensor::from_vec(shape.to_vec(), x.to_vec()).expect("fits");
    let inputs = archive("in.npz", &[("x", floats(&[3, 2], &[2.0, -1.0, -3.0, 1.0, 1.0, 0.0]))]);
    let sums = floats(&[3, 2], &[2.0, -1.0, -1.0, 0.0, 0.0, 0.0]);
    let expected = archive("e.npz", &[("sums", sums), ("rows", floats(&[3], &[5.0, 1.0, 2.0]))]);
    let model = folder.text("m.onnx");
    for backend in backends() {
        snlp(&["run", &model, "--inputs", &inputs, "--expect", &expected, "--backend", backend]).code(0);
    }
}

#[test]
fn small_models_without_a_chain_run() {
    for backend in backends() {
        for name in ["cnn", "mlp", "if_const", "functions"] {
            // Pooling has no kernel.
            if (backend, name) == ("gpu", "cnn") {
                continue;
            }
            let [model, inputs, expected] =
                ["onnx", "inputs.npz", "expected.npz"].map(|e| fixture(&format!("bad/{name}.{e}")));
            snlp(&["run", &model, "--inputs", &inputs, "--expect", &expected, "--backend", backend]).code(0);
        }
    }
}

#[test]
fn outputs_are_written_whole_or_not_at_all() {
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    let out = folder.text("out.npz");
    std::fs::write(&out, "before").expect("written");
    let model = fixture("gpt2-tiny/model.onnx");
    snlp(&["run", &model, "--outputs", &out, "--backend", backend]).code(3);
    assert_eq!(std::fs::read_to_string(&out).expect("there"), "before");
    let inputs = fixture("gpt2-tiny/inputs_plain.npz");
    let ran = snlp(&["run", &model, "--inputs", &inputs, "--outputs", &out, "--backend", backend]).code(0);
    assert!(ran.stdout.contains("logits") && ran.stderr.is_empty(), "{} {}", ran.stdout, ran.stderr);
    let found = snlp::npz::read_npz(std::path::Path::new(&out)).expect("an archive");
    assert_eq!((found.len(), found[0].0.as_str()), (1, "logits"));
    assert_eq!(folder.files(), ["out.npz"]);
}

#[test]
fn conversion_is_verified() {
    let model = fixture("gpt2-tiny/model.onnx");
    for backend in backends() {
        for extra in [&[][..], &["--inline"], &["--external-data"]] {
            let folder = Folder::new();
            let (out, report) = (folder.text("out.onnx"), folder.text("report.json"));
            let mut args = vec!["convert", &model, "-o", &out, "--plan", "s1 3xF1[k=2]", "--verify"];
            args.extend(["--report", &report, "--json", "--backend", backend]);
            args.extend(extra);
            let found = snlp(&args).code(0).json();
            assert_eq!(
                (&found["plan"], &found["verify"]["ok"]),
                (&"s1 3xF1[k=2]".into(), &true.into()),
                "{found}"
            );
            assert_eq!(found["rewritten"]["sequential_depth"], 3);
            let written: Value =
                serde_json::from_str(&std::fs::read_to_string(&report).expect("there")).expect("JSON");
            assert_eq!(written["plan"], found["plan"]);
            let (before, after) = (found["bytes"]["original"].as_f64(), found["bytes"]["output"].as_f64());
            let (before, after) = (before.expect("a number"), after.expect("a number"));
            assert!(after <= 1.01 * before + 65536.0, "{before} became {after}");
        }
    }
}

#[test]
fn a_sequential_conversion_changes_nothing() {
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    let out = folder.text("out.onnx");
    let model = fixture("llama-tiny/model.onnx");
    snlp(&["convert", &model, "-o", &out, "--plan", "sequential"]).code(0);
    let [inputs, expected] =
        ["inputs_plain", "expected_plain"].map(|n| fixture(&format!("llama-tiny/{n}.npz")));
    snlp(&["run", &out, "--inputs", &inputs, "--expect", &expected, "--backend", backend]).code(0);
    // It is an original still: plans apply.
    assert_eq!(snlp(&["inspect", &out, "--json"]).code(0).json()["plan"], "sequential");
    let again = folder.text("again.onnx");
    snlp(&["convert", &out, "-o", &again, "--plan", "4xF1"]).code(0);
    // External weights are not written over.
    let outside = folder.text("outside.onnx");
    snlp(&["convert", &out, "-o", &outside, "--plan", "sequential", "--external-data"]).code(0);
    let link = folder.text("link.onnx");
    std::fs::rename(&outside, &link).expect("renamed");
    snlp(&["convert", &link, "-o", &outside, "--plan", "4xF1", "--external-data"])
        .code(2)
        .says(&["own weights"]);
}

/// The bundled models under their references' perplexities (PyTorch's, `reference.json`).
#[test]
fn perplexities_are_the_references() {
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(fixture(name)).expect("there")).expect("JSON")
    };
    let plans = ["6xF1", "3xF2", "9xF1[k=2]"];
    perplexities_are(fixture("nano/model.onnx"), &read("nano/reference.json")["rows"], &plans);
    // The streams of each token are mixed by matrices of its own.
    let plans =
        ["4xF1[k=1,surrogate=transfer]", "8xF1[k=2,surrogate=transfer]", "8xF1[k=2,surrogate=identity]"];
    perplexities_are(fixture("mhc/hcn.onnx"), &read("mhc/reference.json")["models"]["hcn"]["rows"], &plans);
}

fn perplexities_are(model: String, rows: &Value, plans: &[&str]) {
    let rows = rows.as_array().expect("rows");
    let expected = |plan: &str| {
        rows.iter().find(|r| r["plan"] == plan).expect("a row")["ppl"].as_f64().expect("a number")
    };
    // Software Vulkan takes minutes for these windows.
    let Some(backend) = backends().into_iter().find(|b| *b == "cpu") else { return };
    let tokens = fixture("nano/val_windows.npz");
    let mut args = vec!["eval", &model, "--tokens", &tokens, "--backend", backend, "--json"];
    let given: Vec<String> = plans
        .iter()
        .map(|p| if p.contains('[') { p.replace(']', ",tap=unit]") } else { format!("{p}[tap=unit]") })
        .collect();
    for plan in &given {
        args.extend(["--plan", plan]);
    }
    let found = snlp(&args).code(0).json();
    let close =
        |a: &Value, e: f64| assert!((a.as_f64().expect("a number") / e - 1.0).abs() < 1e-3, "{a} {e}");
    close(&found["sequential"]["ppl"], expected("sequential"));
    assert_eq!(found["sequential"]["tokens"], 16 * 256);
    for (i, plan) in plans.iter().enumerate() {
        let row = &found["plans"][i];
        close(&row["ppl"], expected(plan));
        for key in ["nll", "kl", "top1", "cosine", "ms", "speedup"] {
            assert!(row[key].is_f64(), "{key}: {row}");
        }
    }
}

/// Units that iterate as often as there are units are the sequential model; a plan that does less is not.
#[test]
fn eval_compares_with_the_sequential_model() {
    let folder = Folder::new();
    let model = fixture("nano/model.onnx");
    let windows =
        snlp::npz::read_npz(std::path::Path::new(&fixture("nano/val_windows.npz"))).expect("windows");
    let tokens: Vec<i64> = windows[0].1.to_i64().expect("whole").into_iter().take(2 * 17).collect();
    let windows = snlp::passes::ir::Tensor::from_vec(vec![2, 17], tokens).expect("fits");
    let file = std::fs::File::create(folder.path("w.npz")).expect("created");
    snlp::npz::write_npz(file, [("windows", &windows)]).expect("written");
    let tokens = folder.text("w.npz");
    for backend in backends() {
        let args = ["eval", &model, "--tokens", &tokens, "--plan", "3xF1[k=3]", "--plan", "6xF2", "--json"];
        let found = snlp(&[&args[..], &["--backend", backend]].concat()).code(0).json();
        let (same, other) = (&found["plans"][0], &found["plans"][1]);
        assert_eq!((&same["plan"], &same["top1"]), (&"s9 3xF1[k=3]".into(), &1.0.into()), "{found}");
        assert!(
            same["kl"].as_f64().is_some_and(|kl| kl < 1e-6)
                && other["kl"].as_f64().is_some_and(|kl| kl > 1e-3)
        );
        let (a, b) = (found["sequential"]["ppl"].as_f64(), same["ppl"].as_f64());
        assert!(a.zip(b).is_some_and(|(a, b)| (a / b - 1.0).abs() < 1e-4), "{found}");
        let text =
            snlp(&["eval", &model, "--tokens", &tokens, "--plan", "6xF1", "--backend", backend]).code(0);
        assert!(
            text.stdout.contains("sequential") && text.stdout.contains("speed-up") && text.stderr.is_empty()
        );
        assert!(found["converted"].is_null());
        // A converted model is measured as what it is.
        let converted = folder.text("parallel.onnx");
        snlp(&["convert", &model, "-o", &converted, "--plan", "6xF1"]).code(0);
        let args = ["eval", &converted, "--tokens", &tokens, "--backend", backend];
        let text = snlp(&args).code(0).stdout;
        assert!(text.contains("\nas converted: s6 6xF1 ") && !text.contains("\nsequential"), "{text}");
        let found = snlp(&[&args[..], &["--json"]].concat()).code(0).json();
        assert_eq!(found["converted"], "s6 6xF1");
        assert!(found["sequential"]["ppl"].is_f64(), "{found}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_told() {
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    let model = folder.text("model.onnx");
    std::fs::copy(fixture("nano/model.onnx"), &model).expect("copied");
    let args = ["generate", &model, "--prompt-ids", "65", "-n", "3", "--backend", backend];
    let plain = snlp(&args).code(0);
    assert!(!plain.stderr.contains("JSON"), "{}", plain.stderr);
    std::fs::write(folder.path("generation_config.json"), "{bad").expect("written");
    let told = snlp(&args).code(0);
    assert!(told.stderr.contains("generation_config.json' is no JSON"), "{}", told.stderr);
    assert_eq!(told.stdout, plain.stdout);
}

#[test]
fn texts_may_end_where_the_positions_do() {
    let Some(backend) = backends().first().copied() else { return };
    let model = fixture("nano/model.onnx");
    let ids = vec!["65"; 1020].join(",");
    let generate = |more: &[&str]| {
        let args = ["generate", &model, "--prompt-ids", &ids, "--ignore-eos", "--json", "--backend", backend];
        snlp(&[&args[..], more].concat())
    };
    // Nothing goes on from the last token.
    let whole = generate(&["-n", "5"]).code(0).json();
    assert_eq!(whole["tokens"].as_array().map(Vec::len), Some(5));
    generate(&["-n", "6"]).code(3).says(&["more than the 1024", "help:"]);
    let drafted = generate(&["-n", "4", "--speculate", "6xF1"]).code(0).json();
    assert_eq!(drafted["tokens"].as_array().map(|t| &t[..]), whole["tokens"].as_array().map(|t| &t[..4]));
    // What the model has no token for, and what no text can hold.
    let ids = ["generate", &model, "--prompt-ids", "512", "--backend", backend];
    snlp(&ids).code(3).says(&["token 512", "0 to 511"]);
    snlp(&["generate", &model, "--prompt-ids", "1", "--stop", "And"])
        .code(2)
        .says(&["--stop", "--tokenizer"]);
    assert_eq!(snlp(&["generate", &model, "--prompt", "a", "-n", "99999999999"]).code, 2);
}
