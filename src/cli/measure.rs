//! Quality on token windows, and times, of several ways to run one model.

use std::ops::Range;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use snlp::error::{Error, Kind};
use snlp::language::inputs::{logits_output, token_feeds};
use snlp::language::metrics::{Deviation, MetricsError, window_nll};
use snlp::language::windows::Windows;
use snlp::passes::ir::{Graph, Tensor};
use snlp::source::Source;

use super::backend::Runner;
use super::ui::Ui;

/// Bytes of logits that may be held at once.
const LOGITS_BYTES: usize = 256 << 20;

/// One window under one way to run the model.
#[derive(Clone, Copy, Default)]
pub struct Score {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Sum of their negative log-likelihood, in nats.
    pub nll: f64,
    /// Distance from the sequential logits.
    pub deviation: Deviation,
}

/// What was measured of one way to run the model.
#[derive(Clone, Default)]
pub struct Measured {
    /// Each window, in the order that they were measured in.
    pub windows: Vec<Score>,
    /// Distance from the sequential logits.
    pub deviation: Deviation,
    /// Milliseconds of a batch.
    pub ms: f64,
}

impl Measured {
    /// Mean negative log-likelihood of a token, in nats.
    pub fn nll(&self) -> f64 {
        let sum: f64 = self.windows.iter().map(|w| w.nll).sum();
        sum / self.windows.iter().map(|w| w.tokens).sum::<usize>() as f64
    }

    /// Perplexity.
    pub fn ppl(&self) -> f64 {
        self.nll().exp()
    }

    /// Adds further windows.
    pub fn extend(&mut self, more: impl IntoIterator<Item = Score>) {
        more.into_iter().for_each(|window| self.push(window));
    }

    fn push(&mut self, window: Score) {
        self.windows.push(window);
        self.deviation.join(&window.deviation);
    }
}

/// A runner whose outputs of these names are logits, each of another way to run the model.
pub struct Joint<'a> {
    /// What runs.
    pub runner: &'a Runner,
    /// The graph that tells which inputs tokens become.
    pub graph: &'a Graph,
    /// Names of the outputs.
    pub logits: Vec<String>,
}

/// Windows whose logits may be held at once: one at least.
pub fn windows_held(windows: &Windows, vocabulary: usize) -> usize {
    let window_bytes = windows.length().saturating_mul(vocabulary).saturating_mul(4).max(1);
    (LOGITS_BYTES / window_bytes).max(1)
}

/// Windows to run at once: as many as asked for, else at most 8, such that the logits of a batch stay
/// small.
pub fn batch_size(windows: &Windows, vocabulary: usize, asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| 8.min(windows_held(windows, vocabulary))).clamp(1, windows.count())
}

/// Likelihood and distance of every output of `joints` on every window; the first output is the
/// sequential model's. Only one batch of sequential logits is kept.
pub fn quality(
    source: &Source,
    joints: &[Joint<'_>],
    windows: &Windows,
    batch: usize,
    ui: &Ui,
) -> Result<Vec<Measured>, Error> {
    let count = joints.iter().map(|j| j.logits.len()).sum();
    let mut measured = vec![Measured::default(); count];
    let batches = windows.count().div_ceil(batch);
    let bar = ui.progress((batches * joints.len()) as u64, "measuring");
    for first in (0..windows.count()).step_by(batch) {
        let range = first..windows.count().min(first + batch);
        let ids = windows.batch(range.clone());
        let mut reference: Option<Vec<f32>> = None;
        let mut places = measured.iter_mut();
        for joint in joints {
            let feeds = token_feeds(joint.graph, &ids)?;
            let outputs = joint.runner.run(&feeds).map_err(|e| e.about(&source.path))?;
            for (name, measured) in joint.logits.iter().zip(&mut places) {
                let Some((_, tensor)) = outputs.iter().find(|(n, _)| n == name) else {
                    return Err(Error::new(Kind::Internal, format!("output '{name}' was not computed")));
                };
                let logits = score(tensor, reference.as_deref(), windows, range.clone(), measured)?;
                reference.get_or_insert(logits);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(measured)
}

/// Rounds of timing stop when they have taken so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A runner and inputs for it.
pub type Forward<'a> = (&'a Runner, &'a [(String, Tensor)]);

/// The times of at most `rounds` runs of each forward, taken in turns after one that is not timed;
/// fewer, but one at least, where forwards are slow.
pub fn times(
    forwards: &[Forward<'_>],
    rounds: usize,
    bar: &ProgressBar,
) -> Result<Vec<Vec<Duration>>, Error> {
    let mut times = vec![Vec::new(); forwards.len()];
    let start = Instant::now();
    for round in 0..=rounds {
        if round > 1 && start.elapsed() > PATIENCE {
            break;
        }
        for (i, ((runner, inputs), times)) in forwards.iter().zip(&mut times).enumerate() {
            let took = runner.time(inputs, 1)?;
            // The first round pays for what later ones reuse.
            if round > 0 {
                times.extend(took);
            }
            if i > 0 {
                bar.inc(1);
            }
        }
    }
    Ok(times)
}

/// The median in milliseconds; NaN of nothing.
pub fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    let ms = |t: &Duration| t.as_secs_f64() * 1e3;
    let middle = times.len() / 2;
    match times.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => ms(&times[middle]),
        _ => (ms(&times[middle - 1]) + ms(&times[middle])) / 2.0,
    }
}

fn metrics_error(e: MetricsError) -> Error {
    Error::input("the windows do not fit the model's logits")
        .because(e)
        .help("token ids must come from the tokenizer that the model was trained with")
}

/// Measures a batch against the reference logits, which are its own where there are none, and returns its
/// logits.
fn score(
    tensor: &Tensor,
    reference: Option<&[f32]>,
    windows: &Windows,
    range: Range<usize>,
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
    let reference = reference.unwrap_or(&logits);
    for (i, first) in range.zip((0..).step_by(length * vocabulary)) {
        let from = windows.repeated(i);
        let scored = first + from * vocabulary..first + length * vocabulary;
        let expected = reference.get(scored.clone()).unwrap_or_default();
        let found = logits.get(scored).unwrap_or_default();
        let targets = windows.targets(i).get(from..).unwrap_or_default();
        let mut window = Score { tokens: targets.len(), ..Score::default() };
        let mean = window_nll(found, vocabulary, targets).map_err(metrics_error)?;
        window.nll = mean * window.tokens as f64;
        window.deviation.add(expected, found, vocabulary).map_err(metrics_error)?;
        measured.push(window);
    }
    Ok(logits)
}

/// How many windows run at once, of windows that fit the model.
pub fn batch_of(source: &Source, windows: &Windows, asked: Option<u32>) -> Result<usize, Error> {
    let vocabulary = vocabulary(source).map_err(|e| e.about(&source.path))?;
    check_windows(source, windows)?;
    Ok(batch_size(windows, vocabulary, asked.map(|n| n as usize)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_small() {
        let windows = |n: usize| {
            let t = Tensor::from_vec(vec![n, 257], vec![0i64; n * 257]).expect("fits");
            Windows::new(&t).expect("windows")
        };
        assert_eq!(batch_size(&windows(64), 512, None), 8);
        assert_eq!(batch_size(&windows(3), 512, None), 3);
        assert_eq!(batch_size(&windows(64), 150_000, None), 1);
        assert_eq!(batch_size(&windows(64), 512, Some(100)), 64);
    }

    #[test]
    fn medians() {
        let times = |ms: &[u64]| ms.iter().map(|m| Duration::from_millis(*m)).collect::<Vec<_>>();
        assert!(median(vec![]).is_nan());
        assert_eq!(median(times(&[5, 1, 3])), 3.0);
        assert_eq!(median(times(&[4, 1])), 2.5);
    }
}
