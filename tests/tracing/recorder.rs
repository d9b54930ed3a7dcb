//! A subscriber that keeps what it is told.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Event, Level, Metadata, Subscriber};

/// A value, with the type in which it was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    F64(f64),
    Bool(bool),
    Str(String),
    Debug(String),
    /// An error and its sources.
    Error(Vec<String>),
}

pub type Fields = Vec<(&'static str, Told)>;

#[derive(Clone, Debug)]
pub struct Seen {
    pub metadata: &'static Metadata<'static>,
    pub fields: Fields,
    /// The names of the spans around it, the outermost first.
    pub path: Vec<String>,
    /// It was made with a parent, or as a root, rather than wherever the thread happened to be.
    pub is_explicit: bool,
}

impl Seen {
    pub fn message(&self) -> &str {
        self.fields.iter().find(|(name, _)| *name == "message").map_or("", |(_, told)| match told {
            Told::Debug(text) | Told::Str(text) => text,
            other => panic!("a message that is {other:?}"),
        })
    }

    pub fn number(&self, name: &str) -> u64 {
        match self.fields.iter().find(|(known, _)| *known == name) {
            Some((_, Told::U64(number))) => *number,
            other => panic!("{name} is {other:?}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct SeenSpan {
    pub seen: Seen,
    pub follows: Vec<String>,
    handles: usize,
    parent: Option<u64>,
}

impl SeenSpan {
    pub fn is_closed(&self) -> bool {
        self.handles == 0
    }
}

#[derive(Default)]
struct Records {
    spans: Vec<SeenSpan>,
    events: Vec<Seen>,
    /// What was told, in words, in order.
    story: Vec<String>,
    within: HashMap<ThreadId, Vec<u64>>,
    mistakes: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Recorder {
    records: Arc<Mutex<Records>>,
    /// 5 is everything.
    reticence: Arc<AtomicU8>,
    panics: Arc<AtomicBool>,
}

impl Recorder {
    /// One that is this thread's, as long as the guard lives.
    pub fn set() -> (Recorder, DefaultGuard) {
        let recorder = Recorder::default();
        let guard = tracing::subscriber::set_default(recorder.clone());
        (recorder, guard)
    }

    pub fn hear_up_to(&self, level: u8) {
        self.reticence.store(5 - level, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    pub fn panic_from_now_on(&self) {
        self.panics.store(true, Ordering::Relaxed);
    }

    pub fn events(&self) -> Vec<Seen> {
        self.records().events.clone()
    }

    pub fn messages(&self) -> Vec<String> {
        self.records().events.iter().map(|event| event.message().to_owned()).collect()
    }

    pub fn span(&self, name: &str) -> SeenSpan {
        let records = self.records();
        let span = records.spans.iter().find(|span| span.seen.metadata.name() == name);
        span.unwrap_or_else(|| panic!("no span {name}: {:?}", records.story)).clone()
    }

    pub fn spans(&self) -> Vec<SeenSpan> {
        self.records().spans.clone()
    }

    pub fn story(&self) -> Vec<String> {
        self.records().story.clone()
    }

    /// Nothing was told of spans that there are not, and none is left open.
    pub fn expect_all_closed(&self) {
        let records = self.records();
        assert_eq!(records.mistakes, [""; 0]);
        let open: Vec<_> = records.spans.iter().filter(|span| !span.is_closed()).collect();
        assert!(open.is_empty(), "left open: {open:?}");
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn level(&self) -> LevelFilter {
        match 5 - self.reticence.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }

    fn meet(&self) {
        assert!(!self.panics.load(Ordering::Relaxed), "the subscriber panics");
    }
}

impl Records {
    fn span_mut(&mut self, id: u64) -> Option<&mut SeenSpan> {
        let span = self.spans.get_mut(id as usize - 1).filter(|span| !span.is_closed());
        if span.is_none() {
            self.mistakes.push(format!("there is no span {id}"));
        }
        self.spans.get_mut(id as usize - 1).filter(|span| !span.is_closed())
    }

    fn current(&self) -> Option<u64> {
        self.within.get(&std::thread::current().id())?.last().copied()
    }

    fn path(&mut self, parent: Option<u64>) -> Vec<String> {
        let mut path = Vec::new();
        let mut next = parent;
        while let Some(span) = next.and_then(|id| self.span_mut(id)) {
            path.insert(0, span.seen.metadata.name().to_owned());
            next = span.parent;
        }
        path
    }
}

impl Subscriber for Recorder {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level())
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level() && metadata.target() != "unwanted"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.meet();
        let mut fields = Visitor::default();
        span.record(&mut fields);
        let mut records = self.records();
        let parent = match span.parent() {
            Some(parent) => Some(parent.into_u64()),
            None if span.is_contextual() => records.current(),
            None => None,
        };
        if let Some(parent) = parent.and_then(|id| records.span_mut(id)) {
            parent.handles += 1;
        }
        let path = records.path(parent);
        let metadata = span.metadata();
        let seen = Seen { metadata, fields: fields.0, path, is_explicit: !span.is_contextual() };
        records.story.push(format!("open {}", metadata.name()));
        records.spans.push(SeenSpan { seen, follows: Vec::new(), handles: 1, parent });
        Id::from_u64(records.spans.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut fields = Visitor::default();
        values.record(&mut fields);
        if let Some(span) = self.records().span_mut(span.into_u64()) {
            span.seen.fields.extend(fields.0);
        }
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        let mut records = self.records();
        let followed = records.span_mut(follows.into_u64()).map(|span| span.seen.metadata.name().to_owned());
        if let Some(span) = records.span_mut(span.into_u64()) {
            span.follows.extend(followed);
        }
    }

    fn event(&self, event: &Event<'_>) {
        self.meet();
        let mut fields = Visitor::default();
        event.record(&mut fields);
        let mut records = self.records();
        let parent = match event.parent() {
            Some(parent) => Some(parent.into_u64()),
            None if event.is_contextual() => records.current(),
            None => None,
        };
        let path = records.path(parent);
        let is_explicit = !event.is_contextual();
        let seen = Seen { metadata: event.metadata(), fields: fields.0, path, is_explicit };
        records.story.push(seen.message().to_owned());
        records.events.push(seen);
    }

    fn enter(&self, span: &Id) {
        self.records().within.entry(std::thread::current().id()).or_default().push(span.into_u64());
    }

    fn exit(&self, span: &Id) {
        let mut records = self.records();
        let within = records.within.entry(std::thread::current().id()).or_default();
        assert_eq!(within.pop(), Some(span.into_u64()));
    }

    fn clone_span(&self, span: &Id) -> Id {
        if let Some(span) = self.records().span_mut(span.into_u64()) {
            span.handles += 1;
        }
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        let mut next = Some(span.into_u64());
        let mut records = self.records();
        while let Some(span) = next.and_then(|id| records.span_mut(id)) {
            span.handles -= 1;
            if !span.is_closed() {
                return false;
            }
            let name = span.seen.metadata.name();
            next = span.parent;
            records.story.push(format!("close {name}"));
        }
        true
    }

    fn current_span(&self) -> tracing_core::span::Current {
        let records = self.records();
        match records.current() {
            None => tracing_core::span::Current::none(),
            Some(id) => {
                let metadata = records.spans[id as usize - 1].seen.metadata;
                tracing_core::span::Current::new(Id::from_u64(id), metadata)
            }
        }
    }
}

#[derive(Default)]
struct Visitor(Fields);

impl Visitor {
    fn add(&mut self, field: &Field, told: Told) {
        self.0.push((field.name(), told));
    }
}

impl Visit for Visitor {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Told::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Told::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Told::U64(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, Told::I128(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, Told::U128(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Told::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Told::Str(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut texts = Vec::new();
        let mut next = Some(value);
        while let Some(error) = next {
            texts.push(error.to_string());
            next = error.source();
        }
        self.add(field, Told::Error(texts));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, Told::Debug(format!("{value:?}")));
    }
}

/// Whether this process has anything to do with events of a level.
pub fn would_say(level: Level) -> bool {
    level <= LevelFilter::current()
}
