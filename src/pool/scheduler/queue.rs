//! Tasks that wait, by priority.

use crate::task::Priority;
use std::collections::VecDeque;

/// A task in the queue. Its number tells it from a later task under the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: u32,
    pub(super) id: u64,
}

/// A queue for each priority.
///
/// A task that is cancelled leaves its entry behind, to be passed over later: taking it out of
/// the middle would cost time in proportion to the queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: [VecDeque<Entry>; 3],
    stale: usize,
}

impl Queue {
    /// How many tasks wait.
    pub(super) fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum::<usize>() - self.stale
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push_back(&mut self, priority: Priority, entry: Entry) {
        self.lane(priority).push_back(entry);
    }

    /// Puts back a task that was ahead of all that wait now.
    pub(super) fn push_front(&mut self, priority: Priority, entry: Entry) {
        self.lane(priority).push_front(entry);
    }

    /// Takes the first entry that is still wanted.
    pub(super) fn pop(&mut self, is_wanted: impl Fn(Entry) -> bool) -> Option<Entry> {
        for lane in self.lanes.iter_mut().rev() {
            while let Some(entry) = lane.pop_front() {
                if is_wanted(entry) {
                    return Some(entry);
                }
                self.stale -= 1;
            }
        }
        None
    }

    /// A task that waits is not wanted any more.
    pub(super) fn forget_one(&mut self, is_wanted: impl Fn(Entry) -> bool) {
        self.stale += 1;
        // So that the memory stays in proportion to the tasks, at a constant cost for each.
        if self.stale > 64 && self.stale > self.len() {
            for lane in &mut self.lanes {
                lane.retain(|entry| is_wanted(*entry));
            }
            self.stale = 0;
        }
    }

    fn lane(&mut self, priority: Priority) -> &mut VecDeque<Entry> {
        &mut self.lanes[priority as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64) -> Entry {
        Entry { key: 0, id }
    }

    #[test]
    fn higher_priorities_come_first_and_equals_in_order() {
        let mut queue = Queue::default();
        for (id, priority) in
            [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High), (4, Priority::Normal)]
        {
            queue.push_back(priority, entry(id));
        }
        queue.push_front(Priority::Normal, entry(5));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(|_| true)).map(|entry| entry.id).collect();
        assert_eq!(order, [3, 5, 2, 4, 1]);
    }

    #[test]
    fn what_was_forgotten_is_passed_over_and_takes_no_room_for_long() {
        let mut queue = Queue::default();
        for id in 0..1000 {
            queue.push_back(Priority::Normal, entry(id));
            queue.forget_one(|_| false);
        }
        assert!(queue.is_empty());
        assert!(queue.lanes[1].len() <= 65);
        queue.push_back(Priority::Normal, entry(2000));
        assert_eq!(queue.pop(|entry| entry.id == 2000), Some(entry(2000)));
        assert_eq!(queue.pop(|_| true), None);
    }
}
