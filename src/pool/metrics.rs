//! A pool's metrics, through the facade of the crate `metrics`.
//!
//! All handles are made when the pool is built, so that an event costs no look-up; and what has not
//! happened yet is there as a zero.

use super::observe::{Attempt, Cause, Ending, Event, Levels, Observe};
use super::scheduler::{Departure, Loads};
use crate::sys::monotonic_now;
use crate::task::ExitCause;
use ::metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
use futures::future::{BoxFuture, FutureExt};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Every ending that there is, each at its own place.
const ENDINGS: [Ending; Ending::PoolBroken as usize + 1] = [
    Ending::Succeeded,
    Ending::Panicked,
    Ending::Failed,
    Ending::WorkerDied,
    Ending::TimedOut,
    Ending::Cancelled,
    Ending::Codec,
    Ending::TooLarge,
    Ending::QueueFull,
    Ending::ShutDown,
    Ending::NotInMainImage,
    Ending::NodeLost,
    Ending::PoolBroken,
];

/// Every cause for which a worker may end.
const CAUSES: [Cause; 14] = [
    Cause::Pool(Departure::Retired),
    Cause::Pool(Departure::Recycled),
    Cause::Pool(Departure::ShutDown),
    Cause::Pool(Departure::TimedOut),
    Cause::Pool(Departure::Cancelled),
    Cause::Exit(ExitCause::Exited),
    Cause::Exit(ExitCause::Signalled),
    Cause::Exit(ExitCause::OutOfMemory),
    Cause::Exit(ExitCause::CpuTime),
    Cause::Exit(ExitCause::StackOverflow),
    Cause::Exit(ExitCause::ProtocolViolation),
    Cause::Exit(ExitCause::Unresponsive),
    Cause::Exit(ExitCause::NodeLost),
    Cause::Exit(ExitCause::Unknown),
];

pub(super) struct Meters {
    tasks: [Counter; ENDINGS.len()],
    retries: Counter,
    queue_time: Histogram,
    run_time: Histogram,
    argument_bytes: Counter,
    result_bytes: Counter,
    starts: Counter,
    start_failures: Counter,
    start_time: Histogram,
    restarts: Counter,
    exits: [(Cause, Counter); CAUSES.len()],
    gauges: Gauges,
    /// What the gauges add up to, or are about to.
    shown: Mutex<Levels>,
}

/// What goes up and down.
struct Gauges {
    queued: Gauge,
    running: Gauge,
    starting: Gauge,
    idle: Gauge,
    busy: Gauge,
    retiring: Gauge,
}

impl Meters {
    /// Handles of the recorder that is set on this thread or for the program.
    pub(super) fn new(pool: &str) -> Meters {
        describe();
        let pool = pool.to_string();
        let count = |name: &'static str| counter!(name, "pool" => pool.clone());
        let time = |name: &'static str| histogram!(name, "pool" => pool.clone());
        let tasks = |ending: Ending| counter!(TASKS, "pool" => pool.clone(), "outcome" => ending.name());
        let exits =
            |cause: Cause| (cause, counter!(WORKER_EXITS, "pool" => pool.clone(), "cause" => cause.name()));
        Meters {
            tasks: ENDINGS.map(tasks),
            retries: count(TASK_RETRIES),
            queue_time: time(TASK_QUEUE),
            run_time: time(TASK_RUN),
            argument_bytes: count(ARGUMENT_BYTES),
            result_bytes: count(RESULT_BYTES),
            starts: count(WORKER_STARTS),
            start_failures: count(WORKER_START_FAILURES),
            start_time: time(WORKER_START),
            restarts: count(WORKER_RESTARTS),
            exits: CAUSES.map(exits),
            gauges: Gauges::new(&pool),
            shown: Mutex::default(),
        }
    }

    fn count_task(&self, ending: Ending) {
        if let Some(counter) = self.tasks.get(ending as usize) {
            counter.increment(1);
        }
    }

    fn count_attempt(&self, attempt: &Attempt) {
        if attempt.is_retried {
            self.retries.increment(1);
        } else {
            self.count_task(attempt.ending);
        }
        let Some(began) = attempt.began else { return };
        self.argument_bytes.increment(attempt.bytes_in as u64);
        self.result_bytes.increment(attempt.bytes_out as u64);
        if !attempt.is_retried {
            self.queue_time.record(seconds(began.saturating_sub(attempt.task.submitted())));
            self.run_time.record(seconds(attempt.ended.saturating_sub(began)));
        }
    }

    fn count_start(&self, is_restart: bool, took: u64) {
        self.starts.increment(1);
        self.restarts.increment(u64::from(is_restart));
        self.start_time.record(seconds(took));
    }

    fn count_exit(&self, cause: Cause) {
        if let Some((_, counter)) = self.exits.iter().find(|(known, _)| *known == cause) {
            counter.increment(1);
        }
    }
}

impl Observe for Meters {
    fn see(&self, event: &Event) {
        match event {
            Event::Refused { ending, .. } => self.count_task(*ending),
            Event::Attempt(attempt) => self.count_attempt(attempt),
            Event::WorkerReady { wanted, is_restart, at, .. } => {
                self.count_start(*is_restart, at.saturating_sub(*wanted));
            }
            Event::StartFailed { .. } => self.start_failures.increment(1),
            Event::WorkerGone { cause, .. } => self.count_exit(*cause),
        }
    }

    fn measure(&self, levels: &Levels) {
        let Some(shown) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).advance(levels) else {
            return;
        };
        // Not under the lock: a recorder may do anything, and steps add up in whatever order they come.
        self.gauges.step(shown, levels.loads);
    }

    fn end(&self) -> BoxFuture<'static, ()> {
        // Of a pool that has lost its runtime, workers were never seen to end.
        let none = Levels { number: u64::MAX, at: monotonic_now(), loads: Loads::default() };
        self.measure(&none);
        std::future::ready(()).boxed()
    }
}

impl Gauges {
    fn new(pool: &str) -> Gauges {
        let tasks = |name: &'static str| gauge!(name, "pool" => pool.to_string());
        let workers = |state: &'static str| gauge!(WORKERS, "pool" => pool.to_string(), "state" => state);
        let gauges = Gauges {
            queued: tasks(TASKS_QUEUED),
            running: tasks(TASKS_RUNNING),
            starting: workers("starting"),
            idle: workers("idle"),
            busy: workers("busy"),
            retiring: workers("retiring"),
        };
        // There from the first; and another pool may have the same name.
        gauges.each(Loads::default()).into_iter().for_each(|(gauge, _)| gauge.increment(0.0));
        gauges
    }

    /// Shows what has changed.
    fn step(&self, old: Loads, new: Loads) {
        for ((gauge, value), (_, shown)) in self.each(new).into_iter().zip(self.each(old)) {
            if value != shown {
                gauge.increment(value as f64 - shown as f64);
            }
        }
    }

    fn each(&self, loads: Loads) -> [(&Gauge, usize); 6] {
        [
            (&self.queued, loads.queued),
            (&self.running, loads.running),
            (&self.starting, loads.starting),
            (&self.idle, loads.idle),
            (&self.busy, loads.busy),
            (&self.retiring, loads.retiring),
        ]
    }
}

const TASKS: &str = "procession_tasks_total";
const TASK_RETRIES: &str = "procession_task_retries_total";
const TASK_QUEUE: &str = "procession_task_queue_seconds";
const TASK_RUN: &str = "procession_task_run_seconds";
const ARGUMENT_BYTES: &str = "procession_task_argument_bytes_total";
const RESULT_BYTES: &str = "procession_task_result_bytes_total";
const TASKS_QUEUED: &str = "procession_tasks_queued";
const TASKS_RUNNING: &str = "procession_tasks_running";
const WORKERS: &str = "procession_workers";
const WORKER_STARTS: &str = "procession_worker_starts_total";
const WORKER_START_FAILURES: &str = "procession_worker_start_failures_total";
const WORKER_START: &str = "procession_worker_start_seconds";
const WORKER_RESTARTS: &str = "procession_worker_restarts_total";
const WORKER_EXITS: &str = "procession_worker_exits_total";

/// Tells the recorder what all of them are.
fn describe() {
    for (name, unit, text) in [
        (TASKS, Unit::Count, "Tasks that are over, and those that were refused, by outcome."),
        (TASK_RETRIES, Unit::Count, "Attempts at tasks that were followed by another."),
        (ARGUMENT_BYTES, Unit::Bytes, "Encoded arguments of the attempts that a worker began."),
        (RESULT_BYTES, Unit::Bytes, "Encoded results."),
        (WORKER_STARTS, Unit::Count, "Workers that got ready."),
        (WORKER_START_FAILURES, Unit::Count, "Workers that did not get ready."),
        (WORKER_RESTARTS, Unit::Count, "Workers that got ready in place of one that had died."),
        (WORKER_EXITS, Unit::Count, "Workers that have ended after they were ready, by cause."),
    ] {
        ::metrics::describe_counter!(name, unit, text);
    }
    for (name, text) in [
        (TASK_QUEUE, "From when a task was submitted until a worker began it."),
        (TASK_RUN, "From when a worker began a task until it was done or the worker dead."),
        (WORKER_START, "From when a worker was wanted until it was ready."),
    ] {
        ::metrics::describe_histogram!(name, Unit::Seconds, text);
    }
    for (name, text) in [
        (TASKS_QUEUED, "Accepted tasks that no worker has in hand."),
        (TASKS_RUNNING, "Accepted tasks that a worker has in hand."),
        (WORKERS, "Workers, by state."),
    ] {
        ::metrics::describe_gauge!(name, Unit::Count, text);
    }
}

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_ending_has_its_place_and_each_label_is_used_once() {
        assert!(ENDINGS.iter().enumerate().all(|(at, ending)| *ending as usize == at));
        let names: HashSet<_> = ENDINGS.iter().map(|ending| ending.name()).collect();
        assert_eq!(names.len(), ENDINGS.len());
        let names: HashSet<_> = CAUSES.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), CAUSES.len());
    }
}
