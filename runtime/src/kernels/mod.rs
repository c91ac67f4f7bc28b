//! Kernels: one family per file, a launcher in Rust beside complete WGSL.
//!
//! A launcher is a pure function from views of operands to a [`Launch`]: which pipeline, which
//! parameters, how large a grid. It touches no GPU, so the schedule can be built and tested without one.
//! Every shape, stride and offset travels in `params`; pipelines differ by source, element types and
//! `override` constants only.
//!
//! # Conventions
//! - Operands are bound in the order that each launcher documents, at the numbers that [`Roles`] tells. An absent
//!   optional operand has no binding, or, where the numbers do not vary, is bound to the first operand's buffer again.
//! - Bind group layouts are explicit: the uniform block, then storage buffers as the roles say. An entry point may
//!   leave some of them unused.
//! - Strides wrap modulo 2^32: a view that runs backwards has strides in two's complement.
//! - A view that lacks leading axes, or has size 1 where the result does not, broadcasts.
//! - Results without elements need no dispatch; the caller skips them.
//! - [`shader_text`] gives the WGSL of a key, [`specialised`] the module that its constants leave of it.
//!   Devices see the latter alone, so one entry point may use what another must do without.

mod argmax;
mod attention;
mod attention_step;
mod conv;
mod correction;
mod dynamic_quantize;
mod elementwise;
mod gather;
mod heads;
mod layout;
mod matmul;
mod matmul_integer;
mod norm;
mod program;
mod reduce;
mod scan;
mod sinkhorn;
mod softmax;
mod specialise;
mod table;
mod topk;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use argmax::ArgMax;
pub use attention::{Attention, MAX_HEAD, Variant as AttentionVariant};
pub use attention_step::{AttentionStep, MAX_STEP, Ready};
pub use conv::Conv;
pub use correction::Correction;
pub use dynamic_quantize::DynamicQuantize;
pub use elementwise::Elementwise;
pub use gather::{Bounds, Gather, GatherKind, Scatter};
pub use heads::{HeadNorm, HeadPart, Heads};
pub use layout::{MAX_ELEMENTS, MAX_RANK};
pub use matmul::{
    Activation, Coding, MAX_PARTS, Matmul, Part, RowNorm, Variant as MatmulVariant, cooperates, takes_norm,
};
pub use matmul_integer::{Epilogue, MatmulInteger};
pub use norm::{Norm, NormKind};
pub use program::{
    ElementOp, MAX_CONSTANTS, MAX_INDICES, MAX_INPUTS, MAX_RESULTS, MAX_STEPS, Program, Reg, Step, arity,
    scalar_of,
};
pub use reduce::Reduce;
pub use scan::CumSum;
pub use sinkhorn::{MAX_ELEMENTS as SINKHORN_ELEMENTS, MAX_STEPS as SINKHORN_STEPS, Sinkhorn, Sums};
pub use softmax::Softmax;
pub use specialise::specialised;
pub use table::{SOURCES, Source, shader_text};
pub use topk::TopK;

use std::fmt;

/// How elements lie in a device buffer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scalar {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, two to a 32-bit word; read-only (weights).
    F16,
    /// 32-bit signed integers (int64 values, checked to fit).
    I32,
    /// 0 or 1 in a 32-bit word.
    Bool,
    /// Signed integers of 8 bits, four to a word; read-only (quantised weights), as are those below.
    I8,
    /// Unsigned integers of 8 bits, four to a word.
    U8,
    /// Signed integers of 4 bits, eight to a word, the first in the lowest bits.
    I4,
    /// Unsigned integers of 4 bits, eight to a word.
    U4,
}

impl Scalar {
    /// Bits of an element.
    pub fn bits(self) -> u64 {
        match self {
            Scalar::F32 | Scalar::I32 | Scalar::Bool => 32,
            Scalar::F16 => 16,
            Scalar::I8 | Scalar::U8 => 8,
            Scalar::I4 | Scalar::U4 => 4,
        }
    }

    /// Whether several elements share a word.
    pub fn is_packed(self) -> bool {
        self.bits() < 32
    }

    /// The type of the elements in a word each.
    pub fn unpacked(self) -> Scalar {
        match self {
            Scalar::F32 | Scalar::F16 => Scalar::F32,
            Scalar::Bool => Scalar::Bool,
            Scalar::I32 | Scalar::I8 | Scalar::U8 | Scalar::I4 | Scalar::U4 => Scalar::I32,
        }
    }

    /// The kernels' number for how elements lie.
    fn form(self) -> u32 {
        match self {
            Scalar::F32 | Scalar::I32 | Scalar::Bool => 0,
            Scalar::F16 => 1,
            Scalar::I8 => 2,
            Scalar::U8 => 3,
            Scalar::I4 => 4,
            Scalar::U4 => 5,
        }
    }
}

/// A strided view of a buffer, in elements. A stride of 0 broadcasts.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct View {
    /// Sizes of the axes.
    pub shape: Vec<u32>,
    /// Steps between neighbours along each axis.
    pub strides: Vec<u32>,
    /// First element, counted from the start of the binding.
    pub offset: u32,
}

impl View {
    /// A dense row-major view from the start of a buffer.
    pub fn dense(shape: &[u32]) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        View { shape: shape.to_vec(), strides, offset: 0 }
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.shape.iter().map(|d| u64::from(*d)).product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Whether the view is dense and row-major (axes of size 1 have no say).
    pub fn is_dense(&self) -> bool {
        let dense = View::dense(&self.shape);
        self.shape.iter().zip(self.strides.iter().zip(&dense.strides)).all(|(d, (a, b))| *d == 1 || a == b)
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}+{}", self.shape, self.strides, self.offset)
    }
}

/// An operand or result of a kernel.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Operand {
    /// Where the elements are.
    pub view: View,
    /// How they are stored.
    pub scalar: Scalar,
}

/// What decides which compiled pipeline runs. Equal keys share one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PipelineKey {
    /// Name of the WGSL source in the kernel table.
    pub source: &'static str,
    /// Entry point.
    pub entry: &'static str,
    /// Element-type substitutions: `("WEIGHT", "f16")` style pairs, applied to the text.
    pub types: Vec<(&'static str, &'static str)>,
    /// `override` constants, as the bits of f64 so that keys can be hashed.
    pub constants: Vec<(&'static str, u64)>,
}

/// Numbers of the storage bindings of a dispatch, in the launcher's order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Roles {
    /// Of what is read.
    pub reads: Vec<u32>,
    /// Of what is written, or read and written.
    pub writes: Vec<u32>,
}

impl Roles {
    /// Bindings 1.. without a gap.
    pub fn first(reads: u32, writes: u32) -> Self {
        Roles { reads: (1..=reads).collect(), writes: (reads + 1..=reads + writes).collect() }
    }

    /// All numbers, those read first.
    pub fn all(&self) -> impl Iterator<Item = u32> {
        self.reads.iter().chain(&self.writes).copied()
    }
}

/// One dispatch, ready to be bound: binding 0 is the uniform block with `params`; the others are the launcher's
/// operands in its documented order, the results last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Launch {
    /// The pipeline.
    pub pipeline: PipelineKey,
    /// Words of the uniform block (padded to 16 bytes by the executor).
    pub params: Vec<u32>,
    /// Where operands and results are bound.
    pub roles: Roles,
    /// Workgroups.
    pub grid: [u32; 3],
    /// Floating-point operations, for the profile.
    pub flops: u64,
    /// Bytes read and written at least once, for the profile.
    pub bytes: u64,
}

/// What launchers must know of a device.
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// Largest range one storage binding may cover, in bytes.
    pub max_storage_binding: u64,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Storage buffers per stage.
    pub max_storage_buffers: u32,
    /// Workgroups per grid axis.
    pub max_grid: u32,
    /// Invocations per workgroup.
    pub max_invocations: u32,
    /// Workgroup memory in bytes.
    pub max_workgroup_memory: u32,
    /// Alignment of uniform and storage binding offsets, in bytes.
    pub min_offset_alignment: u32,
    /// A software adapter: kernels without workgroup memory are faster.
    pub software: bool,
    /// Lanes of every subgroup; 0 where sizes vary or subgroup operations may not be used.
    pub subgroup_size: u32,
    /// Rows and columns of the cooperative matrices that subgroups multiply, of f16 into f32; 0 where there are
    /// none.
    pub cooperative: u32,
}

/// Why a kernel cannot be launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The operands' types or ranks are outside what the kernel does.
    #[error("{kernel}: {reason}")]
    Unsupported {
        /// Kernel family.
        kernel: &'static str,
        /// What is outside, and what would be inside.
        reason: String,
    },
    /// A size exceeds the device.
    #[error("{kernel}: {what} is {needed}, the device allows {limit}")]
    Limit {
        /// Kernel family.
        kernel: &'static str,
        /// What is too large.
        what: &'static str,
        /// What the launch needs.
        needed: u64,
        /// What the device allows.
        limit: u64,
    },
}
