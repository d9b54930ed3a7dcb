//! `procession` beside its peers, each really run on this machine: `procspawn`, Python's
//! `concurrent.futures.ProcessPoolExecutor` and `multiprocessing.Pool`, tokio's `spawn_blocking`,
//! and bare echoes over a pipe and over shared memory, which show what the system itself costs.
//!
//! ```text
//! cargo bench --bench peers                        # everything but the scaling, some minutes
//! cargo bench --bench peers -- --quick             # the same with little work, under a minute
//! cargo bench --bench peers -- throughput echo     # only the measures whose names hold a word
//! cargo bench --bench peers -- --scaling scaling   # how costs grow with workers, queue, payload
//! cargo bench --bench peers --features remote-tls -- remote    # workers behind a connection
//! cargo bench --bench peers -- --plots             # also draws what it measured into docs/
//! ```
//!
//! What is compared runs in turn, A B C A B C .., so that a change in the machine's mood hits all
//! alike; a first round warms up and is not counted. A figure is the median of the rounds, with the
//! lowest and the highest beside it. A ratio is the median of the ratios round by round. Where
//! other programs had the processors for more than a tenth of one meanwhile, the table says so.
//!
//! Nothing in here runs in a worker of `procession`: those are entered before `main`.

mod peers {
    pub(super) mod bench;
    pub(super) mod contest;
    pub(super) mod crash;
    pub(super) mod echo;
    pub(super) mod latency;
    pub(super) mod map;
    pub(super) mod memory;
    pub(super) mod noise;
    pub(super) mod options;
    pub(super) mod pipe_echo;
    pub(super) mod python;
    #[cfg(feature = "remote")]
    pub(super) mod remote;
    pub(super) mod report;
    pub(super) mod roles;
    pub(super) mod scaling;
    pub(super) mod shared_echo;
    pub(super) mod speedup;
    pub(super) mod start;
    pub(super) mod svg;
    pub(super) mod tasks;
    pub(super) mod throughput;
}

use peers::bench::Bench;
use peers::options::{HELP, Options};
use peers::{crash, echo, latency, map, memory, roles, scaling, speedup, start, throughput};
use std::process::ExitCode;

/// Runs its contests and reports them.
type Measure = fn(&Bench) -> anyhow::Result<()>;

/// Under the names that a filter word is looked for in.
const MEASURES: &[(&str, Measure)] = &[
    ("throughput", throughput::measure),
    ("latency", latency::measure),
    ("echo", echo::measure),
    ("map", map::measure),
    ("crash", crash::measure),
    ("start", start::measure),
    ("speedup", speedup::measure),
    ("queue-memory", memory::measure_queue),
    ("idle-memory", memory::measure_idle),
    #[cfg(feature = "remote")]
    ("remote", peers::remote::measure),
    ("scaling", scaling::measure),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    if let Some(role) = roles::told() {
        return roles::play(&role);
    }
    procspawn::init();
    let Some(options) = Options::parse(std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    let wanted: Vec<_> = MEASURES.iter().filter(|(name, _)| options.wants(name)).collect();
    anyhow::ensure!(!wanted.is_empty(), "no measure is called so; `--help` lists them");
    let bench = Bench::new(options)?;
    bench.report.open(&bench.setting())?;
    for (name, measure) in wanted {
        if let Err(error) = measure(&bench) {
            bench.report.note(&format!("{name}: not measured: {error:#}"))?;
        }
    }
    bench.close();
    Ok(())
}
