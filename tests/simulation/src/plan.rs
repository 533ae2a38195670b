//! How a run is set up: everything that is decided once, from the seed.

use std::num::{NonZeroU32, NonZeroU64};

use streams::Layout;

use crate::dice::Dice;

const SLOWEST_MS: u64 = 3000;

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
    /// Whether minutes pass at times in which nothing is committed.
    pub(crate) rests: bool,
    /// Whether the joiner's disk may be lost.
    pub(crate) loses: bool,
    pub(crate) checkpoints: CheckpointPlan,
    /// Joiners that make a share of the entities each.
    pub(crate) instances: u32,
    /// Whether the entities are divided anew at times, among more joiners or fewer.
    pub(crate) reshapes: bool,
    /// Whether each share has a second joiner, which stands by.
    pub(crate) stands_by: bool,
}

pub(crate) struct CheckpointPlan {
    pub(crate) every_seconds: NonZeroU64,
    pub(crate) keep: NonZeroU32,
    /// Whether the streams may forget what the newest one has passed.
    pub(crate) trims: bool,
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
    /// Small: some steps are left to grow, others divided.
    pub(crate) step_changes: u64,
}

impl Plan {
    /// How many joiners there are, and how large their steps, is chosen by `joiners`, apart from everything else.
    pub(crate) fn of(dice: &mut Dice, joiners: &mut Dice) -> Self {
        let pick = |dice: &mut Dice, from: &[u64]| dice.pick(from).copied().unwrap_or_default();
        let count = |number: u64| usize::try_from(number).unwrap_or_default();
        let reshapes = joiners.chance(200);
        let instances = match joiners.chance(400) {
            true if reshapes => 2,
            true => u32::try_from(joiners.within(2, 3)).unwrap_or(2),
            false => 1,
        };
        let stands_by = joiners.chance(350);
        let step_changes = pick(joiners, &[4, 40, 200_000]);
        let pace_ms = pick(dice, &[200, 1000, SLOWEST_MS]);
        // It takes seconds until another takes over: something is to happen between two of these times.
        let pace_ms = if stands_by { pace_ms.max(1000) } else { pace_ms };
        Self {
            steps: dice.within(60, 160),
            pace_ms,
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
                step_changes,
            },
            purges: dice.chance(300),
            redefines: dice.chance(500),
            rests: pace_ms == SLOWEST_MS && dice.chance(700),
            loses: dice.chance(600),
            checkpoints: CheckpointPlan {
                // Files are never merged here: there are not to be too many.
                every_seconds: NonZeroU64::new(pace_ms * pick(dice, &[5, 20]) / 1000).unwrap_or(NonZeroU64::MIN),
                keep: NonZeroU32::new(u32::try_from(dice.within(1, 3)).unwrap_or(1)).unwrap_or(NonZeroU32::MIN),
                // One that stands by reads from where its own state is, however old that has become.
                trims: dice.chance(600) && !stands_by,
            },
            instances,
            reshapes,
            stands_by,
        }
    }
}
