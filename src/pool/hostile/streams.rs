//! Streams of hostile peers, and of honest ones.

use super::super::TaskStream;
use crate::task::TaskError;
use futures::StreamExt;

pub(super) fn numbers(items: u16) -> impl Iterator<Item = u64> {
    (0..items).map(u64::from)
}

/// Takes items, and then drops the stream. Whoever sends them, there is an end, and nothing after it.
///
/// How many workers that may have cost their lives without any fault of theirs.
pub(super) async fn check(
    items: u16,
    taken: u16,
    first: Option<Result<u64, TaskError>>,
    mut stream: TaskStream<u64>,
) -> usize {
    // An item's own error is no end: only what honest peers send is known.
    let mut all: Vec<_> = first.into_iter().collect();
    while all.len() < usize::from(taken) {
        match stream.next().await {
            Some(item) => all.push(item),
            None => {
                assert!(stream.next().await.is_none());
                break;
            }
        }
    }
    let is_whole = all.len() == usize::from(items) && all.iter().all(Result::is_ok);
    usize::from(!is_whole)
}

mod cases {
    use super::super::lone::{FAULT_ITEM, ITEM, PROGRESS, VALUE, line, with_peer, with_stage};
    use super::super::script::{Line, Step};
    use super::*;
    use crate::task::{ExitCause, Fault};
    use crate::{ProcessPool, Progress};
    use futures::future::FutureExt;
    use std::collections::VecDeque;
    use std::time::Duration;

    /// The items that come before a peer is ended for what it has said.
    async fn until_violation(pool: ProcessPool, window: usize) -> Vec<Result<u64, TaskError>> {
        let mut stream = pool.stream(numbers, 3).window(window);
        // This starts it; nothing else is taken before the peer has done whatever it does.
        let mut all: Vec<_> = stream.next().now_or_never().flatten().into_iter().collect();
        super::super::eventually(|| pool.stats().workers_died() == 1).await;
        all.extend(stream.by_ref().collect::<Vec<_>>().await);
        assert!(stream.next().await.is_none());
        match all.pop() {
            Some(Err(TaskError::WorkerDied(exit))) => assert_eq!(exit.cause(), ExitCause::ProtocolViolation),
            other => panic!("{other:?}"),
        }
        // An honest one does it for the next.
        assert_eq!(pool.stream(numbers, 3).count().await, 3);
        all
    }

    /// As where the workers are on another machine.
    #[test]
    fn without_shared_memory_all_goes_through_the_pipes() {
        with_stage(VecDeque::new(), false, async |pool| {
            let mut stream = pool.stream(numbers, 1000).window(10);
            let progress = stream.progress();
            for n in 0..1000 {
                assert_eq!(stream.next().await.unwrap().unwrap(), n);
            }
            assert!(stream.next().await.is_none());
            assert!(progress.latest().is_some());
            let large = pool.stream(|n: usize| (0..n).map(|n| vec![n as u8; n << 18]), 10);
            let sizes: Vec<_> = large.map(|item| item.unwrap().len()).collect().await;
            assert_eq!(sizes, (0..10).map(|n| n << 18).collect::<Vec<_>>());
            let mut dropped = pool.stream(numbers, 1000).window(10);
            assert_eq!(dropped.next().await.unwrap().unwrap(), 0);
            drop(dropped);
            assert_eq!(pool.submit(super::super::add, 1).await.unwrap(), 2);
        });
    }

    #[test]
    fn more_items_than_there_is_room_for() {
        with_peer(vec![Step::Flood(line(ITEM, &[7]), 11)], async |pool| {
            let items = until_violation(pool, 10).await;
            assert!(items.len() == 10 && items.into_iter().all(|item| item.unwrap() == 7));
        });
    }

    #[test]
    fn more_bytes_than_there_is_room_for() {
        // Through the pipe, as they would not fit into the ring at once.
        let large = [Step::Mark, Step::Frame(line(ITEM, &[0; 250_000]))];
        with_peer(std::iter::repeat_n(large, 30).flatten().collect(), async |pool| {
            let items = until_violation(pool, 1000).await;
            assert_eq!(items.len(), (4 << 20) / 250_000 + 1);
        });
    }

    #[test]
    fn items_after_the_end() {
        let end = Step::Record(line(VALUE, &[]));
        with_peer(vec![Step::Record(line(ITEM, &[7])), end, Step::Record(line(ITEM, &[7]))], async |pool| {
            let items: Vec<_> = pool.stream(numbers, 3).collect().await;
            assert!(matches!(items[..], [Ok(7)]), "{items:?}");
            super::super::eventually(|| pool.stats().workers_died() == 1).await;
        });
    }

    #[test]
    fn items_of_a_task_that_is_no_stream() {
        with_peer(vec![Step::Record(line(ITEM, &[7]))], async |pool| {
            match pool.submit(super::super::add, 1).await {
                Err(TaskError::WorkerDied(exit)) => assert_eq!(exit.cause(), ExitCause::ProtocolViolation),
                other => panic!("{other:?}"),
            }
        });
    }

    #[test]
    fn items_that_are_none() {
        let fault = postcard::to_stdvec(&Fault::Cancelled).unwrap();
        let steps = vec![
            Step::Record(line(ITEM, &[])),
            Step::Record(line(ITEM, &[1, 2, 3])),
            Step::Record(line(FAULT_ITEM, &[0xff; 100])),
            Step::Record(line(FAULT_ITEM, &fault)),
            Step::Record(line(ITEM, &[7])),
            Step::Record(line(VALUE, &[1, 2, 3])),
        ];
        with_peer(steps, async |pool| {
            let items: Vec<_> = pool.stream(numbers, 3).collect().await;
            assert!(
                matches!(
                    items[..],
                    [
                        Err(TaskError::Codec(_)),
                        Err(TaskError::Codec(_)),
                        Err(TaskError::Codec(_)),
                        Err(TaskError::Cancelled),
                        Ok(7)
                    ]
                ),
                "{items:?}"
            );
        });
    }

    #[test]
    fn items_that_nobody_wants_any_more() {
        with_peer(
            vec![Step::Flood(line(ITEM, &[7]), 10), Step::Pause(250), Step::Flood(line(ITEM, &[7]), 100)],
            async |pool| {
                let mut stream = pool.stream(numbers, 3).window(10);
                assert_eq!(stream.next().await.unwrap().unwrap(), 7);
                drop(stream);
                super::super::eventually(|| pool.stats().running() == 0).await;
                assert_eq!(pool.stats().cancelled(), 1);
            },
        );
    }

    #[test]
    fn a_flood_of_reports() {
        with_peer(
            vec![Step::Flood(line(PROGRESS, &[]), 5000), Step::Record(line(VALUE, &[7]))],
            async |pool| {
                let task = pool.submit(super::super::add, 1);
                let watch = task.progress();
                assert_eq!(task.await.unwrap(), 7);
                assert_eq!(watch.latest(), Some(Progress::new(1)));
            },
        );
    }

    #[test]
    fn a_body_on_what_has_none() {
        with_peer(vec![Step::Record(line(PROGRESS, &[7; 100]))], async |pool| {
            match pool.submit(super::super::add, 1).await {
                Err(TaskError::WorkerDied(exit)) => assert_eq!(exit.cause(), ExitCause::ProtocolViolation),
                other => panic!("{other:?}"),
            }
        });
    }

    #[test]
    fn a_report_that_is_too_long() {
        let long = Line { place: Some((0, 1025)), ..line(PROGRESS, &[]) };
        with_peer(vec![Step::Record(long)], async |pool| {
            assert!(matches!(pool.submit(super::super::add, 1).await, Err(TaskError::WorkerDied(_))));
        });
    }

    #[test]
    fn a_shutdown_does_not_wait_for_ever_for_a_consumer() {
        with_peer(vec![Step::Flood(line(ITEM, &[7]), 10)], async |pool| {
            let mut stream = pool.stream(numbers, 3).window(10);
            assert_eq!(stream.next().await.unwrap().unwrap(), 7);
            // With one taken there is room for no more, by the grant that is not due.
            let honest = pool.stream(numbers, 100).window(10);
            let mut honest = std::pin::pin!(honest.peekable());
            assert!(honest.as_mut().peek().await.is_some());
            tokio::time::timeout(Duration::from_secs(20), pool.shutdown()).await.unwrap();
            let ends: Vec<_> = honest.collect().await;
            assert!(matches!(ends.last(), Some(Err(TaskError::ShutDown))), "{ends:?}");
        });
    }
}
