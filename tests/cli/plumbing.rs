//! Help, usage errors, completions, devices.

use crate::support::{Folder, fixture, snlp, snlp_with};

const COMMANDS: [&str; 9] =
    ["inspect", "convert", "run", "eval", "plan", "generate", "bench", "devices", "completions"];

#[test]
fn help_is_complete() {
    let help = snlp(&["--help"]).code(0).stdout;
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in: {help}");
        let own = snlp(&[command, "--help"]).code(0).stdout;
        assert!(own.contains("Example") && own.contains(&format!("snlp {command}")), "{own}");
        assert!(own.contains("--backend") && own.contains("auto"), "{own}");
    }
    for part in ["Exit codes", "Example", "12xF2"] {
        assert!(help.contains(part), "{help}");
    }
}

#[test]
fn bad_usage_is_2() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["inspect"],
        &["convert", "a.onnx"],
        &["run", "a.onnx", "--tolerance", "close"],
        &["run", "a.onnx", "--input", "noequals"],
        &["run", "a.onnx", "--backend", "tpu"],
        &["eval", "a.onnx"],
        &["inspect", "a.onnx", "-v", "-q"],
    ] {
        let ran = snlp(args).code(2);
        assert!(ran.stdout.is_empty(), "{args:?}");
    }
    let model = fixture("nano/model.onnx");
    for plan in
        ["6xG1", "", "s", "0xF1", "6xF1[k]", "6xF1[speed=9]", "6xF1[k=2,k=3]", "+6xF1", "sequential 6xF1"]
    {
        snlp(&["inspect", &model, "--plan", plan]).code(2).says(&["plan", "help:"]);
    }
}

/// A device that takes nothing stands for a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_standard_output_that_takes_nothing_is_5() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("there");
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_snlp")).arg("devices").stdout(full).output();
    let ran = ran.expect("the binary starts");
    assert_eq!(ran.status.code(), Some(5));
    let stderr = String::from_utf8(ran.stderr).expect("UTF-8");
    assert!(stderr.contains("standard output") && stderr.contains("help:"), "{stderr}");
}

#[test]
fn versions_and_completions() {
    assert!(snlp(&["--version"]).code(0).stdout.starts_with("snlp "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(snlp(&["completions", shell]).code(0).stdout.contains("inspect"));
    }
}

#[test]
fn devices_are_listed() {
    let found = snlp(&["devices", "--json"]).code(0).json();
    for device in found["devices"].as_array().expect("a list") {
        for key in ["name", "backend", "kind", "driver", "features", "limits", "auto"] {
            assert!(!device[key].is_null(), "{key}: {device}");
        }
    }
    assert!(found["auto"].is_string() || found["auto"].is_null());
    let text = snlp(&["devices"]).code(0).stdout;
    assert!(!text.contains('\u{1b}'), "no colour without a terminal");
    let named = ["devices", "--backend", "gpu", "--adapter", "no such adapter"];
    let none = snlp(&named).code(0).stdout;
    match found["devices"].as_array().and_then(|d| d.first()) {
        Some(first) => {
            let name = first["name"].as_str().expect("text");
            assert!(none.contains("No adapter matches 'no such adapter'") && none.contains(name), "{none}");
            let one = snlp(&["devices", "--adapter", name, "--json"]).code(0).json();
            assert_eq!((&one["auto"], &one["devices"][0]["auto"]), (&"gpu".into(), &true.into()), "{one}");
        }
        None => assert!(none.contains("No GPU adapter was found"), "{none}"),
    }
    let none = snlp(&[&named[..], &["--json"]].concat()).code(0).json();
    assert!(none["auto"].is_null() && none["devices"].as_array().is_some_and(Vec::is_empty), "{none}");
}

#[test]
fn colour_obeys_the_environment() {
    let plain = snlp(&["devices"]).code(0).stdout;
    let forced = snlp_with(&["devices"], "CLICOLOR_FORCE", "1").code(0).stdout;
    assert!(forced.contains('\u{1b}') && !plain.contains('\u{1b}'));
    assert!(!snlp_with(&["devices"], "NO_COLOR", "1").code(0).stdout.contains('\u{1b}'));
}

#[test]
fn a_panic_is_70_and_says_how_to_report_it() {
    let folder = Folder::new();
    let (model, out) = (fixture("gpt2-tiny/model.onnx"), folder.text("out.onnx"));
    for args in [&["devices", "--json"][..], &["convert", &model, "-o", &out, "--plan", "2xF1"]] {
        let ran = snlp_with(args, "SNLP_TEST_PANIC", "a part broke").code(70);
        let ran =
            ran.says(&["internal error at src/cli/mod.rs:", "a part broke", "report this text", "--version"]);
        assert!(ran.stdout.is_empty() && ran.stderr.lines().count() == 2, "{}", ran.stderr);
    }
    assert!(folder.files().is_empty());
}
