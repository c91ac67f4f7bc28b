//! Runs single launches on the software adapter, for the tests of kernels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use super::{Launch, Limits, Operand, PipelineKey, Roles, Scalar, View, specialised};
use crate::device::{self, cooperative_side, subgroup_size};

/// The validator of an adapter with what an entry point may ask for and nothing more.
pub(super) fn validator(entry: &str) -> naga::valid::Validator {
    use naga::valid::Capabilities as May;
    // `unpack2x16float`, which every adapter but the oldest has.
    let mut capabilities = May::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(May::SUBGROUP, ["subgroup", "cooperative"].contains(&entry));
    capabilities.set(May::COOPERATIVE_MATRIX | May::SHADER_FLOAT16, entry == "cooperative");
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    use naga::valid::SubgroupOperationSet as Set;
    validator.subgroup_operations(Set::BALLOT | Set::ARITHMETIC);
    validator
}

/// Limits of a small software device.
pub(super) fn limits() -> Limits {
    Limits {
        max_storage_binding: 128 << 20,
        max_buffer: 2 << 30,
        max_storage_buffers: 8,
        max_grid: 65535,
        max_invocations: 256,
        max_workgroup_memory: 16 << 10,
        min_offset_alignment: 256,
        software: true,
        subgroup_size: 0,
        cooperative: 0,
    }
}

/// The same device as if it were hardware.
pub(super) fn hardware() -> Limits {
    Limits { software: false, ..limits() }
}

/// One device for the process.
pub(super) struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    subgroup_size: u32,
    cooperative: u32,
    pipelines: Mutex<HashMap<PipelineKey, Arc<wgpu::ComputePipeline>>>,
}

/// The device, or `None` (said once on stderr) where there is no adapter. With `REQUIRE_GPU=1` that is a
/// failure.
pub(super) fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| {
        let gpu = Gpu::open();
        if gpu.is_none() {
            eprintln!("SKIPPED: kernel tests need a Vulkan adapter (software will do) and found none");
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1 and no adapter");
        }
        gpu
    })
    .as_ref()
}

impl Gpu {
    /// Limits of a software device with this one's subgroups.
    pub(super) fn limits(&self) -> Limits {
        Limits { subgroup_size: self.subgroup_size, ..limits() }
    }

    /// Limits of hardware with this device's subgroups and cooperative matrices; nothing where it has none of those.
    pub(super) fn cooperative(&self) -> Option<Limits> {
        let Gpu { subgroup_size, cooperative, .. } = *self;
        (cooperative > 0).then(|| Limits { subgroup_size, cooperative, ..hardware() })
    }

    /// Whether the device binds as many buffers as a dispatch wants; says so where it does not.
    pub(super) fn binds(&self, launch: &Launch) -> bool {
        let (wanted, most) =
            (launch.roles.all().count(), self.device.limits().max_storage_buffers_per_shader_stage);
        let fits = wanted <= most as usize;
        if !fits {
            eprintln!("skipped: {wanted} buffers of {}, the device binds {most}", launch.pipeline.source);
        }
        fits
    }

    fn open() -> Option<Gpu> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::PRIMARY;
        let instance = wgpu::Instance::new(descriptor);
        let adapter =
            pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).ok()?;
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            required_limits: adapter.limits(),
            required_features: device::usable_features(&adapter),
            experimental_features: device::experimental(),
            ..Default::default()
        }))
        .ok()?;
        let subgroup_size = subgroup_size(&adapter.get_info(), device.features());
        let cooperative = cooperative_side(&adapter, subgroup_size);
        Some(Gpu { device, queue, subgroup_size, cooperative, pipelines: Mutex::new(HashMap::new()) })
    }

    fn pipeline(&self, key: &PipelineKey, roles: &Roles) -> Arc<wgpu::ComputePipeline> {
        if let Some(found) = self.pipelines.lock().unwrap().get(key) {
            return found.clone();
        }
        let specialised = specialised(key).expect("the table has the source");
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(key.source),
            source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(specialised)),
        });
        let entries: Vec<_> = std::iter::once(0)
            .chain(roles.all())
            .map(|n| wgpu::BindGroupLayoutEntry {
                binding: n,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match n {
                        0 => wgpu::BufferBindingType::Uniform,
                        n => wgpu::BufferBindingType::Storage { read_only: roles.reads.contains(&n) },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let group = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&group)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(key.source),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(key.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        let pipeline = Arc::new(pipeline);
        self.pipelines.lock().unwrap().insert(key.clone(), pipeline.clone());
        pipeline
    }

    fn buffer(&self, words: &[u32], usage: wgpu::BufferUsages) -> wgpu::Buffer {
        use wgpu::util::DeviceExt as _;
        let padded: &[u32] = if words.is_empty() { &[0] } else { words };
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(padded),
            usage,
        })
    }

    /// Runs `launch`: `reads` are bound read-only, then `writes`, whose contents come back. `times` more
    /// dispatches follow the first for timing; the seconds of those are returned.
    pub(super) fn run_timed(
        &self,
        launch: &Launch,
        reads: &[&[u32]],
        writes: &mut [Vec<u32>],
        times: u32,
    ) -> f64 {
        assert_eq!((reads.len(), writes.len()), (launch.roles.reads.len(), launch.roles.writes.len()));
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let pipeline = self.pipeline(&launch.pipeline, &launch.roles);
        let mut params = launch.params.clone();
        params.resize(params.len().next_multiple_of(4), 0);
        let mut buffers = vec![self.buffer(&params, wgpu::BufferUsages::UNIFORM)];
        buffers.extend(reads.iter().map(|r| self.buffer(r, usage)));
        buffers.extend(writes.iter().map(|w| self.buffer(w, usage)));
        let entries: Vec<_> = buffers
            .iter()
            .zip(std::iter::once(0).chain(launch.roles.all()))
            .map(|(b, binding)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let dispatch = |times: u32| {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &group, &[]);
                for _ in 0..times {
                    let [x, y, z] = launch.grid;
                    pass.dispatch_workgroups(x, y, z);
                }
            }
            self.queue.submit([encoder.finish()]);
            self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        };
        dispatch(1);
        for (n, words) in writes.iter_mut().enumerate() {
            *words = self.read(&buffers[1 + reads.len() + n], words.len());
        }
        if times == 0 {
            return 0.0;
        }
        let start = std::time::Instant::now();
        dispatch(times);
        start.elapsed().as_secs_f64() / f64::from(times)
    }

    /// Runs `launch` once.
    pub(super) fn run(&self, launch: &Launch, reads: &[&[u32]], writes: &mut [Vec<u32>]) {
        self.run_timed(launch, reads, writes, 0);
    }

    /// Runs `launch` once; one result of `len` words, poisoned with NaN.
    pub(super) fn run_one(&self, launch: &Launch, reads: &[&[u32]], len: usize) -> Vec<u32> {
        let mut writes = [poison(len)];
        self.run(launch, reads, &mut writes);
        let [out] = writes;
        out
    }

    fn read(&self, buffer: &wgpu::Buffer, len: usize) -> Vec<u32> {
        let size = buffer.size();
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        staging.slice(..).map_async(wgpu::MapMode::Read, |r| r.unwrap());
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let bytes = staging.slice(..).get_mapped_range().unwrap();
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        words[..len].to_vec()
    }
}

/// NaNs of an unusual pattern.
pub(super) fn poison(len: usize) -> Vec<u32> {
    vec![0x7fc0_dead; len]
}

pub(super) fn f32s(words: &[u32]) -> Vec<f32> {
    words.iter().map(|w| f32::from_bits(*w)).collect()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// f16 values, two to a word.
pub(super) fn halves(values: &[f32]) -> Vec<u32> {
    let bits = |v: Option<&f32>| u32::from(v.map_or(0, |v| half::f16::from_f32(*v).to_bits()));
    values.chunks(2).map(|c| bits(c.first()) | bits(c.get(1)) << 16).collect()
}

/// A dense operand.
pub(super) fn dense(shape: &[u32], scalar: Scalar) -> Operand {
    Operand { view: View::dense(shape), scalar }
}

/// An f32 operand of any view.
pub(super) fn strided(shape: &[u32], strides: &[u32], offset: u32) -> Operand {
    Operand { view: View { shape: shape.to_vec(), strides: strides.to_vec(), offset }, scalar: Scalar::F32 }
}

/// Reproducible values in -1..1.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as u32
    }

    pub(super) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next() as f32 / (1u32 << 30) as f32 - 1.0).collect()
    }
}

/// The elements of a view, row-major.
pub(super) fn elements<T: Copy>(view: &View, data: &[T]) -> Vec<T> {
    positions(&view.shape).iter().map(|at| data[address(view, at)]).collect()
}

/// Every position of a shape, row-major.
pub(super) fn positions(shape: &[u32]) -> Vec<Vec<u32>> {
    let mut all = vec![vec![]];
    for size in shape {
        all = all.iter().flat_map(|p| (0..*size).map(move |i| [&p[..], &[i]].concat())).collect();
    }
    all
}

/// Where a view has its element at `at`.
pub(super) fn address(view: &View, at: &[u32]) -> usize {
    let sum = view.strides.iter().zip(at).fold(view.offset, |a, (s, i)| a.wrapping_add(s.wrapping_mul(*i)));
    sum as usize
}

/// Checks every element to `absolute + relative · |expected|`; NaN must meet NaN.
#[track_caller]
pub(super) fn close(actual: &[f32], expected: &[f32], absolute: f32, relative: f32) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let fits = a == e || (a.is_nan() && e.is_nan()) || (a - e).abs() <= absolute + relative * e.abs();
        assert!(fits, "element {i} of {}: {a} where {e} is expected", actual.len());
    }
}
