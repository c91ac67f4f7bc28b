//! Where memory ends: what a file asks for and cannot have is an error with the numbers, never an abort.

use std::process::Command;

use snlp::npz::write_npz;
use snlp::onnx::{Model, ModelInfo, WriteOptions};
use snlp::passes::ir::{Binary, DType, Dim, Graph, Op, Tensor, Type, Unary};

use crate::support::Folder;

/// Elements of the large tensors: 200 MB of f32.
const LARGE: [usize; 2] = [10_000, 5_000];

/// Runs the binary with so many KiB of addresses; gives its code and what it said.
fn with_memory(kib: usize, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -v {kib} && exec \"$0\" \"$@\""));
    let out = command.arg(env!("CARGO_BIN_EXE_snlp")).args(args).output().expect("a shell");
    (out.status.code(), String::from_utf8(out.stderr).expect("UTF-8"))
}

fn write(folder: &Folder, name: &str, make: impl FnOnce(&mut Graph)) -> String {
    let mut graph = Graph::new("g");
    make(&mut graph);
    let model = Model { graph, info: ModelInfo::standard(17) };
    model.write(folder.path(name), &WriteOptions::default()).expect("written");
    folder.text(name)
}

fn inputs(folder: &Folder, name: &str, tensor: &Tensor) -> String {
    let file = std::fs::File::create(folder.path(name)).expect("made");
    write_npz(file, [("x", tensor)]).expect("written");
    folder.text(name)
}

fn f32(shape: &[usize]) -> Type {
    Type::new(DType::F32, shape.iter().map(|d| Dim::from(*d as i64)).collect())
}

/// Addresses in KiB: twice what the program takes up with a small model, and more than enough for the large ones.
const SCARCE: usize = 200_000;
const PLENTY: usize = 4_000_000;

/// Where memory is scarce the model is refused, and where there is plenty it runs.
fn ends_well(model: &str, inputs: &str) {
    let run = |kib| with_memory(kib, &["run", model, "--inputs", inputs, "--backend", "cpu", "-q"]);
    let (code, said) = run(SCARCE);
    assert!(code == Some(3) && said.contains("bytes of memory"), "{model}: {code:?}: {said}");
    let (code, said) = run(PLENTY);
    assert!(code == Some(0), "{model}: {code:?}: {said}");
}

#[test]
fn results_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let one = inputs(&folder, "one.npz", &Tensor::from_vec(vec![1], vec![1f32]).expect("fits"));
    let model = write(&folder, "expand.onnx", |g| {
        let x = g.add_input("x", f32(&[1]));
        let sizes = g.constant(Tensor::ints(&LARGE.map(|d| d as i64)));
        let wide = g.add(Op::Expand, &[x, sizes]).expect("typed");
        g.add_output("y", wide);
    });
    ends_well(&model, &one);
    let model = write(&folder, "nonzero.onnx", |g| {
        let x = g.add_input("x", f32(&[1]));
        let sizes = g.constant(Tensor::ints(&[LARGE[0] as i64, 500]));
        let wide = g.add(Op::Expand, &[x, sizes]).expect("typed");
        let found = g.add(Op::NonZero, &[wide]).expect("typed");
        let floats = g.add(Op::Cast { to: DType::F32 }, &[found]).expect("typed");
        let y = g.add(Op::Unary(Unary::Neg), &[floats]).expect("typed");
        g.add_output("y", y);
    });
    ends_well(&model, &one);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let model = write(&folder, "twice.onnx", |g| {
        let x = g.add_input("x", f32(&LARGE));
        let y = g.add(Op::Binary(Binary::Add), &[x, x]).expect("typed");
        g.add_output("y", y);
    });
    let n = LARGE[0] * LARGE[1];
    let floats = inputs(&folder, "floats.npz", &Tensor::from_vec(LARGE.into(), vec![1f32; n]).expect("fits"));
    ends_well(&model, &floats);
    let wide = inputs(&folder, "wide.npz", &Tensor::from_vec(LARGE.into(), vec![1f64; n]).expect("fits"));
    ends_well(&model, &wide);
}
