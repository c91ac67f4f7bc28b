//! External data: tensors whose bytes lie in files beside the model.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use super::error::OnnxError;
use super::mapping::map_file;
use super::proto::StringStringEntryProto;

/// The files beside one model, each mapped once.
pub(super) struct ExternalFiles {
    folder: PathBuf,
    /// Where the model lies if it is a link.
    behind: Option<PathBuf>,
    open: RefCell<BTreeMap<PathBuf, Bytes>>,
}

impl ExternalFiles {
    /// Files in the folder of `model`.
    pub(super) fn beside(model: &Path) -> Self {
        let folder = match model.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        let linked = model.is_symlink().then(|| model.canonicalize().ok()).flatten();
        let behind = linked.and_then(|m| m.parent().map(Path::to_path_buf));
        ExternalFiles { folder, behind, open: RefCell::default() }
    }

    /// The bytes that the `external_data` entries of a tensor name; `needed` is their number when the
    /// entries do not say.
    pub(super) fn slice(
        &self,
        entries: &[StringStringEntryProto],
        needed: usize,
    ) -> Result<Bytes, OnnxError> {
        let entry = |key: &str| entries.iter().find(|e| e.key() == key).map(|e| e.value());
        let number = |key: &str| -> Result<Option<usize>, OnnxError> {
            let bad = |text| {
                OnnxError::invalid(format!("external data has {key} '{text}', which is no byte count"))
            };
            entry(key).map(|text| text.parse().map_err(|_| bad(text))).transpose()
        };
        let location = entry("location")
            .filter(|l| !l.is_empty())
            .ok_or_else(|| OnnxError::invalid("external data names no location"))?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(needed);
        let file = self.file(location)?;
        match offset.checked_add(length) {
            Some(end) if end <= file.len() => Ok(file.slice(offset..end)),
            _ => Err(OnnxError::invalid(format!(
                "external file '{location}' has {} bytes, but the tensor lies at {offset} and is {length} \
                 bytes long",
                file.len()
            ))
            .remedy("the file is truncated or belongs to another model")),
        }
    }

    /// The files that were read.
    pub(super) fn opened(&self) -> Vec<PathBuf> {
        self.open.borrow().keys().cloned().collect()
    }

    fn file(&self, location: &str) -> Result<Bytes, OnnxError> {
        let path = self.resolve(location)?;
        if let Some(bytes) = self.open.borrow().get(&path) {
            return Ok(bytes.clone());
        }
        let bytes = map_file(&path).map_err(|e| unreadable(location, e))?;
        self.open.borrow_mut().insert(path, bytes.clone());
        Ok(bytes)
    }

    /// The path of a location, which must stay inside the model's folder: the one that it is named in or, where the
    /// model is a link, the one that it lies in (caches of downloads are such folders of links).
    fn resolve(&self, location: &str) -> Result<PathBuf, OnnxError> {
        let outside = || {
            OnnxError::invalid(format!("external data lies at '{location}', outside of the model's folder"))
                .remedy("refused: a model may read files in its own folder only")
        };
        let relative = Path::new(location);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(outside());
        }
        let path = self.folder.join(relative);
        let real = path.canonicalize().map_err(|e| unreadable(location, e))?;
        let folder = self.folder.canonicalize().map_err(|e| unreadable(location, e))?;
        let inside = |folder: &PathBuf| real.starts_with(folder);
        if inside(&folder) || self.behind.as_ref().is_some_and(inside) { Ok(real) } else { Err(outside()) }
    }
}

/// A location where no file lies makes the model invalid; a file that cannot be read is another matter.
fn unreadable(location: &str, source: io::Error) -> OnnxError {
    use io::ErrorKind as E;
    let what = format!("external data '{location}' cannot be read");
    let error = match source.kind() {
        E::NotFound | E::NotADirectory | E::IsADirectory | E::InvalidInput | E::InvalidFilename => {
            OnnxError::invalid(what)
        }
        _ => OnnxError::unreadable(what),
    };
    error.because(source).remedy("keep the model's data files beside the .onnx file")
}
