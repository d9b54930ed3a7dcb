//! What occurred, how often: the proof that a run was about something.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use super::kinds::{End, Fault, Kind, Outcome, Setting};
use super::settings::can_sandbox;

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub rounds: u64,
    pub tasks: BTreeMap<(Kind, Outcome), u64>,
    pub faults: BTreeMap<Fault, u64>,
    /// Faults that found nobody to strike.
    pub missed: BTreeMap<Fault, u64>,
    pub ends: BTreeMap<End, u64>,
    /// How many pools had what not every pool has.
    pub pools: BTreeMap<Setting, u64>,
    /// How many tasks that ran out of time were asked where they were.
    pub timeout_reports: u64,
    /// Records of tasks that came to the program's logger.
    pub heard: u64,
    /// Innocent tasks that died with a worker that was killed from outside.
    pub victims: u64,
    /// Those that died with a worker whose pipes an earlier task had spoilt.
    pub poisoned: u64,
    /// The longest time from submission to resolution.
    pub slowest: BTreeMap<Kind, Duration>,
    /// The longest time from a fault to the resolution of the task that died of it.
    pub slowest_death: Duration,
    /// The longest time that an end took.
    pub slowest_end: BTreeMap<End, Duration>,
    pub workers_started: u64,
    pub workers_died: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.rounds += other.rounds;
        sum(&mut self.tasks, &other.tasks);
        sum(&mut self.faults, &other.faults);
        sum(&mut self.missed, &other.missed);
        sum(&mut self.ends, &other.ends);
        sum(&mut self.pools, &other.pools);
        self.timeout_reports += other.timeout_reports;
        self.heard += other.heard;
        self.victims += other.victims;
        self.poisoned += other.poisoned;
        longest(&mut self.slowest, &other.slowest);
        longest(&mut self.slowest_end, &other.slowest_end);
        self.slowest_death = self.slowest_death.max(other.slowest_death);
        self.workers_started += other.workers_started;
        self.workers_died += other.workers_died;
    }

    pub fn all_tasks(&self) -> u64 {
        self.tasks.values().sum()
    }

    pub fn broken(&self) -> u64 {
        let broken = self.tasks.iter().filter(|((_, outcome), _)| *outcome == Outcome::Broken);
        broken.map(|(_, count)| count).sum()
    }

    pub fn all_faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// What never occurred although it might have.
    pub fn missing(&self, has_server: bool) -> Vec<String> {
        let kinds: BTreeSet<Kind> = self.tasks.keys().map(|(kind, _)| *kind).collect();
        let outcomes: BTreeSet<Outcome> = self.tasks.keys().map(|(_, outcome)| *outcome).collect();
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_possible() && !kinds.contains(kind));
        let faults = Fault::ALL.into_iter().filter(|fault| has_server || !fault.needs_server());
        let faults =
            faults.filter(|fault| !self.faults.contains_key(fault)).map(|fault| format!("{fault:?}"));
        let ends = End::ALL.into_iter().filter(|end| !self.ends.contains_key(end));
        // These two stand for what is not to occur, and the third needs many faults at once.
        let never = [Outcome::WrongValue, Outcome::Other, Outcome::Broken];
        let outcomes = Outcome::ALL
            .into_iter()
            .filter(|outcome| !outcomes.contains(outcome) && !never.contains(outcome));
        let mut missing: Vec<String> = kinds.map(|kind| format!("{kind:?}")).chain(faults).collect();
        missing.extend(ends.map(|end| format!("{end:?}")));
        missing.extend(outcomes.map(|outcome| format!("{outcome:?}")));
        let settings = Setting::ALL.into_iter().filter(|setting| !self.pools.contains_key(setting));
        let settings = settings.filter(|setting| *setting != Setting::Sandbox || can_sandbox());
        missing.extend(settings.map(|setting| format!("a pool with {setting:?}")));
        missing.extend(self.missing_ends().map(|(kind, outcome)| format!("{kind:?} with {outcome:?}")));
        missing.extend((self.timeout_reports == 0).then(|| "a report of a timeout".to_owned()));
        missing.extend((cfg!(feature = "log") && self.heard == 0).then(|| "a record".to_owned()));
        missing
    }

    /// What the kinds are there for that come to an end of their own, where it did not come to that.
    fn missing_ends(&self) -> impl Iterator<Item = (Kind, Outcome)> {
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_possible());
        let ends = kinds.filter_map(|kind| Some((kind, kind.own_end()?)));
        ends.filter(|end| !self.tasks.contains_key(end))
    }

    /// Tables in markdown.
    pub fn tables(&self) -> String {
        let mut text = self.table_of_tasks();
        text += "\n| fault from outside | struck | missed |\n| --- | ---: | ---: |\n";
        for fault in Fault::ALL {
            let count = |of: &BTreeMap<Fault, u64>| of.get(&fault).copied().unwrap_or(0);
            let _ = writeln!(text, "| {fault:?} | {} | {} |", count(&self.faults), count(&self.missed));
        }
        text += "\n| pools with | |\n| --- | ---: |\n";
        for (setting, count) in &self.pools {
            let _ = writeln!(text, "| {setting:?} | {count} |");
        }
        text += "\n| end | rounds | slowest |\n| --- | ---: | ---: |\n";
        for (end, count) in &self.ends {
            let slowest = self.slowest_end.get(end).copied().unwrap_or_default();
            let _ = writeln!(text, "| {end:?} | {count} | {slowest:.1?} |");
        }
        let _ = write!(
            text,
            "\n| | |\n| --- | ---: |\n| rounds | {} |\n| tasks | {} |\n| faults | {} |\n\
             | innocent tasks that died with a killed worker | {} |\n\
             | innocent tasks that died with a spoilt worker | {} |\n\
             | slowest from a fault to the end of its victim | {:.1?} |\n\
             | workers started | {} |\n| workers died | {} |\n\
             | reports of where a task was when its time ran out | {} |\n\
             | log records that arrived | {} |\n",
            self.rounds,
            self.all_tasks(),
            self.all_faults(),
            self.victims,
            self.poisoned,
            self.slowest_death,
            self.workers_started,
            self.workers_died,
            self.timeout_reports,
            self.heard,
        );
        text
    }

    fn table_of_tasks(&self) -> String {
        let seen: BTreeSet<Outcome> = self.tasks.keys().map(|(_, outcome)| *outcome).collect();
        let mut text = "| task |".to_owned();
        for outcome in &seen {
            let _ = write!(text, " {outcome:?} |");
        }
        text += " slowest |\n| --- |";
        text += &" ---: |".repeat(seen.len() + 1);
        for kind in Kind::ALL {
            let _ = write!(text, "\n| {kind:?} |");
            for outcome in &seen {
                let _ = write!(text, " {} |", self.tasks.get(&(kind, *outcome)).copied().unwrap_or(0));
            }
            let _ = write!(text, " {:.1?} |", self.slowest.get(&kind).copied().unwrap_or_default());
        }
        text + "\n"
    }
}

fn sum<K: Ord + Copy>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *to.entry(*key).or_default() += count;
    }
}

fn longest<K: Ord + Copy>(to: &mut BTreeMap<K, Duration>, from: &BTreeMap<K, Duration>) {
    for (key, time) in from {
        let known = to.entry(*key).or_default();
        *known = (*known).max(*time);
    }
}
