//! A process that stands still for a while, and goes on as if nothing had happened: a virtual machine that is moved, a disk that hangs, a collector of garbage elsewhere on the machine.
//!
//! What it has asked of others goes on without it, and so does the time. Whatever acts outside of the process passes here: its own tasks ([`Ice::around`]), and its requests ([`Ice::pass`]).

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct Frozen {
    is: bool,
    /// Whoever came by meanwhile.
    waiting: Vec<Waker>,
}

#[derive(Clone, Default)]
pub(crate) struct Ice(Arc<Mutex<Frozen>>);

impl Ice {
    pub(crate) fn freeze(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is = true;
    }

    pub(crate) fn thaw(&self) {
        let waiting = {
            let mut frozen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            frozen.is = false;
            std::mem::take(&mut frozen.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is
    }

    fn stops(&self, context: &Context<'_>) -> bool {
        let mut frozen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if frozen.is {
            frozen.waiting.push(context.waker().clone());
        }
        frozen.is
    }

    /// Goes on when nothing is frozen.
    pub(crate) async fn pass(&self) {
        std::future::poll_fn(|context| if self.stops(context) { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    /// Work that makes no progress while it is frozen.
    pub(crate) async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|context| if self.stops(context) { Poll::Pending } else { work.as_mut().poll(context) }).await
    }
}
