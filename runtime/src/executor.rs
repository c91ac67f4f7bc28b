//! A plan on a device: buffers and bind groups made once, commands encoded for each run.
//!
//! A run is: host steps, checks, uploads, one submission of all levels and the copies of the outputs, one
//! wait. An error anywhere is an error of the run; no data is returned after one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use snlp_passes::eval::eval_op;
use snlp_passes::ir::{DType, Tensor};
use snlp_passes::memory::room;

use crate::device::{Gpu, lock};
use crate::error::RuntimeError;
use crate::kernels::Scalar;
use crate::pipelines::Compiled;
use crate::schedule::{Binding, Constant, HostValue, OutputSource, Place, Plan, Step};
use crate::weights::{WeightRange, WeightStore, convert};

/// Addresses and lengths of bytes that belong to the model itself, whatever its inputs' sizes.
pub(crate) type SharedBytes = HashSet<(usize, usize)>;

/// A plan with its resources.
pub(crate) struct Prepared {
    pub plan: Plan,
    gpu: Arc<Gpu>,
    dispatches: Vec<Dispatch>,
    upload: wgpu::Buffer,
    inputs: Vec<Option<wgpu::Buffer>>,
    activations: Vec<wgpu::Buffer>,
    states: Vec<wgpu::Buffer>,
    staging: wgpu::Buffer,
    staging_bytes: u64,
    /// The commands of the next forward: recorded while the device works on the one before, since a forward's commands
    /// never change and can be submitted once.
    next: Mutex<Option<wgpu::CommandBuffer>>,
}

pub(crate) struct Dispatch {
    compiled: Compiled,
    bind_group: wgpu::BindGroup,
    grid: [u32; 3],
}

impl Dispatch {
    pub(crate) fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        let [x, y, z] = self.grid;
        if x == 0 || y == 0 || z == 0 {
            return;
        }
        pass.set_pipeline(&self.compiled.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

impl Prepared {
    /// Allocates and compiles what the plan needs. Constants whose bytes are in `shared` go to the
    /// device's common store, others belong to this plan. The states are the plan's, in order.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        plan: Plan,
        shared: &SharedBytes,
        states: &[wgpu::Buffer],
    ) -> Result<Prepared, RuntimeError> {
        use wgpu::BufferUsages as U;
        let constants = place_constants(gpu, &plan, shared)?;
        let upload = gpu.buffer("uploads", plan.upload_bytes, U::STORAGE | U::COPY_DST)?;
        let mut inputs = vec![None; plan.inputs.len()];
        for slot in &plan.slots {
            if let Place::Input(n) = slot.place
                && let Some(input) = inputs.get_mut(n)
            {
                *input = Some(gpu.buffer("inputs", slot.bytes, U::STORAGE | U::COPY_DST)?);
            }
        }
        let mut activations = vec![];
        for bytes in &plan.buffers {
            activations.push(gpu.buffer("activations", *bytes, U::STORAGE | U::COPY_SRC)?);
        }
        let params = gpu.buffer("parameters", plan.params.len() as u64 * 4, U::UNIFORM | U::COPY_DST)?;
        let staging_bytes = plan.outputs.iter().map(|o| o.source.device_bytes().next_multiple_of(4)).sum();
        let staging = gpu.buffer("results", staging_bytes, U::COPY_DST | U::MAP_READ)?;
        let mut prepared = Prepared {
            plan,
            gpu: gpu.clone(),
            dispatches: vec![],
            upload,
            inputs,
            activations,
            states: states.to_vec(),
            staging,
            staging_bytes,
            next: Mutex::default(),
        };
        gpu.guarded("uploading parameters", || {
            gpu.queue().write_buffer(&params, 0, bytemuck::cast_slice(&prepared.plan.params));
        })?;
        for upload in &prepared.plan.uploads {
            if let HostValue::Constant(tensor) = &upload.value {
                prepared.write_upload(upload.slot, &upload.name, tensor, upload.scalar)?;
            }
        }
        for step in &prepared.plan.steps {
            let dispatch = prepared.dispatch(step, &constants, &params)?;
            prepared.dispatches.push(dispatch);
        }
        Ok(prepared)
    }

    fn dispatch(
        &self,
        step: &Step,
        constants: &[WeightRange],
        params: &wgpu::Buffer,
    ) -> Result<Dispatch, RuntimeError> {
        let gpu = &self.gpu;
        let compiled = gpu.pipelines.get(gpu, &step.launch.pipeline, &step.launch.roles)?;
        let size = (step.launch.params.len() as u64 * 4).next_multiple_of(16);
        let mut entries = vec![entry(0, params, step.params_at, size)];
        for (number, binding) in step.launch.roles.all().zip(&step.bindings) {
            let (buffer, offset, bytes) = self.resolve(binding, constants).ok_or_else(|| {
                let message = format!("slot {} of '{}' has no buffer", binding.slot, step.node);
                RuntimeError::Gpu { during: "binding".into(), message }
            })?;
            entries.push(entry(number, buffer, offset, bytes));
        }
        let bind_group = gpu.guarded("binding buffers", || {
            gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &compiled.layout,
                entries: &entries,
            })
        });
        let bind_group = bind_group.map_err(|error| match error {
            RuntimeError::Gpu { message, .. } => {
                RuntimeError::Gpu { during: format!("binding buffers of '{}'", step.node), message }
            }
            other => other,
        })?;
        Ok(Dispatch { compiled, bind_group, grid: step.launch.grid })
    }

    /// The buffer, first byte and length of a binding.
    fn resolve<'a>(
        &'a self,
        binding: &Binding,
        constants: &'a [WeightRange],
    ) -> Option<(&'a wgpu::Buffer, u64, u64)> {
        let bytes = binding.bytes.next_multiple_of(4);
        Some(match self.plan.slots.get(binding.slot)?.place {
            Place::Constant(n) => {
                let range = constants.get(n)?;
                let room = range.buffer.size() - range.offset - binding.offset;
                (&range.buffer, range.offset + binding.offset, bytes.min(room))
            }
            Place::Input(n) => (self.inputs.get(n)?.as_ref()?, binding.offset, bytes),
            Place::Upload(at) => (&self.upload, at + binding.offset, bytes),
            Place::Activation(n) => (self.activations.get(n)?, binding.offset, bytes),
            Place::State(n) => (self.states.get(n)?, binding.offset, bytes),
        })
    }

    /// Runs the plan on the graph's inputs, in order.
    pub(crate) fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let host = self.feed(inputs)?;
        if !self.dispatches.is_empty() || self.staging_bytes > 0 {
            self.submit(true)?;
        }
        let data = self.gpu.read(&self.staging, self.staging_bytes)?;
        self.gpu.check("running the model")?;
        let mut at = 0usize;
        let mut outputs = vec![];
        for output in &self.plan.outputs {
            outputs.push(match &output.source {
                OutputSource::Host(value) => host.get(value)?,
                OutputSource::Device { binding, scalar } => {
                    let end = at + binding.bytes as usize;
                    let words = data.get(at..end).unwrap_or_default();
                    at = end.next_multiple_of(4);
                    from_words(words, *scalar, output.dtype, &output.shape)?
                }
            });
        }
        Ok(outputs)
    }

    /// Runs the host steps, checks indices and uploads what the device reads.
    pub(crate) fn feed<'a>(&'a self, inputs: &'a [Tensor]) -> Result<HostValues<'a>, RuntimeError> {
        let mut host = HostValues { inputs, computed: vec![None; self.plan.host_values] };
        for step in &self.plan.host {
            let operands: Vec<Option<Tensor>> = step
                .inputs
                .iter()
                .map(|v| v.as_ref().map(|v| host.get(v)).transpose())
                .collect::<Result<_, _>>()?;
            let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
            let results = eval_op(&step.op, &operands).map_err(|source| RuntimeError::Host {
                node: step.node.clone(),
                op: step.op.name(),
                source,
            })?;
            for (i, tensor) in results.into_iter().enumerate() {
                if let Some(value) = host.computed.get_mut(step.first_output + i) {
                    *value = Some(tensor);
                }
            }
        }
        for check in &self.plan.checks {
            let size = i64::try_from(check.size).unwrap_or(i64::MAX);
            let indices = host.get(&check.value)?.to_i64().unwrap_or_default();
            if let Some(value) = indices.into_iter().find(|i| *i < -size || *i >= size) {
                return Err(RuntimeError::Index { node: check.node.clone(), value, size: check.size });
            }
        }
        for upload in &self.plan.uploads {
            if !matches!(upload.value, HostValue::Constant(_)) {
                self.write_upload(upload.slot, &upload.name, &host.get(&upload.value)?, upload.scalar)?;
            }
        }
        for ((buffer, tensor), input) in self.inputs.iter().zip(inputs).zip(&self.plan.inputs) {
            if let Some(buffer) = buffer {
                let data = to_words(&input.name, tensor, Scalar::F32)?;
                self.write(buffer, 0, &data)?;
            }
        }
        Ok(host)
    }

    fn write_upload(
        &self,
        slot: usize,
        name: &str,
        tensor: &Tensor,
        scalar: Scalar,
    ) -> Result<(), RuntimeError> {
        let Some(Place::Upload(at)) = self.plan.slots.get(slot).map(|s| s.place.clone()) else {
            return Ok(());
        };
        let expected = self.plan.slots[slot].bytes;
        let data = to_words(name, tensor, scalar)?;
        if data.len() as u64 > expected {
            let message = format!("'{name}' is {} bytes, planned for {expected}", data.len());
            return Err(RuntimeError::Gpu { during: "uploading".into(), message });
        }
        self.write(&self.upload, at, &data)
    }

    fn write(&self, buffer: &wgpu::Buffer, at: u64, data: &[u8]) -> Result<(), RuntimeError> {
        if data.is_empty() {
            return Ok(());
        }
        self.gpu.guarded("uploading inputs", || self.gpu.queue().write_buffer(buffer, at, data))
    }

    /// Submits one forward, with the copies of the outputs when they are wanted, and records the next.
    pub(crate) fn submit(&self, outputs: bool) -> Result<(), RuntimeError> {
        let gpu = &self.gpu;
        gpu.guarded("running the model", || {
            let recorded = lock(&self.next).take();
            let forward = recorded.unwrap_or_else(|| self.record());
            let copies = outputs.then(|| {
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                self.copy_outputs(&mut encoder);
                encoder.finish()
            });
            gpu.queue().submit(std::iter::once(forward).chain(copies));
            *lock(&self.next) = Some(self.record());
        })
    }

    /// The commands of a forward.
    fn record(&self) -> wgpu::CommandBuffer {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        for level in &self.plan.levels {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for dispatch in self.dispatches.get(level.clone()).unwrap_or_default() {
                dispatch.encode(&mut pass);
            }
        }
        encoder.finish()
    }

    fn copy_outputs(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut at = 0;
        for output in &self.plan.outputs {
            if let OutputSource::Device { binding, .. } = &output.source
                && binding.bytes > 0
                && let Some((buffer, offset, _)) = self.resolve(binding, &[])
            {
                let bytes = binding.bytes.next_multiple_of(4);
                encoder.copy_buffer_to_buffer(buffer, offset, &self.staging, at, bytes);
                at += bytes;
            }
        }
    }

    pub(crate) fn dispatches(&self) -> &[Dispatch] {
        &self.dispatches
    }

    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

fn entry(binding: u32, buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BindGroupEntry<'_> {
    let size = wgpu::BufferSize::new(size);
    wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size }),
    }
}

/// The ranges of the plan's constants: the model's own in the common store, those made for these sizes in
/// buffers that go with the plan.
fn place_constants(gpu: &Gpu, plan: &Plan, shared: &SharedBytes) -> Result<Vec<WeightRange>, RuntimeError> {
    let is_shared = |c: &Constant| {
        c.pieces.iter().flat_map(|p| &p.chunks).all(|b| shared.contains(&(b.as_ptr() as usize, b.len())))
    };
    let (common, own): (Vec<_>, Vec<_>) = plan
        .constants
        .iter()
        .filter(|c| !c.pieces.iter().all(|p| p.chunks.is_empty()))
        .cloned()
        .partition(is_shared);
    let mut private = WeightStore::default();
    private.place(gpu, &own)?;
    let mut store = lock(&gpu.weights);
    store.place(gpu, &common)?;
    let mut ranges = vec![];
    for constant in &plan.constants {
        let range = if is_shared(constant) { store.find(constant) } else { private.find(constant) };
        ranges.push(match range {
            Some(range) => range,
            None if constant.bytes() == 0 => WeightRange {
                buffer: Arc::new(gpu.buffer("an empty constant", 4, wgpu::BufferUsages::STORAGE)?),
                offset: 0,
            },
            None => {
                let message = format!("constant '{}' was not placed", constant.name);
                return Err(RuntimeError::Gpu { during: "placing weights".into(), message });
            }
        });
    }
    Ok(ranges)
}

/// Values on the host during a run.
pub(crate) struct HostValues<'a> {
    inputs: &'a [Tensor],
    computed: Vec<Option<Tensor>>,
}

impl HostValues<'_> {
    fn get(&self, value: &HostValue) -> Result<Tensor, RuntimeError> {
        let found = match value {
            HostValue::Constant(tensor) => Some(tensor.clone()),
            HostValue::Input(n) => self.inputs.get(*n).cloned(),
            HostValue::Computed(n) => self.computed.get(*n).cloned().flatten(),
        };
        found.ok_or_else(|| RuntimeError::Gpu {
            during: "running host steps".into(),
            message: format!("{value:?} is not there"),
        })
    }
}

/// The device's words of a tensor.
fn to_words(name: &str, tensor: &Tensor, scalar: Scalar) -> Result<Vec<u8>, RuntimeError> {
    convert(&tensor.bytes(), tensor.dtype(), scalar).map_err(|error| match error {
        RuntimeError::Integer { value, .. } => RuntimeError::Integer { what: format!("'{name}'"), value },
        other => other,
    })
}

/// The tensor of the device's words.
fn from_words(words: &[u8], scalar: Scalar, dtype: DType, shape: &[usize]) -> Result<Tensor, RuntimeError> {
    let source = match scalar {
        Scalar::F32 => DType::F32,
        Scalar::F16 => DType::F16,
        Scalar::I32 => DType::I32,
        Scalar::Bool => DType::U32,
        Scalar::I8 | Scalar::U8 | Scalar::I4 | Scalar::U4 => DType::U8,
    };
    let failed = |message: String| RuntimeError::Gpu { during: "reading results".into(), message };
    let elements = words.len() as u64 * 8 / scalar.bits();
    if elements != shape.iter().map(|d| *d as u64).product::<u64>() {
        return Err(failed(format!("{elements} elements for shape {shape:?}")));
    }
    room(words.len())?;
    let raw = Tensor::from_bytes(source, shape.to_vec(), words.to_vec().into())
        .map_err(|e| failed(e.to_string()))?;
    if source == dtype {
        return Ok(raw);
    }
    let cast = eval_op(&snlp_passes::ir::Op::Cast { to: dtype }, &[Some(&raw)]);
    cast.ok()
        .and_then(|t| t.into_iter().next())
        .ok_or_else(|| failed(format!("{source} cannot become {dtype}")))
}
