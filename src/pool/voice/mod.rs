//! What tasks log, passed on to the program's subscriber and logger.
//!
//! It is taken in under the lock of the pool's state, told outside of it, in the order in which it was
//! said, and before the task's handle resolves. A worker is not trusted with how much it says.

#[cfg(feature = "log")]
mod records;
#[cfg(not(feature = "log"))]
#[path = "no_records.rs"]
mod records;
#[cfg(feature = "nats")]
mod relay;
#[cfg(not(feature = "nats"))]
#[path = "no_relay.rs"]
mod relay;
#[cfg(feature = "tracing")]
mod sites;
#[cfg(feature = "tracing")]
mod spans;
#[cfg(not(feature = "tracing"))]
#[path = "no_spans.rs"]
mod spans;
#[cfg(test)]
mod tests;

use super::scheduler::Violation;
use crate::sys::monotonic_now;
use crate::wire::voice::{LONGEST, Lost, What, read_head};
use crate::wire::{Body, Levels};
use bytes::Bytes;
pub(super) use relay::Relay;
#[cfg(feature = "nats")]
pub(super) use relay::{Hearing, Passage};
use spans::{Around, Outside, Spans};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How many messages of a worker may come in a row, and in how many nanoseconds there may be one more:
/// twice as many as a worker that means well says.
const BURST: u64 = 8192;
const NANOS_A_MESSAGE: u64 = 50_000;

/// How long a worker that says too much is not listened to.
const PAUSE: Duration = Duration::from_millis(1);

/// Whether there is anything to pass on. Without, tasks pay nothing for all this.
const IS_ON: bool = cfg!(any(feature = "log", feature = "tracing"));

/// Whether a pool passes on what its tasks log, and where to if that is not said by a task.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwarding {
    is_off: bool,
    outside: Option<Outside>,
}

impl Forwarding {
    pub(super) fn set(&mut self, is_on: bool) {
        self.is_off = !is_on;
    }

    /// With the subscriber of this moment, for what belongs to no task.
    pub(super) fn here(mut self) -> Forwarding {
        self.outside = if self.is_off { None } else { spans::outside() };
        self
    }

    /// How much there is anybody to hear of.
    pub(super) fn levels(&self) -> Levels {
        if self.is_off {
            return Levels::default();
        }
        Levels { tracing: spans::level(), log: records::level() }
    }
}

/// Who is to hear what a task logs, until it is resolved.
#[derive(Default)]
pub(super) struct Audience {
    around: Mutex<Option<Arc<Around>>>,
    /// It is in another program.
    relay: Option<Arc<Relay>>,
}

impl Audience {
    /// Whoever hears what is logged here and now.
    pub(super) fn of_here(forwarding: &Forwarding) -> Audience {
        let around = if forwarding.is_off { None } else { Around::of_here() };
        Audience { around: Mutex::new(around.map(Arc::new)), relay: None }
    }

    /// Whoever hears what is passed on.
    #[cfg(feature = "nats")]
    pub(super) fn elsewhere(relay: Option<Arc<Relay>>) -> Audience {
        Audience { relay, ..Audience::default() }
    }

    /// How much it wants to hear beside what this program does.
    fn levels(&self) -> Levels {
        self.relay.as_ref().map_or_else(Levels::default, |relay| relay.levels())
    }

    /// The task is resolved.
    pub(super) fn leave(&self) {
        if !cfg!(feature = "tracing") {
            return;
        }
        // Closing a span runs foreign code, so not under the lock.
        let around = lock(&self.around).take();
        drop(around);
    }

    /// Until the task is resolved: what is yet to be told does not keep its span open.
    fn around(&self) -> Option<Weak<Around>> {
        lock(&self.around).as_ref().map(Arc::downgrade)
    }
}

impl Clone for Audience {
    fn clone(&self) -> Audience {
        let around = lock(&self.around).clone();
        Audience { around: Mutex::new(around), relay: self.relay.clone() }
    }
}

/// The pool's end of what one worker says.
#[cfg_attr(not(feature = "tracing"), allow(dead_code))]
pub(super) struct Ear {
    forwarding: Forwarding,
    /// The worker was told to say this much.
    tracing: AtomicU8,
    log: AtomicU8,
    /// Of which kind the worker was ever told to say anything.
    may_trace: AtomicBool,
    may_log: AtomicBool,
    intake: Mutex<Intake>,
    /// Since the last end of a task.
    has_heard: AtomicBool,
    is_too_much: AtomicBool,
    spans: Mutex<Spans>,
    /// The tasks that were resolved while the worker had them, which it may still be at.
    over: Mutex<Vec<u64>>,
}

/// How much may be taken in, and what was not.
struct Intake {
    messages: u64,
    counted: u64,
    refused: u64,
}

impl Intake {
    fn admits(&mut self, now: u64) -> bool {
        let more = now.saturating_sub(self.counted) / NANOS_A_MESSAGE;
        self.counted = self.counted.saturating_add(more.saturating_mul(NANOS_A_MESSAGE));
        self.messages = self.messages.saturating_add(more).min(BURST);
        let is_left = self.messages > 0;
        self.messages -= u64::from(is_left);
        self.refused += u64::from(!is_left);
        is_left
    }
}

/// Something that a worker has said, to be told.
#[cfg_attr(not(feature = "tracing"), allow(dead_code))]
pub(super) struct Said {
    ear: Arc<Ear>,
    around: Option<Weak<Around>>,
    /// In place of this program, another one is told.
    relay: Option<Arc<Relay>>,
    /// If it was not resolved when this was said.
    task: Option<u64>,
    /// What came too fast for the pool.
    refused: u64,
    what: Matter,
}

enum Matter {
    Message(Bytes),
    /// The worker is done with the task.
    TaskEnd,
    /// The task is resolved, whatever the worker does.
    TaskOver,
    /// The worker has ended.
    End,
}

impl Ear {
    pub(super) fn new(forwarding: &Forwarding) -> Arc<Ear> {
        Arc::new(Ear {
            forwarding: forwarding.clone(),
            tracing: AtomicU8::new(0),
            log: AtomicU8::new(0),
            may_trace: AtomicBool::new(false),
            may_log: AtomicBool::new(false),
            intake: Mutex::new(Intake { messages: BURST, counted: monotonic_now(), refused: 0 }),
            has_heard: AtomicBool::new(false),
            is_too_much: AtomicBool::new(false),
            spans: Mutex::default(),
            over: Mutex::default(),
        })
    }

    /// How much the worker is to say, at first.
    pub(super) fn levels(&self) -> Levels {
        self.news(&Audience::default()).unwrap_or_default()
    }

    /// How much the worker is to say of a task that is for this audience, if that has changed.
    pub(super) fn news(&self, audience: &Audience) -> Option<Levels> {
        if !IS_ON {
            return None;
        }
        let (here, there) = (self.forwarding.levels(), audience.levels());
        let levels = Levels { tracing: here.tracing.max(there.tracing), log: here.log.max(there.log) };
        let told =
            Levels { tracing: self.tracing.load(Ordering::Relaxed), log: self.log.load(Ordering::Relaxed) };
        if levels == told {
            return None;
        }
        self.tracing.store(levels.tracing, Ordering::Relaxed);
        self.log.store(levels.log, Ordering::Relaxed);
        self.may_trace.fetch_or(levels.tracing > 0, Ordering::Relaxed);
        self.may_log.fetch_or(levels.log > 0, Ordering::Relaxed);
        Some(levels)
    }

    /// Whether the worker may say such a thing. It may go on for a while when less is asked for.
    fn may_say(&self, what: &What<'_>) -> bool {
        match what {
            What::Nothing => true,
            What::Log { .. } => self.may_log.load(Ordering::Relaxed),
            _ => self.may_trace.load(Ordering::Relaxed),
        }
    }

    /// Takes in a message; `None` if there have been too many, or nobody ever asked for any.
    pub(super) fn hear(
        self: &Arc<Self>,
        task: Option<u64>,
        audience: Option<&Audience>,
        body: Body<'_>,
    ) -> Result<Option<Said>, Violation> {
        if body.as_slice().len() > LONGEST {
            return Err(Violation);
        }
        let refused = {
            let mut intake = lock(&self.intake);
            let is_admitted = intake.admits(monotonic_now());
            if !is_admitted {
                self.is_too_much.store(true, Ordering::Relaxed);
            }
            if !self.may_trace.load(Ordering::Relaxed) && !self.may_log.load(Ordering::Relaxed) {
                // Nor is anybody told how much there was.
                intake.refused = 0;
                return Ok(None);
            }
            self.has_heard.store(true, Ordering::Relaxed);
            if !is_admitted {
                return Ok(None);
            }
            std::mem::take(&mut intake.refused)
        };
        let around = audience.and_then(Audience::around);
        let relay = audience.and_then(|audience| audience.relay.clone());
        let task = task.filter(|_| audience.is_some());
        let what = Matter::Message(body.into_bytes());
        Ok(Some(Said { ear: self.clone(), around, relay, task, refused, what }))
    }

    /// A task is over: what is to be told for that.
    pub(super) fn task_end(self: &Arc<Self>, seq: u64, audience: Option<&Audience>) -> Option<Said> {
        if !IS_ON || !self.has_heard.load(Ordering::Relaxed) {
            return None;
        }
        self.has_heard.store(false, Ordering::Relaxed);
        // Answers come in order, so of earlier tasks nothing is told any more.
        lock(&self.over).retain(|over| *over > seq);
        let around = audience.and_then(Audience::around);
        let relay = audience.and_then(|audience| audience.relay.clone());
        let refused = std::mem::take(&mut lock(&self.intake).refused);
        Some(Said { ear: self.clone(), around, relay, task: Some(seq), refused, what: Matter::TaskEnd })
    }

    /// A task is about to be resolved that the worker has not answered: what is to be told for that.
    pub(super) fn task_over(self: &Arc<Self>, seq: u64) -> Option<Said> {
        if !IS_ON || !self.has_heard.load(Ordering::Relaxed) {
            return None;
        }
        lock(&self.over).push(seq);
        let (ear, task) = (self.clone(), Some(seq));
        Some(Said { ear, around: None, relay: None, task, refused: 0, what: Matter::TaskOver })
    }

    /// The worker has ended: what is to be told for that.
    pub(super) fn end(self: &Arc<Self>) -> Option<Said> {
        let refused = std::mem::take(&mut lock(&self.intake).refused);
        Some(Said { ear: self.clone(), around: None, relay: None, task: None, refused, what: Matter::End })
    }

    /// So many messages are missing.
    #[cfg(feature = "nats")]
    fn miss(&self, messages: u64) {
        self.has_heard.store(true, Ordering::Relaxed);
        let mut intake = lock(&self.intake);
        intake.refused = intake.refused.saturating_add(messages);
    }

    /// How long not to listen, since too much was said.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.is_too_much.swap(false, Ordering::Relaxed).then_some(PAUSE)
    }
}

/// What is open is closed with it.
impl Drop for Ear {
    fn drop(&mut self) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.close_all()));
    }
}

impl Said {
    /// Tells it to the program. What runs there may do anything but take the pool along.
    pub(super) fn tell(self) {
        // What a panic may leave broken is the subscriber's own.
        let _ = catch_unwind(AssertUnwindSafe(move || self.pass_on()));
    }

    fn pass_on(self) {
        if let Some(relay) = self.relay.clone() {
            return self.pass_over(&relay);
        }
        match &self.what {
            Matter::Message(message) => match read_head(message) {
                Some((head, rest)) => {
                    self.ear.close(&head.closed);
                    self.tell_lost(head.lost);
                    self.tell_what(head.what, rest);
                }
                // It is none of what workers say.
                None => self.tell_lost(Lost { events: 1, spans: 0 }),
            },
            Matter::TaskEnd => {
                self.tell_lost(Lost::default());
                self.ear.close_those_of(self.task);
            }
            Matter::TaskOver => self.ear.close_those_of(self.task),
            Matter::End => {
                self.tell_lost(Lost::default());
                self.ear.close_all();
            }
        }
    }

    /// Has it told to another program.
    fn pass_over(self, relay: &Relay) {
        match self.what {
            Matter::Message(message) => {
                // They may be of an earlier task, which this program was told of.
                read_head(&message).into_iter().for_each(|(head, _)| self.ear.close(&head.closed));
                relay.push(Some(message), self.refused);
            }
            Matter::TaskEnd | Matter::TaskOver | Matter::End => {
                relay.push(None, self.refused);
                self.ear.close_those_of(self.task);
            }
        }
    }

    fn tell_what(&self, what: What<'_>, rest: &[u8]) {
        match what {
            What::Nothing => {}
            what if !self.ear.may_say(&what) => {}
            What::Log { .. } => self.tell_record(&what, rest),
            what => self.tell_spans(what, rest),
        }
    }

    /// Tells how much is missing.
    fn tell_lost(&self, lost: Lost) {
        let lost = lost.and(Lost { events: self.refused, spans: 0 });
        if !lost.is_none() && !self.tell_lost_as_event(lost) {
            records::tell_lost(lost);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
