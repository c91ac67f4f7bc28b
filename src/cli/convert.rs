//! `snlp convert`: the layer-parallel model as an ONNX file.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use snlp::error::{Error, Kind};
use snlp::onnx::{Model, WriteOptions};
use snlp::passes::plan::PlacedPlan;
use snlp::source::{Source, metadata, onnx_error, parse_plan};
use snlp::summary::{ChainSummary, Figures};

use super::Common;
use super::inspect::text::{figure_table, units};
use super::output::write_text;
use super::tensors::read_windows;
use super::ui::{self, BOLD, Ui, bytes};
use super::verify::{self, Verification};

/// Write the layer-parallel ONNX model
///
/// Corrections become calls of ai.snlp functions whose bodies travel in the model; --inline writes plain
/// operators only. Weights are moved, not copied.
#[derive(Args)]
#[command(after_help = "Example:\n  snlp convert model.onnx -o parallel.onnx --plan 's6 6xF1[k=2]' --verify")]
pub struct Convert {
    /// The .onnx file to convert
    model: PathBuf,
    /// The .onnx file to write; must not be the model
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
        let plan = parse_plan(&self.plan)?;
        refuse_same(&self.model, &self.output)?;
        let source = Source::read(&self.model)?;
        if source.is_rewritten() {
            source.chain()?;
        }
        let placed = source.place(&plan)?;
        self.keep_external_data(&source)?;
        let windows = self.tokens.as_deref().map(read_windows).transpose()?;
        let graph = source.rewrite(&placed)?.graph;

        let chain = source.chain.as_ref().ok().map(|c| ChainSummary::of(&source.graph, c));
        let depth = chain.as_ref().map(|c| c.layers);
        let original = Figures::of(&source.graph, depth);
        let rewritten = Figures::of(&graph, depth.map(|_| placed.sequential_depth()));
        let model = Model { graph: graph.clone(), info: self.info(&source, &placed, &chain, &original) };
        let options = WriteOptions { inline: self.inline, external_data: self.external_data };
        let written = model.write(&self.output, &options).map_err(|e| onnx_error(e, &self.output))?.bytes;
        drop(model);

        let verification = match self.verify {
            true => Some(verify::verify(&source, &graph, &self.output, windows, common, ui)?),
            false => None,
        };
        let done = Done {
            source: &source,
            output: &self.output,
            written,
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

    /// Refuses to replace the file that holds the model's own weights.
    fn keep_external_data(&self, source: &Source) -> Result<(), Error> {
        let mut name = self.output.file_name().unwrap_or_default().to_os_string();
        name.push(".data");
        let data = self.output.with_file_name(&name);
        let weights = |t: &snlp::passes::ir::Tensor| t.byte_len() as u64;
        let graph = &source.model.graph;
        let inside: u64 = graph.values().filter_map(|(v, _)| graph.tensor(v)).map(weights).sum();
        let file = std::fs::metadata(&source.path).map_or(0, |m| m.len());
        let folder = |p: &Path| p.canonicalize().ok().and_then(|p| p.parent().map(Path::to_path_buf));
        if inside <= file || !data.exists() || folder(&data) != folder(&source.path) {
            return Ok(());
        }
        // Weights lie outside of the model: its text names the files that hold them.
        let text = std::fs::read(&source.path).map_err(|e| Error::io("read", &source.path, e))?;
        let name = name.to_string_lossy();
        if text.windows(name.len()).any(|w| w == name.as_bytes()) {
            return Err(Error::usage(format!("'{}' may hold the model's own weights", data.display()))
                .help("write to another folder, or under another name"));
        }
        Ok(())
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
        set(metadata::SOURCE, source.model.info.sha256.clone());
        if let Some(chain) = chain
            && let Ok(text) = serde_json::to_string(&(chain, original))
        {
            set(metadata::CHAIN, text);
        }
        info
    }
}

/// Refuses to write over the model that is read, however the path is spelt.
fn refuse_same(model: &Path, output: &Path) -> Result<(), Error> {
    let same = match (model.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) => a == b || same_inode(&a, &b),
        _ => false,
    };
    if same {
        return Err(Error::usage(format!("'{}' is the model itself", output.display()))
            .help("write to another file: the original is needed to measure what conversion costs"));
    }
    if output.is_dir() {
        return Err(Error::new(Kind::Io, format!("'{}' is a folder", output.display()))
            .help("give the name of an .onnx file"));
    }
    Ok(())
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
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
            self.source.path.display(),
            bytes(self.source.bytes()),
            self.output.display(),
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
