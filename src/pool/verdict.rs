//! Why a worker's process has ended, by what is known of it.

use crate::process::Limits;
use crate::sys::fault::{CUT_OFF, STACK_OVERFLOW};
use crate::task::{ExitCause, ExitReport};

/// Finds out why a worker has ended, which the pool has not killed, from its report and the words that it
/// has left.
pub(super) fn explain(report: &mut ExitReport, limits: &Limits, last_words: u64) {
    if report.signal.is_some() && last_words == STACK_OVERFLOW {
        report.cause = ExitCause::StackOverflow;
    } else if is_out_of_time(report, limits.cpu_seconds()) {
        report.cause = ExitCause::CpuTime;
        report.detail = limits.cpu_seconds().map(|limit| format!("it may have {limit} s"));
    } else if is_out_of_memory(report, limits.memory) {
        report.cause = ExitCause::OutOfMemory;
        report.detail = limits.memory.map(|limit| format!("it may have {} MiB", limit >> 20));
    } else if report.code == Some(1) && last_words == CUT_OFF {
        let what = "it had lost its way to the pool: the task, or a library, has closed or replaced a \
                    descriptor that is not its own";
        report.detail.get_or_insert_with(|| what.into());
    }
}

/// Whether a worker was ended for the processor time that it had used. Who catches the first signal
/// is killed by the second.
///
/// Who has caught SIGXCPU is killed a second later. The kernel upholds that by whole ticks of its
/// clock, but reports the exact time in the end: on a busy machine 0.72 of its count were seen.
fn is_out_of_time(report: &ExitReport, seconds: Option<u64>) -> bool {
    seconds.is_some_and(|seconds| match report.signal {
        Some(libc::SIGXCPU) => true,
        Some(libc::SIGKILL) => report.cpu_time.as_secs_f64() >= (seconds as f64 + 1.0) * 0.6,
        _ => false,
    })
}

/// Whether a worker died for want of memory: as Rust's allocation failures say, or with a limit those of
/// C and C++ libraries, or because it died close to its limit.
fn is_out_of_memory(report: &ExitReport, limit: Option<u64>) -> bool {
    let is_abort = report.signal == Some(libc::SIGABRT);
    let says = |words: &str| report.stderr_tail.contains(words);
    if is_abort && says("memory allocation of ") {
        return true;
    }
    if is_abort
        && limit.is_some()
        && ["std::bad_alloc", "out of memory", "Cannot allocate memory"].map(says).contains(&true)
    {
        return true;
    }
    let is_crash = is_abort || matches!(report.signal, Some(libc::SIGSEGV | libc::SIGBUS));
    limit.is_some_and(|limit| is_crash && report.max_rss >= limit / 10 * 9)
}
