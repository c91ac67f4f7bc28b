//! Pages: one HTML file each, which loads nothing and follows the reader's light or dark colours.
//!
//! ```text
//!   page.css, page.js     what all pages share: colours, heading, search, hints, the switch of colours
//!   report.{rs,css,js}    `eval --html` and `plan --html`
//!   ../inspect/page.*     `inspect --format html`, with panel.js for what is opened and searched
//! ```
//!
//! Names come from files that anyone can write. In markup they stand through [`escape`], in a page's data through
//! JSON in which no tag can end, and scripts put them on the page as text alone. The page's policy lets it run its
//! own script and load nothing.

mod report;

use std::fmt::Write;

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use report::{Heat, Point, Report, number};

/// A page without its frame.
pub struct Page<'a> {
    /// The heading.
    pub title: &'a str,
    /// The command that made it.
    pub command: &'a str,
    /// Markup between heading and script.
    pub body: String,
    /// Its own style, behind the shared one.
    pub style: &'a str,
    /// Its own script, behind the shared one.
    pub script: &'a str,
    /// What the script shows.
    pub data: Option<&'a Value>,
}

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

impl Page<'_> {
    /// The page as a document.
    pub fn render(&self) -> String {
        let title = escape(self.title);
        // Browsers read line ends as \n before they hash.
        let script = format!("\n\"use strict\";\n{SCRIPT}{}", self.script).replace('\r', "");
        let policy = format!(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
            base64(&Sha256::digest(script.as_bytes()))
        );
        let data = self
            .data
            .map(|d| format!("<script type=\"application/json\" id=\"data\">{}</script>\n", json(d)));
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <title>{title}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n\
             <header class=\"top\"><p class=\"brand\"><b>snlp</b> {command}</p>\
             <button type=\"button\" id=\"theme\" aria-pressed=\"false\" title=\"Light or dark colours\">\
             <span aria-hidden=\"true\"></span>Dark</button></header>\n\
             <main>\n<h1>{title}</h1>\n{body}</main>\n\
             <div id=\"hint\" role=\"tooltip\" hidden></div>\n{data}<script>{script}</script>\n</body>\n</html>\n",
            style = self.style,
            command = escape(self.command),
            body = self.body,
            data = data.unwrap_or_default(),
        )
    }
}

/// The line with the search field, which stays in sight; `more` is markup behind it.
pub fn search_bar(what: &str, more: &str) -> String {
    format!(
        "<div class=\"bar\" role=\"search\"><label class=\"unseen\" for=\"find\">{what}</label>\
         <input id=\"find\" type=\"search\" placeholder=\"{what}\" autocomplete=\"off\" spellcheck=\"false\" \
         aria-describedby=\"found\" aria-keyshortcuts=\"/\"/><kbd aria-hidden=\"true\">/</kbd>\
         <output id=\"found\" for=\"find\" aria-live=\"polite\"></output>{more}</div>\n"
    )
}

/// Text with what HTML gives a meaning to written out.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // Forbidden in HTML, and invisible.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// JSON that can stand in a script element: nothing in it begins a tag or a comment.
fn json(data: &Value) -> String {
    let text = data.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // These stand in strings alone.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Base64 of RFC 4648, as a policy's hashes are written.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let at = |i: usize| u32::from(part.get(i).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (group >> (18 - 6 * digit)) & 63;
            out.push(if digit > part.len() { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn data_is_json_that_no_tag_ends() {
        let names =
            json!(["</script><script>alert(1)</script>", "<!--", "]]>", "a \"b\" 'c' & \u{2028}\u{202e}\0"]);
        let text = super::json(&names);
        for bad in ["<", ">", "&", "\u{2028}", "\0"] {
            assert!(!text.contains(bad), "{bad:?} in {text}");
        }
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), names);
    }

    #[test]
    fn markup_is_written_out() {
        assert_eq!(escape("<a href='x'>\"&\u{1b}"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp; ");
        let page = Page {
            title: "</title><b>",
            command: "eval",
            body: String::new(),
            style: "",
            script: "",
            data: None,
        };
        assert!(page.render().contains("<h1>&lt;/title&gt;&lt;b&gt;</h1>"));
    }

    #[test]
    fn hashes_are_base64() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn nothing_is_loaded() {
        let page = Page {
            title: "t",
            command: "eval",
            body: search_bar("Search", ""),
            style: "",
            script: "",
            data: None,
        };
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "fetch(", "import("] {
            assert!(!page.render().contains(outside), "{outside}");
        }
    }
}
