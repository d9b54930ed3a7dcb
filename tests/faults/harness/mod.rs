//! Rounds of faults: many tasks, of many kinds, from many threads, while workers and fork servers
//! are killed and stopped, and in the end what must hold whatever happens.
//!
//! Everything that is chosen in a round is chosen by its seed and its number (`plan`), so that it
//! can be played again; what the kernel makes of it differs from time to time all the same.
//! `play` goes through a round; `submit`, `special` and `streams` submit its tasks and see what becomes of
//! them (`deeds` and `producers` are what they do in the workers), `strikes` makes the faults from
//! outside, `check` says what is wrong. `veteran` is a worker that lives through all rounds.

#![allow(dead_code, unreachable_pub, unsafe_code, unused_imports)] // the tests and the example use a part each

mod board;
mod check;
mod counting;
pub mod deeds;
mod kinds;
mod listener;
mod plan;
mod play;
mod producers;
mod round;
mod settings;
mod shortage;
mod special;
mod streams;
mod strikes;
mod submit;
mod system;
mod tally;
mod veteran;
mod watchdog;

pub use counting::Counting;
pub use plan::Plan;
pub use play::{play, prepare};
pub use shortage::{Lack, Outlook, play_short};
pub use system::{Holdings, limit_arenas};
pub use tally::Tally;
pub use veteran::{Burden, Veteran};
