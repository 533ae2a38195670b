//! Asking a running importer for something.

use schemas::TableName;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::status::{Status, StatusHandle};

/// Requests that may wait: somebody asks by hand, so few are plenty.
const WAITING: usize = 16;

/// Reads what an importer does, and asks it to do more. Outlives the importer; then nothing is done any more.
#[derive(Debug, Clone)]
pub struct ImporterHandle {
    status: StatusHandle,
    requests: mpsc::Sender<Request>,
}

/// The keys of a table that are to be read again, both ends included, each the values of the key's columns in their order as a person writes them; none: from the first, to the
/// last. The last columns may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AskedRange {
    pub from: Option<Vec<String>>,
    pub to: Option<Vec<String>>,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the importer has ended: start it, then ask again")]
    Ended,
    #[error(
        "the initial snapshot is being taken, or the importer waits for its turn: ask again once its tail runs (`tributary status`)"
    )]
    NotTailing,
    #[error("{table} is not imported: the tables are {known}")]
    NoSuchTable { table: TableName, known: String },
    #[error("{table} is being read again already (generation {generation}): wait until that is done (`tributary status`)")]
    Busy { table: TableName, generation: u64 },
    #[error("{table} has no key, so that no range of it can be named: ask for the whole table")]
    NoKey { table: TableName },
    #[error("{0}")]
    BadKey(String),
    #[error("the request could not be kept: {0}")]
    NotSaved(String),
}

/// A table, or a range of it, that is to be read again.
pub(crate) struct Request {
    pub(crate) table: TableName,
    pub(crate) range: AskedRange,
    pub(crate) answer: oneshot::Sender<Result<u64, RequestError>>,
}

/// Where requests arrive. They are taken in the tail alone.
pub(crate) type Requests = Mutex<mpsc::Receiver<Request>>;

impl ImporterHandle {
    pub(crate) fn new(status: StatusHandle) -> (Self, Requests) {
        let (requests, received) = mpsc::channel(WAITING);
        (Self { status, requests }, Mutex::new(received))
    }

    pub fn status(&self) -> Status {
        self.status.get()
    }

    /// Has a table read again beside the tail, or a range of its keys. Answers the reread's generation as soon as it has been taken on and saved; how far it is stands in the
    /// status. Of a whole table, rows that are not there any more are removed downstream.
    pub async fn resnapshot(&self, table: TableName, range: AskedRange) -> Result<u64, RequestError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { table, range, answer };
        match self.requests.try_send(request) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(RequestError::NotTailing),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(RequestError::Ended),
        }
        answered.await.unwrap_or(Err(RequestError::Ended))
    }
}
