//! From logits to a token.
//!
//! In order, as is usual: the repetition penalty, the temperature, the `k` best, the fewest whose
//! probabilities add up to `p`.

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the best token always.
    pub temperature: f32,
    /// Only so many of the best tokens.
    pub top_k: Option<usize>,
    /// Only the best tokens whose probabilities first add up to this.
    pub top_p: Option<f32>,
    /// Positive logits of tokens that occurred are divided by this, negative ones multiplied (CTRL,
    /// arXiv 1909.05858); 1 changes nothing.
    pub repetition_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: None, top_p: None, repetition_penalty: 1.0 }
    }
}

impl Sampling {
    /// The probability of each token after `history`.
    pub fn distribution(&self, logits: &[f32], history: &[u32]) -> Vec<f64> {
        let mut scores: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        if self.repetition_penalty != 1.0 {
            let penalty = f64::from(self.repetition_penalty);
            let mut seen = vec![false; scores.len()];
            for id in history {
                if let (Some(score), Some(seen)) = (scores.get_mut(*id as usize), seen.get_mut(*id as usize))
                    && !std::mem::replace(seen, true)
                {
                    *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
                }
            }
        }
        if self.temperature <= 0.0 {
            let mut out = vec![0.0; scores.len()];
            if let Some(p) = out.get_mut(best(&scores)) {
                *p = 1.0;
            }
            return out;
        }
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut out: Vec<f64> =
            scores.iter().map(|x| ((x - most) / f64::from(self.temperature)).exp()).collect();
        if self.top_k.is_none() && self.top_p.is_none() {
            normalise(&mut out);
            return out;
        }
        // Of equal ones the first goes first, as in a search for the best.
        let mut order: Vec<usize> = (0..out.len()).collect();
        order.sort_by(|a, b| out[*b].total_cmp(&out[*a]).then(a.cmp(b)));
        let mut kept = self.top_k.unwrap_or(order.len()).clamp(1, order.len().max(1));
        if let Some(p) = self.top_p {
            let total: f64 = order.iter().take(kept).map(|i| out[*i]).sum();
            let mut sum = 0.0;
            let enough = order.iter().take(kept).position(|i| {
                sum += out[*i];
                sum >= f64::from(p) * total
            });
            kept = enough.map_or(kept, |at| at + 1);
        }
        order.iter().skip(kept).for_each(|i| out[*i] = 0.0);
        normalise(&mut out);
        out
    }
}

fn best(scores: &[f64]) -> usize {
    let mut best = 0;
    for (i, x) in scores.iter().enumerate() {
        if *x > scores[best] {
            best = i;
        }
    }
    best
}

fn normalise(weights: &mut [f64]) {
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
}

/// A source of chance that gives the same for the same seed on every machine.
pub struct Dice(fastrand::Rng);

impl Dice {
    /// A source with a seed.
    pub fn new(seed: u64) -> Self {
        Dice(fastrand::Rng::with_seed(seed))
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.0.f64()
    }

    /// A token with the given weights, which need not add up to one; one at least is positive.
    pub fn draw(&mut self, weights: &[f64]) -> u32 {
        let total: f64 = weights.iter().sum();
        let mut left = self.unit() * total;
        let mut last = 0;
        for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            last = i;
            left -= w;
            if left < 0.0 {
                break;
            }
        }
        last as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    fn kept(sampling: &Sampling) -> Vec<usize> {
        let p = sampling.distribution(&LOGITS, &[]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        (0..4).filter(|i| p[*i] > 0.0).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(kept(&Sampling::default()), [1]);
    }

    #[test]
    fn few_are_kept() {
        let warm = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(kept(&warm), [0, 1, 2, 3]);
        assert_eq!(kept(&Sampling { top_k: Some(3), ..warm.clone() }), [1, 2, 3]);
        assert_eq!(kept(&Sampling { top_k: Some(1), ..warm.clone() }), [1]);
        // exp: 0.135, 1, 0.368, 1; of 2.503 the two best are 0.799.
        assert_eq!(kept(&Sampling { top_p: Some(0.79), ..warm.clone() }), [1, 3]);
        assert_eq!(kept(&Sampling { top_p: Some(0.81), ..warm.clone() }), [1, 2, 3]);
        assert_eq!(kept(&Sampling { top_p: Some(0.0), ..warm.clone() }), [1]);
        assert_eq!(kept(&Sampling { top_k: Some(2), top_p: Some(0.6), ..warm }), [1, 3]);
    }

    #[test]
    fn repetition_is_punished_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let p = sampling.distribution(&[1.5, 2.0, -1.0], &[1, 1]);
        assert_eq!(p, [1.0, 0.0, 0.0]);
        let warm = Sampling { temperature: 1.0, ..sampling };
        let p = warm.distribution(&[0.0, 2.0, -1.0], &[1, 2, 1]);
        let expected = [0.0f64, 1.0, -2.0].map(f64::exp);
        let total: f64 = expected.iter().sum();
        assert!(p.iter().zip(expected).all(|(a, b)| (a - b / total).abs() < 1e-12));
    }

    #[test]
    fn dice_follow_the_weights() {
        let mut dice = Dice::new(7);
        let mut counts = [0usize; 3];
        for _ in 0..30_000 {
            counts[dice.draw(&[1.0, 0.0, 2.0]) as usize] += 1;
        }
        assert_eq!(counts[1], 0);
        // Four standard deviations of a binomial.
        assert!((counts[0] as f64 - 10_000.0).abs() < 4.0 * (30_000.0f64 * 2.0 / 9.0).sqrt(), "{counts:?}");
        let again: Vec<f64> = {
            let mut d = Dice::new(7);
            (0..3).map(|_| d.unit()).collect()
        };
        let mut other = Dice::new(7);
        assert_eq!(again, (0..3).map(|_| other.unit()).collect::<Vec<_>>());
    }
}
