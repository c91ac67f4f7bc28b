//! The search: cheap evidence, then real evaluation of fewer plans on more windows.
//!
//! ```text
//!   evidence     families of segments × starts: error of every state on a few hundred tokens
//!   candidates   what the evidence finds worth trying, at all damages
//!   generations  a few windows each: what the evidence still offers below the cheapest plan inside the
//!                budget, and what differs from the best plans in one choice
//!   halving      4 times the windows for 12 plans, 16 times for 6
//!   final        all windows for the cheapest plans, until one is inside the budget
//! ```
//!
//! All plans are compared with the sequential model window by window, so what is hard about a window cancels.
//! Windows are taken in an order that the seed decides; nothing else is left to chance.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use snlp::error::Error;
use snlp::language::budget::{Budget, Quality};
use snlp::language::windows::Windows;
use snlp::passes::ir::Graph;
use snlp::passes::plan::search::{Candidate, Family, candidates, neighbours};
use snlp::passes::plan::{Init, Parallel, PlacedPlan, Plan, Segment};
use snlp::preheat;
use snlp::runtime::schedule::Profile;
use snlp::source::plan_error;
use snlp::summary::typical_schedule;

use crate::cli::evaluate::{Evaluation, whole_windows};
use crate::cli::evidence::Tapped;
use crate::cli::measure::Measured;
use crate::cli::ui::Ui;

/// Tokens that the first evaluations use, about.
const FIRST_TOKENS: usize = 512;
/// Plans of the first evaluation.
const FIRST_PLANS: usize = 24;
/// Generations, and plans that each adds.
const GENERATIONS: usize = 3;
const GENERATION_PLANS: usize = 12;
/// Rounds of halving: times as many windows as the first evaluation, and plans that take part.
const HALVING: [(usize, usize); 2] = [(4, 12), (16, 6)];
/// Plans that are evaluated on all windows at once, and how often.
const FINAL_PLANS: usize = 2;
const FINAL_ROUNDS: usize = 6;
/// First layers of segments that evidence is gathered for, at most.
const STARTS: usize = 16;

/// A plan with what is known of it.
pub struct Found {
    /// The plan.
    pub plan: PlacedPlan,
    /// The model under it.
    pub graph: Graph,
    /// Modelled cost of a forward: seconds, or units one after the other where it cannot be scheduled.
    pub cost: f64,
    /// Dispatches of that forward.
    pub dispatches: Option<usize>,
    /// Quality on the windows so far.
    pub measured: Measured,
}

/// What cost means.
#[derive(Clone, Copy)]
pub struct CostModel {
    /// The device.
    pub profile: Profile,
    /// Positions of a forward at batch 1.
    pub positions: usize,
}

/// A search under way.
pub struct Search<'a> {
    pub evaluation: Evaluation<'a>,
    pub budget: &'a Budget,
    pub model: CostModel,
    pub start: Instant,
    pub deadline: Option<Instant>,
    pub ui: &'a Ui,
    /// In the order that they are used in.
    pub windows: Windows,
    /// Whether forwards can be scheduled, so that cost is time.
    pub scheduled: bool,
    /// The sequential model first.
    pub found: Vec<Found>,
    /// First guesses that segments may start from.
    inits: Vec<Init>,
    /// Texts of plans that were tried, whether they could be applied or not.
    tried: HashSet<String>,
    /// Whether a choice goes by measured time, in milliseconds by number of the plan.
    pub times: Option<BTreeMap<usize, f64>>,
}

impl<'a> Search<'a> {
    /// A search that knows the sequential model.
    pub fn new(
        evaluation: Evaluation<'a>,
        budget: &'a Budget,
        model: CostModel,
        time_limit: Option<Duration>,
        windows: Windows,
        ui: &'a Ui,
    ) -> Result<Self, Error> {
        let source = evaluation.source;
        let mut inits = vec![Init::H0, Init::BatchForward];
        match preheat::beside(&source.path, source.model.info.fingerprint.sha256()) {
            Ok(None) => {}
            Ok(Some(_)) => inits.push(Init::Preheat),
            // Plans need not start from it.
            Err(e) => ui.warn(&format!("init=preheat is not tried: {e}")),
        }
        let mut search = Search {
            evaluation,
            budget,
            model,
            start: Instant::now(),
            deadline: time_limit.map(|limit| Instant::now() + limit),
            ui,
            windows,
            scheduled: true,
            found: vec![],
            inits,
            tried: HashSet::new(),
            times: None,
        };
        let plan = search.place(&Plan::sequential())?;
        let graph = whole_windows(search.evaluation.source, &plan)?;
        let cost = search.cost(&plan, &graph);
        search.scheduled = cost.is_some();
        let (cost, dispatches) = cost.unwrap_or((plan.sequential_depth() as f64, None));
        search.tried.insert(plan.to_string());
        search.found.push(Found { plan, graph, cost, dispatches, measured: Measured::default() });
        Ok(search)
    }

    fn place(&self, plan: &Plan) -> Result<PlacedPlan, Error> {
        let layers = self.evaluation.source.chain()?.layers.len();
        // Whole windows at once: caches play no part in what is searched.
        Ok(plan.place(layers).map_err(plan_error)?.settle_caches(|_| false))
    }

    /// Prepares a plan; none when it was tried before or cannot be applied.
    fn add(&mut self, plan: &Plan) -> Result<Option<usize>, Error> {
        let plan = self.place(plan)?;
        if !self.tried.insert(plan.to_string()) {
            return Ok(None);
        }
        let Ok(graph) = whole_windows(self.evaluation.source, &plan) else { return Ok(None) };
        let Some((cost, dispatches)) = self.cost(&plan, &graph) else { return Ok(None) };
        self.found.push(Found { plan, graph, cost, dispatches, measured: Measured::default() });
        Ok(Some(self.found.len() - 1))
    }

    /// Cost and dispatches of a forward.
    fn cost(&self, plan: &PlacedPlan, graph: &Graph) -> Option<(f64, Option<usize>)> {
        if !self.scheduled {
            return Some((plan.sequential_depth() as f64, None));
        }
        let schedule = typical_schedule(graph, self.model.positions)?;
        Some((schedule.cost(&self.model.profile), Some(schedule.steps.len())))
    }

    fn say(&self, what: &str) {
        self.ui.notice(&format!("{:5.1} s: {what}", self.start.elapsed().as_secs_f64()));
    }

    fn say_best(&self) {
        if let Some(n) = self.hopeful().first() {
            let (plan, windows) = (&self.found[*n].plan, self.found[*n].measured.windows.len());
            self.say(&format!("{plan} is the cheapest so far, on {windows} of the windows"));
        }
    }

    /// Whether time is up.
    fn late(&self) -> bool {
        self.deadline.is_some_and(|d| Instant::now() >= d)
    }

    /// Evaluates plans on windows up to `until`, those they have seen left out.
    fn measure(&mut self, numbers: &[usize], until: usize) -> Result<(), Error> {
        let until = until.min(self.windows.count());
        let mut by_seen: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for number in numbers {
            let seen = self.found[*number].measured.windows.len();
            if seen < until && *number > 0 {
                by_seen.entry(seen).or_default().push(*number);
            }
        }
        for (seen, numbers) in by_seen {
            let windows = self.windows.select(&(seen..until).collect::<Vec<_>>());
            let all: Vec<usize> = std::iter::once(0).chain(numbers).collect();
            let graphs: Vec<Graph> = all.iter().map(|n| self.found[*n].graph.clone()).collect();
            let measured = self.evaluation.quality(&graphs, &windows, self.ui)?;
            for (number, more) in all.into_iter().zip(measured) {
                let known = &mut self.found[number].measured;
                // The sequential model may have seen more than these plans.
                let again = known.windows.len() - seen;
                known.extend(more.windows.into_iter().skip(again));
            }
        }
        Ok(())
    }

    /// Quality of a plan on the windows it has seen, and the standard errors of that.
    pub fn quality(&self, number: usize) -> (Quality, Quality) {
        let plan = &self.found[number].measured;
        let sequential = &self.found[0].measured.windows;
        let pairs = || plan.windows.iter().zip(sequential);
        let tokens: usize = pairs().map(|(p, _)| p.tokens).sum();
        let rise: f64 = pairs().map(|(p, s)| p.nll - s.nll).sum::<f64>() / tokens as f64;
        let mean = Quality { change: rise.exp_m1(), kl: plan.deviation.kl(), top1: plan.deviation.top1() };
        let spread = |of: &dyn Fn(usize) -> f64, mean: f64| {
            let n = plan.windows.len() as f64;
            let squares: f64 = (0..plan.windows.len()).map(|i| (of(i) - mean).powi(2)).sum();
            // One window says nothing of its spread: half of the value is a guess that keeps plans in.
            if n < 2.0 { 0.5 * mean.abs() } else { (squares / (n - 1.0) / n).sqrt() }
        };
        let of_window = |i: usize| (plan.windows[i], sequential[i]);
        let error = Quality {
            change: spread(
                &|i| {
                    let (p, s) = of_window(i);
                    (p.nll - s.nll) / p.tokens as f64
                },
                rise,
            ),
            kl: spread(&|i| of_window(i).0.deviation.kl(), mean.kl),
            top1: spread(&|i| of_window(i).0.deviation.top1(), mean.top1),
        };
        (mean, error)
    }

    /// How much of the budget a plan spends if its windows were `sigmas` standard errors too hard.
    fn spent(&self, number: usize, sigmas: f64) -> f64 {
        let (mean, error) = self.quality(number);
        let shifted = Quality {
            change: mean.change - sigmas * error.change,
            kl: mean.kl - sigmas * error.kl,
            top1: mean.top1 + sigmas * error.top1,
        };
        self.budget.spent(&shifted)
    }

    /// What a choice makes small.
    pub fn price(&self, number: usize) -> f64 {
        match &self.times {
            Some(times) => times.get(&number).copied().unwrap_or(f64::INFINITY),
            None => self.found[number].cost,
        }
    }

    /// Numbers of plans that may be inside the budget and save something, the cheapest first.
    fn hopeful(&self) -> Vec<usize> {
        let own = self.price(0);
        let mut hopeful: Vec<usize> =
            (1..self.found.len()).filter(|n| self.price(*n) < own && self.spent(*n, 1.0) <= 1.0).collect();
        hopeful.sort_by(|a, b| {
            self.price(*a)
                .total_cmp(&self.price(*b))
                .then(self.spent(*a, 0.0).total_cmp(&self.spent(*b, 0.0)))
        });
        hopeful
    }

    /// Evidence of the families that the chain can be rewritten after.
    fn families(&self) -> Result<Vec<Family>, Error> {
        let tapped = Tapped::of(self.evaluation.source)?;
        let layers = self.evaluation.source.chain()?.layers.len();
        let step = layers.div_ceil(STARTS).max(1);
        let new = |fused: usize, iterations: usize, init: Init| Parallel {
            iterations,
            init,
            ..Parallel::new(1, fused)
        };
        let mut shapes = vec![
            new(1, 1, Init::H0),
            new(1, 2, Init::H0),
            new(1, 1, Init::BatchForward),
            new(2, 1, Init::H0),
            new(2, 2, Init::H0),
            new(3, 1, Init::H0),
            new(4, 1, Init::H0),
            new(6, 1, Init::H0),
        ];
        if self.inits.contains(&Init::Preheat) {
            shapes.extend([new(1, 1, Init::Preheat), new(1, 2, Init::Preheat)]);
        }
        let mut asked = vec![];
        for (kind, shape) in shapes.iter().enumerate() {
            for start in (0..layers).step_by(step) {
                let units = (layers - start) / shape.fused;
                if units * shape.fused > 1 {
                    let segment = Parallel { units, ..*shape };
                    asked.push((kind, start, self.place(&alone(layers, start, segment))?));
                }
            }
        }
        let plans: Vec<PlacedPlan> = asked.iter().map(|(_, _, plan)| plan.clone()).collect();
        let errors = self.evaluation.state_errors(&tapped, &plans, &self.windows, self.ui)?;
        let own = self.found[0].cost;
        let mut families = vec![];
        for (kind, shape) in shapes.into_iter().enumerate() {
            let mut family = Family { shape, errors: BTreeMap::new(), cost: (0.0, 0.0) };
            for ((_, start, _), errors) in asked.iter().zip(&errors).filter(|((k, _, _), _)| *k == kind) {
                let Some(errors) = errors else { continue };
                let behind = errors.iter().skip(start + shape.fused - 1).step_by(shape.fused);
                family.errors.insert(*start, behind.map(|e| e.unwrap_or(0.0)).collect());
            }
            let most = layers / shape.fused;
            let least = if shape.fused == 1 { shape.iterations.max(2) } else { shape.iterations };
            let costs = [least, most].map(|units| {
                let segment = Parallel { units, ..shape };
                let plan = self.place(&alone(layers, layers.checked_sub(segment.layers())?, segment)).ok()?;
                let graph = whole_windows(self.evaluation.source, &plan).ok()?;
                // What the layers that it replaces cost apart.
                let replaced = own * segment.layers() as f64 / layers as f64;
                Some(self.cost(&plan, &graph)?.0 - own + replaced)
            });
            let [Some(small), Some(large)] = costs else { continue };
            let each = if most > least { (large - small) / (most - least) as f64 } else { 0.0 };
            family.cost = (small - each * least as f64, each);
            families.push(family);
        }
        Ok(families)
    }

    /// Searches; the numbers of the plans that were evaluated on all windows, and the chosen one.
    pub fn run(&mut self, by_time: bool) -> Result<usize, Error> {
        let layers = self.evaluation.source.chain()?.layers.len();
        let families = self.families()?;
        let own = self.found[0].cost;
        let mut pool = candidates(layers, own / layers as f64, &families);
        self.say(&format!("{} plans are worth a look", pool.len()));
        let first = FIRST_TOKENS.div_ceil(self.windows.length()).clamp(1, self.windows.count());

        let mut numbers = vec![];
        for candidate in spread(&pool, FIRST_PLANS) {
            numbers.extend(self.add(&candidate.plan)?);
        }
        self.measure(&numbers, first)?;
        for _ in 0..GENERATIONS {
            let before = self.hopeful().first().copied();
            let limit = before.map_or(own, |n| self.found[n].cost);
            pool.retain(|c| c.cost < limit);
            let proposed = self.propose(&pool, limit, layers)?;
            if proposed.is_empty() || self.late() {
                break;
            }
            self.measure(&proposed, first)?;
            self.say_best();
            if before.is_some() && self.hopeful().first().copied() == before {
                break;
            }
        }
        for (times, plans) in HALVING {
            let survivors = self.survivors(plans);
            if self.late() {
                break;
            }
            self.measure(&survivors, first * times)?;
            self.say_best();
        }
        if by_time {
            self.time()?;
        }
        self.decide()
    }

    /// Plans that are cheaper than what is known to be inside the budget: the least damaging that the
    /// evidence offers, and those one choice away from the best.
    fn propose(&mut self, pool: &[Candidate], limit: f64, layers: usize) -> Result<Vec<usize>, Error> {
        let mut offered: Vec<&Candidate> = pool.iter().collect();
        offered.sort_by(|a, b| a.damage.total_cmp(&b.damage));
        let mut numbers = vec![];
        for candidate in offered {
            if numbers.len() >= GENERATION_PLANS / 2 {
                break;
            }
            numbers.extend(self.add(&candidate.plan)?);
        }
        let mut near = vec![];
        for number in self.hopeful().into_iter().take(4) {
            let plan = Plan { segments: self.found[number].plan.segments.clone() };
            near.extend(neighbours(&plan, layers, &self.inits));
        }
        for plan in near {
            if numbers.len() >= GENERATION_PLANS {
                break;
            }
            if let Some(number) = self.add(&plan)? {
                // What costs more than a plan that is good enough needs no evaluation.
                if self.found[number].cost < limit {
                    numbers.push(number);
                } else {
                    self.found.pop();
                }
            }
        }
        Ok(numbers)
    }

    /// The plans that are evaluated further: the cheapest that may be inside the budget, and the cheapest
    /// that hardly can be outside.
    fn survivors(&self, count: usize) -> Vec<usize> {
        let hopeful = self.hopeful();
        let safe = hopeful.iter().copied().find(|n| self.spent(*n, -1.0) <= 1.0);
        let mut survivors: Vec<usize> = hopeful.into_iter().take(count).collect();
        survivors.extend(safe.filter(|s| !survivors.contains(s)));
        survivors
    }

    /// Times the sequential model and what is left, one window at a time.
    fn time(&mut self) -> Result<(), Error> {
        let numbers: Vec<usize> = std::iter::once(0).chain(self.survivors(HALVING[0].1)).collect();
        let ms = self.milliseconds(&numbers)?;
        self.times = Some(numbers.into_iter().zip(ms).collect());
        Ok(())
    }

    /// Milliseconds of one window under plans of these numbers; the first is the sequential model.
    pub fn milliseconds(&self, numbers: &[usize]) -> Result<Vec<f64>, Error> {
        let graphs: Vec<Graph> = numbers.iter().map(|n| self.found[*n].graph.clone()).collect();
        let mut measured = vec![Measured::default(); numbers.len()];
        let one = Evaluation { batch: 1, ..self.evaluation };
        one.time(&graphs, &self.windows, &mut measured, self.ui)?;
        Ok(measured.into_iter().map(|m| m.ms).collect())
    }

    /// Evaluates the cheapest plans on all windows until one is inside the budget: that one, else the
    /// sequential model.
    fn decide(&mut self) -> Result<usize, Error> {
        let mut done = HashSet::new();
        for _ in 0..FINAL_ROUNDS {
            let next: Vec<usize> =
                self.hopeful().into_iter().filter(|n| !done.contains(n)).take(FINAL_PLANS).collect();
            if next.is_empty() {
                break;
            }
            done.extend(next.iter().copied());
            let batch = self.evaluation.batch.max(1);
            let seen = next.iter().map(|n| self.found[*n].measured.windows.len()).min().unwrap_or(0);
            if self.deadline.is_none() {
                self.measure(&next, self.windows.count())?;
            }
            for until in (seen..self.windows.count()).step_by(batch).map(|n| n + batch) {
                if self.deadline.is_none() || self.late() {
                    break;
                }
                self.measure(&next, until)?;
            }
            let inside = self.hopeful().into_iter().find(|n| done.contains(n) && self.spent(*n, 0.0) <= 1.0);
            if let Some(chosen) = inside {
                return Ok(chosen);
            }
        }
        Ok(0)
    }
}

/// The plan of one segment from a layer on.
fn alone(layers: usize, start: usize, segment: Parallel) -> Plan {
    let rest = layers - start - segment.layers();
    let sequential = |n: usize| (n > 0).then_some(Segment::Sequential(n));
    let segments = [sequential(start), Some(Segment::Parallel(segment)), sequential(rest)];
    Plan { segments: segments.into_iter().flatten().collect() }
}

/// The cheapest candidate of each of `count` ranges of damage, equal on a logarithmic scale.
fn spread(pool: &[Candidate], count: usize) -> Vec<Candidate> {
    let level = |c: &Candidate| c.damage.max(1e-12).ln();
    let (low, high) = pool.iter().fold((f64::MAX, f64::MIN), |(l, h), c| (l.min(level(c)), h.max(level(c))));
    let mut cheapest: BTreeMap<usize, &Candidate> = BTreeMap::new();
    for candidate in pool {
        let part = (level(candidate) - low) / (high - low).max(1e-9);
        let range = ((part * count as f64) as usize).min(count - 1);
        // The pool is ordered by cost.
        cheapest.entry(range).or_insert(candidate);
    }
    cheapest.into_values().cloned().collect()
}
