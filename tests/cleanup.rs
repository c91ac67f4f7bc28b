//! The clean-up on real exports: what is recognised, and that every step computes what the original does.
//!
//! The models lie in `../shared` (or `$SNLP_SHARED`); without them the tests say so and pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use snlp::npz::read_npz;
use snlp::onnx::Model;
use snlp_passes::eval::eval_graph;
use snlp_passes::ir::{Graph, Op, Tensor, ValueId};
use snlp_passes::rewrite::{Dialect, bind, bindings_from, clean_up, lower};

fn shared() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("SNLP_SHARED").map_or_else(beside, PathBuf::from);
    if path.join("models").is_dir() {
        return Some(path);
    }
    eprintln!("SKIPPED: no models at {} (set SNLP_SHARED)", path.display());
    None
}

fn histogram(graph: &Graph) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for (_, node) in graph.nodes() {
        *out.entry(node.op.name()).or_insert(0) += 1;
    }
    out
}

type Arrays = Vec<(String, Tensor)>;

fn evaluate(graph: &Graph, arrays: &Arrays) -> Vec<Tensor> {
    eval_graph(graph, &given(graph, arrays)).unwrap()
}

/// `None` where the model has an operator that the evaluator does not know.
fn try_evaluate(graph: &Graph, arrays: &Arrays) -> Option<Vec<Tensor>> {
    eval_graph(graph, &given(graph, arrays)).inspect_err(|e| println!("  not compared: {e}")).ok()
}

fn given(graph: &Graph, arrays: &Arrays) -> BTreeMap<ValueId, Tensor> {
    graph
        .inputs()
        .iter()
        .map(|v| {
            let name = graph.value(*v).name.clone().unwrap();
            let array = arrays.iter().find(|(n, _)| *n == name);
            (*v, array.unwrap_or_else(|| panic!("no array '{name}'")).1.clone())
        })
        .collect()
}

/// The largest difference relative to the largest finite element, over all outputs.
fn distance(expected: &[Tensor], actual: &[Tensor]) -> f64 {
    assert_eq!(expected.len(), actual.len());
    let mut worst: f64 = 0.0;
    for (e, a) in expected.iter().zip(actual) {
        assert_eq!((e.dtype(), e.shape()), (a.dtype(), a.shape()));
        let (e, a) = (e.to_f64(), a.to_f64());
        let scale = e.iter().filter(|x| x.is_finite()).fold(1e-6, |m: f64, x| m.max(x.abs()));
        for (e, a) in e.iter().zip(&a) {
            if e != a && !(e.is_nan() && a.is_nan()) {
                worst =
                    worst.max(if a.is_nan() || e.is_nan() { f64::INFINITY } else { (e - a).abs() / scale });
            }
        }
    }
    worst
}

/// Counts of operators after the clean-up.
type Expected<'a> = &'a [(&'a str, usize)];

struct Case<'a> {
    model: &'a str,
    arrays: &'a str,
    tolerance: f64,
    expected: Expected<'a>,
    /// Operators that must be gone.
    gone: &'a [&'a str],
}

const SHAPE_ARITHMETIC: &[&str] = &["Shape", "Size", "Gemm", "Identity"];

fn check(root: &Path, case: &Case<'_>) -> Graph {
    let mut failures: Vec<String> = vec![];
    let path = root.join(case.model);
    let model = Model::read(&path).unwrap_or_else(|e| panic!("{}: {e}", case.model));
    let arrays = read_npz(&root.join(case.arrays)).unwrap();
    let original = evaluate(&model.graph, &arrays);

    let mut clean = model.graph.clone();
    let report = clean_up(&mut clean).unwrap_or_else(|e| panic!("{}: {e}", case.model));
    let (before, after) = (histogram(&model.graph), histogram(&clean));
    println!("{}: {} -> {} nodes", case.model, report.nodes_before, report.nodes_after);
    println!("  before {before:?}\n  after  {after:?}");
    for note in report.mismatches.iter().take(8) {
        println!("  {note}");
    }
    let d = distance(&original, &evaluate(&clean, &arrays));
    assert!(d <= case.tolerance, "{}: cleaned differs by {d:e}", case.model);

    let mut basic = clean.clone();
    lower(&mut basic, &Dialect::basic()).unwrap();
    let d = distance(&original, &evaluate(&basic, &arrays));
    assert!(d <= case.tolerance, "{}: lowered differs by {d:e}", case.model);

    let shapes: Vec<(&str, &[usize])> = arrays
        .iter()
        .filter(|(n, _)| clean.inputs().iter().any(|v| clean.value(*v).name.as_ref() == Some(n)))
        .map(|(n, t)| (n.as_str(), t.shape()))
        .collect();
    let bound = bind(&clean, &bindings_from(&clean, &shapes).unwrap()).unwrap();
    println!("  bound  {:?}", histogram(&bound));
    let d = distance(&original, &evaluate(&bound, &arrays));
    assert!(d <= case.tolerance, "{}: bound differs by {d:e}", case.model);

    for (op, n) in case.expected {
        let found = after.get(*op).copied().unwrap_or(0);
        if found != *n {
            failures.push(format!("{found} {op} instead of {n}"));
        }
    }
    for op in SHAPE_ARITHMETIC.iter().chain(case.gone).filter(|op| after.contains_key(**op)) {
        failures.push(format!("{op} is left"));
    }
    assert!(failures.is_empty(), "{}: {} in {after:?}", case.model, failures.join(", "));
    assert!(!histogram(&bound).contains_key("Dims"), "{}: sizes are left in the bound graph", case.model);
    clean
}

#[test]
fn gpt2() {
    let Some(root) = shared() else { return };
    for (id, norms) in [("gpt2-ts14", 13), ("gpt2-ts17", 13), ("gpt2-dyn18", 13)] {
        for arrays in ["inputs", "inputs_alt"] {
            check(
                &root.join("models"),
                &Case {
                    model: &format!("{id}/model.onnx"),
                    arrays: &format!("{id}/{arrays}.npz"),
                    tolerance: 1e-5,
                    expected: &[("LayerNormalization", norms), ("GeluTanh", 6), ("Attention", 6)],
                    gone: &["Softmax", "Tanh", "Sqrt", "ReduceMean"],
                },
            );
        }
    }
}

#[test]
fn llama_and_qwen() {
    let Some(root) = shared() else { return };
    for (id, tolerance) in [
        ("llama-ts17", 1e-5),
        ("llama-dyn18", 1e-5),
        ("llama-dyn23", 1e-5),
        ("qwen2-ts17", 1e-5),
        ("llama-ts17-fp16", 1e-2),
    ] {
        check(
            &root.join("models"),
            &Case {
                model: &format!("{id}/model.onnx"),
                arrays: &format!("{id}/inputs.npz"),
                tolerance,
                expected: &[("RMSNormalization", 13), ("Silu", 6), ("Attention", 6), ("RotaryEmbedding", 12)],
                gone: &["Softmax", "Sigmoid", "Sqrt", "ReduceMean", "Neg", "Expand"],
            },
        );
    }
}

/// Every model there is survives the clean-up, and computes the same where the evaluator knows all of it.
#[test]
fn every_model() {
    let Some(root) = shared() else { return };
    let mut checked = 0;
    for entry in std::fs::read_dir(root.join("models")).unwrap() {
        let dir = entry.unwrap().path();
        let model = Model::read(dir.join("model.onnx")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut clean = model.graph.clone();
        let report = clean_up(&mut clean).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        println!("{}: {} -> {}", dir.display(), report.nodes_before, report.nodes_after);
        let arrays = read_npz(&dir.join("inputs.npz")).unwrap();
        let Some(original) = try_evaluate(&model.graph, &arrays) else { continue };
        let d = distance(&original, &evaluate(&clean, &arrays));
        let tolerance = if original.iter().any(|t| t.dtype().size() == 2) { 1e-2 } else { 1e-5 };
        assert!(d <= tolerance, "{}: cleaned differs by {d:e}", dir.display());
        checked += 1;
    }
    assert!(checked > 0, "no model was compared");
}

/// The trained models, whose exports limit attention to a window of 256 positions.
#[test]
fn trained() {
    let Some(root) = shared() else { return };
    for file in ["nox0ve_idn.ts17", "nox0ve_idn.dynamo23", "mhc_hcn.ts17"] {
        let name = file.split('.').next().unwrap();
        let case = Case {
            model: &format!("oracle/{file}.onnx"),
            arrays: &format!("oracle/{name}.golden.npz"),
            tolerance: 1e-5,
            expected: &[("Attention", 12), ("RotaryEmbedding", 24)],
            gone: &["Softmax", "Sqrt", "ReduceLogSumExp", "Where", "LessOrEqual"],
        };
        let graph = check(&root, &case);
        let attentions = graph.nodes().filter_map(|(_, n)| match n.op {
            Op::Attention(a) => Some((a.causal, a.window, n.input(3).is_some())),
            _ => None,
        });
        let found: Vec<_> = attentions.collect();
        println!("  attention {found:?}");
    }
}

/// Gemma 2 alternates between attention to all positions and to a window.
#[test]
fn windows_are_read() {
    let Some(root) = shared() else { return };
    let mut graph = Model::read(root.join("models/gemma2-ts17/model.onnx")).unwrap().graph;
    clean_up(&mut graph).unwrap();
    let mut found: Vec<_> = graph
        .nodes()
        .filter_map(|(_, n)| match n.op {
            Op::Attention(a) => Some((a.causal, a.window.is_some(), n.input(3).is_some())),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    let expected = [[(true, false, true); 3], [(true, true, true); 3]].concat();
    assert_eq!(found, expected);
}

/// Architectures of which at least the listed operators are recognised.
#[test]
fn others() {
    let Some(root) = shared() else { return };
    let cases: &[(&str, f64, Expected<'_>)] = &[
        ("models/bert-ts17", 1e-5, &[("LayerNormalization", 13), ("GeluErf", 6), ("Attention", 6)]),
        ("models/bert-dyn18", 1e-5, &[("LayerNormalization", 13), ("GeluErf", 6), ("Attention", 6)]),
        ("models/bloom-ts14", 1e-5, &[("LayerNormalization", 14), ("GeluTanh", 6), ("Attention", 6)]),
        ("models/gemma2-ts17", 1e-5, &[("RMSNormalization", 25), ("GeluTanh", 6), ("Attention", 6)]),
        ("models/olmo2-dyn18", 1e-5, &[("RMSNormalization", 25), ("Silu", 6), ("Attention", 6)]),
        ("models/vit-dyn18", 1e-5, &[("LayerNormalization", 13), ("GeluErf", 6), ("Attention", 6)]),
        ("models/phi-optimum-past", 1e-5, &[("LayerNormalization", 7), ("GeluTanh", 6), ("Attention", 6)]),
        ("models/llama-optimum-past", 1e-5, &[("RMSNormalization", 13), ("Silu", 6), ("Attention", 6)]),
        ("models/gpt2-optimum-past", 1e-5, &[("LayerNormalization", 13), ("GeluTanh", 6), ("Attention", 6)]),
        ("models/nano_mhc-ts17", 1e-5, &[("Attention", 12), ("RotaryEmbedding", 24)]),
        ("models/nano_mhc_dynamic-ts17", 1e-5, &[("Attention", 12), ("RotaryEmbedding", 24)]),
    ];
    let mut failed = vec![];
    for (id, tolerance, expected) in cases {
        let one = || {
            check(
                &root,
                &Case {
                    model: &format!("{id}/model.onnx"),
                    arrays: &format!("{id}/inputs.npz"),
                    tolerance: *tolerance,
                    expected,
                    gone: &["Softmax"],
                },
            );
        };
        if std::panic::catch_unwind(one).is_err() {
            failed.push(*id);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn gpt_neox() {
    let Some(root) = shared() else { return };
    check(
        &root.join("models"),
        &Case {
            model: "gpt_neox-ts17/model.onnx",
            arrays: "gpt_neox-ts17/inputs_alt.npz",
            tolerance: 1e-5,
            expected: &[
                ("LayerNormalization", 13),
                ("GeluErf", 6),
                ("Attention", 6),
                ("RotaryEmbedding", 12),
            ],
            gone: &["Softmax", "Erf", "Neg"],
        },
    );
}

#[test]
fn nanochat() {
    let Some(root) = shared() else { return };
    for (id, layers) in
        [("nano_plain-ts17", 12), ("nano_plain-dyn18", 12), ("nano_x0ve-ts17", 12), ("nano_x0ve-dyn18", 12)]
    {
        check(
            &root.join("models"),
            &Case {
                model: &format!("{id}/model.onnx"),
                arrays: &format!("{id}/inputs.npz"),
                tolerance: 1e-5,
                expected: &[("Attention", layers), ("RotaryEmbedding", 2 * layers)],
                gone: &["Softmax", "Sqrt", "ReduceMean"],
            },
        );
    }
}
