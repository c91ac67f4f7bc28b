//! `snlp eval`: quality and speed of plans against the sequential model.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use snlp::error::{Error, Kind};
use snlp::language::windows::Windows;
use snlp::passes::plan::Plan;
use snlp::passes::plan::search::frontier;
use snlp::plan_file::GivenPlan;
use snlp::source::Source;
use snlp::text;

use super::backend::Backend;
use super::evaluate::{Evaluation, whole_windows};
use super::html::{Heat, Point, Report};
use super::measure::{Measured, batch_of};
use super::output::{check_outputs, write_text};
use super::ui::{self, Table, Ui};
use super::windows::WindowArgs;
use super::{Common, check_plan, read_model};

/// Measure quality and speed of plans against the sequential model
///
/// Perplexity is the exponential of the mean negative log-likelihood of the targets. Of a text every token
/// but the first is scored once: windows follow one another, or overlap with --stride, so that each token
/// has context. kl, top1 and cosine compare logits with the sequential model's, averaged over
/// positions. What plans share is computed once for all of them; then each is timed alone: ms is the
/// median time of one batch of windows, sequential model and plans taken in turns. A converted model
/// takes the place of the sequential one, under the plan that it was converted with.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  snlp eval model.onnx --tokens val.npz --plan 6xF1 --plan '3xF2[k=2]'\n  \
                  snlp eval model.onnx --text val.txt --tokenizer tokenizer.json --context 256 --stride 128 --plan 6xF1"
)]
pub struct Eval {
    /// The .onnx file
    model: PathBuf,
    #[command(flatten)]
    windows: WindowArgs,
    /// A plan to measure; may be given several times
    #[arg(long = "plan", value_name = "PLAN")]
    plans: Vec<String>,
    /// Windows that run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Option<u32>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Write a report as one HTML file: quality against speed, and where the error arises
    #[arg(long, value_name = "F")]
    html: Option<PathBuf>,
}

impl Eval {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let plans =
            self.plans.iter().map(|p| GivenPlan::of(p, &self.model)).collect::<Result<Vec<_>, _>>()?;
        let source = read_model(&self.model, ui)?;
        source.require_supported()?;
        let outputs: Vec<_> = self.html.iter().map(|p| ("--html", p.as_path())).collect();
        let read = plans.iter().filter_map(GivenPlan::file).collect();
        check_outputs(&outputs, &[source.files(), self.windows.files(), read].concat(), None)?;
        let windows = self.windows.read(&source, ui)?;
        let mut placed = Vec::new();
        for plan in &plans {
            check_plan(&source, plan, ui)?;
            placed.push(source.place(&plan.plan)?);
        }
        // Everything about the windows is checked before a device is opened.
        let batch = batch_of(&source, &windows, self.batch)?;
        let mut graphs = vec![whole_windows(&source, &source.place(&Plan::sequential())?)?];
        for plan in &placed {
            graphs.push(whole_windows(&source, plan)?);
        }
        let backend = Backend::open(common, ui)?;
        let evaluation = Evaluation { backend: &backend, source: &source, batch };
        let mut measured = evaluation.quality(&graphs, &windows, ui)?;
        evaluation.time(&graphs, &windows, &mut measured, ui)?;
        let (sequential, rest) =
            measured.split_first().ok_or_else(|| Error::new(Kind::Internal, "nothing measured"))?;
        let names: Vec<String> = placed.iter().map(ToString::to_string).collect();
        if let Some(path) = &self.html {
            let heat = evaluation.heat(&placed, &windows, ui)?;
            let about = summary(&backend, &windows, batch);
            let page = page(&source, about, (sequential, rest), &names, heat);
            write_text(path, &page.render())?;
        }
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
            "tokens": windows.scored(),
            "ms": sequential.ms,
        },
        "plans": plans,
    })
}

/// What was measured, and on what.
fn summary(backend: &Backend, windows: &Windows, batch: usize) -> String {
    format!(
        "{} of {} tokens in batches of {batch}, on {}; ms per batch",
        ui::count(windows.count(), "window"),
        windows.length(),
        backend.name()
    )
}

/// The figures as a page; those of the model as it is come first.
fn page(
    source: &Source,
    about: String,
    (sequential, plans): (&Measured, &[Measured]),
    names: &[String],
    heat: Option<Heat>,
) -> Report {
    let all: Vec<&Measured> = std::iter::once(sequential).chain(plans).collect();
    let costs: Vec<(f64, f64)> = all.iter().map(|m| (m.ms, m.nll())).collect();
    let point = |((m, frontier), name): ((&&Measured, bool), &str)| Point {
        label: name.into(),
        speedup: sequential.ms / m.ms,
        change: m.ppl() / sequential.ppl() - 1.0,
        frontier,
        chosen: false,
        cells: figures(m, sequential).to_vec(),
    };
    let names = std::iter::once("sequential").chain(names.iter().map(String::as_str));
    let columns = ["ppl", "vs seq", "nll", "kl", "top1", "cosine", "ms", "speed-up"];
    Report {
        command: "eval",
        title: format!("Plans of {}", source.path.file_name().unwrap_or_default().to_string_lossy()),
        about: vec![about, "Times are of this device and this batch, taken in turns.".into()],
        speed: "speed-up, measured".into(),
        points: all.iter().zip(frontier(&costs)).zip(names).map(point).collect(),
        columns: columns.map(String::from).to_vec(),
        heat,
    }
}

/// The figures of a plan: perplexity, against the sequential model, likelihood, distance, time.
fn figures(m: &Measured, sequential: &Measured) -> [String; 8] {
    [
        format!("{:.3}", m.ppl()),
        format!("{:+.2} %", 100.0 * (m.ppl() / sequential.ppl() - 1.0)),
        format!("{:.4}", m.nll()),
        format!("{:.5}", m.deviation.kl()),
        format!("{:.4}", m.deviation.top1()),
        format!("{:.6}", m.deviation.cosine()),
        format!("{:.1}", m.ms),
        format!("{:.2}x", sequential.ms / m.ms),
    ]
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
    // Of the sequential model only what it is compared in says something.
    let own = figures(sequential, sequential).into_iter().enumerate();
    let own = own.map(|(i, figure)| if [0, 2, 6].contains(&i) { figure } else { String::new() });
    table.row(std::iter::once(label.to_string()).chain(own));
    for (name, m) in names.iter().zip(plans) {
        table.row(std::iter::once(name.clone()).chain(figures(m, sequential)));
    }
    table.render(0) + &summary(backend, windows, batch) + "\n"
}
