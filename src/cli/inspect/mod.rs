//! `snlp inspect`: what a model is, and what a plan makes of it.

mod dot;
mod page;
pub mod text;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use snlp::error::Error;
use snlp::passes::ir::Type;
use snlp::passes::plan::{PlacedPlan, Plan};
use snlp::passes::rewrite::Parallelized;
use snlp::plan_file::GivenPlan;
use snlp::source::{Source, metadata, parse_plan};
use snlp::summary::{ChainSummary, Figures, dim_json};

use super::output::{check_outputs, write_text};
use super::ui::{self, Ui};
use super::{Common, check_plan, read_model};

/// Say what a model is: inputs, outputs, the chain of layers, and what a plan makes of it
///
/// Layers are numbered from 0. Dispatches are counted for a typical GPU at batch 1 and 16 positions; no
/// GPU is needed. A converted model is shown beside its original.
#[derive(Args)]
#[command(after_help = "Examples:\n  snlp inspect model.onnx --plan 's6 6xF1[k=2]'\n  \
                  snlp inspect model.onnx --plan 's6 6xF1[k=2]' --format html -o model.html")]
pub struct Inspect {
    /// The .onnx file
    model: PathBuf,
    /// Show what this plan makes of the model
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t, conflicts_with = "json")]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
    /// Also say what the clean-up did, which rules declined and where, and how classes differ
    #[arg(long)]
    explain: bool,
    /// Write to a file instead of the standard output, which is -
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `--format`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Format {
    /// One screen of text.
    #[default]
    Text,
    /// One JSON document.
    Json,
    /// A Graphviz digraph of the chain.
    Dot,
    /// A Mermaid flowchart of the chain.
    Mermaid,
    /// One page that loads nothing: the chain beside what the plan makes of it, to open and to search.
    Html,
}

/// Everything that is shown, whatever the format.
pub struct Report {
    source: Source,
    chain: Option<ChainSummary>,
    original: Option<Figures>,
    rewritten: Option<(PlacedPlan, Figures)>,
    /// What the plan made of the model, where it is applied here.
    made: Option<Parallelized>,
    /// Plan text of a converted model.
    converted: Option<String>,
}

impl Report {
    fn new(source: Source, plan: Option<&Plan>) -> Result<Report, Error> {
        let embedded = source.converted().map(str::to_string).filter(|_| plan.is_none());
        if let Some(text) = embedded.clone().filter(|_| source.is_rewritten()) {
            return Ok(Report::converted(source, text));
        }
        let sequential = Plan::sequential();
        let plan = plan.or(embedded.is_some().then_some(&sequential));
        let chain = source.chain.as_ref().ok().map(|c| ChainSummary::of(&source.graph, c));
        let placed = plan.map(|p| source.place(p)).transpose()?;
        let depth = chain.as_ref().map(|c| c.layers);
        let made = placed.as_ref().map(|placed| source.rewrite(placed)).transpose()?;
        let rewritten = placed.zip(made.as_ref()).map(|(placed, made)| {
            let depth = depth.map(|_| placed.sequential_depth());
            let figures = Figures::of(&made.graph, depth);
            (placed, figures)
        });
        let original = Some(Figures::of(&source.graph, depth));
        Ok(Report { source, chain, original, rewritten, made, converted: embedded })
    }

    /// A converted model: its original is known from the metadata that `convert` wrote.
    fn converted(source: Source, text: String) -> Report {
        let known: Option<(ChainSummary, Figures)> =
            source.metadata(metadata::CHAIN).and_then(|t| serde_json::from_str(t).ok());
        // Metadata is text that anyone can write.
        let known = known.filter(|(c, _)| c.layers == c.layers_detail.len());
        let (chain, original) = known.unzip();
        let placed = chain.as_ref().and_then(|c| parse_plan(&text).ok()?.place(c.layers).ok());
        let depth = placed.as_ref().map(PlacedPlan::sequential_depth);
        let figures = Figures::of(&source.graph, depth);
        let empty = PlacedPlan { segments: vec![], layers: 0 };
        let rewritten = Some((placed.unwrap_or(empty), figures));
        Report { source, chain, original, rewritten, made: None, converted: Some(text) }
    }

    /// Normal form of the plan that was given or is embedded.
    fn plan_text(&self) -> Option<String> {
        self.converted.clone().or_else(|| self.rewritten.as_ref().map(|(p, _)| p.to_string()))
    }

    fn json(&self, explain: bool) -> Value {
        let info = &self.source.model.info;
        let graph = &self.source.model.graph;
        let inputs: Vec<Value> =
            snlp::feeds::input_types(graph).iter().map(|(n, t)| typed(n, Some(t))).collect();
        let outputs: Vec<Value> = graph.outputs.iter().map(|o| typed(&o.name, graph.ty(o.value))).collect();
        let producer = [&info.producer_name, &info.producer_version].map(|s| s.trim()).join(" ");
        let mut out = json!({
            "model": {
                "path": self.source.path,
                "producer": producer.trim(),
                "ir_version": info.ir_version,
                "opsets": info.opsets.iter().map(|(d, v)| (domain(d), json!(v))).collect::<serde_json::Map<_, _>>(),
                "parameters": self.source.parameters(),
                "bytes": self.source.bytes(),
                "sha256": info.fingerprint.sha256(),
                "nodes": graph.node_count(),
                "inputs": inputs,
                "outputs": outputs,
                "metadata": info.metadata.iter().filter(|(k, _)| k != metadata::CHAIN).cloned().collect::<BTreeMap<_, _>>(),
            },
            "chain": self.chain,
        });
        if let (None, Err(stopped)) = (&self.chain, &self.source.chain) {
            out["stopped"] = json!({ "reason": stopped.reason, "at": stopped.at });
        }
        let unsupported = self.source.unsupported();
        if !unsupported.is_empty() {
            out["unsupported"] = unsupported
                .iter()
                .map(|(op, u)| json!({ "op": op, "nodes": u.nodes, "first": u.first, "reason": u.reason }))
                .collect();
        }
        out["original"] = json!(self.original);
        out["plan"] = json!(self.plan_text());
        if let Some((_, figures)) = &self.rewritten {
            out["rewritten"] = json!(figures);
        }
        if explain {
            out["clean_up"] = self.clean_up_json();
        }
        out
    }

    fn clean_up_json(&self) -> Value {
        let report = &self.source.clean_up;
        let declined: Vec<Value> = report
            .mismatches
            .iter()
            .map(|m| json!({ "pass": m.pass, "reason": m.reason, "at": m.at }))
            .collect();
        json!({
            "nodes_before": report.nodes_before,
            "nodes_after": report.nodes_after,
            "changes": report.changes,
            "declined": declined,
        })
    }
}

fn domain(name: &str) -> String {
    if name.is_empty() { "ai.onnx".into() } else { name.into() }
}

fn typed(name: &str, ty: Option<&Type>) -> Value {
    match ty {
        Some(t) => {
            let shape: Vec<Value> = t.shape.iter().map(dim_json).collect();
            json!({ "name": name, "dtype": t.dtype.to_string(), "shape": shape })
        }
        None => json!({ "name": name, "dtype": null, "shape": null }),
    }
}

impl Inspect {
    /// Runs the command.
    pub fn run(self, _common: &Common, ui: &Ui) -> Result<(), Error> {
        let plan = self.plan.as_deref().map(|p| GivenPlan::of(p, &self.model)).transpose()?;
        let source = read_model(&self.model, ui)?;
        if let Some(plan) = &plan {
            check_plan(&source, plan, ui)?;
        }
        let outputs: Vec<_> = self.output.iter().map(|p| ("-o", p.as_path())).collect();
        let read = plan.iter().filter_map(GivenPlan::file).collect();
        check_outputs(&outputs, &[source.files(), read].concat(), Some("-o"))?;
        let report = Report::new(source, plan.as_ref().map(|p| &p.plan))?;
        let format = if self.json { Format::Json } else { self.format };
        let text = match format {
            Format::Json => ui::json_text(&report.json(self.explain)) + "\n",
            Format::Dot => dot::dot(&report),
            Format::Mermaid => dot::mermaid(&report),
            Format::Text => text::text(&report, self.explain),
            Format::Html => page::page(&report, self.explain)?,
        };
        match &self.output {
            Some(path) if format == Format::Text => write_text(path, &ui::plain(&text)),
            Some(path) => write_text(path, &text),
            None => ui::print(&text),
        }
    }
}
