//! What a session holds on a device, against what its plan predicts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use snlp_passes::ir::Bindings;
use snlp_runtime::Session;
use snlp_runtime::schedule::Options;

/// Buffers have some length at least, and drivers round it: a little of some 2.6 MB.
const ROUNDING: u64 = 64 << 10;

#[test]
fn a_session_holds_what_its_plan_predicts() {
    let Some(gpu) = gpu() else { return };
    let Some(before) = gpu.allocated() else {
        eprintln!("SKIPPED: the backend does not tell what is allocated");
        return;
    };
    let weights = layers(6, 256);
    let graph = sequential(&weights, 4, 64);
    let inputs = vec![("x".to_string(), noise(1, &[4, 64, 256]))];
    let session = Session::new(&gpu, graph, Options::default()).unwrap();
    let stats = session.plan_for(&Bindings::new()).unwrap().stats();
    assert!(stats.live_bytes <= stats.activation_bytes && stats.activation_bytes <= stats.unshared_bytes);
    assert!(stats.activation_bytes <= stats.live_bytes * 5 / 4 + 256, "{stats}");
    for run in 0..3 {
        session.run(&inputs).unwrap();
        let held = gpu.allocated().unwrap() - before;
        let predicted = stats.device_bytes();
        eprintln!("run {run}: {held} bytes held, {predicted} predicted");
        assert!(held.abs_diff(predicted) <= ROUNDING, "{held}, not {predicted}");
    }
}
