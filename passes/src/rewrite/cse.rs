//! Equal nodes become one.
//!
//! ```text
//!   %5 = Shape(x)   %9 = Shape(x)      becomes   %5 for both
//!   Add(a, b)       Add(b, a)          becomes   the first
//! ```
//!
//! Constants are compared by content (identical bytes in memory first), so that the scalars that an
//! exporter repeats and the tied weights that it writes twice are one value.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::sweep::sweep;
use super::{Fidelity, Notes, Pass};
use crate::ir::{Def, Graph, GraphError, Node, NodeId, Op, Tensor, ValueId};

pub(crate) const PASS: Pass = Pass { name: "common-subexpressions", fidelity: Fidelity::Exact, apply };

fn apply(graph: &mut Graph, _: &mut Notes) -> Result<usize, GraphError> {
    let constants = merge_constants(graph);
    let mut seen: HashMap<u64, Vec<NodeId>> = HashMap::new();
    let merged = sweep(graph, |graph, id| {
        let Some(node) = graph.node(id) else { return Ok(vec![]) };
        if !node.op.is_pure() {
            return Ok(vec![]);
        }
        let candidates = seen.entry(key(node)).or_default();
        let twin = candidates.iter().find_map(|c| graph.node(*c).filter(|c| equal(c, node)));
        match twin {
            Some(twin) => Ok(node.outputs.iter().copied().zip(twin.outputs.iter().copied()).collect()),
            None => {
                candidates.push(id);
                Ok(vec![])
            }
        }
    })?;
    Ok(constants + merged)
}

/// A hash of the operands and of the kind of operator; of its attributes too where there are no operands.
fn key(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    std::mem::discriminant(&node.op).hash(&mut hasher);
    match pair(node) {
        Some(pair) => pair.hash(&mut hasher),
        None if node.inputs.is_empty() => format!("{:?}", node.op).hash(&mut hasher),
        None => node.inputs.hash(&mut hasher),
    }
    hasher.finish()
}

/// The operands of a function of two that commutes, in one order.
fn pair(node: &Node) -> Option<[Option<ValueId>; 2]> {
    match (&node.op, &node.inputs[..]) {
        (Op::Binary(b), [x, y]) if b.commutes() => Some([*x.min(y), *x.max(y)]),
        _ => None,
    }
}

fn equal(a: &Node, b: &Node) -> bool {
    let alike = match (pair(a), pair(b)) {
        (None, None) => a.inputs == b.inputs,
        (a, b) => a == b,
    };
    alike && a.op == b.op && a.outputs.len() == b.outputs.len()
}

/// Makes every reader of a constant read the first that equals it; returns how many constants went.
fn merge_constants(graph: &mut Graph) -> usize {
    let mut read: Vec<ValueId> = graph.nodes().flat_map(|(_, n)| n.operands()).collect();
    read.sort_unstable();
    read.dedup();
    let mut first: HashMap<u64, Vec<ValueId>> = HashMap::new();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for v in read {
        let Def::Constant(tensor) = &graph.value(v).def else { continue };
        let alike = first.entry(fingerprint(tensor)).or_default();
        match alike.iter().find(|o| graph.tensor(**o).is_some_and(|t| t.same(tensor))) {
            Some(one) => drop(map.insert(v, *one)),
            None => alike.push(v),
        }
    }
    let edits: Vec<(NodeId, usize, ValueId)> = graph
        .nodes()
        .flat_map(|(id, n)| n.inputs.iter().enumerate().map(move |(i, v)| (id, i, *v)))
        .filter_map(|(id, i, v)| Some((id, i, *map.get(&v?)?)))
        .collect();
    for (id, i, v) in edits {
        graph.set_input(id, i, v);
    }
    map.len()
}

/// A hash of the type and of a sample of the bytes.
fn fingerprint(tensor: &Tensor) -> u64 {
    const SAMPLE: usize = 64;
    let mut hasher = DefaultHasher::new();
    (tensor.dtype(), tensor.shape()).hash(&mut hasher);
    // A rope's pieces may be cut anywhere, so the sample is taken from both ends of the whole.
    let mut left = SAMPLE;
    for part in tensor.parts() {
        let n = left.min(part.len());
        for byte in part.iter().take(n) {
            byte.hash(&mut hasher);
        }
        left -= n;
    }
    let mut left = SAMPLE;
    for part in tensor.parts().iter().rev() {
        let n = left.min(part.len());
        for byte in part.iter().rev().take(n) {
            byte.hash(&mut hasher);
        }
        left -= n;
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attribute, Binary, DType, Dim, Opaque, Type, Unary};
    use crate::rewrite::testing::{after, count, f32s, random};

    #[test]
    fn equal_and_commuted_nodes_are_one() {
        let mut g = Graph::new("cse");
        let (x, y) = (g.add_input("x", f32s(&[4])), g.add_input("y", f32s(&[4])));
        let (a, b) = (g.bin(Binary::Add, x, y), g.bin(Binary::Add, y, x));
        let (c, d) = (g.bin(Binary::Sub, x, y), g.bin(Binary::Sub, y, x));
        let (two, other_two) = (g.num(2.0), g.num(2.0));
        let (e, f) = (g.bin(Binary::Mul, a, two), g.bin(Binary::Mul, b, other_two));
        for (i, v) in [c, d, e, f].into_iter().enumerate() {
            g.add_output(&format!("o{i}"), v);
        }
        let (clean, _) = after(&g, &PASS);
        assert_eq!((count(&clean, "Add"), count(&clean, "Sub"), count(&clean, "Mul")), (1, 2, 1));
    }

    #[test]
    fn constants_are_compared_by_content() {
        let mut g = Graph::new("constants");
        let x = g.add_input("x", f32s(&[64, 64]));
        let (w, same, other) = (
            g.constant(random(1, &[64, 64])),
            g.constant(random(1, &[64, 64])),
            g.constant(random(2, &[64, 64])),
        );
        for (i, w) in [w, same, other].into_iter().enumerate() {
            let y = g.op(Op::MatMul, &[x, w]);
            g.add_output(&format!("y{i}"), y);
        }
        assert_eq!(count(&after(&g, &PASS).0, "MatMul"), 2);
    }

    #[test]
    fn attributes_and_unknown_operators_tell_apart() {
        let mut g = Graph::new("apart");
        let x = g.add_input("x", f32s(&[2, 2]));
        let (a, b) = (g.op(Op::Softmax { axis: 0 }, &[x]), g.op(Op::Softmax { axis: 1 }, &[x]));
        let (e, f) =
            (g.un(Unary::LeakyRelu { alpha: 0.1 }, x), g.un(Unary::LeakyRelu { alpha: 0.100_000_01 }, x));
        for (i, v) in [a, b, e, f].into_iter().enumerate() {
            g.add_output(&format!("y{i}"), v);
        }
        assert_eq!(after(&g, &PASS).1, 0);
        let random = Op::Opaque(Box::new(Opaque {
            domain: String::new(),
            op_type: "RandomNormal".into(),
            attributes: vec![("dtype".into(), Attribute::Int(1))],
            captures: vec![],
        }));
        let mut g = Graph::new("random");
        for i in 0..2 {
            let v = g.op(random.clone(), &[]);
            g.declare_type(v, Type::new(DType::F32, vec![Dim::ONE]));
            g.add_output(&format!("r{i}"), v);
        }
        let changes = super::super::apply_pass(&mut g, &PASS, &mut Notes::default()).unwrap();
        assert_eq!(changes, 0);
    }
}
