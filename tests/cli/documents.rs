//! `inspect` in all its forms.

use serde_json::Value;
use snlp::onnx::{Model, ModelInfo, WriteOptions};
use snlp::passes::ir::{DType, Dim, Graph, Op, Type, Unary};

use crate::support::{Folder, fixture, snlp};

fn inspected(args: &[&str]) -> Value {
    let mut all = vec!["inspect"];
    all.extend(args);
    all.push("--json");
    snlp(&all).code(0).json()
}

#[test]
fn the_contract_of_inspect() {
    for (model, layers, hidden) in
        [("nano", 12, 72), ("gpt2-tiny", 4, 32), ("llama-tiny", 4, 32), ("llama-tiny-dynamo", 4, 32)]
    {
        let model = fixture(&format!("{model}/model.onnx"));
        let found = inspected(&[&model]);
        let m = &found["model"];
        for key in ["producer", "opsets", "parameters", "bytes", "inputs", "outputs"] {
            assert!(!m[key].is_null(), "{key}: {found}");
        }
        assert_eq!(m["inputs"][0]["name"], "input_ids");
        assert_eq!(m["inputs"][0]["dtype"], "i64");
        assert_eq!(m["bytes"], std::fs::metadata(&model).expect("there").len());
        let chain = &found["chain"];
        assert_eq!((&chain["layers"], &chain["hidden"]), (&layers.into(), &hidden.into()), "{chain}");
        assert_eq!((&chain["streams"], &chain["surrogate"]), (&1.into(), &"identity".into()));
        assert_eq!(chain["kind"], "pre-norm", "{model}");
        for key in ["classes", "taps", "side_inputs", "layers_detail"] {
            assert!(chain[key].is_array(), "{key}: {chain}");
        }
        assert_eq!(chain["layers_detail"].as_array().map(Vec::len), Some(layers));
        assert!(chain["prefix_nodes"].is_u64() && chain["suffix_nodes"].is_u64());
        assert!(found["plan"].is_null());
    }
    let nano = inspected(&[&fixture("nano/model.onnx")]);
    assert_eq!(nano["chain"]["taps"][0]["after_layer"], 6, "{nano}");
    assert_eq!(nano["model"]["parameters"].as_u64().map(|n| n >= 820_250), Some(true));
}

#[test]
fn a_plan_is_shown_beside_the_original() {
    let model = fixture("nano/model.onnx");
    let found = inspected(&[&model, "--plan", "6xF1[init=h0,k=2]"]);
    assert_eq!(found["plan"], "s6 6xF1[k=2]");
    assert_eq!(
        (&found["original"]["sequential_depth"], &found["rewritten"]["sequential_depth"]),
        (&12.into(), &8.into())
    );
    assert_eq!(found["rewritten"]["corrections"], 2);
    let (before, after) = (&found["original"], &found["rewritten"]);
    assert!(after["dispatches"].as_u64() < before["dispatches"].as_u64(), "{before} {after}");
    assert!(after["nodes"].is_u64() && after["matmuls"].is_u64());
    let text = snlp(&["inspect", &model, "--plan", "6xF1"]).code(0).stdout;
    for part in
        ["12 layers", "layers 0-5", "unit 1", "sequential depth", "original", "rewritten", "dispatches"]
    {
        assert!(text.contains(part), "no '{part}' in:\n{text}");
    }
    assert!(text.lines().count() <= 50, "one screen, not {}:\n{text}", text.lines().count());
    let explained = snlp(&["inspect", &model, "--explain"]).code(0).stdout;
    assert!(explained.contains("clean-up"), "{explained}");
}

/// Iterations beyond the number of units change nothing and are not shown.
#[test]
fn plans_are_shown_in_normal_form() {
    let model = fixture("gpt2-tiny/model.onnx");
    assert_eq!(inspected(&[&model, "--plan", "2xF1[k=3]"])["plan"], "s2 2xF1[k=2]");
    assert_eq!(inspected(&[&model, "--plan", "1xF2[k=9]"])["plan"], "s2 1xF2");
}

#[test]
fn layers_are_numbered_from_0_and_unknown_figures_left_out() {
    let nano = fixture("nano/model.onnx");
    let tap = &inspected(&[&nano])["chain"]["taps"][0];
    let text = snlp(&["inspect", &nano]).code(0).stdout;
    assert!(text.contains(&format!("after layer {}", tap["after_layer"])), "{tap} {text}");
    let dot = snlp(&["inspect", &nano, "--format", "dot"]).code(0).stdout;
    assert!(dot.contains(&format!("layer{} -> suffix [style=dashed]", tap["after_layer"])), "{dot}");
    let text = snlp(&["inspect", &fixture("bad/mlp.onnx")]).code(0).stdout;
    assert!(!text.contains("sequential depth"), "{text}");
}

/// Names that move the cursor, begin lines and fill screens.
#[test]
fn text_from_a_model_is_made_fit_for_people() {
    let folder = Folder::new();
    let long = "n\n\x1b[2J".repeat(100);
    let mut g = Graph::new("g");
    let x = g.add_input(&long, Type::new(DType::F32, vec![Dim::symbol("t\x1b[0m"), 2i64.into()]));
    let y = g.add_named(&long, Op::Unary(Unary::Neg), &[x]).expect("typed");
    g.add_output("y\x07\r", y);
    let mut info = ModelInfo::standard(17);
    info.producer_name = format!("\x1b[31mEVIL\n\n{long}");
    let model = Model { graph: g, info };
    let path = folder.text("hostile.onnx");
    model.write(&path, &WriteOptions::default()).expect("written");
    let check = |text: &str| {
        assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.lines().all(|l| l.chars().count() < 400), "{text}");
        assert!(text.contains("n\\n\\u{1b}[2J") && text.contains('…'), "{text}");
    };
    let text = snlp(&["inspect", &path, "--explain"]).code(0).stdout;
    check(&text);
    assert!(text.contains("\\u{1b}[31mEVIL\\n\\n") && text.contains("y\\u{7}\\r"), "{text}");
    check(&snlp(&["run", &path]).code(3).stderr);
    let found = inspected(&[&path]);
    assert_eq!(
        (&found["model"]["inputs"][0]["name"], &found["model"]["outputs"][0]["name"]),
        (&long.as_str().into(), &"y\x07\r".into())
    );
}

#[test]
fn a_newer_version_of_the_format_is_noticed() {
    let folder = Folder::new();
    let mut model = Model::read(fixture("bad/mlp.onnx")).expect("read");
    model.info.ir_version = 99;
    let path = folder.text("new.onnx");
    model.write(&path, &WriteOptions::default()).expect("written");
    let ran = snlp(&["inspect", &path, "-v"]).code(0);
    assert!(ran.stderr.contains("IR version 99 is newer"), "{}", ran.stderr);
    assert!(snlp(&["inspect", &path]).code(0).stderr.is_empty());
}

#[test]
fn pictures_and_files() {
    let model = fixture("gpt2-tiny/model.onnx");
    let dot = snlp(&["inspect", &model, "--plan", "2xF2", "--format", "dot"]).code(0).stdout;
    assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}') && dot.contains("layer3"), "{dot}");
    let mermaid = snlp(&["inspect", &model, "--format", "mermaid"]).code(0).stdout;
    assert!(mermaid.starts_with("flowchart") && mermaid.contains("layer3"), "{mermaid}");
    let folder = Folder::new();
    let out = folder.text("report.json");
    let ran = snlp(&["inspect", &model, "--format", "json", "-o", &out]).code(0);
    assert!(ran.stdout.is_empty());
    let text = std::fs::read_to_string(&out).expect("written");
    let _: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(folder.files(), ["report.json"]);
}

#[test]
fn a_converted_model_shows_its_original() {
    let model = fixture("nano/model.onnx");
    let folder = Folder::new();
    let out = folder.text("parallel.onnx");
    snlp(&["convert", &model, "-o", &out, "--plan", "6xF1"]).code(0);
    let found = inspected(&[&out]);
    assert_eq!((&found["plan"], &found["chain"]["layers"]), (&"s6 6xF1".into(), &12.into()), "{found}");
    assert_eq!(found["rewritten"]["sequential_depth"], 7);
    assert_eq!(found["rewritten"]["corrections"], 1, "{found}");
    assert_eq!(found["model"]["metadata"]["snlp.plan"], "s6 6xF1");
    assert_eq!(found["model"]["metadata"]["snlp.source_sha256"], inspected(&[&model])["model"]["sha256"]);
    let text = snlp(&["inspect", &out]).code(0).stdout;
    assert!(
        text.contains("(converted)") && text.contains("original") && text.contains("rewritten"),
        "{text}"
    );
    // Plans apply to originals.
    let again = folder.text("again.onnx");
    snlp(&["convert", &out, "-o", &again, "--plan", "2xF1"]).code(3).says(&["converted already", "s6 6xF1"]);
    assert_eq!(folder.files(), ["parallel.onnx"]);
}
