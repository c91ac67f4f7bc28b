//! Options that all commands share.

use clap::{ArgAction, Args, ValueEnum};

/// Options that all commands share.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Where to compute: auto takes a hardware GPU if there is one, else the CPU; gpu also accepts a
    /// software Vulkan adapter
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Common options")]
    pub backend: BackendChoice,
    /// Take the GPU adapter whose name contains this text
    #[arg(long, global = true, value_name = "SUBSTRING", help_heading = "Common options")]
    pub adapter: Option<String>,
    /// Run the kernels for hardware on a software adapter too: for tests of them
    #[arg(long, global = true, hide = true)]
    pub hardware_kernels: bool,
    /// How weights are kept on the GPU (default: as the model has them)
    #[arg(long, global = true, value_enum, help_heading = "Common options")]
    pub dtype: Option<DTypeChoice>,
    /// Say more on stderr
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Common options")]
    pub verbose: u8,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Common options")]
    pub quiet: bool,
}

/// `--backend`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackendChoice {
    /// A hardware GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// A GPU; a software Vulkan adapter counts.
    Gpu,
    /// The CPU.
    Cpu,
}

/// `--dtype`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DTypeChoice {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, accumulated in 32 bits.
    F16,
}
