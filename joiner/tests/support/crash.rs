//! States as a crash leaves them: a copy of the directory, and the log cut where the crash came. Everything that a step writes is in the log, batch by batch.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where states of tests are kept.
pub(crate) fn dir() -> TempDir {
    // Memory where there is some; anywhere else otherwise.
    let base = Path::new("/dev/shm");
    if base.is_dir() { tempfile::tempdir_in(base).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// The files of a directory and how long they are.
fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => files.extend(listing(&entry.path())),
            Ok(metadata) if entry.file_name() != "LOCK" && entry.file_name() != "LOG" => {
                files.extend([(entry.path(), metadata.len())])
            }
            _ => {}
        }
    }
    files
}

/// Copies a state as a crash would leave it. Files may come and go in the background while they are copied: then it is done again.
pub(crate) fn copy(from: &Path) -> TempDir {
    loop {
        let to = dir();
        let files = listing(from);
        let copied = files.keys().all(|file| {
            let target = to.path().join(file.strip_prefix(from).unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(file, target).is_ok()
        });
        if copied && listing(from) == files {
            return to;
        }
    }
}

/// The database's newest log: its name, and how long it is.
pub(crate) fn log(state: &Path) -> (String, u64) {
    let files = listing(&state.join(joiner::checkpoint::DATABASE)).into_iter();
    let logs = files.filter(|(file, _)| file.extension().is_some_and(|extension| extension == "log"));
    let newest = logs.max_by_key(|(file, _)| file.file_name().map(std::ffi::OsStr::to_owned)).unwrap();
    (newest.0.file_name().unwrap().to_str().unwrap().to_owned(), newest.1)
}

/// Cuts a log.
pub(crate) fn cut(state: &Path, name: &str, length: u64) {
    let log = OpenOptions::new().write(true).open(state.join(joiner::checkpoint::DATABASE).join(name)).unwrap();
    log.set_len(length).unwrap();
}

/// Where batches end in the log, from one place on: it is made of blocks of 32 KiB, in them records with a header of 7 bytes (checksum, length of 2 bytes, kind), and a batch ends with a record that is whole (1) or a last part (4).
pub(crate) fn ends_of_batches(state: &Path, name: &str, from: u64) -> Vec<u64> {
    const BLOCK: usize = 32 << 10;
    const HEADER: usize = 7;
    let bytes = std::fs::read(state.join(joiner::checkpoint::DATABASE).join(name)).unwrap();
    let (mut at, mut ends) = (0, Vec::new());
    while at + HEADER <= bytes.len() {
        if BLOCK - at % BLOCK < HEADER {
            at += BLOCK - at % BLOCK;
            continue;
        }
        let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let kind = bytes[at + 6];
        assert!((1..=4).contains(&kind), "record of kind {kind} at {at}");
        at += HEADER + length;
        if (kind == 1 || kind == 4) && at as u64 > from {
            ends.push(at as u64);
        }
    }
    ends
}
