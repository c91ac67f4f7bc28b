//! From a graph with known shapes to a [`Plan`]: which kernels run, on what, in which order.
//!
//! ```text
//!   graph ──place──▶ host | device ──lower──▶ steps over slots ──level──▶ levels ──allocate──▶ buffers
//! ```
//!
//! * What depends only on integer inputs (masks, positions) runs on the host while it is small.
//! * Views (reshapes, transposes, slices, broadcasts) cost nothing; a copy is made only where strides
//!   cannot express one.
//! * Chains of elementwise nodes become one program.
//! * The result is data: no GPU is touched.

mod constants;
mod cost;
mod levels;
mod limits;
mod lower;
mod place;
mod plan;
pub mod views;

use std::fmt;

use snlp_passes::ir::{Graph, Op, Valid};

pub use constants::{Constant, PIECE_ALIGN, Piece, PieceKey, packed_scalar_of, scalar_bytes, scalar_of};
pub use cost::Profile;
pub use plan::{
    Binding, HostStep, HostValue, IndexCheck, Input, Output, OutputSource, Place, Plan, Slot, Stats, Step,
    Upload, kernel_name,
};

use crate::kernels::Limits;

/// How matrices that the model holds in f32 lie on the device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum WeightDtype {
    /// As in the model: f16 stays f16, everything else is f32.
    #[default]
    Model,
    /// Matrices and embedding tables are rounded to f16; sums stay f32.
    F16,
}

/// Choices of a schedule.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// How matrices lie on the device.
    pub weights: WeightDtype,
    /// Elementwise chains become one dispatch.
    pub fuse: bool,
    /// Nodes that depend on integer inputs only run on the host when their results have at most this
    /// many elements.
    pub host_elements: usize,
    /// Inputs that stay on the device from run to run, each with the output that takes its place. The output
    /// must be the input changed by scattering, and the input read by nothing else.
    pub states: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Options { weights: WeightDtype::Model, fuse: true, host_elements: 1 << 15, states: vec![] }
    }
}

/// A node that neither the device nor the host can run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unsupported {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why, and what would be supported.
    pub reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node '{}' ({}): {}", self.node, self.op, self.reason)
    }
}

/// Why a graph has no schedule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScheduleError {
    /// All nodes that cannot run.
    #[error("{} of the model cannot run on the device:{}", count(.0.len()), lines(.0))]
    Unsupported(Vec<Unsupported>),
    /// A shape still has symbols, or depends on data.
    #[error("'{value}' has shape {shape}, which is not known before the run")]
    UnknownShape {
        /// Name of the value or of its node.
        value: String,
        /// Its type as far as known.
        shape: String,
    },
    /// A tensor has more elements than kernels can count, or more bytes than the device has in one buffer.
    #[error("{what} needs {needed} {unit}, the device allows {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How much it needs.
        needed: u64,
        /// Elements or bytes.
        unit: &'static str,
        /// What there is.
        limit: u64,
    },
    /// The graph has no order of evaluation.
    #[error("{0}")]
    Graph(String),
}

fn count(n: usize) -> String {
    if n == 1 { "one node".into() } else { format!("{n} nodes") }
}

fn lines(nodes: &[Unsupported]) -> String {
    nodes.iter().map(|n| format!("\n  {n}")).collect()
}

/// The nodes of a graph whose operators nothing here knows, whatever the shapes; not those that only lack
/// the types of what such nodes make.
pub fn unknown_operators(graph: &Graph) -> Vec<Unsupported> {
    graph
        .nodes()
        .filter(|(_, node)| matches!(node.op, Op::Opaque(_)))
        .filter(|(_, node)| node.operands().all(|v| graph.ty(v).is_some()))
        .map(|(_, node)| Unsupported {
            node: node.name.clone(),
            op: node.op.name(),
            reason: "no kernel or evaluation for this operator".into(),
        })
        .collect()
}

/// Schedules a graph whose shapes are all known.
///
/// # Errors
/// When a shape is not known, or with the list of all nodes that neither host nor device can run.
pub fn plan(graph: Valid<'_>, limits: &Limits, options: &Options) -> Result<Plan, ScheduleError> {
    limits::countable(graph.graph())?;
    let mut plan = lower::lower(graph.graph(), limits, options)?;
    plan.levels = levels::level(&mut plan.steps, plan.slots.len());
    plan.buffers = levels::allocate(&mut plan.slots, &plan.steps, &plan.levels, &plan.outputs);
    limits::affordable(&plan, limits)?;
    let align = (limits.min_offset_alignment.max(16) / 4) as usize;
    for step in &mut plan.steps {
        let start = plan.params.len().next_multiple_of(align);
        plan.params.resize(start, 0);
        plan.params.extend(&step.launch.params);
        plan.params.resize(plan.params.len().next_multiple_of(4), 0);
        step.params_at = start as u64 * 4;
    }
    Ok(plan)
}
