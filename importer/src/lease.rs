//! Only one importer at a time, and how later ones outrank earlier ones.
//!
//! The data directory's `lock` file is locked by the operating system for as long as the process lives, so that a second importer on the same directory refuses to
//! start. The `epoch` file keeps the last epoch: each start publishes under a greater one than any before, and readers refuse records of a lesser one. That covers
//! what a lock cannot: a copy of the directory on another machine, started while the first still runs, outranks it. An epoch is the time of the start in
//! milliseconds since 1970, or one more than the last where the clock has not moved past it, so that also a directory that was removed for a new snapshot
//! does not fall behind what the streams have seen.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Error;

/// The right to import, until dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) epoch: u64,
    _lock: File,
}

impl Lease {
    /// Takes the lock, and an epoch greater than any before.
    pub(crate) fn take(data_dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(data_dir).map_err(|source| io(data_dir, "creating the data directory", source))?;
        let path = data_dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| io(&path, "opening the lock file", source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: data_dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io(&path, "locking", source)),
        }
        let path = data_dir.join("epoch");
        let last: u64 = match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|_| Error::Damaged { path: path.clone(), what: format!("{text:?} is not an epoch") })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(source) => return Err(io(&path, "reading the epoch", source)),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
        let epoch = now.max(last + 1);
        replace(&path, format!("{epoch}\n").as_bytes())?;
        Ok(Self { epoch, _lock: lock })
    }
}

fn io(path: &Path, doing: &'static str, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), doing, source }
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

    #[test]
    fn each_start_has_a_greater_epoch_and_the_second_is_locked_out() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lease::take(directory.path()).unwrap();
        let epoch = first.epoch;
        assert!(epoch > 1_600_000_000_000, "{epoch}");
        assert!(matches!(Lease::take(directory.path()), Err(Error::Locked { .. })));
        drop(first);
        assert!(Lease::take(directory.path()).unwrap().epoch > epoch);
        // A clock that went back does not bring an epoch back.
        std::fs::write(directory.path().join("epoch"), format!("{}", u64::MAX / 2)).unwrap();
        assert_eq!(Lease::take(directory.path()).unwrap().epoch, u64::MAX / 2 + 1);
        std::fs::write(directory.path().join("epoch"), "x").unwrap();
        assert!(matches!(Lease::take(directory.path()), Err(Error::Damaged { .. })));
    }
}
