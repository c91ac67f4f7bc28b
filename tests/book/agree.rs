//! Whether what is printed is what a page shows.

/// What of an output is compared.
pub enum Exact {
    /// All of it.
    Text,
    /// Words, and numbers to their last digits; no times (`7 ms`), and no columns whose heads are
    /// named here.
    Numbers { but: Vec<String> },
}

/// A number as people write it: `+0.25`, `1,024`, `0.84x`, `97%`.
fn number(word: &str) -> Option<(f64, i32)> {
    let digits = word.trim_end_matches(['%', 'x', ',', ';', ')']).trim_start_matches('(').replace(',', "");
    let value: f64 = digits.parse().ok().filter(|v: &f64| v.is_finite())?;
    let decimals = digits.split_once('.').map_or(0, |(_, d)| d.len());
    Some((value, decimals as i32))
}

fn near(a: &str, b: &str) -> bool {
    match (number(a), number(b)) {
        (Some((x, places)), Some((y, _))) => {
            let digit = if places == 0 { 0.0 } else { 2.0 * 10f64.powi(-places) };
            (x - y).abs() <= 0.02 * x.abs().max(y.abs()) + digit
        }
        _ => a == b,
    }
}

/// Words from the right, where columns are numbers. A percent sign sticks to its number; times are left out.
fn columns(line: &str) -> Vec<String> {
    let mut words: Vec<String> = line.replace(" %", "%").split_whitespace().map(str::to_owned).collect();
    for i in 1..words.len() {
        if matches!(words[i].as_str(), "ms" | "s") && number(&words[i - 1]).is_some() {
            words[i - 1] = "…".into();
        }
    }
    words.reverse();
    words
}

/// What differs first.
pub fn difference(shown: &str, printed: &str, exact: &Exact) -> Option<String> {
    let (shown, mut rest): (Vec<&str>, Vec<&str>) =
        (shown.trim_end().lines().collect(), printed.trim_end().lines().collect());
    let mut heads: Vec<usize> = Vec::new();
    let mut agree = |a: &str, b: &str| match exact {
        Exact::Text => a.trim_end() == b.trim_end(),
        Exact::Numbers { but } => {
            let (a, b) = (columns(a), columns(b));
            if !but.is_empty() && but.iter().all(|head| a.contains(head)) {
                heads = (0..a.len()).filter(|i| but.contains(&a[*i])).collect();
            }
            let same = |(i, (x, y)): (usize, (&String, &String))| heads.contains(&i) || near(x, y);
            a.len() == b.len() && a.iter().zip(&b).enumerate().all(same)
        }
    };
    let mut skip = false;
    for line in shown {
        if line.trim() == "…" {
            skip = true;
            continue;
        }
        let found = match rest.first() {
            Some(first) if !skip => agree(line, first).then_some(0),
            _ => rest.iter().position(|candidate| agree(line, candidate)),
        };
        match found {
            Some(n) => rest.drain(..=n),
            None => {
                return Some(format!(
                    "the page shows\n    {line}\n  where there is\n    {}",
                    rest.first().unwrap_or(&"nothing")
                ));
            }
        };
        skip = false;
    }
    (!skip && !rest.is_empty()).then(|| format!("the page leaves out\n    {}", rest[0]))
}

#[test]
fn text_numbers_and_gaps() {
    let text = |a, b| difference(a, b, &Exact::Text).is_none();
    assert!(text("a\nb", "a\nb\n") && !text("a", "b") && !text("a", "a\nb") && !text("a\nb", "a"));
    assert!(text("a\n…", "a\nb\nc") && text("…\nc", "a\nb\nc") && text("a\n…\nc", "a\nc"));
    assert!(!text("a\n…\nd", "a\nb\nc") && !text("…\nb", "a\nb\nc"));
    let exact = Exact::Numbers { but: vec!["ms".into()] };
    let measured = |a, b| difference(a, b, &exact).is_none();
    let table = "plan  ppl    ms  x\nseq   10.356  7.0  1\n";
    assert!(measured(table, "plan  ppl ms x\nseq 10.355 123.0 1"));
    assert!(!measured(table, "plan  ppl ms x\nseq 11.355 7.0 1"));
    assert!(!measured(table, "plan  ppl ms x\nother 10.356 7.0 1"));
    assert!(measured("3 plans in 7.0 s", "3 plans in 9 s") && !measured("in 7 plans", "in 9 plans"));
    assert!(measured("a +0.25 %", "a  +0.26 %") && !measured("a +0.25 %", "a +1.25 %"));
}
