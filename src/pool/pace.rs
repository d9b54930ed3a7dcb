//! How much a worker may say beside its answers: how far its task has got, and that an item has begun.

use super::scheduler::Nanos;
use crate::wire::Batch;
use std::time::Duration;

/// How many reports may come in a row. With each answer there may be some more, and with time: several times as
/// many as a worker that means well sends.
const BURST: u64 = 1024;
const WITH_AN_ANSWER: u64 = 4;
const NANOS_A_REPORT: Nanos = 1_000_000;

/// How long a worker that says too much is not listened to.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) struct Pace {
    left: u64,
    counted: Nanos,
    is_too_much: bool,
}

impl Pace {
    pub(super) fn new(now: Nanos) -> Pace {
        Pace { left: BURST, counted: now, is_too_much: false }
    }

    /// Counts what has come.
    pub(super) fn count(&mut self, batch: &Batch, now: impl FnOnce() -> Nanos) {
        self.count_as(batch.reports, batch.answers, now);
    }

    fn count_as(&mut self, reports: u64, answers: u64, now: impl FnOnce() -> Nanos) {
        let reports = reports.saturating_sub(answers * WITH_AN_ANSWER);
        if reports == 0 {
            return;
        }
        let more = now().saturating_sub(self.counted) / NANOS_A_REPORT;
        self.counted = self.counted.saturating_add(more.saturating_mul(NANOS_A_REPORT));
        let left = self.left.saturating_add(more).min(BURST);
        self.is_too_much = reports > left;
        self.left = left.saturating_sub(reports);
    }

    /// How long not to listen, since too much was said.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.is_too_much).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_means_well_is_listened_to_and_who_does_not_is_let_wait() {
        let mut pace = Pace::new(0);
        // Tasks of no length, with a report or two each.
        for _ in 0..10_000 {
            pace.count_as(300, 200, || 1);
            assert_eq!(pace.pause(), None);
        }
        // A long task, with twice as many reports as it may have.
        for at in 0..10_000 {
            pace.count_as(1, 0, || at * 10_000_000);
            assert_eq!(pace.pause(), None);
        }
        let now = 100_000_000_000;
        let pauses = (0..100).filter(|_| {
            pace.count_as(512, 0, || now);
            pace.pause().is_some()
        });
        assert_eq!(pauses.count(), 98);
        pace.count_as(512, 0, || now + 512 * NANOS_A_REPORT);
        assert_eq!(pace.pause(), None);
    }
}
