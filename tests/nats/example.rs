//! The example that brings its agents along.

use std::fs;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::common::{eventually, example};
use crate::servers::Missing;
use crate::slurm::Cluster;
use crate::stage::play;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

fn cluster(arguments: &[&str]) -> Command {
    let mut command = Command::new(example("cluster"));
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

/// The script that the documentation gives, with other sizes.
#[test]
fn agents_may_be_a_job_array_of_slurm() {
    play(async |stage| {
        let slurm = match Cluster::start() {
            Ok(slurm) => slurm,
            Err(Missing(why)) => {
                assert!(std::env::var_os("PROCESSION_TEST_SKIPS_NOTHING").is_none(), "{why}");
                println!("skipped: {why}");
                return stage;
            }
        };
        let (dir, url) = (tempfile::tempdir().unwrap(), stage.server.url());
        let docs = include_str!("../../docs/distributed.md");
        let script = docs.split("```sh\n").find(|block| block.contains("--array")).unwrap();
        let script = script.split("```").next().unwrap();
        let script = script
            .replace("--array=0-49", "--array=0-1")
            .replace("--cpus-per-task=16", "--cpus-per-task=2")
            .replace(
                "/shared/images/service agent",
                &format!("{} agent {url}", example("cluster").display()),
            );
        let (file, outputs) = (dir.path().join("agents.sh"), dir.path().join("%a.out"));
        fs::write(&file, script).unwrap();
        let arguments = ["--parsable", "--output", outputs.to_str().unwrap(), file.to_str().unwrap()];
        let job = slurm.ask("sbatch", &arguments).pop().expect("sbatch gives the job's number");
        let said = || {
            let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
            let outputs = files.filter(|path| path.extension().is_some_and(|end| end == "out"));
            outputs.map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>()
        };
        let all_say =
            |word: &str| said().len() == 2 && said().iter().all(|text| text.trim_end().ends_with(word));
        eventually("both agents are there", || all_say(": ready")).await;
        let (list, _) = run(&["agents", "--existing", &url, "--list", FOLDER]).await;
        assert_eq!(names(&list), files());
        // As Slurm itself does some time before the limit.
        slurm.ask("scancel", &["--batch", "--signal=TERM", &job]);
        eventually("they finish what they have", || all_say(" tasks")).await;
        eventually("the jobs have ended", || slurm.ask("squeue", &["--noheader"]).is_empty()).await;
        stage
    });
}
