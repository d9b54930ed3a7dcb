//! What a test is played on: a server, agents, and pools that submit to them.

use std::future::Future;
use std::process::Stdio;
use std::time::Duration;

use procession::nats::{Agent, Queue};
use procession::{Builder, ProcessPool};
use tokio::process::{Child, Command};

use crate::common;
use crate::server::Server;

/// A server, and how its queue is to be used.
pub struct Stage {
    pub server: Server,
    pub ack_wait: Duration,
}

/// Plays a test, with nothing left behind: no process, no descriptor, nothing in the queue.
pub fn play<F: Future<Output = Stage>>(body: impl FnOnce(Stage) -> F) {
    common::run(async {
        let Some(server) = Server::start().await else { return };
        let stage = body(Stage { server, ack_wait: Duration::from_secs(10) }).await;
        stage.server.expect_empty().await;
        let mut server = stage.server;
        server.kill().await;
    });
}

impl Stage {
    /// With losses noticed fast.
    pub fn impatient(mut self) -> Stage {
        self.ack_wait = Duration::from_secs(1);
        self
    }

    pub fn queue(&self) -> Queue {
        Queue::at(self.server.url()).name("stage").ack_wait(self.ack_wait)
    }

    /// A builder of a pool that submits to the queue.
    pub fn builder(&self) -> Builder {
        ProcessPool::builder().nats(self.queue())
    }

    pub fn pool(&self) -> ProcessPool {
        self.builder().build().unwrap()
    }

    /// An agent of this process.
    pub async fn agent(&self, workers: usize) -> Agent {
        Agent::start(self.queue(), ProcessPool::builder().workers(workers)).await.unwrap()
    }

    /// An agent that is a process of its own, there when this returns.
    pub async fn agent_process(&self, workers: usize) -> AgentProcess {
        let agent = self.start_agent(common::helper("stage::agent_program", &self.word(workers)));
        // Whoever asks is told of it.
        let pool = self.pool();
        pool.warm_up().await.unwrap();
        pool.shutdown().await;
        agent
    }

    /// What an agent's process is told.
    pub fn word(&self, workers: usize) -> String {
        format!("{} {} {workers}", self.server.url(), self.ack_wait.as_millis())
    }

    /// How many consumers there are for tasks of any build.
    pub async fn consumers(&self) -> usize {
        let client = async_nats::connect(self.server.url()).await.unwrap();
        let count = match async_nats::jetstream::new(client.clone()).get_stream("procession-stage").await {
            Ok(mut stream) => stream.info().await.unwrap().state.consumer_count,
            Err(_) => 0,
        };
        crate::server::close(client).await;
        count
    }

    /// Waits until the server has so many messages, pieces of objects among them.
    pub async fn stored(&self, expected: usize) {
        let start = std::time::Instant::now();
        loop {
            let left = self.server.left().await;
            let count = |line: &String| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
            if left.iter().map(count).sum::<usize>() == expected {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{left:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn start_agent(&self, command: std::process::Command) -> AgentProcess {
        let child = Command::from(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        AgentProcess(child)
    }
}

/// The queue and the number of workers that a process was told.
pub fn told(word: &str) -> (Queue, usize) {
    let mut words = word.split(' ');
    let mut word = || words.next().unwrap();
    let queue = Queue::at(word()).name("stage");
    let queue = queue.ack_wait(Duration::from_millis(word().parse().unwrap()));
    (queue, word().parse().unwrap())
}

pub struct AgentProcess(Child);

impl AgentProcess {
    /// `kill -9`.
    pub async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }

    /// Stops it as a machine is that is cut off, or has too much to do. Its workers go on.
    pub fn pause(&self) {
        self.send(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.send(rustix::process::Signal::CONT);
    }

    pub fn send(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.0.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Asks it to end, as systemd and Kubernetes do.
    pub fn ask_to_end(&self) {
        self.send(rustix::process::Signal::TERM);
    }

    pub async fn ended(mut self) {
        assert!(self.0.wait().await.unwrap().success());
    }

    pub async fn end(self) {
        self.ask_to_end();
        self.ended().await;
    }
}

/// Not a test: an agent, until SIGTERM.
#[test]
#[ignore = "started by other tests"]
fn agent_program() {
    let Some(word) = common::helping() else { return };
    let (queue, workers) = told(&word);
    common::multi_thread().block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let agent = Agent::start(queue, ProcessPool::builder().workers(workers)).await.unwrap();
        end.recv().await;
        agent.shutdown().await;
    });
}
