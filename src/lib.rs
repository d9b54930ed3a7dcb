// Where a link of the README leads to here; there it leads to a file.
#![doc = "[Guide]: crate::guide"]
#![doc = ""]
#![doc = include_str!("../README.md")]
//!
//! # Where to read on
//!
//! | to | read |
//! | --- | --- |
//! | see what it is that goes to a worker, and what comes back | [the essentials](#essentials), below |
//! | find what you know from elsewhere under its name here | [`guide::coming_from`] |
//! | do something that others have done before | [`guide::recipes`] |
//! | keep a server answering, and bound what waits | [`guide::services`] |
//! | understand an error | [`guide::troubleshooting`] |
//! | set up a pool | [`Builder`], [`Sandbox`] |
//! | run tasks | [`ProcessPool`], [`TaskBuilder`], [`TaskHandle`], [`Map`], [`TaskStream`] |
//! | look at a pool | [`PoolStats`], [`WorkerInfo`], [`Builder::timeline`], [`ProgressWatch`] |
//! | write a task | [`Arguments`], [`Returned`], [`Yields`], [`worker`] |
//!
//! # Features
//!
//! What is off costs nothing: no dependency, and no code.
//!
//! | feature | |
//! | --- | --- |
//! | `auto-init` | on by default: workers are entered before `main`, so that programs need no call of [`init`] |
//! | `log` | the log records of tasks arrive at the program's logger |
//! | `metrics` | counters, gauges and histograms of each pool, for recorders of the [`metrics`] facade |
//! | `nats` | `Builder::nats` and `nats::Agent`: tasks are pulled from a queue by agents on other machines |
//! | `remote` | `Builder::launcher`: workers on other machines, through Slurm, ssh or any other command |
//! | `remote-tls` | the same, encrypted, and both ends proven by certificates |
//! | `tower` | `ProcessPool::service`: a function as a `tower::Service`, whose readiness is room in the queue |
//! | `tracing` | a task runs inside the span that submitted it: its spans and events arrive at the program's subscriber |
//!
//! `docs/observability.md` in the repository has more on those that let you watch a pool.
//!
//! [`metrics`]: https://docs.rs/metrics
//!
//! # Essentials
//!
//! ## Tasks
//!
//! A task is a function and its arguments; see [`Arguments`] for the shapes that it may have. The
//! function travels by name alone, so it captures nothing; the arguments and the result travel as
//! bytes, so they are `Serialize + DeserializeOwned`.
//!
//! ```
//! use procession::ProcessPool;
//!
//! async fn fetch(name: String, tries: u32) -> anyhow::Result<usize> {
//!     anyhow::ensure!(tries > 0, "no try is left for {name}");
//!     Ok(name.len())
//! }
//!
//! fn halve(n: u32) -> Result<u32, String> {
//!     if n % 2 == 0 { Ok(n / 2) } else { Err(format!("{n} is odd")) }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> anyhow::Result<()> {
//! let pool = ProcessPool::new()?;
//! // Two arguments in a tuple; an async function runs on a runtime in the worker.
//! assert_eq!(pool.submit(fetch, ("abc".into(), 1)).await?, 3);
//! // An `anyhow` error becomes the task's error.
//! let error = pool.submit(fetch, ("abc".into(), 0)).await.unwrap_err();
//! assert_eq!(error.to_string(), "no try is left for abc");
//! // A `Result` of its own is the task's value.
//! assert_eq!(pool.submit(halve, 3).await?, Err("3 is odd".to_string()));
//! # pool.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! ## When things go wrong
//!
//! Whatever becomes of a task is the value of its handle. A panic is caught, and its worker goes on;
//! a crash ends the worker, which is replaced, and concerns nobody but the task that ran.
//!
//! ```
//! use procession::{ExitCause, ProcessPool, TaskError};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> anyhow::Result<()> {
//! let pool = ProcessPool::new()?;
//! match pool.submit(|| panic!("no way"), ()).await {
//!     Err(TaskError::Panicked(panic)) => {
//!         assert_eq!(panic.message(), "no way");
//!         println!("at {}", panic.location());
//!     }
//!     _ => unreachable!(),
//! }
//! match pool.submit(|| std::process::abort(), ()).await {
//!     Err(TaskError::WorkerDied(exit)) => {
//!         assert_eq!(exit.cause(), ExitCause::Signalled);
//!         println!("{exit}");
//!     }
//!     _ => unreachable!(),
//! }
//! # pool.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`guide::troubleshooting`] goes through every error, with its usual causes and what to do.
//!
//! ## Cancellation and time
//!
//! Dropping a handle cancels its task, so that `select!` and `tokio::time::timeout` do what one
//! expects. A task that has not begun never will. One that runs is told: an async task is dropped
//! at its next await point; any other may ask [`worker::TaskContext::is_cancelled`]; what goes on
//! for longer than [`Builder::cancel_grace`] is killed with its worker. A timeout
//! ([`TaskBuilder::timeout`], [`Builder::task_timeout`]) counts from when the task begins.
//!
//! ## Once at most
//!
//! A task that has begun is never run again, whatever becomes of its worker, unless
//! [`TaskBuilder::retries`] allows it. A task that was with a worker when that died but had not
//! begun runs elsewhere.
//!
//! ## Workers
//!
//! They start on demand, in well under a millisecond, and retire when they are idle. See
//! [`Builder`] for how many there are, what they start with ([`Builder::initializer`],
//! [`Builder::preload`]), when they are recycled, and what they are allowed. [`worker`] has what a
//! task can find out about itself.
//!
//! ## Code that you do not trust
//!
//! A process of its own keeps a crash to itself, but not code that means harm: without more it may do
//! what your program may. [`Builder::sandbox`] takes that away: files, the network, other processes.
//! Limits ([`Builder::worker_memory_limit`], [`Builder::worker_cpu_limit`], [`Builder::task_timeout`])
//! bound what it uses up. See [`Sandbox`], the recipe in [`guide::recipes`], and
//! `examples/untrusted_images.rs`.
//!
//! ## What tasks log
//!
//! With the features `tracing` and `log`, the spans, events and log records of tasks arrive at the subscriber
//! and the logger of your program, in the span in which the task was submitted. [`TraceContext`] goes along
//! with a task to a tracer of the worker's own. `docs/observability.md` in the repository has the details, and
//! `examples/tracing.rs` shows what it looks like.
//!
//! ## Signals
//!
//! Ctrl-C, SIGTERM and SIGHUP are for your program: workers neither die before it has decided, nor
//! outlive it. `docs/signals.md` in the repository has the details, and
//! `examples/graceful_shutdown.rs` a service that ends well.

#[cfg(not(target_os = "linux"))]
compile_error!("procession runs on Linux only, for now");

#[cfg(any(test, feature = "internals"))]
#[doc(hidden)]
pub mod decoders;
#[cfg(any(doc, doctest))]
pub mod guide;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod pool;
mod process;
mod sys;
mod task;
mod wire;
pub mod worker;

#[cfg(feature = "tower")]
pub use pool::PoolService;
#[cfg(feature = "nats")]
pub use pool::nats;
pub use pool::{
    Builder, Canceller, Distribution, Map, Permit, PoolStats, ProcessPool, ProgressWatch, StartMethod,
    TaskBuilder, TaskHandle, TaskStatus, TaskStream, WorkerInfo, WorkerState,
};
#[cfg(feature = "remote")]
pub use process::Launcher;
pub use process::{Sandbox, WorkerStdio};
pub use task::{
    Arguments, CodecError, CodecStage, ExitCause, Never, Panic, PanicLocation, PoolError, Priority, Progress,
    RemoteError, Returned, StreamArguments, TaskError, TaskId, TimeoutReport, TraceContext,
    TraceContextError, WorkerExit, Yielded, Yields,
};
pub use worker::init;
