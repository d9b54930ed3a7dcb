//! Walks a folder in a worker, and streams what it finds.
//!
//! The walk pushes each file as it comes to it ([`worker::emit`]), and waits while this program is
//! behind. It reports its progress beside that. What cannot be read is an error in the place of an
//! entry, and the walk goes on. With `--first N` this program has enough after so many files and drops
//! the stream: the walk stops, and its worker does the next task.
//!
//! ```text
//! cargo run --example stream -- [--first N] [FOLDER]
//! ```

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use procession::worker::{self, Emit, emit};
use procession::{ProcessPool, Progress};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// Not a `PathBuf`, which serde takes only if it is Unicode.
    path: OsString,
    bytes: u64,
}

/// Runs in a worker.
fn walk(root: PathBuf) -> Emit<anyhow::Result<Entry>> {
    emit(move |out| {
        let task = worker::current().context("this is no task")?;
        let mut folders = 0;
        for entry in WalkDir::new(root).sort_by_file_name() {
            if entry.as_ref().is_ok_and(|entry| entry.file_type().is_dir()) {
                folders += 1;
                let path = entry?.path().display().to_string();
                task.report(Progress::new(folders).with_message(path));
                continue;
            }
            // An error here means that nobody listens any more.
            out.send(look_at(entry))?;
        }
        Ok(())
    })
}

fn look_at(entry: walkdir::Result<walkdir::DirEntry>) -> anyhow::Result<Entry> {
    let entry = entry?;
    let bytes = entry.metadata()?.len();
    Ok(Entry { path: entry.into_path().into(), bytes })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (root, first) = arguments()?;
    // A walk that nobody wants any more ends by itself, even on a machine that has much to do.
    let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::from_secs(10)).build()?;

    let mut entries = pool.stream(walk, root);
    let progress = entries.progress();
    let (mut files, mut bytes, mut errors) = (0, 0, 0);
    while files < first {
        match entries.next().await {
            Some(Ok(entry)) => {
                println!("{:>12} {}", entry.bytes, entry.path.display());
                files += 1;
                bytes += entry.bytes;
            }
            Some(Err(error)) => {
                eprintln!("stream: {error}");
                errors += 1;
            }
            None => break,
        }
    }
    let walker = entries.worker_pid();
    drop(entries);

    println!("files: {files}, bytes: {bytes}, errors: {errors}");
    if let Some(latest) = progress.latest() {
        println!("folders: {}, the last of them: {}", latest.done(), latest.message());
    }
    if let Some(walker) = walker {
        let next = pool.submit(std::process::id, ()).await?;
        println!("stopped amid the walk of worker {walker}; the next task ran in worker {next}");
    }
    pool.shutdown().await;
    Ok(())
}

fn arguments() -> anyhow::Result<(PathBuf, u64)> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mut first = u64::MAX;
    if arguments.next_if(|argument| argument == "--first").is_some() {
        let number = arguments.next().and_then(|number| number.into_string().ok());
        first = number.and_then(|number| number.parse().ok()).context("`--first` needs a number")?;
    }
    Ok((arguments.next().map_or_else(|| PathBuf::from("."), PathBuf::from), first))
}
