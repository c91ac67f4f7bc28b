//! `snlp run`: a model on raw tensors.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use snlp::compare::{CompareError, Comparison, Tolerance, compare};
use snlp::error::{Error, Kind};
use snlp::feeds::feeds;
use snlp::passes::ir::{DType, Tensor};
use snlp::plan_file::GivenPlan;
use snlp::runtime::StepTime;
use snlp::source::Source;
use snlp::text;

use super::backend::Backend;
use super::output::check_outputs;
use super::tensors::{NamedFile, read_archive, read_inputs, write_archive};
use super::ui::{self, BAD, GOOD, Table, Ui};
use super::{Common, args::DTypeChoice, place, read_model};

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
    /// Compare with these outputs, by ONNX name, some or all; exit code 1 when one disagrees
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
    check: Option<Check>,
}

/// An output against what was expected.
struct Check {
    tolerance: Tolerance,
    found: Result<Comparison, CompareError>,
}

impl Check {
    fn ok(&self) -> bool {
        self.found.as_ref().is_ok_and(Comparison::ok)
    }
}

impl Run {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let plan = self.plan.as_deref().map(|p| GivenPlan::of(p, &self.model)).transpose()?;
        let source = read_model(&self.model, ui)?;
        self.check_files(&source, plan.as_ref())?;
        let graph = match &plan {
            Some(plan) => source.rewrite(&place(&source, plan, ui)?)?.graph,
            None => source.graph.clone(),
        };
        source.require_supported()?;
        let given = read_inputs(self.inputs.as_deref(), &self.input)?;
        let about = |e: Error| e.about(&self.model);
        let inputs = feeds(&graph, &given).map_err(about)?;
        let expected = self.expect.as_deref().map(|path| read_expected(path, &source)).transpose()?;
        let half = common.dtype == Some(DTypeChoice::F16);
        let default = if half { Tolerance::Loose } else { Tolerance::of(&source.model.graph) };
        drop(source);

        let backend = Backend::open(common, ui)?;
        let runner = backend.load_one(graph).map_err(about)?;
        let outputs = runner.run(&inputs).map_err(about)?;
        if let Some(path) = &self.outputs {
            write_archive(path, &outputs)?;
        }
        let outcomes = self.check(outputs, &expected.unwrap_or_default(), default)?;
        let steps = if self.profile { Some(runner.profile(&inputs)?) } else { None };
        if self.json {
            ui::print_json(&document(&backend.name(), &outcomes, steps.as_deref()))?;
        } else {
            ui::print(&report(&outcomes, steps.as_deref()))?;
        }
        verdict(&outcomes)
    }

    /// Refuses to write over what is read.
    fn check_files(&self, source: &Source, plan: Option<&GivenPlan>) -> Result<(), Error> {
        let outputs: Vec<_> = self.outputs.iter().map(|p| ("--outputs", p.as_path())).collect();
        let mut inputs = source.files();
        inputs.extend(plan.and_then(GivenPlan::file));
        inputs.extend(self.inputs.as_deref().map(|p| ("the file of --inputs", p)));
        inputs.extend(self.input.iter().map(|i| ("a file of --input", i.path.as_path())));
        inputs.extend(self.expect.as_deref().map(|p| ("the file of --expect", p)));
        check_outputs(&outputs, &inputs, None)
    }

    fn check(
        &self,
        outputs: Vec<(String, Tensor)>,
        expected: &[(String, Tensor)],
        default: Tolerance,
    ) -> Result<Vec<Outcome>, Error> {
        let check = |name: &str, tensor: &Tensor| -> Result<Option<Check>, Error> {
            let Some((_, e)) = expected.iter().find(|(n, _)| n == name) else { return Ok(None) };
            let default = if e.dtype() == DType::F16 { Tolerance::Loose } else { default };
            let tolerance = self.tolerance.map_or(default, Tolerance::from);
            match compare(tensor, e, tolerance) {
                Err(CompareError::NoRoom(none)) => Err(none.into()),
                found => Ok(Some(Check { tolerance, found })),
            }
        };
        let outcome = |(name, tensor): (String, Tensor)| -> Result<Outcome, Error> {
            Ok(Outcome { check: check(&name, &tensor)?, name, tensor })
        };
        outputs.into_iter().map(outcome).collect()
    }
}

/// The arrays of `--expect`: some, and each one an output of the model.
fn read_expected(path: &Path, source: &Source) -> Result<Vec<(String, Tensor)>, Error> {
    let expected = read_archive(path)?;
    let outputs: Vec<&str> = source.graph.outputs.iter().map(|o| o.name.as_str()).collect();
    let refuse = |what: String| {
        let names: Vec<String> = outputs.iter().map(|n| text::name(n)).collect();
        Err(Error::input(format!("'{}' (--expect) {what}", path.display()))
            .help(format!("the model's outputs are {}", names.join(", "))))
    };
    if expected.is_empty() {
        return refuse("holds no arrays".into());
    }
    for (i, (name, _)) in expected.iter().enumerate() {
        if !outputs.contains(&name.as_str()) {
            return refuse(format!("has '{}', which the model does not return", text::name(name)));
        }
        if expected[..i].iter().any(|(n, _)| n == name) {
            return refuse(format!("has '{}' twice", text::name(name)));
        }
    }
    Ok(expected)
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

fn document(device: &str, outcomes: &[Outcome], steps: Option<&[StepTime]>) -> Value {
    let outputs: Vec<Value> = outcomes
        .iter()
        .map(|o| {
            let mut entry = json!({
                "name": o.name,
                "dtype": o.tensor.dtype().to_string(),
                "shape": o.tensor.shape(),
                "sha256": sha256(&o.tensor),
            });
            if let Some(check) = &o.check {
                check_json(check, &mut entry);
            }
            entry
        })
        .collect();
    let mut document = json!({ "device": device, "outputs": outputs });
    if outcomes.iter().any(|o| o.check.is_some()) {
        document["ok"] = json!(agree(outcomes));
    }
    if let Some(steps) = steps {
        document["kernels"] = kernels(steps)
            .into_iter()
            .map(|k| json!({ "kernel": k.name, "dispatches": k.count, "ms": k.ms, "bytes": k.bytes, "flops": k.flops }))
            .collect();
    }
    document
}

fn check_json(check: &Check, entry: &mut Value) {
    entry["tolerance"] = json!(check.tolerance.to_string());
    entry["ok"] = json!(check.ok());
    match &check.found {
        Ok(c) => {
            entry["max_abs"] = number(c.max_abs);
            entry["max_rel"] = number(c.max_rel);
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
        Err(mismatch) => {
            entry["max_abs"] = Value::Null;
            entry["max_rel"] = Value::Null;
            entry["mismatch"] = json!(mismatch.to_string());
        }
    }
}

/// Whether every output that was checked is as expected.
fn agree(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|o| o.check.as_ref().is_none_or(Check::ok))
}

fn report(outcomes: &[Outcome], steps: Option<&[StepTime]>) -> String {
    let checked = outcomes.iter().any(|o| o.check.is_some());
    let mut table = if checked {
        Table::new(&["output", "type", "sha256", "max abs", "max rel", "tolerance", ""]).right(&[3, 4])
    } else {
        Table::new(&["output", "type", "sha256"])
    };
    for o in outcomes {
        let sizes: Vec<String> = o.tensor.shape().iter().map(ToString::to_string).collect();
        let mut row = vec![
            text::name(&o.name),
            format!("{}[{}]", o.tensor.dtype(), sizes.join(", ")),
            sha256(&o.tensor).chars().take(12).collect(),
        ];
        if let Some(check) = &o.check {
            let (abs, rel, verdict) = match &check.found {
                Ok(c) if c.ok() => (c.max_abs, c.max_rel, "ok".into()),
                Ok(c) => (c.max_abs, c.max_rel, format!("{} outside", ui::count(c.outliers, "element"))),
                Err(mismatch) => (f64::NAN, f64::NAN, mismatch.to_string()),
            };
            let figure = |x: f64| if x.is_nan() { "-".into() } else { format!("{x:.2e}") };
            row.extend([figure(abs), figure(rel), check.tolerance.to_string(), verdict]);
        }
        table.row(row);
    }
    let mut out = table.render(0);
    if checked {
        out += &if agree(outcomes) {
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

/// The mismatch or first outlier of each output that disagrees.
fn verdict(outcomes: &[Outcome]) -> Result<(), Error> {
    let failures: Vec<String> = outcomes
        .iter()
        .filter_map(|o| {
            let (name, check) = (text::name(&o.name), o.check.as_ref()?);
            let first = match &check.found {
                Err(mismatch) => return Some(format!("output '{name}' {mismatch}")),
                Ok(c) => c.first.as_ref()?,
            };
            Some(format!(
                "output '{name}'{:?} is {} but {} was expected: {:.2e} apart, {} allows {:.2e}",
                first.index,
                first.actual,
                first.expected,
                (first.actual - first.expected).abs(),
                check.tolerance,
                first.allowed
            ))
        })
        .collect();
    if failures.is_empty() {
        return Ok(());
    }
    let mismatch = outcomes.iter().filter_map(|o| o.check.as_ref()).any(|c| c.found.is_err());
    Err(Error::new(Kind::Check, failures.join("\n")).help(if mismatch {
        "the expected outputs belong to other inputs or another model"
    } else {
        "a looser --tolerance accepts f16 and quantised models; compare backends with --backend"
    }))
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

/// The kernels of a forward, the longest first.
pub(super) fn profile_text(steps: &[StepTime]) -> String {
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
