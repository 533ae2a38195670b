//! The joiner's outbox, as the API wants to see it.

use std::sync::Arc;

use api::{ChangeFeed, FeedError, Head, Page};
use async_trait::async_trait;
use joiner::Outbox;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Bytes of documents that one read hands over, beside its limit of changes: documents may be large.
const PAGE_BYTES: usize = 8 << 20;

/// What is answered where another joiner works.
pub(crate) const STANDS_BY: &str = "this joiner stands by, and another one works: ask that one";

pub(crate) struct Feed {
    outbox: Outbox,
    working: watch::Receiver<bool>,
    head: watch::Sender<Head>,
}

impl Feed {
    /// `working`: whether this joiner works, and does not stand by.
    pub(crate) fn new(outbox: Outbox, working: watch::Receiver<bool>) -> Self {
        let head = watch::Sender::new(convert(&outbox.head().borrow()));
        Self { outbox, working, head }
    }

    /// Passes the joiner's head on until the shutdown.
    pub(crate) async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let mut theirs = self.outbox.head();
        loop {
            self.head.send_replace(convert(&theirs.borrow_and_update()));
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = theirs.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The frontier is only one once the first load has ended.
fn convert(head: &joiner::Head) -> Head {
    Head { sequence: head.sequence, frontier: head.live.then_some(head.frontier), commit_time_ms: head.commit_time_ms }
}

#[async_trait]
impl ChangeFeed for Feed {
    async fn read_after(&self, sequence: u64, limit: usize) -> Result<Page, FeedError> {
        if let Some(message) = self.refuses() {
            return Err(FeedError { message });
        }
        let outbox = self.outbox.clone();
        // RocksDB reads block.
        let read = tokio::task::spawn_blocking(move || outbox.read_bounded(sequence, limit, PAGE_BYTES)).await;
        match read {
            Ok(Ok(joiner::Page::Changes { changes, head })) => Ok(Page::Changes { changes, head: convert(&head) }),
            Ok(Ok(joiner::Page::Trimmed { oldest, .. })) => Ok(Page::Trimmed { oldest }),
            Ok(Err(error)) => Err(FeedError { message: error.to_string() }),
            Err(error) => Err(FeedError { message: error.to_string() }),
        }
    }

    fn refuses(&self) -> Option<String> {
        (!*self.working.borrow()).then(|| STANDS_BY.to_owned())
    }

    fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    fn versions(&self) -> Option<Arc<dyn sinks::Versions>> {
        self.outbox.is_of_several_sources().then(|| Arc::new(self.outbox.clone()) as Arc<dyn sinks::Versions>)
    }

    fn incarnation(&self) -> u64 {
        self.outbox.head().borrow().incarnation
    }
}
