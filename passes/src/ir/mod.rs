//! The intermediate representation: a graph of operators over typed values.
//!
//! ```text
//!   Graph ──┬── inputs  : values given from outside
//!           ├── nodes   : Op + operands → results     (ids are never reused)
//!           ├── values  : type, definition, known integer content
//!           └── outputs : name → value
//! ```
//!
//! Invariants, checked by [`validate()`]: every operand is defined, the nodes have an order, the recorded
//! types are what inference gives, output names are unique. Constants are values, not nodes. Every
//! value made by an operator with known semantics has a type; only what an opaque operator makes may
//! lack one.

mod dim;
mod dump;
mod dynamic;
mod edit;
mod graph;
mod op;
mod tensor;
mod types;
mod validate;
mod view;

pub use dim::{Atom, Bindings, Dim, Symbol};
pub use dump::dump;
pub use dynamic::{Dynamic, Resolved, over_nothing};
pub use graph::{Def, Graph, GraphError, Node, NodeId, Output, Value, ValueId};
pub use op::{
    Attention, Attribute, Binary, Blocks, Correction, CorrectionForm, Op, Opaque, PadMode, Reduce, Rotary,
    RotaryTable, ScatterReduction, Unary, Window,
};
pub use tensor::{DType, Element, Tensor, TensorError, element_count};
pub use types::Type;
pub use validate::{Invalid, Valid, validate};
pub use view::DataflowView;
