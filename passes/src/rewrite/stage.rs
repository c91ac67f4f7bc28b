//! Sizes that values decide: a graph is cut into what runs before them and what runs after.
//!
//! ```text
//!   mask ─▶ ReduceSum ─▶ n ─▶ Range(0, n) ─▶ ..        first: mask ─▶ n
//!                             x ─▶ x[:n] ─▶ ..         rest, with n known: Range, x[:n], ..
//! ```
//!
//! A value *decides* where its elements are sizes, bounds or axes ([`deciding`]); the result of `NonZero` has
//! as many elements as its operand has others than zero, so that operand decides. [`split`] finds the values
//! that decide and can be computed, and cuts there. [`Split::rest`] is the graph behind the cut for the values
//! found: what decided is constant in it, all else that crosses the cut is an input. It may have to be split
//! again.

use std::collections::{HashMap, HashSet};

use super::bind::{BindError, bind};
use super::copy::copy_into;
use crate::eval::eval_op;
use crate::ir::{Bindings, Def, Graph, GraphError, Node, NodeId, Op, Tensor, Type, ValueId};

/// Positions of the operands whose elements decide a node's form or the sizes of its results.
fn deciding(op: &Op) -> std::ops::Range<usize> {
    match op {
        Op::Reshape { .. } | Op::Expand | Op::Tile | Op::Pad { .. } | Op::TopK { .. } => 1..2,
        Op::OneHot { .. } | Op::Trilu { .. } => 1..2,
        Op::Slice { .. } => 1..3,
        Op::ConstantOfShape { .. } => 0..1,
        Op::Range => 0..3,
        Op::Dynamic(dynamic) => dynamic.parameters(),
        _ => 0..0,
    }
}

/// Whether a node needs its deciding operands even where its results' sizes are known.
fn needs_elements(op: &Op) -> bool {
    matches!(op, Op::Slice { .. } | Op::Pad { .. } | Op::Trilu { .. } | Op::Range | Op::Dynamic(_))
}

/// A graph of bound sizes, cut.
#[derive(Clone)]
pub struct Split {
    /// What comes before the cut: the inputs that it needs, and as outputs what the rest needs.
    pub first: Graph,
    graph: Graph,
    /// What each output of `first` is in `graph`.
    crossing: Vec<Crossing>,
    /// Nodes behind the cut.
    later: Vec<NodeId>,
}

/// A value that crosses the cut.
#[derive(Clone, Copy)]
struct Crossing {
    value: ValueId,
    /// Its elements decide: it becomes a constant.
    decides: bool,
    /// It is the operand of this NonZero, whose result takes its place.
    non_zero: Option<NodeId>,
}

/// Why a graph cannot be cut.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// Nothing that could be computed would decide.
    #[error("the sizes of '{value}' ({shape}) are known to no operator")]
    Undecided {
        /// Name of a value of unknown size.
        value: String,
        /// Its type.
        shape: String,
    },
    /// The parts do not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The rest of the graph contradicts the values.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The evaluation of what lies between the parts failed.
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
}

/// Cuts a graph whose inputs have known sizes; `None` when all of its sizes are known already.
///
/// # Errors
/// When sizes are unknown that no value decides, such as those of an unknown operator's results.
pub fn split(graph: &Graph) -> Result<Option<Split>, SplitError> {
    let order = graph.topological()?;
    let live = live(graph);
    let order: Vec<NodeId> = order.into_iter().filter(|n| live.contains(n)).collect();
    let mut ready: Vec<bool> = graph.values().map(|(_, v)| !matches!(v.def, Def::Node(..))).collect();
    let mut blocked = vec![];
    for id in &order {
        let Some(node) = graph.node(*id) else { continue };
        if node.operands().all(|v| ready[v.index()]) && is_decided(graph, node) {
            node.outputs.iter().for_each(|v| ready[v.index()] = true);
        } else {
            blocked.push(*id);
        }
    }
    if blocked.is_empty() {
        return Ok(None);
    }
    let mut crossing: Vec<Crossing> = vec![];
    for id in &blocked {
        let Some(node) = graph.node(*id) else { continue };
        let open = |v: &ValueId| ready[v.index()] && graph.tensor(*v).is_none();
        let cross = |value, decides, non_zero| Crossing { value, decides, non_zero };
        let operands = deciding(&node.op).filter_map(|i| node.input(i));
        crossing.extend(operands.filter(open).map(|v| cross(v, true, None)));
        if node.op == Op::NonZero {
            crossing.extend(node.input(0).filter(open).map(|v| cross(v, false, Some(*id))));
        }
    }
    if crossing.is_empty() {
        return Err(undecided(graph, &blocked));
    }
    cut(graph, &order, crossing).map(Some)
}

/// Whether the sizes of a node's results, and the elements of its operands that it needs, are known.
fn is_decided(graph: &Graph, node: &Node) -> bool {
    let sized = |v: &ValueId| graph.ty(*v).is_some_and(|t| t.known_shape().is_some());
    let known = |v: ValueId| {
        graph.tensor(v).is_some() || graph.content(v).is_some_and(|c| c.iter().all(|d| d.known().is_some()))
    };
    node.outputs.iter().all(sized)
        && (!needs_elements(&node.op) || deciding(&node.op).filter_map(|i| node.input(i)).all(known))
}

fn live(graph: &Graph) -> HashSet<NodeId> {
    ancestors(graph, graph.outputs.iter().map(|o| o.value))
}

/// The nodes that some values depend on.
fn ancestors(graph: &Graph, of: impl Iterator<Item = ValueId>) -> HashSet<NodeId> {
    let mut found = HashSet::new();
    let mut stack: Vec<NodeId> = of.filter_map(|v| graph.producer(v)).collect();
    while let Some(id) = stack.pop() {
        if found.insert(id)
            && let Some(node) = graph.node(id)
        {
            stack.extend(node.operands().filter_map(|v| graph.producer(v)));
        }
    }
    found
}

fn undecided(graph: &Graph, blocked: &[NodeId]) -> SplitError {
    let results = blocked.iter().filter_map(|id| graph.node(*id)).flat_map(|n| &n.outputs);
    let open = |v: &&ValueId| graph.ty(**v).is_none_or(|t| t.known_shape().is_none());
    let first = results.clone().find(open).or(results.clone().next()).copied();
    let name = |v: ValueId| {
        let producer = graph.producing(v).map(|n| n.name.clone()).filter(|n| !n.is_empty());
        graph.value(v).name.clone().or(producer).unwrap_or_else(|| format!("{v:?}"))
    };
    let shape = first.and_then(|v| graph.ty(v)).map_or_else(|| "of unknown type".into(), Type::to_string);
    SplitError::Undecided { value: first.map(name).unwrap_or_default(), shape }
}

/// Cuts behind what the deciding values need.
fn cut(graph: &Graph, order: &[NodeId], deciders: Vec<Crossing>) -> Result<Split, SplitError> {
    let mut crossing: Vec<Crossing> = vec![];
    for new in deciders {
        match crossing.iter_mut().find(|c| c.value == new.value && c.non_zero == new.non_zero) {
            Some(known) => known.decides |= new.decides,
            None => crossing.push(new),
        }
    }
    let before = ancestors(graph, crossing.iter().map(|c| c.value));
    let (first_nodes, later): (Vec<NodeId>, Vec<NodeId>) = order.iter().partition(|n| before.contains(n));
    // What else the rest reads of the first part.
    let mut read: Vec<ValueId> =
        later.iter().filter_map(|id| graph.node(*id)).flat_map(Node::operands).collect();
    read.extend(graph.outputs.iter().map(|o| o.value));
    let made: HashSet<ValueId> =
        first_nodes.iter().filter_map(|id| graph.node(*id)).flat_map(|n| n.outputs.iter().copied()).collect();
    let mut seen: HashSet<ValueId> =
        crossing.iter().filter(|c| c.non_zero.is_none()).map(|c| c.value).collect();
    for value in read {
        if made.contains(&value) && seen.insert(value) {
            crossing.push(Crossing { value, decides: false, non_zero: None });
        }
    }
    let mut part = graph.clone();
    part.outputs.clear();
    let mut outputs: HashMap<ValueId, usize> = HashMap::new();
    for c in &crossing {
        let n = outputs.len();
        outputs.entry(c.value).or_insert(n);
    }
    let mut named: Vec<(ValueId, usize)> = outputs.into_iter().collect();
    named.sort_by_key(|(_, n)| *n);
    for (value, n) in named {
        part.add_output(&format!("crossing {n}"), value);
    }
    part.remove_dead();
    let mut first = Graph::new(&graph.name);
    let values = copy_into(&mut first, &part, &Bindings::new())?;
    for (output, value) in part.outputs.iter().zip(values) {
        first.add_output(&output.name, value);
    }
    Ok(Split { first, graph: graph.clone(), crossing, later })
}

impl Split {
    /// What tells runs apart: the elements of what decides, and the sizes of what NonZero found. Of `results`,
    /// the outputs of [`Split::first`]; also gives the tensors that become inputs of the rest, in order.
    ///
    /// # Errors
    /// When a NonZero cannot be evaluated.
    pub fn cross(&self, results: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Tensor>), SplitError> {
        let (mut key, mut passed) = (vec![], vec![]);
        for c in &self.crossing {
            let Some(tensor) = self.output_of(c.value).and_then(|n| results.get(n)) else { continue };
            if c.decides {
                key.push(tensor.clone());
            } else if c.non_zero.is_some() {
                for found in eval_op(&Op::NonZero, &[Some(tensor)])? {
                    let sizes: Vec<i64> =
                        found.shape().iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect();
                    key.push(Tensor::ints(&sizes));
                    passed.push(found);
                }
            } else {
                passed.push(tensor.clone());
            }
        }
        Ok((key, passed))
    }

    fn output_of(&self, value: ValueId) -> Option<usize> {
        let mut distinct: Vec<ValueId> = vec![];
        for c in &self.crossing {
            if !distinct.contains(&c.value) {
                distinct.push(c.value);
            }
        }
        distinct.iter().position(|v| *v == value)
    }

    /// The graph behind the cut for a key and the passed tensors of [`Split::cross`]. Its inputs are the
    /// graph's own, then one for each passed tensor, called [`Split::passed_name`]; its outputs the graph's.
    ///
    /// # Errors
    /// When the graph contradicts the values.
    pub fn rest(&self, key: &[Tensor], passed: &[Tensor]) -> Result<Graph, SplitError> {
        let mut graph = self.graph.clone();
        let (mut key, mut passed) = (key.iter(), passed.iter().enumerate());
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        for c in &self.crossing {
            let (old, new) = if c.decides {
                let Some(tensor) = key.next() else { continue };
                (c.value, graph.constant(tensor.clone()))
            } else {
                let Some((n, tensor)) = passed.next() else { continue };
                let found = c.non_zero.and_then(|id| graph.node(id)?.outputs.first().copied());
                if found.is_some() {
                    key.next();
                }
                (found.unwrap_or(c.value), graph.add_input(&passed_name(n), Type::of(tensor)))
            };
            map.insert(old, new);
        }
        for id in &self.later {
            let inputs = graph.node(*id).map(|n| n.inputs.clone()).unwrap_or_default();
            for (at, v) in inputs.iter().enumerate() {
                if let Some(new) = v.and_then(|v| map.get(&v)) {
                    graph.set_input(*id, at, *new);
                }
            }
        }
        for output in &mut graph.outputs {
            output.value = map.get(&output.value).copied().unwrap_or(output.value);
        }
        graph.remove_dead();
        Ok(bind(&graph, &Bindings::new())?)
    }

    /// The name of the input for the `n`-th passed tensor.
    pub fn passed_name(n: usize) -> String {
        passed_name(n)
    }
}

/// No model names an input so.
fn passed_name(n: usize) -> String {
    format!("\u{1}passed {n}")
}
