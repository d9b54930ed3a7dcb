//! How a worker's process ended.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitCause {
    /// It exited by itself; see [`WorkerExit::code`].
    Exited,
    /// A signal ended it; see [`WorkerExit::signal`].
    Signalled,
    /// It ran out of the memory that it was allowed.
    OutOfMemory,
    /// It used up the processor time that it was allowed.
    CpuTime,
    /// The task's stack overflowed: that of the thread that the worker runs it on. On a thread that
    /// the task has started it is just a signal.
    StackOverflow,
    /// It sent something that no worker sends, and was killed for it.
    ProtocolViolation,
    /// It did not react any more, and was killed for it.
    Unresponsive,
    /// Nothing is known but that it is gone: the fork server that would have told has died too.
    Unknown,
}

/// What is known of a worker's process that ended while a task ran in it.
#[derive(Clone)]
pub struct WorkerExit(pub(crate) Arc<ExitReport>);

/// The facts behind a [`WorkerExit`].
#[derive(Debug)]
pub(crate) struct ExitReport {
    pub(crate) pid: u32,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) core_dumped: bool,
    pub(crate) cause: ExitCause,
    pub(crate) detail: Option<String>,
    pub(crate) stderr_tail: String,
    pub(crate) stdout_tail: String,
    pub(crate) max_rss: u64,
    pub(crate) cpu_time: Duration,
}

impl WorkerExit {
    /// The process id that it had.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Its exit code, if it exited by itself. Code 0 in the midst of a task is a death too.
    pub fn code(&self) -> Option<i32> {
        self.0.code
    }

    /// The number of the signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        self.0.signal
    }

    /// Whether it left a core dump.
    pub fn core_dumped(&self) -> bool {
        self.0.core_dumped
    }

    /// Why it ended, as far as that can be told.
    pub fn cause(&self) -> ExitCause {
        self.0.cause
    }

    /// The last that it wrote to standard error: at most 8 KiB, not necessarily UTF-8 in the
    /// original. Empty when its standard error is [`WorkerStdio::Null`](crate::WorkerStdio::Null).
    pub fn stderr_tail(&self) -> &str {
        &self.0.stderr_tail
    }

    /// The last that it wrote to standard output, if that is
    /// [`WorkerStdio::Capture`](crate::WorkerStdio::Capture); at most 8 KiB.
    pub fn stdout_tail(&self) -> &str {
        &self.0.stdout_tail
    }

    /// The most resident memory that it had, in bytes; 0 when unknown.
    ///
    /// The kernel counts it from `fork`. With [`StartMethod::Spawn`](crate::StartMethod::Spawn)
    /// that includes the moment before `exec`, in which the process still shared the memory of
    /// your program: the figure is then at least the resident size of your program.
    pub fn max_rss(&self) -> u64 {
        self.0.max_rss
    }

    /// The processor time that it used over its life, all its threads together; zero when unknown.
    pub fn cpu_time(&self) -> Duration {
        self.0.cpu_time
    }
}

impl fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &*self.0;
        write!(f, "worker {} ", report.pid)?;
        match report.cause {
            ExitCause::OutOfMemory => f.write_str("ran out of memory")?,
            ExitCause::CpuTime => f.write_str("used up its processor time")?,
            ExitCause::StackOverflow => f.write_str("overflowed its stack")?,
            ExitCause::ProtocolViolation => f.write_str("broke the protocol")?,
            ExitCause::Unresponsive => f.write_str("did not react any more")?,
            ExitCause::Unknown => f.write_str("is gone")?,
            ExitCause::Exited | ExitCause::Signalled => f.write_str("died")?,
        }
        if let Some(detail) = &report.detail {
            write!(f, " ({detail})")?;
        }
        if let Some(code) = report.code {
            write!(f, ", exit code {code}")?;
        }
        if let Some(signal) = report.signal {
            write!(f, ", signal {signal}{}", signal_name(signal))?;
        }
        if report.core_dumped {
            f.write_str(", core dumped")?;
        }
        let last_line = report.stderr_tail.lines().rev().find(|line| !line.trim().is_empty());
        last_line.map_or(Ok(()), |line| write!(f, "; its last words: {}", line.trim()))
    }
}

impl fmt::Debug for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGPIPE => " (SIGPIPE)",
        libc::SIGQUIT => " (SIGQUIT)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGSYS => " (SIGSYS)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGTRAP => " (SIGTRAP)",
        libc::SIGXCPU => " (SIGXCPU)",
        _ => "",
    }
}
