//! A NATS server on loopback and two agents, for a while; and what an agent does.

use super::servers::{Missing, Server, await_that, find};
use procession::ProcessPool;
use procession::nats::{Agent, Queue};
use std::process::Command;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// What callers and agents are told of the queue.
pub(crate) fn queue(address: &str) -> Queue {
    Queue::at(address).name("checksums")
}

/// What runs on each machine that is to do work, until it is told to end.
pub(crate) async fn serve(address: &str, workers: usize) -> anyhow::Result<()> {
    let (mut end, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let agent = Agent::start(queue(address), ProcessPool::builder().workers(workers)).await?;
    println!("agent {}: ready", std::process::id());
    tokio::select! {
        _ = end.recv() => {}
        _ = interrupt.recv() => {}
    }
    agent.shutdown().await; // finishes what it has
    println!("agent {}: {} tasks", std::process::id(), agent.stats().succeeded());
    Ok(())
}

pub(crate) struct Agents {
    // In the order in which they are ended.
    agents: Vec<Server>,
    _server: Server,
    address: String,
    _dir: TempDir,
}

impl Agents {
    /// A server on a free port, with its data in a directory that goes with it, and two agents that have
    /// so many workers together.
    pub(crate) fn start(workers: usize) -> Result<Agents, Missing> {
        let program = find("nats-server")?;
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.args(["-js", "-a", "127.0.0.1", "-p", "-1", "-sd"]).arg(dir.path());
        let mut server = Server::start(&mut command, &dir.path().join("server.log"));
        let mut address = None;
        await_that("the server is ready", || {
            assert!(!server.has_ended(), "{}", server.log());
            address = server.log().contains("Server is ready").then(|| listens_at(&server.log())).flatten();
            address.is_some()
        });
        let address = address.unwrap_or_default();
        let share = |n: usize| (workers + n) / 2;
        let mut agents: Vec<_> = [share(1), share(0)]
            .into_iter()
            .filter(|workers| *workers > 0)
            .enumerate()
            .map(|(n, workers)| {
                // The same program, whatever is at its path by now.
                let mut command = Command::new("/proc/self/exe");
                command.args(["agent", &address, "--workers", &workers.to_string()]);
                Server::start(&mut command, &dir.path().join(format!("agent{n}.log")))
            })
            .collect();
        await_that("the agents are ready", || {
            agents.iter_mut().all(|agent| {
                assert!(!agent.has_ended(), "{}", agent.log());
                agent.log().contains("ready")
            })
        });
        Ok(Agents { agents, _server: server, address, _dir: dir })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Has the agents end, and gives back their last words.
    pub(crate) fn end(mut self) -> Vec<String> {
        self.agents.iter_mut().for_each(Server::end);
        self.agents.iter().filter_map(|agent| agent.log().lines().last().map(str::to_owned)).collect()
    }
}

/// The address that a server says in its log.
fn listens_at(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("client connections on ")?;
    Some(format!("nats://{}", rest.lines().next()?.trim()))
}
