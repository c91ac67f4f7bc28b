//! Prints the graph of an ONNX file as the compiler sees it: `cargo run --example dump -- MODEL`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: dump MODEL")?;
    let model = snlp::onnx::Model::read(path)?;
    print!("{}", snlp_passes::ir::dump(&model.graph)?);
    Ok(())
}
