//! Where a queue is: settings.

use super::names::Names;
use crate::task::PoolError;
use async_nats::{ConnectOptions, ServerAddr};
use std::fmt;
use std::time::Duration;

/// What is longer is for ever: servers count no more than 292 years, in nanoseconds.
const LONGEST: Duration = Duration::from_secs(50 * 365 * 24 * 3600);

/// A queue on a NATS server with JetStream, as callers and agents are told of it. Both must be told the
/// same, but for the address and the credentials.
///
/// ```no_run
/// use procession::nats::{ConnectOptions, Queue};
/// use std::time::Duration;
///
/// # async fn connect() -> anyhow::Result<()> {
/// let options = ConnectOptions::with_credentials(&std::fs::read_to_string("service.creds")?)?
///     .require_tls(true)
///     .add_root_certificates("ca.pem".into());
/// let queue = Queue::at("nats://nats-1:4222,nats://nats-2:4222")
///     .options(options)
///     .name("images")
///     .replicas(3)
///     .ack_wait(Duration::from_secs(10));
/// let pool = procession::ProcessPool::builder().nats(queue).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a queue is there to be given to a pool or an agent"]
pub struct Queue {
    address: String,
    pub(super) options: ConnectOptions,
    name: String,
    prefix: String,
    pub(super) ack_wait: Duration,
    pub(super) max_wait: Duration,
    pub(super) reply_patience: Duration,
    pub(super) replicas: usize,
    pub(super) in_memory: bool,
}

impl Queue {
    /// A queue on the server at this address, or on any of several, separated by commas.
    pub fn at(address: impl Into<String>) -> Queue {
        Queue {
            address: address.into(),
            options: ConnectOptions::new(),
            name: "default".into(),
            prefix: "procession".into(),
            ack_wait: Duration::from_secs(30),
            max_wait: Duration::from_secs(24 * 3600),
            reply_patience: Duration::from_secs(60),
            replicas: 1,
            in_memory: false,
        }
    }

    /// How to connect: credentials, TLS, timeouts.
    pub fn options(mut self, options: ConnectOptions) -> Queue {
        self.options = options;
        self
    }

    /// The queue's name: letters, digits, `_` and `-`, at most 64; `default` by default. Each queue has
    /// streams and subjects of its own, so permissions can be given for one queue.
    pub fn name(mut self, name: impl Into<String>) -> Queue {
        self.name = name.into();
        self
    }

    /// What all subjects and streams begin with: letters, digits and `_`, at most 64; `procession` by
    /// default.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Queue {
        self.prefix = prefix.into();
        self
    }

    /// After how much time without a sign of life an agent counts as lost, with the tasks that it has; 30
    /// seconds by default, 100 ms at least. While a task runs its agent gives one every third of this.
    pub fn ack_wait(mut self, time: Duration) -> Queue {
        self.ack_wait = time.min(LONGEST);
        self
    }

    /// How long a task may wait in the queue, counted from when it is submitted, before it is given up as
    /// [`TaskError::TimedOut`](crate::TaskError::TimedOut); a day by default. If its caller is gone, agents
    /// drop it after this time, by their clock and the server's, and the server after one more hour.
    pub fn max_wait(mut self, time: Duration) -> Queue {
        self.max_wait = time.min(LONGEST);
        self
    }

    /// How long an agent keeps and repeats an answer that its caller does not confirm; a minute by default, 100 ms at
    /// least.
    pub fn reply_patience(mut self, time: Duration) -> Queue {
        self.reply_patience = time.min(LONGEST);
        self
    }

    /// On how many servers of a cluster each task is stored, 1 to 5; one by default. Only whoever first
    /// creates the queue has a say in it.
    pub fn replicas(mut self, replicas: usize) -> Queue {
        self.replicas = replicas;
        self
    }

    /// Whether the server keeps tasks in memory alone, so that they are lost when it ends; false by
    /// default. Only whoever first creates the queue has a say in it.
    pub fn in_memory(mut self, in_memory: bool) -> Queue {
        self.in_memory = in_memory;
        self
    }

    pub(super) fn check(&self) -> Result<(), PoolError> {
        let is_word = |text: &str, more: &[u8]| {
            let is_fine = |byte: &u8| byte.is_ascii_alphanumeric() || more.contains(byte);
            (1..=64).contains(&text.len()) && text.as_bytes().iter().all(is_fine)
        };
        let complaints = [
            (!is_word(&self.name, b"_-"), "the queue's name must be 1 to 64 letters, digits, `_` and `-`"),
            (!is_word(&self.prefix, b"_"), "the queue's prefix must be 1 to 64 letters, digits and `_`"),
            (self.ack_wait < Duration::from_millis(100), "the queue's `ack_wait` must be at least 100 ms"),
            (self.max_wait < Duration::from_millis(100), "the queue's `max_wait` must be at least 100 ms"),
            (
                self.reply_patience < Duration::from_millis(100),
                "the queue's `reply_patience` must be at least 100 ms",
            ),
            (!(1..=5).contains(&self.replicas), "the queue's `replicas` must be 1 to 5"),
        ];
        match complaints.iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, reason)) => Err(PoolError::InvalidSetting { reason: (*reason).into() }),
            None => self.addresses().map(drop),
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<ServerAddr>, PoolError> {
        let parse = |address: &str| {
            address.trim().parse().map_err(|error| PoolError::InvalidSetting {
                reason: format!("the queue's address `{address}` is none: {error}"),
            })
        };
        self.address.split(',').map(parse).collect()
    }

    /// How often whoever has a task gives a sign of life.
    pub(super) fn beat(&self) -> Duration {
        self.ack_wait / 3
    }

    pub(super) fn names(&self) -> Names {
        let identity = crate::wire::build_identity();
        Names {
            subject: format!("{}.{}", self.prefix, self.name),
            stream: format!("{}-{}", self.prefix, self.name),
            build: identity.iter().map(|byte| format!("{byte:02x}")).collect(),
            identity,
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may have a password in it.
        f.debug_struct("Queue")
            .field("name", &self.name)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
