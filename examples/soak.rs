//! Plays rounds of faults against pools until the time is up, and says what occurred.
//!
//! Run it with `cargo run --release --example soak -- --minutes 10`; `--seed S` chooses the rounds,
//! and `--round K` plays one of them alone. It fails with the first violation.
//!
//! Beside the rounds there is a worker that lives through all of them, and is not to hold more and more.

#[path = "../tests/faults/harness/mod.rs"]
mod harness;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use harness::{
    Burden, Counting, Holdings, Lack, Outlook, Plan, Tally, Veteran, limit_arenas, play, play_short, prepare,
};
use procession::StartMethod;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A round that takes longer is worth a line.
const SLOW: Duration = Duration::from_secs(8);

/// Memory is compared with what it was after so many rounds.
const WARM_UP: usize = 20;

/// Of so many rounds one is followed by two in a shortage.
const SHORT_EVERY: u64 = 8;

struct Options {
    time: Duration,
    seed: u64,
    round: Option<u64>,
    short_of: Option<Lack>,
}

fn main() -> ExitCode {
    limit_arenas();
    let options = match options() {
        Ok(options) => options,
        Err(word) => {
            eprintln!("what is `{word}`? Known are --minutes N, --seed S and --round K");
            return ExitCode::FAILURE;
        }
    };
    match options.round {
        Some(round) => replay(&options, round),
        None => soak(&options),
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options { time: Duration::from_secs(4), seed: 1, round: None, short_of: None };
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
            "--short-of" => options.short_of = Some(Lack::from_name(&value).ok_or(value)?),
            _ => return Err(word),
        }
    }
    Ok(options)
}

fn replay(options: &Options, round: u64) -> ExitCode {
    let played = match options.short_of {
        Some(lack) => play_short(options.seed, round, lack),
        None => {
            let _prepared = prepare();
            play(Plan::new(options.seed, round))
        }
    };
    match played {
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
    let _prepared = prepare();
    let mut soak = Soak::new(options.seed);
    while soak.start.elapsed() < options.time {
        if let Err(failure) = soak.go_on() {
            return fail(&failure);
        }
    }
    println!("{}", soak.summary());
    let grown = soak.growth();
    soak.veteran.retire();
    if grown.is_empty() { ExitCode::SUCCESS } else { fail(&grown.join("\n")) }
}

/// How much the program holds, and the worker that lives long.
struct Look {
    descriptors: usize,
    threads: usize,
    children: usize,
    resident: u64,
    allocated: u64,
    worker: Burden,
}

impl Look {
    fn now(veteran: &Veteran) -> Look {
        let held = Holdings::now();
        Look {
            descriptors: held.descriptors.len(),
            threads: held.threads.len(),
            children: held.children,
            resident: held.resident,
            allocated: held.allocated,
            worker: veteran.burden(),
        }
    }
}

/// A run of many rounds.
struct Soak {
    seed: u64,
    start: Instant,
    said: Instant,
    tally: Tally,
    /// What the program held before the first round and after each, as numbers: the names of it all would
    /// themselves be what grows.
    looks: Vec<Look>,
    veteran: Veteran,
    short: u64,
    broken: u64,
    skipped: Vec<String>,
}

impl Soak {
    fn new(seed: u64) -> Soak {
        let veteran = Veteran::start(StartMethod::ForkServer);
        Soak {
            seed,
            start: Instant::now(),
            said: Instant::now(),
            tally: Tally::default(),
            looks: vec![Look::now(&veteran)],
            veteran,
            short: 0,
            broken: 0,
            skipped: Vec::new(),
        }
    }

    fn go_on(&mut self) -> Result<(), String> {
        let (began, round) = (Instant::now(), self.tally.rounds);
        let tally = play(Plan::new(self.seed, round))?;
        self.tally.add(&tally);
        self.veteran.take_turn()?;
        self.looks.push(Look::now(&self.veteran));
        if round % SHORT_EVERY == SHORT_EVERY / 2 {
            self.play_short(round, Lack::Descriptors)?;
            self.play_short(round + 1, Lack::Processes)?;
        }
        if began.elapsed() > SLOW {
            let slowest = tally.slowest.iter().max_by_key(|(_, time)| **time);
            println!("round {round} took {:.1?}, and in it {slowest:.1?}", began.elapsed());
        }
        if self.said.elapsed() > Duration::from_secs(60) {
            self.said = Instant::now();
            println!("{}", self.line());
        }
        Ok(())
    }

    fn play_short(&mut self, round: u64, lack: Lack) -> Result<(), String> {
        let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
        let (seed, round) = (self.seed.to_string(), round.to_string());
        command.args(["--seed", &seed, "--round", &round, "--short-of", lack.as_str()]);
        match lack.play_apart(command)? {
            Outlook::Played(broken) => {
                self.short += 1;
                self.broken += broken;
            }
            Outlook::Skipped(why) if self.skipped.contains(&why) => {}
            Outlook::Skipped(why) => self.skipped.push(why),
        }
        Ok(())
    }

    fn line(&self) -> String {
        let (tally, now) = (&self.tally, &self.looks[self.looks.len() - 1]);
        format!(
            "{} s: {} rounds, {} tasks, {} faults, {} descriptors, {} threads, {} KiB allocated, {} MiB resident, \
             {} MiB in the old worker",
            self.start.elapsed().as_secs(),
            tally.rounds,
            tally.all_tasks(),
            tally.all_faults(),
            now.descriptors,
            now.threads,
            now.allocated >> 10,
            now.resident >> 20,
            now.worker.resident >> 20,
        )
    }

    fn summary(&self) -> String {
        let mut text = self.tally.tables();
        text += &format!("| rounds in a shortage | {} |\n", self.short);
        text += &format!("| tasks that found a pool broken by one | {} |\n", self.broken);
        text += &format!("| seed | {} |\n", self.seed);
        for why in &self.skipped {
            text += &format!("| skipped | {why} |\n");
        }
        text += "\n| held | at the start | after warm-up | at the end |\n| --- | ---: | ---: | ---: |\n";
        let warm = self.looks.len().min(WARM_UP) - 1;
        let looks = [&self.looks[0], &self.looks[warm], &self.looks[self.looks.len() - 1]];
        let mut row = |what: &str, of: Measure| {
            let [start, warm, end] = looks.map(of);
            text += &format!("| {what} | {start} | {warm} | {end} |\n");
        };
        row("descriptors", |held| held.descriptors as u64);
        row("threads", |held| held.threads as u64);
        row("child processes", |held| held.children as u64);
        row("KiB allocated", |held| held.allocated >> 10);
        row("MiB resident", |held| held.resident >> 20);
        row("the old worker: tasks", |held| held.worker.tasks);
        row("its descriptors", |held| held.worker.descriptors);
        row("its threads", |held| held.worker.threads);
        row("its MiB resident", |held| held.worker.resident >> 20);
        text
    }

    /// What there is more of in a late stretch than in an early one.
    fn growth(&self) -> Vec<String> {
        let stretch = self.looks.len().saturating_sub(WARM_UP) / 4;
        if stretch < 10 {
            return Vec::new(); // too few to tell
        }
        let early = &self.looks[WARM_UP..WARM_UP + stretch];
        let late = &self.looks[self.looks.len() - stretch..];
        let measures: [(&str, u64, Measure); 5] = [
            ("bytes allocated", 2 << 20, |look| look.allocated),
            ("bytes resident", 8 << 20, |look| look.resident),
            ("descriptors of the old worker", 0, |look| look.worker.descriptors),
            ("threads of the old worker", 0, |look| look.worker.threads),
            ("bytes resident in the old worker", 16 << 20, |look| look.worker.resident),
        ];
        let grown = measures.into_iter().filter_map(|(what, slack, of)| {
            let (early, late) = (median(early, of), median(late, of));
            (late > early + early / 4 + slack).then(|| format!("{what} have grown from {early} to {late}"))
        });
        grown.collect()
    }
}

type Measure = fn(&Look) -> u64;

fn median(looks: &[Look], of: Measure) -> u64 {
    let mut sizes: Vec<u64> = looks.iter().map(of).collect();
    sizes.sort_unstable();
    sizes[sizes.len() / 2]
}
