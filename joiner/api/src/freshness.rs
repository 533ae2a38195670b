//! Waiting until a sink holds what a client must see (read your writes).
//!
//! `min_lsn` waits for the sink's frontier to reach it; of several sources it may name one or some of them (`min_lsn=shop=…`), and the wait is for what the sink says that it holds of those. `min_time` is a commit time at the source: once the outbox's head has a commit time at or after it, every change that was
//! committed by then is at or below the head's frontier, and the wait goes on for that LSN. The sink's frontier is asked at most once in [`FRESH_FOR`] for all who wait.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use schemas::{Lsn, Vector};
use sinks::{EntityReader, Reading};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::problem::Problem;
use crate::{ChangeFeed, Config};

const FRESH_FOR: Duration = Duration::from_millis(5);

/// What a client must see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) lsn: Option<Lsn>,
    /// Of sources by their names.
    pub(crate) sources: Vector,
    /// Milliseconds since 1970.
    pub(crate) time_ms: Option<i64>,
}

impl Wanted {
    /// From the headers; parameters are added by [`parameter`](Self::parameter).
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut wanted = Self::default();
        for (header, parameter) in [("tributary-min-lsn", "min_lsn"), ("tributary-min-time", "min_time")] {
            if let Some(value) = headers.get(header) {
                let text = value.to_str().map_err(|_| Problem::parameter(header, "is not text"))?;
                wanted.parameter(parameter, text)?;
            }
        }
        Ok(wanted)
    }

    /// Takes `min_lsn` and `min_time`; says whether the name was one of them.
    pub(crate) fn parameter(&mut self, name: &str, value: &str) -> Result<bool, Problem> {
        match name {
            "min_lsn" if value.contains('=') => {
                let wrong = |error: schemas::vector::ParseVectorError| Problem::parameter(name, error.to_string());
                self.sources = value.parse().map_err(wrong)?;
            }
            "min_lsn" => {
                self.lsn = Some(
                    value.parse().map_err(|error: schemas::lsn::ParseLsnError| Problem::parameter(name, error.to_string()))?,
                )
            }
            "min_time" => {
                let time: jiff::Timestamp =
                    value.parse().map_err(|error: jiff::Error| Problem::parameter(name, error.to_string()))?;
                self.time_ms = Some(time.as_millisecond());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

pub(crate) struct Freshness {
    reader: Arc<dyn EntityReader>,
    feed: Option<Arc<dyn ChangeFeed>>,
    wait_limit: Duration,
    query_limit: Duration,
    seen: Mutex<Option<(Instant, Reading<()>)>>,
}

impl Freshness {
    pub(crate) fn new(reader: Arc<dyn EntityReader>, feed: Option<Arc<dyn ChangeFeed>>, config: &Config) -> Self {
        let wait_limit = Duration::from_millis(config.wait_limit_ms);
        Self { reader, feed, wait_limit, query_limit: Duration::from_millis(config.query_limit_ms), seen: Mutex::new(None) }
    }

    /// What the sink holds, as of now.
    pub(crate) async fn reached(&self) -> Result<Reading<()>, Problem> {
        self.limited(self.reader.reached()).await
    }

    /// The same, at most [`FRESH_FOR`] old: for those who wait, of whom there may be many.
    async fn recently_reached(&self) -> Result<Reading<()>, Problem> {
        // Held while asking: whoever waits for the lock finds the answer fresh.
        let mut seen = self.seen.lock().await;
        if let Some((at, reached)) = &*seen
            && at.elapsed() < FRESH_FOR
        {
            return Ok(reached.clone());
        }
        let reached = self.reached().await?;
        *seen = Some((Instant::now(), reached.clone()));
        Ok(reached)
    }

    /// A query of the sink within its time limit.
    pub(crate) async fn limited<T>(&self, query: impl Future<Output = Result<T, sinks::Error>>) -> Result<T, Problem> {
        match timeout(self.query_limit, query).await {
            Ok(answer) => answer.map_err(|error| Problem::from_sink(&error)),
            Err(_) => Err(Problem::Unavailable { detail: format!("no answer within {} ms", self.query_limit.as_millis()) }),
        }
    }

    /// Returns once the sink holds what is wanted.
    pub(crate) async fn wait(&self, wanted: &Wanted) -> Result<(), Problem> {
        if *wanted == Wanted::default() {
            return Ok(());
        }
        match timeout(self.wait_limit, self.wait_without_limit(wanted)).await {
            Ok(reached) => reached,
            Err(_) => {
                let Reading { frontier, sources, .. } = self.reached().await?;
                let of_sources = |sources: &Vector| (!sources.is_empty()).then(|| format!("LSNs {sources}"));
                let have = of_sources(&sources).or_else(|| frontier.map(|lsn| format!("LSN {lsn}")));
                let lsn = wanted.lsn.map(|lsn| format!("LSN {lsn}")).or_else(|| of_sources(&wanted.sources));
                let time = wanted.time_ms.and_then(sinks::cloudevent::time).map(|time| format!("commit time {time}"));
                let wanted: Vec<String> = lsn.into_iter().chain(time).collect();
                Err(Problem::TooEarly { wanted: wanted.join(" and "), have })
            }
        }
    }

    async fn wait_without_limit(&self, wanted: &Wanted) -> Result<(), Problem> {
        let mut target = wanted.lsn.unwrap_or(Lsn::ZERO);
        if let Some(time_ms) = wanted.time_ms {
            let feed = self.feed.as_ref().ok_or_else(|| Problem::NotHere {
                detail:
                    "min_time needs the joiner's outbox, which this process does not have: ask the joiner's API, or use min_lsn"
                        .to_owned(),
            })?;
            let mut head = feed.head();
            let reached = head.wait_for(|head| head.frontier.is_some() && head.commit_time_ms >= time_ms).await;
            let reached = reached.map_err(|_| Problem::Unavailable { detail: "the joiner has stopped".to_owned() })?;
            target = target.max(reached.frontier.unwrap_or(Lsn::ZERO));
        }
        loop {
            let Reading { frontier, sources, .. } = self.recently_reached().await?;
            let unknown = wanted.sources.iter().find(|(name, _)| !sources.is_empty() && sources.get(name).is_none());
            if let Some((name, _)) = unknown {
                let known: Vec<&str> = sources.iter().map(|(name, _)| name).collect();
                let detail = format!("there is no source {name:?}; there are {}", known.join(", "));
                return Err(Problem::parameter("min_lsn", detail));
            }
            if frontier.is_some_and(|frontier| frontier >= target) && wanted.sources.is_within(&sources) {
                return Ok(());
            }
            sleep(FRESH_FOR).await;
        }
    }
}
