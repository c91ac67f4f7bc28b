//! How far each layer's state is off under a plan: cheap evidence of what a plan costs.
//!
//! ```text
//!   state after layer l, sequential  h_l ─┬─▶ ‖s_l − h_l‖ / ‖h_l‖, averaged over positions
//!   the same under the plan          s_l ─┘
//! ```
//!
//! Everything is computed where the model runs: only the errors are read back. States of all layers become
//! outputs, so the rewrite gives what stands for each of them.

use std::collections::{BTreeMap, BTreeSet};

use snlp::error::{Error, Kind};
use snlp::language::inputs::{logits_output, token_feeds};
use snlp::language::windows::Windows;
use snlp::passes::analysis::{Chain, find_chain};
use snlp::passes::ir::{Binary, Graph, GraphError, Op, Reduce, Tensor, ValueId};
use snlp::passes::plan::{PlacedPlan, Segment};
use snlp::passes::rewrite::{Predictions, merge, parallelize_with};
use snlp::preheat;
use snlp::source::Source;

use super::evaluate::Evaluation;
use super::html::Heat;
use super::ui::Ui;

/// Plans whose states are compared in one graph.
const TOGETHER: usize = 16;
/// Tokens that the evidence is gathered on, about.
const TOKENS: usize = 256;

/// Relative errors behind each layer; none where the plan leaves the state as it is, not a number where it has no
/// such state.
pub type StateErrors = Vec<Option<f64>>;

/// A model whose states are all outputs.
pub struct Tapped {
    graph: Graph,
    chain: Chain,
    predictions: Predictions,
    /// Whether a plan that has no state behind each layer is compared where its units end.
    at_ends: bool,
}

impl Tapped {
    /// Makes the states of a model outputs.
    ///
    /// # Errors
    /// When the model has no chain.
    pub fn of(source: &Source) -> Result<Tapped, Error> {
        let layers = &source.chain()?.layers;
        let (at, _) = logits_output(&source.graph)?;
        let mut graph = source.graph.clone();
        // The logits keep the graph what it is: the chain ends before them.
        graph.outputs = graph.outputs.get(at).cloned().into_iter().collect();
        for (i, layer) in layers.iter().enumerate() {
            graph.add_output(&format!("state.{i}"), layer.output);
        }
        graph.remove_dead();
        let chain = find_chain(&graph).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        let outputs = |chain: &Chain| chain.layers.iter().map(|l| l.output).collect::<Vec<_>>();
        if outputs(&chain) != layers.iter().map(|l| l.output).collect::<Vec<_>>() {
            return Err(Error::new(Kind::Internal, "the chain is another one when its states are read"));
        }
        // Where there are none, plans that start from them have no states to compare.
        let beside = preheat::beside(&source.path, source.model.info.fingerprint.sha256());
        let predictions = beside.ok().flatten().unwrap_or_default();
        Ok(Tapped { graph, chain, predictions, at_ends: false })
    }

    /// The states alone, under a plan; none when the chain cannot be rewritten so.
    fn states(&self, plan: &PlacedPlan) -> Option<Graph> {
        let plan = plan.clone().settle_caches(|_| false);
        let all = (0..self.chain.layers.len()).collect();
        self.states_behind(&plan, &all).or_else(|| {
            let ends = unit_ends(&plan);
            (self.at_ends && ends.len() < all.len()).then(|| self.states_behind(&plan, &ends))?
        })
    }

    /// The states behind some of the layers, under a plan.
    fn states_behind(&self, plan: &PlacedPlan, layers: &BTreeSet<usize>) -> Option<Graph> {
        let mut graph = self.graph.clone();
        let wanted = |name: &str| state_number(name).is_none_or(|l| layers.contains(&l));
        graph.outputs.retain(|o| wanted(&o.name));
        if !plan.is_sequential() {
            // What is not asked for is no tap.
            let again = (layers.len() < self.chain.layers.len()).then(|| find_chain(&graph).ok());
            let chain = match &again {
                Some(found) => found.as_ref().filter(|c| c.layers.len() == self.chain.layers.len())?,
                None => &self.chain,
            };
            graph = parallelize_with(&graph, chain, plan, &self.predictions).ok()?.graph;
        }
        graph.outputs.retain(|o| state_number(&o.name).is_some());
        graph.remove_dead();
        (graph.outputs.len() == layers.len()).then_some(graph)
    }
}

/// The layer behind which an output is the state.
fn state_number(output: &str) -> Option<usize> {
    output.strip_prefix("state.")?.parse().ok()
}

/// The layers at which a plan's units end; sequential layers are units of their own.
fn unit_ends(plan: &PlacedPlan) -> BTreeSet<usize> {
    let mut ends = BTreeSet::new();
    let mut layer = 0;
    for segment in &plan.segments {
        let each = match segment {
            Segment::Sequential(_) => 1,
            Segment::Parallel(p) => p.fused,
        };
        ends.extend((layer..layer + segment.layers()).skip(each.saturating_sub(1)).step_by(each.max(1)));
        layer += segment.layers();
    }
    ends
}

impl Evaluation<'_> {
    /// The errors of every layer's state under each plan, on the beginning of a window; none for a plan that
    /// the chain cannot be rewritten after.
    pub fn state_errors(
        &self,
        tapped: &Tapped,
        plans: &[PlacedPlan],
        windows: &Windows,
        ui: &Ui,
    ) -> Result<Vec<Option<StateErrors>>, Error> {
        let about = |e: Error| e.about(&self.source.path);
        let internal = |e: &dyn std::error::Error| Error::new(Kind::Internal, e.to_string());
        let length = windows.length().min(TOKENS);
        let rows = (TOKENS / length).clamp(1, windows.count());
        let ids: Vec<i64> =
            (0..rows).flat_map(|i| windows.inputs(i).get(..length).unwrap_or_default().to_vec()).collect();
        let ids = Tensor::from_vec(vec![rows, length], ids).map_err(|e| internal(&e))?;
        let feeds = token_feeds(&self.source.graph, &ids)?;
        let layers = tapped.chain.layers.len();
        let sequential = PlacedPlan { segments: vec![], layers };
        let base = tapped.states(&sequential).ok_or_else(|| Error::new(Kind::Internal, "no states"))?;
        let mut found = vec![];
        let bar = ui.progress(plans.len() as u64, "gathering evidence");
        for part in plans.chunks(TOGETHER) {
            let rewritten: Vec<Option<Graph>> = part.iter().map(|p| tapped.states(p)).collect();
            let graphs: Vec<Graph> =
                std::iter::once(&base).chain(rewritten.iter().flatten()).cloned().collect();
            let mut merged = merge(&graphs).map_err(|e| internal(&e))?;
            compare(&mut merged).map_err(|e| internal(&e))?;
            let runner = self.backend.load_one(merged).map_err(about)?;
            let outputs = runner.run(&feeds).map_err(about)?;
            let mut number = 0;
            for graph in &rewritten {
                number += usize::from(graph.is_some());
                let error = |layer: usize| {
                    let has = |g: &Graph| g.outputs.iter().any(|o| state_number(&o.name) == Some(layer));
                    if graph.as_ref().is_some_and(|g| !has(g)) {
                        return Some(f64::NAN);
                    }
                    let name = format!("{number}/{layer}");
                    let (_, tensor) = outputs.iter().find(|(n, _)| *n == name)?;
                    // A state that is nowhere near: NaN where both are zero or infinite.
                    let error = f64::from(*tensor.to_f32().first()?);
                    Some(if error.is_nan() { f64::INFINITY } else { error })
                };
                found.push(graph.as_ref().map(|_| (0..layers).map(error).collect()));
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(found)
    }

    /// The errors of plans as a picture, where the model has a chain.
    pub fn heat(&self, plans: &[PlacedPlan], windows: &Windows, ui: &Ui) -> Result<Option<Heat>, Error> {
        if plans.iter().all(PlacedPlan::is_sequential) {
            return Ok(None);
        }
        let tapped = Tapped { at_ends: true, ..Tapped::of(self.source)? };
        let errors = self.state_errors(&tapped, plans, windows, ui)?;
        let rows = plans.iter().zip(errors).filter_map(|(plan, e)| Some((plan.to_string(), e?))).collect();
        let caption = format!(
            "Relative error of the state behind each layer against the sequential model, averaged over the first \
             {} positions. Empty: the plan leaves the state as it is. Hatched: inside a fused unit, without a state of \
             its own.",
            windows.length().min(TOKENS)
        );
        Ok(Some(Heat { caption, rows }))
    }
}

/// Replaces the outputs `i/state.l` of merged graphs by the errors `i/l` against graph 0. States that are
/// computed alike are one value, and no output.
fn compare(graph: &mut Graph) -> Result<(), GraphError> {
    let outputs = std::mem::take(&mut graph.outputs);
    let of = |name: &str| {
        let (graph, state) = name.split_once('/')?;
        Some((graph.parse::<usize>().ok()?, state_number(state)?))
    };
    let numbered: Vec<_> = outputs.iter().filter_map(|o| Some((of(&o.name)?, o.value))).collect();
    let base: BTreeMap<usize, ValueId> =
        numbered.iter().filter(|((i, _), _)| *i == 0).map(|((_, layer), v)| (*layer, *v)).collect();
    for ((i, layer), value) in numbered {
        if let Some(ours) = base.get(&layer).filter(|ours| i > 0 && **ours != value) {
            let error = relative_error(graph, value, *ours)?;
            graph.add_output(&format!("{i}/{layer}"), error);
        }
    }
    graph.remove_dead();
    Ok(())
}

/// The mean over all vectors of features of `‖x − reference‖ / ‖reference‖`.
fn relative_error(graph: &mut Graph, x: ValueId, reference: ValueId) -> Result<ValueId, GraphError> {
    let rank = graph.shape(x).map_or(1, <[_]>::len);
    let norm = Op::Reduce { op: Reduce::L2, axes: vec![rank.saturating_sub(1)], keepdims: false };
    let difference = graph.add(Op::Binary(Binary::Sub), &[x, reference])?;
    let distance = graph.add(norm.clone(), &[difference])?;
    let size = graph.add(norm, &[reference])?;
    let ratio = graph.add(Op::Binary(Binary::Div), &[distance, size])?;
    let all = (0..rank.saturating_sub(1)).collect();
    graph.add(Op::Reduce { op: Reduce::Mean, axes: all, keepdims: false }, &[ratio])
}

#[cfg(test)]
mod tests {
    use super::*;
    use snlp::npz::read_npz;
    use snlp::passes::eval::eval_graph;
    use std::path::Path;

    fn evaluated(graph: &Graph, feeds: &[(String, Tensor)]) -> Vec<Tensor> {
        let named = |v: &ValueId| feeds.iter().find(|(n, _)| Some(n) == graph.value(*v).name.as_ref());
        let feeds = graph.inputs().iter().map(|v| (*v, named(v).expect("fed").1.clone())).collect();
        eval_graph(graph, &feeds).expect("evaluated")
    }

    /// The states of the bundled model under a plan.
    fn under(tapped: &Tapped, plan: &str) -> Graph {
        let plan = plan.parse().and_then(|p: snlp::passes::plan::Plan| p.place(12)).expect("a plan");
        tapped.states(&plan).expect("rewritten")
    }

    #[test]
    fn plans_that_fuse_many_layers_are_compared_where_their_units_end() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/nano/model.onnx");
        let source = Source::read(&path).expect("read");
        let tapped = Tapped::of(&source).expect("a chain");
        let plan = "s6 2xF3".parse().and_then(|p: snlp::passes::plan::Plan| p.place(12)).expect("a plan");
        assert!(tapped.states(&plan).is_none(), "one state inside a unit at most");
        let graph = Tapped { at_ends: true, ..tapped }.states(&plan).expect("rewritten");
        let behind: Vec<usize> = graph.outputs.iter().filter_map(|o| state_number(&o.name)).collect();
        assert_eq!(behind, [0, 1, 2, 3, 4, 5, 8, 11]);
    }

    #[test]
    fn errors_are_those_of_the_states_and_the_states_those_of_the_reference() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/nano");
        let source = Source::read(&folder.join("model.onnx")).expect("read");
        let golden = read_npz(&folder.join("golden.npz")).expect("read");
        let array = |name: &str| &golden.iter().find(|(n, _)| n == name).expect("there").1;
        let (tokens, hidden) = (16, 72);
        let ids = array("input_ids").to_i64().expect("integers")[..tokens].to_vec();
        let ids = Tensor::from_vec(vec![1, tokens], ids).expect("fits");
        let tapped = Tapped::of(&source).expect("a chain");
        let feeds = token_feeds(&source.graph, &ids).expect("feeds");
        let graphs = ["sequential", "s6 6xF1"].map(|plan| under(&tapped, plan));
        let states = |graph| evaluated(graph, &feeds).iter().map(Tensor::to_f32).collect::<Vec<_>>();

        let sequential = states(&graphs[0]);
        let trace = array("trace").to_f32();
        for (layer, state) in sequential.iter().enumerate() {
            // [13, 1, 48, 72], the chain's input first; causal, so fewer tokens change nothing.
            let expected = &trace[(layer + 1) * 48 * hidden..][..tokens * hidden];
            let worst = state.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 1e-3, "layer {layer}: {worst}");
        }

        let parallel = states(&graphs[1]);
        let mut merged = merge(&graphs).expect("merged");
        compare(&mut merged).expect("compared");
        let errors = evaluated(&merged, &feeds);
        let names: Vec<&str> = merged.outputs.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["1/6", "1/7", "1/8", "1/9", "1/10", "1/11"]);
        // The first unit starts from its true input and so is exact.
        assert!(errors[0].to_f32()[0] < 1e-5, "{:?}", errors[0].to_f32());
        for (name, error) in names.iter().zip(&errors).skip(1) {
            let layer: usize = name[2..].parse().expect("a number");
            let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let rows = parallel[layer].chunks(hidden).zip(sequential[layer].chunks(hidden));
            let ratios = rows.map(|(s, h)| {
                let difference: Vec<f32> = s.iter().zip(h).map(|(s, h)| s - h).collect();
                norm(&difference) / norm(h)
            });
            let expected = ratios.sum::<f64>() / tokens as f64;
            let found = f64::from(error.to_f32()[0]);
            assert!(expected > 1e-4 && (found / expected - 1.0).abs() < 1e-3, "{name}: {found}, {expected}");
        }
    }
}
