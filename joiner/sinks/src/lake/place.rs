//! Where a table is, and what its errors say.

use bytes::Bytes;
use objects::{ObjectPath, Objects};
use schemas::ErrorClass;

use crate::Error;

/// A table's folder.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) objects: Objects,
    pub(super) folder: String,
    /// What errors call the table.
    pub(super) name: String,
}

impl Place {
    pub(super) fn new(objects: &Objects, entity: &str, table: &str) -> Self {
        let folder = format!("{entity}/{table}");
        Self { objects: objects.clone(), name: format!("lake table {folder} in {}", objects.name()), folder }
    }

    pub(super) fn path(&self, below: &str) -> Result<ObjectPath, Error> {
        ObjectPath::parse(format!("{}/{below}", self.folder)).map_err(|error| Error::unexpected(&self.name, error))
    }

    pub(super) fn failed(&self, error: &objects::Error) -> Error {
        failed(&self.name, error)
    }

    pub(super) fn unreadable(&self, what: &str, error: &dyn std::fmt::Display) -> Error {
        Error::unexpected(&self.name, format!("{what} cannot be read: {error}"))
    }

    /// It is not as we left it.
    pub(super) fn foreign(&self, what: &str) -> Error {
        let remedy = "Let other programs only read the lake's tables; point the sink's `store` elsewhere, or remove this table's folder, and the sink is loaded anew";
        Error::misconfigured(&self.name, what, remedy)
    }

    pub(super) async fn get(&self, below: &str) -> Result<Bytes, Error> {
        let found = self.objects.get(&self.path(below)?).await.map_err(|error| self.failed(&error))?;
        found.ok_or_else(|| self.foreign(&format!("its file {below} is gone, which its log still names")))
    }

    pub(super) async fn put(&self, below: &str, data: Bytes) -> Result<(), Error> {
        self.objects.put(&self.path(below)?, data).await.map_err(|error| self.failed(&error))
    }
}

pub(super) fn failed(target: &str, error: &objects::Error) -> Error {
    match error.class() {
        ErrorClass::Transient => Error::unavailable(target, error),
        ErrorClass::Misconfigured => Error::misconfigured(target, error, "Then restart the sink"),
        _ => Error::unexpected(target, error),
    }
}
