//! `snlp convert`: the layer-parallel model as an ONNX file.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use snlp::error::Error;
use snlp::files::same;
use snlp::onnx::{Model, WriteOptions, data_file};
use snlp::passes::plan::PlacedPlan;
use snlp::plan_file::GivenPlan;
use snlp::source::{Source, metadata, onnx_error};
use snlp::summary::{ChainSummary, Figures};

use super::inspect::text::{figure_table, units};
use super::output::{check_outputs, write_text};
use super::tensors::read_windows;
use super::ui::{self, BOLD, Ui, bytes};
use super::verify::{self, Verification};
use super::{Common, place, read_model};

/// Write the layer-parallel ONNX model
///
/// Corrections become calls of ai.snlp functions whose bodies travel in the model; --inline writes plain
/// operators only. Weights are moved, not copied.
#[derive(Args)]
#[command(after_help = "Example:\n  snlp convert model.onnx -o parallel.onnx --plan 's6 6xF1[k=2]' --verify")]
pub struct Convert {
    /// The .onnx file to convert
    model: PathBuf,
    /// The .onnx file to write; must not be a file that is read
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// The plan
    #[arg(long, value_name = "PLAN")]
    plan: String,
    /// Write corrections as plain operators instead of ai.snlp functions
    #[arg(long)]
    inline: bool,
    /// Write the weights to OUT.data beside the model
    #[arg(long)]
    external_data: bool,
    /// Read the file back, run it and the original, and compare the file with the plain evaluator
    #[arg(long)]
    verify: bool,
    /// Token windows for --verify, as for eval; also gives perplexities
    #[arg(long, value_name = "F.npz", requires = "verify")]
    tokens: Option<PathBuf>,
    /// Write the report to a file: JSON when it ends in .json, else text
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What was done.
struct Done<'a> {
    source: &'a Source,
    output: &'a Path,
    written: u64,
    plan: PlacedPlan,
    chain: Option<ChainSummary>,
    original: Figures,
    rewritten: Figures,
    verification: Option<Verification>,
}

impl Convert {
    /// Runs the command.
    pub fn run(self, common: &Common, ui: &Ui) -> Result<(), Error> {
        let plan = GivenPlan::of(&self.plan, &self.model)?;
        let source = read_model(&self.model, ui)?;
        self.check_files(&source, &plan)?;
        if source.is_rewritten() {
            source.chain()?;
        }
        let placed = place(&source, &plan, ui)?;
        let windows = self.tokens.as_deref().map(read_windows).transpose()?;
        let graph = source.rewrite(&placed)?.graph;

        let chain = source.chain.as_ref().ok().map(|c| ChainSummary::of(&source.graph, c));
        let depth = chain.as_ref().map(|c| c.layers);
        let original = Figures::of(&source.graph, depth);
        let rewritten = Figures::of(&graph, depth.map(|_| placed.sequential_depth()));
        let model = Model { graph: graph.clone(), info: self.info(&source, &placed, &chain, &original) };
        let options = WriteOptions { inline: self.inline, external_data: self.external_data };
        let old_data = self.old_data();
        let written = model.write(&self.output, &options).map_err(|e| onnx_error(e, &self.output))?;
        drop(model);
        if let (Some(data), None) = (old_data, &written.data) {
            // A file that cannot be removed does no harm.
            let _ = std::fs::remove_file(data);
        }

        let verification = match self.verify {
            true => Some(verify::verify(&source, &graph, &self.output, windows, common, ui)?),
            false => None,
        };
        let done = Done {
            source: &source,
            output: &self.output,
            written: written.bytes,
            plan: placed,
            chain,
            original,
            rewritten,
            verification,
        };
        if let Some(path) = &self.report {
            let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
            let text = if json { ui::json_text(&done.json()) + "\n" } else { ui::plain(&done.text()) };
            write_text(path, &text)?;
        }
        if self.json {
            ui::print_json(&done.json())?;
        } else {
            ui::print(&done.text())?;
        }
        match &done.verification {
            Some(v) => v.verdict(&self.output),
            None => Ok(()),
        }
    }

    /// Refuses to write over what is read. The data file counts although weights may stay inside: large
    /// models have one in any case, and that of an earlier conversion is removed.
    fn check_files(&self, source: &Source, plan: &GivenPlan) -> Result<(), Error> {
        let data = data_file(&self.output);
        let mut outputs = vec![("-o", self.output.as_path())];
        if self.external_data || !data.is_dir() {
            outputs.push(("the data file of -o", &data));
        }
        outputs.extend(self.report.as_deref().map(|p| ("--report", p)));
        let mut inputs = source.files();
        inputs.extend(plan.file());
        inputs.extend(self.tokens.as_deref().map(|p| ("the file of --tokens", p)));
        check_outputs(&outputs, &inputs, None)
    }

    /// The data file of the model that stands at the output's place, when an earlier conversion wrote
    /// both: without that model it is of no use.
    fn old_data(&self) -> Option<PathBuf> {
        let data = data_file(&self.output);
        let old = data.is_file().then(|| Model::read(&self.output).ok())??;
        let ours = old.info.metadata.iter().any(|(key, _)| key == metadata::VERSION);
        (ours && old.info.data_files.iter().any(|file| same(file, &data))).then_some(data)
    }

    /// What the file says of itself: as the original, and how it came about.
    fn info(
        &self,
        source: &Source,
        plan: &PlacedPlan,
        chain: &Option<ChainSummary>,
        original: &Figures,
    ) -> snlp::onnx::ModelInfo {
        let mut info = source.model.info.clone();
        let mut set = |key: &str, value: String| {
            info.metadata.retain(|(k, _)| k != key);
            info.metadata.push((key.into(), value));
        };
        set(metadata::PLAN, plan.to_string());
        set(metadata::VERSION, env!("CARGO_PKG_VERSION").into());
        set(metadata::SOURCE, source.model.info.fingerprint.sha256().to_string());
        if let Some(chain) = chain
            && let Ok(text) = serde_json::to_string(&(chain, original))
        {
            set(metadata::CHAIN, text);
        }
        info
    }
}

impl Done<'_> {
    fn json(&self) -> Value {
        let mut out = json!({
            "model": self.source.path,
            "output": self.output,
            "plan": self.plan.to_string(),
            "layers": self.chain.as_ref().map(|c| c.layers),
            "bytes": { "original": self.source.bytes(), "output": self.written },
            "original": self.original,
            "rewritten": self.rewritten,
        });
        if let Some(v) = &self.verification {
            out["verify"] = v.json();
        }
        out
    }

    fn text(&self) -> String {
        let mut out = format!(
            "{BOLD}converted{BOLD:#}    {} ({}) to {} ({})\n",
            ui::path(&self.source.path),
            bytes(self.source.bytes()),
            ui::path(self.output),
            bytes(self.written)
        );
        out += &format!("{BOLD}plan{BOLD:#}         {}\n", self.plan);
        out += &units(&self.plan.segments, self.chain.as_ref());
        out += "\n";
        out += &figure_table(&[("original", &self.original), ("rewritten", &self.rewritten)]);
        if let Some(v) = &self.verification {
            out += "\n";
            out += &v.text();
        }
        out
    }
}
