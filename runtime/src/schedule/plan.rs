//! What the schedule decides: pure data, made and tested without a GPU.
//!
//! ```text
//!   slots    where values lie: constants, graph inputs, uploads from the host, activations
//!   steps    dispatches in order; each binds ranges of slots; grouped in levels without dependences
//!   buffers  sizes of the recycled buffers behind the activations
//!   host     what runs on the host before the first dispatch
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::ops::Range;

use snlp_passes::ir::{DType, Op, Tensor};

use super::constants::Constant;
use super::levels;
use crate::kernels::{Launch, Scalar};

/// Where a value lies on the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the constant of this number.
    Constant(usize),
    /// In the buffer of the graph input of this number.
    Input(usize),
    /// In the upload buffer, from this byte on.
    Upload(u64),
    /// In the recycled buffer of this number.
    Activation(usize),
    /// In the state of this number, which stays on the device from run to run.
    State(usize),
}

/// A value's storage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Where it lies.
    pub place: Place,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A range of a slot that a dispatch binds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Number of the slot.
    pub slot: usize,
    /// First byte within the slot, aligned as the device demands.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A dispatch.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// Name of the node it computes (the last one, when several are fused).
    pub node: String,
    /// What runs.
    pub launch: Launch,
    /// One range for each operand and result, in the launcher's order.
    pub bindings: Vec<Binding>,
    /// Whether it changes what its results' ranges hold already, so that whatever wrote them comes first.
    pub in_place: bool,
    /// First byte of its parameters in the plan's uniform buffer.
    pub params_at: u64,
}

impl Step {
    /// Ranges that are read.
    pub fn reads(&self) -> &[Binding] {
        self.bindings.get(..self.launch.roles.reads.len()).unwrap_or(&self.bindings)
    }

    /// Ranges that are written.
    pub fn writes(&self) -> &[Binding] {
        self.bindings.get(self.launch.roles.reads.len()..).unwrap_or_default()
    }
}

/// A value on the host while a run is being prepared.
#[derive(Clone, PartialEq, Debug)]
pub enum HostValue {
    /// A graph input.
    Input(usize),
    /// A constant.
    Constant(Tensor),
    /// What a host step made, by its number among all results of host steps.
    Computed(usize),
}

/// A node that runs on the host.
#[derive(Clone, PartialEq, Debug)]
pub struct HostStep {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: Op,
    /// Its operands.
    pub inputs: Vec<Option<HostValue>>,
    /// Number of its first result; the others follow.
    pub first_output: usize,
}

/// A host value that the device reads.
#[derive(Clone, PartialEq, Debug)]
pub struct Upload {
    /// The value.
    pub value: HostValue,
    /// What it is, for errors.
    pub name: String,
    /// Element type on the device.
    pub scalar: Scalar,
    /// Number of the slot it goes to.
    pub slot: usize,
}

/// Indices that must lie in `-size..size` before the device uses them.
#[derive(Clone, PartialEq, Debug)]
pub struct IndexCheck {
    /// Name of the node that selects.
    pub node: String,
    /// The indices.
    pub value: HostValue,
    /// Size of the axis.
    pub size: u64,
}

/// A graph input with its bound shape.
#[derive(Clone, PartialEq, Debug)]
pub struct Input {
    /// Name.
    pub name: String,
    /// Element type in the model.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
}

/// Where an output comes from.
#[derive(Clone, PartialEq, Debug)]
pub enum OutputSource {
    /// A dense range of a slot, of this element type.
    Device {
        /// The range.
        binding: Binding,
        /// Element type on the device.
        scalar: Scalar,
    },
    /// A host value.
    Host(HostValue),
}

impl OutputSource {
    /// Bytes that are read back from the device.
    pub fn device_bytes(&self) -> u64 {
        match self {
            OutputSource::Device { binding, .. } => binding.bytes,
            OutputSource::Host(_) => 0,
        }
    }
}

/// A graph output.
#[derive(Clone, PartialEq, Debug)]
pub struct Output {
    /// Name.
    pub name: String,
    /// Element type in the model.
    pub dtype: DType,
    /// Shape; empty where the source is on the host and knows it.
    pub shape: Vec<usize>,
    /// Where it comes from.
    pub source: OutputSource,
}

/// The schedule of a graph with known shapes for a device with known limits.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// Graph inputs, in order, without the states.
    pub inputs: Vec<Input>,
    /// Graph outputs, in order, without the new states.
    pub outputs: Vec<Output>,
    /// Inputs that stay on the device.
    pub states: Vec<Input>,
    /// Constants that the device reads.
    pub constants: Vec<Constant>,
    /// Storage of values.
    pub slots: Vec<Slot>,
    /// Sizes of the recycled buffers, in bytes.
    pub buffers: Vec<u64>,
    /// Size of the upload buffer, in bytes.
    pub upload_bytes: u64,
    /// Dispatches, level by level.
    pub steps: Vec<Step>,
    /// Ranges of steps that depend on earlier levels only.
    pub levels: Vec<Range<usize>>,
    /// The parameters of all steps, one uniform buffer.
    pub params: Vec<u32>,
    /// What runs on the host first.
    pub host: Vec<HostStep>,
    /// How many results the host steps have in all.
    pub host_values: usize,
    /// What is checked before the dispatches.
    pub checks: Vec<IndexCheck>,
    /// What is uploaded before the dispatches.
    pub uploads: Vec<Upload>,
}

/// A plan in numbers.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Stats {
    /// Kernel launches of one forward.
    pub dispatches: usize,
    /// Levels, each followed by a barrier.
    pub levels: usize,
    /// Nodes that run on the host.
    pub host_steps: usize,
    /// Bytes of constants on the device.
    pub weight_bytes: u64,
    /// Bytes of the states that stay on the device.
    pub state_bytes: u64,
    /// Bytes of the recycled buffers: the predicted peak of activations.
    pub activation_bytes: u64,
    /// Bytes of the activations that are in use at the worst level: what no recycling can go below.
    pub live_bytes: u64,
    /// Bytes of activations if nothing were recycled.
    pub unshared_bytes: u64,
    /// Bytes uploaded and read back in one forward.
    pub transfer_bytes: u64,
    /// Bytes of the kernels' parameters.
    pub parameter_bytes: u64,
    /// Bytes that the kernels read and write at least once.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Launches by kernel.
    pub kernels: BTreeMap<String, usize>,
}

impl Stats {
    /// Bytes on the device in all: weights, states, activations, what is transferred, parameters.
    pub fn device_bytes(&self) -> u64 {
        self.weight_bytes
            + self.state_bytes
            + self.activation_bytes
            + self.transfer_bytes
            + self.parameter_bytes
    }
}

impl Plan {
    /// Drops what the host would compute for nothing: indices of rows that kernels find by their position.
    pub(super) fn drop_unread_host_steps(&mut self) {
        let mut read = vec![false; self.host_values];
        let mark = |read: &mut Vec<bool>, value: &HostValue| {
            if let HostValue::Computed(n) = value
                && let Some(read) = read.get_mut(*n)
            {
                *read = true;
            }
        };
        let outputs = self.outputs.iter().filter_map(|o| match &o.source {
            OutputSource::Host(value) => Some(value),
            OutputSource::Device { .. } => None,
        });
        let uploads = self.uploads.iter().map(|u| &u.value);
        outputs.chain(uploads).chain(self.checks.iter().map(|c| &c.value)).for_each(|v| mark(&mut read, v));
        let (mut kept, mut end) = (vec![], self.host_values);
        for step in self.host.drain(..).rev() {
            let made = step.first_output..std::mem::replace(&mut end, step.first_output);
            if read.get(made).is_some_and(|r| r.contains(&true)) {
                step.inputs.iter().flatten().for_each(|v| mark(&mut read, v));
                kept.push(step);
            }
        }
        kept.reverse();
        self.host = kept;
    }

    /// The plan in numbers.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            dispatches: self.steps.len(),
            levels: self.levels.len(),
            host_steps: self.host.len(),
            weight_bytes: self.constants.iter().map(Constant::bytes).sum(),
            activation_bytes: self.buffers.iter().sum(),
            live_bytes: levels::peak(&self.slots, &self.steps, &self.levels, &self.outputs),
            parameter_bytes: self.params.len() as u64 * 4,
            ..Stats::default()
        };
        for slot in &self.slots {
            match slot.place {
                Place::Activation(_) => stats.unshared_bytes += slot.bytes,
                Place::Input(_) | Place::Upload(_) => stats.transfer_bytes += slot.bytes,
                Place::State(_) => stats.state_bytes += slot.bytes,
                Place::Constant(_) => {}
            }
        }
        stats.transfer_bytes += self.outputs.iter().map(|o| o.source.device_bytes()).sum::<u64>();
        for step in &self.steps {
            stats.bytes += step.launch.bytes;
            stats.flops += step.launch.flops;
            *stats.kernels.entry(kernel_name(&step.launch)).or_default() += 1;
        }
        stats
    }

    /// The plan as text, one line per step, for tests and `--profile`.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for host in &self.host {
            let _ = writeln!(out, "host    {} {}", host.op.name(), host.node);
        }
        for upload in &self.uploads {
            let _ = writeln!(out, "upload  {} -> {}", upload.name, self.show(upload.slot));
        }
        for (n, level) in self.levels.iter().enumerate() {
            for step in self.steps.get(level.clone()).unwrap_or_default() {
                let show = |bindings: &[Binding]| {
                    bindings.iter().map(|b| self.show(b.slot)).collect::<Vec<_>>().join(" ")
                };
                let (reads, writes) = (show(step.reads()), show(step.writes()));
                let name = kernel_name(&step.launch);
                let _ = writeln!(
                    out,
                    "{n:5}   {name:24} {reads} -> {writes}  grid {:?}  {}",
                    step.launch.grid, step.node
                );
            }
        }
        out
    }

    fn show(&self, slot: usize) -> String {
        match self.slots.get(slot).map(|s| &s.place) {
            Some(Place::Constant(n)) => {
                format!("w:{}", self.constants.get(*n).map_or("?", |c| c.name.as_str()))
            }
            Some(Place::Input(n)) => format!("in:{}", self.inputs.get(*n).map_or("?", |i| i.name.as_str())),
            Some(Place::Upload(at)) => format!("up:{at}"),
            Some(Place::Activation(n)) => format!("b{n}"),
            Some(Place::State(n)) => {
                format!("state:{}", self.states.get(*n).map_or("?", |i| i.name.as_str()))
            }
            None => "?".into(),
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} dispatches in {} levels, {} host steps; weights {} B, activations {} B ({} B unshared), transfers \
             {} B; {} B moved, {} FLOP;",
            self.dispatches,
            self.levels,
            self.host_steps,
            self.weight_bytes,
            self.activation_bytes,
            self.unshared_bytes,
            self.transfer_bytes,
            self.bytes,
            self.flops
        )?;
        self.kernels.iter().try_for_each(|(name, n)| write!(f, " {name} {n}"))
    }
}

/// Name of a launch's kernel: source and entry point.
pub fn kernel_name(launch: &Launch) -> String {
    let key = &launch.pipeline;
    if key.entry == "main" || key.entry == key.source {
        key.source.into()
    } else {
        format!("{}.{}", key.source, key.entry)
    }
}
