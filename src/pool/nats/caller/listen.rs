//! What agents and the server tell.

use super::super::link::Link;
use super::super::message::{
    Advisory, AnswerHead, Key, News, Place, Presence, ToAgent, ToCaller, WorkerNote, pack, take_apart, unpack,
};
use super::super::names::is_name;
use super::{Core, Errand, Known, State, Taken};
use crate::pool::cell::{Cell, Outcome};
use crate::pool::stats::{WorkerInfo, WorkerState};
use crate::sys::monotonic_now;
use crate::task::{Fault, Progress, TaskError, TaskId};
use async_nats::Message;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many agents, and workers of each, are kept in mind.
const MAX_AGENTS: usize = 1 << 16;
const MAX_WORKERS: usize = 1 << 12;

/// Room in an answer for what is there beside values: faults, exit reports.
const ANSWER_ROOM: u64 = 16 << 20;

/// An answer that is in the object store.
pub(super) struct Fetch {
    agent: String,
    key: Key,
    ran: u64,
    name: String,
    size: u64,
}

impl Core {
    /// An agent says something about a task. What it says is done; whatever takes longer is given back.
    pub(super) fn heard(
        &self,
        link: &Arc<Link>,
        message: Message,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let said = unpack::<ToCaller>(message.payload);
        let (ToCaller { agent, key, what }, body) = said.filter(|(said, _)| is_name(&said.agent))?;
        match what {
            News::Alive { pid } => {
                if !self.alive(&agent, key, pid) {
                    self.send(Errand::Cancel(agent, key));
                }
                None
            }
            News::Overdue { place } => {
                self.send(Errand::Overdue(key));
                // Done long ago, perhaps, and only the last word of its agent was lost.
                self.send(Errand::Delete(place));
                None
            }
            News::Progress { progress } => {
                self.progressed(&agent, key, progress);
                None
            }
            News::Voice { before } => {
                self.hear_voices(agent, key, before, body);
                None
            }
            News::Packet { number } => {
                self.take_in_packet(agent, key, number, body);
                None
            }
            News::HandedBack => {
                // One that has another agent as well, as the server has lost its notes, goes on there.
                if !self.is_with_another(&agent, key) {
                    self.handed_back(key);
                }
                self.confirm(link, &agent, key)
            }
            News::Done { ran, place: Place::Here } => {
                let is_taken = self.answered(key, ran, body);
                is_taken.then(|| self.confirm(link, &agent, key)).flatten()
            }
            News::Done { ran, place: Place::Object { name, size } } => {
                self.send(Errand::Fetch(Fetch { agent, key, ran, name, size }));
                None
            }
        }
    }

    fn confirm(&self, link: &Arc<Link>, agent: &str, key: Key) -> Option<impl Future<Output = ()> + use<>> {
        let subject = link.names.to(agent);
        if !link.names.is_party(&subject) {
            return None;
        }
        let message = pack(&ToAgent::Confirm { caller: link.me.clone(), key }, &[]);
        let client = link.client.clone();
        Some(async move {
            // If it is lost, the agent repeats its answer.
            let _ = client.publish(subject, message).await;
        })
    }

    /// A task is with an agent; false if nobody wants it any more.
    pub(super) fn alive(&self, agent: &str, key: Key, pid: Option<u32>) -> bool {
        let has_begun = {
            let mut state = self.lock();
            match state.alive(agent, key, pid) {
                Some(has_begun) => has_begun,
                None => return false,
            }
        };
        if has_begun {
            self.show_levels();
        }
        true
    }

    /// A task says how far it has got.
    fn progressed(&self, agent: &str, key: Key, progress: Progress) {
        if !self.alive(agent, key, None) {
            return self.send(Errand::Cancel(agent.to_owned(), key));
        }
        let cell = self.lock().tasks.get(&key.task).map(|task| task.cell.clone());
        if let Some(cell) = cell.filter(|_| is_bounded(&progress)) {
            cell.tell(progress);
        }
    }

    fn is_with_another(&self, agent: &str, key: Key) -> bool {
        let state = self.lock();
        let taken = state.tasks.get(&key.task).filter(|task| task.key == key).and_then(|t| t.taken.as_ref());
        taken.and_then(|taken| taken.agent.as_deref()).is_some_and(|known| known != agent)
    }

    /// A task has not begun, and is submitted anew.
    pub(super) fn handed_back(&self, key: Key) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(task) = state.tasks.get_mut(&key.task).filter(|task| task.key == key) else { return };
        task.sent = Instant::now();
        task.key.hop += 1;
        State::untake(&mut state.running, task);
        if let Some(place) = task.place.take() {
            state.places.remove(&place);
        }
        self.send(Errand::Publish(key.task));
    }

    /// Fetches an answer that is too large for a message.
    pub(super) async fn fetch(&self, link: &Arc<Link>, fetch: Fetch) {
        let Fetch { agent, key, ran, name, size } = fetch;
        let wanted = {
            let mut state = self.lock();
            let task = state.tasks.get_mut(&key.task).filter(|task| task.key == key);
            let connects = link.connects();
            match task {
                // The agent repeats itself while that takes its time.
                Some(task) if task.fetched_with == Some(connects) => return,
                Some(task) => {
                    task.fetched_with = Some(connects);
                    Some((task.terms.items, connects))
                }
                None => None,
            }
        };
        if let Some((items, connects)) = wanted {
            let limit = (self.max_message + ANSWER_ROOM).saturating_mul(u64::from(items.max(1)));
            let fetched = if size > limit {
                let limit = self.max_message;
                Err(Outcome::Fault(Box::new(Fault::TooLarge { size, limit })))
            } else {
                // Without it there is nothing to be confirmed, and the agent says it again.
                match link.objects.get(&name, limit).await {
                    Ok(body) => Ok(body),
                    Err(_) => return self.may_be_fetched_again(key, connects),
                }
            };
            match fetched {
                Ok(body) => {
                    if !self.answered(key, ran, body) {
                        return self.may_be_fetched_again(key, connects);
                    }
                }
                Err(outcome) => self.finish(key, outcome, Some(ran)),
            }
        }
        link.objects.remove(&name).await;
        if let Some(confirm) = self.confirm(link, &agent, key) {
            confirm.await;
        }
    }

    /// An answer could not be fetched, or not be taken yet.
    fn may_be_fetched_again(&self, key: Key, connects: u64) {
        let mut state = self.lock();
        let task = state.tasks.get_mut(&key.task).filter(|task| task.key == key);
        if let Some(task) = task.filter(|task| task.fetched_with == Some(connects)) {
            task.fetched_with = None;
        }
    }

    /// A task is done. False if something is missing before that, so that it is to be said again.
    fn answered(&self, key: Key, ran: u64, answer: Bytes) -> bool {
        let cell = match self.lock().tasks.get(&key.task) {
            Some(task) if task.key == key => task.cell.clone(),
            _ => return true,
        };
        let outcome = match unpack::<AnswerHead>(answer) {
            Some((head, _)) if !self.is_whole(key, head.packets) => return false,
            Some((head, rest)) => {
                self.end_voices(key, head.voices);
                self.outcome(&cell, head, rest)
            }
            None => malformed(),
        };
        if let Some(outcome) = self.retry(key, outcome, Some(ran)) {
            self.finish(key, outcome, Some(ran));
        }
        true
    }

    /// What an answer comes to. It is the agent's word: all of it is checked.
    fn outcome(&self, cell: &Cell, head: AnswerHead, rest: Bytes) -> Outcome {
        let AnswerHead { ending, part_bytes, progress, .. } = head;
        let is_news = progress.is_some() && progress != cell.latest_progress();
        progress
            .filter(|progress| is_news && is_bounded(progress))
            .into_iter()
            .for_each(|news| cell.tell(news));
        let value = match take_apart(part_bytes, rest, self.max_message, |part| cell.add_part(part)) {
            Ok(value) => value,
            Err(fault) => return Outcome::Fault(Box::new(fault)),
        };
        let (outcome, stuck) = ending.into_outcome(value, || cell.description());
        if let Some(stuck) = stuck {
            cell.set_timeout_report(stuck);
        }
        outcome
    }

    /// The server has given up a task: its agent has not been heard of for too long.
    pub(super) fn advised(&self, link: &Link, message: &Message) {
        let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) else { return };
        if !link.names.is_ours(&advisory.consumer) {
            return;
        }
        let key = {
            let state = self.lock();
            let task = state.places.get(&advisory.stream_seq).and_then(|id| state.tasks.get(id));
            task.map(|task| task.key)
        };
        if let Some(key) = key {
            self.send(Errand::Overdue(key));
        }
    }

    /// An agent tells of itself.
    pub(super) fn present(&self, message: Message) {
        let told = unpack::<Presence>(message.payload).filter(|(told, _)| is_name(&told.agent));
        let Some((presence, _)) = told else { return };
        let mut state = self.lock();
        if presence.is_leaving {
            state.agents.remove(&presence.agent);
            if self.is_observed {
                state.count_workers();
            }
            drop(state);
            return self.show_levels();
        }
        if state.agents.len() >= MAX_AGENTS && !state.agents.contains_key(&presence.agent) {
            return;
        }
        let now = Instant::now();
        let mut workers = presence.workers;
        workers.truncate(MAX_WORKERS);
        let width = (presence.width as usize).min(MAX_WORKERS);
        state.agents.insert(presence.agent, Known { sign: now, width, workers, told: now });
        if self.is_observed {
            state.count_workers();
        }
        let warming: Vec<_> = state.warming.drain(..).collect();
        drop(state);
        self.show_levels();
        for ready in warming {
            // Whoever asked may have stopped waiting.
            let _ = ready.send(Ok(()));
        }
    }
}

fn malformed() -> Outcome {
    Outcome::Fault(Box::new(Fault::malformed_chunk()))
}

fn is_bounded(progress: &Progress) -> bool {
    progress.message().len() <= Progress::MAX_MESSAGE
}

impl State {
    /// A task is with an agent, which may have begun it; `None` if nobody wants it any more. Gives back
    /// whether it is only known now that it has begun.
    fn alive(&mut self, agent: &str, key: Key, pid: Option<u32>) -> Option<bool> {
        let task = self.tasks.get_mut(&key.task).filter(|task| task.key == key)?;
        let taken = task.taken.get_or_insert_with(|| Taken::new(None));
        // Only one agent has it; that a second one says so means that the server has lost its notes.
        if taken.agent.as_deref().is_some_and(|known| known != agent) {
            return None;
        }
        taken.agent.get_or_insert_with(|| agent.to_owned());
        taken.sign = Instant::now();
        let has_begun = taken.pid.is_none() && pid.is_some();
        taken.pid = pid.or(taken.pid);
        if has_begun {
            taken.began = Some(monotonic_now());
            self.running += 1;
        }
        Some(has_begun)
    }

    /// A worker as its agent tells of it.
    pub(super) fn view(&self, agent: &str, known: &Known, worker: &WorkerNote) -> WorkerInfo {
        let runs = |taken: &Taken| taken.agent.as_deref() == Some(agent) && taken.pid == Some(worker.pid);
        let task = self.tasks.values().find(|task| task.taken.as_ref().is_some_and(runs));
        let state = match worker.state {
            0 => WorkerState::Starting,
            1 if task.is_none() => WorkerState::Idle,
            1 | 2 => WorkerState::Busy,
            _ => WorkerState::Retiring,
        };
        let started = known.told.checked_sub(Duration::from_nanos(worker.age)).unwrap_or(known.told);
        let task = task.map(|task| TaskId(task.key.task));
        WorkerInfo::elsewhere(worker.pid, state, worker.tasks_done, task, started, worker.rss)
    }
}

/// Looking after time.
impl Core {
    /// Gives up what has waited too long, forgets agents that are gone, and finds tasks whose agents are.
    /// Gives back whether there are tasks of which it is not known whether an agent has them.
    pub(super) fn look_around(&self) {
        let now = Instant::now();
        let (max_wait, ack_wait) = (self.queue.max_wait, self.queue.ack_wait);
        // The server counts as long as that from the last sign of life, and then tells.
        let patience = ack_wait + ack_wait / 2;
        let (late, lost) = {
            let mut state = self.lock();
            let agents = state.agents.len();
            state.agents.retain(|_, agent| now.duration_since(agent.sign) < 2 * patience);
            if state.agents.len() != agents {
                state.count_workers();
            }
            let waits_too_long =
                |task: &super::Task| task.taken.is_none() && now.duration_since(task.submitted) > max_wait;
            let late: Vec<_> =
                state.tasks.iter().filter(|(_, task)| waits_too_long(task)).map(|(id, _)| *id).collect();
            let is_lost = |task: &&super::Task| {
                task.taken.as_ref().is_some_and(|taken| now.duration_since(taken.sign) > patience)
            };
            (late, state.tasks.values().filter(is_lost).map(|task| task.key).collect::<Vec<_>>())
        };
        for task in late {
            self.give_up(task, super::error(TaskError::TimedOut { limit: max_wait }));
        }
        for key in lost {
            self.lost(key);
        }
        self.show_levels();
    }

    /// All tasks of a level up to this place have been handed to agents. From those that nobody has told
    /// of since, a sign of life is due.
    pub(super) fn handed_out(&self, level: crate::task::Priority, last: u64) {
        let now = Instant::now();
        for task in self.lock().tasks.values_mut() {
            let is_out = task.place.is_some_and(|place| place <= last) && task.terms.priority == level;
            if is_out && task.taken.is_none() {
                task.taken = Some(Taken::new(Some(now)));
            }
        }
    }

    /// Where in the stream tasks should be.
    pub(super) fn placed(&self) -> Vec<(Key, u64)> {
        self.lock().tasks.values().filter_map(|task| Some((task.key, task.place?))).collect()
    }

    /// A task is not in the queue any more. If an agent has it, a sign of life is due.
    pub(super) fn gone(&self, key: Key) {
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(task) = state.tasks.get_mut(&key.task).filter(|task| task.key == key) {
            task.taken.get_or_insert_with(|| Taken::new(None));
            // What is there now is another one's.
            if let Some(place) = task.place.take() {
                state.places.remove(&place);
            }
        }
    }

    /// Nothing was heard by nobody's fault but the connection's: everything counts from now.
    pub(super) fn be_patient_again(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        for task in state.tasks.values_mut() {
            if let Some(taken) = &mut task.taken {
                taken.sign = now;
            }
        }
        for agent in state.agents.values_mut() {
            agent.sign = now;
        }
    }
}
