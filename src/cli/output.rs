//! Files written whole or not at all, and never over what the command reads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use snlp::error::{Error, Kind};
use snlp::files::{same, stage, target};

/// Refuses outputs, each with the option that names it, that are one of the files that the command reads
/// or one another. `text` is the option that may be `-`, the standard output.
pub fn check_outputs(
    outputs: &[(&str, &Path)],
    inputs: &[(&str, &Path)],
    text: Option<&str>,
) -> Result<(), Error> {
    for (i, (option, path)) in outputs.iter().enumerate() {
        let shown = path.display();
        if *path == Path::new("-") {
            if text == Some(option) {
                continue;
            }
            return Err(Error::usage(format!("{option} cannot write to the standard output"))
                .help("name a file; './-' is one called '-'"));
        }
        if let Some((what, _)) = inputs.iter().find(|(_, input)| same(path, input)) {
            return Err(Error::usage(format!("{option} '{shown}' is {what}"))
                .help("write to another file: what a command reads is never written over"));
        }
        // Several outputs may go to one device, such as /dev/null.
        let device = path.metadata().is_ok_and(|m| !m.is_file());
        if let Some((other, _)) = outputs[..i].iter().find(|(_, o)| !device && same(path, o)) {
            return Err(Error::usage(format!("{option} '{shown}' and {other} are one file"))
                .help("give each output a file of its own"));
        }
        if path.is_dir() {
            return Err(Error::new(Kind::Io, format!("{option} '{shown}' is a folder"))
                .help("give the name of a file"));
        }
    }
    Ok(())
}

/// Fills a file through `write`. A regular file appears (or is replaced) in one step after everything
/// is written, so a failure leaves it as it was; a device or pipe is written to directly.
pub fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), Error> {
    let fail = |e| Error::io("write", path, e);
    // Through a link to the file behind it, so that the link stays one.
    let target = target(path);
    if target.metadata().is_ok_and(|m| !m.is_file()) {
        let mut file = BufWriter::new(File::options().write(true).open(&target).map_err(fail)?);
        return write(&mut file).and_then(|()| file.flush()).map_err(fail);
    }
    let temporary = stage(&target).map_err(fail)?;
    let mut file = BufWriter::new(temporary.as_file());
    write(&mut file).and_then(|()| file.flush()).map_err(fail)?;
    drop(file);
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
