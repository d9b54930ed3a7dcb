//! Rounds of faults; see `harness`.
#![cfg(target_os = "linux")]

mod harness;
