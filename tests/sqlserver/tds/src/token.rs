//! The tokens of an answer, byte by byte (MS-TDS 2.2.7).

use crate::collation::Collation;
use crate::data::{Column, DataType};
use crate::encode::{self, Misfit};
use crate::options::Version;
use crate::session::{Command, EnvChange, Parameter, SqlError};
use crate::type_info::{Wire, put_b_varchar, put_us_varchar};

pub(crate) const ROW: u8 = 0xD1;
pub(crate) const NBC_ROW: u8 = 0xD2;
const RETURN_STATUS: u8 = 0x79;
const COLUMN_METADATA: u8 = 0x81;
const ERROR: u8 = 0xAA;
const INFO: u8 = 0xAB;
const RETURN_VALUE: u8 = 0xAC;
const LOGIN_ACK: u8 = 0xAD;
const FEATURE_ACK: u8 = 0xAE;
const ENV_CHANGE: u8 = 0xE3;
const TABLE_NAME: &str = "t";

/// DONE, DONEPROC and DONEINPROC, and their flags.
pub(crate) mod done {
    pub(crate) const DONE: u8 = 0xFD;
    pub(crate) const PROC: u8 = 0xFE;
    pub(crate) const IN_PROC: u8 = 0xFF;

    pub(crate) const MORE: u16 = 0x01;
    pub(crate) const ERROR: u16 = 0x02;
    pub(crate) const IN_TRANSACTION: u16 = 0x04;
    pub(crate) const COUNT: u16 = 0x10;
    pub(crate) const ATTENTION: u16 = 0x20;
}

/// A DONE token before it is known which of the three it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) flags: u16,
    pub(crate) command: Command,
    pub(crate) rows: u64,
}

impl Done {
    pub(crate) fn put(self, out: &mut Vec<u8>, token: u8) {
        out.push(token);
        out.extend(self.flags.to_le_bytes());
        out.extend(command_code(self.command).to_le_bytes());
        out.extend(self.rows.to_le_bytes());
    }
}

/// CurCmd: what SQL Server sends for the statement; JDBC tells DML from queries by it.
fn command_code(command: Command) -> u16 {
    match command {
        Command::Other => 0,
        Command::Select => 0xC1,
        Command::Insert => 0xC3,
        Command::Delete => 0xC4,
        Command::Update => 0xC5,
        Command::Merge => 0x117,
        // CREATE TABLE, for all of them.
        Command::Define => 0xC6,
    }
}

/// The columns' types as they are announced, for the rows after it.
pub(crate) fn put_columns(out: &mut Vec<u8>, columns: &[Column], collation: Collation) -> Vec<Wire> {
    out.push(COLUMN_METADATA);
    out.extend((columns.len() as u16).to_le_bytes());
    let mut wires = Vec::with_capacity(columns.len());
    for column in columns {
        let wire = Wire::new(&column.data_type, column.nullable, column.collation.unwrap_or(collation));
        out.extend(0u32.to_le_bytes());
        out.extend(column_flags(column).to_le_bytes());
        wire.put(out);
        if matches!(column.data_type, DataType::Text | DataType::NText | DataType::Image) {
            out.push(1);
            put_us_varchar(out, TABLE_NAME);
        }
        put_b_varchar(out, &column.name);
        wires.push(wire);
    }
    wires
}

fn column_flags(column: &Column) -> u16 {
    const NULLABLE: u16 = 0x01;
    const UPDATABLE_UNKNOWN: u16 = 0x08;
    const IDENTITY: u16 = 0x10;
    const COMPUTED: u16 = 0x20;
    let read_only = column.identity || column.computed;
    let flags =
        [(column.nullable, NULLABLE), (!read_only, UPDATABLE_UNKNOWN), (column.identity, IDENTITY), (column.computed, COMPUTED)];
    flags.into_iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag)
}

/// ERROR, or INFO for a class of 10 and below.
pub(crate) fn put_error(out: &mut Vec<u8>, error: &SqlError, server: &str) {
    let mut body = Vec::new();
    body.extend(error.number.to_le_bytes());
    body.extend([error.state, error.class]);
    put_us_varchar(&mut body, &shortened(&error.message));
    put_b_varchar(&mut body, server);
    put_b_varchar(&mut body, &error.procedure);
    body.extend(error.line.to_le_bytes());
    put_token(out, if error.class > 10 { ERROR } else { INFO }, &body);
}

/// The token's length has 16 bits; SQL Server's own messages end at 2047 characters.
fn shortened(message: &str) -> std::borrow::Cow<'_, str> {
    const MOST: usize = 2047;
    match message.char_indices().nth(MOST) {
        None => message.into(),
        Some((end, _)) => format!("{}…", &message[..end]).into(),
    }
}

fn put_token(out: &mut Vec<u8>, token: u8, body: &[u8]) {
    out.push(token);
    out.extend((body.len() as u16).to_le_bytes());
    out.extend_from_slice(body);
}

mod env {
    pub(super) const DATABASE: u8 = 1;
    pub(super) const LANGUAGE: u8 = 2;
    pub(super) const PACKET_SIZE: u8 = 4;
    pub(super) const COLLATION: u8 = 7;
    pub(super) const BEGIN: u8 = 8;
    pub(super) const COMMIT: u8 = 9;
    pub(super) const ROLLBACK: u8 = 10;
    pub(super) const RESET: u8 = 18;
}

pub(crate) fn put_env_change(out: &mut Vec<u8>, change: &EnvChange) {
    let mut body = Vec::new();
    match change {
        EnvChange::Database { new, old } => put_env_texts(&mut body, env::DATABASE, new, old),
        EnvChange::Language { new, old } => put_env_texts(&mut body, env::LANGUAGE, new, old),
        EnvChange::BeginTransaction(descriptor) => {
            body.extend([env::BEGIN, 8]);
            body.extend(descriptor.to_le_bytes());
            body.push(0);
        }
        EnvChange::CommitTransaction(descriptor) | EnvChange::RollbackTransaction(descriptor) => {
            let ended = if matches!(change, EnvChange::CommitTransaction(_)) { env::COMMIT } else { env::ROLLBACK };
            body.extend([ended, 0, 8]);
            body.extend(descriptor.to_le_bytes());
        }
        EnvChange::ResetConnection => body.extend([env::RESET, 0, 0]),
    }
    put_token(out, ENV_CHANGE, &body);
}

fn put_env_texts(body: &mut Vec<u8>, kind: u8, new: &str, old: &str) {
    body.push(kind);
    put_b_varchar(body, new);
    put_b_varchar(body, old);
}

pub(crate) fn put_packet_size(out: &mut Vec<u8>, new: u16, old: u16) {
    let mut body = Vec::new();
    put_env_texts(&mut body, env::PACKET_SIZE, &new.to_string(), &old.to_string());
    put_token(out, ENV_CHANGE, &body);
}

pub(crate) fn put_collation(out: &mut Vec<u8>, collation: Collation) {
    let mut body = vec![env::COLLATION, 5];
    body.extend(collation.0);
    body.push(0);
    put_token(out, ENV_CHANGE, &body);
}

pub(crate) fn put_login_ack(out: &mut Vec<u8>, tds_version: u32, version: Version) {
    const TRANSACT_SQL: u8 = 1;
    let mut body = vec![TRANSACT_SQL];
    body.extend(tds_version.to_be_bytes());
    put_b_varchar(&mut body, "Microsoft SQL Server\0\0");
    let [high, low] = version.build.to_be_bytes();
    body.extend([version.major, version.minor, high, low]);
    put_token(out, LOGIN_ACK, &body);
}

pub(crate) fn put_feature_ack(out: &mut Vec<u8>, features: &[(u8, &[u8])]) {
    out.push(FEATURE_ACK);
    for (id, data) in features {
        out.push(*id);
        out.extend((data.len() as u32).to_le_bytes());
        out.extend_from_slice(data);
    }
    out.push(0xFF);
}

pub(crate) fn put_return_status(out: &mut Vec<u8>, status: i32) {
    out.push(RETURN_STATUS);
    out.extend(status.to_le_bytes());
}

/// `ordinal`: the parameter's place in the call, from 0.
pub(crate) fn put_return_value(
    out: &mut Vec<u8>,
    ordinal: u16,
    parameter: &Parameter,
    collation: Collation,
) -> Result<(), Misfit> {
    const OUTPUT_PARAMETER: u8 = 1;
    out.push(RETURN_VALUE);
    out.extend(ordinal.to_le_bytes());
    put_b_varchar(out, &parameter.name);
    out.push(OUTPUT_PARAMETER);
    out.extend(0u32.to_le_bytes());
    out.extend(1u16.to_le_bytes());
    let wire = Wire::new(&parameter.data_type, true, collation);
    wire.put(out);
    encode::put(out, &wire, &parameter.value)
}
