//! What is refused before anything is allocated: tensors that kernels cannot count, buffers that the device does not
//! have.

use snlp_passes::ir::Graph;

use super::ScheduleError;
use super::plan::{Place, Plan};
use crate::kernels::{Limits, MAX_ELEMENTS};

/// Refuses tensors with more elements than a kernel's 32 bits count. Axes of size 0 excuse nothing: strides are products
/// of the others.
pub(super) fn countable(graph: &Graph) -> Result<(), ScheduleError> {
    for (v, value) in graph.values() {
        let Some(shape) = graph.ty(v).and_then(|ty| ty.known_shape()) else { continue };
        let needed = shape.iter().fold(1u64, |n, d| n.saturating_mul((*d).max(1) as u64));
        if needed > MAX_ELEMENTS.into() {
            let made = value.name.clone().or_else(|| graph.node(graph.producer(v)?).map(|n| n.name.clone()));
            let what = format!("'{}' of shape {shape:?}", made.unwrap_or_default());
            return Err(ScheduleError::TooLarge {
                what,
                needed,
                unit: "elements",
                limit: MAX_ELEMENTS.into(),
            });
        }
    }
    Ok(())
}

/// Refuses plans with buffers that are larger than the device's largest.
pub(super) fn affordable(plan: &Plan, limits: &Limits) -> Result<(), ScheduleError> {
    let limit = limits.max_buffer;
    let check = |what: &dyn Fn() -> String, needed: u64| match needed > limit {
        true => Err(ScheduleError::TooLarge { what: what(), needed, unit: "bytes", limit }),
        false => Ok(()),
    };
    for slot in &plan.slots {
        match slot.place {
            Place::Input(n) => {
                let name = || format!("input '{}'", plan.inputs.get(n).map_or("", |i| &i.name));
                check(&name, slot.bytes)?;
            }
            Place::State(n) => {
                let name = || format!("state '{}'", plan.states.get(n).map_or("", |i| &i.name));
                check(&name, slot.bytes)?;
            }
            _ => {}
        }
    }
    for (n, bytes) in plan.buffers.iter().enumerate() {
        check(&|| format!("the result of node '{}'", writer(plan, n, *bytes)), *bytes)?;
    }
    for constant in &plan.constants {
        let longest = constant.pieces.iter().map(|p| p.padded()).max().unwrap_or(0);
        check(&|| format!("weight '{}'", constant.name), longest)?;
    }
    check(&|| "what is sent to the device for each run".into(), plan.upload_bytes)?;
    check(&|| "all outputs together".into(), plan.outputs.iter().map(|o| o.source.device_bytes()).sum())
}

/// The node whose result makes a recycled buffer as large as it is.
fn writer(plan: &Plan, buffer: usize, bytes: u64) -> &str {
    let largest = |slot: usize| {
        plan.slots.get(slot).is_some_and(|s| s.place == Place::Activation(buffer) && s.bytes > bytes / 2)
    };
    let writes = plan.steps.iter().find(|step| step.writes().iter().any(|b| largest(b.slot)));
    writes.map_or("", |step| &step.node)
}
