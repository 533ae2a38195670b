//! The lease and the progress in a directory, for importers on one machine.
//!
//! The `lock` file is locked by the operating system for as long as the holder's process lives, the `epoch` file keeps the last epoch, `progress.json` the progress.
//! A directory that was copied to another machine has a lock of its own there; of two importers that run on such copies the one that was started later outranks
//! the other, because its epoch is greater.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::{Store, io, next_epoch};
use crate::error::Error;

#[derive(Debug)]
pub(super) struct FileStore {
    directory: PathBuf,
    /// While it is held.
    lock: Mutex<Option<File>>,
}

impl FileStore {
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(directory).map_err(|source| io(directory, "creating the data directory", source))?;
        Ok(Self { directory: directory.to_owned(), lock: Mutex::default() })
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> PathBuf {
        self.directory.join("progress.json")
    }

    fn lost(&self, epoch: u64) -> Error {
        Error::LeaseLost { place: self.place(), epoch }
    }
}

#[async_trait]
impl Store for FileStore {
    async fn acquire(&self) -> Result<Option<u64>, Error> {
        let path = self.directory.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| io(&path, "opening the lock file", source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(io(&path, "locking", source)),
        }
        let path = self.directory.join("epoch");
        let last: u64 = match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|_| Error::Damaged { path: path.clone(), what: format!("{text:?} is not an epoch") })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(source) => return Err(io(&path, "reading the epoch", source)),
        };
        let epoch = next_epoch(last);
        replace(&path, format!("{epoch}\n").as_bytes())?;
        *self.locked() = Some(lock);
        Ok(Some(epoch))
    }

    async fn renew(&self, epoch: u64) -> Result<(), Error> {
        // The operating system keeps the lock.
        if self.locked().is_some() { Ok(()) } else { Err(self.lost(epoch)) }
    }

    async fn release(&self, _epoch: u64) -> Result<(), Error> {
        *self.locked() = None;
        Ok(())
    }

    async fn load(&self) -> Result<Option<Vec<u8>>, Error> {
        match std::fs::read(self.progress()) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io(&self.progress(), "reading the progress", source)),
        }
    }

    async fn save(&self, epoch: u64, progress: &[u8]) -> Result<(), Error> {
        if self.locked().is_none() {
            return Err(self.lost(epoch));
        }
        replace(&self.progress(), progress)
    }

    fn place(&self) -> String {
        self.directory.display().to_string()
    }
}

/// Replaces a file's content as a whole, durably: whatever happens, the file has either the old content or the new.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut temporary = PathBuf::from(path);
    temporary.as_mut_os_string().push(".new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // The name is in the directory: that has to reach the disk as well.
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| io(path, "writing", source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn each_holder_has_a_greater_epoch_and_the_second_waits() {
        let directory = tempfile::tempdir().unwrap();
        let open = || FileStore::open(directory.path()).unwrap();
        let (first, second) = (open(), open());
        let epoch = first.acquire().await.unwrap().unwrap();
        assert!(epoch > 1_600_000_000_000, "{epoch}");
        assert_eq!(second.acquire().await.unwrap(), None);
        assert!(matches!(second.save(epoch, b"x").await, Err(Error::LeaseLost { .. })));
        first.save(epoch, b"progress").await.unwrap();
        first.release(epoch).await.unwrap();
        assert!(matches!(first.renew(epoch).await, Err(Error::LeaseLost { .. })));
        assert!(second.acquire().await.unwrap().unwrap() > epoch);
        assert_eq!(second.load().await.unwrap().unwrap(), b"progress");
        drop(second);
        // A clock that went back does not bring an epoch back.
        std::fs::write(directory.path().join("epoch"), format!("{}", u64::MAX / 2)).unwrap();
        assert_eq!(open().acquire().await.unwrap(), Some(u64::MAX / 2 + 1));
        std::fs::write(directory.path().join("epoch"), "x").unwrap();
        assert!(matches!(open().acquire().await, Err(Error::Damaged { .. })));
    }
}
