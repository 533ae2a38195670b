//! `tributary verify`: counts again what the source holds of all that was published, or looks through the archive.

use std::process::ExitCode;

use serde_json::json;

use super::{aligned, archive};
use crate::cli::VerifyArgs;
use crate::config::Config;

pub(crate) async fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    if args.archive {
        return archive::verify(args).await;
    }
    let config = Config::load(&args.config.config)?.of(args.source.as_ref().and_then(Option::as_deref))?;
    config.source().needs_database("`tributary verify`")?;
    let settings = config.importer(config.load_contracts()?)?;
    let provider = streams::config::open(&config.streams.provider).await?;
    let recount = importer::verify(&settings, &*provider).await?;
    if args.json {
        println!("{:#}", json!({"agrees": recount.agrees(), "recount": recount}));
    } else {
        print!("{}", shown(&recount));
    }
    Ok(if recount.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shown(recount: &importer::Recount) -> String {
    let mut out = format!("changes published in ({}, {}], against the change tables\n", recount.from, recount.to);
    let head = ["", "published", "captured", "differences", "not counted again"];
    let count = |number: u64| indicatif::HumanCount(number).to_string();
    let rows = recount.tables.iter().map(|(name, table)| {
        let (differences, uncounted) = (table.differences.len() as u64, table.uncounted.len() as u64);
        [name.to_string(), count(table.published), count(table.captured), count(differences), count(uncounted)]
    });
    out.push_str(&aligned(head, &rows.collect::<Vec<_>>()));
    for (name, table) in &recount.tables {
        for found in &table.differences {
            out.push_str(&format!(
                "{name}: in ({}, {}], {} were published and {} captured\n",
                found.from, found.to, found.published, found.captured
            ));
        }
        for range in &table.uncounted {
            out.push_str(&format!("{name}: ({}, {}] was not counted again: {}\n", range.from, range.to, range.why));
        }
    }
    out.push_str(if recount.agrees() {
        "Everything that could be counted again agrees.\n"
    } else {
        "Published and captured differ: look at the ranges above (dead letters are counted as published), and read the tables again with `tributary snapshot`.\n"
    });
    out
}
