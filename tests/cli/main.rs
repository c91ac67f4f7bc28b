//! The binary from outside: exit codes, messages, documents, files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod benching;
mod documents;
mod errors;
mod files;
mod kills;
#[cfg(target_os = "linux")]
mod memory;
mod pages;
mod planning;
mod plumbing;
mod running;
mod support;
