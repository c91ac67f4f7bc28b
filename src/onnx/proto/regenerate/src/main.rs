//! Compiles `onnx.proto` (from the `onnx` package 1.23.2, `onnx-ml.proto`) to `src/onnx/proto.rs`.

use std::error::Error;
use std::path::Path;

const HEADER: &str = "\
//! ONNX's protobuf messages, generated from `proto/onnx.proto` by `proto/regenerate`. Do not edit.
//!
//! `bytes` fields are `bytes::Bytes`: decoding a mapped file copies no weights.
";

fn main() -> Result<(), Box<dyn Error>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let descriptors = protox::compile([proto.join("onnx.proto")], [&proto])?;
    let out = std::env::temp_dir().join("regenerate-onnx-proto");
    std::fs::create_dir_all(&out)?;
    prost_build::Config::new().bytes(["."]).disable_comments(["."]).out_dir(&out).compile_fds(descriptors)?;
    let code = std::fs::read_to_string(out.join("onnx.rs"))?;
    std::fs::write(proto.join("../proto.rs"), format!("{HEADER}\n{code}"))?;
    Ok(())
}
