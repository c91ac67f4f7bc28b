//! What the fuzz targets share.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder of this process, in `$TMPDIR`.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("snlp-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the folder for files is made");
        path
    })
}

/// A file with this content. Readers take files, and a new one is made each time, because they map it.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = folder().join(name);
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, content).expect("the file is written");
    path
}

/// A hook that says nothing and lets panics pass: some libraries panic on bad files, which is caught where they are
/// called. Those that nobody catches reach libFuzzer all the same.
pub fn let_panics_pass() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// Runs `work`; when it panics, says where and ends the process, as libFuzzer wants it.
pub fn watched(work: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
        std::process::abort();
    }
}
