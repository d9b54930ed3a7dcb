//! Large arguments and results.

use super::stage::Stage;

ways! {
    large_values_travel_whole: command command_stdio command_tls slurm ssh ssh_tls;
    what_is_slow_arrives_too: slurm_stdio ssh_stdio;
}

/// Bytes of which each place has its own.
fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::from_fn(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        Some(state.to_le_bytes())
    });
    words.flatten().take(size).collect()
}

async fn both_ways(stage: &Stage, sizes: &[usize]) {
    let pool = stage.pool();
    for (seed, &size) in sizes.iter().enumerate() {
        let sent = pattern(size, seed as u64);
        let back = pool.submit(|bytes: Vec<u8>| bytes, sent.clone()).await.unwrap();
        assert!(sent == back, "{size} bytes did not come back as they were");
        let made = pool.submit(pattern, (size, 7)).await.unwrap();
        assert!(made == pattern(size, 7), "{size} bytes did not come as they were made");
    }
    pool.shutdown().await;
}

async fn large_values_travel_whole(stage: &mut Stage) {
    both_ways(stage, &[0, 1, 40_000, 2 << 20, 64 << 20]).await;
}

async fn what_is_slow_arrives_too(stage: &mut Stage) {
    both_ways(stage, &[0, 1, 40_000, 256 << 10]).await;
}
