//! `snlp eval`: quality and speed of plans against the sequential model.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use snlp::error::{Error, Kind};
use snlp::language::inputs::{logits_output, token_feeds};
use snlp::language::windows::Windows;
use snlp::passes::ir::Graph;
use snlp::passes::rewrite::merge;
use snlp::source::{Source, parse_plan};
use snlp::text;

use super::backend::Backend;
use super::measure::{self, Forward, Joint, Measured, batch_size, check_windows, vocabulary};
use super::tensors::read_windows;
use super::ui::{self, Table, Ui};
use super::{Common, read_model};

/// Plans that run as one graph: more share more, but their logits are all held at once.
const MERGED: usize = 16;
/// Forwards of each plan that are timed, at most.
const ROUNDS: usize = 3;

/// Measure quality and speed of plans against the sequential model
///
/// Perplexity is the exponential of the mean over windows of the mean negative log-likelihood of a
/// window's targets. kl, top1 and cosine compare logits with the sequential model's, averaged over
/// positions. What plans share is computed once for all of them; then each is timed alone: ms is the
/// median time of one batch of windows, sequential model and plans taken in turns. A converted model
/// takes the place of the sequential one, under the plan that it was converted with.
#[derive(Args)]
#[command(after_help = "Example:\n  snlp eval model.onnx --tokens val.npz --plan 6xF1 --plan '3xF2[k=2]'")]
pub struct Eval {
    /// The .onnx file
    model: PathBuf,
    /// Token windows: int64 'windows' [n, T+1]; inputs are all but the last, targets all but the first
    #[arg(long, value_name = "F.npz", required_unless_present = "text")]
    tokens: Option<PathBuf>,
    /// Text to cut into windows (not implemented yet)
    #[arg(long, value_name = "F", conflicts_with = "tokens", requires = "tokenizer")]
    text: Option<PathBuf>,
    /// Tokenizer for --text (not implemented yet)
    #[arg(long, value_name = "T")]
    tokenizer: Option<PathBuf>,
    /// Window length for --text (not implemented yet)
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// A plan to measure; may be given several times
    #[arg(long = "plan", value_name = "PLAN")]
    plans: Vec<String>,
    /// Windows that run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Option<u32>,
    /// Use the first N windows only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    windows: Option<u32>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Write a report (not implemented yet)
    #[arg(long, value_name = "F")]
    html: Option<PathBuf>,
}

impl Eval {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        if self.text.is_some() || self.tokenizer.is_some() || self.context.is_some() {
            return Err(Error::not_yet("eval on text (--text, --tokenizer, --context)"));
        }
        if self.html.is_some() {
            return Err(Error::not_yet("eval --html"));
        }
        let plans = self.plans.iter().map(|p| parse_plan(p)).collect::<Result<Vec<_>, _>>()?;
        let mut windows = match &self.tokens {
            Some(path) => read_windows(path)?,
            None => return Err(Error::usage("eval needs --tokens")),
        };
        if let Some(n) = self.windows {
            windows = windows.truncated(n as usize);
        }
        let source = read_model(&self.model, ui)?;
        source.require_supported()?;
        let placed = plans.iter().map(|p| source.place(p)).collect::<Result<Vec<_>, _>>()?;
        let (at, name) = logits_output(&source.graph).map_err(|e| e.about(&self.model))?;
        let batch = batch_size(&windows, vocabulary(&source)?, self.batch.map(|b| b as usize));
        // Everything about the windows is checked before a device is opened.
        check_windows(&source, &windows)?;
        let mut graphs = vec![logits_only(source.graph.clone(), at)];
        for plan in &placed {
            // Whole windows at once: nothing is kept, and no cache is wanted.
            let plan = plan.clone().settle_caches(|_| false);
            graphs.push(logits_only(source.rewrite(&plan)?.graph, at));
        }
        let backend = Backend::open(common, ui)?;
        let mut measured = quality(&backend, &source, &graphs, name, &windows, batch, ui)?;
        time(&backend, &source, &graphs, &windows, batch, &mut measured, ui)?;
        let (sequential, rest) =
            measured.split_first().ok_or_else(|| Error::new(Kind::Internal, "nothing measured"))?;
        let names: Vec<String> = placed.iter().map(ToString::to_string).collect();
        if self.json {
            let mut document = document(&backend, &windows, batch, sequential, &names, rest);
            document["converted"] = json!(source.converted());
            ui::print_json(&document)
        } else {
            let converted = source.converted().filter(|_| source.is_rewritten());
            let label =
                converted.map_or("sequential".into(), |plan| format!("as converted: {}", text::name(plan)));
            ui::print(&report(&backend, &windows, batch, (&label, sequential), &names, rest))
        }
    }
}

/// The graph with its logits as its only output.
fn logits_only(mut graph: Graph, at: usize) -> Graph {
    graph.outputs = graph.outputs.get(at).cloned().into_iter().collect();
    graph.remove_dead();
    graph
}

/// Likelihood and distance of every graph; the first is the sequential model.
fn quality(
    backend: &Backend,
    source: &Source,
    graphs: &[Graph],
    logits: &str,
    windows: &Windows,
    batch: usize,
    ui: &Ui,
) -> Result<Vec<Measured>, Error> {
    let fits = measure::windows_held(windows, vocabulary(source)?) / batch.max(1);
    let mut merged = Vec::new();
    let mut names = Vec::new();
    for part in graphs.chunks(fits.clamp(1, MERGED)) {
        merged.push(merge(part).map_err(|e| Error::new(Kind::Internal, e.to_string()))?);
        names.push((0..part.len()).map(|i| format!("{i}/{logits}")).collect::<Vec<_>>());
    }
    let runners = backend.load(merged).map_err(|e| e.about(&source.path))?;
    let joint = |(runner, logits)| Joint { runner, graph: &source.graph, logits };
    let joints: Vec<Joint> = runners.iter().zip(names).map(joint).collect();
    measure::quality(source, &joints, windows, batch, ui)
}

/// Times every graph alone, each group of plans in turns with the sequential model.
fn time(
    backend: &Backend,
    source: &Source,
    graphs: &[Graph],
    windows: &Windows,
    batch: usize,
    measured: &mut [Measured],
    ui: &Ui,
) -> Result<(), Error> {
    let about = |e: Error| e.about(&source.path);
    let feeds = token_feeds(&source.graph, &windows.batch(0..batch))?;
    let [sequential, plans @ ..] = graphs else { return Ok(()) };
    let bar = ui.progress((plans.len().max(1) * (1 + ROUNDS)) as u64, "timing");
    let mut of_sequential = Vec::new();
    let mut at = 1;
    let groups = if plans.is_empty() { vec![plans] } else { plans.chunks(MERGED).collect() };
    for group in groups {
        let together = std::iter::once(sequential).chain(group).cloned().collect();
        let runners = backend.load(together).map_err(about)?;
        let forwards: Vec<Forward> = runners.iter().map(|runner| (runner, feeds.as_slice())).collect();
        let mut times = measure::times(&forwards, ROUNDS, &bar).map_err(about)?.into_iter();
        of_sequential.extend(times.next().unwrap_or_default());
        for times in times {
            if let Some(m) = measured.get_mut(at) {
                m.ms = measure::median(times);
            }
            at += 1;
        }
    }
    bar.finish_and_clear();
    if let Some(m) = measured.first_mut() {
        m.ms = measure::median(of_sequential);
    }
    Ok(())
}

fn document(
    backend: &Backend,
    windows: &Windows,
    batch: usize,
    sequential: &Measured,
    names: &[String],
    plans: &[Measured],
) -> Value {
    let plans: Vec<Value> = names
        .iter()
        .zip(plans)
        .map(|(name, m)| {
            json!({
                "plan": name,
                "ppl": m.ppl(),
                "nll": m.nll(),
                "kl": m.deviation.kl(),
                "top1": m.deviation.top1(),
                "cosine": m.deviation.cosine(),
                "max_abs": m.deviation.max_abs(),
                "ms": m.ms,
                "speedup": sequential.ms / m.ms,
            })
        })
        .collect();
    json!({
        "device": backend.name(),
        "windows": windows.count(),
        "batch": batch,
        "sequential": {
            "ppl": sequential.ppl(),
            "nll": sequential.nll(),
            "tokens": windows.count() * windows.length(),
            "ms": sequential.ms,
        },
        "plans": plans,
    })
}

/// The figures for people; those of the model as it is come first, under their label.
fn report(
    backend: &Backend,
    windows: &Windows,
    batch: usize,
    (label, sequential): (&str, &Measured),
    names: &[String],
    plans: &[Measured],
) -> String {
    let mut table = Table::new(&["plan", "ppl", "vs seq", "nll", "kl", "top1", "cosine", "ms", "speed-up"])
        .right(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let figures =
        |m: &Measured| [format!("{:.3}", m.ppl()), format!("{:.4}", m.nll()), format!("{:.1}", m.ms)];
    let [ppl, nll, ms] = figures(sequential);
    table.row([
        label.to_string(),
        ppl,
        String::new(),
        nll,
        String::new(),
        String::new(),
        String::new(),
        ms,
        String::new(),
    ]);
    for (name, m) in names.iter().zip(plans) {
        let [ppl, nll, ms] = figures(m);
        table.row([
            name.clone(),
            ppl,
            format!("{:+.2} %", 100.0 * (m.ppl() / sequential.ppl() - 1.0)),
            nll,
            format!("{:.5}", m.deviation.kl()),
            format!("{:.4}", m.deviation.top1()),
            format!("{:.6}", m.deviation.cosine()),
            ms,
            format!("{:.2}x", sequential.ms / m.ms),
        ]);
    }
    table.render(0)
        + &format!(
            "{} of {} tokens in batches of {batch}, on {}; ms per batch\n",
            ui::count(windows.count(), "window"),
            windows.length(),
            backend.name()
        )
}
