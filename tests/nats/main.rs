//! Pools whose tasks are run by agents, against a real NATS server on loopback.
//!
//! Each test starts a server of its own and checks in the end that nothing is left in it: no task, no
//! object. They are played where `PROCESSION_SERVERS` is set. Where there is no `nats-server` and it cannot be installed, the tests say so and pass; with
//! `PROCESSION_NATS_REQUIRED` in the environment they fail.

#![cfg(all(target_os = "linux", feature = "auto-init"))]
#![allow(unreachable_pub)]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod agents;
mod control;
mod errors;
mod example;
mod losses;
mod odd;
mod patience;
mod payloads;
mod priorities;
mod progress;
#[cfg(all(feature = "log", feature = "tracing"))]
#[path = "../tracing/recorder.rs"]
#[allow(dead_code)]
mod recorder;
mod replicas;
mod security;
mod server;
#[path = "../../examples/cluster/servers.rs"]
mod servers;
mod shapes;
#[path = "../../examples/cluster/slurm.rs"]
mod slurm;
mod stage;
mod streams;
#[cfg(all(feature = "log", feature = "tracing"))]
mod voices;
#[cfg(feature = "metrics")]
mod watched;
