//! What an agent asks the server for.
//!
//! A request names a level and how many tasks there may be at most; the server answers with tasks, at once
//! or as they come, and ends it with a status. Requests cannot be taken back, so there are never more
//! normal tasks asked for than there are free workers, as a rule. Beyond that:
//!
//! * A level that is known or suspected to have tasks is *probed*: asked for what is there at this moment,
//!   with nothing else asked for meanwhile. The high level is, now and then, in any case.
//! * While tasks are short, and more of them wait, some are asked for ahead of time, so that a worker need not
//!   wait for the server between two of them: as many as the workers do in a millisecond, by what tasks took
//!   of late. What has come ahead and cannot begin within some ten milliseconds, since a long one got before
//!   it, is handed back. It has not begun: it is kept here, and nobody else knows of it.
//! * When nothing has come for a moment, the agent waits on all levels at once, for a shorter time on those
//!   beside the normal. So it may be sent more than it has workers for, and hands that back.

use crate::task::Priority;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// For how long the server keeps a request for normal tasks.
const LONG_WAIT: Duration = Duration::from_secs(30);

/// For how long it keeps one for others.
const SHORT_WAIT: Duration = Duration::from_secs(5);

/// How often the high level is probed while there is always something to do.
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// Before low tasks are taken the high level is probed, unless that has just been done.
const JUST_NOW: Duration = Duration::from_millis(5);

/// After so long with nothing to do an agent waits on all levels.
const CALM: Duration = Duration::from_millis(10);

/// After so long a request has come to nothing, whatever the server has said.
const GRACE: Duration = Duration::from_secs(2);

/// So much work is asked for ahead, for each worker.
const AHEAD: Duration = Duration::from_millis(1);

/// At most so many tasks for each worker.
const MAX_AHEAD: usize = 8;

/// How long the server keeps a request for tasks ahead. It had some to give, but others may be faster.
const AHEAD_WAIT: Duration = Duration::from_millis(20);

/// When no worker has got free for so long, tasks are not short any more.
const STALL: Duration = Duration::from_millis(2);

/// How long a task that has come ahead may wait for a worker.
const KEEP: Duration = Duration::from_millis(10);

/// A request to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) token: u64,
    pub(super) level: Priority,
    pub(super) tasks: usize,
    /// How long the server is to wait for them; not at all without it.
    pub(super) wait: Option<Duration>,
}

impl Request {
    pub(super) fn payload(&self) -> String {
        match self.wait {
            Some(wait) => format!(r#"{{"batch":{},"expires":{}}}"#, self.tasks, wait.as_nanos()),
            None => format!(r#"{{"batch":{},"no_wait":true}}"#, self.tasks),
        }
    }
}

/// What is asked for and not yet answered.
struct Open {
    level: Priority,
    tasks: usize,
    is_probe: bool,
    end: Instant,
}

#[derive(Default)]
struct Level {
    /// How many tasks are asked for.
    asked: usize,
    /// It may have tasks.
    is_suspect: bool,
    /// When it was last found empty.
    empty_at: Option<Instant>,
}

/// What becomes of a task that has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<T> {
    /// There is a worker for it.
    Now(T),
    /// There will be one soon.
    Later,
    /// There is none: it is to be handed back.
    Never(T),
}

/// A task that has come ahead.
struct Kept<T> {
    task: T,
    level: usize,
    since: Instant,
}

/// `T` is a task.
pub(super) struct Pulls<T> {
    /// The most tasks at once.
    width: usize,
    /// How many there are.
    busy: usize,
    /// Those that have come ahead, in the order in which they are to begin.
    kept: VecDeque<Kept<T>>,
    /// How long a worker is taken up by a task, of late.
    service: Option<Duration>,
    /// When a worker last got free.
    freed_at: Option<Instant>,
    /// How many more normal tasks there are than have come, as far as is known.
    backlog: usize,
    open: HashMap<u64, Open>,
    levels: [Level; 3],
    next_token: u64,
    /// The last time that something came or was asked.
    quiet_since: Instant,
}

fn at(level: Priority) -> usize {
    match level {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

impl<T> Pulls<T> {
    pub(super) fn new(width: usize, now: Instant) -> Pulls<T> {
        let mut levels = <[Level; 3]>::default();
        levels.iter_mut().for_each(|level| level.is_suspect = true);
        Pulls {
            width,
            busy: 0,
            kept: VecDeque::new(),
            service: None,
            freed_at: None,
            backlog: 0,
            open: HashMap::new(),
            levels,
            next_token: 1,
            quiet_since: now,
        }
    }

    /// How many tasks there may be beyond those that have workers, if they go on to be as they were.
    fn ahead(&self) -> usize {
        let Some(service) = self.service else { return 0 };
        let each = AHEAD.as_nanos() / service.as_nanos().max(1);
        self.width.saturating_mul(usize::try_from(each).unwrap_or(MAX_AHEAD).min(MAX_AHEAD))
    }

    /// What to ask for ahead of time. Not before half of it is missing: one request for several is cheaper.
    fn next_ahead(&mut self, now: Instant) -> Option<Request> {
        let is_flowing = self.freed_at.is_some_and(|at| now.duration_since(at) < STALL);
        let ahead = if is_flowing { self.ahead() } else { 0 };
        let [high, normal, _] = &self.levels;
        let expected = self.busy + self.kept.len() + normal.asked;
        let missing = (self.width + ahead).saturating_sub(expected);
        if ahead == 0 || missing < ahead.div_ceil(2) {
            return None;
        }
        if high.asked == 0 && high.empty_at.is_none_or(|at| now.duration_since(at) > PROBE_EVERY) {
            return Some(self.ask(Priority::High, 1, None, now));
        }
        let tasks = missing.min(self.backlog.saturating_sub(normal.asked));
        (tasks > 0).then(|| self.ask(Priority::Normal, tasks, Some(AHEAD_WAIT), now))
    }

    /// What to ask for next.
    pub(super) fn next(&mut self, now: Instant) -> Option<Request> {
        if self.open.values().any(|open| open.is_probe) {
            return None;
        }
        if let Some(request) = self.next_ahead(now) {
            return Some(request);
        }
        let free = self.width.saturating_sub(self.busy);
        let unasked = |level: &Level| free.saturating_sub(level.asked);
        let [high, normal, low] = &self.levels;
        if unasked(normal) > 0 {
            let takes_low = low.is_suspect && low.asked == 0;
            let fresh = if takes_low { JUST_NOW } else { PROBE_EVERY };
            let is_stale = high.empty_at.is_none_or(|at| now.duration_since(at) > fresh);
            if high.asked == 0 && (high.is_suspect || is_stale) {
                return Some(self.ask(Priority::High, free, None, now));
            }
            if takes_low {
                let level = if normal.is_suspect { Priority::Normal } else { Priority::Low };
                return Some(self.ask(level, unasked(normal), None, now));
            }
            let tasks = unasked(normal);
            return Some(self.ask(Priority::Normal, tasks, Some(LONG_WAIT), now));
        }
        if now.duration_since(self.quiet_since) >= CALM {
            let others = [(Priority::High, unasked(high)), (Priority::Low, unasked(low))];
            let (level, tasks) = others.into_iter().find(|(_, tasks)| *tasks > 0)?;
            return Some(self.ask(level, tasks, Some(SHORT_WAIT), now));
        }
        None
    }

    fn ask(&mut self, level: Priority, tasks: usize, wait: Option<Duration>, now: Instant) -> Request {
        let token = self.next_token;
        self.next_token += 1;
        self.levels[at(level)].asked += tasks;
        let end = now + wait.unwrap_or_default() + GRACE;
        self.open.insert(token, Open { level, tasks, is_probe: wait.is_none(), end });
        Request { token, level, tasks, wait }
    }

    /// A task of this level has come, with so many more waiting.
    pub(super) fn came(&mut self, level: Priority, task: T, waiting: usize, now: Instant) -> Turn<T> {
        self.answered(level, now);
        if level == Priority::Normal {
            self.backlog = waiting;
        }
        if self.busy < self.width {
            self.busy += 1;
            return Turn::Now(task);
        }
        if self.kept.len() >= self.ahead() {
            return Turn::Never(task);
        }
        let level = at(level);
        let place = self.kept.iter().position(|kept| kept.level > level).unwrap_or(self.kept.len());
        self.kept.insert(place, Kept { task, level, since: now });
        Turn::Later
    }

    /// The server has sent a task of this level. It does not say in answer to which request: to the oldest,
    /// as far as is known.
    pub(super) fn answered(&mut self, level: Priority, now: Instant) {
        self.quiet_since = now;
        let state = &mut self.levels[at(level)];
        state.asked = state.asked.saturating_sub(1);
        state.is_suspect = true;
        let of_level = self.open.iter_mut().filter(|(_, open)| open.level == level);
        if let Some((token, open)) = of_level.min_by_key(|(token, _)| **token) {
            open.tasks -= 1;
            if open.tasks == 0 {
                let token = *token;
                self.open.remove(&token);
            }
        }
        self.agree(level);
    }

    /// A request is over, with so many tasks missing, if the server says how many: else all that are not
    /// known to have come.
    pub(super) fn ended(&mut self, token: u64, missing: Option<usize>, now: Instant) {
        let Some(open) = self.open.remove(&token) else { return };
        let level = &mut self.levels[at(open.level)];
        level.asked = level.asked.saturating_sub(missing.unwrap_or(open.tasks));
        level.is_suspect = false;
        level.empty_at = Some(now);
        if open.level == Priority::Normal {
            self.backlog = 0;
        }
        self.agree(open.level);
    }

    /// With no request there is nothing asked for, and the other way round.
    fn agree(&mut self, level: Priority) {
        if !self.open.values().any(|open| open.level == level) {
            self.levels[at(level)].asked = 0;
        } else if self.levels[at(level)].asked == 0 {
            self.open.retain(|_, open| open.level != level);
        }
    }

    /// A worker is free again, after so long; gives it to a task that has come ahead, if there is one.
    pub(super) fn freed(&mut self, took: Duration, now: Instant) -> Option<T> {
        self.quiet_since = now;
        self.freed_at = Some(now);
        // Long tasks are believed at once, short ones by and by.
        self.service = Some(match self.service {
            Some(known) if took <= known.saturating_mul(8) => (known * 3 + took) / 4,
            _ => took,
        });
        let next = self.take_kept();
        self.busy -= usize::from(next.is_none());
        next
    }

    /// A task that has come ahead, in its turn.
    pub(super) fn take_kept(&mut self) -> Option<T> {
        self.kept.pop_front().map(|kept| kept.task)
    }

    /// A task that has come ahead and waits for too long.
    pub(super) fn kept_too_long(&mut self, now: Instant) -> Option<T> {
        let at = self.kept.iter().position(|kept| now.duration_since(kept.since) >= KEEP)?;
        self.kept.remove(at).map(|kept| kept.task)
    }

    /// Gives up requests that should have ended long ago.
    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<_> =
            self.open.iter().filter(|(_, open)| open.end <= now).map(|(token, _)| *token).collect();
        for token in late {
            self.ended(token, None, now);
        }
    }

    /// The connection was lost, and every request with it.
    pub(super) fn lost(&mut self) {
        self.open.clear();
        self.backlog = 0;
        for level in &mut self.levels {
            *level = Level { is_suspect: true, ..Level::default() };
        }
    }

    /// When something is to be looked at again, beside what comes. While nothing can be asked for, as there is
    /// no connection, or a probe is to be answered first, it is of no use to look whether it should be.
    pub(super) fn wake_at(&self, may_ask: bool) -> Option<Instant> {
        let may_ask = may_ask && !self.open.values().any(|open| open.is_probe);
        let free = self.width.saturating_sub(self.busy);
        let is_waiting = may_ask && self.levels.iter().any(|level| level.asked < free);
        let calm = is_waiting.then(|| self.quiet_since + CALM);
        let too_long = self.kept.iter().map(|kept| kept.since + KEEP);
        self.open.values().map(|open| open.end).chain(calm).chain(too_long).min()
    }

    /// Whether something is asked for and not yet answered.
    pub(super) fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// More messages than may still come: tasks that were asked for, and statuses.
    pub(super) fn may_come(&self) -> usize {
        // Not by what is known to be open: some may have been taken for an answer to another request.
        self.levels.len() * 2 * self.width + MAX_AHEAD * self.width + self.open.len() + 8
    }
}

#[cfg(test)]
mod tests;
