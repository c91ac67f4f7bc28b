//! `snlp plan`: the fastest plan inside a quality budget.

mod report;
mod search;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use snlp::error::Error;
use snlp::language::budget::Budget;
use snlp::runtime::schedule::Profile;

use super::backend::Backend;
use super::evaluate::Evaluation;
use super::measure::batch_of;
use super::output::{check_outputs, write_text};
use super::ui::{self, Ui};
use super::windows::WindowArgs;
use super::{Common, read_model};
use report::Outcome;
use search::{CostModel, Search};

/// Search for the fastest plan inside a quality budget
///
/// A budget is ppl+1% (rise of perplexity over the sequential model), kl<0.02 (mean divergence from its
/// distribution, in nats), top1>97% (positions with its most likely token), or several with commas between.
/// Candidates come from how far each layer's state is off under segments of every kind, on a few hundred
/// tokens; fewer and fewer of them are evaluated on more and more windows. What is chosen has been evaluated
/// on all windows and is inside the budget there, unless --time-limit ended the search before.
///
/// Fast means a small modelled cost: each dispatch takes its launch, then the longer of its traffic and its
/// arithmetic, on the device of --profile. So the search needs no GPU and gives the same plan everywhere.
/// With --optimize time the last choice goes by the time of a window on this device.
#[derive(Args)]
#[command(
    after_help = "Example:\n  snlp plan model.onnx --tokens val.npz --budget 'ppl+1%' -o plan.toml\n  \
                  snlp eval model.onnx --tokens val.npz --plan plan.toml"
)]
pub struct PlanSearch {
    /// The .onnx file
    model: PathBuf,
    #[command(flatten)]
    windows: WindowArgs,
    /// What a plan may cost, such as ppl+1%, kl<0.02, top1>97% or 'ppl+1%,top1>95%'
    #[arg(long, value_name = "BUDGET", value_parser = Budget::from_str)]
    budget: Budget,
    /// What is made small
    #[arg(long, value_enum, default_value_t)]
    optimize: Optimize,
    /// Decides which windows are evaluated first
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Device of the cost: microseconds per dispatch, GB/s, TFLOP/s
    #[arg(long, value_name = "US,GB,TF", default_value = "5,300,8", value_parser = profile)]
    profile: Profile,
    /// Positions of the forward whose cost is modelled, at batch 1
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    positions: u32,
    /// Begin no further evaluation after so long: the evidence and the first one are made in any case; the result
    /// says on how many windows it rests
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    time_limit: Option<u32>,
    /// Windows that run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Option<u32>,
    /// Write the plan to a file, which --plan takes
    #[arg(short, long, value_name = "plan.toml")]
    output: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Write a report as one HTML file: the frontier of speed and quality, and where the error arises
    #[arg(long, value_name = "F")]
    html: Option<PathBuf>,
}

/// `--optimize`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Optimize {
    /// The modelled cost of a forward.
    #[default]
    Cost,
    /// The measured time of a window.
    Time,
}

impl Optimize {
    fn name(self) -> &'static str {
        match self {
            Optimize::Cost => "cost",
            Optimize::Time => "time",
        }
    }
}

/// A device as `5,300,8`.
fn profile(text: &str) -> Result<Profile, String> {
    let numbers: Vec<f64> = text.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    match numbers[..] {
        [us, gb, tf]
            if [us, gb, tf].iter().all(|x| x.is_finite() && *x > 0.0) && text.split(',').count() == 3 =>
        {
            Ok(Profile { dispatch: us * 1e-6, bandwidth: gb * 1e9, flops: tf * 1e12 })
        }
        _ => Err("expected three positive numbers: microseconds per dispatch, GB/s, TFLOP/s".into()),
    }
}

impl PlanSearch {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let source = read_model(&self.model, ui)?;
        source.require_supported()?;
        source.chain()?;
        let outputs = [("-o", &self.output), ("--html", &self.html)];
        let outputs: Vec<_> = outputs.iter().filter_map(|(o, p)| Some((*o, p.as_deref()?))).collect();
        check_outputs(&outputs, &[source.files(), self.windows.files()].concat(), None)?;
        let windows = self.windows.read(&source, ui)?;
        let batch = batch_of(&source, &windows, self.batch)?;
        let backend = Backend::open(common, ui)?;
        let mut order: Vec<usize> = (0..windows.count()).collect();
        fastrand::Rng::with_seed(self.seed).shuffle(&mut order);
        let windows = windows.select(&order);
        let evaluation = Evaluation { backend: &backend, source: &source, batch };
        let model = CostModel { profile: self.profile, positions: self.positions as usize };
        let limit = self.time_limit.map(|s| Duration::from_secs(u64::from(s)));
        let mut search = Search::new(evaluation, &self.budget, model, limit, windows, ui)?;
        let chosen = search.run(self.optimize == Optimize::Time)?;
        let ms = search.milliseconds(&[0, chosen])?;
        let outcome = Outcome {
            search: &search,
            chosen,
            ms: (ms[0], ms[1]),
            device: backend.name(),
            optimize: self.optimize,
            seed: self.seed,
            seconds: search.start.elapsed().as_secs_f64(),
        };
        if let Some(path) = &self.output {
            let text = outcome.file(&source).to_text()?;
            write_text(path, &text)?;
        }
        if let Some(path) = &self.html {
            write_text(path, &outcome.page(ui)?.render())?;
        }
        if self.json {
            ui::print_json(&outcome.json())
        } else {
            ui::print(&outcome.text(self.output.as_deref()))
        }
    }
}
