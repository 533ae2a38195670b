//! The chain of segments in object storage: opening, taking over, committing, finding.
//!
//! # Why a kill leaves nothing half done
//! A segment's objects are written first and its manifest last, under the number that follows the last one, by a conditional put. Without the manifest the objects belong to nothing, and nobody who reads by manifests sees them.
//! For those who read the folders by name patterns they are removed: a *draft*, the manifest under another name, is written before the first object, so that whoever comes next knows what there may be to remove.
//!
//! # Why two archivers do no harm
//! Whoever starts takes the next number with a manifest without objects. From then on an archiver that worked before cannot commit: the only number it may take is taken. So what its drafts of that number
//! name can be removed without looking whether it is still at work; what it writes afterwards it removes itself when it finds the number taken, and if it is killed in between, the next start
//! does, because a draft is kept until it is a day old. Names carry the content's checksum: nothing that one writes replaces what the other wrote.
//!
//! # Lost answers
//! *Exists* may speak of our own manifest, when a put was made twice because its first answer was lost. So it is read back: the same bytes are ours (they name the writer). It may be said as well while there is none yet: S3
//! answers *conflict* while an earlier put of the name, perhaps our own, is under way. Then nothing is known, nothing is removed, and the same segment is committed again. Only who has read another's manifest under its number has lost it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use objects::{Creation, ObjectPath, Objects};
use quick_cache::sync::Cache;
use schemas::Lsn;
use schemas::encoding::Schemas;
use schemas::progress::StreamName;
use serde::de::DeserializeOwned;
use streams::Positions;

use crate::error::Error;
use crate::manifest::{self, FORMAT, Header, Manifest, Object};
use crate::segment::Segment;

/// Objects that are written or read side by side.
const CONCURRENCY: usize = 8;
/// Manifests kept: readers of several streams ask for the same ones.
const KEPT_MANIFESTS: usize = 64;
/// What an archiver may still be writing that lost its place is not older than this.
const DRAFT_AGE: Duration = Duration::from_secs(24 * 3600);

/// The archive of one source.
#[derive(Clone)]
pub struct Archive {
    pub(crate) objects: Objects,
    pub(crate) header: Arc<Header>,
    pub(crate) schemas: Arc<Schemas>,
    manifests: Arc<Cache<u64, Arc<Manifest>>>,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("store", &self.objects.name()).field("header", &self.header).finish_non_exhaustive()
    }
}

impl Archive {
    /// The archive of a source whose streams' names begin with `prefix`. One of another source is refused; where there is none yet, nothing is written.
    /// `schemas` are those of the records' encodings.
    pub async fn open(objects: Objects, source: &str, prefix: &str, schemas: Arc<Schemas>) -> Result<Self, Error> {
        let header = Header { format: FORMAT, source: source.to_owned(), prefix: prefix.to_owned() };
        let manifests = Arc::new(Cache::new(KEPT_MANIFESTS));
        let archive = Self { objects, header: Arc::new(header), schemas, manifests };
        archive.check_header().await?;
        Ok(archive)
    }

    /// Whether an archive has been begun in a store, or in a folder of it: whichever source's.
    pub async fn is_begun(objects: &Objects, folder: Option<&str>) -> Result<bool, Error> {
        let path = folder.into_iter().map(Into::into).chain(manifest::header_path().parts()).collect();
        Ok(objects.get(&path).await?.is_some())
    }

    /// The source's name.
    pub fn source(&self) -> &str {
        &self.header.source
    }

    /// Whether a stream is one of the source's.
    pub(crate) fn is_of(&self, stream: &StreamName) -> bool {
        stream.0.strip_prefix(&self.header.prefix).is_some_and(|rest| rest.starts_with('.'))
    }

    /// Whether there is a header; it has to be ours.
    async fn check_header(&self) -> Result<bool, Error> {
        let path = manifest::header_path();
        let Some(found) = self.objects.get(&path).await? else { return Ok(false) };
        let found: Header = self.read_json(&path, &found)?;
        let store = self.objects.name().to_owned();
        if found.format != FORMAT {
            return Err(Error::Format { store, found: found.format, expected: FORMAT });
        }
        if found != *self.header {
            let (expected, expected_prefix) = (self.header.source.clone(), self.header.prefix.clone());
            let (found, found_prefix) = (found.source, found.prefix);
            return Err(Error::OtherSource { store, found, found_prefix, expected, expected_prefix });
        }
        Ok(true)
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, path: &ObjectPath, data: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(data).map_err(|error| self.damaged(path.as_ref(), error.to_string()))
    }

    pub(crate) fn damaged(&self, path: &str, what: String) -> Error {
        Error::Damaged { store: self.objects.name().to_owned(), path: path.to_owned(), what }
    }

    fn unsettled(&self, path: &ObjectPath) -> Error {
        Error::Unsettled { store: self.objects.name().to_owned(), path: path.to_string() }
    }

    /// The name of the source's progress stream.
    pub(crate) fn progress_stream(&self) -> StreamName {
        streams::Layout::progress_stream(&self.header.prefix)
    }

    /// The least and the greatest number of a segment that is there, and is not on the way out.
    pub(crate) async fn numbers(&self) -> Result<Option<(u64, u64)>, Error> {
        let Some((least, last)) = self.listed_numbers().await? else { return Ok(None) };
        let stays = self.mark().await?.map_or(0, |mark| mark.segment);
        Ok(Some((least.max(stays).min(last), last)))
    }

    /// The least and the greatest number of a manifest. A group's folder may be empty: a local store leaves it when its manifests are removed.
    async fn listed_numbers(&self) -> Result<Option<(u64, u64)>, Error> {
        let groups = self.objects.folders(&manifest::manifests_folder()).await?;
        let mut greatest = None;
        for group in groups.iter().rev() {
            let numbers = self.numbers_in(group).await?;
            if let (Some(least), Some(last)) = (numbers.iter().min(), numbers.iter().max()) {
                greatest = Some((group, *least, *last));
                break;
            }
        }
        let Some((last_group, least, last)) = greatest else { return Ok(None) };
        for group in groups.iter().take_while(|group| *group != last_group) {
            if let Some(least) = self.numbers_in(group).await?.into_iter().min() {
                return Ok(Some((least, last)));
            }
        }
        Ok(Some((least, last)))
    }

    async fn numbers_in(&self, group: &ObjectPath) -> Result<Vec<u64>, Error> {
        let listed = self.objects.list(group).await?;
        Ok(listed.iter().filter_map(|object| manifest::number_of(&object.path)).collect())
    }

    /// A segment's manifest, if it is there.
    pub(crate) async fn manifest(&self, number: u64) -> Result<Option<Arc<Manifest>>, Error> {
        if let Some(manifest) = self.manifests.get(&number) {
            return Ok(Some(manifest));
        }
        let path = manifest::manifest_path(number);
        let Some(data) = self.objects.get(&path).await? else { return Ok(None) };
        let manifest: Arc<Manifest> = Arc::new(self.read_json(&path, &data)?);
        if manifest.number != number {
            return Err(self.damaged(path.as_ref(), format!("it is the manifest of segment {}", manifest.number)));
        }
        self.manifests.insert(number, manifest.clone());
        Ok(Some(manifest))
    }

    /// Forgets a manifest that has been removed.
    pub(crate) fn forget(&self, number: u64) {
        self.manifests.remove(&number);
    }

    /// A segment's manifest that has to be there, because a later one is.
    pub(crate) async fn expected(&self, number: u64) -> Result<Arc<Manifest>, Error> {
        if let Some(manifest) = self.manifest(number).await? {
            return Ok(manifest);
        }
        if let Some(expired) = self.expired(number).await? {
            return Err(expired);
        }
        let (store, path) = (self.objects.name().to_owned(), manifest::manifest_path(number).to_string());
        Err(Error::Hole { store, number, path })
    }

    /// The last segment; what an archive begins with where there is none.
    pub(crate) async fn last(&self) -> Result<Arc<Manifest>, Error> {
        match self.numbers().await? {
            Some((_, last)) => self.expected(last).await,
            None => Ok(Arc::new(Manifest::origin())),
        }
    }

    /// The first segment of which `holds` is true, which is true of all that follow as well.
    pub(crate) async fn first(&self, holds: impl Fn(&Manifest) -> bool) -> Result<Option<Arc<Manifest>>, Error> {
        let Some((mut low, last)) = self.numbers().await? else { return Ok(None) };
        let mut found = self.expected(last).await?;
        if !holds(&found) {
            return Ok(None);
        }
        // It is at or above `low`, and at or below the one found.
        while low < found.number {
            let middle = self.expected(low.midpoint(found.number)).await?;
            if holds(&middle) {
                found = middle;
            } else {
                low = middle.number + 1;
            }
        }
        Ok(Some(found))
    }

    /// The first segment that may hold records of a stream after these positions; none as well where older segments held them and were removed.
    pub(crate) async fn first_after(&self, stream: &StreamName, after: &Positions) -> Result<Option<Arc<Manifest>>, Error> {
        Ok(self.first_beyond_positions(stream, after).await?.filter(|found| found.follows(stream, after)))
    }

    /// The first segment at whose end some shard of a stream stands after these positions.
    pub(crate) async fn first_beyond_positions(
        &self,
        stream: &StreamName,
        after: &Positions,
    ) -> Result<Option<Arc<Manifest>>, Error> {
        let beyond = |manifest: &Manifest| {
            let ends = manifest.positions.get(stream);
            ends.is_some_and(|shards| shards.iter().any(|(shard, end)| after.get(shard).is_none_or(|after| after < end)))
        };
        self.first(beyond).await
    }

    /// The first segment with which the archive is complete up to a greater LSN.
    pub(crate) async fn first_beyond(&self, lsn: Lsn) -> Result<Option<Arc<Manifest>>, Error> {
        self.first(|manifest| manifest.frontier > lsn).await
    }

    /// Makes the archive this writer's: answers the last segment, which is its own and empty. Removes what attempts before it left behind. With `after`, only if that is the last segment until then.
    pub(crate) async fn take_over(&self, writer: &str, after: Option<u64>) -> Result<Arc<Manifest>, Error> {
        if !self.check_header().await? {
            let (path, data) = (manifest::header_path(), self.json(&*self.header)?);
            if self.objects.create(&path, data).await? == Creation::Exists && !self.check_header().await? {
                return Err(self.unsettled(&path));
            }
        }
        loop {
            let last = self.last().await?;
            let next = last.next(writer);
            let number = next.number;
            if after.is_none_or(|after| after == last.number) && self.create_manifest(&next).await? {
                self.clean(number).await?;
                return Ok(Arc::new(next));
            }
            if after.is_some() {
                return Err(Error::Superseded { store: self.objects.name().to_owned(), number });
            }
            tracing::info!(number, "another archiver begins at the same time");
        }
    }

    fn json<T: serde::Serialize>(&self, value: &T) -> Result<Bytes, Error> {
        let data = serde_json::to_vec_pretty(value).map_err(|error| Error::Task { what: error.to_string() })?;
        Ok(data.into())
    }

    /// Whether the manifest is there now, and ours; `false`: another's is.
    async fn create_manifest(&self, manifest: &Manifest) -> Result<bool, Error> {
        let (path, data) = (manifest::manifest_path(manifest.number), self.json(manifest)?);
        if self.objects.create(&path, data.clone()).await? == Creation::Created {
            return Ok(true);
        }
        let found = self.objects.get(&path).await?;
        Ok(found.ok_or_else(|| self.unsettled(&path))? == data)
    }

    /// Writes a segment. After an error it may or may not be there; the same segment can be committed again.
    pub(crate) async fn commit(&self, segment: &Segment) -> Result<(), Error> {
        let Manifest { number, writer, .. } = &segment.manifest;
        let draft = manifest::draft_path(*number, writer);
        self.objects.put(&draft, self.json(&segment.manifest)?).await?;
        let puts = segment.data.clone().into_iter().map(|(path, data)| {
            let objects = self.objects.clone();
            async move { objects.put(&path, data).await }
        });
        let mut puts = futures_util::stream::iter(puts).buffer_unordered(CONCURRENCY);
        while puts.next().await.transpose()?.is_some() {}
        if self.create_manifest(&segment.manifest).await? {
            self.objects.remove([draft]).await?;
            return Ok(());
        }
        let winner = self.expected(*number).await?;
        self.remove_unlisted(&segment.manifest, Some(&winner)).await?;
        self.objects.remove([draft]).await?;
        Err(Error::Superseded { store: self.objects.name().to_owned(), number: *number })
    }

    /// Removes the objects of a draft that lost its number, but for those that whoever won it wrote as well; all, where that segment was removed since.
    async fn remove_unlisted(&self, draft: &Manifest, winner: Option<&Manifest>) -> Result<(), Error> {
        let listed: HashSet<&str> = winner.iter().flat_map(|winner| &winner.objects).map(|object| object.path.as_str()).collect();
        let garbage = draft.objects.iter().filter(|object| !listed.contains(object.path.as_str()));
        let paths =
            garbage.map(|object| ObjectPath::parse(&object.path).map_err(|error| self.damaged(&object.path, error.to_string())));
        Ok(self.objects.remove(paths.collect::<Result<Vec<_>, _>>()?).await?)
    }

    /// Removes what drafts name of the numbers that are taken.
    async fn clean(&self, up_to: u64) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for listed in self.objects.list(&manifest::drafts_folder()).await? {
            let Some(number) = manifest::number_of(&listed.path).filter(|number| *number <= up_to) else { continue };
            let Some(data) = self.objects.get(&listed.path).await? else { continue };
            let draft: Manifest = self.read_json(&listed.path, &data)?;
            let winner = self.manifest(number).await?;
            let committed = winner.as_deref() == Some(&draft);
            if !committed {
                self.remove_unlisted(&draft, winner.as_deref()).await?;
            }
            let age = now.saturating_sub(Duration::from_millis(listed.modified_ms.try_into().unwrap_or_default()));
            if committed || age > DRAFT_AGE {
                self.objects.remove([listed.path]).await?;
            }
        }
        Ok(())
    }

    /// Objects side by side, in the order in which they are asked for.
    pub(crate) async fn get_all(&self, objects: &[&Object]) -> Result<Vec<Option<Bytes>>, Error> {
        let mut paths = Vec::with_capacity(objects.len());
        for object in objects {
            paths.push(self.path(object)?);
        }
        let gets = paths.into_iter().map(|path| {
            let objects = self.objects.clone();
            async move { objects.get(&path).await }
        });
        Ok(futures_util::stream::iter(gets).buffered(CONCURRENCY).try_collect().await?)
    }

    pub(crate) fn path(&self, object: &Object) -> Result<ObjectPath, Error> {
        ObjectPath::parse(&object.path).map_err(|error| self.damaged(&object.path, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use objects::{Config, LocalOptions};
    use schemas::encoding::Registry;

    use super::*;

    #[tokio::test]
    async fn folders_without_manifests_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::Local(LocalOptions { path: directory.path().to_owned() });
        let objects = Objects::open(&config).await.unwrap();
        let schemas = Arc::new(Schemas::fixed(Registry::default()));
        let archive = Archive::open(objects.clone(), "shop", "shop", schemas).await.unwrap();
        assert_eq!(archive.numbers().await.unwrap(), None);
        for number in [1000, 1001, 2000, 3007] {
            objects.put(&manifest::manifest_path(number), Bytes::from_static(b"{}")).await.unwrap();
        }
        // What is left on a local store where a group's manifests were removed.
        for group in ["000000000", "000000002", "000000004"] {
            let folder = directory.path().join("manifests").join(group);
            std::fs::create_dir_all(&folder).unwrap();
            for manifest in std::fs::read_dir(folder).unwrap() {
                std::fs::remove_file(manifest.unwrap().path()).unwrap();
            }
        }
        assert_eq!(archive.numbers().await.unwrap(), Some((1000, 3007)));
        std::fs::remove_file(directory.path().join("manifests/000000003/000000003007.json")).unwrap();
        assert_eq!(archive.numbers().await.unwrap(), Some((1000, 1001)));
    }
}
