//! Inference on real exports: every value's type and content against what the value turns out to be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use snlp::npz::read_npz;
use snlp::onnx::Model;
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{Bindings, Graph, Op, Tensor, Type, ValueId};
use snlp::passes::rewrite::bindings_from;

/// Folders of models, or none when the shared files are not here.
fn models() -> Vec<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("SNLP_SHARED").map(PathBuf::from).unwrap_or(beside);
    let Ok(folders) = std::fs::read_dir(shared.join("models")) else {
        eprintln!("skipped: no models in {}", shared.display());
        return Vec::new();
    };
    let mut all: Vec<PathBuf> = folders.map(|f| f.unwrap().path()).collect();
    all.retain(|f| f.join("model.onnx").is_file());
    all.sort();
    assert!(!all.is_empty(), "{} has no models", shared.display());
    all
}

/// Endings of the model's files `inputs*.npz` that have an `expected*.npz`.
fn cases(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> =
        files.filter_map(|f| Some(f.strip_prefix("expected")?.to_string())).collect();
    cases.retain(|ending| folder.join(format!("inputs{ending}")).is_file());
    cases.sort();
    assert!(!cases.is_empty(), "{} has no cases", folder.display());
    cases
}

fn has_opaque(graph: &Graph) -> bool {
    graph.nodes().any(|(_, n)| matches!(n.op, Op::Opaque(_)))
}

/// The sizes that a file of inputs gives the symbols, and the inputs by value.
fn inputs(graph: &Graph, file: &Path) -> (Bindings, BTreeMap<ValueId, Tensor>) {
    let arrays = read_npz(file).unwrap();
    let shapes: Vec<(&str, &[usize])> = arrays.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
    let bindings = bindings_from(graph, &shapes).unwrap();
    let by_name: BTreeMap<&str, &Tensor> = arrays.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let named = |v: &ValueId| Some((*v, (*by_name.get(graph.value(*v).name.as_deref()?)?).clone()));
    (bindings, graph.inputs().iter().filter_map(named).collect())
}

/// Where `ty` is not the type of `tensor` at these sizes; an open size is a difference when `all` sizes
/// must be known.
fn difference(ty: &Type, tensor: &Tensor, bindings: &Bindings, all: bool) -> Option<String> {
    let sizes: Vec<Option<usize>> = ty.shape.iter().map(|d| d.substitute(bindings).known_size()).collect();
    let same = sizes.len() == tensor.shape().len()
        && sizes.iter().zip(tensor.shape()).all(|(d, n)| d.map_or(!all, |d| d == *n));
    (!same || ty.dtype != tensor.dtype())
        .then(|| format!("inferred {ty} = {sizes:?}, but {}{:?}", tensor.dtype(), tensor.shape()))
}

#[test]
fn outputs_have_the_expected_shapes() {
    for folder in models() {
        let graph = Model::read(folder.join("model.onnx")).unwrap().graph;
        for case in cases(&folder) {
            let (bindings, _) = inputs(&graph, &folder.join(format!("inputs{case}")));
            let expected = read_npz(&folder.join(format!("expected{case}"))).unwrap();
            let expected: BTreeMap<String, Tensor> = expected.into_iter().collect();
            for output in &graph.outputs {
                let (Some(tensor), Some(ty)) = (expected.get(&output.name), graph.ty(output.value)) else {
                    continue;
                };
                // What follows an opaque operator may be open.
                let all = !has_opaque(&graph);
                if let Some(d) = difference(ty, tensor, &bindings, all) {
                    panic!("{}: {}: {d}", folder.display(), output.name);
                }
            }
        }
    }
}

#[test]
fn only_opaque_operators_hide_types() {
    for folder in models() {
        let graph = Model::read(folder.join("model.onnx")).unwrap().graph;
        for (_, node) in graph.nodes() {
            let known = node.operands().all(|v| graph.ty(v).is_some());
            let hidden = node.outputs.iter().any(|v| graph.ty(*v).is_none());
            let opaque = matches!(node.op, Op::Opaque(_));
            assert!(!known || !hidden || opaque, "{}: {:?} '{}'", folder.display(), node.op, node.name);
        }
    }
}

#[test]
fn every_value_is_what_was_inferred() {
    for folder in models() {
        let mut graph = Model::read(folder.join("model.onnx")).unwrap().graph;
        if has_opaque(&graph) {
            continue;
        }
        let values: Vec<ValueId> = graph.nodes().flat_map(|(_, n)| n.outputs.clone()).collect();
        graph.outputs.clear();
        for v in &values {
            graph.add_output(&format!("{v:?}"), *v);
        }
        for case in cases(&folder) {
            let (bindings, given) = inputs(&graph, &folder.join(format!("inputs{case}")));
            let tensors = eval_graph(&graph, &given).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            for (v, tensor) in values.iter().zip(&tensors) {
                check(&graph, *v, tensor, &bindings, &folder);
            }
        }
    }
}

fn check(graph: &Graph, v: ValueId, tensor: &Tensor, bindings: &Bindings, folder: &Path) {
    let place = || {
        let node = graph.producing(v).map(|n| format!("{:?} '{}'", n.op, n.name));
        format!("{}: {v:?} of {}", folder.display(), node.unwrap_or_default())
    };
    let ty = graph.ty(v).unwrap_or_else(|| panic!("{} has no type", place()));
    if let Some(d) = difference(ty, tensor, bindings, false) {
        panic!("{}: {d}", place());
    }
    if let (Some(content), Some(elements)) = (graph.content(v), tensor.to_i64()) {
        let content: Vec<_> = content.iter().map(|d| d.substitute(bindings).known()).collect();
        let expected: Vec<_> = elements.into_iter().map(Some).collect();
        assert_eq!(content, expected, "{}", place());
    }
}
