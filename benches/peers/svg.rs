//! Plots as SVG, on logarithmic axes: what is compared often lies decades apart.

use super::contest::{Metric, Outcome, Row};
use super::report::figure_text;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const TOP: f64 = 48.0;
const RIGHT: f64 = 90.0;
const INK: &str = "#222";
const GRID: &str = "#ddd";
const FIRST: &str = "#c0392b";
const OTHER: &str = "#34618f";

/// A drawing, as a text that grows.
#[derive(Debug)]
pub(crate) struct Plot {
    body: String,
    height: f64,
}

impl Plot {
    /// A row for each contestant: its median as a dot, from its lowest to its highest as a line.
    pub(crate) fn rows(outcome: &Outcome) -> Plot {
        const LEFT: f64 = 250.0;
        const STEP: f64 = 30.0;
        let rows: Vec<&Row> = outcome.rows.iter().filter(|row| row.failure.is_none()).collect();
        let bottom = TOP + STEP * rows.len() as f64;
        let mut plot = Plot::titled(&outcome.metric, bottom + 44.0);
        let extremes = rows.iter().flat_map(|row| [row.lowest(), row.highest()]).flatten();
        let axis = Axis::over(extremes, LEFT, WIDTH - RIGHT);
        plot.vertical_grid(&axis, TOP, bottom);
        for (index, row) in rows.iter().enumerate() {
            let y = TOP + STEP * (index as f64 + 0.5);
            plot.text((LEFT - 12.0, y + 4.0), "end", &row.name);
            plot.dot_and_range(&axis, y, row, if index == 0 { FIRST } else { OTHER });
        }
        plot
    }

    /// The medians of contestants that differ in one number, over that number.
    pub(crate) fn line(outcome: &Outcome, label: &str, places: &[f64]) -> Plot {
        const LEFT: f64 = 80.0;
        const BOTTOM: f64 = 360.0;
        let mut plot = Plot::titled(&outcome.metric, BOTTOM + 60.0);
        let across = Axis::over(places.iter().copied(), LEFT, WIDTH - RIGHT);
        let medians = outcome.rows.iter().map(Row::median);
        let points: Vec<_> = places.iter().zip(medians).filter_map(|(&x, y)| Some((x, y?))).collect();
        let up = Axis::over(points.iter().map(|point| point.1), BOTTOM, TOP);
        plot.vertical_grid(&across, TOP, BOTTOM);
        plot.horizontal_grid(&up, LEFT, WIDTH - RIGHT);
        plot.text(((LEFT + WIDTH - RIGHT) / 2.0, BOTTOM + 42.0), "middle", label);
        let points: Vec<_> = points.iter().map(|&(x, y)| ((across.at(x), up.at(y)), y)).collect();
        let path: String = points.iter().map(|((x, y), _)| format!("{x:.1},{y:.1} ")).collect();
        plot.push(&format!(r#"<polyline points="{path}" fill="none" stroke="{FIRST}" stroke-width="2"/>"#));
        for ((x, y), value) in points {
            plot.push(&format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{FIRST}"/>"#));
            plot.text((x, y - 10.0), "middle", &figure_text(value));
        }
        plot
    }

    /// The whole document.
    pub(crate) fn draw(&self) -> String {
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" "#,
                r#"font-family="sans-serif" font-size="12" fill="{2}">{3}"#,
                r#"<rect width="100%" height="100%" fill="white"/>{3}{4}</svg>{3}"#,
            ),
            WIDTH, self.height, INK, "\n", self.body
        )
    }

    fn titled(metric: &Metric, height: f64) -> Plot {
        let mut plot = Plot { body: String::new(), height };
        let better = if metric.more_is_better { "more" } else { "less" };
        let title = format!("{} ({}; {better} is better)", metric.title, metric.unit);
        plot.push(&format!(r#"<text x="16" y="26" font-size="15">{}</text>"#, escaped(&title)));
        plot
    }

    fn dot_and_range(&mut self, axis: &Axis, y: f64, row: &Row, colour: &str) {
        let (Some(low), Some(median), Some(high)) = (row.lowest(), row.median(), row.highest()) else {
            return;
        };
        self.rule((axis.at(low), y), (axis.at(high), y), colour, 3.0);
        let x = axis.at(median);
        self.push(&format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="5" fill="{colour}"/>"#));
        self.text((axis.at(high) + 10.0, y + 4.0), "start", &figure_text(median));
    }

    fn vertical_grid(&mut self, axis: &Axis, top: f64, bottom: f64) {
        for decade in axis.decades() {
            let x = axis.at(decade);
            self.rule((x, top), (x, bottom), GRID, 1.0);
            self.text((x, bottom + 18.0), "middle", &tick(decade));
        }
    }

    fn horizontal_grid(&mut self, axis: &Axis, left: f64, right: f64) {
        for decade in axis.decades() {
            let y = axis.at(decade);
            self.rule((left, y), (right, y), GRID, 1.0);
            self.text((left - 8.0, y + 4.0), "end", &tick(decade));
        }
    }

    fn rule(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(&format!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
        ));
    }

    /// With a rim of white, to be read where it crosses a line.
    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = escaped(text);
        let rim = r#"stroke="white" stroke-width="3" paint-order="stroke""#;
        self.push(&format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" {rim}>{text}</text>"#));
    }

    fn push(&mut self, element: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "{element}");
    }
}

/// Whole decades, from one place on the paper to another.
struct Axis {
    low: i32,
    high: i32,
    start: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Axis {
        let logs = values.filter(|value| *value > 0.0).map(f64::log10);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)));
        if low > high {
            return Axis { low: 0, high: 1, start, end };
        }
        let low = low.floor() as i32;
        Axis { low, high: (high.ceil() as i32).max(low + 1), start, end }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.start + part.clamp(0.0, 1.0) * (self.end - self.start)
    }

    fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        (self.low..=self.high).map(|power| 10f64.powi(power))
    }
}

/// A power of ten, in few letters.
fn tick(decade: f64) -> String {
    let suffixes = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match suffixes.iter().find(|(unit, _)| decade >= *unit) {
        Some((unit, suffix)) => format!("{}{suffix}", (decade / unit).round()),
        None if decade >= 1.0 => format!("{}", decade.round()),
        None => format!("{decade:.*}", (-decade.log10()).round() as usize),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
