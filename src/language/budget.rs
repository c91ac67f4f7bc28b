//! How much quality a plan may cost: `ppl+1%`, `kl<0.02`, `top1>97%`, or several of them.

use std::fmt;
use std::str::FromStr;

/// A limit on one measure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    /// Rise of perplexity over the sequential model's, as a share: 0.01 is one percent.
    Perplexity(f64),
    /// Mean KL divergence from the sequential distribution, in nats.
    Kl(f64),
    /// Share of positions with the sequential model's most likely token.
    Top1(f64),
}

/// Limits that all have to be kept.
#[derive(Clone, PartialEq, Debug)]
pub struct Budget {
    limits: Vec<Limit>,
}

/// What a plan costs in quality.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quality {
    /// Rise of perplexity, as a share.
    pub change: f64,
    /// Mean KL divergence.
    pub kl: f64,
    /// Share of positions with the same most likely token.
    pub top1: f64,
}

impl Budget {
    /// How much of the budget is spent, by the limit that most is spent of: at most 1 is inside.
    pub fn spent(&self, quality: &Quality) -> f64 {
        let share = |value: f64, limit: f64| match value <= limit {
            // Nothing allowed and nothing spent.
            true if limit == 0.0 => value.max(-1.0),
            false if limit == 0.0 => f64::INFINITY,
            _ => value / limit,
        };
        let spent = self.limits.iter().map(|limit| match limit {
            Limit::Perplexity(rise) => share(quality.change, *rise),
            Limit::Kl(most) => share(quality.kl, *most),
            Limit::Top1(least) => share(1.0 - quality.top1, 1.0 - least),
        });
        // A measure that is not a number is outside of every limit.
        spent.fold(f64::NEG_INFINITY, |most, s| if s.is_nan() { f64::INFINITY } else { most.max(s) })
    }

    /// Whether every limit is kept.
    pub fn allows(&self, quality: &Quality) -> bool {
        self.spent(quality) <= 1.0
    }
}

/// A number, or one with `%`.
fn share(text: &str) -> Option<f64> {
    let text = text.trim();
    let (digits, unit) = match text.strip_suffix('%') {
        Some(digits) => (digits.trim_end(), 0.01),
        None => (text, 1.0),
    };
    digits.parse::<f64>().ok().map(|x| x * unit).filter(|x| x.is_finite() && *x >= 0.0)
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let limit = |part: &str| {
            let part = part.trim();
            let limit = if let Some(rise) = part.strip_prefix("ppl+") {
                // Without its sign one percent would be a hundred.
                let meant = |x: &f64| *x < 1.0 || rise.trim_end().ends_with('%');
                share(rise).filter(meant).map(Limit::Perplexity)
            } else if let Some(most) = part.strip_prefix("kl<") {
                share(most).map(Limit::Kl)
            } else if let Some(least) = part.strip_prefix("top1>") {
                share(least).filter(|x| *x <= 1.0).map(Limit::Top1)
            } else {
                None
            };
            limit.ok_or_else(|| format!("'{part}' is no limit; write ppl+1%, kl<0.02 or top1>97%"))
        };
        let limits = text.split(',').map(limit).collect::<Result<Vec<_>, _>>()?;
        Ok(Budget { limits })
    }
}

/// Percent with as few digits as tell it.
fn percent(x: f64) -> String {
    let text = format!("{:.6}", 100.0 * x);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, limit) in self.limits.iter().enumerate() {
            f.write_str(if i > 0 { "," } else { "" })?;
            match limit {
                Limit::Perplexity(x) => write!(f, "ppl+{}", percent(*x))?,
                Limit::Kl(x) => write!(f, "kl<{x}")?,
                Limit::Top1(x) => write!(f, "top1>{}", percent(*x))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(text: &str) -> Budget {
        text.parse().expect("a budget")
    }

    #[test]
    fn budgets_are_read_and_written() {
        for (text, normal) in [
            ("ppl+1%", "ppl+1%"),
            ("ppl+0.015", "ppl+1.5%"),
            ("kl<0.02", "kl<0.02"),
            ("top1>97%", "top1>97%"),
            (" ppl+2 %, kl<0.1 ,top1>0.9", "ppl+2%,kl<0.1,top1>90%"),
            ("ppl+0%", "ppl+0%"),
        ] {
            assert_eq!(budget(text).to_string(), normal);
        }
        for bad in [
            "",
            "ppl",
            "ppl+",
            "ppl+1",
            "ppl+x%",
            "ppl-1%",
            "ppl+-1%",
            "kl>0.1",
            "top1>101%",
            "ppl+1%,",
            "kl<nan",
        ] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_tightest_limit_counts() {
        let q = |change: f64, kl: f64, top1: f64| Quality { change, kl, top1 };
        let both = budget("ppl+2%,kl<0.1");
        assert!((both.spent(&q(0.01, 0.09, 1.0)) - 0.9).abs() < 1e-12);
        assert!(both.allows(&q(0.02, 0.1, 0.0)) && !both.allows(&q(0.021, 0.0, 1.0)));
        assert!(both.allows(&q(-0.5, 0.1, 1.0)));
        assert!(
            budget("top1>97%").allows(&q(9.0, 9.0, 0.98)) && !budget("top1>97%").allows(&q(0.0, 0.0, 0.96))
        );
        assert!(
            budget("ppl+0%").allows(&q(-0.001, 0.0, 1.0)) && !budget("ppl+0%").allows(&q(1e-9, 0.0, 1.0))
        );
        assert!(
            budget("top1>100%").allows(&q(0.0, 0.0, 1.0)) && !budget("top1>100%").allows(&q(0.0, 0.0, 0.999))
        );
        assert!(!both.allows(&q(f64::NAN, 0.0, 1.0)));
    }
}
