//! What tasks have to say, and the trace that they belong to.

use super::Builder;
use crate::task::TraceContext;

impl Builder {
    /// Whether spans, events and log records of tasks arrive at the subscriber and the logger of your
    /// program; true by default. Only with the features `tracing` and `log`.
    ///
    /// `docs/observability.md` in the repository tells what arrives, and when a worker's own subscriber or
    /// logger goes before. Set this to false for tasks that set one themselves: in a worker that has
    /// no initializer, the place is taken once somebody listens in the program.
    #[cfg(any(feature = "log", feature = "tracing"))]
    pub fn forward_events(mut self, wanted: bool) -> Builder {
        self.forwarding.set(wanted);
        self
    }

    /// Called for each task that is submitted, where that is done, to give it its place in a distributed
    /// trace. A task that was given one with
    /// [`TaskBuilder::trace_context`](crate::TaskBuilder::trace_context) keeps that; a
    /// [`map`](crate::ProcessPool::map) and a
    /// [`stream`](crate::ProcessPool::stream) have one for all of their items, asked for when they are called.
    ///
    /// Where it tells none, or there is no such function, a task that is submitted by another one belongs
    /// where that does.
    ///
    /// ```
    /// use procession::{ProcessPool, TraceContext};
    ///
    /// // A service would ask its tracer.
    /// fn current_trace() -> Option<TraceContext> {
    ///     "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok()
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anyhow::Result<()> {
    /// let pool = ProcessPool::builder().trace_context(current_trace).build()?;
    /// # pool.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn trace_context(mut self, current: fn() -> Option<TraceContext>) -> Builder {
        self.trace_context = Some(current);
        self
    }
}
