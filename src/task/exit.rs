//! How a worker's process ended.

#[cfg(feature = "nats")]
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "nats", derive(Serialize, Deserialize))]
#[non_exhaustive]
pub enum ExitCause {
    /// It exited by itself; see [`WorkerExit::code`].
    Exited,
    /// A signal ended it; see [`WorkerExit::signal`].
    Signalled,
    /// It ran out of the memory that it was allowed. Where the machine or a control group runs out, the
    /// kernel kills processes: that is a signal, of which the text says that this may be why.
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
    /// Its machine, or the way there, is gone: nothing was heard of it any more, or its connection ended
    /// without a word. A task that it ran fails as [`TaskError::NodeLost`](crate::TaskError::NodeLost).
    NodeLost,
    /// Nothing is known but that it is gone: the fork server that would have told has died too.
    Unknown,
}

/// What is known of a worker's process that ended while a task ran in it.
#[derive(Clone)]
pub struct WorkerExit(pub(crate) Arc<ExitReport>);

/// The facts behind a [`WorkerExit`].
#[derive(Clone, Debug)]
#[cfg_attr(feature = "nats", derive(Serialize, Deserialize))]
pub(crate) struct ExitReport {
    pub(crate) pid: u32,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) core_dumped: bool,
    pub(crate) cause: ExitCause,
    pub(crate) detail: Option<String>,
    /// What people see of the task that ran.
    pub(crate) task: Option<String>,
    pub(crate) stderr_tail: String,
    pub(crate) stdout_tail: String,
    pub(crate) max_rss: u64,
    pub(crate) cpu_time: Duration,
}

impl WorkerExit {
    /// The same, of a task that ran.
    pub(crate) fn while_running(&self, task: String) -> WorkerExit {
        WorkerExit(Arc::new(ExitReport { task: Some(task), ..(*self.0).clone() }))
    }

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

    /// The task that ran, for people: its name if it has one, its function, and where it was
    /// submitted. `None` only for a worker that died without a task.
    pub fn task(&self) -> Option<&str> {
        self.0.task.as_deref()
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
    /// The kernel counts it from before `exec`. With [`StartMethod::Spawn`](crate::StartMethod::Spawn)
    /// that includes a moment in which the process still shared the memory of your program: it is
    /// known only of workers that have had more than your program ever had.
    pub fn max_rss(&self) -> u64 {
        self.0.max_rss
    }

    /// The processor time that it used over its life, all its threads together; zero when unknown.
    pub fn cpu_time(&self) -> Duration {
        self.0.cpu_time
    }
}

/// Shows what happened, to which worker and task, and what else may help to find out why.
impl fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &*self.0;
        write!(f, "worker {} {report}", report.pid)?;
        if let Some(task) = &report.task {
            write!(f, ", while it ran {task}")?;
        }
        if report.max_rss > 0 {
            write!(f, "; it had up to {} MiB of memory", report.max_rss.div_ceil(1 << 20))?;
        }
        // They may be meant to play tricks on a terminal.
        let shown = |line: &str| line.replace(char::is_control, "\u{fffd}");
        report.last_line().map_or(Ok(()), |line| write!(f, "; its last words: {}", shown(line)))
    }
}

/// What happened.
impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            ExitCause::Exited => match self.code {
                Some(code) => write!(f, "exited with code {code}")?,
                None => f.write_str("exited")?,
            },
            ExitCause::Signalled => match self.signal {
                Some(signal) => {
                    write!(f, "was ended by {}", SignalName(signal))?;
                    let meaning = meaning(signal).filter(|_| self.detail.is_none());
                    meaning.map_or(Ok(()), |meaning| write!(f, " ({meaning})"))?;
                }
                None => f.write_str("was ended by a signal")?,
            },
            ExitCause::OutOfMemory => f.write_str("ran out of memory")?,
            ExitCause::CpuTime => f.write_str("used up its processor time")?,
            ExitCause::StackOverflow => f.write_str("overflowed its stack")?,
            ExitCause::ProtocolViolation => f.write_str("broke the protocol")?,
            ExitCause::Unresponsive => f.write_str("did not react any more")?,
            ExitCause::NodeLost => f.write_str("is lost with its machine, or the way there")?,
            ExitCause::Unknown => f.write_str("is gone with the fork server, which would have told how")?,
        }
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        f.write_str(if self.core_dumped { ", and left a core dump" } else { "" })
    }
}

impl ExitReport {
    /// Of a process of which nothing is known but this.
    pub(crate) fn unknown(pid: u32, detail: String) -> ExitReport {
        ExitReport {
            pid,
            code: None,
            signal: None,
            core_dumped: false,
            cause: ExitCause::Unknown,
            detail: Some(detail),
            task: None,
            stderr_tail: String::new(),
            stdout_tail: String::new(),
            max_rss: 0,
            cpu_time: Duration::ZERO,
        }
    }

    /// The last line of standard error that says something, which a backtrace does not.
    fn last_line(&self) -> Option<&str> {
        let is_frame = |line: &str| {
            line.starts_with("at ") || line.split_once(": ").is_some_and(|(n, _)| n.parse::<u32>().is_ok())
        };
        let is_noise = |line: &str| {
            line.is_empty() || line.starts_with("note: ") || is_frame(line) || STANDING_WORDS.contains(&line)
        };
        self.stderr_tail.lines().rev().map(str::trim).find(|line| !is_noise(line))
    }
}

impl fmt::Debug for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What Rust's standard library and workers say whatever the matter is.
const STANDING_WORDS: [&str; 5] = [
    "stack backtrace:",
    "skipping backtrace printing to avoid potential recursion",
    "thread caused non-unwinding panic. aborting.",
    "thread panicked while processing panic. aborting.",
    crate::worker::NO_BACKTRACE,
];

/// What a signal is for when nobody in particular has sent it.
fn meaning(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGSEGV => {
            "an access to memory that is not there, or a stack overflow on a thread that the task has started"
        }
        libc::SIGBUS => {
            "an access to memory that nothing is behind: a mapped file that was cut short, or a full file system"
        }
        libc::SIGILL => "an instruction that the processor lacks, or a trap that a compiler has put there",
        libc::SIGFPE => "arithmetic without a result, such as an integer's division by zero",
        libc::SIGSYS => "a system call that no filter lets pass; in a sandbox, one for another architecture",
        libc::SIGXCPU => "its limit of processor time, which is none of the pool's",
        libc::SIGXFSZ => "its limit of a file's size",
        _ => return None,
    })
}

/// A signal's number and name.
pub(crate) struct SignalName(pub(crate) i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
        if real_time.contains(&self.0) {
            return write!(f, "SIGRTMIN+{} (signal {})", self.0 - real_time.start(), self.0);
        }
        match NAMES.iter().find(|(signal, _)| *signal == self.0) {
            Some((signal, name)) => write!(f, "{name} (signal {signal})"),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// Those that can end a process, in their order on most architectures.
#[rustfmt::skip]
const NAMES: &[(i32, &str)] = &[
    (libc::SIGHUP, "SIGHUP"), (libc::SIGINT, "SIGINT"), (libc::SIGQUIT, "SIGQUIT"), (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"), (libc::SIGABRT, "SIGABRT"), (libc::SIGBUS, "SIGBUS"), (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"), (libc::SIGUSR1, "SIGUSR1"), (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"), (libc::SIGPIPE, "SIGPIPE"), (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"), #[cfg(target_os = "linux")] (libc::SIGSTKFLT, "SIGSTKFLT"),
    (libc::SIGXCPU, "SIGXCPU"), (libc::SIGXFSZ, "SIGXFSZ"), (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"), (libc::SIGIO, "SIGIO"), (libc::SIGPWR, "SIGPWR"), (libc::SIGSYS, "SIGSYS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(report: ExitReport) -> String {
        WorkerExit(Arc::new(report)).to_string()
    }

    fn report(cause: ExitCause) -> ExitReport {
        ExitReport {
            pid: 7,
            code: None,
            signal: None,
            core_dumped: false,
            cause,
            detail: None,
            task: None,
            stderr_tail: String::new(),
            stdout_tail: String::new(),
            max_rss: 0,
            cpu_time: Duration::ZERO,
        }
    }

    #[test]
    fn an_exit_is_told_in_words() {
        let told = exit(ExitReport { code: Some(3), ..report(ExitCause::Exited) });
        assert_eq!(told, "worker 7 exited with code 3");
        let told = exit(ExitReport {
            signal: Some(libc::SIGSEGV),
            core_dumped: true,
            task: Some("`decode` (submitted at main.rs:1:2)".into()),
            max_rss: 5_000_000,
            stderr_tail:
                "first\nthe end\nstack backtrace:\n   0: app::main\n             at ./main.rs:1\nnote: \
                          run with `RUST_BACKTRACE=1` environment variable\n\n"
                    .into(),
            ..report(ExitCause::Signalled)
        });
        assert_eq!(
            told,
            "worker 7 was ended by SIGSEGV (signal 11) (an access to memory that is not there, or a stack \
             overflow on a thread that the task has started), and left a core dump, while it ran `decode` \
             (submitted at main.rs:1:2); it had up to 5 MiB of memory; its last words: the end"
        );
        let told = exit(ExitReport { signal: Some(libc::SIGABRT), ..report(ExitCause::Signalled) });
        assert_eq!(told, "worker 7 was ended by SIGABRT (signal 6)");
    }

    #[test]
    fn signals_have_names() {
        let name = |signal| SignalName(signal).to_string();
        assert_eq!(name(libc::SIGPROF), format!("SIGPROF (signal {})", libc::SIGPROF));
        assert_eq!(name(libc::SIGRTMIN()), format!("SIGRTMIN+0 (signal {})", libc::SIGRTMIN()));
        let last = libc::SIGRTMAX();
        assert_eq!(name(last), format!("SIGRTMIN+{} (signal {last})", last - libc::SIGRTMIN()));
        assert_eq!(name(0), "signal 0");
    }

    #[test]
    fn last_words_are_those_that_say_something() {
        let said = |tail: &str| exit(ExitReport { stderr_tail: tail.into(), ..report(ExitCause::Exited) });
        let told = said(
            "memory allocation of 8 bytes failed\nskipping backtrace printing to avoid potential recursion\n",
        );
        assert_eq!(told, "worker 7 exited; its last words: memory allocation of 8 bytes failed");
        let told =
            said("at a.rs:1:\nno more\nstack backtrace:\nthread caused non-unwinding panic. aborting.\n");
        assert_eq!(told, "worker 7 exited; its last words: no more");
    }
}
