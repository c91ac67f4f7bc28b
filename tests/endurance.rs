//! Thousands of forwards and hundreds of loads in one process: its memory stays as it is.
//!
//! `SNLP_ENDURANCE=1` makes it 10,000 forwards and 1,000 loads for each backend; the suite runs a short version.
//! Resident memory is read from `/proc`, so that other systems only run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Mutex;

use snlp::onnx::{Model, ModelInfo, WriteOptions};
use snlp::passes::ir::Tensor;
use snlp::passes::rewrite::{Dialect, bind, lower};
use snlp::samples::{sample_inputs, sample_sizes};
use snlp::source::Source;
use snlp_runtime::schedule::Options;
use snlp_runtime::{AdapterChoice, Gpu, Session};

/// What memory may grow by after the warm-up, in KiB: fragments of the heap, not one model of 380 KB for each load.
const ALLOWED: i64 = 8 << 10;

/// One series at a time: both are of the same process.
static ONE: Mutex<()> = Mutex::new(());

fn counts() -> (usize, usize) {
    if std::env::var_os("SNLP_ENDURANCE").is_some() { (10_000, 1_000) } else { (200, 30) }
}

/// Resident memory in KiB.
fn resident() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Repeats `work` and asserts that memory is at the end what it was after the first fifth.
fn flat(what: &str, count: usize, mut work: impl FnMut(usize)) {
    let mut series = vec![];
    let every = (count / 20).max(1);
    for n in 0..count {
        work(n);
        if (n + 1) % every == 0 {
            series.extend(resident());
        }
    }
    eprintln!("{what}, {count} times: resident KiB {series:?}");
    if let (Some(warm), Some(last)) = (series.get(series.len() / 5), series.last()) {
        assert!(last - warm < ALLOWED, "{what}: memory grew by {} KiB: {series:?}", last - warm);
    }
}

fn model() -> Source {
    Source::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gpt2-tiny/model.onnx")).unwrap()
}

fn inputs(source: &Source, length: usize) -> Vec<(String, Tensor)> {
    sample_inputs(&source.graph, &sample_sizes(&source.graph, length)).unwrap()
}

#[test]
fn memory_is_flat_on_a_device() {
    let _one = ONE.lock();
    let gpu = match Gpu::open(&AdapterChoice::any()) {
        Ok(gpu) => gpu,
        Err(error) => {
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but {error}");
            eprintln!("SKIPPED: endurance on a device: {error}");
            return;
        }
    };
    let (forwards, loads) = counts();
    let source = model();
    let session = Session::new(&gpu, source.graph.clone(), Options::default()).unwrap();
    // Lengths in turn, one more than there are plans kept: some are made anew.
    let given: Vec<_> = (0..9).map(|n| inputs(&source, 4 + n)).collect();
    flat("forwards of one length on a device", forwards, |_| drop(session.run(&given[0]).unwrap()));
    flat("forwards of nine lengths on a device", forwards / 10, |n| {
        drop(session.run(&given[n % 9]).unwrap())
    });
    drop(session);
    flat("loads on a device", loads, |_| {
        let source = model();
        let plan = source.place(&"2xF1[k=2]".parse().unwrap()).unwrap();
        let graph = source.rewrite(&plan).unwrap().graph;
        let session = Session::new(&gpu, graph, Options::default()).unwrap();
        session.run(&given[0]).unwrap();
    });
    // The weights of the last one alone: they go when the next comes.
    let held = gpu.weights().resident;
    assert!(held < 2 << 20, "{held} bytes of weights of sessions that are gone");
    // A device of its own each time: what drivers keep of one is theirs.
    for _ in 0..3 {
        let gpu = Gpu::open(&AdapterChoice::any()).unwrap();
        let session = Session::new(&gpu, source.graph.clone(), Options::default()).unwrap();
        session.run(&given[0]).unwrap();
    }
}

#[cfg(feature = "cpu")]
#[test]
fn memory_is_flat_on_the_cpu() {
    use snlp::runtime::cpu::CpuModel;
    let _one = ONE.lock();
    let (forwards, loads) = counts();
    let given = inputs(&model(), 4);
    let load = || {
        let source = model();
        let mut graph = bind(&source.graph, &sample_sizes(&source.graph, 4)).unwrap();
        lower(&mut graph, &Dialect::basic()).unwrap();
        let options = WriteOptions { inline: true, ..WriteOptions::default() };
        let bytes = Model { graph, info: ModelInfo::standard(17) }.encode(&options).unwrap();
        CpuModel::from_onnx(&bytes).unwrap()
    };
    let loaded = load();
    flat("forwards on the CPU", forwards, |_| drop(loaded.run(&given).unwrap()));
    flat("loads on the CPU", loads, |_| drop(load().run(&given).unwrap()));
}
