//! The one screen that a person reads.

use snlp::passes::plan::{Parallel, Segment};
use snlp::summary::{ChainSummary, FIGURES_LENGTH, Figures};

use super::super::ui::{BOLD, DIM, Table, bytes, count, thousands};
use super::{Report, domain};

/// The report as text.
pub fn text(report: &Report, explain: bool) -> String {
    let mut out = model(report);
    out += "\n";
    match (&report.chain, &report.source.chain) {
        (Some(chain), _) => out += &chain_text(chain),
        (None, Err(stopped)) => {
            out += &format!("{BOLD}chain{BOLD:#}        none: {}\n", stopped.reason);
            if !stopped.at.is_empty() {
                out += &format!("  at         {}\n", stopped.at);
            }
        }
        (None, Ok(_)) => out += &format!("{BOLD}chain{BOLD:#}        not recorded in the converted model\n"),
    }
    for (op, (n, first)) in report.source.unsupported() {
        out += &format!("  unsupported  {op}, {}, first '{first}'\n", count(n, "node"));
    }
    if let Some((placed, _)) = &report.rewritten {
        let plan = report.plan_text().unwrap_or_default();
        let how = if report.converted.is_some() { " (converted)" } else { "" };
        out += &format!("\n{BOLD}plan{BOLD:#}         {plan}{how}\n");
        out += &units(&placed.segments, report.chain.as_ref());
    }
    out += "\n";
    out += &figures(report);
    if explain {
        out += &explanation(report);
    }
    out
}

fn model(report: &Report) -> String {
    let info = &report.source.model.info;
    let graph = &report.source.model.graph;
    let opsets: Vec<String> = info
        .opsets
        .iter()
        .map(|(d, v)| if d.is_empty() { v.to_string() } else { format!("{} {v}", domain(d)) })
        .collect();
    let producer = [info.producer_name.as_str(), info.producer_version.as_str()].join(" ");
    let producer = if producer.trim().is_empty() { "unknown" } else { producer.trim() };
    let mut out = format!("{BOLD}model{BOLD:#}        {}\n", report.source.path.display());
    out += &format!("  producer   {producer}, opset {}, IR {}\n", opsets.join(", "), info.ir_version);
    out += &format!(
        "  size       {} parameters, {}\n",
        thousands(report.source.parameters()),
        bytes(report.source.bytes())
    );
    let mut table = Table::default();
    let mut listed = |what: &str, values: Vec<(String, String)>| {
        let hidden = values.len().saturating_sub(6);
        for (i, (name, ty)) in values.into_iter().take(6).enumerate() {
            table.row([if i == 0 { what.to_string() } else { String::new() }, name, ty]);
        }
        if hidden > 0 {
            table.row([String::new(), format!("and {hidden} more")]);
        }
    };
    let types = snlp::feeds::input_types(graph);
    listed("inputs   ", types.iter().map(|(n, t)| ((*n).to_string(), t.to_string())).collect());
    let ty = |v| graph.ty(v).map_or_else(|| "unknown".to_string(), ToString::to_string);
    listed("outputs  ", graph.outputs.iter().map(|o| (o.name.clone(), ty(o.value))).collect());
    out + &table.render(2)
}

/// `0-5, 8` for layer numbers.
fn ranges(layers: &[usize]) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut rest = layers;
    while let Some(first) = rest.first() {
        let run = rest.iter().zip(*first..).take_while(|(a, b)| **a == *b).count();
        out.push(match run {
            1 => first.to_string(),
            n => format!("{first}-{}", first + n - 1),
        });
        rest = &rest[run..];
    }
    out.join(", ")
}

fn chain_text(chain: &ChainSummary) -> String {
    let hidden = chain.hidden.as_str().map_or_else(|| chain.hidden.to_string(), str::to_string);
    let mut out = format!(
        "{BOLD}chain{BOLD:#}        {} of width {hidden}, {}, {}, surrogate {}\n",
        count(chain.layers, "layer"),
        chain.kind,
        count(chain.streams, "stream"),
        chain.surrogate
    );
    let mut table = Table::default();
    for (i, class) in chain.classes.iter().enumerate() {
        let label =
            if i == 0 { if chain.classes.len() == 1 { "class    " } else { "classes  " } } else { "" };
        table.row([
            label.to_string(),
            format!("layers {}", ranges(&class.layers)),
            class.description.clone(),
        ]);
    }
    for (i, side) in chain.side_inputs.iter().enumerate() {
        let label = if i == 0 { "reads" } else { "" };
        table.row([label.to_string(), format!("layers {}", ranges(&side.layers)), side.name.clone()]);
    }
    for (i, tap) in chain.taps.iter().enumerate() {
        let label = if i == 0 { "taps" } else { "" };
        let place = if tap.inside {
            format!("inside layer {}", tap.after_layer)
        } else if tap.after_layer == 0 {
            "before layer 0".into()
        } else {
            format!("after layer {}", tap.after_layer - 1)
        };
        table.row([label.to_string(), place, format!("read by {}", tap.readers.join(", "))]);
    }
    let around =
        format!("{} before the chain, {} behind it", count(chain.prefix_nodes, "node"), chain.suffix_nodes);
    out += &table.render(2);
    out += &format!("  around     {around}\n");
    out
}

/// Units that are listed one by one.
const LISTED: usize = 6;

/// Original layers on the left, what becomes of them on the right; units are rows.
pub fn units(segments: &[Segment], chain: Option<&ChainSummary>) -> String {
    let mut table = Table::new(&["original", "becomes"]);
    let mut first = 0;
    for segment in segments {
        match segment {
            Segment::Sequential(n) => {
                let after = if *n == 1 { "as it is" } else { "as they are, one after the other" };
                table.row([layers(first, *n), after.to_string()]);
            }
            Segment::Parallel(p) => unit_rows(&mut table, p, first, chain),
        }
        first += segment.layers();
    }
    table.render(2)
}

fn layers(first: usize, n: usize) -> String {
    if n == 1 { format!("layer {first}") } else { format!("layers {first}-{}", first + n - 1) }
}

fn unit_rows(table: &mut Table, p: &Parallel, first: usize, chain: Option<&ChainSummary>) {
    let shown = if p.units > LISTED { LISTED - 1 } else { p.units };
    let brace = |row: usize, rows: usize| match (row, rows) {
        (_, 1) => "─",
        (0, _) => "┐",
        (r, n) if r + 1 == n => "┘",
        _ => "│",
    };
    let rows = if p.units > LISTED { LISTED + 1 } else { p.units };
    let notes = merged(p, first, chain);
    for row in 0..rows {
        let elided = p.units > LISTED && row == shown;
        let unit = if row < shown { row } else { p.units - 1 };
        let note = notes.get(row).cloned().unwrap_or_default();
        if elided {
            table.row(["…".to_string(), format!("…       {} {note}", brace(row, rows))]);
        } else {
            let name = format!("unit {}", unit + 1);
            let left = layers(first + unit * p.fused, p.fused);
            table.row([left, format!("{name:8}{} {note}", brace(row, rows))]);
        }
    }
    for note in notes.iter().skip(rows) {
        table.row([String::new(), format!("          {note}")]);
    }
}

/// What was merged, a line each.
fn merged(p: &Parallel, first: usize, chain: Option<&ChainSummary>) -> Vec<String> {
    let mut out = Vec::new();
    let classes: std::collections::BTreeSet<usize> = chain
        .map(|c| c.layers_detail.iter().skip(first).take(p.layers()).map(|l| l.class).collect())
        .unwrap_or_default();
    let batch = match (p.units, classes.len()) {
        (1, _) => "one unit".to_string(),
        (n, 0 | 1) => format!("{n} units in one batch"),
        (n, k) => format!("{n} units in {k} batches, one for each class"),
    };
    let fused = if p.fused > 1 { format!(", {} layers fused in each", p.fused) } else { String::new() };
    out.push(format!("{batch}{fused}"));
    if p.units > 1 {
        let iterations = count(p.effective_iterations(), "iteration");
        let init =
            if p.init == snlp::passes::plan::Init::BatchForward { ", from a batched forward" } else { "" };
        out.push(format!("{iterations}{init}, each ending in a correction"));
    }
    out
}

fn figures(report: &Report) -> String {
    let rewritten = report.rewritten.as_ref().map(|(_, f)| f);
    let (Some(original), rewritten) = (report.original.as_ref(), rewritten) else {
        // A converted model of unknown origin.
        return rewritten.map(|f| figure_table(&[("this model", f)])).unwrap_or_default();
    };
    match rewritten {
        Some(rewritten) => figure_table(&[("original", original), ("rewritten", rewritten)]),
        None => figure_table(&[("", original)]),
    }
}

/// Figures side by side.
pub fn figure_table(columns: &[(&str, &Figures)]) -> String {
    let heading: Vec<&str> = std::iter::once("").chain(columns.iter().map(|(n, _)| *n)).collect();
    let mut table = if columns.len() > 1 { Table::new(&heading) } else { Table::default() };
    table = table.right(&[1, 2]);
    let mut row = |name: &str, figure: &dyn Fn(&Figures) -> Option<u64>| {
        let cells = columns.iter().map(|(_, f)| figure(f).map_or_else(|| "-".into(), thousands));
        table.row(std::iter::once(name.to_string()).chain(cells));
    };
    row("sequential depth", &|f| f.sequential_depth.map(|n| n as u64));
    row("nodes", &|f| Some(f.nodes as u64));
    row("matrix products", &|f| Some(f.matmuls as u64));
    row("corrections", &|f| Some(f.corrections as u64));
    row("dispatches", &|f| f.dispatches.map(|n| n as u64));
    row("dependent levels", &|f| f.levels.map(|n| n as u64));
    table.render(2)
        + &format!("  {DIM}dispatches at batch 1, {FIGURES_LENGTH} positions, on a typical GPU{DIM:#}\n")
}

fn explanation(report: &Report) -> String {
    let clean = &report.source.clean_up;
    let mut out = format!(
        "\n{BOLD}clean-up{BOLD:#}     {} nodes before, {} after\n",
        clean.nodes_before, clean.nodes_after
    );
    let mut table = Table::default().right(&[1]);
    for (pass, n) in clean.changes.iter().filter(|(_, n)| **n > 0) {
        table.row([(*pass).to_string(), thousands(*n as u64)]);
    }
    out += &table.render(2);
    if let Some(chain) = &report.chain {
        for (i, class) in chain.classes.iter().enumerate() {
            if let Some(why) = &class.differs {
                out += &format!(
                    "  layer {} starts class {}: {why}\n",
                    class.layers.first().unwrap_or(&0),
                    i + 1
                );
            }
        }
    }
    if !clean.mismatches.is_empty() {
        out += &format!("\n{BOLD}declined{BOLD:#}\n");
        for m in &clean.mismatches {
            out += &format!("  {m}\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_numbers_are_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn units_are_rows() {
        let p = Parallel { iterations: 2, ..Parallel::new(3, 2) };
        let text = units(&[Segment::Sequential(2), Segment::Parallel(p)], None);
        let text = crate::cli::ui::plain(&text);
        assert!(text.contains("layers 0-1  as they are"), "{text}");
        assert!(
            text.contains("layers 2-3  unit 1  ┐ 3 units in one batch, 2 layers fused in each"),
            "{text}"
        );
        assert!(text.contains("layers 6-7  unit 3  ┘"), "{text}");
        let many = units(&[Segment::Parallel(Parallel::new(12, 1))], None);
        assert!(many.contains("layer 11") && many.lines().count() < 10, "{many}");
    }
}
