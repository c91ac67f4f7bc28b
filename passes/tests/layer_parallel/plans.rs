//! Random plans on random models against the reference.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use snlp_passes::analysis::{Chain, find_chain};
use snlp_passes::ir::{DType, Graph, Tensor};
use snlp_passes::plan::{Init, Parallel, Plan, Segment, SurrogateChoice, TapRule};
use snlp_passes::rewrite::{
    ParallelizeError, Prediction, Predictions, clean_up, parallelize, parallelize_with,
};

use crate::build::build;
use crate::reference::{forward, largest_state};
use crate::spec::{Activation, INITS, Model, Placement, Spec, calibrated, fit, segments, specs};
use crate::{agree, cases, run, text};

type Outputs = BTreeMap<String, Vec<f64>>;

/// A model made ready for plans.
pub struct Prepared {
    pub model: Model,
    pub graph: Graph,
    pub chain: Chain,
    pub inputs: BTreeMap<String, Tensor>,
}

impl Prepared {
    pub fn new(spec: &Spec) -> Self {
        let model = Model::new(spec);
        let (graph, inputs) = build(&model);
        Prepared::with(model, graph, inputs)
    }

    fn with(model: Model, mut graph: Graph, inputs: BTreeMap<String, Tensor>) -> Self {
        clean_up(&mut graph).expect("cleans up");
        let chain = find_chain(&graph).expect("has a chain");
        Prepared { model, graph, chain, inputs }
    }

    pub fn rewritten(&self, plan: &[Segment]) -> Result<Graph, ParallelizeError> {
        let placed = Plan { segments: plan.to_vec() }.place(self.chain.layers.len()).expect("fits");
        let mut graph = parallelize_with(&self.graph, &self.chain, &placed, &self.predictions())?.graph;
        clean_up(&mut graph).expect("cleans up");
        Ok(graph)
    }

    fn predictions(&self) -> Predictions {
        let spec = &self.model.spec;
        let tensor = |shape: &[usize], data: Vec<f64>| {
            Tensor::from_vec(shape.to_vec(), data.iter().map(|x| *x as f32).collect()).expect("fits")
        };
        let of_layer = |layer: usize| {
            let [bias, down, up] = calibrated(spec, layer);
            let d = spec.hidden;
            Prediction { bias: tensor(&[d], bias), down: tensor(&[d, 2], down), up: tensor(&[2, d], up) }
        };
        (0..spec.layers.len()).map(|layer| (layer, of_layer(layer))).collect()
    }

    fn outputs(&self, plan: &[Segment]) -> Result<Outputs, TestCaseError> {
        let graph = self.rewritten(plan).map_err(|e| TestCaseError::fail(e.to_string()))?;
        Ok(run(&graph, &self.inputs))
    }

    /// Rounding that f32 and f64 allow; the matrices of corrections are f32 in both.
    fn tolerance(&self) -> f64 {
        if self.model.spec.dtype == DType::F64 { 1e-6 } else { 1e-4 }
    }

    pub fn check(&self, what: &str, expected: &Outputs, actual: &Outputs) -> Result<(), TestCaseError> {
        agree(what, expected, actual, self.tolerance()).map_err(TestCaseError::fail)
    }
}

/// The documented reason for which a plan must be refused, if there is one.
pub fn refusal(spec: &Spec, plan: &[Segment]) -> Option<&'static str> {
    let covered: usize = plan.iter().map(Segment::layers).sum();
    let mut first = spec.layers.len() - covered;
    let mut refused = None;
    for segment in plan {
        if let Segment::Parallel(p) = segment {
            refused = refused.or_else(|| segment_refusal(spec, p, first));
        }
        first += segment.layers();
    }
    refused
}

fn segment_refusal(spec: &Spec, p: &Parallel, first: usize) -> Option<&'static str> {
    if spec.placement == Placement::Post && p.fused > 1 {
        return Some("a normalisation lies on the skip path");
    }
    if spec.placement == Placement::Post && p.surrogate == SurrogateChoice::Transfer {
        return Some("surrogate=transfer needs a skip path that scales the state by a constant");
    }
    let mut inside: Vec<usize> = Vec::new();
    for tap in spec.taps.iter().filter(|t| t.after_layer > first && t.after_layer < first + p.layers()) {
        let offset = tap.after_layer - first;
        if p.tap == TapRule::Partial && !offset.is_multiple_of(p.fused) {
            if inside.contains(&(offset / p.fused)) {
                return Some("two states inside one fused unit are read");
            }
            inside.push(offset / p.fused);
        }
    }
    let skeleton = |l: usize| (spec.layers[l].map.is_some(), spec.layers[l].blocks.joins());
    let alike = |unit: usize| {
        let start = first + unit * p.fused;
        (start..start + p.fused).all(|l| skeleton(l) == skeleton(start))
    };
    let odd = (0..p.units).any(|u| !alike(u));
    odd.then_some("cannot be fused: they differ in the number or order of sub-blocks")
}

#[test]
fn plans_agree_with_the_reference() {
    let (applied, refused) = (Cell::new(0), Cell::new(0));
    let plans = (specs(8), segments(4));
    cases(128, &plans, |(spec, raw)| {
        let prepared = Prepared::new(&spec);
        let plan = fit(&raw, spec.layers.len());
        let graph = match (prepared.rewritten(&plan), refusal(&spec, &plan)) {
            (Err(e), Some(reason)) if chain_of(&e).contains(reason) => {
                refused.set(refused.get() + 1);
                return Ok(());
            }
            (Err(e), expected) => {
                return Err(TestCaseError::fail(format!("refused: {}, expected {expected:?}", chain_of(&e))));
            }
            (Ok(_), Some(reason)) => return Err(TestCaseError::fail(format!("not refused: {reason}"))),
            (Ok(graph), None) => graph,
        };
        applied.set(applied.get() + 1);
        let expected = forward(&prepared.model, &plan);
        let what = Plan { segments: plan }.to_string();
        prepared
            .check(&what, &expected, &run(&graph, &prepared.inputs))
            .map_err(|e| TestCaseError::fail(format!("{e}\n{}", text(&graph))))
    });
    let (applied, refused) = (applied.get(), refused.get());
    assert!(refused * 4 < applied, "{refused} plans refused, {applied} applied");
}

/// An error with its sources.
fn chain_of(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut at = e.source();
    while let Some(source) = at {
        text = format!("{text}: {source}");
        at = source.source();
    }
    text
}

#[test]
fn the_sequential_forward_is_the_reference_s_and_of_order_one() {
    cases(64, &specs(8), |spec| {
        let prepared = Prepared::new(&spec);
        let largest = largest_state(&prepared.model);
        prop_assert!((0.05..50.0).contains(&largest), "states reach {largest}");
        let expected = forward(&prepared.model, &[]);
        let (original, inputs) = build(&prepared.model);
        prepared.check("original", &expected, &run(&original, &inputs))?;
        prepared.check("cleaned up", &expected, &run(&prepared.graph, &inputs))
    });
}

#[test]
fn sequential_plans_change_nothing() {
    cases(32, &(specs(6), 0usize..=6), |(spec, n)| {
        let prepared = Prepared::new(&spec);
        let layers = spec.layers.len();
        for plan in [vec![], vec![Segment::Sequential(n.min(layers))]] {
            let placed = Plan { segments: plan }.place(layers).expect("fits");
            let out = parallelize(&prepared.graph, &prepared.chain, &placed).expect("applies");
            prop_assert_eq!(text(&out.graph), text(&prepared.graph));
            prop_assert_eq!(out.corrections, 0);
        }
        Ok(())
    });
}

#[test]
fn one_unit_per_layer_and_as_many_iterations_are_sequential() {
    let options = (0u8..6, 0usize..3, 0.0f64..0.9, 0usize..4);
    cases(64, &(specs(6), options), |(spec, (surrogate, init, elk, prefix))| {
        let prepared = Prepared::new(&spec);
        let units = spec.layers.len() - prefix.min(spec.layers.len() - 1);
        let mut p = Parallel::new(units, 1);
        p.iterations = units;
        p.elk = elk;
        p.init = INITS[init];
        p.surrogate = match surrogate {
            0 => SurrogateChoice::Jacobi,
            1 if spec.placement == Placement::Pre => SurrogateChoice::Transfer,
            2 => SurrogateChoice::Diagonal,
            3 => SurrogateChoice::Exact,
            _ => SurrogateChoice::Auto,
        };
        let plan = [Segment::Parallel(p)];
        let sequential = run(&prepared.graph, &prepared.inputs);
        prepared.check("against sequential", &sequential, &prepared.outputs(&plan)?)
    });
}

/// Differences along the correction at a step that suits f32, against finer ones: of smooth layers, in f64.
#[test]
fn exact_corrections_are_newton_s() {
    let options = (1usize..=3, 1usize..=2, any::<bool>(), 0.0f64..0.5, any::<bool>());
    cases(48, &(specs(6), options), |(mut spec, (k, fused, batch, elk, avg))| {
        spec.dtype = DType::F64;
        spec.activation = Activation::GeluErf;
        let layers = spec.layers.len();
        let fused = if layers >= 2 * fused { fused } else { 1 };
        let mut p = Parallel::new(layers / fused, fused);
        (p.iterations, p.elk, p.avg) = (k, elk, avg);
        p.init = if batch { Init::BatchForward } else { Init::H0 };
        p.surrogate = SurrogateChoice::Exact;
        let plan = [Segment::Parallel(p)];
        if refusal(&spec, &plan).is_some() {
            return Ok(());
        }
        let prepared = Prepared::new(&spec);
        let (expected, actual) = (forward(&prepared.model, &plan), prepared.outputs(&plan)?);
        agree("exact", &expected, &actual, 1e-4).map_err(TestCaseError::fail)
    });
}

#[test]
fn iterations_beyond_the_units_change_nothing() {
    cases(32, &(specs(6), 1usize..=3, any::<bool>()), |(spec, more, batch)| {
        let prepared = Prepared::new(&spec);
        let mut p = Parallel::new(spec.layers.len(), 1);
        p.init = if batch { Init::BatchForward } else { Init::H0 };
        p.iterations = p.units;
        let exact = prepared.outputs(&[Segment::Parallel(p)])?;
        p.iterations += more;
        let beyond = prepared.outputs(&[Segment::Parallel(p)])?;
        prop_assert_eq!(exact, beyond);
        Ok(())
    });
}

#[test]
fn every_segment_of_one_layer_is_sequential() {
    cases(32, &(specs(6), any::<bool>()), |(spec, unit)| {
        let prepared = Prepared::new(&spec);
        let mut p = Parallel::new(1, 1);
        p.tap = if unit { TapRule::Unit } else { TapRule::Partial };
        let plan = vec![Segment::Parallel(p); spec.layers.len()];
        let sequential = run(&prepared.graph, &prepared.inputs);
        prepared.check("1xF1 everywhere", &sequential, &prepared.outputs(&plan)?)
    });
}

#[test]
fn a_state_read_between_sub_blocks_keeps_its_layer_sequential() {
    let prepared = Prepared::new(&Spec::plain(4));
    let Prepared { model, mut graph, chain, inputs } = prepared;
    graph.add_output("inside", chain.layers[1].events[0].output());
    let expected = run(&graph, &inputs);
    let prepared = Prepared::with(model, graph, inputs);
    let found: Vec<_> = prepared.chain.taps.iter().map(|t| (t.after_layer, t.inside)).collect();
    assert_eq!(found, [(1, true)]);
    let pair = |first: usize| {
        vec![
            Segment::Parallel(Parallel::new(2, 1)),
            Segment::Sequential(prepared.chain.layers.len() - 2 - first),
        ]
    };
    for first in [0, 1] {
        let error = chain_of(&prepared.rewritten(&pair(first)).err().expect("refused"));
        assert!(error.contains("between the sub-blocks of layer 1 is read by output 'inside'"), "{error}");
    }
    let after = prepared.outputs(&pair(2)).expect("applies");
    assert_eq!(after["inside"], expected["inside"]);
    assert_ne!(after["y"], expected["y"]);
}

/// The skip path of a segment's first layer starts at what an earlier segment gave.
#[test]
fn the_transfer_surrogate_reads_factors_behind_an_earlier_segment() {
    for swaps in [0, u32::MAX] {
        let mut spec = Spec { swaps, ..Spec::plain(6) };
        for (i, layer) in spec.layers.iter_mut().enumerate() {
            layer.map = Some((0.6 + 0.1 * i as f64, 0.2));
        }
        let prepared = Prepared::new(&spec);
        let mut p = Parallel::new(3, 1);
        p.surrogate = SurrogateChoice::Transfer;
        let plan = vec![Segment::Parallel(p); 2];
        let actual = prepared.outputs(&plan).expect("applies");
        prepared.check("transfer", &forward(&prepared.model, &plan), &actual).expect("agrees");
    }
}
