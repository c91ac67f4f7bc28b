//! Token windows as commands take them: from an archive, or cut from a text.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use snlp::error::Error;
use snlp::files;
use snlp::language::inputs::longest;
use snlp::language::tokenizer::Tokenizer;
use snlp::language::windows::Windows;
use snlp::source::Source;

use super::tensors::read_windows;
use super::ui::Ui;

/// Sequences that are longer than this are not asked for unless `--context` does.
const LONGEST_DEFAULT: usize = 2048;
/// The window length where the model does not tell.
const UNTOLD_DEFAULT: usize = 1024;
/// Tables of positions are searched up to this length.
const SEARCHED: usize = 1 << 16;

/// Where token windows come from.
#[derive(Args, Clone)]
pub struct WindowArgs {
    /// Token windows: int64 'windows' [n, T+1]; inputs are all but the last, targets all but the first
    #[arg(long, value_name = "F.npz", required_unless_present = "text")]
    pub tokens: Option<PathBuf>,
    /// Text to cut into windows
    #[arg(long, value_name = "F", conflicts_with = "tokens", requires = "tokenizer")]
    pub text: Option<PathBuf>,
    /// The model's tokenizer.json, for --text
    #[arg(long, value_name = "T", requires = "text")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a window of --text (default: as long as the model's positions reach, at most 2048, or
    /// 1024 where the model does not tell)
    #[arg(long, value_name = "N", requires = "text", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Tokens from one window of --text to the next; what a window repeats is context and not scored again
    /// (default: a whole window)
    #[arg(long, value_name = "N", requires = "text", value_parser = clap::value_parser!(u32).range(1..))]
    pub stride: Option<u32>,
    /// Use the first N windows only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
}

impl WindowArgs {
    /// The files that are read, each with what it is.
    pub fn files(&self) -> Vec<(&str, &Path)> {
        let named =
            [("the windows", &self.tokens), ("the text", &self.text), ("the tokenizer", &self.tokenizer)];
        named.into_iter().filter_map(|(what, path)| Some((what, path.as_deref()?))).collect()
    }

    /// The windows that are asked for.
    pub fn read(&self, source: &Source, ui: &Ui) -> Result<Windows, Error> {
        let windows = match (&self.tokens, &self.text, &self.tokenizer) {
            (Some(path), _, _) => read_windows(path)?,
            (None, Some(text), Some(tokenizer)) => {
                self.cut(source, text, &Tokenizer::read(tokenizer)?, ui)?
            }
            _ => {
                return Err(Error::usage("there are no tokens to evaluate on")
                    .help("give --tokens F.npz, or --text F --tokenizer T"));
            }
        };
        Ok(match self.windows {
            Some(n) => windows.truncated(n as usize),
            None => windows,
        })
    }

    fn cut(&self, source: &Source, path: &Path, tokenizer: &Tokenizer, ui: &Ui) -> Result<Windows, Error> {
        let ids: Vec<i64> = tokenizer.encode(&read_text(path)?)?.into_iter().map(i64::from).collect();
        let context = match self.context {
            Some(n) => n as usize,
            None => match longest(&source.graph, SEARCHED) {
                Some(n) => n.min(LONGEST_DEFAULT),
                None => UNTOLD_DEFAULT,
            },
        };
        let stride = self.stride.map_or(context, |n| n as usize);
        if stride > context {
            return Err(Error::usage(format!(
                "--stride {stride} is longer than a window of {context} tokens"
            ))
            .help("a stride of at most the window scores every token"));
        }
        ui.notice(&format!("{} tokens of text in windows of {context}, {stride} apart", ids.len()));
        Windows::slide(&ids, context, stride).map_err(|_| {
            Error::input(format!("'{}' has {} tokens, too few to predict one", path.display(), ids.len()))
                .help("give a longer text")
        })
    }
}

/// The text of a file.
pub fn read_text(path: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    (files::open(path).and_then(|mut f| f.read_to_end(&mut bytes)))
        .map_err(|e| Error::io("read", path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::input(format!("'{}' is not text in UTF-8", path.display()))
            .because(e)
            .help("convert the text to UTF-8")
    })
}
