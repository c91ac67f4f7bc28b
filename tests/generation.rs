//! Cached generation against the forward over the whole sequence, under the plain evaluator and on the GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use snlp::error::Error;
use snlp::language::decoder::{Decoder, Forward, Stepper};
use snlp::language::generate::{Draft, Request, generate, speculate};
use snlp::language::inputs::token_feeds;
use snlp::language::sampling::Sampling;
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{Graph, Tensor};
use snlp::runtime::schedule::Options;
use snlp::runtime::{AdapterChoice, Gpu, Session, adapters};
use snlp::source::{Source, parse_plan};

const CAPACITY: usize = 32;

fn source(fixture: &str) -> Source {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
    Source::read(&path).expect("reads").of_one_sequence().expect("takes one sequence")
}

fn evaluate(graph: &Graph, inputs: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let given: BTreeMap<_, _> = graph
        .inputs()
        .iter()
        .map(|v| {
            let name = graph.value(*v).name.as_deref().expect("inputs have names");
            (*v, inputs.iter().find(|(n, _)| n == name).expect("given").1.clone())
        })
        .collect();
    let results = eval_graph(graph, &given).expect("evaluates");
    graph.outputs.iter().map(|o| o.name.clone()).zip(results).collect()
}

/// A stepper under the plain evaluator.
struct Plain<'s> {
    stepper: &'s Stepper,
    states: RefCell<Vec<(String, Tensor)>>,
}

impl<'s> Plain<'s> {
    /// Caches begin with NaN: what is not written must not be read.
    fn new(stepper: &'s Stepper) -> Self {
        let graph = &stepper.graph;
        let poisoned = |name: &String| {
            let shape =
                graph.ty(graph.input(name).unwrap()).unwrap().known_shape().expect("caches have a size");
            let data = vec![f32::NAN; shape.iter().product()];
            (name.clone(), Tensor::from_vec(shape, data).unwrap())
        };
        let states = stepper.states.iter().map(|(before, _)| poisoned(before)).collect();
        Plain { stepper, states: RefCell::new(states) }
    }
}

impl Forward for Plain<'_> {
    fn forward(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
        let mut states = self.states.borrow_mut();
        let all: Vec<_> = inputs.iter().chain(states.iter()).cloned().collect();
        let outputs = evaluate(&self.stepper.graph, &all);
        for ((_, state), (_, after)) in states.iter_mut().zip(&self.stepper.states) {
            *state = outputs.iter().find(|(name, _)| name == after).expect("written").1.clone();
        }
        Ok(outputs)
    }
}

struct OnGpu(Session);

impl Forward for OnGpu {
    fn forward(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
        Ok(self.0.run(inputs).expect("runs"))
    }
}

fn gpu(stepper: &Stepper) -> Option<OnGpu> {
    if adapters().is_empty() {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "REQUIRE_GPU is set, but there is no adapter");
        eprintln!("skipped on the GPU: there is no adapter");
        return None;
    }
    let gpu = Gpu::open(&AdapterChoice { substring: None, allow_software: true }).expect("opens");
    let options = Options { states: stepper.states.clone(), ..Options::default() };
    Some(OnGpu(Session::new(&gpu, stepper.graph.clone(), options).expect("is valid")))
}

fn cached(source: &Source, plan: &str) -> Stepper {
    let placed = source.place(&parse_plan(plan).expect("parses")).expect("fits");
    match Stepper::new(source, &placed, CAPACITY).expect("applies") {
        (stepper, None) => stepper,
        (_, Some(why)) => panic!("{plan}: {why}"),
    }
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 37 + 11) % 90).collect()
}

/// Logits of the forward over all tokens.
fn whole(source: &Source, plan: &str, tokens: &[u32]) -> Vec<f32> {
    let placed = source.place(&parse_plan(plan).expect("parses")).expect("fits");
    let graph = source.rewrite(&placed).expect("applies").graph;
    let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
    let feeds = token_feeds(&graph, &Tensor::from_vec(vec![1, ids.len()], ids).unwrap()).expect("feeds");
    evaluate(&graph, &feeds)[0].1.to_f32()
}

/// Takes the tokens in pieces, with wrong ones in between that are taken back; the logits of all.
fn in_pieces(stepper: &Stepper, forward: &dyn Forward, tokens: &[u32]) -> Vec<f32> {
    let mut decoder = Decoder::new(stepper, forward);
    let mut rows = vec![];
    let mut take = |sequence: &[u32], kept: usize| {
        let logits = decoder.follow(sequence, true).expect("follows").expect("new tokens");
        assert_eq!(logits.count(), sequence.len() - rows.len() / logits.vocabulary());
        (0..kept).for_each(|i| rows.extend_from_slice(logits.row(i)));
    };
    take(&tokens[..1], 1);
    take(&tokens[..2], 1);
    take(&tokens[..7], 5);
    take(&[&tokens[..8], &[1, 2, 3]].concat(), 1);
    take(&tokens[..9], 1);
    take(tokens, tokens.len() - 9);
    rows
}

fn check(fixture: &str, plans: &[&str]) {
    let source = source(fixture);
    let tokens = tokens(14);
    for plan in plans {
        let stepper = cached(&source, plan);
        let expected = whole(&source, plan, &tokens);
        let scale = expected.iter().fold(1f32, |m, x| m.max(x.abs()));
        let plain = Plain::new(&stepper);
        let on_gpu = gpu(&stepper);
        let mut ways: Vec<(&str, &dyn Forward)> = vec![("evaluator", &plain)];
        ways.extend(on_gpu.as_ref().map(|g| ("GPU", g as &dyn Forward)));
        for (way, forward) in ways {
            let found = in_pieces(&stepper, forward, &tokens);
            assert_eq!(found.len(), expected.len(), "{fixture} {plan} {way}");
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= 1e-4 * scale, "{fixture} {plan} {way}: {worst} of {scale}");
        }
    }
}

#[test]
fn steps_compute_the_rows_of_the_forward() {
    check("nano/model.onnx", &["sequential", "6xF1", "3xF2[k=2,init=batch_fwd]", "s4 2*1xF2 4xF1[k=2]"]);
}

#[test]
fn exports_with_past_and_others_decode_with_caches() {
    check("llama-tiny-past/model.onnx", &["sequential", "1xF2"]);
}

fn written(source: &Source, plan: Option<&str>, sampling: &Sampling, seed: u64) -> Vec<u32> {
    let model = cached(source, "sequential");
    let forward = Plain::new(&model);
    let mut decoder = Decoder::new(&model, &forward);
    let request =
        Request { prompt: &tokens(5), count: 16, sampling, seed, reader: &mut |_| ControlFlow::Continue(()) };
    let Some(plan) = plan else { return generate(&mut decoder, request).expect("generates").tokens };
    let draft = cached(source, plan);
    let drafts = Plain::new(&draft);
    let mut drafting = Decoder::new(&draft, &drafts);
    let kinds = [Draft::Fixed(1), Draft::Fixed(3), Draft::Fixed(8), Draft::Adaptive];
    let kind = kinds[seed as usize % kinds.len()];
    let made = speculate(&mut decoder, &mut drafting, kind, request).expect("speculates");
    let s = made.speculation.expect("speculated");
    assert!(s.accepted <= s.drafted && s.accepted + s.rounds >= 16, "{s:?}");
    made.tokens
}

#[test]
fn speculation_writes_what_the_model_alone_would() {
    let source = source("nano/model.onnx");
    let greedy = Sampling::default();
    let alone = written(&source, None, &greedy, 0);
    assert_eq!(alone.len(), 16);
    for (seed, plan) in ["6xF1", "12xF1", "3xF2", "s6 1xF6"].into_iter().enumerate() {
        assert_eq!(written(&source, Some(plan), &greedy, seed as u64), alone, "{plan}");
    }
}
