//! The one screen that a person reads.

use snlp::passes::plan::{Init, Parallel, Segment};
use snlp::summary::{
    CacheSummary, ChainSummary, ClassSummary, FIGURES_LENGTH, Figures, LayerSummary, MixingSummary,
    OtherSummary, SideSummary, TapSummary,
};
use snlp::text::{escaped, name, sentence};

use super::super::ui::{BOLD, DIM, Table, bytes, count, path, thousands};
use super::{Report, domain};

/// The report as text.
pub fn text(report: &Report, explain: bool) -> String {
    let mut out = model(report);
    out += "\n";
    match (&report.chain, &report.source.chain) {
        (Some(chain), _) => out += &chain_text(chain),
        (None, Err(stopped)) => {
            out += &format!("{BOLD}chain{BOLD:#}        none: {}\n", sentence(&stopped.reason));
            if !stopped.at.is_empty() {
                out += &format!("  at         {}\n", sentence(&stopped.at));
            }
        }
        (None, Ok(_)) => out += &format!("{BOLD}chain{BOLD:#}        not recorded in the converted model\n"),
    }
    for (op, u) in report.source.unsupported() {
        let (op, first) = (name(&op), name(&u.first));
        let reason = u.reason.map(|r| format!(": {}", escaped(&r))).unwrap_or_default();
        out += &format!("  unsupported  {op}, {}, first '{first}'{reason}\n", count(u.nodes, "node"));
    }
    if let Some((placed, _)) = &report.rewritten {
        let plan = escaped(&report.plan_text().unwrap_or_default()).into_owned();
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
        .map(|(d, v)| if d.is_empty() { v.to_string() } else { format!("{} {v}", name(&domain(d))) })
        .collect();
    let producer = [info.producer_name.as_str(), info.producer_version.as_str()].join(" ");
    let producer = if producer.trim().is_empty() { "unknown".into() } else { name(producer.trim()) };
    let mut out = format!("{BOLD}model{BOLD:#}        {}\n", path(&report.source.path));
    out += &format!("  producer   {producer}, opset {}, IR {}\n", opsets.join(", "), info.ir_version);
    out += &format!(
        "  size       {} parameters, {}\n",
        thousands(report.source.parameters()),
        bytes(report.source.bytes())
    );
    let mut table = Table::default();
    let mut listed = |what: &str, values: Vec<(String, String)>| {
        let hidden = values.len().saturating_sub(6);
        for (i, (value, ty)) in values.into_iter().take(6).enumerate() {
            table.row([if i == 0 { what.to_string() } else { String::new() }, name(&value), name(&ty)]);
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

/// `0-5` and `8` for layer numbers.
fn ranges(layers: &[usize]) -> Vec<String> {
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
    out
}

/// Ranges of a heading that are listed one by one.
const RANGES: usize = 4;
/// Rows of a heading that are shown.
const ROWS: usize = 8;
/// Layers whose matrices are shown.
const MIXING_ROWS: usize = 32;
/// Names of one row that are shown.
const NAMES: usize = 4;

/// `layer 3`, `layers 0-5`, or `layers 1, 3, …, 11`.
fn layer_list(layers: &[usize], most: usize) -> String {
    let mut parts = ranges(layers);
    if parts.len() > most {
        parts.drain(2..parts.len() - 1);
        parts.insert(2, "…".into());
    }
    format!("layer{} {}", if layers.len() == 1 { "" } else { "s" }, parts.join(", "))
}

/// Names in a row, as many as one can take in.
fn name_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.into_iter().map(name).collect();
    if names.len() > NAMES {
        let hidden = names.len() - (NAMES - 1);
        names.truncate(NAMES - 1);
        names.push(format!("and {hidden} more"));
    }
    names.join(", ")
}

/// Rows under one label, `most` at most.
fn listed(table: &mut Table, label: &str, most: usize, mut rows: Vec<[String; 2]>) {
    if rows.len() > most {
        let hidden = rows.len() - (most - 1);
        rows.truncate(most - 1);
        rows.push([format!("and {hidden} more"), String::new()]);
    }
    for (i, [place, what]) in rows.into_iter().enumerate() {
        table.row([if i == 0 { label.to_string() } else { String::new() }, place, what]);
    }
}

/// What layers read besides the state: a row for each set of layers, and one for what single layers read.
fn side_inputs(sides: &[SideSummary]) -> Vec<[String; 2]> {
    let (own, shared): (Vec<&SideSummary>, Vec<_>) = sides.iter().partition(|s| s.layers.len() == 1);
    let mut groups: Vec<(&[usize], Vec<&str>)> = Vec::new();
    for side in shared {
        match groups.iter_mut().find(|(layers, _)| *layers == side.layers) {
            Some((_, names)) => names.push(&side.name),
            None => groups.push((&side.layers, vec![&side.name])),
        }
    }
    let row = |(layers, names): (&[usize], Vec<&str>)| [layer_list(layers, RANGES), name_list(names)];
    let mut rows: Vec<[String; 2]> = groups.into_iter().map(row).collect();
    let mut layers: Vec<usize> = own.iter().flat_map(|s| s.layers.iter().copied()).collect();
    layers.sort_unstable();
    layers.dedup();
    let names = name_list(own.iter().map(|s| s.name.as_str()));
    if let [_, _, ..] = layers[..] {
        let how = if own.len() == layers.len() { "one each" } else { "each its own" };
        rows.push([layer_list(&layers, RANGES), format!("{how}: {names}")]);
    } else if !layers.is_empty() {
        rows.push([layer_list(&layers, RANGES), names]);
    }
    rows
}

/// What the layers' skip paths do to the streams: a row for all whose matrices the model computes, and one for
/// each with constant ones, which says how far these are from keeping the streams' sum (the columns), from
/// averaging (the rows), and from doing nothing.
fn mixings(chain: &ChainSummary) -> Vec<[String; 2]> {
    let of_tokens = |l: &&LayerSummary| l.transfer == "mixing per token";
    let tokens: Vec<usize> = chain.layers_detail.iter().filter(of_tokens).map(|l| l.layer).collect();
    let size = format!("{0} x {0}", chain.streams);
    let mut rows = Vec::new();
    if !tokens.is_empty() {
        let what = format!("{size} matrices that the model computes");
        rows.push([layer_list(&tokens, RANGES), what]);
    }
    let constant = chain.layers_detail.iter().filter(|l| !l.mixings.is_empty());
    rows.extend(constant.map(|l| [layer_list(&[l.layer], 1), mixing(&size, &l.mixings)]));
    rows
}

/// The constant matrices of one layer, in the order in which the state passes them.
fn mixing(size: &str, matrices: &[MixingSummary]) -> String {
    let span = |of: fn(&MixingSummary) -> &[f64]| {
        let values = || matrices.iter().flat_map(of).copied();
        let (low, high) =
            (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let (low, high) = (format!("{low:.2}"), format!("{high:.2}"));
        if low == high { low } else { format!("{low} to {high}") }
    };
    let distances: Vec<String> = matrices.iter().map(|m| format!("{:.2}", m.from_identity)).collect();
    format!(
        "{} of {size}: columns sum to {}, rows to {}, Frobenius distance from the identity {}",
        matrices.len(),
        span(|m| &m.column_sums),
        span(|m| &m.row_sums),
        distances.join(", ")
    )
}

/// The caches of all layers in a row.
fn caches(caches: &[CacheSummary]) -> Vec<[String; 2]> {
    let mut layers: Vec<usize> = caches.iter().map(|c| c.layer).collect();
    layers.dedup();
    let pairs: Vec<String> = caches.iter().map(|c| format!("{} → {}", c.input, c.output)).collect();
    if pairs.is_empty() {
        vec![]
    } else {
        vec![[layer_list(&layers, RANGES), name_list(pairs.iter().map(String::as_str))]]
    }
}

fn chain_text(chain: &ChainSummary) -> String {
    let hidden = chain.hidden.as_str().map_or_else(|| chain.hidden.to_string(), name);
    let mut out = format!(
        "{BOLD}chain{BOLD:#}        {} of width {hidden}, {}, {}, surrogate {}\n",
        count(chain.layers, "layer"),
        name(&chain.kind),
        count(chain.streams, "stream"),
        name(&chain.surrogate)
    );
    let mut table = Table::default();
    let class = |c: &ClassSummary| [layer_list(&c.layers, 2 * ROWS), c.description.clone()];
    let label = if chain.classes.len() == 1 { "class    " } else { "classes  " };
    listed(&mut table, label, ROWS, chain.classes.iter().map(class).collect());
    let is_cache = |s: &SideSummary| chain.caches.iter().any(|c| s.name == format!("'{}'", c.input));
    let (_, sides): (Vec<_>, Vec<_>) = chain.side_inputs.iter().cloned().partition(is_cache);
    listed(&mut table, "reads", ROWS, side_inputs(&sides));
    listed(&mut table, "mixes", MIXING_ROWS, mixings(chain));
    listed(&mut table, "caches", ROWS, caches(&chain.caches));
    let tap = |tap: &TapSummary| {
        let place = match tap.layer() {
            Some(l) => format!("{} layer {l}", if tap.inside { "inside" } else { "after" }),
            None => "before layer 0".into(),
        };
        [place, format!("read by {}", name_list(tap.readers.iter().map(String::as_str)))]
    };
    listed(&mut table, "taps", ROWS, chain.taps.iter().map(tap).collect());
    let other = |other: &OtherSummary| {
        let width = other.hidden.as_str().map_or_else(|| other.hidden.to_string(), name);
        let what = format!("{} of width {width}, {}", count(other.layers, "layer"), name(&other.kind));
        [what, format!("up to {}", name(&other.at))]
    };
    listed(&mut table, "not taken", ROWS, chain.others.iter().map(other).collect());
    if let Some(beyond) = &chain.unreached {
        let what = format!("{} in no layer", count(beyond.attentions, "attention"));
        let first = name(&beyond.first);
        let ends = match &beyond.readers[..] {
            [] => format!("before the chain, the first {first}"),
            readers => {
                let readers = name_list(readers.iter().map(String::as_str));
                format!("the first {first}; the chain ends where its state is read by {readers}")
            }
        };
        listed(&mut table, "beyond", ROWS, vec![[what, ends]]);
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
        let init = match p.init {
            Init::H0 => "",
            Init::BatchForward => ", from a batched forward",
            Init::Preheat => ", from a calibrated prediction",
            Init::Warm => ", from the token before",
        };
        let each = if p.effective_iterations() > 1 { "each " } else { "" };
        out.push(format!("{iterations}{init}, {each}ending in a correction"));
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
        if columns.iter().all(|(_, f)| figure(f).is_none()) {
            return;
        }
        let cells = columns.iter().map(|(_, f)| figure(f).map_or_else(|| "-".into(), thousands));
        table.row(std::iter::once(name.to_string()).chain(cells));
    };
    row("sequential depth", &|f| f.sequential_depth.map(|n| n as u64));
    row("nodes", &|f| Some(f.nodes as u64));
    row("matrix products", &|f| Some(f.matmuls as u64));
    row("corrections", &|f| Some(f.corrections as u64));
    row("dispatches", &|f| f.dispatches.map(|n| n as u64));
    row("dependent levels", &|f| f.levels.map(|n| n as u64));
    let mut out = table.render(2);
    if columns.iter().any(|(_, f)| f.dispatches.is_some()) {
        let sizes = format!("dispatches at batch 1, {FIGURES_LENGTH} positions, on a typical GPU");
        out += &format!("  {DIM}{sizes}{DIM:#}\n");
    }
    out
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
                let first = class.layers.first().unwrap_or(&0);
                out += &format!("  layer {first} starts class {}: {}\n", i + 1, sentence(why));
            }
        }
    }
    if !clean.mismatches.is_empty() {
        out += &format!("\n{BOLD}declined{BOLD:#}\n");
        for m in &clean.mismatches {
            out += &format!("  {}\n", sentence(&m.to_string()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_numbers_are_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), ["0-2", "5", "7-8"]);
        assert!(ranges(&[]).is_empty());
        assert_eq!(layer_list(&[1], 4), "layer 1");
        assert_eq!(layer_list(&[0, 1, 2, 5, 7, 8], 4), "layers 0-2, 5, 7-8");
        assert_eq!(layer_list(&[1, 3, 5, 7, 9, 11], 4), "layers 1, 3, …, 11");
    }

    #[test]
    fn side_inputs_are_grouped() {
        let side = |name: &str, layers: &[usize]| SideSummary { name: name.into(), layers: layers.to_vec() };
        let embeddings = [1, 3, 5, 7, 9, 11].map(|l| side(&format!("node 'v{l}'"), &[l]));
        let mut sides = vec![side("'mask'", &[0, 1, 2]), side("'cos'", &[0, 1, 2]), side("'x0'", &[1, 2])];
        sides.extend(embeddings);
        assert_eq!(
            side_inputs(&sides),
            [
                ["layers 0-2", "'mask', 'cos'"],
                ["layers 1-2", "'x0'"],
                ["layers 1, 3, …, 11", "one each: node 'v1', node 'v3', node 'v5', and 3 more"]
            ]
        );
        let caches = [side("'k0'", &[0]), side("'v0'", &[0]), side("'k1'", &[1]), side("'v1'", &[1])];
        assert_eq!(side_inputs(&caches), [["layers 0-1", "each its own: 'k0', 'v0', 'k1', 'v1'"]]);
        assert_eq!(side_inputs(&caches[..2]), [["layer 0", "'k0', 'v0'"]]);
        assert!(side_inputs(&[]).is_empty());
    }

    #[test]
    fn mixings_are_told_layer_by_layer() {
        let matrix = |rows: f64, distance: f64| MixingSummary {
            row_sums: vec![rows, 1.0],
            column_sums: vec![1.0, 1.0],
            from_identity: distance,
        };
        assert_eq!(
            mixing("2 x 2", &[matrix(0.75, 0.5), matrix(1.25, 0.25)]),
            "2 of 2 x 2: columns sum to 1.00, rows to 0.75 to 1.25, Frobenius distance from the identity 0.50, 0.25"
        );
    }

    #[test]
    fn figures_that_nobody_knows_are_left_out() {
        let unknown = Figures {
            nodes: 5,
            sequential_depth: None,
            matmuls: 2,
            corrections: 0,
            dispatches: None,
            levels: None,
            transfer_bytes: None,
        };
        let text = figure_table(&[("", &unknown)]);
        assert!(!text.contains('-') && !text.contains("dispatches"), "{text}");
        let known = Figures { dispatches: Some(7), sequential_depth: Some(3), ..unknown.clone() };
        let text = figure_table(&[("original", &unknown), ("rewritten", &known)]);
        assert!(text.contains("dispatches at") && text.contains('-'), "{text}");
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
