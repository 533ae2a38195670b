//! `tributary check`: the configuration, the definitions, the source's health and the streams, as a table; or the least-privilege script.

use std::process::ExitCode;
use std::sync::Arc;

use importer::check::{CheckItem, Level};
use joiner::definitions::{Way, compare};
use schemas::ErrorClass;
use schemas::contract::{Compatibility, Contract, Difference};
use schemas::entity::EntityInfo;
use schemas::plan::Plan;
use schemas::table::TableSchema;

use super::{archive, entity, stream};
use crate::cli::CheckArgs;
use crate::config::Config;
use crate::config::service::Service;
use crate::pipeline::plans;

pub(crate) async fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config)?;
    if args.print_grants {
        return print_grants(&config.of(args.source.as_deref())?, args.login.as_deref()).await;
    }
    let contracts = config.load_contracts()?;
    let plans = plans(&config, &contracts)?;
    let names: Vec<_> = plans.iter().map(|plan| plan.info().name.to_string()).collect();
    let ok = |name: &str, detail: String| CheckItem { name: name.to_owned(), level: Level::Ok, detail, remedy: None };
    let mut items = vec![
        ok("configuration", format!("{} is well formed", args.config.config.display())),
        ok("entities", format!("{} fit their {} table contracts", names.join(", "), contracts.len())),
    ];
    items.extend(plans.iter().filter_map(time_to_live));
    items.extend(definitions(&config, &plans));
    let mut policies = Vec::new();
    for one in config.each()? {
        let contracts = one.load_contracts()?;
        let (streams, policy) = stream::check(&one, &contracts).await;
        let mut of_source = match one.source().stream() {
            None => database(&one, contracts).await?,
            Some(service) => stream_of_service(&one, service, contracts).await?,
        };
        if config.has_several_sources() {
            of_source.iter_mut().for_each(|item| item.name = format!("{}: {}", one.source().name, item.name));
        }
        items.extend(of_source);
        items.extend(streams);
        policies.extend(policy);
    }
    items.extend(archive::check(&config).await);
    let infos: Vec<_> = plans.iter().map(Plan::info).collect();
    items.extend(sinks(&config, &infos).await);
    print!("{}", table(&items));
    for policy in policies {
        println!("\n{}\n{policy}", stream::MENDS);
    }
    let count = |level| items.iter().filter(|item| item.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    println!("\n{} ok, {warnings} to look at, {problems} to mend before this can run.", count(Level::Ok));
    Ok(if problems > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// How long entities live, where they do not live on.
fn time_to_live(plan: &Plan) -> Option<CheckItem> {
    let time_to_live = plan.time_to_live?;
    let column = plan.root().table.columns.get(time_to_live.column.column)?;
    let after =
        if time_to_live.span.milliseconds() > 0 { format!("{} after its", time_to_live.span) } else { "at its".to_owned() };
    let stay = if column.nullable { "; those where that is NULL stay" } else { "" };
    let detail = format!("{} is gone {after} {}, by the source's commit time{stay}", plan.entity, column.name);
    Some(CheckItem { name: "time to live".to_owned(), level: Level::Ok, detail, remedy: None })
}

/// Which way the joiner's state comes to serve the definitions, where they have changed.
fn definitions(config: &Config, plans: &[Plan]) -> Option<CheckItem> {
    let plans = plans.iter().cloned().map(Arc::new).collect();
    let item = |level, detail| CheckItem { name: "joiner's state".to_owned(), level, detail, remedy: None };
    match config.joiner(plans).and_then(|settings| Ok(compare(&settings)?)) {
        Ok(None) => None,
        Ok(Some(difference)) if difference.way == Way::Nothing => Some(item(Level::Ok, entity::summary(&difference))),
        Ok(Some(difference)) => {
            Some(item(Level::Warning, format!("{} `tributary entity diff` says more", entity::summary(&difference))))
        }
        Err(error) => Some(item(Level::Problem, format!("{error:#}"))),
    }
}

async fn database(config: &Config, contracts: Vec<Contract>) -> anyhow::Result<Vec<CheckItem>> {
    let (source, filter) = (config.source().resolve()?, config.source().filter());
    let mut items = importer::check(&source, &filter).await;
    let settings = config.importer(contracts)?;
    items.extend(importer::check::time_zone(&source, settings.time_zone.as_deref()).await);
    if settings.snapshot.fenced {
        items.push(importer::check::fence(&source, &filter).await);
    }
    // A source that cannot be read has said so above.
    if let Ok(catalog) = importer::init::read_catalog(&source).await {
        items.push(contracts_item(&settings, &catalog));
    }
    Ok(items)
}

async fn stream_of_service(config: &Config, service: &Service, contracts: Vec<Contract>) -> anyhow::Result<Vec<CheckItem>> {
    let input = service.provider(None, &config.streams.provider).await?;
    Ok(importer::service::check::check(&config.service_importer(service, contracts), &*input).await)
}

/// What each sink's target says, without changing anything there.
async fn sinks(config: &Config, entities: &[EntityInfo]) -> Vec<CheckItem> {
    let mut items = Vec::new();
    for entry in &config.sinks {
        let item = |level, detail| CheckItem { name: format!("sink {}", entry.name()), level, detail, remedy: None };
        let checked = match entry.open() {
            Ok(mut sink) => {
                let limit = sink.key_limit_bytes();
                let long = entities.iter().filter_map(|info| Some((info, sinks::longest_key_bytes(info)?)));
                items.extend(long.filter(|(_, bytes)| *bytes > limit).map(|(info, bytes)| {
                    let detail = format!(
                        "by its columns the key of {} may become {bytes} bytes long; one that is longer than {limit} may become a dead letter",
                        info.name
                    );
                    item(Level::Warning, detail)
                }));
                sink.check(entities).await
            }
            Err(error) => Err(error),
        };
        match checked {
            Ok(checked) => {
                let detail =
                    if checked.detail.is_empty() { "not looked at before it is written to".to_owned() } else { checked.detail };
                items.push(item(Level::Ok, detail));
                items.extend(checked.warnings.into_iter().map(|warning| item(Level::Warning, warning)));
            }
            // What does not answer now may do so when it is needed, and is tried again then.
            Err(error) if error.class() == ErrorClass::Transient => items.push(item(Level::Warning, error.to_string())),
            Err(error) => items.push(item(Level::Problem, error.to_string())),
        }
    }
    items
}

/// How the tables stand to their contracts, in a word: `tributary schema diff` says the rest.
fn contracts_item(settings: &importer::Config, catalog: &importer::Catalog) -> CheckItem {
    let item = |level, detail: String, remedy: Option<&str>| CheckItem {
        name: "contracts".to_owned(),
        level,
        detail,
        remedy: remedy.map(str::to_owned),
    };
    let live = match importer::published_tables(settings, catalog) {
        Ok(live) => live,
        Err(error) => return item(Level::Problem, error.to_string(), None),
    };
    let differing = |level: Compatibility| {
        let differs = |table: &&TableSchema| {
            let contract = settings.contracts.get(&table.name);
            contract.is_some_and(|contract| contract.compare(table).iter().map(Difference::compatibility).max() == Some(level))
        };
        live.iter().filter(differs).map(|table| table.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (breaking, compatible) = (differing(Compatibility::Breaking), differing(Compatibility::Compatible));
    if !breaking.is_empty() {
        item(Level::Problem, format!("broken by the tables as they are: {breaking}"), Some("tributary schema diff"))
    } else if !compatible.is_empty() {
        let detail = format!("a new version would fit the tables: {compatible}");
        item(Level::Warning, detail, Some("tributary schema diff --write"))
    } else {
        item(Level::Ok, "every row that the tables can hold keeps its contract".to_owned(), None)
    }
}

async fn print_grants(config: &Config, login: Option<&str>) -> anyhow::Result<ExitCode> {
    config.source().needs_database("`tributary check --print-grants`")?;
    let source = config.source().resolve()?;
    let catalog = importer::init::read_catalog(&source).await?;
    print!("{}", importer::check::grants(&catalog, &config.source().filter(), login.unwrap_or(&source.user)));
    Ok(ExitCode::SUCCESS)
}

/// Aligned columns; what mends an item stands below it.
fn table(items: &[CheckItem]) -> String {
    let width = items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for item in items {
        let level = match item.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        text.push_str(&format!("{level:<8} {:<width$}  {}\n", item.name, item.detail));
        for line in item.remedy.iter().flat_map(|remedy| remedy.lines()) {
            text.push_str(&format!("{:>width$}  → {line}\n", "", width = width + 9));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_remedies_stand_below() {
        let item = |name: &str, level, remedy: Option<&str>| CheckItem {
            name: name.to_owned(),
            level,
            detail: "as it is".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let items = [item("größe", Level::Ok, None), item("capture job", Level::Problem, Some("EXEC one;\nEXEC two;"))];
        let expected = "ok       größe        as it is\nPROBLEM  capture job  as it is\n                      → EXEC one;\n                      → EXEC two;\n";
        assert_eq!(table(&items), expected);
    }
}
