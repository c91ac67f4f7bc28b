//! The error that a command ends with: what is wrong, where, and what to do.
//!
//! Libraries report typed errors; here they gain a [`Kind`], which decides the exit code, and a remedy.
//! [`Error::report`] is the one place that turns a chain of causes into text.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

use crate::files::folder_of;
use crate::text::{escaped, sentence};
use snlp_passes::memory::NoRoom;
use snlp_passes::rewrite::SplitError;

/// What to do where the host's memory does not suffice.
pub const MORE_MEMORY: &str = "use a smaller batch or shorter sequences, or a machine with more memory";

/// What went wrong in general; decides the exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A check that the user asked for failed (`--expect`, `--verify`).
    Check,
    /// The command line makes no sense.
    Usage,
    /// A file, model, plan or tensor is invalid or unsupported.
    Input,
    /// No device can run this.
    Device,
    /// The operating system refused to read or write.
    Io,
    /// A defect of this program.
    Internal,
}

impl Kind {
    /// The exit code of a process that ends with such an error.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Check => 1,
            Kind::Usage => 2,
            Kind::Input => 3,
            Kind::Device => 4,
            Kind::Io => 5,
            Kind::Internal => 70,
        }
    }
}

/// An error with a kind, a message, an optional cause and an optional remedy.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    help: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), help: None, source: None }
    }

    /// Something invalid or unsupported in what the user gave.
    pub fn input(message: impl Into<String>) -> Self {
        Error::new(Kind::Input, message)
    }

    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Kind::Usage, message)
    }

    /// A file that could not be read or written.
    pub fn io(doing: &str, path: &Path, source: std::io::Error) -> Self {
        let help = match source.kind() {
            _ if doing == "write" && !folder_of(path).is_dir() => "create the folder first",
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
            _ => "check the file and the space left on the device",
        };
        Error::new(Kind::Io, format!("cannot {doing} '{}'", path.display())).because(source).help(help)
    }

    /// The error with a cause below it.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The error with a remedy.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The error with the model it is about in front, unless a file is named already.
    pub fn about(mut self, model: &Path) -> Self {
        let named = self.chain().iter().any(|part| part.contains(&*model.to_string_lossy()));
        if matches!(self.kind, Kind::Input | Kind::Device | Kind::Internal) && !named {
            self.message = format!("{}: {}", model.display(), self.message);
        }
        self
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The remedy, if there is one.
    pub fn remedy(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The message and every cause below it, outermost first. A cause that the message above already
    /// quotes is left out.
    pub fn chain(&self) -> Vec<String> {
        let mut out = vec![self.message.clone()];
        let mut next = self.source.as_deref().map(|e| e as &(dyn StdError + 'static));
        while let Some(cause) = next {
            let text = cause.to_string();
            if !out.last().is_some_and(|above| above.contains(&text)) {
                out.push(text);
            }
            next = cause.source();
        }
        out
    }

    /// The error as text: the chain on indented lines, then the remedy. Whatever the parts quote, it can
    /// neither move the cursor nor begin a line of its own; causes quote no paths and are shortened.
    pub fn report(&self) -> String {
        let lines = |part: &str| part.trim_end().lines().map(escaped).collect::<Vec<_>>().join("\n  ");
        let mut text = String::new();
        for (i, part) in self.chain().iter().enumerate() {
            text += &match (i, self.kind) {
                (0, _) => lines(part),
                // Of a defect everything is of use; compilers of shaders write several lines.
                (_, Kind::Internal) => format!("\n  because: {}", lines(part)),
                _ => format!("\n  because: {}", sentence(part.trim_end())),
            };
        }
        if let Some(help) = &self.help {
            text += &format!("\n  help: {}", lines(help));
        }
        text
    }
}

impl From<NoRoom> for Error {
    fn from(error: NoRoom) -> Self {
        Error::input(error.to_string()).help(MORE_MEMORY)
    }
}

impl From<SplitError> for Error {
    fn from(error: SplitError) -> Self {
        Error::input("the sizes in the model that depend on values cannot be found")
            .because(error)
            .help("'snlp inspect' lists operators that are not known")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("node 'a': {0}")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("rank 3")]
    struct Inner;

    #[test]
    fn a_quoted_cause_is_told_once() {
        let e = Error::input("model.onnx: cannot be read").because(Outer(Inner)).help("fix it");
        assert_eq!(e.report(), "model.onnx: cannot be read\n  because: node 'a': rank 3\n  help: fix it");
        assert_eq!(e.kind().exit_code(), 3);
    }

    #[test]
    fn quoted_text_stays_on_its_line() {
        let e = Error::input("one\ntwo \x1b[31m").because(format!("node 'a\nb{}'", "-".repeat(500)));
        let report = e.report();
        assert!(report.starts_with("one\n  two \\u{1b}[31m\n  because: node 'a\\nb--"), "{report}");
        assert_eq!(report.lines().count(), 3);
        assert!(report.len() < 250, "{report}");
    }

    #[test]
    fn a_missing_file_is_io() {
        let missing = std::fs::read("/no/such/file").expect_err("missing");
        let e = Error::io("read", Path::new("/no/such/file"), missing);
        assert_eq!(e.kind().exit_code(), 5);
        assert!(e.report().contains("'/no/such/file'"), "{}", e.report());
    }
}
