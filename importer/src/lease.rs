//! Only one importer at a time, and how later ones outrank earlier ones.
//!
//! The data directory's `lock` file is locked by the operating system for as long as the process lives, so that a second importer on the same directory refuses to
//! start. The `epoch` file counts starts: each start publishes under a greater epoch than any before, and readers refuse records of a lesser one. That covers
//! what a lock cannot: a copy of the directory on another machine, started while the first still runs, outranks it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The right to import, until dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) epoch: u64,
    _lock: File,
}

impl Lease {
    /// Takes the lock and counts the epoch up.
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
        let epoch = last + 1;
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
        assert_eq!(first.epoch, 1);
        assert!(matches!(Lease::take(directory.path()), Err(Error::Locked { .. })));
        drop(first);
        assert_eq!(Lease::take(directory.path()).unwrap().epoch, 2);
        std::fs::write(directory.path().join("epoch"), "x").unwrap();
        assert!(matches!(Lease::take(directory.path()), Err(Error::Damaged { .. })));
    }
}
