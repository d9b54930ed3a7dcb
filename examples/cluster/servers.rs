//! Servers that are started for a while, in a directory of their own, and ended again.

#![allow(dead_code, unreachable_pub)] // The tests use more of this than the example.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What is not installed here.
pub struct Missing(pub String);

/// Where a program is, on the path or among those for administrators.
pub fn find(name: &str) -> Result<PathBuf, Missing> {
    let path = std::env::var("PATH").unwrap_or_default();
    let homes = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/local/sbin"]);
    let mut files = homes.map(|home| Path::new(home).join(name));
    files.find(|file| file.is_file()).ok_or_else(|| Missing(format!("`{name}` is not installed")))
}

/// Ports that are free just now.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Waits until something holds that a server gives no event for.
pub fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that is ended when dropped.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    pub fn start(command: &mut Command, log: &Path) -> Server {
        let output = std::fs::File::create(log).unwrap();
        let errors = output.try_clone().unwrap();
        let command = command.stdin(Stdio::null()).stdout(output).stderr(errors);
        Server { child: command.spawn().unwrap(), log: log.into() }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Asks it to end and, should it take too long, ends it.
    pub fn end(&mut self) {
        // It was not waited for since it was last seen to live, so the pid is its own.
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let start = Instant::now();
        while !self.has_ended() {
            if start.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.end();
        }
    }
}
