//! How long tasks wait and run.

use super::scheduler::Nanos;
use hdrhistogram::Histogram;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The longest time that is told apart from longer ones: a day.
const LONGEST: Nanos = 86_400_000_000_000;

/// To how many significant digits times are kept: to 1 in 100, with 45 KiB a distribution.
const DIGITS: u8 = 2;

/// The times that tasks have taken so far.
pub(super) struct Times {
    pub(super) queue: Histogram<u64>,
    pub(super) run: Histogram<u64>,
}

impl Times {
    pub(super) fn new() -> Times {
        // With these bounds there is nothing to go wrong.
        let empty = || Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are in order");
        Times { queue: empty(), run: empty() }
    }

    /// A task has run.
    pub(super) fn add(&mut self, waited: Nanos, ran: Nanos) {
        self.queue.saturating_record(waited);
        self.run.saturating_record(ran);
    }
}

/// How a time was distributed over the tasks of a pool, from its start.
///
/// Times are kept to two significant digits: what is told is at most 1 % above what was measured.
/// Above a day, it is a day.
///
/// ```
/// use procession::ProcessPool;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// let pool = ProcessPool::new()?;
/// pool.submit(|millis| std::thread::sleep(Duration::from_millis(millis)), 20_u64).await?;
/// let stats = pool.stats();
/// assert_eq!(stats.run_time().count(), 1);
/// assert!(stats.run_time().p99() >= Duration::from_millis(20));
/// println!("waited {:?}, ran {:?}", stats.queue_time().p50(), stats.run_time().p50());
/// # pool.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Distribution(Arc<Histogram<u64>>);

impl Distribution {
    pub(super) fn new(histogram: Histogram<u64>) -> Distribution {
        Distribution(Arc::new(histogram))
    }

    /// How many tasks are in it.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that this share of the tasks did not exceed, the share from 0 to 1; zero when there
    /// are none yet.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// The median.
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The time that 90 % did not exceed.
    pub fn p90(&self) -> Duration {
        self.quantile(0.9)
    }

    /// The time that 99 % did not exceed.
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// The mean.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean() as u64)
    }
}

impl fmt::Debug for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distribution")
            .field("count", &self.count())
            .field("p50", &self.p50())
            .field("p90", &self.p90())
            .field("p99", &self.p99())
            .field("max", &self.max())
            .finish()
    }
}
