//! Files in and out: opened only where reading cannot wait, told apart whatever they are called, written
//! whole or not at all.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Opens a regular file. Anything else is refused before it is opened: opening a pipe waits for whoever
/// writes to it.
///
/// # Errors
/// Of kind `IsADirectory` for a folder, `InvalidInput` for a pipe, socket or device; what the system says
/// otherwise.
pub fn open(path: &Path) -> io::Result<File> {
    let meta = path.metadata()?;
    if meta.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::open(path)
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where a path leads, through links; for a file that is not there, where it would be made.
pub fn target(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    // A link to nothing leads on to the file that would be made; links in a circle lead nowhere.
    for _ in 0..40 {
        if let Ok(real) = path.canonicalize() {
            return real;
        }
        match path.read_link() {
            Ok(next) => path = folder_of(&path).join(next),
            Err(_) => break,
        }
    }
    match (folder_of(&path).canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

/// Whether two paths are one file, also through links and under several names.
pub fn same(a: &Path, b: &Path) -> bool {
    target(a) == target(b) || same_inode(a, b)
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}

/// A new file beside `target`, to be filled and then given its name with [`NamedTempFile::persist`]; gone
/// when dropped before that.
///
/// # Errors
/// What the system says; write through [`NamedTempFile::as_file`], so that no error names this file.
pub fn stage(target: &Path) -> io::Result<NamedTempFile> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        options.mode(target.metadata().map_or(0o666, |m| m.permissions().mode() & 0o777));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".snlp-").suffix(".tmp").make_in(folder_of(target), |path| options.open(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_file_are_the_same() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), "a").expect("written");
        std::fs::write(path("b"), "a").expect("written");
        assert!(same(&path("a"), &path("./a")) && !same(&path("a"), &path("b")));
        assert!(same(&path("new"), &path("./new")), "also before it is made");
        assert!(!same(&path("new"), &path("no/new")));
        #[cfg(unix)]
        {
            use std::os::unix::fs::symlink;
            std::fs::hard_link(path("a"), path("hard")).expect("linked");
            symlink("a", path("soft")).expect("linked");
            symlink("new", path("nowhere")).expect("linked");
            symlink("circle", path("circle")).expect("linked");
            assert!(same(&path("hard"), &path("soft")));
            assert!(same(&path("nowhere"), &path("new")));
            assert!(!same(&path("circle"), &path("a")));
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(open(folder.path()).err().map(|e| e.kind()), Some(io::ErrorKind::IsADirectory));
        #[cfg(unix)]
        assert_eq!(open(Path::new("/dev/null")).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidInput));
        std::fs::write(folder.path().join("a"), "a").expect("written");
        assert!(open(&folder.path().join("a")).is_ok());
    }

    #[test]
    fn a_staged_file_is_gone_unless_named() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a");
        drop(stage(&path).expect("made"));
        assert_eq!(folder.path().read_dir().expect("there").count(), 0);
        let e = stage(&folder.path().join("no/a")).expect_err("no folder");
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
        assert!(!e.to_string().contains("snlp"), "{e}");
    }
}
