//! Where `unsafe` is: the lint `unsafe_code = "deny"` holds in every crate, and this is the list of its exceptions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

/// File and number of blocks, with what they are for.
const EXCEPTIONS: [(&str, usize); 4] = [
    // Mapping a model's weights.
    ("src/onnx/mapping.rs", 1),
    // An environment variable, before any thread is started.
    ("src/main.rs", 1),
    // An experimental feature of the GPU's interface.
    ("runtime/src/device.rs", 1),
    // Loops of our own shaders without a count of their iterations.
    ("runtime/src/pipelines.rs", 1),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn unsafe_code_is_in_named_places_with_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"deny\""));
    for package in ["", "passes", "runtime"] {
        let manifest = std::fs::read_to_string(root.join(package).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{package}");
    }
    let mut files = Vec::new();
    for folder in ["src", "passes", "runtime", "benches", "examples", "tests"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 100, "{} files", files.len());
    let mut seen = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        if name == "tests/unsafe_code.rs" {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let exempt = lines.iter().filter(|l| l.contains("(unsafe_code)")).count();
        let code = |l: &&&str| !l.starts_with("//");
        let blocks = lines.iter().filter(code).filter(|l| l.contains("unsafe {") || l.contains("unsafe fn"));
        let (blocks, reasons) =
            (blocks.count(), lines.iter().filter(|l| l.starts_with("// SAFETY: ")).count());
        assert!(
            blocks == reasons && exempt == blocks,
            "{name}: {exempt}, {blocks} blocks, {reasons} reasons"
        );
        if blocks > 0 {
            seen.push((name, blocks));
        }
    }
    seen.sort();
    let mut listed = EXCEPTIONS.map(|(name, n)| (name.to_owned(), n));
    listed.sort();
    assert_eq!(seen, listed, "the exceptions to unsafe_code = \"deny\"");
}
