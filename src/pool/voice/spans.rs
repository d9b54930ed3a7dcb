//! Spans and events, as the program's subscriber is told of them.

use super::sites::{self, Site};
use super::{Ear, Said, lock};
use crate::wire::voice::{self, Lost, Parent, Site as Described, Value, What, read_values};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Weak;
use tracing_core::callsite::DefaultCallsite;
use tracing_core::field::{DebugValue, Value as Tell, debug};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::subscriber::NoSubscriber;
use tracing_core::{Dispatch, Event, Kind, Level, LevelFilter, Metadata, dispatcher};

/// The most spans of a worker that are open at a time: twice as many as one that means well has.
const MOST_SPANS: usize = 2 * voice::MOST_SPANS;

/// How many spans may be one within another. A subscriber keeps those that are over as long as there is one within
/// them, and may go down the stack for each when they close.
const DEEPEST: usize = 256;

/// How much may be said of a span once it is open: the bytes of fields, and so many for each time. Subscribers
/// keep it until the span closes.
const MOST_SAID: usize = 64 * 1024;
const COST: usize = 64;

static LOST: DefaultCallsite = DefaultCallsite::new(&LOST_METADATA);
static LOST_METADATA: Metadata<'static> = tracing_core::metadata! {
    name: "dropped",
    target: "procession",
    level: Level::WARN,
    fields: &["message", "dropped", "dropped_spans"],
    callsite: &LOST,
    kind: Kind::EVENT,
};

/// How much any subscriber of the process wants to hear of.
pub(super) fn level() -> u8 {
    // Where none was ever set, the level may be anything.
    match LevelFilter::current().into_level().filter(|_| dispatcher::has_been_set()) {
        None => 0,
        Some(Level::ERROR) => 1,
        Some(Level::WARN) => 2,
        Some(Level::INFO) => 3,
        Some(Level::DEBUG) => 4,
        Some(Level::TRACE) => 5,
    }
}

/// Who hears what belongs to no task.
pub(super) type Outside = Dispatch;

/// The subscriber of this moment, if there is one.
pub(super) fn outside() -> Option<Outside> {
    if level() == 0 {
        return None;
    }
    let dispatch = dispatcher::get_default(Dispatch::clone);
    (!dispatch.is::<NoSubscriber>()).then_some(dispatch)
}

/// A subscriber, and one of its spans or none.
pub(super) struct Around {
    dispatch: Dispatch,
    span: Option<Id>,
}

impl Around {
    pub(super) fn of_here() -> Option<Around> {
        let dispatch = outside()?;
        let span = dispatch.current_span().id().map(|id| dispatch.clone_span(id));
        Some(Around { dispatch, span })
    }
}

impl Clone for Around {
    fn clone(&self) -> Around {
        let span = self.span.as_ref().map(|id| self.dispatch.clone_span(id));
        Around { dispatch: self.dispatch.clone(), span }
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        let Some(id) = self.span.take() else { return };
        // Handles of tasks are dropped in the pool's own tasks. A registry closes what is around the
        // span by way of the thread's subscriber.
        let close = || in_place(&self.dispatch, |dispatch| dispatch.try_close(id));
        let _ = catch_unwind(AssertUnwindSafe(close));
    }
}

/// The spans of a worker that are open, by the worker's numbers.
#[derive(Default)]
pub(super) struct Spans(HashMap<u64, Open>);

struct Open {
    /// The span, or what is around it if the subscriber does not want it.
    around: Around,
    /// Where it comes from; `None` if the subscriber does not want it.
    site: Option<&'static Site>,
    task: Option<u64>,
    /// How many spans of the worker there are around what is within it.
    depth: usize,
    /// How much more may be said of it.
    room: usize,
}

/// What something is in.
struct Where {
    around: Around,
    /// With which task a span there closes.
    task: Option<u64>,
    /// How many spans of the worker there are around it.
    depth: usize,
}

/// More is said of a span than may be.
struct TooMuch;

impl Ear {
    pub(super) fn close(&self, ids: &[u64]) {
        if ids.is_empty() {
            return;
        }
        // Dropped when the lock is let go, as that runs foreign code.
        let closed: Vec<Open> = {
            let mut spans = lock(&self.spans);
            ids.iter().filter_map(|id| spans.0.remove(id)).collect()
        };
        drop(closed);
    }

    /// Closes the spans that a task has left open. Or what it was submitted in would stay open too.
    pub(super) fn close_those_of(&self, task: Option<u64>) {
        let closed: Vec<Open> = {
            let mut spans = lock(&self.spans);
            spans.0.extract_if(|_, open| open.task == task).map(|(_, open)| open).collect()
        };
        drop(closed);
    }

    pub(super) fn close_all(&self) {
        let closed = std::mem::take(&mut *lock(&self.spans));
        drop(closed);
    }

    fn is_over(&self, task: Option<u64>) -> bool {
        task.is_some_and(|task| lock(&self.over).contains(&task))
    }

    /// Within a span that is open.
    fn within(&self, id: u64) -> Option<Where> {
        // Under the lock, as it may be closed when its task is resolved. Cloning a handle is all that runs
        // here.
        let spans = lock(&self.spans);
        let open = spans.0.get(&id)?;
        Some(Where { around: open.around.clone(), task: open.task, depth: open.depth })
    }

    /// A span that is open, and that the subscriber wants, of which so many bytes more are to be said.
    fn more_of(&self, id: u64, bytes: usize) -> Option<Result<(Around, &'static Site), TooMuch>> {
        let mut spans = lock(&self.spans);
        let open = spans.0.get_mut(&id)?;
        let site = open.site?;
        let left = open.room.checked_sub(bytes.saturating_add(COST));
        open.room = left.unwrap_or(0);
        Some(left.map(|_| (open.around.clone(), site)).ok_or(TooMuch))
    }
}

impl Said {
    /// What something is in that a worker has said.
    pub(super) fn around(&self, parent: Parent) -> Around {
        self.place(parent).around
    }

    /// What something is in. A span there closes with the task of its parent, whichever the worker names.
    fn place(&self, parent: Parent) -> Where {
        let outermost = |around| Where { around, task: self.task, depth: 0 };
        match parent {
            Parent::Span(id) => self.ear.within(id).unwrap_or_else(|| outermost(self.around_task())),
            Parent::Task => outermost(self.around_task()),
            Parent::None => {
                let dispatch = self.around_task().dispatch.clone();
                outermost(Around { dispatch, span: None })
            }
        }
    }

    fn around_task(&self) -> Around {
        if let Some(around) = self.around.as_ref().and_then(Weak::upgrade) {
            return Around::clone(&around);
        }
        let dispatch = self.ear.forwarding.outside.clone();
        Around { dispatch: dispatch.unwrap_or_else(|| dispatcher::get_default(Dispatch::clone)), span: None }
    }

    pub(super) fn tell_spans(&self, what: What<'_>, rest: &[u8]) {
        match what {
            What::Event { parent, site } => self.tell_event(&self.around(parent), &site, rest),
            What::Span { id, parent, site } => self.open(id, parent, &site, rest),
            What::Recorded { id } => {
                let Some(more) = self.ear.more_of(id, rest.len()) else { return };
                let Ok((around, site)) = more else { return self.tell_lost_span() };
                let (Some(span), false) = (&around.span, site.is_generic) else { return };
                with_values(site, None, rest, |values| {
                    in_place(&around.dispatch, |dispatch| dispatch.record(span, &Record::new(values)));
                });
            }
            What::Follows { id, from } => {
                let Some(more) = self.ear.more_of(id, 0) else { return };
                let (Ok((around, _)), from) = (more, self.around(from)) else { return self.tell_lost_span() };
                if let (Some(span), Some(from)) = (&around.span, &from.span) {
                    in_place(&around.dispatch, |dispatch| dispatch.record_follows_from(span, from));
                }
            }
            What::Log { .. } | What::Nothing => {}
        }
    }

    fn tell_event(&self, around: &Around, described: &Described<'_>, rest: &[u8]) {
        let site = sites::find(described, false);
        with_values(site, Some(described), rest, |values| {
            let event = Event::new_child_of(around.span.clone(), site.of(), values);
            in_place(&around.dispatch, |dispatch| {
                if wants(dispatch, site.of()) {
                    dispatch.event(&event);
                }
            });
        });
    }

    fn open(&self, id: u64, parent: Parent, described: &Described<'_>, rest: &[u8]) {
        let Where { around, task, depth } = self.place(parent);
        if depth >= DEEPEST || lock(&self.ear.spans).0.len() >= MOST_SPANS {
            return self.tell_lost_span();
        }
        let site = sites::find(described, true);
        let span = with_values(site, Some(described), rest, |values| {
            let attributes = match &around.span {
                Some(parent) => Attributes::child_of(parent.clone(), site.of(), values),
                None => Attributes::new_root(site.of(), values),
            };
            in_place(&around.dispatch, |dispatch| {
                wants(dispatch, site.of()).then(|| dispatch.new_span(&attributes))
            })
        });
        let is_wanted = span.is_some();
        let around = match span {
            Some(span) => Around { dispatch: around.dispatch.clone(), span: Some(span) },
            None => around.clone(),
        };
        let open = Open {
            around,
            site: is_wanted.then_some(site),
            task,
            depth: depth + usize::from(is_wanted),
            room: MOST_SAID,
        };
        let dropped = {
            let mut spans = lock(&self.ear.spans);
            // When its task was resolved meanwhile, nobody would close it.
            if self.ear.is_over(task) { Some(open) } else { spans.0.insert(id, open) }
        };
        drop(dropped);
    }

    fn tell_lost_span(&self) {
        self.tell_lost_as_event(Lost { events: 0, spans: 1 });
    }

    /// False if there is nobody to be told.
    pub(super) fn tell_lost_as_event(&self, lost: Lost) -> bool {
        let around = self.around_task();
        if around.dispatch.is::<NoSubscriber>() {
            return false;
        }
        // Registered once; what it says of interest is of another subscriber, perhaps.
        LOST.interest();
        let fields = LOST_METADATA.fields();
        let names: Vec<_> = fields.iter().collect();
        let [message, events, spans] = &names[..] else { return false };
        let text = "what a worker logs came too fast, and some of it was dropped";
        let values: [(_, Option<&dyn Tell>); 3] =
            [(message, Some(&text)), (events, Some(&lost.events)), (spans, Some(&lost.spans))];
        let values = fields.value_set(&values);
        let event = Event::new_child_of(around.span.clone(), &LOST_METADATA, &values);
        in_place(&around.dispatch, |dispatch| {
            if wants(dispatch, &LOST_METADATA) {
                dispatch.event(&event);
            }
        });
        true
    }
}

impl Around {
    /// Runs something as if it were done in the span.
    #[cfg_attr(not(feature = "log"), allow(dead_code))]
    pub(super) fn within(&self, run: impl FnOnce()) {
        struct Exit<'a>(&'a Dispatch, &'a Id);
        impl Drop for Exit<'_> {
            fn drop(&mut self) {
                self.0.exit(self.1);
            }
        }
        dispatcher::with_default(&self.dispatch, || {
            let _exit = self.span.as_ref().map(|span| {
                self.dispatch.enter(span);
                Exit(&self.dispatch, span)
            });
            run();
        });
    }
}

fn wants(dispatch: &Dispatch, metadata: &'static Metadata<'static>) -> bool {
    *metadata.level() <= LevelFilter::current() && dispatch.enabled(metadata)
}

/// Runs something with a subscriber as the one of this thread, as it is where spans and events are made.
fn in_place<T>(dispatch: &Dispatch, run: impl FnOnce(&Dispatch) -> T) -> T {
    dispatcher::with_default(dispatch, || run(dispatch))
}

/// A value, in the form in which subscribers want it.
enum Told<'a> {
    Plain(Value<'a>),
    Shown(DebugValue<Plain<'a>>),
    Error(Box<dyn Error + 'static>),
}

/// What shows itself as it is.
struct Plain<'a>(&'a str);

impl fmt::Debug for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An error in a worker.
struct ToldError {
    text: String,
    source: Option<Box<ToldError>>,
}

impl fmt::Display for ToldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ToldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for ToldError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl<'a> Told<'a> {
    fn of(value: Value<'a>) -> Told<'a> {
        match value {
            Value::Shown(text) => Told::Shown(debug(Plain(text))),
            Value::Error(texts) => {
                let link = |source, text: &&str| {
                    Some(ToldError { text: (*text).into(), source: Option::map(source, Box::new) })
                };
                match texts.iter().rev().fold(None, link) {
                    Some(error) => Told::Error(Box::new(error)),
                    None => Told::Plain(Value::Text("")),
                }
            }
            value => Told::Plain(value),
        }
    }

    fn tell(&self) -> &dyn Tell {
        match self {
            Told::Shown(value) => value,
            Told::Error(error) => error,
            Told::Plain(value) => match value {
                Value::I64(value) => value,
                Value::U64(value) => value,
                Value::I128(value) => value,
                Value::U128(value) => value,
                Value::F64(value) => value,
                Value::Bool(value) => value,
                Value::Text(value) | Value::Shown(value) => value,
                Value::Error(_) => &"",
            },
        }
    }
}

/// Calls something with the values of a message. Where the site stands for many places, they are put
/// together to a text, with what is known of the place.
fn with_values<T>(
    site: &'static Site,
    described: Option<&Described<'_>>,
    rest: &[u8],
    run: impl FnOnce(&tracing_core::field::ValueSet<'_>) -> T,
) -> T {
    let values = read_values(rest);
    let Some(described) = described.filter(|_| site.is_generic) else {
        let told: Vec<_> = values.into_iter().map(|(index, value)| (index, Told::of(value))).collect();
        let values: Vec<_> = told.iter().map(|(index, value)| (*index, value.tell())).collect();
        return site.with_values(&values, run);
    };
    let (mut message, mut fields) = (String::new(), String::new());
    for (index, value) in values {
        let text = match &value {
            Value::Text(text) | Value::Shown(text) => (*text).to_string(),
            value => format!("{value:?}"),
        };
        match described.fields.get(usize::from(index)) {
            Some(&"message") => message = text,
            Some(name) => fields += &format!("{name}={text} "),
            None => {}
        }
    }
    let (name, target, file) = (described.name, described.target, described.file.unwrap_or_default());
    let (message, line, fields) = (debug(Plain(&message)), described.line.unwrap_or(0), fields.trim_end());
    site.with_values(&[(0, &message), (1, &name), (2, &target), (3, &file), (4, &line), (5, &fields)], run)
}
