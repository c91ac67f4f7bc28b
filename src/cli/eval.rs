//! `snlp eval`: quality and speed of plans against the sequential model.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use snlp::error::{Error, Kind};
use snlp::language::inputs::{logits_output, token_feeds};
use snlp::language::metrics::{Deviation, window_nll};
use snlp::language::windows::Windows;
use snlp::passes::ir::Tensor;
use snlp::source::{Source, parse_plan};

use super::Common;
use super::backend::{Backend, Runner};
use super::tensors::read_windows;
use super::ui::{self, Table, Ui};

/// Measure quality and speed of plans against the sequential model
///
/// Perplexity is the exponential of the mean over windows of the mean negative log-likelihood of a
/// window's targets. kl, top1 and cosine compare logits with the sequential model's, averaged over
/// positions. ms is the median time of one batch of windows.
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

/// What was measured of one way to run the model.
#[derive(Clone, Default)]
pub struct Measured {
    /// Sum over windows of the mean negative log-likelihood.
    nll: f64,
    windows: usize,
    /// Distance from the sequential logits.
    pub deviation: Deviation,
    /// Milliseconds of each full batch.
    times: Vec<f64>,
}

impl Measured {
    /// Mean negative log-likelihood, in nats.
    pub fn nll(&self) -> f64 {
        self.nll / self.windows as f64
    }

    /// Perplexity.
    pub fn ppl(&self) -> f64 {
        self.nll().exp()
    }

    /// Median milliseconds of a batch; the first one pays for the preparation and is left out when
    /// there are others.
    pub fn ms(&self) -> f64 {
        let mut times = self.times.get(usize::from(self.times.len() > 1)..).unwrap_or_default().to_vec();
        times.sort_by(f64::total_cmp);
        let middle = times.len() / 2;
        match times.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => times[middle],
            _ => (times[middle - 1] + times[middle]) / 2.0,
        }
    }
}

/// Bytes of logits that a batch may have.
const LOGITS_BYTES: usize = 256 << 20;

/// Windows to run at once: as many as asked for, else at most 8, such that the logits of a batch stay
/// small and there are at least two batches to time.
pub fn batch_size(windows: &Windows, vocabulary: usize, asked: Option<usize>) -> usize {
    let window_bytes = windows.length().saturating_mul(vocabulary).saturating_mul(4).max(1);
    let fits = (LOGITS_BYTES / window_bytes).max(1);
    asked.unwrap_or_else(|| windows.count().div_ceil(2).min(8).min(fits)).clamp(1, windows.count())
}

/// Runs every runner on every window; the first runner is the sequential model. Only one batch of
/// sequential logits is kept.
pub fn measure(
    source: &Source,
    runners: &[Runner],
    windows: &Windows,
    batch: usize,
    ui: &Ui,
) -> Result<Vec<Measured>, Error> {
    let (at, logits_name) = logits_output(&source.graph)?;
    let mut out = vec![Measured::default(); runners.len()];
    let batches = windows.count().div_ceil(batch);
    let bar = ui.progress((batches * runners.len()) as u64, "measuring");
    for first in (0..windows.count()).step_by(batch) {
        let range = first..windows.count().min(first + batch);
        let full = range.len() == batch;
        let feeds = token_feeds(&source.graph, &windows.batch(range.clone()))?;
        let mut reference: Vec<f32> = Vec::new();
        for (i, (runner, measured)) in runners.iter().zip(&mut out).enumerate() {
            let start = Instant::now();
            let outputs = runner.run(&feeds).map_err(|e| e.about(&source.path))?;
            if full {
                measured.times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            let Some((_, tensor)) = outputs.into_iter().nth(at) else {
                return Err(Error::new(Kind::Internal, format!("output '{logits_name}' was not computed")));
            };
            let logits = score(&tensor, windows, range.clone(), measured)?;
            let vocabulary = tensor.shape().last().copied().unwrap_or(0);
            let base = if i == 0 { &logits } else { &reference };
            measured.deviation.add(base, &logits, vocabulary).map_err(metrics_error)?;
            if i == 0 {
                reference = logits;
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(out)
}

fn metrics_error(e: snlp::language::metrics::MetricsError) -> Error {
    Error::input("the windows do not fit the model's logits")
        .because(e)
        .help("token ids must come from the tokenizer that the model was trained with")
}

/// Adds the likelihood of a batch and returns its logits.
fn score(
    tensor: &Tensor,
    windows: &Windows,
    range: std::ops::Range<usize>,
    measured: &mut Measured,
) -> Result<Vec<f32>, Error> {
    let &[rows, length, vocabulary] = tensor.shape() else {
        return Err(Error::input(format!(
            "the logits have shape {:?}, not [batch, sequence, vocabulary]",
            tensor.shape()
        )));
    };
    if rows != range.len() || length != windows.length() || vocabulary == 0 {
        return Err(Error::input(format!(
            "the logits have shape {:?}, but [{}, {}, vocabulary] was expected",
            tensor.shape(),
            range.len(),
            windows.length()
        )));
    }
    let logits = tensor.to_f32();
    for (i, window) in range.zip(logits.chunks_exact(length * vocabulary)) {
        measured.nll += window_nll(window, vocabulary, windows.targets(i)).map_err(metrics_error)?;
        measured.windows += 1;
    }
    Ok(logits)
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
        let source = Source::read(&self.model)?;
        source.require_supported()?;
        let placed = plans.iter().map(|p| source.place(p)).collect::<Result<Vec<_>, _>>()?;
        let vocabulary = vocabulary(&source)?;
        let batch = batch_size(&windows, vocabulary, self.batch.map(|b| b as usize));
        // Everything about the windows is checked before a device is opened.
        check_windows(&source, &windows)?;
        let mut graphs = vec![source.graph.clone()];
        for plan in &placed {
            graphs.push(source.rewrite(plan)?.graph);
        }
        let backend = Backend::open(common, ui)?;
        let runners = backend.load(graphs).map_err(|e| e.about(&self.model))?;
        let measured = measure(&source, &runners, &windows, batch, ui)?;
        let (sequential, rest) =
            measured.split_first().ok_or_else(|| Error::new(Kind::Internal, "nothing measured"))?;
        let names: Vec<String> = placed.iter().map(ToString::to_string).collect();
        if self.json {
            let document = document(&backend, &windows, batch, sequential, &names, rest);
            ui::print_json(&document)
        } else {
            ui::print(&text(&backend, &windows, batch, sequential, &names, rest))
        }
    }
}

/// Refuses windows that do not fit the model's inputs, or hold tokens that it does not have.
pub fn check_windows(source: &Source, windows: &Windows) -> Result<(), Error> {
    let all = windows.batch(0..windows.count());
    let feeds = token_feeds(&source.graph, &all).and_then(|f| snlp::feeds::feeds(&source.graph, &f));
    feeds.map(drop).map_err(|e| e.about(&source.path))
}

/// Size of the last axis of the logits, as far as it is known before running.
pub fn vocabulary(source: &Source) -> Result<usize, Error> {
    let (at, _) = logits_output(&source.graph)?;
    let shape = source.graph.outputs.get(at).and_then(|o| source.graph.shape(o.value));
    Ok(shape.and_then(|s| s.last()?.known_size()).unwrap_or(1 << 16))
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
                "ms": m.ms(),
                "speedup": sequential.ms() / m.ms(),
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
            "ms": sequential.ms(),
        },
        "plans": plans,
    })
}

fn text(
    backend: &Backend,
    windows: &Windows,
    batch: usize,
    sequential: &Measured,
    names: &[String],
    plans: &[Measured],
) -> String {
    let mut table = Table::new(&["plan", "ppl", "vs seq", "nll", "kl", "top1", "cosine", "ms", "speed-up"])
        .right(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let figures =
        |m: &Measured| [format!("{:.3}", m.ppl()), format!("{:.4}", m.nll()), format!("{:.1}", m.ms())];
    let [ppl, nll, ms] = figures(sequential);
    table.row([
        "sequential".into(),
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
            format!("{:.2}x", sequential.ms() / m.ms()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_small_and_leave_one_to_time() {
        let windows = |n: usize| {
            let t = Tensor::from_vec(vec![n, 257], vec![0i64; n * 257]).expect("fits");
            Windows::new(&t).expect("windows")
        };
        assert_eq!(batch_size(&windows(64), 512, None), 8);
        assert_eq!(batch_size(&windows(4), 512, None), 2);
        assert_eq!(batch_size(&windows(1), 512, None), 1);
        assert_eq!(batch_size(&windows(64), 150_000, None), 1);
        assert_eq!(batch_size(&windows(64), 512, Some(100)), 64);
    }

    #[test]
    fn the_first_of_several_times_is_warm_up() {
        let mut m = Measured { times: vec![100.0], ..Measured::default() };
        assert_eq!(m.ms(), 100.0);
        m.times.extend([3.0, 1.0]);
        assert_eq!(m.ms(), 2.0);
    }
}
