//! The chain as a graph for Graphviz and Mermaid: layers, what they read, taps, and units of a plan.

use snlp::passes::plan::{PlacedPlan, Segment};
use snlp::text::{name, sentence};

use super::Report;

/// Names of one box that are shown.
const NAMES: usize = 3;

/// A box with an id and a label.
struct Node {
    id: String,
    label: String,
}

/// Boxes, arrows (dashed when they are side inputs or taps), and groups of boxes.
#[derive(Default)]
struct Picture {
    nodes: Vec<Node>,
    edges: Vec<(String, String, bool)>,
    groups: Vec<(String, Vec<String>)>,
}

impl Picture {
    fn node(&mut self, id: &str, label: &str) {
        self.nodes.push(Node { id: id.into(), label: label.into() });
    }

    fn edge(&mut self, from: &str, to: &str, dashed: bool) {
        self.edges.push((from.into(), to.into(), dashed));
    }

    fn of(report: &Report) -> Picture {
        let mut p = Picture::default();
        let Some(chain) = &report.chain else {
            let reason = report.source.chain.as_ref().err().map_or("unknown", |s| s.reason.as_str());
            p.node("none", &format!("no chain of layers: {reason}"));
            return p;
        };
        let sequential =
            PlacedPlan { segments: vec![Segment::Sequential(chain.layers)], layers: chain.layers };
        let placed = match &report.rewritten {
            Some((placed, _)) if placed.layers == chain.layers => placed,
            _ => &sequential,
        };
        p.node("prefix", &format!("prefix: {} nodes", chain.prefix_nodes));
        let mut before = "prefix".to_string();
        let mut layer = 0;
        for segment in &placed.segments {
            before = match segment {
                Segment::Sequential(n) => p.sequential(layer, *n, before),
                Segment::Parallel(s) => p.parallel(&s.to_string(), layer, s.units, s.fused, &before),
            };
            layer += segment.layers();
        }
        p.node("suffix", &format!("suffix: {} nodes", chain.suffix_nodes));
        p.edge(&before, "suffix", false);
        // Values that the same layers read share a box: viewers limit the number of arrows.
        let mut sides: Vec<(&[usize], Vec<&str>)> = Vec::new();
        for side in &chain.side_inputs {
            match sides.iter_mut().find(|(layers, _)| *layers == side.layers) {
                Some((_, names)) => names.push(&side.name),
                None => sides.push((&side.layers, vec![&side.name])),
            }
        }
        for (i, (layers, names)) in sides.into_iter().enumerate() {
            let id = format!("side{i}");
            let more = names.len().saturating_sub(NAMES);
            let mut label = names.iter().take(NAMES).map(|n| name(n)).collect::<Vec<_>>().join(", ");
            if more > 0 {
                label += &format!(", and {more} more");
            }
            p.node(&id, &label);
            for l in layers {
                p.edge(&id, &format!("layer{l}"), true);
            }
        }
        for tap in &chain.taps {
            let from = tap.layer().map_or("prefix".into(), |l| format!("layer{l}"));
            p.edge(&from, "suffix", true);
        }
        p
    }

    fn sequential(&mut self, first: usize, n: usize, before: String) -> String {
        let mut before = before;
        for l in first..first + n {
            let id = format!("layer{l}");
            self.node(&id, &format!("layer {l}"));
            self.edge(&before, &id, false);
            before = id;
        }
        before
    }

    fn parallel(&mut self, text: &str, first: usize, units: usize, fused: usize, before: &str) -> String {
        let correction = format!("correction{first}");
        let mut group = Vec::new();
        for unit in 0..units {
            for l in first + unit * fused..first + (unit + 1) * fused {
                let id = format!("layer{l}");
                self.node(&id, &format!("layer {l} (unit {})", unit + 1));
                self.edge(before, &id, false);
                self.edge(&id, &correction, false);
                group.push(id);
            }
        }
        self.node(&correction, if units > 1 { "correction" } else { "sum" });
        self.groups.push((text.into(), group));
        correction
    }
}

/// A Graphviz digraph.
pub fn dot(report: &Report) -> String {
    digraph(&Picture::of(report))
}

/// A Mermaid flowchart.
pub fn mermaid(report: &Report) -> String {
    flowchart(&Picture::of(report))
}

fn digraph(picture: &Picture) -> String {
    // Graphviz reads entities in labels too.
    let quote = |s: &str| sentence(s).replace('\\', "\\\\").replace('"', "\\\"").replace('&', "&amp;");
    let mut out = String::from("digraph chain {\n  rankdir=LR;\n  node [shape=box];\n");
    for n in &picture.nodes {
        out += &format!("  {} [label=\"{}\"];\n", n.id, quote(&n.label));
    }
    for (i, (label, members)) in picture.groups.iter().enumerate() {
        out += &format!("  subgraph cluster{i} {{ label=\"{}\"; {}; }}\n", quote(label), members.join("; "));
    }
    for (from, to, dashed) in &picture.edges {
        out += &format!("  {from} -> {to}{};\n", if *dashed { " [style=dashed]" } else { "" });
    }
    out + "}\n"
}

fn flowchart(picture: &Picture) -> String {
    let mut out = String::from("flowchart LR\n");
    for n in &picture.nodes {
        out += &format!("  {}[\"{}\"]\n", n.id, mermaid_text(&n.label));
    }
    for (i, (label, members)) in picture.groups.iter().enumerate() {
        let label = mermaid_text(label);
        out += &format!("  subgraph group{i} [\"{label}\"]\n    {}\n  end\n", members.join("\n    "));
    }
    for (from, to, dashed) in &picture.edges {
        out += &format!("  {from} {} {to}\n", if *dashed { "-.->" } else { "-->" });
    }
    out
}

/// A label in quotes, in which Mermaid reads HTML, Markdown and entities of its own.
fn mermaid_text(text: &str) -> String {
    let mut out = String::new();
    for c in sentence(text).chars() {
        match c {
            '"' | '#' | '&' | '<' | '>' | '`' | '\\' | '*' | '_' | '~' | '$' | ';' => {
                out += &format!("#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the languages give a meaning to.
    const BAD: &str = "a\"b\\n[x]{y|z}<u>&lt;#quot;`**b**`;%% --> end\n\u{202e}";

    fn picture() -> Picture {
        let mut p = Picture::default();
        p.node("side0", BAD);
        p.node("layer0", "layer 0");
        p.edge("side0", "layer0", true);
        p.groups.push((BAD.into(), vec!["layer0".into()]));
        p
    }

    #[test]
    fn labels_of_graphviz_end_where_they_should() {
        let text = digraph(&picture());
        let label = r##"a\"b\\n[x]{y|z}<u>&amp;lt;#quot;`**b**`;%% --> end\\n\\u{202e}"##;
        assert!(text.contains(&format!("side0 [label=\"{label}\"];\n")), "{text}");
        assert!(text.contains(&format!("subgraph cluster0 {{ label=\"{label}\"; layer0; }}")), "{text}");
        assert_eq!(text.lines().count(), 8, "{text}");
    }

    #[test]
    fn labels_of_mermaid_are_text() {
        let text = flowchart(&picture());
        let label = "a#34;b#92;n[x]{y|z}#60;u#62;#38;lt#59;#35;quot#59;#96;#42;#42;b#42;#42;#96;#59;%% --#62; end#92;n#92;u{202e}";
        assert!(text.contains(&format!("  side0[\"{label}\"]\n")), "{text}");
        assert!(text.contains(&format!("  subgraph group0 [\"{label}\"]\n")), "{text}");
        assert_eq!(text.lines().count(), 7, "{text}");
    }
}
