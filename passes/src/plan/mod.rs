//! The plan language: how a chain of layers is divided and solved.
//!
//! ```text
//! PLAN    := "sequential" | SEGMENT (" " SEGMENT)*
//! SEGMENT := ["N*"] ( "sN" | "CxFM" ["[" OPTION ("," OPTION)* "]"] )
//! OPTION  := k=N | init=h0|batch_fwd|preheat|warm | surrogate=auto|identity|transfer|jacobi | elk=0.1 | avg | tap=partial|unit
//!          | kv=exact|shared
//! ```
//!
//! A [`Plan`] is what was written; [`Plan::place`] lays it over a chain of `L` layers and gives a
//! [`PlacedPlan`], whose text is the normal form.

mod parse;
pub mod search;

use std::fmt;

pub use parse::PlanError;

/// The state that a unit starts from before the first iteration (METHOD §3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Init {
    /// The segment's input, for every unit.
    #[default]
    H0,
    /// Each unit evaluated on the segment's input.
    BatchForward,
    /// What a calibrated affine map of low rank predicts from the chain's input.
    Preheat,
    /// While decoding, what the unit gave for the token before; the segment's input before there was one.
    Warm,
}

/// What stands for the Jacobian of a unit (METHOD §1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SurrogateChoice {
    /// Identity for residual chains, the stream mixing for hyper-connections.
    #[default]
    Auto,
    /// The identity matrix.
    Identity,
    /// What the skip path does to the state.
    Transfer,
    /// An estimate of the Jacobian's diagonal by Hutchinson probes: several more evaluations in each iteration.
    Diagonal,
    /// Zero: plain fixed-point iteration.
    Jacobi,
    /// The Jacobian itself, by differences along each correction: as many evaluations one after the other as
    /// there are units, so of use for comparison alone.
    Exact,
}

/// What a state read from inside a fused unit becomes (METHOD §4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TapRule {
    /// The partial sum up to the tapped layer, plus the unit's correction.
    #[default]
    Partial,
    /// The corrected output of the unit that contains the layer.
    Unit,
}

/// Which keys and values a model with caches keeps when a segment is iterated (METHOD §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvCache {
    /// One cache per layer and iteration: decoding equals the full forward of the plan.
    Exact,
    /// The last iteration's alone: the model's own caches suffice, decoding is approximate.
    Shared,
}

/// A parallel segment: `units` chunks of `fused` consecutive layers, solved together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Parallel {
    /// Units `C`.
    pub units: usize,
    /// Layers `M` fused into each unit.
    pub fused: usize,
    /// Newton iterations `K`.
    pub iterations: usize,
    /// First guess.
    pub init: Init,
    /// Jacobian surrogate.
    pub surrogate: SurrogateChoice,
    /// Damping: the surrogate is multiplied by `1 - elk`.
    pub elk: f64,
    /// Divide the fused branches' sum by `M`.
    pub avg: bool,
    /// Tap rule.
    pub tap: TapRule,
    /// What is cached, where the plan says or the model makes it matter.
    pub kv: Option<KvCache>,
}

impl Parallel {
    /// `CxFM` with the default options.
    pub fn new(units: usize, fused: usize) -> Self {
        Parallel {
            units,
            fused,
            iterations: 1,
            init: Init::default(),
            surrogate: SurrogateChoice::default(),
            elk: 0.0,
            avg: false,
            tap: TapRule::default(),
            kv: None,
        }
    }

    /// Layers covered.
    pub fn layers(&self) -> usize {
        self.units.saturating_mul(self.fused)
    }

    /// Iterations that can still change anything: after as many as there are units the segment is exact.
    pub fn effective_iterations(&self) -> usize {
        self.iterations.min(self.units)
    }

    /// Without what changes nothing: more iterations than units, the choice of a cache for a single evaluation.
    fn placed(self) -> Self {
        let iterations = self.effective_iterations();
        let kv = self.kv.filter(|_| self.depth() > 1);
        Parallel { iterations, kv, ..self }
    }

    /// Dependent unit evaluations, the first guess included.
    pub fn depth(&self) -> usize {
        self.effective_iterations() + usize::from(self.init == Init::BatchForward && self.units > 1)
    }
}

/// One piece of a plan.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Segment {
    /// So many layers, one after the other.
    Sequential(usize),
    /// Layers solved together.
    Parallel(Parallel),
}

impl Segment {
    /// Layers covered.
    pub fn layers(&self) -> usize {
        match self {
            Segment::Sequential(n) => *n,
            Segment::Parallel(p) => p.layers(),
        }
    }
}

/// A plan as written; layers that it does not cover come first and are sequential.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// Segments in order; empty for `sequential`.
    pub segments: Vec<Segment>,
}

impl Plan {
    /// The plan that changes nothing.
    pub fn sequential() -> Self {
        Plan::default()
    }

    /// Lays the plan over a chain of `layers`. Iterations that cannot change anything are left out.
    pub fn place(&self, layers: usize) -> Result<PlacedPlan, PlanError> {
        let covered = self.segments.iter().fold(0usize, |n, s| n.saturating_add(s.layers()));
        if covered > layers {
            return Err(PlanError::TooManyLayers { plan: self.to_string(), covered, layers });
        }
        let mut segments = vec![Segment::Sequential(layers - covered)];
        for segment in &self.segments {
            match (segments.last_mut(), segment) {
                (Some(Segment::Sequential(n)), Segment::Sequential(more)) => *n += more,
                (_, Segment::Parallel(p)) => {
                    segments.push(Segment::Parallel(p.placed()));
                }
                (_, sequential) => segments.push(*sequential),
            }
        }
        segments.retain(|s| s.layers() > 0);
        Ok(PlacedPlan { segments, layers })
    }
}

/// A plan that covers a chain exactly, in normal form.
#[derive(Clone, PartialEq, Debug)]
pub struct PlacedPlan {
    /// Segments in order, covering every layer.
    pub segments: Vec<Segment>,
    /// Layers of the chain.
    pub layers: usize,
}

impl PlacedPlan {
    /// Whether nothing is parallel.
    pub fn is_sequential(&self) -> bool {
        self.segments.iter().all(|s| matches!(s, Segment::Sequential(_)))
    }

    /// Decides for each segment that is iterated which keys and values are kept, where the plan does not
    /// say: a model's own caches have room for one iteration's. Without caches there is nothing to decide.
    pub fn settle_caches(mut self, has_caches: impl Fn(std::ops::Range<usize>) -> bool) -> Self {
        let mut first = 0;
        for segment in &mut self.segments {
            let layers = first..first + segment.layers();
            first = layers.end;
            if let Segment::Parallel(p) = segment {
                let iterated = p.depth() > 1 && has_caches(layers);
                p.kv = iterated.then(|| p.kv.unwrap_or(KvCache::Shared));
            }
        }
        self
    }

    /// Whether a segment starts from a guess of this kind.
    pub fn starts_from(&self, init: Init) -> bool {
        let of_segment = |s: &Segment| matches!(s, Segment::Parallel(p) if p.init == init && p.units > 1);
        self.segments.iter().any(of_segment)
    }

    /// Whether decoding with the model's caches approximates the plan's full forward: with fewer iterations
    /// than units, caches of the last one hold what the others did not see.
    pub fn shares_caches(&self) -> bool {
        let shares = |p: &Parallel| p.kv == Some(KvCache::Shared) && p.effective_iterations() < p.units;
        self.segments.iter().any(|s| matches!(s, Segment::Parallel(p) if shares(p)))
    }

    /// Layers or units that must be evaluated one after the other.
    pub fn sequential_depth(&self) -> usize {
        self.segments
            .iter()
            .map(|s| match s {
                Segment::Sequential(n) => *n,
                Segment::Parallel(p) => p.depth(),
            })
            .sum()
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Segment::Sequential(n) => write!(f, "s{n}"),
            Segment::Parallel(p) => fmt::Display::fmt(p, f),
        }
    }
}

impl fmt::Display for Parallel {
    /// Options at their defaults are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}xF{}", self.units, self.fused)?;
        let mut options = Vec::new();
        if self.iterations != 1 {
            options.push(format!("k={}", self.iterations));
        }
        match self.init {
            Init::H0 => {}
            Init::BatchForward => options.push("init=batch_fwd".into()),
            Init::Preheat => options.push("init=preheat".into()),
            Init::Warm => options.push("init=warm".into()),
        }
        match self.surrogate {
            SurrogateChoice::Auto => {}
            SurrogateChoice::Identity => options.push("surrogate=identity".into()),
            SurrogateChoice::Transfer => options.push("surrogate=transfer".into()),
            SurrogateChoice::Diagonal => options.push("surrogate=diagonal".into()),
            SurrogateChoice::Jacobi => options.push("surrogate=jacobi".into()),
            SurrogateChoice::Exact => options.push("surrogate=exact".into()),
        }
        if self.elk != 0.0 {
            options.push(format!("elk={}", self.elk));
        }
        if self.avg {
            options.push("avg".into());
        }
        if self.tap == TapRule::Unit {
            options.push("tap=unit".into());
        }
        match self.kv {
            None => {}
            Some(KvCache::Exact) => options.push("kv=exact".into()),
            Some(KvCache::Shared) => options.push("kv=shared".into()),
        }
        if options.is_empty() { Ok(()) } else { write!(f, "[{}]", options.join(",")) }
    }
}

fn write_segments(f: &mut fmt::Formatter<'_>, segments: &[Segment]) -> fmt::Result {
    let mut rest = segments;
    let mut first = true;
    while let Some(segment) = rest.first() {
        let run = rest.iter().take_while(|s| *s == segment).count();
        let repeat = if run > 1 { format!("{run}*") } else { String::new() };
        write!(f, "{}{repeat}{segment}", if first { "" } else { " " })?;
        (first, rest) = (false, &rest[run..]);
    }
    if first { f.write_str("sequential") } else { Ok(()) }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_segments(f, &self.segments)
    }
}

impl fmt::Display for PlacedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_sequential() { f.write_str("sequential") } else { write_segments(f, &self.segments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_matter_where_a_segment_with_some_is_iterated() {
        let settled = |text: &str| {
            let placed = text.parse::<Plan>().unwrap().place(8).unwrap();
            placed.settle_caches(|layers| layers.start < 4)
        };
        for (given, normal, shares) in [
            ("2xF2[k=2] 4xF1[k=2]", "2xF2[k=2,kv=shared] 4xF1[k=2]", false),
            ("4xF1[k=2] s4", "4xF1[k=2,kv=shared] s4", true),
            ("4xF1[k=2,kv=exact] s4", "4xF1[k=2,kv=exact] s4", false),
            ("4xF1[init=batch_fwd] s4", "4xF1[init=batch_fwd,kv=shared] s4", true),
            ("4xF1 4xF1[k=3,kv=exact]", "4xF1 4xF1[k=3]", false),
        ] {
            let placed = settled(given);
            assert_eq!((placed.to_string().as_str(), placed.shares_caches()), (normal, shares), "{given}");
        }
    }
}
