//! The job of `checksums` on several machines: by agents that take tasks from a queue, or by workers that
//! Slurm places on its nodes.
//!
//! Each way is one command that starts all that it needs on this machine, for the time of the run: a NATS
//! server and two agents, or a Slurm cluster of two nodes. The servers must be installed (Debian:
//! `apt-get install nats-server`, `apt-get install slurm-wlm munge`). The program does not differ from one
//! whose workers are at home in anything but how its pool is built. Without a way it does one after the other.
//!
//! ```text
//! cargo run --release --features nats,remote --example cluster -- agents
//! cargo run --release --features nats,remote --example cluster -- slurm
//! cargo run --release --features nats,remote --example cluster -- agents --list /usr/include
//! ```
//!
//! On a real cluster the servers are there already. The files, and this program, must then be at the same
//! paths on all machines:
//!
//! ```text
//! cluster agent nats://server:4222                      # on each machine that is to do work
//! cluster agents --existing nats://server:4222 /data    # where the results are wanted
//! cluster slurm --existing /data                        # where `srun` works; nothing else is to be started
//! ```

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use procession::{Builder, Launcher, ProcessPool};

#[allow(dead_code)]
mod checksums;
mod cluster {
    pub(crate) mod agents;
    pub(crate) mod servers;
    pub(crate) mod slurm;
}
use cluster::{agents, servers, slurm};

const HELP: &str = "\
usage: cluster [agents|slurm] [--list] [--workers N] [PATH]...
       cluster agents --existing ADDRESS [--list] [--workers N] [PATH]...
       cluster slurm --existing [--list] [--workers N] [PATH]...
       cluster agent ADDRESS [--workers N]

Hashes (SHA-256) every regular file at or below each PATH, as `checksums` does, by agents of
a queue or by workers on the nodes of a Slurm cluster; by one after the other if neither is
named. Without a PATH: the sources in cargo's registry, or this project if there are none.

  --existing    use the NATS server at ADDRESS, or the Slurm cluster, rather than start one
  --list        print a line `HEX  PATH` for each file, as sha256sum does
  --workers N   the most workers to use (default: 4, two on each agent or node)
  --help        print this text

`cluster agent` serves the queue of the NATS server at ADDRESS until it gets SIGTERM or Ctrl-C.";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let Some(options) = parse(std::env::args_os().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    match &options.role {
        Role::Agent(address) => agents::serve(address, options.workers).await?,
        Role::Service(ways) => {
            for way in ways {
                hash(way, &options).await.with_context(|| format!("{way:?}"))?;
            }
        }
    }
    Ok(())
}

struct Options {
    role: Role,
    list: bool,
    workers: usize,
    roots: Vec<PathBuf>,
}

enum Role {
    /// Runs tasks from the queue of the server at this address.
    Agent(String),
    /// Has tasks run, in each of these ways.
    Service(Vec<Way>),
}

#[derive(Clone, Debug)]
enum Way {
    Agents { existing: Option<String> },
    Slurm { is_existing: bool },
}

/// The options on the command line, or `None` if it asks for help.
fn parse(args: impl Iterator<Item = OsString>) -> anyhow::Result<Option<Options>> {
    let mut args = args.peekable();
    let word = args.peek().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let mut role = match &*word {
        "agents" => Role::Service(vec![Way::Agents { existing: None }]),
        "slurm" => Role::Service(vec![Way::Slurm { is_existing: false }]),
        "agent" => Role::Agent(String::new()),
        _ => Role::Service(vec![Way::Agents { existing: None }, Way::Slurm { is_existing: false }]),
    };
    args.next_if(|_| ["agents", "slurm", "agent"].contains(&&*word));
    let text = |value: Option<OsString>, need: &'static str| {
        value.context(need).map(|value| value.to_string_lossy().into_owned())
    };
    if let Role::Agent(address) = &mut role {
        *address = text(args.next(), "`agent` needs the address of a NATS server")?;
    }
    let (mut list, mut workers, mut roots) = (false, 4, Vec::new());
    while let Some(arg) = args.next() {
        match (&*arg.to_string_lossy(), &mut role) {
            ("--help" | "-h", _) => return Ok(None),
            ("--list", Role::Service(_)) => list = true,
            ("--workers", _) => {
                let value = text(args.next(), "`--workers` needs a number")?;
                workers = value.parse().context("`--workers` needs a number")?;
            }
            ("--existing", Role::Service(ways)) => match &mut ways[..] {
                [Way::Slurm { is_existing }] => *is_existing = true,
                [Way::Agents { existing }] => {
                    *existing = Some(text(args.next(), "`--existing` needs the address of the NATS server")?);
                }
                _ => bail!("`--existing` goes with `agents` or `slurm`"),
            },
            (flag, _) if flag.starts_with('-') => bail!("unknown flag `{flag}`; `--help` lists them"),
            (path, Role::Agent(_)) => bail!("an agent takes no PATH, and was given `{path}`"),
            (_, Role::Service(_)) => roots.push(std::path::absolute(arg)?),
        }
    }
    if roots.is_empty() {
        roots.push(checksums::default_root());
    }
    Ok(Some(Options { role, list, workers, roots }))
}

/// Does the job in one of the ways.
async fn hash(way: &Way, options: &Options) -> anyhow::Result<()> {
    let (pool, place) = Place::open(way, options.workers)?;
    let mut totals = checksums::Totals::default();
    let files = checksums::find_files(&options.roots, &mut totals);

    let start = Instant::now();
    pool.warm_up().await?;
    let name = match way {
        Way::Agents { .. } => "agents",
        Way::Slurm { .. } => "slurm",
    };
    eprintln!("{name}: ready in {:.2} s{}", start.elapsed().as_secs_f64(), place.nodes());

    let start = Instant::now();
    checksums::hash_files(&pool, &files, options.list, &mut totals).await?;
    let took = start.elapsed();
    pool.shutdown().await;
    place.end();
    eprintln!("{name}: {}", checksums::summary(&totals, took, options.workers));
    Ok(())
}

/// What was started for a pool: ended when dropped.
enum Place {
    Existing,
    Agents(agents::Agents),
    Slurm(slurm::Cluster),
}

impl Place {
    /// Starts what is needed, and a pool with its workers there.
    fn open(way: &Way, workers: usize) -> anyhow::Result<(ProcessPool, Place)> {
        let missing = |servers::Missing(what)| anyhow::anyhow!(what);
        let builder = ProcessPool::builder().workers(workers);
        let (builder, place): (Builder, Place) = match way {
            Way::Agents { existing: Some(address) } => {
                (builder.nats(agents::queue(address)), Place::Existing)
            }
            Way::Agents { existing: None } => {
                let agents = agents::Agents::start(workers).map_err(missing)?;
                (builder.nats(agents::queue(agents.address())), Place::Agents(agents))
            }
            Way::Slurm { is_existing: true } => (builder.launcher(Launcher::slurm()), Place::Existing),
            Way::Slurm { is_existing: false } => {
                let cluster = slurm::Cluster::start().map_err(missing)?;
                let launcher = Launcher::slurm().env("SLURM_CONF", cluster.config());
                // Its nodes are this machine.
                let launcher = launcher.bind(([127, 0, 0, 1], 0).into());
                (builder.launcher(launcher), Place::Slurm(cluster))
            }
        };
        Ok((builder.build()?, place))
    }

    /// The nodes that Slurm has put the workers on.
    fn nodes(&self) -> String {
        let Place::Slurm(cluster) = self else { return String::new() };
        let mut nodes = cluster.ask("squeue", &["--noheader", "--format=%N"]);
        nodes.sort_unstable();
        format!(", on: {}", nodes.join(" "))
    }

    /// Ends what was started, and prints what each agent has done.
    fn end(self) {
        if let Place::Agents(agents) = self {
            agents.end().iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
