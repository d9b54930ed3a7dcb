//! The program's logger: hears what tasks log, and whether that comes once and in order.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

use super::deeds::LOG;

struct Listener(Mutex<Heard>);

/// What was heard in a round.
#[derive(Debug, Default)]
pub struct Heard {
    pub records: u64,
    /// The last record of each task.
    last: BTreeMap<u32, u64>,
    pub complaints: Vec<String>,
}

static LISTENER: Listener =
    Listener(Mutex::new(Heard { records: 0, last: BTreeMap::new(), complaints: Vec::new() }));

/// Has it listen from now on.
pub fn listen() {
    // It stays the first time; should the program have another one, nothing is heard.
    let _ = log::set_logger(&LISTENER);
    log::set_max_level(LevelFilter::Info);
}

/// What was heard since this was asked before.
pub fn take_heard() -> Heard {
    std::mem::take(&mut LISTENER.0.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Log for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == LOG
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).hear(&record.args().to_string());
        }
    }

    fn flush(&self) {}
}

impl Heard {
    fn hear(&mut self, message: &str) {
        let numbers =
            message.split_once(' ').and_then(|(id, number)| Some((id.parse().ok()?, number.parse().ok()?)));
        let Some((id, number)) = numbers else {
            return self.complaints.push(format!("a record that nobody made: {message}"));
        };
        self.records += 1;
        if let Some(last) = self.last.insert(id, number)
            && last >= number
        {
            self.complaints.push(format!("record {number} of task {id} came after {last}"));
        }
    }
}
