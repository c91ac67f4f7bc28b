//! The plan language: what is parsed is printed, parsed again to the same, and placed on a small chain.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snlp::passes::plan::Plan;

fuzz_target!(|text: &str| {
    let Ok(plan) = text.parse::<Plan>() else { return };
    let printed = plan.to_string();
    let again: Plan = printed.parse().unwrap_or_else(|e| panic!("'{printed}' is not read again: {e}"));
    assert_eq!(again, plan, "{printed}");
    for layers in [0, 1, 4, 12, 128] {
        if let Ok(placed) = plan.place(layers) {
            assert_eq!(placed.layers, layers);
            assert!(placed.sequential_depth() <= layers.max(1) * 4096, "{printed}");
            let printed = placed.to_string();
            let again: Plan = printed.parse().unwrap_or_else(|e| panic!("'{printed}' is not read again: {e}"));
            assert_eq!(again.place(layers).expect("it fits as before").to_string(), printed);
        }
    }
});
