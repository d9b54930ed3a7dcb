//! The table: a block of rows for each metric, printed as soon as it is measured.

use super::contest::{Outcome, Row};
use std::io::{self, Write};

const NAME_WIDTH: usize = 44;
const FIGURE_WIDTH: usize = 12;

/// From how many processors on that others had.
const WORTH_TELLING: f64 = 0.1;

/// Prints the table to standard output.
#[derive(Debug)]
pub(crate) struct Report;

impl Report {
    /// The head of the table.
    pub(crate) fn open(&self, setting: &str) -> io::Result<()> {
        self.print(&format!(
            "{setting}\nratio: how many times as good the first row of a block is as this one\n\n{}",
            line("", ["median", "lowest", "highest", "ratio"])
        ))
    }

    /// A block of rows.
    pub(crate) fn add(&self, outcome: &Outcome) -> io::Result<()> {
        let mut text = format!("\n{} ({})", outcome.metric.title, outcome.metric.unit);
        if let Some(noise) = outcome.noise.filter(|noise| *noise >= WORTH_TELLING) {
            text += &format!("\n  (other programs had {noise:.2} CPUs meanwhile)");
        }
        for (index, row) in outcome.rows.iter().enumerate() {
            text += "\n";
            text += &describe(row, outcome.ratio(index));
        }
        self.print(&text)
    }

    /// Blocks of rows.
    pub(crate) fn add_all(&self, outcomes: &[Outcome]) -> io::Result<()> {
        outcomes.iter().try_for_each(|outcome| self.add(outcome))
    }

    /// A line of words.
    pub(crate) fn note(&self, text: &str) -> io::Result<()> {
        self.print(&format!("  ({text})"))
    }

    fn print(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}

fn describe(row: &Row, ratio: Option<f64>) -> String {
    let name = format!("  {}", row.name);
    if let Some(failure) = &row.failure {
        return format!("{name:NAME_WIDTH$} failed: {failure}");
    }
    let show = |figure: Option<f64>| figure.map(figure_text).unwrap_or_default();
    let figures = [row.median(), row.lowest(), row.highest()].map(show);
    let ratio = ratio.map(|ratio| format!("{}x", figure_text(ratio))).unwrap_or_default();
    line(&name, [&figures[0], &figures[1], &figures[2], &ratio])
}

fn line(name: &str, figures: [&str; 4]) -> String {
    let figures = figures.map(|figure| format!("{figure:>FIGURE_WIDTH$}")).concat();
    format!("{name:NAME_WIDTH$}{figures}").trim_end().to_string()
}

/// Three digits that count, or all before the point, in groups.
pub(crate) fn figure_text(figure: f64) -> String {
    let digits = match figure.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{figure:.digits$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}
