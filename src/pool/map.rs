//! One function over many items.

use super::ProcessPool;
use super::cell::Parts;
use super::handle::TaskHandle;
use super::order::{Order, Origin};
use crate::task::{Arguments, CodecStage, Fault, Sink, TaskError, TaskRef, decode, from_body};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesOrdered, FuturesUnordered, Stream, StreamExt};
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// How long a chunk of items should take: so long that what it costs to send one hardly counts.
const CHUNK_TIME: u64 = 500_000;

/// The most items that are put into one chunk unasked.
const MAX_CHUNK: usize = 1024;

/// The most bytes of items in one chunk, unless a single item has more.
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// How many chunks for each worker are in flight by default: one that runs, one that follows it,
/// and one whose results are being taken.
const CHUNKS_A_WORKER: usize = 3;

/// The results of [`ProcessPool::map`], as a stream of `Result<T, TaskError>`.
///
/// Results come in the order of the items, or with [`unordered`](Map::unordered) as they get
/// ready. An item that fails yields its error, and the others go on. In a bounded queue the stream
/// waits for room. Nothing happens while the stream is not polled, but for the items that are in
/// flight already; dropping it cancels these.
///
/// ```
/// use futures::StreamExt;
/// use procession::ProcessPool;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// let pool = ProcessPool::new()?;
/// let squares: Vec<u64> = pool.map(|n| n * n, 1..=4u64).map(Result::unwrap).collect().await;
/// assert_eq!(squares, [1, 4, 9, 16]);
/// # pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct Map<I: Iterator, T> {
    pool: ProcessPool,
    task: TaskRef,
    items: std::iter::Fuse<I>,
    encode: fn(&I::Item, &mut Sink<'_>) -> Result<(), Fault>,
    options: Options,
    in_flight: InFlight,
    /// An item that could not be encoded, and belongs behind the last chunk.
    failed: Option<Fault>,
    /// Items pulled whose results were not yielded.
    open: usize,
    /// Items that the next chunk will have, as the cost of an item suggests.
    suggested_chunk: usize,
    results: Results,
    /// What it was called in.
    origin: Origin,
    result: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy, Default)]
struct Options {
    window: Option<usize>,
    chunk_size: Option<usize>,
    timeout: Option<Duration>,
}

/// Encoded items, or results: each its length (u32, little-endian) and its bytes.
#[derive(Default)]
struct Items {
    count: usize,
    bytes: Bytes,
}

impl Items {
    fn pop(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(*self.bytes.first_chunk::<4>()?) as usize;
        self.count = self.count.checked_sub(1)?;
        let end = self.bytes.len().min(4 + length);
        Some(self.bytes.split_to(end).split_off(4))
    }

    fn skip(&mut self, items: usize) {
        for _ in 0..items {
            self.pop();
        }
    }
}

/// Results that are ready, in order.
#[derive(Default)]
struct Results(VecDeque<Ready>);

enum Ready {
    Parts(Items),
    Failed(TaskError, usize),
}

impl Results {
    fn pop(&mut self) -> Option<Result<Bytes, TaskError>> {
        while let Some(first) = self.0.front_mut() {
            match first {
                Ready::Parts(items) => {
                    if let Some(part) = items.pop() {
                        return Some(part_result(part));
                    }
                }
                Ready::Failed(error, count @ 1..) => {
                    *count -= 1;
                    return Some(Err(error.clone()));
                }
                Ready::Failed(_, 0) => {}
            }
            self.0.pop_front();
        }
        None
    }
}

enum InFlight {
    Ordered(FuturesOrdered<BoxFuture<'static, Chunk>>),
    Unordered(FuturesUnordered<BoxFuture<'static, Chunk>>),
}

/// A chunk that is done: a result for each item, and what the last item cost, in nanoseconds.
struct Chunk {
    results: VecDeque<Ready>,
    cost: Option<u64>,
}

impl<I: Iterator, T> Map<I, T> {
    pub(super) fn new<F, M>(pool: ProcessPool, task: TaskRef, items: I) -> Map<I, T>
    where
        I::Item: Arguments<F, M>,
    {
        let timeout = pool.shared().settings.task_timeout;
        let origin = Origin::here(&pool.shared().settings, None);
        Map {
            origin,
            pool,
            task,
            items: items.fuse(),
            encode: <I::Item as Arguments<F, M>>::encode,
            options: Options { timeout, ..Options::default() },
            in_flight: InFlight::Ordered(FuturesOrdered::new()),
            failed: None,
            open: 0,
            suggested_chunk: 1,
            results: Results::default(),
            result: PhantomData,
        }
    }

    /// The most items that are pulled from the iterator ahead of the results that were taken;
    /// enough to keep every worker busy by default. Zero counts as one.
    pub fn window(mut self, items: usize) -> Map<I, T> {
        self.options.window = Some(items.max(1));
        self
    }

    /// Yields results as they get ready, in whatever order.
    pub fn unordered(mut self) -> Map<I, T> {
        self.in_flight = InFlight::Unordered(FuturesUnordered::new());
        self
    }

    /// How many items go to a worker in one message; by default chosen by the measured cost of an
    /// item. Zero counts as one. Each item has its own result and its own errors all the same.
    pub fn chunk_size(mut self, items: usize) -> Map<I, T> {
        self.options.chunk_size = Some(items.max(1));
        self
    }

    /// How long each item may take, from when it begins; [`Builder::task_timeout`] by default.
    ///
    /// [`Builder::task_timeout`]: crate::Builder::task_timeout
    pub fn timeout(mut self, limit: Duration) -> Map<I, T> {
        self.options.timeout = Some(limit);
        self
    }

    /// Sends as many items as the window has room for.
    fn fill(&mut self) {
        let shared = self.pool.shared();
        let workers =
            shared.engine.as_ref().map_or(0, |engine| engine.width()).max(shared.settings.max_workers);
        let chunk = self.options.chunk_size.unwrap_or(self.suggested_chunk);
        let window = self.options.window.unwrap_or(CHUNKS_A_WORKER * workers * chunk);
        let chunk = match self.options.chunk_size {
            // Where the window is what bounds them, there should be chunks for all workers.
            None => chunk.min((window / (2 * workers)).max(1)),
            Some(_) => chunk.min(window),
        };
        // Not for the last place alone, lest chunks shrink to single items.
        while self.open + chunk.div_ceil(2) <= window {
            let items = self.pull(chunk.min(window - self.open));
            if items.count > 0 {
                self.open += items.count;
                let (pool, origin) = (self.pool.clone(), self.origin.clone());
                let chunk = run_chunk(pool, self.task, items, self.options.timeout, origin);
                self.in_flight.push(chunk.boxed());
            } else if let Some(fault) = self.failed.take() {
                self.open += 1;
                let results = VecDeque::from([Ready::Failed(fault.into(), 1)]);
                self.in_flight.push(std::future::ready(Chunk { results, cost: None }).boxed());
            } else {
                return;
            }
        }
    }

    /// Pulls up to so many items, fewer if they are large.
    fn pull(&mut self, most: usize) -> Items {
        let limit = self.pool.shared().settings.max_message;
        let mut bytes = Vec::new();
        let mut count = 0;
        while self.failed.is_none() && count < most && bytes.len() < MAX_CHUNK_BYTES {
            let Some(item) = self.items.next() else { break };
            let start = bytes.len();
            bytes.extend_from_slice(&[0; 4]);
            match self.encode_behind(&item, &mut bytes, limit) {
                Ok(()) => {
                    // The maximum message size is below 4 GiB.
                    let length = (bytes.len() - start - 4) as u32;
                    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
                    count += 1;
                }
                Err(fault) => {
                    bytes.truncate(start);
                    self.failed = Some(fault);
                }
            }
        }
        Items { count, bytes: bytes.into() }
    }

    fn encode_behind(&self, item: &I::Item, bytes: &mut Vec<u8>, limit: u64) -> Result<(), Fault> {
        let ahead = bytes.len() as u64;
        let mut sink = Sink::new(bytes, limit.saturating_add(ahead));
        (self.encode)(item, &mut sink)?;
        sink.finish().map_err(|fault| match fault {
            Fault::TooLarge { size, .. } => Fault::TooLarge { size: size - ahead, limit },
            fault => fault,
        })
    }

    fn learn(&mut self, cost: u64) {
        let suited = usize::try_from(CHUNK_TIME / cost.max(1)).unwrap_or(MAX_CHUNK);
        // Up by and by, down at once: a chunk of items that turn out to be long keeps a worker
        // from nobody, but its results from the caller.
        self.suggested_chunk = suited.clamp(1, self.suggested_chunk * 4).min(MAX_CHUNK);
    }
}

impl InFlight {
    fn push(&mut self, chunk: BoxFuture<'static, Chunk>) {
        match self {
            InFlight::Ordered(chunks) => chunks.push_back(chunk),
            InFlight::Unordered(chunks) => chunks.push(chunk),
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Chunk>> {
        match self {
            InFlight::Ordered(chunks) => chunks.poll_next_unpin(context),
            InFlight::Unordered(chunks) => chunks.poll_next_unpin(context),
        }
    }
}

/// Nothing in it is pinned by its being pinned.
impl<I: Iterator, T> Unpin for Map<I, T> {}

impl<I: Iterator, T: DeserializeOwned + 'static> Stream for Map<I, T> {
    type Item = Result<T, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            self.fill();
            if let Some(result) = self.results.pop() {
                self.open -= 1;
                let value = result.and_then(|bytes| Ok(from_body(bytes, CodecStage::DecodeResult)?));
                return Poll::Ready(Some(value));
            }
            let Some(chunk) = ready!(self.in_flight.poll_next(context)) else {
                self.origin = Origin::default();
                return Poll::Ready(None);
            };
            if let Some(cost) = chunk.cost {
                self.learn(cost);
            }
            self.results.0.extend(chunk.results);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let ahead = self.open + usize::from(self.failed.is_some());
        let (lower, upper) = self.items.size_hint();
        (lower.saturating_add(ahead), upper.and_then(|upper| upper.checked_add(ahead)))
    }
}

impl<I: Iterator, T> fmt::Debug for Map<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("function", &format_args!("{}", self.task.label))
            .field("open_items", &self.open)
            .finish_non_exhaustive()
    }
}

/// Has a chunk run until each of its items has a result.
///
/// The worker says each item's result before it begins the next. So when one ends the worker, it
/// is known which, and those that come after it go into a chunk of their own.
async fn run_chunk(
    pool: ProcessPool,
    task: TaskRef,
    mut items: Items,
    timeout: Option<Duration>,
    origin: Origin,
) -> Chunk {
    let mut results = VecDeque::new();
    let mut cost = None;
    while items.count > 0 {
        let (parts, outcome) = run_once(&pool, task, &items, timeout, origin.clone()).await;
        let done = parts.count;
        items.skip(done);
        results.push_back(Ready::Parts(Items { count: done, bytes: parts.bytes.into() }));
        match outcome {
            Ok(elapsed) => {
                let elapsed = from_body::<u64>(elapsed, CodecStage::DecodeResult).ok();
                cost = elapsed.map(|elapsed| elapsed / done.max(1) as u64);
                // Only a worker that is none leaves items out.
                results.push_back(Ready::Failed(Fault::malformed_chunk().into(), items.count));
                break;
            }
            Err(error) if ends_all(&error) || loses_parts(&pool, &error) => {
                results.push_back(Ready::Failed(error, items.count));
                break;
            }
            Err(error) => {
                results.push_back(Ready::Failed(error, items.count.min(1)));
                items.skip(1);
            }
        }
    }
    Chunk { results, cost }
}

async fn run_once(
    pool: &ProcessPool,
    task: TaskRef,
    items: &Items,
    timeout: Option<Duration>,
    origin: Origin,
) -> (Parts, Result<Bytes, TaskError>) {
    let permit = match pool.reserve().await {
        Ok(permit) => permit.into_place(),
        Err(error) => return (Parts::default(), Err(error)),
    };
    let order = Order { timeout, items: items.count, permit, origin, is_reserved: true, ..Order::default() };
    let cell = pool.shared().submit(task, Ok(items.bytes.clone()), order);
    let handle = TaskHandle::<()>::new(cell);
    let outcome = std::future::poll_fn(|context| handle.poll_outcome(context)).await;
    (handle.cell().take_parts(), outcome.into_result())
}

/// What a part is: a byte that says whether it is a value (0) or a fault (1), and its encoding.
fn part_result(mut part: Bytes) -> Result<Bytes, TaskError> {
    let kind = (!part.is_empty()).then(|| part.split_to(1)[0]);
    match kind {
        Some(0) => Ok(part),
        Some(1) => Err(decode::<Fault>(&part, CodecStage::DecodeResult).unwrap_or_else(|fault| fault).into()),
        _ => Err(Fault::malformed_chunk().into()),
    }
}

/// Whether the results of items that are done went with their worker, so that it is not known which ran.
fn loses_parts(pool: &ProcessPool, error: &TaskError) -> bool {
    pool.shared().engine.is_some() && matches!(error, TaskError::NodeLost)
}

/// Whether an error is not one item's but the end of all that wait.
fn ends_all(error: &TaskError) -> bool {
    !matches!(
        error,
        TaskError::WorkerDied(_) | TaskError::TimedOut { .. } | TaskError::Panicked(_) | TaskError::NodeLost
    )
}

/// The results that are in the parts of a chunk, as far as they are any.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn results_of_parts(count: usize, bytes: Bytes) -> Vec<Result<Bytes, TaskError>> {
    let mut results = Results::default();
    results.0.push_back(Ready::Parts(Items { count, bytes }));
    std::iter::from_fn(|| results.pop()).collect()
}
