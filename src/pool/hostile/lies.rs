//! Lies that were thought of one by one.

use super::lone::{FAULT, PART, VALUE, line, with_peer, with_stage};
use super::script::{Script, Spot, Step, Value};
use super::{add, eventually, length};
use crate::task::TaskError;
use futures::StreamExt;
use std::time::Duration;

fn script(steps: Vec<Step>, lingers: bool) -> Script {
    Script { greets: true, steps, lingers }
}

/// What it does not take would be kept for it.
#[test]
fn answers_to_what_it_has_not_read() {
    // As many as it can be sent go into its pipe, with some to spare.
    const MOST: usize = 40;
    with_peer(vec![Step::Record(line(VALUE, &[66])), Step::Blind(200)], async |pool| {
        let mut lies = 0;
        for _ in 0..200 {
            let value = pool.submit(length, vec![7; 10_000]).await;
            lies += usize::from(value.is_ok_and(|value| value == [66]));
        }
        assert!((1..MOST).contains(&lies), "{lies} lies were believed");
        assert_eq!(pool.stats().workers_died(), 1);
    });
}

/// The parts would be in the way of those that an honest worker has.
#[test]
fn parts_of_a_chunk_that_it_then_denies_to_have_begun() {
    let denial = Step::Word(Spot::Slot(0), Value::State(0));
    let steps = vec![Step::Take(None), Step::Flood(line(PART, &[0, 66]), 8), denial];
    with_stage([script(steps, false)].into(), true, async |pool| {
        let results: Vec<_> = pool.map(add, 0..8).chunk_size(8).collect().await;
        for (n, result) in (0..8).zip(results) {
            assert_eq!(result.unwrap(), n + 1);
        }
        assert_eq!(pool.stats().workers_died(), 1);
    });
}

/// There are numbers that are not good to count with.
#[test]
fn times_that_cannot_be() {
    let steps = (0..8).flat_map(|_| [Step::Take(None), Step::Frame(line(FAULT, &[]))]).collect();
    with_stage([script(steps, true)].into(), false, async |pool| {
        for n in 0..8 {
            match pool.submit(add, n).await {
                Err(TaskError::Panicked(panic)) => assert_eq!(panic.message(), "hostile"),
                other => assert_eq!(other.unwrap(), n + 1),
            }
        }
        eventually(|| pool.stats().workers_died() == 1).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(pool.submit(add, 1).await.unwrap(), 2);
    });
}
