//! How much of the processors other programs had while something was measured.
//!
//! It is the time that the processors were busy or taken away by a hypervisor, less that of this
//! process and of its descendants: workers, fork servers, interpreters, those that have ended too.

use std::collections::HashMap;
use std::time::Instant;

/// Measures from its start.
#[derive(Debug)]
pub(crate) struct Noise {
    since: Instant,
    busy: f64,
    own: f64,
}

impl Noise {
    /// Nothing, should the system not tell.
    pub(crate) fn start() -> Option<Noise> {
        Some(Noise { since: Instant::now(), busy: busy_time()?, own: own_time() })
    }

    /// How many processors others had, on average.
    pub(crate) fn processors(&self) -> Option<f64> {
        let others = (busy_time()? - self.busy) - (own_time() - self.own);
        let ticks = self.since.elapsed().as_secs_f64() * rustix::param::clock_ticks_per_second() as f64;
        Some((others / ticks).max(0.0))
    }
}

/// Of all processors, in ticks.
fn busy_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let times: Vec<f64> = text.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user, nice, system, [idle, iowait], irq, softirq, steal
    Some(times.get(0..3)?.iter().chain(times.get(5..8)?).sum())
}

/// Of this process and its descendants, in ticks.
fn own_time() -> f64 {
    let processes = processes();
    let is_own = |mut pid: u32| {
        while let Some(process) = processes.get(&pid) {
            if pid == std::process::id() {
                return true;
            }
            pid = process.parent;
        }
        false
    };
    processes.iter().filter(|(pid, _)| is_own(**pid)).map(|(_, process)| process.time).sum()
}

struct Process {
    parent: u32,
    /// With that of the children that it has waited for.
    time: f64,
}

fn processes() -> HashMap<u32, Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: u32) -> Option<Process> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the fields after it are the third and on.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let times = fields.get(11..15)?.iter().flat_map(|field| field.parse::<f64>());
    Some(Process { parent: fields.get(1)?.parse().ok()?, time: times.sum() })
}
