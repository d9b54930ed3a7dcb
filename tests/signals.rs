//! What signals do to a program with a pool and to its processes: workers neither die before the
//! program has decided, nor outlive it.
//!
//! The programs run in sessions of their own, each with a pseudo-terminal and a small shell with job
//! control; see [`session`]. Everything else is as in a real terminal: what is typed becomes signals
//! in the kernel.

#![cfg(target_os = "linux")]
#![allow(unreachable_pub, unsafe_code)]

#[macro_use]
mod common;

#[path = "signals/endings.rs"]
mod endings;
#[path = "signals/example.rs"]
mod example;
#[path = "signals/outside.rs"]
mod outside;
#[path = "signals/program.rs"]
mod program;
#[path = "signals/session.rs"]
mod session;
#[path = "signals/stops.rs"]
mod stops;
