//! The whole archive, looked through: every object against its checksum, every progress record against the events, every segment against the one before it.

use bytes::Bytes;
use schemas::progress::ShardPositions;
use serde::Serialize;
use streams::Positions;

use crate::account::{self, Account, Missing};
use crate::error::Error;
use crate::facts::{self, Facts};
use crate::manifest::{Kind, Manifest};
use crate::store::Archive;

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verification {
    pub segments: u64,
    pub objects: u64,
    pub events: u64,
    /// Objects that are gone or were changed, and segments that do not follow one another: as errors say it.
    pub damage: Vec<String>,
    /// Events that progress records promise and that are not there. Where objects are damaged, those that were in them are among the damage instead.
    pub missing: Vec<Missing>,
}

impl Verification {
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.missing.is_empty()
    }
}

/// Reads everything. Damage is found and reported, not an error.
pub async fn verify(archive: &Archive) -> Result<Verification, Error> {
    let mut found = Verification::default();
    let Some((least, last)) = archive.numbers().await? else { return Ok(found) };
    let mut account = match archive.manifest(least).await? {
        // Before the first segment that is still there, nothing can be counted again.
        Some(first) if least > 1 => first.account.clone(),
        _ => Account::default(),
    };
    let mut before: Option<Manifest> = None;
    for number in least..=last {
        let manifest = match archive.expected(number).await {
            Ok(manifest) => manifest,
            Err(error) => {
                found.note(error)?;
                continue;
            }
        };
        found.segments += 1;
        if let Some(before) = &before {
            found.follows(before, &manifest);
        }
        let counted = number > least || least == 1;
        let stood = before.as_ref().map(|before| before.complete().clone()).unwrap_or_default();
        segment(archive, &manifest, counted.then_some(stood), &mut account, &mut found).await?;
        before = Some((*manifest).clone());
    }
    Ok(found)
}

/// Looks through one segment. `stood`: the positions that the records before it named; none where what is before it is gone.
async fn segment(
    archive: &Archive,
    manifest: &Manifest,
    stood: Option<ShardPositions>,
    account: &mut Account,
    found: &mut Verification,
) -> Result<(), Error> {
    let (mut facts, mut unknown): (Vec<Facts>, u64) = (Vec::new(), 0);
    let mut whole = true;
    for object in &manifest.objects {
        found.objects += 1;
        if object.kind == Kind::Progress {
            continue;
        }
        let loaded = if object.kind == Kind::Events {
            archive.load(manifest, &[object]).await
        } else {
            archive.check(object).await.map(|()| Vec::new())
        };
        match loaded {
            Ok(kept) => {
                let data: Vec<Bytes> = kept.into_iter().flatten().map(|kept| kept.data).collect();
                found.events += data.len() as u64;
                for read in facts::read(&archive.schemas, data.iter()) {
                    unknown += u64::from(read.facts.is_none());
                    facts.extend(read.facts);
                }
            }
            Err(error) => {
                whole = false;
                found.note(error)?;
            }
        }
    }
    let ticks = match archive.ticks(manifest).await {
        Ok(ticks) => ticks,
        Err(error) => {
            whole = false;
            found.note(error)?;
            Vec::new()
        }
    };
    let Some(mut stood) = stood.filter(|_| whole) else {
        // What is damaged has been told; from here on the manifest's own account holds.
        *account = manifest.account.clone();
        found.missing.extend(manifest.missing.iter().cloned());
        return Ok(());
    };
    account.events(facts.iter(), unknown);
    for (_, record) in ticks {
        let told = account.record(&record, &account::between(&mut stood, &record));
        // As it was told when it was archived, where something before it is damaged.
        found.missing.extend(told.into_iter().map(|told| {
            let same = |known: &&Missing| known.table == told.table && known.to_lsn == told.to_lsn;
            manifest.missing.iter().find(same).cloned().unwrap_or(told)
        }));
    }
    account.end(manifest.ticks.is_none());
    Ok(())
}

impl Verification {
    /// Takes damage down; any other failure is one.
    fn note(&mut self, error: Error) -> Result<(), Error> {
        match error {
            error @ (Error::Damaged { .. } | Error::Lost { .. } | Error::Hole { .. } | Error::ProgressRecord { .. }) => {
                self.damage.push(error.to_string());
                Ok(())
            }
            error => Err(error),
        }
    }

    /// No position may go back, and none may vanish.
    fn follows(&mut self, before: &Manifest, after: &Manifest) {
        let none = Positions::new();
        for (stream, ends) in &before.positions {
            let later = after.positions.get(stream).unwrap_or(&none);
            for (shard, end) in ends {
                if later.get(shard).is_none_or(|later| later < end) {
                    let (a, b) = (before.number, after.number);
                    self.damage.push(format!(
                        "segment {b} ends before segment {a} does, in stream {stream}, shard {shard}: two archives were mixed up"
                    ));
                }
            }
        }
    }
}
