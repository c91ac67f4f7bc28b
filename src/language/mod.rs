//! What needs text or tokens: token windows, the inputs they become, and the measures of a language
//! model's quality.

pub mod inputs;
pub mod metrics;
pub mod windows;
