//! The chain as a graph for Graphviz and Mermaid: layers, what they read, taps, and units of a plan.

use snlp::passes::plan::{PlacedPlan, Segment};
use snlp::text::sentence;

use super::Report;

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
        for (i, side) in chain.side_inputs.iter().enumerate() {
            let id = format!("side{i}");
            p.node(&id, &side.name);
            for l in &side.layers {
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
    let picture = Picture::of(report);
    let quote = |s: &str| sentence(s).replace('\\', "\\\\").replace('"', "\\\"");
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

/// A Mermaid flowchart.
pub fn mermaid(report: &Report) -> String {
    let picture = Picture::of(report);
    let quote = |s: &str| sentence(s).replace('"', "#quot;");
    let mut out = String::from("flowchart LR\n");
    for n in &picture.nodes {
        out += &format!("  {}[\"{}\"]\n", n.id, quote(&n.label));
    }
    for (i, (label, members)) in picture.groups.iter().enumerate() {
        out +=
            &format!("  subgraph group{i} [\"{}\"]\n    {}\n  end\n", quote(label), members.join("\n    "));
    }
    for (from, to, dashed) in &picture.edges {
        out += &format!("  {from} {} {to}\n", if *dashed { "-.->" } else { "-->" });
    }
    out
}
