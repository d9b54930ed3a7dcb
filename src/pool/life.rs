//! The life of one worker, as a task of the runtime: started, greeted, listened to, buried.

use super::death::{self, Undead};
use super::inquiry::Inquiry;
use super::links::{ReadyLink, Unanswered};
use super::look_out::LookOut;
use super::outlet::Outlet;
use super::pace::Pace;
use super::scheduler::{Violation, WorkerKey};
use super::shared::{Shared, nanos};
use super::verdict;
use super::voice::{Ear, Said};
use crate::process::{Far, Follower, Killer, Limits, Process, Tail, within};
use crate::sys::child::{Ended, exit_code, exit_signal};
use crate::sys::fault::CUT_OFF;
use crate::sys::{monotonic_now, oom_kills};
use crate::task::{ExitCause, ExitReport, PoolError, TaskError, WorkerExit, cut_message};
use crate::wire::{Batch, Body, Frame, Incoming, PROTOCOL, Page, Reply, Request, Setup, build_identity};
use futures::future::{BoxFuture, FutureExt};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

/// How long a started worker may take to say its first word, before the initializer.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long a worker may take to end once its pipe of results has.
const WAY_OUT: Duration = Duration::from_millis(100);

/// How long the last that a worker on another machine has sent may take to arrive. It is on its way: its
/// connection ends behind it.
const FAR_REST: Duration = Duration::from_secs(5);

/// How much is read at once.
const READ_SIZE: usize = 64 * 1024;

/// The most that is read from a dead worker's pipe: what the largest pipe holds. A daughter
/// process that still has it open cannot keep the pool reading.
const LAST_READS: usize = 1 << 20;

/// How often what has come from a dead worker is passed on: enough for all that fits into the ring
/// and the pipe. It must not go on for as long as a daughter process writes there.
const LAST_ROUNDS: usize = 1024;

/// Tells the scheduler of the end of a worker whose life is cut short by a panic: a bug, or a waker's.
struct Mourner {
    shared: Arc<Shared>,
    worker: WorkerKey,
    pid: Option<u32>,
    is_done: bool,
}

impl Drop for Mourner {
    fn drop(&mut self) {
        // When the runtime is dropped, that is told of as a whole.
        if self.is_done || !std::thread::panicking() {
            return;
        }
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let reason = "its task in the program has panicked".to_string();
            match self.pid {
                None => self.shared.start_failed(self.worker, not_ready(reason)),
                Some(pid) => {
                    let report = ExitReport::unknown(pid, reason);
                    self.shared.worker_gone(self.worker, &WorkerExit(Arc::new(report)), None);
                }
            }
        }));
    }
}

/// Lives the life of a worker. Whatever happens, the scheduler is told of its end.
pub(super) async fn live(shared: Arc<Shared>, worker: WorkerKey, called_off: CancellationToken) {
    let mut mourner = Mourner { shared: shared.clone(), worker, pid: None, is_done: false };
    let started = tokio::select! {
        biased;
        () = called_off.cancelled() => Err(PoolError::ShutDown),
        started = shared.launcher.start() => started,
    };
    let mut life = match started {
        Ok(process) => Life::new(process, &shared),
        Err(error) => {
            mourner.is_done = true;
            return shared.start_failed(worker, error);
        }
    };
    let ready = tokio::select! {
        biased;
        () = called_off.cancelled() => Err(PoolError::ShutDown),
        ready = life.greet(&shared) => ready,
    };
    if let Err(error) = ready {
        life.killer.kill();
        life.bury().await;
        mourner.is_done = true;
        return shared.start_failed(worker, error);
    }
    mourner.pid = Some(life.pid);
    shared.worker_ready(worker, life.link());
    let violation = life.listen(&shared, worker).await;
    let mut report = life.bury().await;
    let is_unresponsive = shared.is_unresponsive(worker);
    if violation.is_some() {
        report.cause = ExitCause::ProtocolViolation;
        report.detail = violation;
    } else if is_unresponsive {
        report.cause = ExitCause::Unresponsive;
    } else {
        life.explain(&mut report, &shared.settings.limits);
    }
    if report.cause == ExitCause::Signalled && report.detail.is_none() && report.signal == Some(libc::SIGKILL)
    {
        life.blame_for_kill(&mut report);
    }
    let stuck = life.inquiry.as_ref().and_then(|inquiry| inquiry.close(life.page.as_deref()));
    mourner.is_done = true;
    shared.worker_gone(worker, &WorkerExit(Arc::new(report)), stuck);
}

struct Life {
    pid: u32,
    /// How many processes the kernel had ended for want of memory when this one was started.
    oom_kills: u64,
    /// The most memory that its process had before it was this program.
    earlier_rss: u64,
    /// It has closed its pipe of results.
    has_hung_up: bool,
    inquiry: Option<Inquiry>,
    started: Instant,
    outlet: Arc<Outlet>,
    results: pipe::Receiver,
    incoming: Incoming,
    batch: Batch,
    pace: Pace,
    look_out: LookOut,
    page: Option<Arc<Page>>,
    far: Option<Far>,
    ear: Arc<Ear>,
    killer: Killer,
    stdout: (Tail, Follower),
    stderr: (Tail, Follower),
    ended: BoxFuture<'static, Option<Ended>>,
    undead: Undead,
    /// How the process ended, once that is known.
    end: Option<Option<Ended>>,
}

impl Drop for Life {
    /// A life that is cut short, because its runtime is dropped, ends all the same.
    fn drop(&mut self) {
        if self.end.is_none() {
            self.killer.kill();
        }
    }
}

impl Life {
    fn new(process: Process, shared: &Shared) -> Life {
        let stdout = (process.stdout.tail(), process.stdout.follow(&shared.outputs));
        let stderr = (process.stderr.tail(), process.stderr.follow(&shared.outputs));
        let page = process.page.map(Arc::new);
        let probe = process.probe.filter(|_| shared.settings.timeout_reports);
        let (killer, ended, undead) = match &process.far {
            None => death::within_limit(process.killer, process.ended),
            Some(_) => (process.killer, process.ended, Undead::default()),
        };
        let inquiry = probe.map(|probe| Inquiry::new(probe, killer.clone()));
        Life {
            pid: process.pid,
            oom_kills: oom_kills(),
            earlier_rss: process.earlier_rss,
            has_hung_up: false,
            inquiry,
            started: Instant::now(),
            outlet: Arc::new(Outlet::new(process.requests, page.clone())),
            results: process.results,
            incoming: Incoming::new(page.clone(), shared.settings.max_message, READ_SIZE),
            batch: Batch::default(),
            pace: Pace::new(monotonic_now()),
            // Only a page can be looked at while waiting.
            look_out: LookOut::new(if page.is_some() { nanos(shared.settings.look_out) } else { 0 }),
            page,
            far: process.far,
            ear: Ear::new(&shared.settings.forwarding),
            killer,
            stdout,
            stderr,
            ended,
            undead,
            end: None,
        }
    }

    fn link(&mut self) -> ReadyLink {
        ReadyLink {
            pid: self.pid,
            started: self.started,
            outlet: self.outlet.clone(),
            page: self.page.clone(),
            far: self.far.as_ref().map(|far| far.end.clone()),
            room: Page::room_for_requests(),
            began: (0, 0),
            killer: self.killer.clone(),
            stdout: self.stdout.0.clone(),
            stderr: self.stderr.0.clone(),
            is_unresponsive: false,
            inquiry: self.inquiry.clone(),
            written: 0,
            unread_grants: VecDeque::new(),
            unanswered: Unanswered::default(),
            ear: self.ear.clone(),
        }
    }

    /// Shakes hands, and waits until the worker is ready for tasks.
    async fn greet(&mut self, shared: &Shared) -> Result<(), PoolError> {
        match self.next_reply(shared, HELLO_DEADLINE, None).await? {
            Reply::Hello { protocol: PROTOCOL, build } if build == build_identity() => {}
            Reply::Hello { .. } => return Err(PoolError::BuildMismatch),
            Reply::NotConfined { mut reason } => {
                cut_message(&mut reason);
                return Err(PoolError::NotConfined { reason });
            }
            _ => return Err(not_ready("the worker spoke out of turn".into())),
        }
        let settings = &shared.settings;
        let (initializer, arguments) = settings.initializer.clone().unzip();
        let setup = Request::Setup(Setup {
            protocol: PROTOCOL,
            build: build_identity(),
            max_message: settings.max_message,
            look_out: nanos(settings.look_out),
            tells_whereabouts: settings.timeout_reports,
            initializer,
            levels: self.ear.levels(),
        });
        self.outlet.push(&setup, arguments.unwrap_or_default());
        self.outlet.flush();
        let task = initializer.is_some().then_some("the initializer");
        match self.next_reply(shared, settings.start_timeout, task).await? {
            Reply::Ready => Ok(()),
            // Many tasks may fail of it, each with a copy.
            Reply::NotReady { fault } if initializer.is_some() => {
                Err(PoolError::Initializer(Box::new(fault.bounded().into())))
            }
            Reply::NotReady { fault } => Err(not_ready(TaskError::from(fault.bounded()).to_string())),
            _ => Err(not_ready("the worker spoke out of turn".into())),
        }
    }

    /// The next reply before the worker is ready, which may have something to do for it.
    async fn next_reply(
        &mut self,
        shared: &Shared,
        limit: Duration,
        task: Option<&str>,
    ) -> Result<Reply, PoolError> {
        let outlet = self.outlet.clone();
        let reply = async {
            loop {
                match self.incoming.next_frame() {
                    Ok(Some(Frame { head: Reply::Voice { .. }, body })) => {
                        match self.ear.hear(None, None, Body::Own(body)) {
                            Ok(said) => said.into_iter().for_each(Said::tell),
                            Err(Violation) => return Err(not_ready("the worker spoke out of turn".into())),
                        }
                        continue;
                    }
                    Ok(Some(frame)) => return Ok(frame.head),
                    Ok(None) => {}
                    Err(error) => return Err(not_ready(format!("the worker {error}"))),
                }
                if let Some(pause) = self.ear.pause() {
                    tokio::time::sleep(pause).await;
                }
                if !matches!(self.results.read_buf(self.incoming.buffer(READ_SIZE)).await, Ok(1..)) {
                    break;
                }
            }
            // It has ended, or will not be heard of any more.
            self.killer.kill();
            let mut report = self.bury().await;
            self.explain(&mut report, &shared.settings.limits);
            report.task = task.map(Into::into);
            let exit = WorkerExit(Arc::new(report));
            Err(not_ready(format!("{exit}")))
        };
        tokio::select! {
            reply = within(limit, reply) => {
                reply.unwrap_or_else(|_| Err(not_ready(match task {
                    None => format!("the worker was not ready within {limit:?}"),
                    Some(task) => format!(
                        "{task} was not done within {limit:?} (see `Builder::start_timeout`)"
                    ),
                })))
            }
            // A long argument of the initializer may not fit into the pipe at once.
            () = outlet.pump() => Err(not_ready("the worker reads nothing".into())),
        }
    }

    /// Passes on what the worker says until it has ended; a text if it says what none should.
    async fn listen(&mut self, shared: &Arc<Shared>, worker: WorkerKey) -> Option<String> {
        let outlet = self.outlet.clone();
        let mut pump = std::pin::pin!(outlet.pump());
        loop {
            if let Some(pause) = self.ear.pause().max(self.pace.pause()) {
                tokio::time::sleep(pause).await;
            }
            match self.take_in(shared, worker) {
                Err(violation) => {
                    self.killer.kill();
                    return Some(violation);
                }
                // Without a page all there is comes through the pipe.
                Ok(true) if self.page.is_none() => {}
                // There may be more already, or soon; others have their turn, and then there is.
                Ok(any) if self.look_out.goes_on(any) => tokio::select! {
                    biased;
                    () = &mut pump => {}
                    end = &mut self.ended => return self.hear_the_rest(end, shared, worker).await,
                    () = tokio::task::yield_now() => {}
                },
                Ok(_) if self.incoming.may_sleep() => {
                    tokio::select! {
                        biased;
                        // First, or a daughter process that never stops writing keeps it unheard.
                        end = &mut self.ended => return self.hear_the_rest(end, shared, worker).await,
                        read = self.results.read_buf(self.incoming.buffer(READ_SIZE)) => {
                            if !matches!(read, Ok(1..)) {
                                let end = self.end_without_results().await;
                                return self.hear_the_rest(end, shared, worker).await;
                            }
                        }
                        () = &mut pump => {}
                    }
                    self.incoming.wake();
                }
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// The pipe of results has ended, which a process does on its way out. Without its results a
    /// worker is of no use, should it still live.
    async fn end_without_results(&mut self) -> Option<Ended> {
        match tokio::time::timeout(WAY_OUT, self.ended.as_mut()).await {
            Ok(end) => end,
            Err(_) => {
                self.has_hung_up = true;
                self.killer.kill();
                self.ended.as_mut().await
            }
        }
    }

    /// Passes on what has come; whether there was anything.
    fn take_in(&mut self, shared: &Arc<Shared>, worker: WorkerKey) -> Result<bool, String> {
        let gathered = self.incoming.gather(&mut self.batch);
        let is_empty = self.batch.is_empty();
        if !is_empty {
            self.pace.count(&self.batch, monotonic_now);
            let taken = shared.answered(worker, &mut self.batch);
            taken.map_err(|Violation| "answered a task that it had not been given".to_string())?;
        }
        gathered.map_err(|error| error.to_string())?;
        Ok(!is_empty)
    }

    /// The process has ended: passes on what it had said.
    async fn hear_the_rest(
        &mut self,
        end: Option<Ended>,
        shared: &Arc<Shared>,
        worker: WorkerKey,
    ) -> Option<String> {
        self.end = Some(end);
        if self.far.is_some() && end.is_some() {
            // Word of the end has come another way, and may have been faster.
            let rest = tokio::time::timeout(FAR_REST, self.hear_to_the_end(shared, worker)).await;
            if let Ok(Err(violation)) = rest {
                return Some(violation);
            }
        }
        let mut total = 0;
        for _ in 0..LAST_ROUNDS {
            match self.take_in(shared, worker) {
                Ok(true) => {
                    // A daughter process may see to it that there are many.
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(false) => {}
                Err(violation) => return Some(violation),
            }
            match self.results.try_read_buf(self.incoming.buffer(READ_SIZE)) {
                Ok(read @ 1..) if total < LAST_READS => total += read,
                _ => break,
            }
        }
        None
    }

    /// Passes on what comes until the stream has ended.
    async fn hear_to_the_end(&mut self, shared: &Arc<Shared>, worker: WorkerKey) -> Result<(), String> {
        loop {
            while self.take_in(shared, worker)? {}
            if !matches!(self.results.read_buf(self.incoming.buffer(READ_SIZE)).await, Ok(1..)) {
                return Ok(());
            }
        }
    }

    /// Waits until the process has ended, and tells what is known of that.
    async fn bury(&mut self) -> ExitReport {
        let end = match self.end {
            Some(end) => end,
            None => self.ended.as_mut().await,
        };
        // From here on there is nobody to be killed, and the future must not be polled again.
        self.end = Some(end);
        self.ended = std::future::ready(end).boxed();
        self.stdout.1.finish().await;
        self.stderr.1.finish().await;
        let signal = end.and_then(|end| exit_signal(end.status));
        let far = self.far.as_ref().map(|far| &far.end);
        let is_undead = self.undead.is_given_up();
        let undead = || is_undead.then(|| format!("it was killed, and is not dead {:?} later", death::LIMIT));
        let is_cut_off = far.is_some_and(|far| far.was_cut_off()) && !self.outlet.is_closed();
        ExitReport {
            pid: self.pid,
            code: end.and_then(|end| exit_code(end.status)),
            signal: signal.map(|(signal, _)| signal),
            core_dumped: signal.is_some_and(|(_, core_dumped)| core_dumped),
            cause: match (end, signal) {
                (None, _) if far.is_some() => ExitCause::NodeLost,
                // It ends without the pool, by itself.
                (Some(_), None) if is_cut_off => ExitCause::NodeLost,
                (None, _) if is_undead => ExitCause::Unresponsive,
                (None, _) => ExitCause::Unknown,
                (Some(_), Some(_)) => ExitCause::Signalled,
                (Some(_), None) => ExitCause::Exited,
            },
            detail: far
                .and_then(|far| far.loss().or(far.why()))
                .or(is_cut_off.then_some("its connection has ended"))
                .map_or_else(undead, |detail| Some(detail.into())),
            task: None,
            stderr_tail: self.stderr.0.text(),
            stdout_tail: self.stdout.0.text(),
            // Had the process more memory before, that of the worker is not known.
            max_rss: end.map(|end| end.max_rss).filter(|most| *most > self.earlier_rss).unwrap_or(0),
            cpu_time: Duration::from_nanos(end.map_or(0, |end| end.cpu)),
        }
    }

    /// What it left for the pool to find when it ended.
    fn last_words(&self) -> u64 {
        match (&self.page, &self.far) {
            (Some(page), _) => page.last_words().load(Ordering::Acquire),
            (None, Some(far)) => far.end.last_words(),
            (None, None) => 0,
        }
    }

    /// Finds out why a worker has ended, by itself or for its limits.
    fn explain(&self, report: &mut ExitReport, limits: &Limits) {
        // A pool that has hung up is what it had lost its way to.
        let words = Some(self.last_words()).filter(|words| *words != CUT_OFF || !self.outlet.is_closed());
        verdict::explain(report, limits, words.unwrap_or(0));
    }

    /// Finds out who killed a worker. The pool would have said why.
    fn blame_for_kill(&self, report: &mut ExitReport) {
        let starved = match &self.far {
            Some(far) => far.end.starved(),
            None => oom_kills() > self.oom_kills,
        };
        let blame = if self.has_hung_up {
            "by the pool, since it had closed the pipe of its results"
        } else if starved {
            "not by the pool; perhaps for want of memory, for which the kernel has killed processes since the \
             worker started: see its log"
        } else {
            "not by the pool"
        };
        report.detail = Some(blame.into());
    }
}

fn not_ready(reason: String) -> PoolError {
    PoolError::NotReady { reason }
}
