//! Broken models through everything: thousands of seeded mutants of small models end well or as invalid, without a
//! panic, a hang or a file left behind.
//!
//! ```text
//!   bases ──change.rs──▶ mutants ──▶ in this process: read, summed up, rewritten, written, run
//!                               └──▶ some: the program itself (inspect, convert, run), its exit code and its files
//! ```
//!
//! `SNLP_MUTANTS` is how many (a tenth as many go through the program), `SNLP_MUTANTS_FROM` the number of the first.
//! A mutant that fails is kept in `target/mutants`. Models are run by the plain evaluator, each eighth by tract too, and
//! through the program also on a GPU where there is one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod change;
#[allow(missing_docs, dead_code, clippy::all, unused_qualifications, unreachable_pub)]
#[rustfmt::skip]
#[path = "../../src/onnx/proto.rs"]
mod proto;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use snlp::error::{Error, Kind};
use snlp::onnx::{ErrorKind, Model, WriteOptions};
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{Graph, Tensor, ValueId, element_count};
use snlp::passes::rewrite::{Dialect, bind, lower};
use snlp::samples::{sample_inputs, sample_sizes};
use snlp::shapes::Shape;
use snlp::source::{Source, onnx_error};
use snlp::structure::Structure;
use snlp::summary::{ChainSummary, Figures};

/// Nothing may take longer.
const LIMIT: Duration = Duration::from_secs(10);
/// On a GPU, whose driver may have no shader of the model in its cache yet, with other tests on the same cores.
const COMPILING: Duration = Duration::from_secs(60);

/// Graphs whose tensors are larger together are not run: they are models, if large ones.
const RUNNABLE: usize = 1 << 24;

const PLANS: [&str; 5] =
    ["sequential", "2xF1", "1xF2", "2xF1[k=2,init=batch_fwd]", "2xF1[surrogate=transfer,avg]"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Small models, the smallest more than once.
fn bases() -> Vec<Vec<u8>> {
    let mut out = vec![];
    for name in ["mlp", "cnn", "functions", "if_const", "if_input", "odd_form", "unsupported_ops"] {
        out.push(std::fs::read(root().join(format!("fixtures/bad/{name}.onnx"))).unwrap());
    }
    for shape in ["d3-w8-h2-v16", "d3-w8-h2-v16-llama", "d3-w8-h2-v16-gpt2"] {
        let model = shape.parse::<Shape>().unwrap().model().unwrap();
        let bytes = model.encode(&WriteOptions::default()).unwrap();
        out.extend([bytes.to_vec(), bytes.to_vec()]);
    }
    for folder in [
        "gpt2-tiny",
        "gpt2-tiny-int8",
        "gpt2-tiny-qdq",
        "llama-tiny",
        "llama-tiny-dynamo",
        "llama-tiny-int4",
        "llama-tiny-past",
        "hyper/hc2-dynamic-sums-dyn18",
    ] {
        out.push(std::fs::read(root().join(format!("fixtures/{folder}/model.onnx"))).unwrap());
    }
    out
}

/// The mutant of a number.
fn mutant(bases: &[Vec<u8>], number: usize) -> (Vec<u8>, String, Rng) {
    let mut random = Rng::with_seed(number as u64);
    let base = random.usize(..bases.len());
    let (bytes, how) = change::mutant(&bases[base], &mut random);
    (bytes, format!("base {base}, {how}"), random)
}

fn refused(e: &Error) -> Result<(), String> {
    match e.kind() {
        Kind::Input => Ok(()),
        kind => Err(format!("{kind:?}: {}", e.report())),
    }
}

/// What the commands do with a file, without the device.
fn pass_through(
    bytes: Vec<u8>,
    folder: &Path,
    random: &mut Rng,
    tract: bool,
) -> Result<&'static str, String> {
    let path = folder.join("model.onnx");
    let model = match Model::decode(Bytes::from(bytes), folder) {
        Ok(model) => model,
        Err(e) if e.kind() == ErrorKind::Io => return Err(format!("I/O: {e}")),
        Err(e) => return refused(&onnx_error(e, &path)).map(|()| "refused by the reader"),
    };
    let source = match Source::of(&path, model) {
        Ok(source) => source,
        Err(e) => return refused(&e).map(|()| "refused by the clean-up"),
    };
    let _ = (source.notices(), source.unsupported(), source.parameters());
    let _ = Figures::of(&source.graph, None);
    if let Ok(chain) = &source.chain {
        let _ = ChainSummary::of(&source.graph, chain);
    }
    let plan = random.choice(PLANS.iter()).unwrap().parse().unwrap();
    let placed = match source.place(&plan) {
        Ok(placed) => placed,
        Err(e) => return refused(&e).map(|()| "not placed"),
    };
    let made = match source.rewrite(&placed) {
        Ok(made) => made,
        Err(e) => return refused(&e).map(|()| "not rewritten"),
    };
    if let Ok(chain) = &source.chain {
        Structure::of(&source.graph, chain, Some((&placed, &made)))
            .map_err(|e| format!("no structure: {e}"))?;
    }
    let _ = Figures::of(&made.graph, None);
    let written = Model { graph: made.graph.clone(), info: source.model.info.clone() };
    match written.encode(&WriteOptions { inline: random.bool(), external_data: false }) {
        // What is written is read, unless it had no right to be written.
        Ok(bytes) => drop(Model::decode(bytes, folder)),
        Err(e) if e.kind() == ErrorKind::Io => return Err(format!("I/O: {e}")),
        Err(_) => {}
    }
    if source.require_supported().is_err() {
        return Ok("not supported");
    }
    run(&made.graph, tract)
}

/// Runs a graph on samples.
fn run(graph: &Graph, tract: bool) -> Result<&'static str, String> {
    let sizes = sample_sizes(graph, 5);
    let Ok(mut bound) = bind(graph, &sizes) else { return Ok("not bound") };
    if !is_small(&bound) {
        return Ok("too large to run");
    }
    let inputs = match sample_inputs(graph, &sizes) {
        Ok(inputs) => inputs,
        Err(e) => return refused(&e).map(|()| "without samples"),
    };
    let value = |(name, tensor): &(String, Tensor)| Some((bound.input(name)?, tensor.clone()));
    let given: BTreeMap<ValueId, Tensor> = inputs.iter().filter_map(value).collect();
    let ran = eval_graph(&bound, &given).is_ok();
    if tract {
        tract_runs(&mut bound, &inputs);
    }
    Ok(if ran { "run" } else { "refused by the evaluator" })
}

#[cfg(feature = "cpu")]
fn tract_runs(bound: &mut Graph, inputs: &[(String, Tensor)]) {
    if lower(bound, &Dialect::basic()).is_err() {
        return;
    }
    let info = snlp::onnx::ModelInfo::standard(17);
    let model = Model { graph: bound.clone(), info };
    let options = WriteOptions { inline: true, ..WriteOptions::default() };
    if let Ok(bytes) = model.encode(&options)
        && let Ok(model) = snlp::runtime::cpu::CpuModel::from_onnx(&bytes)
    {
        let _ = model.run(inputs);
    }
}

#[cfg(not(feature = "cpu"))]
fn tract_runs(bound: &mut Graph, _: &[(String, Tensor)]) {
    let _ = lower(bound, &Dialect::basic());
}

/// Whether all tensors are of known and moderate sizes.
fn is_small(graph: &Graph) -> bool {
    let size = |v| {
        let shape: Option<Vec<usize>> = graph.ty(v)?.known_shape();
        element_count(&shape?)
    };
    let mut all = graph.values().map(|(v, _)| size(v).unwrap_or(0));
    all.try_fold(0usize, |sum, n| sum.checked_add(n).filter(|s| *s <= RUNNABLE)).is_some()
}

/// What two workers found.
#[derive(Default)]
struct Found {
    outcomes: BTreeMap<String, usize>,
    failures: Vec<String>,
}

/// Works through numbers on the machine's cores (four at most); fails the process when one of them hangs.
fn work(
    numbers: std::ops::Range<usize>,
    one: impl Fn(usize, &Path) -> Result<String, String> + Sync,
) -> Found {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let (next, found) = (AtomicUsize::new(numbers.start), Mutex::new(Found::default()));
    let start = Instant::now();
    let idle = u64::MAX;
    let began: Vec<(AtomicU64, AtomicUsize)> =
        (0..threads).map(|_| (AtomicU64::new(idle), AtomicUsize::new(0))).collect();
    let (next, found_by, one, end) = (&next, &found, &one, numbers.end);
    std::thread::scope(|scope| {
        let mut workers = vec![];
        for (began, current) in &began {
            workers.push(scope.spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        break;
                    }
                    current.store(number, Ordering::Relaxed);
                    began.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
                    let result = one(number, folder.path());
                    began.store(idle, Ordering::Relaxed);
                    let mut found = found_by.lock().unwrap();
                    match result {
                        Ok(outcome) => *found.outcomes.entry(outcome).or_default() += 1,
                        Err(e) => found.failures.push(format!("mutant {number}: {e}")),
                    }
                }
            }));
        }
        while !workers.iter().all(|w| w.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            let now = start.elapsed().as_millis() as u64;
            for (began, current) in &began {
                let began = began.load(Ordering::Relaxed);
                if began != idle && now.saturating_sub(began) > COMPILING.as_millis() as u64 * 2 {
                    // A thread that hangs cannot be ended.
                    let number = current.load(Ordering::Relaxed);
                    eprintln!(
                        "mutant {number} hangs; it is {}",
                        keep(number, &mutant(&bases(), number).0).display()
                    );
                    eprintln!("before it: {:?}", found_by.lock().map(|f| f.failures.clone()));
                    std::process::exit(101);
                }
            }
        }
    });
    found.into_inner().unwrap()
}

fn keep(number: usize, bytes: &[u8]) -> PathBuf {
    let folder = root().join("target/mutants");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{number}.onnx"));
    std::fs::write(&path, bytes).unwrap();
    path
}

fn verdict(what: &str, found: &Found, start: Instant) {
    eprintln!("{what}: {:#?} in {:.1} s", found.outcomes, start.elapsed().as_secs_f64());
    let failures = &found.failures;
    assert!(
        failures.is_empty(),
        "{} mutants, kept in target/mutants:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn mutants_end_well_or_as_invalid() {
    let bases = bases();
    let from = setting("SNLP_MUTANTS_FROM", 0);
    let numbers = from..from + setting("SNLP_MUTANTS", 6000);
    // Panics that are caught where they may happen are not to be printed; those below are told with their place.
    let place: &'static Mutex<Option<String>> = Box::leak(Box::default());
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut place) = place.lock() {
            *place = info.location().map(ToString::to_string);
        }
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            eprintln!("{info}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
    let start = Instant::now();
    let found = work(numbers, |number, folder| {
        let (bytes, how, mut random) = mutant(&bases, number);
        let began = Instant::now();
        let run = AssertUnwindSafe(|| pass_through(bytes.clone(), folder, &mut random, number % 8 == 0));
        let result = catch_unwind(run).unwrap_or_else(|payload| {
            let text = payload.downcast_ref::<String>().cloned().unwrap_or_else(|| {
                payload.downcast_ref::<&str>().map_or("a panic".into(), ToString::to_string)
            });
            Err(format!("panic at {:?}: {text}", place.lock().unwrap()))
        });
        let took = began.elapsed();
        let result = result.and_then(|r| if took > LIMIT { Err(format!("took {took:?}")) } else { Ok(r) });
        result.map(ToString::to_string).map_err(|e| format!("{}: {how}: {e}", keep(number, &bytes).display()))
    });
    let _ = std::panic::take_hook();
    verdict("mutants", &found, start);
    assert!(found.outcomes.contains_key("run") && found.outcomes.len() > 3, "{:?}", found.outcomes);
}

/// Files that fuzzing found (`fuzz/`), each with what it did.
const FOUND: [(&str, &str); 1] = [("large_fill", "reading it made a constant of 4 GiB")];

#[test]
fn what_fuzzing_found_is_mended() {
    let found = root().join("tests/mutants/found");
    assert_eq!(found.read_dir().unwrap().count(), FOUND.len());
    for (name, what) in FOUND {
        let bytes = std::fs::read(found.join(format!("{name}.onnx"))).unwrap();
        let began = Instant::now();
        let folder = tempfile::tempdir().unwrap();
        pass_through(bytes, folder.path(), &mut Rng::with_seed(0), true).unwrap();
        assert!(began.elapsed() < LIMIT / 10, "{name}: {what}");
    }
}

/// Whether the program finds a GPU adapter.
fn has_gpu() -> bool {
    let out = Command::new(env!("CARGO_BIN_EXE_snlp")).args(["devices", "--json"]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    found["devices"].as_array().is_some_and(|d| !d.is_empty())
}

#[test]
fn the_program_ends_well_or_says_that_a_mutant_is_invalid() {
    let bases = bases();
    let from = setting("SNLP_MUTANTS_FROM", 0);
    let numbers = from..from + setting("SNLP_MUTANTS", 6000) / 10;
    let gpu = has_gpu();
    let start = Instant::now();
    let found = work(numbers, |number, folder| {
        let (bytes, how, mut random) = mutant(&bases, number);
        let result = through_the_program(&bytes, folder, &mut random, gpu);
        result.map_err(|e| format!("{}: {how}: {e}", keep(number, &bytes).display()))
    });
    verdict("through the program", &found, start);
}

/// Inputs for a mutant that can be read.
fn write_samples(bytes: &[u8], folder: &Path, to: &Path) -> Option<()> {
    let model = Model::decode(Bytes::copy_from_slice(bytes), folder).ok()?;
    let sizes = sample_sizes(&model.graph, 5);
    let samples = bind(&model.graph, &sizes).is_ok_and(|g| is_small(&g));
    let samples = samples.then(|| sample_inputs(&model.graph, &sizes).ok())??;
    snlp::npz::write_npz(std::fs::File::create(to).ok()?, samples.iter().map(|(n, t)| (n.as_str(), t))).ok()
}

fn through_the_program(bytes: &[u8], folder: &Path, random: &mut Rng, gpu: bool) -> Result<String, String> {
    let (model, out) = (folder.join("model.onnx"), folder.join("out.onnx"));
    std::fs::write(&model, bytes).unwrap();
    let plan = *random.choice(PLANS.iter()).unwrap();
    let mut args = match random.u8(..4) {
        0 => vec!["inspect", "--format", random.choice(["text", "json", "dot", "mermaid", "html"]).unwrap()],
        1 => vec!["convert", "-o", out.to_str().unwrap(), "--plan", plan],
        _ => vec!["run", "--backend", if gpu && random.bool() { "gpu" } else { "cpu" }],
    };
    let inputs = folder.join("in.npz");
    if args[0] == "run" && write_samples(bytes, folder, &inputs).is_some() {
        args.extend(["--inputs", inputs.to_str().unwrap()]);
    }
    if args[0] == "convert" && random.bool() {
        args.push("--external-data");
    }
    args.push(model.to_str().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_snlp"))
        .args(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let limit = if args.contains(&"gpu") { COMPILING } else { LIMIT };
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("{args:?} takes longer than {limit:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr)
        .map_err(|e| e.to_string())?;
    let code = status.code();
    // A device that has too little memory for a model is no fault of either.
    let small_device = code == Some(4) && stderr.contains("bytes");
    if !matches!(code, Some(0 | 3)) && !small_device {
        return Err(format!("{args:?} ends with {status}: {stderr}"));
    }
    if stderr.contains("panicked") || (code != Some(0) && !stderr.contains("error:")) {
        return Err(format!("{args:?}: {stderr}"));
    }
    let mut left: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "model.onnx" && name != "in.npz")
        .collect();
    left.sort();
    for name in &left {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    let wanted = args[0] == "convert" && code == Some(0);
    if left.iter().any(|name| !wanted || !name.starts_with("out.onnx")) {
        return Err(format!("{args:?} left {left:?}"));
    }
    Ok(format!("{} {}", args[0], code.unwrap_or(-1)))
}
