//! `tributary status`: asks a running process how it is.

use std::process::ExitCode;

use serde_json::Value;

use super::{aligned, api_client};
use crate::cli::StatusArgs;

pub(crate) async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status = api_client::get(&args.api, "/v1/status").await?;
    if args.json {
        println!("{status:#}");
    } else {
        print!("{}", shown(&status));
    }
    Ok(if has_failed(&status) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether some part says of itself that it has stopped for an error.
fn has_failed(status: &Value) -> bool {
    let failed = |part: &Value| part["phase"] == "failed" || part["state"] == "failed";
    let stopped = |source: &Value| failed(source) || (source["phase"] == "stopped" && !source["last_error"].is_null());
    stopped(&status["source"])
        || status["sources"].as_array().is_some_and(|sources| sources.iter().any(stopped))
        || failed(&status["joiner"])
        || archives(status).any(failed)
        || status["sinks"].as_array().is_some_and(|sinks| sinks.iter().any(failed))
}

/// The archivers' parts: of one source, or of each.
fn archives(status: &Value) -> impl Iterator<Item = &Value> {
    let several = status["archives"].as_array().into_iter().flatten();
    several.chain([&status["archive"]]).filter(|archive| archive.is_object())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("–")
}

/// With separators of thousands; a dash for what is not known.
fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| "–".to_owned(), |number| indicatif::HumanCount(number).to_string())
}

/// `84 ms`, `12 s`, `5 min`, `31 h`.
fn span(value: &Value) -> String {
    match value.as_i64() {
        None => "–".to_owned(),
        Some(ms @ ..10_000) => format!("{ms} ms"),
        Some(ms @ ..120_000) => format!("{} s", ms / 1000),
        Some(ms @ ..7_200_000) => format!("{} min", ms / 60_000),
        Some(ms) => format!("{} h", ms / 3_600_000),
    }
}

/// A state that is built for definitions that the present one cannot serve.
fn rebuild_lines(next: &Value, out: &mut String) {
    let bytes = indicatif::HumanBytes(next["state_bytes"].as_u64().unwrap_or_default());
    out.push_str(&format!(
        "\nanother state is built for other definitions: {}, everything up to {}, {bytes}\n",
        text(&next["phase"]),
        text(&next["frontier"])
    ));
    for problem in [&next["failure"], &next["warning"]].into_iter().filter_map(Value::as_str) {
        out.push_str(&format!("  {problem}\n"));
    }
}

fn shown(status: &Value) -> String {
    let mut out = String::new();
    let several = status["sources"].as_array().into_iter().flatten();
    for source in several.chain([&status["source"]]).filter(|source| source["phase"].is_string()) {
        source_lines(source, &mut out);
    }
    if status["joiner"].is_object() {
        joiner_lines(&status["joiner"], &mut out);
    }
    if status["rebuild"].is_object() {
        rebuild_lines(&status["rebuild"], &mut out);
    }
    for archive in archives(status) {
        archive_lines(archive, &mut out);
    }
    if status["checkpoints"].is_object() {
        checkpoint_lines(&status["checkpoints"], &mut out);
    }
    let sinks = status["sinks"].as_array().map_or(&[][..], Vec::as_slice);
    if !sinks.is_empty() {
        out.push_str("\nsinks\n");
        let head = ["", "state", "behind", "written", "dead letters", "note"];
        let rows = sinks.iter().map(|sink| {
            let [behind, written, letters] = ["behind", "written_total", "dead_letters"].map(|member| count(&sink[member]));
            [text(&sink["name"]).to_owned(), text(&sink["state"]).to_owned(), behind, written, letters, sink_note(sink)]
        });
        out.push_str(&aligned(head, &rows.collect::<Vec<_>>()));
    }
    if out.is_empty() {
        out.push_str("this process serves queries alone: the importer's and the joiner's say more\n");
    }
    out
}

/// Why it does not move, or how far its load is.
fn sink_note(sink: &Value) -> String {
    let load = &sink["load"];
    let Some(entities) = load["entities"].as_u64() else {
        let overtaken = (sink["overtaken"] == true).then_some("what it lacks is no longer kept: it will be loaded anew");
        let said = [sink["error"].as_str(), overtaken];
        return said.into_iter().flatten().collect::<Vec<_>>().join("; ");
    };
    let of = load["entities_expected"].as_u64().map(|expected| format!(" of {}", indicatif::HumanCount(expected)));
    let left = load["remaining_seconds"].as_i64().map(|seconds| format!(", {} left", span(&(seconds * 1000).into())));
    let (entities, of) = (indicatif::HumanCount(entities), of.unwrap_or_default());
    format!("{entities}{of} entities{}", left.unwrap_or_default())
}

fn source_lines(source: &Value, out: &mut String) {
    let (name, phase) = (text(&source["name"]), text(&source["phase"]));
    out.push_str(&format!("source {name}: {phase}, epoch {}\n", source["epoch"]));
    out.push_str(&format!(
        "  published {}, captured {}, lag {}\n",
        text(&source["published_lsn"]),
        text(&source["captured_lsn"]),
        span(&source["lag_ms"])
    ));
    if let Some(snapshot) = source["snapshot"].as_object() {
        let expected = snapshot["rows_expected"].as_u64().map(|rows| format!(" of {}", indicatif::HumanCount(rows)));
        let left = snapshot["remaining_seconds"].as_i64().map(|seconds| format!(", {} left", span(&(seconds * 1000).into())));
        out.push_str(&format!(
            "  snapshot: {}{} rows, {} of {} tables{}\n",
            count(&snapshot["rows"]),
            expected.unwrap_or_default(),
            snapshot["tables_done"],
            snapshot["tables"],
            left.unwrap_or_default()
        ));
    }
    notices(&source["last_error"], source["warnings"].as_array().map_or(&[][..], Vec::as_slice), out);
    let tables = source["table_details"].as_object();
    if let Some(tables) = tables.filter(|tables| !tables.is_empty()) {
        out.push_str("\ntables\n");
        let head = ["", "published", "dead-lettered", "snapshot", "headroom", "note"];
        let rows = tables.iter().map(|(name, table)| {
            let (published, dead) = (count(&table["published"]), count(&table["dead_lettered"]));
            [name.clone(), published, dead, snapshot(table), span(&table["headroom_ms"]), note(table)]
        });
        out.push_str(&aligned(head, &rows.collect::<Vec<_>>()));
    }
}

/// How far the table's rows are read.
fn snapshot(table: &Value) -> String {
    let rows = count(&table["snapshot_rows"]);
    match (table["snapshot_done"].as_bool(), table["snapshot_rows_expected"].as_u64()) {
        (Some(true), _) => "done".to_owned(),
        (_, Some(expected)) => format!("{rows} of {}", indicatif::HumanCount(expected)),
        (_, None) => rows,
    }
}

fn note(table: &Value) -> String {
    if let Some(why) = table["held"].as_str() {
        return format!("held: {why}");
    }
    match &table["reread"] {
        Value::Null => String::new(),
        reread if reread["finished"] == true => format!("read again (generation {}), settling", reread["generation"]),
        reread => format!("being read again (generation {})", reread["generation"]),
    }
}

fn joiner_lines(joiner: &Value, out: &mut String) {
    let frontier = joiner["frontier"].as_str().map(|lsn| format!(" at {lsn}")).unwrap_or_default();
    out.push_str(&format!(
        "\njoiner: {}{frontier}, {} applied, {} emitted, {} dead-lettered\n",
        text(&joiner["phase"]),
        count(&joiner["applied_total"]),
        count(&joiner["emitted_total"]),
        count(&joiner["dead_letters"])
    ));
    for (name, source) in joiner["sources"].as_object().into_iter().flatten() {
        let (phase, frontier) = (text(&source["phase"]), text(&source["frontier"]));
        let age = if source["age_ms"].is_null() { String::new() } else { format!(", committed {} ago", span(&source["age_ms"])) };
        out.push_str(&format!("  of {name}: {phase}, everything up to {frontier}{age}\n"));
    }
    notices(&joiner["failure"], std::slice::from_ref(&joiner["warning"]), out);
}

fn checkpoint_lines(checkpoints: &Value, out: &mut String) {
    let last = &checkpoints["last"];
    let made = match last["number"].as_u64() {
        Some(number) => format!("number {number} up to {}", text(&last["frontier"])),
        None => "none made by this process yet".to_owned(),
    };
    out.push_str(&format!("\ncheckpoints {}: {}, {made}\n", text(&checkpoints["store"]), text(&checkpoints["phase"])));
    let restored = &checkpoints["restored"];
    if let Some(number) = restored["number"].as_u64() {
        out.push_str(&format!(
            "  the state was restored from number {number}, which held everything up to {}\n",
            text(&restored["frontier"])
        ));
    }
    notices(&checkpoints["error"], &[], out);
}

fn archive_lines(archive: &Value, out: &mut String) {
    let behind = match archive["phase"].as_str() {
        Some("waiting") => "waiting for its turn while another archiver works".to_owned(),
        _ => format!(
            "complete up to {}, segment {}, lag {}",
            text(&archive["frontier"]),
            count(&archive["segment"]),
            span(&archive["lag_ms"])
        ),
    };
    out.push_str(&format!("\narchive {}: {}, {behind}\n", text(&archive["store"]), text(&archive["phase"])));
    let lost = ["gaps", "missing"].map(|member| archive[member].as_u64().unwrap_or_default());
    let lost = (lost != [0, 0]).then(|| {
        format!("{} gaps and {} missing events since the start: `tributary verify --archive` names them", lost[0], lost[1])
    });
    notices(&archive["error"], &[Value::from(lost)], out);
    let tables = archive["tables"].as_object();
    if let Some(tables) = tables.filter(|tables| !tables.is_empty()) {
        let rows = tables.iter().map(|(name, table)| {
            [
                name.clone(),
                count(&table["archived"]),
                text(&table["lsn"]).to_owned(),
                count(&table["waiting"]),
                span(&table["lag_ms"]),
            ]
        });
        out.push_str(&aligned(["", "archived", "up to", "waiting", "lag"], &rows.collect::<Vec<_>>()));
    }
    let shards = archive["streams"].as_object().into_iter().flatten().flat_map(|(stream, shards)| {
        let shards = shards.as_object().into_iter().flatten();
        shards.map(move |(shard, position)| [stream.clone(), shard.clone(), text(position).to_owned()])
    });
    let shards: Vec<_> = shards.collect();
    if !shards.is_empty() {
        out.push_str(&aligned(["stream", "shard", "archived"], &shards));
    }
}

fn notices(error: &Value, warnings: &[Value], out: &mut String) {
    if let Some(error) = error.as_str() {
        out.push_str(&format!("  error: {error}\n"));
    }
    for warning in warnings.iter().filter_map(Value::as_str) {
        out.push_str(&format!("  warning: {warning}\n"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_shown_by_table() {
        let status = json!({
            "source": {
                "name": "shop", "phase": "snapshot", "epoch": 7, "published_lsn": null, "captured_lsn": "0000002a:00000ac0:0004", "lag_ms": 84,
                "snapshot": {"rows": 1200, "rows_expected": 10000, "tables_done": 1, "tables": 2, "rows_per_second": 400.0, "remaining_seconds": 22},
                "last_error": "gone", "warnings": ["short of time"],
                "table_details": {
                    "dbo.items": {"published": 1000, "dead_lettered": 2, "snapshot_rows": 1000, "snapshot_rows_expected": 9800, "snapshot_done": false, "held": "column x", "headroom_ms": null},
                    "dbo.orders": {"published": 200, "dead_lettered": 0, "snapshot_rows": 200, "snapshot_done": true, "reread": {"generation": 3, "finished": false}, "headroom_ms": 259_200_000},
                },
            },
            "joiner": {"phase": "waiting", "frontier": null, "applied_total": 0, "emitted_total": 0, "dead_letters": 0, "warning": "no progress yet"},
            "archive": {
                "store": "local archive", "phase": "archiving", "segment": 42, "frontier": "0000002a:00000ac0:0001", "lag_ms": 12_000, "gaps": 1, "missing": 0,
                "tables": {"dbo.orders": {"archived": 190, "lsn": "0000002a:00000ac0:0001", "waiting": 10, "lag_ms": 12_000}},
                "streams": {"shop.events": {"shard-0000": "17"}},
            },
            "sinks": [
                {"name": "sqlite", "state": "waiting", "behind": 0, "written_total": 0, "dead_letters": 0, "error": null, "load": null},
                {"name": "aurora", "state": "loading", "behind": 0, "written_total": 1500, "dead_letters": 2, "error": null,
                    "load": {"entities": 1500, "entities_expected": 9000, "entities_per_second": 500, "remaining_seconds": 15}},
            ],
        });
        let expected = "\
source shop: snapshot, epoch 7
  published –, captured 0000002a:00000ac0:0004, lag 84 ms
  snapshot: 1,200 of 10,000 rows, 1 of 2 tables, 22 s left
  error: gone
  warning: short of time

tables
              published  dead-lettered  snapshot        headroom  note
  dbo.items   1,000      2              1,000 of 9,800  –         held: column x
  dbo.orders  200        0              done            72 h      being read again (generation 3)

joiner: waiting, 0 applied, 0 emitted, 0 dead-lettered
  warning: no progress yet

archive local archive: archiving, complete up to 0000002a:00000ac0:0001, segment 42, lag 12 s
  warning: 1 gaps and 0 missing events since the start: `tributary verify --archive` names them
              archived  up to                   waiting  lag
  dbo.orders  190       0000002a:00000ac0:0001  10       12 s
  stream       shard       archived
  shop.events  shard-0000  17

sinks
          state    behind  written  dead letters  note
  sqlite  waiting  0       0        0
  aurora  loading  0       1,500    2             1,500 of 9,000 entities, 15 s left
";
        assert_eq!(shown(&status), expected);
        let mut of_several =
            json!({"joiner": status["joiner"], "sources": [status["source"], {"name": "bank", "phase": "tailing"}]});
        of_several["joiner"]["sources"] =
            json!({"bank": {"phase": "live", "frontier": "0000002a:00000ac0:0001", "age_ms": 300_000}});
        let of_source = |name: &str| json!({"source": name, "store": format!("local archive/{name}"), "phase": "archiving"});
        of_several["archives"] = json!([of_source("bank"), of_source("shop")]);
        let told = shown(&of_several);
        for line in [
            "archive local archive/bank: archiving",
            "archive local archive/shop: archiving",
            "source shop: snapshot",
            "source bank: tailing",
            "  of bank: live, everything up to 0000002a:00000ac0:0001, committed 5 min ago",
        ] {
            assert!(told.contains(line), "{told}");
        }
        assert!(!has_failed(&status) && !has_failed(&of_several));
        of_several["archives"][1]["phase"] = json!("failed");
        assert!(has_failed(&of_several));
        assert!(has_failed(&json!({"source": {"phase": "stopped", "last_error": "gone"}})));
    }
}
