//! What the parts of a pipeline say of themselves, put together for `GET /v1/status`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value as Json, json};

use crate::snapshot_progress::SnapshotWatch;

/// More for the status, beside what the parts say (the demo's hints).
pub(crate) type StatusExtra = Arc<dyn Fn() -> Json + Send + Sync>;

/// What each part says of itself when it is asked.
#[derive(Clone)]
pub(crate) struct Status {
    name: String,
    importers: Vec<Arc<SourcePart>>,
    pub(crate) joiner: Option<joiner::Handle>,
    /// A state that is built for other definitions.
    pub(crate) next: Option<joiner::Handle>,
    pub(crate) archivers: Vec<archive::StatusHandle>,
    pub(crate) checkpoints: Option<checkpoints::StatusHandle>,
    extra: Option<StatusExtra>,
}

impl Status {
    /// `name` is the source's; of several, all names.
    pub(crate) fn new(name: &str, extra: Option<StatusExtra>) -> Self {
        Self {
            name: name.to_owned(),
            importers: Vec::new(),
            joiner: None,
            next: None,
            archivers: Vec::new(),
            checkpoints: None,
            extra,
        }
    }

    pub(crate) fn add_importer(&mut self, name: &str, importer: importer::StatusHandle) {
        self.importers.push(Arc::new(SourcePart { name: name.to_owned(), importer, watch: Mutex::default() }));
    }

    pub(crate) fn importers(&self) -> impl Iterator<Item = importer::StatusHandle> {
        self.importers.iter().map(|source| source.importer.clone())
    }

    /// The members are described at [`api::StatusSource`].
    pub(crate) fn json(&self) -> Json {
        let mut status = json!({"source": {"name": self.name}});
        match self.importers.as_slice() {
            [] => {}
            [only] => status["source"] = only.json(),
            several => status["sources"] = several.iter().map(|source| source.json()).collect(),
        }
        if let Some(joiner) = &self.joiner {
            let joined = joiner.status();
            let sinks: Vec<Json> = joined.sinks.iter().map(|sink| self::sink(sink, &joined)).collect();
            let sum = |count: fn(&joiner::TableCounts) -> u64| joined.tables.values().map(count).sum::<u64>();
            let (applied, emitted) = (sum(|table| table.applied), joined.outbox_head);
            let mut part = json!(joined);
            for (name, source) in &joined.sources {
                part["sources"][name]["age_ms"] = json!(age_ms(source.commit_time_ms));
            }
            if let Some(members) = part.as_object_mut() {
                members.remove("sinks");
                members.insert("applied_total".to_owned(), json!(applied));
                members.insert("emitted_total".to_owned(), json!(emitted));
            }
            status["joiner"] = part;
            status["sinks"] = json!(sinks);
        }
        if let Some(next) = &self.next {
            let joined = next.status();
            status["rebuild"] = json!({"phase": joined.phase, "frontier": joined.frontier, "commit_time_ms": joined.commit_time_ms, "failure": joined.failure,
                "warning": joined.warning, "state_bytes": joined.state_bytes});
        }
        match self.archivers.as_slice() {
            [] => {}
            [only] => status["archive"] = json!(only.get()),
            several => status["archives"] = several.iter().map(|archiver| json!(archiver.get())).collect(),
        }
        if let Some(checkpoints) = &self.checkpoints {
            status["checkpoints"] = json!(checkpoints.get());
        }
        if let Some(extra) = &self.extra {
            status["demo"] = extra();
        }
        status
    }
}

/// A source whose importer runs here.
struct SourcePart {
    name: String,
    importer: importer::StatusHandle,
    /// For the speed of the snapshot.
    watch: Mutex<SnapshotWatch>,
}

impl SourcePart {
    fn json(&self) -> Json {
        let status = &self.importer.get();
        let tables = &status.tables;
        let by_name = |value: fn(&importer::TableStatus) -> Json| {
            tables.iter().map(|(name, table)| (name.to_string(), value(table))).collect::<Map<_, _>>()
        };
        let snapshot = self.watch.lock().unwrap_or_else(PoisonError::into_inner).look(status, Instant::now());
        json!({
            "name": self.name,
            "phase": status.activity,
            "epoch": status.epoch,
            "captured_lsn": status.captured_lsn,
            "published_lsn": status.published_lsn,
            "published_commit_time_ms": status.published_commit_time_ms,
            "lag_ms": status.lag_ms,
            "events_total": tables.values().map(|table| table.published).sum::<u64>(),
            "dead_lettered_total": tables.values().map(|table| table.dead_lettered).sum::<u64>(),
            "tables": by_name(|table| json!(table.published)),
            "table_details": by_name(|table| json!(table)),
            "snapshot": snapshot,
            "last_error": status.last_error,
            "warnings": status.warnings,
        })
    }
}

/// How long ago it was committed; none where that is not known.
fn age_ms(commit_time_ms: i64) -> Option<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let now = i64::try_from(now.as_millis()).ok()?;
    (commit_time_ms > 0).then(|| (now - commit_time_ms).max(0))
}

/// How far a load is, and when it will have ended as it goes.
fn load_progress(load: &joiner::SinkLoad) -> Json {
    let left = load.entities_expected.map(|expected| expected.saturating_sub(load.entities));
    let remaining = left.filter(|_| load.entities_per_second > 0).map(|left| left.div_ceil(load.entities_per_second));
    let mut part = json!(load);
    part["remaining_seconds"] = json!(remaining);
    part
}

fn sink(sink: &joiner::SinkStatus, joined: &joiner::Status) -> Json {
    let caught_up = sink.behind == 0 && sink.cursor.is_some();
    json!({
        "name": sink.name,
        "state": sink.state,
        // A sink with nothing before it in the outbox holds the joiner's frontier.
        "frontier": if caught_up { json!(joined.frontier) } else { Json::Null },
        "lag_ms": if caught_up { json!(0) } else { Json::Null },
        "cursor": sink.cursor,
        "behind": sink.behind,
        "overtaken": sink.overtaken,
        "written_total": sink.written,
        "rejected_total": sink.rejected,
        "dead_letters": sink.dead_letters,
        "load": sink.load.map(|load| load_progress(&load)),
        "error": sink.error,
    })
}
