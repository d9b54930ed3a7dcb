//! Two processes print their process ids: the parent and one worker of a pool.
//!
//! Stands beside `fork.py`, which calls `os.fork()` and then prints `os.getpid()` in both copies.
//! Here the second process does not continue after the fork: it is handed one function, runs it,
//! and the value comes back to the parent. The two ids always differ.
//!
//! ```text
//! cargo run --example two_pids
//! ```

use std::process;
use std::time::Instant;

use procession::ProcessPool;

fn print_pid(role: String) -> u32 {
    let pid = process::id();
    println!("{role} {pid}");
    pid
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let pool = ProcessPool::builder().workers(1).build()?;

    let here = print_pid("parent".to_string());
    let there = pool.submit(print_pid, "worker".to_string()).await?;
    assert_ne!(here, there, "a task never runs in the parent's process");

    pool.shutdown().await;
    println!("done after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}
