//! Runs INSERT, UPDATE, DELETE and SELECT INTO.

use std::sync::Arc;

use tds::{Column, DataType, Response, SqlError, Value};

use super::duplicate::is_duplicate;
use super::query::{Cached, Streamed};
use super::{Link, Session, fault};
use crate::catalog::define::NewColumn;
use crate::catalog::{self, Object};
use crate::message;
use crate::parse::{Delete, Insert, Name, Output, Source, Update};
use crate::server::lock;
use crate::translate::dml::InsertPlan;
use crate::translate::{Translated, Translator};
use crate::types::storage;

/// Rows that OUTPUT answers, and where they go.
#[derive(Default)]
struct Collected {
    rows: Vec<Vec<Value>>,
}

impl Session {
    pub(super) fn count(&self, rows: u64, response: &mut dyn Response) {
        self.last.borrow_mut().rowcount = rows as i64;
        let nocount = self.settings.borrow().nocount;
        response.done(if nocount { None } else { Some(rows) });
    }

    pub(super) fn insert(&self, id: u64, i: &Insert, response: &mut dyn Response) -> Result<(), SqlError> {
        let identity_insert = |o: &Object| self.settings.borrow().identity_insert == Some(o.object_id);
        if let Source::Execute(call) = &i.source {
            let mut capture = super::local::Collector::default();
            self.run(std::slice::from_ref(call), true, &mut capture)?;
            let rows = capture.typed_rows();
            if rows.is_empty() {
                self.count(0, response);
                return Ok(());
            }
            let plan = Translator::new(self).insert(i, &identity_insert, Some(rows))?;
            return self.run_insert(&plan, i.output.as_ref(), response);
        }
        // Long lists of constants are not repeated; their plan would only fill the memory.
        if matches!(&i.source, Source::Values(rows) if rows.len() > 20) || self.settings.borrow().identity_insert.is_some() {
            let plan = Translator::new(self).insert(i, &identity_insert, None)?;
            return self.run_insert(&plan, i.output.as_ref(), response);
        }
        let cached = self.cached(id, || Ok(Cached::Insert(Translator::new(self).insert(i, &identity_insert, None)?)))?;
        let Cached::Insert(plan) = cached.as_ref() else { return Ok(()) };
        self.run_insert(plan, i.output.as_ref(), response)
    }

    pub(super) fn run_insert(
        &self,
        plan: &InsertPlan,
        output: Option<&Output>,
        response: &mut dyn Response,
    ) -> Result<(), SqlError> {
        self.prepare_links(&plan.translated)?;
        let mut collected = Collected::default();
        let rows = self.writing(&plan.database, |link| {
            self.load_counters(link, &plan.object, plan.identity)?;
            let rows = self.insert_groups(link, plan, &mut collected)?;
            self.store_counters(link, &plan.object, plan)?;
            Ok(rows)
        })?;
        self.answer_output(output, &plan.translated.columns, collected, response)?;
        self.count(rows, response);
        Ok(())
    }

    fn insert_groups(&self, link: &Link, plan: &InsertPlan, collected: &mut Collected) -> Result<u64, SqlError> {
        let first = plan.translated.parameters.len() + 1;
        let mut count = 0;
        for group in &plan.groups {
            let mut statement = link.db.prepare_cached(&group.sql).map_err(|e| fault::from_sqlite(&e))?;
            for row in &group.rows {
                let failed = |e: rusqlite::Error| self.insert_failed(link, plan, group, row, &e);
                self.bind(&mut statement, &plan.translated)?;
                for (i, v) in row.iter().enumerate() {
                    statement.raw_bind_parameter(first + i, v).map_err(failed)?;
                }
                if plan.translated.columns.is_empty() {
                    count += statement.raw_execute().map_err(failed)? as u64;
                } else {
                    count += collect(&mut statement, &plan.translated.columns, collected).map_err(failed)?;
                }
            }
        }
        Ok(count)
    }

    /// The identity column's and row version's last values, for the functions that count on from them.
    fn load_counters(&self, link: &Link, object: &Object, identity: Option<(i64, i64)>) -> Result<(), SqlError> {
        let sqlite = |e: rusqlite::Error| fault::from_sqlite(&e);
        let mut counters = lock(&link.counters);
        counters.used = false;
        if let Some((seed, increment)) = identity {
            let last: Option<i64> = if object.schema.is_empty() {
                Some(seed - increment + increment * self.temporary_rows(link, object)?)
            } else {
                link.db
                    .prepare_cached("SELECT last_value FROM \"~columns\" WHERE object_id = ?1 AND seed IS NOT NULL")
                    .and_then(|mut s| s.query_row([object.object_id], |r| r.get(0)))
                    .map_err(sqlite)?
            };
            counters.identity = last.unwrap_or(seed - increment);
            counters.increment = increment;
        }
        if object.columns.iter().any(catalog::ColumnInfo::is_rowversion) {
            counters.rowversion = catalog::setting(&link.db, "rowversion").map_err(sqlite)?;
        }
        Ok(())
    }

    fn temporary_rows(&self, link: &Link, object: &Object) -> Result<i64, SqlError> {
        let sql = format!("SELECT coalesce(max(_rowid_), 0) FROM temp.{}", catalog::quote(&object.storage()));
        link.db.query_row(&sql, [], |r| r.get(0)).map_err(|e| fault::from_sqlite(&e))
    }

    fn store_counters(&self, link: &Link, object: &Object, plan: &InsertPlan) -> Result<(), SqlError> {
        let sqlite = |e: rusqlite::Error| fault::from_sqlite(&e);
        let (used, mut identity, rowversion) = {
            let c = lock(&link.counters);
            (c.used, c.identity, c.rowversion)
        };
        if let Some(column) = &plan.explicit_identity {
            let sql = format!("SELECT max({}) FROM {}", catalog::quote(column), catalog::quote(&object.storage()));
            identity = link.db.query_row(&sql, [], |r| r.get::<_, Option<i64>>(0)).map_err(sqlite)?.unwrap_or(0);
        }
        if used || plan.explicit_identity.is_some() {
            if !object.schema.is_empty() {
                link.db
                    .prepare_cached("UPDATE \"~columns\" SET last_value = ?2 WHERE object_id = ?1 AND seed IS NOT NULL AND (last_value IS NULL OR last_value < ?2 OR increment < 0)")
                    .and_then(|mut s| s.execute((object.object_id, identity)))
                    .map_err(sqlite)?;
            }
            let mut last = self.last.borrow_mut();
            last.identity = Some(identity);
            last.scope_identity = Some(identity);
        }
        self.store_rowversion(link, object, rowversion)
    }

    fn store_rowversion(&self, link: &Link, object: &Object, rowversion: i64) -> Result<(), SqlError> {
        if object.columns.iter().any(catalog::ColumnInfo::is_rowversion) {
            catalog::set_setting(&link.db, "rowversion", rowversion).map_err(|e| fault::from_sqlite(&e))?;
        }
        Ok(())
    }

    fn answer_output(
        &self,
        output: Option<&Output>,
        columns: &[Column],
        collected: Collected,
        response: &mut dyn Response,
    ) -> Result<(), SqlError> {
        let Some(output) = output else { return Ok(()) };
        let Some((target, names)) = &output.into else {
            response.columns(columns);
            for row in &collected.rows {
                response.row(row);
            }
            return Ok(());
        };
        if collected.rows.is_empty() {
            return Ok(());
        }
        let rows = collected
            .rows
            .into_iter()
            .map(|r| r.into_iter().zip(columns).map(|(v, c)| (v, c.data_type.clone())).collect())
            .collect();
        let insert =
            Insert { target: target.clone(), columns: names.clone(), output: None, source: Source::DefaultValues, with: None };
        let plan = Translator::new(self).insert(&insert, &|_| false, Some(rows))?;
        let mut none = Collected::default();
        self.writing(&plan.database, |link| {
            self.load_counters(link, &plan.object, plan.identity)?;
            self.insert_groups(link, &plan, &mut none)?;
            self.store_counters(link, &plan.object, &plan)
        })
    }

    pub(super) fn update(&self, id: u64, u: &Update, response: &mut dyn Response) -> Result<(), SqlError> {
        let cached = self.cached(id, || Ok(Cached::Change(Translator::new(self).update(u)?)))?;
        self.change(&cached, "UPDATE", u.output.as_ref(), response)
    }

    pub(super) fn delete(&self, id: u64, d: &Delete, response: &mut dyn Response) -> Result<(), SqlError> {
        let cached = self.cached(id, || Ok(Cached::Change(Translator::new(self).delete(d)?)))?;
        self.change(&cached, "DELETE", d.output.as_ref(), response)
    }

    fn change(
        &self,
        cached: &Arc<Cached>,
        verb: &'static str,
        output: Option<&Output>,
        response: &mut dyn Response,
    ) -> Result<(), SqlError> {
        let Cached::Change(plan) = cached.as_ref() else { return Ok(()) };
        self.prepare_links(&plan.translated)?;
        let mut collected = Collected::default();
        let rows = self.writing(&plan.database, |link| {
            let failed = |e: rusqlite::Error| {
                let doing =
                    fault::Doing { db: &link.db, database: &plan.database, object: &plan.object, verb, duplicate: &|_| None };
                fault::of_change(&e, &doing)
            };
            self.load_counters(link, &plan.object, None)?;
            if let Some(before) = &plan.output {
                self.rows(link, &plan.translated, before, &mut |s| {
                    if let Streamed::Row(r) = s {
                        collected.rows.push(r.to_vec());
                    }
                })?;
            }
            let mut statement = link.db.prepare_cached(&plan.translated.sql).map_err(failed)?;
            self.bind(&mut statement, &plan.translated)?;
            let count = if output.is_some() && plan.output.is_none() {
                collect(&mut statement, &plan.translated.columns, &mut collected).map_err(failed)?
            } else {
                match statement.raw_execute() {
                    Err(e) if is_duplicate(&e) => {
                        drop(statement);
                        self.change_keys(link, plan, &e)?
                    }
                    other => other.map_err(failed)? as u64,
                }
            };
            let rowversion = lock(&link.counters).rowversion;
            self.store_rowversion(link, &plan.object, rowversion)?;
            Ok(count)
        })?;
        self.answer_output(output, &plan.translated.columns, collected, response)?;
        self.count(rows, response);
        Ok(())
    }

    /// SELECT … INTO: a new table with the result's columns, and its rows.
    pub(super) fn select_into(&self, target: &Name, t: &Translated, response: &mut dyn Response) -> Result<(), SqlError> {
        let mut rows: Vec<Vec<(Value, DataType)>> = Vec::new();
        self.stream(t, &mut |s| {
            if let Streamed::Row(r) = s {
                rows.push(r.iter().zip(&t.columns).map(|(v, c)| (v.clone(), c.data_type.clone())).collect());
            }
        })?;
        let mut columns = Vec::new();
        for (i, c) in t.columns.iter().enumerate() {
            if c.name.is_empty() {
                return Err(message::error(
                    1038,
                    15,
                    format!(
                        "An object or column name is missing or empty. For SELECT INTO statements, verify each column has a name (column {}).",
                        i + 1
                    ),
                ));
            }
            columns.push(NewColumn {
                name: c.name.clone(),
                data_type: c.data_type.clone(),
                type_name: crate::types::name(&c.data_type).into(),
                nullable: c.nullable,
                identity: None,
                computed: None,
                persisted: false,
                default: None,
                collation: None,
                rowguid: false,
            });
        }
        self.create_plain(target, &columns)?;
        let count = rows.len() as u64;
        if count > 0 {
            let insert =
                Insert { target: target.clone(), columns: Vec::new(), output: None, source: Source::DefaultValues, with: None };
            let plan = Translator::new(self).insert(&insert, &|_| true, Some(rows))?;
            let mut none = Collected::default();
            self.writing(&plan.database, |link| self.insert_groups(link, &plan, &mut none))?;
        }
        self.count(count, response);
        Ok(())
    }
}

/// Runs a statement with RETURNING.
fn collect(statement: &mut rusqlite::Statement<'_>, columns: &[Column], into: &mut Collected) -> rusqlite::Result<u64> {
    let mut rows = statement.raw_query();
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let mut values = Vec::with_capacity(columns.len());
        for (i, c) in columns.iter().enumerate() {
            values.push(storage::decode(row.get_ref(i)?, &c.data_type));
        }
        into.rows.push(values);
        count += 1;
    }
    Ok(count)
}
