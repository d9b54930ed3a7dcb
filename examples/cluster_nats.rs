//! SHA-256 sums of every file below the given folders, hashed by two agents that pull from a queue.
//!
//! One command starts everything: a `nats-server` on loopback, this program twice more as agents, and the
//! service, whose pool has no workers of its own. On a real cluster each of the three would be on machines
//! of its own, and nothing else would be different: the agents would read the same files through a file
//! system that all machines see.
//!
//! ```text
//! cargo run --release --features nats --example cluster_nats -- /usr/include
//! ```
//!
//! It prints a line `HEX  PATH` for each file, and to stderr what each agent did. Without a path it hashes
//! the sources of this project.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use procession::ProcessPool;
use procession::nats::{Agent, Queue};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use walkdir::WalkDir;

const NO_SERVER: &str = "there is no `nats-server` in PATH. To install it:\n  \
                         Debian, Ubuntu: sudo apt-get install nats-server\n  \
                         others: https://docs.nats.io/running-a-nats-service/introduction/installation";

/// In the environment of an agent's workers: which agent's they are.
const AGENT: &str = "CLUSTER_AGENT";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match &arguments[..] {
        [role, address, name] if role == "agent" => agent(address, name).await,
        paths => service(paths).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster_nats: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn queue(address: &str) -> Queue {
    Queue::at(address).name("checksums")
}

/// What runs on each machine that is to do work.
async fn agent(address: &str, name: &str) -> anyhow::Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let agent = Agent::start(queue(address), ProcessPool::builder().workers(2).env(AGENT, name)).await?;
    end.recv().await;
    agent.shutdown().await; // finishes what it has
    Ok(())
}

/// What has the work done.
async fn service(paths: &[String]) -> anyhow::Result<()> {
    let server = Server::start()?;
    let agents: Vec<_> = ["one", "two"].into_iter().map(|name| start_agent(&server, name)).collect();
    let agents = agents.into_iter().collect::<anyhow::Result<Vec<_>>>()?;

    let pool = ProcessPool::builder().nats(queue(&server.address)).workers(4).build()?;
    let files = files_below(paths);
    let start = Instant::now();
    let mut sums = pool.map(hash_file, files.clone());
    let (mut bytes, mut errors, mut shares) = (0, 0, BTreeMap::<String, u64>::new());
    let mut out = io::BufWriter::new(io::stdout().lock());
    for file in &files {
        match sums.next().await.context("a result is missing")? {
            Ok((hex, size, agent)) => {
                writeln!(out, "{hex}  {file}")?;
                bytes += size;
                *shares.entry(agent).or_default() += 1;
            }
            Err(error) => {
                eprintln!("cluster_nats: {file}: {error}");
                errors += 1;
            }
        }
    }
    out.flush()?;
    let seconds = start.elapsed().as_secs_f64();
    pool.shutdown().await;
    for agent in agents {
        agent.end()?;
    }
    eprintln!("files: {}, bytes: {bytes}, errors: {errors}, seconds: {seconds:.2}", files.len());
    for (agent, files) in shares {
        eprintln!("agent {agent}: {files} files");
    }
    Ok(())
}

/// Runs in a worker of an agent: the sum, the size, and which agent it was.
fn hash_file(path: String) -> anyhow::Result<(String, u64, String)> {
    let mut file = File::open(path).context("cannot open")?;
    let (mut hasher, mut buffer, mut bytes) = (Sha256::new(), vec![0; 64 << 10], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read"),
        }
    }
    let hex = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((hex, bytes, std::env::var(AGENT).unwrap_or_default()))
}

/// Every regular file at or below the paths whose name is text, in the order of their names.
fn files_below(paths: &[String]) -> Vec<String> {
    let own = [concat!(env!("CARGO_MANIFEST_DIR"), "/src").to_owned()];
    let roots = if paths.is_empty() { &own } else { paths };
    let entries = roots.iter().flat_map(|root| WalkDir::new(root).sort_by_file_name());
    let files = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_file());
    files.filter_map(|file| file.into_path().into_os_string().into_string().ok()).collect()
}

/// A process that does not outlive this one's interest in it.
struct Process(Child);

impl Process {
    /// Asks it to end, as systemd and Kubernetes do, and waits until it has.
    fn end(mut self) -> anyhow::Result<()> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { bail!("an agent has ended with {status}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is none to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_agent(server: &Server, name: &str) -> anyhow::Result<Process> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["agent", &server.address, name]).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Process(command.spawn().context("an agent does not start")?))
}

struct Server {
    _process: Process,
    address: String,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts a server on a free port of loopback, with its data in a directory that goes with it.
    fn start() -> anyhow::Result<Server> {
        let program = program().context(NO_SERVER)?;
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        let mut command = Command::new(program);
        command.args(["-js", "-a", "127.0.0.1", "-p", "-1", "-sd"]).arg(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let process = Process(command.spawn().context("the server does not start")?);
        for _ in 0..1000 {
            let text = fs::read_to_string(&log)?;
            if let Some((_, rest)) = text.split_once("client connections on ")
                && text.contains("Server is ready")
            {
                let address = format!("nats://{}", rest.lines().next().unwrap_or_default().trim());
                return Ok(Server { _process: process, address, _dir: dir });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the server does not get ready")
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian puts it where only root looks.
    let places = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_owned()]);
    places.map(|place| place.join("nats-server")).find(|program| program.is_file())
}
