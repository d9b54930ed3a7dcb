//! Where a test and its tasks meet: a task says that it has begun and waits to be let go, and the
//! test sees when its process ends.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as BlockingStream;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// A place that tasks [`attend`].
pub struct Meeting {
    dir: TempDir,
    listener: UnixListener,
}

impl Meeting {
    pub fn new() -> Meeting {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("meeting")).unwrap();
        Meeting { dir, listener }
    }

    /// What to hand to a task, for it to attend.
    pub fn place(&self) -> String {
        self.dir.path().join("meeting").to_str().unwrap().to_owned()
    }

    /// Waits for the next task to arrive.
    pub async fn next(&self) -> Guest {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let (pid, who) = line.trim_end().split_once(' ').unwrap();
        Guest { pid: pid.parse().unwrap(), who: who.to_owned(), stream }
    }

    /// Waits for `n` tasks to arrive.
    pub async fn all(&self, n: usize) -> Vec<Guest> {
        let mut guests = Vec::new();
        while guests.len() < n {
            guests.push(self.next().await);
        }
        guests
    }
}

/// A task that attends. Dropping it lets the task go on.
pub struct Guest {
    pub pid: u32,
    pub who: String,
    stream: BufReader<UnixStream>,
}

impl Guest {
    /// Waits until the task's process has ended, without letting the task go on.
    pub async fn gone(mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new()).await; // a reset is an end, too
    }
}

fn arrive(place: &str, who: &str) -> BlockingStream {
    let mut stream = BlockingStream::connect(place).unwrap();
    stream.write_all(format!("{} {who}\n", std::process::id()).as_bytes()).unwrap();
    stream
}

/// In a task: says that it is here, and blocks until the test lets it go.
pub fn attend(place: &str, who: &str) {
    let _ = arrive(place, who).read(&mut [0]);
}

/// In an async task: the same at an await point.
pub async fn attend_async(place: &str, who: &str) {
    let stream = arrive(place, who);
    stream.set_nonblocking(true).unwrap();
    let _ = UnixStream::from_std(stream).unwrap().read(&mut [0]).await;
}

/// What tasks [`note`]d, line by line: the proof that they ran, and how often.
pub struct Ledger {
    dir: TempDir,
}

impl Ledger {
    pub fn new() -> Ledger {
        Ledger { dir: tempfile::tempdir().unwrap() }
    }

    /// What to hand to a task, for it to note something.
    pub fn place(&self) -> String {
        self.dir.path().join("ledger").to_str().unwrap().to_owned()
    }

    pub fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.place()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn sorted(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.sort();
        lines
    }
}

/// In a task: adds one line to a [`Ledger`], whole even if others write at the same time.
pub fn note(place: &str, line: impl ToString) {
    let mut ledger = OpenOptions::new().append(true).create(true).open(place).unwrap();
    ledger.write_all(format!("{}\n", line.to_string()).as_bytes()).unwrap();
}
