//! Runs MERGE: its parts one after the other, as one statement.

use tds::{Response, SqlError, Value};

use super::Session;
use super::local::Collector;
use crate::message;
use crate::parse::{Change, Merge, Statement};
use crate::translate::Translator;

/// Where a MERGE within a transaction goes back to when it fails.
const SAVEPOINT: &str = "~merge";

impl Session {
    pub(super) fn merge(&self, merge: &Merge, response: &mut dyn Response) -> Result<(), SqlError> {
        // Its parts are one statement: all or nothing, and one commit.
        let own = !self.in_transaction();
        let mut quiet = Collector::default();
        if own {
            self.begin(&mut quiet);
        } else {
            self.save(SAVEPOINT)?;
        }
        let answer = self.parts(merge);
        match (&answer, own) {
            (Ok(_), true) => self.commit(&mut quiet)?,
            (Ok(_), false) => {}
            (Err(_), true) => self.rollback_all(),
            (Err(_), false) => self.rollback(Some(SAVEPOINT), &mut quiet)?,
        }
        self.count(answer?, response);
        Ok(())
    }

    /// How many rows were changed.
    fn parts(&self, merge: &Merge) -> Result<u64, SqlError> {
        // Which rows are inserted is decided before anything changes.
        let inserts = match &merge.inserts {
            Some((rows, insert)) => Some((self.collected(rows)?.typed_rows(), insert)),
            None => None,
        };
        let mut changed = 0;
        for Change { statement, pairs } in &merge.changes {
            let pairs = pairs.as_ref().map(|pairs| self.collected(pairs)).transpose()?;
            self.collected(statement)?;
            let rows = self.last.borrow().rowcount.unsigned_abs();
            if pairs.is_some_and(|pairs| !matches!(pairs.typed_rows().as_slice(), [row] if row[0].0 == Value::Int(rows as i64))) {
                return Err(message::error(8672, 16, "The MERGE statement attempted to UPDATE or DELETE the same row more than once. This happens when a target row matches more than one source row. A MERGE statement cannot UPDATE/DELETE the same row of the target table multiple times. Refine the ON clause to ensure a target row matches at most one source row, or use the GROUP BY clause to group the source rows.".into()));
            }
            changed += rows;
        }
        let Some((rows, insert)) = inserts.filter(|(rows, _)| !rows.is_empty()) else { return Ok(changed) };
        changed += rows.len() as u64;
        let identity_insert = |o: &crate::catalog::Object| self.settings.borrow().identity_insert == Some(o.object_id);
        let plan = Translator::new(self).insert(insert, &identity_insert, Some(rows))?;
        self.run_insert(&plan, None, &mut Collector::default())?;
        Ok(changed)
    }

    fn collected(&self, statement: &Statement) -> Result<Collector, SqlError> {
        let mut collector = Collector::default();
        self.simple(statement, &mut collector)?;
        Ok(collector)
    }
}
