//! Files as shared bytes, mapped instead of read, so that weights are paged in when they are used.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::files;

/// The content of a regular file, mapped into memory for as long as a piece of it is in use.
///
/// # Errors
/// I/O errors, and anything that is not a regular file.
pub(super) fn map_file(path: &Path) -> std::io::Result<Bytes> {
    let file = files::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    Ok(Bytes::from_owner(map(&file)?))
}

/// The one place that maps memory.
#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is private and read-only, and nothing in this program writes to a file in
    // place (writers make a new file and rename it). A foreign process that truncates the file while it
    // is mapped ends this one with a bus error, and one that writes to it changes weights: the risk of
    // every runtime that maps its weights, taken instead of doubling their memory.
    unsafe { Mmap::map(file) }
}
