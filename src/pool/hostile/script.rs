//! What a hostile peer does, as data: one step after another, made by proptest.

use crate::task::{Fault, PanicReport, Progress};
use crate::wire::voice::{Head, Lost, Parent, Site, Value as Told, What};
use crate::wire::{PROTOCOL, Page, Place, Reply, build_identity};
use proptest::prelude::*;

/// What one peer does in its life.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// Whether it shakes hands as a worker should before it does the rest.
    pub(super) greets: bool,
    pub(super) steps: Vec<Step>,
    /// It does not end by itself, but goes on for a while until it is killed.
    pub(super) lingers: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Does one task as a worker should.
    Serve,
    /// Reads one request, and marks its slot as a worker would, or with anything.
    Take(Option<u64>),
    Bytes(Vec<u8>),
    /// A frame whose length says one thing, and less comes.
    Claim(u32),
    Frame(Line),
    Record(Line),
    /// Says in the ring that the next record is in the pipe.
    Mark,
    Bells(u16),
    /// So many of the same, one after another.
    Flood(Line, u16),
    /// Logs the same very many times.
    Chatter(Vec<u8>),
    /// Answers so many tasks that it was offered, and reads none of them.
    Blind(u16),
    /// Writes to one word.
    Word(Spot, Value),
    /// Goes on writing to words all over the page, until the end.
    Haunt(u64),
    /// Leaves a thread behind that goes on when the peer is dead.
    Daughter(Line),
    Stderr(u32),
    Pause(u8),
    CloseResults,
    CloseRequests,
}

/// A word of the page.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spot {
    /// The words of the ring's control.
    Ring(usize),
    /// A word in one of the page's parts.
    In(usize, usize),
    /// A word of the slot of the last task.
    Slot(u64),
}

impl Spot {
    pub(super) fn at(self, last_seq: u64) -> usize {
        match self {
            Spot::Ring(which) => Page::RING_WORDS[which % 3],
            Spot::In(part, at) => {
                let part = &Page::PARTS[part % Page::PARTS.len()];
                part.start + at % part.len()
            }
            Spot::Slot(which) => {
                let slots = &Page::PARTS[1];
                slots.start + (2 * last_seq as usize + which as usize % 2) % slots.len()
            }
        }
    }
}

/// What is written there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Any(u64),
    /// So much more than there was.
    More(u64),
    /// The number of the last task, in one of the states that a slot can have.
    State(u64),
    /// The time, in so many milliseconds from now.
    Time(i16),
}

/// A reply, true or not.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) kind: u8,
    /// Added to the number of the last task.
    pub(super) offset: i8,
    pub(super) place: Option<(u64, u64)>,
    pub(super) body: Vec<u8>,
}

impl Line {
    pub(super) fn reply(&self, last_seq: u64) -> Reply {
        let seq = last_seq.wrapping_add_signed(self.offset.into());
        let place = self.place.map(|(at, bytes)| Place { at, bytes });
        let fault = Fault::Panicked(PanicReport { message: "hostile".into(), ..PanicReport::default() });
        match self.kind % 14 {
            0 => Reply::Hello { protocol: PROTOCOL, build: build_identity() },
            1 => Reply::Ready,
            2 => Reply::NotReady { fault },
            3 => Reply::Began { seq },
            4 => Reply::Part { seq },
            5 | 6 => Reply::Value { seq, is_worn: self.kind > 127, ran: u64::MAX, place },
            7 => Reply::Fault { seq, is_worn: false, dying: self.kind > 127, ran: u64::MAX, fault },
            8 => Reply::Bell,
            9 | 10 => Reply::Item { seq, is_fault: self.kind > 127, place },
            11 => Reply::Progress {
                seq,
                progress: Progress::new(seq)
                    .with_message("x".repeat(place.map_or(0, |place| place.bytes as usize % 4096))),
            },
            12 => Reply::Voice { task: (self.kind > 127).then_some(seq) },
            _ => Reply::Skipped { seq },
        }
    }
}

/// Something that was logged, or is just not.
fn logged() -> impl Strategy<Value = Vec<u8>> {
    let parent = prop_oneof![Just(Parent::None), Just(Parent::Task), (0u64..6).prop_map(Parent::Span)];
    let closed = prop::collection::vec(0u64..6, 0..3);
    let values = prop::collection::vec((0u8..4, said()), 0..4);
    (0u8..7, 0u64..6, parent, "[ab]{0,3}", closed, values).prop_map(
        |(kind, id, parent, name, closed, values)| {
            let fields = vec!["message", "n"];
            let (module, file, line) = (None, None, Some(1));
            let site = Site { level: kind, name: &name, target: "hostile", module, file, line, fields };
            let what = match kind {
                0 => What::Nothing,
                1 => What::Recorded { id },
                2 => What::Follows { id, from: parent },
                3 => What::Log { parent, level: id as u8, target: &name, module, file, line, message: &name },
                4 => What::Event { parent, site },
                _ => What::Span { id, parent, site },
            };
            let is_record = kind == 3;
            let lost = Lost { events: id / 5, spans: u64::MAX * (id / 5) };
            let mut message = postcard::to_stdvec(&Head { lost, closed, what }).unwrap();
            for (index, value) in values {
                let value = match is_record {
                    true => postcard::to_stdvec(&(&name, value)),
                    false => postcard::to_stdvec(&(index, value)),
                };
                message.extend(value.unwrap());
            }
            message
        },
    )
}

/// A value of a field.
fn said() -> impl Strategy<Value = Told<'static>> {
    prop_oneof![
        any::<i64>().prop_map(Told::I64),
        any::<u64>().prop_map(Told::U64),
        any::<i128>().prop_map(Told::I128),
        any::<u128>().prop_map(Told::U128),
        any::<f64>().prop_map(Told::F64),
        any::<bool>().prop_map(Told::Bool),
        Just(Told::Text("\x1b[2J")),
        Just(Told::Shown("")),
        (0usize..20).prop_map(|causes| Told::Error(vec!["it"; causes])),
    ]
}

fn line() -> impl Strategy<Value = Line> {
    let offset = prop_oneof![6 => Just(0i8), 1 => any::<i8>()];
    let large = prop_oneof![Just(4u64 << 20), Just(32 << 20), any::<u64>(), 0..100_000u64];
    let place = prop_oneof![4 => Just(None), 1 => (large.clone(), large).prop_map(Some)];
    // Mostly what a task that returns a number would.
    let body = prop_oneof![
        any::<u64>().prop_map(|n| postcard::to_stdvec(&n).unwrap_or_default()),
        prop::collection::vec(any::<u8>(), 0..40),
        (0u8..2, 0usize..100_000).prop_map(|(byte, length)| vec![byte; length]),
        logged(),
    ];
    (any::<u8>(), offset, place, body).prop_map(|(kind, offset, place, body)| Line {
        kind,
        offset,
        place,
        body,
    })
}

fn spot() -> impl Strategy<Value = Spot> {
    prop_oneof![
        (0usize..3).prop_map(Spot::Ring),
        (0usize..5, prop_oneof![0usize..40, any::<usize>()]).prop_map(|(part, at)| Spot::In(part, at)),
        (0u64..2).prop_map(Spot::Slot),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop_oneof![any::<u64>(), 0u64..64, Just(u64::MAX), Just(u64::MAX - 1)].prop_map(Value::Any),
        prop_oneof![0u64..64, Just(32 * 1024), any::<u64>()].prop_map(Value::More),
        (0u64..4).prop_map(Value::State),
        any::<i16>().prop_map(Value::Time),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Serve),
        4 => Just(Step::Take(None)),
        1 => (0u64..5).prop_map(|state| Step::Take(Some(state))),
        2 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Step::Bytes),
        1 => prop_oneof![Just(u32::MAX), Just(6 << 20), Just(200 << 20), any::<u32>()].prop_map(Step::Claim),
        4 => line().prop_map(Step::Frame),
        6 => line().prop_map(Step::Record),
        2 => Just(Step::Mark),
        2 => prop_oneof![1u16..3, 0u16..20_000].prop_map(Step::Bells),
        2 => (line(), 1u16..300).prop_map(|(line, count)| Step::Flood(line, count)),
        1 => logged().prop_map(Step::Chatter),
        1 => (1u16..100).prop_map(Step::Blind),
        4 => (spot(), value()).prop_map(|(spot, value)| Step::Word(spot, value)),
        2 => any::<u64>().prop_map(Step::Haunt),
        1 => line().prop_map(Step::Daughter),
        1 => (0u32..300_000).prop_map(Step::Stderr),
        2 => (0u8..6).prop_map(Step::Pause),
        1 => Just(Step::CloseResults),
        1 => Just(Step::CloseRequests),
    ]
}

pub(super) fn script() -> impl Strategy<Value = Script> {
    let greets = prop_oneof![9 => Just(true), 1 => Just(false)];
    (greets, prop::collection::vec(step(), 0..12), any::<bool>())
        .prop_map(|(greets, steps, lingers)| Script { greets, steps, lingers })
}
