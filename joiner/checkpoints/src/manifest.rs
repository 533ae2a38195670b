//! What is in the bucket.
//!
//! | object | what it is |
//! |---|---|
//! | `checkpoints.json` | whose checkpoints these are: format and source ([`Header`]) |
//! | `chain/<number>.json` | an entry of the chain ([`Manifest`]): a checkpoint, or that a process has taken over |
//! | `savepoints/<name>.json` | the name of a checkpoint ([`Savepoint`]), which is kept for as long as it has one |
//! | `ranges/<range>/…` | the same of an instance that makes a share of the entities |
//! | `files/<number>.<attempt>/<file>.<part>` | up to [`PART_BYTES`] of a file of the state, as the checkpoint with this number wrote it first |
//!
//! Numbers have twelve digits, parts four. Everything but parts is JSON, so that people can read it.

use joiner::checkpoint::Facts;
use objects::ObjectPath;
use schemas::KeyRange;
use serde::{Deserialize, Serialize};

/// Changes when what stands in the bucket changes its meaning.
pub const FORMAT: u32 = 1;
/// Files are cut at this size: an upload that fails is done again in parts, and memory is bounded by parts in flight.
pub const PART_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) tributary_joiner_checkpoints: u32,
    pub(crate) source: String,
}

/// An entry of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub number: u64,
    /// The number under which the process took over that wrote it.
    pub epoch: u64,
    /// A name that no other process has, so that one's own entry is told from another's.
    pub writer: String,
    /// When it was made, in milliseconds since 1970-01-01 UTC, by the writer's clock.
    pub made_ms: i64,
    /// None: the process took over, and there is no checkpoint of this number.
    pub checkpoint: Option<Checkpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub state: Facts,
    pub files: Vec<File>,
}

/// A file of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub bytes: u64,
    /// xxh3-128 of the whole file, in hexadecimal.
    pub checksum: String,
    /// What its parts' names begin with.
    pub object: String,
}

/// A name that an operator gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Savepoint {
    pub(crate) number: u64,
}

impl Checkpoint {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl File {
    /// An empty file has one empty part.
    pub(crate) fn parts(&self) -> u64 {
        self.bytes.div_ceil(PART_BYTES).max(1)
    }

    pub(crate) fn part(&self, part: u64) -> ObjectPath {
        ObjectPath::from(format!("{}.{part:04}", self.object))
    }
}

pub(crate) fn header_path() -> ObjectPath {
    ObjectPath::from("checkpoints.json")
}
pub(crate) fn chain_folder() -> ObjectPath {
    ObjectPath::from("chain")
}
pub(crate) fn entry_path(number: u64) -> ObjectPath {
    ObjectPath::from(format!("chain/{number:012}.json"))
}
pub(crate) fn ranges_folder() -> ObjectPath {
    ObjectPath::from("ranges")
}
pub(crate) fn range_folder(range: KeyRange) -> String {
    format!("ranges/{range}")
}
pub(crate) fn savepoints_folder() -> ObjectPath {
    ObjectPath::from("savepoints")
}
pub(crate) fn savepoint_path(name: &str) -> ObjectPath {
    ObjectPath::from(format!("savepoints/{name}.json"))
}
pub(crate) fn files_folder() -> ObjectPath {
    ObjectPath::from("files")
}
pub(crate) fn file_object(number: u64, attempt: u32, name: &str) -> String {
    format!("files/{number:012}.{attempt}/{name}")
}

/// The number of an entry, by its object's name.
pub(crate) fn entry_number(path: &ObjectPath) -> Option<u64> {
    path.filename()?.strip_suffix(".json")?.parse().ok()
}

/// Which checkpoint wrote a part.
pub(crate) fn part_number(path: &ObjectPath) -> Option<u64> {
    path.as_ref().strip_prefix("files/")?.split('.').next()?.parse().ok()
}

/// The name that an object of a savepoint stands for.
pub(crate) fn savepoint_name(path: &ObjectPath) -> Option<String> {
    Some(path.filename()?.strip_suffix(".json")?.to_owned())
}

pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=100).contains(&name.len())
        && name.chars().all(plain)
        && name != "latest"
        && !name.starts_with('.')
        && !name.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_objects_read_back() {
        assert_eq!(entry_number(&entry_path(42)), Some(42));
        assert_eq!(savepoint_name(&savepoint_path("before-4.2")).unwrap(), "before-4.2");
        for bytes in [0, 1, PART_BYTES, PART_BYTES + 1] {
            let file = File { name: "1.sst".into(), bytes, checksum: String::new(), object: file_object(7, 1, "1.sst") };
            assert_eq!((file.parts(), part_number(&file.part(0))), (1 + u64::from(bytes > PART_BYTES), Some(7)));
        }
        for name in ["", "latest", "12", "a b", "a/b", "..", "ü"] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name("2026-11-22T08.50.00Z"));
    }
}
