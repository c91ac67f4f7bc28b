//! The node cases of the ONNX project, as data × executors, against committed lists.
//!
//! ```text
//!   onnx package ──node_cases.py──▶ cases ──▶ evaluator   as read; cleaned up; written and read again
//!                                        └─▶ gpu         as the program runs models
//! ```
//!
//! `node_cases/operators.txt` names the operators chosen. Each case of theirs stands with each executor in
//! `supported.txt` or, with a reason, in `expected_failures.txt`; the test fails when either is stale, and
//! `SNLP_UPDATE=1` rewrites them and the table in `README.md` that is made from them. Cases run when
//! `$SNLP_PYTHON` is a Python with the `onnx` package, which holds them; the `gpu` executor needs an adapter.
//! `SNLP_CASES=add,sub` restricts a run to cases with one of these in their names; `SNLP_VERBOSE=1` prints
//! every outcome.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "node_cases/lists.rs"]
mod lists;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use lists::{Executor, Lists};
use snlp::npz::read_npz;
use snlp::onnx::{Model, WriteOptions};
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{DType, Graph, Op, Tensor};
use snlp::passes::rewrite::clean_up;
use snlp_runtime::schedule::Options;
use snlp_runtime::{AdapterChoice, Gpu, Session};

/// A case of the `onnx` package.
struct Case {
    name: String,
    /// Its operator.
    section: String,
    folder: PathBuf,
    /// The package's tolerance.
    relative: f64,
    absolute: f64,
}

fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(&AdapterChoice::any()) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but {error}");
            eprintln!("SKIPPED: the node cases of ONNX on a device: {error}");
            None
        }
    }
}

/// Named arrays; bfloat16 travels as its bits.
fn arrays(path: &Path) -> Vec<(String, Tensor)> {
    let plain = |(name, tensor): (String, Tensor)| match name.strip_prefix("bf16:") {
        Some(name) => {
            let bits = tensor.bytes();
            (name.into(), Tensor::from_bytes(DType::BF16, tensor.shape().to_vec(), bits).unwrap())
        }
        None => (name, tensor),
    };
    read_npz(path).unwrap().into_iter().map(plain).collect()
}

impl Case {
    /// The cases that the package has of the chosen operators, and the number of those left out by each rule.
    fn all(python: &std::ffi::OsStr, folder: &Path) -> (Vec<Case>, BTreeMap<String, usize>) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/node_cases.py");
        let operators = lists::path("operators.txt");
        assert!(Command::new(python).arg(script).arg(folder).arg(operators).status().unwrap().success());
        let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
        let case = |line: &str| {
            let [name, section, relative, absolute] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let (relative, absolute) = (relative.parse().unwrap(), absolute.parse().unwrap());
            Case { name: name.into(), section: section.into(), folder: folder.join(name), relative, absolute }
        };
        let cases: Vec<Case> = index.lines().map(case).collect();
        assert!(cases.len() > 1000, "the onnx package has {} cases only", cases.len());
        let mut left_out = BTreeMap::new();
        for line in std::fs::read_to_string(folder.join("left_out.tsv")).unwrap().lines() {
            *left_out.entry(line.split('\t').nth(1).unwrap().to_string()).or_default() += 1;
        }
        (cases, left_out)
    }

    fn run(&self, executor: Executor, gpu: Option<&Arc<Gpu>>) -> Result<(), String> {
        let work = AssertUnwindSafe(|| match executor {
            Executor::Evaluator => self.evaluator(),
            Executor::Gpu => self.gpu(gpu.unwrap()),
        });
        catch_unwind(work).unwrap_or_else(|_| Err("panicked".into()))
    }

    fn model(&self) -> Result<Model, String> {
        let model = Model::read(self.folder.join("model.onnx")).map_err(|e| e.to_string())?;
        let unknown = model.graph.nodes().find(|(_, n)| matches!(n.op, Op::Opaque(_)));
        match unknown {
            Some((_, node)) => Err(format!("{} is not understood in this form", node.op.name())),
            None => Ok(model),
        }
    }

    fn evaluator(&self) -> Result<(), String> {
        let model = self.model()?;
        self.evaluate(&model.graph).map_err(|e| format!("as read: {e}"))?;
        let mut clean = model.graph.clone();
        clean_up(&mut clean).map_err(|e| format!("clean-up: {e}"))?;
        self.evaluate(&clean).map_err(|e| format!("cleaned up: {e}"))?;
        let bytes = model.encode(&WriteOptions::default()).map_err(|e| format!("cannot be written: {e}"))?;
        let again = Model::decode(bytes, &self.folder).map_err(|e| format!("cannot be read again: {e}"))?;
        self.evaluate(&again.graph).map_err(|e| format!("as written: {e}"))
    }

    fn evaluate(&self, graph: &Graph) -> Result<(), String> {
        let given = arrays(&self.folder.join("inputs.npz"));
        let tensor = |name: &str| given.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        let feed = graph.inputs().iter().map(|v| (*v, graph.value(*v).name.as_deref()));
        let feed = feed.map(|(v, name)| (v, tensor(name.unwrap()).unwrap())).collect();
        let got = eval_graph(graph, &feed).map_err(|e| e.to_string())?;
        self.compare(graph.outputs.iter().map(|o| o.name.clone()).zip(got).collect())
    }

    fn gpu(&self, gpu: &Arc<Gpu>) -> Result<(), String> {
        let mut graph = self.model()?.graph;
        clean_up(&mut graph).map_err(|e| format!("clean-up: {e}"))?;
        let session = Session::new(gpu, graph, Options::default()).map_err(|e| e.to_string())?;
        self.compare(session.run(&arrays(&self.folder.join("inputs.npz"))).map_err(|e| e.to_string())?)
    }

    /// The package's own comparison (NumPy's `assert_allclose`); results of 16 bits may differ by one unit
    /// in the last place.
    fn compare(&self, got: Vec<(String, Tensor)>) -> Result<(), String> {
        for (name, want) in arrays(&self.folder.join("expected.npz")) {
            let Some((_, got)) = got.iter().find(|(n, _)| *n == name) else {
                return Err(format!("there is no output '{name}'"));
            };
            if got.shape() != want.shape() || got.dtype() != want.dtype() {
                return Err(format!("'{name}' is {got:?} instead of {want:?}"));
            }
            let unit = match want.dtype() {
                DType::F16 => 2f64.powi(-10),
                DType::BF16 => 2f64.powi(-7),
                _ => 0.0,
            };
            let differs = |(a, b): (&f64, &f64)| {
                let allowed = self.absolute + self.relative.max(unit) * b.abs();
                !(a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= allowed)
            };
            let (a, b) = (got.to_f64(), want.to_f64());
            // Integers beyond 2^53 are compared as what they are.
            let exact = !want.dtype().is_float();
            let at = if exact && got.bytes() != want.bytes() {
                Some(a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(0))
            } else {
                a.iter().zip(&b).position(differs)
            };
            if let Some(at) = at {
                return Err(format!("'{name}' at {at}: {} instead of {}", a[at], b[at]));
            }
        }
        Ok(())
    }
}

#[test]
fn operators_mean_what_the_standard_says() {
    let Some(python) = std::env::var_os("SNLP_PYTHON") else {
        eprintln!("SKIPPED: the node cases of ONNX (set SNLP_PYTHON)");
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let (mut cases, left_out) = Case::all(&python, temporary.path());
    let chosen = std::env::var("SNLP_CASES").ok();
    if let Some(parts) = &chosen {
        cases.retain(|c| parts.split(',').any(|part| c.name.contains(part)));
    }
    let gpu = gpu();
    let mut outcomes = lists::Outcomes::new();
    for case in &cases {
        for executor in Executor::ALL {
            if executor == Executor::Gpu && gpu.is_none() {
                continue;
            }
            let outcome = case.run(executor, gpu.as_ref());
            if std::env::var_os("SNLP_VERBOSE").is_some() {
                eprintln!("{} {executor}: {}", case.name, outcome.as_ref().err().map_or("passes", |e| e));
            }
            outcomes.insert((case.section.clone(), case.name.clone(), executor), outcome);
        }
    }
    eprintln!("{} cases; left out: {left_out:?}", cases.len());
    let lists = Lists::read();
    let complete = chosen.is_none() && gpu.is_some();
    if std::env::var("SNLP_UPDATE").as_deref() == Ok("1") {
        lists.updated(&outcomes, complete, &left_out).write();
        return;
    }
    let mut stale = lists.stale(&outcomes, complete);
    if complete && lists.left_out != left_out {
        stale.push(format!("left out are {left_out:?}, listed {:?}", lists.left_out));
    }
    assert!(
        stale.is_empty(),
        "{}\n{} entries of tests/node_cases are stale; `SNLP_UPDATE=1 cargo test --release --test node_cases` \
         rewrites the lists and the table of README.md, new failures then want a reason",
        stale.join("\n"),
        stale.len()
    );
}

#[test]
fn the_readme_shows_the_lists() {
    let (readme, lists) = (lists::readme(), Lists::read());
    let table = lists.table();
    if std::env::var("SNLP_UPDATE").as_deref() == Ok("1") {
        lists::write_readme(&table);
        return;
    }
    assert!(
        lists::block(&readme) == table,
        "the operators in README.md are stale: run `SNLP_UPDATE=1 cargo test --release --test node_cases readme`"
    );
}

#[test]
fn few_cases_are_expected_to_fail_and_each_has_a_reason() {
    let lists = Lists::read();
    assert!(!lists.supported.is_empty());
    for ((_, case, executor), reason) in &lists.failures {
        assert!(!reason.is_empty() && !reason.starts_with(lists::NEW), "{case} {executor}: {reason}");
    }
}
