//! What a worker may use.

use super::Sandbox;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The limits that a worker puts on itself before it runs any code but this crate's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// The most bytes of private memory.
    pub(crate) memory: Option<u64>,
    /// The most processor time, over all its life.
    pub(crate) cpu: Option<Duration>,
    /// The most open files.
    pub(crate) open_files: Option<u64>,
    /// Whether it may leave a core dump, if that is for us to say.
    pub(crate) core_dumps: Option<bool>,
    /// Replace it after the task that leaves it with more resident memory than so many bytes.
    pub(crate) rss_mark: Option<u64>,
    /// What is added to its nice value.
    pub(crate) nice: Option<i32>,
    pub(crate) no_new_privs: bool,
    pub(crate) sandbox: Option<Sandbox>,
}

impl Limits {
    /// The processor time as the kernel limits it, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Option<u64> {
        let time = self.cpu?;
        Some(time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)))
    }

    /// Of its processor time, when a worker is to be replaced after the task that it is at.
    pub(crate) fn cpu_mark(&self) -> Option<Duration> {
        Some(self.cpu? / 2)
    }
}
