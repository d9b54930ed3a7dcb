//! `StartMethod::Spawn`: each worker is executed anew.

use super::child::Role;
use super::start::{Link, Start, start_error};
use super::{Launch, Process};
use crate::sys::peak_bytes;
use crate::task::PoolError;
use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;

/// Starts workers by executing the program.
pub(crate) struct Spawn {
    start: Arc<Start>,
}

impl Spawn {
    pub(crate) fn new(start: Start) -> Spawn {
        Spawn { start: Arc::new(start) }
    }

    async fn start_worker(&self) -> Result<Process, PoolError> {
        let mut link = Link::new(&self.start).map_err(start_error)?;
        let started = self.start.run(Role::Worker).await?;
        link.send_start(&started.socket, 0).await.map_err(start_error)?;
        let pid = started.child.pid.as_raw_nonzero().get() as u32;
        let process = started.child.process.clone();
        // Between being spawned and executing the program it shared the memory of this one.
        Ok(link.into_process(pid, process, peak_bytes(), started.child.ended().boxed()))
    }
}

impl Launch for Spawn {
    fn start(&self) -> BoxFuture<'_, Result<Process, PoolError>> {
        self.start_worker().boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.start.finish().boxed()
    }

    /// There is nothing but the workers, each of which is killed when its task is dropped.
    fn abandon(&self) {}
}
