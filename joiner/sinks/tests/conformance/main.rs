//! One suite over all sinks: what [`sinks::Sink`] promises, each promise a case, run against real targets.
//!
//! Topics, queues, streams and endpoints keep nothing: what such a sink achieved is what a subscriber holds that keeps, as the sink's documentation says, the highest version of each key.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde_json::{Value, json};
use sinks::Sink;
use sinks::test_support::{Gate, Passage};

use cases::*;
use limits::*;
use shares::*;

mod cases;
#[path = "../lake/duckdb.rs"]
mod duckdb;
mod dynamodb;
mod kinesis;
mod lake;
mod limits;
mod messages;
mod mysql;
mod page;
mod postgres;
mod rich;
mod search;
mod shares;
mod sqlite;
mod subscriber;
mod webhook;

/// What a target holds: documents and versions by `entity/key`.
type Held = BTreeMap<String, (Lsn, Value)>;

/// A place under test.
#[async_trait::async_trait]
trait Target: Send + Sync {
    /// Starts a case on empty ground.
    async fn fresh(&mut self, case: &str);
    /// A new sink, as after a restart; not prepared.
    async fn sink(&self) -> Box<dyn Sink>;
    async fn held(&self) -> Held;
    /// What the target says of its frontier; the outer `None` where a target keeps none.
    async fn frontier(&self) -> Option<Option<Lsn>>;
    /// What stands between sink and target, where something does: it then does what the methods below ask for.
    fn gate(&self) -> Option<&Gate> {
        None
    }
    /// From now on the target refuses.
    async fn down(&mut self) {
        self.gate().expect("a gate").down().await;
    }
    async fn up(&mut self) {
        self.gate().expect("a gate").up().await;
    }
    /// From now on the target takes what it is sent and does not answer. Answers false where it cannot be made to.
    async fn hold(&mut self) -> bool {
        self.gate().map(|gate| gate.set(Passage::Held)).is_some()
    }
    /// From now on the target says that it is asked too much, and for how long it wants to be left alone. Answers false where it says no such thing.
    async fn throttle(&mut self, pause: Option<Duration>) -> bool {
        // AWS's services name no pause.
        pause.is_none() && self.gate().map(|gate| gate.set(Passage::Throttled)).is_some()
    }
    /// No longer.
    async fn release(&mut self) {
        self.gate().expect("a gate").set(Passage::Open);
    }
    /// Changes the secret that the sink is known by. Answers false where there is none.
    async fn rotate(&mut self, step: Rotation) -> bool {
        let turned = self.gate().map(|gate| match step {
            Rotation::Refused => gate.let_through("rotated"),
            Rotation::Renewed => gate.hand_out("rotated"),
        });
        turned.is_some()
    }
    /// Somebody removes the table of orders, or whatever stands for it. Answers false where nothing does.
    async fn remove(&mut self) -> bool {
        false
    }
    /// Somebody makes again what was removed, where the sink does not.
    async fn make(&mut self) {}
    /// Whether `end_load` removes what has vanished.
    fn tells_vanished(&self) -> bool {
        true
    }
    /// Whether it takes nothing any more that is older than the last load of a share, also of what is not there.
    fn refuses_what_a_share_has_left_out(&self) -> bool {
        false
    }
}

/// Whether a case has anything to say of a target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ran {
    Tested,
    NotApplicable,
}

impl From<()> for Ran {
    fn from((): ()) -> Self {
        Self::Tested
    }
}

/// What becomes of a secret.
#[derive(Clone, Copy, PartialEq)]
enum Rotation {
    /// The target knows the new one, and the sink only the old.
    Refused,
    /// The new one is where the sink looks for it.
    Renewed,
}

fn lsn(number: u32) -> Lsn {
    let [a, b, c, d] = number.to_be_bytes();
    Lsn::from_bytes([0, 0, 0, 1, a, b, c, d, 0, 1])
}

fn entities() -> Vec<EntityInfo> {
    let schema = json!({"type": "object"});
    let info =
        |name: &str, key: Vec<(String, SqlType)>| EntityInfo { name: Arc::from(name), key, document_schema: schema.clone() };
    vec![
        info("order", vec![("id".to_owned(), SqlType::Int)]),
        info("line-item", vec![("order_id".to_owned(), SqlType::Int), ("line".to_owned(), SqlType::Int)]),
    ]
}

fn upsert(entity: &str, key: &str, version: u32, document: &Value) -> EntityChange {
    change(entity, key, version, Some(document.to_string()))
}

fn deletion(entity: &str, key: &str, version: u32) -> EntityChange {
    change(entity, key, version, None)
}

fn change(entity: &str, key: &str, version: u32, document: Option<String>) -> EntityChange {
    EntityChange {
        entity: Arc::from(entity),
        key: EntityKey::from_text(key),
        version: lsn(version),
        commit_time_ms: 1_700_000_000_000 + i64::from(version) * 1000,
        document: document.map(Arc::from),
    }
}

async fn prepared(target: &dyn Target) -> Box<dyn Sink> {
    let mut sink = target.sink().await;
    sink.prepare(&entities()).await.expect("prepare");
    sink
}

/// Every case on every target, in turn: one server serves them all. What was tested is held against the documentation's column of the kind.
async fn run_all(kind: &str, target: &mut dyn Target) {
    let mut ran = Vec::new();
    macro_rules! run {
        ($($case:ident),* $(,)?) => {$(
            eprintln!("case {}", stringify!($case));
            target.fresh(&stringify!($case).replace('_', "-")).await;
            ran.push((stringify!($case), Ran::from($case(target).await)));
        )*};
    }
    run!(
        later_versions_replace_earlier_ones,
        a_stale_write_changes_nothing,
        a_batch_handed_over_twice_changes_nothing,
        deleted_entities_stay_deleted,
        a_load_removes_what_has_vanished,
        a_load_brings_back_nothing_that_was_deleted_later,
        a_load_takes_nothing_newer_away,
        poison_in_a_load_is_rejected_and_the_rest_is_written,
        a_load_that_was_cut_short_is_done_again,
        the_same_version_with_another_document_replaces,
        the_frontier_moves_forward_only,
        many_rows_of_several_entities_are_read_back,
        keys_of_any_text_are_kept_apart,
        poison_is_rejected_and_the_rest_is_written,
        what_only_some_targets_hold_never_fails_a_batch,
        a_key_is_taken_up_to_the_limit_that_the_sink_names,
        a_document_of_very_many_children_never_fails_its_batch,
        a_target_that_was_down_is_caught_up,
        a_target_that_goes_down_in_the_middle_says_no_more_than_it_holds,
        a_slow_target_is_given_up_and_tried_again,
        a_target_that_asks_for_patience_gets_it,
        what_was_removed_is_told_and_said_to_be_empty,
        a_rotated_secret_is_picked_up,
        several_writers_each_write_their_share,
        a_writer_notices_what_another_has_made_anew,
    );
    page::holds(kind, &ran);
}

#[tokio::test]
async fn sqlite() {
    run_all("sqlite", &mut sqlite::File::new(false)).await;
}

#[tokio::test]
async fn sqlite_with_columns_and_children() {
    run_all("sqlite", &mut sqlite::File::new(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() {
    run_all("postgres", &mut postgres::Cluster::start(false).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_with_columns_and_children() {
    run_all("postgres", &mut postgres::Cluster::start(true).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lake() {
    run_all("lake", &mut lake::Lake::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql() {
    run_all("mysql", &mut mysql::Server::start(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_with_columns_and_children() {
    run_all("mysql", &mut mysql::Server::start(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynamodb() {
    run_all("dynamodb", &mut dynamodb::Table::start(false).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynamodb_with_a_sort_key() {
    run_all("dynamodb", &mut dynamodb::Table::start(true).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sns() {
    run_all("sns", &mut messages::Messages::start(messages::Service::Topic, false).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sns_fifo() {
    run_all("sns", &mut messages::Messages::start(messages::Service::Topic, true).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqs() {
    run_all("sqs", &mut messages::Messages::start(messages::Service::Queue, false).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqs_fifo() {
    run_all("sqs", &mut messages::Messages::start(messages::Service::Queue, true).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinesis() {
    run_all("kinesis", &mut kinesis::Stream::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhook() {
    run_all("webhook", &mut webhook::Endpoint::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search() {
    run_all("search", &mut search::Cluster::start().await).await;
}
