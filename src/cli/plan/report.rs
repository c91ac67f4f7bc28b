//! What a search found: for people, for programs, as a plan file and as a page.

use std::path::Path;

use serde_json::{Value, json};
use snlp::error::Error;
use snlp::passes::plan::search::frontier;
use snlp::plan_file::{self, PlanFile};
use snlp::source::Source;

use super::Optimize;
use super::search::Search;
use crate::cli::html::{Point, Report, number};
use crate::cli::ui::{self, BOLD, Table, Ui};

/// Rows of the frontier that are shown, at most.
const ROWS: usize = 16;

/// A finished search.
pub struct Outcome<'a> {
    pub search: &'a Search<'a>,
    /// Number of the chosen plan; 0 is the sequential model.
    pub chosen: usize,
    /// Milliseconds of a window, sequential and chosen.
    pub ms: (f64, f64),
    pub device: String,
    pub optimize: Optimize,
    pub seed: u64,
    pub seconds: f64,
}

impl Outcome<'_> {
    fn all(&self) -> std::ops::Range<usize> {
        0..self.search.found.len()
    }

    /// The sequential model, the frontier and the chosen plan, the fastest last.
    fn rows(&self) -> Vec<usize> {
        let points: Vec<(f64, f64)> = self.all().map(|n| (self.search.found[n].cost, self.loss(n))).collect();
        let on = frontier(&points);
        let mut rows: Vec<usize> = self.all().filter(|n| *n == 0 || *n == self.chosen || on[*n]).collect();
        rows.sort_by(|a, b| {
            points[*b].0.total_cmp(&points[*a].0).then(points[*a].1.total_cmp(&points[*b].1))
        });
        // The first of those far outside the budget say enough.
        while rows.len() > ROWS {
            rows.pop();
        }
        rows
    }

    /// What the frontier is drawn by: distance from the sequential model, which cannot be luck as a lower
    /// perplexity can.
    fn loss(&self, number: usize) -> f64 {
        if number == 0 { 0.0 } else { self.search.quality(number).0.kl }
    }

    fn name(&self, number: usize) -> String {
        self.search.found[number].plan.to_string()
    }

    /// Modelled speed-up over the sequential model.
    fn speedup(&self, number: usize) -> f64 {
        self.search.found[0].cost / self.search.found[number].cost
    }

    fn depth(&self, number: usize) -> usize {
        self.search.found[number].plan.sequential_depth()
    }

    /// Windows and tokens that a plan was evaluated on.
    fn seen(&self, number: usize) -> (usize, usize) {
        let windows = &self.search.found[number].measured.windows;
        (windows.len(), windows.iter().map(|w| w.tokens).sum())
    }

    /// Perplexities of a plan and of the sequential model on the same windows.
    fn perplexities(&self, number: usize) -> (f64, f64) {
        let ppl = self.search.found[number].measured.ppl();
        (ppl, ppl / (1.0 + self.search.quality(number).0.change))
    }

    /// The cells of a plan's row, behind its name.
    fn cells(&self, number: usize) -> Vec<String> {
        let found = &self.search.found[number];
        let dispatches = found.dispatches.map_or("-".into(), |n| n.to_string());
        let mut cells =
            vec![self.depth(number).to_string(), dispatches, format!("{:.2}x", self.speedup(number))];
        if number == 0 {
            cells.extend([String::new(), String::new(), String::new()]);
        } else {
            let (q, _) = self.search.quality(number);
            cells.extend([
                format!("{:+.2} %", 100.0 * q.change),
                format!("{:.5}", q.kl),
                format!("{:.2} %", 100.0 * q.top1),
            ]);
        }
        cells.push(self.seen(number).0.to_string());
        cells
    }

    fn costs(&self) -> String {
        let p = &self.search.model.profile;
        if !self.search.scheduled {
            return "cost: layers or units one after the other; the model's forward cannot be scheduled without \
                    its inputs"
                .into();
        }
        format!(
            "speed-up: modelled, batch 1 x {} positions, {} us per dispatch, {} GB/s, {} TFLOP/s",
            self.search.model.positions,
            number(p.dispatch * 1e6),
            number(p.bandwidth * 1e-9),
            number(p.flops * 1e-12)
        )
    }

    /// What was found, in sentences.
    fn verdict(&self) -> Vec<String> {
        let search = self.search;
        let all = search.windows.count();
        let (seen, tokens) = self.seen(self.chosen);
        if self.chosen == 0 {
            let mut out = vec![format!(
                "no plan that was tried is cheaper than the sequential model and inside {}",
                search.budget
            )];
            let near = (1..search.found.len()).filter(|n| search.found[*n].cost < search.found[0].cost);
            let spent = |n: &usize| search.budget.spent(&search.quality(*n).0);
            if let Some(n) = near.min_by(|a, b| spent(a).total_cmp(&spent(b))) {
                let q = search.quality(n).0;
                out.push(format!(
                    "closest: {}, perplexity {:+.2} %, kl {:.5}, top1 {:.2} %, on {}",
                    self.name(n),
                    100.0 * q.change,
                    q.kl,
                    100.0 * q.top1,
                    ui::count(self.seen(n).0, "window")
                ));
            }
            return out;
        }
        let (ppl, sequential) = self.perplexities(self.chosen);
        let q = search.quality(self.chosen).0;
        let part = if seen < all { format!(" of {all}: the time limit was reached") } else { String::new() };
        vec![
            format!(
                "perplexity {ppl:.3} against {sequential:.3} ({:+.2} %), kl {:.5}, top1 {:.2} %, on {} ({tokens} \
                 tokens){part}",
                100.0 * q.change,
                q.kl,
                100.0 * q.top1,
                ui::count(seen, "window")
            ),
            format!(
                "sequential depth {} instead of {}; {:.1} ms against {:.1} ms for a window on {}",
                self.depth(self.chosen),
                self.depth(0),
                self.ms.1,
                self.ms.0,
                self.device
            ),
        ]
    }

    /// For people.
    pub fn text(&self, file: Option<&Path>) -> String {
        let mut out = format!("{BOLD}{}: {}{BOLD:#}\n", self.search.budget, self.name(self.chosen));
        for line in self.verdict() {
            out += &format!("  {line}\n");
        }
        if let Some(file) = file {
            out += &format!("  written to {}\n", ui::path(file));
        }
        let mut table =
            Table::new(&["plan", "depth", "dispatches", "speed-up", "ppl", "kl", "top1", "windows", ""])
                .right(&[1, 2, 3, 4, 5, 6, 7]);
        for n in self.rows() {
            let mark = if n == self.chosen { "chosen" } else { "" };
            table.row([vec![self.name(n)], self.cells(n), vec![mark.to_string()]].concat());
        }
        let evaluated = ui::count(self.search.found.len() - 1, "plan");
        out + "\n"
            + &table.render(0)
            + &format!("{}\n{evaluated} evaluated in {:.0} s\n", self.costs(), self.seconds)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let row = |n: usize| {
            let q = self.search.quality(n).0;
            let (windows, tokens) = self.seen(n);
            let (ppl, sequential) = self.perplexities(n);
            let (change, kl, top1) = if n == 0 { (0.0, 0.0, 1.0) } else { (q.change, q.kl, q.top1) };
            json!({
                "plan": self.name(n),
                "sequential_depth": self.depth(n),
                "dispatches": self.search.found[n].dispatches,
                "cost": self.search.found[n].cost,
                "modelled_speedup": self.speedup(n),
                "ppl": ppl,
                "sequential_ppl": if n == 0 { ppl } else { sequential },
                "ppl_change": change,
                "kl": kl,
                "top1": top1,
                "windows": windows,
                "tokens": tokens,
            })
        };
        let p = &self.search.model.profile;
        json!({
            "plan": self.name(self.chosen),
            "budget": self.search.budget.to_string(),
            "optimize": self.optimize.name(),
            "seed": self.seed,
            "device": self.device,
            "windows": self.search.windows.count(),
            "chosen": row(self.chosen),
            "ms": self.ms.1,
            "sequential_ms": self.ms.0,
            "frontier": self.rows().into_iter().map(row).collect::<Vec<_>>(),
            "evaluated": self.search.found.len() - 1,
            "cost_model": {
                "scheduled": self.search.scheduled,
                "dispatch_us": p.dispatch * 1e6,
                "gb_per_s": p.bandwidth * 1e-9,
                "tflop_per_s": p.flops * 1e-12,
                "positions": self.search.model.positions,
            },
            "seconds": self.seconds,
        })
    }

    /// As a plan file.
    pub fn file(&self, source: &Source) -> PlanFile {
        let (windows, tokens) = self.seen(self.chosen);
        let (ppl, sequential) = self.perplexities(self.chosen);
        let q = self.search.quality(self.chosen).0;
        let same = self.chosen == 0;
        let file = source.path.file_name().unwrap_or_default().to_string_lossy();
        PlanFile {
            plan: self.name(self.chosen),
            model: Some(plan_file::Model {
                file: file.into_owned(),
                sha256: source.model.info.fingerprint.sha256().to_string(),
                layers: self.search.found[0].plan.layers,
            }),
            search: Some(plan_file::Search {
                budget: self.search.budget.to_string(),
                optimize: self.optimize.name().into(),
                seed: self.seed,
                version: env!("CARGO_PKG_VERSION").into(),
            }),
            measured: Some(plan_file::Measured {
                windows,
                tokens,
                ppl,
                sequential_ppl: if same { ppl } else { sequential },
                kl: if same { 0.0 } else { q.kl },
                top1: if same { 1.0 } else { q.top1 },
                sequential_depth: self.depth(self.chosen),
                cost: 1.0 / self.speedup(self.chosen),
                ms: self.ms.1,
                sequential_ms: self.ms.0,
                device: self.device.clone(),
            }),
        }
    }

    /// As a page.
    pub fn page(&self, ui: &Ui) -> Result<Report, Error> {
        let rows = self.rows();
        let plans: Vec<_> =
            rows.iter().filter(|n| **n > 0).map(|n| self.search.found[*n].plan.clone()).collect();
        let heat = self.search.evaluation.heat(&plans, &self.search.windows, ui)?;
        let point = |n: &usize| Point {
            label: self.name(*n),
            speedup: self.speedup(*n),
            change: if *n == 0 { 0.0 } else { self.search.quality(*n).0.change },
            frontier: true,
            chosen: *n == self.chosen,
            cells: self.cells(*n),
        };
        let columns = ["depth", "dispatches", "speed-up", "ppl", "kl", "top1", "windows"];
        let mut about = vec![format!("{}: {}", self.search.budget, self.name(self.chosen))];
        about.extend(self.verdict());
        about.push(self.costs());
        let file = self.search.evaluation.source.path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Report {
            command: "plan",
            title: format!("Plans for {file}"),
            about,
            speed: "speed-up, modelled".into(),
            points: rows.iter().map(point).collect(),
            columns: columns.map(String::from).to_vec(),
            heat,
        })
    }
}
