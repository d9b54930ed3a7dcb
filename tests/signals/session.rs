//! A program in a terminal: a session of its own, whose leader is a small shell with job control.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr, tcsetpgrp};

use crate::common::{Guest, Ledger, Meeting, attend, descendants, eventually, helper, helping, processes};
use procession::StartMethod;

/// What a program in a session is like.
pub struct Program {
    pub method: StartMethod,
    /// What it does; see [`program`](crate::program).
    pub part: &'static str,
    /// Its tasks' time limit in milliseconds, or 0.
    pub task_timeout: u64,
    /// Whether its standard output and error are the terminal.
    pub prints: bool,
}

/// A terminal, the shell in it, and the program that the shell has started.
pub struct Session {
    /// The side of the terminal where one types.
    pub terminal: Option<OwnedFd>,
    shell: Child,
    shell_says: Meeting,
    pub program: u32,
    pub program_says: Meeting,
    pub tasks: Meeting,
    pub ledger: Ledger,
}

impl Session {
    pub async fn start(program: Program) -> Session {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = openpt(flags).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let inside = || ioctl_tiocgptpeer(&terminal, flags).unwrap();
        let (shell_says, program_says, tasks) = (Meeting::new(), Meeting::new(), Meeting::new());
        let ledger = Ledger::new();
        let Program { method, part, task_timeout, prints } = program;
        let places = [&program_says, &tasks].map(Meeting::place).join(" ");
        let word = format!("{method:?} {part} {task_timeout} {places} {}", ledger.place());
        let mut shell = helper("session::a_shell", &format!("{} {word}", shell_says.place()));
        shell.stdin(inside());
        if prints {
            shell.stdout(inside()).stderr(inside());
        } else {
            shell.stdout(Stdio::null());
        }
        // SAFETY: nothing but system calls, which are async-signal-safe.
        unsafe {
            shell.pre_exec(|| {
                // Whoever runs the tests may ignore some, and that would be inherited.
                for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                rustix::process::setsid()?;
                Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
            });
        }
        let shell = shell.spawn().unwrap();
        let started = shell_says.next().await;
        let program = started.who.strip_prefix("started ").unwrap().parse().unwrap();
        Session { terminal: Some(terminal), shell, shell_says, program, program_says, tasks, ledger }
    }

    /// Presses a key.
    pub fn press(&self, key: u8) {
        assert_eq!(rustix::io::write(self.terminal.as_ref().unwrap(), &[key]).unwrap(), 1);
    }

    /// As `stty tostop` does.
    pub fn stop_background_writers(&self) {
        let terminal = self.terminal.as_ref().unwrap();
        let mut modes = tcgetattr(terminal).unwrap();
        modes.local_modes |= LocalModes::TOSTOP;
        tcsetattr(terminal, OptionalActions::Now, &modes).unwrap();
    }

    /// What the shell says next of the program: `stopped`, `exited 0`, `killed 2`.
    pub async fn status(&self) -> String {
        self.shell_says.next().await.who.clone()
    }

    /// Waits for the program to say this, and lets it go on when the guest is dropped.
    pub async fn hear(&self, what: &str) -> Guest {
        let guest = self.program_says.next().await;
        assert_eq!(guest.who, what);
        guest
    }

    /// The processes of the program's pools.
    pub fn pool(&self) -> Vec<u32> {
        descendants(self.program).into_iter().map(|process| process.pid).collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both are over, unless the test has failed.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// `Z` for a process that is dead, `T` for one that is stopped.
pub fn state_of(pid: u32) -> Option<char> {
    processes().into_iter().find(|process| process.pid == pid).map(|process| process.state)
}

pub fn lives(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| state != 'Z')
}

pub async fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    // It is when all of its threads are: until then the kernel does not take it for a stopped one
    // that has to go on when its program is gone.
    eventually("it is stopped", || states_of_threads(pid).all(|state| state == 'T')).await;
}

fn states_of_threads(pid: u32) -> impl Iterator<Item = char> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next())
}

#[test]
#[ignore = "a program for the tests around it"]
#[allow(clippy::zombie_processes)] // It is waited for by its id, to hear of stops as well.
fn a_shell() {
    let Some(word) = helping() else { return };
    let (says, word) = word.split_once(' ').unwrap();
    let program = helper("program::a_program", word).process_group(0).spawn().unwrap();
    let pid = Pid::from_child(&program);
    // It has the terminal itself until here, so it may hand it on.
    tcsetpgrp(rustix::stdio::stdin(), pid).unwrap();
    attend(says, &format!("started {}", program.id()));
    loop {
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        if status.stopped() {
            attend(says, "stopped");
            continue;
        }
        return match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => attend(says, &format!("exited {code}")),
            (_, signal) => attend(says, &format!("killed {}", signal.unwrap())),
        };
    }
}
