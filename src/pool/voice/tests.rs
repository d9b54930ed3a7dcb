//! What workers say that mean harm.

use super::*;
use crate::wire::voice::{Head, Parent, Site, Value};
use proptest::prelude::*;

fn message(what: What<'_>, values: &[(u8, Value<'_>)]) -> Vec<u8> {
    let head = Head { lost: Lost::default(), closed: Vec::new(), what };
    let mut message = postcard::to_stdvec(&head).unwrap();
    values.iter().for_each(|value| message.extend(postcard::to_stdvec(value).unwrap()));
    message
}

fn site<'a>(name: &'a str) -> Site<'a> {
    let fields = vec!["message", "n"];
    Site { level: 3, name, target: "hostile", module: None, file: None, line: None, fields }
}

fn event(parent: Parent, name: &str) -> Vec<u8> {
    message(What::Event { parent, site: site(name) }, &[(0, Value::Shown("said")), (1, Value::U64(1))])
}

/// A worker's end and the pool's.
struct Line {
    ear: Arc<Ear>,
    audience: Audience,
}

impl Line {
    fn new() -> Line {
        let line = Line::of(Forwarding::default());
        line.ear.may_trace.store(true, Ordering::Relaxed);
        line.ear.may_log.store(true, Ordering::Relaxed);
        line
    }

    /// Where the worker is told what to say as it is when it starts.
    fn of(forwarding: Forwarding) -> Line {
        let forwarding = forwarding.here();
        let line = Line { audience: Audience::of_here(&forwarding), ear: Ear::new(&forwarding) };
        line.ear.levels();
        line
    }

    /// Says something; whether it was admitted. Panics are not caught.
    fn say(&self, body: Vec<u8>) -> bool {
        let said = self.ear.hear(Some(1), Some(&self.audience), Body::Own(body.into()));
        let Ok(said) = said else { panic!("it is a violation") };
        said.map(Said::pass_on).is_some()
    }

    fn end_task(&self) {
        self.ear.task_end(1, Some(&self.audience)).into_iter().for_each(Said::pass_on);
    }
}

/// So much is refused that nobody could say it in time, and all of that is counted.
#[test]
fn a_flood_is_refused_and_counted() {
    const FLOOD: u64 = 50_000;
    let line = Line::new();
    let body = event(Parent::Task, "flood");
    let (mut admitted, mut refused) = (0, 0);
    for _ in 0..FLOOD {
        let said = line.ear.hear(Some(1), None, Body::Borrowed(&body)).ok().unwrap();
        admitted += u64::from(said.is_some());
        refused += said.map_or(0, |said| said.refused);
    }
    assert!(admitted >= BURST);
    assert!(line.ear.pause().is_some() || admitted == FLOOD);
    refused += line.ear.task_end(1, None).unwrap().refused;
    assert_eq!(admitted + refused, FLOOD);
    assert!(line.ear.task_end(1, None).is_none() && line.ear.pause().is_none());
}

#[test]
fn the_intake_lets_in_so_many_and_then_one_by_one() {
    let mut intake = Intake { messages: BURST, counted: 0, refused: 0 };
    assert!((0..BURST).all(|_| intake.admits(0)) && !intake.admits(NANOS_A_MESSAGE - 1));
    assert!(intake.admits(NANOS_A_MESSAGE) && !intake.admits(NANOS_A_MESSAGE));
    // Whatever the clock says.
    assert!(intake.admits(u64::MAX) && intake.admits(0));
    assert_eq!(intake.refused, 2);
}

#[test]
fn what_is_too_long_is_a_violation() {
    let line = Line::new();
    let of = |length| line.ear.hear(None, None, Body::Own(vec![0; length].into()));
    assert!(of(LONGEST).is_ok() && of(LONGEST + 1).is_err());
}

fn value<'a>() -> impl Strategy<Value = Value<'a>> {
    prop_oneof![
        any::<u64>().prop_map(Value::U64),
        any::<i128>().prop_map(Value::I128),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        Just(Value::Text("a text")),
        Just(Value::Shown("a value")),
        (0usize..20).prop_map(|causes| Value::Error(vec!["an error"; causes])),
    ]
}

fn what<'a>() -> impl Strategy<Value = What<'a>> {
    let parent = || prop_oneof![Just(Parent::None), Just(Parent::Task), (0u64..6).prop_map(Parent::Span)];
    let level = || prop_oneof![0u8..7, any::<u8>()];
    prop_oneof![
        Just(What::Nothing),
        (parent(), level())
            .prop_map(|(parent, level)| What::Event { parent, site: Site { level, ..site("event") } }),
        (0u64..6, parent(), level()).prop_map(|(id, parent, level)| What::Span {
            id,
            parent,
            site: Site { level, ..site("span") }
        }),
        (0u64..6).prop_map(|id| What::Recorded { id }),
        (0u64..6, parent()).prop_map(|(id, from)| What::Follows { id, from }),
        (parent(), level()).prop_map(|(parent, level)| What::Log {
            parent,
            level,
            target: "hostile",
            module: None,
            file: Some("file"),
            line: Some(1),
            message: "a record",
        }),
    ]
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let lost = (any::<u64>(), any::<u64>()).prop_map(|(events, spans)| Lost { events, spans });
    let values = prop::collection::vec((any::<u8>(), value()), 0..40);
    let closed = prop::collection::vec(0u64..6, 0..3);
    let told = (prop_oneof![Just(Lost::default()), lost], closed, what(), values);
    prop_oneof![
        8 => told.prop_map(|(lost, closed, what, values)| {
            let mut message = postcard::to_stdvec(&Head { lost, closed, what }).unwrap();
            values.iter().for_each(|value| message.extend(postcard::to_stdvec(value).unwrap()));
            message
        }),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

proptest! {
    #[test]
    fn whatever_is_said_is_told_or_not(messages in prop::collection::vec(any_message(), 0..60)) {
        #[cfg(feature = "tracing")]
        let (heard, _guard) = listening::Heard::set();
        let line = Line::new();
        messages.into_iter().for_each(|message| { line.say(message); });
        line.end_task();
        #[cfg(feature = "tracing")]
        prop_assert_eq!(heard.open(), 0);
    }
}

#[cfg(feature = "tracing")]
mod listening {
    use super::*;
    use std::collections::HashSet;
    use tracing::span::{Attributes, Id, Record};
    use tracing::subscriber::DefaultGuard;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry::{LookupSpan, Registry};

    /// What has reached a subscriber as they are in use: one that looks up every span.
    #[derive(Clone, Default)]
    pub(super) struct Heard(Arc<Mutex<Tally>>);

    #[derive(Default)]
    struct Tally {
        /// The names of the events, and of the spans that they were in.
        events: Vec<(&'static str, Option<&'static str>)>,
        sites: HashSet<usize>,
        open: usize,
        most: usize,
        records: usize,
        dropped: Vec<String>,
    }

    impl Heard {
        pub(super) fn set() -> (Heard, DefaultGuard) {
            let heard = Heard::default();
            let subscriber = Registry::default().with(heard.clone());
            (heard, tracing::subscriber::set_default(subscriber))
        }

        pub(super) fn open(&self) -> usize {
            lock(&self.0).open
        }
    }

    impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Heard {
        fn on_new_span(&self, span: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
            let mut tally = lock(&self.0);
            tally.sites.insert(std::ptr::from_ref(span.metadata()) as usize);
            tally.open += 1;
            tally.most = tally.most.max(tally.open);
        }

        fn on_record(&self, _: &Id, _: &Record<'_>, _: Context<'_, S>) {
            lock(&self.0).records += 1;
        }

        fn on_follows_from(&self, _: &Id, _: &Id, _: Context<'_, S>) {
            lock(&self.0).records += 1;
        }

        fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
            let metadata = event.metadata();
            let span = context.event_span(event).map(|span| span.name());
            let mut tally = lock(&self.0);
            if metadata.name() == "dropped" {
                tally.dropped.push(format!("{event:?}"));
                return;
            }
            tally.sites.insert(std::ptr::from_ref(metadata) as usize);
            tally.events.push((metadata.name(), span));
        }

        fn on_close(&self, _: Id, _: Context<'_, S>) {
            lock(&self.0).open -= 1;
        }
    }

    #[test]
    fn spans_that_there_are_not_are_nothing() {
        let (heard, _guard) = Heard::set();
        let request = tracing::info_span!("request");
        let line = request.in_scope(Line::new);
        for what in [
            What::Recorded { id: 9 },
            What::Follows { id: 9, from: Parent::Span(10) },
            What::Span { id: 1, parent: Parent::Span(9), site: site("span") },
            What::Follows { id: 1, from: Parent::Span(9) },
            What::Recorded { id: 1 },
        ] {
            assert!(
                line.say(message(what, &[(0, Value::U64(1)), (7, Value::U64(1)), (255, Value::Bool(true))]))
            );
        }
        let head = Head { lost: Lost::default(), closed: vec![7, u64::MAX], what: What::Nothing };
        assert!(line.say(postcard::to_stdvec(&head).unwrap()));
        assert!(line.say(event(Parent::Span(9), "event")));
        assert!(matches!(lock(&heard.0).events[..], [(_, Some("request"))]));
        assert_eq!(heard.open(), 2);
        line.end_task();
        assert_eq!(heard.open(), 1);
    }

    #[test]
    fn a_span_that_is_said_twice_is_closed_twice() {
        let (heard, _guard) = Heard::set();
        let line = Line::new();
        for _ in 0..3 {
            // Within itself, even.
            line.say(message(What::Span { id: 1, parent: Parent::Span(1), site: site("span") }, &[]));
        }
        line.end_task();
        assert_eq!(heard.open(), 0);
    }

    /// As the pool's own threads do, which have no subscriber.
    #[test]
    fn what_is_around_a_span_closes_after_it_on_any_thread() {
        let (heard, _guard) = Heard::set();
        let request = tracing::info_span!("request");
        let line = request.in_scope(Line::new);
        line.say(message(What::Span { id: 1, parent: Parent::Task, site: site("span") }, &[]));
        drop(request);
        assert_eq!(heard.open(), 2);
        std::thread::spawn(move || {
            line.end_task();
            line.audience.leave();
        })
        .join()
        .unwrap();
        assert_eq!(heard.open(), 0);
    }

    #[test]
    fn spans_are_bounded() {
        let (heard, _guard) = Heard::set();
        let line = Line::new();
        for id in 0..3000 {
            line.say(message(What::Span { id, parent: Parent::None, site: site("span") }, &[]));
        }
        assert_eq!(lock(&heard.0).most, 1024);
        assert_eq!(lock(&heard.0).dropped.len(), 3000 - 1024);
        line.ear.end().into_iter().for_each(Said::tell);
        assert_eq!(heard.open(), 0);
    }

    /// Each is kept by the one within it, though it is over, and closing the innermost closes one in another.
    #[test]
    fn spans_are_not_nested_without_end() {
        let (heard, _guard) = Heard::set();
        let line = Line::new();
        for _ in 0..8000 {
            line.say(message(What::Span { id: 1, parent: Parent::Span(1), site: site("span") }, &[]));
        }
        line.end_task();
        assert_eq!(heard.open(), 0);
        assert!(lock(&heard.0).most <= 256, "{} spans, one within another", lock(&heard.0).most);
    }

    /// Subscribers keep what is recorded of a span until that closes.
    #[test]
    fn what_is_recorded_of_a_span_is_bounded() {
        let (heard, _guard) = Heard::set();
        let line = Line::new();
        line.say(message(What::Span { id: 1, parent: Parent::None, site: site("span") }, &[]));
        let text = "x".repeat(10_000);
        for _ in 0..1000 {
            line.say(message(What::Recorded { id: 1 }, &[(1, Value::Text(&text))]));
            line.say(message(What::Recorded { id: 1 }, &[]));
            line.say(message(What::Follows { id: 1, from: Parent::Span(1) }, &[]));
        }
        let records = lock(&heard.0).records;
        assert!((6..2000).contains(&records), "{records}");
        line.end_task();
        assert_eq!(heard.open(), 0);
        assert!(!lock(&heard.0).dropped.is_empty());
    }

    #[test]
    fn what_is_open_closes_with_its_worker() {
        let (heard, _guard) = Heard::set();
        let line = Line::new();
        line.say(message(What::Span { id: 1, parent: Parent::None, site: site("span") }, &[]));
        assert_eq!(heard.open(), 1);
        drop(line);
        assert_eq!(heard.open(), 0);
    }

    #[test]
    fn sites_are_bounded_and_events_arrive_all_the_same() {
        let (heard, _guard) = Heard::set();
        let line = Line::new();
        for n in 0..3000 {
            assert!(line.say(event(Parent::None, &format!("event {n}"))));
        }
        let tally = lock(&heard.0);
        assert_eq!(tally.events.len(), 3000);
        assert!(tally.sites.len() <= 2048 + 1, "{}", tally.sites.len());
        assert_eq!(tally.events.last().unwrap().0, "event in a worker");
    }

    #[test]
    fn what_is_said_of_a_resolved_task_is_in_none_of_its_spans() {
        let (heard, _guard) = Heard::set();
        let line = tracing::info_span!("request").in_scope(Line::new);
        let span = |id, parent| message(What::Span { id, parent, site: site("span") }, &[]);
        line.say(span(1, Parent::Task));
        // Taken in before the task is resolved, and told later.
        let hear = |body: Vec<u8>| line.ear.hear(Some(1), Some(&line.audience), Body::Own(body.into()));
        let late = [span(2, Parent::Span(1)), span(3, Parent::Task), event(Parent::Task, "late")]
            .map(|body| hear(body).ok());
        let over = line.ear.task_over(1).unwrap();
        // As another thread may be about to.
        let child = line.ear.hear(Some(1), None, Body::Own(span(4, Parent::Span(1)).into())).ok().flatten();
        child.unwrap().pass_on();
        assert_eq!(heard.open(), 2);
        over.pass_on();
        line.audience.leave();
        assert_eq!(heard.open(), 0);
        late.into_iter().flatten().flatten().for_each(Said::pass_on);
        assert_eq!(heard.open(), 0);
        assert!(matches!(lock(&heard.0).events[..], [(_, None)]));
        line.end_task();
        assert!(lock(&line.ear.over).is_empty());
    }

    #[test]
    fn a_span_closes_with_the_task_of_its_parent() {
        let (heard, _guard) = Heard::set();
        let line = tracing::info_span!("request").in_scope(Line::new);
        line.say(message(What::Span { id: 1, parent: Parent::Task, site: site("span") }, &[]));
        for (task, audience) in [(Some(7), None), (None, None), (Some(8), Some(&line.audience))] {
            let child = What::Span { id: 2, parent: Parent::Span(1), site: site("child") };
            let said = line.ear.hear(task, audience, Body::Own(message(child, &[]).into()));
            said.ok().flatten().unwrap().pass_on();
        }
        assert_eq!(heard.open(), 3);
        line.end_task();
        line.audience.leave();
        assert_eq!(heard.open(), 0);
    }

    #[test]
    fn what_nobody_asked_for_is_not_told() {
        let (heard, _guard) = Heard::set();
        let mut off = Forwarding::default();
        off.set(false);
        let line = Line::of(off);
        let body = event(Parent::None, "forged");
        assert!((0..=2 * BURST).all(|_| !line.say(body.clone())));
        // It is not listened to all the time for that, and nothing is told of how much it was.
        assert!(line.ear.pause().is_some());
        line.end_task();
        line.ear.end().into_iter().for_each(Said::pass_on);
        // Of the other kind.
        let line = Line::new();
        line.ear.may_trace.store(false, Ordering::Relaxed);
        assert!(line.say(body));
        let tally = lock(&heard.0);
        assert!(tally.events.is_empty() && tally.dropped.is_empty(), "{:?}", tally.dropped);
    }

    #[test]
    fn what_is_no_message_is_counted() {
        let (heard, _guard) = Heard::set();
        let line = Line::new();
        assert!(line.say(vec![0xff; 100]));
        let tally = lock(&heard.0);
        assert!(tally.events.is_empty() && tally.dropped.len() == 1, "{:?}", tally.dropped);
        assert!(tally.dropped[0].contains("dropped: 1"), "{:?}", tally.dropped);
    }
}
