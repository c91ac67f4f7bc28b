//! The committed lists: which case passes where, and which fails for what reason.
//!
//! ```text
//!   supported.txt                 expected_failures.txt
//!   [Abs]                         [TopK]
//!   test_abs evaluator gpu        test_top_k_x gpu: the reason
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::path::PathBuf;

/// What begins the reason of a failure that nobody has looked at.
pub const NEW: &str = "NEW";

/// What runs cases.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Executor {
    Evaluator,
    Gpu,
}

impl Executor {
    pub const ALL: [Executor; 2] = [Executor::Evaluator, Executor::Gpu];
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Executor::Evaluator => "evaluator",
            Executor::Gpu => "gpu",
        })
    }
}

/// Operator, case, executor.
pub type Key = (String, String, Executor);

pub type Outcomes = BTreeMap<Key, Result<(), String>>;

/// Both lists.
#[derive(Default)]
pub struct Lists {
    pub supported: BTreeSet<Key>,
    pub failures: BTreeMap<Key, String>,
    /// Cases that rules leave out.
    pub left_out: BTreeMap<String, usize>,
}

/// A file beside this one.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/node_cases").join(name)
}

impl Lists {
    pub fn read() -> Lists {
        let mut lists = Lists::default();
        for (section, line) in sections("supported.txt") {
            match line.strip_prefix("left out: ") {
                Some(rule) => {
                    let (count, rule) = rule.split_once(' ').expect("a number and a rule");
                    lists.left_out.insert(rule.into(), count.parse().expect("a number"));
                }
                None => lists.supported.extend(keys(&section, &line)),
            }
        }
        for (section, line) in sections("expected_failures.txt") {
            let (cases, reason) = line.split_once(": ").unwrap_or((&line, ""));
            lists.failures.extend(keys(&section, cases).into_iter().map(|k| (k, reason.to_string())));
        }
        lists
    }

    /// What contradicts the outcomes; of a complete run also entries without a case.
    pub fn stale(&self, outcomes: &Outcomes, complete: bool) -> Vec<String> {
        let mut stale = vec![];
        for (key, outcome) in outcomes {
            let (_, case, executor) = key;
            match (outcome, self.supported.contains(key), self.failures.contains_key(key)) {
                (_, true, true) => stale.push(format!("{case} {executor}: stands in both lists")),
                (Ok(()), _, true) => {
                    stale.push(format!("{case} {executor}: is listed as failing, but passes"))
                }
                (Ok(()), false, _) => stale.push(format!("{case} {executor}: passes, but is not listed")),
                (Err(why), true, _) => {
                    stale.push(format!("{case} {executor}: is listed as supported: {why}"))
                }
                (Err(why), _, false) => {
                    stale.push(format!("{case} {executor}: fails, and is not listed: {why}"))
                }
                _ => {}
            }
        }
        if complete {
            let listed = self.supported.iter().chain(self.failures.keys());
            let unknown = listed.filter(|key| !outcomes.contains_key(*key));
            stale.extend(unknown.map(|(section, case, executor)| {
                format!("{case} {executor}: is listed under {section}, but there is no such case")
            }));
        }
        stale
    }

    /// The lists after a run. Failures keep their reasons; new ones say what happened.
    pub fn updated(&self, outcomes: &Outcomes, complete: bool, left_out: &BTreeMap<String, usize>) -> Lists {
        let mut out = Lists { left_out: self.left_out.clone(), ..Lists::default() };
        if complete {
            out.left_out = left_out.clone();
        } else {
            let kept = |key: &Key| !outcomes.contains_key(key);
            out.supported = self.supported.iter().filter(|k| kept(k)).cloned().collect();
            let failures = self.failures.iter().filter(|(k, _)| kept(k));
            out.failures = failures.map(|(k, why)| (k.clone(), why.clone())).collect();
        }
        for (key, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    out.supported.insert(key.clone());
                }
                Err(why) => {
                    let known = self.failures.get(key).filter(|reason| !reason.starts_with(NEW)).cloned();
                    let line = why.lines().collect::<Vec<_>>().join(" ");
                    out.failures.insert(key.clone(), known.unwrap_or_else(|| format!("{NEW}: {line}")));
                }
            }
        }
        out
    }

    pub fn write(&self) {
        let header = |what: &str| {
            format!(
                "# {what}\n# Rewritten by `SNLP_UPDATE=1 cargo test --release --test node_cases`; \
                 operators.txt has the choice.\n"
            )
        };
        let mut text = header("Node cases of ONNX that pass, with the executors.");
        for (rule, count) in &self.left_out {
            let _ = writeln!(text, "left out: {count} {rule}");
        }
        let supported = self.supported.iter().map(|key| (key, ""));
        std::fs::write(path("supported.txt"), text + &grouped(supported)).unwrap();
        let text = header("Node cases of ONNX that are known to fail, with the executors and a reason.");
        let failures = self.failures.iter().map(|(key, reason)| (key, reason.as_str()));
        std::fs::write(path("expected_failures.txt"), text + &grouped(failures)).unwrap();
    }

    /// The support table of README.md.
    pub fn table(&self) -> String {
        // Cases and, by executor, those that pass; by operator.
        let mut rows: BTreeMap<&str, (BTreeSet<&str>, [usize; 2])> = BTreeMap::new();
        for (section, case, executor) in self.supported.iter().chain(self.failures.keys()) {
            rows.entry(section).or_default().0.insert(case);
            let passes = self.supported.contains(&(section.clone(), case.clone(), *executor));
            rows.entry(section).or_default().1[*executor as usize] += usize::from(passes);
        }
        let total: usize = rows.values().map(|(cases, _)| cases.len()).sum();
        let passing = |executor: Executor| rows.values().map(|(_, n)| n[executor as usize]).sum::<usize>();
        let (evaluator, gpu) = (passing(Executor::Evaluator), passing(Executor::Gpu));
        let mut out = format!(
            "Of the ONNX project's node cases, {total} are of the operators below: {evaluator} pass on the \
             evaluator, {gpu} on the GPU. All cases (their number in brackets) pass on both of "
        );
        let full = |(cases, n): &(BTreeSet<&str>, [usize; 2])| n.iter().all(|n| *n == cases.len());
        let all: Vec<String> = rows
            .iter()
            .filter(|(_, row)| full(row))
            .map(|(name, (cases, _))| format!("{name} ({})", cases.len()))
            .collect();
        out = wrapped(&format!("{out}{}.", all.join(", ")));
        if rows.values().any(|row| !full(row)) {
            out += "\n| operator | cases | evaluator | GPU |\n| --- | ---: | ---: | ---: |\n";
            for (name, (cases, [evaluator, gpu])) in rows.iter().filter(|(_, row)| !full(row)) {
                let _ = writeln!(out, "| {name} | {} | {evaluator} | {gpu} |", cases.len());
            }
        }
        let rules: Vec<String> =
            self.left_out.iter().map(|(rule, count)| format!("{rule} ({count})")).collect();
        out + "\n" + &wrapped(&format!("Left out are {}.", rules.join(", ")))
    }
}

/// Text in lines of at most 130 characters.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is one");
        if last.is_empty() {
            *last = word.into();
        } else if last.len() + 1 + word.len() <= 130 {
            *last = format!("{last} {word}");
        } else {
            lines.push(word.into());
        }
    }
    lines.join("\n") + "\n"
}

/// Entries under their operators' headings, the executors of a case in one line.
fn grouped<'a>(entries: impl Iterator<Item = (&'a Key, &'a str)>) -> String {
    let mut lines: BTreeMap<&str, BTreeMap<(&str, &str), Vec<String>>> = BTreeMap::new();
    for ((section, case, executor), reason) in entries {
        let cases = lines.entry(section).or_default();
        cases.entry((case, reason)).or_default().push(executor.to_string());
    }
    let mut out = String::new();
    for (section, cases) in lines {
        let _ = writeln!(out, "\n[{section}]");
        for ((case, reason), executors) in cases {
            let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            let _ = writeln!(out, "{case} {}{reason}", executors.join(" "));
        }
    }
    out
}

/// The entries of a list, each with its heading.
fn sections(file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path(file)).unwrap_or_default();
    let mut section = String::new();
    let mut out = vec![];
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            Some(name) => section = name.into(),
            None => out.push((section.clone(), line.into())),
        }
    }
    out
}

/// `case executor executor`.
fn keys(section: &str, line: &str) -> Vec<Key> {
    let mut words = line.split(' ');
    let case = words.next().unwrap_or_default();
    let executor = |word: &str| {
        let known = Executor::ALL.into_iter().find(|e| e.to_string() == word);
        known.unwrap_or_else(|| panic!("'{line}' names no executor '{word}'"))
    };
    words.map(|word| (section.into(), case.into(), executor(word))).collect()
}

const BEGIN: &str = "<!-- operators: begin -->\n";
const END: &str = "<!-- operators: end -->\n";

pub fn readme() -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The block of README.md that the lists make.
pub fn block(readme: &str) -> &str {
    let start = readme.find(BEGIN).expect("README.md has the markers") + BEGIN.len();
    let end = readme.find(END).expect("README.md has the markers");
    &readme[start..end]
}

pub fn write_readme(table: &str) {
    let readme = readme();
    let start = readme.find(BEGIN).expect("README.md has the markers") + BEGIN.len();
    let end = start + block(&readme).len();
    let text = [&readme[..start], table, &readme[end..]].concat();
    std::fs::write(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md"), text).unwrap();
}
