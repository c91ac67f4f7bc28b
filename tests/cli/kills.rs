//! What is left when writing ends early: killed, without space, without permission. Either the old files are there,
//! complete, or the new ones.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use snlp::onnx::{Model, WriteOptions};
use snlp::shapes::Shape;

use crate::support::{Folder, fixture, snlp};

/// A model that takes a while to write.
fn large(folder: &Folder) -> String {
    let shape: Shape = "d8-w256-h4-v8192".parse().expect("a shape");
    let model = folder.text("model.onnx");
    shape.model().expect("made").write(&model, &WriteOptions::default()).expect("written");
    model
}

fn hash(path: &Path) -> String {
    Model::read(path).expect("a model").info.fingerprint.sha256().to_string()
}

/// A model's weights as they are read, so that those of another model are told from its own.
fn state(path: &Path) -> Vec<u8> {
    Model::read(path).expect("complete").encode(&WriteOptions::default()).expect("written").to_vec()
}

fn convert<'a>(model: &'a str, out: &'a str, plan: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["convert", model, "-o", out, "--plan", plan][..], more].concat()
}

/// Names that a process which was killed may leave.
fn is_temporary(name: &str) -> bool {
    (name.starts_with(".snlp-") && name.ends_with(".tmp")) || name == "out.onnx.data.new"
}

/// Kills `convert` at moments that are spread over its whole time.
fn killed(more: &[&str], rounds: u32) {
    let inputs = Folder::new();
    let model = large(&inputs);
    let before = hash(model.as_ref());
    let folder = Folder::new();
    let out = folder.text("out.onnx");
    let mut states = vec![];
    let mut longest = Duration::ZERO;
    for plan in ["4xF1", "2xF2", "4xF1"] {
        let start = Instant::now();
        snlp(&convert(&model, &out, plan, more)).code(0);
        longest = longest.max(start.elapsed());
        states.push(state(out.as_ref()));
    }
    assert!(states[0] == states[2] && states[0] != states[1]);
    let (mut old, mut new, mut left) = (0, 0, 0);
    let mut now = 0;
    for round in 0..rounds {
        let plan = ["2xF2", "4xF1"][now];
        let mut child = Command::new(env!("CARGO_BIN_EXE_snlp"))
            .args(convert(&model, &out, plan, more))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        // Writing comes last.
        let share = 0.25 + 0.85 * f64::from(round * 7 % 20) / 20.0;
        std::thread::sleep(longest.mul_f64(share));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let found = state(out.as_ref());
        let at = states[..2]
            .iter()
            .position(|s| *s == found)
            .expect("the old model or the new one, not half of one");
        if at == now {
            old += 1
        } else {
            new += 1
        }
        now = at;
        for name in folder.files() {
            assert!(name == "out.onnx" || name == "out.onnx.data" || is_temporary(&name), "{name}");
            left += usize::from(is_temporary(&name));
            // Those of nobody can go; the data that a model reads stays for the next round.
            if name.starts_with(".snlp-") {
                std::fs::remove_file(folder.path(&name)).expect("removed");
            }
        }
    }
    eprintln!("{rounds} kills {more:?}: {old} left the old model, {new} the new one, {left} temporary files");
    snlp(&convert(&model, &out, "2xF2", more)).code(0);
    assert!(state(out.as_ref()) == states[1]);
    let names = if more.is_empty() { &["out.onnx"][..] } else { &["out.onnx", "out.onnx.data"] };
    assert_eq!(folder.files(), names, "what was left is cleaned up");
    assert_eq!(hash(model.as_ref()), before, "the input is as it was");
}

fn rounds() -> u32 {
    std::env::var("SNLP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

#[cfg(unix)]
#[test]
fn a_killed_conversion_leaves_the_old_model_or_the_new_one() {
    killed(&[], rounds());
}

#[cfg(unix)]
#[test]
fn a_killed_conversion_leaves_a_model_with_its_own_data() {
    killed(&["--external-data"], rounds());
}

/// Runs the binary in a shell that restricts it first.
#[cfg(unix)]
fn under(restriction: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("sh");
    // A signal that is ignored stays so; the write then fails instead.
    command.arg("-c").arg(format!("trap '' XFSZ; {restriction} && exec \"$0\" \"$@\""));
    let out = command.arg(env!("CARGO_BIN_EXE_snlp")).args(args).output().expect("a shell");
    (out.status.code(), String::from_utf8(out.stderr).expect("UTF-8"))
}

/// A limit on the size of files stands for a disk that fills while it is written to.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_leaves_the_old_files() {
    let inputs = Folder::new();
    let model = large(&inputs);
    let before = hash(model.as_ref());
    let folder = Folder::new();
    let out = folder.text("out.onnx");
    for more in [&[][..], &["--external-data"]] {
        snlp(&convert(&model, &out, "4xF1", more)).code(0);
        let (old, names) = (state(out.as_ref()), folder.files());
        // In blocks of 512 bytes.
        for blocks in [0, 1, 64, 4000] {
            let (code, stderr) = under(&format!("ulimit -f {blocks}"), &convert(&model, &out, "2xF2", more));
            assert_eq!(code, Some(5), "{blocks}: {stderr}");
            assert!(
                stderr.contains("out.onnx") && stderr.contains("space left") && !stderr.contains(".snlp-"),
                "{stderr}"
            );
            assert_eq!(folder.files(), names, "nothing is left behind");
            assert!(state(out.as_ref()) == old);
        }
    }
    assert_eq!(hash(model.as_ref()), before);
    // Other outputs too: half a file would be worse than none.
    let report = folder.text("report.html");
    let (code, stderr) =
        under("ulimit -f 8", &["inspect", &fixture("nano/model.onnx"), "--format", "html", "-o", &report]);
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("report.html") && !folder.path("report.html").exists(), "{stderr}");
}

/// Runs the binary as a user for whom permissions count; `None` where there is no way to.
#[cfg(unix)]
fn unprivileged(folder: &Path, args: &[&str]) -> Option<(Option<i32>, String)> {
    let binary = env!("CARGO_BIN_EXE_snlp");
    let mut command = if std::fs::write(folder.join("probe"), "").is_ok() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", binary]);
        command
    } else {
        Command::new(binary)
    };
    let out = command.args(args).output().ok()?;
    let stderr = String::from_utf8(out.stderr).expect("UTF-8");
    // The other user may not reach the binary.
    (!stderr.starts_with("setpriv:")).then_some((out.status.code(), stderr))
}

#[cfg(unix)]
#[test]
fn what_may_not_be_written_or_read_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    };
    mode(&folder.path(""), 0o755);
    let (model, secret, closed) =
        (folder.text("model.onnx"), folder.text("secret.onnx"), folder.path("closed"));
    for copy in [&model, &secret] {
        std::fs::copy(fixture("gpt2-tiny/model.onnx"), copy).expect("copied");
    }
    std::fs::create_dir(&closed).expect("made");
    mode(&closed, 0o555);
    mode(secret.as_ref(), 0o000);
    mode(model.as_ref(), 0o444);
    let out = closed.join("out.onnx").display().to_string();
    let cases = [
        (convert(&model, &out, "2xF1", &[]), "closed/out.onnx"),
        (convert(&model, &out, "2xF1", &["--external-data"]), "closed/out.onnx"),
        (vec!["inspect", &model, "-o", &out], "closed/out.onnx"),
        (vec!["inspect", &secret], "secret.onnx"),
    ];
    for (args, name) in cases {
        let Some((code, stderr)) = unprivileged(&closed, &args) else {
            eprintln!("SKIPPED: permissions do not count for this user, and there is no other");
            break;
        };
        assert_eq!(code, Some(5), "{args:?}: {stderr}");
        for part in [name, "ermission denied", "permissions"] {
            assert!(stderr.contains(part), "{args:?}: no '{part}' in {stderr}");
        }
        let _ = std::fs::remove_file(closed.join("probe"));
    }
    assert_eq!(closed.read_dir().expect("there").count(), 0);
    mode(&closed, 0o755);
}
