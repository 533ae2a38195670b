//! `tributary entity explain`: the plan of an entity in words.

use std::process::ExitCode;
use std::sync::Arc;

use joiner::explain::{Explanation, explain};

use crate::cli::EntityExplainArgs;
use crate::commands::aligned;
use crate::config::Config;
use crate::pipeline;

pub(super) fn run(args: &EntityExplainArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config)?;
    let plans: Vec<Arc<_>> = pipeline::plans(&config, &config.load_contracts()?)?.into_iter().map(Arc::new).collect();
    let names: Vec<String> = match &args.name {
        Some(name) => vec![name.clone()],
        None => plans.iter().map(|plan| plan.entity.to_string()).collect(),
    };
    let explained: Vec<String> = names.iter().map(|name| Ok(told(&explain(&plans, name)?))).collect::<anyhow::Result<_>>()?;
    print!("{}", explained.join("\n"));
    Ok(ExitCode::SUCCESS)
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

fn told(explained: &Explanation) -> String {
    let kind = if explained.grouped { "roll-up" } else { "entity" };
    let mut out = format!("{kind} {}, key {}\n\n", explained.entity, explained.key.join(", "));
    if let Some((column, span, nullable)) = &explained.time_to_live {
        let after = if span.milliseconds() == 0 { "at".to_owned() } else { format!("{span} after") };
        let never = if *nullable { ", and never where that is NULL" } else { "" };
        out.push_str(&format!(
            "gone {after} its {column}{never}, by the commit time of its source; its rows stay, and are found by that column when it comes due\n\n"
        ));
    }
    out.push_str("what matters of each table; a change of anything else is no output\n");
    let places = explained.places.iter();
    let rows: Vec<[String; 5]> = places
        .map(|place| {
            [place.path.clone(), place.table.clone(), listed(&place.columns), listed(&place.derived), listed(&place.unused)]
        })
        .collect();
    out.push_str(&aligned(["place", "table", "columns", "computed of the row", "not kept"], &rows));
    out.push_str("\nhow the state keeps rows; one copy serves every entity that clusters them alike\n");
    let indexes = explained.indexes.iter();
    let rows: Vec<[String; 4]> = indexes
        .map(|index| {
            let what = if index.whole_rows { "whole rows" } else { "links" };
            [index.table.clone(), listed(&index.by), what.to_owned(), listed(&index.shared_with)]
        })
        .collect();
    out.push_str(&aligned(["table", "by", "what", "shared with"], &rows));
    out.push_str("\nwhat a change reaches\n");
    for place in &explained.places {
        let reach = match (place.touches_one, place.way_up.is_empty()) {
            (_, true) if explained.grouped => "its group",
            (_, true) => "its own entity",
            (true, false) => "one entity",
            (false, false) => "as many entities as the steps lead to; what is more than one write holds is drained in chunks",
        };
        out.push_str(&format!("  {} ({}): {reach}\n", place.path, place.table));
        place.way_up.iter().for_each(|step| out.push_str(&format!("    {step}\n")));
        if place.in_parts {
            out.push_str("    aggregates over it are kept in parts: of all its rows, the few around the changed one are read\n");
        }
    }
    out.push_str("\neach entity reached is assembled twice, as it was and as it is, of one read of its rows; only one that differs goes out\n");
    out
}
