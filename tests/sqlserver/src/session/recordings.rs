//! Answers from change tables that are kept and given again: a measurement of what reads them is then not one of how fast they are read here.
//!
//! Only as long as [`crate::Running::replay_changes`] says so: nothing here notices that a change table has changed. A question is the same when its translation is, its parameters
//! and its database; everything else in a request (other statements, what is read of the catalog and of the mapping of LSNs to times) is answered afresh.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rusqlite::types::Value as Stored;
use tds::{Recording, Response, SqlError};

use super::Session;
use super::query::Streamed;
use crate::server::lock;
use crate::translate::Translated;

/// What is kept in all; answers past it are given afresh each time.
const LIMIT_BYTES: usize = 2 << 30;

/// None: nothing is kept.
#[derive(Debug, Default)]
pub(crate) struct Recordings(Mutex<Option<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<Question, Arc<Recording>>,
    bytes: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Question {
    database: String,
    sql: String,
    parameters: String,
}

impl Recordings {
    /// Forgets what was kept, and begins to keep answers or stops it.
    pub(crate) fn switch(&self, on: bool) {
        *lock(&self.0) = on.then(Kept::default);
    }

    fn is_on(&self) -> bool {
        lock(&self.0).is_some()
    }

    fn find(&self, question: &Question) -> Option<Arc<Recording>> {
        lock(&self.0).as_ref().and_then(|kept| kept.answers.get(question).cloned())
    }

    fn keep(&self, question: Question, recording: Recording) {
        if let Some(kept) = lock(&self.0).as_mut()
            && kept.bytes + recording.size() <= LIMIT_BYTES
        {
            kept.bytes += recording.size();
            kept.answers.insert(question, Arc::new(recording));
        }
    }
}

impl Session {
    /// The rows of a query that reads change tables and no tables of users: those kept, or else afresh and kept for the next time. None: this query is not of that kind.
    pub(super) fn replay(&self, t: &Translated, response: &mut dyn Response) -> Option<Result<u64, SqlError>> {
        let recordings = &self.shared.recordings;
        if t.reads_rows || !t.sql.contains("_CT\"") || !recordings.is_on() {
            return None;
        }
        let parameters: Vec<Stored> =
            t.parameters.iter().map(|(source, data_type)| self.source_value(source, data_type)).collect();
        let question = Question { database: t.home.clone(), sql: t.sql.clone(), parameters: format!("{parameters:?}") };
        if let Some(recording) = recordings.find(&question) {
            response.columns(&t.columns);
            if response.may_replay() {
                response.replay(&recording);
                return Some(Ok(recording.rows));
            }
            return Some(self.stream(t, &mut |row| match row {
                Streamed::Columns(_) => {}
                Streamed::Row(values) => response.row(values),
                Streamed::Closed(answer) => *answer = response.is_closed(),
            }));
        }
        let rows = self.stream(t, &mut |row| match row {
            Streamed::Columns(columns) => {
                response.columns(columns);
                if response.may_replay() {
                    response.record();
                }
            }
            Streamed::Row(values) => response.row(values),
            Streamed::Closed(answer) => *answer = response.is_closed(),
        });
        let recorded = response.recorded();
        if let (Ok(_), Some(recording)) = (&rows, recorded) {
            recordings.keep(question, recording);
        }
        Some(rows)
    }
}
