//! Where graphs run: a GPU or the CPU, behind one face.

use std::sync::Arc;
use std::time::Duration;

use snlp::error::{Error, Kind, MORE_MEMORY};
use snlp::language::decoder::{Forward, Stepper};
use snlp::passes::ir::{Graph, Tensor};
use snlp::runtime::schedule::{Options, ScheduleError, WeightDtype};
use snlp::runtime::{AdapterChoice, Gpu, RuntimeError, Session, StepTime, adapters};
use snlp::text::sentence;

use super::args::{BackendChoice, Common, DTypeChoice};
use super::ui::Ui;

/// What graphs run on.
pub enum Backend {
    /// A GPU.
    Gpu(Arc<Gpu>, Options),
    /// The CPU.
    #[cfg(feature = "cpu")]
    Cpu,
}

/// Which backend `auto` takes here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Auto {
    /// The best GPU.
    Gpu,
    /// The CPU.
    Cpu,
    /// Nothing can run.
    Nothing,
}

/// The choice of `auto`: a hardware GPU, else the CPU; a build without a CPU backend takes a software
/// GPU.
pub fn auto(adapters: &[snlp::runtime::DeviceInfo]) -> Auto {
    if adapters.iter().any(|a| !a.is_software()) {
        Auto::Gpu
    } else if cfg!(feature = "cpu") {
        Auto::Cpu
    } else if adapters.is_empty() {
        Auto::Nothing
    } else {
        Auto::Gpu
    }
}

impl Backend {
    /// Opens what the options ask for.
    pub fn open(common: &Common, ui: &Ui) -> Result<Backend, Error> {
        let on_cpu = match common.backend {
            BackendChoice::Cpu => true,
            BackendChoice::Gpu => false,
            BackendChoice::Auto if common.adapter.is_some() => false,
            BackendChoice::Auto => auto(&adapters()) == Auto::Cpu,
        };
        if on_cpu { Backend::cpu(common, ui) } else { Backend::gpu(common, ui) }
    }

    /// The backend of [`Backend::open`] and, where `auto` takes the CPU although there is a software GPU,
    /// that one besides: a check on both says more.
    pub fn open_all(common: &Common, ui: &Ui) -> Result<Vec<Backend>, Error> {
        let first = Backend::open(common, ui)?;
        #[cfg_attr(not(feature = "cpu"), allow(unused_mut))]
        let mut all = vec![first];
        #[cfg(feature = "cpu")]
        if matches!(all[0], Backend::Cpu) && common.backend == BackendChoice::Auto && !adapters().is_empty() {
            all.push(Backend::gpu(common, ui)?);
        }
        Ok(all)
    }

    fn gpu(common: &Common, ui: &Ui) -> Result<Backend, Error> {
        let choice = AdapterChoice {
            substring: common.adapter.clone(),
            hardware_kernels: common.hardware_kernels,
            ..AdapterChoice::any()
        };
        let gpu = Gpu::open(&choice).map_err(|e| {
            let kind = if matches!(e, RuntimeError::NoDevice(_)) { Kind::Device } else { Kind::Internal };
            Error::new(kind, e.to_string())
                .help("'snlp devices' lists the adapters; '--backend cpu' runs without one")
        })?;
        let info = gpu.info();
        let software = if info.is_software() { ", software" } else { "" };
        ui.notice(&format!("running on {} ({}{software})", info.name, info.backend));
        if let Some(reason) = &info.withheld {
            ui.warn(reason);
        }
        let weights = match common.dtype {
            Some(DTypeChoice::F16) => WeightDtype::F16,
            Some(DTypeChoice::F32) | None => WeightDtype::Model,
        };
        Ok(Backend::Gpu(gpu, Options { weights, ..Options::default() }))
    }

    #[cfg(feature = "cpu")]
    fn cpu(common: &Common, ui: &Ui) -> Result<Backend, Error> {
        if common.dtype == Some(DTypeChoice::F16) {
            return Err(Error::usage("--dtype f16 needs the GPU backend")
                .help("leave --dtype away, or give --backend gpu"));
        }
        ui.notice("running on the CPU");
        Ok(Backend::Cpu)
    }

    #[cfg(not(feature = "cpu"))]
    fn cpu(_: &Common, _: &Ui) -> Result<Backend, Error> {
        Err(Error::new(Kind::Device, "this build of snlp has no CPU backend")
            .help("build with the feature 'cpu' (the default), or give --backend gpu"))
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        match self {
            Backend::Gpu(gpu, _) => format!("{} ({})", gpu.info().name, gpu.info().backend),
            #[cfg(feature = "cpu")]
            Backend::Cpu => "CPU".into(),
        }
    }

    /// Whether it computes in software, as the CPU and software GPUs do.
    pub fn is_slow(&self) -> bool {
        match self {
            Backend::Gpu(gpu, _) => gpu.info().is_software(),
            #[cfg(feature = "cpu")]
            Backend::Cpu => true,
        }
    }

    /// Makes graphs ready to run. Graphs of one model share one copy of the weights on the device.
    pub fn load(&self, graphs: Vec<Graph>) -> Result<Vec<Runner>, Error> {
        self.load_with(graphs.into_iter().map(|graph| (graph, vec![])).collect())
    }

    /// Makes steppers ready to run; what stays with each stays from call to call.
    pub fn load_steppers(&self, steppers: &[Stepper]) -> Result<Vec<Runner>, Error> {
        self.load_with(steppers.iter().map(|s| (s.graph.clone(), s.states.clone())).collect())
    }

    /// Makes graphs ready to run, each with what stays with it from call to call: inputs, and the outputs that take
    /// their place.
    pub fn load_with(&self, graphs: Vec<(Graph, Vec<(String, String)>)>) -> Result<Vec<Runner>, Error> {
        match self {
            Backend::Gpu(gpu, options) => {
                let with = |(graph, states)| (graph, Options { states, ..options.clone() });
                let sessions = Session::group_with(gpu, graphs.into_iter().map(with).collect());
                Ok(sessions.map_err(runtime_error)?.into_iter().map(Runner::Gpu).collect())
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => {
                let one = |(graph, states)| Runner::Cpu(super::cpu::CpuRunner::new(graph, states));
                Ok(graphs.into_iter().map(one).collect())
            }
        }
    }

    /// Makes one graph ready to run.
    pub fn load_one(&self, graph: Graph) -> Result<Runner, Error> {
        let mut all = self.load(vec![graph])?;
        all.pop().ok_or_else(|| Error::new(Kind::Internal, "no runner was made"))
    }
}

/// A graph ready to run.
pub enum Runner {
    /// On a GPU.
    Gpu(Session),
    /// On the CPU.
    #[cfg(feature = "cpu")]
    Cpu(super::cpu::CpuRunner),
}

impl Runner {
    /// Runs the graph; outputs come in the graph's order.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
        match self {
            Runner::Gpu(session) => session.run(inputs).map_err(runtime_error),
            #[cfg(feature = "cpu")]
            Runner::Cpu(cpu) => cpu.run(inputs),
        }
    }

    /// The time of each of `count` forwards, after everything is prepared.
    pub fn time(&self, inputs: &[(String, Tensor)], count: usize) -> Result<Vec<Duration>, Error> {
        match self {
            Runner::Gpu(session) => session.time(inputs, count).map_err(runtime_error),
            #[cfg(feature = "cpu")]
            Runner::Cpu(cpu) => cpu.time(inputs, count),
        }
    }

    /// The time of each dispatch.
    pub fn profile(&self, inputs: &[(String, Tensor)]) -> Result<Vec<StepTime>, Error> {
        match self {
            Runner::Gpu(session) => session.profile(inputs).map_err(runtime_error),
            #[cfg(feature = "cpu")]
            Runner::Cpu(_) => Err(Error::usage("--profile needs the GPU backend")
                .help("give --backend gpu; a software adapter will do")),
        }
    }
}

impl Forward for Runner {
    fn forward(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
        self.run(inputs)
    }
}

/// What a failure of the runtime becomes.
pub fn runtime_error(e: RuntimeError) -> Error {
    use RuntimeError as E;
    let (kind, help) = match &e {
        E::NoDevice(_) => (Kind::Device, "'snlp devices' lists the adapters"),
        E::DeviceLost(_) => (Kind::Device, "try again, or give --backend cpu"),
        E::Half { .. } => (Kind::Input, "give --dtype f32"),
        E::OutOfMemory { .. } => (Kind::Device, "use a smaller batch, --dtype f16, or --backend cpu"),
        E::NoRoom(_) => (Kind::Input, MORE_MEMORY),
        E::Bind(_) => (
            Kind::Input,
            "'snlp inspect' shows the inputs of the model; a sequence may be longer than its table of positions",
        ),
        E::Input { .. } | E::Inputs { .. } | E::Index { .. } | E::Integer { .. } => {
            (Kind::Input, "'snlp inspect' shows the inputs of the model")
        }
        E::Schedule(ScheduleError::TooLarge { .. }) => {
            (Kind::Device, "use a smaller batch or shorter sequences, or --backend cpu")
        }
        E::Invalid(_) | E::Schedule(_) | E::Kernel(_) | E::Host { .. } | E::Cpu(_) | E::Split(_) => {
            (Kind::Input, "another backend may run it (--backend); README.md lists what is supported")
        }
        E::Gpu { .. } | E::Shader { .. } => {
            (Kind::Internal, "this is a defect of snlp or of the GPU driver: please report it")
        }
    };
    let message = match &e {
        E::Schedule(_) | E::Kernel(_) => "the model cannot be run on this device".to_string(),
        other => sentence(&other.to_string()),
    };
    Error::new(kind, message).because(e).help(help)
}
