//! The command line: arguments → resolved request → work. One subcommand per file.
//!
//! Exit codes: 0 success, 1 a check failed, 2 bad usage, 3 the input is invalid or unsupported, 4 no
//! suitable device, 5 I/O, 70 a defect of this program.

mod args;
mod backend;
mod bench;
mod calibrate;
mod completions;
mod convert;
#[cfg(feature = "cpu")]
mod cpu;
mod devices;
mod eval;
mod evaluate;
mod evidence;
mod generate;
mod html;
mod inspect;
mod measure;
mod output;
mod plan;
mod run;
mod tensors;
mod ui;
mod verify;
mod windows;

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use clap::{Parser, Subcommand};

pub use args::Common;
use snlp::error::{Error, Kind};
use snlp::passes::plan::PlacedPlan;
use snlp::plan_file::GivenPlan;
use snlp::source::Source;
use ui::Ui;

/// Make Transformers layer-parallel: read an ONNX model, find its chain of layers, rewrite it after a
/// plan, run it on a GPU or the CPU, and measure what that costs in quality.
#[derive(Parser)]
#[command(
    name = "snlp",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

const EXIT_CODES: &str = "\
Example:
  snlp convert model.onnx -o parallel.onnx --plan 6xF1 --verify

Plans:
  'sequential', or segments in order: 's8 12xF2' is 8 sequential layers, then 12 units of
  2 fused layers. Options go into brackets, as in '6xF1[k=2,init=batch_fwd,tap=unit]'.
  Layers that a plan does not cover come first and stay sequential. A file such as plan.toml
  that 'snlp plan' wrote stands for its plan, 'auto' for the plan.toml beside the model.

Exit codes:
  0 success, 1 a check failed, 2 bad usage, 3 the input is invalid or unsupported,
  4 no suitable device, 5 I/O, 70 a defect of snlp";

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Convert(convert::Convert),
    Run(run::Run),
    Eval(eval::Eval),
    Devices(devices::Devices),
    Completions(completions::Completions),
    Plan(plan::PlanSearch),
    Calibrate(calibrate::Calibrate),
    Generate(generate::Generate),
    Bench(bench::Bench),
}

impl Command {
    fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        match self {
            Command::Inspect(c) => c.run(common, ui),
            Command::Convert(c) => c.run(common, ui),
            Command::Run(c) => c.run(common, ui),
            Command::Eval(c) => c.run(common, ui),
            Command::Devices(c) => c.run(common, ui),
            Command::Completions(c) => c.run(),
            Command::Plan(c) => c.run(common, ui),
            Command::Calibrate(c) => c.run(common, ui),
            Command::Generate(c) => c.run(common, ui),
            Command::Bench(c) => c.run(common, ui),
        }
    }
}

/// Reads a model and says what there is to notice about it.
fn read_model(path: &Path, ui: &Ui) -> Result<Source, Error> {
    let source = Source::read(path)?;
    source.notices().iter().for_each(|text| ui.notice(text));
    Ok(source)
}

/// Says what there is to notice about a plan from a file.
fn check_plan(source: &Source, plan: &GivenPlan, ui: &Ui) -> Result<(), Error> {
    plan.check(source.model.info.fingerprint.sha256())?.iter().for_each(|text| ui.notice(text));
    Ok(())
}

/// Lays a plan over a model's chain and says what there is to notice about it.
fn place(source: &Source, plan: &GivenPlan, ui: &Ui) -> Result<PlacedPlan, Error> {
    check_plan(source, plan, ui)?;
    let placed = source.place(&plan.plan)?;
    source.plan_notices(&placed).iter().for_each(|text| ui.notice(text));
    Ok(placed)
}

/// Where the last panic happened, for the report.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    panic::set_hook(Box::new(|info| {
        if let Ok(mut place) = PANIC.lock() {
            *place = info.location().map(ToString::to_string);
        }
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { Kind::Usage.exit_code() } else { 0 };
            let _ = e.print();
            return code.into();
        }
    };
    let Cli { command, common } = cli;
    let ui = Ui::new(&common);
    let result = guarded(|| {
        inject();
        command.run(&common, &ui)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            ui.error(&e);
            e.kind().exit_code().into()
        }
    }
}

/// Panics where the environment asks for it: tests see from outside what a defect looks like.
#[allow(clippy::panic)]
fn inject() {
    if let Ok(text) = std::env::var("SNLP_TEST_PANIC") {
        panic!("{text}");
    }
}

/// Runs `work`; a panic becomes an error.
fn guarded(work: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(defect(payload.as_ref())))
}

/// What a panic becomes: the same one report as any other error.
fn defect(payload: &(dyn std::any::Any + Send)) -> Error {
    let text = (payload.downcast_ref::<String>().map(String::as_str))
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    let place = PANIC.lock().ok().and_then(|p| p.clone()).unwrap_or_else(|| "an unknown place".into());
    Error::new(Kind::Internal, format!("internal error at {place}: {text}"))
        .help("this is a defect of snlp: please report this text with the output of 'snlp --version', the command and the model")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{}: {help}", command.get_name());
        }
    }
}
