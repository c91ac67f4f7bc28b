//! What needs text or tokens: tokenizers, token windows, the inputs they become, the measures of a language
//! model's quality, and generation.

pub mod budget;
pub mod decoder;
pub mod generate;
pub mod inputs;
pub mod metrics;
pub mod sampling;
pub mod tokenizer;
pub mod windows;
