//! The scheduler alone, for the benchmarks.

use super::{Answer, Config, Ledger, Nanos, Scheduler, Terms, WorkerKey};

/// Submits so many tasks with one worker that is ready, and has it answer one by one.
pub(crate) fn cycle(tasks: u64) -> u64 {
    struct Never;
    impl Ledger for Never {
        fn offer(&self, _: WorkerKey, _: u64) {}
        fn take_back(&self, _: WorkerKey, _: u64) -> bool {
            false
        }
        fn is_finished(&self, _: WorkerKey, _: u64) -> bool {
            false
        }
        fn written(&self, _: WorkerKey) -> u64 {
            0
        }
        fn began_at(&self, _: WorkerKey, _: u64) -> Option<Nanos> {
            None
        }
    }
    let config = Config {
        death_limit: 1_000_000_000,
        recycles_at_once: false,
        max_workers: 1,
        min_workers: 1,
        idle_timeout: Nanos::MAX,
        cancel_grace: 0,
        max_tasks_per_worker: u64::MAX,
    };
    let mut scheduler = Scheduler::new(config);
    scheduler.open(0, &Never);
    scheduler.worker_ready(0, true, 0, &Never);
    for id in 0..tasks {
        let _ = scheduler.submit((), id, Terms::default(), id, &Never);
        scheduler.actions.clear();
    }
    let answer = Answer { is_value: true, ..Answer::default() };
    for seq in 1..=tasks {
        let _ = scheduler.answered(0, seq, answer, tasks + seq);
        scheduler.answers_end(0, tasks + seq, &Never);
        scheduler.actions.clear();
    }
    scheduler.counts.succeeded
}
