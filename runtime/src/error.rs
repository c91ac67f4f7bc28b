//! Errors of the runtime.

use snlp_passes::eval::EvalError;
use snlp_passes::ir::Invalid;
use snlp_passes::memory::NoRoom;
use snlp_passes::rewrite::SplitError;

use crate::kernels::KernelError;
use crate::schedule::ScheduleError;

/// Why a model could not be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No adapter fits the request.
    #[error("no suitable GPU adapter: {0}")]
    NoDevice(String),
    /// The device went away (driver reset, unplugged, removed).
    #[error("the GPU device was lost: {0}")]
    DeviceLost(String),
    /// An allocation is larger than the device allows, or failed.
    #[error(
        "{what} needs {needed} bytes{}",
        limit.map_or_else(|| ", which the device could not allocate".into(), |l| format!(", the device allows {l}"))
    )]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Bytes asked for.
        needed: u64,
        /// Largest size allowed, where the device names one.
        limit: Option<u64>,
    },
    /// The host has no memory for something.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The GPU API refused something; a defect of this program or of the driver.
    #[error("GPU error while {during}: {message}")]
    Gpu {
        /// What was being done.
        during: String,
        /// What the API said.
        message: String,
    },
    /// An input does not fit the model.
    #[error("input '{name}': {reason}")]
    Input {
        /// Name of the input.
        name: String,
        /// What does not fit, and what would.
        reason: String,
    },
    /// The inputs given are not the inputs of the model.
    #[error("inputs do not match the model:{}{}", list(" missing ", missing), list(" unknown ", unknown))]
    Inputs {
        /// Inputs of the model that were not given.
        missing: Vec<String>,
        /// Names given that the model does not have.
        unknown: Vec<String>,
    },
    /// The symbols of the model could not be bound to the inputs' sizes.
    #[error("cannot bind the model's symbolic dimensions: {0}")]
    Bind(String),
    /// Values decide sizes, and the graph cannot be cut there.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The graph is not valid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The graph could not be scheduled.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A kernel could not be compiled or launched.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A kernel's source is missing or was refused by the driver.
    #[error("kernel {kernel}: {message}")]
    Shader {
        /// Source and entry point.
        kernel: String,
        /// What the compiler said.
        message: String,
    },
    /// A node that runs on the host failed.
    #[error("node '{node}' ({op}), on the host: {source}")]
    Host {
        /// Name of the node.
        node: String,
        /// Its operator.
        op: String,
        /// What failed.
        #[source]
        source: EvalError,
    },
    /// An index outside the axis it selects from.
    #[error("node '{node}': index {value} is outside 0..{size} (or -{size}..0), the axis it selects from")]
    Index {
        /// Name of the node.
        node: String,
        /// The index.
        value: i64,
        /// Size of the axis.
        size: u64,
    },
    /// An integer that does not fit the 32 bits that integers have on the device.
    #[error("{what} holds {value}, which does not fit the 32-bit integers of the device")]
    Integer {
        /// Input, constant or node.
        what: String,
        /// The value.
        value: i64,
    },
    /// A weight beyond what f16 can hold.
    #[error("a weight of {value} does not fit f16 (largest 65504): keep this model's weights in f32")]
    Half {
        /// The weight.
        value: f32,
    },
    /// The CPU backend refused the model or failed.
    #[error("CPU backend: {0}")]
    Cpu(String),
}

fn list(what: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{what}{}", names.join(", ")) }
}
