//! Tensors given and taken as files.

use std::path::{Path, PathBuf};

use snlp::error::{Error, Kind};
use snlp::language::windows::Windows;
use snlp::npz::{NpzError, read_npy, read_npz, write_npz};
use snlp::passes::ir::Tensor;
use snlp::passes::memory::room;
use snlp::text;

use super::output::write_atomic;

/// What a failure to read an array becomes.
pub fn npz_error(e: NpzError) -> Error {
    let kind = if matches!(e, NpzError::Io { .. }) { Kind::Io } else { Kind::Input };
    let help = match kind {
        Kind::Io => "check the path",
        _ => "write the file with numpy.savez (or numpy.save for a single .npy)",
    };
    Error::new(kind, e.to_string()).because(e).help(help)
}

/// All arrays of an archive.
pub fn read_archive(path: &Path) -> Result<Vec<(String, Tensor)>, Error> {
    read_npz(path).map_err(npz_error)
}

/// One `NAME=FILE.npy` argument.
#[derive(Clone, Debug)]
pub struct NamedFile {
    /// Name of the input.
    pub name: String,
    /// The array.
    pub path: PathBuf,
}

impl std::str::FromStr for NamedFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(NamedFile { name: name.into(), path: path.into() })
            }
            _ => Err("expected NAME=FILE.npy".into()),
        }
    }
}

/// The arrays of `--inputs` and `--input` together.
pub fn read_inputs(archive: Option<&Path>, files: &[NamedFile]) -> Result<Vec<(String, Tensor)>, Error> {
    let mut out = match archive {
        Some(path) => read_archive(path)?,
        None => Vec::new(),
    };
    for file in files {
        out.push((file.name.clone(), read_npy(&file.path).map_err(npz_error)?));
    }
    Ok(out)
}

/// Token windows from the key `windows` of an archive.
pub fn read_windows(path: &Path) -> Result<Windows, Error> {
    let arrays = read_archive(path)?;
    let Some((_, tensor)) = arrays.iter().find(|(n, _)| n == "windows") else {
        let keys: Vec<String> = arrays.iter().map(|(n, _)| text::name(n)).collect();
        return Err(Error::input(format!(
            "'{}' has no array 'windows' but {}",
            path.display(),
            if keys.is_empty() { "nothing at all".into() } else { keys.join(", ") }
        ))
        .help("store int64 windows [n, T+1] under the key 'windows'"));
    };
    // They are copied.
    room(tensor.len().saturating_mul(size_of::<i64>()))?;
    Windows::new(tensor).map_err(|e| {
        Error::input(format!("'{}': {e}", path.display()))
            .help("inputs are all tokens but the last, targets all but the first")
    })
}

/// Writes an archive, whole or not at all.
pub fn write_archive(path: &Path, arrays: &[(String, Tensor)]) -> Result<(), Error> {
    let mut buffer = std::io::Cursor::new(Vec::new());
    write_npz(&mut buffer, arrays.iter().map(|(n, t)| (n.as_str(), t)))
        .map_err(|e| Error::io("write", path, e))?;
    write_atomic(path, |out| out.write_all(buffer.get_ref()))
}
