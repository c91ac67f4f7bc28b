//! plan.toml: what is read is written and read again to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snlp::plan_file::{GivenPlan, PlanFile};

fuzz_target!(|data: &[u8]| {
    let path = snlp_fuzz::file("plan.toml", data);
    if let Ok(given) = GivenPlan::of("auto", &snlp_fuzz::folder().join("model.onnx")) {
        let _ = given.check("00");
    }
    let Ok(read) = PlanFile::read(&path) else { return };
    let Ok(text) = read.to_text() else { return };
    let again = PlanFile::read(&snlp_fuzz::file("again.toml", text.as_bytes())).expect("what is written is read");
    assert_eq!(again.to_text().ok(), Some(text));
});
