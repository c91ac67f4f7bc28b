//! Messages to bytes to files.
//!
//! The bytes of a model are a rope: small encoded pieces between the weights, which are written from
//! where they lie (often another file, mapped). Protobuf lets the fields of a message come in any order
//! and number, so `graph.initializer` follows the rest of the graph.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use snlp_passes::ir::Tensor;
use snlp_passes::memory::room;
use tempfile::NamedTempFile;

use super::Exported;
use crate::files::{folder_of, same, stage};
use crate::onnx::error::OnnxError;
use crate::onnx::mapping::write_bytes;
use crate::onnx::proto::TensorProto;
use crate::onnx::tensor::{external, header};
use crate::onnx::{Model, data_file};

/// Protobuf messages end below 2 GiB.
const LIMIT: u64 = if cfg!(test) { 1 << 20 } else { i32::MAX as u64 };
/// Smaller tensors stay in the model even with external data: runtimes read shapes from them at load.
const SMALL: u64 = 1024;
const GRAPH_FIELD: u32 = 7;
const INITIALIZER_FIELD: u32 = 5;
const RAW_DATA_FIELD: u32 = 9;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The model file.
    pub path: PathBuf,
    /// The file of external data beside it, if there is one.
    pub data: Option<PathBuf>,
    /// Bytes in both.
    pub bytes: u64,
}

/// Bytes in pieces.
#[derive(Default)]
struct Rope {
    pieces: Vec<Bytes>,
    len: u64,
}

impl Rope {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len() as u64;
        self.pieces.push(piece);
    }

    /// The start of a length-delimited field.
    fn field(&mut self, tag: u32, len: u64) {
        let mut head = Vec::new();
        encode_key(tag, WireType::LengthDelimited, &mut head);
        encode_varint(len, &mut head);
        self.push(head.into());
    }

    fn append(&mut self, other: Rope) {
        self.len += other.len;
        self.pieces.extend(other.pieces);
    }

    fn initializer(&mut self, proto: &TensorProto, data: Option<&Tensor>) {
        let mut message = Rope::default();
        message.push(proto.encode_to_vec().into());
        if let Some(tensor) = data {
            message.field(RAW_DATA_FIELD, tensor.byte_len() as u64);
            tensor.parts().iter().for_each(|p| message.push(p.clone()));
        }
        self.field(INITIALIZER_FIELD, message.len);
        self.append(message);
    }
}

/// Where external tensors go.
#[derive(Default)]
struct DataFile {
    name: String,
    /// Tensors with their offsets, ascending.
    tensors: Vec<(u64, Tensor)>,
    len: u64,
}

impl DataFile {
    /// Reserves a place; large tensors begin on a page, so that they can be mapped.
    fn place(&mut self, tensor: &Tensor) -> u64 {
        let len = tensor.byte_len() as u64;
        let align = if len >= 1 << 20 { 4096 } else { 64 };
        let offset = self.len.next_multiple_of(align);
        self.tensors.push((offset, tensor.clone()));
        self.len = offset + len;
        offset
    }
}

fn model_rope(exported: &Exported, mut data_file: Option<&mut DataFile>) -> Rope {
    let mut graph = Rope::default();
    graph.push(exported.graph.encode_to_vec().into());
    for (name, tensor) in &exported.initializers {
        let proto = header(name, tensor);
        match data_file.as_mut().filter(|_| tensor.byte_len() as u64 >= SMALL) {
            Some(file) => {
                let offset = file.place(tensor);
                let proto = external(proto, &file.name, offset, tensor.byte_len() as u64);
                graph.initializer(&proto, None);
            }
            None => graph.initializer(&proto, Some(tensor)),
        }
    }
    let mut model = Rope::default();
    model.push(exported.model.encode_to_vec().into());
    model.field(GRAPH_FIELD, graph.len);
    model.append(graph);
    model
}

/// The model as one piece of memory.
pub(crate) fn encode(exported: &Exported) -> Result<Bytes, OnnxError> {
    let rope = model_rope(exported, None);
    if rope.len > LIMIT {
        return Err(OnnxError::unsupported(format!(
            "the model has {} bytes, and a protobuf message ends below 2 GiB",
            rope.len
        ))
        .remedy("write it to a file with external data"));
    }
    room(usize::try_from(rope.len).unwrap_or(usize::MAX))
        .map_err(|e| OnnxError::unsupported(e.to_string()))?;
    Ok(rope.pieces.concat().into())
}

/// Writes the model to `path`, atomically: until the last moment an existing file stays as it is.
pub(crate) fn write(exported: &Exported, path: &Path, external_data: bool) -> Result<Written, OnnxError> {
    let data_path = data_file(path);
    let mut rope = model_rope(exported, None);
    let mut data = None;
    if external_data || rope.len > LIMIT {
        let mut file = DataFile { name: name_of(&data_path), ..DataFile::default() };
        rope = model_rope(exported, Some(&mut file));
        data = Some(file).filter(|f| !f.tensors.is_empty());
    }
    if rope.len > LIMIT {
        return Err(OnnxError::unsupported("the model has more than 2 GiB even without its weights"));
    }
    let bytes = rope.len + data.as_ref().map_or(0, |f| f.len);
    let data = data.map(|file| write_data(&file, &data_path)).transpose()?;
    let stage_model = |rope: Rope| write_pieces(path, |out| rope.pieces.iter().try_for_each(|p| out.put(p)));
    let model = stage_model(rope)?;
    let mut written =
        Written { path: path.to_owned(), data: data.as_ref().map(|_| data_path.clone()), bytes };
    refuse_special(path)?;
    let Some(data) = data else { return persist(model, path).map(|()| written) };
    refuse_special(&data_path)?;
    if data_path.exists() {
        let mut file = DataFile { name: name_of(&next_to(&data_path)), ..DataFile::default() };
        let interim = stage_model(model_rope(exported, Some(&mut file)))?;
        written.data = Some(exchange(interim, model, path, data, &data_path)?);
    } else {
        // A model that is there has no data of this name.
        persist(data, &data_path)?;
        persist(model, path).inspect_err(|_| drop(std::fs::remove_file(&data_path)))?;
    }
    Ok(written)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn cannot_write(path: &Path, e: std::io::Error) -> OnnxError {
    if e.kind() == std::io::ErrorKind::UnexpectedEof {
        let reason = "cannot be written: the file that its weights come from became shorter meanwhile";
        return OnnxError::io(path, reason, e)
            .remedy("see what writes to the model that is read, and convert it again");
    }
    OnnxError::io(path, "cannot be written", e).remedy(if folder_of(path).is_dir() {
        "check the permissions of the folder and the space left on the device"
    } else {
        "create the folder first"
    })
}

/// A file that is being filled.
struct Out<'f> {
    file: &'f File,
    /// Short pieces that wait.
    buffer: BufWriter<&'f File>,
}

impl Out<'_> {
    fn put(&mut self, piece: &Bytes) -> std::io::Result<()> {
        if piece.len() < SHORT {
            return self.buffer.write_all(piece);
        }
        self.buffer.flush()?;
        write_bytes(piece, self.file)
    }
}

/// Pieces below this length are gathered in memory, where copying from file to file would cost more.
const SHORT: usize = 64 << 10;

/// A new file that will be `path`, complete. Where it will replace another, it is on the disk, so that a loss of power
/// leaves one of them.
fn write_pieces(
    path: &Path,
    fill: impl FnOnce(&mut Out<'_>) -> std::io::Result<()>,
) -> Result<NamedTempFile, OnnxError> {
    let io = |e| cannot_write(path, e);
    let file = stage(path).map_err(io)?;
    let mut out = Out { file: file.as_file(), buffer: BufWriter::with_capacity(1 << 20, file.as_file()) };
    fill(&mut out).and_then(|()| out.buffer.flush()).map_err(io)?;
    drop(out);
    if path.exists() {
        file.as_file().sync_all().map_err(io)?;
    }
    Ok(file)
}

fn write_data(data: &DataFile, path: &Path) -> Result<NamedTempFile, OnnxError> {
    write_pieces(path, |out| {
        let mut at = 0u64;
        for (offset, tensor) in &data.tensors {
            for _ in at..*offset {
                out.buffer.write_all(&[0])?;
            }
            tensor.parts().iter().try_for_each(|p| out.put(p))?;
            at = offset + tensor.byte_len() as u64;
        }
        Ok(())
    })
}

/// Refuses what is there and is no regular file.
fn refuse_special(path: &Path) -> Result<(), OnnxError> {
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        let source = std::io::Error::other("it is not a regular file");
        return Err(OnnxError::io(path, "cannot be replaced", source).remedy("write to another file"));
    }
    Ok(())
}

fn persist(file: NamedTempFile, to: &Path) -> Result<(), OnnxError> {
    file.persist(to).map_err(|e| cannot_write(to, e.error)).map(drop)
}

/// The name that new data has while the old model is still there.
fn next_to(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Puts a model and its data in the place of others, so that at each moment the model that stands at `path` is complete;
/// returns where the data lies.
///
/// ```text
///   model.onnx → model.onnx.data        the old ones
///   model.onnx → model.onnx.data.new    `interim`, the new model with its data under another name
///   model.onnx → model.onnx.data        `model`, with the same data, now under its own name
/// ```
///
/// When the process ends on the way, `model.onnx.data.new` is left, and may be what the model reads.
fn exchange(
    interim: NamedTempFile,
    model: NamedTempFile,
    path: &Path,
    data: NamedTempFile,
    data_path: &Path,
) -> Result<PathBuf, OnnxError> {
    let other = next_to(data_path);
    if other.exists() && reads(path, &other) {
        // Left so by an earlier process: the proper name is free.
        persist(data, data_path)?;
        persist(model, path)?;
        let _ = std::fs::remove_file(other);
        return Ok(data_path.into());
    }
    persist(data, &other)?;
    persist(interim, path).inspect_err(|_| drop(std::fs::remove_file(&other)))?;
    // The new model is there: what fails from here on only leaves its data under the other name.
    if rename_link(&other, data_path).is_err() || model.persist(path).is_err() {
        return Ok(other);
    }
    let _ = std::fs::remove_file(other);
    Ok(data_path.into())
}

/// Whether the model at `path` has data in a file.
fn reads(path: &Path, data: &Path) -> bool {
    Model::read(path).is_ok_and(|model| model.info.data_files.iter().any(|file| same(file, data)))
}

/// Gives a file a further name, which may be another file's.
fn rename_link(file: &Path, to: &Path) -> std::io::Result<()> {
    let link = folder_of(to).join(format!(".snlp-{}.tmp", std::process::id()));
    std::fs::hard_link(file, &link)?;
    std::fs::rename(&link, to).inspect_err(|_| drop(std::fs::remove_file(&link)))
}
