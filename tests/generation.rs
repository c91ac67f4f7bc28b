//! Cached generation against the forward over the whole sequence, under the plain evaluator and on the GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use snlp::error::Error;
use snlp::language::decoder::{Decoder, Forward, Stepper};
use snlp::language::generate::{Draft, Request, generate, speculate};
use snlp::language::inputs::token_feeds;
use snlp::language::sampling::Sampling;
use snlp::passes::eval::eval_graph;
use snlp::passes::ir::{Graph, Tensor, ValueId};
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

/// The first adapter with the kernels that suit it, and with those for hardware; opened once.
fn gpus(stepper: &Stepper) -> Vec<OnGpu> {
    static GPUS: OnceLock<Vec<Arc<Gpu>>> = OnceLock::new();
    let gpus = GPUS.get_or_init(|| {
        if adapters().is_empty() {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "REQUIRE_GPU is set, but there is no adapter");
            eprintln!("skipped on the GPU: there is no adapter");
            return vec![];
        }
        let choice = |hardware_kernels| AdapterChoice { hardware_kernels, ..AdapterChoice::any() };
        [false, true].map(|hardware| Gpu::open(&choice(hardware)).expect("opens")).to_vec()
    });
    let options = || Options { states: stepper.states.clone(), ..Options::default() };
    let session = |gpu| Session::new(gpu, stepper.graph.clone(), options()).expect("is valid");
    gpus.iter().map(|gpu| OnGpu(session(gpu))).collect()
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
        let on_gpu = gpus(&stepper);
        let mut ways: Vec<(&str, &dyn Forward)> = vec![("evaluator", &plain)];
        let names = ["GPU", "kernels for hardware"];
        ways.extend(on_gpu.iter().zip(names).map(|(g, name)| (name, g as &dyn Forward)));
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

/// The graph that gives `output` of a value that takes the place of `input`.
fn part(source: &Source, input: Option<ValueId>, output: Option<ValueId>) -> Graph {
    let mut graph = source.graph.clone();
    if let Some(output) = output {
        graph.outputs.clear();
        graph.add_output("state", output);
    }
    if let Some(input) = input {
        let given = graph.add_input("given", graph.ty(input).unwrap().clone());
        graph.replace_uses(input, given).unwrap();
    }
    graph.remove_dead();
    graph
}

/// METHOD §3, `warm`, with a unit for each layer: row by row, each iteration with its own keys and values, as layers
/// evaluated alone on all rows so far. Logits of every row.
fn warm_reference(source: &Source, iterations: usize, tokens: &[u32]) -> Vec<f32> {
    let chain = source.chain().unwrap();
    let units = chain.layers.len();
    let width = chain.hidden.known_size().unwrap();
    let layers: Vec<Graph> =
        chain.layers.iter().map(|l| part(source, Some(l.input), Some(l.output))).collect();
    let (head, tail) = (part(source, None, Some(chain.input)), part(source, Some(chain.output()), None));
    let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
    let run = |graph: &Graph, given: &[f32], rows: usize| {
        let ids = Tensor::from_vec(vec![1, rows], ids[..rows].to_vec()).unwrap();
        let given = Tensor::from_vec(vec![1, given.len() / width, width], given.to_vec()).unwrap();
        let name = source.graph.value(source.graph.inputs()[0]).name.clone().unwrap();
        evaluate(graph, &[(name, ids), ("given".into(), given)])[0].1.to_f32()
    };
    let h = run(&head, &[], tokens.len());
    let vocabulary = run(&tail, &h, tokens.len()).len() / tokens.len();
    // estimates[k][j]: what unit j gave after k iterations, one row for each token.
    let mut estimates = vec![vec![Vec::<f32>::new(); units]; iterations + 1];
    let mut logits = vec![];
    for t in 0..tokens.len() {
        let row = t * width..(t + 1) * width;
        let guesses: Vec<Vec<f32>> = match t.checked_sub(1) {
            None => vec![h[row.clone()].to_vec(); units],
            Some(before) => {
                let last = |e: &Vec<f32>| e[before * width..(before + 1) * width].to_vec();
                estimates[iterations].iter().map(last).collect()
            }
        };
        estimates[0].iter_mut().zip(guesses).for_each(|(e, guess)| e.extend(guess));
        for k in 0..iterations {
            let mut moved = vec![0f32; width];
            for j in 0..units {
                let inputs = if j == 0 { h[..row.end].to_vec() } else { estimates[k][j - 1].clone() };
                let f = run(&layers[j], &inputs, t + 1)[row.clone()].to_vec();
                let new: Vec<f32> = f.iter().zip(&moved).map(|(f, m)| f + m).collect();
                moved = new.iter().zip(&estimates[k][j][row.clone()]).map(|(new, old)| new - old).collect();
                estimates[k + 1][j].extend(new);
            }
        }
        logits.extend_from_slice(&run(&tail, &estimates[iterations][units - 1], t + 1)[t * vocabulary..]);
    }
    logits
}

#[test]
fn warm_segments_start_from_the_token_before() {
    let source = source("llama-tiny-past/model.onnx");
    let tokens = tokens(7);
    for iterations in [1, 2, 4] {
        let plan = format!("4xF1[k={iterations},init=warm]");
        let stepper = cached(&source, &plan);
        let expected = warm_reference(&source, iterations, &tokens);
        let scale = expected.iter().fold(1f32, |m, x| m.max(x.abs()));
        let plain = Plain::new(&stepper);
        let on_gpu = gpus(&stepper);
        let mut ways: Vec<&dyn Forward> = vec![&plain];
        ways.extend(on_gpu.iter().map(|g| g as &dyn Forward));
        for forward in ways {
            // A second sequence starts anew.
            for _ in 0..2 {
                let mut decoder = Decoder::new(&stepper, forward);
                let rows =
                    tokens.iter().flat_map(|t| decoder.take(&[*t], true).expect("takes").row(0).to_vec());
                let rows: Vec<f32> = rows.collect();
                assert_eq!(rows.len(), expected.len());
                let worst = rows.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(worst <= 1e-4 * scale, "{plan}: {worst} of {scale}");
            }
        }
        let differs = |plan: &str| {
            let other = whole(&source, plan, &tokens);
            other.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-2 * scale)
        };
        assert_eq!(differs("sequential"), iterations < 4);
        assert_eq!(differs(&format!("4xF1[k={iterations}]")), iterations < 4);
    }
    let warm = source.place(&parse_plan("4xF1[init=warm]").unwrap()).unwrap();
    let refused = source.rewrite(&warm).err().expect("only steps have a token before").report();
    assert!(refused.contains("snlp generate"), "{refused}");
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
