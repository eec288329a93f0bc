//! How much memory the stacks of each process may take.
//!
//! Invariant: all ledgers together keep no more than was set aside, and of processes that share it none takes so much that
//! nothing is left for the next one.

use crate::ledger::Ledger;

/// How it is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackMemory {
    /// So many bytes for each process: they are known before.
    Each(usize),
    /// So many bytes for all processes, which come and go: each may take as much as it leaves to all others.
    Shared(usize),
}

/// What is taken of it.
pub(super) struct StackBudget {
    memory: StackMemory,
    used: usize,
}

impl StackBudget {
    pub(super) fn new(memory: StackMemory) -> Self {
        Self { memory, used: 0 }
    }

    /// Does something with a ledger that may change what its stacks take.
    pub(super) fn account(&mut self, ledger: &mut Ledger, work: impl FnOnce(&mut Ledger)) {
        let before = ledger.stack_memory();
        ledger.set_stack_limit(match self.memory {
            StackMemory::Each(bytes) => bytes,
            StackMemory::Shared(bytes) => bytes.saturating_sub(self.used),
        });
        work(ledger);
        self.used = self.used.saturating_sub(before) + ledger.stack_memory();
    }

    /// A ledger is given up.
    pub(super) fn release(&mut self, ledger: &Ledger) {
        self.used = self.used.saturating_sub(ledger.stack_memory());
    }
}

#[cfg(test)]
mod tests {
    use leaktrace_common::{
        event::{Header, KIND_STACK, Stack},
        reason::WalkEnd,
    };

    use super::*;
    use crate::event;

    /// Sends a ledger stacks with a frame each.
    fn fill(budget: &mut StackBudget, ledger: &mut Ledger, stacks: u64) {
        for id in 1..=stacks {
            let mut record = Vec::new();
            record.extend([KIND_STACK, 0, 0, 0]);
            record.extend(7u32.to_ne_bytes());
            record.extend(id.to_ne_bytes());
            record.extend(1u32.to_ne_bytes());
            record.extend((WalkEnd::Bottom as u32).to_ne_bytes());
            record.extend(id.to_ne_bytes());
            assert_eq!(record.len(), Stack::PREFIX + 8);
            assert_eq!(size_of::<Header>(), 8);
            let (_, event) = event::decode(&record).expect("a record");
            budget.account(ledger, |ledger| ledger.apply(event, 0));
        }
    }

    #[test]
    fn who_comes_later_finds_room_too() {
        let mut budget = StackBudget::new(StackMemory::Shared(1 << 20));
        let mut ledgers: Vec<Ledger> = (0..4).map(|_| Ledger::new()).collect();
        for ledger in &mut ledgers {
            fill(&mut budget, ledger, 10_000);
        }
        let taken: Vec<usize> = ledgers.iter().map(Ledger::stack_memory).collect();
        for (bytes, share) in taken.iter().zip([2, 4, 8, 16]) {
            assert!(bytes.abs_diff((1 << 20) / share) < 1000, "{taken:?}");
        }
        assert!(taken.iter().sum::<usize>() <= 1 << 20, "{taken:?}");
        budget.release(&ledgers[0]);
        let mut next = Ledger::new();
        fill(&mut budget, &mut next, 10_000);
        assert!(next.stack_memory() > 250_000, "{}", next.stack_memory());
    }

    #[test]
    fn each_has_its_own() {
        let mut budget = StackBudget::new(StackMemory::Each(100_000));
        for _ in 0..2 {
            let mut ledger = Ledger::new();
            fill(&mut budget, &mut ledger, 10_000);
            assert!((99_000..=100_000).contains(&ledger.stack_memory()));
        }
    }
}
