//! Object storage, for what uses it: an S3 bucket or a local folder behind one handle.
//!
//! # What holds
//! - An object appears whole or not at all, and is durable when [`Objects::put`] or [`Objects::create`] has returned (a local folder is synced to the disk).
//! - [`Objects::create`] never replaces: of two that create the same path, one is told [`Creation::Exists`]. S3 does it by `If-None-Match: *`, a local folder by a hard link. Because a request whose
//!   answer was lost is made again, *exists* may speak of one's own object: who needs to know reads it back.
//! - S3 is reached over the project's one HTTP and TLS stack (hyper, rustls with aws-lc; see [`http`]), with the credentials that every AWS tool finds.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};

mod config;
mod error;
mod http;
#[cfg(feature = "test-support")]
pub mod test_support;

pub use config::{Config, LocalOptions, S3Options};
pub use error::Error;
pub use object_store::path::{Path as ObjectPath, PathPart};

/// Requests of one listing or deletion in flight.
const CONCURRENCY: usize = 8;

/// What became of an object that was to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    Created,
    /// There is one at that path already; it was left as it is.
    Exists,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub path: Path,
    pub bytes: u64,
    /// When it was written last, in milliseconds since 1970-01-01 UTC, by the store's clock.
    pub modified_ms: i64,
}

/// A bucket or folder. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    name: Arc<str>,
}

impl Objects {
    /// Opens what the configuration names; a local folder is made where it does not exist. No request is made to S3 yet.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let name = config.to_string();
        let store = config.store().await?;
        Ok(Self { store, name: name.into() })
    }

    /// Kept in memory, for tests.
    pub fn memory() -> Self {
        Self::over(Arc::new(object_store::memory::InMemory::new()), "memory")
    }

    /// Over a store of the library, as one that fails as a test tells it. `name` is what errors call it.
    pub fn over(store: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self { store, name: name.into() }
    }

    /// A folder of it, as if it were all there is.
    pub fn within(&self, folder: &str) -> Self {
        let store = PrefixStore::new(self.store.clone(), folder);
        Self { store: Arc::new(store), name: format!("{}/{folder}", self.name).into() }
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn failed(&self, operation: &'static str, path: &Path) -> impl FnOnce(object_store::Error) -> Error {
        let (store, path) = (self.name.clone(), path.to_string());
        move |source| Error::new(&store, operation, path, source)
    }

    /// Writes an object, in place of any that is there.
    pub async fn put(&self, path: &Path, data: Bytes) -> Result<(), Error> {
        self.store.put(path, data.into()).await.map_err(self.failed("writing", path))?;
        Ok(())
    }

    /// Writes an object where there is none.
    pub async fn create(&self, path: &Path, data: Bytes) -> Result<Creation, Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(path, data.into(), options).await {
            Ok(_) => Ok(Creation::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Creation::Exists),
            Err(error) => Err(self.failed("creating", path)(error)),
        }
    }

    /// The whole object; `None` where there is none.
    pub async fn get(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        let found = match self.store.get_opts(path, GetOptions::default()).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        match found {
            Ok(data) => Ok(Some(data)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("reading", path)(error)),
        }
    }

    /// Everything below a folder, in no particular order.
    pub async fn list(&self, folder: &Path) -> Result<Vec<Listed>, Error> {
        let listed = self.store.list(Some(folder)).map_ok(|meta| Listed {
            path: meta.location,
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
        });
        listed.try_collect().await.map_err(self.failed("listing", folder))
    }

    /// The folders that stand directly in a folder, in their order.
    pub async fn folders(&self, folder: &Path) -> Result<Vec<Path>, Error> {
        let found = self.store.list_with_delimiter(Some(folder)).await.map_err(self.failed("listing", folder))?;
        let mut folders = found.common_prefixes;
        folders.sort();
        Ok(folders)
    }

    /// Removes objects. One that is not there is as good as removed.
    pub async fn remove(&self, paths: impl IntoIterator<Item = Path>) -> Result<(), Error> {
        let paths: Vec<Path> = paths.into_iter().collect();
        let removals = paths.into_iter().map(|path| {
            let this = self.clone();
            async move {
                match this.store.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(this.failed("removing", &path)(error)),
                }
            }
        });
        let mut removals = futures_util::stream::iter(removals).buffer_unordered(CONCURRENCY);
        while let Some(removed) = removals.next().await {
            removed?;
        }
        Ok(())
    }
}
