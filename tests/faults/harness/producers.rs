//! What the tasks of streams do in workers.

use std::process::abort;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, Stream};
use procession::Progress;
use procession::worker::{self, Emit, emit};
use serde::{Deserialize, Serialize};

use super::board::{Turn, begin};

/// A stream as it is to be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Script {
    pub id: u32,
    /// How many items there are before the end, or the mishap.
    pub items: u64,
    pub size: Size,
    /// How long each takes to be made, in microseconds.
    pub pause: u64,
    /// Whether it tells how far it has got.
    pub reports: bool,
    pub then: Then,
}

/// How large the items are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Size {
    Small,
    /// Anything from nothing to more than the ring has.
    Mixed,
    /// More than the arena has.
    BeyondArena,
}

/// How the producer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    End,
    Panic,
    Fail,
    Abort,
    Hang,
    Stop,
}

/// An item that can be told from all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    number: u64,
    /// Not a `Vec<u8>`, which serde takes for a sequence of numbers.
    load: Bytes,
}

impl Script {
    /// The item with this number.
    pub fn item(&self, number: u64) -> Item {
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.id);
        let length = match self.size {
            Size::Small => spread % 50,
            Size::Mixed => [0, 10, 1000, 40_000, 300_000, 1_500_000][spread as usize % 6] + spread % 99,
            Size::BeyondArena => (36 << 20) + spread % 99,
        };
        // In a worker whose pipe is spoilt these may be taken for a length, which is to be too much.
        Item { number, load: vec![spread as u8 | 0x80; length as usize].into() }
    }

    /// Whether an error stands in the place of this item, for [`items_and_errors`].
    pub fn has_error(number: u64) -> bool {
        number % 3 == 2
    }
}

/// The items of a script, one by one.
pub struct Items {
    script: Script,
    next: u64,
    _turn: Turn,
}

pub fn items(script: Script) -> Items {
    Items { script, next: 0, _turn: begin(script.id) }
}

impl Iterator for Items {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.next == self.script.items {
            self.script.then.go_on(self.script.id);
            return None;
        }
        if self.script.pause > 0 {
            std::thread::sleep(Duration::from_micros(self.script.pause));
        }
        let item = self.script.item(self.next);
        self.next += 1;
        if self.script.reports {
            worker::current().expect("in a task").report(Progress::new(self.next));
        }
        Some(item)
    }
}

impl Then {
    fn go_on(self, id: u32) {
        match self {
            Then::End | Then::Fail => {}
            Then::Panic => panic!("task {id} panics"),
            Then::Abort => abort(),
            Then::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            Then::Stop => loop {
                // Whoever stops workers continues them too, this one among them.
                // SAFETY: raise has no preconditions.
                unsafe { libc::raise(libc::SIGSTOP) };
            },
        }
    }
}

/// The same as an async stream.
pub fn flow(script: Script) -> impl Stream<Item = Item> {
    stream::iter(items(script)).then(async |item| {
        tokio::task::yield_now().await;
        item
    })
}

/// The same, pushed; a script that fails is for this.
pub fn push(script: Script) -> Emit<Item> {
    emit(move |out| {
        items(script).try_for_each(|item| out.send(item))?;
        if script.then == Then::Fail {
            return Err(anyhow::anyhow!("the cause")).with_context(|| format!("task {} fails", script.id));
        }
        Ok(())
    })
}

/// The same with errors in the places of some items.
pub fn items_and_errors(script: Script) -> impl Iterator<Item = anyhow::Result<Item>> {
    items(script).enumerate().map(|(number, item)| {
        anyhow::ensure!(!Script::has_error(number as u64), "item {number} fails");
        Ok(item)
    })
}

/// Items without any bytes.
pub fn units(id: u32, count: u64) -> impl Iterator<Item = ()> {
    let turn = begin(id);
    (0..count).map(move |_| _ = &turn)
}

/// Threads that push beside each other: which of them, and the item's number there.
pub fn push_from_threads(id: u32, threads: u32, each: u64) -> Emit<(u32, u64)> {
    emit(move |out| {
        let _turn = begin(id);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let own = out.clone();
                let produce = move || _ = (0..each).try_for_each(|number| own.send((thread, number)));
                // Where there may be no more threads, this one does it.
                if std::thread::Builder::new().spawn_scoped(scope, produce.clone()).is_err() {
                    produce();
                }
            }
        });
        Ok(())
    })
}
