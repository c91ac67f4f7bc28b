//! Text after text: a token at a time, or several proposed by a cheap plan and checked by the model at once.
//!
//! Self-speculative decoding (METHOD §6): the parallel plan of the same weights drafts `B` tokens, one
//! forward of the sequential model over all of them says which it would have drawn. Of draft probabilities `q`
//! and the model's `p` a token is accepted with probability `min(1, p / q)`; the first that is not is drawn anew
//! from `max(0, p - q)`. The sequence then has the distribution of the model's own; without temperature it is
//! the model's own.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::decoder::{Decoder, Logits};
use super::sampling::{Dice, Sampling};
use crate::error::{Error, Kind};

/// How many tokens a round of speculation drafts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Draft {
    /// Always so many.
    Fixed(usize),
    /// One more after a round whose drafts were all accepted, half as many (one at least) after one where
    /// fewer than half were; at most [`MOST_DRAFTED`].
    Adaptive,
}

/// What [`Draft::Adaptive`] drafts at most.
pub const MOST_DRAFTED: usize = 16;

/// What a speculation came to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Speculation {
    /// Drafts that the model took.
    pub accepted: usize,
    /// Drafts in all.
    pub drafted: usize,
    /// Forwards of the sequential model.
    pub rounds: usize,
}

/// What was generated.
#[derive(Clone, Default, Debug)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// From the prompt to the first token.
    pub first: Duration,
    /// From the prompt to the last token.
    pub total: Duration,
    /// Whether the reader of the tokens wanted no more.
    pub stopped: bool,
    /// Where there was one.
    pub speculation: Option<Speculation>,
}

impl Generated {
    /// Tokens after the first, per second; `None` of fewer than two, and of those of a single round.
    pub fn rate(&self) -> Option<f64> {
        if self.speculation.is_some_and(|s| s.rounds < 2) {
            return None;
        }
        let after = self.tokens.len().checked_sub(1).filter(|n| *n > 0)?;
        Some(after as f64 / (self.total - self.first).as_secs_f64().max(1e-9))
    }
}

/// What is wanted.
pub struct Request<'r> {
    /// Tokens to go on from, one at least.
    pub prompt: &'r [u32],
    /// Tokens to add at most.
    pub count: usize,
    /// How each is chosen.
    pub sampling: &'r Sampling,
    /// Seed of the choices.
    pub seed: u64,
    /// Hears of each token as it comes, and says whether there should be more.
    pub reader: &'r mut dyn FnMut(u32) -> ControlFlow<()>,
}

/// Tokens on their way to the reader.
struct Sequence<'r> {
    tokens: Vec<u32>,
    request: Request<'r>,
    dice: Dice,
    start: Instant,
    out: Generated,
}

impl<'r> Sequence<'r> {
    fn new(request: Request<'r>) -> Result<Self, Error> {
        if request.prompt.is_empty() {
            return Err(
                Error::input("the prompt has no tokens").help("give at least one character as the prompt")
            );
        }
        Ok(Sequence {
            tokens: request.prompt.to_vec(),
            dice: Dice::new(request.seed),
            request,
            start: Instant::now(),
            out: Generated::default(),
        })
    }

    /// Adds a token; false where there should be no more.
    fn push(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        self.out.tokens.push(token);
        self.out.total = self.start.elapsed();
        if self.out.tokens.len() == 1 {
            self.out.first = self.out.total;
        }
        self.out.stopped = (self.request.reader)(token).is_break();
        !self.out.stopped && self.left() > 0
    }

    fn left(&self) -> usize {
        self.request.count - self.out.tokens.len()
    }
}

/// The tokens after the prompt, one by one.
///
/// # Errors
/// When the prompt is empty, there is no room for the tokens, or a forward fails.
pub fn generate(model: &mut Decoder<'_>, request: Request<'_>) -> Result<Generated, Error> {
    let mut sequence = Sequence::new(request)?;
    let mut going = sequence.left() > 0;
    while going {
        let logits = following(model, &sequence.tokens)?;
        let token =
            sequence.dice.draw(&sequence.request.sampling.distribution(logits.last(), &sequence.tokens));
        going = sequence.push(token);
    }
    Ok(sequence.out)
}

/// Logits of what follows the sequence.
fn following(model: &mut Decoder<'_>, sequence: &[u32]) -> Result<Logits, Error> {
    model.follow(sequence, false)?.ok_or_else(|| Error::new(Kind::Internal, "the sequence was taken before"))
}

/// As [`generate`], with drafts by `draft`, a plan of the same model.
///
/// # Errors
/// As [`generate`].
pub fn speculate(
    model: &mut Decoder<'_>,
    draft: &mut Decoder<'_>,
    drafts: Draft,
    request: Request<'_>,
) -> Result<Generated, Error> {
    let mut sequence = Sequence::new(request)?;
    let sampling = sequence.request.sampling;
    let mut stats = Speculation::default();
    let mut size = match drafts {
        Draft::Fixed(n) => n.max(1),
        Draft::Adaptive => 4,
    };
    // All but the last token, which each round begins with.
    if let [first @ .., _] = sequence.request.prompt
        && !first.is_empty()
    {
        model.follow(first, false)?;
    }
    let mut going = sequence.left() > 0;
    while going {
        let known = sequence.tokens.len();
        let wanted = size.min(sequence.left());
        let (proposed, chances) = propose(draft, &sequence.tokens, wanted, sampling, &mut sequence.dice)?;
        let logits = model
            .follow(&proposed, true)?
            .ok_or_else(|| Error::new(Kind::Internal, "the drafts were taken before"))?;
        // Row `i` is what follows the last known token and `i` drafts.
        let first = logits.count().saturating_sub(wanted + 1);
        stats.rounds += 1;
        stats.drafted += wanted;
        let mut accepted = 0;
        for i in 0..=wanted {
            let p = sampling.distribution(logits.row(first + i), &proposed[..known + i]);
            let (token, taken) = match (proposed.get(known + i), chances.get(i)) {
                (Some(token), Some(q)) => judge(*token, &p, q, &mut sequence.dice),
                // All drafts were taken: the model's own next token comes free.
                _ if sequence.left() > 0 => (sequence.dice.draw(&p), false),
                _ => break,
            };
            accepted += usize::from(taken);
            going = sequence.push(token);
            if !going || !taken {
                break;
            }
        }
        stats.accepted += accepted;
        if drafts == Draft::Adaptive {
            size = match accepted {
                n if n == wanted => (size + 1).min(MOST_DRAFTED),
                n if 2 * n < wanted => (size / 2).max(1),
                _ => size,
            };
        }
    }
    sequence.out.speculation = Some(stats);
    Ok(sequence.out)
}

/// The sequence with drafts behind it, and the distribution that each was drawn from.
fn propose(
    draft: &mut Decoder<'_>,
    known: &[u32],
    count: usize,
    sampling: &Sampling,
    dice: &mut Dice,
) -> Result<(Vec<u32>, Vec<Vec<f64>>), Error> {
    let (mut tokens, mut chances) = (known.to_vec(), vec![]);
    for _ in 0..count {
        let logits = following(draft, &tokens)?;
        let q = sampling.distribution(logits.last(), &tokens);
        tokens.push(dice.draw(&q));
        chances.push(q);
    }
    Ok((tokens, chances))
}

/// The token, if it is accepted, else another; and whether it was.
fn judge(token: u32, p: &[f64], q: &[f64], dice: &mut Dice) -> (u32, bool) {
    let of = |d: &[f64]| d.get(token as usize).copied().unwrap_or(0.0);
    if dice.unit() * of(q) < of(p) {
        return (token, true);
    }
    let rest: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p - q).max(0.0)).collect();
    // Rounding may leave nothing where the two are equal.
    let weights = if rest.iter().any(|w| *w > 0.0) { &rest } else { p };
    (dice.draw(weights), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judged_drafts_have_the_models_distribution() {
        let (p, q) = ([0.5, 0.3, 0.2], [0.1, 0.6, 0.3]);
        let mut dice = Dice::new(3);
        let (mut counts, mut accepted) = ([0.0f64; 3], 0.0);
        let n = 60_000;
        for _ in 0..n {
            let draft = dice.draw(&q);
            let (token, taken) = judge(draft, &p, &q, &mut dice);
            counts[token as usize] += 1.0;
            accepted += f64::from(u8::from(taken));
        }
        // Chi-square with two degrees of freedom: 13.8 at one in a thousand.
        let n = f64::from(n);
        let chi: f64 = counts.iter().zip(p).map(|(c, p)| (c - n * p).powi(2) / (n * p)).sum();
        assert!(chi < 13.8, "{counts:?}");
        // The overlap of the two: 0.1 + 0.3 + 0.2.
        assert!((accepted / n - 0.6).abs() < 0.01, "{accepted}");
    }
}
