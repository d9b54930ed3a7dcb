//! One function over many items.

use super::ProcessPool;
use super::handle::TaskHandle;
use super::shared::Order;
use super::submit::encode_arguments;
use crate::task::{Arguments, CodecStage, Fault, TaskError, TaskRef, decode, decode_shared};
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
    encode: fn(&I::Item, u64) -> Result<Bytes, Fault>,
    options: Options,
    in_flight: InFlight,
    /// An item that did not fit into the last chunk, or could not be encoded.
    pulled: Option<Result<Bytes, Fault>>,
    /// Items pulled whose results were not yielded.
    open: usize,
    /// Items that the next chunk will have, as the cost of an item suggests.
    suggested_chunk: usize,
    results: VecDeque<ItemResult>,
    result: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy, Default)]
struct Options {
    window: Option<usize>,
    chunk_size: Option<usize>,
    timeout: Option<Duration>,
}

type ItemResult = Result<Bytes, TaskError>;

enum InFlight {
    Ordered(FuturesOrdered<BoxFuture<'static, Chunk>>),
    Unordered(FuturesUnordered<BoxFuture<'static, Chunk>>),
}

/// A chunk that is done: a result for each item, and what the last item cost, in nanoseconds.
struct Chunk {
    results: Vec<ItemResult>,
    cost: Option<u64>,
}

impl<I: Iterator, T> Map<I, T> {
    pub(super) fn new<F, M>(pool: ProcessPool, task: TaskRef, items: I) -> Map<I, T>
    where
        I::Item: Arguments<F, M>,
    {
        let timeout = pool.shared().settings.task_timeout;
        Map {
            pool,
            task,
            items: items.fuse(),
            encode: encode_arguments::<F, I::Item, M>,
            options: Options { timeout, ..Options::default() },
            in_flight: InFlight::Ordered(FuturesOrdered::new()),
            pulled: None,
            open: 0,
            suggested_chunk: 1,
            results: VecDeque::new(),
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
        let workers = self.pool.shared().settings.max_workers;
        let chunk = self.options.chunk_size.unwrap_or(self.suggested_chunk);
        let window = self.options.window.unwrap_or(CHUNKS_A_WORKER * workers * chunk);
        // Where the window is what bounds them, there should be chunks for all workers.
        let chunk = match self.options.chunk_size {
            None => chunk.min((window / (2 * workers)).max(1)),
            Some(_) => chunk,
        };
        while self.open < window {
            let items = self.pull(chunk.min(window - self.open));
            match items {
                Pulled::Items(items) => {
                    self.open += items.len();
                    let chunk = run_chunk(self.pool.clone(), self.task, items, self.options.timeout);
                    self.in_flight.push(chunk.boxed());
                }
                Pulled::Failed(fault) => {
                    self.open += 1;
                    let results = vec![Err(fault.into())];
                    self.in_flight.push(std::future::ready(Chunk { results, cost: None }).boxed());
                }
                Pulled::Nothing => return,
            }
        }
    }

    /// Pulls up to so many items, fewer if they are large.
    fn pull(&mut self, most: usize) -> Pulled {
        let limit = self.pool.shared().settings.max_message;
        let mut items = Vec::new();
        let mut bytes = 0;
        while items.len() < most {
            let encoded = match self.pulled.take() {
                Some(encoded) => encoded,
                None => match self.items.next() {
                    Some(item) => (self.encode)(&item, limit),
                    None => break,
                },
            };
            match encoded {
                Ok(item) if items.is_empty() || bytes + item.len() <= MAX_CHUNK_BYTES => {
                    bytes += item.len();
                    items.push(item);
                }
                Err(fault) if items.is_empty() => return Pulled::Failed(fault),
                later => {
                    self.pulled = Some(later);
                    break;
                }
            }
        }
        if items.is_empty() { Pulled::Nothing } else { Pulled::Items(items) }
    }

    fn learn(&mut self, cost: u64) {
        let suited = usize::try_from(CHUNK_TIME / cost.max(1)).unwrap_or(MAX_CHUNK);
        // Up by and by, down at once: a chunk of items that turn out to be long keeps a worker
        // from nobody, but its results from the caller.
        self.suggested_chunk = suited.clamp(1, self.suggested_chunk * 4).min(MAX_CHUNK);
    }
}

enum Pulled {
    Items(Vec<Bytes>),
    Failed(Fault),
    Nothing,
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
            if let Some(result) = self.results.pop_front() {
                self.open -= 1;
                let value = result.and_then(|bytes| Ok(decode_shared(&bytes, CodecStage::DecodeResult)?));
                return Poll::Ready(Some(value));
            }
            let Some(chunk) = ready!(self.in_flight.poll_next(context)) else {
                return Poll::Ready(None);
            };
            if let Some(cost) = chunk.cost {
                self.learn(cost);
            }
            self.results.extend(chunk.results);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let ahead = self.open + usize::from(self.pulled.is_some());
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
/// The worker sends each item's result before it begins the next. So when one ends the worker, it
/// is known which, and those that come after it go into a chunk of their own.
async fn run_chunk(
    pool: ProcessPool,
    task: TaskRef,
    mut items: Vec<Bytes>,
    timeout: Option<Duration>,
) -> Chunk {
    let mut results = Vec::with_capacity(items.len());
    let mut cost = None;
    while !items.is_empty() {
        let (parts, outcome) = run_once(&pool, task, &items, timeout).await;
        let done = parts.len().min(items.len());
        items.drain(..done);
        results.extend(parts.into_iter().map(item_result));
        match outcome {
            Ok(elapsed) => {
                let elapsed = decode::<u64>(&elapsed, CodecStage::DecodeResult).ok();
                cost = elapsed.map(|elapsed| elapsed / done.max(1) as u64);
                // A worker that is none leaves items out.
                let missing = items.drain(..).map(|_| Err(Fault::malformed_chunk().into()));
                results.extend(missing);
            }
            Err(error) if ends_all(&error) => results.extend(items.drain(..).map(|_| Err(error.clone()))),
            Err(error) => {
                let began = items.drain(..items.len().min(1));
                results.extend(began.map(|_| Err(error.clone())));
            }
        }
    }
    Chunk { results, cost }
}

async fn run_once(
    pool: &ProcessPool,
    task: TaskRef,
    items: &[Bytes],
    timeout: Option<Duration>,
) -> (Vec<Bytes>, ItemResult) {
    let permit = match pool.reserve().await {
        Ok(permit) => permit.into_place(),
        Err(error) => return (Vec::new(), Err(error)),
    };
    let order = Order { timeout, items: items.len(), permit, ..Order::default() };
    let cell = pool.shared().submit(task, Ok(join(items)), order);
    let handle = TaskHandle::<()>::new(cell);
    let outcome = std::future::poll_fn(|context| handle.poll_outcome(context)).await;
    (handle.cell().take_parts(), outcome.into_result())
}

/// A chunk's body: each item's length (u32, little-endian) and encoding.
fn join(items: &[Bytes]) -> Bytes {
    let mut body = Vec::with_capacity(items.iter().map(|item| item.len() + 4).sum());
    for item in items {
        // The maximum message size is below 4 GiB.
        body.extend_from_slice(&(item.len() as u32).to_le_bytes());
        body.extend_from_slice(item);
    }
    body.into()
}

fn item_result(part: Bytes) -> ItemResult {
    match part.split_first() {
        Some((0, _)) => Ok(part.slice(1..)),
        Some((1, fault)) => {
            Err(decode::<Fault>(fault, CodecStage::DecodeResult).unwrap_or_else(|fault| fault).into())
        }
        _ => Err(Fault::malformed_chunk().into()),
    }
}

/// Whether an error is not one item's but the end of all that wait.
fn ends_all(error: &TaskError) -> bool {
    !matches!(
        error,
        TaskError::WorkerDied(_) | TaskError::TimedOut { .. } | TaskError::Panicked(_) | TaskError::NodeLost
    )
}
