//! Analyses of a graph: the residual stream, the layer chain on it, classes of layers, and what the
//! skip path does to the state.
//!
//! ```text
//!   stream   joins and maps, linked skip to skip: h0 → … → hN        (one walk, longest stream)
//!   chain    the stream cut into layers at attention; side inputs, taps, kind
//!   blocks   the parts of each layer: branches and skip path, for people
//!   cache    inputs that one layer reads and hands out again, grown
//!   others   stacks of layers beside the chain, as an encoder before its decoder
//!   mixing   S×S matrices on the streams of hyper-connections
//!   connection  how a branch reads and writes streams
//!   lockstep two layers compared node by node: the same class, or a reason why not
//! ```
//!
//! Everything is found by structure; names play no part.

mod blocks;
mod cache;
mod chain;
mod connection;
mod kind;
mod lockstep;
mod mixing;
mod others;
mod region;
mod stream;
mod transfer;

pub use blocks::{Block, BlockKind};
pub use cache::Cache;
pub use chain::{Chain, Class, Kind, Layer, SideInput, Stopped, Streams, Tap, find_chain};
pub use connection::Connection;
pub use lockstep::{Mismatch, same_class};
pub use mixing::Mixing;
pub use others::{OtherStack, Unreached, other_stacks, unreached};
pub use region::{Reach, descendants, state_dependent};
pub use stream::{Event, Stream, find_stream};
pub use transfer::{Matrix, Transfer};
