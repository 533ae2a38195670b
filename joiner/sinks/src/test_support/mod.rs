//! Real targets for tests: a PostgreSQL cluster, a MariaDB server and the AWS stand-in, each started on a free port of the loopback interface and stopped when dropped.
//!
//! Failures panic with what to do: this is for tests alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(any(feature = "dynamodb", feature = "sns", feature = "sqs"))]
mod gate;
mod ministack;
mod mysql;
mod postgres;
mod process;
#[cfg(feature = "postgres")]
mod raw_copy;
mod search;
mod serving;

#[cfg(any(feature = "dynamodb", feature = "sns", feature = "sqs"))]
pub use gate::{Gate, Passage};
pub use ministack::Ministack;
#[cfg(any(feature = "dynamodb", feature = "sns", feature = "sqs"))]
pub use ministack::sdk_config;
pub use mysql::MysqlServer;
pub use postgres::PostgresServer;
#[cfg(feature = "postgres")]
pub use raw_copy::RawCopy;
pub use search::{SearchFaults, SearchStub};
pub use serving::Served;
