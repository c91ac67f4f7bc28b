//! The layer-parallel rewrite: a plan applied to a chain. Fidelity: approximate.
//!
//! For every parallel segment of `C` units with input `h`:
//!
//! ```text
//!   s = h (h0)  or  units(h) (batch_fwd)  or  a prediction from the chain's input (preheat)
//!   K times:   f = units([h, s_1 .. s_{C-1}])        one batched evaluation
//!              s = correction(f, s)                  METHOD §1
//!   the segment's output is s_C; taps read s_j, or a partial sum plus unit j's correction (METHOD §4)
//!   what else is read of the layers' inside is taken out of the last evaluation (caches: METHOD §5)
//! ```
//!
//! The graph is rewritten in place: everything that read the segment's last state reads `s_C` instead,
//! and the original layers die.

mod measured;
mod preheat;
mod warm;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use measured::Measured;
pub use preheat::{Prediction, Predictions};

use super::PassError;
use super::batch::cast;
use super::driver::clean_up_exact;
use super::escapes::{Escape, escapes, inner_states, own_inputs, own_outputs, replacements};
use super::units::{Evaluated, PartialTaps, SegmentContext, Wanted, evaluate};
use super::vectorize::{Batched, OwnInputs, VectorizeError};
use crate::analysis::{Cache, Chain, Matrix, Mismatch, Tap, Transfer, state_dependent};
use crate::ir::{
    Binary, Correction, CorrectionForm, DType, Graph, GraphError, Invalid, Op, Tensor, ValueId, validate,
};
use crate::plan::{Init, KvCache, Parallel, PlacedPlan, Segment, SurrogateChoice, TapRule};

/// A rewritten model and what was done.
#[derive(Clone)]
pub struct Parallelized {
    /// The layer-parallel graph.
    pub graph: Graph,
    /// One entry per parallel segment.
    pub segments: Vec<SegmentReport>,
    /// Correction nodes in the graph.
    pub corrections: usize,
}

/// What became of one parallel segment.
#[derive(Clone, Debug)]
pub struct SegmentReport {
    /// The segment, as the plan writes it.
    pub segment: Parallel,
    /// Zero-based layers of each unit.
    pub units: Vec<Vec<usize>>,
    /// Layers that were evaluated as one batch, by class.
    pub batches: Vec<Vec<usize>>,
    /// What stands for the Jacobian: `identity`, `transfer`, `diagonal`, `jacobi`, `exact`, or `none` for a
    /// single unit.
    pub surrogate: &'static str,
    /// Positions in the graph of the values that were made for it ([`ValueId::index`]); the clean-up may have
    /// put later ones in their place.
    pub made: Range<usize>,
}

/// Why a plan cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum ParallelizeError {
    /// The plan is for another number of layers.
    #[error("the plan is laid over {plan} layers but the chain has {chain}")]
    Layers {
        /// Layers of the plan.
        plan: usize,
        /// Layers of the chain.
        chain: usize,
    },
    /// A segment cannot be rewritten.
    #[error("segment {segment} (layers {first}-{last}): {source}")]
    Segment {
        /// The segment, as the plan writes it.
        segment: String,
        /// First layer, zero-based.
        first: usize,
        /// Last layer, zero-based.
        last: usize,
        /// The reason and the place.
        #[source]
        source: Mismatch,
    },
    /// An edit was refused: a defect of the rewrite.
    #[error("the rewrite made an ill-typed node: {0}")]
    Graph(#[from] GraphError),
    /// The result is not a valid graph: a defect of the rewrite.
    #[error("the rewrite made an invalid graph: {0}")]
    Invalid(#[from] Invalid),
    /// The result could not be simplified: a defect of the clean-up.
    #[error("the rewritten graph cannot be simplified: {0}")]
    Pass(#[from] PassError),
}

/// Applies a plan to a cleaned-up graph and its chain.
///
/// # Errors
/// When a segment cannot be rewritten, or starts from predictions: see [`parallelize_with`].
pub fn parallelize(
    graph: &Graph,
    chain: &Chain,
    plan: &PlacedPlan,
) -> Result<Parallelized, ParallelizeError> {
    parallelize_with(graph, chain, plan, &Predictions::new())
}

/// As [`parallelize`], with what `init=preheat` starts from.
///
/// # Errors
/// When a segment cannot be rewritten.
pub fn parallelize_with(
    graph: &Graph,
    chain: &Chain,
    plan: &PlacedPlan,
    predictions: &Predictions,
) -> Result<Parallelized, ParallelizeError> {
    if plan.layers != chain.layers.len() {
        return Err(ParallelizeError::Layers { plan: plan.layers, chain: chain.layers.len() });
    }
    let mut rewrite = Rewrite { graph: graph.clone(), chain, predictions, replaced: HashMap::new() };
    let mut segments = Vec::new();
    let mut first = 0;
    for segment in &plan.segments {
        if let Segment::Parallel(p) = segment {
            let last = first + p.layers() - 1;
            let report = rewrite.segment(p, first).map_err(|e| match e {
                VectorizeError::Graph(e) => ParallelizeError::Graph(e),
                VectorizeError::Mismatch(source) => {
                    ParallelizeError::Segment { segment: p.to_string(), first, last, source }
                }
            })?;
            segments.push(report);
        }
        first += segment.layers();
    }
    let mut graph = rewrite.graph;
    graph.remove_dead();
    validate(&graph)?;
    clean_up_exact(&mut graph)?;
    let corrections = graph.nodes().filter(|(_, n)| matches!(n.op, Op::Correction(_))).count();
    Ok(Parallelized { graph, segments, corrections })
}

struct Rewrite<'a> {
    graph: Graph,
    chain: &'a Chain,
    predictions: &'a Predictions,
    /// States of the original that a rewritten segment has replaced.
    replaced: HashMap<ValueId, ValueId>,
}

/// What stands for the Jacobian of each unit.
enum Surrogate {
    Identity {
        damping: f64,
    },
    Transfer {
        factors: Vec<Matrix>,
        damping: f64,
    },
    /// Matrices that are computed for each token.
    TokenMixing {
        damping: f64,
    },
    Measured {
        kind: Measured,
        damping: f64,
    },
    None,
}

impl Rewrite<'_> {
    fn current(&self, v: ValueId) -> ValueId {
        self.replaced.get(&v).copied().unwrap_or(v)
    }

    fn segment(&mut self, p: &Parallel, first: usize) -> Result<SegmentReport, VectorizeError> {
        let start = self.graph.value_count();
        let layers: Vec<usize> = (first..first + p.layers()).collect();
        let units: Vec<Vec<usize>> = layers.chunks(p.fused).map(<[usize]>::to_vec).collect();
        let input = self.current(self.chain.layers[first].input);
        let taps = self.taps(&layers);
        let escapes = escapes(&self.graph, self.chain, &layers, &taps)?;
        if p.fused > 1 {
            self.refuse_unfusable(&layers)?;
        }
        self.refuse_changing_type(&units)?;
        let surrogate = self.surrogate(p, &units)?;
        let reach = state_dependent(&self.graph, input);
        let entry = layers.iter().map(|l| (*l, self.current(self.chain.layers[*l].input))).collect();
        let forbidden = inner_states(self.chain, &layers);
        let context = SegmentContext {
            chain: self.chain,
            units: units.clone(),
            entry,
            reach: &reach,
            forbidden: &forbidden,
            avg: p.avg,
        };
        let caches: Vec<Cache> = match p.kv {
            Some(KvCache::Exact) => {
                self.chain.caches.iter().filter(|c| layers.contains(&c.layer)).copied().collect()
            }
            _ => vec![],
        };
        let solver = Solver {
            context: &context,
            plan: p,
            surrogate: &surrogate,
            predictions: self.predictions,
            escapes: &escapes,
            caches: &caches,
            input,
            first,
        };
        let solved = solver.solve(&mut self.graph, &taps)?;
        for (old, new) in solved {
            self.graph.replace_uses(old, new)?;
            self.replaced.insert(old, new);
        }
        let mut batches: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for layer in &layers {
            batches.entry(self.chain.layers[*layer].class).or_default().push(*layer);
        }
        let surrogate = match surrogate {
            _ if p.units == 1 => "none",
            Surrogate::Identity { .. } => "identity",
            Surrogate::Transfer { .. } | Surrogate::TokenMixing { .. } => "transfer",
            Surrogate::Measured { kind: Measured::Exact, .. } => "exact",
            Surrogate::Measured { kind: Measured::Diagonal, .. } => "diagonal",
            Surrogate::None => "jacobi",
        };
        let batches = batches.into_values().collect();
        let made = start..self.graph.value_count();
        Ok(SegmentReport { segment: *p, units, batches, surrogate, made })
    }

    /// The taps on states of these layers, except the last one's output, which the segment gives anyway.
    fn taps(&self, layers: &[usize]) -> Vec<Tap> {
        let last = layers.last().map(|l| self.chain.layers[*l].output);
        let own = inner_states(self.chain, layers);
        self.chain.taps.iter().filter(|t| own.contains(&t.value) && Some(t.value) != last).cloned().collect()
    }

    /// Estimates of states lie side by side, so that all have one type.
    fn refuse_changing_type(&self, units: &[Vec<usize>]) -> Result<(), VectorizeError> {
        let layers = units.iter().flatten().map(|l| &self.chain.layers[*l]);
        let first = layers.clone().next().and_then(|l| self.graph.ty(l.input)).map(|t| t.dtype);
        for layer in layers.filter(|_| units.len() > 1) {
            let own = self.graph.ty(layer.output).map(|t| t.dtype);
            if let (Some(first), Some(own)) = (first, own)
                && first != own
            {
                let reason = format!(
                    "the state that enters the segment is of {first}, the one behind this layer of {own}: start \
                     the segment behind it"
                );
                return Err(Mismatch::at_value(&self.graph, layer.output, reason).into());
            }
        }
        Ok(())
    }

    /// Fusing is defined for skip paths that are affine in the state.
    fn refuse_unfusable(&self, layers: &[usize]) -> Result<(), VectorizeError> {
        for event in layers.iter().flat_map(|l| &self.chain.layers[*l].events) {
            let what = match Transfer::of(&self.graph, event) {
                Transfer::Other("a factor per feature") => continue,
                Transfer::Other(what) => what,
                _ => continue,
            };
            let reason = format!("layers cannot be fused: {what} lies on the skip path");
            return Err(Mismatch::at_value(&self.graph, event.output(), reason).into());
        }
        Ok(())
    }

    fn surrogate(&self, p: &Parallel, units: &[Vec<usize>]) -> Result<Surrogate, VectorizeError> {
        let damping = 1.0 - p.elk;
        let transfer = match p.surrogate {
            SurrogateChoice::Auto => self.chain.streams.count > 1,
            SurrogateChoice::Identity => false,
            SurrogateChoice::Transfer => true,
            SurrogateChoice::Jacobi => return Ok(Surrogate::None),
            SurrogateChoice::Diagonal => return self.measured(Measured::Diagonal, damping, units),
            SurrogateChoice::Exact => return self.measured(Measured::Exact, damping, units),
        };
        if !transfer {
            return Ok(Surrogate::Identity { damping });
        }
        let layers = || units.iter().flatten().map(|l| &self.chain.layers[*l]);
        if layers().any(|l| l.transfer(&self.graph) == Transfer::TokenMixing) {
            return Ok(Surrogate::TokenMixing { damping });
        }
        let mut factors = Vec::with_capacity(units.len());
        for unit in units {
            factors.push(self.unit_factor(unit)?);
        }
        Ok(Surrogate::Transfer { factors, damping })
    }

    fn measured(
        &self,
        kind: Measured,
        damping: f64,
        units: &[Vec<usize>],
    ) -> Result<Surrogate, VectorizeError> {
        let input = self.chain.layers[units[0][0]].input;
        let refuse = |reason: &str| Err(Mismatch::at_value(&self.graph, input, reason).into());
        if self.graph.ty(input).is_some_and(|t| t.dtype.size() < DType::F32.size()) {
            return refuse("differences of the layers need states of float32");
        }
        if self.chain.caches.iter().any(|c| units.iter().flatten().any(|l| *l == c.layer)) {
            return refuse(
                "differences of the layers would need caches of their own: use an export without past",
            );
        }
        Ok(Surrogate::Measured { kind, damping })
    }

    /// The product over the skip path's maps of the mean over the unit's layers.
    fn unit_factor(&self, unit: &[usize]) -> Result<Matrix, VectorizeError> {
        let events = self.chain.layers[unit[0]].events.len();
        let streams = self.chain.streams.count;
        let mut product = Matrix::diagonal(streams, 1.0);
        for e in 0..events {
            let mut sum = Matrix::diagonal(streams, 0.0);
            for layer in unit {
                let Some(event) = self.chain.layers[*layer].events.get(e) else { continue };
                let transfer = Transfer::of(&self.graph, event);
                let refuse = || {
                    let reason = "surrogate=transfer needs a skip path that scales the state by a constant, \
                                  or mixes its streams by a constant matrix";
                    Mismatch::at_value(&self.graph, event.output(), reason)
                };
                sum = sum.plus(&transfer.matrix(streams).ok_or_else(refuse)?);
            }
            product = sum.scaled(1.0 / unit.len() as f64).times(&product);
        }
        Ok(product)
    }
}

struct Solver<'a> {
    context: &'a SegmentContext<'a>,
    plan: &'a Parallel,
    surrogate: &'a Surrogate,
    predictions: &'a Predictions,
    escapes: &'a [Escape],
    /// Those of which every evaluation has its own.
    caches: &'a [Cache],
    input: ValueId,
    first: usize,
}

/// Old estimates of the units' outputs.
#[derive(Clone, Copy)]
enum Estimates {
    /// The segment's input, for every unit.
    Input,
    /// `[C, ..]`.
    Units(ValueId),
}

impl Solver<'_> {
    fn count(&self) -> usize {
        self.context.units.len()
    }

    /// The layer's unit and how many of the unit's layers lie at or before it.
    fn place(&self, after_layer: usize) -> (usize, usize) {
        let offset = after_layer - 1 - self.first;
        (offset / self.plan.fused, offset % self.plan.fused + 1)
    }

    /// Original states and what replaces them: the taps, then the segment's last state.
    fn solve(&self, graph: &mut Graph, taps: &[Tap]) -> Result<Vec<(ValueId, ValueId)>, VectorizeError> {
        let mut partial: PartialTaps = BTreeMap::new();
        let mut places = Vec::new();
        for tap in taps {
            let (unit, keep) = self.place(tap.after_layer);
            let inside = keep < self.plan.fused && self.plan.tap == TapRule::Partial;
            if inside && partial.insert(unit, keep).is_some_and(|other| other != keep) {
                let reason = "two states inside one fused unit are read: use tap=unit or smaller units";
                return Err(Mismatch::at_value(graph, tap.value, reason).into());
            }
            places.push((tap.value, unit, inside));
        }
        let last_layer = self.context.units.last().and_then(|u| u.last()).copied().unwrap_or(self.first);
        let old_output = self.context.chain.layers[last_layer].output;
        let input = Batched::shared(self.input);
        if self.count() == 1 {
            let out = self.last(graph, input, &partial)?;
            let mut replaced = replacements(graph, self.escapes, &out.escaped)?;
            for (value, _, inside) in places {
                let new = if inside { out.partial.get(&0).copied() } else { None };
                replaced.push((value, new.unwrap_or(out.outputs)));
            }
            replaced.push((old_output, out.outputs));
            return Ok(replaced);
        }
        let mut old = match self.plan.init {
            Init::H0 => Estimates::Input,
            Init::BatchForward => Estimates::Units(self.before_last(graph, input, 0)?.outputs),
            Init::Preheat => Estimates::Units(self.preheated(graph)?),
            Init::Warm => Estimates::Units(self.warmed(graph)?),
        };
        for k in 1..self.plan.effective_iterations() {
            let input = self.unit_inputs(graph, old)?;
            let f = self.before_last(graph, input, k)?;
            old = Estimates::Units(self.correct(graph, &f, old, false)?);
        }
        let input = self.unit_inputs(graph, old)?;
        let out = self.last(graph, input, &partial)?;
        let mut replaced = replacements(graph, self.escapes, &out.escaped)?;
        replaced.extend(self.finish(graph, &out, old, &places, old_output)?);
        Ok(replaced)
    }

    /// The units' evaluations number `iteration` (0 is the first guess), with caches of their own if each
    /// evaluation has some.
    fn before_last(
        &self,
        graph: &mut Graph,
        input: Batched,
        iteration: usize,
    ) -> Result<Evaluated, VectorizeError> {
        let own = own_inputs(graph, self.caches, iteration);
        let kept: Vec<Escape> = self
            .escapes
            .iter()
            .filter(|e| self.caches.iter().any(|c| c.output == e.value))
            .copied()
            .collect();
        let transfers = self.mixes_tokens() && iteration > 0;
        let wanted = Wanted { taps: &PartialTaps::new(), escapes: &kept, own: &own, transfers };
        let out = evaluate(graph, self.context, input, &wanted)?;
        own_outputs(graph, self.caches, &out.escaped, iteration)?;
        Ok(out)
    }

    fn mixes_tokens(&self) -> bool {
        matches!(self.surrogate, Surrogate::TokenMixing { .. }) && self.count() > 1
    }

    /// The evaluation whose results leave the segment.
    fn last(
        &self,
        graph: &mut Graph,
        input: Batched,
        taps: &PartialTaps,
    ) -> Result<Evaluated, VectorizeError> {
        let own = OwnInputs::new(graph, HashMap::new());
        let transfers = self.mixes_tokens();
        evaluate(graph, self.context, input, &Wanted { taps, escapes: self.escapes, own: &own, transfers })
    }

    /// What each unit reads: `h` for the first, the estimate of the unit before for the others.
    fn unit_inputs(&self, graph: &mut Graph, old: Estimates) -> Result<Batched, VectorizeError> {
        let Estimates::Units(s) = old else { return Ok(Batched::shared(self.input)) };
        let h = graph.add(Op::Unsqueeze { axes: vec![0] }, &[self.input])?;
        let (start, end) = (graph.ints(&[0]), graph.ints(&[self.count() as i64 - 1]));
        let before = graph.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[s, start, end])?;
        Ok(Batched::lanes(graph.add(Op::Concat { axis: 0 }, &[h, before])?))
    }

    fn finish(
        &self,
        graph: &mut Graph,
        out: &Evaluated,
        old: Estimates,
        places: &[(ValueId, usize, bool)],
        old_output: ValueId,
    ) -> Result<Vec<(ValueId, ValueId)>, VectorizeError> {
        let warm = self.plan.init == Init::Warm;
        if places.is_empty() && !warm {
            return Ok(vec![(old_output, self.correct(graph, out, old, true)?)]);
        }
        let all = self.correct(graph, out, old, false)?;
        if warm {
            self.keep_warm(graph, all)?;
        }
        let mut replaced = Vec::new();
        for (value, unit, inside) in places {
            let mut new = self.row(graph, all, *unit)?;
            if let Some(partial) = out.partial.get(unit).filter(|_| *inside) {
                // The partial sum plus what the correction adds to the whole unit.
                let uncorrected = self.row(graph, out.outputs, *unit)?;
                let correction = graph.add(Op::Binary(Binary::Sub), &[new, uncorrected])?;
                new = graph.add(Op::Binary(Binary::Add), &[*partial, correction])?;
            }
            replaced.push((*value, new));
        }
        replaced.push((old_output, self.row(graph, all, self.count() - 1)?));
        Ok(replaced)
    }

    fn row(&self, graph: &mut Graph, v: ValueId, unit: usize) -> Result<ValueId, VectorizeError> {
        let (start, end) = (graph.ints(&[unit as i64]), graph.ints(&[unit as i64 + 1]));
        let row = graph.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[v, start, end])?;
        Ok(graph.add(Op::Squeeze { axes: vec![0] }, &[row])?)
    }

    fn correct(
        &self,
        graph: &mut Graph,
        out: &Evaluated,
        old: Estimates,
        last_only: bool,
    ) -> Result<ValueId, VectorizeError> {
        let f = out.outputs;
        let s = match old {
            Estimates::Input => self.input,
            Estimates::Units(s) => s,
        };
        let matrix = match self.surrogate {
            Surrogate::None => {
                return if last_only { self.row(graph, f, self.count() - 1) } else { Ok(f) };
            }
            Surrogate::Measured { kind, damping } => {
                return self.correct_measured(graph, f, old, (*kind, *damping), last_only);
            }
            Surrogate::Identity { damping } if *damping == 1.0 => None,
            Surrogate::Identity { damping } => {
                Some(recurrence(&vec![Matrix::diagonal(1, 1.0); self.count()], *damping))
            }
            Surrogate::Transfer { factors, damping } => Some(recurrence(factors, *damping)),
            Surrogate::TokenMixing { damping } => {
                let Some(mut a) = out.transfers else {
                    return Err(Mismatch::at_value(graph, f, "the mixing of the streams is not known").into());
                };
                // Mixing may be computed more finely than the state.
                let dtype = graph.ty(f).map_or(DType::F32, |t| t.dtype);
                a = cast(graph, a, dtype)?;
                if *damping != 1.0 {
                    let factor = graph.float_scalar(dtype, *damping);
                    a = graph.add(Op::Binary(Binary::Mul), &[a, factor])?;
                }
                let form = CorrectionForm::Scan { stream_axis: self.context.chain.streams.axis as u32 + 1 };
                let op = Op::Correction(Correction { form, last_only });
                return Ok(graph.add_named("mixing_newton", op, &[f, s, a])?);
            }
        };
        let Some(matrix) = matrix else {
            let op = Op::Correction(Correction { form: CorrectionForm::Prefix, last_only });
            return Ok(graph.add_named("identity_newton", op, &[f, s])?);
        };
        let n = matrix.len().isqrt();
        let tensor =
            Tensor::from_vec(vec![n, n], matrix).map_err(|e| Mismatch::at_value(graph, f, e.to_string()))?;
        let mut t = graph.constant(tensor);
        if let Some(to) = graph.ty(f).map(|t| t.dtype) {
            t = cast(graph, t, to)?;
        }
        let form = match (n / self.count(), self.context.chain.streams) {
            (1, _) => CorrectionForm::Linear { streams: 1, stream_axis: 0 },
            (count, streams) => {
                CorrectionForm::Linear { streams: count as u32, stream_axis: streams.axis as u32 + 1 }
            }
        };
        let op = Op::Correction(Correction { form, last_only });
        Ok(graph.add_named("linear_newton", op, &[f, s, t])?)
    }
}

/// `T` of METHOD §1: blocks `T[j, i] = a^{j-i} A_j ··· A_{i+1}` for `i ≤ j`, row-major `[C·S, C·S]`.
fn recurrence(factors: &[Matrix], damping: f64) -> Vec<f32> {
    let streams = factors.first().map_or(1, Matrix::size);
    let n = factors.len() * streams;
    let mut t = vec![0f32; n * n];
    for i in 0..factors.len() {
        let mut product = Matrix::diagonal(streams, 1.0);
        for j in i..factors.len() {
            if j > i {
                product = factors[j].times(&product).scaled(damping);
            }
            for (at, x) in product.data().iter().enumerate() {
                t[(j * streams + at / streams) * n + i * streams + at % streams] = *x as f32;
            }
        }
    }
    t
}
