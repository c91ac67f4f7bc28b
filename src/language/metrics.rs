//! Quality of a language model's logits: negative log-likelihood against targets, and how far one set
//! of logits is from another.
//!
//! Logits are f32; everything computed from them is f64. Perplexity is the exponential of the mean negative
//! log-likelihood of the targets, in nats.

/// Why measures could not be taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetricsError {
    /// A target that the model has no logit for.
    #[error("target token {target} at position {position}: the model's logits cover 0 to {last}")]
    Target {
        /// The token.
        target: i64,
        /// Its position in the window.
        position: usize,
        /// The last token with a logit.
        last: usize,
    },
    /// Logits of another size than the targets or the other logits.
    #[error("{what}: {actual} logits where {expected} were expected")]
    Size {
        /// What was measured.
        what: &'static str,
        /// Logits found.
        actual: usize,
        /// Logits expected.
        expected: usize,
    },
}

/// `log Σ exp(x)`, with the maximum taken out first; NaN when a logit is NaN.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    if row.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if !max.is_finite() {
        return max;
    }
    max + row.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// Mean negative log-likelihood of one window: `logits` is `[targets.len(), vocabulary]`, row-major.
pub fn window_nll(logits: &[f32], vocabulary: usize, targets: &[i64]) -> Result<f64, MetricsError> {
    size("likelihood", logits.len(), targets.len().saturating_mul(vocabulary))?;
    let mut sum = 0.0;
    for (position, (row, target)) in logits.chunks_exact(vocabulary.max(1)).zip(targets).enumerate() {
        let logit = usize::try_from(*target).ok().and_then(|t| row.get(t)).ok_or(MetricsError::Target {
            target: *target,
            position,
            last: vocabulary.saturating_sub(1),
        })?;
        sum += log_sum_exp(row) - f64::from(*logit);
    }
    Ok(sum / targets.len() as f64)
}

/// How far logits are from a reference, averaged over positions.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Deviation {
    positions: usize,
    kl: f64,
    cosine: f64,
    agree: usize,
    max_abs: f64,
}

impl Deviation {
    /// Adds what was measured elsewhere.
    pub fn join(&mut self, other: &Deviation) {
        self.positions += other.positions;
        self.kl += other.kl;
        self.cosine += other.cosine;
        self.agree += other.agree;
        self.max_abs = self.max_abs.max(other.max_abs);
    }

    /// Adds positions: `reference` and `logits` are `[positions, vocabulary]`, row-major.
    pub fn add(&mut self, reference: &[f32], logits: &[f32], vocabulary: usize) -> Result<(), MetricsError> {
        size("deviation", logits.len(), reference.len())?;
        for (r, x) in reference.chunks_exact(vocabulary.max(1)).zip(logits.chunks_exact(vocabulary.max(1))) {
            self.positions += 1;
            self.kl += kl(r, x);
            self.cosine += cosine(r, x);
            self.agree += usize::from(argmax(r) == argmax(x));
            for (r, x) in r.iter().zip(x) {
                let distance = (f64::from(*r) - f64::from(*x)).abs();
                self.max_abs = if distance.is_nan() { f64::INFINITY } else { self.max_abs.max(distance) };
            }
        }
        Ok(())
    }

    /// Mean Kullback-Leibler divergence `KL(reference ‖ logits)` in nats.
    pub fn kl(&self) -> f64 {
        self.kl / self.positions as f64
    }

    /// Mean cosine between the two vectors of logits.
    pub fn cosine(&self) -> f64 {
        self.cosine / self.positions as f64
    }

    /// Share of positions with the same most likely token.
    pub fn top1(&self) -> f64 {
        self.agree as f64 / self.positions as f64
    }

    /// Largest difference between two logits; infinite when one of them is NaN.
    pub fn max_abs(&self) -> f64 {
        self.max_abs
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

fn size(what: &'static str, actual: usize, expected: usize) -> Result<(), MetricsError> {
    if actual == expected { Ok(()) } else { Err(MetricsError::Size { what, actual, expected }) }
}

fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
    p.iter()
        .zip(q)
        .map(|(p, q)| {
            let log_p = f64::from(*p) - zp;
            let weight = log_p.exp();
            if weight == 0.0 { 0.0 } else { weight * (log_p - (f64::from(*q) - zq)) }
        })
        .sum::<f64>()
        .max(0.0)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms == 0.0 { f64::from(u8::from(a == b)) } else { dot(a, b) / norms }
}

/// Position of the largest element; the first of several.
pub fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), |m, (i, x)| if *x > m.1 { (i, *x) } else { m }).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nll_of_equal_logits_is_the_logarithm_of_the_vocabulary() {
        let nll = window_nll(&[3.0; 8], 4, &[0, 3]).expect("fits");
        assert!((nll - 4f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let nll = window_nll(&[1e30, -1e30], 2, &[0]).expect("fits");
        assert_eq!(nll, 0.0);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-9);
        assert!(log_sum_exp(&[f32::NAN, 0.0]).is_nan());
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 2]), f64::NEG_INFINITY);
    }

    #[test]
    fn a_target_without_a_logit_is_refused() {
        assert_eq!(
            window_nll(&[0.0; 6], 3, &[0, 3]),
            Err(MetricsError::Target { target: 3, position: 1, last: 2 })
        );
        assert!(window_nll(&[0.0; 6], 3, &[0, -1]).is_err());
        assert!(window_nll(&[0.0; 5], 3, &[0, 1]).is_err());
    }

    #[test]
    fn deviations_against_hand_computed_values() {
        // p = softmax(ln 3, 0) = (3/4, 1/4), q = softmax(0, 0) = (1/2, 1/2).
        let (p, q) = ([3f32.ln(), 0.0], [0.0, 0.0]);
        let mut d = Deviation::default();
        d.add(&p, &q, 2).expect("alike");
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((d.kl() - expected).abs() < 1e-7);
        let mut d = Deviation::default();
        d.add(&[1.0, 0.0, 0.0, 2.0], &[0.0, 1.0, 0.0, 5.0], 2).expect("alike");
        assert_eq!((d.cosine(), d.top1(), d.max_abs(), d.positions()), (0.5, 0.5, 3.0, 2));
    }

    #[test]
    fn identical_logits_deviate_by_nothing() {
        let x = [0.3f32, -1.5, 8.25, 0.0, 1.0, 2.0];
        let mut d = Deviation::default();
        d.add(&x, &x, 3).expect("alike");
        assert!(d.kl() == 0.0 && (d.cosine() - 1.0).abs() < 1e-15 && d.top1() == 1.0 && d.max_abs() == 0.0);
    }
}
