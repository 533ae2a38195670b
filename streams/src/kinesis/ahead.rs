//! How much a reader reads ahead of whoever reads from it: a bound in bytes, over all shards.
//!
//! A shard's task reserves what it expects before it asks Kinesis, and corrects that when the answer is there. The correction never waits: a task that waited for room while
//! it held an answer could wait for room that only its own answer's reader makes. So the bound may be passed by what the answers under way were underestimated by. An answer
//! that is handed over in several batches waits for room between them; what it waits for is then with whoever reads.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Clone)]
pub(super) struct Ahead {
    used: Arc<watch::Sender<usize>>,
    bound: usize,
}

/// Bytes that are held, or are about to be; given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    ahead: Ahead,
    bytes: usize,
}

impl Ahead {
    pub(super) fn new(bound: usize) -> Self {
        Self { used: Arc::new(watch::Sender::new(0)), bound: bound.max(1) }
    }

    /// Waits until less than the bound is held, and takes `bytes` more.
    pub(super) async fn reserve(&self, bytes: usize) -> Held {
        let mut changes = self.used.subscribe();
        loop {
            // Marked before looking: what is given back after the look is then a change.
            changes.mark_unchanged();
            let mut taken = false;
            self.used.send_if_modified(|used| {
                taken = *used < self.bound;
                *used += if taken { bytes } else { 0 };
                // Nobody waits for there to be more.
                false
            });
            if taken {
                return Held { ahead: self.clone(), bytes };
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }
}

impl Held {
    /// It is so many bytes.
    pub(super) fn correct(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        self.ahead.used.send_modify(|used| *used = *used + bytes - before);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ahead.used.send_modify(|used| *used -= self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_bound_holds_back_and_lets_go() {
        let ahead = Ahead::new(100);
        let mut first = ahead.reserve(60).await;
        let second = ahead.reserve(60).await;
        assert!(ahead.reserve(1).now_or_never().is_none());
        first.correct(30);
        let third = ahead.reserve(50).now_or_never();
        assert!(third.is_some() && ahead.reserve(1).now_or_never().is_none());
        drop(second);
        assert!(ahead.reserve(1).now_or_never().is_some());
        let waiting = tokio::spawn({
            let ahead = ahead.clone();
            let held = ahead.reserve(100).await;
            async move {
                let _held = held;
                ahead.reserve(1).await.bytes
            }
        });
        drop((first, third));
        assert!(ahead.reserve(0).now_or_never().is_none());
        waiting.abort();
        let _ = waiting.await;
        assert_eq!(*ahead.used.borrow(), 0);
    }
}
