//! Runs the programs in `examples/` as processes and checks what they print.
//!
//! `cargo test` builds the examples before it runs this file. `cargo test --test examples` does not:
//! run `cargo build --examples` first, or the programs are missing or old.
//!
//! A time is only ever checked against the least that the sleeps and the number of workers allow, or
//! against another time from the same test. How fast the machine is does not matter.
//!
//! The examples rely on `auto-init`: without that feature there is nothing to check here.

#![cfg(all(target_os = "linux", feature = "auto-init"))]

mod common;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use common::example;
use tokio::process::Command;
use tokio::time::timeout;

/// A program that takes longer than this hangs.
const HANG: Duration = Duration::from_secs(300);

struct Run {
    pid: u32,
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

impl Run {
    fn lines(&self) -> Vec<&str> {
        let stdout = str::from_utf8(&self.stdout).expect("the program prints UTF-8");
        stdout.lines().collect()
    }

    /// What follows `prefix` on the one line that begins with it.
    fn value(&self, prefix: &str) -> &str {
        let mut found = self.lines().into_iter().filter_map(|line| line.strip_prefix(prefix));
        match (found.next(), found.next()) {
            (Some(value), None) => value,
            _ => panic!("expected one line `{prefix}..` in {:?}", self.lines()),
        }
    }

    /// The time on the line `done after 0.61 s`.
    fn seconds(&self) -> f64 {
        let text = self.value("done after ");
        let number = text.strip_suffix(" s").expect("the time ends in ` s`");
        number.parse().expect("the time is a number")
    }

    /// The pid and the task of each line `I am process PID working on task N`, in order.
    fn work(&self) -> Vec<(u32, u32)> {
        self.lines()
            .into_iter()
            .filter_map(|line| line.strip_prefix("I am process "))
            .map(|rest| rest.split_once(" working on task ").expect(rest))
            .map(|(pid, task)| (pid.parse().expect(pid), task.parse().expect(task)))
            .collect()
    }
}

async fn run(name: &str, args: &[&OsStr]) -> Run {
    finish(Command::new(example(name)).args(args)).await
}

async fn finish(command: &mut Command) -> Run {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the example starts");
    let pid = child.id().expect("the example has not been awaited");
    let output = timeout(HANG, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("it hangs: {command:?}"))
        .expect("the example's output can be read");
    Run {
        pid,
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs an example that must succeed in silence: exit code 0, nothing on stderr.
async fn run_cleanly(name: &str) -> Run {
    let run = run(name, &[]).await;
    assert!(run.status.success(), "{name}: {}: {}", run.status, run.stderr);
    assert_eq!(run.stderr, "", "{name} has nothing to complain about");
    run
}

fn distinct(pids: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    pids.into_iter().collect()
}

fn assert_each_task_once(work: &[(u32, u32)]) {
    let mut tasks: Vec<u32> = work.iter().map(|&(_, task)| task).collect();
    tasks.sort_unstable();
    assert_eq!(tasks, (0..10).collect::<Vec<_>>(), "{work:?}");
}

#[tokio::test]
async fn two_pids_prints_the_parents_and_another() {
    let run = run_cleanly("two_pids").await;
    let parent: u32 = run.value("parent ").parse().unwrap();
    let worker: u32 = run.value("worker ").parse().unwrap();
    assert_eq!(parent, run.pid);
    assert_ne!(worker, run.pid);
    assert!(run.seconds() >= 0.0);
}

#[tokio::test]
async fn split_by_hand_gives_each_process_its_half() {
    let run = run_cleanly("split_by_hand").await;
    let work = run.work();
    assert_each_task_once(&work);

    let (left, right): (Vec<_>, Vec<_>) = work.iter().partition(|(_, task)| *task < 5);
    for half in [&left, &right] {
        assert_eq!(distinct(half.iter().map(|&(pid, _)| pid)).len(), 1);
        assert!(half.is_sorted_by_key(|&(_, task)| task), "{half:?}");
    }
    let pids = distinct(work.iter().map(|&(pid, _)| pid));
    assert_eq!(pids.len(), 2, "one process for each half");
    assert!(!pids.contains(&run.pid));
    assert!(run.seconds() >= 1.0, "five items of 0.2 s in a row");
}

#[tokio::test]
async fn pool_demo_runs_each_task_once_on_at_most_four_workers() {
    let run = run_cleanly("pool_demo").await;
    let work = run.work();
    assert_each_task_once(&work);

    let pids = distinct(work.iter().map(|&(pid, _)| pid));
    assert!(pids.len() <= 4, "{pids:?}");
    assert!(!pids.contains(&run.pid));
    assert!(run.seconds() >= 0.6, "ten tasks on four workers: three rounds");
    let last = *run.lines().last().unwrap();
    assert!(last.starts_with("done after "), "shutdown waits: {last}");
}

#[tokio::test]
async fn handle_shows_the_task_finished_and_gives_its_value() {
    let run = run_cleanly("handle").await;
    assert_eq!(run.lines().iter().filter(|&&line| line == "hello").count(), 1);
    assert!(run.value("before: ").contains("TaskHandle"));
    assert!(run.value("after: ").contains("Finished"));
    assert_eq!(run.value("value: "), "5");
    assert!(run.seconds() >= 0.0);
}

#[tokio::test]
async fn await_fixed_is_faster_than_await_mistake() {
    let squares = "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]";
    let mistake = run_cleanly("await_mistake").await;
    let fixed = run_cleanly("await_fixed").await;
    assert!(mistake.lines().contains(&squares));
    assert!(fixed.lines().contains(&squares));

    assert!(mistake.seconds() >= 1.0, "ten tasks of 0.1 s in a row");
    assert!(fixed.seconds() >= 0.1, "one task of 0.1 s");
    assert!(fixed.seconds() < mistake.seconds());
}

#[tokio::test]
async fn failures_lists_values_and_errors_in_order() {
    let run = run_cleanly("failures").await;
    let expected = (0..10u32).map(|task| match task % 2 {
        0 => (task * task).to_string(),
        _ => "\"failed with OW!\"".to_string(),
    });
    let expected = format!("[{}]", expected.collect::<Vec<_>>().join(", "));
    assert_eq!(run.lines()[0], expected);
    assert!(run.seconds() >= 0.0);
}

/// A folder of files that are easy to get wrong, and the regular ones among them.
fn folder_of_files() -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sub = folder.path().join("sub");
    fs::create_dir(&sub).unwrap();

    let three_mib: Vec<u8> = (0..3u32 << 20).map(|i| (i % 251) as u8).collect();
    let contents: [(&Path, &[u8], &[u8]); 6] = [
        (folder.path(), b"empty", b""),
        (folder.path(), b"large", &three_mib),
        (folder.path(), b"not-\xff-utf8", b"the name is not UTF-8\n"),
        (&sub, b"plain name.txt", b"hello\n"),
        (&sub, b"line\nbreak", b"a\n"),
        (&sub, b"back\\slash", b"b\n"),
    ];
    let mut files = Vec::new();
    for (parent, name, content) in contents {
        let path = parent.join(OsStr::from_bytes(name));
        fs::write(&path, content).unwrap();
        files.push(path);
    }

    symlink("large", folder.path().join("link-to-file")).unwrap();
    symlink("..", sub.join("link-to-parent")).unwrap();
    symlink("nothing", folder.path().join("dangling")).unwrap();
    (folder, files)
}

fn sorted_lines(output: &[u8]) -> Vec<String> {
    let lines = output.split_inclusive(|&byte| byte == b'\n');
    let mut lines: Vec<String> = lines.map(|line| line.escape_ascii().to_string()).collect();
    lines.sort();
    lines
}

/// What `sha256sum` prints for the files, or `None` where there is no `sha256sum`.
async fn sha256sum(files: &[PathBuf]) -> Option<Vec<u8>> {
    let output = match Command::new("sha256sum").arg("--").args(files).output().await {
        Ok(output) => output,
        Err(error) => {
            println!("not compared with sha256sum, which does not start: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "{output:?}");
    Some(output.stdout)
}

fn assert_summary(run: &Run, files: &[PathBuf], workers: usize) {
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    let last = run.stderr.lines().last().expect("a summary on stderr");
    let counts = format!("files: {}, bytes: {bytes}, seconds: ", files.len());
    assert!(last.starts_with(&counts), "{last}");
    assert!(last.contains("MiB/s: "), "{last}");
    assert!(last.contains(&format!("workers: {workers}")), "{last}");
}

#[tokio::test]
async fn checksums_lists_what_sha256sum_lists() {
    let (folder, files) = folder_of_files();
    let args = ["--workers", "3", "--list"].map(OsStr::new);
    let run = run("checksums", &[&args[..], &[folder.path().as_os_str()]].concat()).await;

    assert!(run.status.success(), "{}: {}", run.status, run.stderr);
    assert_summary(&run, &files, 3);
    assert!(!run.stderr.contains("errors: "), "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert_eq!(sorted_lines(&run.stdout).len(), files.len());
    if let Some(expected) = sha256sum(&files).await {
        assert_eq!(sorted_lines(&run.stdout), sorted_lines(&expected));
    }
}

#[tokio::test]
async fn checksums_takes_several_paths_and_keeps_their_order() {
    let (folder, files) = folder_of_files();
    let (large, empty) = (&files[1], &files[0]);
    let sub = folder.path().join("sub");
    let args = [OsStr::new("--list"), large.as_os_str(), sub.as_os_str(), empty.as_os_str()];
    let run = run("checksums", &args).await;

    assert!(run.status.success(), "{}: {}", run.status, run.stderr);
    let in_order = [1, 5, 4, 3, 0].map(|i| files[i].clone());
    if let Some(expected) = sha256sum(&in_order).await {
        assert_eq!(run.stdout.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
}

#[tokio::test]
async fn checksums_reports_errors_and_hashes_the_rest() {
    let (folder, files) = folder_of_files();
    let missing = folder.path().join("missing");
    let link = folder.path().join("link-to-file");
    // Opens, but cannot be read from the start, not even by root: the task itself fails.
    let unreadable = Path::new("/proc/self/mem");
    let args = [OsStr::new("--list"), missing.as_os_str(), unreadable.as_os_str()];
    let more = [link.as_os_str(), folder.path().as_os_str()];
    let run = run("checksums", &[&args[..], &more].concat()).await;

    assert!(run.status.success(), "{}: {}", run.status, run.stderr);
    for path in [missing.as_path(), unreadable, &link] {
        let reports = run.stderr.lines().filter(|line| line.contains(path.to_str().unwrap()));
        assert_eq!(reports.count(), 1, "{} in {}", path.display(), run.stderr);
    }
    assert!(run.stderr.contains("/proc/self/mem: cannot "), "{}", run.stderr);
    assert!(run.stderr.trim_end().ends_with(", errors: 3"), "{}", run.stderr);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    assert_summary(&run, &files, workers);
    if let Some(expected) = sha256sum(&files).await {
        assert_eq!(sorted_lines(&run.stdout), sorted_lines(&expected));
    }
}

#[tokio::test]
async fn checksums_without_list_prints_only_the_summary() {
    let (folder, files) = folder_of_files();
    let args = [OsStr::new("--workers"), OsStr::new("1"), folder.path().as_os_str()];
    let run = run("checksums", &args).await;
    assert!(run.status.success(), "{}: {}", run.status, run.stderr);
    assert_eq!(run.lines(), [""; 0]);
    assert_summary(&run, &files, 1);
}

#[tokio::test]
async fn checksums_without_a_path_hashes_the_registry() {
    let (folder, files) = folder_of_files();
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("registry")).unwrap();
    fs::rename(folder.path(), home.path().join("registry/src")).unwrap();
    let in_registry = |file: &PathBuf| {
        let below = file.strip_prefix(folder.path()).unwrap();
        home.path().join("registry/src").join(below)
    };
    let files: Vec<PathBuf> = files.iter().map(in_registry).collect();

    let run = finish(Command::new(example("checksums")).env("CARGO_HOME", home.path())).await;
    assert!(run.status.success(), "{}: {}", run.status, run.stderr);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    assert_summary(&run, &files, workers);
}

#[tokio::test]
async fn checksums_refuses_arguments_it_does_not_know() {
    for (args, complaint) in [
        (vec!["--lost"], "unknown flag `--lost`"),
        (vec!["--workers", "0"], "not `0`"),
        (vec!["--workers", "many"], "not `many`"),
        (vec!["--workers"], "`--workers` needs a number"),
    ] {
        let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        let run = run("checksums", &args).await;
        assert!(!run.status.success(), "{args:?}");
        assert!(run.stderr.contains(complaint), "{args:?}: {}", run.stderr);
        assert_eq!(run.lines(), [""; 0], "{args:?}");
    }
}

#[tokio::test]
async fn checksums_explains_itself() {
    let run = run("checksums", &[OsStr::new("--help")]).await;
    assert!(run.status.success());
    assert!(run.lines()[0].starts_with("usage: checksums"));
}
