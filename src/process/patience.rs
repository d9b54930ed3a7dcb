//! Waiting for another process no longer than it may take, by a clock that is fair to it.

use std::pin::pin;
use std::time::Duration;
use tokio::time::Instant;

/// Into how many parts a wait is divided.
const PARTS: u32 = 10;

/// The wait was in vain.
#[derive(Debug)]
pub(crate) struct TooLong;

/// Waits for a future no longer than the limit, as `tokio::time::timeout` does, but time in which
/// this process was held up does not count.
///
/// When the program and its workers are stopped and continued, the limit of whatever is under way
/// is over as soon as the program runs, and the other process may not have run yet. So the wait is
/// divided, and a part that took more than twice its time is waited for again.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, TooLong> {
    let mut future = pin!(future);
    let part = limit / PARTS;
    let (mut parts, mut excuses) = (0, 0);
    while parts < PARTS {
        let began = Instant::now();
        if let Ok(output) = tokio::time::timeout(part, &mut future).await {
            return Ok(output);
        }
        // Its smallest step is a millisecond. Who is held up all the time must not wait for ever.
        let was_held_up = began.elapsed() > part * 2 + Duration::from_millis(2);
        if was_held_up && excuses < 10 * PARTS {
            excuses += 1;
        } else {
            parts += 1;
        }
    }
    Err(TooLong)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_with_the_future_or_at_the_limit() {
        let limit = Duration::from_millis(50);
        assert_eq!(within(Duration::MAX, async { 5 }).await.unwrap(), 5);
        let start = Instant::now();
        within(limit, std::future::pending::<()>()).await.unwrap_err();
        assert!(start.elapsed() >= limit);
        within(Duration::ZERO, std::future::pending::<()>()).await.unwrap_err();
    }

    #[tokio::test]
    async fn time_in_which_the_runtime_was_held_up_does_not_count() {
        let late = async {
            tokio::task::yield_now().await;
            // Nothing else runs on this thread meanwhile.
            std::thread::sleep(Duration::from_millis(400));
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        within(Duration::from_millis(200), late).await.unwrap();
    }
}
