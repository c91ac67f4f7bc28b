//! Talking to people: notices, progress and errors on stderr, documents on stdout.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use snlp::error::{Error, Kind};
use snlp::text::{escaped, sentence};

use super::Common;

/// Headings.
pub const BOLD: Style = Style::new().bold();
/// What matters less.
pub const DIM: Style = Style::new().dimmed();
/// Checks that passed.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Checks that failed.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// How much to say, and to whom.
pub struct Ui {
    quiet: bool,
    verbose: bool,
    terminal: bool,
}

impl Ui {
    /// What the options ask for.
    pub fn new(common: &Common) -> Self {
        Ui { quiet: common.quiet, verbose: common.verbose > 0, terminal: std::io::stderr().is_terminal() }
    }

    /// Whether details are wanted.
    pub fn verbose(&self) -> bool {
        self.verbose
    }

    /// A line for a person: on a terminal, or when asked for with `-v`.
    pub fn notice(&self, text: &str) {
        if !self.quiet && (self.terminal || self.verbose) {
            let _ = writeln!(anstream::stderr(), "{DIM}{}{DIM:#}", escaped(text));
        }
    }

    /// A line that a person should not miss, wherever stderr leads.
    pub fn warn(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{BOLD}note:{BOLD:#} {}", escaped(text));
        }
    }

    /// A bar of `steps`, gone when dropped; hidden where nobody would see it.
    pub fn progress(&self, steps: u64, what: &str) -> ProgressBar {
        if self.quiet || !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{msg:24} {bar:30} {pos}/{len} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// The one place that prints errors.
    pub fn error(&self, error: &Error) {
        let _ = writeln!(anstream::stderr(), "{BAD}error:{BAD:#} {}", error.report());
    }
}

/// Writes a document to stdout, with its colours where they are wanted. A reader that went away is not
/// an error.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Io, "cannot write to the standard output")
                .because(e)
                .help("check that it is open and that there is space where it leads"))
        }
        _ => Ok(()),
    }
}

/// Writes one JSON document to stdout.
pub fn print_json(document: &Value) -> Result<(), Error> {
    print(&(json_text(document) + "\n"))
}

/// A JSON document as text.
pub fn json_text(document: &Value) -> String {
    format!("{document:#}")
}

/// Aligned columns.
#[derive(Default)]
pub struct Table {
    heading: Option<Vec<String>>,
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with a heading.
    pub fn new(heading: &[&str]) -> Self {
        Table { heading: Some(heading.iter().map(|s| (*s).to_string()).collect()), ..Table::default() }
    }

    /// Aligns these columns to the right.
    pub fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// Adds a row of plain text, which may quote a model.
    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| sentence(cell.as_ref())).collect());
    }

    /// The table as lines, each after `indent` blanks.
    pub fn render(&self, indent: usize) -> String {
        let all = || self.heading.iter().chain(&self.rows);
        let columns = all().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|c| all().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for (i, row) in all().enumerate() {
            let mut line = " ".repeat(indent);
            for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let gap = if c > 0 { "  " } else { "" };
                line += &if self.right.contains(&c) {
                    format!("{gap}{pad}{cell}")
                } else {
                    format!("{gap}{cell}{pad}")
                };
            }
            let line = line.trim_end();
            if i == 0 && self.heading.is_some() {
                out += &format!("{BOLD}{line}{BOLD:#}\n");
            } else {
                out += &format!("{line}\n");
            }
        }
        out
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes with a unit.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `n thing` or `n things`.
pub fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// A path in text for people.
pub fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy()).into_owned()
}

/// The text without its colours, for a file.
pub fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut t = Table::new(&["name", "n"]).right(&[1]);
        t.row(["a", "1"]);
        t.row(["long name", "200"]);
        assert_eq!(plain(&t.render(2)), "  name         n\n  a            1\n  long name  200\n");
        t.row(["two\nlines\x1b[2J", ""]);
        assert!(t.render(0).contains("two\\nlines\\u{1b}[2J"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!((thousands(0), thousands(1_234_567)), ("0".into(), "1,234,567".into()));
        assert_eq!((bytes(12), bytes(3_586_282)), ("12 B".into(), "3.4 MiB".into()));
    }
}
