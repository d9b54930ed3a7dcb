//! Writes a timeline of a pool: what ran in which worker and when, with a crash, a retry, a timeout,
//! an error and a panic among it. Open the file with <https://ui.perfetto.dev>, or in Chrome at
//! `chrome://tracing`.
//! ```text
//! cargo run --example timeline                  # to a file in the temporary directory
//! cargo run --example timeline -- trace.json
//! ```

use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use procession::{ProcessPool, TaskHandle};

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn render(page: u64) -> u64 {
    sleep(millis(20 + page * 37 % 30));
    page
}

fn crash_once() {
    sleep(millis(25));
    if procession::worker::current().is_some_and(|task| task.attempt() == 1) {
        std::process::abort();
    }
}

fn refuse() -> anyhow::Result<()> {
    sleep(millis(15));
    anyhow::bail!("this page has no text")
}

fn count_from_one(page: u64) {
    sleep(millis(20));
    assert!(page > 0, "there is no page 0");
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from);
    let path = path.unwrap_or_else(|| std::env::temp_dir().join("procession-timeline.json"));
    let pool = ProcessPool::builder().name("pages").workers(4).timeline(&path).build()?;

    let mut pages: Vec<TaskHandle<u64>> = Vec::new();
    let mut render_pages = |from: u64, to: u64| {
        pages.extend((from..to).map(|n| pool.task(render, n).name(format!("page {n}")).submit()));
    };
    render_pages(0, 6);
    let crashed = pool.task(crash_once, ()).name("crashes once").retries(1).submit();
    let hung = pool.task(sleep, millis(60_000)).name("hangs").timeout(millis(70)).submit();
    render_pages(6, 12);
    let refused = pool.task(refuse, ()).name("fails").submit();
    let panicked = pool.task(count_from_one, 0).name("panics").submit();
    render_pages(12, 18);

    let rendered = futures::future::try_join_all(pages).await?;
    crashed.await?;
    println!("{} pages are rendered, and what crashed was tried again", rendered.len());
    for failed in [hung.await, refused.await, panicked.await] {
        println!("{}", failed.expect_err("this one cannot succeed"));
    }
    pool.shutdown().await;
    println!("the timeline is in {}", path.display());
    Ok(())
}
