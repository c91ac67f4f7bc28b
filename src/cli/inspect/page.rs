//! The page: the chain as it is and as a plan has it, side by side.
//!
//! What is fixed stands in the markup; the chain is data that the page's script lays out, opens and searches.

use serde_json::{Value, json};
use snlp::error::{Error, Kind};
use snlp::passes::plan::{Init, Parallel, Segment};
use snlp::structure::Structure;
use snlp::summary::{ChainSummary, FIGURES_LENGTH, Figures};
use snlp::text::{escaped, name, sentence};

use super::super::html::{Page, escape, search_bar};
use super::super::ui::{bytes, count, thousands};
use super::{Report, domain};

/// The report as a document.
pub fn page(report: &Report, explain: bool) -> Result<String, Error> {
    let title = report.source.path.file_name().unwrap_or_default().to_string_lossy();
    let title = name(&title);
    let mut body = about(report);
    body += &figures(report);
    let data = match &report.chain {
        Some(chain) => {
            body += &plan_help(report, chain);
            body += &search_bar("Search nodes, operators, layers, units", UNFOLD);
            body += "<div id=\"chain\" role=\"group\" aria-label=\"The chain; arrow keys move, Enter opens\">\
                     <noscript>The chain is drawn by a script, which this browser does not run.</noscript></div>\n\
                     <aside id=\"panel\" role=\"dialog\" aria-labelledby=\"panel-title\" hidden></aside>\n";
            Some(data(report, chain)?)
        }
        None => {
            body += &no_chain(report);
            None
        }
    };
    body += &model(report);
    if explain {
        body += &explanation(report);
    }
    Ok(Page {
        title: &title,
        command: "inspect",
        body,
        style: include_str!("page.css"),
        script: if data.is_some() { SCRIPT } else { "" },
        data: data.as_ref(),
    }
    .render())
}

/// The chain, then what is opened and searched.
const SCRIPT: &str = concat!(include_str!("page.js"), include_str!("panel.js"));

const UNFOLD: &str = "<button type=\"button\" class=\"button\" id=\"all\" hidden>Unfold all</button>";

/// What the model is, in a sentence.
fn about(report: &Report) -> String {
    let source = &report.source;
    let mut parts = Vec::new();
    if let Some(chain) = &report.chain {
        let hidden = chain.hidden.as_str().map_or_else(|| chain.hidden.to_string(), name);
        let streams =
            if chain.streams > 1 { format!(" in {} streams", chain.streams) } else { String::new() };
        parts.push(format!("{} {} of width {hidden}{streams}", chain.layers, plural(chain)));
    }
    parts.push(format!("{} parameters", thousands(source.parameters())));
    parts.push(bytes(source.bytes()));
    let mut out = format!("<p class=\"about\">{}</p>\n", escape(&parts.join(" · ")));
    if let Some(plan) = report.plan_text() {
        let how = if report.converted.is_some() { "converted with plan" } else { "plan" };
        out += &format!("<p class=\"plan\">{how} <code>{}</code></p>\n", escape(&escaped(&plan)));
    }
    out
}

fn plural(chain: &ChainSummary) -> String {
    format!("{} {}", name(&chain.kind), if chain.layers == 1 { "layer" } else { "layers" })
}

/// Figures before and after.
fn figures(report: &Report) -> String {
    let rewritten = report.rewritten.as_ref().map(|(_, f)| f);
    let mut out = String::from("<dl class=\"figures\">\n");
    let mut figure = |what: &str, of: &dyn Fn(&Figures) -> Option<u64>| {
        let (before, after) = (report.original.as_ref().and_then(of), rewritten.and_then(of));
        let number = |n: u64| format!("<b>{}</b>", thousands(n));
        let (numbers, scale) = match (before, after) {
            (None, None) => return,
            (Some(n), None) | (None, Some(n)) => (number(n), String::new()),
            // A bar says nothing of what was not there.
            (Some(0), Some(after)) => (
                format!(
                    "<span>0</span><span aria-hidden=\"true\">→</span><span class=\"unseen\"> becomes </span>{}",
                    number(after)
                ),
                String::new(),
            ),
            (Some(before), Some(after)) => {
                let most = before.max(after).max(1) as f64;
                let width = |n: u64| 100.0 * n as f64 / most;
                (
                    format!(
                        "<span>{}</span><span aria-hidden=\"true\">→</span><span class=\"unseen\"> becomes </span>{}",
                        thousands(before),
                        number(after)
                    ),
                    format!(
                        "<div class=\"scale\" aria-hidden=\"true\"><i style=\"width:{:.1}%\"></i><i \
                         style=\"width:{:.1}%\"></i></div>",
                        width(before),
                        width(after)
                    ),
                )
            }
        };
        out += &format!("<div><dt>{what}</dt><dd>{numbers}{scale}</dd></div>\n");
    };
    figure("sequential depth", &|f| f.sequential_depth.map(|n| n as u64));
    figure("dispatches", &|f| f.dispatches.map(|n| n as u64));
    figure("dependent levels", &|f| f.levels.map(|n| n as u64));
    figure("matrix products", &|f| Some(f.matmuls as u64));
    figure("nodes", &|f| Some(f.nodes as u64));
    figure("corrections", &|f| rewritten.map(|_| f.corrections as u64));
    out += "</dl>\n";
    let scheduled =
        [report.original.as_ref(), rewritten].into_iter().flatten().any(|f| f.dispatches.is_some());
    if scheduled {
        out += &format!(
            "<p class=\"note\">Dispatches are counted for a typical GPU at batch 1 and {FIGURES_LENGTH} positions.</p>\n"
        );
    }
    out
}

/// How to see what a plan makes of the model.
fn plan_help(report: &Report, chain: &ChainSummary) -> String {
    if report.rewritten.is_some() {
        return String::new();
    }
    let units = (chain.layers / 2).max(1);
    let plan = match chain.layers - units.min(chain.layers) {
        0 => format!("{units}xF1"),
        before => format!("s{before} {units}xF1"),
    };
    format!(
        "<p class=\"help\">This is the model as it is. Give a plan to see it beside what the plan makes of it: \
         <code>snlp inspect MODEL --plan &#39;{plan}&#39; --format html -o FILE</code></p>\n"
    )
}

fn no_chain(report: &Report) -> String {
    let why = match &report.source.chain {
        Err(stopped) if report.converted.is_none() => {
            let at = if stopped.at.is_empty() { String::new() } else { format!(", at {}", stopped.at) };
            format!("No chain of layers was found: {}{at}", stopped.reason)
        }
        _ => "The chain of the original is not recorded in this converted model".into(),
    };
    format!("<p class=\"help\">{}.</p>\n", escape(&sentence(&why)))
}

/// Inputs, outputs, classes and what nothing can compute.
fn model(report: &Report) -> String {
    let (info, graph) = (&report.source.model.info, &report.source.model.graph);
    let mut out = String::from("<section class=\"model\">\n<h2>Model</h2>\n<div class=\"tables\">\n");
    let inputs =
        snlp::feeds::input_types(graph).iter().map(|(n, t)| [name(n), name(&t.to_string())]).collect();
    out += &table("Inputs", inputs);
    let ty = |v| graph.ty(v).map_or_else(|| "unknown".to_string(), |t| name(&t.to_string()));
    out += &table("Outputs", graph.outputs.iter().map(|o| [name(&o.name), ty(o.value)]).collect());
    let opsets =
        info.opsets.iter().map(|(d, v)| format!("{} {v}", name(&domain(d)))).collect::<Vec<_>>().join(", ");
    let producer = name([&*info.producer_name, &*info.producer_version].join(" ").trim());
    let mut facts = vec![["opset".into(), opsets], ["IR".into(), info.ir_version.to_string()]];
    if !producer.is_empty() {
        facts.insert(0, ["producer".into(), producer]);
    }
    if let Some(chain) = &report.chain {
        facts.push(["surrogate".into(), name(&chain.surrogate)]);
        for other in &chain.others {
            facts.push([
                "beside the chain".into(),
                format!("{}, {}", count(other.layers, "layer"), name(&other.kind)),
            ]);
        }
    }
    out += &table("File", facts);
    let unsupported = report.source.unsupported().into_iter().map(|(op, u)| {
        let reason = u.reason.map(|r| format!(": {}", sentence(&r))).unwrap_or_default();
        [name(&op), format!("{}, first '{}'{reason}", count(u.nodes, "node"), name(&u.first))]
    });
    out += &table("Unsupported", unsupported.collect());
    out += "</div>\n";
    let classes = report.chain.iter().flat_map(|c| c.classes.iter().enumerate());
    let classes = classes.map(|(i, c)| {
        let differs =
            c.differs.as_ref().map(|d| format!(" (not as class {i}: {})", sentence(d))).unwrap_or_default();
        [
            format!("class {}, {}", i + 1, count(c.layers.len(), "layer")),
            format!("{}{differs}", sentence(&c.description)),
        ]
    });
    out += &table("Classes of layers", classes.collect());
    out + "</section>\n"
}

fn table(heading: &str, rows: Vec<[String; 2]>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let row = |[a, b]: [String; 2]| {
        format!("<tr><td class=\"name\">{}</td><td>{}</td></tr>\n", escape(&a), escape(&b))
    };
    let rows: String = rows.into_iter().map(row).collect();
    format!("<div><h3>{heading}</h3>\n<table>\n{rows}</table></div>\n")
}

fn explanation(report: &Report) -> String {
    let clean = &report.source.clean_up;
    let changes = clean.changes.iter().filter(|(_, n)| **n > 0);
    let mut out = format!(
        "<section class=\"model\">\n<h2>Clean-up</h2>\n<p class=\"about\">{} nodes before, {} after</p>\n<div class=\"tables\">\n",
        clean.nodes_before, clean.nodes_after
    );
    out += &table("Changes", changes.map(|(pass, n)| [(*pass).to_string(), thousands(*n as u64)]).collect());
    out += "</div>\n";
    let declined = clean.mismatches.iter().map(|m| [m.pass.to_string(), sentence(&m.to_string())]);
    out += &table("Declined", declined.collect());
    out + "</section>\n"
}

/// What the script shows.
fn data(report: &Report, chain: &ChainSummary) -> Result<Value, Error> {
    let placed = report.rewritten.as_ref().map(|(p, _)| p).filter(|p| p.layers == chain.layers);
    // A converted model has no graph of its original.
    let structure = match &report.source.chain {
        Ok(found) if !report.source.is_rewritten() || report.made.is_some() => {
            let made = placed.zip(report.made.as_ref());
            Structure::of(&report.source.graph, found, made)
                .map_err(|e| Error::new(Kind::Internal, e.to_string()).about(&report.source.path))?
        }
        _ => Structure::default(),
    };
    let mut first = 0;
    let mut segments = Vec::new();
    for (i, segment) in placed.iter().flat_map(|p| p.segments.iter().enumerate()) {
        let mut shown = json!({ "first": first, "layers": segment.layers(), "depth": segment.layers() });
        if let Segment::Parallel(p) = segment {
            shown["depth"] = json!(p.depth());
            shown["parallel"] = parallel(p);
        }
        if let Some(detail) = structure.segments.get(i) {
            shown["detail"] = json!(detail);
        }
        segments.push(shown);
        first += segment.layers();
    }
    let mut chain = json!(chain);
    clean(&mut chain);
    Ok(json!({
        "plan": report.plan_text().map(|p| escaped(&p).into_owned()),
        "depth": report.rewritten.as_ref().and_then(|(_, f)| f.sequential_depth),
        "chain": chain,
        "types": structure.types,
        "prefix": structure.prefix,
        "suffix": structure.suffix,
        "layers": structure.layers,
        "segments": segments,
    }))
}

/// A parallel segment as the plan has it.
fn parallel(p: &Parallel) -> Value {
    let init = match p.init {
        Init::H0 => "the segment's input",
        Init::BatchForward => "one batched forward",
        Init::Preheat => "a calibrated prediction",
        Init::Warm => "the token before",
    };
    json!({
        "text": p.to_string(),
        "units": p.units,
        "fused": p.fused,
        "iterations": p.effective_iterations(),
        "init": init,
        "elk": p.elk,
        "avg": p.avg,
    })
}

/// Escapes what moves the cursor in all texts.
fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = escaped(text).into_owned(),
        Value::Array(all) => all.iter_mut().for_each(clean),
        Value::Object(all) => all.values_mut().for_each(clean),
        _ => {}
    }
}
