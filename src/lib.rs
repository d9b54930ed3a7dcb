#![doc = include_str!("../README.md")]

#[cfg(not(target_os = "linux"))]
compile_error!("procession runs on Linux only, for now");

mod pool;
mod process;
mod sys;
mod task;
mod wire;
pub mod worker;

pub use pool::{
    Builder, Canceller, Map, Permit, PoolStats, ProcessPool, StartMethod, TaskBuilder, TaskHandle,
    TaskStatus, WorkerInfo, WorkerState,
};
pub use process::WorkerStdio;
pub use task::{
    Arguments, CodecError, CodecStage, ExitCause, Never, Panic, PanicLocation, PoolError, Priority,
    RemoteError, Returned, TaskError, TaskId, WorkerExit,
};
pub use worker::init;
