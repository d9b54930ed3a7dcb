//! Rounds in which the program runs out of something, each in a process of its own.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use super::plan::Plan;
use super::play::{Failure, play, prepare};
use super::round::Round;
use super::system::{Holdings, set_limit, set_limit_of};
use super::tally::Tally;

/// What there may be too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    Descriptors,
    Processes,
}

/// How many more of it there may be than the round had at its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Shortage {
    pub lack: Lack,
    pub room: u64,
}

/// No more descriptors than this, whatever the room.
const DESCRIPTORS: u64 = 64;

/// A user that owns nothing: limits on processes do not hold for root.
const NOBODY: u32 = 65_534;

/// A shortage that has begun.
pub struct Short {
    resource: libc::__rlimit_resource_t,
    before: u64,
}

impl Lack {
    pub fn as_str(self) -> &'static str {
        match self {
            Lack::Descriptors => "descriptors",
            Lack::Processes => "processes",
        }
    }

    pub fn from_name(name: &str) -> Option<Lack> {
        [Lack::Descriptors, Lack::Processes].into_iter().find(|lack| lack.as_str() == name)
    }
}

impl Shortage {
    pub fn begin(self) -> Short {
        let now = Holdings::now();
        let (resource, limit) = match self.lack {
            Lack::Descriptors => {
                // The limit is on numbers; some below those that are in use are free.
                let free = (0..).filter(|number| !now.descriptors.contains_key(number));
                let first_beyond = free.skip(self.room as usize).map(u64::from).next();
                (libc::RLIMIT_NOFILE, DESCRIPTORS.min(first_beyond.unwrap_or(DESCRIPTORS)))
            }
            // Threads count, and this process is all that its user has.
            Lack::Processes => (libc::RLIMIT_NPROC, now.threads.len() as u64 + self.room),
        };
        Short { resource, before: set_limit(resource, limit).unwrap() }
    }
}

impl Short {
    /// Ends it for all processes of the round: a fork server that was started meanwhile has it from
    /// this process, and would keep it.
    pub fn end(&self, round: &Round) {
        set_limit(self.resource, self.before).unwrap();
        for process in round.processes() {
            // It may be gone.
            let _ = set_limit_of(process.pid, self.resource, self.before);
        }
    }
}

/// How the line begins that says how many tasks found the pool broken.
const BROKEN: &str = "found the pool broken: ";

/// What came of a round in a process of its own.
#[derive(Clone, Debug)]
pub enum Outlook {
    /// With so many tasks that found the pool broken.
    Played(u64),
    /// Why it was not.
    Skipped(String),
}

/// In the process that was started for it: plays a round and says what was wrong.
pub fn play_short(seed: u64, round: u64, lack: Lack) -> Result<Tally, Failure> {
    let _prepared = prepare();
    let tally = play(Plan::short(seed, round, lack))?;
    println!("{BROKEN}{}", tally.broken());
    Ok(tally)
}

impl Lack {
    /// Plays a round in a process of this program, by the command that leads to [`play_short`].
    pub fn play_apart(self, mut command: Command) -> Result<Outlook, Failure> {
        // SAFETY: geteuid has no preconditions.
        let is_root = unsafe { libc::geteuid() } == 0;
        match self {
            Lack::Descriptors => {}
            Lack::Processes if is_root => {
                command.uid(NOBODY).gid(NOBODY);
            }
            // Its user has other processes, which come and go.
            Lack::Processes => return Ok(Outlook::Skipped("it needs root, to play as another user".into())),
        }
        match command.output() {
            Ok(Output { status, stdout, .. }) if status.success() => {
                let words = String::from_utf8_lossy(&stdout);
                let broken = words.lines().find_map(|line| line.split_once(BROKEN)?.1.parse().ok());
                broken.map(Outlook::Played).ok_or_else(|| format!("it said nothing but:\n{words}"))
            }
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr);
                Err(format!("short of {}: {}\n{words}", self.as_str(), output.status))
            }
            Err(error) => {
                Ok(Outlook::Skipped(format!("the program cannot be started as another user: {error}")))
            }
        }
    }
}
