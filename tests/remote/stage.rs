//! The stage of a test: a server if its way needs one, and launchers that lead there.

use super::common::{self, Scene};
use super::servers::Missing;
use super::slurm::Cluster;
use super::ssh::Sshd;
use procession::{Builder, Launcher, ProcessPool};
use std::net::{Ipv4Addr, SocketAddr};

/// How workers are started, and how they are spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // as tests are named
pub enum Way {
    command,
    command_stdio,
    command_tls,
    slurm,
    slurm_stdio,
    ssh,
    ssh_stdio,
    ssh_tls,
}

enum Host {
    Here,
    Slurm(Cluster),
    Ssh(Sshd),
}

pub struct Stage {
    pub way: Way,
    host: Host,
}

impl Stage {
    fn open(way: Way) -> Result<Stage, Missing> {
        let is_here = matches!(way, Way::command | Way::command_stdio | Way::command_tls);
        if !is_here {
            asked_for()?;
        }
        let host = match way {
            Way::slurm | Way::slurm_stdio => Host::Slurm(Cluster::start()?),
            Way::ssh | Way::ssh_stdio | Way::ssh_tls => Host::Ssh(Sshd::start()?),
            _ => Host::Here,
        };
        Ok(Stage { way, host })
    }

    pub fn launcher(&self) -> Launcher {
        launcher_of(&format!("{:?}", self.way), self.details())
    }

    /// What it takes to find the server: options of `ssh`, or the configuration of Slurm.
    pub fn details(&self) -> Vec<String> {
        match &self.host {
            Host::Here => Vec::new(),
            Host::Slurm(cluster) => vec![cluster.config().to_str().unwrap().to_owned()],
            Host::Ssh(sshd) => sshd.options(),
        }
    }

    /// Two workers at most.
    pub fn builder(&self) -> Builder {
        ProcessPool::builder().workers(2).launcher(self.launcher())
    }

    pub fn pool(&self) -> ProcessPool {
        self.builder().build().unwrap()
    }

    pub fn one_worker(&self) -> ProcessPool {
        self.builder().workers(1).build().unwrap()
    }

    pub fn cluster(&mut self) -> &mut Cluster {
        match &mut self.host {
            Host::Slurm(cluster) => cluster,
            _ => panic!("there is no cluster"),
        }
    }
}

/// The launcher of a way, by its name.
pub fn launcher_of(way: &str, details: Vec<String>) -> Launcher {
    let launcher = match way.split('_').next().unwrap() {
        "command" => Launcher::command(["env"]),
        "slurm" => Launcher::slurm().env("SLURM_CONF", &details[0]),
        _ => Launcher::ssh("127.0.0.1").options(details),
    };
    let launcher = launcher.bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
    launcher.over_stdio(way.ends_with("_stdio")).encrypted(way.ends_with("_tls"))
}

/// Whether tests with servers are to be played.
pub fn asked_for() -> Result<(), Missing> {
    let asked = std::env::var_os("PROCESSION_SERVERS").map(drop);
    asked.ok_or_else(|| Missing("tests with servers are run where PROCESSION_SERVERS is set".into()))
}

/// Says that a test is skipped, unless none may be.
pub fn skip(why: &str) {
    assert!(std::env::var_os("PROCESSION_TEST_SKIPS_NOTHING").is_none(), "{why}");
    eprintln!("skipped, since {why}");
}

/// Plays a test, and checks that nothing is left of its pools, and then of its server.
pub fn play(way: Way, test: impl AsyncFnOnce(&mut Stage)) {
    common::alone(|| {
        let mut stage = match Stage::open(way) {
            Ok(stage) => stage,
            Err(Missing(why)) => return skip(&why),
        };
        let runtime = common::multi_thread();
        let before = Scene::now();
        runtime.block_on(async {
            let body = test(&mut stage);
            tokio::time::timeout(common::PATIENCE, body).await.expect("the test hangs");
        });
        before.expect_no_more();
    });
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes no pointers.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}
