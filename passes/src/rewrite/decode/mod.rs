//! The cached step of a causal model, derived from its full forward.
//!
//! ```text
//!   ids [1, t] ─▶ model ─▶ logits [1, t, v]
//!
//!   ids [1, step], position, caches ─▶ step ─▶ logits [1, step, v], caches
//! ```
//!
//! The step computes rows `position .. position + step` of the forward over `position + step` tokens. It is
//! found by asking for those rows of the result and passing the demand on to operands, operator by operator
//! ([`spans`]): an operator that treats positions alike computes the rows wanted from the same rows of its
//! operands, a shift by one position from their neighbours, a table from the entries of those positions.
//! Attention wants *all* rows of its keys and values: there the demand is cut. The rows of the new
//! positions are computed and written into a cache that holds those of the earlier ones, which must not
//! depend on later tokens; that holds since every attention is causal and no other operator mixes
//! positions. An operator for which this cannot be shown ends the derivation with its name.
//!
//! An input `NAME` with an output `NAME.next` is carried from step to step as it is; before the first position it is
//! zero.
//!
//! A cache has room for `capacity` positions, so that sizes do not change from step to step; what lies
//! beyond the present position is excluded by causality. Taking a token back is moving `position` back.

mod spans;

use std::collections::HashMap;

use crate::ir::{
    Binary, DType, Def, Dim, Graph, GraphError, NodeId, Op, Output, ScatterReduction, Symbol, Type, ValueId,
};

use spans::{Make, Recipe, Span, Want, rule};

/// The input that takes the position of the first new token, a rank-0 int64.
pub const POSITION: &str = "position";

/// A step with what it is called by.
#[derive(Clone)]
pub struct DecodeStep {
    /// Inputs: the tokens, [`POSITION`], the caches; outputs: the model's, then the caches.
    pub graph: Graph,
    /// The tokens `[1, lookback + step]` begin with this many that came before; what stands before the
    /// first position is of no account.
    pub lookback: usize,
    /// Positions that the caches have room for.
    pub capacity: usize,
    /// Names of the inputs and outputs that are the same cache before and after.
    pub caches: Vec<(String, String)>,
}

/// Why no step can be derived.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// An operator in the way.
    #[error("{reason} (at '{at}')")]
    Stopped {
        /// What it does that a step cannot.
        reason: String,
        /// Name of the node.
        at: String,
    },
    /// The graph has inputs besides the tokens, or the tokens are not `[1, t]`.
    #[error("{0}")]
    Signature(String),
    /// The step does not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Derives the step of a graph whose inputs are the tokens `[1, t]`, with a symbol `t`, and what is carried from step
/// to step.
///
/// # Errors
/// When an operator mixes positions otherwise than causal attention does, or depends on how many there are.
pub fn decode_step(graph: &Graph, capacity: usize) -> Result<DecodeStep, DecodeError> {
    let (carried, others): (Vec<ValueId>, Vec<ValueId>) =
        graph.inputs().iter().partition(|v| next_of(graph, **v).is_some());
    let [tokens] = others[..] else {
        return Err(DecodeError::Signature(format!(
            "the graph has {} inputs instead of one that takes tokens",
            others.len()
        )));
    };
    let length = match graph.ty(tokens).map(|t| &t.shape[..]) {
        Some([one, length]) if *one == Dim::ONE => length.as_symbol().cloned(),
        _ => None,
    };
    let Some(length) = length else {
        let ty = graph.ty(tokens).map(Type::to_string).unwrap_or_default();
        return Err(DecodeError::Signature(format!(
            "the tokens are {ty} instead of one sequence of any length"
        )));
    };
    let frame = Frame::new(graph, tokens, carried, length, capacity)?;
    let demand = Demand::of(&frame)?;
    Step::build(&frame, &demand)
}

/// The output that takes an input's place in the next step.
fn next_of(graph: &Graph, input: ValueId) -> Option<&str> {
    let name = graph.value(input).name.as_ref()?;
    let next = |o: &&Output| o.name.strip_suffix(NEXT) == Some(name);
    graph.outputs.iter().find(next).map(|o| o.name.as_str())
}

/// What the output of an input's next content is called by.
const NEXT: &str = ".next";

/// What the rules know of the graph.
struct Frame<'g> {
    graph: &'g Graph,
    tokens: ValueId,
    /// Inputs that are carried from step to step.
    carried: Vec<ValueId>,
    /// The number of positions.
    length: Symbol,
    capacity: i64,
    /// How many are new.
    step: Dim,
    /// Whether a value depends on the tokens, by index.
    variable: Vec<bool>,
    /// Shapes for sequences that the caches have room for, by index.
    shapes: Vec<Option<Vec<Dim>>>,
    order: Vec<NodeId>,
}

impl<'g> Frame<'g> {
    fn new(
        graph: &'g Graph,
        tokens: ValueId,
        carried: Vec<ValueId>,
        length: Symbol,
        capacity: usize,
    ) -> Result<Self, DecodeError> {
        let order = graph.topological()?;
        let mut variable = vec![false; graph.value_count()];
        variable[tokens.index()] = true;
        for id in &order {
            let Some(node) = graph.node(*id) else { continue };
            if node.operands().any(|v| variable[v.index()]) {
                node.outputs.iter().for_each(|v| variable[v.index()] = true);
            }
        }
        let capacity = i64::try_from(capacity).unwrap_or(i64::MAX);
        let within = |d: &Dim| within(d, &length, capacity);
        let shapes =
            graph.values().map(|(v, _)| Some(graph.shape(v)?.iter().map(within).collect())).collect();
        let step = Dim::symbol("step");
        Ok(Frame { graph, tokens, carried, length, capacity, step, variable, shapes, order })
    }

    fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.shapes[v.index()].as_deref()
    }

    fn varies(&self, v: ValueId) -> bool {
        self.variable[v.index()]
    }

    /// `c` where a size is `length + c`.
    fn beyond_length(&self, d: &Dim) -> Option<i64> {
        (d.clone() - Dim::from(self.length.clone())).known()
    }

    fn has_length(&self, d: &Dim) -> bool {
        d.symbols().contains(&self.length)
    }

    /// Rows in a span.
    fn rows(&self, lo: &Dim, hi: &Dim) -> Dim {
        self.step.clone() + hi.clone() - lo.clone()
    }

    /// The size of an axis of size `d` of which `span` is wanted.
    fn size(&self, d: &Dim, span: &Span) -> Dim {
        match span {
            Span::Whole => d.clone(),
            Span::Rows { lo, hi } => self.rows(lo, hi),
            Span::All => d.replace(&|s| (*s == self.length).then(|| self.capacity.into())),
        }
    }

    fn sizes(&self, shape: &[Dim], want: &Want) -> Vec<Dim> {
        shape.iter().zip(want).map(|(d, span)| self.size(d, span)).collect()
    }
}

/// A size for lengths from one to `capacity`: minima and maxima that these bounds decide are decided.
fn within(d: &Dim, length: &Symbol, capacity: i64) -> Dim {
    // Symbols are known not to be negative, so what is left above one or below the capacity becomes one.
    let slack = Dim::symbol("slack");
    let above = (Dim::ONE + slack.clone(), Dim::from(length.clone()) - Dim::ONE);
    let below = (Dim::from(capacity) - slack.clone(), Dim::from(capacity) - Dim::from(length.clone()));
    [above, below].iter().fold(d.clone(), |d, (there, back)| {
        let moved = d.replace(&|s| (s == length).then(|| there.clone()));
        moved.replace(&|s| (Some(s) == slack.as_symbol()).then(|| back.clone()))
    })
}

/// How each part of each value that is wanted is made.
#[derive(Default)]
struct Demand {
    wants: HashMap<ValueId, Vec<Want>>,
    recipes: HashMap<ValueId, Vec<(Want, Recipe)>>,
}

impl Demand {
    fn of(frame: &Frame<'_>) -> Result<Demand, DecodeError> {
        let mut demand = Demand::default();
        for output in &frame.graph.outputs {
            let want = spans::rows_of(frame, output.value)
                .map_err(|reason| DecodeError::Stopped { reason, at: output.name.clone() })?;
            demand.want(output.value, want);
        }
        for id in frame.order.iter().rev() {
            let Some(node) = frame.graph.node(*id) else { continue };
            for (i, v) in node.outputs.iter().enumerate() {
                demand
                    .settle(frame, *v, |want| rule(frame, node, i, want))
                    .map_err(|reason| DecodeError::Stopped { reason, at: frame.graph.label(*id) })?;
            }
        }
        let from_input = |want: &Want| match &want[..] {
            [Span::Whole, Span::Rows { lo, hi }]
                if spans::at_most(hi, &Dim::ZERO) && lo.known().is_some() =>
            {
                Ok(Recipe { operands: vec![], make: Make::Tokens })
            }
            _ => Err("it reads tokens that come later".to_string()),
        };
        let at = frame.graph.value(frame.tokens).name.clone().unwrap_or_default();
        demand
            .settle(frame, frame.tokens, from_input)
            .map_err(|reason| DecodeError::Stopped { reason, at })?;
        Ok(demand)
    }

    fn of_value(&self, v: ValueId) -> &[(Want, Recipe)] {
        self.recipes.get(&v).map_or(&[], Vec::as_slice)
    }

    fn want(&mut self, v: ValueId, want: Want) {
        let wants = self.wants.entry(v).or_default();
        if !wants.contains(&want) {
            wants.push(want);
        }
    }

    /// Decides how what is wanted of a value is made; all its readers have been asked before.
    fn settle(
        &mut self,
        frame: &Frame<'_>,
        v: ValueId,
        rule: impl Fn(&Want) -> Result<Recipe, String>,
    ) -> Result<(), String> {
        let Some(mut open) = self.wants.remove(&v) else { return Ok(()) };
        let wanted = open.clone();
        let mut recipes: Vec<(Want, Recipe)> = vec![];
        for want in &wanted {
            if let Some((recipe, rows)) = spans::stored(frame, v, want)? {
                recipes.push((want.clone(), recipe));
                open.retain(|w| w != want);
                if !open.contains(&rows) {
                    open.push(rows);
                }
            }
        }
        // Rows that overlap are computed once.
        let whole = spans::united(&open);
        for want in &open {
            if let Some(recipe) = spans::narrowed(v, want, &whole) {
                recipes.push((want.clone(), recipe));
            }
        }
        for want in &whole {
            match rule(want) {
                Ok(recipe) => recipes.push((want.clone(), recipe)),
                // A table that cannot be made in part is made as a whole.
                Err(reason) => {
                    let (recipe, table) = spans::looked_up(frame, v, want).ok_or(reason)?;
                    recipes.push((table.clone(), rule(&table)?));
                    recipes.push((want.clone(), recipe));
                }
            }
        }
        for (want, recipe) in recipes {
            for (operand, part) in recipe.operands.iter().flatten() {
                // Parts of the value itself have just been settled.
                if *operand != v {
                    self.want(*operand, part.clone());
                }
            }
            self.recipes.entry(v).or_default().push((want, recipe));
        }
        Ok(())
    }
}

/// The graph of the step under construction.
struct Step<'d> {
    frame: &'d Frame<'d>,
    demand: &'d Demand,
    graph: Graph,
    tokens: ValueId,
    /// How many of the tokens came before.
    lookback: i64,
    position: ValueId,
    made: HashMap<(ValueId, Want), ValueId>,
    /// Position numbers of rows, by their span.
    rows: HashMap<(Dim, Dim), ValueId>,
    caches: Vec<(ValueId, ValueId)>,
}

impl<'d> Step<'d> {
    fn build(frame: &'d Frame<'d>, demand: &'d Demand) -> Result<DecodeStep, DecodeError> {
        let old = frame.graph;
        let lookback = demand
            .of_value(frame.tokens)
            .iter()
            .filter_map(|(want, _)| match want.get(1) {
                Some(Span::Rows { lo, .. }) => lo.known(),
                _ => None,
            })
            .fold(0, |most, lo| most.max(-lo));
        let mut graph = Graph::new(&old.name);
        let dtype = old.ty(frame.tokens).map_or(DType::I64, |t| t.dtype);
        let width = frame.step.clone() + Dim::from(lookback);
        let name = old.value(frame.tokens).name.clone().unwrap_or_default();
        let tokens = graph.add_input(&name, Type::new(dtype, vec![Dim::ONE, width]));
        let position = graph.add_input(POSITION, Type::new(DType::I64, vec![]));
        let mut step = Step {
            frame,
            demand,
            graph,
            tokens,
            lookback,
            position,
            made: HashMap::new(),
            rows: HashMap::new(),
            caches: vec![],
        };
        for v in &frame.carried {
            step.carry(*v)?;
        }
        for id in &frame.order {
            let Some(node) = old.node(*id) else { continue };
            for v in &node.outputs {
                for (want, _) in demand.of_value(*v) {
                    step.get(*v, want)?;
                }
            }
        }
        let kept = |name: &str| frame.carried.iter().any(|v| next_of(old, *v) == Some(name));
        let (states, results): (Vec<&Output>, Vec<&Output>) = old.outputs.iter().partition(|o| kept(&o.name));
        for output in results.into_iter().chain(states) {
            let want = spans::rows_of(frame, output.value).unwrap_or_default();
            let value = step.get(output.value, &want)?;
            step.graph.add_output(&output.name, value);
        }
        let of_input = |v: &ValueId| Some((old.value(*v).name.clone()?, next_of(old, *v)?.to_string()));
        let mut caches: Vec<(String, String)> = frame.carried.iter().filter_map(of_input).collect();
        for (before, after) in std::mem::take(&mut step.caches) {
            let name = step.graph.value(before).name.clone().unwrap_or_default();
            let next = format!("{name}{NEXT}");
            step.graph.add_output(&next, after);
            caches.push((name, next));
        }
        step.graph.remove_dead();
        let lookback = usize::try_from(lookback).unwrap_or_default();
        let capacity = usize::try_from(frame.capacity).unwrap_or_default();
        Ok(DecodeStep { graph: step.graph, lookback, capacity, caches })
    }

    /// An input that is carried: what it holds, zero before the first position.
    fn carry(&mut self, v: ValueId) -> Result<(), DecodeError> {
        let value = self.frame.graph.value(v);
        let (Some(name), Some(ty)) = (&value.name, self.frame.graph.ty(v)) else {
            return Err(missing("an input"));
        };
        let input = self.graph.add_input(name, ty.clone());
        let (first, zero) = (self.graph.scalar(0i64), self.graph.float_scalar(ty.dtype, 0.0));
        let behind = self.graph.add(Op::Binary(Binary::Greater), &[self.position, first])?;
        let held = self.graph.add(Op::Where, &[behind, input, zero])?;
        self.made.insert((v, vec![Span::Whole; ty.rank()]), held);
        Ok(())
    }

    /// A part of a value; its operands' parts are made on the way where they are not there.
    fn get(&mut self, v: ValueId, want: &Want) -> Result<ValueId, DecodeError> {
        let key = (v, want.clone());
        if let Some(made) = self.made.get(&key) {
            return Ok(*made);
        }
        let made = match &self.frame.graph.value(v).def {
            Def::Constant(tensor) => {
                let tensor = tensor.clone();
                self.graph.constant(tensor)
            }
            _ => {
                let demand = self.demand;
                let Some((_, recipe)) = demand.of_value(v).iter().find(|(w, _)| w == want) else {
                    return Err(DecodeError::Signature(format!("part {want:?} of {v:?} was not asked for")));
                };
                let mut operands = vec![];
                for operand in &recipe.operands {
                    operands.push(match operand {
                        Some((v, part)) => Some(self.get(*v, part)?),
                        None => None,
                    });
                }
                self.make(v, want, &recipe.make, operands)?
            }
        };
        self.graph.adopt_name_from(self.frame.graph, v, made);
        self.made.insert(key, made);
        Ok(made)
    }

    fn make(
        &mut self,
        v: ValueId,
        want: &Want,
        make: &Make,
        mut operands: Vec<Option<ValueId>>,
    ) -> Result<ValueId, DecodeError> {
        let frame = self.frame;
        let node = frame.graph.producing(v);
        let name = node.map(|n| n.name.clone()).unwrap_or_default();
        let first = operands.first().copied().flatten();
        Ok(match make {
            Make::Op(op) => self.added(v, op.clone(), operands)?,
            Make::Sized(op, dims) => {
                let dims = self.graph.dims(dims)?;
                let inputs: Vec<ValueId> = first.into_iter().chain([dims]).collect();
                self.graph.add_named(&name, op.clone(), &inputs)?
            }
            Make::Constant(tensor) => self.graph.constant(tensor.clone()),
            Make::Lookup { axis, lo, hi } => {
                let rows = self.row_numbers(lo, hi)?;
                let table = first.ok_or_else(|| missing(&name))?;
                self.graph.add_named(&name, Op::Gather { axis: *axis }, &[table, rows])?
            }
            Make::Narrow { axis, from, lo, hi } => {
                let start = lo.clone() - from.clone();
                let end = start.clone() + frame.rows(lo, hi);
                self.slice(first.ok_or_else(|| missing(&name))?, *axis, &start, &end)?
            }
            Make::Cut(cut) => {
                let x = first.ok_or_else(|| missing(&name))?;
                let (starts, ends) = (self.graph.dims(&cut.starts)?, self.graph.dims(&cut.ends)?);
                let op = Op::Slice { axes: cut.axes.clone(), steps: cut.steps.clone() };
                self.graph.add_named(&name, op, &[x, starts, ends])?
            }
            Make::Tokens => {
                let Some(Span::Rows { lo, hi }) = want.get(1) else { return Err(missing(&name)) };
                let start = lo.clone() + Dim::from(self.lookback);
                let end = start.clone() + frame.rows(lo, hi);
                self.slice(self.tokens, 1, &start, &end)?
            }
            Make::Store { axis } => {
                let rows = first.ok_or_else(|| missing(&name))?;
                let shape = frame.shape(v).map(|s| frame.sizes(s, want)).unwrap_or_default();
                let dtype = frame.graph.ty(v).map_or(DType::F32, |t| t.dtype);
                let n = self.caches.len();
                let cache = self.graph.add_input(&format!("cache.{n}"), Type::new(dtype, shape));
                let after = self.written(cache, rows, *axis, &name)?;
                self.caches.push((cache, after));
                after
            }
            Make::Attention(attention, lo) => {
                operands.resize(5, None);
                operands.push(Some(self.position(lo)?));
                self.added(v, Op::Attention(*attention), operands)?
            }
            Make::Join { axis, offsets, lo, hi } => {
                let pieces: Vec<ValueId> = operands.into_iter().flatten().collect();
                self.join(&pieces, *axis, offsets, [lo, hi])?
            }
        })
    }

    /// A node in the place of the one that makes `v`; its result in the place of `v`.
    fn added(&mut self, v: ValueId, op: Op, operands: Vec<Option<ValueId>>) -> Result<ValueId, DecodeError> {
        let Def::Node(id, at) = self.frame.graph.value(v).def else { return Err(missing("an input")) };
        let (name, outputs) = self.frame.graph.node(id).map_or(("", 1), |n| (&n.name, n.outputs.len()));
        let made = self.graph.add_node(op, operands, outputs, name)?;
        let result = self.graph.node(made).and_then(|n| n.outputs.get(at).copied());
        result.ok_or_else(|| missing(name))
    }

    /// `position + lo`.
    fn position(&mut self, lo: &Dim) -> Result<ValueId, GraphError> {
        if *lo == Dim::ZERO {
            return Ok(self.position);
        }
        let lo = self.graph.dim_scalar(lo)?;
        self.graph.add(Op::Binary(Binary::Add), &[self.position, lo])
    }

    /// `position + lo ..`, not below zero, one for each row of the span.
    fn row_numbers(&mut self, lo: &Dim, hi: &Dim) -> Result<ValueId, GraphError> {
        let key = (lo.clone(), hi.clone());
        if let Some(rows) = self.rows.get(&key) {
            return Ok(*rows);
        }
        let g = &mut self.graph;
        let end = lo.clone() + self.frame.rows(lo, hi);
        let (from, to, one) = (g.dim_scalar(lo)?, g.dim_scalar(&end)?, g.scalar(1i64));
        let range = g.add(Op::Range, &[from, to, one])?;
        let mut rows = g.add(Op::Binary(Binary::Add), &[range, self.position])?;
        if !lo.is_non_negative_for_sizes() {
            let zero = g.scalar(0i64);
            rows = g.add(Op::Binary(Binary::Max), &[rows, zero])?;
        }
        self.rows.insert(key, rows);
        Ok(rows)
    }

    /// The cache with `rows` from the present position on.
    fn written(
        &mut self,
        cache: ValueId,
        rows: ValueId,
        axis: usize,
        name: &str,
    ) -> Result<ValueId, GraphError> {
        let shape = self.graph.shape(rows).map(<[Dim]>::to_vec).unwrap_or_default();
        let at = self.row_numbers(&Dim::ZERO, &Dim::ZERO)?;
        let at = self.along(at, axis, shape.len())?;
        let g = &mut self.graph;
        let dims = g.dims(&shape)?;
        let at = g.add(Op::Expand, &[at, dims])?;
        let write = Op::ScatterElements { axis, reduction: ScatterReduction::None };
        g.add_named(name, write, &[cache, at, rows])
    }

    /// A vector as one that broadcasts along `axis` of `rank`.
    fn along(&mut self, rows: ValueId, axis: usize, rank: usize) -> Result<ValueId, GraphError> {
        let axes: Vec<usize> = (1..rank - axis).collect();
        if axes.is_empty() { Ok(rows) } else { self.graph.add(Op::Unsqueeze { axes }, &[rows]) }
    }

    fn slice(&mut self, x: ValueId, axis: usize, start: &Dim, end: &Dim) -> Result<ValueId, GraphError> {
        if *start == Dim::ZERO && self.graph.shape(x).and_then(|s| s.get(axis)) == Some(end) {
            return Ok(x);
        }
        let (start, end) =
            (self.graph.dims(std::slice::from_ref(start))?, self.graph.dims(std::slice::from_ref(end))?);
        self.graph.add(Op::Slice { axes: vec![axis], steps: vec![1] }, &[x, start, end])
    }

    /// Rows of a concatenation: each of the pieces with a size of its own serves the rows that it holds,
    /// the last one all others.
    fn join(
        &mut self,
        pieces: &[ValueId],
        axis: usize,
        offsets: &[spans::Piece],
        [lo, hi]: [&Dim; 2],
    ) -> Result<ValueId, DecodeError> {
        let Some((rest, fixed)) = pieces.split_last() else { return Err(missing("Concat")) };
        let rank = self.graph.ty(*rest).map_or(1, |t| t.rank());
        let rows = self.row_numbers(lo, hi)?;
        let mut out = *rest;
        for (piece, x) in offsets.iter().zip(fixed).rev() {
            let x = match piece.lookup {
                None => *x,
                Some(size) => {
                    let g = &mut self.graph;
                    let (from, zero) = (g.scalar(piece.offset), g.scalar(0i64));
                    let last = g.scalar(size - 1);
                    let at = g.add(Op::Binary(Binary::Sub), &[rows, from])?;
                    let at = g.add(Op::Binary(Binary::Max), &[at, zero])?;
                    let at = g.add(Op::Binary(Binary::Min), &[at, last])?;
                    g.add(Op::Gather { axis }, &[*x, at])?
                }
            };
            let g = &mut self.graph;
            let end = g.scalar(piece.end);
            let inside = g.add(Op::Binary(Binary::Less), &[rows, end])?;
            let inside = self.along(inside, axis, rank)?;
            out = self.graph.add(Op::Where, &[inside, x, out])?;
        }
        Ok(out)
    }
}

fn missing(what: &str) -> DecodeError {
    DecodeError::Signature(format!("'{what}' was not made"))
}
