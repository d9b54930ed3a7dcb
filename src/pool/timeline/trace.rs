//! Notes as trace events.
//!
//! All of a pool is one process of the trace: its own thread holds what concerns no worker, and each
//! worker is a thread by its process id. Times are microseconds since the pool was built.

use super::notes::{Note, Run};
use crate::pool::observe::{Cause, Ending, Levels};
use crate::pool::scheduler::Nanos;
use crate::pool::shared::nanos;
use crate::task::WorkerExit;
use std::collections::HashMap;
use std::fmt::{self, Arguments};
use std::io::Write as _;
use std::time::{Duration, SystemTime};

pub(super) struct Trace {
    /// Events that are not written yet, each with what separates it from the one before.
    pub(super) text: Vec<u8>,
    /// The process id of the program, for its track as well.
    program: u32,
    built: Nanos,
    /// When what is on each worker's track ends so far.
    ends: HashMap<u32, Nanos>,
    dropped: u64,
}

impl Trace {
    pub(super) fn new(pool: &str, program: u32, built: Nanos) -> Trace {
        let mut trace = Trace { text: Vec::new(), program, built, ends: HashMap::new(), dropped: 0 };
        trace.text.extend(b"[\n");
        let name = format!("procession: {pool}");
        trace.describe("process_name", program, format_args!(r#""name":{}"#, Quoted(&name)));
        trace.describe("thread_name", program, format_args!(r#""name":"pool""#));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let args = format_args!(r#""unix_time":{}.{:09}"#, now.as_secs(), now.subsec_nanos());
        trace.instant("pool built", program, built, args);
        trace
    }

    pub(super) fn add(&mut self, note: &Note) {
        match note {
            Note::Task(run) => self.add_run(run),
            Note::Ready { pid, wanted, age, is_restart, at } => {
                let name = format!("worker {pid}");
                self.describe("thread_name", *pid, format_args!(r#""name":{}"#, Quoted(&name)));
                let args = format_args!(r#""process_us":{},"restart":{is_restart}"#, micros(*age));
                self.slice(("start", "worker", None), *pid, (*wanted, *at), args);
                self.ends.insert(*pid, *at);
            }
            Note::StartFailed { reason, at } => {
                let args = format_args!(r#""reason":{}"#, Quoted(reason));
                self.instant("start failed", self.program, *at, args);
            }
            Note::Gone { exit, has_died, cause, at } => self.add_end(exit, *has_died, *cause, *at),
            Note::Levels(levels) => self.add_levels(levels),
        }
    }

    /// Notes how many events were left out so far, if that has changed.
    pub(super) fn tell_dropped(&mut self, dropped: u64, now: Nanos) {
        if dropped > self.dropped {
            self.dropped = dropped;
            self.counter("events left out", now, format_args!(r#""dropped":{dropped}"#));
        }
    }

    /// Closes the array.
    pub(super) fn finish(&mut self) {
        self.text.extend(b"\n]\n");
    }

    fn add_run(&mut self, run: &Run) {
        let name = run.name.as_deref().unwrap_or(run.label.function());
        let location = run.label.location();
        let (began, place) = match (run.pid, run.began) {
            (Some(pid), Some(began)) => (began, Some(pid)),
            _ => (run.ended, None),
        };
        let args = format_args!(
            concat!(
                r#""id":{},"attempt":{},"outcome":"{}","retried":{},"function":{},"submitted_at":"{}:{}:{}","#,
                r#""waited_us":{},"items":{},"bytes_in":{},"bytes_out":{}"#
            ),
            run.id,
            run.number,
            run.ending.name(),
            run.is_retried,
            Quoted(run.label.function()),
            Escaped(location.file()),
            location.line(),
            location.column(),
            Micros(began.saturating_sub(run.submitted)),
            run.items.max(1),
            run.bytes_in,
            run.bytes_out,
        );
        match place {
            Some(pid) => {
                // A worker may claim what it likes, but does one thing after another.
                let end = self.ends.entry(pid).or_default();
                let began = began.max(*end);
                let ended = run.ended.max(began);
                *end = ended;
                self.slice((name, "task", colour(run.ending)), pid, (began, ended), args);
            }
            None => self.instant(name, self.program, run.ended, args),
        }
    }

    fn add_end(&mut self, exit: &WorkerExit, has_died: bool, cause: Cause, at: Nanos) {
        let name = format!("{}: {}", if has_died { "worker died" } else { "worker ended" }, cause.name());
        let text = exit.to_string();
        let args = format_args!(
            r#""cause":"{}","died":{has_died},"exit":{},"max_rss":{},"cpu_us":{}"#,
            cause.name(),
            Quoted(&text),
            exit.max_rss(),
            micros(exit.cpu_time()),
        );
        self.instant(&name, exit.pid(), at, args);
        self.ends.remove(&exit.pid());
    }

    fn add_levels(&mut self, levels: &Levels) {
        let loads = levels.loads;
        let tasks = format_args!(r#""queued":{},"running":{}"#, loads.queued, loads.running);
        self.counter("tasks", levels.at, tasks);
        let workers = format_args!(
            r#""busy":{},"idle":{},"starting":{},"retiring":{}"#,
            loads.busy, loads.idle, loads.starting, loads.retiring
        );
        self.counter("workers", levels.at, workers);
    }

    fn slice(
        &mut self,
        (name, category, colour): (&str, &str, Option<&str>),
        track: u32,
        (began, ended): (Nanos, Nanos),
        args: Arguments<'_>,
    ) {
        let (at, took) = (self.time(began), Micros(ended.saturating_sub(began)));
        let colour = colour.map(|colour| format!(r#","cname":"{colour}""#)).unwrap_or_default();
        let rest = format_args!(r#""cat":"{category}","ts":{at},"dur":{took}{colour},"args":{{{args}}}"#);
        self.event('X', name, track, rest);
    }

    fn instant(&mut self, name: &str, track: u32, at: Nanos, args: Arguments<'_>) {
        let at = self.time(at);
        self.event('i', name, track, format_args!(r#""s":"t","ts":{at},"args":{{{args}}}"#));
    }

    fn counter(&mut self, name: &str, at: Nanos, args: Arguments<'_>) {
        let at = self.time(at);
        self.event('C', name, self.program, format_args!(r#""ts":{at},"args":{{{args}}}"#));
    }

    fn describe(&mut self, what: &str, track: u32, args: Arguments<'_>) {
        self.event('M', what, track, format_args!(r#""args":{{{args}}}"#));
    }

    fn event(&mut self, kind: char, name: &str, track: u32, rest: Arguments<'_>) {
        // What separates two events goes before the second, so that a file that ends here is good.
        if self.text.last().is_none_or(|last| *last == b'}') {
            self.text.extend(b",\n");
        }
        let (name, program) = (Quoted(name), self.program);
        // Writing to a vector does not fail.
        let _ = write!(self.text, r#"{{"ph":"{kind}","name":{name},"pid":{program},"tid":{track},{rest}}}"#);
    }

    fn time(&self, at: Nanos) -> Micros {
        Micros(at.saturating_sub(self.built))
    }
}

/// For `chrome://tracing`, which knows colours by the names of what they are for.
fn colour(ending: Ending) -> Option<&'static str> {
    match ending {
        Ending::Succeeded => None,
        Ending::Cancelled | Ending::ShutDown => Some("grey"),
        Ending::TimedOut => Some("bad"),
        _ => Some("terrible"),
    }
}

/// Nanoseconds, as microseconds.
struct Micros(Nanos);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

fn micros(duration: Duration) -> Micros {
    Micros(nanos(duration))
}

/// A string of JSON.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", Escaped(self.0))
    }
}

/// What is within the quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
            f.write_str(&rest[..at])?;
            match rest.as_bytes()[at] {
                quoted @ (b'"' | b'\\') => write!(f, "\\{}", char::from(quoted))?,
                control => write!(f, "\\u{control:04x}")?,
            }
            rest = &rest[at + 1..];
        }
        f.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    proptest! {
        #[test]
        fn strings_come_back_as_they_were(text in any::<String>()) {
            let read: String = serde_json::from_str(&Quoted(&text).to_string()).unwrap();
            prop_assert_eq!(read, text);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(Quoted("a\"b\\c\n\u{1}ä").to_string(), r#""a\"b\\c\u000a\u0001ä""#);
        assert_eq!(Micros(1_002_003).to_string(), "1002.003");
    }

    #[test]
    fn the_text_can_be_loaded_after_each_event() {
        let mut trace = Trace::new("a \"pool\"", 1, 1000);
        let mut file = Vec::new();
        for at in 0..5 {
            file.append(&mut trace.text);
            let closed = [&file[..], b"]"].concat();
            let events: Vec<Value> = serde_json::from_slice(&closed).unwrap();
            assert_eq!(events.len(), 3 + at);
            trace.tell_dropped(at as u64 + 1, 5000);
        }
        trace.finish();
        file.append(&mut trace.text);
        let events: Vec<Value> = serde_json::from_slice(&file).unwrap();
        assert_eq!(events[0]["args"]["name"], "procession: a \"pool\"");
        let last = events.last().unwrap();
        assert_eq!((&last["args"]["dropped"], &last["ts"]), (&Value::from(5), &Value::from(4.0)));
    }
}
