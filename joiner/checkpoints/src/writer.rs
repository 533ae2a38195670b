//! Makes checkpoints: uploads what the storage does not have, commits by an entry of the chain, removes what is not kept.
//!
//! # Why an old process does no harm
//! An entry of the chain is created where there is none, never replaced. A process begins by taking the next number for itself; one that made checkpoints before finds its own next number taken, and makes no more
//! ([`Error::Superseded`]), unless it takes over again in its turn. So the number k + 1 is used only by whoever wrote the entry k, and parts of files are written under the number of the checkpoint that they are uploaded for:
//! - *An old process cannot overwrite.* It writes parts under its own next number alone, which nobody else uses. A new attempt at the same number has a folder of its own, so that a request of the
//!   attempt before, which arrives late, hits nothing.
//! - *An old process cannot remove what a newer one counts on.* It removes parts under numbers up to its own last one, and only such as no checkpoint names that it keeps; it always keeps the newest one, say L. Whoever takes over builds on L
//!   alone (files of other checkpoints are uploaded again), and uploads under greater numbers. So what any later checkpoint names is either in L, or out of the old process's reach. Its view of what is newest can be too old
//!   only where it has written nothing since it looked, because what it writes is where it would be refused.
//! - *An entry that was removed can be taken again* by a process that slept through all of that. Such a process looks, after it has written its entry and before it removes anything, whether a greater number is
//!   there. (The greatest entry is never removed, so that numbers only ever grow.) What it wrote is an old checkpoint like others, and is removed like others.

use std::collections::{BTreeMap, HashSet};
use std::fs::File as LocalFile;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use joiner::checkpoint::Facts;
use objects::{Creation, ObjectPath};
use xxhash_rust::xxh3::Xxh3;

use crate::manifest::{self, Checkpoint, File, Manifest, PART_BYTES};
use crate::{Checkpoints, Error};

/// Parts that are uploaded side by side; each is in memory meanwhile.
const CONCURRENCY: usize = 4;

/// The one process that makes checkpoints.
#[derive(Debug)]
pub struct Writer {
    checkpoints: Checkpoints,
    name: String,
    epoch: u64,
    /// The last number that is this writer's.
    number: u64,
    attempt: u32,
    /// The newest checkpoint, whose files need not be uploaded again.
    base: Option<Manifest>,
    /// Checksums by name and size of files that never change, as long as the database stays open: it does not use a number twice.
    known: BTreeMap<(String, u64), String>,
}

/// A checkpoint that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub number: u64,
    pub state: Facts,
    pub bytes: u64,
    /// What of it had to be uploaded.
    pub uploaded_bytes: u64,
    pub made_ms: i64,
}

/// How many checkpoints are kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub keep: u32,
    pub keep_ms: i64,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub checkpoints: usize,
    pub objects: usize,
}

impl Checkpoints {
    /// Makes this process the one that makes checkpoints.
    pub async fn take_over(&self, now_ms: i64) -> Result<Writer, Error> {
        self.claim().await?;
        let name = uuid::Uuid::new_v4().to_string();
        loop {
            let next = self.numbers().await?.last().map_or(1, |last| last + 1);
            let entry = Manifest { number: next, epoch: next, writer: name.clone(), made_ms: now_ms, checkpoint: None };
            if self.create_entry(&entry).await?.is_some() {
                tracing::info!(number = next, "another process takes the checkpoints over at the same time");
                continue;
            }
            // Only now: nobody who came before can add to what is below.
            let mut below = self.numbers().await?;
            below.retain(|number| *number < next);
            let base = self.newest_of(&below).await?;
            let (checkpoints, known) = (self.clone(), BTreeMap::new());
            return Ok(Writer { checkpoints, name, epoch: next, number: next, attempt: 0, base, known });
        }
    }

    /// Creates an entry; answers the one that has its place already, if that is another one.
    async fn create_entry(&self, entry: &Manifest) -> Result<Option<Manifest>, Error> {
        let path = manifest::entry_path(entry.number);
        if self.objects.create(&path, self.json(&path, entry)?).await? == Creation::Created {
            return Ok(None);
        }
        let found = self.entry(entry.number).await?.ok_or_else(|| self.unsettled(&path))?;
        Ok((found != *entry).then_some(found))
    }
}

impl Writer {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When the newest checkpoint was made; none where there is none.
    pub fn newest_ms(&self) -> Option<i64> {
        self.base.as_ref().map(|base| base.made_ms)
    }

    /// Makes a checkpoint of a folder that does not change meanwhile: the same database's each time, for as long as that stays open. It exists when this returns, and not before; after an error it may be tried again, with
    /// another folder too.
    pub async fn save(&mut self, folder: &Path, state: Facts, savepoint: Option<&str>, now_ms: i64) -> Result<Made, Error> {
        if let Some(name) = savepoint {
            self.checkpoints.check_name(name)?;
            if self.checkpoints.has_savepoint(name).await? {
                return Err(Error::Exists { name: name.to_owned() });
            }
        }
        let number = self.number + 1;
        self.attempt += 1;
        let (files, new) = self.take_stock(folder, number).await?;
        let uploaded_bytes = new.iter().map(|file| file.bytes).sum();
        self.upload(folder, &new).await?;
        let checkpoint = Checkpoint { state, files };
        let number = self.commit(&checkpoint, now_ms).await?;
        self.still_newest().await?;
        if let Some(name) = savepoint {
            self.checkpoints.name_it(name, number).await?;
        }
        Ok(Made { number, bytes: checkpoint.bytes(), state: checkpoint.state, uploaded_bytes, made_ms: now_ms })
    }

    /// Makes the checkpoint exist, under the next number. An attempt whose answer was lost may have taken that: then it is the checkpoint before this one.
    async fn commit(&mut self, checkpoint: &Checkpoint, now_ms: i64) -> Result<u64, Error> {
        loop {
            let (number, epoch, writer) = (self.number + 1, self.epoch, self.name.clone());
            let entry = Manifest { number, epoch, writer, made_ms: now_ms, checkpoint: Some(checkpoint.clone()) };
            let found = self.checkpoints.create_entry(&entry).await?;
            let done = found.is_none();
            let ours = found.unwrap_or(entry);
            if ours.writer != self.name {
                return Err(self.superseded(number));
            }
            (self.number, self.attempt, self.base) = (number, 0, Some(ours));
            if done {
                return Ok(number);
            }
        }
    }

    fn superseded(&self, number: u64) -> Error {
        Error::Superseded { store: self.checkpoints.store(), number }
    }

    /// The numbers of the chain, of which this writer's has to be the last.
    async fn still_newest(&self) -> Result<Vec<u64>, Error> {
        let numbers = self.checkpoints.numbers().await?;
        match numbers.last() {
            Some(last) if *last > self.number => Err(self.superseded(*last)),
            _ => Ok(numbers),
        }
    }

    /// The files of a folder, and those of them that have to be uploaded.
    async fn take_stock(&mut self, folder: &Path, number: u64) -> Result<(Vec<File>, Vec<File>), Error> {
        let found = list_folder(folder)?;
        let known = std::mem::take(&mut self.known);
        let (mut files, mut new) = (Vec::new(), Vec::new());
        for (name, bytes) in found {
            let cached = known.get(&(name.clone(), bytes)).filter(|_| is_immutable(&name)).cloned();
            let checksum = match cached {
                Some(checksum) => checksum,
                None => checksum_of(&self.checkpoints, folder.join(&name)).await?,
            };
            if is_immutable(&name) {
                self.known.insert((name.clone(), bytes), checksum.clone());
            }
            let before = self.base.as_ref().and_then(|base| base.checkpoint.as_ref()).map_or(&[][..], |base| &base.files);
            let same = before.iter().find(|file| file.name == name && file.bytes == bytes && file.checksum == checksum);
            let file = same.cloned().unwrap_or_else(|| {
                let file = File { object: manifest::file_object(number, self.attempt, &name), name, bytes, checksum };
                new.push(file.clone());
                file
            });
            files.push(file);
        }
        Ok((files, new))
    }

    async fn upload(&self, folder: &Path, files: &[File]) -> Result<(), Error> {
        let parts = files.iter().flat_map(|file| (0..file.parts()).map(move |part| (file, part)));
        let puts = parts.map(|(file, part)| {
            let (path, object, checkpoints) = (folder.join(&file.name), file.part(part), self.checkpoints.clone());
            let length = PART_BYTES.min(file.bytes - part * PART_BYTES);
            async move {
                let data = read_part(&checkpoints, path, part * PART_BYTES, length).await?;
                Ok::<_, Error>(checkpoints.objects.put(&object, data).await?)
            }
        });
        let puts: Vec<_> = puts.collect();
        futures_util::stream::iter(puts).buffer_unordered(CONCURRENCY).try_collect().await
    }

    /// Removes checkpoints that are not kept, and then all parts that no checkpoint names.
    pub async fn expire(&mut self, retention: Retention, now_ms: i64) -> Result<Removed, Error> {
        let numbers = self.still_newest().await?;
        let names = self.checkpoints.savepoints().await?;
        let base = self.base.as_ref().map(|base| base.number);
        let (mut named, mut gone) = (HashSet::new(), Vec::new());
        let mut kept = 0;
        for number in numbers.into_iter().rev() {
            let Some(entry) = self.checkpoints.entry(number).await? else { continue };
            let young = now_ms.saturating_sub(entry.made_ms) <= retention.keep_ms;
            match entry.checkpoint {
                Some(checkpoint) if base == Some(number) || names.contains_key(&number) || (kept < retention.keep && young) => {
                    kept += u32::from(base == Some(number) || !names.contains_key(&number));
                    named.extend(checkpoint.files.iter().flat_map(|file| (0..file.parts()).map(|part| file.part(part))));
                }
                // The greatest number has to stay, so that no number is taken twice.
                None if number == self.number => {}
                _ => gone.push(manifest::entry_path(number)),
            }
        }
        let checkpoints = gone.len();
        self.checkpoints.objects.remove(gone).await?;
        let garbage = self.unnamed(&named).await?;
        let objects = garbage.len();
        self.checkpoints.objects.remove(garbage).await?;
        Ok(Removed { checkpoints, objects })
    }

    /// Parts under numbers up to this writer's that are not among these.
    async fn unnamed(&self, named: &HashSet<ObjectPath>) -> Result<Vec<ObjectPath>, Error> {
        let listed = self.checkpoints.objects.list(&manifest::files_folder()).await?;
        let ours = |path: &ObjectPath| manifest::part_number(path).is_some_and(|number| number <= self.number);
        Ok(listed.into_iter().map(|listed| listed.path).filter(|path| ours(path) && !named.contains(path)).collect())
    }
}

/// RocksDB writes a table once and never again.
fn is_immutable(name: &str) -> bool {
    name.ends_with(".sst")
}

pub(crate) fn folder_error(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Folder { path, what, source }
}

/// Names and sizes, in their order.
fn list_folder(folder: &Path) -> Result<Vec<(String, u64)>, Error> {
    let failed = || folder_error(folder, "a checkpoint cannot be read");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let bytes = entry.metadata().map_err(failed())?.len();
        found.push((entry.file_name().to_string_lossy().into_owned(), bytes));
    }
    found.sort();
    Ok(found)
}

async fn checksum_of(checkpoints: &Checkpoints, path: PathBuf) -> Result<String, Error> {
    let place = path.clone();
    let done = checkpoints.blocking(&place, "a checkpoint cannot be read", move || {
        let mut file = LocalFile::open(path)?;
        let mut hasher = Xxh3::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(&hasher)),
                read => hasher.update(&buffer[..read]),
            }
        }
    });
    done.await
}

pub(crate) fn hex(hasher: &Xxh3) -> String {
    format!("{:032x}", hasher.digest128())
}

async fn read_part(checkpoints: &Checkpoints, path: PathBuf, at: u64, length: u64) -> Result<Bytes, Error> {
    let place = path.clone();
    let done = checkpoints.blocking(&place, "a checkpoint cannot be read", move || {
        let mut file = LocalFile::open(path)?;
        file.seek(SeekFrom::Start(at))?;
        let mut data = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
        file.read_exact(&mut data)?;
        Ok(data.into())
    });
    done.await
}
