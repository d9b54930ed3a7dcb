//! What the scheduler knows of one worker.

use super::{Departure, Nanos};
use crate::wire::SLOTS;
use std::collections::VecDeque;

/// How much work a worker may have before it: long enough to hide the time that its results and
/// new tasks take to cross (some 100 us when a core must be woken), short enough that what waits
/// behind it would not have begun much earlier elsewhere.
const PIPELINE: Nanos = 400_000;

/// The same for a worker without a page: what goes to it and back may have a network to cross. Not
/// longer than after what time a task is held to be a long one.
const FAR_PIPELINE: Nanos = STALL;

/// The most tasks that a worker may have before it; below the number of slots, so that a slot is
/// never needed twice.
const MAX_DEPTH: u64 = SLOTS / 2;

/// The most bytes of arguments that a worker may have before it, beside its first task.
const MAX_BYTES: u64 = 256 * 1024;

/// After this long at the head of its worker's pipeline, a task is not one of the short ones
/// that were expected, and those behind it go elsewhere.
pub(super) const STALL: Nanos = 2_000_000;

/// A worker that has been sent a task and has not begun it for this long is killed.
pub(super) const UNRESPONSIVE: Nanos = 10_000_000_000;

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not ready for tasks yet.
    Starting,
    /// At work, or idle.
    Ready,
    /// Gets no more tasks, and ends when it is done with those that it has.
    Retiring,
    /// Was told to end.
    Closing,
    /// Was killed, or is about to die by itself.
    Dying,
}

/// What has become of a task that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing yet.
    Open,
    /// It has run out of time, and will be tried again when its worker is dead.
    TimedOut,
    /// Its caller has an answer already, but it still runs.
    Abandoned,
    /// It was taken back before it began; the worker has yet to find that out.
    TakenBack,
    /// A worker without a page has left it, as it was asked to; it is still counted in its place.
    Skipped,
}

/// Why a task is taken back that a worker should have begun, having nothing before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The worker takes its time.
    Stall,
    /// It has died, or is to.
    Death,
    /// It has said that it is about to die, on another task's account.
    Foretold,
}

/// A task that was sent to a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) seq: u64,
    /// Only meaningful while the task is open or timed out.
    pub(super) task: u32,
    pub(super) bytes: u32,
    pub(super) fate: Fate,
    /// A worker without a page was asked to leave it.
    pub(super) is_recalled: bool,
}

/// One worker.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    /// Whether it shares a control page with the pool: without one, it is asked for tasks back.
    pub(super) has_page: bool,
    /// What it was sent and has not answered, in order.
    pub(super) sent: VecDeque<Sent>,
    pub(super) sent_bytes: u64,
    pub(super) next_seq: u64,
    /// When the first of these became the first; when idle, since when it is.
    pub(super) head_since: Nanos,
    /// What a task takes, as a moving average; 0 when nothing is known.
    pub(super) service: Nanos,
    pub(super) last_answer: Nanos,
    pub(super) answers: u64,
    /// How long the tasks ran that were answered since the last measurement.
    pub(super) ran: Nanos,
    pub(super) tasks_done: u64,
    /// How many more tasks it may be sent.
    pub(super) tasks_left: u64,
    /// It has used up its share of memory or time, and is to be recycled when its turn comes.
    pub(super) is_worn: bool,
    /// When to kill it, unless it has answered the task with this number.
    pub(super) kill_at: Nanos,
    pub(super) kill_unless: u64,
    /// When to kill it although its page says that it has finished that task.
    pub(super) kill_latest: Nanos,
    /// When to resolve the task that has run out of time although the worker is not dead yet.
    pub(super) give_up_at: Nanos,
    /// When its start began.
    pub(super) started: Nanos,
    /// How much it had been sent when it was last looked at.
    pub(super) written: u64,
    /// When that was last seen to have changed.
    pub(super) silent_since: Nanos,
    /// When to look next whether its first task has stalled.
    pub(super) stall_at: Nanos,
    /// When it was first seen that the first task had begun.
    pub(super) seen_begun: Option<Nanos>,
    /// When to look next whether its first task has run out of time.
    pub(super) timeout_at: Nanos,
    /// When something is to be done about it.
    pub(super) alarm: Nanos,
    /// It is in the list of idle workers.
    pub(super) is_listed: bool,
    /// It has been killed, or its start called off.
    pub(super) is_killed: bool,
    /// Why it was told to end or killed, if it was.
    pub(super) departure: Departure,
}

impl Slot {
    pub(super) fn new(tasks_left: u64, started: Nanos) -> Slot {
        Slot {
            phase: Phase::Starting,
            has_page: false,
            sent: VecDeque::new(),
            sent_bytes: 0,
            next_seq: 1,
            head_since: 0,
            service: 0,
            last_answer: 0,
            answers: 0,
            ran: 0,
            tasks_done: 0,
            tasks_left,
            is_worn: false,
            kill_at: Nanos::MAX,
            kill_unless: 0,
            kill_latest: Nanos::MAX,
            give_up_at: Nanos::MAX,
            started,
            written: 0,
            silent_since: started,
            stall_at: Nanos::MAX,
            seen_begun: None,
            timeout_at: 0,
            alarm: Nanos::MAX,
            is_listed: false,
            is_killed: false,
            departure: Departure::Died,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Ready && self.sent.is_empty()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.phase != Phase::Dying && !self.sent.is_empty()
    }

    /// Whether another task may be sent behind those that it has.
    pub(super) fn has_room(&self) -> bool {
        self.phase == Phase::Ready
            // Its last task is not sent ahead: it would get no more, should that be taken back.
            && self.tasks_left > 1
            && !self.sent.is_empty()
            // Behind one that was cancelled it might have to wait for that to be killed.
            && self.kill_at == Nanos::MAX
            && (self.sent.len() as u64) < self.depth()
            && self.sent_bytes < MAX_BYTES
    }

    fn depth(&self) -> u64 {
        let pipeline = if self.has_page { PIPELINE } else { FAR_PIPELINE };
        match self.service {
            0 => 1,
            service => (pipeline / service).clamp(1, MAX_DEPTH),
        }
    }

    pub(super) fn push(&mut self, task: u32, bytes: u32, now: Nanos) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.tasks_left -= 1;
        if self.sent.is_empty() {
            self.new_head(now);
            self.last_answer = now;
        }
        self.sent.push_back(Sent { seq, task, bytes, fate: Fate::Open, is_recalled: false });
        self.sent_bytes += u64::from(bytes);
        seq
    }

    /// Takes out the first task.
    pub(super) fn pop(&mut self, now: Nanos) -> Option<Sent> {
        let head = self.sent.pop_front()?;
        self.sent_bytes -= u64::from(head.bytes);
        self.drop_skipped();
        if self.phase != Phase::Dying && head.seq >= self.kill_unless {
            self.kill_at = Nanos::MAX;
        }
        self.new_head(now);
        Some(head)
    }

    /// Forgets the first tasks if they were left: so the first is always one to be answered.
    pub(super) fn drop_skipped(&mut self) {
        while let Some(head) = self.sent.front().filter(|head| head.fate == Fate::Skipped).copied() {
            self.sent.pop_front();
            self.sent_bytes -= u64::from(head.bytes);
        }
    }

    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut Sent> {
        let first = self.sent.front()?.seq;
        self.sent.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    pub(super) fn new_head(&mut self, now: Nanos) {
        self.head_since = now;
        self.stall_at = now.saturating_add(STALL);
        self.seen_begun = None;
        self.timeout_at = 0;
    }

    /// Learns from the answers that have come at one time what a task takes.
    pub(super) fn measure(&mut self, now: Nanos) {
        if self.answers == 0 {
            return;
        }
        // The time between the answers of a worker far away is that of the network.
        let ran = std::mem::take(&mut self.ran);
        // Nor can it have run for longer than it is there, whatever it says.
        let ran = ran.min(now.saturating_sub(self.started));
        let taken = if self.has_page { now.saturating_sub(self.last_answer) } else { ran };
        let sample = (taken / self.answers).max(1);
        self.last_answer = now;
        self.answers = 0;
        // Long tasks are believed at once, short ones by and by.
        self.service = match self.service {
            0 => sample,
            known if sample > known.saturating_mul(8) => sample,
            known => (known * 3 + sample) / 4,
        };
    }

    /// It has turned out that a task takes at least this long.
    pub(super) fn take_at_least(&mut self, time: Nanos) {
        self.service = self.service.max(time);
    }
}
