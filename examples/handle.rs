//! A handle before its task has finished, the same handle after, and the value it held.
//!
//! Stands beside the unnamed program in the section on return values, which submits
//! `work("hello")` and prints the `Future` that it gets back. Here the task prints its word and
//! returns the word's length. The handle is printed twice. Awaiting `&mut handle`, not `handle`,
//! leaves it in place for the second time.
//!
//! ```text
//! cargo run --example handle
//! ```

use std::time::Instant;

use procession::ProcessPool;

fn work(word: String) -> usize {
    println!("{word}");
    word.len()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let pool = ProcessPool::builder().workers(1).build()?;

    let mut handle = pool.submit(work, "hello".to_string());
    println!("before: {handle:?}");
    let length = (&mut handle).await?;
    println!("after: {handle:?}");
    println!("value: {length}");

    pool.shutdown().await;
    println!("done after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}
