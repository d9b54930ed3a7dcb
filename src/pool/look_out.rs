//! Looking out for what a worker says next.

use super::scheduler::Nanos;
use crate::sys::monotonic_now;

/// Looking out for the next reply for a while, which is cheaper than to sleep and be woken when
/// that comes soon.
#[derive(Default)]
pub(super) struct LookOut {
    /// For how long; 0 for not at all.
    limit: Nanos,
    /// Since when there has been nothing.
    quiet_since: Option<Nanos>,
    /// The last reply came within the limit, so the next one may.
    is_worth_it: bool,
}

impl LookOut {
    pub(super) fn new(limit: Nanos) -> LookOut {
        LookOut { limit, ..LookOut::default() }
    }

    /// Whether to look again rather than sleep, after a look that found any or none.
    pub(super) fn goes_on(&mut self, any: bool) -> bool {
        if any {
            if let Some(since) = self.quiet_since.take() {
                self.is_worth_it = self.limit > 0 && monotonic_now() - since <= self.limit;
            }
            return true;
        }
        let since = *self.quiet_since.get_or_insert_with(monotonic_now);
        self.is_worth_it && monotonic_now() - since <= self.limit
    }
}
