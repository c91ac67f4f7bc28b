//! A report as one HTML file: what plans cost in quality and what they save, as a picture and as a table.
//! It loads nothing, and follows the reader's light or dark colours.

use std::fmt::Write;

/// A report.
pub struct Report {
    /// The heading.
    pub title: String,
    /// What was measured on what, in sentences.
    pub about: Vec<String>,
    /// What the horizontal axis shows.
    pub speed: String,
    /// The plans; the first is the sequential model.
    pub points: Vec<Point>,
    /// Columns of the table, behind the plan.
    pub columns: Vec<String>,
    /// How far each layer's state is off, if it was measured.
    pub heat: Option<Heat>,
}

/// A plan in the picture and in the table.
pub struct Point {
    /// Its text.
    pub label: String,
    /// How much faster than the sequential model, as a factor.
    pub speedup: f64,
    /// Change of perplexity, as a share: 0.01 is one percent more.
    pub change: f64,
    /// Whether no other plan is both faster and better.
    pub frontier: bool,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Its cells in the table.
    pub cells: Vec<String>,
}

/// Relative errors, a row for each plan and a column for each layer.
pub struct Heat {
    /// What is shown, in a sentence.
    pub caption: String,
    /// Name and errors of each row; none where a plan leaves the layer as it is.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

/// Text with what HTML gives a meaning to written out.
fn escape(text: &str) -> String {
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

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#667080;--line:#d8dde4;--point:#7a8594;--front:#0b6bcb;\
--good:#0a7d33;--hot:208,62,30}\
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e9ed;--dim:#98a2b0;--line:#343b45;--point:#8b96a5;\
--front:#62b0ff;--good:#4fce7c;--hot:255,128,88}}\
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;\
padding:0 1rem}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}p{color:var(--dim);margin:.3rem 0}\
svg{display:block;width:100%;height:auto}svg text{font:11px ui-monospace,monospace;fill:var(--fg);paint-order:stroke;stroke:var(--bg);\
stroke-width:3px}\
.scroll{overflow-x:auto}.grid,.leader{stroke:var(--line);fill:none}.zero{stroke:var(--dim);stroke-dasharray:4 3}\
svg .tick{fill:var(--dim)}.point{fill:var(--point)}.front{fill:var(--front)}.chosen{fill:var(--good)}\
.frontier{stroke:var(--front);stroke-width:1.5;fill:none}.cell{fill:rgb(var(--hot))}.frame{stroke:var(--line);fill:none}\
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}\
th:first-child,td:first-child{text-align:left;font-family:ui-monospace,monospace}th{color:var(--dim);font-weight:600}\
tr.front td:first-child{color:var(--front)}tr.chosen td:first-child{color:var(--good);font-weight:700}";

impl Report {
    /// The report as a document.
    pub fn render(&self) -> String {
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
            title = escape(&self.title)
        );
        for sentence in &self.about {
            let _ = writeln!(out, "<p>{}</p>", escape(sentence));
        }
        out += "<h2>Speed and quality</h2>\n";
        out += &plot(&self.speed, &self.points);
        out += &self.table();
        if let Some(heat) = self.heat.as_ref().filter(|h| !h.rows.is_empty()) {
            let _ = writeln!(out, "<h2>Where the error arises</h2>\n<p>{}</p>", escape(&heat.caption));
            out += &heat.render();
        }
        out + "</body>\n</html>\n"
    }

    fn table(&self) -> String {
        let mut out = String::from("<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">plan</th>");
        for column in &self.columns {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(column));
        }
        out += "</tr></thead>\n<tbody>\n";
        for p in &self.points {
            let _ = write!(out, "<tr{}><td>{}</td>", class(p.row_class()), escape(&p.label));
            for cell in &p.cells {
                let _ = write!(out, "<td>{}</td>", escape(cell));
            }
            out += "</tr>\n";
        }
        out + "</tbody>\n</table></div>\n"
    }
}

fn class(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" class=\"{name}\"") }
}

impl Point {
    fn row_class(&self) -> &'static str {
        match (self.chosen, self.frontier) {
            (true, _) => "chosen",
            (false, true) => "front",
            (false, false) => "",
        }
    }
}

/// The picture's size and the frame inside it, in its own units.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 430.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 46.0;
/// Width of a character and height of a line of the labels.
const CHARACTER: f64 = 6.7;
const LINE: f64 = 12.0;

/// Small changes and large ones on one axis: linear up to a fifth of a percent, logarithmic above.
fn squash(change: f64) -> f64 {
    (change / 0.002).asinh()
}

/// A box: left, top, right, bottom.
type Area = (f64, f64, f64, f64);

fn overlap(a: &Area, b: &Area) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

fn plot(speed: &str, points: &[Point]) -> String {
    let shown: Vec<&Point> =
        points.iter().filter(|p| p.speedup.is_finite() && p.change.is_finite()).collect();
    let range = |of: &dyn Fn(&Point) -> f64, pad: f64, least: f64| {
        let (low, high) = shown.iter().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(of(p)), h.max(of(p))));
        let pad = (pad * (high - low)).max(least);
        (low - pad, high + pad)
    };
    if shown.is_empty() {
        return "<p>No plan has finite figures.</p>\n".into();
    }
    let xs = range(&|p| p.speedup, 0.08, 0.02);
    let ys = range(&|p| squash(p.change), 0.08, 0.3);
    let x = |v: f64| LEFT + (v - xs.0) / (xs.1 - xs.0) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| TOP + (ys.1 - squash(v)) / (ys.1 - ys.0) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Change of perplexity against speed-up\">\n"
    );
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for value in ticks(xs.0, xs.1) {
        let at = x(value);
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom}\"/><text class=\"tick\" x=\"{at:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{}×</text>",
            bottom + 16.0,
            number(value)
        );
    }
    for percent in [-30.0, -10.0, -3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 1e4] {
        let value = percent / 100.0;
        if (ys.0..=ys.1).contains(&squash(value)) {
            let at = y(value);
            let kind = if percent == 0.0 { "grid zero" } else { "grid" };
            let sign = if percent > 0.0 { "+" } else { "" };
            let _ = writeln!(
                out,
                "<path class=\"{kind}\" d=\"M{LEFT} {at:.1}H{right}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{sign}{percent} %</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
    }
    let mut frontier: Vec<&&Point> = shown.iter().filter(|p| p.frontier).collect();
    frontier.sort_by(|a, b| a.speedup.total_cmp(&b.speedup));
    let path: Vec<String> =
        frontier.iter().map(|p| format!("{:.1} {:.1}", x(p.speedup), y(p.change))).collect();
    if path.len() > 1 {
        let _ = writeln!(out, "<path class=\"frontier\" d=\"M{}\"/>", path.join("L"));
    }
    let mut taken: Vec<Area> = shown
        .iter()
        .map(|p| (x(p.speedup), y(p.change)))
        .map(|(x, y)| (x - 5.0, y - 5.0, x + 5.0, y + 5.0))
        .collect();
    for p in &shown {
        let (px, py) = (x(p.speedup), y(p.change));
        let kind = match p.row_class() {
            "" => String::from("point"),
            other => format!("point {other}"),
        };
        let label = escape(&p.label);
        let cells = p.cells.iter().map(|c| escape(c)).collect::<Vec<_>>().join("  ");
        let _ = writeln!(
            out,
            "<circle class=\"{kind}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"><title>{label}  {cells}</title></circle>"
        );
        let area = place(px, py, p.label.chars().count() as f64 * CHARACTER, &taken);
        taken.push(area);
        if area.1 > py + 24.0 || area.3 < py - 24.0 {
            let (ax, ay) = (px.clamp(area.0, area.2), py.clamp(area.1, area.3));
            let _ = writeln!(out, "<path class=\"leader\" d=\"M{px:.1} {py:.1}L{ax:.1} {ay:.1}\"/>");
        }
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{label}</text>", area.0, area.3 - 3.0);
    }
    let _ = writeln!(
        out,
        "<text class=\"tick\" x=\"{right}\" y=\"{}\" text-anchor=\"end\">{} → faster</text>\
         <text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"start\">change of perplexity, ↓ better</text>\n</svg>",
        HEIGHT - 10.0,
        escape(speed),
        LEFT + 4.0,
        TOP + 10.0
    );
    out
}

/// Where a label of a width goes: beside its point where nothing lies, else as near as there is room.
fn place(x: f64, y: f64, width: f64, taken: &[Area]) -> Area {
    let area = |left: f64, middle: f64| {
        let left = left.clamp(LEFT, (WIDTH - width - 4.0).max(LEFT));
        (left, middle - LINE / 2.0, left + width, middle + LINE / 2.0)
    };
    let beside = [x + 8.0, x - 8.0 - width, x - width / 2.0];
    let shifts = (0..24).flat_map(|n| [f64::from(n) * LINE, f64::from(n) * -LINE]);
    let free = shifts
        .flat_map(|shift| beside.map(|left| area(left, y + shift)))
        .filter(|a| a.1 > TOP && a.3 < HEIGHT - BOTTOM)
        .find(|a| !taken.iter().any(|t| overlap(a, t)));
    free.unwrap_or_else(|| area(beside[0], y))
}

/// Round values between two, about six.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..first + 20).map(|n| n as f64 * step).take_while(|v| *v <= high).collect()
}

/// A number with as few digits as tell it.
pub fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

impl Heat {
    /// Hotter for larger errors; full heat at 100 %.
    fn render(&self) -> String {
        let columns = self.rows.iter().map(|(_, errors)| errors.len()).max().unwrap_or(0);
        let names = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let left = names as f64 * CHARACTER + 12.0;
        let cell = ((WIDTH - left) / columns.max(1) as f64).clamp(10.0, 44.0);
        let (width, height) = (left + cell * columns as f64 + 2.0, 20.0 * self.rows.len() as f64 + 22.0);
        let mut out = format!(
            "<svg viewBox=\"0 0 {:.0} {height:.0}\" role=\"img\" aria-label=\"Relative error of each layer's state\">\n",
            width.max(WIDTH)
        );
        for (i, (name, errors)) in self.rows.iter().enumerate() {
            let top = 20.0 * i as f64;
            let name = escape(name);
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                left - 6.0,
                top + 14.0
            );
            for (layer, error) in errors.iter().enumerate() {
                let at = left + cell * layer as f64;
                let place = format!("x=\"{at:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"18\"", cell - 2.0);
                let _ = writeln!(
                    out,
                    "{}",
                    match error {
                        // Four decades of error, from a hundredth of a percent on.
                        Some(e) => format!(
                            "<rect class=\"cell\" {place} fill-opacity=\"{:.3}\"><title>{name}, layer {layer}: \
                         {:.2} %</title></rect>",
                            ((e.max(1e-9).log10() + 4.0) / 4.0).clamp(0.0, 1.0),
                            100.0 * e
                        ),
                        None => format!("<rect class=\"frame\" {place}/>"),
                    }
                );
            }
        }
        for layer in 0..columns {
            let _ = writeln!(
                out,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{layer}</text>",
                left + cell * (layer as f64 + 0.5) - 1.0,
                height - 6.0
            );
        }
        out + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, speedup: f64, change: f64, frontier: bool) -> Point {
        let cells = vec![format!("{speedup}"), format!("{change}")];
        Point { label: label.into(), speedup, change, frontier, chosen: false, cells }
    }

    fn report(points: Vec<Point>) -> String {
        Report {
            title: "a <b> & \"c\".onnx".into(),
            about: vec!["<script>alert(1)</script>".into()],
            speed: "speed-up".into(),
            points,
            columns: vec!["speed-up".into(), "change".into()],
            heat: Some(Heat {
                caption: "errors".into(),
                rows: vec![("6xF1".into(), vec![None, Some(0.0), Some(0.02), Some(3.0)])],
            }),
        }
        .render()
    }

    #[test]
    fn what_is_quoted_cannot_become_markup() {
        let html = report(vec![point("sequential", 1.0, 0.0, true), point("<6xF1>", 1.4, 0.004, true)]);
        assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains("<6xF1"), "{html}");
        assert!(html.contains("&lt;6xF1&gt;</text>") && html.contains("&lt;6xF1&gt;</td>"));
    }

    #[test]
    fn nothing_is_loaded() {
        let html = report(vec![point("sequential", 1.0, 0.0, true)]);
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn labels_do_not_cover_one_another() {
        let mut taken: Vec<Area> = vec![];
        for _ in 0..20 {
            let area = place(400.0, 200.0, 60.0, &taken);
            assert!(!taken.iter().any(|t| overlap(t, &area)), "{area:?}");
            taken.push(area);
        }
    }

    #[test]
    fn figures_that_are_not_finite_are_left_out_of_the_picture() {
        let html =
            report(vec![point("sequential", 1.0, 0.0, true), point("12xF1", f64::NAN, f64::INFINITY, false)]);
        assert_eq!((html.matches("<circle").count(), html.matches("<tr").count()), (1, 3));
        assert!(!html.contains("cx=\"NaN") && !html.contains("cy=\"inf"));
        assert!(report(vec![]).contains("No plan has finite figures"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            ticks(0.93, 1.61).iter().map(|t| number(*t)).collect::<Vec<_>>(),
            ["1", "1.2", "1.4", "1.6"]
        );
        assert_eq!(number(0.25), "0.25");
    }
}
