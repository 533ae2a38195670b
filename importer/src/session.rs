//! One connection's worth of importing: from a look at the catalog to the first failure.
//!
//! Everything is looked up anew with each session, so that whatever happened before (a failover, a new capture instance, a changed table) is
//! seen before anything is read on its account. A session also ends, without a failure, when the catalog has moved ([`End::Reopen`]). What outlives a session is the saved progress alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use schemas::Lsn;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::progress::Phase;
use schemas::{Position, TableName};
use streams::Provider;
use tokio::sync::watch;

use crate::config::{Config, SnapshotMode};
use crate::error::Error;
use crate::handle::Requests;
use crate::lease::Lease;
use crate::pool::Pool;
use crate::publish::{Publisher, Publishing};
use crate::saved::{Saved, SavedPhase, TableProgress};
use crate::settle::max_lsn;
use crate::status::{Activity, StatusHandle};
use crate::tables::{self, Opened};
use crate::{continuity, snapshot, tail};
use source::catalog::Database;
use source::changes::CaptureState;
use source::clock::{AsOf, Clock};
use source::{Catalog, Client};

pub(crate) use crate::tables::Table;

/// Why a session ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The catalog has moved.
    Reopen,
    /// All that was asked for is done.
    Done,
}

pub(crate) struct Session<'a> {
    pub(crate) config: &'a Config,
    pub(crate) status: StatusHandle,
    /// For questions; the readers have connections of their own.
    pub(crate) client: Client,
    pub(crate) publisher: Publisher,
    pub(crate) clock: Clock,
    pub(crate) tables: Arc<Vec<Table>>,
    pub(crate) saved: Saved,
    /// What was captured when the session was opened.
    pub(crate) known: CaptureState,
    pub(crate) requests: &'a Requests,
    /// When that was committed up to which everything has been published ([`tell_time`](Self::tell_time)); 0 if it is not known.
    pub(crate) commit_time_ms: i64,
    /// Since when rows of which tables have been read, and how many.
    pace: BTreeMap<usize, (Instant, u64)>,
    /// The cleanup job's, once it has been asked for; `None` within: it cannot be seen.
    pub(crate) retention_minutes: Option<Option<i64>>,
    /// The tables whose changes are in danger of being removed before they are read, by index, the most endangered first.
    pub(crate) favoured: watch::Sender<Vec<usize>>,
    lease: &'a Lease,
    /// When something last succeeded, for whoever decides on giving up.
    last_success: &'a mut Option<Instant>,
}

/// What a session is opened with.
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a Config,
    pub(crate) provider: &'a dyn Provider,
    pub(crate) lease: &'a Lease,
    pub(crate) clock: &'a Clock,
    pub(crate) status: &'a StatusHandle,
    pub(crate) requests: &'a Requests,
    pub(crate) record_limit: Option<usize>,
    pub(crate) last_success: &'a mut Option<Instant>,
}

/// Opens a session and works until it ends.
pub(crate) async fn run(opening: Opening<'_>) -> Result<End, Error> {
    let mut session = Session::open(opening).await?;
    if session.in_snapshot() {
        snapshot::run(&mut session).await?;
    }
    tail::run(&mut session).await
}

impl<'a> Session<'a> {
    /// Connects, reads the catalog, holds it against configuration, contracts and progress, and makes ready to read and publish.
    async fn open(opening: Opening<'a>) -> Result<Self, Error> {
        let Opening { config, provider, lease, clock, status, requests, record_limit, last_success } = opening;
        let saved = lease.load(&config.output.name).await?;
        let mut client = Client::connect(&config.source).await?;
        *last_success = Some(Instant::now());
        let database = Database::read(&mut client).await?;
        if !database.cdc_enabled {
            return Err(source::Error::CdcDisabled { database: database.name }.into());
        }
        // Before the catalog: what moves in between is looked at twice rather than never.
        let known = CaptureState::read(&mut client).await?;
        let catalog = Catalog::read(&mut client).await?;
        let mut saved = match saved {
            Some(saved) => saved,
            None => first_progress(config, &catalog, &mut client).await?,
        };
        continuity::check(&mut client, &mut saved).await?;
        status.update(|status| status.warnings.clear());
        let opened = tables::open(config, status, &catalog, &mut saved)?;
        if config.snapshot.mode == SnapshotMode::Never {
            without_snapshot(&mut saved);
        }
        let (mut read, mut published) = (Vec::new(), Vec::new());
        for Opened { table, contract, breaks } in opened {
            read.push(table);
            published.push(Publishing { contract, breaks });
        }
        let mut publisher =
            Publisher::new(&config.output, provider, published, &catalog.database, lease.epoch, record_limit, status.clone())
                .await?;
        publisher.go_on_from(saved.positions.clone());
        let clock = clock.of_server(&mut client).await?;
        let (status, tables) = (status.clone(), Arc::new(read));
        let mut session = Self {
            config,
            status,
            client,
            publisher,
            clock,
            tables,
            saved,
            known,
            requests,
            commit_time_ms: 0,
            pace: BTreeMap::new(),
            retention_minutes: None,
            favoured: watch::Sender::default(),
            lease,
            last_success,
        };
        session.tell_time().await?;
        Ok(session)
    }

    /// Takes note of the time that the published LSN stands for: the commit of the newest transaction captured by then.
    ///
    /// A snapshot may begin where nothing was ever captured. Its rows then stand for what the server's clock shows before the first of them is read: the tables count as consistent only from an LSN on below which
    /// lies everything that was committed before the last read ([`crate::settle`]), so whoever is told of the rows has all that was committed by then.
    pub(crate) async fn tell_time(&mut self) -> Result<(), Error> {
        let AsOf { committed_ms, now_ms } = self.clock.as_of(&mut self.client, self.saved.lsn()).await?;
        match committed_ms {
            Some(committed_ms) => self.commit_time_ms = committed_ms,
            None if self.in_snapshot() && self.commit_time_ms == 0 => self.commit_time_ms = now_ms,
            None => {}
        }
        Ok(())
    }

    /// Something was achieved: failures from here on are new ones.
    pub(crate) fn went_well(&mut self) {
        *self.last_success = Some(Instant::now());
        self.status.update(|status| status.last_error = None);
    }

    pub(crate) fn in_snapshot(&self) -> bool {
        matches!(self.saved.phase, SavedPhase::Snapshot { .. })
    }

    /// Connections for reading `most` things side by side.
    pub(crate) fn pool(&self, most: usize) -> Arc<Pool> {
        Pool::new(self.config.source.clone(), most)
    }

    pub(crate) fn index_of(&self, name: &TableName) -> Option<usize> {
        self.tables.iter().position(|table| table.schema.name == *name)
    }

    /// Publishes rows that were read from a table, as of where changes follow.
    pub(crate) async fn publish_rows(&mut self, index: usize, rows: Vec<Row>) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let commit_time_ms = i64::try_from(now).unwrap_or(i64::MAX);
        let (op, reading) = if self.in_snapshot() { (Op::Read, 0) } else { (Op::Reread, self.saved.reading) };
        let position = Position { commit_lsn: self.saved.lsn(), command_id: reading, ..Position::default() };
        let tables = Arc::clone(&self.tables);
        let Table { schema, controls, .. } = &tables[index];
        let count = rows.len() as u64;
        for row in rows.into_iter().filter_map(|row| controls.row(row)) {
            let event = ChangeEvent { table: schema.clone(), op, before: None, after: Some(row), position, commit_time_ms };
            self.publisher.event(index, &event).await?;
        }
        let (since, published) = self.pace.entry(index).or_insert_with(|| (Instant::now(), 0));
        *published += count;
        let seconds_a_row = since.elapsed().as_secs_f64() / (*published).max(1) as f64;
        self.status.table(&schema.name, |status| {
            status.snapshot_rows += count;
            let left = status.snapshot_rows_expected.map(|rows| rows.saturating_sub(status.snapshot_rows));
            status.snapshot_seconds_left = left.map(|left| (left as f64 * seconds_a_row).ceil() as u64);
        });
        Ok(())
    }

    /// Ends a range: everything in it has been acknowledged and a record says so. The progress that the record speaks of is then saved by [`save`](Self::save).
    pub(crate) async fn finish(&mut self, phase: Phase, from: Lsn, to: Lsn) -> Result<(), Error> {
        let told = self.saved.told();
        self.publisher.finish(phase, (from, to), self.commit_time_ms, told).await
    }

    pub(crate) async fn save(&mut self) -> Result<(), Error> {
        self.saved.positions.clone_from(self.publisher.positions());
        self.went_well();
        self.lease.save(&self.saved).await
    }
}

/// The progress before anything was done: a snapshot that begins now. Not saved yet: a start that publishes nothing leaves no trace.
async fn first_progress(config: &Config, catalog: &Catalog, client: &mut Client) -> Result<Saved, Error> {
    let captured = max_lsn(client).await?;
    let floors = catalog.tables.iter().filter_map(|table| table.instances.first()).map(|instance| instance.start_lsn);
    let lsn = snapshot::starting_lsn(captured, floors);
    tracing::info!(%lsn, "the initial snapshot begins");
    let phase = SavedPhase::Snapshot { lsn, tables: BTreeMap::new() };
    Ok(Saved::new(&config.output.name, &catalog.database, BTreeMap::new(), phase))
}

/// As if every table had been read.
fn without_snapshot(saved: &mut Saved) {
    if let SavedPhase::Snapshot { tables, .. } = &mut saved.phase {
        *tables = saved.tables.keys().map(|name| (name.clone(), TableProgress::complete())).collect();
    }
}

impl Session<'_> {
    pub(crate) fn activity(&self, activity: Activity) {
        self.status.update(|status| status.activity = activity);
    }
}
