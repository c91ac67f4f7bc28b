//! Adapters and the opened device.
//!
//! A [`Gpu`] owns everything that sessions share: the device and queue, compiled pipelines and the one
//! copy of the weights. Faults that the driver reports outside any scope (a lost device, uncaptured
//! errors) are recorded and become errors at the next synchronisation: no run returns data after one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use snlp_passes::memory::room;

use crate::cooperative;
use crate::error::RuntimeError;
use crate::kernels::{self, Limits};
use crate::pipelines::Pipelines;
use crate::weights::{WeightReport, WeightStore};

/// How long a callback may take once the device is idle.
const CALLBACK: Duration = Duration::from_secs(10);

/// Hardware or software.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A GPU on a card.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU behind a hypervisor.
    Virtual,
    /// A driver that runs shaders on the CPU.
    Software,
    /// The driver does not say.
    Unknown,
}

/// An adapter, as `snlp devices` lists it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Name of the adapter.
    pub name: String,
    /// API: `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// Hardware or software.
    pub kind: DeviceKind,
    /// Driver and its version.
    pub driver: String,
    /// What the schedule must respect.
    pub limits: Limits,
    /// Names of optional features that the runtime can use and the adapter has.
    pub features: Vec<&'static str>,
    /// Why a feature that the adapter has was not used after all, once the device was opened.
    pub withheld: Option<String>,
}

impl DeviceInfo {
    fn of(adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => DeviceKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => DeviceKind::Integrated,
            wgpu::DeviceType::VirtualGpu => DeviceKind::Virtual,
            wgpu::DeviceType::Cpu => DeviceKind::Software,
            wgpu::DeviceType::Other => DeviceKind::Unknown,
        };
        let features = usable_features(adapter);
        let subgroup_size = subgroup_size(&info, features);
        let cooperative = cooperative_side(adapter, subgroup_size);
        let limits = Limits::of(&adapter.limits(), kind == DeviceKind::Software, subgroup_size, cooperative);
        let driver = format!("{} {}", info.driver, info.driver_info);
        DeviceInfo {
            name: info.name,
            backend: info.backend.to_string(),
            kind,
            driver: driver.trim().to_string(),
            limits,
            features: OPTIONAL.iter().filter(|(_, f)| features.contains(*f)).map(|(n, _)| *n).collect(),
            withheld: None,
        }
    }

    /// Whether shaders run on the CPU.
    pub fn is_software(&self) -> bool {
        self.kind == DeviceKind::Software
    }

    /// Order of preference for `auto`: smaller is better.
    fn rank(&self) -> u8 {
        match self.kind {
            DeviceKind::Discrete => 0,
            DeviceKind::Integrated => 1,
            DeviceKind::Virtual => 2,
            DeviceKind::Unknown => 3,
            DeviceKind::Software => 4,
        }
    }
}

const COOPERATIVE: &str = "cooperative-matrix";

/// Optional features that are asked for where they exist.
const OPTIONAL: [(&str, wgpu::Features); 4] = [
    ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
    ("subgroups", wgpu::Features::SUBGROUP),
    ("f16", wgpu::Features::SHADER_F16),
    (COOPERATIVE, wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
];

/// As [`Limits::subgroup_size`].
pub(crate) fn subgroup_size(info: &wgpu::AdapterInfo, features: wgpu::Features) -> u32 {
    let fixed = info.subgroup_min_size == info.subgroup_max_size;
    if fixed && features.contains(wgpu::Features::SUBGROUP) { info.subgroup_min_size } else { 0 }
}

pub(crate) fn usable_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let all = adapter.features();
    let mut usable = OPTIONAL.iter().fold(wgpu::Features::empty(), |f, (_, o)| f | (all & *o));
    if cooperative_side(adapter, subgroup_size(&adapter.get_info(), usable)) == 0 {
        usable.remove(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    }
    usable
}

/// As [`Limits::cooperative`], of an adapter whose subgroups have so many lanes.
pub(crate) fn cooperative_side(adapter: &wgpu::Adapter, subgroup_size: u32) -> u32 {
    let features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    if !adapter.features().contains(features) {
        return 0;
    }
    let of = |side: u32| wgpu::CooperativeMatrixProperties {
        m_size: side,
        n_size: side,
        k_size: side,
        ab_type: wgpu::CooperativeScalarType::F16,
        cr_type: wgpu::CooperativeScalarType::F32,
        saturating_accumulation: false,
    };
    let offered = adapter.cooperative_matrix_properties();
    let fits = |side: &&u32| offered.contains(&of(**side)) && kernels::cooperates(**side, subgroup_size);
    [16, 8].iter().find(fits).copied().unwrap_or(0)
}

/// Leave to use cooperative matrices, where the adapter has them.
pub(crate) fn experimental() -> wgpu::ExperimentalFeatures {
    #[allow(unsafe_code)]
    // SAFETY: the one experimental feature that is asked for is cooperative matrices, in one kernel of ours whose
    // loads and stores lie inside its own workgroup memory.
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

impl Limits {
    fn of(limits: &wgpu::Limits, software: bool, subgroup_size: u32, cooperative: u32) -> Self {
        Limits {
            max_storage_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_grid: limits.max_compute_workgroups_per_dimension,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroup_memory: limits.max_compute_workgroup_storage_size,
            min_offset_alignment: limits
                .min_storage_buffer_offset_alignment
                .max(limits.min_uniform_buffer_offset_alignment),
            software,
            subgroup_size,
            cooperative,
        }
    }
}

/// Which adapter to open.
#[derive(Clone, Debug, Default)]
pub struct AdapterChoice {
    /// Part of the adapter's name, driver or backend, in any case; nothing chooses the best adapter.
    pub substring: Option<String>,
    /// A software adapter will do when there is no hardware.
    pub allow_software: bool,
    /// A software adapter gets the kernels that hardware gets: slower there, and a way to test them.
    pub hardware_kernels: bool,
}

impl AdapterChoice {
    /// The best adapter, be it in software.
    pub fn any() -> Self {
        AdapterChoice { allow_software: true, ..AdapterChoice::default() }
    }
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}

fn enumerate() -> Vec<(wgpu::Adapter, DeviceInfo)> {
    let adapters = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
    let mut found: Vec<_> = adapters
        .into_iter()
        .map(|adapter| {
            let info = DeviceInfo::of(&adapter);
            (adapter, info)
        })
        .collect();
    found.sort_by_key(|(_, info)| info.rank());
    found
}

/// The adapters of this machine, best first.
pub fn adapters() -> Vec<DeviceInfo> {
    enumerate().into_iter().map(|(_, info)| info).collect()
}

/// What the driver reported outside any error scope.
#[derive(Default)]
struct Faults {
    lost: Mutex<Option<String>>,
    uncaptured: Mutex<Option<String>>,
    any: AtomicBool,
}

/// A lock that a panic elsewhere does not poison for good: the data behind ours stays consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An opened device with what all its sessions share.
pub struct Gpu {
    pub(crate) info: DeviceInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    faults: Arc<Faults>,
    pub(crate) pipelines: Pipelines,
    pub(crate) weights: Mutex<WeightStore>,
}

impl Gpu {
    /// Bytes that the driver's memory holds in buffers now, where the backend tells.
    pub fn allocated(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|r| r.total_allocated_bytes)
    }

    /// Opens the adapter that fits `choice` best: hardware before software, and software only where it
    /// is allowed or named.
    pub fn open(choice: &AdapterChoice) -> Result<Arc<Gpu>, RuntimeError> {
        let all = enumerate();
        let names = all.iter().map(|(_, i)| format!("{} ({})", i.name, i.backend)).collect::<Vec<_>>();
        let found = all.into_iter().find(|(_, info)| match &choice.substring {
            Some(text) => {
                let text = text.to_lowercase();
                [&info.name, &info.driver, &info.backend].iter().any(|s| s.to_lowercase().contains(&text))
            }
            None => choice.allow_software || !info.is_software(),
        });
        let Some((adapter, info)) = found else {
            let wanted = match (&choice.substring, choice.allow_software) {
                (Some(text), _) => format!("none is called '{text}'"),
                (None, true) => "the system has none".to_string(),
                (None, false) => "the system has no hardware adapter".to_string(),
            };
            let known = if names.is_empty() { "no adapter found".into() } else { names.join(", ") };
            return Err(RuntimeError::NoDevice(format!("{wanted}; adapters: {known}")));
        };
        let mut info = info;
        info.limits.software &= !choice.hardware_kernels;
        let mut gpu = Self::request(&adapter, info.clone())?;
        if !info.limits.software && info.limits.cooperative > 0 {
            let wrong = match cooperative::error(&gpu) {
                Ok(error) if error <= cooperative::TOLERANCE => return Ok(gpu),
                Ok(error) => format!("a product came out wrong by {error:.1e}"),
                Err(reason) => reason,
            };
            // The device may have suffered from it.
            info.withheld = Some(format!("{COOPERATIVE} is not used: {wrong}"));
            info.features.retain(|f| *f != COOPERATIVE);
            info.limits.cooperative = 0;
            gpu = Self::request(&adapter, info)?;
        }
        Ok(gpu)
    }

    fn request(adapter: &wgpu::Adapter, info: DeviceInfo) -> Result<Arc<Gpu>, RuntimeError> {
        let mut features = usable_features(adapter);
        if info.limits.cooperative == 0 {
            features.remove(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("snlp"),
            required_features: features,
            experimental_features: experimental(),
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| RuntimeError::NoDevice(format!("{}: {e}", info.name)))?;
        let faults = Arc::new(Faults::default());
        let recorded = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&recorded.uncaptured).get_or_insert(error.to_string());
            recorded.any.store(true, Ordering::Release);
        }));
        let recorded = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            lock(&recorded.lost).get_or_insert(format!("{message} ({reason:?})"));
            recorded.any.store(true, Ordering::Release);
        });
        Ok(Arc::new(Gpu {
            info,
            device,
            queue,
            faults,
            pipelines: Pipelines::default(),
            weights: Mutex::new(WeightStore::default()),
        }))
    }

    /// The adapter.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// What the schedule must respect.
    pub fn limits(&self) -> &Limits {
        &self.info.limits
    }

    /// What the weight store holds.
    pub fn weights(&self) -> WeightReport {
        lock(&self.weights).report()
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(crate) fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// Whether the device can time passes.
    pub fn has_timestamps(&self) -> bool {
        self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// Frees everything on the device now, though sessions may still refer to it: their runs fail.
    pub fn destroy(&self) {
        self.device.destroy();
        let _ = self.device.poll(wgpu::PollType::Poll);
    }

    /// An error if the driver reported a fault since the last check. A lost device stays lost.
    pub fn check(&self, during: &str) -> Result<(), RuntimeError> {
        if !self.faults.any.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(message) = lock(&self.faults.lost).clone() {
            return Err(RuntimeError::DeviceLost(message));
        }
        self.faults.any.store(false, Ordering::Release);
        match lock(&self.faults.uncaptured).take() {
            Some(message) => Err(RuntimeError::Gpu { during: during.into(), message }),
            None => Ok(()),
        }
    }

    /// Runs `work` and turns every error of the GPU API inside it into ours.
    pub(crate) fn guarded<T>(&self, during: &str, work: impl FnOnce() -> T) -> Result<T, RuntimeError> {
        let scopes =
            [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation]
                .map(|filter| self.device.push_error_scope(filter));
        let result = work();
        let mut first = None;
        for scope in scopes.into_iter().rev() {
            if let Some(error) = pollster::block_on(scope.pop()) {
                first.get_or_insert(error);
            }
        }
        self.check(during)?;
        match first {
            None => Ok(result),
            Some(wgpu::Error::OutOfMemory { .. }) => {
                Err(RuntimeError::OutOfMemory { what: during.into(), needed: 0, limit: None })
            }
            Some(error) => Err(RuntimeError::Gpu { during: during.into(), message: error.to_string() }),
        }
    }

    /// Allocates a buffer of at least `bytes` bytes (rounded up to a multiple of 4, at least 4).
    pub(crate) fn buffer(
        &self,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, RuntimeError> {
        let size = bytes.max(4).next_multiple_of(4);
        let limit = self.limits().max_buffer;
        if size > limit {
            return Err(RuntimeError::OutOfMemory { what: what.into(), needed: size, limit: Some(limit) });
        }
        let made = self.guarded(what, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size,
                usage,
                mapped_at_creation: false,
            })
        });
        made.map_err(|error| match error {
            RuntimeError::OutOfMemory { what, .. } => {
                RuntimeError::OutOfMemory { what, needed: size, limit: None }
            }
            other => other,
        })
    }

    /// Waits until everything submitted has run.
    pub fn wait(&self) -> Result<(), RuntimeError> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check("waiting for the device")?;
        match polled {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(RuntimeError::Gpu { during: "waiting for the device".into(), message: error.to_string() })
            }
        }
    }

    /// Copies `bytes` bytes of a mappable buffer to the host, after everything submitted has run.
    pub(crate) fn read(&self, staging: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>, RuntimeError> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        room(bytes as usize)?;
        let failed = |message: String| RuntimeError::Gpu { during: "reading results".into(), message };
        let (sender, outcome) = mpsc::channel();
        let padded = bytes.next_multiple_of(4);
        self.guarded("mapping results", || {
            staging.map_async(wgpu::MapMode::Read, 0..padded, move |result| {
                let _ = sender.send(result);
            });
        })?;
        self.wait()?;
        // A wait on another thread may have taken the callback, and be about to call it.
        match outcome.recv_timeout(CALLBACK) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("the mapping did not complete".into())),
        }
        let view = staging.get_mapped_range(0..padded).map_err(|e| failed(e.to_string()))?;
        let data = view[..bytes as usize].to_vec();
        drop(view);
        staging.unmap();
        Ok(data)
    }
}
