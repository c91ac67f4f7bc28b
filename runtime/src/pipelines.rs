//! Compiled pipelines, shared by all sessions of a device.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Mutex;

use crate::device::{Gpu, lock};
use crate::error::RuntimeError;
use crate::kernels::{self, PipelineKey, Roles};

/// A pipeline with the layout of its one bind group.
#[derive(Clone)]
pub(crate) struct Compiled {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// The cache. Equal keys share a pipeline; equal roles share a layout.
#[derive(Default)]
pub(crate) struct Pipelines {
    compiled: Mutex<HashMap<(PipelineKey, Roles), Compiled>>,
    layouts: Mutex<HashMap<Roles, wgpu::BindGroupLayout>>,
}

impl Pipelines {
    /// The pipeline of `key`, compiled on first use, for bindings of these roles.
    pub(crate) fn get(&self, gpu: &Gpu, key: &PipelineKey, roles: &Roles) -> Result<Compiled, RuntimeError> {
        let wanted = (key.clone(), roles.clone());
        let cached = lock(&self.compiled).get(&wanted).cloned();
        if let Some(compiled) = cached {
            return Ok(compiled);
        }
        let layout = self.layout(gpu, roles)?;
        let pipeline = compile(gpu, key, &layout)?;
        let compiled = Compiled { pipeline, layout };
        lock(&self.compiled).insert(wanted, compiled.clone());
        Ok(compiled)
    }

    fn layout(&self, gpu: &Gpu, roles: &Roles) -> Result<wgpu::BindGroupLayout, RuntimeError> {
        if let Some(layout) = lock(&self.layouts).get(roles) {
            return Ok(layout.clone());
        }
        let entry = |binding: u32, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
        for (numbers, read_only) in [(&roles.reads, true), (&roles.writes, false)] {
            entries.extend(numbers.iter().map(|n| entry(*n, wgpu::BufferBindingType::Storage { read_only })));
        }
        let layout = gpu.guarded("creating a bind group layout", || {
            gpu.device()
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
        })?;
        lock(&self.layouts).insert(roles.clone(), layout.clone());
        Ok(layout)
    }
}

fn compile(
    gpu: &Gpu,
    key: &PipelineKey,
    layout: &wgpu::BindGroupLayout,
) -> Result<wgpu::ComputePipeline, RuntimeError> {
    let kernel = format!("{}.{}", key.source, key.entry);
    let refused = |message: String| RuntimeError::Shader { kernel: kernel.clone(), message };
    let specialised = kernels::specialised(key).map_err(refused)?;
    let device = gpu.device();
    let made = gpu.guarded("compiling a kernel", || {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&kernel),
            source: wgpu::ShaderSource::Naga(Cow::Owned(specialised)),
        };
        let module = with_plain_loops(device, descriptor);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&kernel),
            bind_group_layouts: &[Some(layout)],
            immediate_size: 0,
        });
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&kernel),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(key.entry),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    });
    made.map_err(|error| match error {
        RuntimeError::Gpu { message, .. } => refused(message),
        other => other,
    })
}

/// The module with every check but one: a count of iterations, which would take up to a tenth of a kernel's time.
fn with_plain_loops(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
) -> wgpu::ShaderModule {
    let checks =
        wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
    #[allow(unsafe_code)]
    // SAFETY: no loop of the kernels is without end. Each counts up to a size, which `MAX_ELEMENTS` keeps from
    // wrapping, or halves a number.
    unsafe {
        device.create_shader_module_trusted(descriptor, checks)
    }
}
