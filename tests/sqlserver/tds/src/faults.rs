//! Faults on command: what a network and a busy server do to clients now and then, done at a chosen moment.
//!
//! A [`Faults`] handle is shared with a running server; what is injected through it takes effect from then on, over all connections, and
//! each fault but the delay strikes once. A cut closes the TCP connection without a word, as a lost network does.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::session::SqlError;

/// Something to go wrong. `matching` is a part of the request's text (the SQL, or the procedure's name), compared without case; empty matches all.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The connection that sends the nth packet from now is cut instead of sending it (1: the next).
    CutAtPacket { nth: u64 },
    /// The connection that sends more than so many bytes from now is cut after them.
    CutAfterBytes { bytes: u64 },
    /// The connection is cut instead of handing the nth matching request to the engine.
    CutAtRequest { matching: String, nth: u64 },
    /// The nth matching request runs, and the connection is cut before a byte of its answer is sent: the answer is lost.
    LoseAnswer { matching: String, nth: u64 },
    /// The nth matching request's answer is cut in the middle of the row after so many; an answer of fewer rows is lost.
    CutInResult { matching: String, nth: u64, rows: u64 },
    /// The nth matching request fails with the error, without reaching the engine.
    FailRequest { matching: String, nth: u64, error: SqlError },
    /// Every answer waits so long before its first packet, until cleared.
    DelayAnswers { by: Duration },
    /// The next connections are closed as soon as they are made.
    RefuseConnections { count: u64 },
}

impl Fault {
    /// The part of the requests' texts that it waits for.
    fn matching(&self) -> Option<&str> {
        match self {
            Fault::CutAtRequest { matching, .. }
            | Fault::LoseAnswer { matching, .. }
            | Fault::CutInResult { matching, .. }
            | Fault::FailRequest { matching, .. } => Some(matching),
            _ => None,
        }
    }
}

/// The handle; clones share their faults.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many faults are armed, to look at the list only when there are some.
    armed: AtomicUsize,
    struck: AtomicUsize,
    list: Mutex<Vec<Armed>>,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// Packets, bytes or requests seen since it was injected.
    seen: u64,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Run,
    Cut,
    LoseAnswer,
    CutAfterRows(u64),
    Fail(SqlError),
}

impl Faults {
    pub fn new() -> Faults {
        Faults::default()
    }

    pub fn inject(&self, fault: Fault) {
        let mut list = self.list();
        list.push(Armed { fault, seen: 0 });
        self.0.armed.store(list.len(), Ordering::Release);
    }

    /// Takes back all faults that have not struck.
    pub fn clear(&self) {
        let mut list = self.list();
        list.clear();
        self.0.armed.store(0, Ordering::Release);
    }

    /// How many faults are waiting.
    pub fn armed(&self) -> usize {
        self.0.armed.load(Ordering::Acquire)
    }

    /// How many times a fault has struck since the handle was made; delays are not counted.
    pub fn struck(&self) -> usize {
        self.0.struck.load(Ordering::Acquire)
    }

    /// How many requests the first armed fault that waits for this text has seen; 0 if none waits for it.
    pub fn requests(&self, text: &str) -> u64 {
        let waits = |armed: &&Armed| armed.fault.matching() == Some(text);
        self.list().iter().find(waits).map_or(0, |armed| armed.seen)
    }

    fn list(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.0.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn strike(&self, list: &mut Vec<Armed>, at: usize) {
        list.remove(at);
        self.0.armed.store(list.len(), Ordering::Release);
        self.0.struck.fetch_add(1, Ordering::AcqRel);
    }

    /// What a request with this text meets: the first fault in the order of injection whose turn it is.
    pub(crate) fn on_request(&self, text: &str) -> Verdict {
        if self.armed() == 0 {
            return Verdict::Run;
        }
        let text = text.to_ascii_lowercase();
        let mut list = self.list();
        let mut due = None;
        for (at, armed) in list.iter_mut().enumerate() {
            let (Fault::CutAtRequest { nth, .. }
            | Fault::LoseAnswer { nth, .. }
            | Fault::CutInResult { nth, .. }
            | Fault::FailRequest { nth, .. }) = armed.fault
            else {
                continue;
            };
            if armed.fault.matching().is_some_and(|matching| text.contains(&matching.to_ascii_lowercase())) {
                armed.seen += 1;
                if armed.seen >= nth && due.is_none() {
                    due = Some(at);
                }
            }
        }
        let Some(at) = due else { return Verdict::Run };
        let verdict = match &list[at].fault {
            Fault::LoseAnswer { .. } => Verdict::LoseAnswer,
            Fault::CutInResult { rows, .. } => Verdict::CutAfterRows(*rows),
            Fault::FailRequest { error, .. } => Verdict::Fail(error.clone()),
            _ => Verdict::Cut,
        };
        self.strike(&mut list, at);
        verdict
    }

    /// Before so many packets of so many bytes altogether are sent: how many of the bytes may go out before the connection is cut.
    pub(crate) fn on_send(&self, packets: u64, bytes: u64, packet_bytes: u64) -> Option<u64> {
        if self.armed() == 0 {
            return None;
        }
        let mut list = self.list();
        let mut due = None;
        for (at, armed) in list.iter_mut().enumerate() {
            let (unit, limit, of) = match armed.fault {
                Fault::CutAtPacket { nth } => (packet_bytes, nth.saturating_sub(1), packets),
                Fault::CutAfterBytes { bytes: limit } => (1, limit, bytes),
                _ => continue,
            };
            if due.is_none() && armed.seen + of > limit {
                due = Some((at, (limit - armed.seen) * unit));
            }
            armed.seen += of;
        }
        let (at, allowed) = due?;
        self.strike(&mut list, at);
        Some(allowed.min(bytes))
    }

    pub(crate) fn delay(&self) -> Option<Duration> {
        if self.armed() == 0 {
            return None;
        }
        self.list().iter().find_map(|armed| match armed.fault {
            Fault::DelayAnswers { by } => Some(by),
            _ => None,
        })
    }

    pub(crate) fn refuses_connection(&self) -> bool {
        if self.armed() == 0 {
            return false;
        }
        let mut list = self.list();
        let Some(at) = list.iter().position(|armed| matches!(armed.fault, Fault::RefuseConnections { .. })) else {
            return false;
        };
        list[at].seen += 1;
        if matches!(list[at].fault, Fault::RefuseConnections { count } if list[at].seen >= count) {
            self.strike(&mut list, at);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_matching_request_is_struck_once() {
        let faults = Faults::new();
        faults.inject(Fault::CutAtRequest { matching: "Orders".to_owned(), nth: 2 });
        let verdicts = ["select * from ORDERS", "select 1", "delete orders", "delete orders"].map(|sql| faults.on_request(sql));
        assert_eq!(verdicts, [Verdict::Run, Verdict::Run, Verdict::Cut, Verdict::Run]);
        faults.inject(Fault::CutAtRequest { matching: "Orders".to_owned(), nth: 9 });
        faults.on_request("insert orders");
        assert_eq!((faults.requests("Orders"), faults.requests("items")), (1, 0));
        faults.clear();
        assert_eq!((faults.armed(), faults.struck()), (0, 1));
    }

    #[test]
    fn packets_are_counted_over_sends() {
        let faults = Faults::new();
        faults.inject(Fault::CutAtPacket { nth: 4 });
        assert_eq!(faults.on_send(2, 1000, 500), None);
        assert_eq!(faults.on_send(3, 1300, 500), Some(500));
        assert_eq!(faults.on_send(3, 1300, 500), None);
    }

    #[test]
    fn bytes_are_counted_over_sends() {
        let faults = Faults::new();
        faults.inject(Fault::CutAfterBytes { bytes: 1010 });
        assert_eq!(faults.on_send(2, 1000, 500), None);
        assert_eq!(faults.on_send(1, 300, 500), Some(10));
    }
}
