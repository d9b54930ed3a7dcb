//! What tasks log, said to the pool: the subscriber and the logger of a worker.
//!
//! A task never waits for what it logs. There is a budget, and only part of the ring of replies is for
//! this; what goes beyond either is counted and left out, and the count is told.

#[cfg(feature = "log")]
mod logger;
mod message;
#[cfg(feature = "tracing")]
mod subscriber;

use super::replies::Replies;
use crate::sys::monotonic_now;
use crate::wire::voice::{Head, LONGEST, Lost, Parent, What};
use crate::wire::{Levels, Reply};
use message::Rest;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// How many messages may come in a row,
const BURST: u64 = 4096;

/// and for how many nanoseconds of being quiet there may be one more: 10,000 in a second.
const NANOS_A_MESSAGE: u64 = 100_000;

static VOICE: OnceLock<Voice> = OnceLock::new();

/// The task that runs, as its number plus one; 0 between tasks.
static TASK: AtomicU64 = AtomicU64::new(0);

/// How much is said at all, of spans and events and of log records, as in [`Levels`].
static TRACING: AtomicU8 = AtomicU8::new(0);
static LOG: AtomicU8 = AtomicU8::new(0);

/// Something is left to be told at the end of the task.
static HAS_REST: AtomicBool = AtomicBool::new(false);

/// The way to the pool.
struct Voice {
    replies: &'static Replies,
    account: Mutex<Account>,
}

/// What may be said, and what is left to be said.
struct Account {
    messages: u64,
    /// Up to when messages were added.
    counted: u64,
    lost: Lost,
    closed: Vec<u64>,
}

/// As what a message counts that is lost.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "tracing"), allow(dead_code))]
enum Kind {
    Event,
    Span,
}

impl Account {
    /// Takes one message off the budget; false if there is none.
    fn spend(&mut self, now: u64) -> bool {
        let more = now.saturating_sub(self.counted) / NANOS_A_MESSAGE;
        self.counted += more * NANOS_A_MESSAGE;
        self.messages = self.messages.saturating_add(more).min(BURST);
        let is_left = self.messages > 0;
        self.messages -= u64::from(is_left);
        is_left
    }

    fn lose(&mut self, kind: Kind) {
        let count = match kind {
            Kind::Event => &mut self.lost.events,
            Kind::Span => &mut self.lost.spans,
        };
        *count += 1;
        HAS_REST.store(true, Ordering::Relaxed);
    }
}

impl Voice {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something together with what is left to be said, if there is room for it.
    fn say(&self, account: &mut Account, what: What<'_>, rest: &[u8]) -> bool {
        let (task, message) = compose(account, what, rest);
        let is_said = message.len() <= LONGEST && self.replies.try_say(&Reply::Voice { task }, &message);
        if is_said {
            account.settle();
        }
        is_said
    }
}

impl Account {
    fn settle(&mut self) {
        self.lost = Lost::default();
        self.closed.clear();
        HAS_REST.store(false, Ordering::Relaxed);
    }
}

fn compose(account: &mut Account, what: What<'_>, rest: &[u8]) -> (Option<u64>, Vec<u8>) {
    let head = Head { lost: account.lost, closed: std::mem::take(&mut account.closed), what };
    let mut message = Vec::with_capacity(256 + rest.len());
    // Heads consist of what postcard always encodes.
    let _ = postcard::to_io(&head, &mut message);
    account.closed = head.closed;
    message.extend_from_slice(rest);
    (TASK.load(Ordering::Relaxed).checked_sub(1), message)
}

/// Says something, unless it comes too fast; whether it was said. The code of the task that shows its
/// values runs under no lock.
fn speak<'a>(kind: Kind, write: impl FnOnce(&mut Rest) -> What<'a>) -> bool {
    let Some(voice) = VOICE.get() else { return false };
    {
        let mut account = voice.account();
        if !account.spend(monotonic_now()) {
            account.lose(kind);
            return false;
        }
    }
    let mut rest = Rest::new(voice.replies.longest_to_say());
    let what = write(&mut rest);
    let mut account = voice.account();
    let is_said = voice.say(&mut account, what, rest.bytes());
    if !is_said {
        account.lose(kind);
    }
    is_said
}

/// Says that a span is over that the pool knows of: now or later, but surely.
#[cfg(feature = "tracing")]
fn close(span: u64) {
    let Some(voice) = VOICE.get() else { return };
    let mut account = voice.account();
    account.closed.push(span);
    HAS_REST.store(true, Ordering::Relaxed);
    voice.say(&mut account, What::Nothing, &[]);
}

/// The pool knows of as many spans as it may.
#[cfg(feature = "tracing")]
fn lose_span() {
    if let Some(voice) = VOICE.get() {
        voice.account().lose(Kind::Span);
    }
}

/// What a thread that is in no span of the task is in.
fn outermost() -> Parent {
    if TASK.load(Ordering::Relaxed) == 0 { Parent::None } else { Parent::Task }
}

#[cfg(feature = "log")]
fn context() -> Parent {
    #[cfg(feature = "tracing")]
    return subscriber::context();
    #[cfg(not(feature = "tracing"))]
    outermost()
}

/// The pool wants to hear this much. To be called before [`initialize`].
pub(super) fn set_up(replies: &'static Replies, levels: Levels) {
    let account =
        Account { messages: BURST, counted: monotonic_now(), lost: Lost::default(), closed: Vec::new() };
    let _ = VOICE.set(Voice { replies, account: Mutex::new(account) });
    TRACING.store(levels.tracing, Ordering::Relaxed);
    LOG.store(levels.log, Ordering::Relaxed);
}

/// Runs the initializer, which may set a subscriber and a logger of its own.
///
/// Until it is over there is a subscriber on this thread alone, and no logger: neither can be replaced.
pub(super) fn initialize<T>(run: impl FnOnce() -> T) -> T {
    #[cfg(feature = "tracing")]
    if TRACING.load(Ordering::Relaxed) > 0 {
        return subscriber::with(run);
    }
    run()
}

/// Is heard wherever the program has not set something of its own, if anybody listens.
pub(super) fn install() {
    #[cfg(feature = "tracing")]
    subscriber::install();
    #[cfg(feature = "log")]
    logger::install();
}

/// The pool wants to hear more now, or less.
pub(super) fn listen(levels: Levels) {
    if VOICE.get().is_none() {
        return;
    }
    TRACING.store(levels.tracing, Ordering::Relaxed);
    LOG.store(levels.log, Ordering::Relaxed);
    install();
}

/// A task begins.
pub(super) fn begin(seq: u64) {
    TASK.store(seq + 1, Ordering::Relaxed);
}

/// The task, or the initializer, is over: what is left to be said must be said now.
pub(super) fn end() {
    if HAS_REST.load(Ordering::Relaxed)
        && let Some(voice) = VOICE.get()
    {
        let (task, message) = {
            let mut account = voice.account();
            let composed = compose(&mut account, What::Nothing, &[]);
            account.settle();
            composed
        };
        // It may have to wait for the pool, which threads that log do not.
        voice.replies.send(&Reply::Voice { task }, &message);
    }
    TASK.store(0, Ordering::Relaxed);
}

/// Sees to it that the pool hears by and by of what was said quietly.
pub(super) fn ring() {
    if let Some(voice) = VOICE.get() {
        voice.replies.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_used_up_and_comes_back() {
        let mut account = Account { messages: BURST, counted: 0, lost: Lost::default(), closed: Vec::new() };
        assert!((0..BURST).all(|_| account.spend(0)) && !account.spend(NANOS_A_MESSAGE - 1));
        assert!(account.spend(NANOS_A_MESSAGE + 5) && !account.spend(2 * NANOS_A_MESSAGE - 1));
        assert!(account.spend(2 * NANOS_A_MESSAGE));
        let later = 1 << 60;
        assert!((0..BURST).all(|_| account.spend(later)) && !account.spend(later));
    }
}
