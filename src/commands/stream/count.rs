//! `tributary stream count`: what is in the streams, against what the progress records promised.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use indicatif::{HumanCount, ProgressBar};
use schemas::event::Op;
use schemas::parse::Head;
use schemas::progress::{SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::{Position, TableName};
use serde_json::json;
use streams::{Positions, Provider, StreamReader};

use super::account::{Account, Kept, Report};
use super::decoding::Decoder;
use super::open;
use super::reading::Records;
use crate::cli::StreamCountArgs;
use crate::commands::aligned;
use crate::config::Config;

pub(super) async fn run(args: &StreamCountArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load_one(&args.config)?;
    let provider = open(&config).await?;
    let report = count(&config, provider, args).await?;
    if args.json {
        println!("{:#}", json!({"agrees": report.agrees(), "count": report}));
    } else {
        print!("{}", shown(&report));
    }
    Ok(if report.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn count(config: &Config, provider: Arc<dyn Provider>, args: &StreamCountArgs) -> anyhow::Result<Report> {
    let bar = ProgressBar::new_spinner();
    let mut decoder = Decoder::new(config)?;
    let mut records = Records::open(config, &*provider).await?;
    let mut account: Option<Account> = None;
    let mut followed = BTreeMap::new();
    let mut before: Option<ShardPositions> = None;
    let stream_of = |table: &TableName| config.layout().stream(config.prefix(), table);
    while let Some(mut record) = records.next().await? {
        if args.to.is_some_and(|to| record.to_lsn > to) {
            break;
        }
        if args.from.is_some_and(|from| record.from_lsn < from) {
            before = Some(record.positions);
            continue;
        }
        // Only a beginning of one's own is one before which nothing is missed.
        let account = account.get_or_insert_with(|| Account::new(args.from.map(|_| record.from_lsn)));
        let mut counting = Counting { account, decoder: &mut decoder, tables: &args.tables };
        for streams in [&mut record.counts, &mut record.dead_lettered, &mut record.reread_counts] {
            streams.retain(|table, _| counting.takes(table));
        }
        let mut kept = Kept::All;
        for (stream, positions) in &record.positions {
            if !args.tables.is_empty() && !args.tables.iter().any(|table| stream_of(table) == *stream) {
                continue;
            }
            if !followed.contains_key(stream) {
                let after = before.as_ref().and_then(|before| before.get(stream)).cloned().unwrap_or_default();
                followed.insert(stream.clone(), Followed::open(Arc::clone(&provider), stream, after).await?);
            }
            let Some(reading) = followed.get_mut(stream) else { continue };
            let earlier = before.as_ref().map(|before| before.get(stream));
            let of_stream = reading.up_to(positions, earlier, &mut counting).await?;
            kept = worse(kept, of_stream);
        }
        account.record(&record, kept, stream_of);
        before = Some(record.positions);
        bar.set_message(format!("counted up to {}", record.to_lsn));
        bar.tick();
    }
    bar.finish_and_clear();
    Ok(account.unwrap_or_default().finish())
}

fn worse(one: Kept, other: Kept) -> Kept {
    match (one, other) {
        (Kept::NotAll, _) | (_, Kept::NotAll) => Kept::NotAll,
        (Kept::Perhaps, _) | (_, Kept::Perhaps) => Kept::Perhaps,
        (Kept::All, Kept::All) => Kept::All,
    }
}

/// Where events are counted.
struct Counting<'a> {
    account: &'a mut Account,
    decoder: &'a mut Decoder,
    /// None: all.
    tables: &'a [TableName],
}

impl Counting<'_> {
    fn takes(&self, table: &TableName) -> bool {
        self.tables.is_empty() || self.tables.contains(table)
    }

    /// What has to be kept of each record until it is counted; none for an event of a table that is not.
    fn digests<'r>(&mut self, records: impl Iterator<Item = &'r [u8]>) -> anyhow::Result<Vec<Option<Digest>>> {
        let Self { account, decoder, tables } = self;
        decoder.heads(records, |head: Option<&Head<'_>>| {
            let Some(head) = head else { return Some(None) };
            let wanted = |table: &TableName| table.table == *head.table && table.schema == *head.schema;
            let counted = tables.is_empty() || tables.iter().any(wanted);
            counted.then(|| Some((account.table(&head.schema, &head.table), head.op, head.position)))
        })
    }
}

/// An event's table by number; none for what cannot be read.
type Digest = Option<(usize, Op, Position)>;

/// A stream that is read as far as the records speak of it. Records of other shards that come meanwhile wait, as digests.
struct Followed {
    provider: Arc<dyn Provider>,
    stream: StreamName,
    reader: Box<dyn StreamReader>,
    tips: Positions,
    shards: BTreeMap<ShardId, Shard>,
}

#[derive(Default)]
struct Shard {
    /// Where reading began within the shard, if not at its start.
    after: Option<SequenceNumber>,
    first: Option<SequenceNumber>,
    read: Option<SequenceNumber>,
    waiting: VecDeque<(SequenceNumber, Digest)>,
}

impl Followed {
    /// The tips are asked for after those of the progress stream, so that they are no older than any record that is counted.
    async fn open(provider: Arc<dyn Provider>, stream: &StreamName, after: Positions) -> Result<Self, streams::Error> {
        let tips = provider.tips(stream).await?;
        let reader = provider.reader(stream, &after).await?;
        let begun = |(shard, after): (ShardId, SequenceNumber)| {
            (shard, Shard { read: Some(after.clone()), after: Some(after), ..Shard::default() })
        };
        let shards = after.into_iter().map(begun).collect();
        Ok(Self { provider, stream: stream.clone(), reader, tips, shards })
    }

    /// Counts everything up to these positions. `before` are those of the record before, if there is one.
    async fn up_to(
        &mut self,
        positions: &Positions,
        before: Option<Option<&Positions>>,
        counting: &mut Counting<'_>,
    ) -> anyhow::Result<Kept> {
        let mut kept = Kept::All;
        for (shard, to) in positions {
            // What lies beyond the tip is not there any more, and will not come.
            let Some(end) = self.tips.get(shard).map(|tip| tip.min(to).clone()) else {
                kept = worse(kept, Kept::NotAll);
                continue;
            };
            while self.shards.get(shard).and_then(|shard| shard.read.as_ref()).is_none_or(|read| *read < end) {
                self.take_in(counting).await?;
            }
            let Some(shard_state) = self.shards.get_mut(shard) else { continue };
            let before = before.map(|before| before.and_then(|before| before.get(shard)));
            kept = worse(kept, shard_state.kept(to, before));
            while let Some((_, digest)) = shard_state.waiting.pop_front_if(|(number, _)| &*number <= to) {
                match digest {
                    Some((table, op, position)) => counting.account.event(table, op, position),
                    None => counting.account.unreadable(),
                }
            }
        }
        // Where the streams say less than the store knows. It is asked after reading: what is whole then was whole before.
        if kept != Kept::All && self.provider.is_whole(&self.stream).await? {
            kept = Kept::All;
        }
        Ok(kept)
    }

    async fn take_in(&mut self, counting: &mut Counting<'_>) -> anyhow::Result<()> {
        let batch = self.reader.next().await?;
        let place = || format!("stream {}, shard {}", batch.stream, batch.shard);
        let digests = counting.digests(batch.records.iter().map(|(_, data)| &data[..])).with_context(place)?;
        let shard = self.shards.entry(batch.shard).or_default();
        for ((number, _), digest) in batch.records.into_iter().zip(digests) {
            shard.first.get_or_insert_with(|| number.clone());
            if let Some(digest) = digest {
                shard.waiting.push_back((number.clone(), digest));
            }
            shard.read = Some(number);
        }
        Ok(())
    }
}

impl Shard {
    /// Whether everything between the record before (none: this is the first; some of none: it did not know the shard) and `to` can be here.
    fn kept(&self, to: &SequenceNumber, before: Option<Option<&SequenceNumber>>) -> Kept {
        match (&self.after, &self.first, before) {
            // The store tells where something is missing after a position.
            (Some(_), _, _) => Kept::All,
            (None, Some(first), _) if first > to => Kept::NotAll,
            (None, Some(first), Some(Some(before))) if before < first => Kept::NotAll,
            (None, _, Some(_)) => Kept::All,
            (None, _, None) => Kept::Perhaps,
        }
    }
}

fn shown(report: &Report) -> String {
    let mut out = format!("{} progress records, ({}, {}]\n", HumanCount(report.records), report.from, report.to);
    let head = ["", "creates", "updates", "deletes", "rows read", "promised", "found", "dead-lettered", "repeats"];
    let rows = report.tables.iter().map(|(table, counts)| {
        let found = counts.changes() + counts.rows;
        let numbers = [
            counts.creates,
            counts.updates,
            counts.deletes,
            counts.rows,
            counts.promised,
            found,
            counts.dead_lettered,
            counts.repeats,
        ];
        let mut cells = numbers.map(|number| HumanCount(number).to_string()).to_vec();
        cells.insert(0, table.to_string());
        cells.try_into().unwrap_or_default()
    });
    out.push_str(&aligned(head, &rows.collect::<Vec<[String; 9]>>()));
    for found in &report.differences {
        let places: Vec<String> = found
            .between
            .iter()
            .map(|place| {
                let after = place.after.as_ref().map_or_else(|| "the start".to_owned(), |after| format!("after {after}"));
                format!("{}, shard {}, {after} to {}", place.stream, place.shard, place.to)
            })
            .collect();
        out.push_str(&format!(
            "{}: in ({}, {}], {} were promised and {} found; {}\n",
            found.table,
            found.range.from,
            found.range.to,
            found.promised,
            found.found,
            places.join("; ")
        ));
    }
    for gap in &report.gaps {
        out.push_str(&format!("no progress record speaks of ({}, {}]\n", gap.from, gap.to));
    }
    if let (Some(first), Some(last)) = (report.trimmed.first(), report.trimmed.last()) {
        out.push_str(&format!(
            "{} records in ({}, {}] were not compared: the streams do not keep their events any more\n",
            report.trimmed.len(),
            first.from,
            last.to
        ));
    }
    for found in &report.aged_or_missing {
        out.push_str(&format!(
            "{}: in ({}, {}], the oldest range that is kept, {} were promised and {} found: the others have aged, or are missing; the stream cannot tell which\n",
            found.table, found.range.from, found.range.to, found.promised, found.found
        ));
    }
    if report.unpromised > 0 {
        out.push_str(&format!("{} changes wait for their progress record\n", report.unpromised));
    }
    if report.unreadable > 0 {
        out.push_str(&format!("{} records are no events: `tributary stream tail` shows them\n", report.unreadable));
    }
    out.push_str(if report.agrees() && report.aged_or_missing.is_empty() && report.trimmed.is_empty() {
        "Everything that was promised is there.\n"
    } else if report.agrees() {
        "Everything that was promised and is surely still kept is there.\n"
    } else {
        "Streams and progress records differ: look at the ranges above, and read the tables again with `tributary snapshot`.\n"
    });
    out
}
