//! Where a table is, how long it may take to get at it, and what its errors say.

use std::time::Duration;

use bytes::Bytes;
use objects::{Creation, Listed, ObjectPath, Objects};

use crate::Error;

/// A table's folder.
#[derive(Debug, Clone)]
pub(super) struct Place {
    objects: Objects,
    pub(super) folder: String,
    /// What one object may take.
    limit: Duration,
    /// What errors call the table.
    pub(super) name: String,
}

impl Place {
    pub(super) fn new(objects: &Objects, limit: Duration, entity: &str, table: &str) -> Self {
        let folder = format!("{entity}/{table}");
        Self { objects: objects.clone(), limit, name: format!("lake table {folder} in {}", objects.name()), folder }
    }

    pub(super) fn path(&self, below: &str) -> Result<ObjectPath, Error> {
        ObjectPath::parse(format!("{}/{below}", self.folder)).map_err(|error| Error::unexpected(&self.name, error))
    }

    pub(super) fn unreadable(&self, what: &str, error: &dyn std::fmt::Display) -> Error {
        Error::unexpected(&self.name, format!("{what} cannot be read: {error}"))
    }

    /// It is not as we left it.
    pub(super) fn foreign(&self, what: &str) -> Error {
        let remedy = "Let other programs only read the lake's tables; point the sink's `store` elsewhere, or remove this table's folder, and the sink is loaded anew";
        Error::misconfigured(&self.name, what, remedy)
    }

    /// A request that is given up may have been carried out, as one whose answer was lost.
    async fn within_limit<T>(&self, work: impl Future<Output = Result<T, objects::Error>>) -> Result<T, Error> {
        let late = |_| Error::unavailable(&self.name, format!("no answer within {} ms", self.limit.as_millis()));
        tokio::time::timeout(self.limit, work).await.map_err(late)?.map_err(|error| failed(&self.name, &error))
    }

    /// An object that has to be there.
    pub(super) async fn get(&self, below: &str) -> Result<Bytes, Error> {
        let found = self.look(&self.path(below)?).await?;
        found.ok_or_else(|| self.foreign(&format!("its file {below} is gone, which its log still names")))
    }

    pub(super) async fn look(&self, path: &ObjectPath) -> Result<Option<Bytes>, Error> {
        self.within_limit(self.objects.get(path)).await
    }

    pub(super) async fn put(&self, below: &str, data: Bytes) -> Result<(), Error> {
        let path = self.path(below)?;
        self.within_limit(self.objects.put(&path, data)).await
    }

    pub(super) async fn create(&self, path: &ObjectPath, data: Bytes) -> Result<Creation, Error> {
        self.within_limit(self.objects.create(path, data)).await
    }

    /// Everything below the table's folder, each under its path there.
    pub(super) async fn list(&self) -> Result<Vec<(String, Listed)>, Error> {
        let folder = self.path("")?;
        let listed = self.within_limit(self.objects.list(&folder)).await?;
        let below = |object: Listed| {
            let path = object.path.as_ref().strip_prefix(folder.as_ref())?.trim_start_matches('/').to_owned();
            Some((path, object))
        };
        Ok(listed.into_iter().filter_map(below).collect())
    }

    pub(super) async fn remove(&self, paths: Vec<ObjectPath>) -> Result<(), Error> {
        self.within_limit(self.objects.remove(paths)).await
    }
}

pub(super) fn failed(target: &str, error: &objects::Error) -> Error {
    Error::of_objects(target, error, "Then restart the sink")
}
