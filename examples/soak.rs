//! Plays rounds of faults against pools until the time is up, and says what occurred.
//!
//! Run it with `cargo run --release --example soak -- --minutes 10`; `--seed S` chooses the rounds,
//! and `--round K` plays one of them alone. It fails with the first violation.

#[path = "../tests/faults/harness/mod.rs"]
mod harness;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::{Holdings, Plan, Tally, play, prepare};

/// A round that takes longer is worth a line.
const SLOW: Duration = Duration::from_secs(8);

struct Options {
    time: Duration,
    seed: u64,
    round: Option<u64>,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(word) => {
            eprintln!("what is `{word}`? Known are --minutes N, --seed S and --round K");
            return ExitCode::FAILURE;
        }
    };
    prepare();
    match options.round {
        Some(round) => replay(options.seed, round),
        None => soak(&options),
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options { time: Duration::from_secs(4), seed: 1, round: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        let wrong = |_| format!("{word} {value}");
        match word.as_str() {
            "--minutes" => {
                let minutes: f64 = value.parse().map_err(|_| format!("{word} {value}"))?;
                options.time = Duration::from_secs_f64(minutes * 60.0);
            }
            "--seed" => options.seed = value.parse().map_err(wrong)?,
            "--round" => options.round = Some(value.parse().map_err(wrong)?),
            _ => return Err(word),
        }
    }
    Ok(options)
}

fn replay(seed: u64, round: u64) -> ExitCode {
    match play(Plan::new(seed, round)) {
        Ok(tally) => {
            println!("{}", tally.tables());
            ExitCode::SUCCESS
        }
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &str) -> ExitCode {
    eprintln!("{failure}");
    ExitCode::FAILURE
}

fn soak(options: &Options) -> ExitCode {
    let (start, mut said) = (Instant::now(), Instant::now());
    let (mut tally, mut looks) = (Tally::default(), vec![Holdings::now()]);
    while start.elapsed() < options.time {
        let began = Instant::now();
        match play(Plan::new(options.seed, tally.rounds)) {
            Ok(round) => tally.add(&round),
            Err(failure) => return fail(&failure),
        }
        if began.elapsed() > SLOW {
            println!("round {} took {:.1?}", tally.rounds - 1, began.elapsed());
        }
        looks.push(Holdings::now());
        if said.elapsed() > Duration::from_secs(60) {
            said = Instant::now();
            println!("{} s: {}", start.elapsed().as_secs(), line(&tally, looks.last().unwrap()));
        }
    }
    println!("{}", tally.tables());
    ExitCode::SUCCESS
}

fn line(tally: &Tally, now: &Holdings) -> String {
    let (rounds, tasks, faults) = (tally.rounds, tally.all_tasks(), tally.all_faults());
    format!("{rounds} rounds, {tasks} tasks, {faults} faults, {} MiB resident", now.resident >> 20)
}
