//! The chain of checkpoints in object storage, as everybody may read it.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use objects::{Creation, ObjectPath, Objects};
use schemas::KeyRange;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::manifest::{self, Checkpoint, FORMAT, Header, Manifest, Savepoint};
use crate::writer::folder_error;

/// The checkpoints of one pipeline, or of one of its instances that make a share of the entities each. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    pub(crate) objects: Objects,
    source: String,
    range: KeyRange,
    /// Where those of all instances are.
    all: Objects,
    in_place: bool,
}

/// Which checkpoint is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Latest,
    Number(u64),
    Named(String),
}

impl std::str::FromStr for Which {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match (text, text.parse()) {
            ("latest", _) => Ok(Self::Latest),
            (_, Ok(number)) => Ok(Self::Number(number)),
            _ if manifest::is_name(text) => Ok(Self::Named(text.to_owned())),
            _ => Err(Error::BadName { name: text.to_owned() }),
        }
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Number(number) => number.fmt(f),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// A checkpoint as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub number: u64,
    pub made_ms: i64,
    pub checkpoint: Checkpoint,
    /// The names that operators gave it.
    pub names: Vec<String>,
}

impl Checkpoints {
    /// Makes no request yet.
    pub fn open(objects: Objects, source: &str) -> Self {
        Self { all: objects.clone(), objects, source: source.to_owned(), range: KeyRange::ALL, in_place: false }
    }

    /// Those of the instance that makes this share of the entities.
    pub fn of_range(&self, range: KeyRange) -> Self {
        let objects = if range.is_all() { self.all.clone() } else { self.all.within(&manifest::range_folder(range)) };
        Self { objects, range, ..self.clone() }
    }

    /// What blocks is done where it is asked for, and not on threads beside it: for a simulation, in which nothing happens that does not follow from its seed.
    pub fn in_place(self) -> Self {
        Self { in_place: true, ..self }
    }

    /// Does work that blocks.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        if self.in_place { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
    }

    /// Does something with files.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        path: &Path,
        what: &'static str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.beside(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        done.map_err(folder_error(path, what))
    }

    pub fn range(&self) -> KeyRange {
        self.range
    }

    /// The shares of which there are, or were, checkpoints.
    pub(crate) async fn ranges(&self) -> Result<Vec<KeyRange>, Error> {
        let folders = self.all.folders(&manifest::ranges_folder()).await?;
        let found = folders.iter().filter_map(|folder| folder.filename()?.parse().ok());
        Ok(found.chain([KeyRange::ALL]).collect())
    }

    pub fn name(&self) -> &str {
        self.objects.name()
    }

    pub(crate) fn store(&self) -> String {
        self.name().to_owned()
    }

    pub(crate) fn damaged(&self, path: &ObjectPath, what: impl Into<String>) -> Error {
        Error::Damaged { store: self.store(), path: path.to_string(), what: what.into() }
    }

    pub(crate) fn unsettled(&self, path: &ObjectPath) -> Error {
        Error::Unsettled { store: self.store(), path: path.to_string() }
    }

    async fn read<T: DeserializeOwned>(&self, path: &ObjectPath) -> Result<Option<T>, Error> {
        let Some(data) = self.objects.get(path).await? else { return Ok(None) };
        serde_json::from_slice(&data).map(Some).map_err(|error| self.damaged(path, error.to_string()))
    }

    pub(crate) fn json<T: Serialize>(&self, path: &ObjectPath, value: &T) -> Result<Bytes, Error> {
        let data = serde_json::to_vec_pretty(value).map_err(|error| self.damaged(path, error.to_string()))?;
        Ok(data.into())
    }

    /// Whether there are checkpoints; that they are this pipeline's, in a format that is known.
    pub(crate) async fn check_header(&self) -> Result<bool, Error> {
        let Some(found) = self.read::<Header>(&manifest::header_path()).await? else { return Ok(false) };
        if found.tributary_joiner_checkpoints != FORMAT {
            return Err(Error::Format { store: self.store(), found: found.tributary_joiner_checkpoints, known: FORMAT });
        }
        if found.source != self.source {
            return Err(Error::OtherPipeline { store: self.store(), found: found.source, expected: self.source.clone() });
        }
        Ok(true)
    }

    pub(crate) async fn claim(&self) -> Result<(), Error> {
        if !self.check_header().await? {
            let path = manifest::header_path();
            let header = Header { tributary_joiner_checkpoints: FORMAT, source: self.source.clone() };
            if self.objects.create(&path, self.json(&path, &header)?).await? == Creation::Exists && !self.check_header().await? {
                return Err(self.unsettled(&path));
            }
        }
        Ok(())
    }

    /// The numbers of the chain's entries, in their order.
    pub(crate) async fn numbers(&self) -> Result<Vec<u64>, Error> {
        let listed = self.objects.list(&manifest::chain_folder()).await?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(|entry| manifest::entry_number(&entry.path)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// An entry; none where it has been removed.
    pub(crate) async fn entry(&self, number: u64) -> Result<Option<Manifest>, Error> {
        let path = manifest::entry_path(number);
        let entry = self.read::<Manifest>(&path).await?;
        if let Some(entry) = &entry
            && entry.number != number
        {
            return Err(self.damaged(&path, format!("it is the entry {}", entry.number)));
        }
        Ok(entry)
    }

    /// The newest checkpoint among these entries.
    pub(crate) async fn newest_of(&self, numbers: &[u64]) -> Result<Option<Manifest>, Error> {
        for number in numbers.iter().rev() {
            if let Some(entry) = self.entry(*number).await?.filter(|entry| entry.checkpoint.is_some()) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Names by the number of the checkpoint that they stand for.
    pub(crate) async fn savepoints(&self) -> Result<BTreeMap<u64, Vec<String>>, Error> {
        let mut found: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for listed in self.objects.list(&manifest::savepoints_folder()).await? {
            // One that has been dropped since it was listed is none.
            if let Some(name) = manifest::savepoint_name(&listed.path)
                && let Some(savepoint) = self.read::<Savepoint>(&listed.path).await?
            {
                found.entry(savepoint.number).or_default().push(name);
            }
        }
        found.values_mut().for_each(|names| names.sort());
        Ok(found)
    }

    /// All checkpoints, the oldest first.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        self.check_header().await?;
        let mut names = self.savepoints().await?;
        let mut found = Vec::new();
        for number in self.numbers().await? {
            let Some(Manifest { made_ms, checkpoint: Some(checkpoint), .. }) = self.entry(number).await? else { continue };
            found.push(Listed { number, made_ms, checkpoint, names: names.remove(&number).unwrap_or_default() });
        }
        Ok(found)
    }

    /// The checkpoint that is meant; none where there is none.
    pub async fn find(&self, which: &Which) -> Result<Option<Manifest>, Error> {
        if !self.check_header().await? {
            return Ok(None);
        }
        let number = match which {
            Which::Latest => return self.newest_of(&self.numbers().await?).await,
            Which::Number(number) => *number,
            Which::Named(name) => match self.read::<Savepoint>(&manifest::savepoint_path(name)).await? {
                Some(savepoint) => savepoint.number,
                None => return Ok(None),
            },
        };
        Ok(self.entry(number).await?.filter(|entry| entry.checkpoint.is_some()))
    }

    /// The same, where there has to be one.
    pub async fn expected(&self, which: &Which) -> Result<Manifest, Error> {
        self.find(which).await?.ok_or_else(|| Error::NoSuch { store: self.store(), which: which.to_string() })
    }

    /// Takes a name away; whoever makes checkpoints removes what is not kept any more. Answers whether there was one.
    pub async fn drop_savepoint(&self, name: &str) -> Result<bool, Error> {
        self.check_name(name)?;
        let path = manifest::savepoint_path(name);
        if self.read::<Savepoint>(&path).await?.is_none() {
            return Ok(false);
        }
        self.objects.remove([path]).await?;
        Ok(true)
    }

    pub(crate) fn check_name(&self, name: &str) -> Result<(), Error> {
        if manifest::is_name(name) { Ok(()) } else { Err(Error::BadName { name: name.to_owned() }) }
    }

    /// Gives a checkpoint a name.
    pub(crate) async fn name_it(&self, name: &str, number: u64) -> Result<(), Error> {
        let path = manifest::savepoint_path(name);
        if self.objects.create(&path, self.json(&path, &Savepoint { number })?).await? == Creation::Created {
            return Ok(());
        }
        // It may be one's own: a request whose answer was lost is made again.
        match self.read::<Savepoint>(&path).await? {
            Some(found) if found.number == number => Ok(()),
            Some(_) => Err(Error::Exists { name: name.to_owned() }),
            None => Err(self.unsettled(&path)),
        }
    }

    pub(crate) async fn has_savepoint(&self, name: &str) -> Result<bool, Error> {
        Ok(self.read::<Savepoint>(&manifest::savepoint_path(name)).await?.is_some())
    }
}
