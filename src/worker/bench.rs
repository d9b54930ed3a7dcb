//! The workbench: a worker's life from its first word to its last task.

use super::context::TaskContext;
use super::flow::Flow;
use super::inbox::Inbox;
use super::limits::{self, Wear};
use super::panics;
use super::replies::Replies;
use super::voice;
use crate::sys::child::exit_now;
use crate::sys::memory::SharedWords;
use crate::sys::{fault, monotonic_now, question};
use crate::task::{self, Call, Fault, Host, Outflow, PanicReport};
use crate::wire::{Frame, FrameError, PROTOCOL, Page, Reply, Request, Run, Setup, build_identity};
use bytes::Bytes;
use rustix::process::{Resource, getrlimit};
use std::cell::{Cell, OnceCell};
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::runtime::Runtime;

/// The stack of the task thread where the system sets no limit for the main thread's.
const DEFAULT_STACK: u64 = 8 << 20;

/// The most stack that the task thread gets: address space, used only as far as it is touched.
const MAX_STACK: u64 = 64 << 20;

/// Where the panic hook sends a task's last words.
static LAST_WORDS: OnceLock<&'static Replies> = OnceLock::new();

thread_local! {
    /// The task that this thread runs, as its number plus one, and when it began; 0 on other threads.
    static RUNNING: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Is a worker until the pool wants no more of it.
pub(super) fn work(duties: crate::process::Duties) -> io::Result<()> {
    fault::ignore_sigpipe();
    // For as long as the process lives, which both threads then need no count of.
    let page: Option<&'static Page> = duties.page.map(|page| &*Box::leak(Box::new(page)));
    let board: Option<&'static SharedWords> = duties.board.map(|board| &*Box::leak(Box::new(board)));
    let replies: &'static Replies = Box::leak(Box::new(Replies::new(duties.results, page)));
    let wear = Wear::new(&duties.limits);
    if let Err(reason) = limits::apply(&duties.limits) {
        replies.greet(&Reply::NotConfined { reason });
        return Ok(());
    }
    let inbox: &'static Inbox = Box::leak(Box::new(Inbox::new(duties.requests, replies, page.is_some())));
    let _ = LAST_WORDS.set(replies);
    panics::install_hook(send_last_words);
    let bench = move || {
        let last_words = board.map(|board| &board.words()[Board::LAST_WORDS]);
        fault::watch_stack(page.map(Page::last_words).or(last_words));
        let board = board.map(|words| Board { words: words.words(), told: Cell::new(0) });
        let mut bench = Bench::new(inbox, replies, page, board, wear);
        if let Err(error) = bench.serve() {
            eprintln!("procession: worker: the pool {error}");
            exit_now(1);
        }
        // Exit handlers run here: what tools such as profilers have put there is wanted.
        std::process::exit(0);
    };
    let task_thread = std::thread::Builder::new().name("worker".into()).stack_size(stack_size());
    if let Err(error) = task_thread.spawn(bench) {
        if duties.limits.memory.is_none() {
            return Err(error);
        }
        let reason = format!(
            "failed to start a thread with a stack of {} bytes, for which `worker_memory_limit` must leave \
             room: {error}",
            stack_size()
        );
        replies.greet(&Reply::NotConfined { reason });
        return Ok(());
    }
    inbox.watch()
}

fn stack_size() -> usize {
    let limit = getrlimit(Resource::Stack).current.unwrap_or(DEFAULT_STACK);
    limit.clamp(1 << 20, MAX_STACK) as usize
}

/// With `panic = "abort"` there is no other way for a task's panic to be told.
fn send_last_words(report: PanicReport) {
    let (running, began) = RUNNING.get();
    if let Some(replies) = LAST_WORDS.get()
        && let Some(seq) = running.checked_sub(1)
    {
        let fault = Fault::Panicked(report).bounded();
        TaskContext::abort();
        let ran = monotonic_now() - began;
        replies.send(&Reply::Fault { seq, is_worn: false, dying: true, ran, fault }, &[]);
    }
}

/// Without a page: where who looks after this process sees what it does.
struct Board {
    words: &'static [AtomicU64],
    /// When the pool was last told that an item has begun.
    told: Cell<u64>,
}

impl Board {
    const LAST_WORDS: usize = 1;

    /// How often the pool is told that another item has begun, in nanoseconds.
    const TELL_EVERY: u64 = 5_000_000;

    fn begin(&self, seq: u64, now: u64) {
        self.words[2].store(now, Ordering::Relaxed);
        self.words[0].store(seq, Ordering::Release);
        self.told.set(now);
    }

    /// Another item begins; whether it is time to tell.
    fn begin_item(&self, now: u64) -> bool {
        self.words[2].store(now, Ordering::Relaxed);
        let is_due = now.saturating_sub(self.told.get()) >= Self::TELL_EVERY;
        if is_due {
            self.told.set(now);
        }
        is_due
    }
}

struct Bench {
    inbox: &'static Inbox,
    replies: &'static Replies,
    page: Option<&'static Page>,
    board: Option<Board>,
    /// For async tasks; made when the first one comes.
    runtime: OnceCell<Runtime>,
    max_message: u64,
    wear: Wear,
    /// The number of the task that runs.
    seq: Cell<u64>,
    has_timeout: Cell<bool>,
    /// Kept for its memory.
    output: Vec<u8>,
}

impl Bench {
    fn new(
        inbox: &'static Inbox,
        replies: &'static Replies,
        page: Option<&'static Page>,
        board: Option<Board>,
        wear: Wear,
    ) -> Bench {
        Bench {
            inbox,
            replies,
            page,
            board,
            runtime: OnceCell::new(),
            max_message: 0,
            wear,
            seq: Cell::new(0),
            has_timeout: Cell::new(false),
            output: Vec::new(),
        }
    }

    /// Greets the pool, gets ready, and does one task after another.
    fn serve(&mut self) -> Result<(), FrameError> {
        self.replies.greet(&Reply::Hello { protocol: PROTOCOL, build: build_identity() });
        while let Some(Frame { head, body }) = self.inbox.next()? {
            match head {
                Request::Run(run) => self.run(run, body),
                Request::Setup(setup) => match self.get_ready(&setup, body) {
                    Ok(()) => self.replies.greet(&Reply::Ready),
                    Err(fault) => {
                        self.replies.greet(&Reply::NotReady { fault: fault.bounded() });
                        return Ok(());
                    }
                },
                // The task that it was meant for is over.
                Request::Cancel { .. } | Request::Grant { .. } | Request::Recall { .. } => {}
                Request::Listen(levels) => voice::listen(levels),
            }
        }
        Ok(())
    }

    fn begin_item(&self, now: u64) {
        let seq = self.seq.get();
        if let Some(page) = self.page {
            page.begin_item(seq, now);
        } else if self.board.as_ref().is_some_and(|board| board.begin_item(now)) {
            self.replies.send(&Reply::Began { seq }, &[]);
        }
    }

    fn get_ready(&mut self, setup: &Setup, arguments: Bytes) -> Result<(), Fault> {
        if setup.protocol != PROTOCOL || setup.build != build_identity() {
            return Err(setup_fault("the pool runs another build of the program"));
        }
        self.max_message = setup.max_message;
        self.inbox.look_out(self.page, setup.look_out);
        if let Some(page) = self.page.filter(|_| setup.tells_whereabouts) {
            question::answer_in(page.whereabouts());
        }
        voice::set_up(self.replies, setup.levels);
        let done = match setup.initializer {
            None => Ok(()),
            Some(initializer) => {
                self.inbox.begin_initializer();
                let done = voice::initialize(|| self.call(initializer, arguments));
                self.inbox.end();
                done
            }
        };
        flush_stdout();
        voice::end();
        voice::install();
        done
    }

    fn run(&mut self, run: Run, body: Bytes) {
        let (seq, shim, place) = (run.seq, run.shim, run.place);
        let began = monotonic_now();
        match self.page {
            Some(page) if page.begin(seq, began) => {}
            Some(_) => return self.replies.send(&Reply::Skipped { seq }, &[]),
            None => {
                self.board.iter().for_each(|board| board.begin(seq, began));
                // The pool takes no items of what it does not know to have begun.
                if run.window.is_some() {
                    self.replies.send(&Reply::Began { seq }, &[]);
                }
            }
        }
        self.seq.set(seq);
        self.has_timeout.set(run.timeout.is_some());
        let flow = run
            .window
            .map(|window| Arc::new(Flow::new(seq, window, self.max_message, self.inbox, self.replies)));
        TaskContext::enter(run, began, self.replies, flow);
        voice::begin(seq);
        self.inbox.begin(seq);
        RUNNING.set((seq + 1, began));
        // Room for the arguments is taken only where there is a page, and given back only when
        // the task is answered.
        let body = place
            .zip(self.page)
            .map_or(body, |(place, page)| page.read_request(place).unwrap_or_default().into());
        let outcome = self.call(shim, body);
        let ran = monotonic_now() - began;
        voice::end();
        if let Some(page) = self.page {
            page.finish(seq);
        }
        RUNNING.set((0, 0));
        self.inbox.end();
        TaskContext::leave();
        flush_stdout();
        let is_worn = self.wear.is_over();
        self.replies.send_outcome(seq, is_worn, ran, outcome.map(|()| &self.output[..]));
        self.output.clear();
        self.output.shrink_to(KEPT_OUTPUT);
    }

    /// Calls the function at an offset; its result is then in `output`.
    fn call(&mut self, shim: u64, input: Bytes) -> Result<(), Fault> {
        let shim =
            task::resolve(shim).ok_or_else(|| setup_fault("the function is not part of the program"))?;
        let mut output = std::mem::take(&mut self.output);
        output.clear();
        let limit = self.max_message;
        let done = panics::catch(|| shim(&mut Call { input, output: &mut output, limit, host: self }));
        self.output = output;
        done
    }
}

/// How much memory is kept for the next result.
const KEPT_OUTPUT: usize = 1 << 20;

impl Host for Bench {
    fn block_on<'a>(&self, future: Pin<Box<dyn Future<Output = ()> + 'a>>) {
        let runtime = self.runtime.get_or_init(|| {
            let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
            built.expect("failed to build a tokio runtime for an async task")
        });
        let task = super::current();
        runtime.block_on(async {
            match task {
                None => future.await,
                Some(task) => {
                    let cancelled = std::pin::pin!(task.cancelled());
                    futures::future::select(future, cancelled).await;
                }
            }
        });
    }

    fn run_item(&self, item: &mut dyn FnMut() -> Result<(), Fault>) -> Result<(), Fault> {
        if self.has_timeout.get() {
            self.begin_item(monotonic_now());
        }
        panics::catch(item)
    }

    fn send_part(&self, part: &[u8]) {
        self.replies.send(&Reply::Part { seq: self.seq.get() }, part);
    }

    fn outflow(&self) -> Option<Arc<dyn Outflow>> {
        TaskContext::current_flow().map(|flow| flow as Arc<dyn Outflow>)
    }
}

/// What a task has printed without ending the line would otherwise wait for the next one.
fn flush_stdout() {
    let _ = io::stdout().flush();
}

fn setup_fault(message: &str) -> Fault {
    Fault::Panicked(PanicReport { message: message.into(), ..PanicReport::default() })
}
