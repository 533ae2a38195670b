//! From commit to queryable, measured from outside: a transaction is committed by an ordinary client, and the sink is asked until it answers with what was written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use schemas::change::EntityKey;
use sinks::EntityReader;
use tokio_util::sync::CancellationToken;

use super::client::{self, Client, Target};

/// The customer whose e-mail address the probe changes.
const CUSTOMER: u32 = 2;

/// How long a probe may take before the demo calls itself broken.
const LIMIT: Duration = Duration::from_secs(60);

/// Measured latencies, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Mutex<Vec<f64>>);

impl Latencies {
    fn push(&self, milliseconds: f64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(milliseconds);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// p50 and p99, in milliseconds; zeros before the first.
    pub(crate) fn percentiles(&self) -> (f64, f64) {
        let mut sorted = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sorted.sort_by(f64::total_cmp);
        let at =
            |share: f64| sorted.get(((sorted.len() as f64 - 1.0) * share).round().max(0.0) as usize).copied().unwrap_or_default();
        (at(0.5), at(0.99))
    }
}

/// Probes until it is told to stop. The first probe only waits for the first load to end.
pub(crate) async fn probe(
    target: Target,
    reader: Arc<dyn EntityReader>,
    latencies: Arc<Latencies>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut client = target.connect().await?;
    mark(&mut client, reader.as_ref(), "first", LIMIT).await?;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0u64.. {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = pace.tick() => {}
        }
        let taken = mark(&mut client, reader.as_ref(), &format!("probe-{number}"), LIMIT).await?;
        latencies.push(taken.as_secs_f64() * 1000.0);
    }
    Ok(())
}

/// Commits a mark and waits until it can be queried: the time in between.
pub(crate) async fn mark(
    client: &mut Client,
    reader: &dyn EntityReader,
    mark: &str,
    limit: Duration,
) -> anyhow::Result<Duration> {
    client::execute(client, &format!("UPDATE dbo.customers SET email = '{mark}@example.com' WHERE id = {CUSTOMER}")).await?;
    let committed = Instant::now();
    let expected = format!("\"{mark}@example.com\"");
    let key = EntityKey::from_parts([CUSTOMER.to_string()]);
    loop {
        // Before the first load the sink may not have its tables yet.
        if let Ok(Some(stored)) = reader.get("customer", &key).await
            && stored.document.contains(&expected)
        {
            return Ok(committed.elapsed());
        }
        if committed.elapsed() > limit {
            bail!("what was committed is not queryable after {limit:?}: look at the log and at /v1/status");
        }
        // A question each millisecond: the measure's resolution.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
