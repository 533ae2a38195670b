//! How a run is set up: everything that is decided once, from the seed.

use streams::Layout;

use crate::dice::Dice;

pub(crate) struct Plan {
    /// Things that happen before the calm.
    pub(crate) steps: u64,
    /// The longest between two of them.
    pub(crate) pace_ms: u64,
    /// How likely a step kills or disturbs something, in a thousand.
    pub(crate) trouble: u64,
    pub(crate) layout: Layout,
    pub(crate) shards: u32,
    /// Rows that are there before anything is captured.
    pub(crate) before: u64,
    pub(crate) importer: ImporterPlan,
    pub(crate) joiner: JoinerPlan,
    /// Cleanup removes changes that may not have been read.
    pub(crate) purges: bool,
    /// Whether the entities' definitions change at times when the joiner is started anew.
    pub(crate) redefines: bool,
    /// Whether the joiner's disk may be lost.
    pub(crate) restores: bool,
}

pub(crate) struct ImporterPlan {
    pub(crate) chunk_rows: usize,
    pub(crate) split_rows: u64,
    pub(crate) page_rows: usize,
    pub(crate) tick_transactions: usize,
    pub(crate) connections: usize,
}

pub(crate) struct JoinerPlan {
    /// Small: changes that wait are kept on the disk.
    pub(crate) buffer_bytes: usize,
    /// Small: a step is several writes.
    pub(crate) chunk_entities: usize,
    pub(crate) outbox_entries: u64,
}

impl Plan {
    pub(crate) fn of(dice: &mut Dice) -> Self {
        // What is said of a state that goes back in time, and of one that serves other definitions, is said of each by itself.
        let fate = dice.below(1000);
        let pick = |dice: &mut Dice, from: &[u64]| dice.pick(from).copied().unwrap_or_default();
        let count = |number: u64| usize::try_from(number).unwrap_or_default();
        Self {
            steps: dice.within(60, 160),
            pace_ms: pick(dice, &[200, 1000, 3000]),
            trouble: pick(dice, &[20, 100, 250]),
            layout: if dice.chance(300) { Layout::Shared } else { Layout::Table },
            shards: u32::try_from(dice.within(1, 3)).unwrap_or(1),
            before: dice.within(0, 60),
            importer: ImporterPlan {
                chunk_rows: count(pick(dice, &[1, 3, 10, 20_000])),
                split_rows: pick(dice, &[2, 50_000]),
                page_rows: count(pick(dice, &[2, 7, 20_000])),
                tick_transactions: count(pick(dice, &[1, 5, 10_000])),
                connections: count(dice.within(1, 4)),
            },
            joiner: JoinerPlan {
                buffer_bytes: count(pick(dice, &[2_000, 256 << 20])),
                chunk_entities: count(pick(dice, &[1, 3, 20_000])),
                outbox_entries: pick(dice, &[20, 10_000_000]),
            },
            purges: dice.chance(300),
            redefines: fate < 400,
            restores: fate >= 400,
        }
    }
}
