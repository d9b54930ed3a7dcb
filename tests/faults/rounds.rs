//! A bounded number of rounds, always the same.

use std::process::Command;

use procession::StartMethod;

use crate::common;
use crate::harness::{Lack, Outlook, Plan, Tally, play, play_short, prepare};

/// What the rounds are made from.
const SEED: u64 = 24;

/// So many rounds for each start method: every end, and every kind twice.
const ROUNDS: u64 = 6;

/// At most so many, should something not have occurred: a fault may find nobody to strike.
const MOST_ROUNDS: u64 = 24;

/// Rounds in a shortage, each for another amount of what is lacking.
const SHORT_ROUNDS: u64 = 4;

/// No other test of this process runs meanwhile: rounds count descriptors and threads.
fn turn(body: impl FnOnce()) {
    common::alone(|| {
        let _prepared = prepare();
        body();
    });
}

fn play_all(method: StartMethod) {
    let mut tally = Tally::default();
    let first = u64::from(method == StartMethod::Spawn);
    let missing = |tally: &Tally| tally.missing(method == StartMethod::ForkServer);
    while tally.rounds < ROUNDS || tally.rounds < MOST_ROUNDS && !missing(&tally).is_empty() {
        let plan = Plan::new(SEED, first + 2 * tally.rounds);
        assert_eq!(plan.method, method);
        match play(plan) {
            Ok(round) => tally.add(&round),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{}", tally.tables());
    assert!(missing(&tally).is_empty(), "never occurred: {:?}", missing(&tally));
}

#[test]
fn with_a_fork_server() {
    turn(|| play_all(StartMethod::ForkServer));
}

#[test]
fn with_spawned_workers() {
    turn(|| play_all(StartMethod::Spawn));
}

fn play_short_rounds(lack: Lack) {
    let mut all_broken = 0;
    for round in 0..SHORT_ROUNDS {
        let word = format!("{} {round}", lack.as_str());
        match lack.play_apart(helper(&word)) {
            Ok(Outlook::Played(broken)) => all_broken += broken,
            Ok(Outlook::Skipped(why)) => return eprintln!("skipped: {why}"),
            Err(failure) => panic!("{failure}"),
        }
    }
    assert!(all_broken > 0, "there was no shortage");
}

fn helper(word: &str) -> Command {
    common::helper("rounds::a_round_in_a_shortage", word)
}

#[test]
fn short_of_descriptors() {
    turn(|| play_short_rounds(Lack::Descriptors));
}

#[test]
fn short_of_processes() {
    turn(|| play_short_rounds(Lack::Processes));
}

#[test]
#[ignore = "a helper of others"]
fn a_round_in_a_shortage() {
    let word = common::helping().expect("what is lacking, and the round");
    let (lack, round) = word.split_once(' ').unwrap();
    let lack = Lack::from_name(lack).unwrap();
    if let Err(failure) = play_short(SEED, round.parse().unwrap(), lack) {
        panic!("{failure}");
    }
}
