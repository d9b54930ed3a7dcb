//! Where workers are placed.

use crate::task::PoolError;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// For how long nothing may be heard of a machine by default.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the workers of a pool are placed, and how they are started there.
///
/// By default they are children of your program, on its machine. The other ways start each worker by
/// a command that runs your program elsewhere: the same build of it must be there, at the same path or at
/// that which [`program`](Launcher::program) says. The process that is started there connects to your
/// program over TCP and proves by a secret, which it was sent through its standard input, that it is the
/// one that is expected. From then on the pool treats its worker as any other: `docs/distributed_workers.md` in
/// the repository says what is different.
///
/// ```no_run
/// use procession::{Launcher, ProcessPool};
///
/// # fn main() -> Result<(), procession::PoolError> {
/// let pool = ProcessPool::builder()
///     .workers(64)
///     .launcher(Launcher::slurm().option("--partition=batch").option("--cpus-per-task=2"))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a launcher does nothing until it is given to `Builder::launcher`"]
pub struct Launcher {
    pub(super) way: Way,
    pub(super) options: Vec<OsString>,
    pub(super) client: Option<PathBuf>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) program: Option<PathBuf>,
    pub(super) bind: SocketAddr,
    pub(super) advertised: Vec<String>,
    pub(super) over_stdio: bool,
    pub(super) encrypted: bool,
    pub(super) node_timeout: Duration,
}

/// How a worker is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Local,
    Slurm,
    Ssh(OsString),
    Command(Vec<OsString>),
}

impl Launcher {
    fn new(way: Way) -> Launcher {
        Launcher {
            way,
            options: Vec::new(),
            client: None,
            env: Vec::new(),
            program: None,
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            advertised: Vec::new(),
            over_stdio: false,
            encrypted: false,
            node_timeout: NODE_TIMEOUT,
        }
    }

    /// Workers are children of your program: the default.
    pub fn local() -> Launcher {
        Launcher::new(Way::Local)
    }

    /// Each worker is a task of Slurm, started by an `srun` of its own: as a job, or as a step where your
    /// program runs in an allocation itself. Slurm decides on which machine. A worker that has to wait
    /// for resources is waited for, up to [`Builder::start_timeout`](crate::Builder::start_timeout).
    pub fn slurm() -> Launcher {
        Launcher::new(Way::Slurm)
    }

    /// Each worker is started by an `ssh` of its own on this host, which may be anything that `ssh`
    /// takes: an alias, `user@host`. It must get in without being asked for anything.
    pub fn ssh(host: impl Into<OsString>) -> Launcher {
        Launcher::new(Way::Ssh(host.into()))
    }

    /// Each worker is started by this command, followed by `env`, a variable, and the path of the program:
    /// for instance `["docker", "exec", "-i", "name"]`, or
    /// `["kubectl", "exec", "-i", "pod", "--"]`. It must pass on standard input, and its end, and
    /// end when what it has started does.
    pub fn command<A: Into<OsString>>(prefix: impl IntoIterator<Item = A>) -> Launcher {
        Launcher::new(Way::Command(prefix.into_iter().map(Into::into).collect()))
    }

    /// An option for `srun` or `ssh`, one argument of it; a command has its options in it already.
    pub fn option(mut self, option: impl Into<OsString>) -> Launcher {
        self.options.push(option.into());
        self
    }

    /// Several of these.
    pub fn options<A: Into<OsString>>(mut self, options: impl IntoIterator<Item = A>) -> Launcher {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// The `srun` or `ssh` to be run; by default that which is found in `PATH`.
    pub fn client(mut self, path: impl Into<PathBuf>) -> Launcher {
        self.client = Some(path.into());
        self
    }

    /// Sets a variable in the environment of the command that starts workers, as `SLURM_CONF` for `srun`; it
    /// has that of your program otherwise. For that of workers there is
    /// [`Builder::env`](crate::Builder::env).
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Launcher {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Where your program is on the other machines; by default at the path that it has on this one. It must
    /// be the same build, or tasks fail as [`PoolError::BuildMismatch`].
    pub fn program(mut self, path: impl Into<PathBuf>) -> Launcher {
        self.program = Some(path.into());
        self
    }

    /// Where your program listens for its workers; by default on all IPv4 addresses of this machine, on a
    /// port that the system chooses. [`Builder::build`](crate::Builder::build) fails if that is not
    /// possible.
    pub fn bind(mut self, address: SocketAddr) -> Launcher {
        self.bind = address;
        self
    }

    /// Under which address workers reach your program: a name or an IP address, with or without a port (by
    /// default that which is listened on). Given several times, they are tried in turn.
    ///
    /// By default it is the address that is bound; if that is all of them, the one that this
    /// machine uses towards others, and its name.
    pub fn advertise(mut self, address: impl Into<String>) -> Launcher {
        self.advertised.push(address.into());
        self
    }

    /// Has everything go through the launcher's standard input and output, for where workers cannot
    /// connect to your program.
    ///
    /// That is slow: what stands in between copies, and may hold back or cut into pieces what it passes on.
    /// `srun` relays 1,024 bytes at a time and stalls for 44 ms from 4 KiB up. `docs/distributed_workers.md` has
    /// figures. The first worker of a pool prints a warning to standard error.
    pub fn over_stdio(mut self, wanted: bool) -> Launcher {
        self.over_stdio = wanted;
        self
    }

    /// Whether what goes between the machines is encrypted by TLS, with certificates that are made for the
    /// pool when it is built: both ends prove theirs. It needs the feature `remote-tls`.
    ///
    /// Without it, whoever can read the network between the machines can read arguments and results,
    /// and who can write to it can take over.
    pub fn encrypted(mut self, wanted: bool) -> Launcher {
        self.encrypted = wanted;
        self
    }

    /// For how long nothing may be heard of a worker's machine before it is given up, and its task fails as
    /// [`TaskError::NodeLost`](crate::TaskError::NodeLost); 10 seconds by default, 100 ms at least.
    ///
    /// What lives there says so four times as often. In its turn it ends the worker when nothing is heard of
    /// your program for so long.
    pub fn node_timeout(mut self, limit: Duration) -> Launcher {
        self.node_timeout = limit;
        self
    }

    pub(crate) fn is_local(&self) -> bool {
        self.way == Way::Local
    }

    /// What is wrong with the settings, if anything.
    pub(crate) fn check(&self) -> Result<(), PoolError> {
        let takes_options = matches!(self.way, Way::Slurm | Way::Ssh(_));
        let complaints = [
            (self.way == Way::Command(Vec::new()), "`Launcher::command` needs a command"),
            (
                self.node_timeout < Duration::from_millis(100),
                "`Launcher::node_timeout` must be at least 100 ms",
            ),
            (
                !takes_options && (!self.options.is_empty() || self.client.is_some()),
                "`Launcher::option` and `Launcher::client` are for `Launcher::slurm` and `Launcher::ssh`",
            ),
            (
                self.encrypted && self.over_stdio,
                "`Launcher::encrypted` is for TCP: with `Launcher::over_stdio` it is for the launcher to encrypt",
            ),
            (
                self.encrypted && !cfg!(feature = "remote-tls"),
                "`Launcher::encrypted` needs the feature `remote-tls`",
            ),
        ];
        match complaints.iter().find(|(is_wrong, _)| *is_wrong) {
            None => Ok(()),
            Some((_, reason)) => Err(PoolError::InvalidSetting { reason: (*reason).into() }),
        }
    }
}

/// [`Launcher::local`].
impl Default for Launcher {
    fn default() -> Launcher {
        Launcher::local()
    }
}
