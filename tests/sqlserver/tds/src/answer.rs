//! The answer to one request: the tokens that a session writes, cut into packets and handed to the connection's task.
//!
//! Packets leave as soon as enough of them are full; the channel to the task is bounded, so a session that writes faster than its client reads
//! waits in the next call. Whether a DONE has more behind it is known only at the next token, so the last one is held back until then.
//!
//! Rows are taken or left whole: one that does not fit its columns is taken back, answered with an error, and its result ends there.

use tokio::sync::mpsc::Sender;

use crate::data::{Column, Value};
use crate::encode::{self, Misfit};
use crate::options::{Options, Sessions};
use crate::packet::{self, HEADER_BYTES};
use crate::session::{Cancel, Command, EnvChange, Parameter, Recording, Response, SqlError};
use crate::token::{self, Done, done};
use crate::type_info::Wire;

/// Payload gathered before packets are handed on.
const FLUSH_BYTES: usize = 64 << 10;
const CONVERSION_FAILED: i32 = 8114;

/// What a session's thread hands to the connection's task.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Whole packets.
    Packets { bytes: Vec<u8>, count: u64 },
    /// The answer is complete.
    End,
    /// The answer's last packets; the connection is closed after them.
    Last { bytes: Vec<u8> },
    /// A fault: these bytes are still sent, then the connection is gone without a word.
    Cut { bytes: Vec<u8> },
}

/// How the statements of an answer are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// DONE after each statement.
    Batch,
    /// DONEINPROC after each statement, DONEPROC after the procedure.
    Procedure,
}

pub(crate) struct Answer<'a> {
    chunks: &'a Sender<Chunk>,
    cancel: &'a Cancel,
    options: &'a Options,
    packet_bytes: u16,
    packet_number: u8,
    payload: Vec<u8>,
    pending: Option<Done>,
    style: Style,
    columns: Vec<Wire>,
    in_result: bool,
    /// The current result was ended by a row that could not be sent.
    broken: bool,
    /// Named by the session for the next statement, and the guess where it names none.
    command: Option<Command>,
    guess: Command,
    rows: u64,
    recording: Option<Recording>,
    cut_after_rows: Option<u64>,
    closed: bool,
    /// The answer is lost by a fault: nothing of it is sent.
    lost: bool,
    failed: bool,
    /// The connection is to be closed after the answer.
    fatal: bool,
    status: Option<i32>,
    returned: Vec<(u16, Parameter)>,
    /// Where the output parameters of the current procedure stand in its call.
    ordinals: Vec<(String, u16)>,
    /// The transaction that is open, for the flag of DONE tokens; outlives the answer.
    pub(crate) transaction: u64,
}

impl<'a> Answer<'a> {
    pub(crate) fn new(chunks: &'a Sender<Chunk>, cancel: &'a Cancel, options: &'a Options, packet_bytes: u16) -> Self {
        Answer {
            chunks,
            cancel,
            options,
            packet_bytes,
            packet_number: 0,
            payload: Vec::with_capacity(4096),
            pending: None,
            style: Style::Batch,
            columns: Vec::new(),
            in_result: false,
            broken: false,
            command: None,
            guess: Command::Update,
            rows: 0,
            recording: None,
            cut_after_rows: None,
            closed: false,
            lost: false,
            failed: false,
            fatal: false,
            status: None,
            returned: Vec::new(),
            ordinals: Vec::new(),
            transaction: 0,
        }
    }

    pub(crate) fn set_style(&mut self, style: Style) {
        self.style = style;
    }

    pub(crate) fn guess_command(&mut self, guess: Command) {
        self.guess = guess;
    }

    pub(crate) fn cut_after_rows(&mut self, rows: u64) {
        self.cut_after_rows = Some(rows);
    }

    /// From here on nothing is sent; the connection ends.
    pub(crate) fn cut(&mut self) {
        self.pending = None;
        self.payload.clear();
        self.hand_on(Chunk::Cut { bytes: Vec::new() });
        self.closed = true;
    }

    /// The request runs, and its answer is lost.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
    }

    /// After this answer the connection is closed.
    pub(crate) fn close_after(&mut self) {
        self.fatal = true;
    }

    /// Names the places of a procedure's output parameters.
    pub(crate) fn set_ordinals(&mut self, ordinals: Vec<(String, u16)>) {
        self.ordinals = ordinals;
    }

    /// The return status of a procedure that did not set one.
    pub(crate) fn status_if_none(&mut self, status: i32) {
        self.status.get_or_insert(status);
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    /// Returns an output parameter of a call by its place.
    pub(crate) fn return_at(&mut self, ordinal: u16, parameter: Parameter) {
        self.returned.push((ordinal, parameter));
    }

    /// COLMETADATA alone, as the answer to a preparation.
    pub(crate) fn describe(&mut self, columns: &[Column]) {
        self.columns(columns);
        self.in_result = false;
    }

    /// Nothing that is written now would be read.
    fn idle(&self) -> bool {
        self.closed || self.cancel.is_set()
    }

    /// Before a token: the DONE that was held back has more behind it.
    fn settle(&mut self) {
        if let Some(mut held) = self.pending.take() {
            held.flags |= done::MORE;
            self.put_done(held);
        }
    }

    fn put_done(&mut self, done: Done) {
        let token = match self.style {
            Style::Batch => done::DONE,
            Style::Procedure => done::IN_PROC,
        };
        done.put(&mut self.payload, token);
        self.flush_full();
    }

    fn hold(&mut self, flags: u16, rows: u64) {
        let has_count = flags & done::COUNT != 0;
        let guess = match (self.in_result, has_count) {
            (true, _) => Command::Select,
            (false, true) if self.guess != Command::Define => self.guess,
            (false, true) => Command::Update,
            (false, false) if self.guess == Command::Define => Command::Define,
            (false, false) => Command::Other,
        };
        let command = self.command.take().unwrap_or(guess);
        let transaction = if self.transaction == 0 { 0 } else { done::IN_TRANSACTION };
        self.in_result = false;
        self.pending = Some(Done { flags: flags | transaction, command, rows });
    }

    /// Hands on all packets that are full, keeping at least one byte for the packet that ends the message.
    fn flush_full(&mut self) {
        if self.payload.len() < FLUSH_BYTES {
            return;
        }
        self.flush();
    }

    fn flush(&mut self) {
        let room = usize::from(self.packet_bytes) - HEADER_BYTES;
        let count = self.payload.len().saturating_sub(1) / room;
        if count == 0 || self.closed {
            return;
        }
        let mut bytes = Vec::with_capacity(count * usize::from(self.packet_bytes));
        packet::frame(&mut bytes, &self.payload[..count * room], self.packet_bytes, &mut self.packet_number, false);
        self.payload.drain(..count * room);
        self.hand_on(Chunk::Packets { bytes, count: count as u64 });
    }

    fn hand_on(&mut self, chunk: Chunk) {
        if self.lost && !matches!(chunk, Chunk::Cut { .. }) {
            return;
        }
        if self.closed {
            return;
        }
        let sent = match self.options.sessions {
            Sessions::Threads => self.chunks.blocking_send(chunk).is_ok(),
            Sessions::InPlace => self.chunks.try_send(chunk).is_ok(),
        };
        if !sent {
            self.closed = true;
            self.cancel.set();
        }
    }

    /// Ends a procedure of the request: its status and output parameters, and DONEPROC.
    pub(crate) fn end_procedure(&mut self, last: bool) {
        if self.idle() {
            return;
        }
        self.settle();
        token::put_return_status(&mut self.payload, self.status.take().unwrap_or(0));
        for (ordinal, parameter) in std::mem::take(&mut self.returned) {
            let at = self.payload.len();
            if let Err(misfit) = token::put_return_value(&mut self.payload, ordinal, &parameter, self.options.collation) {
                self.payload.truncate(at);
                self.put_misfit(misfit, &format!("output parameter '{}'", parameter.name));
            }
        }
        let flags = if self.failed { done::ERROR } else { 0 } | if last { 0 } else { done::MORE };
        let transaction = if self.transaction == 0 { 0 } else { done::IN_TRANSACTION };
        let end = Done { flags: flags | transaction, command: Command::Other, rows: 0 };
        end.put(&mut self.payload, done::PROC);
        self.failed = false;
        self.ordinals.clear();
        self.flush_full();
    }

    /// Ends the message.
    pub(crate) fn finish(&mut self) {
        if self.closed {
            return;
        }
        if self.lost || self.cut_after_rows.is_some() {
            return self.cut();
        }
        if self.cancel.is_set() {
            // The message ends here, whatever statement or procedure was under way; the acknowledgement is a message of its own.
            self.settle();
            Done { flags: done::ERROR, command: Command::Select, rows: 0 }.put(&mut self.payload, done::DONE);
        } else if let Some(last) = self.pending.take() {
            self.put_done(last);
        }
        if self.payload.is_empty() {
            Done { flags: 0, command: Command::Other, rows: 0 }.put(&mut self.payload, done::DONE);
        }
        let mut bytes = Vec::with_capacity(self.payload.len() + HEADER_BYTES);
        packet::frame(&mut bytes, &self.payload, self.packet_bytes, &mut self.packet_number, true);
        let count = bytes.len().div_ceil(usize::from(self.packet_bytes)) as u64;
        self.payload.clear();
        if self.fatal {
            self.hand_on(Chunk::Last { bytes });
            self.closed = true;
            return;
        }
        self.hand_on(Chunk::Packets { bytes, count });
        self.hand_on(Chunk::End);
    }

    fn put_misfit(&mut self, misfit: Misfit, what: &str) {
        let error = SqlError {
            number: CONVERSION_FAILED,
            state: 5,
            class: 16,
            message: format!("Error sending {what}: {misfit}."),
            procedure: String::new(),
            line: 1,
        };
        token::put_error(&mut self.payload, &error, &self.options.server_name);
        self.failed = true;
    }

    /// A row that cannot be sent: the result ends with an error that names the column.
    fn break_result(&mut self, misfit: Misfit, column: usize) {
        self.put_misfit(misfit, &format!("row {}, column {}", self.rows + 1, column + 1));
        self.broken = true;
        self.hold(done::ERROR, 0);
    }

    fn put_row(&mut self, values: &[Value]) -> Result<(), (Misfit, usize)> {
        if values.len() != self.columns.len() {
            return Err((Misfit("the row has another number of columns than the result"), values.len()));
        }
        let out = &mut self.payload;
        if values.iter().any(|value| matches!(value, Value::Null)) {
            out.push(token::NBC_ROW);
            let bitmap = out.len();
            out.resize(bitmap + values.len().div_ceil(8), 0);
            for (at, (wire, value)) in self.columns.iter().zip(values).enumerate() {
                if matches!(value, Value::Null) && !wire.fixed {
                    out[bitmap + at / 8] |= 1 << (at % 8);
                } else {
                    encode::put(out, wire, value).map_err(|misfit| (misfit, at))?;
                }
            }
        } else {
            out.push(token::ROW);
            for (at, (wire, value)) in self.columns.iter().zip(values).enumerate() {
                encode::put(out, wire, value).map_err(|misfit| (misfit, at))?;
            }
        }
        Ok(())
    }

    /// The fault of a lost connection in the middle of a row.
    fn cut_in_row(&mut self, row_start: usize) {
        let half = row_start + (self.payload.len() - row_start) / 2;
        self.payload.truncate(half);
        let mut bytes = Vec::new();
        packet::frame(&mut bytes, &self.payload, self.packet_bytes, &mut self.packet_number, false);
        self.hand_on(Chunk::Cut { bytes });
        self.closed = true;
        self.cancel.set();
    }
}

impl Response for Answer<'_> {
    fn columns(&mut self, columns: &[Column]) {
        if self.idle() {
            return;
        }
        self.settle();
        self.columns = token::put_columns(&mut self.payload, columns, self.options.collation);
        self.in_result = true;
        self.broken = false;
        self.rows = 0;
        self.flush_full();
    }

    fn command(&mut self, command: Command) {
        self.command = Some(command);
    }

    fn row(&mut self, values: &[Value]) {
        if self.broken || self.idle() {
            return;
        }
        let start = self.payload.len();
        match self.put_row(values) {
            Ok(()) if self.cut_after_rows == Some(self.rows) => self.cut_in_row(start),
            Ok(()) => {
                self.rows += 1;
                if let Some(recording) = &mut self.recording {
                    recording.rows += 1;
                    recording.bytes.extend_from_slice(&self.payload[start..]);
                }
                self.flush_full();
            }
            Err((misfit, column)) => {
                self.payload.truncate(start);
                self.break_result(misfit, column);
            }
        }
    }

    fn may_replay(&self) -> bool {
        self.in_result && self.cut_after_rows.is_none()
    }

    fn record(&mut self) {
        self.recording = Some(Recording::default());
    }

    fn recorded(&mut self) -> Option<Recording> {
        self.recording.take().filter(|_| !self.broken && !self.idle())
    }

    fn replay(&mut self, recording: &Recording) {
        for bytes in recording.bytes.chunks(FLUSH_BYTES) {
            if self.idle() {
                return;
            }
            self.payload.extend_from_slice(bytes);
            self.flush_full();
        }
        self.rows += recording.rows;
    }

    fn done(&mut self, rows: Option<u64>) {
        self.recording = None;
        if self.idle() {
            return;
        }
        if self.broken {
            // The error has ended the statement.
            self.broken = false;
            self.command = None;
            return;
        }
        self.settle();
        match rows {
            Some(rows) => self.hold(done::COUNT, rows),
            None => self.hold(0, 0),
        }
    }

    fn error(&mut self, error: &SqlError) {
        if self.idle() {
            return;
        }
        self.broken = false;
        self.settle();
        token::put_error(&mut self.payload, error, &self.options.server_name);
        if error.class > 10 {
            self.failed = true;
            self.fatal |= error.class >= 20;
            self.hold(done::ERROR, 0);
        }
        self.flush_full();
    }

    fn info(&mut self, message: &SqlError) {
        if self.idle() {
            return;
        }
        self.settle();
        let message = SqlError { class: message.class.min(10), ..message.clone() };
        token::put_error(&mut self.payload, &message, &self.options.server_name);
        self.flush_full();
    }

    fn env_change(&mut self, change: &EnvChange) {
        match change {
            EnvChange::BeginTransaction(descriptor) => self.transaction = *descriptor,
            EnvChange::CommitTransaction(_) | EnvChange::RollbackTransaction(_) => self.transaction = 0,
            EnvChange::Database { .. } | EnvChange::Language { .. } | EnvChange::ResetConnection => {}
        }
        // Also while a statement is being cancelled: the client must hear that a transaction began or ended.
        if !self.closed {
            self.settle();
            token::put_env_change(&mut self.payload, change);
        }
    }

    fn return_status(&mut self, status: i32) {
        self.status = Some(status);
    }

    fn return_value(&mut self, parameter: &Parameter) {
        let named = self.ordinals.iter().position(|(name, _)| crate::names::same_name(name, &parameter.name));
        let ordinal = named.map_or(self.returned.len() as u16, |at| self.ordinals[at].1);
        let mut parameter = parameter.clone();
        if let Some(at) = named {
            // As the client spelt it, which may be not at all.
            parameter.name.clone_from(&self.ordinals[at].0);
        }
        self.returned.push((ordinal, parameter));
    }

    fn is_closed(&self) -> bool {
        self.idle()
    }
}
