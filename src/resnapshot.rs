//! The importer, as the API asks it to read a table again.

use api::{SnapshotRefusal, SnapshotRequest, Snapshots};
use async_trait::async_trait;
use importer::{AskedRange, ImporterHandle, RequestError};

pub(crate) struct Resnapshot {
    source: String,
    importer: ImporterHandle,
}

impl Resnapshot {
    pub(crate) fn new(source: &str, importer: ImporterHandle) -> Self {
        Self { source: source.to_owned(), importer }
    }
}

#[async_trait]
impl Snapshots for Resnapshot {
    fn source(&self) -> &str {
        &self.source
    }

    async fn begin(&self, request: SnapshotRequest) -> Result<u64, SnapshotRefusal> {
        let range = AskedRange { from: request.from, to: request.to };
        self.importer.resnapshot(request.table, range).await.map_err(|error| {
            let message = error.to_string();
            match error {
                RequestError::NoSuchTable { .. } => SnapshotRefusal::NoSuchTable(message),
                RequestError::NoKey { .. } | RequestError::BadKey(_) => SnapshotRefusal::BadKey(message),
                RequestError::NotTailing | RequestError::Busy { .. } => SnapshotRefusal::Busy(message),
                RequestError::Ended | RequestError::NotSaved(_) => SnapshotRefusal::Failed(message),
            }
        })
    }
}
