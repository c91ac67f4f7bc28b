//! The driver: lists of passes to a fixpoint, validated after every change.

use std::collections::BTreeMap;

use super::{EXACT, Mismatch, Notes, Pass, PassError, RECOGNISERS, algebra, fold_constants};
use crate::ir::{Graph, validate};

/// Rounds after which a list that still changes something is a defect.
const ROUNDS: usize = 64;

/// What the clean-up did.
#[derive(Clone, Debug, Default)]
pub struct CleanUpReport {
    /// Changes per pass, by name.
    pub changes: BTreeMap<&'static str, usize>,
    /// Rules that declined.
    pub mismatches: Vec<Mismatch>,
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
}

/// Applies one pass and validates the graph if it changed. Returns the number of changes.
pub fn apply_pass(graph: &mut Graph, pass: &Pass, notes: &mut Notes) -> Result<usize, PassError> {
    notes.pass = pass.name;
    let changes = (pass.apply)(graph, notes).map_err(|source| PassError::Edit { pass: pass.name, source })?;
    if changes > 0 {
        validate(graph).map_err(|source| PassError::Invalid { pass: pass.name, source })?;
    }
    Ok(changes)
}

/// The whole clean-up: exact simplification, then the recognisers of norms, activations, rotary
/// embeddings and attention (fidelity: rounding).
pub fn clean_up(graph: &mut Graph) -> Result<CleanUpReport, PassError> {
    run(graph, RECOGNISERS)
}

/// The exact passes alone.
pub fn clean_up_exact(graph: &mut Graph) -> Result<CleanUpReport, PassError> {
    run(graph, &[])
}

fn run(graph: &mut Graph, recognisers: &[Pass]) -> Result<CleanUpReport, PassError> {
    let mut report = CleanUpReport { nodes_before: graph.node_count(), ..CleanUpReport::default() };
    let mut notes = Notes::default();
    settle(graph, EXACT, &mut report, &mut notes)?;
    for _ in 0..ROUNDS {
        let mut changed = false;
        for pass in recognisers {
            let changes = apply_pass(graph, pass, &mut notes)?;
            if changes > 0 {
                changed = true;
                *report.changes.entry(pass.name).or_default() += changes;
                settle(graph, EXACT, &mut report, &mut notes)?;
            }
        }
        if !changed {
            report.nodes_after = graph.node_count();
            report.mismatches = notes.into_list();
            return Ok(report);
        }
        // What declined in an earlier round may have matched since.
        notes = Notes::default();
    }
    Err(PassError::Diverges(ROUNDS))
}

/// The exact passes for a graph whose sizes are known.
pub(super) fn settle_bound(graph: &mut Graph, notes: &mut Notes) -> Result<(), PassError> {
    let mut passes: Vec<Pass> = EXACT
        .iter()
        .map(|p| if p.name == fold_constants::PASS.name { fold_constants::BOUND } else { *p })
        .collect();
    passes.push(algebra::BARE_NORMS);
    settle(graph, &passes, &mut CleanUpReport::default(), notes)
}

/// Runs a list until it changes nothing.
fn settle(
    graph: &mut Graph,
    passes: &[Pass],
    report: &mut CleanUpReport,
    notes: &mut Notes,
) -> Result<(), PassError> {
    // A pass need not run again as long as no other has changed anything since it found nothing to do.
    let mut idle = 0;
    for pass in passes.iter().cycle().take(ROUNDS * passes.len()) {
        let changes = apply_pass(graph, pass, notes)?;
        idle = if changes > 0 { 0 } else { idle + 1 };
        if changes > 0 {
            *report.changes.entry(pass.name).or_default() += changes;
        }
        if idle >= passes.len() {
            return Ok(());
        }
    }
    Err(PassError::Diverges(ROUNDS))
}
