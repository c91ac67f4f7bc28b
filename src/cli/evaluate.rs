//! Plans of one model evaluated together: what they share is computed once.

use snlp::error::{Error, Kind};
use snlp::language::inputs::{logits_alone, logits_output, token_feeds};
use snlp::language::windows::Windows;
use snlp::passes::ir::Graph;
use snlp::passes::plan::PlacedPlan;
use snlp::passes::rewrite::merge;
use snlp::source::Source;

use super::backend::Backend;
use super::measure::{self, Forward, Joint, Measured};
use super::ui::Ui;

/// Plans that run as one graph: more share more, but their logits are all held at once.
const MERGED: usize = 16;
/// Forwards of each plan that are timed, at most.
const ROUNDS: usize = 3;

/// A model on a device with windows to evaluate.
pub struct Evaluation<'a> {
    /// The device.
    pub backend: &'a Backend,
    /// The model.
    pub source: &'a Source,
    /// Windows that run at once.
    pub batch: usize,
}

/// The model under a plan, with its logits as its only output. Whole windows are evaluated at once: nothing
/// is kept from one to the next, and no cache is wanted.
pub fn whole_windows(source: &Source, plan: &PlacedPlan) -> Result<Graph, Error> {
    let plan = plan.clone().settle_caches(|_| false);
    logits_alone(source.rewrite(&plan)?.graph).map_err(|e| e.about(&source.path))
}

impl Evaluation<'_> {
    /// Likelihood of every graph, and its distance from the first, which is the sequential model.
    pub fn quality(&self, graphs: &[Graph], windows: &Windows, ui: &Ui) -> Result<Vec<Measured>, Error> {
        let (_, logits) = logits_output(&self.source.graph)?;
        let fits = measure::windows_held(windows, measure::vocabulary(self.source)?) / self.batch.max(1);
        let mut merged = Vec::new();
        let mut names = Vec::new();
        for part in graphs.chunks(fits.clamp(1, MERGED)) {
            merged.push(merge(part).map_err(|e| Error::new(Kind::Internal, e.to_string()))?);
            names.push((0..part.len()).map(|i| format!("{i}/{logits}")).collect::<Vec<_>>());
        }
        let runners = self.backend.load(merged).map_err(|e| e.about(&self.source.path))?;
        let joint = |(runner, logits)| Joint { runner, graph: &self.source.graph, logits };
        let joints: Vec<Joint> = runners.iter().zip(names).map(joint).collect();
        measure::quality(self.source, &joints, windows, self.batch, ui)
    }

    /// Times every graph alone, each group of plans in turns with the sequential model, which is the first.
    pub fn time(
        &self,
        graphs: &[Graph],
        windows: &Windows,
        measured: &mut [Measured],
        ui: &Ui,
    ) -> Result<(), Error> {
        let about = |e: Error| e.about(&self.source.path);
        let feeds = token_feeds(&self.source.graph, &windows.batch(0..self.batch.min(windows.count())))?;
        let [sequential, plans @ ..] = graphs else { return Ok(()) };
        let bar = ui.progress((plans.len().max(1) * (1 + ROUNDS)) as u64, "timing");
        let mut of_sequential = Vec::new();
        let mut at = 1;
        let groups = if plans.is_empty() { vec![plans] } else { plans.chunks(MERGED).collect() };
        for group in groups {
            let together = std::iter::once(sequential).chain(group).cloned().collect();
            let runners = self.backend.load(together).map_err(about)?;
            let forwards: Vec<Forward> = runners.iter().map(|runner| (runner, feeds.as_slice())).collect();
            let mut times = measure::times(&forwards, ROUNDS, &bar).map_err(about)?.into_iter();
            of_sequential.extend(times.next().unwrap_or_default());
            for times in times {
                if let Some(m) = measured.get_mut(at) {
                    m.ms = measure::median(times);
                }
                at += 1;
            }
        }
        bar.finish_and_clear();
        if let Some(m) = measured.first_mut() {
            m.ms = measure::median(of_sequential);
        }
        Ok(())
    }
}
