//! Whether workers can be started at all, and how often it is tried.

use super::Nanos;
use crate::task::PoolError;

/// So many failures in a row, with no task done in between, break the pool.
const MAX_FAILURES: u32 = 3;

/// How long after the first failure in a row the next start waits; doubled with each other one.
const FIRST_BACKOFF: Nanos = 10_000_000;

/// For how long a pool that has broken fails its tasks before it tries again; doubled each time.
const FIRST_BREAK: Nanos = 1_000_000_000;

/// The longest wait.
const MAX_BACKOFF: Nanos = 30_000_000_000;

/// The record of failures to start workers.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: u32,
    last_failure: Nanos,
    /// No worker is started before this time.
    next_start: Nanos,
    cause: Option<PoolError>,
}

impl Health {
    /// A worker, whose start had begun at the given time, did not get ready, or died with nothing
    /// to do.
    ///
    /// Workers that were there at the last failure already do not count: what ends several at
    /// once is one failure.
    pub(super) fn failed(&mut self, cause: PoolError, started: Nanos, now: Nanos) {
        if self.failures > 0 && started <= self.last_failure {
            return;
        }
        self.last_failure = now;
        self.failures += 1;
        let wait = match self.failures.checked_sub(MAX_FAILURES) {
            None => FIRST_BACKOFF << (self.failures - 1),
            Some(breaks) => FIRST_BREAK << breaks.min(10),
        };
        self.next_start = now.saturating_add(wait.min(MAX_BACKOFF));
        // The first cause is the telling one: later ones may be its consequences.
        self.cause.get_or_insert(cause);
    }

    /// A worker has done a task.
    pub(super) fn worked(&mut self) {
        if self.failures > 0 {
            *self = Health::default();
        }
    }

    /// Why no worker can be started for now, if that has been tried often enough.
    pub(super) fn broken(&self, now: Nanos) -> Option<&PoolError> {
        let is_broken = self.failures >= MAX_FAILURES && now < self.next_start;
        self.cause.as_ref().filter(|_| is_broken)
    }

    /// When the next worker may be started.
    pub(super) fn next_start(&self) -> Nanos {
        self.next_start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_breaks_after_three_failures_and_mends_with_time_or_with_a_success() {
        let mut health = Health::default();
        for at in 1..4 {
            assert!(health.broken(at).is_none());
            health.failed(PoolError::BuildMismatch, at, at);
            // Another one that had begun before that.
            health.failed(PoolError::BuildMismatch, at, at);
        }
        assert!(health.broken(5).is_some());
        let later = health.next_start();
        assert!(health.broken(later).is_none());
        health.failed(PoolError::BuildMismatch, later, later);
        assert!(health.broken(later).is_some());
        health.worked();
        assert!(health.broken(later).is_none());
        assert_eq!(health.next_start(), 0);
    }
}
