//! Passes from graph to graph.
//!
//! ```text
//!            ┌──────────── exact list, to a fixpoint ◀────────────┐
//!   import ─▶│ types ▶ shapes ▶ views ▶ algebra ▶ constants ▶ cse │─▶ recognisers ─▶ (again if one matched)
//!            └────────────────────────────────────────────────────┘
//! ```
//!
//! A pass declares its fidelity; the driver ([`clean_up`]) applies the ordered lists to a fixpoint and
//! validates the graph after every pass that changed it. A rule that comes close and declines says why and
//! where ([`Mismatch`]).

mod activations;
mod algebra;
mod attention;
mod attention_operands;
mod batch;
mod bind;
mod class_lanes;
mod copy;
mod cse;
mod decode;
mod driver;
mod escapes;
mod fold_constants;
mod fold_shapes;
mod gemm;
mod index_expr;
mod index_gathers;
mod instantiate;
mod lower;
mod masks;
mod matching;
mod merge;
mod norms;
mod parallelize;
mod parameters;
mod products;
mod refresh_types;
mod rotary;
mod stage;
mod sweep;
#[cfg(test)]
mod testing;
mod units;
mod vectorize;
mod views;

pub use batch::reshape;
pub use bind::{BindError, bind, bindings_from, fits};
pub use decode::{DecodeError, DecodeStep, POSITION, decode_step};
pub use driver::{CleanUpReport, apply_pass, clean_up, clean_up_exact};
pub use instantiate::{StandsFor, instantiate};
pub use lower::{Dialect, Quantization, ScaleForm, lower, scale_form};
pub use merge::{MergeError, merge};
pub use parallelize::{
    ParallelizeError, Parallelized, Prediction, Predictions, SegmentReport, parallelize, parallelize_with,
};
pub use stage::{SplitError, Stages};
pub use vectorize::VectorizeError;

use std::fmt;

use crate::ir::{Graph, GraphError, Invalid, NodeId};

/// What a pass may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Fidelity {
    /// Bit-equal under the evaluator (the sign of zero aside).
    Exact,
    /// The same function, reassociated or recomputed.
    Rounding,
    /// Another function: layer-parallelism.
    Approximate,
}

/// Why a pass failed (a defect or a model that contradicts itself, never a rule that declined).
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// A checked edit was refused.
    #[error("pass {pass}: {source}")]
    Edit {
        /// Name of the pass.
        pass: &'static str,
        /// What was refused.
        #[source]
        source: GraphError,
    },
    /// The graph was invalid after the pass.
    #[error("after pass {pass}: {source}")]
    Invalid {
        /// Name of the pass.
        pass: &'static str,
        /// What is wrong.
        #[source]
        source: Invalid,
    },
    /// The list did not settle.
    #[error("passes did not reach a fixpoint in {0} rounds")]
    Diverges(usize),
}

/// A rule that matched in part and declined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Name of the pass.
    pub pass: &'static str,
    /// What did not fit.
    pub reason: String,
    /// Name of the node where the match began (its operator and id when it has no name).
    pub at: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at '{}': {}", self.pass, self.at, self.reason)
    }
}

/// Collects [`Mismatch`]es, each once and not more than [`Notes::LIMIT`].
#[derive(Clone, Debug, Default)]
pub struct Notes {
    pass: &'static str,
    list: Vec<Mismatch>,
}

impl Notes {
    /// Mismatches kept.
    pub const LIMIT: usize = 256;

    /// Records that a rule declined at `node`.
    pub fn decline(&mut self, graph: &Graph, node: NodeId, reason: impl Into<String>) {
        if self.list.len() >= Self::LIMIT {
            return;
        }
        let note = Mismatch { pass: self.pass, reason: reason.into(), at: graph.label(node) };
        if !self.list.contains(&note) {
            self.list.push(note);
        }
    }

    /// What was recorded, in order.
    pub fn into_list(self) -> Vec<Mismatch> {
        self.list
    }
}

/// A named rewrite.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Name, as `inspect --explain` prints it.
    pub name: &'static str,
    /// What it may change.
    pub fidelity: Fidelity,
    /// Applies it everywhere; returns the number of changes.
    pub apply: fn(&mut Graph, &mut Notes) -> Result<usize, GraphError>,
}

/// The exact passes, in order; run to a fixpoint.
pub const EXACT: &[Pass] = &[
    // First, because every later pass reads types and contents that earlier edits made sharper.
    refresh_types::PASS,
    // Then the shape arithmetic becomes one source per use, so that views have plain operands.
    fold_shapes::PASS,
    // Axes that turn out to be constants make plain operators of what waited for them.
    parameters::PASS,
    // With plain operands, views that do nothing or undo each other are visible.
    views::PASS,
    // Neutral elements: some appear only when views between them are gone.
    algebra::PASS,
    // Before evaluation, so that positions 0..t become a slice instead of a table of indices.
    index_gathers::PASS,
    // After the rules that need no evaluation, so that nothing is computed that is thrown away.
    fold_constants::PASS,
    // On canonical operands, equal nodes look equal.
    cse::PASS,
    // Last: what the others left behind must not keep users alive in the next round.
    DEAD_CODE,
];

/// The recognisers, in order; the exact list settles before each and after each that matched.
pub const RECOGNISERS: &[Pass] = &[
    // First, so that all projections are MatMuls on the state's own shape when the others look.
    gemm::PASS,
    gemm::SINK,
    // With products as products and the streams' views out of the way, hyper-connections look alike.
    products::EQUATIONS,
    products::SUMS,
    products::ROWS,
    products::ADDED,
    // Norms before activations: both read plain arithmetic and neither makes any.
    norms::PASS,
    activations::PASS,
    // Rotations before attention, whose q and k they make: attention may then look behind scales only.
    rotary::PASS,
    attention::PASS,
    // After attention has its operands: grouped heads and bool masks, whoever made the node.
    attention_operands::PASS,
    // After attention, whose products have Transposes beside them too.
    products::TURNED,
    // Last: only attention says which axes of a mask are queries and keys.
    masks::PASS,
];

/// Removes nodes that nothing reads.
const DEAD_CODE: Pass =
    Pass { name: "dead-code", fidelity: Fidelity::Exact, apply: |graph, _| Ok(graph.remove_dead()) };
