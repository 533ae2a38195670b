//! A joiner that is fed by hand: everything that was published is kept, so that it can be opened again and go on where its state says.

use joiner::{Config, Engine, Page};
use schemas::Lsn;
use schemas::event::ChangeEvent;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, StreamName};
use serde_json::Value as Json;
use streams::{Batch, Layout};

use super::{change, encode, item, items, order, orders, record};

pub(crate) struct Shop {
    pub(crate) engine: Engine,
    pub(crate) config: Config,
    events: Vec<bytes::Bytes>,
    records: Vec<ProgressRecord>,
    /// Where the outbox has been read to.
    cursor: u64,
}

fn shard() -> ShardId {
    ShardId("0".into())
}

fn stream() -> StreamName {
    Layout::Shared.stream("p", &orders().name)
}

/// Hands events over that follow the one with the number `after`.
pub(crate) fn feed(engine: &mut Engine, after: u64, events: impl Iterator<Item = bytes::Bytes>) {
    let records = (after + 1..).zip(events).map(|(number, data)| (SequenceNumber::from(number), data)).collect();
    engine.events(&Batch { stream: stream(), shard: shard(), records }).unwrap();
}

/// A record that covers the events up to a number.
pub(crate) fn read_up_to(mut record: ProgressRecord, last: u64) -> ProgressRecord {
    record.positions.entry(stream()).or_default().insert(shard(), SequenceNumber::from(last));
    record
}

pub(crate) fn tell(engine: &mut Engine, number: u64, record: ProgressRecord) {
    engine.progress(&Layout::progress_stream("p"), &shard(), &SequenceNumber::from(number), record).unwrap();
    engine.advance().unwrap();
}

impl Shop {
    pub(crate) fn open(config: Config) -> Self {
        let engine = Engine::open(&config).unwrap();
        Self { engine, config, events: Vec::new(), records: Vec::new(), cursor: 0 }
    }

    pub(crate) fn feed(&mut self, events: &[ChangeEvent]) {
        let from = self.events.len();
        self.events.extend(events.iter().map(|event| bytes::Bytes::from(encode(event))));
        self.hand_over(from);
    }

    fn hand_over(&mut self, from: usize) {
        feed(&mut self.engine, from as u64, self.events[from..].iter().cloned());
    }

    pub(crate) fn tell(&mut self, record: ProgressRecord) {
        self.records.push(read_up_to(record, self.events.len() as u64));
        self.progress(self.records.len() - 1);
    }

    fn progress(&mut self, nth: usize) {
        tell(&mut self.engine, nth as u64 + 1, self.records[nth].clone());
    }

    pub(crate) fn order_changes(&mut self, at: u8, from: &str, to: &str) {
        self.feed(&[change(orders(), at, 1, Some(order(1, from)), Some(order(1, to)))]);
        self.tell(record(Phase::Tail, at - 1, at, &[(&orders(), 1)]));
    }

    pub(crate) fn item_changes(&mut self, at: u8, of: i64, line: i64) {
        self.feed(&[change(items(), at, 1, Some(item(of, line, 100)), Some(item(of, line, 200)))]);
        self.tell(record(Phase::Tail, at - 1, at, &[(&items(), 1)]));
    }

    /// As after a kill: what was read and not applied is forgotten.
    pub(crate) fn restart(self) -> Self {
        self.closed_while(|_| ())
    }

    /// The same; something is done to the state before it is opened again.
    pub(crate) fn closed_while(self, done: impl FnOnce(&std::path::Path)) -> Self {
        let Self { engine, config, events, records, cursor } = self;
        drop(engine);
        done(&config.state_dir);
        Self { engine: Engine::open(&config).unwrap(), config, events, records, cursor }
    }

    /// The same over another state: one that this one's was before.
    pub(crate) fn over(&self, config: Config) -> Self {
        let (events, records) = (self.events.clone(), self.records.clone());
        Self { engine: Engine::open(&config).unwrap(), config, events, records, cursor: self.cursor }
    }

    /// Reads the outbox from where it begins.
    pub(crate) fn read_from_the_beginning(self) -> Self {
        Self { cursor: 0, ..self }
    }

    /// Reads what was published after the state's positions.
    pub(crate) fn catch_up(&mut self) {
        let read = |stream: &StreamName| {
            let position = self.engine.positions().get(stream).and_then(|shards| shards.get(&shard()));
            position.map_or(0, |sequence| sequence.to_u64().unwrap() as usize)
        };
        let (events, records) = (read(&stream()), read(&Layout::progress_stream("p")));
        self.hand_over(events);
        for nth in records..self.records.len() {
            self.progress(nth);
        }
    }

    pub(crate) fn frontier(&self) -> Lsn {
        self.engine.handle().outbox().head().borrow().frontier
    }

    /// What the outbox tells from where it was read last: key, version, document (null: there is none any more).
    pub(crate) fn told(&mut self) -> Vec<(String, Lsn, Json)> {
        let Page::Changes { changes, .. } = self.engine.handle().outbox().read_after(self.cursor, usize::MAX).unwrap() else {
            panic!("trimmed")
        };
        self.cursor += changes.len() as u64;
        let read = |text: std::sync::Arc<str>| serde_json::from_str(&text).unwrap();
        let told = changes.into_iter().map(|(_, change)| change);
        told.map(|change| (change.key.to_string(), change.version, change.document.map_or(Json::Null, read))).collect()
    }
}
