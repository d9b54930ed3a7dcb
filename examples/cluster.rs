//! The job of `checksums`, with the pool's workers on the nodes of a cluster.
//!
//! One command starts all that it needs: a Slurm cluster of two nodes, on this machine and for the time of
//! the run, if none is there; its servers must be installed (Debian: `apt-get install slurm-wlm munge`).
//! Each worker is then a task of Slurm, which decides on which node it runs, and dials back to this program.
//! The program itself does not differ from one whose workers are at home in anything but the pool's
//! launcher.
//!
//! With `--existing` it uses the cluster that `srun` finds here. The files, and this program, must then be
//! at the same paths on its nodes.
//!
//! ```text
//! cargo run --release --features remote --example cluster
//! cargo run --release --features remote --example cluster -- --workers 4 /usr/include
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use procession::{Launcher, ProcessPool};

#[allow(dead_code)]
mod checksums;
mod cluster {
    pub(crate) mod servers;
    pub(crate) mod slurm;
}
use cluster::{servers, slurm};

const HELP: &str = "\
usage: cluster [--existing] [--workers N] [PATH]...

Hashes (SHA-256) every regular file at or below each PATH, as `checksums` does, with workers
on the nodes of a Slurm cluster. Without a PATH: the sources in cargo's registry, or this
project if there are none.

  --existing    use the cluster that is there, rather than start one on this machine
  --workers N   the most workers to use (default: 4, two on each node)
  --help        print this text";

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

/// Where the workers are to be, and what was started for that: ended when dropped.
struct Place {
    launcher: Launcher,
    cluster: Option<slurm::Cluster>,
}

impl Place {
    /// The cluster that is there.
    fn existing() -> Place {
        Place { launcher: Launcher::slurm(), cluster: None }
    }

    /// A cluster on this machine.
    fn slurm() -> anyhow::Result<Place> {
        let cluster = slurm::Cluster::start().map_err(|servers::Missing(what)| anyhow::anyhow!(what))?;
        let launcher = Launcher::slurm().env("SLURM_CONF", cluster.config());
        // Its nodes are this machine.
        let launcher = launcher.bind(([127, 0, 0, 1], 0).into());
        Ok(Place { launcher, cluster: Some(cluster) })
    }

    /// The nodes that the workers are on.
    fn nodes(&self) -> String {
        let nodes =
            self.cluster.as_ref().map(|cluster| cluster.ask("squeue", &["--noheader", "--format=%N"]));
        nodes.map_or("as Slurm has chosen".into(), |mut nodes| {
            nodes.sort_unstable();
            nodes.join(" ")
        })
    }
}

struct Options {
    existing: bool,
    workers: usize,
    roots: Vec<PathBuf>,
}

/// The options on the command line, or `None` if it asks for help.
fn parse() -> anyhow::Result<Option<Options>> {
    let mut options = Options { existing: false, workers: 4, roots: Vec::new() };
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match &*arg.to_string_lossy() {
            "--help" | "-h" => return Ok(None),
            "--existing" => options.existing = true,
            "--workers" => {
                let value = args.next().context("`--workers` needs a number")?;
                options.workers = value.to_string_lossy().parse().context("`--workers` needs a number")?;
            }
            flag if flag.starts_with('-') => bail!("unknown flag `{flag}`; `--help` lists them"),
            _ => options.roots.push(std::path::absolute(arg)?),
        }
    }
    if options.roots.is_empty() {
        options.roots.push(checksums::default_root());
    }
    Ok(Some(options))
}

async fn run() -> anyhow::Result<()> {
    let Some(options) = parse()? else {
        println!("{HELP}");
        return Ok(());
    };
    let place = if options.existing { Place::existing() } else { Place::slurm()? };
    let mut totals = checksums::Totals::default();
    let files = checksums::find_files(&options.roots, &mut totals);

    let pool = ProcessPool::builder().workers(options.workers).launcher(place.launcher.clone()).build()?;
    let start = Instant::now();
    pool.warm_up().await?;
    eprintln!("{} workers in {:.2} s, on: {}", options.workers, start.elapsed().as_secs_f64(), place.nodes());

    let start = Instant::now();
    checksums::hash_files(&pool, &files, false, &mut totals).await?;
    let took = start.elapsed();
    pool.shutdown().await;
    println!("{}", checksums::summary(&totals, took, options.workers));
    Ok(())
}
