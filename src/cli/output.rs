//! Files written whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use snlp::error::Error;

/// Fills a file through `write`. A regular file appears (or is replaced) in one step after everything
/// is written, so a failure leaves it as it was; a device or pipe is written to directly.
pub fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), Error> {
    let fail = |e| Error::io("write", path, e);
    // Through a link to the file behind it, so that the link stays one.
    let target: PathBuf = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if target.metadata().is_ok_and(|m| !m.is_file()) {
        let mut file = BufWriter::new(File::options().write(true).open(&target).map_err(fail)?);
        return write(&mut file).and_then(|()| file.flush()).map_err(fail);
    }
    let folder = match target.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".snlp-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = target.metadata().map_or(0o666, |m| m.permissions().mode() & 0o777);
        builder.permissions(std::fs::Permissions::from_mode(mode));
    }
    let temporary = builder.tempfile_in(folder).map_err(fail)?;
    let mut file = BufWriter::new(temporary);
    write(&mut file).and_then(|()| file.flush()).map_err(fail)?;
    let temporary = file.into_inner().map_err(|e| fail(e.into_error()))?;
    temporary.persist(&target).map_err(|e| fail(e.error))?;
    Ok(())
}

/// Writes text to a file, or to stdout for `-`.
pub fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    if path == Path::new("-") {
        return super::ui::print(text);
    }
    write_atomic(path, |out| out.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("out.txt");
        std::fs::write(&path, "old").expect("written");
        let e = write_atomic(&path, |out| {
            out.write_all(b"new")?;
            Err(std::io::Error::other("disk full"))
        })
        .expect_err("fails");
        assert_eq!(e.kind().exit_code(), 5);
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "old");
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 1, "nothing left behind");
        write_text(&path, "new").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "new");
    }
}
