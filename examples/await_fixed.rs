//! The correction of `await_mistake`: submit every task first, then await the handles.
//!
//! Stands beside `block_fixed.py`, which gathers the futures in a list and asks for their results
//! once all of them have been submitted. `submit` queues a task at once and returns, so the loop
//! that submits takes next to no time and the ten tasks of 0.1 s run side by side. The ten workers
//! are started by `warm_up` before the clock: about 0.1 s.
//!
//! `try_join_all` keeps the order of the handles, whatever the order in which the tasks finish.
//!
//! ```text
//! cargo run --example await_fixed
//! ```

use std::thread;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
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

    let handles: Vec<_> = (0..10).map(|task| pool.submit(do_work, task)).collect();
    let results = try_join_all(handles).await?;

    println!("{results:?}");
    println!("done after {:.2} s", start.elapsed().as_secs_f64());
    pool.shutdown().await;
    Ok(())
}
