//! `--verify`: a written model against the plain evaluator, and against its original.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use snlp::compare::{Comparison, Tolerance, compare};
use snlp::error::{Error, Kind};
use snlp::feeds::{feeds, input_types};
use snlp::language::inputs::{logits_output, token_feeds};
use snlp::language::metrics::Deviation;
use snlp::language::windows::Windows;
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{Graph, Tensor, ValueId};
use snlp::samples::{decode_sizes, sample_inputs, sample_length, sample_sizes};
use snlp::source::Source;
use snlp::text;

use super::Common;
use super::backend::{Backend, Runner};
use super::measure::{self, Forward, Joint, Measured, batch_size, check_windows, vocabulary};
use super::ui::{self, BAD, BOLD, GOOD, Ui};

/// Positions of the inputs that the evaluator runs on: it is correct, not fast.
const LENGTH: usize = 24;
/// Positions in the caches of the step that is compared beside it.
const PAST: usize = 5;
/// Forwards that are timed.
const ROUNDS: usize = 5;

/// What one backend said.
struct OnBackend {
    device: String,
    /// The file against the evaluator, for each output.
    outputs: Vec<(String, Comparison)>,
    /// The same for one position behind caches, where the model has caches.
    decode: Vec<(String, Comparison)>,
}

/// What was found. The first backend is the one that measures quality and time.
pub struct Verification {
    tolerance: Tolerance,
    backends: Vec<OnBackend>,
    /// The file against the sequential model.
    deviation: Deviation,
    /// Sequential and converted, on token windows.
    quality: Option<(Measured, Measured)>,
    /// Milliseconds of a forward, sequential and converted.
    ms: (f64, f64),
    /// What a forward was timed on.
    timed: String,
}

/// Reads the written file back, runs it and the original on the chosen backend, and evaluates the
/// rewritten graph independently.
pub fn verify(
    source: &Source,
    rewritten: &Graph,
    file: &Path,
    windows: Option<Windows>,
    common: &Common,
    ui: &Ui,
) -> Result<Verification, Error> {
    let converted = Source::read(file)?;
    source.require_supported()?;
    if let Some(windows) = &windows {
        check_windows(source, windows)?;
    }
    let about = |e: Error| e.about(&source.path);
    let length = sample_length(&source.graph, LENGTH);
    let inputs =
        probe(source, windows.as_ref(), length).and_then(|p| feeds(&source.graph, &p)).map_err(about)?;
    let inputs_of_file = with_own_caches(rewritten, &inputs).map_err(about)?;
    let backends = Backend::open_all(common, ui)?;
    let bar = ui.progress(1 + backends.len() as u64, "verifying");
    let expected = evaluate(rewritten, &inputs_of_file)?;
    let decode = match decode_sizes(&source.graph, PAST) {
        Some(sizes) => {
            let step =
                sample_inputs(&source.graph, &sizes).and_then(|s| feeds(&source.graph, &s)).map_err(about)?;
            let step = with_own_caches(rewritten, &step).map_err(about)?;
            let expected = evaluate(rewritten, &step)?;
            Some((step, expected))
        }
        None => None,
    };
    bar.inc(1);

    let half = common.dtype == Some(super::args::DTypeChoice::F16);
    let tolerance = if half { Tolerance::Loose } else { Tolerance::of(rewritten) };
    let mut said = Vec::new();
    let mut first: Option<(Vec<Runner>, Deviation)> = None;
    for backend in &backends {
        let runners = backend.load(vec![source.graph.clone(), converted.graph.clone()]).map_err(about)?;
        let [sequential, parallel] = &runners[..] else {
            return Err(Error::new(Kind::Internal, "two runners were expected"));
        };
        let actual = parallel.run(&inputs_of_file).map_err(|e| e.about(file))?;
        let reference = sequential.run(&inputs).map_err(about)?;
        let decode = match &decode {
            Some((step, expected)) => {
                check(expected, &parallel.run(step).map_err(|e| e.about(file))?, tolerance)?
            }
            None => vec![],
        };
        let outputs = check(&expected, &actual, tolerance)?;
        said.push(OnBackend { device: backend.name(), outputs, decode });
        if first.is_none() {
            let deviation = deviation(source, &reference, &actual)?;
            first = Some((runners, deviation));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (runners, deviation) = first.ok_or_else(|| Error::new(Kind::Internal, "no backend was opened"))?;
    let (quality, timing_inputs, timed) = match windows {
        Some(w) => {
            let (_, name) = logits_output(&source.graph).map_err(about)?;
            let batch = batch_size(&w, vocabulary(source)?, None);
            let joint = |(runner, graph)| Joint { runner, graph, logits: vec![name.to_string()] };
            let joints: Vec<Joint> =
                runners.iter().zip([&source.graph, &converted.graph]).map(joint).collect();
            let mut measured = measure::quality(source, &joints, &w, batch, ui)?.into_iter();
            let ids = w.batch(0..batch);
            let feeds = [token_feeds(&source.graph, &ids)?, token_feeds(&converted.graph, &ids)?];
            let timed = format!("{batch} x {} tokens", w.length());
            (measured.next().zip(measured.next()), feeds, timed)
        }
        None => (None, [inputs, inputs_of_file], format!("1 x {length} positions")),
    };
    let forwards: Vec<Forward> = runners.iter().zip(timing_inputs.iter().map(Vec::as_slice)).collect();
    let bar = ui.progress(1 + ROUNDS as u64, "timing");
    let ms = measure::times(&forwards, ROUNDS, &bar)?.into_iter().map(measure::median);
    bar.finish_and_clear();
    let ms = match ms.collect::<Vec<_>>()[..] {
        [sequential, parallel] => (sequential, parallel),
        _ => (f64::NAN, f64::NAN),
    };
    Ok(Verification { tolerance, backends: said, deviation, quality, ms, timed })
}

/// Inputs short enough for the evaluator: the beginning of the first window, else a sample.
fn probe(source: &Source, windows: Option<&Windows>, length: usize) -> Result<Vec<(String, Tensor)>, Error> {
    let Some(windows) = windows else {
        return sample_inputs(&source.graph, &sample_sizes(&source.graph, length));
    };
    let length = windows.length().min(length);
    let ids = windows.inputs(0).get(..length).unwrap_or_default().to_vec();
    let ids = Tensor::from_vec(vec![1, length], ids).map_err(|e| Error::input(e.to_string()))?;
    token_feeds(&source.graph, &ids)
}

/// The inputs with those that the converted model has beside the original's: caches of a segment's earlier
/// iterations, with the content of the original's caches.
fn with_own_caches(converted: &Graph, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
    let given = |name: &str| inputs.iter().find(|(n, _)| n == name);
    let mut all = inputs.to_vec();
    for (name, _) in input_types(converted) {
        if given(name).is_none()
            && let Some((base, _)) = name.rsplit_once('.')
            && let Some((_, tensor)) = given(base)
        {
            all.push((name.to_string(), tensor.clone()));
        }
    }
    feeds(converted, &all)
}

/// Every expected output against the one computed.
fn check(
    expected: &[(String, Tensor)],
    actual: &[(String, Tensor)],
    tolerance: Tolerance,
) -> Result<Vec<(String, Comparison)>, Error> {
    let mut out = Vec::new();
    for (name, e) in expected {
        let (_, a) = actual.iter().find(|(n, _)| n == name).ok_or_else(|| {
            Error::new(Kind::Check, format!("the written model does not return '{}'", text::name(name)))
        })?;
        let found = compare(a, e, tolerance).map_err(|why| {
            Error::new(Kind::Check, format!("output '{}' of the written model {why}", text::name(name)))
        })?;
        out.push((name.clone(), found));
    }
    Ok(out)
}

/// The graph under the plain evaluator.
fn evaluate(graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
    let by_id: BTreeMap<ValueId, Tensor> = graph
        .inputs()
        .iter()
        .filter_map(|v| {
            let name = graph.value(*v).name.as_deref()?;
            Some((*v, inputs.iter().find(|(n, _)| n == name)?.1.clone()))
        })
        .collect();
    let outputs = eval_graph(graph, &by_id).map_err(|e| {
        Error::input("the plain evaluator cannot check this model")
            .because(e)
            .help("convert without --verify")
    })?;
    Ok(graph.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect())
}

/// How far the converted model's logits (else its first float output) are from the sequential ones.
fn deviation(
    source: &Source,
    reference: &[(String, Tensor)],
    actual: &[(String, Tensor)],
) -> Result<Deviation, Error> {
    let at = logits_output(&source.graph).map(|(at, _)| at).ok();
    let at = at.or_else(|| reference.iter().position(|(_, t)| t.dtype().is_float()));
    let mut out = Deviation::default();
    if let Some(at) = at
        && let (Some((_, r)), Some((_, a))) = (reference.get(at), actual.get(at))
    {
        let width = r.shape().last().copied().unwrap_or(1);
        out.add(&r.to_f32(), &a.to_f32(), width)
            .map_err(|e| Error::new(Kind::Check, "the two models return different shapes").because(e))?;
    }
    Ok(out)
}

impl OnBackend {
    fn ok(&self) -> bool {
        self.all().all(|(_, c)| c.ok())
    }

    fn all(&self) -> impl Iterator<Item = &(String, Comparison)> {
        self.outputs.iter().chain(&self.decode)
    }
}

impl Verification {
    fn ok(&self) -> bool {
        self.backends.iter().all(OnBackend::ok)
    }

    /// The verification for `--json`.
    pub fn json(&self) -> Value {
        let outputs = |all: &[(String, Comparison)]| -> Vec<Value> {
            let one = |(name, c): &(String, Comparison)| json!({ "name": name, "max_abs": c.max_abs, "max_rel": c.max_rel, "ok": c.ok() });
            all.iter().map(one).collect()
        };
        let device = |b: &OnBackend| {
            let mut out = json!({ "device": b.device, "ok": b.ok(), "outputs": outputs(&b.outputs) });
            if !b.decode.is_empty() {
                out["decode_step"] = json!({ "past": PAST, "outputs": outputs(&b.decode) });
            }
            out
        };
        let d = self.quality.as_ref().map_or(&self.deviation, |(_, p)| &p.deviation);
        let mut out = json!({
            "ok": self.ok(),
            "tolerance": self.tolerance.to_string(),
            "devices": self.backends.iter().map(device).collect::<Vec<_>>(),
            "against_sequential": {
                "positions": d.positions(),
                "max_abs": d.max_abs(),
                "kl": d.kl(),
                "cosine": d.cosine(),
                "top1": d.top1(),
            },
            "ms": { "sequential": self.ms.0, "converted": self.ms.1, "speedup": self.ms.0 / self.ms.1 },
        });
        if let Some((s, p)) = &self.quality {
            out["perplexity"] = json!({ "sequential": s.ppl(), "converted": p.ppl() });
        }
        out
    }

    /// The verification for people.
    pub fn text(&self) -> String {
        let mut out = format!("{BOLD}verified{BOLD:#}     the file read back, against the plain evaluator\n");
        for b in &self.backends {
            let worst = b.all().map(|(_, c)| c.max_rel).fold(0.0, f64::max);
            let step = match b.decode.is_empty() {
                true => String::new(),
                false => format!(", one step behind caches of {PAST} positions too"),
            };
            let verdict =
                if b.ok() { format!("{GOOD}agrees{GOOD:#}") } else { format!("{BAD}disagrees{BAD:#}") };
            out += &format!("  {verdict} to {worst:.1e} of the output's scale on {}{step}\n", b.device);
        }
        let d = self.quality.as_ref().map_or(&self.deviation, |(_, p)| &p.deviation);
        let device = self.backends.first().map_or("", |b| b.device.as_str());
        out += &format!("{BOLD}cost{BOLD:#}         against the sequential model, on {device}\n");
        if let Some((s, p)) = &self.quality {
            let change = 100.0 * (p.ppl() / s.ppl() - 1.0);
            out += &format!(
                "  perplexity  sequential {:.3}, converted {:.3} ({change:+.2} %)\n",
                s.ppl(),
                p.ppl()
            );
        }
        out += &format!(
            "  logits      same top-1 at {:.2} % of {}, cosine {:.6}, max abs {:.3}\n",
            100.0 * d.top1(),
            ui::count(d.positions(), "position"),
            d.cosine(),
            d.max_abs()
        );
        out += &format!(
            "  time        {}: sequential {:.1} ms, converted {:.1} ms ({:.2}x)\n",
            self.timed,
            self.ms.0,
            self.ms.1,
            self.ms.0 / self.ms.1
        );
        out
    }

    /// An error when the file and the evaluator disagree.
    pub fn verdict(&self, file: &Path) -> Result<(), Error> {
        let mut failures = Vec::new();
        let of_step = |b: &OnBackend, i: usize| match i >= b.outputs.len() {
            true => format!(" of a step behind caches of {PAST} positions"),
            false => String::new(),
        };
        let all = self.backends.iter().flat_map(|b| b.all().enumerate().map(move |(i, o)| (b, i, o)));
        for (b, i, (name, c)) in all {
            if let Some(first) = &c.first {
                failures.push(format!(
                    "on {}, output '{}'{:?}{}: the file gives {} but the evaluator {} ({} allows {:.2e})",
                    b.device,
                    text::name(name),
                    first.index,
                    of_step(b, i),
                    first.actual,
                    first.expected,
                    self.tolerance,
                    first.allowed
                ));
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Check,
            format!("'{}' failed its verification: {}", file.display(), failures.join("; ")),
        )
        .help("the file was kept for inspection; do not use it, and please report this"))
    }
}
