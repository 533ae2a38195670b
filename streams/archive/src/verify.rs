//! The whole archive, looked through: every object against its checksum, every progress record against the events, every segment against the one before it.

use schemas::Lsn;
use schemas::progress::{ShardId, ShardPositions, StreamName};
use serde::Serialize;
use streams::Positions;

use crate::account::{self, Account, Missing, Told};
use crate::error::Error;
use crate::facts::{self, Facts};
use crate::gap::Gap;
use crate::line::Kept;
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
    /// Changes that no progress record speaks of, or that the streams had forgotten before they were archived.
    pub gaps: Vec<Gap>,
    /// The archive has what was committed after this LSN; zero: everything since the first snapshot.
    pub begins: Lsn,
}

impl Verification {
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.missing.is_empty() && self.gaps.is_empty()
    }
}

/// Reads everything. Damage is found and reported, not an error.
pub async fn verify(archive: &Archive) -> Result<Verification, Error> {
    let mut found = Verification::default();
    let Some((least, last)) = archive.numbers().await? else { return Ok(found) };
    match archive.beginning().await {
        Ok(beginning) => found.begins = beginning.map_or(Lsn::ZERO, |beginning| beginning.lsn),
        Err(error) => found.note(error)?,
    }
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

/// Events of one shard that follow one another in an object.
struct Events {
    stream: StreamName,
    shard: ShardId,
    facts: Vec<Facts>,
}

/// Looks through one segment. `stood`: the positions that the records before it named; none where what is before it is gone.
async fn segment(
    archive: &Archive,
    manifest: &Manifest,
    stood: Option<ShardPositions>,
    account: &mut Account,
    found: &mut Verification,
) -> Result<(), Error> {
    let (mut runs, mut unknown): (Vec<Events>, u64) = (Vec::new(), 0);
    let mut whole = true;
    // What it was begun without is told by where it begins.
    let gaps = || manifest.gaps.iter().filter(|gap| !gap.is_beginning());
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
                let kept: Vec<Kept> = kept.into_iter().flatten().collect();
                found.events += kept.len() as u64;
                let stream = object.stream.clone().unwrap_or_else(|| StreamName(String::new()));
                let reads = facts::read(&archive.schemas, kept.iter().map(|kept| &kept.data));
                for (kept, read) in kept.into_iter().zip(reads) {
                    unknown += u64::from(read.facts.is_none());
                    let Some(facts) = read.facts else { continue };
                    match runs.last_mut().filter(|run| run.stream == stream && run.shard == kept.shard) {
                        Some(run) => run.facts.push(facts),
                        None => runs.push(Events { stream: stream.clone(), shard: kept.shard, facts: vec![facts] }),
                    }
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
        found.gaps.extend(gaps().cloned());
        return Ok(());
    };
    account.unknown(unknown);
    for Events { stream, shard, facts } in &runs {
        account.events((stream, shard), facts.iter());
    }
    found.gaps.extend(gaps().cloned());
    for (_, record) in ticks {
        let is_new = account.is_new();
        let Told { missing: told, unspoken } = account.record(&record, &account::between(&mut stood, &record));
        if let Some((from_lsn, to)) = unspoken.filter(|_| !is_new) {
            // It was not told by the version that archived it.
            if !manifest.gaps.iter().any(|gap| gap.to_lsn == Some(to)) {
                found.gaps.push(Gap { table: None, from_lsn, to_lsn: Some(to), rows: false, holes: Vec::new() });
            }
        }
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
