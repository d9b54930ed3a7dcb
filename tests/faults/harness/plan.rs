//! What a round is to be: made from a seed and a number, and from nothing else.

use fastrand::Rng;
use procession::StartMethod;

use super::kinds::{End, Fault, Kind};
use super::settings::Settings;
use super::shortage::{Lack, Shortage};

/// The most tasks that a round submits, those of maps and of many streams not counted.
const MOST: usize = 320;

/// Ids of the items of the map, or the streams, that are task `id` begin here.
pub const ITEMS: u32 = 400;
pub const ITEMS_EACH: u32 = 40;

/// So many threads submit.
pub const SUBMITTERS: usize = 8;

/// One task to be submitted.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: u32,
    pub kind: Kind,
    /// Whatever there is to choose about the kind.
    pub dice: u64,
    /// Which of the round's pools.
    pub pool: usize,
}

/// A fault from outside, and when: after so many tasks are resolved.
#[derive(Clone, Debug)]
pub struct Strike {
    pub after: u64,
    pub fault: Fault,
    pub dice: u64,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub round: u64,
    pub method: StartMethod,
    pub pools: Vec<Settings>,
    pub runtime_threads: usize,
    pub jobs: Vec<Job>,
    /// How many tasks each submitter has under way at most.
    pub window: usize,
    pub strikes: Vec<Strike>,
    pub end: End,
    /// After how many resolved tasks, for an end in the middle.
    pub end_after: u64,
    /// What the program runs out of until all tasks are resolved.
    pub shortage: Option<Shortage>,
}

impl Plan {
    /// Even rounds are for the fork server, odd ones for spawned workers.
    pub fn new(seed: u64, round: u64) -> Plan {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(round));
        let method = if round.is_multiple_of(2) { StartMethod::ForkServer } else { StartMethod::Spawn };
        let turn = round / 2;
        let pools: Vec<Settings> =
            (0..if rng.u32(..4) == 0 { 2 } else { 1 }).map(|_| Settings::new(&mut rng)).collect();
        // Every third round has everything in it; in the others it shows what is due to what.
        let mut kinds = if turn.is_multiple_of(3) { Kind::ALL.to_vec() } else { some_kinds(&mut rng) };
        kinds.retain(|kind| kind.is_possible() && pools.iter().any(|pool| pool.suits(*kind)));
        let jobs = jobs(&mut rng, &kinds, &pools, turn.is_multiple_of(3));
        let count = jobs.len() as u64;
        let strikes = strikes(&mut rng, method, turn, count);
        Plan {
            seed,
            round,
            method,
            runtime_threads: rng.usize(1..=2),
            window: *rng.choice(&[1, 4, 16, 48]).unwrap(),
            strikes,
            end: End::ALL[turn as usize % End::ALL.len()],
            end_after: rng.u64(count / 3..count),
            shortage: None,
            jobs,
            pools,
        }
    }

    /// A round in which only a shortage does harm. It is for a process of its own.
    pub fn short(seed: u64, round: u64, lack: Lack) -> Plan {
        let plan = Plan::new(seed, round);
        let mut rng = Rng::with_seed(seed ^ round);
        // Sometimes not one worker can be started, mostly not as many as are wanted.
        let room = match lack {
            Lack::Descriptors => rng.u64(..24),
            Lack::Processes => rng.u64(..6),
        };
        let shortage = Some(Shortage { lack, room });
        let pools: Vec<Settings> = plan.pools.iter().map(Settings::for_shortage).collect();
        Plan { strikes: Vec::new(), end: End::Shutdown, shortage, pools, ..plan }
    }

    /// How to have this very round once more.
    pub fn replay(&self) -> String {
        let Plan { seed, round, shortage, .. } = self;
        let lack = shortage.map(|shortage| format!(" --short-of {}", shortage.lack.as_str()));
        let lack = lack.unwrap_or_default();
        format!("cargo run --release --example soak -- --seed {seed} --round {round}{lack}")
    }
}

/// The innocent, and each other kind with a chance of one half.
fn some_kinds(rng: &mut Rng) -> Vec<Kind> {
    let everything = rng.bool();
    Kind::ALL.into_iter().filter(|kind| kind.is_innocent() || everything && rng.bool()).collect()
}

fn jobs(rng: &mut Rng, kinds: &[Kind], pools: &[Settings], everything: bool) -> Vec<Job> {
    let mut deck: Vec<Kind> = kinds.iter().copied().filter(|kind| !kind.is_heavy()).collect();
    for heavy in [Kind::EchoBeyondArena, Kind::StreamBeyondArena] {
        if everything || rng.u32(..5) == 0 {
            deck.push(heavy);
        }
    }
    let innocent: Vec<Kind> =
        deck.iter().copied().filter(|kind| kind.is_innocent() && !kind.is_large()).collect();
    let total = rng.usize(100..MOST);
    while deck.len() < total {
        // One in eight is anything, so that whatever goes wrong does so among many that go right.
        let from = if rng.u32(..8) == 0 { kinds } else { &innocent };
        deck.extend(rng.choice(from).copied().filter(|kind| !kind.is_heavy()));
    }
    rng.shuffle(&mut deck);
    let number = |(id, kind): (usize, Kind)| {
        let suitable: Vec<usize> = (0..pools.len()).filter(|pool| pools[*pool].suits(kind)).collect();
        Job { id: id as u32, kind, dice: rng.u64(..), pool: *rng.choice(&suitable).unwrap() }
    };
    deck.into_iter().enumerate().map(number).collect()
}

fn strikes(rng: &mut Rng, method: StartMethod, turn: u64, tasks: u64) -> Vec<Strike> {
    let possible: Vec<Fault> = Fault::ALL
        .into_iter()
        .filter(|fault| method == StartMethod::ForkServer || !fault.needs_server())
        .collect();
    // A quarter of the rounds has none, so that nothing in them can be blamed on one.
    let count = if turn % 4 == 1 { 0 } else { rng.usize(3..12) };
    let mut strikes: Vec<Strike> = (0..count)
        .map(|_| {
            let fault = *rng.choice(&possible).unwrap();
            // Those that are about starts want to be there when the pool makes them.
            let after = if fault.is_about_starts() && rng.bool() { 0 } else { rng.u64(..tasks) };
            Strike { after, fault, dice: rng.u64(..) }
        })
        .collect();
    strikes.sort_by_key(|strike| strike.after);
    strikes
}
