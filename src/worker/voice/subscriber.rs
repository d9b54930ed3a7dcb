//! The subscriber of a worker.

use super::message::{Rest, name};
use super::{Kind, TASK, TRACING, close, lose_span, outermost, speak};
use crate::wire::voice::{LONGEST_FIELD, MOST_FIELDS, MOST_SPANS, Parent, Site, Value, What, cut};
use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tracing_core::callsite::DefaultCallsite;
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Current, Id, Record};
use tracing_core::subscriber::Interest;
use tracing_core::{Dispatch, Event, Kind as Sort, Level, LevelFilter, Metadata, Subscriber, dispatcher};

/// Marks the id of the span that a task was submitted in, which is the pool's: with the task's number
/// plus one.
const SUBMITTERS: u64 = 1 << 63;

static DISPATCH: OnceLock<Dispatch> = OnceLock::new();

/// Whose subscriber the worker has.
static OWNER: AtomicU8 = AtomicU8::new(UNTRIED);
const UNTRIED: u8 = 0;
const OURS: u8 = 1;
const THE_PROGRAMS: u8 = 2;

static NEXT_SPAN: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The spans that this thread is in, the innermost last.
    static STACK: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

static SUBMITTED_IN: DefaultCallsite = DefaultCallsite::new(&SUBMITTED_IN_METADATA);
static SUBMITTED_IN_METADATA: Metadata<'static> = tracing_core::metadata! {
    name: "task",
    target: "procession",
    level: Level::ERROR,
    fields: &[],
    callsite: &SUBMITTED_IN,
    kind: Sort::SPAN,
};

fn dispatch() -> &'static Dispatch {
    DISPATCH.get_or_init(|| Dispatch::new(Forwarder::default()))
}

/// Runs something with this subscriber as that of the thread.
pub(super) fn with<T>(run: impl FnOnce() -> T) -> T {
    dispatcher::with_default(dispatch(), run)
}

pub(super) fn install() {
    let is_wanted = TRACING.load(Ordering::Relaxed) > 0;
    if is_wanted && OWNER.load(Ordering::Relaxed) == UNTRIED {
        let is_ours = dispatcher::set_global_default(dispatch().clone()).is_ok();
        OWNER.store(if is_ours { OURS } else { THE_PROGRAMS }, Ordering::Relaxed);
    }
    if OWNER.load(Ordering::Relaxed) == THE_PROGRAMS {
        // There is nothing to do for this one.
        TRACING.store(0, Ordering::Relaxed);
    }
    if DISPATCH.get().is_some() {
        // Places in the program remember whether anybody listens.
        tracing_core::callsite::rebuild_interest_cache();
    }
}

/// What this thread is in.
pub(super) fn context() -> Parent {
    let innermost = STACK.try_with(|stack| stack.borrow().last().copied()).ok().flatten();
    match (innermost, DISPATCH.get().and_then(|dispatch| dispatch.downcast_ref::<Forwarder>())) {
        (Some(id), Some(forwarder)) => forwarder.told(id),
        _ => outermost(),
    }
}

#[derive(Default)]
struct Forwarder(Mutex<Spans>);

#[derive(Default)]
struct Spans {
    open: HashMap<u64, Span>,
    /// How many of them the pool knows of.
    told: usize,
}

struct Span {
    handles: usize,
    metadata: &'static Metadata<'static>,
    /// What the pool knows it as: itself, or what is around it.
    told: Parent,
}

impl Forwarder {
    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As what the pool knows a span.
    fn told(&self, id: u64) -> Parent {
        if id & SUBMITTERS != 0 {
            // Of another task, which is over, the pool does not know any more.
            let is_current = id & !SUBMITTERS == TASK.load(Ordering::Relaxed);
            return if is_current { Parent::Task } else { Parent::None };
        }
        self.spans().open.get(&id).map_or_else(outermost, |span| span.told)
    }

    fn parent(&self, is_root: bool, explicit: Option<&Id>) -> Parent {
        match explicit {
            Some(id) => self.told(id.into_u64()),
            None if is_root => Parent::None,
            None => context(),
        }
    }

    /// Tells the pool of a span, if it may have another one.
    fn tell(&self, id: u64, parent: Parent, span: &Attributes<'_>) -> bool {
        let is_one_more = {
            let mut spans = self.spans();
            let is_one_more = spans.told < MOST_SPANS;
            spans.told += usize::from(is_one_more);
            is_one_more
        };
        if !is_one_more {
            lose_span();
            return false;
        }
        let is_told = speak(Kind::Span, |rest| {
            span.record(&mut Visitor(rest));
            What::Span { id, parent, site: site_of(span.metadata()) }
        });
        self.spans().told -= usize::from(!is_told);
        is_told
    }

    /// What it is to be told as later, if the pool knows of it.
    fn is_told(&self, span: &Id) -> Option<u64> {
        match self.told(span.into_u64()) {
            Parent::Span(id) if id == span.into_u64() => Some(id),
            _ => None,
        }
    }
}

impl Subscriber for Forwarder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(level())
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = NEXT_SPAN.fetch_add(1, Ordering::Relaxed);
        let parent = self.parent(span.is_root(), span.parent());
        let told = if self.tell(id, parent, span) { Parent::Span(id) } else { parent };
        self.spans().open.insert(id, Span { handles: 1, metadata: span.metadata(), told });
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if let Some(id) = self.is_told(span) {
            speak(Kind::Span, |rest| {
                values.record(&mut Visitor(rest));
                What::Recorded { id }
            });
        }
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        if let Some(id) = self.is_told(span) {
            let from = self.told(follows.into_u64());
            speak(Kind::Span, |_| What::Follows { id, from });
        }
    }

    fn event(&self, event: &Event<'_>) {
        let parent = self.parent(event.is_root(), event.parent());
        speak(Kind::Event, |rest| {
            event.record(&mut Visitor(rest));
            What::Event { parent, site: site_of(event.metadata()) }
        });
    }

    fn enter(&self, span: &Id) {
        // On a thread that is about to end there is no stack any more.
        let _ = STACK.try_with(|stack| stack.borrow_mut().push(span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        let _ = STACK.try_with(|stack| {
            let mut stack = stack.borrow_mut();
            if let Some(at) = stack.iter().rposition(|id| *id == span.into_u64()) {
                stack.remove(at);
            }
        });
    }

    fn clone_span(&self, span: &Id) -> Id {
        if let Some(open) = self.spans().open.get_mut(&span.into_u64()) {
            open.handles += 1;
        }
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        let id = span.into_u64();
        let is_told = {
            let mut spans = self.spans();
            let Some(open) = spans.open.get_mut(&id) else { return false };
            open.handles -= 1;
            if open.handles > 0 {
                return false;
            }
            let is_told = open.told == Parent::Span(id);
            spans.open.remove(&id);
            spans.told -= usize::from(is_told);
            is_told
        };
        if is_told {
            close(id);
        }
        true
    }

    fn current_span(&self) -> Current {
        let innermost = STACK.try_with(|stack| stack.borrow().last().copied()).ok().flatten();
        if let Some(id) = innermost {
            let metadata = self.spans().open.get(&id).map(|span| span.metadata);
            return metadata.map_or_else(Current::none, |metadata| Current::new(Id::from_u64(id), metadata));
        }
        match TASK.load(Ordering::Relaxed) {
            0 => Current::none(),
            task => Current::new(Id::from_u64(SUBMITTERS | task), &SUBMITTED_IN_METADATA),
        }
    }
}

fn level() -> LevelFilter {
    match TRACING.load(Ordering::Relaxed) {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

fn site_of<'a>(metadata: &Metadata<'a>) -> Site<'a> {
    let level = match *metadata.level() {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    };
    Site {
        level,
        name: name(metadata.name()),
        target: name(metadata.target()),
        module: metadata.module_path().map(name),
        file: metadata.file().map(name),
        line: metadata.line(),
        fields: metadata
            .fields()
            .iter()
            .take(MOST_FIELDS)
            .map(|field| cut(field.name(), LONGEST_FIELD))
            .collect(),
    }
}

/// Writes values down.
struct Visitor<'a>(&'a mut Rest);

impl Visitor<'_> {
    fn add(&mut self, field: &Field, value: &Value<'_>) {
        if let Some(index) = index(field) {
            self.0.add(index, value);
        }
    }
}

/// Fields beyond the last one are left out.
fn index(field: &Field) -> Option<u8> {
    u8::try_from(field.index()).ok().filter(|index| usize::from(*index) < MOST_FIELDS)
}

impl Visit for Visitor<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, &Value::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &Value::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &Value::U64(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, &Value::I128(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, &Value::U128(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = cut(value, self.0.room());
        self.add(field, &Value::Text(text));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if let Some(index) = index(field) {
            self.0.add_error(index, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if let Some(index) = index(field) {
            self.0.add_shown(index, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static LONG: DefaultCallsite = DefaultCallsite::new(&LONG_METADATA);
    static LONG_METADATA: Metadata<'static> = tracing_core::metadata! {
        name: "event",
        target: "a",
        level: Level::INFO,
        fields: &["n", "a_name_that_is_much_longer_than_what_any_pool_would_keep_of_it_in_its_memory"],
        callsite: &LONG,
        kind: Sort::EVENT,
    };

    #[test]
    fn names_of_fields_are_cut_to_what_is_kept() {
        let lengths: Vec<_> = site_of(&LONG_METADATA).fields.iter().map(|name| name.len()).collect();
        assert_eq!(lengths, [1, LONGEST_FIELD]);
    }
}
