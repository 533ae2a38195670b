//! `tributary stream tail`: decoded events, one a line, as they come.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use schemas::TableName;
use schemas::change::EntityKey;
use schemas::progress::{ProgressRecord, StreamName};
use schemas::table::TableSchema;
use serde_json::{Value as Json, json};
use streams::{Batch, Positions, Provider};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::decoding::Decoder;
use super::reading::{From, Section};
use super::shown::{self, Event};
use super::{Named, open, put_line};
use crate::cli::StreamTailArgs;
use crate::commands::interrupted;
use crate::config::Config;

/// Batches that wait to be written.
const WAITING: usize = 4;

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Events,
    Progress,
    DeadLetters,
    /// Whatever its producer puts there.
    Others,
}

/// What is shown of what is read.
struct View {
    tables: BTreeMap<TableName, Arc<TableSchema>>,
    only: Vec<TableName>,
    key: Option<EntityKey>,
    from: From,
    json: bool,
    raw: bool,
    decoder: Decoder,
}

pub(super) async fn run(args: &StreamTailArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load_one(&args.config)?;
    let contracts = config.load_contracts()?;
    let named = Named::new(&config, &contracts);
    let mut view = View {
        tables: contracts.iter().map(|contract| (contract.table.name.clone(), contract.table.clone())).collect(),
        only: args.tables.clone(),
        key: args.key.clone().map(EntityKey::from_text),
        from: From::parse(&args.from, jiff::Timestamp::now())?,
        json: args.json,
        raw: args.raw,
        decoder: Decoder::new(&config)?,
    };
    view.check()?;
    let kinds = kinds(args, &config, &named);
    let provider = open(&config).await?;
    let streams: Vec<StreamName> = kinds.keys().cloned().collect();
    let places = view.from.positions(&config, &*provider, &streams).await?;
    let (sender, mut batches) = mpsc::channel(WAITING);
    let mut readers = JoinSet::new();
    for (stream, after) in places {
        let kind = kinds[&stream];
        readers.spawn(read(provider.clone(), stream, kind, after, !args.no_follow, sender.clone()));
    }
    drop(sender);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut interruption = std::pin::pin!(interrupted());
    while left > 0 {
        let (kind, batch) = tokio::select! {
            interrupted = &mut interruption => {
                interrupted?;
                return Ok(ExitCode::SUCCESS);
            }
            batch = batches.recv() => match batch {
                Some(batch) => batch,
                None => break,
            },
            // One that has failed ends all of it: what it would have read would be missing without a word.
            Some(ended) = readers.join_next() => {
                ended??;
                continue;
            }
        };
        for (number, data) in &batch.records {
            let Some(line) = view.line(kind, &batch, number.as_str(), data) else { continue };
            left -= 1;
            if !put_line(&line)? || left == 0 {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    // The last of them may have failed.
    while let Some(ended) = readers.join_next().await {
        ended??;
    }
    Ok(ExitCode::SUCCESS)
}

/// The streams to read.
fn kinds(args: &StreamTailArgs, config: &Config, named: &Named) -> BTreeMap<StreamName, Kind> {
    let others = args.streams.iter().map(|stream| (StreamName(stream.clone()), Kind::Others));
    let mut kinds: BTreeMap<StreamName, Kind> = others.collect();
    if !args.no_events && kinds.is_empty() {
        let of_table = |table: &TableName| config.layout().stream(config.prefix(), table);
        let streams = if args.tables.is_empty() { named.events.clone() } else { args.tables.iter().map(of_table).collect() };
        kinds.extend(streams.into_iter().map(|stream| (stream, Kind::Events)));
    }
    if args.progress {
        kinds.insert(named.progress.clone(), Kind::Progress);
    }
    if args.dead_letters {
        kinds.insert(named.dead_letters.clone(), Kind::DeadLetters);
    }
    kinds
}

/// Hands over what a stream holds after `after`: up to where it stands now, or for ever.
async fn read(
    provider: Arc<dyn Provider>,
    stream: StreamName,
    kind: Kind,
    after: Positions,
    follow: bool,
    out: mpsc::Sender<(Kind, Batch)>,
) -> anyhow::Result<()> {
    let told = |error: streams::Error| match error {
        streams::Error::Trimmed { .. } => {
            anyhow::Error::from(error).context("what was asked for is not kept any more; --from start shows what is")
        }
        error => error.into(),
    };
    if follow {
        let mut reader = provider.reader(&stream, &after).await.map_err(told)?;
        while out.send((kind, reader.next().await.map_err(told)?)).await.is_ok() {}
    } else {
        let mut section = Section::open(&*provider, &stream, &after).await.map_err(told)?;
        while let Some(batch) = section.next().await.map_err(told)? {
            if out.send((kind, batch)).await.is_err() {
                break;
            }
        }
    }
    Ok(())
}

impl View {
    fn check(&self) -> anyhow::Result<()> {
        let known = || self.tables.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        for table in &self.only {
            if !self.tables.contains_key(table) {
                bail!("--table {table}: there is no contract of it; there are those of {}", known());
            }
        }
        if self.key.is_some() {
            let [table] = &self.only[..] else { bail!("--key: name the one --table that it is a key of") };
            if self.tables[table].key.is_empty() {
                bail!("--key: {table} has no key");
            }
        }
        Ok(())
    }

    fn takes(&self, table: &TableName) -> bool {
        self.only.is_empty() || self.only.contains(table)
    }

    /// The line for a record; none where it is not asked for.
    fn line(&mut self, kind: Kind, batch: &Batch, number: &str, data: &[u8]) -> Option<String> {
        let shown = match kind {
            Kind::Events => self.event(data),
            Kind::Progress => self.progress(data),
            Kind::DeadLetters => self.dead_letter(data),
            Kind::Others => Ok(Some(other(data))),
        };
        let (text, name, json) = match shown {
            Ok(shown) => shown?,
            Err(error) => {
                tracing::warn!(stream = %batch.stream, shard = %batch.shard, sequence_number = number, error = %format!("{error:#}"), "a record cannot be decoded");
                let text = format!("{}/{}/{number}: cannot be decoded: {error:#}", batch.stream, batch.shard);
                (text, "undecodable", json!({"error": format!("{error:#}"), "base64": BASE64_STANDARD.encode(data)}))
            }
        };
        Some(if self.raw {
            shown::raw(data)
        } else if self.json {
            json!({"stream": batch.stream, "shard": batch.shard, "sequence_number": number, name: json}).to_string()
        } else {
            text
        })
    }

    fn event(&mut self, data: &[u8]) -> anyhow::Result<Option<Shown>> {
        let event = Event::decode(&self.decoder.json(data)?)?;
        if !self.takes(&event.table) || self.from.passes_over(event.commit_lsn, event.commit_time_ms) {
            return Ok(None);
        }
        let table = self.tables.get(&event.table).map(Arc::as_ref);
        if let Some(key) = &self.key
            && !table.is_some_and(|table| event.has_key(table, key))
        {
            return Ok(None);
        }
        Ok(Some((event.line(table), "event", event.json)))
    }

    fn progress(&self, data: &[u8]) -> anyhow::Result<Option<Shown>> {
        let json: Json = serde_json::from_slice(data).context("no JSON")?;
        let record: ProgressRecord = serde_json::from_slice(data).context("no progress record")?;
        let passed = self.from.passes_over(record.to_lsn, record.commit_time_ms);
        Ok((!passed).then(|| (shown::progress(&record), "progress", json)))
    }

    fn dead_letter(&self, data: &[u8]) -> anyhow::Result<Option<Shown>> {
        let letter: Json = serde_json::from_slice(data).context("no JSON")?;
        let text = shown::dead_letter(&letter).context("no dead letter of Tributary's")?;
        let table: Option<TableName> = letter["table"].as_str().and_then(|table| table.parse().ok());
        let lsn = letter["position"]["commit_lsn"].as_str().and_then(|lsn| lsn.parse().ok()).unwrap_or(schemas::Lsn::MAX);
        let time = letter["event"]["source"]["ts_ms"].as_i64().unwrap_or(i64::MAX);
        let taken = table.is_none_or(|table| self.takes(&table)) && !self.from.passes_over(lsn, time);
        Ok(taken.then_some((text, "dead_letter", letter)))
    }
}

/// A record of which nothing is known.
fn other(data: &[u8]) -> Shown {
    match serde_json::from_slice(data) {
        Ok(json) => (shown::raw(data), "record", json),
        Err(_) => (shown::raw(data), "base64", BASE64_STANDARD.encode(data).into()),
    }
}

/// A record as a line for people, and as JSON under a name.
type Shown = (String, &'static str, Json);
