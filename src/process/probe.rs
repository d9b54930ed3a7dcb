//! Looking at what a process does, from outside and by asking it.

use crate::sys::child::ProcessFd;
use crate::sys::question;
use crate::task::TimeoutReport;
use std::fs::read_to_string;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The longest text of the kernel's that is kept.
const MAX_TEXT: usize = 4096;

/// How many threads are looked at: a task may have started any number.
const MAX_THREADS: usize = 64;

/// Looks at one worker's process.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(super) pid: u32,
    pub(super) process: Arc<ProcessFd>,
}

impl Probe {
    /// What the thread that runs tasks does, as the kernel sees it; nothing, if the process has
    /// ended.
    pub(crate) fn look(&self) -> TimeoutReport {
        let seen = self.look_at_what_may_be_another();
        // It may have ended by itself meanwhile, and its number have gone to another process.
        if self.process.wait_ended(Duration::ZERO) { TimeoutReport::default() } else { seen }
    }

    fn look_at_what_may_be_another(&self) -> TimeoutReport {
        let Some(thread) = self.task_thread() else { return TimeoutReport::default() };
        let read = |file: &str| {
            let mut text = read_to_string(thread.join(file)).ok()?;
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            Some(text)
        };
        let state = read("stat").and_then(|stat| stat.rsplit(") ").next()?.chars().next());
        // "0" says that it does not wait, or that the kernel does not tell.
        let kernel_function = read("wchan").filter(|name| !name.is_empty() && name != "0");
        // Of a thread that is stuck in the kernel it might not be had without getting stuck as well.
        let kernel_stack = match state {
            Some('D') => None,
            _ => read("stack").filter(|stack| !stack.trim().is_empty()),
        };
        TimeoutReport { state, kernel_function, kernel_stack, backtrace: None }
    }

    /// Asks the process where it is; it answers in the shared page, and ends.
    pub(crate) fn ask(&self) {
        question::ask(&self.process);
    }

    /// The first thread that the process started, which is the one that runs tasks.
    fn task_thread(&self) -> Option<PathBuf> {
        let threads = PathBuf::from(format!("/proc/{}/task", self.pid));
        // They are listed in the order in which they were started.
        let numbers = std::fs::read_dir(&threads).ok()?.flatten().take(MAX_THREADS);
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let first = numbers.filter(|number| *number != self.pid).min()?;
        Some(threads.join(first.to_string()))
    }
}
