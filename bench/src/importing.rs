//! The importer against Debezium, both from the same stand-in: the snapshot of a table, and the changes of a table that were captured before either looks.
//!
//! Both have saved where they stand before the changes are made, and go on from there. They take turns, [`ROUNDS`] times, and the figure is the median of each. Both are timed without their start
//! (processes, connections, the catalog), which is told beside it: ours from when it begins to read until everything is durable in an embedded stream, Debezium from its first batch until its
//! last, and nothing is done with its records.
//!
//! The tail is measured without the stand-in's reading of its change tables, which took a third of the processor time: it answers equal questions with the bytes of the first answer
//! (`sqlserver::Running::replay_changes`), and a first turn of each, which is not counted, asks them. Everything else, and all of a snapshot, it answers afresh.
//!
//! After a snapshot's last row ours waits until capture has passed what was read, which Debezium does not; how long depends on the capture job and on what else is written, and
//! is told beside the figure ([`ImportArgs`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use importer::{Activity, Config, Importer, Status};
use streams::embedded::{Embedded, Options};
use tokio_util::sync::CancellationToken;

use crate::joining::child;
use crate::peers::Debezium;
use crate::process::{Measured, measure};
use crate::results::Figure;
use crate::standin::{self, Client, PASSWORD, StandIn, execute};

const TABLE: &str = "measured";
const SNAPSHOT_ROWS: u64 = 500_000;
/// Half of them inserts, half updates.
const CHANGES: u64 = 400_000;
/// Rows that one transaction of the tail changes.
const TRANSACTION_ROWS: u64 = 20;
/// Rows written out in SQL; the others are copies of them.
const SEED_ROWS: u64 = 1000;
/// How often each is measured.
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(300);
const PEER_LIMIT: Duration = Duration::from_secs(120);

const COLUMNS: &str = "id int NOT NULL PRIMARY KEY, customer_id int NOT NULL, status varchar(20) NOT NULL, total decimal(12,2) NOT NULL, placed datetime2(3) NOT NULL, \
     priority tinyint NOT NULL, note nvarchar(100) NULL, quantity int NOT NULL, discount decimal(5,4) NULL, is_paid bit NOT NULL, reference varchar(36) NULL, due date NULL";
/// All but the key.
const OTHERS: &str = "customer_id, status, total, placed, priority, note, quantity, discount, is_paid, reference, due";

/// What an importing process does.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImportArgs {
    port: u16,
    /// Where progress and streams lie.
    folder: PathBuf,
    /// Ends when so many events have been published and the tail has been reached.
    rows: u64,
}

/// Imports; reports the seconds until it began to read, until all rows were durable, and until the tail was reached.
pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let provider = Arc::new(Embedded::open(Options::new(args.folder.join("streams")))?);
    let mut config = Config::new("bench", standin::source(args.port), args.folder.join("importer"));
    config.tables.include = vec![format!("dbo.{TABLE}")];
    let started = Instant::now();
    let importer = Importer::new(config, provider);
    let (status, stop) = (importer.status(), CancellationToken::new());
    let task = tokio::spawn(importer.run(stop.clone()));
    let published = |status: &Status| status.tables.values().map(|table| table.published).sum::<u64>();
    // A millisecond is the measure's resolution.
    let mut poll = tokio::time::interval(Duration::from_millis(1));
    let (mut begun, mut durable) = (None, None);
    loop {
        poll.tick().await;
        let now = status.get();
        let rows = published(&now);
        if rows > 0 || matches!(now.activity, Activity::Snapshot | Activity::Tailing) {
            begun.get_or_insert_with(|| started.elapsed());
        }
        if rows >= args.rows {
            durable.get_or_insert_with(|| started.elapsed());
            if now.activity == Activity::Tailing {
                break;
            }
        }
        if task.is_finished() || started.elapsed() > LIMIT {
            bail!("the importer did not publish {} events: {now:?}", args.rows);
        }
    }
    let settled = started.elapsed().as_secs_f64();
    let (begun, durable) = (begun.unwrap_or_default().as_secs_f64(), durable.unwrap_or_default().as_secs_f64());
    let now = status.get();
    ensure!(published(&now) == args.rows, "{} events were published instead of {}", published(&now), args.rows);
    ensure!(now.tables.values().all(|table| table.dead_lettered == 0), "events were dead-lettered: {now:?}");
    stop.cancel();
    task.await??;
    println!("start_seconds={begun:.4} seconds={durable:.4} settled_seconds={settled:.4}");
    Ok(())
}

/// A stand-in with the table, a table of rows to copy from, and capture on.
async fn prepare(rows: u64) -> anyhow::Result<(StandIn, Client)> {
    let stand_in = StandIn::start()?;
    let mut client = stand_in.client().await?;
    for table in ["seed", TABLE] {
        execute(&mut client, &format!("CREATE TABLE dbo.{table} ({COLUMNS})")).await?;
    }
    let tuples: Vec<String> = (0..SEED_ROWS).map(tuple).collect();
    for chunk in tuples.chunks(200) {
        execute(&mut client, &format!("INSERT INTO dbo.seed (id, {OTHERS}) VALUES {}", chunk.join(", "))).await?;
    }
    for start in (0..rows).step_by(SEED_ROWS as usize) {
        insert(&mut client, start, SEED_ROWS.min(rows - start)).await?;
    }
    standin::capture(&mut client, &[TABLE]).await?;
    Ok((stand_in, client))
}

fn tuple(id: u64) -> String {
    format!(
        "({id}, {}, 'status {}', {}.{:02}, '2026-0{}-1{}T1{}:30:00.{:03}', {}, N'a note of some length about order {id}', {}, 0.{:04}, {}, 'reference-{:024}', '2026-1{}-0{}')",
        id * 37 % 5000,
        id % 9,
        id * 7919 % 90_000,
        id % 100,
        id % 9 + 1,
        id % 10,
        id % 10,
        id % 1000,
        id % 250,
        id % 60,
        id * 13 % 10_000,
        id % 2,
        id * 104_729,
        id % 3,
        id % 9 + 1,
    )
}

/// Inserts `count` rows from an id on, in one transaction.
async fn insert(client: &mut Client, start: u64, count: u64) -> anyhow::Result<()> {
    let sql = format!("INSERT INTO dbo.{TABLE} (id, {OTHERS}) SELECT id + {start}, {OTHERS} FROM dbo.seed WHERE id < {count}");
    execute(client, &sql).await
}

fn import(port: u16, folder: &Path, rows: u64) -> anyhow::Result<Measured> {
    let folder = folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))?;
    measure(&mut child(&["import", &port.to_string(), folder, &rows.to_string()])?).context("the importer")
}

/// The median of each, and what the start took beside it.
fn figure(name: &str, rows: u64, ours: &[Measured], theirs: &[Measured]) -> anyhow::Result<Figure> {
    let mut rates = Vec::new();
    for run in ours {
        let (start, end) = (run.get("start_seconds")?, run.get("seconds")?);
        println!("{name}: ours took {end:.2} s, of which {start:.2} s for its start");
        rates.push(rows as f64 / (end - start));
    }
    let mut peer = Vec::new();
    for run in theirs {
        let (whole, span) = (run.get("seconds")?, run.get("span_seconds")?);
        println!("{name}: Debezium took {whole:.2} s, of which {:.2} s for its start", whole - span);
        peer.push(run.get("rows_per_second")?);
    }
    let peak = |runs: &[Measured]| runs.iter().map(|run| run.peak_mb).reduce(f64::max);
    let ours_median = median(rates).context("nothing was measured")?;
    Ok(Figure::rate(name, "rows/s", ours_median, "Debezium", median(peer)).memory(peak(ours), peak(theirs)))
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

fn debezium(debezium: Option<&Debezium>, port: u16, folder: &Path, rows: u64) -> Option<Measured> {
    let table = format!("dbo.{TABLE}");
    let measured = debezium?.read(port, PASSWORD, &table, folder, rows, PEER_LIMIT.as_secs() as u32);
    // Our own figures do not hang on a peer that fails.
    measured.inspect_err(|error| println!("Debezium is left out: {error:#}")).ok()
}

/// Where each round's progress lies.
fn folders(folder: &Path, whose: &str, rounds: usize) -> Vec<PathBuf> {
    (0..rounds).map(|round| folder.join(format!("{whose}-{round}"))).collect()
}

/// [snapshot-vs-debezium].
pub(crate) async fn snapshot(folder: &Path) -> anyhow::Result<Figure> {
    let (stand_in, client) = prepare(SNAPSHOT_ROWS).await?;
    let peer = Debezium::find();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (our_folder, their_folder) in folders(folder, "ours", ROUNDS).iter().zip(folders(folder, "debezium", ROUNDS)) {
        let run = import(stand_in.port, our_folder, SNAPSHOT_ROWS)?;
        let settling = run.get("settled_seconds")? - run.get("seconds")?;
        println!("snapshot-vs-debezium: capture had passed all that was read {settling:.1} s later");
        ours.push(run);
        theirs.extend(debezium(peer.as_ref(), stand_in.port, &their_folder, SNAPSHOT_ROWS));
    }
    drop(client);
    stand_in.stop()?;
    figure("snapshot-vs-debezium", SNAPSHOT_ROWS, &ours, &theirs)
}

/// [tail-vs-debezium].
pub(crate) async fn tail(folder: &Path) -> anyhow::Result<Figure> {
    let (mut stand_in, mut client) = prepare(1).await?;
    let mut peer = Debezium::find();
    let rounds = ROUNDS + 1;
    let (our_folders, their_folders) = (folders(folder, "ours", rounds), folders(folder, "debezium", rounds));
    for (our_folder, their_folder) in our_folders.iter().zip(&their_folders) {
        import(stand_in.port, our_folder, 1)?;
        peer = peer.filter(|peer| debezium(Some(peer), stand_in.port, their_folder, 1).is_some());
    }
    change(&mut client).await?;
    stand_in.replay()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (round, (our_folder, their_folder)) in our_folders.iter().zip(&their_folders).enumerate() {
        let run = import(stand_in.port, our_folder, CHANGES)?;
        let their_run = debezium(peer.as_ref(), stand_in.port, their_folder, CHANGES);
        if round > 0 {
            ours.push(run);
            theirs.extend(their_run);
        }
    }
    drop(client);
    stand_in.stop()?;
    figure("tail-vs-debezium", CHANGES, &ours, &theirs)
}

/// Makes the changes, and waits until they have been captured.
async fn change(client: &mut Client) -> anyhow::Result<()> {
    let starts = || (1..=CHANGES / 2).step_by(TRANSACTION_ROWS as usize);
    for start in starts() {
        insert(client, start, TRANSACTION_ROWS).await?;
    }
    for start in starts() {
        let sql = format!(
            "UPDATE dbo.{TABLE} SET total = total + 1, status = 'changed', note = N'changed from {start} on' WHERE id BETWEEN {start} AND {}",
            start + TRANSACTION_ROWS - 1
        );
        execute(client, &sql).await?;
    }
    // An update leaves two rows in the change table.
    standin::captured(client, TABLE, (CHANGES / 2 * 3) as i64, LIMIT).await
}
