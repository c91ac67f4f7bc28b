//! `snlp` makes Transformers layer-parallel: it reads an ONNX model, finds its chain of layers, rewrites
//! it after a plan (SNLP, arXiv 2605.17842), writes ONNX again and runs the result on wgpu or tract.
//!
//! This crate holds ONNX on one side and people on the other; the compiler is `snlp_passes`, the
//! execution `snlp_runtime`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod compare;
pub mod error;
pub mod feeds;
pub mod files;
pub mod language;
pub mod npz;
pub mod onnx;
pub mod plan_file;
pub mod preheat;
pub mod samples;
pub mod shapes;
pub mod source;
pub mod structure;
pub mod summary;
pub mod text;

pub use snlp_passes as passes;
pub use snlp_runtime as runtime;
