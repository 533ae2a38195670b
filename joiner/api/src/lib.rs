//! Entities by REST, their changes as server-sent events.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/entities` | the kinds of entities |
//! | `GET /v1/entities/{entity}` | a page in key order: filters (`status=eq.OPEN`, `customer.city=eq.Bern`), `limit`, `cursor` |
//! | `GET /v1/entities/{entity}/{key}` | the document itself |
//! | `GET /v1/changes` | server-sent events: changes and progress; `entity`, `key`, `from`, `Last-Event-ID` |
//! | `POST /v1/sources/{source}/snapshots` | has a table, or a range of its keys, read again beside the tail |
//! | `GET /v1/dead-letters`, `POST /v1/dead-letters/retry`, `POST /v1/dead-letters/drop` | what the joiner has set aside |
//! | `POST /v1/savepoints` | has a checkpoint of the joiner's state made, under a name |
//! | `GET /v1/status` | lag, frontier, counts |
//! | `GET /metrics`, `/healthz`, `/readyz`, `/openapi.json`, `/` | Prometheus, liveness, readiness, this table for machines, the web page |
//!
//! # Which LSN an answer reflects
//! Every answer about entities has the header `tributary-lsn` (lists also have a member `lsn`): the sink's frontier, read at the same instant as the rows. Every change at or
//! below it is included. Where entities are of several sources, that is the sum of an LSN of each, and the header `tributary-sources` (in bodies of ours, the member `sources`) says which: `bank=…;shop=…`. A document by itself may be newer; its own LSN is the header `tributary-version` (in lists, the member `version`), and its `ETag`. A client that must
//! see its own write sends the LSN (`min_lsn=` or the header `tributary-min-lsn`; of one of several sources with its name, `min_lsn=shop=…`) or the commit time (`min_time=`, RFC 3339): the answer waits for it, and is 503 with
//! `Retry-After` when that takes too long.
//!
//! # Access
//! The server binds to loopback, or it demands a bearer token: [`Server::bind`] refuses anything else. Probes and the page (which holds no data) need no token.

mod changes;
mod config;
mod cursor;
mod dead_letters;
mod entities;
mod feed;
mod freshness;
mod guard;
mod keys;
mod metrics;
mod openapi;
mod page;
mod parameters;
mod problem;
mod savepoints;
mod server;
mod snapshots;

pub use config::{Config, Error};
pub use dead_letters::{DeadLetters, WhichLetters};
pub use feed::{ChangeFeed, FeedError, Head, Page, StatusSource};
pub use metrics::describe as describe_metrics;
pub use savepoints::{SavepointRefusal, Savepoints};
pub use server::{KeyNormalizer, MetricsSource, Parts, Server, serve};
pub use snapshots::{SnapshotRefusal, SnapshotRequest, Snapshots};
