//! What a TDS server asks of the engine behind it, and what the engine answers with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::data::{Column, DataType, Value};

/// What the client said of itself in LOGIN7.
#[derive(Debug, Clone, Default)]
pub struct Login {
    pub user: String,
    pub password: String,
    /// Empty: the login's default database.
    pub database: String,
    pub host_name: String,
    pub application_name: String,
    pub client_library: String,
    pub language: String,
    /// `ApplicationIntent=ReadOnly`.
    pub read_only: bool,
}

/// An error or message as SQL Server numbers it. `class` 10 and below is a message (INFO token), 11 to 16 a statement's error, 20 and above
/// ends the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    pub number: i32,
    pub state: u8,
    pub class: u8,
    pub message: String,
    /// Empty outside a procedure.
    pub procedure: String,
    /// 1-based line in the batch.
    pub line: u32,
}

/// A parameter of an RPC, or one handed back.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// With its `@`; empty: positional.
    pub name: String,
    pub data_type: DataType,
    pub value: Value,
    pub output: bool,
}

/// SQL text to run, with the parameters that its `@names` stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub sql: String,
    /// Named and typed as `sp_executesql`, `sp_prepare`, … declare them. Output parameters are handed back with
    /// [`Response::return_value`] by the engine after the batch.
    pub parameters: Vec<Parameter>,
}

/// A stored procedure called by name (`sys.sp_cdc_help_jobs`, …). `sp_executesql`, `sp_prepare`, `sp_prepexec`, `sp_execute`, `sp_unprepare`
/// and `sp_cursor*` never come here: the protocol layer turns them into [`Batch`]es.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub procedure: String,
    pub parameters: Vec<Parameter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// The session's own.
    Current,
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
    Snapshot,
}

/// A transaction-manager request (MS-TDS 2.2.6.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionRequest {
    Begin { isolation: Isolation, name: String },
    Commit { name: String, begin_again: Option<Isolation> },
    Rollback { name: String, begin_again: Option<Isolation> },
    Save { name: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvChange {
    Database { new: String, old: String },
    Language { new: String, old: String },
    BeginTransaction(u64),
    CommitTransaction(u64),
    RollbackTransaction(u64),
    ResetConnection,
}

/// Set by an attention or a lost connection; a long-running statement looks at it between rows and stops.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    set: AtomicBool,
    killed: AtomicBool,
    kill: Notify,
}

impl Cancel {
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Relaxed) || self.0.killed.load(Ordering::Relaxed)
    }
    pub fn set(&self) {
        self.0.set.store(true, Ordering::Relaxed);
    }
    /// A new request begins; a killed session stays so.
    pub fn clear(&self) {
        self.0.set.store(false, Ordering::Relaxed);
    }
    /// Ends the session: what runs stops, and the connection is closed without a word.
    pub fn kill(&self) {
        self.0.killed.store(true, Ordering::Relaxed);
        // Kept for the connection's task if it does not wait yet; it is the only one that ever does.
        self.0.kill.notify_one();
    }
    pub(crate) async fn killed(&self) {
        self.0.kill.notified().await;
    }
}

/// What kind of statement a DONE token ends: clients tell a row count of an INSERT from the count of a SELECT by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Select,
    Insert,
    Update,
    Delete,
    Merge,
    /// CREATE, ALTER, DROP, TRUNCATE, GRANT, …: no count.
    Define,
    /// SET, PRINT, …: no count.
    Other,
}

/// Rows of a result set as they go over the wire.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    pub rows: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Recording {
    /// In bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// Where a session writes the answer to one request. Rows are sent as they come, in packets of the negotiated size, with backpressure: a
/// call blocks while the client does not read. After the connection is lost, or the client has asked to stop by an attention, every call is a no-op
/// (but `env_change` after an attention: the client must know of its transaction) and `is_closed` is true.
pub trait Response {
    /// Starts a result set (COLMETADATA).
    fn columns(&mut self, columns: &[Column]);
    /// Names the statement that the next `done` or `error` ends. Where it is not called the protocol layer guesses: a result set makes a SELECT, and
    /// a count without one comes from the first INSERT, UPDATE, DELETE or MERGE in the batch's text.
    fn command(&mut self, _command: Command) {}
    /// One row of the result set that was started last.
    fn row(&mut self, values: &[Value]);
    /// Whether the rows of the result set that was started last can be kept as they are sent, and rows that were kept be sent in their place.
    fn may_replay(&self) -> bool {
        false
    }
    /// From now on rows are kept as they are sent, until [`Response::recorded`] or the end of the result set.
    fn record(&mut self) {}
    /// What has been kept since [`Response::record`].
    fn recorded(&mut self) -> Option<Recording> {
        None
    }
    /// Sends rows of an equal result set that were kept.
    fn replay(&mut self, _recording: &Recording) {}
    /// Ends a statement: with a row count for SELECT and DML (`None`: no count, as after SET or DDL). The protocol layer chooses DONE, DONEINPROC
    /// or DONEPROC and sets the MORE bit.
    fn done(&mut self, rows: Option<u64>);
    /// A statement's error; the statement is ended by it, without a call of `done`.
    fn error(&mut self, error: &SqlError);
    /// PRINT and other messages.
    fn info(&mut self, message: &SqlError);
    fn env_change(&mut self, change: &EnvChange);
    fn return_status(&mut self, status: i32);
    fn return_value(&mut self, parameter: &Parameter);
    fn is_closed(&self) -> bool;
}

/// The engine behind the protocol: hands out sessions.
pub trait Server: Send + Sync + 'static {
    /// Checks the login. The error becomes an ERROR token (18456 for a wrong password, 4060 for an unknown database) and the connection is
    /// closed. Called on a thread that may block.
    fn login(&self, login: &Login, cancel: Cancel) -> Result<Box<dyn Session>, SqlError>;
}

/// One connection's state in the engine. All calls come from one thread of the connection's own, which may block.
pub trait Session: Send {
    fn batch(&mut self, batch: &Batch, response: &mut dyn Response);
    fn call(&mut self, call: &Call, response: &mut dyn Response);
    fn transaction(&mut self, request: &TransactionRequest, response: &mut dyn Response);
    /// The result columns of a batch without running it (`sp_prepare`, `sp_describe_first_result_set`); empty when it has none.
    fn describe(&mut self, batch: &Batch) -> Result<Vec<Column>, SqlError>;
    /// Back to the state after login (the RESETCONNECTION bit of a pooled client): roll back, drop settings and temporary tables.
    fn reset(&mut self);
    /// The database that the session is in, for messages and environment changes.
    fn database(&self) -> String;
}
