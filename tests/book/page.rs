//! The examples of a page.

use std::ops::Range;

use crate::agree::Exact;

/// Commands, and what the page says that they print.
pub struct Example {
    /// Line of the first command, from 1.
    pub line: usize,
    pub commands: Vec<Vec<String>>,
    /// Exit code of the last command.
    pub code: i32,
    pub shown: Option<Shown>,
}

/// The text block behind commands.
pub struct Shown {
    /// Lines of the page, from 0, without the fences.
    pub lines: Range<usize>,
    pub text: String,
    pub exact: Exact,
}

/// A fenced block.
struct Block<'t> {
    language: &'t str,
    lines: Range<usize>,
    /// Comments directly before it.
    comments: Vec<&'t str>,
    /// Nothing but comments lies between the block before and this one.
    follows: bool,
}

fn blocks<'t>(lines: &[&'t str]) -> Result<Vec<Block<'t>>, String> {
    let (mut out, mut comments, mut follows, mut i) = (Vec::new(), Vec::new(), false, 0);
    while let Some(line) = lines.get(i) {
        if let Some(language) = line.strip_prefix("```") {
            let length = lines[i + 1..].iter().position(|l| *l == "```");
            let end = i + 1 + length.ok_or(format!("line {}: a block without end", i + 1))?;
            out.push(Block { language, lines: i + 1..end, comments: std::mem::take(&mut comments), follows });
            (i, follows) = (end, true);
        } else if let Some(comment) = line.strip_prefix("<!-- ").and_then(|l| l.strip_suffix(" -->")) {
            comments.push(comment);
        } else if !line.is_empty() {
            comments.clear();
            follows = false;
        }
        i += 1;
    }
    Ok(out)
}

/// The words of a command line, as a POSIX shell splits them. Comments, `'…'` and `"…"` are known.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut out, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => out.extend(word.take()),
            (None, '|' | '>' | '<' | '&' | ';' | '$' | '*' | '`') | (Some('"'), '$' | '`' | '\\') => {
                return Err(format!("'{c}' wants a shell: {line}"));
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    out.extend(word);
    if quote.is_some() { Err(format!("a quote without end: {line}")) } else { Ok(out) }
}

/// The examples of a page. A README may hold commands of other programs, which its own tests run.
pub fn examples(text: &str, readme: bool) -> Result<Vec<Example>, String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out: Vec<Example> = Vec::new();
    // The block before was an example.
    let mut open = false;
    for block in blocks(&lines)? {
        let line = block.lines.start + 1;
        let said = |what: &str| block.comments.iter().find_map(|c| c.strip_prefix(what));
        if block.language == "text" && block.follows && open {
            let exact = match said("measured") {
                None => Exact::Text,
                Some(rest) => Exact::Numbers {
                    but: rest
                        .strip_prefix(", but not: ")
                        .map(|r| r.split(", ").map(str::to_owned).collect())
                        .unwrap_or_default(),
                },
            };
            let text = lines[block.lines.clone()].join("\n");
            out.last_mut().expect("an example").shown = Some(Shown { lines: block.lines, text, exact });
            open = false;
            continue;
        }
        open = block.language == "sh" && said("not run: ").is_none();
        if !open {
            continue;
        }
        let source = lines[block.lines].join("\n").replace("\\\n", " ");
        let mut commands = Vec::new();
        for words in source.lines().map(words) {
            let words = words.map_err(|e| format!("line {line}: {e}"))?;
            match words.first().map(String::as_str) {
                Some("snlp") => commands.push(words),
                None => {}
                Some(_) if readme => {}
                Some(other) => {
                    return Err(format!("line {line}: '{other}' is not ours: <!-- not run: REASON -->"));
                }
            }
        }
        let code =
            said("exits with ").map_or(Ok(0), str::parse).map_err(|_| format!("line {line}: a number"))?;
        out.push(Example { line, commands, code, shown: None });
    }
    Ok(out)
}

#[test]
fn blocks_become_examples() {
    let page = "<!-- exits with 1 -->\n```sh\nsnlp a 'b c' \\\n  \"d\" # e\nsnlp f\n```\n\n<!-- measured, but not: ms, x -->\n\
                ```text\nout\n```\n\n```text\npicture\n```\n\n<!-- not run: yours -->\n```sh\nrm x | y\n```\n";
    let found = examples(page, false).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].commands, [vec!["snlp", "a", "b c", "d"], vec!["snlp", "f"]]);
    let shown = found[0].shown.as_ref().unwrap();
    assert_eq!((found[0].code, shown.lines.clone(), shown.text.as_str()), (1, 9..10, "out"));
    assert!(matches!(&shown.exact, Exact::Numbers { but } if *but == ["ms", "x"]));
    assert!(examples("```sh\ncargo build\n```\n", false).is_err());
    assert!(examples("```sh\nsnlp a > b\n```\n", false).is_err());
    assert!(examples("```sh\nsnlp a\n", false).is_err());
}
