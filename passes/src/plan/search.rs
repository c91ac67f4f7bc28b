//! Candidates for the fastest plan inside a quality budget, from cheap evidence.
//!
//! Evidence comes by *families*: segments that differ only in their start and in their number of units. Of
//! each a cost is known, and how far the state behind it is off from the sequential one. A plan's cost is
//! the sum over its pieces; its *damage* is the sum of the squares of its segments' errors, as of errors in
//! unrelated directions. Damage orders candidates, it does not judge them: that takes an evaluation.

use std::collections::{BTreeMap, HashSet};

use super::{Init, Parallel, Plan, Segment};

/// Segments `CxFM` of one `M` and one choice of options, for every start and every `C` that there is
/// evidence of.
#[derive(Clone, PartialEq, Debug)]
pub struct Family {
    /// The options; its number of units means nothing.
    pub shape: Parallel,
    /// By the first layer: the state's relative error behind 1, 2, … units.
    pub errors: BTreeMap<usize, Vec<f64>>,
    /// Cost of a segment of no units, and of each unit.
    pub cost: (f64, f64),
}

impl Family {
    /// A segment of the family.
    fn segment(&self, units: usize) -> Parallel {
        Parallel { units, ..self.shape }
    }

    /// Whether another family has the same segment of so many units: iterations beyond the units, and first
    /// guesses of a single unit, change nothing.
    fn is_redundant(&self, units: usize) -> bool {
        let p = self.segment(units);
        p.iterations > p.units || (p.units == 1 && (p.init != Init::H0 || p.iterations > 1))
    }

    /// Segments that end at a layer: first layer, segment, cost and damage.
    fn ending(&self, end: usize) -> impl Iterator<Item = (usize, Parallel, f64, f64)> + '_ {
        self.errors.iter().filter_map(move |(start, errors)| {
            let layers = end.checked_sub(*start)?;
            let units = layers / self.shape.fused;
            let whole = layers > 1 && layers.is_multiple_of(self.shape.fused) && !self.is_redundant(units);
            let error = errors.get(units.checked_sub(1)?).filter(|e| whole && e.is_finite())?;
            let cost = self.cost.0 + self.cost.1 * units as f64;
            Some((*start, self.segment(units), cost, error * error))
        })
    }
}

/// A plan with what the evidence says of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// The plan; it covers the layers from the first segment's to the last.
    pub plan: Plan,
    /// Cost, in the families' unit.
    pub cost: f64,
    /// Sum over segments of the squared relative error.
    pub damage: f64,
}

/// Trade-offs between cost and damage that are tried for plans of several segments.
const TRADES: i32 = 48;
/// Segments of a plan, at most.
const SEGMENTS: usize = 4;
/// Fronts of plans with one segment: those that nothing beats, those that only the first front beats.
const FRONTS: usize = 3;

/// Plans for a chain of `layers`, each of which costs `layer`: all with one segment that few others beat,
/// and the best with several at many trade-offs of cost against damage. Ordered by cost.
pub fn candidates(layers: usize, layer: f64, families: &[Family]) -> Vec<Candidate> {
    let mut singles = vec![];
    for family in families {
        for end in 1..=layers {
            for (start, segment, cost, damage) in family.ending(end) {
                let plan = pieces(layers, &[(start, segment)]);
                let cost = cost + layer * (layers - segment.layers()) as f64;
                singles.push(Candidate { plan, cost, damage });
            }
        }
    }
    let saves = |c: &Candidate| c.cost < layer * layers as f64;
    singles.retain(saves);
    let mut out = fronts(singles, FRONTS);
    let scale = out.iter().map(|c| c.damage).filter(|d| *d > 0.0).fold(f64::MAX, f64::min);
    if scale < f64::MAX {
        for segments in 2..=SEGMENTS {
            for trade in 0..TRADES {
                // From where damage is nothing against one layer's cost to where it is everything.
                let weight =
                    layer / scale * 2f64.powi(2 - trade / 2) * if trade % 2 == 0 { 1.0 } else { 0.7 };
                out.extend(best(layers, layer, families, weight, segments).filter(saves));
            }
        }
    }
    let mut seen = HashSet::new();
    out.retain(|c| seen.insert(c.plan.to_string()));
    out.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(a.damage.total_cmp(&b.damage)));
    out
}

/// The plan of segments at these first layers, sequential elsewhere.
fn pieces(layers: usize, segments: &[(usize, Parallel)]) -> Plan {
    let mut out = vec![];
    let mut at = 0;
    for (start, segment) in segments {
        out.extend((*start > at).then(|| Segment::Sequential(start - at)));
        out.push(Segment::Parallel(*segment));
        at = start + segment.layers();
    }
    out.extend((at < layers).then(|| Segment::Sequential(layers - at)));
    Plan { segments: out }
}

/// The first `count` fronts: plans that nothing is both cheaper and less damaging than, then those of the
/// rest, and so on.
fn fronts(mut pool: Vec<Candidate>, count: usize) -> Vec<Candidate> {
    pool.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(a.damage.total_cmp(&b.damage)));
    let mut out = vec![];
    for _ in 0..count {
        let mut least = f64::INFINITY;
        let (front, rest): (Vec<_>, Vec<_>) = pool.into_iter().partition(|c| {
            let better = c.damage < least;
            least = least.min(c.damage);
            better
        });
        out.extend(front);
        pool = rest;
    }
    out
}

/// The plan of at most `segments` segments with the least sum of cost and weighted damage, by dynamic
/// programming over the layers.
fn best(
    layers: usize,
    layer: f64,
    families: &[Family],
    weight: f64,
    segments: usize,
) -> std::option::IntoIter<Candidate> {
    #[derive(Clone, Copy)]
    struct Best {
        sum: f64,
        cost: f64,
        damage: f64,
        last: Option<(usize, Parallel)>,
    }
    // table[used][end]: the best way to the layer `end` with so many segments.
    let none = Best { sum: f64::INFINITY, cost: 0.0, damage: 0.0, last: None };
    let mut table = vec![vec![none; layers + 1]; segments + 1];
    table[0][0].sum = 0.0;
    for end in 1..=layers {
        let ending: Vec<_> = families.iter().flat_map(|f| f.ending(end)).collect();
        for used in 0..=segments {
            let before = table[used][end - 1];
            let mut found = Best { sum: before.sum + layer, cost: before.cost + layer, last: None, ..before };
            for (start, segment, cost, damage) in ending.iter().filter(|_| used > 0) {
                let before = table[used - 1][*start];
                let sum = before.sum + cost + weight * damage;
                if sum < found.sum {
                    let (cost, damage) = (before.cost + cost, before.damage + damage);
                    found = Best { sum, cost, damage, last: Some((*start, *segment)) };
                }
            }
            table[used][end] = found;
        }
    }
    let least = (0..=segments).min_by(|a, b| table[*a][layers].sum.total_cmp(&table[*b][layers].sum));
    let mut used = least.unwrap_or(0);
    let total = table[used][layers];
    let mut placed = vec![];
    let mut end = layers;
    while end > 0 {
        match table[used][end].last {
            Some((start, segment)) => {
                placed.push((start, segment));
                (used, end) = (used - 1, start);
            }
            None => end -= 1,
        }
    }
    placed.reverse();
    let found = (total.sum.is_finite() && !placed.is_empty()).then(|| Candidate {
        plan: pieces(layers, &placed),
        cost: total.cost,
        damage: total.damage,
    });
    found.into_iter()
}

/// Damping that is tried.
const ELK: [f64; 3] = [0.0, 0.1, 0.2];

/// Plans that differ from one in a single choice: a segment with a unit more or fewer at either end, one
/// layer further, with another number of iterations, another first guess (one of `inits`), other damping, or other
/// fusing.
pub fn neighbours(plan: &Plan, layers: usize, inits: &[Init]) -> Vec<Plan> {
    let mut at = 0;
    let mut placed = vec![];
    for segment in plan.place(layers).map(|p| p.segments).unwrap_or_default() {
        if let Segment::Parallel(p) = segment {
            placed.push((at, p));
        }
        at += segment.layers();
    }
    let mut out = vec![];
    for i in 0..placed.len() {
        let (start, p) = placed[i];
        let floor = if i > 0 { placed[i - 1].0 + placed[i - 1].1.layers() } else { 0 };
        let ceiling = placed.get(i + 1).map_or(layers, |next| next.0);
        let mut push = |start: Option<usize>, p: Parallel| {
            let Some(start) = start else { return };
            if p.units > 0 && p.layers() > 1 && start >= floor && start + p.layers() <= ceiling {
                let mut changed = placed.clone();
                changed[i] = (start, Parallel { iterations: p.effective_iterations(), ..p });
                out.push(pieces(layers, &changed));
            }
        };
        let more = Parallel { units: p.units + 1, ..p };
        let fewer = Parallel { units: p.units - 1, ..p };
        push(start.checked_sub(p.fused), more);
        push(Some(start), more);
        push(start.checked_sub(1), p);
        push(Some(start + 1), p);
        push(Some(start + p.fused), fewer);
        push(Some(start), fewer);
        for iterations in [p.iterations + 1, p.iterations - 1] {
            if (1..p.units).contains(&iterations) {
                push(Some(start), Parallel { iterations, ..p });
            }
        }
        if p.units > 1 {
            for init in inits.iter().copied().filter(|init| *init != p.init) {
                push(Some(start), Parallel { init, ..p });
            }
            for elk in ELK.into_iter().filter(|elk| *elk != p.elk) {
                push(Some(start), Parallel { elk, ..p });
            }
        }
        for fused in [p.fused + 1, p.fused * 2, p.fused - 1, p.fused / 2] {
            if fused > 0 && p.layers().is_multiple_of(fused) {
                push(Some(start), Parallel { fused, units: p.layers() / fused, ..p });
            }
        }
    }
    let mut seen = HashSet::from([plan.to_string()]);
    out.retain(|p| seen.insert(p.to_string()));
    out
}

/// Of points with a cost and a loss each, which are on the frontier: no other is cheaper without losing
/// more, or loses less without costing more.
pub fn frontier(points: &[(f64, f64)]) -> Vec<bool> {
    let beats = |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 <= b.1 && (a.0 < b.0 || a.1 < b.1);
    let known = |p: &(f64, f64)| !p.0.is_nan() && !p.1.is_nan();
    points.iter().map(|p| known(p) && !points.iter().any(|other| beats(other, p))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors that grow with the length, and layers before `from` that must not be touched.
    fn family(shape: &str, layers: usize, from: usize, scale: f64, cost: (f64, f64)) -> Family {
        let Ok(Plan { segments }) = shape.parse::<Plan>() else { panic!("{shape}") };
        let Segment::Parallel(shape) = segments[0] else { panic!("parallel") };
        let errors = (0..layers).map(|start| {
            let units = (layers - start) / shape.fused;
            let error = |n: usize| scale * n as f64 * if start < from { 10.0 } else { 1.0 };
            (start, (1..=units).map(error).collect())
        });
        Family { shape, errors: errors.collect(), cost }
    }

    fn texts(found: &[Candidate]) -> Vec<String> {
        found.iter().map(|c| c.plan.to_string()).collect()
    }

    #[test]
    fn candidates_fit_and_save_and_are_ordered() {
        let families = [
            family("1xF1", 8, 3, 0.01, (1.0, 0.05)),
            family("3xF1[k=2]", 8, 3, 0.001, (2.0, 0.1)),
            family("1xF2", 8, 3, 0.03, (1.0, 0.1)),
        ];
        let found = candidates(8, 1.0, &families);
        assert!(found.len() > 10, "{:?}", texts(&found));
        for c in &found {
            let placed = c.plan.place(8).unwrap();
            assert_eq!(placed.layers, 8);
            assert!(c.cost < 8.0 && c.damage >= 0.0, "{} costs {}", c.plan, c.cost);
            assert_eq!(placed.to_string(), c.plan.place(8).unwrap().to_string());
        }
        assert!(found.windows(2).all(|w| w[0].cost <= w[1].cost));
        let texts = texts(&found);
        assert!(texts.contains(&"s3 5xF1".into()), "the bad layers stay sequential: {texts:?}");
        assert!(texts.iter().any(|t| t.contains("k=2")), "{texts:?}");
        assert!(texts.iter().any(|t| t.split(' ').filter(|s| s.contains('F')).count() > 1), "{texts:?}");
        assert!(!texts.iter().any(|t| t.contains("1xF1") || t.contains("2xF1[k=3")), "{texts:?}");
    }

    #[test]
    fn dynamic_programming_finds_what_trying_all_finds() {
        let families = [family("1xF1", 5, 2, 0.1, (0.9, 0.15)), family("1xF2", 5, 1, 0.2, (0.8, 0.3))];
        for weight in [0.1, 1.0, 3.0, 10.0, 100.0] {
            // All ways to place at most two segments.
            let mut least = f64::INFINITY;
            let all: Vec<_> =
                (1..=5).flat_map(|end| families.iter().flat_map(move |f| f.ending(end))).collect();
            for a in &all {
                let one = a.2 + weight * a.3 + (5 - a.1.layers()) as f64;
                least = least.min(one);
                for b in all.iter().filter(|b| b.0 >= a.0 + a.1.layers()) {
                    let two = a.2 + b.2 + weight * (a.3 + b.3) + (5 - a.1.layers() - b.1.layers()) as f64;
                    least = least.min(two);
                }
            }
            let found = best(5, 1.0, &families, weight, 2).next();
            let sum = found.map_or(5.0, |c| c.cost + weight * c.damage);
            assert!((sum - least.min(5.0)).abs() < 1e-9, "{weight}: {sum} instead of {least}");
        }
    }

    #[test]
    fn neighbours_differ_in_one_choice_and_fit() {
        let plan: Plan = "s2 4xF1 s2".parse().unwrap();
        let all: Vec<String> =
            neighbours(&plan, 8, &[Init::H0, Init::BatchForward]).iter().map(ToString::to_string).collect();
        for expected in [
            "s1 5xF1 s2",
            "s2 5xF1 s1",
            "s1 4xF1 s3",
            "s3 4xF1 s1",
            "s3 3xF1 s2",
            "s2 3xF1 s3",
            "s2 4xF1[k=2] s2",
            "s2 4xF1[init=batch_fwd] s2",
            "s2 4xF1[elk=0.1] s2",
            "s2 2xF2 s2",
        ] {
            assert!(all.contains(&expected.to_string()), "{expected} is not in {all:?}");
        }
        for text in &all {
            let plan: Plan = text.parse().unwrap();
            assert_eq!(plan.segments.iter().map(Segment::layers).sum::<usize>(), 8, "{text}");
        }
        // Segments that touch do not grow into one another.
        for plan in neighbours(&"2xF1 2xF1".parse().unwrap(), 4, &[Init::Preheat]) {
            assert!(plan.place(4).is_ok(), "{plan}");
        }
        assert!(neighbours(&Plan::sequential(), 8, &[Init::Preheat]).is_empty());
    }

    #[test]
    fn the_frontier_is_what_nothing_beats() {
        let points = [(1.0, 0.0), (0.5, 0.1), (0.6, 0.2), (0.5, 0.1), (0.4, f64::NAN), (0.3, 0.5)];
        assert_eq!(frontier(&points), [true, true, false, true, false, true]);
    }
}
