//! A pool's timeline: what ran where and when, written to a file as it happens.
//!
//! Whoever sees something happen leaves a note in a mailbox, at the cost of a lock and a copy. A
//! thread of the timeline's own takes the notes out and writes them. The format is the JSON array of
//! trace events that Chrome came up with and Perfetto reads too; in it the closing bracket may be
//! missing, so the file is good at all times.

mod mailbox;
mod notes;
mod trace;

use super::cell::Cell;
use super::observe::{Attempt, Ending, Event, Levels, Observe};
use crate::sys::monotonic_now;
use crate::task::PoolError;
use futures::future::{BoxFuture, FutureExt};
use mailbox::Mailbox;
use notes::{Note, Run};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::nice;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio_util::sync::CancellationToken;
use trace::Trace;

/// So much is written at once.
const PIECE: usize = 64 * 1024;

/// What is added to the nice value of the thread that writes.
const NICENESS: i32 = 10;

/// The end of the timeline that watches the pool.
pub(super) struct Timeline {
    mailbox: Arc<Mailbox>,
    /// The file is closed.
    done: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Timeline {
    /// Opens the file, and starts the thread that writes to it.
    pub(super) fn start(pool: &str, path: &Path) -> Result<Timeline, PoolError> {
        let failed = |error: io::Error| PoolError::Timeline { path: path.into(), reason: error.to_string() };
        let mut sheet = Sheet::open(path).map_err(failed)?;
        let mut trace = Trace::new(pool, std::process::id(), monotonic_now());
        // What cannot be written at all is better known at once.
        sheet.append(&mut trace.text).map_err(failed)?;
        let (mailbox, done) = (Arc::new(Mailbox::default()), CancellationToken::new());
        let (inbox, is_done) = (mailbox.clone(), done.clone());
        let work = move || {
            // Of this thread alone. Where processors are scarce they are for the pool and its workers.
            let _ = nice(NICENESS);
            // The file ends with what could be written, and there is nobody here to be told.
            let _ = write_down(&inbox, trace, &mut sheet);
            inbox.close();
            drop(sheet);
            is_done.cancel();
        };
        let thread = std::thread::Builder::new().name("timeline".into()).spawn(work).map_err(failed)?;
        Ok(Timeline { mailbox, done, thread: Mutex::new(Some(thread)) })
    }
}

impl Observe for Timeline {
    fn see(&self, event: &Event) {
        self.mailbox.put(match event {
            Event::Refused { task, ending } => Note::Task(refused(task, *ending)),
            Event::Attempt(attempt) => Note::Task(run_of(attempt)),
            Event::WorkerReady { pid, started, wanted, is_restart, at } => Note::Ready {
                pid: *pid,
                wanted: *wanted,
                age: started.elapsed(),
                is_restart: *is_restart,
                at: *at,
            },
            Event::StartFailed { cause, at } => Note::StartFailed { reason: cause.to_string(), at: *at },
            Event::WorkerGone { exit, has_died, cause, at } => {
                Note::Gone { exit: exit.clone(), has_died: *has_died, cause: *cause, at: *at }
            }
        });
    }

    fn measure(&self, levels: &Levels) {
        self.mailbox.put_levels(*levels);
    }

    fn end(&self) -> BoxFuture<'static, ()> {
        self.mailbox.close();
        let done = self.done.clone();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            done.cancelled().await;
            // That was the last that it had to do.
            thread.map(JoinHandle::join);
        }
        .boxed()
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

fn run_of(attempt: &Attempt) -> Run {
    let task = &attempt.task;
    Run {
        id: task.id,
        name: task.name().map(Into::into),
        label: task.label,
        number: attempt.number,
        ending: attempt.ending,
        is_retried: attempt.is_retried,
        pid: attempt.pid,
        submitted: task.submitted(),
        began: attempt.began,
        ended: attempt.ended,
        items: task.items(),
        bytes_in: attempt.bytes_in,
        bytes_out: attempt.bytes_out,
    }
}

fn refused(task: &Cell, ending: Ending) -> Run {
    let now = monotonic_now();
    Run {
        id: task.id,
        name: task.name().map(Into::into),
        label: task.label,
        number: 0,
        ending,
        is_retried: false,
        pid: None,
        submitted: now,
        began: None,
        ended: now,
        items: task.items(),
        bytes_in: task.body().len(),
        bytes_out: 0,
    }
}

/// Writes what comes until there will be no more.
fn write_down(mailbox: &Mailbox, mut trace: Trace, sheet: &mut Sheet) -> io::Result<()> {
    let mut notes = Vec::new();
    loop {
        let post = mailbox.take(&mut notes);
        for note in notes.drain(..) {
            trace.add(&note);
            if trace.text.len() >= PIECE {
                sheet.append(&mut trace.text)?;
            }
        }
        trace.tell_dropped(post.dropped, monotonic_now());
        if post.is_last {
            trace.finish();
        }
        sheet.append(&mut trace.text)?;
        if post.is_last {
            return Ok(());
        }
    }
}

/// The file.
struct Sheet {
    file: File,
    /// It is one that keeps what is written, rather than a pipe or a device.
    is_regular: bool,
    length: u64,
}

impl Sheet {
    fn open(path: &Path) -> io::Result<Sheet> {
        // A pipe that nobody reads is an error rather than a wait.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(path)?;
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        let is_regular = file.metadata()?.is_file();
        if is_regular {
            // Where the file system has no locks, nothing is known of others.
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                return Err(io::Error::other("another pool writes to it"));
            }
            file.set_len(0)?;
        }
        Ok(Sheet { file, is_regular, length: 0 })
    }

    /// Writes whole events.
    fn append(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        let written = self.file.write_all(text);
        match &written {
            Ok(()) => self.length += text.len() as u64,
            // Half an event would spoil the rest. If it cannot be taken back, there is no more to be done.
            Err(_) if self.is_regular => drop(self.file.set_len(self.length)),
            Err(_) => {}
        }
        text.clear();
        written
    }
}

impl Drop for Sheet {
    fn drop(&mut self) {
        if self.is_regular {
            // Closing alone would not do while a process that is being started has it open too.
            let _ = self.file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "opens a pipe in a way that miri does not know")]
    fn an_event_that_could_not_be_written_whole_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let mut sheet = Sheet::open(&path).unwrap();
        sheet.append(&mut b"[\n1".to_vec()).unwrap();
        assert!(Sheet::open(&path).is_err(), "two write to one file");
        // As a disk that is full would, but for the first bytes.
        let writable = std::mem::replace(&mut sheet.file, File::open(&path).unwrap());
        (&writable).write_all(b",\n").unwrap();
        assert!(sheet.append(&mut b",\n2".to_vec()).is_err());
        drop(writable);
        drop(sheet);
        Sheet::open(&path).unwrap();
    }
}
