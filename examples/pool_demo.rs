//! Ten tasks of 0.2 s over four workers, without collecting what they return.
//!
//! Stands beside `ppool_demo.py`, which submits ten tasks inside the `with` block of a
//! `ProcessPoolExecutor(max_workers=4)`. Leaving that block waits for the tasks; here
//! `shutdown().await` does. Each handle is detached, because a handle that is dropped cancels its
//! task.
//!
//! However ten tasks are divided over four workers, one worker runs at least three of them. The pool
//! gives the next task to whichever worker is free, so none runs many more: about 0.6 s in all.
//!
//! ```text
//! cargo run --example pool_demo
//! ```

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use procession::ProcessPool;

fn do_work(task: u32) {
    println!("I am process {} working on task {task}", process::id());
    thread::sleep(Duration::from_millis(200));
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let pool = ProcessPool::builder().workers(4).build()?;

    for task in 0..10 {
        pool.submit(do_work, task).detach();
    }

    pool.shutdown().await;
    println!("done after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}
