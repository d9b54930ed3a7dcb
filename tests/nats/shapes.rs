//! Functions of every shape, and `map`.

use anyhow::Context;
use futures::StreamExt;
use procession::{Map, TaskError};

use crate::common::panicked;
use crate::stage::play;

fn none() -> u8 {
    7
}

fn one(word: String) -> usize {
    word.len()
}

#[allow(clippy::too_many_arguments)]
fn eight(a: u8, b: u16, c: u32, d: u64, e: i8, f: i16, g: i32, h: i64) -> i64 {
    i64::from(a) + i64::from(b) + i64::from(c) + d as i64 + i64::from(e) + i64::from(f) + i64::from(g) + h
}

async fn later(n: u32) -> u32 {
    tokio::task::yield_now().await;
    n + 1
}

fn fails(n: u32) -> anyhow::Result<u32> {
    Err(anyhow::anyhow!("inner {n}")).context("outer")
}

async fn fails_later(n: u32) -> anyhow::Result<u32> {
    anyhow::ensure!(n > 0, "no {n}");
    Ok(n)
}

fn own_result(n: u32) -> Result<u32, String> {
    if n.is_multiple_of(2) { Ok(n / 2) } else { Err(format!("{n} is odd")) }
}

#[test]
fn every_shape() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        assert_eq!(pool.submit(none, ()).await.unwrap(), 7);
        assert_eq!(pool.submit(one, "hello".to_owned()).await.unwrap(), 5);
        assert_eq!(pool.submit(eight, (1, 2, 3, 4, 5, 6, 7, 8)).await.unwrap(), 36);
        assert_eq!(pool.submit(|x: u64, y: u64| x * y, (6, 7)).await.unwrap(), 42);
        assert_eq!(pool.submit(later, 1).await.unwrap(), 2);
        assert_eq!(pool.submit(async |n: u32| n + 2, 1).await.unwrap(), 3);
        assert_eq!(pool.submit(fails_later, 1).await.unwrap(), 1);
        assert_eq!(pool.submit(own_result, 8).await.unwrap(), Ok(4));
        assert_eq!(pool.submit(own_result, 3).await.unwrap(), Err("3 is odd".into()));
        assert_matches!(pool.submit(fails, 3).await, Err(TaskError::Failed(error)) if error.chain().eq(["outer", "inner 3"]));
        assert_matches!(pool.submit(fails_later, 0).await, Err(TaskError::Failed(error)) if error.to_string() == "no 0");
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_task_knows_itself_as_its_handle_does() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        let whoami = || {
            let me = procession::worker::current().unwrap();
            (me.id().get(), me.attempt(), me.name().map(str::to_owned), me.deadline().is_some())
        };
        for _ in 0..3 {
            let limit = std::time::Duration::from_secs(60);
            let mut handle = pool.task(whoami, ()).name("me").timeout(limit).submit();
            let told = (&mut handle).await.unwrap();
            assert_eq!(told, (handle.id().get(), 1, Some("me".to_owned()), true));
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

async fn values<I: Iterator>(map: Map<I, u64>) -> Vec<u64> {
    map.map(Result::unwrap).collect().await
}

#[test]
fn map_in_order_and_not() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let expected: Vec<u64> = (0..500).map(|n| n * n).collect();
        assert_eq!(values(pool.map(|n: u64| n * n, 0..500)).await, expected);
        let mut unordered = values(pool.map(|n: u64| n * n, 0..500).unordered().chunk_size(7)).await;
        unordered.sort_unstable();
        assert_eq!(unordered, expected);
        assert_eq!(values(pool.map(|n: u64| n * n, 0..500).window(3).chunk_size(1)).await, expected);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn items_of_a_chunk_fail_each_for_itself() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let item = |n: u64| {
            match n {
                3 => panic!("not {n}"),
                5 => std::process::exit(5),
                7 => std::thread::sleep(std::time::Duration::from_secs(600)),
                _ => {}
            }
            n
        };
        let limit = std::time::Duration::from_secs(2);
        let results: Vec<_> = pool.map(item, 0..12).chunk_size(4).timeout(limit).collect().await;
        for (n, result) in results.into_iter().enumerate() {
            match n {
                3 => assert_eq!(panicked(result).message(), "not 3"),
                5 => assert_eq!(crate::common::died(result).code(), Some(5)),
                7 => assert_matches!(result, Err(TaskError::TimedOut { limit: had }) if had == limit),
                _ => assert_eq!(result.unwrap(), n as u64),
            }
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}
