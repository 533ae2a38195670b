//! A few connections to the source, lent to whoever reads.
//!
//! A connection that was in use when something failed may be out of step with the server: it is closed rather than given back, because [`Loan::give_back`] is only reached
//! where all went well. Connections are made when they are needed and kept for as long as the pool lives.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use source::{Client, Source};

#[derive(Debug)]
pub(crate) struct Pool {
    /// `None`: there are only the connections that were given, because they see what no new one would.
    source: Option<Source>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

struct Idle(Client);

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection")
    }
}

/// A connection of the pool, closed when it is dropped.
pub(crate) struct Loan {
    pool: Arc<Pool>,
    pub(crate) client: Client,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(source: Source, most: usize) -> Arc<Self> {
        Arc::new(Self { source: Some(source), permits: Arc::new(Semaphore::new(most.max(1))), idle: Mutex::default() })
    }

    /// These connections and no others.
    pub(crate) fn of(clients: Vec<Client>) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(clients.len()));
        Arc::new(Self { source: None, permits, idle: Mutex::new(clients.into_iter().map(Idle).collect()) })
    }

    /// Waits until a connection is free.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Loan, source::Error> {
        // The semaphore is never closed: an error would be a fault of ours, and a connection too many does less harm than an end.
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|error| source::Error::Unexpected { doing: "waiting for a connection", what: error.to_string() })?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let client = match idle {
            Some(Idle(client)) => client,
            None => match &self.source {
                Some(source) => Client::connect(source).await?,
                None => {
                    let message = "the connection that saw the tables as of one LSN is gone".to_owned();
                    return Err(source::Error::Connection { doing: "reading a fenced snapshot", message });
                }
            },
        };
        Ok(Loan { pool: Arc::clone(self), client, _permit: permit })
    }
}

impl Loan {
    pub(crate) fn give_back(self) {
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(Idle(self.client));
    }
}
