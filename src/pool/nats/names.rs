//! What everything of a queue is called: subjects, streams, consumers.

use crate::task::Priority;

/// In the order in which agents take from them.
pub(super) const LEVELS: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

/// What everything of a queue and a build is called.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) subject: String,
    /// The stream, and the bucket of objects.
    pub(super) stream: String,
    pub(super) build: String,
    /// The build as it is compared.
    pub(super) identity: Vec<u8>,
}

impl Names {
    /// Where tasks of this build are published.
    pub(super) fn task(&self, level: Priority) -> String {
        format!("{}.task.{}.{}", self.subject, self.build, word(level))
    }

    /// Where tasks of any build are published.
    pub(super) fn all_tasks(&self) -> String {
        format!("{}.task.>", self.subject)
    }

    /// Where a caller or an agent listens.
    pub(super) fn to(&self, party: &str) -> String {
        format!("{}.to.{party}", self.subject)
    }

    /// Whether this is where some party of this queue listens.
    pub(super) fn is_party(&self, subject: &str) -> bool {
        let token = subject.strip_prefix(&self.subject).and_then(|rest| rest.strip_prefix(".to."));
        token.is_some_and(is_name)
    }

    /// Where agents of this build tell of themselves.
    pub(super) fn agents(&self) -> String {
        format!("{}.agents.{}", self.subject, self.build)
    }

    /// Where agents of this build are asked to.
    pub(super) fn roll_call(&self) -> String {
        format!("{}.call.{}", self.subject, self.build)
    }

    pub(super) fn consumer(&self, level: Priority) -> String {
        format!("{}-{}", self.build, word(level))
    }

    /// Where the server tells of tasks whose agents were lost.
    pub(super) fn advisories(&self) -> String {
        format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.*", self.stream)
    }

    /// Whether this consumer is of this build.
    pub(super) fn is_ours(&self, consumer: &str) -> bool {
        LEVELS.iter().any(|level| self.consumer(*level) == consumer)
    }
}

/// Whether a caller or an agent may be called so.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn word(level: Priority) -> &'static str {
    match level {
        Priority::High => "high",
        Priority::Normal => "normal",
        Priority::Low => "low",
    }
}

/// The level that the last word of a task's subject names.
pub(super) fn level_of(last: &str) -> Priority {
    LEVELS.into_iter().find(|level| word(*level) == last).unwrap_or_default()
}
