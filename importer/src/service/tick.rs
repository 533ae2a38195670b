//! One session: from opening state and streams to the first failure, tick by tick. The steps, and why each record takes effect once, are argued in [`super`].

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use schemas::progress::Phase;
use streams::Provider;

use super::config::ServiceConfig;
use super::input::{Gathered, Input, Limits};
use super::state::{Plan, Progress, State, Tick};
use super::translate::{Made, Taken, Translated, Translator};
use crate::chunks::crashed;
use crate::error::Error;
use crate::metrics;
use crate::publish::{Publisher, Publishing, Refused};
use crate::status::{Activity, StatusHandle};
use crate::verify::records;

/// What a session is opened with.
pub(super) struct Opening<'a> {
    pub(super) config: &'a ServiceConfig,
    pub(super) input: &'a dyn Provider,
    pub(super) output: &'a dyn Provider,
    pub(super) translator: &'a Arc<Translator>,
    pub(super) epoch: u64,
    pub(super) record_limit: Option<usize>,
    pub(super) status: &'a StatusHandle,
}

pub(super) struct Session<'a> {
    config: &'a ServiceConfig,
    input: &'a dyn Provider,
    translator: Arc<Translator>,
    status: StatusHandle,
    state: Arc<State>,
    progress: Progress,
    publisher: Publisher,
}

impl<'a> Session<'a> {
    pub(super) async fn open(opening: Opening<'a>) -> Result<Self, Error> {
        let Opening { config, input, output, translator, epoch, record_limit, status } = opening;
        let name = config.output.name.clone();
        let (directory, stream, source) = (config.data_dir.clone(), config.stream.clone(), name.clone());
        let (state, progress) = blocking(move || State::open(&directory, &source, &stream)).await?;
        let now = u64::try_from(now_ms()).unwrap_or(0);
        let progress = progress.unwrap_or_else(|| Progress::new(&name, &config.stream, Tick(now)));
        // Before anything is written: an input that is missing leaves no trace.
        Input::open(input, &config.stream, &progress.read).await?;
        let publishing = translator.contracts().map(|contract| Publishing { contract: contract.clone(), breaks: None });
        let (publishing, database) = (publishing.collect(), &config.stream.0);
        let mut publisher =
            Publisher::new(&config.output, output, publishing, database, epoch, record_limit, status.clone()).await?;
        publisher.go_on_from(progress.written.clone());
        let (translator, status) = (Arc::clone(translator), status.clone());
        let mut session = Self { config, input, translator, status, state, progress, publisher };
        if session.progress.announced {
            session.check_not_behind(output).await?;
        }
        session.begin().await?;
        Ok(session)
    }

    /// Begins the history: a snapshot of no rows, on which the first tick stands. Its LSN is saved before it is published.
    async fn begin(&mut self) -> Result<(), Error> {
        if !self.progress.announced {
            self.save().await?;
            let lsn = self.progress.tick.lsn();
            self.publisher
                .finish(Phase::SnapshotComplete { consistent_from: lsn }, (lsn, lsn), now_ms(), Default::default())
                .await?;
            self.progress.announced = true;
            self.progress.wrote(self.publisher.positions(), self.publisher.told());
            self.save().await?;
        }
        let lsn = self.progress.tick.lsn();
        self.status.update(|status| {
            status.activity = Activity::Tailing;
            status.published_lsn = Some(lsn);
            status.captured_lsn = Some(lsn);
            status.consistent_from = Some(lsn);
        });
        Ok(())
    }

    /// Works until something fails.
    pub(super) async fn run(&mut self) -> Error {
        match self.ticks().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn ticks(&mut self) -> Result<std::convert::Infallible, Error> {
        if let Some(plan) = self.progress.plan.clone() {
            self.again(&plan).await?;
        }
        let mut input = Input::open(self.input, &self.config.stream, &self.progress.read).await?;
        let ServiceConfig { tick_records, tick_bytes, linger, heartbeat, .. } = *self.config;
        let limits = Limits { records: tick_records, bytes: tick_bytes, patience: heartbeat, linger };
        loop {
            let gathered = input.gather(limits).await?;
            let began = Instant::now();
            let plan = Plan {
                tick: self.progress.tick.next(),
                time_ms: now_ms(),
                to: gathered.to(),
                mapping: self.translator.fingerprint().to_owned(),
            };
            let (records, translated) = self.translate(&plan, gathered).await?;
            self.progress.plan = Some(plan.clone());
            self.save().await?;
            self.publish(&plan, &records, translated).await?;
            metrics::tick(&self.config.output.name, began.elapsed().as_secs_f64());
        }
    }

    /// Publishes a tick of which some may have been published.
    async fn again(&mut self, plan: &Plan) -> Result<(), Error> {
        if plan.mapping != self.translator.fingerprint() {
            return Err(Error::MappingChanged { lsn: plan.tick.lsn() });
        }
        tracing::info!(tick = %plan.tick.lsn(), "the tick that was being published is published again");
        let input = Input::open(self.input, &self.config.stream, &self.progress.read).await?;
        let gathered = input.gather_again(&plan.to).await?;
        let (records, translated) = self.translate(plan, gathered).await?;
        self.publish(plan, &records, translated).await
    }

    async fn translate(&mut self, plan: &Plan, gathered: Gathered) -> Result<(Vec<Taken>, Translated), Error> {
        let (translator, state, plan) = (Arc::clone(&self.translator), Arc::clone(&self.state), plan.clone());
        blocking(move || {
            let records = gathered.records();
            let translated = translator.tick(&state, &plan, &records)?;
            Ok((records, translated))
        })
        .await
    }

    /// Publishes a tick, then its record, then writes that it is done.
    async fn publish(&mut self, plan: &Plan, records: &[Taken], translated: Translated) -> Result<(), Error> {
        let Translated { made, rows, skipped, unknown } = translated;
        for made in made {
            match made {
                Made::Change { table, event } => self.publisher.event(table, &event).await?,
                Made::Letter { table, record, position, problem } => {
                    let Taken { shard, sequence, data } = &records[record];
                    let stream = &self.config.stream;
                    self.publisher.refuse(Refused { table, position, stream, shard, sequence, data, problem: &problem }).await?;
                }
            }
        }
        let (from, to) = (self.progress.tick.lsn(), plan.tick.lsn());
        self.publisher.finish(Phase::Tail, (from, to), plan.time_ms, Default::default()).await?;
        self.progress.pass(plan);
        self.progress.wrote(self.publisher.positions(), self.publisher.told());
        let (state, progress) = (Arc::clone(&self.state), self.progress.clone());
        blocking(move || state.done(&rows, &progress)).await?;
        self.account(plan, skipped, &unknown);
        Ok(())
    }

    async fn save(&mut self) -> Result<(), Error> {
        let (state, progress) = (Arc::clone(&self.state), self.progress.clone());
        blocking(move || state.save(&progress)).await
    }

    fn account(&self, plan: &Plan, skipped: u64, unknown: &[u64]) {
        let lsn = plan.tick.lsn();
        let lag_ms = (now_ms() - plan.time_ms).max(0);
        let source = &self.config.output.name;
        metrics::lag(source, lag_ms as f64 / 1000.0);
        metrics::passed_over(source, skipped);
        for (contract, count) in self.translator.contracts().zip(unknown) {
            metrics::unknown_deletions(source, &contract.table.name, *count);
        }
        self.status.update(|status| {
            status.published_lsn = Some(lsn);
            status.captured_lsn = Some(lsn);
            status.published_commit_time_ms = Some(plan.time_ms);
            status.lag_ms = Some(lag_ms);
            status.last_error = None;
        });
    }

    /// A data directory that was put back to an earlier state would give numbers to ticks that others have had.
    async fn check_not_behind(&mut self, output: &dyn Provider) -> Result<(), Error> {
        let known = self.progress.plan.as_ref().map_or(self.progress.tick, |plan| plan.tick).lsn();
        let later = match records(&self.config.output, output, &self.progress.told).await {
            // Quiet for longer than the streams' retention: there is nothing left to tell by.
            Err(Error::Stream(streams::Error::Trimmed { .. })) => return Ok(()),
            later => later?,
        };
        match later.iter().map(|record| record.to_lsn).max() {
            Some(published) if published > known => {
                Err(Error::BehindItsStreams { path: self.config.data_dir.clone(), known, published })
            }
            _ => Ok(()),
        }
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Runs work on the state where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(crashed(&error)))
}
