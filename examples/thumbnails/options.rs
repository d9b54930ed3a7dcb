//! The command line.

use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, bail};

pub(crate) struct Options {
    pub(crate) port: u16,
    pub(crate) workers: usize,
    /// As many tasks wait at most.
    pub(crate) queue: usize,
    /// For a task.
    pub(crate) timeout: Duration,
    /// For a client, to send its file.
    pub(crate) upload: Duration,
    /// For all that was accepted, when the service is told to end; less than the patience of supervisors.
    pub(crate) grace: Duration,
    /// In bytes, for each worker.
    pub(crate) memory: u64,
    pub(crate) is_self_test: bool,
}

impl Options {
    pub(crate) fn of_this_program() -> anyhow::Result<Options> {
        let mut options = Options {
            port: 8080,
            workers: available_parallelism().map_or(2, |count| count.get().max(2)),
            queue: 16,
            timeout: Duration::from_secs(3),
            upload: Duration::from_secs(10),
            grace: Duration::from_secs(8),
            memory: 256 << 20,
            is_self_test: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|value| value.parse::<u32>().ok());
            let number = match word.as_str() {
                "--self-test" => 0,
                _ => number().with_context(|| format!("{word} needs a number after it"))?,
            };
            options.set(&word, number)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, number: u32) -> anyhow::Result<()> {
        match name {
            "--self-test" => (self.is_self_test, self.port) = (true, 0),
            "--port" => self.port = number.try_into().context("--port is at most 65535")?,
            "--workers" => self.workers = number as usize,
            "--queue" => self.queue = number as usize,
            "--timeout-ms" => self.timeout = Duration::from_millis(number.into()),
            "--upload-ms" => self.upload = Duration::from_millis(number.into()),
            "--grace-ms" => self.grace = Duration::from_millis(number.into()),
            "--memory-mib" => self.memory = u64::from(number) << 20,
            _ => bail!("there is no option {name}"),
        }
        Ok(())
    }
}
