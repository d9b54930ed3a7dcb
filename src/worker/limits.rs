//! Putting a worker's limits in place, and noticing when it has used up its share.

use crate::process::Limits;
use crate::sys::{Allowed, sandbox};
use rustix::param::page_size;
use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Puts the limits in place, for this thread and all that it starts; or says why it cannot.
pub(super) fn apply(limits: &Limits) -> Result<(), String> {
    if let Some(by) = limits.nice {
        let what =
            if by < 0 { "lower the nice value, which needs CAP_SYS_NICE" } else { "raise the nice value" };
        nice(by).map_err(|error| failed(what, error))?;
    }
    if let Some(core_dumps) = limits.core_dumps {
        // With a limit of 0 a program that collects core dumps would still be given one.
        let set = match core_dumps {
            true => set(Resource::Core, getrlimit(Resource::Core).maximum),
            false => lower(Resource::Core, 1),
        };
        set.map_err(|error| failed("limit core dumps", error))?;
    }
    if let Some(files) = limits.open_files {
        lower(Resource::Nofile, files).map_err(|error| failed("limit open files", error))?;
    }
    if let Some(seconds) = limits.cpu_seconds() {
        limit_cpu(seconds).map_err(|error| failed("limit processor time", error))?;
    }
    if let Some(bytes) = limits.memory {
        limit_memory(bytes).map_err(|error| failed("limit memory", error))?;
    }
    if limits.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(|error| failed("renounce privileges", error))?;
    }
    let Some(sandbox) = &limits.sandbox else { return Ok(()) };
    sandbox::enter(&Allowed {
        read: &sandbox.read,
        write: &sandbox.write,
        execute: &sandbox.execute,
        network: sandbox.network,
    })
}

fn failed(what: &str, error: impl Display) -> String {
    format!("failed to {what}: {error}")
}

fn lower(resource: Resource, limit: u64) -> rustix::io::Result<()> {
    let hard = getrlimit(resource).maximum;
    set(resource, Some(hard.map_or(limit, |hard| hard.min(limit))))
}

fn set(resource: Resource, limit: Option<u64>) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: limit, maximum: limit })
}

/// The kernel counts in whole seconds: at the limit it sends SIGXCPU, which tells what was the
/// matter, and a second later SIGKILL to who has caught that.
fn limit_cpu(seconds: u64) -> rustix::io::Result<()> {
    let hard = getrlimit(Resource::Cpu).maximum.unwrap_or(u64::MAX);
    let limit = |seconds: u64| Some(seconds.min(hard));
    setrlimit(Resource::Cpu, Rlimit { current: limit(seconds), maximum: limit(seconds.saturating_add(1)) })
}

/// Private memory is limited to just that; all address space, which counts what is only reserved
/// and what is shared, to so much more than is in use now.
fn limit_memory(limit: u64) -> rustix::io::Result<()> {
    const SLACK: u64 = 256 << 20;
    let in_use = File::open("/proc/self/statm").ok().and_then(|statm| pages(&statm, 0)).unwrap_or(0);
    lower(Resource::Data, limit)?;
    lower(Resource::As, limit.saturating_add(in_use).saturating_add(SLACK))
}

/// One of the counts in an open `statm`, in bytes.
fn pages(statm: &File, column: usize) -> Option<u64> {
    let mut text = [0; 128];
    let length = statm.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    let pages: u64 = text.split(' ').nth(column)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

/// Tells when a worker should be replaced after the task that it has just done.
pub(super) struct Wear {
    /// Held open: a sandbox would not let it be opened.
    statm: Option<File>,
    rss_mark: Option<u64>,
    cpu_mark: Option<Duration>,
}

impl Wear {
    pub(super) fn new(limits: &Limits) -> Wear {
        Wear {
            statm: limits.rss_mark.and_then(|_| File::open("/proc/self/statm").ok()),
            rss_mark: limits.rss_mark,
            cpu_mark: limits.cpu_mark(),
        }
    }

    /// Whether one of the marks is passed.
    pub(super) fn is_over(&self) -> bool {
        self.rss_mark.is_some_and(|mark| self.resident_bytes() > mark)
            || self.cpu_mark.is_some_and(|mark| processor_time() > mark)
    }

    fn resident_bytes(&self) -> u64 {
        self.statm.as_ref().and_then(|statm| pages(statm, 1)).unwrap_or(0)
    }
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}
