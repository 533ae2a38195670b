//! What can go wrong with checkpoints.

use std::path::PathBuf;

use schemas::ErrorClass;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("checkpoints: {0}")]
    Store(#[from] objects::Error),
    #[error("checkpoints: {0}")]
    Joiner(#[from] joiner::Error),
    #[error(
        "{store}, {path}: what stands there is not what was written: {what}. Restore another checkpoint: `tributary savepoint list` shows those that there are"
    )]
    Damaged { store: String, path: String, what: String },
    #[error(
        "{store}: checkpoint {number} was removed while it was read: begin again with one that is there (`tributary savepoint list`)"
    )]
    Vanished { store: String, number: u64 },
    #[error(
        "{store} holds the checkpoints of source {found:?}, the configuration says {expected:?}: give each pipeline a folder, or a prefix in the bucket, of its own"
    )]
    OtherPipeline { store: String, found: String, expected: String },
    #[error(
        "{store}: the checkpoints are of format {found}, this version knows {known}: use the version of Tributary that made them, or a newer one"
    )]
    Format { store: String, found: u32, known: u32 },
    #[error(
        "{store}: another process makes the checkpoints since (number {number} is its): this one makes no more, and has removed nothing of that one's. Stop one of the two"
    )]
    Superseded { store: String, number: u64 },
    #[error("{store}: whether {path} was written is not known yet")]
    Unsettled { store: String, path: String },
    #[error("there is a savepoint {name:?} already: drop it first, or choose another name")]
    Exists { name: String },
    #[error(
        "{name:?} cannot be a savepoint's name: 1 to 100 letters, digits, '-', '_' and '.', not only digits, and not \"latest\""
    )]
    BadName { name: String },
    #[error("{store} holds no checkpoint {which:?}: `tributary savepoint list` shows those that there are")]
    NoSuch { store: String, which: String },
    #[error(
        "checkpoint {number} cannot be restored, and nothing was touched: {source}. Restore with the version and the definitions that made it; or set `restore: false` under `checkpoints` to begin with an empty state"
    )]
    Refused { number: u64, source: joiner::Error },
    #[error("{path}: {what}: {source}. Make room or correct its permissions, then begin again", path = .path.display())]
    Folder { path: PathBuf, what: &'static str, source: std::io::Error },
    #[error("{path} is not empty: nothing was touched. Name a directory that is empty, or does not exist", path = .path.display())]
    NotEmpty { path: PathBuf },
    #[error("checkpoints are not made in this process any more: {reason}")]
    Ended { reason: String },
}

impl Error {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Joiner(error) => error.class(),
            Self::Unsettled { .. } | Self::Vanished { .. } => ErrorClass::Transient,
            Self::Exists { .. } | Self::BadName { .. } | Self::NoSuch { .. } | Self::Damaged { .. } => ErrorClass::Definite,
            _ => ErrorClass::Misconfigured,
        }
    }
}
