//! `snlp run`: a model on raw tensors.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use snlp::compare::{Comparison, Tolerance, compare};
use snlp::error::{Error, Kind};
use snlp::feeds::feeds;
use snlp::passes::ir::{DType, Tensor};
use snlp::runtime::StepTime;
use snlp::source::{Source, parse_plan};

use super::backend::Backend;
use super::tensors::{NamedFile, read_archive, read_inputs, write_archive};
use super::ui::{self, BAD, GOOD, Table, Ui};
use super::{Common, args::DTypeChoice};

/// Execute a model on raw tensors, and compare its outputs with expected ones
///
/// Keys of .npz files are the ONNX names. Integer and float dtypes are converted to the model's with a
/// check. An element a agrees with the expected e when |a - e| <= abs * max|e| + rel * |e|: exact is 0
/// and 0, close (f32 in another order) 1e-4 and 1e-5, loose (f16, quantised) 2e-2 and 1e-3.
#[derive(Args)]
#[command(after_help = "Example:\n  snlp run model.onnx --inputs in.npz --expect out.npz --tolerance close")]
pub struct Run {
    /// The .onnx file
    model: PathBuf,
    /// Inputs, by ONNX name
    #[arg(long, value_name = "F.npz")]
    inputs: Option<PathBuf>,
    /// One input; may be given several times
    #[arg(long = "input", value_name = "NAME=F.npy")]
    input: Vec<NamedFile>,
    /// Write the outputs, by ONNX name
    #[arg(long, value_name = "F.npz")]
    outputs: Option<PathBuf>,
    /// Compare with these outputs; exit code 1 when one disagrees
    #[arg(long, value_name = "F.npz")]
    expect: Option<PathBuf>,
    /// How far outputs may be apart (default: loose when weights or outputs are f16, else close)
    #[arg(long, value_enum, requires = "expect")]
    tolerance: Option<ToleranceChoice>,
    /// Run the model layer-parallel after this plan
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
    /// Print the time of each kernel
    #[arg(long)]
    profile: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// `--tolerance`.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum ToleranceChoice {
    /// The same bits.
    Exact,
    /// The same function in f32.
    Close,
    /// f16 or quantised.
    Loose,
}

impl From<ToleranceChoice> for Tolerance {
    fn from(choice: ToleranceChoice) -> Self {
        match choice {
            ToleranceChoice::Exact => Tolerance::Exact,
            ToleranceChoice::Close => Tolerance::Close,
            ToleranceChoice::Loose => Tolerance::Loose,
        }
    }
}

/// An output with what became of it.
struct Outcome {
    name: String,
    tensor: Tensor,
    check: Option<(Tolerance, Comparison)>,
}

impl Run {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let plan = self.plan.as_deref().map(parse_plan).transpose()?;
        let source = Source::read(&self.model)?;
        let graph = match &plan {
            Some(plan) => source.rewrite(&source.place(plan)?)?.graph,
            None => source.graph.clone(),
        };
        source.require_supported()?;
        let given = read_inputs(self.inputs.as_deref(), &self.input)?;
        let about = |e: Error| e.about(&self.model);
        let inputs = feeds(&source.graph, &given).map_err(about)?;
        let expected = self.expect.as_deref().map(read_archive).transpose()?;
        let half = common.dtype == Some(DTypeChoice::F16) || has_half(&source);
        drop(source);

        let runner = Backend::open(common, ui)?.load_one(graph).map_err(about)?;
        let outputs = runner.run(&inputs).map_err(about)?;
        if let Some(path) = &self.outputs {
            write_archive(path, &outputs)?;
        }
        let outcomes = self.check(outputs, expected.as_deref(), half)?;
        let steps = if self.profile { Some(runner.profile(&inputs)?) } else { None };
        if self.json {
            ui::print_json(&document(&outcomes, steps.as_deref()))?;
        } else {
            ui::print(&text(&outcomes, steps.as_deref()))?;
        }
        verdict(&outcomes)
    }

    fn check(
        &self,
        outputs: Vec<(String, Tensor)>,
        expected: Option<&[(String, Tensor)]>,
        half: bool,
    ) -> Result<Vec<Outcome>, Error> {
        let expected = expected.unwrap_or_default();
        if let Some((name, _)) = expected.iter().find(|(n, _)| !outputs.iter().any(|(o, _)| o == n)) {
            let names: Vec<&str> = outputs.iter().map(|(n, _)| n.as_str()).collect();
            return Err(Error::input(format!("--expect has '{name}', which the model does not return"))
                .help(format!("the model's outputs are {}", names.join(", "))));
        }
        let mut outcomes = Vec::new();
        for (name, tensor) in outputs {
            let check = match expected.iter().find(|(n, _)| *n == name) {
                None => None,
                Some((_, e)) => {
                    let default =
                        if half || e.dtype() == DType::F16 { Tolerance::Loose } else { Tolerance::Close };
                    let tolerance = self.tolerance.map_or(default, Tolerance::from);
                    let found = compare(&tensor, e, tolerance).map_err(|e| {
                        Error::new(Kind::Check, format!("output '{name}' {e}"))
                            .help("the expected outputs belong to other inputs or another model")
                    })?;
                    Some((tolerance, found))
                }
            };
            outcomes.push(Outcome { name, tensor, check });
        }
        Ok(outcomes)
    }
}

/// Whether weights of the model are f16 or bf16.
fn has_half(source: &Source) -> bool {
    let half = |t: &Tensor| matches!(t.dtype(), DType::F16 | DType::BF16) && t.len() > 1;
    source.model.graph.values().any(|(v, _)| source.model.graph.tensor(v).is_some_and(half))
}

/// SHA-256 of a tensor's little-endian bytes, in hexadecimal.
fn sha256(tensor: &Tensor) -> String {
    let mut hash = Sha256::new();
    tensor.parts().iter().for_each(|part| hash.update(part));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn number(x: f64) -> Value {
    // JSON has no infinity: a difference that is not finite is null.
    if x.is_finite() { json!(x) } else { Value::Null }
}

fn document(outcomes: &[Outcome], steps: Option<&[StepTime]>) -> Value {
    let outputs: Vec<Value> = outcomes
        .iter()
        .map(|o| {
            let mut entry = json!({
                "name": o.name,
                "dtype": o.tensor.dtype().to_string(),
                "shape": o.tensor.shape(),
                "sha256": sha256(&o.tensor),
            });
            if let Some((tolerance, c)) = &o.check {
                entry["tolerance"] = json!(tolerance.to_string());
                entry["max_abs"] = number(c.max_abs);
                entry["max_rel"] = number(c.max_rel);
                entry["ok"] = json!(c.ok());
                entry["outliers"] = json!(c.outliers);
                if let Some(first) = &c.first {
                    entry["first_outlier"] = json!({
                        "index": first.index,
                        "actual": number(first.actual),
                        "expected": number(first.expected),
                        "allowed": number(first.allowed),
                    });
                }
            }
            entry
        })
        .collect();
    let mut document = json!({ "outputs": outputs });
    if outcomes.iter().any(|o| o.check.is_some()) {
        document["ok"] = json!(outcomes.iter().all(|o| o.check.as_ref().is_none_or(|(_, c)| c.ok())));
    }
    if let Some(steps) = steps {
        document["kernels"] = kernels(steps)
            .into_iter()
            .map(|k| json!({ "kernel": k.name, "dispatches": k.count, "ms": k.ms, "bytes": k.bytes, "flops": k.flops }))
            .collect();
    }
    document
}

fn text(outcomes: &[Outcome], steps: Option<&[StepTime]>) -> String {
    let checked = outcomes.iter().any(|o| o.check.is_some());
    let mut table = if checked {
        Table::new(&["output", "type", "sha256", "max abs", "max rel", "tolerance", ""]).right(&[3, 4])
    } else {
        Table::new(&["output", "type", "sha256"])
    };
    for o in outcomes {
        let sizes: Vec<String> = o.tensor.shape().iter().map(ToString::to_string).collect();
        let mut row = vec![
            o.name.clone(),
            format!("{}[{}]", o.tensor.dtype(), sizes.join(", ")),
            sha256(&o.tensor).chars().take(12).collect(),
        ];
        if let Some((tolerance, c)) = &o.check {
            row.extend([format!("{:.2e}", c.max_abs), format!("{:.2e}", c.max_rel), tolerance.to_string()]);
            row.push(if c.ok() {
                "ok".into()
            } else {
                format!("{} outside", ui::count(c.outliers, "element"))
            });
        }
        table.row(row);
    }
    let mut out = table.render(0);
    if checked {
        let ok = outcomes.iter().all(|o| o.check.as_ref().is_none_or(|(_, c)| c.ok()));
        out += &if ok {
            format!("{GOOD}agrees{GOOD:#} with the expected outputs\n")
        } else {
            format!("{BAD}disagrees{BAD:#} with the expected outputs\n")
        };
    }
    if let Some(steps) = steps {
        out += "\n";
        out += &profile_text(steps);
    }
    out
}

/// The first outlier of each output that disagrees.
fn verdict(outcomes: &[Outcome]) -> Result<(), Error> {
    let failures: Vec<String> = outcomes
        .iter()
        .filter_map(|o| {
            let (tolerance, c) = o.check.as_ref()?;
            let first = c.first.as_ref()?;
            Some(format!(
                "output '{}'{:?} is {} but {} was expected: {:.2e} apart, {tolerance} allows {:.2e}",
                o.name,
                first.index,
                first.actual,
                first.expected,
                (first.actual - first.expected).abs(),
                first.allowed
            ))
        })
        .collect();
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Check, failures.join("\n"))
        .help("a looser --tolerance accepts f16 and quantised models; compare backends with --backend"))
}

/// All dispatches of one kernel.
struct KernelTime {
    name: String,
    count: usize,
    ms: f64,
    bytes: u64,
    flops: u64,
}

fn kernels(steps: &[StepTime]) -> Vec<KernelTime> {
    let mut out: Vec<KernelTime> = Vec::new();
    for step in steps {
        let at = out.iter().position(|k| k.name == step.kernel).unwrap_or_else(|| {
            out.push(KernelTime { name: step.kernel.clone(), count: 0, ms: 0.0, bytes: 0, flops: 0 });
            out.len() - 1
        });
        let k = &mut out[at];
        k.count += 1;
        k.ms += step.time.as_secs_f64() * 1e3;
        k.bytes += step.bytes;
        k.flops += step.flops;
    }
    out.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    out
}

fn profile_text(steps: &[StepTime]) -> String {
    let mut table =
        Table::new(&["kernel", "dispatches", "ms", "share", "GB/s", "GFLOP/s"]).right(&[1, 2, 3, 4, 5]);
    let all = kernels(steps);
    let total: f64 = all.iter().map(|k| k.ms).sum();
    let rate = |n: u64, ms: f64| if ms > 0.0 { format!("{:.2}", n as f64 / ms / 1e6) } else { "-".into() };
    for k in &all {
        table.row([
            k.name.clone(),
            k.count.to_string(),
            format!("{:.3}", k.ms),
            format!("{:.1} %", 100.0 * k.ms / total.max(f64::MIN_POSITIVE)),
            rate(k.bytes, k.ms),
            rate(k.flops, k.ms),
        ]);
    }
    table.row(["all".to_string(), steps.len().to_string(), format!("{total:.3}")]);
    table.render(0)
}
