//! A Slurm cluster of two nodes on this machine, for a while: it listens on loopback, has a key and a
//! configuration of its own, and touches nothing of the system's.

#![allow(dead_code, unreachable_pub)] // The tests use more of this than the example.

use super::servers::{Missing, Server, await_that, find, free_ports};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// How many tasks of one processor each node has room for.
const PROCESSORS: usize = 2;

pub struct Cluster {
    // In the order in which they are ended.
    pub nodes: Vec<Server>,
    _controller: Server,
    _munge: Server,
    dir: TempDir,
}

impl Cluster {
    pub fn start() -> Result<Cluster, Missing> {
        let programs = ["munged", "slurmctld", "slurmd", "srun", "sinfo"].map(find);
        let [munged, slurmctld, slurmd, _, _] = programs;
        let (munged, slurmctld, slurmd) = (munged?, slurmctld?, slurmd?);
        find("srun")?;
        let dir = tempfile::Builder::new().prefix("slurm").tempdir().unwrap();
        // Whoever serves checks who else might have written here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| dir.path().join(name);
        let munge = start_munge(&munged, dir.path());
        fs::write(at("slurm.conf"), configuration(dir.path())).unwrap();
        let log = |name: &str| at(&format!("{name}.out"));
        let mut command = Command::new(slurmctld);
        command.arg("-D").arg("-f").arg(at("slurm.conf"));
        let mut controller = Server::start(&mut command, &log("slurmctld"));
        let mut nodes = ["n1", "n2"].map(|node| {
            let mut command = Command::new(&slurmd);
            command.args(["-D", "-N", node]).arg("-f").arg(at("slurm.conf"));
            Server::start(&mut command, &log(node))
        });
        await_that("the controller answers", || {
            for server in nodes.iter_mut().chain([&mut controller]) {
                assert!(!server.has_ended(), "{}", server.log());
            }
            states(dir.path()).len() == 2
        });
        let cluster = Cluster { nodes: nodes.into(), _controller: controller, _munge: munge, dir };
        await_that("both nodes are idle", || states(cluster.dir.path()) == ["idle", "idle"]);
        Ok(cluster)
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("slurm.conf")
    }

    /// The lines that a program of Slurm's prints.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        ask(self.dir.path(), program, arguments)
    }
}

fn ask(dir: &Path, program: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).env("SLURM_CONF", dir.join("slurm.conf")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// The state of each node.
fn states(dir: &Path) -> Vec<String> {
    ask(dir, "sinfo", &["--noheader", "--Node", "--format=%T"])
}

fn start_munge(munged: &Path, dir: &Path) -> Server {
    let mut key = [0; 1024];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut key).unwrap();
    let at = |name: &str| dir.join(name);
    fs::write(at("munge.key"), key).unwrap();
    fs::set_permissions(at("munge.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(munged);
    command.arg("--foreground").arg("--num-threads=2");
    for (option, file) in [
        ("key-file", "munge.key"),
        ("socket", "munge.socket"),
        ("pid-file", "munge.pid"),
        ("log-file", "munge.log"),
        ("seed-file", "munge.seed"),
    ] {
        command.arg(format!("--{option}={}", at(file).display()));
    }
    let server = Server::start(&mut command, &at("munged.out"));
    await_that("munge answers", || std::os::unix::net::UnixStream::connect(at("munge.socket")).is_ok());
    server
}

fn configuration(dir: &Path) -> String {
    let [controller, one, other] = free_ports();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let user = rustix::process::getuid().as_raw();
    let dir = dir.display();
    format!(
        "ClusterName=procession
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
ReturnToService=2
SlurmdParameters=config_overrides
MailProg=/bin/true
KillWait=5
SlurmdTimeout=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs={PROCESSORS}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={other} CPUs={PROCESSORS}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"
    )
}
