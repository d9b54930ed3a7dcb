//! The example that brings its agents along.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::stage::play;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Where cargo puts the examples: beside the directory that this test was built into.
fn cluster(arguments: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.parent().unwrap().parent().unwrap().join("examples").join("cluster");
    assert!(program.is_file(), "built by `cargo build --all-features --example cluster`");
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    command
}

/// Runs it; what it lists, and what it says.
async fn run(arguments: &[&str]) -> (Vec<String>, String) {
    let output = cluster(arguments).output().await.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    (stdout.lines().map(str::to_owned).collect(), stderr.into_owned())
}

/// The names of the files that are to be listed.
fn files() -> Vec<String> {
    let entries = walkdir::WalkDir::new(FOLDER).into_iter().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| entry.path().to_str().unwrap().to_owned())
        .collect();
    files.sort_unstable();
    files
}

fn names(list: &[String]) -> Vec<String> {
    let name = |line: &String| {
        let (sum, name) = line.split_once("  ").unwrap();
        assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
        name.to_owned()
    };
    let mut names: Vec<_> = list.iter().map(name).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_checksum_job_runs_on_two_agents_that_it_starts() {
    play(async |stage| {
        let (list, said) = run(&["agents", "--list", FOLDER]).await;
        assert_eq!(names(&list), files());
        let tasks = said.lines().filter(|line| line.starts_with("agent ") && line.ends_with(" tasks"));
        assert_eq!(tasks.count(), 2, "{said}");
        assert!(said.contains("agents: files: "), "{said}");
        stage
    });
}

#[test]
fn the_checksum_job_runs_on_an_agent_that_is_there() {
    play(async |stage| {
        let url = stage.server.url();
        let mut agent = cluster(&["agent", &url]).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(agent.stdout.take().unwrap()).lines();
        assert!(said.next_line().await.unwrap().unwrap().ends_with(": ready"));
        let (list, _) = run(&["agents", "--existing", &url, "--list", FOLDER]).await;
        assert_eq!(names(&list), files());
        let pid = rustix::process::Pid::from_raw(agent.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(said.next_line().await.unwrap().unwrap().ends_with(" tasks"));
        assert!(agent.wait().await.unwrap().success());
        stage
    });
}
