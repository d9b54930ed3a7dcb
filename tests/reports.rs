//! Where a task was when its time ran out.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

#[macro_use]
mod common;

use common::{Open, a_worker};
use procession::{Builder, ProcessPool, Sandbox, TaskError, TimeoutReport};
use std::hint::black_box;
use std::time::Duration;

both! {
    a_task_that_spins_is_found,
    a_task_that_waits_is_found,
    an_async_task_is_found,
    a_stopped_task_is_found,
    a_task_within_the_allocator_ends_all_the_same,
    a_task_on_a_thread_of_its_own_is_found_waiting,
    a_sandboxed_task_is_found,
    nobody_is_asked_unless_that_was_wanted,
    a_task_that_is_tried_again_may_succeed,
    shutting_down_does_not_wait_for_an_answer_that_does_not_come,
}

const LIMIT: Duration = Duration::from_millis(100);

fn reporting(builder: Builder) -> ProcessPool {
    builder.workers(1).timeout_reports(true).task_timeout(LIMIT).open().unwrap()
}

/// Has a task time out, and gives what is known of where it was.
macro_rules! report {
    ($pool:ident, $task:expr, $arguments:expr) => {{
        let pid = a_worker(&$pool).await;
        let mut handle = $pool.submit($task, $arguments);
        assert_matches!((&mut handle).await, Err(TaskError::TimedOut { limit: LIMIT }));
        assert_ne!(a_worker(&$pool).await, pid, "the worker was replaced");
        handle.timeout_report().expect("a report")
    }};
}

#[inline(never)]
fn go_round_and_round(mut number: u64) -> u64 {
    while number != 0 {
        number = black_box(number | 1);
    }
    number
}

fn sleep_long() {
    std::thread::sleep(Duration::from_secs(600));
}

fn names(report: &TimeoutReport, function: &str) -> bool {
    report.backtrace().is_some_and(|trace| trace.contains(function) && !trace.contains("on_question"))
}

async fn a_task_that_spins_is_found(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    let pool = reporting(builder);
    let report = report!(pool, go_round_and_round, 1);
    assert!(names(&report, "go_round_and_round"), "{report:#?}");
    assert!(report.to_string().contains("go_round_and_round"));
    pool.shutdown().await;
}

async fn a_task_that_waits_is_found(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    let pool = reporting(builder);
    let report = report!(pool, sleep_long, ());
    assert!(names(&report, "sleep_long"), "{report:#?}");
    assert_eq!(report.state(), Some('S'));
    assert!(report.to_string().starts_with("it was waiting"));
    pool.shutdown().await;
}

async fn an_async_task_is_found(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    async fn never() {
        std::future::pending().await
    }
    let pool = reporting(builder);
    let report = report!(pool, never, ());
    assert!(names(&report, "park"), "{report:#?}");
    pool.shutdown().await;
}

async fn a_stopped_task_is_found(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    // SAFETY: the process stops itself.
    let stop = || unsafe { libc::raise(libc::SIGSTOP) };
    let pool = reporting(builder);
    let report = report!(pool, stop, ());
    assert_eq!((report.state(), report.backtrace()), (Some('T'), None));
    pool.shutdown().await;
}

/// The allocator's lock may be held by the thread that is to answer: with luck it answers, without
/// it is killed.
async fn a_task_within_the_allocator_ends_all_the_same(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    fn allocate(size: usize) -> usize {
        let mut total = 0_usize;
        loop {
            total = total.wrapping_add(black_box(Vec::<u8>::with_capacity(size)).capacity());
            if black_box(total) == 1 {
                return total;
            }
        }
    }
    let pool = reporting(builder);
    let report = report!(pool, allocate, 100);
    assert!(report.backtrace().is_none() || names(&report, "allocate"), "{report:#?}");
    pool.shutdown().await;
}

/// The signal may find any thread; the one that it is about is the task's.
async fn a_task_on_a_thread_of_its_own_is_found_waiting(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    fn wait_for_thread() {
        std::thread::spawn(|| go_round_and_round(1)).join().unwrap();
    }
    let pool = reporting(builder);
    let report = report!(pool, wait_for_thread, ());
    assert!(names(&report, "wait_for_thread"), "{report:#?}");
    pool.shutdown().await;
}

async fn a_sandboxed_task_is_found(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    let builder = builder.workers(1).timeout_reports(true).task_timeout(LIMIT);
    let pool = match builder.sandbox(Sandbox::new()).open() {
        Ok(pool) => pool,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let report = report!(pool, go_round_and_round, 1);
    assert!(names(&report, "go_round_and_round"), "{report:#?}");
    pool.shutdown().await;
}

async fn nobody_is_asked_unless_that_was_wanted(builder: Builder) {
    let pool = builder.workers(1).task_timeout(LIMIT).open().unwrap();
    let mut handle = pool.submit(sleep_long, ());
    assert_matches!((&mut handle).await, Err(TaskError::TimedOut { .. }));
    assert_eq!(handle.timeout_report(), None);
    pool.shutdown().await;
}

async fn a_task_that_is_tried_again_may_succeed(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    fn second_time_lucky() -> u32 {
        let attempt = procession::worker::current().unwrap().attempt();
        if attempt == 1 {
            sleep_long();
        }
        attempt
    }
    let pool = reporting(builder);
    let mut handle = pool.task(second_time_lucky, ()).timeout(LIMIT).retries(1).submit();
    assert_eq!((&mut handle).await.unwrap(), 2);
    assert_eq!(handle.timeout_report(), None);
    pool.shutdown().await;
}

async fn shutting_down_does_not_wait_for_an_answer_that_does_not_come(builder: Builder) {
    here_only!("nobody looks at workers elsewhere: `timeout_reports` are refused");
    fn block_everything() {
        // SAFETY: the set is filled before it is used, and nothing here needs a signal.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        }
        sleep_long();
    }
    let pool = reporting(builder);
    let mut handle = pool.submit(block_everything, ());
    assert_matches!((&mut handle).await, Err(TaskError::TimedOut { .. }));
    let report = handle.timeout_report().unwrap();
    assert_eq!((report.state(), report.backtrace()), (Some('S'), None));
    pool.shutdown().await;
}
