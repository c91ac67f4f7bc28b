//! The text form of a graph, for people and snapshot tests.

use std::fmt::Write;

use super::graph::{Graph, GraphError, Node, ValueId};
use super::op::Op;
use super::types::Type;

/// One line per input, node and output, in order of evaluation:
///
/// ```text
/// input %0 input_ids: i64[batch, sequence]
/// %5 = Gather { axis: 0 } (%1 f32[96, 32] const, %0): f32[batch, sequence, 32]   "wte"
/// output logits = %9
/// ```
pub fn dump(graph: &Graph) -> Result<String, GraphError> {
    let mut out = String::new();
    for v in graph.inputs() {
        let name = graph.value(*v).name.as_deref().unwrap_or_default();
        let _ = writeln!(out, "input {v:?} {name}: {}", type_text(graph, *v));
    }
    for id in graph.topological()? {
        if let Some(node) = graph.node(id) {
            node_line(&mut out, graph, node);
        }
    }
    for o in &graph.outputs {
        let _ = writeln!(out, "output {} = {:?}", o.name, o.value);
    }
    Ok(out)
}

fn type_text(graph: &Graph, v: ValueId) -> String {
    graph.ty(v).map(Type::to_string).unwrap_or_else(|| "?".into())
}

fn node_line(out: &mut String, graph: &Graph, node: &Node) {
    let results: Vec<_> = node.outputs.iter().map(|v| format!("{v:?}")).collect();
    let operands: Vec<_> = node
        .inputs
        .iter()
        .map(|v| match v {
            None => "-".into(),
            Some(v) => match graph.tensor(*v) {
                Some(t) if t.len() <= 4 => format!("{t:?}"),
                Some(t) => format!("{v:?} {} const", Type::of(t)),
                None => format!("{v:?}"),
            },
        })
        .collect();
    let types: Vec<_> = node.outputs.iter().map(|v| type_text(graph, *v)).collect();
    let op = match &node.op {
        Op::Opaque(o) => format!("opaque {}::{}", o.domain, o.op_type),
        op => format!("{op:?}"),
    };
    let _ = write!(out, "{} = {op} ({}): {}", results.join(", "), operands.join(", "), types.join(", "));
    if !node.name.is_empty() {
        let _ = write!(out, "   \"{}\"", node.name);
    }
    out.push('\n');
}
