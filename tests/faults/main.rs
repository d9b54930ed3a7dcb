//! Faults of every kind, by plan: rounds of many tasks with faults among them and around them, and
//! single faults at chosen moments. `examples/soak.rs` plays rounds for as long as one likes.

#![cfg(all(target_os = "linux", feature = "auto-init"))]
#![allow(unsafe_code)]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod cases;
mod harness;
mod rounds;
mod veteran;
