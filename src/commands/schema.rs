//! `tributary schema diff`: the live database against the table contracts.
//!
//! What is shown is what the importer would find: of each captured table its newest capture instance, under the table's column
//! controls, held against the contract in force. What a difference touches is
//! read from the entity definitions, resolved against the contracts as they are: that is what sinks and subscribers know today.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use importer::contracts;
use schemas::TableName;
use schemas::contract::{Compatibility, Contract, Difference, Versions};
use schemas::plan::{Plan, Use};
use schemas::table::TableSchema;
use serde_json::{Value as Json, json};

use crate::cli::SchemaDiffArgs;
use crate::config::Config;
use crate::pipeline::plans;

/// Contracts need a new version.
const COMPATIBLE: u8 = 3;
/// Some change breaks a contract.
const BREAKING: u8 = 4;

/// How one table stands to its contract.
struct TableDiff {
    table: TableName,
    /// None: there is no contract.
    version: Option<u32>,
    findings: Vec<Finding>,
    /// Files that were written.
    written: Vec<PathBuf>,
}

struct Finding {
    compatibility: Compatibility,
    what: String,
    touches: Vec<Use>,
    /// Taken over into a new version.
    settled: bool,
}

pub(crate) async fn diff(args: &SchemaDiffArgs) -> anyhow::Result<ExitCode> {
    let all = Config::load(&args.config.config.config)?;
    let config = all.of(args.config.source.as_deref())?;
    config.source().needs_database("`tributary schema diff`")?;
    let versions = contracts::read(&config.contracts)?;
    let current: Vec<Contract> = versions.values().map(|versions| versions.current.clone()).collect();
    let plans = if all.has_several_sources() {
        plans(&all, &all.load_contracts()?)?.into_iter().map(|plan| seen_from(&config.source().name, plan)).collect()
    } else {
        plans(&all, &current)?
    };
    let filter = config.source().filter();
    let source = config.source().resolve()?;
    let catalog = importer::init::read_catalog(&source).await?;
    let uncaptured = importer::init::uncaptured_columns(&source).await?;
    let settings = config.importer(Vec::new())?;
    let published = importer::published_tables(&settings, &catalog)?;
    let live: BTreeMap<TableName, TableSchema> = published.into_iter().map(|table| (table.name.clone(), table)).collect();
    let mut tables = Vec::new();
    for (name, schema) in &live {
        let mut found = match versions.get(name) {
            Some(versions) => compare(&config, args.write, versions, schema, &plans)?,
            None => without_contract(&config, args.write, schema)?,
        };
        let omitted = |column: &&String| versions.get(name).is_some_and(|versions| versions.current.omits(column));
        let columns = uncaptured.get(name).into_iter().flatten().filter(|column| !omitted(column));
        found.findings.extend(columns.map(|column| not_recorded(name, column, &plans)));
        tables.push(found);
    }
    for (name, versions) in versions.iter().filter(|(name, _)| filter.takes(name) && !live.contains_key(name)) {
        tables.push(not_captured(name, versions, &plans));
    }
    if args.json {
        let tables: Vec<Json> = tables.iter().map(TableDiff::json).collect();
        println!("{:#}", json!({"tables": tables}));
    } else {
        print(&tables);
    }
    let open = tables.iter().flat_map(|table| &table.findings).filter(|finding| !finding.settled);
    Ok(match open.map(|finding| finding.compatibility).max() {
        None | Some(Compatibility::Harmless) => ExitCode::SUCCESS,
        Some(Compatibility::Compatible) => ExitCode::from(COMPATIBLE),
        Some(Compatibility::Breaking) => ExitCode::from(BREAKING),
    })
}

/// A plan in which the tables of one of several sources are called as they are within it.
fn seen_from(source: &str, mut plan: Plan) -> Plan {
    for node in plan.nodes.iter_mut().filter(|node| node.table.name.source.as_deref() == Some(source)) {
        node.table = Arc::new(TableSchema { name: node.table.name.clone().within(), ..(*node.table).clone() });
    }
    plan
}

fn compare(config: &Config, write: bool, versions: &Versions, live: &TableSchema, plans: &[Plan]) -> anyhow::Result<TableDiff> {
    let contract = &versions.current;
    let differences = contract.compare(live);
    // A contract whose table has changed in breaking ways as well is left for people to rewrite as a whole.
    let next = if write && !differences.iter().any(Difference::breaks) { contract.evolve(live)? } else { None };
    let written = match &next {
        Some(next) => contracts::put_in_force(&config.contracts, versions, next)?.into(),
        None => Vec::new(),
    };
    let findings = differences.iter().map(|difference| {
        let table = &contract.table.name;
        let touches = |plan: &Plan| match difference {
            Difference::NewColumn { .. } => plan.published_whole(table),
            Difference::ChangedKey { .. } => plan.places(table),
            other => other.column().map_or_else(Vec::new, |column| plan.uses(table, column)),
        };
        let renamed = renamed(difference, &differences, contract, live);
        let hint = renamed.map_or_else(String::new, |to| format!(". Was it renamed to {to}?"));
        let compatibility = difference.compatibility();
        Finding {
            compatibility,
            what: format!("{difference}{hint}"),
            touches: plans.iter().flat_map(touches).collect(),
            settled: next.is_some() && compatibility == Compatibility::Compatible,
        }
    });
    Ok(TableDiff { table: live.name.clone(), version: Some(contract.version), findings: findings.collect(), written })
}

/// The only new column of the type of a column that is missing: CDC itself does not say that one became the other.
fn renamed<'d>(missing: &Difference, all: &'d [Difference], contract: &Contract, live: &TableSchema) -> Option<&'d str> {
    let Difference::MissingColumn { column } = missing else { return None };
    let lost = &contract.table.columns[contract.table.column(column)?];
    let same = |difference: &'d Difference| match difference {
        Difference::NewColumn { column } if live.columns[live.column(column)?].sql_type == lost.sql_type => Some(column.as_str()),
        _ => None,
    };
    let mut alike = all.iter().filter_map(same);
    alike.next().filter(|_| alike.next().is_none())
}

fn without_contract(config: &Config, write: bool, live: &TableSchema) -> anyhow::Result<TableDiff> {
    let contract = Contract::from_table(live);
    let mut written = Vec::new();
    if write {
        written.push(contracts::write_first(&config.contracts, &contract)?);
    }
    let finding = Finding {
        compatibility: Compatibility::Compatible,
        what: "the table is captured and has no contract: its rows are held to the catalog alone, and no entity can use it"
            .to_owned(),
        touches: Vec::new(),
        settled: write,
    };
    Ok(TableDiff { table: live.name.clone(), version: None, findings: vec![finding], written })
}

/// A column that the table has and nobody hears of.
fn not_recorded(table: &TableName, column: &str, plans: &[Plan]) -> Finding {
    let what = format!(
        "column {column} is in the table, and no capture instance records it: enable a second one (EXEC sys.sp_cdc_enable_table … @capture_instance = …), or name it in the \
         contract's x-omitted"
    );
    let touches = plans.iter().flat_map(|plan| plan.published_whole(table)).collect();
    Finding { compatibility: Compatibility::Harmless, what, touches, settled: false }
}

fn not_captured(name: &TableName, versions: &Versions, plans: &[Plan]) -> TableDiff {
    let finding = Finding {
        compatibility: Compatibility::Breaking,
        what: format!("there is a contract ({}), and the table is not captured (any more)", versions.file),
        touches: plans.iter().flat_map(|plan| plan.places(name)).collect(),
        settled: false,
    };
    TableDiff { table: name.clone(), version: Some(versions.current.version), findings: vec![finding], written: Vec::new() }
}

impl TableDiff {
    fn json(&self) -> Json {
        let finding = |finding: &Finding| {
            json!({
                "compatibility": finding.compatibility.to_string(),
                "what": finding.what,
                "touches": finding.touches.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "settled": finding.settled,
            })
        };
        json!({
            "table": self.table,
            "contract_version": self.version,
            "differences": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "written": self.written,
        })
    }
}

fn print(tables: &[TableDiff]) {
    let mut entities: Vec<&str> = Vec::new();
    for table in tables.iter().filter(|table| !table.findings.is_empty()) {
        match table.version {
            Some(version) => println!("{} (contract version {version})", table.table),
            None => println!("{}", table.table),
        }
        for finding in &table.findings {
            println!("  {:<10}  {}", finding.compatibility.to_string(), finding.what);
            if !finding.touches.is_empty() {
                let touches: Vec<String> = finding.touches.iter().map(ToString::to_string).collect();
                println!("{:<14}touches {}", "", touches.join(", "));
                entities.extend(finding.touches.iter().map(|touched| touched.entity.as_ref()));
            }
        }
        for path in &table.written {
            println!("  wrote {}", path.display());
        }
    }
    let same = tables.iter().filter(|table| table.findings.is_empty()).count();
    println!("{same} of {} tables are as their contracts say.", tables.len());
    entities.sort_unstable();
    entities.dedup();
    if !entities.is_empty() {
        println!("Entities touched: {}.", entities.join(", "));
    }
    let open =
        |level| tables.iter().flat_map(|table| &table.findings).any(|finding| finding.compatibility == level && !finding.settled);
    if open(Compatibility::Breaking) {
        println!(
            "Breaking changes are for people to settle: edit the contract and the entities that it touches, or change the table back."
        );
    } else if open(Compatibility::Compatible) {
        println!("`tributary schema diff --write` makes new versions of the contracts.");
    }
}
