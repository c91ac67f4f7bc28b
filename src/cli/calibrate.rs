//! `snlp calibrate`: what `init=preheat` starts from.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use snlp::error::Error;
use snlp::files::folder_of;
use snlp::language::inputs::token_feeds;
use snlp::passes::ir::Graph;
use snlp::preheat::{self, Fitted, Statistics};
use snlp::source::Source;

use super::backend::Backend;
use super::measure::check_windows;
use super::output::{check_outputs, write_atomic};
use super::ui::{self, Table, Ui};
use super::windows::WindowArgs;
use super::{Common, read_model};

/// Calibrate the first guesses of plans with init=preheat
///
/// Runs the sequential model on tokens and fits, for each layer, the map of low rank that best predicts the
/// state behind it from the state that enters the first layer. The result lies beside the model, where every
/// command finds it when a plan says init=preheat; 'snlp plan' then tries such plans too. Use tokens of the
/// kind that the model will see, and others than those that quality is measured on.
#[derive(Args)]
#[command(after_help = "Example:\n  snlp calibrate model.onnx --tokens train.npz --rank 16\n  \
                  snlp eval model.onnx --tokens val.npz --plan 6xF1 --plan '6xF1[init=preheat]'")]
pub struct Calibrate {
    /// The .onnx file
    model: PathBuf,
    #[command(flatten)]
    windows: WindowArgs,
    /// Rank of the maps: each costs two products with matrices of so many columns
    #[arg(long, value_name = "R", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    rank: u32,
    /// The file to write; the one beside the model is the one that is found
    #[arg(short, long, value_name = "F", default_value = None)]
    output: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Tokens of a forward, about.
const TOKENS: usize = 1024;
/// Times as many tokens as features are wanted.
const FEW: usize = 4;
/// Tokens that are used where --windows does not say, about: more change little.
const ENOUGH: usize = 32_768;

impl Calibrate {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let source = read_model(&self.model, ui)?;
        source.require_supported()?;
        let path = self.output.clone().unwrap_or_else(|| folder_of(&self.model).join(preheat::FILE));
        check_outputs(&[("-o", &path)], &[source.files(), self.windows.files()].concat(), None)?;
        let mut windows = self.windows.read(&source, ui)?;
        if self.windows.windows.is_none() {
            let enough = ENOUGH.div_ceil(windows.length());
            windows = windows.truncated(enough);
        }
        check_windows(&source, &windows)?;
        let (graph, width, layers) = states(&source)?;
        let runner = Backend::open(common, ui)?.load_one(graph).map_err(|e| e.about(&source.path))?;
        let mut statistics = Statistics::new(width, layers);
        let batch = (TOKENS / windows.length()).max(1);
        let bar = ui.progress(windows.count().div_ceil(batch) as u64, "calibrating");
        for first in (0..windows.count()).step_by(batch) {
            let ids = windows.batch(first..(first + batch).min(windows.count()));
            let feeds = token_feeds(&source.graph, &ids)?;
            let outputs = runner.run(&feeds).map_err(|e| e.about(&source.path))?;
            let mut values: Vec<Vec<f32>> = outputs.iter().map(|(_, t)| t.to_f32()).collect();
            let input = if values.is_empty() { vec![] } else { values.remove(0) };
            statistics.add(&input, &values);
            bar.inc(1);
        }
        bar.finish_and_clear();
        if statistics.tokens() < FEW * width {
            ui.warn(&format!(
                "{} tokens are few for a state of {width} features: what is explained of them says little of others",
                statistics.tokens()
            ));
        }
        let fitted = statistics.fit(self.rank as usize).map_err(|e| e.about(&source.path))?;
        let bytes = preheat::encode(&fitted, source.model.info.fingerprint.sha256(), statistics.tokens())?;
        write_atomic(&path, |out| out.write_all(&bytes))?;
        if self.json {
            return ui::print_json(&json!({
                "file": path,
                "tokens": statistics.tokens(),
                "rank": fitted.first().map(|f| f.prediction.down.shape()[1]),
                "explained": fitted.iter().map(|f| f.explained).collect::<Vec<_>>(),
            }));
        }
        ui::print(&report(&fitted, statistics.tokens(), &path.display().to_string()))
    }
}

/// The model with the state that enters the chain and those behind its layers as outputs; their width, and how
/// many layers there are.
fn states(source: &Source) -> Result<(Graph, usize, usize), Error> {
    let chain = source.chain()?;
    if chain.streams.count > 1 {
        return Err(Error::input(format!(
            "{}: init=preheat predicts states of one residual stream; this model has {}",
            source.path.display(),
            chain.streams.count
        ))
        .help("use init=h0 or init=batch_fwd"));
    }
    let width = chain.hidden.known_size().ok_or_else(|| {
        Error::input(format!(
            "{}: the width of the state, {}, is not known",
            source.path.display(),
            chain.hidden
        ))
        .help("export the model with a fixed width")
    })?;
    let mut graph = source.graph.clone();
    graph.outputs.clear();
    let states = chain.layers.iter().map(|l| l.output);
    for (i, state) in std::iter::once(chain.input).chain(states).enumerate() {
        graph.add_output(&format!("state.{i}"), state);
    }
    graph.remove_dead();
    Ok((graph, width, chain.layers.len()))
}

fn report(fitted: &[Fitted], tokens: usize, path: &str) -> String {
    let mut table = Table::new(&["state behind", "explained"]).right(&[1]);
    for (layer, f) in fitted.iter().enumerate() {
        table.row([format!("layer {layer}"), format!("{:.1} %", 100.0 * f.explained)]);
    }
    let rank = fitted.first().map_or(0, |f| f.prediction.down.shape().get(1).copied().unwrap_or(0));
    table.render(0)
        + &format!(
            "share of the variance, rank {rank}, {} tokens; written to {}\n",
            ui::thousands(tokens as u64),
            ui::path(path.as_ref())
        )
}
