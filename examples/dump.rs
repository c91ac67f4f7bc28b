//! Prints the graph of an ONNX file as the compiler sees it, as read or after the clean-up:
//! `cargo run --example dump -- MODEL [clean]`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: dump MODEL [clean]")?;
    let mut graph = snlp::onnx::Model::read(path)?.graph;
    match arguments.next().as_deref() {
        None => {}
        Some("clean") => {
            snlp_passes::rewrite::clean_up(&mut graph)?;
        }
        Some(other) => return Err(format!("unknown argument '{other}'").into()),
    }
    print!("{}", snlp_passes::ir::dump(&graph)?);
    Ok(())
}
