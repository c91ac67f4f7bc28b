//! Files as shared bytes, mapped instead of read, so that weights are paged in when they are used.
//!
//! What is mapped is known by its address, so that a writer can have the system copy it from file to file, without
//! paging it in.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::Mmap;

use crate::files;

/// A mapped file. Whoever reads through the file moves its position.
struct Source {
    start: usize,
    len: usize,
    file: Mutex<File>,
}

/// The files that are mapped now.
static SOURCES: Mutex<Vec<Arc<Source>>> = Mutex::new(vec![]);

/// A lock that a panic elsewhere does not poison for good: what is behind ours stays consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mapping that is known while it lasts.
struct Mapped(Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let start = self.0.as_ptr() as usize;
        lock(&SOURCES).retain(|s| s.start != start);
    }
}

/// The content of a regular file, mapped into memory for as long as a piece of it is in use.
///
/// # Errors
/// I/O errors, and anything that is not a regular file.
pub(super) fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = files::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    let map = map(&file)?;
    let source = Source { start: map.as_ptr() as usize, len: map.len(), file: Mutex::new(file) };
    lock(&SOURCES).push(Arc::new(source));
    Ok(Bytes::from_owner(Mapped(map)))
}

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Writes bytes at the position of a file; those that are mapped go from file to file.
///
/// # Errors
/// I/O errors; when the source has become shorter since it was mapped.
pub(super) fn write_bytes(bytes: &Bytes, to: &File) -> io::Result<()> {
    let Some((source, start)) = source_of(bytes) else {
        return (&*to).write_all(bytes);
    };
    let file = lock(&source.file);
    let mut from = &*file;
    from.seek(SeekFrom::Start(start))?;
    let copied = io::copy(&mut from.take(bytes.len() as u64), &mut &*to)?;
    if copied == bytes.len() as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Passes bytes in order to `take`, those of a file by reading it, so that nothing stays in memory.
pub(super) fn read_through(bytes: &Bytes, mut take: impl FnMut(&[u8])) {
    let mut done = 0;
    if let Some((source, start)) = source_of(bytes) {
        let file = lock(&source.file);
        let mut from = &*file;
        let mut buffer = vec![0; CHUNK];
        let found = from.seek(SeekFrom::Start(start)).is_ok();
        while found && done < bytes.len() {
            let most = CHUNK.min(bytes.len() - done);
            match from.read(&mut buffer[..most]) {
                Ok(n) if n > 0 => {
                    take(&buffer[..n]);
                    done += n;
                }
                _ => break,
            }
        }
    }
    // What could not be read is there all the same.
    take(bytes.get(done..).unwrap_or_default());
}

/// The mapped file that holds bytes, and where in it.
fn source_of(bytes: &Bytes) -> Option<(Arc<Source>, u64)> {
    let start = bytes.as_ptr() as usize;
    let sources = lock(&SOURCES);
    let source = sources.iter().find(|s| s.start <= start && start + bytes.len() <= s.start + s.len)?;
    Some((source.clone(), (start - source.start) as u64))
}

/// The one place that maps memory.
#[allow(unsafe_code)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is private and read-only, and nothing in this program writes to a file in
    // place (writers make a new file and rename it). A foreign process that truncates the file while it
    // is mapped ends this one with a bus error, and one that writes to it changes weights: the risk of
    // every runtime that maps its weights, taken instead of doubling their memory.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: usize = 64 << 10;

    #[test]
    fn mapped_bytes_are_copied_and_forgotten() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("weights");
        let content: Vec<u8> = (0..LONG * 3).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).expect("written");
        let bytes = map_file(&path).expect("mapped");
        let start = bytes.as_ptr() as usize;
        let is_known = || SOURCES.lock().expect("not poisoned").iter().any(|s| s.start == start);
        assert!(is_known());
        let copy = folder.path().join("copy");
        let file = File::create(&copy).expect("made");
        let pieces =
            [bytes.slice(7..LONG + 8), bytes.slice(..5), Bytes::from_static(b"own"), bytes.slice(LONG..)];
        for piece in &pieces {
            write_bytes(piece, &file).expect("written");
        }
        assert_eq!(std::fs::read(&copy).expect("read"), pieces.concat());
        for piece in &pieces {
            let mut seen = vec![];
            read_through(piece, |chunk| seen.extend_from_slice(chunk));
            assert_eq!(seen, *piece);
        }
        drop((bytes, pieces));
        assert!(!is_known());
    }

    #[test]
    fn a_source_that_was_cut_is_an_error() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("weights");
        std::fs::write(&path, vec![1; LONG * 2]).expect("written");
        let bytes = map_file(&path).expect("mapped");
        File::options().write(true).open(&path).expect("opened").set_len(100).expect("cut");
        let file = File::create(folder.path().join("copy")).expect("made");
        let error = write_bytes(&bytes, &file).expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
