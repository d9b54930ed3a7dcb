//! `StartMethod::ForkServer`, from the pool's side.

use super::child::Role;
use super::control::Notice;
use super::patience::within;
use super::start::{ChildGuard, END_DEADLINE, HELLO_DEADLINE, Link, Start, hang_up, receive, start_error};
use super::{Launch, Process};
use crate::sys::child::{Ended, ProcessFd};
use crate::sys::readiness::{Watched, watch_process};
use crate::task::PoolError;
use futures::future::{BoxFuture, FutureExt};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

/// How long the fork server may take to say that a worker has ended. Then it is stuck.
const NOTICE_DEADLINE: Duration = Duration::from_secs(2);

/// Starts workers by forking a small process that is started for that once.
///
/// The process is started with the first worker, and again should it die.
pub(crate) struct ForkServer {
    start: Arc<Start>,
    server: tokio::sync::Mutex<Option<Arc<Server>>>,
    /// The same, to be got at without waiting.
    current: Mutex<Option<Arc<Server>>>,
}

impl ForkServer {
    pub(crate) fn new(start: Start) -> ForkServer {
        ForkServer {
            start: Arc::new(start),
            server: tokio::sync::Mutex::new(None),
            current: Mutex::new(None),
        }
    }

    /// The fork server, started if there is none.
    async fn server(&self) -> Result<Arc<Server>, PoolError> {
        let mut current = self.server.lock().await;
        if let Some(server) = current.as_ref().filter(|server| !server.is_gone()) {
            return Ok(server.clone());
        }
        let started = self.start.run(Role::ForkServer).await?;
        let server = Arc::new(Server {
            socket: started.socket.clone(),
            process: started.child.process.clone(),
            workers: Mutex::new(Some(HashMap::new())),
            next_id: Mutex::new(0),
            gone: watch::Sender::new(false),
        });
        tokio::spawn(listen(server.clone(), started.child));
        *current = Some(server.clone());
        *lock(&self.current) = Some(server.clone());
        Ok(server)
    }

    async fn start_worker(&self) -> Result<Process, PoolError> {
        let server = self.server().await?;
        let mut link = Link::new(&self.start).map_err(start_error)?;
        let (id, forked, ended) = server.expect_worker()?;
        // Not only if it fails: it may be called off.
        let unsent = Unsent { server: &server, id };
        link.send_start(&server.socket, id).await.map_err(start_error)?;
        std::mem::forget(unsent);
        let (pid, process) = match within(HELLO_DEADLINE, forked).await {
            Ok(Ok(forked)) => forked?,
            Ok(Err(_)) => return Err(server_died()),
            Err(_) => {
                // Stopped, or worse: the next worker gets a new one.
                server.process.kill();
                return Err(PoolError::NotReady {
                    reason: format!("the fork server did not answer within {HELLO_DEADLINE:?}"),
                });
            }
        };
        let process = Arc::new(process);
        let ended = await_end(ended, process.clone(), server.clone()).boxed();
        Ok(link.into_process(pid, process, 0, ended))
    }
}

impl Launch for ForkServer {
    fn start(&self) -> BoxFuture<'_, Result<Process, PoolError>> {
        self.start_worker().boxed()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        async {
            self.start.finish().await;
            let Some(server) = self.server.lock().await.take() else {
                return;
            };
            lock(&self.current).take();
            hang_up(&server.socket);
            let mut gone = server.gone.subscribe();
            let ended = tokio::time::timeout(END_DEADLINE, gone.wait_for(|gone| *gone)).await.is_ok();
            if !ended {
                server.process.kill();
                let _ = gone.wait_for(|gone| *gone).await;
            }
        }
        .boxed()
    }

    fn abandon(&self) {
        if let Some(server) = lock(&self.current).take() {
            hang_up(&server.socket);
        }
    }
}

/// A running fork server.
struct Server {
    socket: Arc<AsyncFd<OwnedFd>>,
    process: Arc<ProcessFd>,
    /// Workers that have not ended; `None` once the server is gone.
    workers: Mutex<Option<HashMap<u64, Awaited>>>,
    next_id: Mutex<u64>,
    /// Becomes true when the process has been reaped.
    gone: watch::Sender<bool>,
}

/// A worker that is expected, but has not been ordered: forgotten when this is dropped.
struct Unsent<'a> {
    server: &'a Server,
    id: u64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        lock(&self.server.workers).as_mut().and_then(|workers| workers.remove(&self.id));
    }
}

type Fork = Result<(u32, ProcessFd), PoolError>;

/// Whoever waits for word of a worker.
struct Awaited {
    forked: Option<oneshot::Sender<Fork>>,
    ended: oneshot::Sender<Ended>,
}

impl Server {
    fn is_gone(&self) -> bool {
        lock(&self.workers).is_none()
    }

    fn expect_worker(&self) -> Result<(u64, oneshot::Receiver<Fork>, oneshot::Receiver<Ended>), PoolError> {
        let id = {
            let mut next = lock(&self.next_id);
            *next += 1;
            *next
        };
        let (forked, forked_receiver) = oneshot::channel();
        let (ended, ended_receiver) = oneshot::channel();
        let awaited = Awaited { forked: Some(forked), ended };
        lock(&self.workers).as_mut().ok_or_else(server_died)?.insert(id, awaited);
        Ok((id, forked_receiver, ended_receiver))
    }

    fn hear(&self, notice: Notice, files: Vec<OwnedFd>) {
        let mut workers = lock(&self.workers);
        let Some(workers) = workers.as_mut() else { return };
        match notice {
            Notice::Forked { id, pid } => {
                if let Some(awaited) = workers.get_mut(&id) {
                    // Without it the worker cannot be supervised; it ends with its pipes.
                    let process = files.into_iter().next().ok_or_else(|| PoolError::Start {
                        reason: "the program has too many files open".into(),
                    });
                    awaited.answer(process.map(|process| (pid, ProcessFd::from_fd(process))));
                }
            }
            Notice::NotForked { id, reason } => {
                if let Some(mut awaited) = workers.remove(&id) {
                    awaited.answer(Err(PoolError::Start { reason: format!("failed to fork: {reason}") }));
                }
            }
            Notice::Ended { id, ended } => {
                if let Some(awaited) = workers.remove(&id) {
                    let _ = awaited.ended.send(ended);
                }
            }
            Notice::Hello { .. } | Notice::Configured { .. } => {}
        }
    }
}

impl Awaited {
    fn answer(&mut self, fork: Fork) {
        if let Some(forked) = self.forked.take()
            && let Err(Ok((_, process))) = forked.send(fork)
        {
            // Nobody waits for this worker any more.
            process.kill();
        }
    }
}

/// Hears what the server says until it is gone, and reaps it.
async fn listen(server: Arc<Server>, child: ChildGuard) {
    while let Ok(Some((notice, files))) = receive(&server.socket).await {
        server.hear(notice, files);
    }
    // Whoever still waits sees its sender dropped.
    lock(&server.workers).take();
    // Past the deadline the guard in that future kills it.
    let _ = tokio::time::timeout(END_DEADLINE, child.ended()).await;
    server.gone.send_replace(true);
}

/// Waits for the end of a worker: as the fork server tells it or, should that be gone, as the
/// worker's own descriptor shows it.
async fn await_end(
    ended: oneshot::Receiver<Ended>,
    process: Arc<ProcessFd>,
    server: Arc<Server>,
) -> Option<Ended> {
    let mut ended = ended;
    let watched = watch_process(process.clone()).ok();
    tokio::select! {
        biased;
        told = &mut ended => {
            if let Ok(told) = told {
                return Some(told);
            }
            // It was tied to the life of the fork server; make sure.
            process.kill();
            if let Some(watched) = watched {
                let _ = watched.readable().await;
            }
            None
        }
        // A fork server that is stopped, or worse, would never say so.
        Some(_) = has_ended(watched.as_ref()) => match within(NOTICE_DEADLINE, ended).await {
            Ok(told) => told.ok(),
            Err(_) => {
                server.process.kill();
                None
            }
        },
    }
}

async fn has_ended(watched: Option<&AsyncFd<Watched>>) -> Option<()> {
    let _ready = watched?.readable().await.ok()?;
    Some(())
}

fn server_died() -> PoolError {
    PoolError::NotReady { reason: "the fork server died".into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
