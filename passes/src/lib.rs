//! The compiler of `snlp`: everything between a parsed model and a schedule.
//!
//! ```text
//!   ir ── the graph            infer ── types and shapes        eval ── the plain evaluator
//!    └─▶ rewrite (clean-up) ─▶ analysis (the layer chain) ─▶ plan ─▶ rewrite (layer-parallel)
//! ```
//!
//! The crate does no I/O and knows neither ONNX nor GPUs. Every pass is a function from graph to graph
//! with a declared fidelity; see [`rewrite`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod analysis;
pub mod eval;
pub mod infer;
pub mod ir;
pub mod memory;
pub mod plan;
pub mod rewrite;
