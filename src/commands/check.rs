//! `tributary check`: the configuration, the definitions, and the source's health.

use std::process::ExitCode;

use importer::check::{CheckItem, Level};

use crate::cli::ConfigArgs;
use crate::config::Config;
use crate::pipeline::plans;

pub(crate) async fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config)?;
    let contracts = config.load_contracts()?;
    let plans = plans(&config, &contracts)?;
    show("configuration", "ok", &format!("{} is well formed", args.config.display()), None);
    let names: Vec<_> = plans.iter().map(|plan| plan.info().name.to_string()).collect();
    show("entities", "ok", &format!("{} fit their {} table contracts", names.join(", "), contracts.len()), None);
    let items = importer::check(&config.source.resolve()?, &config.source.filter()).await;
    for item in &items {
        show(&item.name, level(item), &item.detail, item.remedy.as_deref());
    }
    let problems = items.iter().filter(|item| item.level == Level::Problem).count();
    if problems > 0 {
        println!("\n{problems} to mend before this can run.");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn level(item: &CheckItem) -> &'static str {
    match item.level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Problem => "PROBLEM",
    }
}

fn show(name: &str, level: &str, detail: &str, remedy: Option<&str>) {
    println!("{level:<8} {name:<24} {detail}");
    for line in remedy.into_iter().flat_map(str::lines) {
        println!("{:<33} → {line}", "");
    }
}
