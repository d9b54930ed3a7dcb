//! A mistake: each task is awaited before the next one is submitted.
//!
//! Stands beside `block_mistake.py`, which calls `future.result()` inside the loop that submits.
//! There the call blocks; here the `.await` suspends `main`. The effect is the same: the next
//! `submit` does not happen until the task before it has finished. There is never more than one
//! task in the pool, nine of the ten workers have nothing to do, and ten tasks of 0.1 s take about
//! 1 s.
//!
//! `await_fixed` is the correction.
//!
//! ```text
//! cargo run --example await_mistake
//! ```

use std::thread;
use std::time::{Duration, Instant};

use procession::ProcessPool;

fn do_work(task: u64) -> u64 {
    thread::sleep(Duration::from_millis(100));
    task * task
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(10).build()?;
    pool.warm_up().await?;
    let start = Instant::now();

    let mut results = Vec::new();
    for task in 0..10 {
        let handle = pool.submit(do_work, task);
        results.push(handle.await?); // the mistake: the loop stops here until the task is done
    }

    println!("{results:?}");
    println!("done after {:.2} s", start.elapsed().as_secs_f64());
    pool.shutdown().await;
    Ok(())
}
