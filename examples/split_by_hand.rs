//! Ten tasks, split by hand over two processes: the work that a pool takes off your hands.
//!
//! Stands beside `fork_mp.py`, which cuts a list of ten in two, forks, and lets each process loop
//! over its own half. Here each half goes to a pool with a single worker, as one long task. An item
//! takes 0.2 s, so each half takes 1 s. The halves run side by side: about 1 s in all, instead of 2.
//!
//! The split is fixed before the work begins. If one half were slower, the other process would stand
//! idle at the end. `pool_demo` leaves the division to the pool.
//!
//! ```text
//! cargo run --example split_by_hand
//! ```

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use procession::ProcessPool;

fn work_through(tasks: Vec<u32>) {
    for task in tasks {
        println!("I am process {} working on task {task}", process::id());
        thread::sleep(Duration::from_millis(200));
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let left = ProcessPool::builder().workers(1).build()?;
    let right = ProcessPool::builder().workers(1).build()?;

    let first_half: Vec<u32> = (0..5).collect();
    let second_half: Vec<u32> = (5..10).collect();
    tokio::try_join!(left.submit(work_through, first_half), right.submit(work_through, second_half),)?;

    tokio::join!(left.shutdown(), right.shutdown());
    println!("done after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}
