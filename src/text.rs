//! Text from outside (names, descriptions and locations in a model) made fit for people to read: it can
//! neither move the cursor nor fill the screen. Documents for programs take it as it is.

use std::borrow::Cow;

/// Characters of one name that are shown at most.
const NAME: usize = 120;
/// Characters of one sentence that are shown at most.
const SENTENCE: usize = 2000;

/// Control characters, and those that reorder or break lines.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with its control characters escaped, as `\n` or `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return text.into();
    }
    let escape = |c: char| if is_control(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect::<String>().into()
}

/// The text without its middle where it is longer than `most` characters: names often differ at the end.
fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= most {
        return text.into();
    }
    let head = most * 2 / 3;
    let tail = length - (most - head - 1);
    text.chars().take(head).chain(['…']).chain(text.chars().skip(tail)).collect::<String>().into()
}

/// A name from a model: escaped, and shortened to 120 characters.
pub fn name(text: &str) -> String {
    shortened(&escaped(text), NAME).into_owned()
}

/// A sentence that quotes names: escaped on one line, its words and itself shortened.
pub fn sentence(text: &str) -> String {
    let escaped = escaped(text);
    let words: Vec<Cow<'_, str>> = escaped.split(' ').map(|word| shortened(word, NAME)).collect();
    shortened(&words.join(" "), SENTENCE).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escaped("/layers.0/Mul été"), "/layers.0/Mul été");
        assert_eq!(escaped("a\x1b[31mb\r\nc\u{202e}"), "a\\u{1b}[31mb\\r\\nc\\u{202e}");
    }

    #[test]
    fn long_names_keep_both_ends() {
        let long = format!("begin{}end", "-".repeat(500));
        let short = name(&long);
        assert_eq!(short.chars().count(), 120);
        assert!(short.starts_with("begin-") && short.ends_with("-end") && short.contains('…'), "{short}");
        assert_eq!(name(&"x".repeat(120)), "x".repeat(120));
        let told = sentence(&format!("node '{long}' reads 'y'\n"));
        assert!(told.len() < 160 && told.ends_with("' reads 'y'\\n"), "{told}");
        assert_eq!(sentence(&"a b ".repeat(10_000)).chars().count(), 2000);
    }
}
