//! Running the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// What a run of the binary left.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub command: String,
}

impl Ran {
    fn of(command: String, output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8 on stderr"),
            command,
        }
    }

    /// Asserts the exit code.
    pub fn code(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{}\nstdout: {}\nstderr: {}", self.command, self.stdout, self.stderr);
        self
    }

    /// Asserts that stderr holds each of `parts`, and is one report without panic or colour.
    pub fn says(self, parts: &[&str]) -> Ran {
        for part in parts {
            assert!(self.stderr.contains(part), "{}: no '{part}' in: {}", self.command, self.stderr);
        }
        for bad in ["panicked", "RUST_BACKTRACE", "\u{1b}["] {
            assert!(!self.stderr.contains(bad), "{}: '{bad}' in: {}", self.command, self.stderr);
        }
        let reports = self.stderr.lines().filter(|l| l.starts_with("error:")).count();
        assert_eq!(reports, 1, "{}: {}", self.command, self.stderr);
        assert!(self.stdout.is_empty() || !parts.is_empty(), "{}", self.stdout);
        self
    }

    /// The one JSON document on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: {e}: {}", self.command, self.stdout))
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn fixture(name: &str) -> String {
    let path = repository().join("fixtures").join(name);
    assert!(path.exists(), "{}", path.display());
    path.display().to_string()
}

/// Runs the binary.
pub fn snlp(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snlp"));
    command.args(args).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").current_dir(repository());
    Ran::of(format!("snlp {}", args.join(" ")), command.output().expect("the binary starts"))
}

/// Runs the binary with an environment variable.
pub fn snlp_with(args: &[&str], key: &str, value: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snlp"));
    command.args(args).env(key, value).current_dir(repository());
    Ran::of(format!("{key}={value} snlp {}", args.join(" ")), command.output().expect("the binary starts"))
}

/// The backends to test on: the CPU when it is built in, a GPU adapter when there is one. With
/// `REQUIRE_GPU=1` there must be one.
pub fn backends() -> Vec<&'static str> {
    let devices = snlp(&["devices", "--json"]).code(0).json();
    let mut out = Vec::new();
    if devices["cpu"]["available"] == true {
        out.push("cpu");
    }
    if devices["devices"].as_array().is_some_and(|d| !d.is_empty()) {
        out.push("gpu");
    } else {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "REQUIRE_GPU is set but there is no adapter");
        eprintln!("no GPU adapter: the GPU part of this test is skipped");
    }
    out
}

/// A folder that vanishes, with paths in it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Names of the files inside.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.0.path())
            .expect("readable")
            .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }
}
