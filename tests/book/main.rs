//! Every command of the book (`docs/`) and of the README runs and prints what the page shows.
//!
//! A fenced `sh` block holds `snlp …` lines, which run one after the other, on the CPU backend, in an empty
//! folder with a copy of `fixtures/`. A `text` block behind it is what they print. A line that holds `…`
//! alone stands for any lines. Comments before a block say what else is so:
//!
//! | comment | meaning |
//! | --- | --- |
//! | `<!-- not run: REASON -->` | the commands are for a model of the reader's, or not ours |
//! | `<!-- exits with N -->` | the last command's exit code is not 0 |
//! | `<!-- measured -->` | numbers of the output may differ in their last digits, times (`7 ms`) by all, columns in width |
//! | `<!-- measured, but not: A, B -->` | and the columns A and B are times, which are not compared |
//!
//! `SNLP_UPDATE=1` writes what is printed into the pages, in blocks without `…`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agree;
mod page;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use agree::difference;
use page::{Example, examples};
use snlp::npz::{read_npz, write_npz};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Targets of the links of a page, without those in code.
fn links(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2).flat_map(|part| part.split('`').step_by(2).collect::<Vec<_>>());
    let prose = prose.collect::<String>();
    prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

/// The pages of the book, as its table of contents names them.
fn chapters() -> Vec<PathBuf> {
    let docs = repository().join("docs");
    let summary = std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    links(&summary).into_iter().map(|name| docs.join(name)).collect()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

/// What the README's lines speak of: a model, its tokenizer and text, windows of tokens, inputs and outputs.
fn readers_files(folder: &Path) {
    let nano = repository().join("fixtures/nano");
    for (from, to) in [
        ("model.onnx", "model.onnx"),
        ("tokenizer.json", "tokenizer.json"),
        ("val.txt", "val.txt"),
        ("val_windows.npz", "val.npz"),
        ("val_windows.npz", "train.npz"),
    ] {
        copy(&nano.join(from), &folder.join(to));
    }
    let golden: BTreeMap<_, _> = read_npz(&nano.join("golden.npz")).unwrap().into_iter().collect();
    for (file, key, name) in [("in.npz", "input_ids", "input_ids"), ("out.npz", "sequential", "logits")] {
        let out = std::fs::File::create(folder.join(file)).unwrap();
        write_npz(out, [(name, &golden[key])]).unwrap();
    }
}

/// Runs the commands of an example. What they print, or how they fail.
fn run(example: &Example, folder: &Path, brief: bool) -> Result<String, String> {
    let mut printed = String::new();
    let last = example.commands.len().saturating_sub(1);
    for (i, words) in example.commands.iter().enumerate() {
        let has = |flag: &str| words.iter().any(|w| w == flag);
        let mut command = Command::new(env!("CARGO_BIN_EXE_snlp"));
        command.args(words.iter().skip(1)).current_dir(folder).env("NO_COLOR", "1");
        if !has("--backend") {
            command.args(["--backend", "cpu"]);
        }
        // The README's lines evaluate as much as there is.
        if brief && (has("--tokens") || has("--text")) && !has("--windows") && !has("convert") {
            command.args(["--windows", "1"]);
        }
        let output = command.output().map_err(|e| e.to_string())?;
        let (code, expected) = (output.status.code(), if i == last { example.code } else { 0 });
        if code != Some(expected) {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}\n  exit code {code:?}, not {expected}: {stderr}", words.join(" ")));
        }
        printed += &String::from_utf8(output.stdout).map_err(|e| e.to_string())?;
    }
    Ok(printed)
}

/// Runs a page from its beginning to its end. What is wrong with it.
fn check(path: &Path) -> Vec<String> {
    let readme = path.parent() == Some(repository());
    let place = path.strip_prefix(repository()).unwrap().display().to_string();
    let text = std::fs::read_to_string(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    copy(&repository().join("fixtures"), &folder.path().join("fixtures"));
    if readme {
        readers_files(folder.path());
    }
    let (mut wrong, mut updates) = (Vec::new(), Vec::new());
    let examples = match examples(&text, readme) {
        Ok(examples) => examples,
        Err(what) => return vec![format!("{place}: {what}")],
    };
    for example in &examples {
        let at = format!("{place}:{}", example.line);
        match (run(example, folder.path(), readme), &example.shown) {
            (Err(what), _) => wrong.push(format!("{at}: {what}")),
            (Ok(printed), Some(shown)) => {
                if let Some(what) = difference(&shown.text, &printed, &shown.exact) {
                    wrong.push(format!("{at}: {what}\n  printed:\n{printed}"));
                    // A person decides what to leave out.
                    if !shown.text.contains('…') {
                        updates.push((shown.lines.clone(), printed));
                    }
                }
            }
            (Ok(_), None) => {}
        }
    }
    if std::env::var("SNLP_UPDATE").as_deref() == Ok("1") && !updates.is_empty() {
        let mut lines: Vec<&str> = text.lines().collect();
        for (range, printed) in updates.iter().rev() {
            lines.splice(range.clone(), printed.trim_end().lines());
        }
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
        wrong.push(format!("{place} has been updated: run the test again"));
    }
    wrong
}

#[test]
fn commands_run_and_print_what_is_shown() {
    if cfg!(not(feature = "cpu")) {
        eprintln!("built without the CPU backend: the book's commands are skipped");
        return;
    }
    let mut pages = chapters();
    pages.push(repository().join("README.md"));
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(page) = pages.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = check(page);
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{}\n{} places; `SNLP_UPDATE=1 cargo test --release --test book` writes what is printed into the pages",
        wrong.join("\n"),
        wrong.len()
    );
}

#[test]
fn each_subcommand_has_an_example_that_runs() {
    let mut seen = Vec::new();
    for path in chapters() {
        let found = examples(&std::fs::read_to_string(&path).unwrap(), false);
        let found = found.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        seen.extend(found.into_iter().flat_map(|e| e.commands).map(|words| words[1].clone()));
    }
    let help = Command::new(env!("CARGO_BIN_EXE_snlp")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let names: Vec<&str> = list
        .lines()
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.strip_prefix("  ").filter(|l| !l.starts_with(' ')))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert!(names.len() >= 10, "{help}");
    for name in names {
        assert!(seen.iter().any(|s| s == name), "no example of 'snlp {name}' in docs/");
    }
}

/// Links between pages and to files of the repository, and pages that the table of contents forgets.
#[test]
fn links_lead_somewhere() {
    let docs = repository().join("docs");
    let mut pages = chapters();
    for entry in std::fs::read_dir(&docs).unwrap() {
        let path = entry.unwrap().path();
        let page = path.extension().is_some_and(|e| e == "md") && !path.ends_with("SUMMARY.md");
        assert!(!page || pages.contains(&path), "docs/SUMMARY.md does not name {}", path.display());
    }
    pages.push(repository().join("README.md"));
    let mut checked = 0;
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for target in links(&text) {
            let file = target.split('#').next().unwrap();
            if target.starts_with("http") || file.is_empty() {
                continue;
            }
            let found = page.parent().unwrap().join(file);
            assert!(found.exists(), "{} links to {target}", page.display());
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked} links");
}
