//! Raw system calls and every `unsafe` line that goes with them, in small safe wrappers.
//!
//! Nothing in here knows about pools, tasks or frames.

#![allow(unsafe_code)]

pub(crate) mod child;
#[cfg(test)]
pub(crate) mod counting;
pub(crate) mod entry;
pub(crate) mod fault;
pub(crate) mod fds;
pub(crate) mod image;
pub(crate) mod memory;
pub(crate) mod question;
pub(crate) mod readiness;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
pub(crate) mod sandbox;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
#[path = "no_sandbox.rs"]
pub(crate) mod sandbox;
pub(crate) mod signals;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
mod syscalls;

/// What is allowed within a sandbox.
pub(crate) struct Allowed<'a> {
    pub(crate) read: &'a [std::path::PathBuf],
    pub(crate) write: &'a [std::path::PathBuf],
    /// With any, new processes may be started.
    pub(crate) execute: &'a [std::path::PathBuf],
    pub(crate) network: bool,
}

/// Nanoseconds of the monotonic clock, which all processes of one machine share.
pub(crate) fn monotonic_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Both parts are non-negative on a monotonic clock.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How many threads this process has.
pub(crate) fn thread_count() -> std::io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// How many processes of this machine the kernel has ended for want of memory, as far as it tells.
pub(crate) fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// The most resident memory that this process has had, in bytes, or 0 when it cannot be told.
pub(crate) fn peak_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Resident memory of a process in bytes, or 0 when it cannot be told (any more).
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm"))
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
