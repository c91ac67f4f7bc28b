//! How many dispatches a forward and a decoding step take, counted in the schedule for a typical GPU.
#![allow(clippy::expect_used)]

use std::path::Path;

use snlp::language::decoder::Stepper;
use snlp::onnx::Model;
use snlp::samples::sample_sizes;
use snlp::shapes::Shape;
use snlp::source::{Source, parse_plan};
use snlp::summary::{schedule_at, typical_schedule};
use snlp_runtime::schedule::Plan;

const STYLES: [&str; 4] = ["nanochat", "llama", "g2-llama", "gpt2"];

fn source(layers: usize, style: &str) -> Source {
    let shape: Shape = format!("d{layers}-w128-h4-v96-{style}").parse().expect("a shape");
    Source::of(Path::new("shape"), shape.model().expect("built")).expect("clean")
}

/// A step of `tokens` behind caches of 64 rows.
fn step(source: &Source, plan: &str, tokens: usize) -> Plan {
    step_within(source, plan, tokens, 64)
}

fn step_within(source: &Source, plan: &str, tokens: usize, room: usize) -> Plan {
    let one = source.of_one_sequence().expect("takes one sequence");
    let placed = one.place(&parse_plan(plan).expect("a plan")).expect("fits");
    let (stepper, why) = Stepper::new(&one, &placed, room).expect("applies");
    assert!(why.is_none(), "{why:?}");
    let sizes = sample_sizes(&stepper.graph, tokens + stepper.lookback().expect("cached"));
    schedule_at(&stepper.graph, &sizes, &stepper.states).expect("a schedule")
}

fn forward(source: &Source, plan: &str, positions: usize) -> Plan {
    let placed = source.place(&parse_plan(plan).expect("a plan")).expect("fits");
    let graph = source.rewrite(&placed).expect("applies").graph;
    typical_schedule(&graph, positions).expect("a schedule")
}

fn count(plan: &Plan) -> usize {
    plan.stats().dispatches
}

#[test]
fn a_sequential_layer_is_five_dispatches_in_a_step() {
    for style in STYLES {
        let of = |layers| step(&source(layers, style), "sequential", 1);
        let (few, many) = (of(2), of(6));
        assert_eq!(count(&many) - count(&few), 4 * 5, "{style}\n{}", few.dump());
        // What stands around the layers: embedding, positions, head.
        assert!(count(&few) <= 2 * 5 + 4, "{style}\n{}", few.dump());
    }
}

#[test]
fn the_keys_of_a_long_cache_are_shared_out_and_merged() {
    for style in STYLES {
        let of = |layers| count(&step_within(&source(layers, style), "sequential", 1, 4096));
        assert_eq!(of(6) - of(2), 4 * 6, "{style}");
    }
}

#[test]
fn a_sequential_layer_is_at_most_seven_dispatches_over_many_tokens() {
    for style in STYLES {
        for positions in [16, 64, 300] {
            let of = |layers| forward(&source(layers, style), "sequential", positions);
            let (few, many) = (of(2), of(6));
            let each = (count(&many) - count(&few)) / 4;
            assert!(each <= 7, "{style} over {positions} positions: {each}\n{}", few.dump());
            // Behind caches they are appended to them besides.
            let of = |layers| step(&source(layers, style), "sequential", positions.min(60));
            let each = (count(&of(6)) - count(&of(2))) / 4;
            assert!(each <= 7, "{style}, {positions} tokens behind caches: {each}");
        }
    }
}

#[test]
fn an_iteration_is_at_most_nine_dispatches_whatever_its_units() {
    for style in STYLES {
        let source = source(12, style);
        for fused in [1, 2] {
            let mut counts = vec![];
            // As many iterations as units are the sequential model.
            for units in [3, 4, 6] {
                let of = |k| count(&step(&source, &format!("{units}xF{fused}[k={k}]"), 1));
                let each = of(2) - of(1);
                assert!(each <= 9, "{style}: {each} in an iteration of {units} units of {fused}");
                let whole = |k| count(&forward(&source, &format!("{units}xF{fused}[k={k}]"), 32));
                let over_many = whole(2) - whole(1);
                assert!(over_many <= 9, "{style}: {over_many} in an iteration over 32 positions");
                counts.push((each, over_many));
            }
            assert!(counts.windows(2).all(|w| w[0] == w[1]), "{style}: {counts:?}");
        }
    }
}

#[test]
fn a_parallel_step_of_32_layers_is_a_third_of_the_sequential_one() {
    for style in STYLES {
        let source = source(32, style);
        let sequential = count(&step(&source, "sequential", 1));
        let parallel = count(&step(&source, "s8 12xF2", 1));
        assert!(3 * parallel <= sequential, "{style}: {parallel} of {sequential}");
    }
}

#[test]
fn a_dynamically_quantised_layer_is_eleven_dispatches() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gpt2-tiny-int8/model.onnx");
    let source = Source::of(&path, Model::read(&path).expect("read")).expect("clean");
    // Two norms, the attention, four quantisations and four products.
    let plan = forward(&source, "sequential", 16);
    assert!(count(&plan) <= 4 * 11 + 6, "{}", plan.dump());
    // As many for all units at once, and their correction.
    let plan = forward(&source, "4xF1[k=1]", 16);
    assert!(count(&plan) <= 11 + 7, "{}", plan.dump());
}
