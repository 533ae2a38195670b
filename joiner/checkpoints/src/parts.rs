//! A state made of checkpoints of one or several instances, for an instance that makes the same share of the entities, a part of one ("split"), or several together ("merge").
//!
//! Everything is done to copies in the folder in which a state is restored, before that becomes the state ([`crate::restore`]): a kill leaves the old state or the new one here too. What splitting and merging do, and why it is right, is argued in [`joiner::reshape`].
//!
//! # Which checkpoints, where nobody says
//! A joiner that begins with an empty state takes those whose least frontier is the greatest: the newest one of a share that covers its own, or the newest ones of shares that together are its own. So an instance that was there before goes on from its own
//! checkpoint, and one whose share is new from those of its predecessors.

use std::path::{Path, PathBuf};
use std::time::Instant;

use joiner::checkpoint::Facts;
use joiner::reshape::{self, Copied};
use schemas::{KeyRange, Lsn};

use crate::manifest::{Checkpoint, Manifest};
use crate::restore::{begin, put_back};
use crate::writer::folder_error;
use crate::{Checkpoints, Error, Restored, Which};

/// Copies of the others, beside the first one's database, while they are merged.
const OTHERS: &str = "others";

/// A checkpoint of one instance.
#[derive(Debug, Clone)]
pub struct Part {
    pub checkpoints: Checkpoints,
    pub manifest: Manifest,
}

impl Part {
    fn checkpoint(&self) -> Result<&Checkpoint, Error> {
        let none = || Error::NoSuch { store: self.checkpoints.store(), which: self.manifest.number.to_string() };
        self.manifest.checkpoint.as_ref().ok_or_else(none)
    }

    fn facts(&self) -> Option<&Facts> {
        self.manifest.checkpoint.as_ref().map(|checkpoint| &checkpoint.state)
    }
}

impl Checkpoints {
    /// The checkpoint that is meant, of the instance that makes this share.
    pub async fn part(&self, range: KeyRange, which: &Which) -> Result<Part, Error> {
        let checkpoints = self.of_range(range);
        let manifest = checkpoints.expected(which).await?;
        Ok(Part { checkpoints, manifest })
    }

    /// The newest checkpoints of which a state of a share can be made; none where there are none.
    pub async fn latest_for(&self, wanted: KeyRange) -> Result<Vec<Part>, Error> {
        let mut found = Vec::new();
        for range in self.ranges().await? {
            let checkpoints = self.of_range(range);
            if let Some(manifest) = checkpoints.find(&Which::Latest).await? {
                found.push(Part { checkpoints, manifest });
            }
        }
        let known: Vec<(KeyRange, Lsn)> =
            found.iter().filter_map(Part::facts).map(|facts| (facts.range, facts.frontier)).collect();
        let chosen = choose(&known, wanted);
        Ok(chosen.into_iter().map(|nth| found[nth].clone()).collect())
    }

    /// Makes a checkpoint the state in a directory, if a joiner with this configuration can go on from it: else nothing is touched.
    pub async fn restore_for(&self, manifest: &Manifest, config: &joiner::Config, state: &Path) -> Result<Restored, Error> {
        let part = Part { checkpoints: self.clone(), manifest: manifest.clone() };
        self.restore_parts(&[part], config, state).await
    }

    /// The same of several.
    pub async fn restore_parts(&self, parts: &[Part], config: &joiner::Config, state: &Path) -> Result<Restored, Error> {
        let checkpoints = parts.iter().map(Part::checkpoint).collect::<Result<Vec<_>, _>>()?;
        let Some(number) = parts.iter().map(|part| part.manifest.number).max() else {
            return Err(Error::NoSuch { store: self.store(), which: config.range.to_string() });
        };
        let named: Vec<String> =
            parts.iter().map(|part| format!("{}, checkpoint {}", part.checkpoints.name(), part.manifest.number)).collect();
        let facts: Vec<&Facts> = checkpoints.iter().map(|checkpoint| &checkpoint.state).collect();
        let place = PathBuf::from(named.join("; "));
        reshape::check(&place, &facts, config).map_err(|source| Error::Refused { number, source })?;
        let frontier = facts.iter().map(|facts| facts.frontier).min().unwrap_or_default();
        let bytes = checkpoints.iter().map(|checkpoint| checkpoint.bytes()).sum();
        let made_ms = parts.iter().map(|part| part.manifest.made_ms).min().unwrap_or_default();
        tracing::info!(from = %place.display(), %frontier, bytes, "restoring the joiner's state from checkpoints");
        let began = Instant::now();
        self.make(parts, config, state).await.map_err(|error| match error {
            Error::Joiner(source) => Error::Refused { number, source },
            error => error,
        })?;
        tracing::info!(number, seconds = began.elapsed().as_secs_f64(), "the joiner's state is restored");
        Ok(Restored { number, frontier, made_ms, bytes })
    }

    async fn make(&self, parts: &[Part], config: &joiner::Config, state: &Path) -> Result<(), Error> {
        let restoring = begin(state)?;
        let mut copies = Vec::with_capacity(parts.len());
        for (nth, part) in parts.iter().enumerate() {
            let folder = restoring.join(OTHERS).join(nth.to_string());
            let facts = part.checkpoints.fetch_all(&part.manifest, &folder).await?;
            copies.push(Copied { folder, facts });
        }
        let config = config.clone();
        let made = self.beside(move || reshape::reshape(copies, &config)).await;
        let Copied { folder, facts } = made.map_err(|error| Error::Ended { reason: error.to_string() })??;
        let database = restoring.join(joiner::checkpoint::DATABASE);
        std::fs::rename(folder.join(joiner::checkpoint::DATABASE), &database)
            .map_err(folder_error(&database, "it cannot be moved there"))?;
        let others = restoring.join(OTHERS);
        std::fs::remove_dir_all(&others).map_err(folder_error(&others, "it cannot be removed"))?;
        put_back(&restoring, &facts, state)
    }
}

/// Which of these make the wanted range, with the greatest least frontier.
fn choose(known: &[(KeyRange, Lsn)], wanted: KeyRange) -> Vec<usize> {
    let of = |nth: &usize| known[*nth].1;
    let covering = (0..known.len()).filter(|&nth| known[nth].0.covers(&wanted)).max_by_key(of);
    let mut tiles = Vec::new();
    let mut from = Some(wanted.first());
    while let Some(first) = from {
        let fits =
            |nth: &usize| known[*nth].0.first() == first && known[*nth].0.last() <= wanted.last() && known[*nth].0 != wanted;
        let Some(next) = (0..known.len()).filter(fits).max_by_key(of) else { break };
        tiles.push(next);
        from = known[next].0.last().checked_add(1).filter(|first| *first <= wanted.last());
    }
    let least = tiles.iter().map(of).min().filter(|_| from.is_none() && !tiles.is_empty());
    match covering {
        Some(nth) if least.is_none_or(|least| least <= known[nth].1) => vec![nth],
        _ if least.is_some() => tiles,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_furthest_ahead_is_chosen() {
        let lsn = |n| Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n]);
        let known = |all: &[(&str, u8)]| -> Vec<(KeyRange, Lsn)> {
            all.iter().map(|(range, at)| (range.parse().unwrap(), lsn(*at))).collect()
        };
        let chosen = |all: &[(&str, u8)], wanted: &str| choose(&known(all), wanted.parse().unwrap());
        assert!(chosen(&[], "0/2").is_empty());
        assert_eq!(chosen(&[("0/1", 3), ("0/2", 5), ("1/2", 4)], "0/1"), [1, 2]);
        assert_eq!(chosen(&[("0/1", 4), ("0/2", 5), ("1/2", 4)], "0/1"), [0]);
        assert_eq!(chosen(&[("0/1", 3), ("0/2", 5), ("1/2", 4)], "1/4"), [1]);
        assert_eq!(chosen(&[("0/1", 9), ("0/2", 5)], "0/2"), [0]);
        assert_eq!(chosen(&[("0/4", 1), ("1/4", 2), ("3/4", 3)], "0/2"), [0, 1]);
        assert!(chosen(&[("0/4", 1), ("3/4", 3)], "0/2").is_empty());
        assert!(chosen(&[("0/4", 1), ("2/4", 1), ("3/4", 3)], "0/1").is_empty());
    }
}
