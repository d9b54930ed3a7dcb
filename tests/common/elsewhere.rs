//! Where the workers of tests are. Tests expect of a pool what they expect wherever its workers are; with
//! `PROCESSION_TEST_LAUNCHER` these are behind a connection: `tcp`, `stdio` or `tls`. Or it is the address of a
//! NATS server, `nats://HOST:PORT`, and pools that are opened by [`Open`] have their tasks run by agents.
//!
//! What cannot be expected elsewhere says so by [`here_only!`] or [`not_with_agents!`], and why.

use procession::{Builder, PoolError, ProcessPool};

/// The way to the workers, if they are not this program's own children.
pub fn way() -> Option<String> {
    std::env::var("PROCESSION_TEST_LAUNCHER").ok().filter(|way| !way.is_empty())
}

/// Whether workers are elsewhere.
pub fn is_elsewhere() -> bool {
    way().is_some()
}

/// Has a test end, and say so, where workers are elsewhere.
macro_rules! here_only {
    ($reason:literal) => {
        if crate::common::is_elsewhere() {
            println!("only of workers that are this program's own: {}", $reason);
            return;
        }
    };
}

/// The same where tasks are run by agents.
macro_rules! not_with_agents {
    ($reason:literal) => {
        if crate::common::server().is_some() {
            println!("not expected with agents: {}", $reason);
            return;
        }
    };
}

/// The server whose agents are to run the tasks of tests.
pub fn server() -> Option<String> {
    way().filter(|way| way.starts_with("nats://"))
}

/// How large a queue is in which so many tasks may wait while one runs. That of agents counts both.
pub fn beside_what_runs(waiting: usize) -> usize {
    waiting + usize::from(server().is_some())
}

/// Building a pool wherever its tasks are to be run.
pub trait Open: Sized {
    fn open(self) -> Result<ProcessPool, PoolError> {
        self.open_with(|ours| ours)
    }

    /// With settings that an agent is not to have.
    fn open_with(self, ours: impl FnOnce(Self) -> Self) -> Result<ProcessPool, PoolError>;
}

impl Open for Builder {
    fn open_with(self, ours: impl FnOnce(Builder) -> Builder) -> Result<ProcessPool, PoolError> {
        match server() {
            #[cfg(feature = "nats")]
            Some(server) => super::agents::open(ours(self.clone()), self, &server),
            _ => ours(self).build(),
        }
    }
}

/// A builder of a pool with its workers where those of tests are to be.
#[cfg(feature = "remote")]
pub fn placed(builder: Builder) -> Builder {
    use procession::Launcher;
    let launcher = Launcher::command(["env"]).bind(([127, 0, 0, 1], 0).into());
    match way().as_deref() {
        None => builder,
        #[cfg(feature = "nats")]
        Some(_) if server().is_some() => builder,
        Some("tcp") => builder.launcher(launcher),
        Some("stdio") => builder.launcher(launcher.over_stdio(true)),
        #[cfg(feature = "remote-tls")]
        Some("tls") => builder.launcher(launcher.encrypted(true)),
        Some(other) => panic!("there is no way `{other}`"),
    }
}

#[cfg(not(feature = "remote"))]
pub fn placed(builder: Builder) -> Builder {
    assert!(!is_elsewhere(), "workers elsewhere need the feature `remote`");
    builder
}
