//! `snlp bench`: time of forwards and of decoding steps, against what the device can do.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use snlp::error::{Error, Kind};
use snlp::language::decoder::Stepper;
use snlp::language::inputs::{logits_output, longest, token_feeds, token_input};
use snlp::onnx::WriteOptions;
use snlp::passes::ir::{Binary, Bindings, DType, Dim, Graph, Op, Tensor, Type};
use snlp::passes::plan::{PlacedPlan, Plan};
use snlp::passes::rewrite::{POSITION, bindings_from};
use snlp::plan_file::GivenPlan;
use snlp::runtime::StepTime;
use snlp::runtime::schedule::{Profile, Stats};
use snlp::samples::{sample_inputs, sample_length, sample_sizes};
use snlp::shapes::Shape;
use snlp::source::Source;
use snlp::summary::schedule_at;

use super::backend::{Backend, Runner};
use super::evaluate::whole_windows;
use super::measure::{self, Forward, vocabulary};
use super::output::{check_outputs, write_atomic};
use super::run::profile_text;
use super::ui::{self, Table, Ui};
use super::{Common, check_plan, read_model};

/// Time forwards of plans against the device's roofline
///
/// Times are from submission until the device is idle, without reading results back; sequential model and plans
/// are taken in turns. With --past N what is timed is a decoding step: T new tokens behind N that are in caches, as
/// 'snlp generate' takes it. Dispatches, bytes and operations are counted in the schedule: bytes are what the
/// kernels read and write at least. The roofline is the time in which the device could move and compute that, at
/// the rates that it reaches here on one long copy or product of one row, and on one large product; its share says how
/// near a forward comes. What stays in the device's own caches is faster than that, and small models may exceed it.
#[derive(Args)]
#[command(after_help = "Examples:\n  snlp bench model.onnx --plan 6xF1 --batch 1 --seq 128\n  \
                  snlp bench model.onnx --plan 6xF1 --past 512\n  \
                  snlp bench --shape d12-w256-h4-v8192 --plan 10xF1 --past 128 --backend gpu")]
pub struct Bench {
    /// The .onnx file
    #[arg(required_unless_present = "shape")]
    model: Option<PathBuf>,
    /// A model of these sizes with random weights instead: layers, width, heads, vocabulary; also -g2 for heads of
    /// keys and values, -f1024 for features of the MLP, and -llama or -gpt2 for that style instead of nanochat's
    #[arg(long, value_name = "d12-w256-h4-v32768", conflicts_with = "model", value_parser = Shape::from_str)]
    shape: Option<Shape>,
    /// Write the model of --shape to a file
    #[arg(long, value_name = "F.onnx", requires = "shape", conflicts_with = "model")]
    save: Option<PathBuf>,
    /// A plan to time; may be given several times
    #[arg(long = "plan", value_name = "PLAN")]
    plans: Vec<String>,
    /// Sequences at once
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Tokens of a forward (default: 128, or 1 with --past)
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..))]
    seq: Option<u32>,
    /// Time a step behind N tokens in caches
    #[arg(long, value_name = "N")]
    past: Option<u32>,
    /// Times that each is run
    #[arg(long, value_name = "R", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Print what each kernel took, where the device tells
    #[arg(long, conflicts_with = "json")]
    profile: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// One way to run the model, ready to be timed.
struct Way {
    plan: String,
    graph: Graph,
    states: Vec<(String, String)>,
    inputs: Vec<(String, Tensor)>,
}

/// What was found of it.
struct Row {
    plan: String,
    median: f64,
    min: f64,
    /// The dispatches' own times, where the device tells them.
    steps: Option<Vec<StepTime>>,
    stats: Option<Stats>,
    /// Milliseconds in which the device could do the same.
    roofline: Option<f64>,
    /// Milliseconds that the host takes to record and submit it.
    host: Option<f64>,
}

impl Bench {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let source = self.source(ui)?;
        source.require_supported()?;
        let given =
            self.plans.iter().map(|p| GivenPlan::of(p, &source.path)).collect::<Result<Vec<_>, _>>()?;
        let mut plans = vec![source.place(&Plan::sequential())?];
        for plan in &given {
            check_plan(&source, plan, ui)?;
            plans.push(source.place(&plan.plan)?);
        }
        let ways = match self.past {
            None => self.forwards(&source, &plans)?,
            Some(past) => self.steps(&source, &plans, past as usize)?,
        };
        let backend = Backend::open(common, ui)?;
        let profile = measured_profile(&backend)?;
        let about = |e: Error| e.about(&source.path);
        let runners = backend
            .load_with(ways.iter().map(|w| (w.graph.clone(), w.states.clone())).collect())
            .map_err(about)?;
        let forwards: Vec<Forward> = runners.iter().zip(ways.iter().map(|w| w.inputs.as_slice())).collect();
        let bar = ui.progress((plans.len().max(2) - 1) as u64 * (u64::from(self.rounds) + 1), "timing");
        let times = measure::times(&forwards, self.rounds as usize, &bar).map_err(about)?;
        bar.finish_and_clear();
        let mut rows = vec![];
        for ((way, runner), times) in ways.iter().zip(&runners).zip(times) {
            rows.push(row(way, runner, times, &profile)?);
        }
        if self.json {
            return ui::print_json(&document(&backend, &self, &rows, &profile));
        }
        let mut text = report(&backend, &self, &rows, &profile);
        for row in rows.iter().filter(|_| self.profile) {
            let kernels = row.steps.as_deref().map_or("the device does not tell\n".into(), profile_text);
            text += &format!("\n{}\n{kernels}", row.plan);
        }
        ui::print(&text)
    }

    fn seq(&self) -> usize {
        self.seq.map_or(if self.past.is_some() { 1 } else { 128 }, |n| n as usize)
    }

    fn source(&self, ui: &Ui) -> Result<Source, Error> {
        let Some(shape) = &self.shape else {
            let path = self.model.as_deref().unwrap_or(Path::new(""));
            return read_model(path, ui);
        };
        let model = shape.model()?;
        if let Some(path) = &self.save {
            check_outputs(&[("--save", path)], &[], None)?;
            let bytes = model.encode(&WriteOptions::default()).map_err(|e| {
                Error::input("the model of this shape has no form as one file")
                    .because(e)
                    .help("use a smaller shape")
            })?;
            write_atomic(path, |out| out.write_all(&bytes))?;
        }
        Source::of(Path::new("the model of --shape"), model)
    }

    /// Whole forwards of random tokens.
    fn forwards(&self, source: &Source, plans: &[PlacedPlan]) -> Result<Vec<Way>, Error> {
        let (batch, seq) = (self.batch as usize, self.seq());
        if let Some(most) = longest(&source.graph, seq).filter(|most| *most < seq) {
            return Err(Error::input(format!(
                "{}: --seq {seq} is more than the {most} positions that the model has",
                source.path.display()
            ))
            .help("give a smaller --seq"));
        }
        if logits_output(&source.graph).is_err() || token_input(&source.graph).is_err() {
            return self.samples(source, plans);
        }
        let ids = tokens(vocabulary(source)?, batch, seq)?;
        let mut ways = vec![];
        for plan in plans {
            let graph = whole_windows(source, plan)?;
            let inputs = token_feeds(&graph, &ids).map_err(|e| e.about(&source.path))?;
            ways.push(Way { plan: plan.to_string(), graph, states: vec![], inputs });
        }
        Ok(ways)
    }

    /// Whole forwards of a model that is no language model.
    fn samples(&self, source: &Source, plans: &[PlacedPlan]) -> Result<Vec<Way>, Error> {
        if self.batch != 1 {
            return Err(Error::usage(format!(
                "{}: --batch is for language models, and this one does not make logits of tokens",
                source.path.display()
            ))
            .help("leave --batch away"));
        }
        let length = sample_length(&source.graph, self.seq());
        let mut ways = vec![];
        for plan in plans {
            let graph = source.rewrite(plan)?.graph;
            let inputs = sample_inputs(&graph, &sample_sizes(&graph, length));
            let inputs = inputs.map_err(|e| e.about(&source.path))?;
            ways.push(Way { plan: plan.to_string(), graph, states: vec![], inputs });
        }
        Ok(ways)
    }

    /// Steps behind `past` tokens.
    fn steps(&self, source: &Source, plans: &[PlacedPlan], past: usize) -> Result<Vec<Way>, Error> {
        if self.batch != 1 {
            return Err(Error::usage("--past times the steps of one sequence").help("leave --batch away"));
        }
        let seq = self.seq();
        let one = source.of_one_sequence()?;
        let needed = past + seq;
        let capacity = match longest(&one.graph, needed) {
            Some(most) if most < needed => {
                return Err(Error::input(format!(
                    "{}: {needed} positions are more than the {most} that the model has",
                    source.path.display()
                ))
                .help("give a smaller --past"));
            }
            _ => needed,
        };
        let vocabulary = vocabulary(source)?;
        let mut ways = vec![];
        for plan in plans {
            let (stepper, why) = Stepper::new(&one, plan, capacity)?;
            let lookback = match (stepper.lookback(), why) {
                (Some(lookback), None) => lookback,
                (_, why) => {
                    let e = Error::input(format!(
                        "{}: no cached step can be derived under plan '{plan}'",
                        source.path.display()
                    ));
                    let e = e.help("leave --past away to time whole forwards");
                    return Err(match why {
                        Some(why) => e.because(why),
                        None => e,
                    });
                }
            };
            let ids = tokens(vocabulary, 1, lookback + seq)?;
            let name = token_input(&stepper.graph)?.to_string();
            let dtype = stepper.graph.input(&name).and_then(|v| stepper.graph.ty(v)).map(|t| t.dtype);
            let ids = snlp::feeds::convert(&ids, dtype.unwrap_or(DType::I64)).map_err(Error::input)?;
            let inputs = vec![(name, ids), (POSITION.to_string(), Tensor::scalar(past as i64))];
            ways.push(Way {
                plan: plan.to_string(),
                graph: stepper.graph.clone(),
                states: stepper.states.clone(),
                inputs,
            });
        }
        Ok(ways)
    }
}

/// Token ids `[batch, length]`, the same in every run.
fn tokens(vocabulary: usize, batch: usize, length: usize) -> Result<Tensor, Error> {
    let mut random = fastrand::Rng::with_seed(0);
    let most = i64::try_from(vocabulary.max(1)).unwrap_or(i64::MAX);
    let ids = (0..batch * length).map(|_| random.i64(0..most)).collect();
    Tensor::from_vec(vec![batch, length], ids).map_err(|e| Error::new(Kind::Internal, e.to_string()))
}

fn row(way: &Way, runner: &Runner, mut times: Vec<Duration>, profile: &Profile) -> Result<Row, Error> {
    times.sort();
    let shapes: Vec<(&str, &[usize])> = way.inputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
    let bindings = bindings_from(&way.graph, &shapes).unwrap_or_else(|_| Bindings::new());
    let schedule = match runner {
        Runner::Gpu(session) => session.plan_for(&bindings).ok(),
        #[cfg(feature = "cpu")]
        Runner::Cpu(_) => schedule_at(&way.graph, &bindings, &way.states),
    };
    let steps = match runner {
        // Not every device tells.
        Runner::Gpu(session) => session.profile(&way.inputs).ok(),
        #[cfg(feature = "cpu")]
        Runner::Cpu(_) => None,
    };
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let host = match runner {
        Runner::Gpu(session) => session.host_time(&way.inputs).ok().map(ms),
        #[cfg(feature = "cpu")]
        Runner::Cpu(_) => None,
    };
    let limit = Profile { dispatch: 0.0, ..*profile };
    Ok(Row {
        plan: way.plan.clone(),
        min: times.first().copied().map_or(f64::NAN, ms),
        median: measure::median(times),
        steps,
        host,
        roofline: schedule.as_ref().map(|s| s.cost(&limit) * 1e3),
        stats: schedule.map(|s| s.stats()),
    })
}

/// Elements that are moved for the bandwidth, and rows of the square matrices that are multiplied for the arithmetic,
/// on hardware and in software.
const LONG: [usize; 2] = [1 << 26, 1 << 23];
const LARGE: [usize; 2] = [4096, 768];
/// Times that each is run.
const TRIES: usize = 4;

/// What the device reaches on long copies or products of one row, and on one large product.
fn measured_profile(backend: &Backend) -> Result<Profile, Error> {
    let slow = usize::from(backend.is_slow());
    let (long, large) = (LONG[slow], LARGE[slow]);
    let fault = |e: &dyn std::fmt::Display| Error::new(Kind::Internal, e.to_string());
    let seconds = |graph: Graph, inputs: Vec<(String, Tensor)>| -> Result<f64, Error> {
        let runner = backend.load_one(graph)?;
        runner.time(&inputs, 1)?;
        let times = runner.time(&inputs, TRIES)?;
        Ok(times.iter().min().copied().unwrap_or_default().as_secs_f64().max(1e-9))
    };
    let floats = |shape: &[usize]| {
        let count = shape.iter().product();
        let data: Vec<f32> = (0..count).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
        Tensor::from_vec(shape.to_vec(), data).map_err(|e| fault(&e))
    };
    let input = |graph: &mut Graph, shape: &[usize]| {
        let dims = shape.iter().map(|n| Dim::from(*n)).collect();
        graph.add_input("x", Type::new(DType::F32, dims))
    };
    // Whichever is faster: what is read and written, or the weights of one row.
    let mut copy = Graph::new("copy");
    let x = input(&mut copy, &[long / 2]);
    let one = copy.scalar(1f32);
    let y = copy.add(Op::Binary(Binary::Add), &[x, one]).map_err(|e| fault(&e))?;
    copy.add_output("y", y);
    let bytes = (long * 4) as f64;
    let copied = bytes / seconds(copy, vec![("x".into(), floats(&[long / 2])?)])?;
    let columns = 1 << 12;
    let mut row = Graph::new("row");
    let x = input(&mut row, &[1, long / columns]);
    let w = row.constant(floats(&[long / columns, columns])?);
    let y = row.add(Op::MatMul, &[x, w]).map_err(|e| fault(&e))?;
    row.add_output("y", y);
    let bandwidth = copied.max(bytes / seconds(row, vec![("x".into(), floats(&[1, long / columns])?)])?);
    let mut product = Graph::new("arithmetic");
    let x = input(&mut product, &[large, large]);
    let w = product.constant(floats(&[large, large])?);
    let y = product.add(Op::MatMul, &[x, w]).map_err(|e| fault(&e))?;
    product.add_output("y", y);
    let flops =
        2.0 * (large as f64).powi(3) / seconds(product, vec![("x".into(), floats(&[large, large])?)])?;
    Ok(Profile { dispatch: 0.0, bandwidth, flops })
}

impl Row {
    /// Milliseconds of all dispatches.
    fn device(&self) -> Option<f64> {
        Some(self.steps.as_ref()?.iter().map(|s| s.time.as_secs_f64() * 1e3).sum())
    }
}

/// Share of the roofline.
fn fraction(row: &Row) -> Option<f64> {
    row.roofline.map(|limit| limit / row.min)
}

fn document(backend: &Backend, bench: &Bench, rows: &[Row], profile: &Profile) -> serde_json::Value {
    let first = rows.first().map_or(f64::NAN, |r| r.median);
    let rows: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "plan": r.plan,
                "ms_median": r.median,
                "ms_min": r.min,
                "ms_device": r.device(),
                "ms_host": r.host,
                "speedup": first / r.median,
                "dispatches": r.stats.as_ref().map(|s| s.dispatches),
                "levels": r.stats.as_ref().map(|s| s.levels),
                "bytes": r.stats.as_ref().map(|s| s.bytes),
                "flops": r.stats.as_ref().map(|s| s.flops),
                "weight_bytes": r.stats.as_ref().map(|s| s.weight_bytes),
                "activation_bytes": r.stats.as_ref().map(|s| s.activation_bytes),
                "live_bytes": r.stats.as_ref().map(|s| s.live_bytes),
                "device_bytes": r.stats.as_ref().map(|s| s.device_bytes()),
                "state_bytes": r.stats.as_ref().map(|s| s.state_bytes),
                "roofline_ms": r.roofline,
                "roofline_fraction": fraction(r),
            })
        })
        .collect();
    json!({
        "device": backend.name(),
        "batch": bench.batch,
        "seq": bench.seq(),
        "past": bench.past,
        "rounds": bench.rounds,
        "bandwidth": profile.bandwidth,
        "flops": profile.flops,
        "rows": rows,
    })
}

fn report(backend: &Backend, bench: &Bench, rows: &[Row], profile: &Profile) -> String {
    let heading =
        ["plan", "ms", "min", "on device", "on host", "speed-up", "dispatches", "MB", "MFLOP", "roofline"];
    let mut table = Table::new(&heading).right(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let first = rows.first().map_or(f64::NAN, |r| r.median);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for r in rows {
        let stats = r.stats.as_ref();
        table.row([
            r.plan.clone(),
            format!("{:.3}", r.median),
            format!("{:.3}", r.min),
            or_dash(r.device().map(|ms| format!("{ms:.3}"))),
            or_dash(r.host.map(|ms| format!("{ms:.3}"))),
            format!("{:.2}x", first / r.median),
            or_dash(stats.map(|s| s.dispatches.to_string())),
            or_dash(stats.map(|s| format!("{:.1}", s.bytes as f64 / 1e6))),
            or_dash(stats.map(|s| format!("{:.1}", s.flops as f64 / 1e6))),
            or_dash(fraction(r).map(|f| format!("{:.1} %", 100.0 * f))),
        ]);
    }
    let what = match bench.past {
        None => format!("forwards of {} x {} tokens", bench.batch, bench.seq()),
        Some(past) => format!("steps of {} behind {past} tokens", ui::count(bench.seq(), "token")),
    };
    let memory =
        rows.iter().filter_map(|r| r.stats.as_ref()).map(|s| s.activation_bytes + s.state_bytes).max();
    let weights = rows.iter().filter_map(|r| r.stats.as_ref()).map(|s| s.weight_bytes).max();
    let memory = match (weights, memory) {
        (Some(w), Some(m)) => {
            format!("; weights {}, caches and activations at most {}", ui::bytes(w), ui::bytes(m))
        }
        _ => String::new(),
    };
    table.render(0)
        + &format!(
            "{what}, {} of each in turns, on {}\nroofline at {:.1} GB/s and {:.1} GFLOP/s, as measured here{memory}\n",
            ui::count(bench.rounds as usize, "run"),
            backend.name(),
            profile.bandwidth / 1e9,
            profile.flops / 1e9
        )
}
