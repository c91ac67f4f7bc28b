//! Parsing of plans.

use std::str::FromStr;

use super::{Init, KvCache, Parallel, Plan, Segment, SurrogateChoice, TapRule};

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Text that is not a plan.
    #[error("plan '{plan}': {reason}")]
    Syntax {
        /// The text.
        plan: String,
        /// What was expected.
        reason: String,
    },
    /// A plan that lies in a file, which is nothing that this language knows.
    #[error("plan '{plan}' lies in a file, but only the text of a plan can be given here")]
    File {
        /// The text.
        plan: String,
    },
    /// More layers than the model has.
    #[error("plan '{plan}' covers {covered} layers but the model has {layers}")]
    TooManyLayers {
        /// The plan.
        plan: String,
        /// Layers the plan needs.
        covered: usize,
        /// Layers of the chain.
        layers: usize,
    },
}

/// Repetitions and sizes beyond this are typing errors.
const MAX_COUNT: usize = 65_536;

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let fail = |reason: String| PlanError::Syntax { plan: text.into(), reason };
        let trimmed = text.trim();
        match trimmed {
            "" => return Err(fail("empty; write 'sequential' or segments such as 's8 12xF2'".into())),
            "sequential" => return Ok(Plan::sequential()),
            file if file == "auto" || file.ends_with(".toml") => {
                return Err(PlanError::File { plan: text.into() });
            }
            _ => {}
        }
        let mut segments = Vec::new();
        for word in words(trimmed) {
            if ["sequential", "auto"].contains(&word) {
                return Err(fail(format!(
                    "'{word}' stands alone; beside segments write sN, N sequential layers"
                )));
            }
            let (repeat, body) = match word.split_once('*') {
                Some((n, body)) => (count(n).map_err(|r| fail(format!("in '{word}': {r}")))?, body),
                None => (1, word),
            };
            let segment = segment(body).map_err(|reason| fail(format!("in '{word}': {reason}")))?;
            if segments.len() + repeat > MAX_COUNT {
                return Err(fail(format!("more than {MAX_COUNT} segments")));
            }
            segments.extend(std::iter::repeat_n(segment, repeat));
        }
        Ok(Plan { segments })
    }
}

/// Splits at blanks outside brackets, so that `[k=2, avg]` may be written with a blank.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut depth) = (None, 0i32);
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        if c.is_whitespace() && depth <= 0 {
            words.extend(start.take().map(|s| &text[s..i]));
        } else if start.is_none() {
            start = Some(i);
        }
    }
    words.extend(start.map(|s| &text[s..]));
    words
}

fn count(text: &str) -> Result<usize, String> {
    let digits = text.trim();
    // Rust reads "+2" as a number.
    match digits.parse::<usize>() {
        Ok(n) if (1..=MAX_COUNT).contains(&n) && !digits.starts_with('+') => Ok(n),
        _ => Err(format!("'{text}' is not a count from 1 to {MAX_COUNT}")),
    }
}

fn segment(body: &str) -> Result<Segment, String> {
    let (shape, options) = match body.split_once('[') {
        None => (body, None),
        Some((shape, rest)) => {
            let options = rest.strip_suffix(']').ok_or_else(|| "the bracket is not closed".to_string())?;
            (shape, Some(options))
        }
    };
    if let Some(n) = shape.strip_prefix('s') {
        if options.is_some() {
            return Err("sequential layers take no options".into());
        }
        return Ok(Segment::Sequential(count(n)?));
    }
    let Some((units, fused)) = shape.split_once("xF") else {
        return Err(format!("'{shape}' is neither sN (sequential) nor CxFM (C units of M fused layers)"));
    };
    let mut parallel = Parallel::new(count(units)?, count(fused)?);
    let mut given = Vec::new();
    for option in options.into_iter().flat_map(|o| o.split(',')).map(str::trim) {
        let key = option.split('=').next().unwrap_or_default();
        if given.contains(&key) {
            return Err(format!("'{key}' is given twice"));
        }
        given.push(key);
        apply(&mut parallel, option)?;
    }
    Ok(Segment::Parallel(parallel))
}

fn apply(p: &mut Parallel, option: &str) -> Result<(), String> {
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    match (key, value) {
        ("k", n) => p.iterations = count(n)?,
        ("init", "h0") => p.init = Init::H0,
        ("init", "batch_fwd") => p.init = Init::BatchForward,
        ("init", "preheat") => p.init = Init::Preheat,
        ("init", "warm") => p.init = Init::Warm,
        ("surrogate", "auto") => p.surrogate = SurrogateChoice::Auto,
        ("surrogate", "identity") => p.surrogate = SurrogateChoice::Identity,
        ("surrogate", "transfer") => p.surrogate = SurrogateChoice::Transfer,
        ("surrogate", "jacobi") => p.surrogate = SurrogateChoice::Jacobi,
        ("surrogate", "diagonal") => p.surrogate = SurrogateChoice::Diagonal,
        ("surrogate", "exact") => p.surrogate = SurrogateChoice::Exact,
        ("elk", a) => match a.parse::<f64>() {
            Ok(a) if (0.0..=1.0).contains(&a) => p.elk = a,
            _ => return Err(format!("elk={a} is not a number from 0 to 1")),
        },
        ("avg", "") => p.avg = true,
        ("tap", "partial") => p.tap = TapRule::Partial,
        ("tap", "unit") => p.tap = TapRule::Unit,
        ("kv", "exact") => p.kv = Some(KvCache::Exact),
        ("kv", "shared") => p.kv = Some(KvCache::Shared),
        _ => {
            return Err(format!(
                "'{option}' is no option; there are k=N, init=h0|batch_fwd|preheat|warm, \
                 surrogate=auto|identity|transfer|diagonal|jacobi|exact, elk=A, avg, tap=partial|unit, \
                 kv=exact|shared"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(text: &str, layers: usize) -> String {
        text.parse::<Plan>().unwrap().place(layers).unwrap().to_string()
    }

    #[test]
    fn normal_form() {
        assert_eq!(placed("12xF2", 32), "s8 12xF2");
        assert_eq!(placed("s8 12xF2", 32), "s8 12xF2");
        assert_eq!(placed("4*1xF2 s2", 12), "s2 4*1xF2 s2");
        assert_eq!(placed("1xF2 1xF2", 4), "2*1xF2");
        assert_eq!(placed("s1 s2 2xF1", 6), "s4 2xF1");
        assert_eq!(placed("sequential", 6), "sequential");
        assert_eq!(placed("s6", 6), "sequential");
        assert_eq!(placed("2xF1[k=1,init=h0,surrogate=auto,elk=0,tap=partial]", 2), "2xF1");
        let all = "2xF2[k=2,init=batch_fwd,surrogate=transfer,elk=0.1,avg,tap=unit,kv=exact]";
        assert_eq!(placed(all, 4), all);
        assert_eq!(placed("2xF2[ k=2, avg ]", 4), "2xF2[k=2,avg]");
        for init in ["2xF1[init=preheat]", "2xF1[k=2,init=warm]"] {
            assert_eq!(placed(init, 2), init);
        }
        // More iterations than units change nothing.
        assert_eq!(placed("2xF1[k=3] 2xF1[k=2]", 4), "2*2xF1[k=2]");
        assert_eq!(placed("1xF2[k=5]", 2), "1xF2");
        // A single evaluation has a single cache.
        assert_eq!(placed("2xF1[kv=exact] 2xF1[k=2,kv=shared]", 4), "2xF1 2xF1[k=2,kv=shared]");
    }

    #[test]
    fn depth_counts_iterations_and_the_first_guess() {
        let depth = |t: &str| t.parse::<Plan>().unwrap().place(32).unwrap().sequential_depth();
        assert_eq!(depth("12xF2"), 9);
        assert_eq!(depth("12xF2[k=2,init=batch_fwd]"), 11);
        assert_eq!(depth("2xF1[k=9]"), 32);
    }

    #[test]
    fn rejections_say_what_is_wrong() {
        let error = |t: &str| t.parse::<Plan>().unwrap_err().to_string();
        assert!(error("").contains("empty"));
        assert!(error("8").contains("neither"));
        assert!(error("2xF0").contains("count"));
        assert!(error("s2[k=1]").contains("no options"));
        assert!(error("2xF1[k=2").contains("bracket"));
        assert!(error("2xF1[elk=2]").contains("0 to 1"));
        assert!(error("2xF1[depth=2]").contains("no option"));
        assert!(error("2xF1[k=2,k=2]").contains("'k' is given twice"));
        assert!(error("2xF1[avg,elk=0.1,avg]").contains("'avg' is given twice"));
        for plus in ["+2xF1", "2xF+1", "s+2", "+2*2xF1", "2xF1[k=+2]"] {
            assert!(error(plus).contains("count"), "{plus}");
        }
        for alone in ["sequential 2xF1", "2xF1 sequential", "auto s1"] {
            assert!(error(alone).contains("stands alone"), "{alone}");
        }
        assert!(error("99999999999999999999*1xF2").contains("count"));
        for file in ["auto", "plan.toml"] {
            assert!(error(file).contains("lies in a file"), "{file}");
        }
        let too_many = "12xF2".parse::<Plan>().unwrap().place(6).unwrap_err().to_string();
        assert_eq!(too_many, "plan '12xF2' covers 24 layers but the model has 6");
    }
}
