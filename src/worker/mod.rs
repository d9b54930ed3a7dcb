//! For code that runs in a worker: whether it does, and what is known of the task around it.
//!
//! ```
//! use procession::{ProcessPool, worker};
//!
//! fn count_until_cancelled() -> u64 {
//!     let task = worker::current().expect("tasks run in a worker");
//!     let mut count = 0;
//!     while !task.is_cancelled() && count < 1_000 {
//!         count += 1;
//!     }
//!     count
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> anyhow::Result<()> {
//! assert!(!worker::is_worker());
//! let pool = ProcessPool::new()?;
//! assert_eq!(pool.submit(count_until_cancelled, ()).await?, 1_000);
//! # pool.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod bench;
mod context;
mod entry;
mod flow;
mod inbox;
mod limits;
mod panics;
mod replies;
mod reports;
mod shift;
#[cfg(any(feature = "log", feature = "tracing"))]
mod voice;
#[cfg(not(any(feature = "log", feature = "tracing")))]
#[path = "no_voice.rs"]
mod voice;

pub use crate::task::{Closed, Emit, Emitter, emit};
pub use context::{TaskContext, current};
pub(crate) use entry::{depth, was_told_to_enter};
pub use entry::{init, is_worker};
pub(crate) use panics::NO_BACKTRACE;
