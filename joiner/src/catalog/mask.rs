//! Which columns of a row matter at a place, and which have changed.

/// A set of slots. Those from 127 on share a bit: then a change to one counts as a change to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SlotMask(u128);

impl SlotMask {
    pub(crate) fn add(&mut self, slot: usize) {
        self.0 |= 1 << slot.min(127);
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const ALL: Self = Self(u128::MAX);
}
