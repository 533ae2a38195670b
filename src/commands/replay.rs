//! `tributary replay`: what is archived from an LSN on, or what reading it would take.

use std::io::Write;
use std::process::ExitCode;

use archive::{Plan, Range};
use serde_json::json;

use super::{aligned, archive::open};
use crate::cli::ReplayArgs;
use crate::config::Config;

pub(crate) async fn run(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config.config)?;
    let archive = open(&config, args.config.source.as_deref()).await?;
    let range = Range { from: args.from, to: args.to, tables: args.tables, allow_gaps: args.allow_gaps };
    if args.dry_run {
        let plan = archive.plan(&range).await?;
        if args.json {
            println!("{:#}", json!(plan));
        } else {
            print!("{}", shown(&plan, &range));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut replay = archive.replay(range).await?;
    let mut out = std::io::stdout().lock();
    while let Some(events) = replay.next().await? {
        for event in events {
            out.write_all(&event)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn shown(plan: &Plan, range: &Range) -> String {
    let from = range.from.map_or_else(|| "the beginning".to_owned(), |from| from.to_string());
    let to = range.to.unwrap_or(plan.archived_to).min(plan.archived_to);
    let mut out = format!("from {from} to {to}, archived up to {}\n", plan.archived_to);
    let (count, bytes) = (indicatif::HumanCount, indicatif::HumanBytes);
    let objects = plan.objects.iter().map(|object| {
        let lsns = object.lsns.map_or_else(String::new, |(least, greatest)| format!("{least} to {greatest}"));
        [object.path.clone(), lsns, count(object.events).to_string(), bytes(object.bytes).to_string()]
    });
    let objects: Vec<_> = objects.collect();
    out.push_str(&aligned(["object", "LSNs", "events", "bytes"], &objects));
    let tables = plan.tables.iter().map(|(table, sum)| {
        [table.clone(), count(sum.objects).to_string(), count(sum.events).to_string(), bytes(sum.bytes).to_string()]
    });
    out.push_str(&aligned(["table", "objects", "events", "bytes"], &tables.collect::<Vec<_>>()));
    if !plan.begins.is_zero() {
        out.push_str(&format!("The archive begins after {}.\n", plan.begins));
    }
    for gap in &plan.gaps {
        out.push_str(&format!("A gap: {gap}.\n"));
    }
    for missing in &plan.missing {
        out.push_str(&format!("Missing: {missing}.\n"));
    }
    out.push_str("Objects are read whole; events outside the range are left out. Then the live streams follow:\n");
    let streams = plan.live_from.iter().flat_map(|(stream, shards)| {
        shards.iter().map(move |(shard, after)| [stream.to_string(), shard.to_string(), after.to_string()])
    });
    out.push_str(&aligned(["stream", "shard", "after"], &streams.collect::<Vec<_>>()));
    out
}
