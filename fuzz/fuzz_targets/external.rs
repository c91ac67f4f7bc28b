//! External data: a small model whose weight says what the input says of where it lies.
//!
//! The input is text, `key=value` in lines, with the sizes first: `dims=8,8`. Beside the model lie `w.bin` (256 bytes),
//! `in/w.bin`, a link `out.bin` that leads out of the folder, and a pipe `pipe`. Nothing but the first two may be read.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use snlp::onnx::Model;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The folder of the model.
fn home() -> &'static PathBuf {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let home = snlp_fuzz::folder().join("home");
        std::fs::create_dir_all(home.join("in")).expect("made");
        for name in ["w.bin", "in/w.bin"] {
            std::fs::write(home.join(name), [0; 256]).expect("written");
        }
        std::fs::write(snlp_fuzz::folder().join("secret.bin"), [1; 1 << 16]).expect("written");
        #[cfg(unix)]
        {
            let _ = std::os::unix::fs::symlink("../secret.bin", home.join("out.bin"));
            let _ = std::os::unix::fs::symlink("..", home.join("up"));
            let _ = std::process::Command::new("mkfifo").arg(home.join("pipe")).status();
        }
        home.canonicalize().expect("there")
    })
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn number(tag: u64, value: i64, out: &mut Vec<u8>) {
    varint(tag << 3, out);
    varint(value as u64, out);
}

fn field(tag: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(tag << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// `y = W`, with `W` where the text says.
fn model(text: &str) -> Vec<u8> {
    let mut tensor = vec![];
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        if key == "dims" {
            value.split(',').filter_map(|d| d.parse().ok()).for_each(|d| number(1, d, &mut tensor));
            continue;
        }
        if key == "type" {
            number(2, value.parse().unwrap_or(1), &mut tensor);
            continue;
        }
        let mut entry = vec![];
        field(1, key.as_bytes(), &mut entry);
        field(2, value.as_bytes(), &mut entry);
        field(13, &entry, &mut tensor);
    }
    number(14, 1, &mut tensor);
    field(8, b"W", &mut tensor);
    let (mut node, mut output, mut graph, mut opset, mut model) = (vec![], vec![], vec![], vec![], vec![]);
    field(1, b"W", &mut node);
    field(2, b"y", &mut node);
    field(4, b"Identity", &mut node);
    field(1, b"y", &mut output);
    field(1, &node, &mut graph);
    field(2, b"g", &mut graph);
    field(5, &tensor, &mut graph);
    field(12, &output, &mut graph);
    number(2, 17, &mut opset);
    number(1, 8, &mut model);
    field(7, &graph, &mut model);
    field(8, &opset, &mut model);
    model
}

fuzz_target!(|text: &str| {
    let home = home();
    let Ok(read) = Model::decode(Bytes::from(model(text)), home) else { return };
    for file in &read.info.data_files {
        assert!(file.starts_with(home) && !file.ends_with("secret.bin"), "{} was read", file.display());
    }
    for (_, value) in read.graph.values() {
        if let snlp::passes::ir::Def::Constant(tensor) = &value.def {
            assert!(tensor.byte_len() <= 256);
            assert!(tensor.bytes().iter().all(|b| *b == 0));
        }
    }
});
