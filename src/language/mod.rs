//! What needs text or tokens: tokenizers, token windows, the inputs they become, and the measures of a language
//! model's quality.

pub mod inputs;
pub mod metrics;
pub mod tokenizer;
pub mod windows;
