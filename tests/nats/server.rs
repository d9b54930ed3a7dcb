//! A NATS server for a test.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use async_nats::{ConnectOptions, jetstream};
use futures::TryStreamExt;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// The server's program, or why there is none.
fn program() -> Result<PathBuf, String> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if std::env::var_os("PROCESSION_SERVERS").is_none() {
        return Err("tests with servers are run where PROCESSION_SERVERS is set".into());
    }
    PROGRAM.get_or_init(|| find().or_else(|| install().then(find)?).ok_or_else(why_not)).clone()
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian puts it where only root looks.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/bin".into()]);
    places.map(|place| place.join("nats-server")).find(|program| program.is_file())
}

/// Whether Debian's package could be installed; tests that run at the same time take turns.
fn install() -> bool {
    let turn = fs::File::create(std::env::temp_dir().join("procession-nats-install")).unwrap();
    turn.lock().unwrap();
    let command = "command -v apt-get && apt-get install -y --no-install-recommends nats-server";
    let done = std::process::Command::new("sh")
        .args(["-c", command])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output();
    done.is_ok_and(|output| output.status.success())
}

fn why_not() -> String {
    "there is no `nats-server`, and `apt-get install -y nats-server` does not succeed".into()
}

/// Closes a connection, before the server ends and it is tried to be made again for ever.
pub async fn close(client: async_nats::Client) {
    client.drain().await.unwrap();
    // A request to flush that is made just as the client's task ends is never answered, but a later one fails.
    let asked = async || tokio::time::timeout(Duration::from_millis(20), client.flush()).await;
    while !matches!(asked().await, Ok(Err(_))) {
        tokio::task::yield_now().await;
    }
}

/// A server with JetStream on loopback, with its data in a directory of its own.
pub struct Server {
    dir: TempDir,
    child: Option<Child>,
    port: u16,
    more: Vec<String>,
    /// How to look into it.
    pub operator: ConnectOptions,
}

impl Server {
    /// Starts one; `None` if there is none on this machine, which it says.
    pub async fn start() -> Option<Server> {
        Server::start_with("").await
    }

    /// The same, with more in its configuration.
    pub async fn start_with(config: &str) -> Option<Server> {
        if let Err(reason) = program() {
            assert!(std::env::var_os("PROCESSION_NATS_REQUIRED").is_none(), "{reason}");
            println!("skipped: {reason}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut more = Vec::new();
        if !config.is_empty() {
            let path = dir.path().join("nats.conf");
            fs::write(&path, config).unwrap();
            more = vec!["-c".to_owned(), path.to_str().unwrap().to_owned()];
        }
        let mut server = Server { dir, child: None, port: 0, more, operator: ConnectOptions::new() };
        server.run().await;
        Some(server)
    }

    /// Starts its process, on the port that it had before, if it had one.
    pub async fn run(&mut self) {
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let dir = self.dir.path().to_str().unwrap();
        let log = self.dir.path().join("log");
        let log_file = fs::File::create(&log).unwrap();
        let child = Command::new(program().unwrap())
            .args(["-js", "-sd", dir, "-a", "127.0.0.1", "-p", &port])
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(&log).unwrap();
            if text.contains("Server is ready") {
                let line =
                    text.lines().find_map(|line| line.split("client connections on 127.0.0.1:").nth(1));
                self.port = line.expect("it says its port").trim().parse().unwrap();
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "the server does not start: {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Ends it as its operator would.
    pub async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            child.wait().await.unwrap();
        }
    }

    /// Every message of every stream: what waits, runs or was left.
    pub async fn left(&self) -> Vec<String> {
        let client = self.operator.clone().connect(self.url()).await.unwrap();
        let context = jetstream::new(client.clone());
        let mut streams = context.streams();
        let mut left = Vec::new();
        while let Some(info) = streams.try_next().await.unwrap() {
            if info.state.messages > 0 {
                let stream = context.get_stream(&info.config.name).await.unwrap();
                let mut subjects = stream.info_with_subjects(">").await.unwrap();
                while let Some((subject, count)) = subjects.try_next().await.unwrap() {
                    left.push(format!("{subject}: {count}"));
                }
            }
        }
        close(client).await;
        left
    }

    /// Waits until nothing is left in any stream.
    pub async fn expect_empty(&self) {
        let start = Instant::now();
        loop {
            let left = self.left().await;
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(15), "left in the queue: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
