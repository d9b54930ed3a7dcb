//! How far a task has got, in its own words.

use serde::{Deserialize, Serialize};

/// How far a task has got, by its own account.
///
/// A task says so with [`TaskContext::report`](crate::worker::TaskContext::report), and who has its
/// handle sees it in a [`ProgressWatch`](crate::ProgressWatch). What the numbers count (items, bytes,
/// steps) is between the two.
///
/// ```
/// use procession::Progress;
///
/// let progress = Progress::new(25).with_total(100).with_message("reading");
/// assert_eq!((progress.done(), progress.total(), progress.message()), (25, Some(100), "reading"));
/// assert_eq!(progress.fraction(), Some(0.25));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    done: u64,
    total: Option<u64>,
    message: String,
}

impl Progress {
    /// The longest message, in bytes: with it a report still goes through a pipe in one piece.
    pub(crate) const MAX_MESSAGE: usize = 1024;

    /// So much is done, of who knows how much.
    pub fn new(done: u64) -> Progress {
        Progress { done, ..Progress::default() }
    }

    /// The same, of so much in all.
    pub fn with_total(self, total: u64) -> Progress {
        Progress { total: Some(total), ..self }
    }

    /// The same, with a text for people; cut to 1 KiB.
    pub fn with_message(self, message: impl Into<String>) -> Progress {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(Progress::MAX_MESSAGE));
        Progress { message, ..self }
    }

    /// How much is done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// How much there is to do, if that is known.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// What it says for people; empty if nothing.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The part that is done, from 0 to 1, if the total is known. Of nothing, all is done.
    pub fn fraction(&self) -> Option<f64> {
        let total = self.total?;
        Some(if total == 0 { 1.0 } else { (self.done as f64 / total as f64).min(1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let progress = Progress::new(1).with_message("ä".repeat(1000));
        assert_eq!(progress.message(), "ä".repeat(512));
        let odd = Progress::new(1).with_message(format!("a{}", "ä".repeat(1000)));
        assert_eq!(odd.message().len(), 1023);
    }

    #[test]
    fn a_fraction_is_never_more_than_all() {
        assert_eq!(Progress::new(7).fraction(), None);
        assert_eq!(Progress::new(7).with_total(0).fraction(), Some(1.0));
        assert_eq!(Progress::new(7).with_total(5).fraction(), Some(1.0));
    }
}
