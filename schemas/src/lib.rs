//! The contract between the parts of Tributary, pure: no I/O, no async, no clock.
//!
//! What the importer writes and the joiner reads is defined here and nowhere else: log sequence numbers and positions ([`Lsn`], [`Position`]; of several sources, [`Vector`]), table
//! schemas ([`table`]), values ([`value`]), change events and their encodings ([`event`], [`envelope`], [`encoding`]), the table contracts that events are held to
//! ([`contract`]), progress records ([`progress`]), entity definitions ([`entity`]), resolved against the tables
//! ([`plan`]), the reading of events ([`parse`]) and the entity changes that come out at the end ([`change`]), of which each
//! instance makes a share ([`range`]).

pub mod change;
pub mod contract;
pub mod encoding;
pub mod entity;
pub mod envelope;
pub mod event;
mod json;
pub mod lsn;
pub mod parse;
pub mod plan;
pub mod progress;
pub mod range;
pub mod table;
pub mod value;
pub mod vector;

pub use lsn::{Lsn, Position};
pub use range::KeyRange;
pub use table::TableName;
pub use vector::Vector;

/// How a failure is to be treated, whoever it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// May go away by itself: try again, with a budget.
    Transient,
    /// This input will never be accepted: set it aside (dead letter) and go on.
    Definite,
    /// Somebody must change the set-up: stop, and say what.
    Misconfigured,
    /// An assumption of ours does not hold: stop.
    Bug,
}
