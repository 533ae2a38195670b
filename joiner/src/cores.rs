//! Who works when, where there are fewer cores than work.
//!
//! A step has parts that use all threads and parts that one thread must do alone: above all the write. What is read meanwhile is sorted out beside it ([`crate::consume`]). Left to the system, that goes on beside the parts that use all
//! threads, which take the longer for it, and is done, for there is room for so much and no more, when the others begin. So it waits while a step uses all threads: a core that waits for what is read uses none.

use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Cores(watch::Sender<bool>);

/// While it lives, a step uses all threads.
pub(crate) struct Used<'a>(&'a Cores);

impl Cores {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// A step begins to use all threads.
    pub(crate) fn use_all(&self) -> Used<'_> {
        self.0.send_replace(true);
        Used(self)
    }

    /// Waits until no step uses all threads.
    pub(crate) async fn free(&self) {
        // The sender is here.
        drop(self.0.subscribe().wait_for(|used| !used).await);
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        self.0.0.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn what_is_read_waits_for_as_long_as_a_step_uses_all_threads() {
        let cores = Cores::new();
        cores.free().await;
        let used = cores.use_all();
        let mut waiting = pin!(cores.free());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(used);
        waiting.await;
        cores.free().await;
    }
}
