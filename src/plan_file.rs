//! Plans in files: what `snlp plan` writes and what stands for a plan on every command line.
//!
//! ```toml
//! plan = "s3 9xF1"             # all that is needed; the rest says where it comes from
//!
//! [model]                      # what it was found for
//! file = "model.onnx"
//! sha256 = "9f86…"
//! layers = 12
//!
//! [search]                     # how
//! budget = "ppl+2%"
//! optimize = "cost"
//! seed = 0
//! version = "0.1.0"
//!
//! [measured]                   # what it costs and saves, on these windows
//! windows = 64
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use snlp_passes::plan::Plan;

use crate::error::Error;
use crate::files::{folder_of, open};
use crate::source::parse_plan;

/// The file that `auto` stands for, beside the model.
pub const AUTO: &str = "plan.toml";

/// The content of a plan file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PlanFile {
    /// The plan, in the plan language.
    pub plan: String,
    /// The model that it was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// How it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// What was measured of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// The model that a plan was found for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Model {
    /// Name of the file, without its folder.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// Layers of its chain.
    pub layers: usize,
}

/// How a plan was found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Search {
    /// The budget.
    pub budget: String,
    /// What was made small: `cost` or `time`.
    pub optimize: String,
    /// The seed.
    pub seed: u64,
    /// Version of the program.
    pub version: String,
}

/// What was measured of a plan.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Windows that were evaluated.
    pub windows: usize,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Perplexity under the plan.
    pub ppl: f64,
    /// Perplexity of the sequential model.
    pub sequential_ppl: f64,
    /// Mean KL divergence from the sequential distribution, in nats.
    pub kl: f64,
    /// Share of positions with the sequential model's most likely token.
    pub top1: f64,
    /// Layers or units that are evaluated one after the other.
    pub sequential_depth: usize,
    /// Modelled time of a forward against the sequential model's.
    pub cost: f64,
    /// Measured time of a batch of windows, in milliseconds.
    pub ms: f64,
    /// The same for the sequential model.
    pub sequential_ms: f64,
    /// What it was measured on.
    pub device: String,
}

/// A plan as a command line gives it.
#[derive(Clone, PartialEq, Debug)]
pub struct GivenPlan {
    /// The plan.
    pub plan: Plan,
    /// The file that it comes from and what that says of the model, and whether it was named.
    origin: Option<(PathBuf, Option<Model>, bool)>,
}

impl PlanFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, or has no plan.
    pub fn read(path: &Path) -> Result<PlanFile, Error> {
        let refuse = |cause: String| {
            Error::input(format!("'{}' is not a plan file", path.display()))
                .because(cause)
                .help("a plan file is TOML with a line such as plan = \"s3 9xF1\"; 'snlp plan -o' writes one")
        };
        let mut bytes = Vec::new();
        (open(path).and_then(|mut f| f.read_to_end(&mut bytes))).map_err(|e| Error::io("read", path, e))?;
        let text = String::from_utf8(bytes).map_err(|e| refuse(e.to_string()))?;
        // The library's own text draws the line; the position and the reason are enough.
        toml::from_str(&text).map_err(|e: toml::de::Error| {
            let line = e.span().map(|s| 1 + text.get(..s.start).unwrap_or_default().matches('\n').count());
            let place = line.map_or(String::new(), |n| format!("line {n}: "));
            refuse(format!("{place}{}", e.message()))
        })
    }

    /// The file's text.
    ///
    /// # Errors
    /// When a number has no form in TOML.
    pub fn to_text(&self) -> Result<String, Error> {
        toml::to_string(self).map_err(|e| Error::input("the plan has no form as a file").because(e))
    }
}

impl GivenPlan {
    /// What a `--plan` argument means for a model: a plan's text, the `.toml` file of one, or `auto`, the
    /// file `plan.toml` beside the model.
    ///
    /// # Errors
    /// When the text is no plan or the file is none.
    pub fn of(text: &str, model: &Path) -> Result<GivenPlan, Error> {
        let named = text.trim();
        let auto = named == "auto";
        if !auto && !named.ends_with(".toml") {
            return Ok(GivenPlan { plan: parse_plan(text)?, origin: None });
        }
        let path = if auto { folder_of(model).join(AUTO) } else { PathBuf::from(named) };
        if auto && !path.exists() {
            return Err(Error::input(format!("--plan auto: there is no '{}'", path.display())).help(
                format!(
                    "make one: snlp plan {} --tokens WINDOWS.npz --budget ppl+1% -o {}",
                    model.display(),
                    path.display()
                ),
            ));
        }
        let file = PlanFile::read(&path)?;
        let plan = parse_plan(&file.plan).map_err(|e| {
            Error::input(format!("'{}' holds no plan", path.display()))
                .because(e)
                .help("write the plan's own text behind 'plan =', such as \"s3 9xF1\"")
        })?;
        Ok(GivenPlan { plan, origin: Some((path, file.model, !auto)) })
    }

    /// The file that it was read from, with what that is.
    pub fn file(&self) -> Option<(&str, &Path)> {
        self.origin.as_ref().map(|(path, ..)| ("the file of --plan", path.as_path()))
    }

    /// Compares the model that the plan's file was made for with the one at hand. What was found for another
    /// one is refused when it was taken without being named, and said else.
    ///
    /// # Errors
    /// When `auto` found the plan of another model.
    pub fn check(&self, sha256: &str) -> Result<Option<String>, Error> {
        let Some((path, Some(model), named)) = &self.origin else { return Ok(None) };
        if model.sha256 == sha256 {
            return Ok(None);
        }
        let text = format!("'{}' was made for another model, '{}'", path.display(), model.file);
        if *named {
            return Ok(Some(format!("{text}: what it says of quality and speed does not hold here")));
        }
        Err(Error::input(format!("--plan auto: {text}")).help(format!(
            "make a plan for this model with 'snlp plan', or give --plan {} to use that one all the same",
            path.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> PlanFile {
        PlanFile {
            plan: "s3 9xF1".into(),
            model: Some(Model { file: "model.onnx".into(), sha256: "ab".into(), layers: 12 }),
            search: Some(Search {
                budget: "ppl+2%".into(),
                optimize: "cost".into(),
                seed: 7,
                version: "0.1.0".into(),
            }),
            measured: Some(Measured {
                windows: 64,
                tokens: 16384,
                ppl: 19.2,
                sequential_ppl: 19.0,
                kl: 0.01,
                top1: 0.97,
                sequential_depth: 4,
                cost: 0.5,
                ms: 10.0,
                sequential_ms: 20.0,
                device: "a GPU".into(),
            }),
        }
    }

    fn folder_with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(AUTO), text).expect("written");
        let model = folder.path().join("model.onnx");
        (folder, model)
    }

    #[test]
    fn files_come_back_as_they_were_written() {
        let (folder, _) = folder_with(&full().to_text().expect("text"));
        assert_eq!(PlanFile::read(&folder.path().join(AUTO)).expect("read"), full());
    }

    #[test]
    fn a_plan_is_all_that_a_file_needs() {
        let (folder, model) = folder_with("# mine\nplan = \"6xF1[k=2]\"\nnote = \"kept\"\n");
        let file = folder.path().join(AUTO).display().to_string();
        for text in [file.as_str(), "auto"] {
            let given = GivenPlan::of(text, &model).expect("read");
            assert_eq!(given.plan.to_string(), "6xF1[k=2]");
            assert_eq!(given.check("anything").expect("nothing is said of the model"), None);
        }
        assert_eq!(GivenPlan::of("s1 2xF1", &model).expect("a plan").plan.to_string(), "s1 2xF1");
    }

    #[test]
    fn plans_of_other_models_are_noticed() {
        let (folder, model) = folder_with(&full().to_text().expect("text"));
        let file = folder.path().join(AUTO).display().to_string();
        let named = GivenPlan::of(&file, &model).expect("read");
        assert_eq!(named.check("ab").expect("the same model"), None);
        assert!(named.check("cd").expect("named").is_some_and(|t| t.contains("another model, 'model.onnx'")));
        let auto = GivenPlan::of("auto", &model).expect("read");
        assert_eq!(auto.check("ab").expect("the same model"), None);
        let report = auto.check("cd").expect_err("another").report();
        assert!(report.contains("another model") && report.contains(&format!("--plan {file}")), "{report}");
    }

    #[test]
    fn bad_files_are_refused_with_the_place_and_a_remedy() {
        for (text, part) in [
            ("plan = 7\n", "line 1"),
            ("\n\nplan = \"6xF1\n", "line 3"),
            ("plans = \"6xF1\"\n", "missing field `plan`"),
            ("plan = \"6xG1\"\n", "6xG1"),
            ("plan = \"auto\"\n", "'auto' lies in a file"),
            ("plan = \"6xF1\"\n[model]\nfile = 3\n", "line 3"),
            ("", "missing field `plan`"),
        ] {
            let (_folder, model) = folder_with(text);
            let report = GivenPlan::of("auto", &model).expect_err("refused").report();
            assert!(
                report.contains(AUTO) && report.contains(part) && report.contains("help:"),
                "{text}: {report}"
            );
        }
        let folder = tempfile::tempdir().expect("folder");
        let report = GivenPlan::of("auto", &folder.path().join("m.onnx")).expect_err("none").report();
        assert!(report.contains("make one: snlp plan") && report.contains("m.onnx"), "{report}");
        let missing = GivenPlan::of("no/such.toml", Path::new("m.onnx")).expect_err("none");
        assert_eq!(missing.kind().exit_code(), 5);
    }
}
