//! Processes of this program that play another part than running the benchmark.
//!
//! They are started with [`ROLE`] in their environment, and `main` asks for that before anything
//! else.

use super::{memory, pipe_echo, shared_echo};
use anyhow::bail;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use tokio::net::unix::pipe;

const ROLE: &str = "PEERS_ROLE";

/// The role that this process was started for, if it has one.
pub(crate) fn told() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Plays a role to its end.
pub(crate) fn play(role: &str) -> anyhow::Result<()> {
    match *role.split(' ').collect::<Vec<_>>() {
        ["pipe-echo"] => Ok(pipe_echo::answer()?),
        #[cfg(feature = "remote")]
        ["tcp-echo", address] => Ok(super::remote::answer(address)?),
        ["shared-echo", path, room, copies] => {
            Ok(shared_echo::answer(path.as_ref(), room.parse()?, copies.parse()?)?)
        }
        ["queue", tasks] => memory::queue_tasks(tasks.parse()?),
        ["queue-blocking", tasks] => memory::queue_blocking(tasks.parse()?),
        _ => bail!("there is no role {role:?}"),
    }
}

/// This program, to be started in a role.
pub(crate) fn command(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, role);
    command
}

/// A process of this program, with pipes to and from it; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Partner {
    pub(crate) requests: pipe::Sender,
    pub(crate) answers: pipe::Receiver,
    pub(crate) process: Ended,
}

impl Partner {
    /// Starts it. Must be called within a runtime.
    pub(crate) fn start(role: &str) -> anyhow::Result<Partner> {
        let (requests, stdin) = pipe::pipe()?;
        let (stdout, answers) = pipe::pipe()?;
        let process = command(role)
            .stdin(blocking(stdin.into_blocking_fd()?))
            .stdout(blocking(stdout.into_blocking_fd()?))
            .spawn()?;
        Ok(Partner { requests, answers, process: Ended(process) })
    }
}

/// As large as a pipe may be without privileges; it serves as it is where that is refused.
fn blocking(pipe: OwnedFd) -> Stdio {
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, 1 << 20);
    pipe.into()
}

/// Kills and reaps a process when it is dropped.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
