//! The thread that strikes from outside: kills and stops workers and fork servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use procession::{StartMethod, WorkerState};

use super::board::Line;
use super::kinds::Fault;
use super::plan::Strike;
use super::round::Round;
use super::system::{Process, Target};

/// How long it is looked for somebody to strike.
const SEARCH: Duration = Duration::from_millis(300);

/// With nothing resolved for so long, a strike comes early: it may wait for what it would undo.
const LULL: Duration = Duration::from_millis(100);

/// A stopped process and when it is to go on.
type Stopped = Vec<(Instant, Target)>;

/// Strikes as planned, until the round ends and everybody who was stopped goes on.
pub fn strike_all(round: &Arc<Round>) {
    round.wait_for_pools();
    let mut stopped = Stopped::new();
    for strike in &round.plan.strikes {
        await_turn(round, strike, &mut stopped);
        if round.state().ending.is_some() {
            break;
        }
        let hit = Striker { round, dice: strike.dice, stopped: &mut stopped }.strike(strike.fault);
        let log = &mut round.state().log;
        match hit {
            Some(()) => log.strikes.push((Instant::now(), strike.fault)),
            None => log.missed.push(strike.fault),
        }
    }
    while !stopped.is_empty() {
        let next = stopped.iter().map(|(until, _)| *until).min().unwrap_or_else(Instant::now);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let_go(&mut stopped);
    }
}

fn await_turn(round: &Round, strike: &Strike, stopped: &mut Stopped) {
    loop {
        let_go(stopped);
        let done = round.state().done;
        let until = stopped.iter().map(|(until, _)| until.saturating_duration_since(Instant::now())).min();
        let limit = until.unwrap_or(LULL).min(LULL);
        let waits = |done: u64, ending: bool| done < strike.after && !ending;
        round.wait_while(limit, |state| waits(state.done, state.ending.is_some()) && state.done == done);
        let state = round.state();
        let lull = state.done == done && limit == LULL;
        if lull || !waits(state.done, state.ending.is_some()) {
            return;
        }
    }
}

fn let_go(stopped: &mut Stopped) {
    stopped.retain(|(until, target)| {
        let stays = Instant::now() < *until;
        if !stays {
            target.signal(libc::SIGCONT);
        }
        stays
    });
}

struct Striker<'a> {
    round: &'a Round,
    dice: u64,
    stopped: &'a mut Stopped,
}

impl Striker<'_> {
    fn strike(mut self, fault: Fault) -> Option<()> {
        match fault {
            Fault::KillWorker => self.kill(|this| this.a_worker(), libc::SIGKILL),
            Fault::TerminateWorker => self.terminate(),
            Fault::KillStarting => self.kill(|this| this.a_starting_worker(), libc::SIGKILL),
            Fault::StopWorker => self.stop(|this| this.a_worker(), 600),
            Fault::StopStarting => self.stop(|this| this.a_starting_worker(), 600),
            Fault::KillStreaming => self.kill(|this| this.a_streaming_worker(), libc::SIGKILL),
            Fault::StopStreaming => self.stop(|this| this.a_streaming_worker(), 600),
            Fault::KillServer => self.kill_server(),
            Fault::StopServer | Fault::StopServerInStart => self.stop_server(1500),
            Fault::StopServerThenKillWorker => {
                self.stop_server(4000)?;
                self.kill(|this| this.a_worker(), libc::SIGKILL)
            }
        }
    }

    /// Looks for somebody for a while.
    fn search(&self, find: impl Fn(&Self) -> Option<u32>) -> Option<Target> {
        let start = Instant::now();
        loop {
            if let Some(target) = find(self).and_then(|pid| Target::find(pid, &self.round.place)) {
                return Some(target);
            }
            if start.elapsed() > SEARCH || self.round.state().ending.is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill(&self, find: impl Fn(&Self) -> Option<u32>, signal: i32) -> Option<()> {
        let target = self.search(find)?;
        // Noted first: its task may be resolved before this thread goes on.
        self.note_worker(&target.process);
        target.signal(signal).then_some(())
    }

    /// What a signal to all processes of a program means is for the program to say: workers go on,
    /// and so this is no excuse for the death of a task.
    fn terminate(&self) -> Option<()> {
        self.search(|this| this.a_worker())?.signal(libc::SIGTERM).then_some(())
    }

    fn note_worker(&self, process: &Process) {
        let log = &mut self.round.state().log;
        log.killed.insert(process.pid, Instant::now());
        log.parents.insert(process.pid, process.parent);
    }

    fn stop(&mut self, find: impl Fn(&Self) -> Option<u32>, most: u64) -> Option<()> {
        let target = self.search(find)?;
        self.hold(target, most)
    }

    fn hold(&mut self, target: Target, most: u64) -> Option<()> {
        let until = Instant::now() + Duration::from_millis(5 + self.dice % most);
        let is_held = target.signal(libc::SIGSTOP);
        self.stopped.push((until, target));
        is_held.then_some(())
    }

    fn kill_server(&mut self) -> Option<()> {
        let server = self.search(|this| this.a_server())?;
        // Stopped first, so that it has no workers that nobody knows of.
        server.signal(libc::SIGSTOP);
        self.note_server(&server.process);
        server.signal(libc::SIGKILL).then_some(())
    }

    /// A stopped fork server may be killed by the pool, with all its workers.
    fn stop_server(&mut self, most: u64) -> Option<()> {
        let server = self.search(|this| this.a_server())?;
        self.note_server(&server.process);
        self.hold(server, most)
    }

    fn note_server(&self, server: &Process) {
        let workers = self.round.processes();
        let log = &mut self.round.state().log;
        log.servers.insert(server.pid, Instant::now());
        for worker in workers.iter().filter(|worker| worker.parent == server.pid) {
            log.parents.insert(worker.pid, server.pid);
        }
    }

    fn choose(&self, pids: &[u32]) -> Option<u32> {
        pids.get((self.dice >> 16) as usize % pids.len().max(1)).copied()
    }

    /// Any worker that is ready.
    fn a_worker(&self) -> Option<u32> {
        self.choose(&self.ready_workers())
    }

    fn ready_workers(&self) -> Vec<u32> {
        let pools = 0..self.round.plan.pools.len();
        let workers = pools.filter_map(|at| self.round.pool(at)).flat_map(|pool| pool.workers());
        let ready = workers.filter(|worker| worker.state() != WorkerState::Starting);
        ready.map(|worker| worker.pid()).filter(|pid| *pid != 0).collect()
    }

    /// A worker that is in the middle of a stream.
    fn a_streaming_worker(&self) -> Option<u32> {
        let open: Vec<u32> = self
            .round
            .state()
            .open
            .iter()
            .filter(|(_, open)| open.kind.is_stream())
            .map(|(id, _)| *id)
            .collect();
        let lines = open.into_iter().map(|id| self.round.board.line(id));
        let pids: Vec<u32> = lines.filter(|line| line.began() > line.ended()).map(Line::pid).collect();
        self.choose(&pids)
    }

    /// A process that is not ready to be a worker yet.
    fn a_starting_worker(&self) -> Option<u32> {
        let processes = self.round.processes();
        let ready = self.ready_workers();
        let starting = processes.iter().filter(|process| !ready.contains(&process.pid));
        self.choose(
            &starting
                .filter(|process| !self.is_server(process))
                .map(|process| process.pid)
                .collect::<Vec<_>>(),
        )
    }

    fn a_server(&self) -> Option<u32> {
        let processes = self.round.processes();
        let servers = processes.iter().filter(|process| self.is_server(process));
        self.choose(&servers.map(|process| process.pid).collect::<Vec<_>>())
    }

    fn is_server(&self, process: &Process) -> bool {
        self.round.plan.method == StartMethod::ForkServer && process.parent == std::process::id()
    }
}
