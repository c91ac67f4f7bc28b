//! The CPU backend: tract on an ONNX model that the caller has bound to sizes and cleaned.
//!
//! tract panics on some malformed data (an index outside its axis), so every call into it is caught and
//! becomes an error. What it expects of the model: static shapes, no local functions, standard operators.

mod convert;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use snlp_passes::ir::Tensor;
use snlp_passes::memory::{NoRoom, room};
use tract_onnx::prelude::*;

use crate::error::RuntimeError;

type Runnable = Arc<TypedSimplePlan>;

/// A model on the CPU.
pub struct CpuModel {
    plan: Runnable,
    /// Names and dtypes of the inputs, in order.
    inputs: Vec<(String, DatumType)>,
    outputs: Vec<String>,
}

impl CpuModel {
    /// Loads and optimises a model with static shapes, without local functions.
    ///
    /// # Errors
    /// When tract does not know an operator (the error names all that it does not know), or fails on one.
    pub fn from_onnx(bytes: &[u8]) -> Result<CpuModel, RuntimeError> {
        // tract holds what it decoded and the tensors that it made of it at once.
        room(bytes.len().saturating_mul(2))?;
        caught("loading the model", || load(bytes))
    }

    /// Names of the inputs, in order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|(name, _)| name.as_str())
    }

    /// Names of the outputs, in order.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(String::as_str)
    }

    /// Runs the model on named inputs.
    ///
    /// # Errors
    /// When inputs are missing or unknown, or when tract fails.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        let missing: Vec<String> =
            self.inputs().filter(|name| !inputs.iter().any(|(n, _)| n == name)).map(String::from).collect();
        let unknown: Vec<String> = inputs
            .iter()
            .filter(|(n, _)| !self.inputs().any(|name| name == n))
            .map(|(n, _)| n.clone())
            .collect();
        if !missing.is_empty() || !unknown.is_empty() {
            return Err(RuntimeError::Inputs { missing, unknown });
        }
        let mut values = TVec::new();
        for (name, dtype) in &self.inputs {
            let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == name) else { continue };
            let value =
                caught(&format!("input '{name}'"), || convert::to_tract(tensor).map_err(TractError::msg))?;
            if value.datum_type() != *dtype {
                let reason = format!("the model wants {dtype:?}, not {}", tensor.dtype());
                return Err(RuntimeError::Input { name: name.clone(), reason });
            }
            values.push(value.into_tvalue());
        }
        let results = caught("running the model", || self.plan.run(values))?;
        let mut out = vec![];
        for (name, value) in self.outputs.iter().zip(results.iter()) {
            let tensor =
                caught(&format!("output '{name}'"), || convert::from_tract(value).map_err(TractError::msg))?;
            out.push((name.clone(), tensor));
        }
        Ok(out)
    }
}

fn load(mut bytes: &[u8]) -> TractResult<CpuModel> {
    let model = tract_onnx::onnx().model_for_read(&mut bytes)?;
    refuse_unknown(&model)?;
    let outputs: Vec<String> = model
        .output_outlets()?
        .iter()
        .map(|o| match model.outlet_label(*o) {
            Some(label) => label.to_string(),
            None => model.node(o.node).name.clone(),
        })
        .collect();
    let model = model.into_optimized()?;
    let mut inputs = vec![];
    for outlet in model.input_outlets()? {
        let node = model.node(outlet.node);
        inputs.push((node.name.clone(), model.outlet_fact(*outlet)?.datum_type));
    }
    Ok(CpuModel { plan: model.into_runnable()?, inputs, outputs })
}

/// An error that lists every operator unknown to tract, instead of failing at the first.
fn refuse_unknown(model: &InferenceModel) -> TractResult<()> {
    let unknown: Vec<String> = model
        .nodes()
        .iter()
        .filter(|n| n.op.name().starts_with("Unimplemented"))
        .map(|n| format!("'{}' ({})", n.name, n.op.name()))
        .collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(TractError::msg(format!("unknown operators: {}", unknown.join(", "))))
    }
}

/// Runs `work`, turning errors and panics of tract into ours.
fn caught<T>(during: &str, work: impl FnOnce() -> TractResult<T>) -> Result<T, RuntimeError> {
    let failed = |message: String| RuntimeError::Cpu(format!("{during}: {message}"));
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(match unallocated(text) {
                Some(bytes) => NoRoom(bytes).into(),
                None => failed(format!("tract panicked: {text}")),
            })
        }
    }
}

/// The bytes that tract could not allocate, where that is what its panic says.
fn unallocated(panic: &str) -> Option<usize> {
    let size = panic.strip_prefix("failed to allocate Layout { size: ")?;
    size.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_an_error() {
        let Err(error) = CpuModel::from_onnx(b"not a model") else { panic!("accepted") };
        assert!(error.to_string().contains("CPU backend"), "{error}");
    }

    #[test]
    fn panics_are_errors() {
        let error = caught::<()>("testing", || panic!("index out of range")).unwrap_err();
        assert!(error.to_string().contains("index out of range"), "{error}");
    }

    #[test]
    fn memory_that_tract_cannot_have_is_told_from_panics() {
        let shape = [1usize << 45];
        let error = caught("testing", || tract_onnx::prelude::Tensor::zero::<f32>(&shape)).unwrap_err();
        assert!(matches!(error, RuntimeError::NoRoom(NoRoom(n)) if n == 4 << 45), "{error}");
    }
}
