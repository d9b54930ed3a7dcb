//! What a test left behind: processes that it started and descriptors that it opened.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// In the environment of every process that descends from this one, also where its parent is gone.
const MARK: &str = "PROCESSION_TEST_PROGRAM";

const HALF_A_MINUTE: i32 = 30_000;

#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub name: String,
    /// `Z` where nobody has reaped it.
    pub state: char,
}

pub fn mark_this_process() {
    if std::env::var_os(MARK).is_none() {
        // SAFETY: the standard library's lock covers every reader here, and this binary has no other.
        unsafe { std::env::set_var(MARK, std::process::id().to_string()) };
    }
}

/// Every process of this machine.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| process(name.parse().ok()?)).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (start, rest) = stat.rsplit_once(") ")?; // the name may hold spaces and parentheses
    let mut fields = rest.split(' ');
    Some(Process {
        pid,
        name: start.split_once('(')?.1.to_owned(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

pub fn parent_of(pid: u32) -> Option<u32> {
    process(pid).map(|process| process.parent)
}

/// The processes below `root`, zombies included.
pub fn descendants(root: u32) -> Vec<Process> {
    let all = processes();
    let mut family = BTreeSet::from([root]);
    loop {
        let known = family.len();
        family.extend(all.iter().filter(|p| family.contains(&p.parent)).map(|p| p.pid).collect::<Vec<_>>());
        if family.len() == known {
            break;
        }
    }
    family.remove(&root);
    all.into_iter().filter(|p| family.contains(&p.pid)).collect()
}

/// Whether the process exists, be it as a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Waits until a process, which need not be a child of ours, has ended.
pub async fn gone(pid: u32) {
    // SAFETY: pidfd_open takes no pointers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if raw < 0 {
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ESRCH));
        return;
    }
    // SAFETY: the call above made this descriptor, for us alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw as RawFd) };
    let ended = tokio::task::spawn_blocking(move || becomes_readable(&pidfd)).await.unwrap();
    assert!(ended, "process {pid} stays: {:?}", process(pid));
}

fn becomes_readable(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid pollfd for the length of the call.
    unsafe { libc::poll(&mut poll, 1, HALF_A_MINUTE) == 1 }
}

/// The open descriptors of this process and what they lead to.
pub fn descriptors() -> BTreeSet<String> {
    let own_look = format!("/proc/{}/fd", std::process::id());
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = fs::read_link(entry.path()).ok()?.display().to_string();
            let number = entry.file_name().into_string().unwrap();
            (target != own_look).then(|| format!("{number} {target}"))
        })
        .collect()
}

/// What there is at one moment: our processes, and our descriptors.
pub struct Scene {
    processes: BTreeSet<u32>,
    descriptors: BTreeSet<String>,
}

impl Scene {
    pub fn now() -> Scene {
        Scene { processes: ours().map(|process| process.pid).collect(), descriptors: descriptors() }
    }

    /// Panics if there is more now, and stays.
    #[track_caller]
    pub fn expect_no_more(&self) {
        let more = self.await_no_more();
        assert!(more.is_empty(), "left behind: {more:#?}");
    }

    /// Gives what is dying or closing some time, and says what there is more all the same.
    pub fn await_no_more(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let more = self.more();
            if more.is_empty() || start.elapsed() > Duration::from_secs(10) {
                return more;
            }
            sleep(Duration::from_millis(2));
        }
    }

    fn more(&self) -> Vec<String> {
        let new = ours().filter(|process| !self.processes.contains(&process.pid));
        let open = descriptors();
        let opened = open.difference(&self.descriptors).cloned();
        new.map(|process| format!("{process:?}")).chain(opened).collect()
    }
}

/// The processes below this one, and those that were once.
fn ours() -> impl Iterator<Item = Process> {
    let below = descendants(std::process::id());
    let known: BTreeSet<u32> = below.iter().map(|process| process.pid).collect();
    let strays = processes()
        .into_iter()
        .filter(move |process| !known.contains(&process.pid) && is_marked(process.pid));
    below.into_iter().chain(strays)
}

/// Whether it was started from this process, whoever is its parent now.
fn is_marked(pid: u32) -> bool {
    let Ok(mark) = std::env::var(MARK) else {
        return false;
    };
    let mark = format!("{MARK}={mark}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    pid != std::process::id() && environment.split(|&byte| byte == 0).any(|var| var == mark.as_bytes())
}
