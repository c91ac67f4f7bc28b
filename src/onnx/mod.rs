//! ONNX files in and out.
//!
//! ```text
//!   file ─▶ mapping ─▶ proto ─▶ import ─▶ Model { graph, info } ─▶ export ─▶ file
//! ```
//!
//! Protobuf types stay in here. [`Model`] is what the rest of the program sees. Weights are never copied
//! on the way in: tensors are slices of the mapped file (or of the external data beside it).

mod attributes;
mod dims;
mod error;
mod export;
mod external;
mod import;
mod mapping;
#[allow(missing_docs, clippy::all, unused_qualifications)]
#[rustfmt::skip]
mod proto;
mod tensor;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use snlp_passes::ir::{Graph, NodeId};

pub use error::{ErrorKind, OnnxError};
pub use export::Written;
pub(crate) use export::correction_function;
pub(crate) use import::knows;

/// Versions of the standard operator set that models may use.
pub const OPSETS: RangeInclusive<i64> = 7..=28;

/// The newest version of the file format that is known; newer ones are read as if they were this one.
pub const NEWEST_IR: i64 = proto::Version::IrVersion as i64;

/// A model: its graph and what the file says about itself.
#[derive(Clone)]
pub struct Model {
    /// The computation.
    pub graph: Graph,
    /// Everything else in the file.
    pub info: ModelInfo,
}

/// The SHA-256 of a model file, computed when it is first asked for.
#[derive(Clone, Debug, Default)]
pub struct Fingerprint {
    data: Bytes,
    hex: Arc<OnceLock<String>>,
}

impl Fingerprint {
    fn new(data: Bytes) -> Self {
        Fingerprint { data, hex: Arc::default() }
    }

    /// In hexadecimal; empty for a model that came from no file.
    pub fn sha256(&self) -> &str {
        self.hex.get_or_init(|| {
            if self.data.is_empty() {
                return String::new();
            }
            let mut digest = Sha256::new();
            mapping::read_through(&self.data, |chunk| digest.update(chunk));
            digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
        })
    }
}

/// What a model file says besides its graph.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// Where the model was read from.
    pub path: PathBuf,
    /// Files beside it that hold weights.
    pub data_files: Vec<PathBuf>,
    /// IR version of the file.
    pub ir_version: i64,
    /// Operator sets: domain (`""` is the standard one) and version.
    pub opsets: Vec<(String, i64)>,
    /// Tool that wrote the file.
    pub producer_name: String,
    /// Its version.
    pub producer_version: String,
    /// Reverse-DNS domain of the model.
    pub domain: String,
    /// Version of the model.
    pub model_version: i64,
    /// Description.
    pub doc_string: String,
    /// Description of the graph.
    pub graph_doc_string: String,
    /// Free key-value pairs, in file order.
    pub metadata: Vec<(String, String)>,
    /// Tells the model file (without external data) from others.
    pub fingerprint: Fingerprint,
    /// Nodes of [`Model::graph`] that are carried through although their operator is known, and why.
    pub declined: BTreeMap<NodeId, String>,
    /// The graph outputs as the file declares them.
    pub(crate) outputs: Vec<proto::ValueInfoProto>,
    /// Local functions that subgraphs of opaque operators call.
    pub(crate) functions: Vec<proto::FunctionProto>,
}

impl ModelInfo {
    /// What a model of standard operators of `opset` says of itself at least.
    pub fn standard(opset: i64) -> Self {
        ModelInfo { ir_version: 8, opsets: vec![(String::new(), opset)], ..ModelInfo::default() }
    }
}

/// The file beside `model` that external data is written to: `OUT.data`.
pub fn data_file(model: &Path) -> PathBuf {
    // The model names it, and names in models are UTF-8.
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    model.with_file_name(format!("{name}.data"))
}

/// How a model is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Weights go to a file of their own beside the model. Models beyond 2 GiB do so in any case.
    pub external_data: bool,
    /// Corrections become plain operators instead of calls of `ai.snlp` functions.
    pub inline: bool,
}

impl Model {
    /// Reads a model file. External data is looked for beside it.
    ///
    /// # Errors
    /// With kind `Io` when a file cannot be read, `Invalid` when it is no ONNX model, contradicts itself or
    /// names data that is not there, `Unsupported` when the IR has no place for it (an opset outside of [`OPSETS`], a tensor of
    /// an element type without a [`snlp_passes::ir::DType`]). Unknown operators are no error.
    pub fn read(path: impl AsRef<Path>) -> Result<Model, OnnxError> {
        let path = path.as_ref();
        let data = mapping::map_file(path).map_err(|e| OnnxError::io(path, "cannot be read", e))?;
        import::read(data, path).map_err(|e| e.in_file(path))
    }

    /// Writes the model, atomically: `path` is replaced by the complete file or left as it was. With
    /// external data the weights go to `<file name>.data` beside it.
    ///
    /// # Errors
    /// With kind `Io` when a file cannot be written, `Unsupported` for an operator that the model's opset
    /// does not have, `Invalid` for an inconsistent graph.
    pub fn write(&self, path: impl AsRef<Path>, options: &WriteOptions) -> Result<Written, OnnxError> {
        let path = path.as_ref();
        export::export(self, options.inline)
            .and_then(|exported| export::write(&exported, path, options.external_data))
            .map_err(|e| e.in_file(path))
    }

    /// The model as the bytes of a file without external data.
    ///
    /// # Errors
    /// As [`Model::write`], and for models beyond the 2 GiB of a protobuf message.
    pub fn encode(&self, options: &WriteOptions) -> Result<bytes::Bytes, OnnxError> {
        export::encode(&export::export(self, options.inline)?)
    }

    /// Reads a model from memory; external data is looked for in `folder`.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn decode(data: bytes::Bytes, folder: &Path) -> Result<Model, OnnxError> {
        import::read(data, &folder.join("model.onnx"))
    }
}
