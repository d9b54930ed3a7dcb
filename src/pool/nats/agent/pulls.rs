//! What an agent asks the server for.
//!
//! A request names a level and how many tasks there may be at most; the server answers with tasks, at once
//! or as they come, and ends it with a status. Requests cannot be taken back, so there are never more
//! normal tasks asked for than there are free workers. For the other levels:
//!
//! * A level that is known or suspected to have tasks is *probed*: asked for what is there at this moment,
//!   with nothing else asked for meanwhile. The high level is, now and then, in any case.
//! * When nothing has come for a moment, the agent waits on all levels at once, for a shorter time on those
//!   beside the normal. So it may be sent more than it has workers for, and hands that back.

use crate::task::Priority;
use std::collections::HashMap;
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

pub(super) struct Pulls {
    /// The most tasks at once.
    width: usize,
    /// How many there are.
    busy: usize,
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

impl Pulls {
    pub(super) fn new(width: usize, now: Instant) -> Pulls {
        let mut levels = <[Level; 3]>::default();
        levels.iter_mut().for_each(|level| level.is_suspect = true);
        Pulls { width, busy: 0, open: HashMap::new(), levels, next_token: 1, quiet_since: now }
    }

    /// What to ask for next.
    pub(super) fn next(&mut self, now: Instant) -> Option<Request> {
        if self.open.values().any(|open| open.is_probe) {
            return None;
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

    /// A task of this level has come; whether there is a worker for it. It does not say in answer to which
    /// request: to the oldest, as far as is known.
    pub(super) fn came(&mut self, level: Priority, now: Instant) -> bool {
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
        let has_worker = self.busy < self.width;
        self.busy += usize::from(has_worker);
        has_worker
    }

    /// A request is over, with so many tasks missing, if the server says how many: else all that are not
    /// known to have come.
    pub(super) fn ended(&mut self, token: u64, missing: Option<usize>, now: Instant) {
        let Some(open) = self.open.remove(&token) else { return };
        let level = &mut self.levels[at(open.level)];
        level.asked = level.asked.saturating_sub(missing.unwrap_or(open.tasks));
        level.is_suspect = false;
        level.empty_at = Some(now);
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

    /// A worker is free again.
    pub(super) fn freed(&mut self, now: Instant) {
        self.busy -= 1;
        self.quiet_since = now;
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
        for level in &mut self.levels {
            *level = Level { is_suspect: true, ..Level::default() };
        }
    }

    /// When something is to be looked at again, beside what comes.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let is_waiting = self.levels.iter().any(|level| level.asked < self.width.saturating_sub(self.busy));
        let calm = is_waiting.then(|| self.quiet_since + CALM);
        self.open.values().map(|open| open.end).chain(calm).min()
    }

    /// Whether something is asked for and not yet answered.
    pub(super) fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// More messages than may still come: tasks that were asked for, and statuses.
    pub(super) fn may_come(&self) -> usize {
        // Not by what is known to be open: some may have been taken for an answer to another request.
        self.levels.len() * 2 * self.width + self.open.len() + 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(pulls: &mut Pulls, request: &Request, now: Instant) {
        pulls.ended(request.token, None, now);
    }

    #[test]
    fn with_nothing_to_do_it_waits_on_all_levels() {
        let start = Instant::now();
        let mut pulls = Pulls::new(2, start);
        for level in [Priority::High, Priority::Normal, Priority::Low] {
            let probe = pulls.next(start).unwrap();
            assert_eq!((probe.level, probe.tasks, probe.wait), (level, 2, None));
            assert_eq!(pulls.next(start), None);
            ends(&mut pulls, &probe, start);
        }
        let normal = pulls.next(start).unwrap();
        assert_eq!((normal.level, normal.tasks, normal.wait), (Priority::Normal, 2, Some(LONG_WAIT)));
        assert_eq!(pulls.next(start), None);
        let calm = start + CALM;
        assert_eq!(pulls.wake_at(), Some(calm));
        let also: Vec<_> = std::iter::from_fn(|| pulls.next(calm)).map(|request| request.level).collect();
        assert_eq!(also, [Priority::High, Priority::Low]);
    }

    #[test]
    fn a_worker_that_gets_free_is_asked_for_once() {
        let start = Instant::now();
        let mut pulls = Pulls::new(1, start);
        for _ in 0..3 {
            let probe = pulls.next(start).unwrap();
            ends(&mut pulls, &probe, start);
        }
        for _ in 0..10 {
            let request = pulls.next(start).unwrap();
            assert_eq!((request.level, request.tasks), (Priority::Normal, 1));
            assert!(pulls.came(request.level, start));
            assert_eq!(pulls.next(start), None);
            pulls.freed(start);
        }
        // After a while, whether there is something more urgent.
        let later = start + PROBE_EVERY * 2;
        let request = pulls.next(later).unwrap();
        assert_eq!((request.level, request.wait), (Priority::High, None));
        ends(&mut pulls, &request, later);
        assert_eq!(pulls.next(later).unwrap().level, Priority::Normal);
    }

    #[test]
    fn what_comes_with_all_workers_busy_is_too_much() {
        let now = Instant::now();
        let mut pulls = Pulls::new(1, now);
        assert!(pulls.came(Priority::Normal, now));
        assert!(!pulls.came(Priority::High, now));
        pulls.freed(now);
        assert!(pulls.came(Priority::Low, now));
    }
}
