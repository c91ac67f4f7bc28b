//! What may be read, and what is never written over.

use snlp::npz::write_npz;
use snlp::passes::ir::Tensor;

use crate::support::{Folder, backends, fixture, snlp};

fn copy(name: &str, folder: &Folder, to: &str) -> String {
    std::fs::copy(fixture(name), folder.path(to)).expect("copied");
    folder.text(to)
}

/// A model with its weights in `model.onnx.data`, and tensors beside it.
fn with_data(folder: &Folder) -> String {
    let model = folder.text("model.onnx");
    let source = fixture("gpt2-tiny/model.onnx");
    snlp(&["convert", &source, "-o", &model, "--plan", "sequential", "--external-data"]).code(0);
    copy("gpt2-tiny/inputs_plain.npz", folder, "in.npz");
    copy("gpt2-tiny/expected_plain.npz", folder, "out.npz");
    let ids = Tensor::from_vec(vec![1, 3], vec![1i64, 2, 3]).expect("fits");
    let file = std::fs::File::create(folder.path("w.npz")).expect("created");
    write_npz(file, [("windows", &ids)]).expect("written");
    model
}

fn contents(folder: &Folder) -> Vec<(String, Vec<u8>)> {
    // A link to nothing has no contents.
    let read = |name: String| (name.clone(), std::fs::read(folder.path(&name)).unwrap_or_default());
    folder.files().into_iter().map(read).collect()
}

#[test]
fn outputs_are_never_inputs_or_one_another() {
    let folder = Folder::new();
    let model = with_data(&folder);
    let at = |name: &str| folder.text(name);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("model.onnx.data", folder.path("soft")).expect("linked");
        std::fs::hard_link(at("model.onnx.data"), folder.path("hard")).expect("linked");
        std::os::unix::fs::symlink("in.npz", folder.path("soft.npz")).expect("linked");
        std::os::unix::fs::symlink("new.onnx", folder.path("new.link")).expect("linked");
    }
    std::fs::write(folder.path("p.toml"), "plan = \"2xF1\"\n").expect("written");
    let before = contents(&folder);
    let (data, new, own) = (at("model.onnx.data"), at("new.onnx"), "model's own weights");
    let convert = |out: &str, more: &[&str], what: &str| {
        let args = ["convert", &model, "-o", out, "--plan", "2xF1"];
        snlp(&[&args[..], more].concat()).code(2).says(&[what, "help:"]);
    };
    convert(&model, &[], "-o");
    convert(&data, &[], own);
    convert(&at("w.npz"), &["--verify", "--tokens", &at("w.npz")], "--tokens");
    convert(&new, &["--report", &model], "the model itself");
    convert(&new, &["--report", &data], own);
    convert(&new, &["--report", &new], "and -o are one file");
    convert(&new, &["--report", &at("./new.onnx")], "and -o are one file");
    convert(&new, &["--external-data", "--report", &at("new.onnx.data")], "data file of -o");
    convert(&new, &["--report", &at("new.onnx.data")], "data file of -o");
    convert("-", &[], "standard output");
    convert(&new, &["--report", "-"], "standard output");
    let run = |out: &str, what: &str| {
        let args = ["run", &model, "--inputs", &at("in.npz"), "--expect", &at("out.npz"), "--outputs", out];
        snlp(&args).code(2).says(&[what, "help:"]);
    };
    run(&model, "the model itself");
    run(&data, own);
    run(&at("in.npz"), "--inputs");
    let plan = at("p.toml");
    let planned = |args: &[&str]| snlp(args).code(2).says(&["the file of --plan", "help:"]);
    planned(&["run", &model, "--inputs", &at("in.npz"), "--plan", &plan, "--outputs", &plan]);
    planned(&["convert", &model, "--plan", &plan, "-o", &plan]);
    planned(&["convert", &model, "--plan", &plan, "-o", &new, "--report", &plan]);
    planned(&["inspect", &model, "--plan", &plan, "-o", &plan]);
    planned(&["eval", &model, "--plan", &plan, "--tokens", &at("w.npz"), "--html", &plan]);
    run(&at("out.npz"), "--expect");
    run("-", "standard output");
    let inspect =
        |out: &str, what: &str| snlp(&["inspect", &model, "-o", out]).code(2).says(&[what, "help:"]);
    inspect(&model, "the model itself");
    inspect(&data, own);
    #[cfg(unix)]
    {
        convert(&at("soft"), &[], own);
        convert(&at("hard"), &[], own);
        convert(&new, &["--report", &at("new.link")], "and -o are one file");
        run(&at("soft.npz"), "--inputs");
        inspect(&at("hard"), own);
    }
    assert!(before == contents(&folder), "{:?}", folder.files());
    // Beside them is no harm.
    snlp(&["convert", &model, "-o", &new, "--plan", "2xF1", "--external-data"]).code(0);
    assert!(snlp(&["inspect", &model, "-o", "-"]).code(0).stdout.contains("4 layers"));
}

#[test]
fn an_input_is_given_as_a_file_of_its_own() {
    let Some(backend) = backends().first().copied() else { return };
    let folder = Folder::new();
    let model = with_data(&folder);
    let inputs = snlp::npz::read_npz(&folder.path("in.npz")).expect("read");
    let mut args = vec!["run".to_string(), model, "--backend".into(), backend.into()];
    for (name, tensor) in &inputs {
        let shape: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
        let shape = shape.join(", ");
        let mut header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({shape}), }}");
        header += &(" ".repeat(117 - header.len()) + "\n");
        let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        file.extend(header.as_bytes());
        file.extend(tensor.bytes());
        std::fs::write(folder.path(&format!("{name}.npy")), file).expect("written");
        args.extend(["--input".into(), format!("{name}={}", folder.text(&format!("{name}.npy")))]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    snlp(&args).code(0);
    let over = folder.text(&format!("{}.npy", inputs[0].0));
    snlp(&[&args[..], &["--outputs", &over]].concat()).code(2).says(&["--input"]);
    snlp(&[&args[..], &["--inputs", &folder.text("in.npz")]].concat())
        .code(3)
        .says(&["given twice", "help:"]);
}

/// Opening a pipe would wait for ever; each of these must come back.
#[cfg(unix)]
#[test]
fn only_regular_files_are_read() {
    let folder = Folder::new();
    let (pipe, inside) = (folder.text("pipe"), folder.text("folder"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    std::fs::create_dir(&inside).expect("made");
    let model = fixture("gpt2-tiny/model.onnx");
    for path in [pipe.as_str(), "/dev/null", &inside] {
        let npy = format!("input_ids={path}");
        for args in [
            &["inspect", path][..],
            &["run", path],
            &["run", &model, "--inputs", path],
            &["run", &model, "--input", &npy],
            &["eval", &model, "--tokens", path],
        ] {
            snlp(args).code(5).says(&[path, "help:"]);
        }
        let inputs = fixture("gpt2-tiny/inputs_plain.npz");
        snlp(&["run", &model, "--inputs", &inputs, "--expect", path]).code(5).says(&[path, "help:"]);
    }
    // External data that is no file is as good as none.
    let model = with_data(&folder);
    let data = folder.path("model.onnx.data");
    std::fs::remove_file(&data).expect("removed");
    snlp(&["inspect", &model]).code(3).says(&["model.onnx.data", "help:"]);
    std::fs::create_dir(&data).expect("made");
    snlp(&["inspect", &model]).code(3).says(&["model.onnx.data", "directory"]);
    std::fs::remove_dir(&data).expect("removed");
    std::fs::rename(&pipe, &data).expect("renamed");
    snlp(&["inspect", &model]).code(3).says(&["model.onnx.data", "regular file"]);
}

#[cfg(unix)]
#[test]
fn data_behind_a_link_out_of_the_folder_is_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("in")).expect("made");
    std::fs::write(folder.path("x.bin"), [0; 256]).expect("written");
    let model = copy("bad/external_symlink.onnx", &folder, "in/model.onnx");
    let link = folder.path("in/link_outside.bin");
    std::os::unix::fs::symlink("../x.bin", &link).expect("linked");
    snlp(&["inspect", &model]).code(3).says(&[
        "link_outside.bin",
        "outside of the model's folder",
        "tensor 'W'",
        "refused",
    ]);
    // The same file inside is fine.
    std::fs::rename(folder.path("x.bin"), folder.path("in/x.bin")).expect("moved");
    std::fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink("x.bin", &link).expect("linked");
    snlp(&["inspect", &model]).code(0);
    // A folder of links, as downloads are kept: model and data lie in one folder elsewhere.
    std::fs::create_dir(folder.path("links")).expect("made");
    let linked = folder.text("links/model.onnx");
    std::os::unix::fs::symlink("../in/model.onnx", &linked).expect("linked");
    let data = folder.path("links/link_outside.bin");
    std::os::unix::fs::symlink("../in/x.bin", &data).expect("linked");
    snlp(&["inspect", &linked]).code(0);
    std::fs::write(folder.path("other.bin"), [0; 256]).expect("written");
    std::fs::remove_file(&data).expect("removed");
    std::os::unix::fs::symlink("../other.bin", &data).expect("linked");
    snlp(&["inspect", &linked]).code(3).says(&["outside of the model's folder"]);
}

#[test]
fn a_missing_folder_is_named_and_advised() {
    let folder = Folder::new();
    let model = fixture("gpt2-tiny/model.onnx");
    let (out, report) = (folder.text("no/out.onnx"), folder.text("no/report.json"));
    let converted = folder.text("out.onnx");
    let inputs = fixture("gpt2-tiny/inputs_plain.npz");
    let mut all = vec![
        (vec!["convert", &model, "-o", &out, "--plan", "2xF1"], &out),
        (vec!["convert", &model, "-o", &out, "--plan", "2xF1", "--external-data"], &out),
        (vec!["convert", &model, "-o", &converted, "--plan", "2xF1", "--report", &report], &report),
        (vec!["inspect", &model, "-o", &report], &report),
    ];
    if let Some(backend) = backends().first() {
        all.push((vec!["run", &model, "--inputs", &inputs, "--outputs", &out, "--backend", backend], &out));
    }
    for (args, path) in all {
        let ran = snlp(&args).code(5).says(&[path, "create the folder first"]);
        assert!(!ran.stderr.contains(".snlp-") && !ran.stderr.contains("snlp-"), "{}", ran.stderr);
    }
    let ran = snlp(&["convert", &model, "-o", &folder.text(""), "--plan", "2xF1"]).code(5);
    assert!(ran.stderr.contains("is a folder"), "{}", ran.stderr);
}

#[test]
fn a_data_file_goes_with_its_model() {
    let folder = Folder::new();
    let source = fixture("gpt2-tiny/model.onnx");
    let out = folder.text("out.onnx");
    let convert = |more: &[&str]| {
        snlp(&[&["convert", &source, "-o", &out, "--plan", "2xF1"][..], more].concat()).code(0);
    };
    convert(&["--external-data"]);
    assert_eq!(folder.files(), ["out.onnx", "out.onnx.data"]);
    convert(&["--external-data"]);
    assert_eq!(folder.files(), ["out.onnx", "out.onnx.data"]);
    convert(&[]);
    assert_eq!(folder.files(), ["out.onnx"], "the weights of the model that was replaced are gone");
    // Someone else's file of that name stays.
    std::fs::write(folder.path("out.onnx.data"), "mine").expect("written");
    convert(&[]);
    assert_eq!(std::fs::read_to_string(folder.path("out.onnx.data")).expect("there"), "mine");
}
