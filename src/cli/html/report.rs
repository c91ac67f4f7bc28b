//! A report on plans: what they cost in quality and what they save, as a picture and as a table, and where the
//! error arises.

use std::fmt::Write;

use super::{Page, escape, search_bar};

/// A report.
pub struct Report {
    /// The command that made it.
    pub command: &'static str,
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
    /// Name and errors of each row; none where a plan leaves the layer as it is, not a number where there is no
    /// such state under the plan.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

impl Report {
    /// The report as a document.
    pub fn render(&self) -> String {
        let mut body = String::new();
        for sentence in &self.about {
            let _ = writeln!(body, "<p class=\"about\">{}</p>", escape(sentence));
        }
        body += &search_bar("Search plans", "");
        body += "<h2>Speed and quality</h2>\n";
        body += &WIDE.plot(&self.speed, &self.points);
        body += &NARROW.plot(&self.speed, &self.points);
        body += &self.table();
        if let Some(heat) = self.heat.as_ref().filter(|h| !h.rows.is_empty()) {
            let _ = writeln!(
                body,
                "<h2>Where the error arises</h2>\n<p class=\"about\">{}</p>",
                escape(&heat.caption)
            );
            body += &heat.render();
        }
        Page {
            title: &self.title,
            command: self.command,
            body,
            style: include_str!("report.css"),
            script: include_str!("report.js"),
            data: None,
        }
        .render()
    }

    fn table(&self) -> String {
        let mut out = String::from(
            "<div class=\"scroll\" role=\"region\" aria-label=\"Figures of each plan\" tabindex=\"0\"><table \
             class=\"plans\">\n<thead><tr><th scope=\"col\">#</th><th scope=\"col\">plan</th>",
        );
        for column in &self.columns {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(column));
        }
        out += "</tr></thead>\n<tbody>\n";
        for (i, p) in self.points.iter().enumerate() {
            // One stop of the tab key; arrow keys go on.
            let stop = if i == 0 { 0 } else { -1 };
            let kind = class(p.row_class());
            let _ = write!(
                out,
                "<tr{kind} data-plan=\"{i}\" tabindex=\"{stop}\"><td>{}</td><td>{}</td>",
                i + 1,
                escape(&p.label)
            );
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

/// A picture's size and the frame inside it, in its own units.
struct Frame {
    class: &'static str,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    /// Whether points are labelled with their plans, else with their numbers in the table.
    plans: bool,
}

/// For screens.
const WIDE: Frame = Frame {
    class: "wide",
    width: 960.0,
    height: 460.0,
    left: 64.0,
    right: 26.0,
    top: 18.0,
    bottom: 46.0,
    plans: true,
};
/// For telephones.
const NARROW: Frame = Frame {
    class: "narrow",
    width: 360.0,
    height: 330.0,
    left: 62.0,
    right: 12.0,
    top: 22.0,
    bottom: 44.0,
    plans: false,
};
/// Width of a character and height of a line of the labels.
const CHARACTER: f64 = 7.3;
const LINE: f64 = 13.0;

/// Small changes and large ones on one axis: linear up to a fifth of a percent, logarithmic above.
fn squash(change: f64) -> f64 {
    (change / 0.002).asinh()
}

/// A box: left, top, right, bottom.
type Area = (f64, f64, f64, f64);

fn overlap(a: &Area, b: &Area) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

impl Frame {
    fn plot(&self, speed: &str, points: &[Point]) -> String {
        let finite = |(_, p): &(usize, &Point)| p.speedup.is_finite() && p.change.is_finite();
        let numbered: Vec<(usize, &Point)> = points.iter().enumerate().filter(finite).collect();
        let shown: Vec<&Point> = numbered.iter().map(|(_, p)| *p).collect();
        let range = |of: &dyn Fn(&Point) -> f64, pad: f64, least: f64| {
            let (low, high) =
                shown.iter().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(of(p)), h.max(of(p))));
            let pad = (pad * (high - low)).max(least);
            (low - pad, high + pad)
        };
        if shown.is_empty() {
            return if self.plans { "<p>No plan has finite figures.</p>\n".into() } else { String::new() };
        }
        let xs = range(&|p| p.speedup, 0.08, 0.02);
        let ys = range(&|p| squash(p.change), 0.08, 0.3);
        let (left, top) = (self.left, self.top);
        let (bottom, right) = (self.height - self.bottom, self.width - self.right);
        let x = |v: f64| left + (v - xs.0) / (xs.1 - xs.0) * (right - left);
        let y = |v: f64| top + (ys.1 - squash(v)) / (ys.1 - ys.0) * (bottom - top);
        let mut out = format!(
            "<svg class=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"Change of perplexity against speed-up; \
         the table below has the figures\">\n",
            self.class, self.width, self.height
        );
        let mut levels: Vec<f64> = vec![];
        for value in ticks(xs.0, xs.1, if self.plans { 6.0 } else { 4.0 }) {
            let at = x(value);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{at:.1} {top}V{bottom}\"/><text class=\"tick\" x=\"{at:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{}×</text>",
                bottom + 16.0,
                number(value)
            );
        }
        for percent in [-30.0, -10.0, -3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 1e4] {
            let value = percent / 100.0;
            let at = y(value);
            let free =
                percent == 0.0 || levels.iter().all(|l| (l - at).abs() > LINE) && (y(0.0) - at).abs() > LINE;
            if free && (ys.0..=ys.1).contains(&squash(value)) {
                levels.push(at);
                let kind = if percent == 0.0 { "grid zero" } else { "grid" };
                let sign = if percent > 0.0 { "+" } else { "" };
                let _ = writeln!(
                    out,
                    "<path class=\"{kind}\" d=\"M{left} {at:.1}H{right}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{sign}{percent} %</text>",
                    left - 6.0,
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
            .map(|(x, y)| (x - 6.0, y - 6.0, x + 6.0, y + 6.0))
            .collect();
        // Labels keep off the lines too.
        taken.push((left, y(0.0) - 1.0, right, y(0.0) + 1.0));
        for pair in frontier.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|p| (x(p.speedup), y(p.change)));
            let steps = ((b.0 - a.0).hypot(b.1 - a.1) / 6.0).ceil().max(1.0);
            let along = (0..=steps as usize).map(|n| n as f64 / steps);
            let places = along.map(|t| (a.0 + t * (b.0 - a.0), a.1 + t * (b.1 - a.1)));
            taken.extend(places.map(|(x, y)| (x - 2.0, y - 2.0, x + 2.0, y + 2.0)));
        }
        for (number, p) in &numbered {
            let (px, py) = (x(p.speedup), y(p.change));
            let kind = match p.row_class() {
                "" => String::from("point"),
                other => format!("point {other}"),
            };
            let label = escape(&p.label);
            let cells = p.cells.iter().map(|c| escape(c)).collect::<Vec<_>>().join("  ");
            let _ = write!(
                out,
                "<g data-plan=\"{number}\"><circle class=\"{kind}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5\"><title>{label}  \
             {cells}</title></circle>"
            );
            let label = if self.plans { label } else { (number + 1).to_string() };
            let characters = if self.plans { p.label.chars().count() } else { label.len() };
            let area = self.place(px, py, characters as f64 * CHARACTER + 4.0, &taken);
            taken.push(area);
            if area.1 > py + 12.0 || area.3 < py - 12.0 {
                let (ax, ay) = (px.clamp(area.0, area.2), py.clamp(area.1, area.3));
                let _ = write!(out, "<path class=\"leader\" d=\"M{px:.1} {py:.1}L{ax:.1} {ay:.1}\"/>");
            }
            let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{label}</text></g>", area.0, area.3 - 3.0);
        }
        let _ = writeln!(
            out,
            "<text class=\"tick\" x=\"{right}\" y=\"{}\" text-anchor=\"end\">{} → faster</text>\
         <text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"start\">change of perplexity, ↓ better</text>\n</svg>",
            self.height - 8.0,
            escape(speed),
            if self.plans { left + 4.0 } else { 2.0 },
            if self.plans { top + 12.0 } else { 12.0 }
        );
        out
    }

    /// Where a label of a width goes: beside its point where nothing lies, else as near as there is room.
    fn place(&self, x: f64, y: f64, width: f64, taken: &[Area]) -> Area {
        let area = |left: f64, middle: f64| {
            let left = left.clamp(self.left, (self.width - width - 4.0).max(self.left));
            (left, middle - LINE / 2.0, left + width, middle + LINE / 2.0)
        };
        let beside = [x + 8.0, x - 8.0 - width, x - width / 2.0];
        let shifts = (0..24).flat_map(|n| [f64::from(n) * LINE, f64::from(n) * -LINE]);
        let free = shifts
            .flat_map(|shift| beside.map(|left| area(left, y + shift)))
            .filter(|a| a.1 > self.top && a.3 < self.height - self.bottom)
            .find(|a| !taken.iter().any(|t| overlap(a, t)));
        free.unwrap_or_else(|| area(beside[0], y))
    }
}

/// Round values between two, at most about `most`.
fn ticks(low: f64, high: f64, most: f64) -> Vec<f64> {
    let rough = (high - low) / most;
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
    /// A strip for each row, hotter for larger errors; full heat at 100 %.
    fn render(&self) -> String {
        let columns = self.rows.iter().map(|(_, errors)| errors.len()).max().unwrap_or(0);
        let mut out = format!("<div class=\"heat\" style=\"--layers:{columns}\">\n");
        for (name, errors) in &self.rows {
            let name = escape(name);
            let told: Vec<String> = errors
                .iter()
                .enumerate()
                .filter_map(|(layer, error)| Some((layer, (*error)?)).filter(|(_, e)| !e.is_nan()))
                .map(|(layer, error)| format!("layer {layer} {}", percent(error)))
                .collect();
            let told = if told.is_empty() { "no error".into() } else { told.join(", ") };
            let _ = write!(
                out,
                "<div class=\"row\"><span class=\"name\">{name}</span><div class=\"strip\" role=\"img\" \
                 aria-label=\"{name}: {told}\">"
            );
            for (layer, error) in errors.iter().enumerate() {
                let _ = match error {
                    Some(e) if e.is_nan() => write!(out, "<i class=\"inside\"></i>"),
                    Some(e) => write!(
                        out,
                        "<i style=\"--heat:{:.3}\" data-hint=\"{name}, layer {layer}: {}\"></i>",
                        warmth(*e),
                        percent(*e)
                    ),
                    None => write!(out, "<i></i>"),
                };
            }
            out += "</div></div>\n";
        }
        out += "<div class=\"row\" aria-hidden=\"true\"><span class=\"name\">layer</span><div class=\"strip ticks\">";
        let every = columns.div_ceil(12).max(1);
        for layer in (0..columns).step_by(every) {
            let _ = write!(
                out,
                "<b style=\"grid-column:{} / span {}\">{layer}</b>",
                layer + 1,
                every.min(columns - layer)
            );
        }
        out += "</div></div>\n</div>\n<p class=\"scale\" aria-hidden=\"true\">";
        for error in [0.0001, 0.001, 0.01, 0.1, 1.0] {
            let _ =
                write!(out, "<span><i style=\"--heat:{:.3}\"></i>{} %</span>", warmth(error), 100.0 * error);
        }
        out + "</p>\n"
    }
}

/// Four decades of error, from a hundredth of a percent on; what is below is not nothing.
fn warmth(error: f64) -> f64 {
    ((error.max(1e-9).log10() + 4.0) / 4.0).clamp(0.04, 1.0)
}

fn percent(error: f64) -> String {
    format!("{:.2} %", 100.0 * error)
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
            command: "eval",
            title: "a <b> & \"c\".onnx".into(),
            about: vec!["<script>alert(1)</script>".into()],
            speed: "speed-up".into(),
            points,
            columns: vec!["speed-up".into(), "change".into()],
            heat: Some(Heat {
                caption: "errors".into(),
                rows: vec![("6xF1".into(), vec![None, Some(0.0), Some(f64::NAN), Some(3.0)])],
            }),
        }
        .render()
    }

    #[test]
    fn what_is_quoted_cannot_become_markup() {
        let html = report(vec![point("sequential", 1.0, 0.0, true), point("<6xF1>", 1.4, 0.004, true)]);
        assert!(
            !html.contains("<script>alert") && !html.contains("a <b>") && !html.contains("<6xF1"),
            "{html}"
        );
        assert!(html.contains("&lt;6xF1&gt;</text>") && html.contains("&lt;6xF1&gt;</td>"));
    }

    #[test]
    fn heat_is_told_in_words_too() {
        let html = report(vec![point("sequential", 1.0, 0.0, true)]);
        assert!(html.contains("aria-label=\"6xF1: layer 1 0.00 %, layer 3 300.00 %\""), "{html}");
        assert_eq!(html.matches("class=\"inside\"").count(), 1);
    }

    #[test]
    fn labels_do_not_cover_one_another() {
        let mut taken: Vec<Area> = vec![];
        for _ in 0..20 {
            let area = WIDE.place(400.0, 200.0, 60.0, &taken);
            assert!(!taken.iter().any(|t| overlap(t, &area)), "{area:?}");
            taken.push(area);
        }
    }

    #[test]
    fn figures_that_are_not_finite_are_left_out_of_the_picture() {
        let html =
            report(vec![point("sequential", 1.0, 0.0, true), point("12xF1", f64::NAN, f64::INFINITY, false)]);
        assert_eq!((html.matches("<circle").count(), html.matches("<tr").count()), (2, 3));
        assert!(!html.contains("cx=\"NaN") && !html.contains("cy=\"inf"));
        assert!(report(vec![]).contains("No plan has finite figures"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            ticks(0.93, 1.61, 6.0).iter().map(|t| number(*t)).collect::<Vec<_>>(),
            ["1", "1.2", "1.4", "1.6"]
        );
        assert_eq!(number(0.25), "0.25");
    }
}
