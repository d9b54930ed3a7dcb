//! What a worker is shut in with: settings alone; [`sys::sandbox`](crate::sys::sandbox) enforces it.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Shuts workers in, for code that is not trusted: decoders of what others send, plugins, parsers
/// written in C.
///
/// A new sandbox allows tasks to compute, to use memory and threads, and to write to the standard
/// output and standard error; more only as it is told here. The kernel enforces it in each worker
/// before the first line of the initializer or of a task runs, and nothing in the worker can undo
/// it:
///
/// * **Files** ([Landlock](https://docs.kernel.org/userspace-api/landlock.html)): none can be
///   opened but the program itself, for reading, and what [`read`](Sandbox::read) and
///   [`write`](Sandbox::write) name.
/// * **System calls** ([seccomp](https://docs.kernel.org/userspace-api/seccomp_filter.html)): no
///   network, no new process, no other program, no signal to any other process nor a look into
///   its memory. What is refused gives "operation not permitted" (`EPERM`) to whoever calls;
///   system calls that this list does not know give "function not implemented" (`ENOSYS`).
/// * **Privileges**: none can be gained (`no_new_privs`), and all capabilities are dropped, even if
///   the program runs as root.
/// * **Core dumps**: off.
/// * **Open files**: 256 at most, unless
///   [`worker_open_files_limit`](crate::Builder::worker_open_files_limit) says otherwise.
/// * **Standard output** goes through a pipe, so that a worker never holds your terminal. What it prints
///   arrives there as it is, control characters and all: choose
///   [`WorkerStdio::Capture`](crate::WorkerStdio::Capture) or `Null` if that matters.
///
/// Give such a pool [`worker_memory_limit`](crate::Builder::worker_memory_limit) and
/// [`task_timeout`](crate::Builder::task_timeout) as well: a sandbox does not bound what a task uses
/// up. For a task that must learn nothing of those before it in the same worker, add
/// [`max_tasks_per_worker(1)`](crate::Builder::max_tasks_per_worker).
///
/// What a [`preload`](crate::Builder::preload) function does is done outside the sandbox, in the
/// fork server: it may read what tasks are to find in memory. A file that it leaves open stays
/// open in the workers. Environment variables are handed on as the builder says: use
/// [`env_clear`](crate::Builder::env_clear) where they hold secrets, which `preload`, the memory
/// that all workers are forked from, must not hold either.
///
/// A task can start as many threads as it has memory for their stacks, which it may choose to be a page
/// each: some ten thousand in little memory. Threads, signals that wait, and what pipes hold are counted
/// for each user by the kernel, so that your other programs may be short of them. Where that matters, run
/// the program as a user of its own, in a control group with a `pids.max` (with systemd: `TasksMax=`).
/// A task cannot have a pool of its own.
///
/// It does not hide that there are files: whether one exists, its size and its times can be asked for
/// under any path (`stat`), and where symbolic links lead, which Landlock does not watch over; so can
/// which processes exist. What may be read can be locked (`flock`). Nor does it hide the clock, the
/// machine's load or how long things take.
///
/// A hostile task can keep its worker from seeing that your program is gone. With
/// [`StartMethod::ForkServer`](crate::StartMethod::ForkServer), the default, it ends all the same, with
/// the fork server. With `Spawn` it may live on, bounded by
/// [`worker_cpu_limit`](crate::Builder::worker_cpu_limit) alone.
///
/// It needs Linux 5.13 with Landlock and seccomp enabled, on x86-64, AArch64 or RISC-V 64. Where the
/// kernel cannot do it, [`build`](crate::Builder::build) fails with
/// [`PoolError::NotConfined`](crate::PoolError::NotConfined): there is no half of a sandbox.
///
/// ```
/// use procession::{ProcessPool, Sandbox};
/// use std::time::Duration;
///
/// fn parse(text: String) -> Result<u32, String> {
///     // Whatever happens here, it is not this:
///     std::fs::read("/etc/passwd").unwrap_err();
///     text.parse().map_err(|_| "no number".to_string())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// # // A kernel without Landlock has nothing to show here.
/// # if ProcessPool::builder().sandbox(Sandbox::new()).build().is_err() {
/// #     return Ok(());
/// # }
/// let pool = ProcessPool::builder()
///     .sandbox(Sandbox::new())
///     .worker_memory_limit(512 << 20)
///     .task_timeout(Duration::from_secs(10))
///     .build()?;
/// assert_eq!(pool.submit(parse, "42".to_string()).await?, Ok(42));
/// # pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "a sandbox does nothing until it is given to `Builder::sandbox`"]
pub struct Sandbox {
    pub(crate) read: Vec<PathBuf>,
    pub(crate) write: Vec<PathBuf>,
    pub(crate) execute: Vec<PathBuf>,
    pub(crate) network: bool,
}

impl Sandbox {
    /// The same with the paths as they are now, without symbolic links: those in directories that tasks
    /// may write to are theirs to change.
    pub(crate) fn resolved(&self, directory: Option<&Path>) -> Result<Sandbox, String> {
        let resolve = |paths: &[PathBuf]| {
            paths.iter().map(|path| resolve(path, directory)).collect::<Result<Vec<_>, _>>()
        };
        let sandbox = Sandbox {
            read: resolve(&self.read)?,
            write: resolve(&self.write)?,
            execute: resolve(&self.execute)?,
            network: self.network,
        };
        let all = sandbox.read.iter().chain(&sandbox.write).chain(&sandbox.execute);
        for path in all {
            if let Some(over) = sandbox.write.iter().find(|over| path != *over && path.starts_with(over)) {
                return Err(format!(
                    "`{}` lies in `{}`, which tasks may write to: they could put something else in its place, \
                     and need no other leave to reach it",
                    path.display(),
                    over.display()
                ));
            }
        }
        Ok(sandbox)
    }

    /// A sandbox that allows nothing but to compute.
    pub fn new() -> Sandbox {
        Sandbox::default()
    }

    /// Lets tasks read a file, or a directory with all that is in it. It must be there when the pool is
    /// built, and symbolic links on the way to it are followed then; a relative path is relative to the
    /// worker's directory. It must not lie in a directory that tasks may write to.
    pub fn read(mut self, path: impl Into<PathBuf>) -> Sandbox {
        self.read.push(path.into());
        self
    }

    /// Lets tasks read and write a file, or create, change and remove what they like in a
    /// directory. Changes of a file's mode are ignored, since they would reach files that are not the
    /// task's, and changes of its times or owner are refused. As with [`read`](Sandbox::read) it must be
    /// there when the pool is built. What tasks have put into a directory may be symbolic links to
    /// anywhere: your program should not follow them. They cannot make a file that runs as its owner
    /// (`setuid`), but one that your program, or another, executes by its name: do not give them a
    /// directory with programs. Nothing bounds how much they write: a file system of its own does. Before
    /// Linux 5.19 they cannot move a file from one directory to another.
    pub fn write(mut self, path: impl Into<PathBuf>) -> Sandbox {
        self.write.push(path.into());
        self
    }

    /// Lets tasks start processes, and execute (and read) a program or those in a directory. These
    /// are in the same sandbox, and may use `/dev/null`. A program that is linked dynamically needs
    /// its libraries too. Before Linux 6.12 tasks cannot signal what they have started, so they cannot
    /// end it either.
    ///
    /// Tasks can then fork: only the system's limits, such as a cgroup's `pids.max`, bound how
    /// often. Nor are these processes ended with the worker, by a timeout or with your program. What can
    /// be executed is no bound on what code runs: a task that was taken over has code of its own, and
    /// with a dynamic linker it can run whatever it can read.
    pub fn execute(mut self, path: impl Into<PathBuf>) -> Sandbox {
        self.execute.push(path.into());
        self
    }

    /// Lets tasks use the network over IPv4 and IPv6, by TCP, UDP and ICMP: all of it, the machine's own
    /// ports included, and also those that your program shares (`SO_REUSEPORT`).
    /// Unix sockets stay out of reach. To resolve names, `/etc` must be readable.
    pub fn allow_network(mut self) -> Sandbox {
        self.network = true;
        self
    }
}

/// The file or directory that a path leads to.
fn resolve(path: &Path, directory: Option<&Path>) -> Result<PathBuf, String> {
    let whole = directory.map_or_else(|| path.to_path_buf(), |directory| directory.join(path));
    whole
        .canonicalize()
        .map_err(|error| format!("`{}`, which the sandbox is to give access to: {error}", path.display()))
}
