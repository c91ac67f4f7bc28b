//! `inspect --format html`: one page that loads nothing, whatever the model's names are.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use snlp::onnx::{Model, WriteOptions};

use crate::support::{Folder, fixture, snlp};

fn page(args: &[&str]) -> String {
    snlp(&[&["inspect", "--format", "html"][..], args].concat()).code(0).stdout
}

/// The data that the page's script shows.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").expect("data");
    let (text, _) = rest.split_once("</script>").expect("its end");
    assert!(!text.contains(['<', '>', '&']), "nothing that a tag could end");
    serde_json::from_str(text).expect("JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Names that are markup in every language that they are written in.
const BAD: &str = "</script><img src=x onerror=alert(1)>\"'`<!-- [x]{y|z} #quot; &lt; \\ \u{202e}\n";

/// A model with such names.
fn hostile(folder: &Folder) -> String {
    let mut model = Model::read(Path::new(&fixture("gpt2-tiny/model.onnx"))).expect("read");
    let ids: Vec<_> = model.graph.nodes().map(|(id, _)| id).collect();
    for (i, id) in ids.into_iter().enumerate() {
        model.graph.set_node_name(id, &format!("{BAD}{i}"));
    }
    let mask = model.graph.input("attention_mask").expect("an input");
    model.graph.set_name(mask, BAD);
    model.info.producer_name = BAD.into();
    let path = folder.text("a<b>&'c'.onnx");
    model.write(Path::new(&path), &WriteOptions::default()).expect("written");
    path
}

#[test]
fn every_layer_and_unit_is_on_the_page() {
    let model = fixture("nano/model.onnx");
    let args = [model.as_str(), "--plan", "s2 2*1xF2 3xF2[k=2]"];
    let html = page(&args);
    assert_eq!(html, page(&args), "the same every time");
    let data = data(&html);
    let layers = list(&data["layers"]);
    assert_eq!((layers.len(), list(&data["chain"]["layers_detail"]).len()), (12, 12));
    for layer in layers {
        let kinds: Vec<&str> = list(&layer["parts"]).iter().filter_map(|p| p["kind"].as_str()).collect();
        assert_eq!(kinds, ["attention", "mlp"]);
        for node in list(&layer["parts"]).iter().flat_map(|p| list(&p["nodes"])) {
            let ty = node[2].as_u64().and_then(|i| data["types"][i as usize].as_str());
            assert!(node[0].is_string() && node[1].is_string() && ty.is_some(), "{node}");
        }
        assert!(layer["dispatches"].as_u64() > Some(0) && layer["bytes"].as_u64() > Some(0), "{layer}");
    }
    let segments = list(&data["segments"]);
    let units: u64 = segments.iter().filter_map(|s| s["parallel"]["units"].as_u64()).sum();
    assert_eq!((segments.len(), units), (4, 5), "{}", data["segments"]);
    let covered: u64 = segments.iter().filter_map(|s| s["layers"].as_u64()).sum();
    assert_eq!((covered, &segments[3]["first"], &segments[3]["depth"]), (12, &6.into(), &2.into()));
    let detail = &segments[3]["detail"];
    assert_eq!((&detail["surrogate"], list(&detail["correction"]).len()), (&"identity".into(), 2));
    assert!(!list(&detail["nodes"]).is_empty());
    // Before and after.
    assert_eq!(data["depth"], 6);
    assert!(html.contains("<dt>sequential depth</dt><dd><span>12</span>") && html.contains("<b>6</b>"));
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("default-src 'none'"), "the page may load nothing");
}

#[test]
fn names_are_text_on_the_page() {
    let folder = Folder::new();
    let html = page(&[&hostile(&folder), "--plan", "2xF2", "--explain"]);
    for bad in ["<img", "</script><", "<!-- ", "a<b>", "\u{202e}"] {
        assert!(!html.contains(bad), "{bad:?}");
    }
    let found = data(&html);
    let nodes = list(&found["layers"][0]["parts"][0]["nodes"]);
    let shown = BAD.replace('\u{202e}', "\\u{202e}").replace('\n', "\\n");
    assert!(nodes.iter().any(|n| n[1].as_str().is_some_and(|name| name.starts_with(&shown))), "{nodes:?}");
    assert!(html.contains("<h1>a&lt;b&gt;&amp;&#39;c&#39;.onnx</h1>"));
}

#[test]
fn what_is_not_there_is_said() {
    let html = page(&[&fixture("nano/model.onnx")]);
    assert!(html.contains("--plan &#39;s6 6xF1&#39; --format html"), "how to give a plan");
    assert_eq!(list(&data(&html)["segments"]).len(), 0);
    let html = page(&[&fixture("bad/mlp.onnx")]);
    assert!(html.contains("No chain of layers was found") && !html.contains("id=\"data\""));

    // A converted model has the summary of its original, without nodes.
    let folder = Folder::new();
    let (out, file) = (folder.text("parallel.onnx"), folder.text("page.html"));
    snlp(&["convert", &fixture("nano/model.onnx"), "-o", &out, "--plan", "6xF1"]).code(0);
    assert!(snlp(&["inspect", &out, "--format", "html", "-o", &file]).code(0).stdout.is_empty());
    let html = std::fs::read_to_string(&file).expect("written");
    let found = data(&html);
    assert_eq!((list(&found["chain"]["layers_detail"]).len(), list(&found["layers"]).len()), (12, 0));
    assert_eq!((&found["segments"][1]["parallel"]["units"], &found["depth"]), (&6.into(), &7.into()));
    assert!(html.contains("converted with plan"));
    assert_eq!(folder.files(), ["page.html", "parallel.onnx"]);
    // What a file says of its original may be anything.
    let mut model = Model::read(Path::new(&out)).expect("read");
    for (key, text) in &mut model.info.metadata {
        if key == "snlp.chain" {
            *text = text.replace("pre-norm", "</script><b>").replace("identity", "<i>");
        }
    }
    let path = folder.text("odd.onnx");
    model.write(Path::new(&path), &WriteOptions::default()).expect("written");
    let html = page(&[&path]);
    assert!(!html.contains("</script><b>") && html.contains("&lt;/script&gt;&lt;b&gt;"));
    assert_eq!(data(&html)["chain"]["kind"], "</script><b>");
}

/// Graphviz itself reads what is written for it, and shows names as they are.
#[test]
fn graphviz_reads_its_pictures() {
    if Command::new("dot").arg("-V").output().is_err() {
        eprintln!("SKIPPED: there is no 'dot' (Graphviz) to read the pictures");
        return;
    }
    let folder = Folder::new();
    let bad = hostile(&folder);
    for (model, plan) in [
        (fixture("nano/model.onnx"), "s2 5xF2"),
        (fixture("mhc/hcn.onnx"), "4xF1"),
        (fixture("llama-tiny-past/model.onnx"), "2xF1"),
        (fixture("bad/mlp.onnx"), "sequential"),
        (bad.clone(), "1xF2"),
    ] {
        let file = folder.text("picture.dot");
        snlp(&["inspect", &model, "--plan", plan, "--format", "dot", "-o", &file]).code(0);
        let ran = Command::new("dot").args(["-Tplain", &file]).output().expect("dot runs");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() && said.is_empty(), "{model}: {said}");
        let drawn = String::from_utf8_lossy(&ran.stdout);
        assert!(drawn.contains("node suffix ") || plan == "sequential", "{drawn}");
        if model == bad {
            assert!(drawn.contains("#quot; &lt; \\\\ \\\\u{202e}\\\\n"), "{drawn}");
        }
    }
}
