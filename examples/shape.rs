//! Writes a model of a shape with random weights: `cargo run --example shape -- d2-w8-h2-v16 out.onnx`.

use snlp::onnx::WriteOptions;
use snlp::shapes::Shape;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(shape), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: shape SHAPE OUT.onnx".into());
    };
    shape.parse::<Shape>()?.model()?.write(out, &WriteOptions::default())?;
    Ok(())
}
