//! A causal model taken forward token by token: with caches where a step could be derived, by computing the
//! whole sequence again where not.

use snlp_passes::ir::{DType, Graph, Tensor, element_count};
use snlp_passes::plan::{Init, PlacedPlan};
use snlp_passes::rewrite::{DecodeError, DecodeStep, POSITION, clean_up_exact, decode_step};

use super::inputs::{logits_output, token_feeds, token_input};
use crate::error::{Error, Kind};
use crate::feeds::convert;
use crate::source::Source;

/// What outputs that a plan with `init=warm` adds are called by.
const WARM: &str = "warm.";

/// Tokens of a prompt that are taken in one forward.
const PREFILL: usize = 128;

/// Something that computes a graph's outputs; what stays with it (caches) stays from call to call.
pub trait Forward {
    /// Named outputs of named inputs.
    ///
    /// # Errors
    /// When the inputs do not fit or the computation fails.
    fn forward(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error>;
}

/// A graph that takes a sequence forward.
pub struct Stepper {
    /// What is to run.
    pub graph: Graph,
    /// Inputs that must stay where it runs, each with the output that takes its place.
    pub states: Vec<(String, String)>,
    tokens: String,
    dtype: DType,
    logits: String,
    /// Tokens before the new ones that a step reads; `None` where the whole sequence is computed again.
    lookback: Option<usize>,
    capacity: usize,
}

impl Stepper {
    /// A plan of a model of one sequence ([`Source::of_one_sequence`]), for sequences of at most `capacity`
    /// tokens: its cached step or, with the reason why none can be derived, the forward over the whole sequence.
    ///
    /// # Errors
    /// When the plan cannot be applied.
    pub fn new(
        source: &Source,
        plan: &PlacedPlan,
        capacity: usize,
    ) -> Result<(Stepper, Option<DecodeError>), Error> {
        let mut whole = source.rewrite_for_steps(plan)?.graph;
        let warm = whole.outputs.extract_if(.., |o| o.name.starts_with(WARM)).collect::<Vec<_>>();
        let (at, _) = logits_output(&whole)?;
        whole.outputs = std::iter::once(whole.outputs.swap_remove(at)).chain(warm).collect();
        whole.remove_dead();
        let step = match decode_step(&whole, capacity) {
            Ok(step) => step,
            Err(why) if plan.starts_from(Init::Warm) => {
                let what = format!("plan '{plan}' starts from the token before, which needs a cached step");
                return Err(Error::input(what).because(why).help("use init=h0, batch_fwd or preheat"));
            }
            Err(why) => return Ok((Stepper::of(whole, None, capacity)?, Some(why))),
        };
        let DecodeStep { mut graph, lookback, capacity, caches } = step;
        clean_up_exact(&mut graph).map_err(|e| {
            Error::new(Kind::Internal, "the derived step cannot be simplified")
                .because(e)
                .help("this is a defect of snlp: please report it")
        })?;
        let mut stepper = Stepper::of(graph, Some(lookback), capacity)?;
        stepper.states = caches;
        Ok((stepper, None))
    }

    fn of(graph: Graph, lookback: Option<usize>, capacity: usize) -> Result<Stepper, Error> {
        let tokens = token_input(&graph)?.to_string();
        let dtype = graph.input(&tokens).and_then(|v| graph.ty(v)).map_or(DType::I64, |t| t.dtype);
        let logits = logits_output(&graph)?.1.to_string();
        Ok(Stepper { graph, states: vec![], tokens, dtype, logits, lookback, capacity })
    }

    /// Whether it has caches.
    pub fn is_cached(&self) -> bool {
        self.lookback.is_some()
    }

    /// Tokens before the new ones that a cached step reads.
    pub fn lookback(&self) -> Option<usize> {
        self.lookback
    }

    /// Bytes of the caches.
    pub fn cache_bytes(&self) -> u64 {
        let bytes = |name: &String| {
            let ty = self.graph.ty(self.graph.input(name)?)?;
            Some(ty.dtype.bytes(element_count(&ty.known_shape()?)?) as u64)
        };
        self.states.iter().filter_map(|(before, _)| bytes(before)).sum()
    }
}

/// Rows of logits.
pub struct Logits {
    data: Vec<f32>,
    vocabulary: usize,
}

impl Logits {
    /// Rows.
    pub fn count(&self) -> usize {
        self.data.len() / self.vocabulary.max(1)
    }

    /// Tokens that a row rates.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f32] {
        self.data.get(i * self.vocabulary..(i + 1) * self.vocabulary).unwrap_or_default()
    }

    /// The last row.
    pub fn last(&self) -> &[f32] {
        self.row(self.count().saturating_sub(1))
    }
}

/// A sequence on its way through a [`Stepper`].
pub struct Decoder<'f> {
    stepper: &'f Stepper,
    forward: &'f dyn Forward,
    /// The tokens whose keys and values are in the caches.
    taken: Vec<u32>,
    /// Forwards so far.
    pub forwards: usize,
}

impl<'f> Decoder<'f> {
    /// Nothing taken yet.
    pub fn new(stepper: &'f Stepper, forward: &'f dyn Forward) -> Self {
        Decoder { stepper, forward, taken: vec![], forwards: 0 }
    }

    /// Tokens taken so far.
    pub fn taken(&self) -> &[u32] {
        &self.taken
    }

    /// Tokens that may be taken in all.
    pub fn capacity(&self) -> usize {
        self.stepper.capacity
    }

    /// Takes tokens and returns logits for what follows each of the last of them: for every one where
    /// `every`, else at least for the last.
    ///
    /// # Errors
    /// When there is no room for them, or the forward fails.
    pub fn take(&mut self, tokens: &[u32], every: bool) -> Result<Logits, Error> {
        let room = self.stepper.capacity.saturating_sub(self.taken.len());
        if tokens.is_empty() || tokens.len() > room {
            return Err(Error::input(format!(
                "{} tokens and {} more are not a sequence of 1 to {} tokens",
                self.taken.len(),
                tokens.len(),
                self.stepper.capacity
            ))
            .help("use a shorter prompt or fewer new tokens"));
        }
        if !every && tokens.len() > PREFILL && self.stepper.is_cached() {
            let (first, rest) = tokens.split_at(PREFILL);
            self.take(first, false)?;
            return self.take(rest, false);
        }
        let logits = match self.stepper.lookback {
            Some(lookback) => self.step(tokens, lookback)?,
            None => self.again(tokens)?,
        };
        self.forwards += 1;
        self.taken.extend_from_slice(tokens);
        Ok(logits)
    }

    /// Makes `sequence` what is taken, keeping what the two have in common; returns the logits of what was
    /// new, if anything was.
    ///
    /// # Errors
    /// As [`Decoder::take`].
    pub fn follow(&mut self, sequence: &[u32], every: bool) -> Result<Option<Logits>, Error> {
        let common = self.taken.iter().zip(sequence).take_while(|(a, b)| a == b).count();
        self.taken.truncate(common);
        match &sequence[common..] {
            [] => Ok(None),
            new => self.take(new, every).map(Some),
        }
    }

    fn step(&self, tokens: &[u32], lookback: usize) -> Result<Logits, Error> {
        let before = self.taken.len();
        let earlier = (0..lookback).map(|i| {
            // What stands before the first position is not read.
            (before + i).checked_sub(lookback).and_then(|at| self.taken.get(at)).copied().unwrap_or(0)
        });
        let ids: Vec<u32> = earlier.chain(tokens.iter().copied()).collect();
        let inputs = vec![
            (self.stepper.tokens.clone(), self.ids(&ids)?),
            (POSITION.into(), Tensor::scalar(before as i64)),
        ];
        self.logits(&inputs, tokens.len())
    }

    fn again(&self, tokens: &[u32]) -> Result<Logits, Error> {
        let ids: Vec<u32> = self.taken.iter().chain(tokens).copied().collect();
        let feeds = token_feeds(&self.stepper.graph, &self.ids(&ids)?)?;
        self.logits(&feeds, tokens.len())
    }

    fn ids(&self, ids: &[u32]) -> Result<Tensor, Error> {
        let wide: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let tensor = Tensor::from_vec(vec![1, wide.len()], wide).map_err(|e| internal(&e))?;
        convert(&tensor, self.stepper.dtype).map_err(|e| Error::input(format!("token ids: {e}")))
    }

    /// The last rows of the logits, at most `rows`.
    fn logits(&self, inputs: &[(String, Tensor)], rows: usize) -> Result<Logits, Error> {
        let outputs = self.forward.forward(inputs)?;
        let found = outputs.iter().find(|(name, _)| *name == self.stepper.logits);
        let Some((name, tensor)) = found else {
            return Err(internal(&format!("output '{}' was not computed", self.stepper.logits)));
        };
        let &[1, count, vocabulary] = tensor.shape() else {
            return Err(Error::input(format!(
                "output '{name}' has shape {:?}, not [1, t, v]",
                tensor.shape()
            )));
        };
        let first = count.saturating_sub(rows) * vocabulary;
        let data = tensor.to_f32().split_off(first);
        if let Some(x) = data.iter().find(|x| x.is_nan()) {
            return Err(Error::input(format!("output '{name}' holds {x}"))
                .help("check the model's weights, or try --dtype f32"));
        }
        Ok(Logits { data, vocabulary })
    }
}

fn internal(what: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Internal, what.to_string()).help("this is a defect of snlp: please report it")
}
