//! What can be wrong with a model file, with the place and what to do about it.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::text::sentence;

/// What sort of failure it is; the command line maps this to its exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The file contradicts itself or is no ONNX model.
    Invalid,
    /// A valid model that this program cannot represent.
    Unsupported,
    /// Reading or writing failed.
    Io,
}

/// An error about a model: `file: place: what is wrong (what to do)`.
pub struct OnnxError(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    path: Option<PathBuf>,
    at: Option<String>,
    what: String,
    remedy: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl OnnxError {
    fn new(kind: ErrorKind, what: String) -> Self {
        OnnxError(Box::new(Inner { kind, path: None, at: None, what, remedy: None, source: None }))
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, what.into())
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, what.into())
    }

    /// Something that a model needs and that the system does not give.
    pub(crate) fn unreadable(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, what.into())
    }

    pub(crate) fn io(path: &Path, what: impl Into<String>, source: std::io::Error) -> Self {
        Self::unreadable(what).in_file(path).because(source)
    }

    /// Names the file, unless one is named already.
    pub(crate) fn in_file(mut self, path: &Path) -> Self {
        self.0.path.get_or_insert_with(|| path.to_owned());
        self
    }

    /// Names the place inside the file, unless one is named already.
    pub(crate) fn at(mut self, place: impl Into<String>) -> Self {
        self.0.at.get_or_insert_with(|| place.into());
        self
    }

    pub(crate) fn remedy(mut self, what_to_do: impl Into<String>) -> Self {
        self.0.remedy = Some(what_to_do.into());
        self
    }

    pub(crate) fn because(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do about it, where there is something; the text of the error ends with it in brackets.
    pub fn remedy_text(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// The file concerned, where there is one.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }
}

impl fmt::Display for OnnxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.0;
        if let Some(path) = &e.path {
            write!(f, "{}: ", path.display())?;
        }
        // Both quote names of the model; the path is the user's own.
        if let Some(at) = &e.at {
            write!(f, "{}: ", sentence(at))?;
        }
        f.write_str(&sentence(&e.what))?;
        match &e.remedy {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for OnnxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error for OnnxError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}
