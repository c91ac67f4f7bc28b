//! Text to token ids and back, as the model's `tokenizer.json` (Hugging Face) says.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind};
use crate::files;

/// A tokenizer read from a file.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    vocabulary: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. What it says of truncation and padding is left out: texts are encoded whole.
    ///
    /// # Errors
    /// When the file cannot be read or is no tokenizer.
    pub fn read(path: &Path) -> Result<Tokenizer, Error> {
        let mut bytes = Vec::new();
        (files::open(path).and_then(|mut f| f.read_to_end(&mut bytes)))
            .map_err(|e| Error::io("read", path, e))?;
        let refuse = |cause: String| {
            Error::input(format!("'{}' is not a tokenizer that can be read", path.display()))
                .because(cause)
                .help("give the model's tokenizer.json, as Hugging Face's tokenizers library saves it")
        };
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(refuse)?;
        guarded(|| inner.with_truncation(None).map(drop)).map_err(refuse)?;
        inner.with_padding(None);
        let last = inner.get_vocab(true).into_values().max();
        let Some(last) = last else { return Err(refuse("its vocabulary is empty".into())) };
        Ok(Tokenizer { path: path.into(), inner, vocabulary: last as usize + 1 })
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The id of a token given by its text, such as `<|endoftext|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids of a text, with the special tokens that the tokenizer puts around one.
    ///
    /// # Errors
    /// When the text cannot be encoded: a vocabulary without a token for what is unknown.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        guarded(|| self.inner.encode_fast(text, true))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|cause| self.failed("encode the text", cause))
    }

    /// The text of ids, without special tokens. Ids that the vocabulary does not have are left out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        guarded(|| self.inner.decode(ids, true)).map_err(|cause| self.failed("decode the tokens", cause))
    }

    /// Text as it grows, token by token, behind the tokens `before` (a prompt), which give no text but
    /// decide about what depends on neighbours, such as leading blanks.
    pub fn stream(&self, before: &[u32]) -> Stream<'_> {
        let mut stream = Stream { tokenizer: self, ids: vec![], settled: 0, shown: String::new() };
        stream.ids.extend(&before[before.len().saturating_sub(CONTEXT)..]);
        stream.settled = stream.ids.len();
        if let Ok(text) = self.decode(&stream.ids) {
            stream.shown = whole(&text).into();
        }
        stream
    }

    fn failed(&self, what: &str, cause: String) -> Error {
        Error::new(Kind::Input, format!("tokenizer '{}' cannot {what}", self.path.display()))
            .because(cause)
            .help("use the tokenizer that the model was trained with")
    }
}

/// Tokens kept before new ones, since decoders look at neighbours.
const CONTEXT: usize = 5;
/// Bytes of a character, and so tokens that it may be spread over.
const CHARACTER: usize = 4;

/// Text that grows by tokens. A character spread over several tokens appears with the last of them.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    /// A few tokens before, then those whose text is not whole yet.
    ids: Vec<u32>,
    /// How many of `ids` are shown entirely.
    settled: usize,
    /// What of the text of `ids` was given out, or comes from before.
    shown: String,
}

impl Stream<'_> {
    /// The text that became whole with a token.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>, Error> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let pending = self.ids.len() - self.settled;
        let ready = if pending < CHARACTER { whole(&text) } else { &text };
        let new = behind(&self.shown, ready).to_string();
        if ready.len() < text.len() {
            self.shown = ready.into();
        } else {
            // The tokens shown last stay as neighbours of the next.
            self.ids.drain(..self.settled.min(self.ids.len().saturating_sub(CONTEXT)));
            self.settled = self.ids.len();
            self.shown = self.tokenizer.decode(&self.ids)?;
        }
        Ok((!new.is_empty()).then_some(new))
    }

    /// What is left when no more tokens come: characters that were never completed, as `U+FFFD`.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<Option<String>, Error> {
        let text = self.tokenizer.decode(&self.ids)?;
        let new = behind(&self.shown, &text);
        Ok((!new.is_empty()).then(|| new.into()))
    }
}

/// Text without the unfinished character at its end: one mark, or one for each of its bytes.
fn whole(text: &str) -> &str {
    let marks =
        text.chars().rev().take(CHARACTER - 1).take_while(|c| *c == char::REPLACEMENT_CHARACTER).count();
    &text[..text.len() - marks * char::REPLACEMENT_CHARACTER.len_utf8()]
}

/// What follows in `text` behind `shown`, or behind as much of it as is there.
fn behind<'a>(shown: &str, text: &'a str) -> &'a str {
    let common = shown.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    text.get(common..).unwrap_or_default()
}

/// Calls the tokenizers library, which panics on some malformed files.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its parts contradict each other".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/nano/tokenizer.json")
    }

    fn written(content: &[u8]) -> (tempfile::TempDir, Result<Tokenizer, Error>) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("t.json");
        std::fs::write(&path, content).expect("written");
        let read = Tokenizer::read(&path);
        (folder, read)
    }

    /// The bundled tokenizer with a change.
    fn changed(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, Error> {
        let text = std::fs::read_to_string(fixture()).expect("there");
        let mut value: Value = serde_json::from_str(&text).expect("JSON");
        change(&mut value);
        written(value.to_string().as_bytes()).1
    }

    #[test]
    fn the_bundled_text_encodes_to_the_bundled_tokens() {
        let tokenizer = Tokenizer::read(&fixture()).expect("read");
        assert_eq!(tokenizer.vocabulary(), 512);
        assert_eq!((tokenizer.id("th"), tokenizer.id("no such token")), (Some(256), None));
        let text = std::fs::read_to_string(fixture().with_file_name("val.txt")).expect("there");
        let ids = tokenizer.encode(&text).expect("encodes");
        assert_eq!(ids.len(), 4097);
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
        let arrays = crate::npz::read_npz(&fixture().with_file_name("val_windows.npz")).expect("there");
        let windows = arrays[0].1.to_i64().expect("integers");
        for (i, window) in windows.chunks(257).enumerate() {
            let part: Vec<i64> = ids[i * 256..i * 256 + 257].iter().map(|id| i64::from(*id)).collect();
            assert_eq!(part, window, "window {i}");
        }
    }

    #[test]
    fn streams_give_whole_characters_and_all_of_the_text() {
        let tokenizer = Tokenizer::read(&fixture()).expect("read");
        let text =
            "In the beginning: \u{e9}\u{df} \u{4e2d}\u{56fd} \u{1f600}\u{1f680}, and \u{fffd} so on.\n";
        let ids = tokenizer.encode(text).expect("encodes");
        for split in [0, 1, 3] {
            let mut stream = tokenizer.stream(&ids[..split]);
            let mut out = tokenizer.decode(&ids[..split]).expect("decodes");
            for id in &ids[split..] {
                let piece = stream.push(*id).expect("decodes");
                out += piece.as_deref().unwrap_or_default();
                assert!(text.starts_with(&out), "{out:?}");
            }
            out += stream.finish().expect("decodes").as_deref().unwrap_or_default();
            assert_eq!(out, text, "behind {split} tokens");
        }
    }

    #[test]
    fn characters_that_are_never_completed_are_marked() {
        let tokenizer = Tokenizer::read(&fixture()).expect("read");
        let ids = tokenizer.encode("\u{4e2d}").expect("encodes");
        assert_eq!(ids.len(), 3, "spread over tokens");
        let mut stream = tokenizer.stream(&[]);
        assert_eq!(stream.push(ids[0]).expect("decodes"), None);
        assert_eq!(stream.push(ids[1]).expect("decodes"), None);
        assert_eq!(stream.finish().expect("decodes").as_deref(), Some("\u{fffd}"));
        // Bytes that can never become a character are not held back for ever.
        let mut stream = tokenizer.stream(&[]);
        let shown: usize =
            (0..64).map(|_| stream.push(ids[1]).expect("decodes").map_or(0, |t| t.chars().count())).sum();
        assert!(shown >= 60, "{shown} of 64");
    }

    #[test]
    fn leading_blanks_depend_on_what_comes_before() {
        let tokenizer = changed(|t| {
            t["decoder"] = json!({"type": "Sequence", "decoders": [
                {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        })
        .expect("read");
        let ids = tokenizer.encode("And the word").expect("encodes");
        assert_eq!(tokenizer.decode(&ids[1..]).expect("decodes"), "the word");
        let mut stream = tokenizer.stream(&ids[..1]);
        let all: String = ids[1..].iter().filter_map(|id| stream.push(*id).expect("decodes")).collect();
        assert_eq!(all, " the word");
    }

    #[test]
    fn truncation_and_padding_of_the_file_do_not_apply() {
        let tokenizer = changed(|t| {
            t["truncation"] =
                json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
            t["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
        })
        .expect("read");
        let plain = Tokenizer::read(&fixture()).expect("read");
        let text = "And the LORD spake unto Moses";
        assert_eq!(tokenizer.encode(text).expect("encodes"), plain.encode(text).expect("encodes"));
    }

    #[test]
    fn malformed_files_are_refused_with_the_file_and_a_remedy() {
        let whole = std::fs::read(fixture()).expect("there");
        let mut bad: Vec<Vec<u8>> =
            vec![b"".into(), b"{}".into(), b"[1, 2]".into(), b"\xff\xfe\x00".into(), b"null".into()];
        bad.extend((1..12).map(|n| whole[..whole.len() * n / 12].to_vec()));
        for content in bad {
            let (_folder, read) = written(&content);
            let Err(error) = read else { panic!("read {} bytes", content.len()) };
            let report = error.report();
            assert_eq!(error.kind(), Kind::Input, "{report}");
            assert!(
                report.contains("t.json") && report.contains("help: give the model's tokenizer.json"),
                "{report}"
            );
        }
        type Change = fn(&mut Value);
        let changes: [Change; 7] = [
            |t| t["model"] = json!({"type": "Nonsense"}),
            |t| t["model"]["vocab"] = json!({}),
            |t| t["model"]["vocab"] = json!(7),
            |t| t["model"]["merges"] = json!(["no such", "merge"]),
            |t| t["version"] = json!("2.0"),
            |t| {
                t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": false})
            },
            |t| t["model"]["continuing_subword_prefix"] = json!("a prefix longer than the tokens"),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let error = changed(change).err().unwrap_or_else(|| panic!("change {i} was read"));
            assert!(error.report().contains("help:"), "{}", error.report());
        }
        let missing = Tokenizer::read(Path::new("/no/such/tokenizer.json")).err().expect("missing");
        assert_eq!(missing.kind(), Kind::Io);
        assert!(missing.report().contains("/no/such/tokenizer.json"), "{}", missing.report());
    }
}
