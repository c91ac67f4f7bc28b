//! The runtime of `snlp`: schedules a graph for a device and runs it.
//!
//! ```text
//!   graph with known shapes + limits ──schedule──▶ Plan (pure data) ──executor──▶ dispatches, replayed
//! ```
//!
//! [`Session`] is the way in: it binds a symbolic graph to the sizes of its inputs, plans, and replays. A
//! [`Gpu`] owns what sessions share, above all the one copy of the weights.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::type_complexity))]

mod cooperative;
#[cfg(feature = "cpu")]
pub mod cpu;
mod device;
mod error;
mod executor;
pub mod kernels;
mod pipelines;
mod profile;
pub mod schedule;
mod session;
mod weights;

pub use device::{AdapterChoice, DeviceInfo, DeviceKind, Gpu, adapters};
pub use error::RuntimeError;
pub use profile::StepTime;
pub use session::Session;
pub use weights::WeightReport;
