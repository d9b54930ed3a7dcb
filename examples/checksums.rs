//! SHA-256 sums of every regular file below the given folders, hashed in a pool of processes.
//!
//! This is the pool's main use on real input: many independent items of very different cost, some of
//! which fail. The parent lists the files, [`ProcessPool::map`] keeps the workers busy with a bounded
//! window of them, and the results come back in input order. A file that cannot be read is reported
//! on stderr and counted; the others are still hashed and the exit code stays 0.
//!
//! Without a path it hashes the sources in cargo's registry, or this project if there are none.
//! Symbolic links are not followed. With `--list` stdout is in the format of `sha256sum`, and
//! `sha256sum --check` accepts it. The summary goes to stderr; its seconds count the hashing and the
//! start of the workers, but not the listing of the files.
//!
//! ```text
//! cargo run --release --example checksums
//! cargo run --release --example checksums -- --workers 4 --list /usr/include
//! ```

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use procession::{ProcessPool, TaskError};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

const HELP: &str = "\
usage: checksums [--list] [--workers N] [PATH]...

Hashes (SHA-256) every regular file at or below each PATH in a pool of processes.
Without a PATH: the sources in cargo's registry, or this project if there are none.
Symbolic links are not followed. A file that cannot be read is reported on stderr
and counted; the exit code stays 0.

  --list        print a line `HEX  PATH` for each file, as sha256sum does
  --workers N   the most workers to use (default: one per CPU)
  --help        print this text
  --            take everything that follows as a PATH";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("checksums: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let Some(options) = parse(env::args_os().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    let mut totals = Totals::default();
    let files = find_files(&options.roots, &mut totals);

    let start = Instant::now();
    let pool = ProcessPool::builder().workers(options.workers).build()?;
    hash_files(&pool, &files, options.list, &mut totals).await?;
    let took = start.elapsed();
    pool.shutdown().await;

    eprintln!("{}", summary(&totals, took, options.workers));
    Ok(())
}

struct Options {
    list: bool,
    workers: usize,
    roots: Vec<PathBuf>,
}

/// The options on the command line, or `None` if it asks for help.
fn parse(mut args: impl Iterator<Item = OsString>) -> anyhow::Result<Option<Options>> {
    let (mut list, mut workers, mut roots) = (false, None, Vec::new());
    while let Some(arg) = args.next() {
        match &*arg.to_string_lossy() {
            "--help" | "-h" => return Ok(None),
            "--list" => list = true,
            "--workers" => workers = Some(parse_workers(args.next())?),
            "--" => roots.extend(args.by_ref().map(PathBuf::from)),
            flag if flag.starts_with('-') => bail!("unknown flag `{flag}`; `--help` lists them"),
            _ => roots.push(PathBuf::from(arg)),
        }
    }
    if roots.is_empty() {
        roots.push(default_root());
    }
    let workers = workers.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    Ok(Some(Options { list, workers, roots }))
}

fn parse_workers(value: Option<OsString>) -> anyhow::Result<NonZeroUsize> {
    let value = value.context("`--workers` needs a number")?;
    let value = value.to_string_lossy();
    value.parse().with_context(|| format!("`--workers` needs a number of at least 1, not `{value}`"))
}

/// Cargo's registry sources if there are any, else this project.
pub(crate) fn default_root() -> PathBuf {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .and_then(|cargo_home| cargo_home.join("registry/src").canonicalize().ok())
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}

#[derive(Default)]
pub(crate) struct Totals {
    files: u64,
    bytes: u64,
    errors: u64,
}

/// Every regular file at or below the roots, in the order of their names.
pub(crate) fn find_files(roots: &[PathBuf], totals: &mut Totals) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut report = |problem: String| {
        eprintln!("checksums: {problem}");
        totals.errors += 1;
    };
    for root in roots {
        let walk = WalkDir::new(root).follow_root_links(false);
        for entry in walk.sort_by_file_name() {
            match entry {
                Ok(entry) if entry.file_type().is_file() => files.push(entry.into_path()),
                Ok(entry) if entry.depth() > 0 || entry.file_type().is_dir() => {}
                Ok(_) => report(format!("{}: neither a regular file nor a folder", root.display())),
                Err(error) => report(error.to_string()),
            }
        }
    }
    files
}

/// Hashes the files in the pool and reports each result, in the order of `files`.
pub(crate) async fn hash_files(
    pool: &ProcessPool,
    files: &[PathBuf],
    list: bool,
    totals: &mut Totals,
) -> anyhow::Result<()> {
    let bar = progress_bar(files.len())?;
    let names = files.iter().map(|path| path.as_os_str().as_bytes().to_vec());
    let mut results = pool.map(hash_named, names).zip(stream::iter(files));
    while let Some((result, path)) = results.next().await {
        match result {
            Ok((hex, bytes)) => {
                totals.files += 1;
                totals.bytes += bytes;
                if list {
                    bar.suspend(|| io::stdout().write_all(&list_line(&hex, path)))?;
                }
            }
            // Not this file's fault, and the next one would fare no better.
            Err(error @ TaskError::PoolBroken(_)) => return Err(error.into()),
            Err(error) => {
                totals.errors += 1;
                bar.suspend(|| eprintln!("checksums: {}: {}", path.display(), describe(&error)));
            }
        }
        bar.set_message(HumanBytes(totals.bytes).to_string());
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// A bar on stderr. It draws nothing where stderr is no terminal.
fn progress_bar(files: usize) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} files, {msg}, {eta} to go")?;
    Ok(ProgressBar::new(files as u64).with_style(style))
}

/// The task. A path need not be UTF-8, and serde refuses a `PathBuf` that is not: it travels as its
/// bytes.
fn hash_named(name: Vec<u8>) -> anyhow::Result<(String, u64)> {
    hash_file(PathBuf::from(OsString::from_vec(name)))
}

/// The file's SHA-256 in hexadecimal, and its size in bytes as read.
fn hash_file(path: PathBuf) -> anyhow::Result<(String, u64)> {
    let mut file = File::open(path).context("cannot open")?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read"),
        }
    }
    let hex = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((hex, bytes))
}

/// What went wrong, with the causes that the task recorded.
fn describe(error: &TaskError) -> String {
    match error {
        TaskError::Failed(remote) => remote.chain().collect::<Vec<_>>().join(": "),
        other => other.to_string(),
    }
}

/// One line as `sha256sum` prints it. A name that holds a line break or a backslash is escaped, and
/// a backslash in front of the line says so.
fn list_line(hex: &str, path: &Path) -> Vec<u8> {
    let name = path.as_os_str().as_bytes();
    let mut line = Vec::with_capacity(hex.len() + name.len() + 4);
    if name.iter().any(|byte| b"\\\n\r".contains(byte)) {
        line.push(b'\\');
    }
    line.extend_from_slice(hex.as_bytes());
    line.extend_from_slice(b"  ");
    for &byte in name {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            other => line.push(other),
        }
    }
    line.push(b'\n');
    line
}

pub(crate) fn summary(totals: &Totals, took: Duration, workers: usize) -> String {
    let seconds = took.as_secs_f64();
    let speed = totals.bytes as f64 / f64::from(1 << 20) / seconds;
    let mut text = format!(
        "files: {}, bytes: {}, seconds: {seconds:.2}, MiB/s: {speed:.1}, workers: {workers}",
        totals.files, totals.bytes,
    );
    if totals.errors > 0 {
        text += &format!(", errors: {}", totals.errors);
    }
    text
}
