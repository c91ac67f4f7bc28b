//! Sizes that values decide: a graph is cut into what runs before them and what runs after.
//!
//! ```text
//!   mask ─▶ ReduceSum ─▶ n ─▶ Range(0, n) ─▶ ..        first: mask ─▶ n
//!                             x ─▶ x[:n] ─▶ ..         rest, with n known: Range, x[:n], ..
//! ```
//!
//! A value *decides* where its elements are sizes, bounds or axes (`deciding`); the result of `NonZero` has
//! as many elements as its operand has others than zero, so that operand decides. `split` finds the values
//! that decide and can be computed, and cuts there. The rest is the graph behind the cut for the values
//! found: what decided is constant in it, all else that crosses the cut is an input. It may have to be split
//! again: [`Stages`] is the whole of it, for whatever runs the parts.

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
struct Split {
    /// What comes before the cut: the graph's inputs, and as outputs what the rest needs.
    first: Graph,
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
fn split(graph: &Graph) -> Result<Option<Split>, SplitError> {
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
    fn cross(&self, results: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Tensor>), SplitError> {
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
    /// graph's own, then one for each passed tensor; its outputs the graph's.
    ///
    /// # Errors
    /// When the graph contradicts the values.
    fn rest(&self, key: &[Tensor], passed: &[Tensor]) -> Result<Graph, SplitError> {
        let mut graph = self.graph.clone();
        let (mut key, mut passed) = (key.iter(), passed.iter());
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        for c in &self.crossing {
            let (old, new) = if c.decides {
                let Some(tensor) = key.next() else { continue };
                (c.value, graph.constant(tensor.clone()))
            } else {
                let Some(tensor) = passed.next() else { continue };
                let found = c.non_zero.and_then(|id| graph.node(id)?.outputs.first().copied());
                if found.is_some() {
                    key.next();
                }
                // Cuts of what is behind a cut go on counting: inputs are told apart by their names.
                let name = passed_name(graph.inputs().len());
                (found.unwrap_or(c.value), graph.add_input(&name, Type::of(tensor)))
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
}

/// Cuts that are kept per place, for the values met; the one that was not used for longest goes first.
const KEPT: usize = 8;

/// What runs for one set of sizes: parts of type `P`, prepared when they are first needed.
pub enum Stages<P> {
    /// All of it.
    Whole(P),
    /// A part whose results decide the sizes in what follows.
    Split(Box<Cut<P>>),
}

/// A part of a graph, and what follows it for the values met.
pub struct Cut<P> {
    split: Split,
    first: P,
    /// By what decided, most recently used last.
    rest: Vec<(Vec<Tensor>, Stages<P>)>,
}

/// Runs a prepared part on its inputs.
pub type RunPart<'a, P, E> = dyn FnMut(&P, &[Tensor]) -> Result<Vec<Tensor>, E> + 'a;

/// The part that is left to run, with its inputs.
pub type LastPart<'a, P> = (&'a P, Vec<Tensor>);

impl<P> Stages<P> {
    /// Prepares a graph whose inputs have known sizes, up to where values decide sizes.
    ///
    /// # Errors
    /// When the graph cannot be cut, or the preparation fails.
    pub fn new<E: From<SplitError>>(
        graph: Graph,
        prepare: &dyn Fn(Graph) -> Result<P, E>,
    ) -> Result<Self, E> {
        Ok(match split(&graph)? {
            None => Stages::Whole(prepare(graph)?),
            Some(split) => {
                let first = prepare(split.first.clone())?;
                Stages::Split(Box::new(Cut { split, first, rest: vec![] }))
            }
        })
    }

    /// Whether values decide sizes.
    pub fn is_split(&self) -> bool {
        matches!(self, Stages::Split(_))
    }

    /// Runs every part but the last on the graph's inputs, in order; returns the last with its inputs.
    ///
    /// # Errors
    /// As [`Stages::new`], and those of `run`.
    pub fn last<E: From<SplitError>>(
        &mut self,
        mut inputs: Vec<Tensor>,
        prepare: &dyn Fn(Graph) -> Result<P, E>,
        run: &mut RunPart<'_, P, E>,
    ) -> Result<LastPart<'_, P>, E> {
        let mut stage = self;
        loop {
            let cut = match stage {
                Stages::Whole(part) => return Ok((part, inputs)),
                Stages::Split(cut) => cut,
            };
            let results = run(&cut.first, &inputs)?;
            let (key, passed) = cut.split.cross(&results)?;
            let at = match cut.rest.iter().position(|(k, _)| *k == key) {
                Some(at) => at,
                None => {
                    let rest = Stages::new(cut.split.rest(&key, &passed)?, prepare)?;
                    if cut.rest.len() >= KEPT {
                        cut.rest.remove(0);
                    }
                    cut.rest.push((key, rest));
                    cut.rest.len() - 1
                }
            };
            let latest = cut.rest.remove(at);
            cut.rest.push(latest);
            inputs.extend(passed);
            let end = cut.rest.len() - 1;
            stage = &mut cut.rest[end].1;
        }
    }
}

/// No model names an input so.
fn passed_name(n: usize) -> String {
    format!("\u{1}passed {n}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::eval_graph;
    use crate::ir::{Binary, DType, Dim, Dynamic, Opaque, Reduce, ScatterReduction, Symbol, Unary};
    use crate::rewrite::testing::{f32s, random};

    /// Runs a graph in stages under the evaluator; also says how many parts there were.
    fn staged(stages: &mut Stages<Graph>, inputs: &[Tensor]) -> (Vec<Tensor>, usize) {
        let mut parts = 1;
        let run = |part: &Graph, inputs: &[Tensor]| {
            let open =
                part.values().filter(|(v, _)| part.producer(*v).is_some_and(|n| part.node(n).is_some()));
            for (v, _) in open {
                assert!(part.ty(v).is_some_and(|t| t.known_shape().is_some()), "{v:?} has no known size");
            }
            let feed = part.inputs().iter().copied().zip(inputs.iter().cloned()).collect();
            Ok::<_, SplitError>(eval_graph(part, &feed)?)
        };
        let (last, inputs) = stages
            .last(inputs.to_vec(), &Ok::<Graph, SplitError>, &mut |part, inputs| {
                parts += 1;
                run(part, inputs)
            })
            .unwrap();
        (run(last, &inputs).unwrap(), parts)
    }

    /// Checks several sets of inputs of the same sizes, in turn, and returns the number of parts.
    fn agrees(g: &Graph, sizes: &[(&str, i64)], sets: &[Vec<Tensor>]) -> usize {
        let bindings = sizes.iter().map(|(s, n)| (Symbol::new(s), *n)).collect();
        let mut clean = g.clone();
        crate::rewrite::clean_up(&mut clean).unwrap();
        let mut parts = 0;
        for g in [g, &clean] {
            let mut stages = Stages::new(bind(g, &bindings).unwrap(), &Ok::<Graph, SplitError>).unwrap();
            for inputs in sets.iter().chain(sets) {
                let feed = g.inputs().iter().copied().zip(inputs.iter().cloned()).collect();
                let expected = eval_graph(g, &feed).unwrap();
                let (actual, n) = staged(&mut stages, inputs);
                assert_eq!(expected, actual);
                parts = n;
            }
        }
        parts
    }

    fn ints(shape: &[usize], data: &[i64]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), data.to_vec()).unwrap()
    }

    #[test]
    fn what_the_inputs_sizes_decide_is_not_cut() {
        let mut g = Graph::new("plain");
        let x = g.add_input("x", f32s(&[2, 3]));
        let shape = g.ints(&[3, 2]);
        let y = g.op(Op::Reshape { allow_zero: false }, &[x, shape]);
        g.add_output("y", y);
        assert!(split(&g).unwrap().is_none());
    }

    #[test]
    fn the_values_of_a_mask_decide_how_much_is_read() {
        let mut g = Graph::new("mask");
        let mask = g.add_input("mask", Type::new(DType::I64, vec![Dim::symbol("t")]));
        let x = g.add_input("x", f32s(&[-2, 4]));
        let n = g.op(Op::Reduce { op: Reduce::Sum, axes: vec![0], keepdims: true }, &[mask]);
        let start = g.ints(&[0]);
        let head = g.op(Op::Slice { axes: vec![0], steps: vec![1] }, &[x, start, n]);
        let flat = g.ints(&[]);
        let limit = g.op(Op::Reshape { allow_zero: false }, &[n, flat]);
        let (zero, one) = (g.scalar(0i64), g.scalar(1i64));
        let positions = g.op(Op::Range, &[zero, limit, one]);
        let y = g.un(Unary::Exp, head);
        g.add_output("y", y);
        g.add_output("positions", positions);
        let x = random(1, &[3, 4]);
        let sets = [[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]].map(|m| vec![ints(&[3], &m), x.clone()]);
        assert_eq!(agrees(&g, &[("t", 3)], &sets), 2);
    }

    #[test]
    fn what_a_layer_computes_decides_twice() {
        // A mixture of experts: the tokens that a router's scores choose, then as many of them as there are.
        let mut g = Graph::new("experts");
        let x = g.add_input("x", f32s(&[-2, 4]));
        let w = g.constant(random(2, &[4, 2]));
        let scores = g.op(Op::MatMul, &[x, w]);
        let zero = g.num(0.0);
        let chosen = g.bin(Binary::Greater, scores, zero);
        let at = g.op(Op::NonZero, &[chosen]);
        let (first, second, end) = (g.ints(&[0]), g.ints(&[1]), g.ints(&[2]));
        let rows = g.op(Op::Slice { axes: vec![0], steps: vec![1] }, &[at, first, second]);
        let rows = g.op(Op::Squeeze { axes: vec![0] }, &[rows]);
        let picked = g.op(Op::Gather { axis: 0 }, &[x, rows]);
        let size = g.op(Op::Shape { start: 0, end: 2 }, &[picked]);
        let size = g.op(Op::Slice { axes: vec![0], steps: vec![1] }, &[size, first, second]);
        let half = g.bin(Binary::Div, size, end);
        let y = g.op(Op::Slice { axes: vec![0], steps: vec![1] }, &[picked, half, size]);
        let y = g.un(Unary::Tanh, y);
        g.add_output("y", y);
        g.add_output("scores", scores);
        let sets: Vec<_> = (1..5).map(|seed| vec![random(seed, &[5, 4])]).collect();
        assert!(agrees(&g, &[("t", 5)], &sets) >= 2);
    }

    #[test]
    fn layers_decide_one_after_the_other() {
        let mut g = Graph::new("layers");
        let mut state = g.add_input("x", f32s(&[-2, 4]));
        let w = g.constant(random(2, &[4, 1]));
        let zero = g.num(0.0);
        for _ in 0..3 {
            let score = g.op(Op::MatMul, &[state, w]);
            let chosen = g.bin(Binary::Greater, score, zero);
            let chosen = g.op(Op::Squeeze { axes: vec![1] }, &[chosen]);
            let at = g.op(Op::NonZero, &[chosen]);
            let at = g.op(Op::Transpose { perm: vec![1, 0] }, &[at]);
            let rows = g.op(Op::GatherNd { batch_dims: 0 }, &[state, at]);
            let rows = g.un(Unary::Cos, rows);
            state = g.op(Op::ScatterNd { reduction: ScatterReduction::None }, &[state, at, rows]);
        }
        g.add_output("y", state);
        let sets: Vec<_> = (1..5).map(|seed| vec![random(seed, &[5, 4])]).collect();
        assert!(agrees(&g, &[("t", 5)], &sets) > 2);
    }

    #[test]
    fn axes_given_at_run_time_decide_the_form() {
        let mut g = Graph::new("axes");
        let x = g.add_input("x", f32s(&[-1, -2, 4]));
        let axes = g.add_input("axes", Type::new(DType::I64, vec![1i64.into()]));
        let sum = Dynamic::Reduce { op: Reduce::Sum, keepdims: false, noop: false };
        let y = g.op(Op::Dynamic(sum), &[x, axes]);
        let y = g.op(Op::Dynamic(Dynamic::Unsqueeze), &[y, axes]);
        g.add_output("y", y);
        let x = random(1, &[2, 3, 4]);
        let sets = [0, -1, 1].map(|axis| vec![x.clone(), ints(&[1], &[axis])]);
        assert_eq!(agrees(&g, &[("b", 2), ("t", 3)], &sets), 2);
    }

    #[test]
    fn sizes_that_nothing_decides_are_named() {
        let mut g = Graph::new("unknown");
        let x = g.add_input("x", f32s(&[2]));
        let op = Op::Opaque(Box::new(Opaque {
            domain: "com.example".into(),
            op_type: "Unknown".into(),
            attributes: vec![],
            captures: vec![],
        }));
        let y = g.add_named("mystery", op, &[x]).unwrap();
        g.add_output("y", y);
        let Err(SplitError::Undecided { value, .. }) = split(&g) else { panic!("decided") };
        assert_eq!(value, "mystery");
    }
}
