//! `bench`: what is counted, and what is refused. Times are whatever they are.

use serde_json::Value;

use crate::support::{Folder, backends, fixture, snlp};

fn rows(document: &Value) -> &Vec<Value> {
    document["rows"].as_array().unwrap_or_else(|| panic!("{document}"))
}

fn count(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key} in {row}"))
}

#[test]
fn plans_are_timed_and_counted() {
    let model = fixture("nano/model.onnx");
    for backend in backends() {
        let args = ["bench", &model, "--plan", "6xF1", "--seq", "16", "--rounds", "2", "--json"];
        let found = snlp(&[&args[..], &["--backend", backend]].concat()).code(0).json();
        let [sequential, parallel] = &rows(&found)[..] else { panic!("{found}") };
        assert_eq!((&sequential["plan"], &parallel["plan"]), (&"sequential".into(), &"s6 6xF1".into()));
        assert_eq!(sequential["speedup"], 1.0);
        // The same weights, multiplied alike, in fewer launches.
        assert!(2 * count(parallel, "dispatches") < 3 * count(sequential, "dispatches") / 2);
        assert_eq!(count(parallel, "weight_bytes") / 10_000, count(sequential, "weight_bytes") / 10_000);
        assert!(count(sequential, "flops").abs_diff(count(parallel, "flops")) < 200_000, "{found}");
        for row in rows(&found) {
            for key in ["ms_median", "ms_min", "roofline_ms", "roofline_fraction", "speedup"] {
                assert!(row[key].as_f64().is_some_and(|x| x > 0.0), "{key} in {row}");
            }
            assert_eq!(row["ms_device"].is_null(), backend == "cpu");
        }
        assert!(found["bandwidth"].as_f64().is_some_and(|x| x > 1e7));
    }
}

#[test]
fn shapes_stand_for_models_and_steps_for_forwards() {
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    let file = folder.text("shape.onnx");
    let shape = ["--shape", "d4-w32-h2-v64-llama", "--save", &file];
    let common = ["--plan", "4xF1", "--past", "9", "--rounds", "1", "--json", "--backend", backend];
    let of_shape = snlp(&[&["bench"][..], &shape, &common].concat()).code(0).json();
    let of_file = snlp(&[&["bench", &file][..], &common].concat()).code(0).json();
    for (a, b) in rows(&of_shape).iter().zip(rows(&of_file)) {
        for key in ["plan", "dispatches", "bytes", "flops", "state_bytes"] {
            assert_eq!(a[key], b[key], "{key}");
        }
        // Keys and values of 4 layers: 10 positions of 32 features.
        assert_eq!(count(a, "state_bytes"), 4 * 2 * 10 * 32 * 4);
    }
    let chain = snlp(&["inspect", &file, "--json"]).code(0).json()["chain"].clone();
    assert_eq!((&chain["layers"], &chain["kind"]), (&4.into(), &"pre-norm".into()));
    // Not only language models.
    let vision = fixture("zoo/whisper_encoder-dyn18/model.onnx");
    snlp(&["bench", &vision, "--rounds", "1", "--backend", backend]).code(0);
}

#[test]
fn what_cannot_be_timed_says_why() {
    let model = fixture("nano/model.onnx");
    for (args, part) in [
        (&["--seq", "5000"][..], "more than the 1024 positions"),
        (&["--past", "5000"], "more than the 1024"),
        (&["--plan", "13xF1"], "has 12"),
    ] {
        snlp(&[&["bench", &model][..], args].concat()).code(3).says(&[part, "help:"]);
    }
    snlp(&["bench", &model, "--past", "5", "--batch", "2"]).code(2).says(&["one sequence", "help:"]);
    assert_eq!(snlp(&["bench", &model, "--save", "never.onnx"]).code, 2, "a model is there already");
    for shape in ["d4", "d4-w30-h4", "d4-w32-q7", "d99999999999-w32"] {
        assert_eq!(snlp(&["bench", "--shape", shape]).code, 2, "{shape}");
    }
}
