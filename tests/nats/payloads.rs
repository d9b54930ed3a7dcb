//! Payloads that do not fit into a message.

use procession::TaskError;

use crate::stage::play;

const MIB: usize = 1 << 20;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| ((n / 7) ^ (n >> 9)) as u8).collect()
}

fn shift(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    bytes
}

#[test]
fn from_none_to_64_mib() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(1).await, stage.pool());
        for size in [0, 1, 512 << 10, (512 << 10) + 1, 2 * MIB, 64 * MIB] {
            let sent = pattern(size);
            let back = pool.submit(shift, sent.clone()).await.unwrap();
            assert!(back == shift(sent), "{size} bytes come back otherwise");
            stage.server.expect_empty().await;
        }
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn large_one_way() {
    play(async |stage| {
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let sizes = pool.submit(|bytes: Vec<u8>| bytes.len(), vec![7; 2 * MIB]);
        let bytes = pool.submit(|size: usize| vec![8_u8; size], 2 * MIB);
        assert_eq!(sizes.await.unwrap(), 2 * MIB);
        assert!(bytes.await.unwrap() == vec![8; 2 * MIB]);
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn of_tasks_that_fail_or_are_cancelled_nothing_is_left() {
    play(async |stage| {
        let pool = stage.pool();
        let cancelled = pool.submit(|bytes: Vec<u8>| bytes.len(), vec![7; 2 * MIB]);
        drop(cancelled);
        let agent = stage.agent(1).await;
        let crash = |bytes: Vec<u8>| -> usize {
            assert_eq!(bytes.len(), 2 * MIB);
            std::process::abort()
        };
        crate::common::died(pool.task(crash, vec![7; 2 * MIB]).retries(1).await);
        let message = |bytes: Vec<u8>| -> anyhow::Result<()> { anyhow::bail!("{} bytes", bytes.len()) };
        assert_matches!(pool.submit(message, vec![7; 2 * MIB]).await, Err(TaskError::Failed(_)));
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}

#[test]
fn a_chunk_with_large_items() {
    play(async |stage| {
        use futures::StreamExt;
        let (agent, pool) = (stage.agent(2).await, stage.pool());
        let items = std::iter::repeat_with(|| vec![1_u8; 400 << 10]).take(8);
        let results: Vec<_> = pool.map(shift, items).chunk_size(3).map(Result::unwrap).collect().await;
        assert_eq!(results.len(), 8);
        assert!(results.iter().all(|result| *result == vec![2_u8; 400 << 10]));
        pool.shutdown().await;
        agent.shutdown().await;
        stage
    });
}
