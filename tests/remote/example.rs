//! The example that brings its cluster along.

use super::common::example;
use super::servers::{Missing, await_that, find};
use super::stage::{asked_for, skip};
use std::process::Command;

#[test]
fn the_checksum_job_runs_on_both_nodes() {
    let missing = ["munged", "slurmctld", "slurmd", "srun"].iter().find_map(|name| find(name).err());
    let missing = asked_for().err().or(missing);
    if let Some(Missing(why)) = missing {
        return skip(&why);
    }
    super::common::alone(|| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let output = Command::new(example("cluster")).args(["slurm", folder]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains("on: n1 n1 n2 n2"), "{stderr}");
        let files = walkdir::WalkDir::new(folder)
            .into_iter()
            .filter(|entry| entry.as_ref().unwrap().file_type().is_file());
        let expected = format!("slurm: files: {}, ", files.count());
        assert!(stderr.contains(&expected) && stderr.contains("workers: 4"), "{stderr}");
    });
}

/// The pool's steps share what the program was given, rather than wait for each other.
#[test]
fn a_program_in_an_allocation_has_its_workers_there() {
    if let Err(Missing(why)) = asked_for().and_then(|()| find("salloc")) {
        return skip(&why);
    }
    super::common::alone(|| {
        let cluster = match super::slurm::Cluster::start() {
            Ok(cluster) => cluster,
            Err(Missing(why)) => return skip(&why),
        };
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let mut command = Command::new("salloc");
        command.args(["--nodes=2", "--ntasks=4"]).arg(example("cluster")).args([
            "slurm",
            "--existing",
            folder,
        ]);
        let output = command.env("SLURM_CONF", cluster.config()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains("slurm: ready in") && stderr.contains("workers: 4"), "{stderr}");
        await_that("the queue is empty", || cluster.ask("squeue", &["--noheader"]).is_empty());
    });
}
