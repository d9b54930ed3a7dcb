//! Draws a trace of `Builder::timeline` as a picture, for the documentation: workers are rows, tasks
//! are bars in the colour of their outcome.
//! ```text
//! cargo run --example timeline -- trace.json
//! cargo bench --bench draw_timeline -- trace.json docs/timeline.svg
//! ```

use anyhow::Context;
use serde_json::Value;
use std::fmt::Write;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 100.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 44.0;
const ROW: f64 = 34.0;
const BAR: f64 = 24.0;
/// The height of the plot of what waits, and the space above it.
const QUEUE: f64 = 46.0;
const GAP: f64 = 26.0;
const INK: &str = "#222";
const GRID: &str = "#e4e4e4";
const START: &str = "#b9b9b9";
const DEATH: &str = "#111";

/// The outcomes that are told apart, with their colours; what is left is the last.
const OUTCOMES: [(&str, &str); 7] = [
    ("succeeded", "#7fb77e"),
    ("worker_died", "#c0392b"),
    ("timed_out", "#e0913a"),
    ("failed", "#b07cc6"),
    ("panicked", "#d3679d"),
    ("cancelled", "#8d99a6"),
    ("other", "#34618f"),
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let [trace, picture] = &args[..] else {
        println!("usage: cargo bench --bench draw_timeline -- TRACE.json PICTURE.svg");
        return Ok(());
    };
    let text = std::fs::read(trace).with_context(|| trace.clone())?;
    let events: Vec<Value> = serde_json::from_slice(&text).context("the trace is not complete")?;
    std::fs::write(picture, Picture::of(&events).draw()).with_context(|| picture.clone())
}

/// What a picture shows, times in milliseconds.
struct Picture<'a> {
    events: &'a [Value],
    workers: Vec<u64>,
    end: f64,
    body: String,
}

impl<'a> Picture<'a> {
    fn of(events: &'a [Value]) -> Picture<'a> {
        let mut starts: Vec<_> = events.iter().filter(|event| event["cat"] == "worker").collect();
        starts.sort_by(|a, b| at(a).total_cmp(&at(b)));
        let end = events.iter().map(|event| at(event) + took(event)).fold(0.0, f64::max);
        Picture { events, workers: starts.into_iter().map(track).collect(), end, body: String::new() }
    }

    fn draw(mut self) -> String {
        let queue_top = TOP + ROW * self.workers.len() as f64 + GAP;
        let bottom = queue_top + QUEUE;
        self.text(
            (16.0, 24.0),
            "start",
            15,
            "what the workers of a pool did: tasks in the colour of their outcome, over milliseconds",
        );
        self.grid(bottom);
        for (row, worker) in self.workers.clone().into_iter().enumerate() {
            let middle = TOP + ROW * (row as f64 + 0.5);
            self.text((LEFT - 10.0, middle + 4.0), "end", 12, &format!("worker {worker}"));
            self.draw_worker(worker, middle);
        }
        self.text((LEFT - 10.0, queue_top + QUEUE / 2.0 + 4.0), "end", 12, "tasks that wait");
        self.draw_queue(bottom);
        self.legend(bottom + 46.0);
        let height = bottom + 64.0;
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" "#,
                r#"font-family="sans-serif" fill="{2}">{3}<rect width="100%" height="100%" fill="white"/>{3}{4}</svg>{3}"#,
            ),
            WIDTH, height, INK, "\n", self.body
        )
    }

    fn grid(&mut self, bottom: f64) {
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
        let step = step.into_iter().find(|step| self.end / step <= 12.0).unwrap_or(self.end / 10.0);
        for tick in 0..=(self.end / step) as u32 {
            let time = f64::from(tick) * step;
            let x = self.x(time);
            self.push(&format!(r#"<path d="M{x:.1},{TOP} V{bottom}" stroke="{GRID}"/>"#));
            self.text((x, bottom + 16.0), "middle", 11, &format!("{time}"));
        }
    }

    fn draw_worker(&mut self, worker: u64, middle: f64) {
        let y = middle - BAR / 2.0;
        for slice in self.events.iter().filter(|event| event["ph"] == "X" && track(event) == worker) {
            let outcome = slice["args"]["outcome"].as_str();
            let (left, right) = (self.x(at(slice)), self.x(at(slice) + took(slice)));
            let width = (right - left - 1.0).max(1.0);
            let colour = outcome.map_or(START, colour);
            self.push(&format!(
                r#"<rect x="{left:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" fill="{colour}"/>"#
            ));
            let name = slice["name"].as_str().unwrap_or_default();
            // Letters are some six points wide.
            if outcome.is_some() && name.len() as f64 * 6.0 < width {
                self.text((left + width / 2.0, middle + 4.0), "middle", 11, name);
            }
        }
        for end in self.events.iter().filter(|event| event["args"]["died"] == true && track(event) == worker)
        {
            let x = self.x(at(end));
            let cross = format!("M{:.1},{:.1} l10,10 m0,-10 l-10,10", x - 5.0, middle - 5.0);
            self.push(&format!(r#"<path d="{cross}" stroke="{DEATH}" stroke-width="2.5"/>"#));
            let told = end["name"].as_str().unwrap_or_default();
            self.text((x + 10.0, middle + 4.0), "start", 11, told);
        }
    }

    /// How many tasks waited, as steps.
    fn draw_queue(&mut self, bottom: f64) {
        let waits: Vec<(f64, f64)> = self
            .events
            .iter()
            .filter(|event| event["ph"] == "C" && event["name"] == "tasks")
            .map(|event| (at(event), event["args"]["queued"].as_f64().unwrap_or(0.0)))
            .collect();
        let most = waits.iter().map(|(_, count)| *count).fold(1.0, f64::max);
        let mut path = format!("M{LEFT},{bottom}");
        for (time, count) in &waits {
            let _ = write!(path, " H{:.1} V{:.1}", self.x(*time), bottom - QUEUE * count / most);
        }
        let _ = write!(path, " H{:.1} V{bottom} Z", self.x(self.end));
        self.push(&format!(r##"<path d="{path}" fill="#34618f" fill-opacity="0.35"/>"##));
        self.text((LEFT + 4.0, bottom - QUEUE - 5.0), "start", 11, &format!("up to {most}"));
    }

    fn legend(&mut self, y: f64) {
        let shown = |name: &str| self.events.iter().any(|event| event["args"]["outcome"] == name);
        let used = OUTCOMES.into_iter().filter(|(name, _)| shown(name));
        let entries: Vec<_> = [("start of a worker", START)].into_iter().chain(used).collect();
        let mut x = LEFT;
        for (name, colour) in entries {
            self.push(&format!(
                r#"<rect x="{x:.1}" y="{:.1}" width="12" height="12" fill="{colour}"/>"#,
                y - 10.0
            ));
            self.text((x + 17.0, y), "start", 12, name);
            x += 34.0 + name.len() as f64 * 6.6;
        }
        self.push(&format!(
            r#"<path d="M{x:.1},{:.1} l10,10 m0,-10 l-10,10" stroke="{DEATH}" stroke-width="2.5"/>"#,
            y - 9.0
        ));
        self.text((x + 16.0, y), "start", 12, "death of a worker");
    }

    fn x(&self, time: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * time / self.end.max(0.001)
    }

    /// With a rim of white, to be read where it crosses a line.
    fn text(&mut self, (x, y): (f64, f64), anchor: &str, size: u32, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let rim = r##"stroke="white" stroke-opacity="0.7" stroke-width="2" paint-order="stroke""##;
        self.push(&format!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" {rim}>{text}</text>"#
        ));
    }

    fn push(&mut self, element: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "{element}");
    }
}

fn at(event: &Value) -> f64 {
    event["ts"].as_f64().unwrap_or(0.0) / 1000.0
}

fn took(event: &Value) -> f64 {
    event["dur"].as_f64().unwrap_or(0.0) / 1000.0
}

fn track(event: &Value) -> u64 {
    event["tid"].as_u64().unwrap_or(0)
}

fn colour(outcome: &str) -> &'static str {
    let known = OUTCOMES.iter().find(|(name, _)| *name == outcome);
    known.unwrap_or(&OUTCOMES[OUTCOMES.len() - 1]).1
}
