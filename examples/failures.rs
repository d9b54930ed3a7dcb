//! Ten tasks of which half fail; the values and the errors are collected in order.
//!
//! Stands beside `error_example.py`, whose tasks raise an exception at random and whose parent
//! catches it around `future.result()`. Here the odd tasks return an `anyhow::Error`, so that every
//! run gives the same list. An error that a task returns comes back as `TaskError::Failed` and shows
//! as the task's own message. It concerns that task alone: the others keep their values.
//!
//! Any other `TaskError` (a panic, a worker that died) is not part of this program's plan and ends
//! it.
//!
//! ```text
//! cargo run --example failures
//! ```

use std::fmt::Debug;
use std::time::Instant;

use anyhow::ensure;
use futures::future::join_all;
use procession::{ProcessPool, TaskError};

fn do_work(task: u64) -> anyhow::Result<u64> {
    ensure!(task.is_multiple_of(2), "OW!");
    Ok(task * task)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let pool = ProcessPool::builder().workers(10).build()?;

    let handles: Vec<_> = (0..10).map(|task| pool.submit(do_work, task)).collect();

    let mut results: Vec<Box<dyn Debug>> = Vec::new();
    for outcome in join_all(handles).await {
        match outcome {
            Ok(value) => results.push(Box::new(value)),
            Err(TaskError::Failed(error)) => results.push(Box::new(format!("failed with {error}"))),
            Err(other) => return Err(other.into()),
        }
    }
    println!("{results:?}");

    pool.shutdown().await;
    println!("done after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}
