//! Processes, descriptors and threads, as the kernel shows them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::board::PLACE;
use super::counting;

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub name: String,
    /// `Z` where nobody has reaped it.
    pub state: char,
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold spaces and parentheses.
        let (front, back) = (stat.find('(')?, stat.rfind(')')?);
        let mut fields = stat[back + 1..].split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Process { pid, parent, name: stat[front + 1..back].to_owned(), state })
    }

    /// Whether it belongs to the round with this board.
    fn is_of(&self, board: &Path) -> bool {
        let mark = format!("{PLACE}={}", board.display());
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    }

    /// Whether a task has started it and left it behind, which is no business of the pool's.
    pub fn is_daughter(&self) -> bool {
        self.name == "daughter" || self.name == "sleep"
    }

    /// All that tells what it hangs on.
    pub fn describe(&self) -> String {
        let look = |what: &str| fs::read_to_string(format!("/proc/{}/{what}", self.pid)).unwrap_or_default();
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let waits: Vec<String> = threads
            .map(|thread| fs::read_to_string(thread.path().join("wchan")).unwrap_or_default())
            .collect();
        format!("{self:?} wchan {waits:?} stat {}", look("stat").trim_end())
    }
}

fn everybody() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read)
}

/// The processes of the round with this board, whoever is their parent now, and the zombies among
/// our children, which have no environment to be known by.
pub fn processes_of(board: &Path) -> Vec<Process> {
    let own = std::process::id();
    let is_zombie = |process: &Process| process.state == 'Z' && process.parent == own;
    everybody().filter(|process| process.pid != own && (is_zombie(process) || process.is_of(board))).collect()
}

/// How many processes there are below this one.
fn count_children() -> usize {
    let own = std::process::id();
    everybody().filter(|process| process.parent == own).count()
}

/// A process that cannot be mistaken for another one that has got its pid since.
pub struct Target {
    pub process: Process,
    handle: OwnedFd,
}

impl Target {
    /// None if it has ended, or is not of the round.
    pub fn find(pid: u32, board: &Path) -> Option<Target> {
        // SAFETY: pidfd_open takes no pointers.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        // SAFETY: the call above has just made this descriptor.
        let handle = (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw as RawFd) })?;
        // Looked at only now: had the pid changed hands, the handle leads to its new owner too.
        let process = Process::read(pid).filter(|process| process.is_of(board))?;
        Some(Target { process, handle })
    }

    /// Whether the signal was sent.
    pub fn signal(&self, signal: i32) -> bool {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null info is allowed, and stands for that of `kill`.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.handle.as_raw_fd(), signal, info, 0) == 0 }
    }
}

/// What this process holds.
#[derive(Clone, Debug)]
pub struct Holdings {
    /// Open descriptors: number and where to.
    pub descriptors: BTreeMap<u32, String>,
    /// Threads: id and name.
    pub threads: BTreeMap<u32, String>,
    /// Child processes, zombies included.
    pub children: usize,
    /// Resident bytes.
    pub resident: u64,
    /// Bytes that are allocated, where the allocator counts them.
    pub allocated: u64,
}

impl Holdings {
    pub fn now() -> Holdings {
        Holdings {
            descriptors: descriptors(),
            threads: threads(),
            children: count_children(),
            resident: resident(),
            allocated: counting::allocated(),
        }
    }

    /// What there is more than there was, by kind and not by number.
    fn more_than(&self, before: &Holdings) -> Vec<String> {
        let mut more = surplus("descriptor", &before.descriptors, &self.descriptors);
        more.extend(surplus("thread", &before.threads, &self.threads));
        more
    }
}

/// The values that occur more often than before, which a number that is used again does not hide.
fn surplus(what: &str, before: &BTreeMap<u32, String>, now: &BTreeMap<u32, String>) -> Vec<String> {
    if now.len() <= before.len() {
        return Vec::new();
    }
    let new = now.iter().filter(|(number, value)| before.get(number) != Some(value));
    new.map(|(number, value)| format!("{what} {number}: {value}")).collect()
}

fn descriptors() -> BTreeMap<u32, String> {
    let own_look = format!("/proc/{}/fd", std::process::id());
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?.display().to_string();
        let number = entry.file_name().to_str()?.parse().ok()?;
        (target != own_look).then_some((number, target))
    });
    open.collect()
}

/// Without those that belong to the test runner, which are named after tests.
fn threads() -> BTreeMap<u32, String> {
    let entries = fs::read_dir("/proc/self/task").unwrap().flatten();
    let named = entries.filter_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end().to_owned();
        (!name.contains("::")).then_some((entry.file_name().to_str()?.parse().ok()?, name))
    });
    named.collect()
}

fn resident() -> u64 {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only gives back to the system what the allocator keeps for later.
    unsafe {
        libc::malloc_trim(0)
    };
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0) * 4096u64
}

/// Has the allocator keep all in one place. With an arena for each of many threads, each as large as its
/// largest need so far, what is resident would say more of them than of what is held.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number, and that while the caller is the only thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Gives what is ending or closing some time, and says what stays all the same.
pub fn await_nothing_left(board: &Path, before: &Holdings) -> Vec<String> {
    let start = Instant::now();
    loop {
        let (daughters, others): (Vec<_>, Vec<_>) =
            processes_of(board).into_iter().partition(Process::is_daughter);
        for daughter in &daughters {
            Target::find(daughter.pid, board).map(|daughter| daughter.signal(libc::SIGKILL));
        }
        let mut left: Vec<String> = others.iter().chain(&daughters).map(Process::describe).collect();
        left.extend(Holdings::now().more_than(before));
        if left.is_empty() || start.elapsed() > Duration::from_secs(20) {
            return left;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn forbid_core_dumps() {
    set_limit(libc::RLIMIT_CORE, 0).unwrap();
}

/// Sets the soft limit of a resource, and returns what it was.
pub fn set_limit(resource: libc::__rlimit_resource_t, to: u64) -> io::Result<u64> {
    set_limit_of(0, resource, to)
}

/// The same for another process, which had its limits from its parent when it began.
pub fn set_limit_of(pid: u32, resource: libc::__rlimit_resource_t, to: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let (pid, null) = (pid as libc::pid_t, std::ptr::null_mut());
    // SAFETY: `limit` is a valid rlimit for the length of both calls.
    unsafe {
        if libc::prlimit(pid, resource, null, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        let old = std::mem::replace(&mut limit.rlim_cur, to.min(limit.rlim_max));
        if libc::prlimit(pid, resource, &limit, null) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(old)
    }
}
