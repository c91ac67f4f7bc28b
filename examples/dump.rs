//! Prints a model as the compiler sees it: `cargo run --example dump -- MODEL [FORM] [PLAN]`.
//!
//! ```text
//!   read               the graph as read (the default)
//!   clean              after the clean-up
//!   schedule [PLAN]    what a forward of 16 positions dispatches on a typical GPU
//!   step [PLAN]        what a step behind caches dispatches, with the graph it computes
//! ```

use std::error::Error;
use std::path::Path;

use snlp::language::decoder::Stepper;
use snlp::samples::sample_sizes;
use snlp::shapes::Shape;
use snlp::source::Source;
use snlp::summary::{schedule_at, typical_schedule};

/// Positions that caches have room for.
const CAPACITY: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("usage: dump MODEL|SHAPE [read|clean|schedule|step] [PLAN]")?;
    let model = match path.parse::<Shape>() {
        Ok(shape) => shape.model()?,
        Err(_) => snlp::onnx::Model::read(path)?,
    };
    let form = arguments.get(1).map_or("read", String::as_str);
    if form == "read" {
        print!("{}", snlp_passes::ir::dump(&model.graph)?);
        return Ok(());
    }
    let source = Source::of(Path::new(path), model)?;
    let plan = source.place(&arguments.get(2).map_or("sequential", String::as_str).parse()?)?;
    match form {
        "clean" => print!("{}", snlp_passes::ir::dump(&source.graph)?),
        "schedule" => {
            let graph = source.rewrite(&plan)?.graph;
            print!("{}", typical_schedule(&graph, 16).ok_or("no schedule")?.dump());
        }
        "step" => {
            let (stepper, _) = Stepper::new(&source.of_one_sequence()?, &plan, CAPACITY)?;
            let lookback = stepper.lookback().ok_or("no step")?;
            let sizes = sample_sizes(&stepper.graph, 1 + lookback);
            println!("{}", snlp_passes::ir::dump(&stepper.graph)?);
            let schedule = schedule_at(&stepper.graph, &sizes, &stepper.states);
            print!("{}", schedule.ok_or("no schedule")?.dump());
        }
        other => return Err(format!("unknown form '{other}'").into()),
    }
    Ok(())
}
