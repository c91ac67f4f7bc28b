//! Commands of the contract that are not implemented: they take any arguments and say so.

use clap::Args;

/// Time forwards of plans against the device's roofline (not implemented yet)
#[derive(Args)]
#[command(
    after_help = "Example (once implemented):\n  snlp bench model.onnx --plan 6xF1 --batch 1 --seq 128"
)]
pub struct Bench {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}
