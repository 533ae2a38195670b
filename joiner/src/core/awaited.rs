//! What is waited for before anything is told.
//!
//! # States that begin anew
//! Two states may go to the same vector by different ways, and the sum says nothing of two vectors that are ahead of one another. Say that sinks were told of a document as of (a1, b1), and that another state (restored, or
//! built of the streams) tells them of it as of (a2, b0), with a2 > a1 and b0 < b1: if the sum is the lesser one it is refused, and if b0 to b1 does not touch the document, nobody would say again what has changed from a1 to a2. So a state that is new
//! tells nothing until each source has been read to where its progress stream ended when the state was opened ([`Core::await_published`]). Whatever was told before stands for a vector that is not ahead of that one in any component, so all that the
//! state tells has a greater version, or the same with the same content (INV-5 then refuses nothing that is needed).
//!
//! Of one source all vectors are on one chain. It is waited for as well, for what lies between two steps.
//! - *A document that changed and changed back.* Sinks were told of it as of a version between them; the state, which takes larger steps where much is there to be read, finds it as it was, and would tell nothing. So whatever a change touches
//!   while it is waited is told as it stands then ([`Standing::forgets`](crate::state::meta::Standing::forgets)), whether or not it differs from what it was: a document that differs at any LSN in between from what it is at the end is touched in between.
//! - *Definitions that have changed since the checkpoint, and back again.* Sinks hold documents of others than the state serves, in versions that are ahead of it. Those sinks are loaded ([`sinks::Sink::describe`]), and the load has to be as new as anything that they hold.
//!
//! Nothing is late for it: sinks were told what is read again, and topics hear of each entity once.

use rocksdb::WriteBatch;
use schemas::Lsn;
use schemas::progress::{ShardId, StreamName};
use streams::Positions;

use super::{Core, NO_SNAPSHOT};
use crate::error::Error;
use crate::state::meta::{SourceStanding, Stage};
use crate::status::FanOut;
use crate::step::Report;

const AWAITING: &str = "the state is new, or was restored: entities are told once every source has been read to where it had been published when the joiner started";

impl Core {
    /// Whether [`Core::await_published`] is to be called.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.standing.awaiting || self.standing.stage() == Stage::Empty && !self.standing.live
    }

    /// Nothing is told until the progress streams have been read to where they end now.
    pub(crate) fn await_published(&mut self, ends: Vec<(StreamName, Positions)>) {
        (self.standing.awaiting, self.awaited) = (true, Some(ends));
    }

    /// Whether progress streams have been read to these ends, and all that they tell has been joined.
    fn has_read(&self, ends: &[(StreamName, Positions)]) -> bool {
        let read =
            |stream: &StreamName, shard: &ShardId| self.standing.positions.get(stream).and_then(|shards| shards.get(shard));
        ends.iter().all(|(stream, ends)| ends.iter().all(|(shard, end)| read(stream, shard) >= Some(end)))
    }

    /// The version of what has been joined, where that is all that had been published up to these ends.
    pub(crate) fn has_joined(&self, ends: &[(StreamName, Positions)]) -> Option<Lsn> {
        (self.standing.is_consistent() && self.standing.pending.is_none() && self.has_read(ends))
            .then_some(self.standing.frontier)
    }

    /// Takes note that what was awaited has been read, if it has.
    pub(super) fn pass_awaited(&mut self) -> Result<bool, Error> {
        let awaited = self.awaited.as_ref().filter(|_| self.standing.awaiting);
        if awaited.is_none_or(|awaited| !self.has_read(awaited)) {
            return Ok(false);
        }
        (self.standing.awaiting, self.awaited) = (false, None);
        if self.standing.live && self.standing.complete_after == Lsn::MAX {
            // Of one that was merged.
            self.standing.complete_after = self.standing.frontier;
        }
        if self.standing.go_live() && self.standing.pending.is_none() && self.standing.is_consistent() {
            self.settle_head();
        }
        self.tools.store.write_with(WriteBatch::default(), &self.standing)?;
        let mut report = Report::default();
        self.settle(&mut report)?;
        self.add(&report);
        Ok(true)
    }

    /// What is waited for.
    pub(crate) fn warning(&self) -> Option<String> {
        if self.sources.iter().any(|source| source.headless) {
            return Some(NO_SNAPSHOT.to_owned());
        }
        let standing = &self.standing;
        if standing.awaiting && matches!(standing.stage(), Stage::Live { .. }) {
            return Some(AWAITING.to_owned());
        }
        if standing.frontier < standing.mixed_until {
            let (until, head) = (standing.mixed_until, standing.head_frontier);
            return Some(format!(
                "the state was merged of several: entities stay as of {head} until what they had read is read again, up to {until}"
            ));
        }
        let head = self.standing.head_frontier;
        if standing.sources.iter().any(SourceStanding::is_torn) {
            return Some(format!(
                "a large step was interrupted: entities stay as of {head} until its changes have been read again"
            ));
        }
        let sources = self.standing.sources.iter();
        let holding: Vec<&str> = sources.flat_map(|source| source.rereads.holding(source.frontier)).collect();
        if !holding.is_empty() {
            let tables = holding.join(", ");
            return Some(format!(
                "{tables} is being read again by the importer: entities stay as of {head} until it is complete"
            ));
        }
        let FanOut { rows, since, owners_told } = self.fan_out()?;
        Some(format!(
            "documents that refer to {rows} rows changed from {since} on are being told, {owners_told} so far: the frontier stays at {head} until all are"
        ))
    }
}
