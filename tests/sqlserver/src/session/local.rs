//! Sessions without a network: set-up scripts of tests and the demo, and statements whose rows another one takes.

use std::sync::Arc;

use tds::{Batch, Cancel, Column, DataType, EnvChange, Parameter, Response, SqlError, Value};

use super::Session;
use crate::ResultSet;
use crate::message;
use crate::server::Shared;

/// Gathers an answer.
#[derive(Default)]
pub(crate) struct Collector {
    pub(crate) sets: Vec<ResultSet>,
    pub(crate) error: Option<SqlError>,
}

impl Collector {
    /// All rows with their types.
    pub(crate) fn typed_rows(self) -> Vec<Vec<(Value, DataType)>> {
        self.sets
            .into_iter()
            .flat_map(|s| {
                let types: Vec<DataType> = s.columns.iter().map(|c| c.data_type.clone()).collect();
                s.rows.into_iter().map(move |r| r.into_iter().zip(types.iter().cloned()).collect())
            })
            .collect()
    }
}

impl Response for Collector {
    fn columns(&mut self, columns: &[Column]) {
        self.sets.push(ResultSet { columns: columns.to_vec(), rows: Vec::new() });
    }
    fn row(&mut self, values: &[Value]) {
        if let Some(set) = self.sets.last_mut() {
            set.rows.push(values.to_vec());
        }
    }
    fn done(&mut self, _: Option<u64>) {}
    fn error(&mut self, error: &SqlError) {
        // The first one is the cause.
        if self.error.is_none() {
            self.error = Some(error.clone());
        }
    }
    fn info(&mut self, _: &SqlError) {}
    fn env_change(&mut self, _: &EnvChange) {}
    fn return_status(&mut self, _: i32) {}
    fn return_value(&mut self, _: &Parameter) {}
    fn is_closed(&self) -> bool {
        false
    }
}

/// Runs a script as `sa`; lines of `GO` separate its batches.
pub(crate) fn execute(shared: &Arc<Shared>, database: &str, script: &str) -> Result<Vec<ResultSet>, SqlError> {
    let database =
        shared.database(database).ok_or_else(|| message::error(911, 16, format!("Database '{database}' does not exist.")))?.name;
    let session = Session::new(shared.clone(), "sa", true, &database, Cancel::default(), "local", "Tributary");
    let mut sets = Vec::new();
    let mut batch = String::new();
    for line in script.lines().chain(["GO"]) {
        if !line.trim().eq_ignore_ascii_case("go") {
            batch.push_str(line);
            batch.push('\n');
            continue;
        }
        let sql = std::mem::take(&mut batch);
        if sql.trim().is_empty() {
            continue;
        }
        let mut collector = Collector::default();
        session.run_batch(&Batch { sql, parameters: Vec::new() }, &mut collector);
        if let Some(e) = collector.error {
            return Err(e);
        }
        sets.extend(collector.sets);
    }
    Ok(sets)
}
