//! What is seen of joiners from outside: what their states hold, what their outboxes tell, and what they have saved.

use checkpoints::begin_with;
use joiner::{Engine, Handle, Head, Page};
use schemas::KeyRange;
use schemas::change::EntityKey;
use schemas::progress::ShardPositions;
use tempfile::TempDir;

use super::{JoinerProcess, Site};
use crate::disk::{self, STATE};
use crate::history::{Document, Event};
use crate::shares::is_of;

/// Of positions in shards, those that are in both, and the lesser ones.
fn least(mut ours: ShardPositions, theirs: &ShardPositions) -> ShardPositions {
    ours.retain(|stream, shards| {
        let Some(theirs) = theirs.get(stream) else { return false };
        shards.retain(|shard, position| match theirs.get(shard) {
            Some(other) => {
                *position = other.clone().min(position.clone());
                true
            }
            None => false,
        });
        true
    });
    ours
}

impl Site {
    /// Takes note of a checkpoint that a joiner has made. The streams may then forget what the newest ones of all `shares` have passed.
    pub(crate) async fn look_at_checkpoints(
        &mut self,
        joiner: &JoinerProcess,
        trims: bool,
        shares: &[KeyRange],
    ) -> anyhow::Result<()> {
        let share = joiner.share;
        let known = self.newest.get(&share).copied().unwrap_or_default();
        let Some(last) = joiner.saved.get().last.filter(|last| last.number > known) else { return Ok(()) };
        self.newest.insert(share, last.number);
        let (process, number, frontier) = (joiner.process, last.number, last.frontier);
        self.history.add(Event::Checkpoint { process, share, number, frontier });
        if !trims {
            return Ok(());
        }
        let Some((_disk, engine)) = self.restored(share).await? else { return Ok(()) };
        self.passed.insert(share, engine.positions().clone());
        // Of a share that is new nothing is known yet.
        let passed: Option<Vec<&ShardPositions>> = shares.iter().map(|share| self.passed.get(share)).collect();
        if let Some((first, others)) = passed.as_deref().and_then(<[_]>::split_first) {
            let passed = others.iter().fold((*first).clone(), |passed, other| least(passed, other));
            self.streams.trim(&passed);
        }
        Ok(())
    }

    /// What the newest checkpoints of a share are, restored on a disk of its own.
    async fn restored(&self, share: KeyRange) -> anyhow::Result<Option<(TempDir, Engine)>> {
        let disk = disk::directory()?;
        let config = self.joiner_config(&disk.path().join(STATE), share)?;
        let restored = begin_with(&self.storage.untroubled(share), &config, true).await;
        if let Err(error) = &restored {
            self.not_restored(error);
        }
        Ok(if let Ok(Some(_)) = restored { Some((disk, Engine::open(&config)?)) } else { None })
    }

    /// Tells what is in the object storage of a joiner's share, and what the newest checkpoint holds.
    pub(crate) async fn tell_checkpoints(&self, joiner: &JoinerProcess) -> anyhow::Result<()> {
        let share = joiner.share;
        let found = self.storage.found(share).await?;
        let (keep, unnamed) = (self.plan.checkpoints.keep.get(), found.unnamed);
        self.history.add(Event::Stored { share, numbers: found.numbers, keep, unnamed });
        if let Some((_disk, mut engine)) = self.restored(share).await? {
            // It is looked at as of where it stands.
            engine.await_published(Vec::new());
            engine.advance()?;
            if let Some((head, documents)) = Self::documents(&engine.handle(), share)? {
                self.history.add(Event::State { process: joiner.process, as_of: head.frontier, documents });
            }
        }
        Ok(())
    }

    /// All entities of a share as its state has them, if it can be read now.
    fn documents(handle: &Handle, share: KeyRange) -> anyhow::Result<Option<(Head, Vec<Document>)>> {
        let head = *handle.outbox().head().borrow();
        if !head.live {
            return Ok(None);
        }
        let mut documents = Vec::new();
        for (entity, most) in [("order", 20), ("customer", 10)] {
            for key in (1..=most).map(|key| key.to_string()).filter(|key| is_of(share, entity, key)) {
                if let Some((_, document)) = handle.get(entity, &EntityKey::from_text(key.clone()))? {
                    documents.push(Document { entity: entity.to_owned(), key, document: Some(document) });
                }
            }
        }
        Ok(Some((head, documents)))
    }

    pub(crate) fn tell_state(&self, joiner: &JoinerProcess) -> anyhow::Result<()> {
        if let Some((head, documents)) = Self::documents(&joiner.handle, joiner.share)? {
            self.history.add(Event::State { process: joiner.process, as_of: head.frontier, documents });
        }
        Ok(())
    }

    /// A subscriber, of which it is known where it stands in which outbox, reads on.
    pub(crate) fn subscribe(&self, joiner: &JoinerProcess, subscriber: &mut Option<(u64, u64)>) -> anyhow::Result<()> {
        let (outbox, process) = (joiner.handle.outbox(), joiner.process);
        let head = *outbox.head().borrow();
        if !head.live {
            return Ok(());
        }
        let incarnation = head.incarnation;
        let cursor = subscriber.filter(|(of, _)| *of == incarnation).map(|(_, sequence)| sequence);
        let page = cursor.map(|sequence| outbox.read_bounded(sequence, usize::MAX, usize::MAX)).transpose()?;
        let Some(Page::Changes { changes, head }) = page else {
            // What is seen is to be on the disk first.
            outbox.read_bounded(head.sequence, 0, 0)?;
            if let Some((head, documents)) = Self::documents(&joiner.handle, joiner.share)? {
                let (sequence, as_of) = (head.sequence, head.frontier);
                self.history.add(Event::ToldAnew { process, incarnation, sequence, as_of, documents });
                *subscriber = Some((incarnation, sequence));
            }
            return Ok(());
        };
        for (sequence, change) in changes {
            let (version, document) = (change.version, change.document.map(|text| text.to_string()));
            let change = Document { entity: change.entity.to_string(), key: change.key.to_string(), document };
            self.history.add(Event::Told { process, incarnation, sequence, version, change });
        }
        *subscriber = Some((incarnation, head.sequence));
        self.history.add(Event::ToldUpTo { process, incarnation, sequence: head.sequence, frontier: head.frontier });
        Ok(())
    }
}
