//! Unique keys: UPDATE as SQL Server checks it, and the key that an error names.
//!
//! SQL Server checks uniqueness when a statement ends, SQLite at every row; so `SET id = id + 1` may meet a row that has yet to move. An UPDATE that fails
//! so is run again in two steps: first the changed rows take keys that nobody has (random bytes, or numbers below all of SQL Server's), then their own.
//! What fails then is a true duplicate. The log of changes is written anew from the rows as they were and as they are, so that nobody sees the keys in
//! between. Foreign keys are checked when the transaction commits, because rows that refer to a key that moves twice break in between.

use rusqlite::{Connection, Statement, ffi};
use tds::{DataType, Length, SqlError, Value};

use super::{Link, Session, fault};
use crate::capture_procedures;
use crate::catalog::capture::CaptureCatalog;
use crate::catalog::{self, Object, quote, same};
use crate::translate::dml::{ChangePlan, Group, InsertPlan};
use crate::types::convert::to_text;
use crate::types::{self, storage};

/// Below every key of a table: SQLite's rowids for the first step are counted from here.
const BELOW_ALL: i64 = -4_611_686_018_427_387_904;

/// Whether the error is a key that two rows have.
pub(super) fn is_duplicate(e: &rusqlite::Error) -> bool {
    matches!(e, rusqlite::Error::SqliteFailure(f, _)
        if matches!(f.extended_code, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID))
}

/// Rows that a statement would write: where a duplicate key is looked for.
struct Fresh<'a> {
    db: &'a Connection,
    object: &'a Object,
    /// The table, qualified.
    table: &'a str,
    /// `WITH … "~n"(columns) AS (…)`, whose columns are these.
    with: String,
    columns: Vec<String>,
    /// Which of the table's rows (`t`) stay.
    staying: &'static str,
}

impl Fresh<'_> {
    /// The first key that a row has already, or that two of the new rows share, as SQL Server writes it: `1, abc`.
    fn key(&self, key: &[String], bind: &dyn Fn(&mut Statement<'_>) -> Result<(), SqlError>) -> Option<String> {
        let columns: Vec<_> = key.iter().filter_map(|k| self.object.column(k)).collect();
        let new: Vec<String> = columns
            .iter()
            .map(|c| if self.columns.iter().any(|n| same(n, &c.name)) { format!("n.{}", quote(&c.name)) } else { "NULL".into() })
            .collect();
        let equal: Vec<String> = columns.iter().zip(&new).map(|(c, n)| format!("t.{} IS {n}", quote(&c.name))).collect();
        let grouped: Vec<String> = columns
            .iter()
            .zip(&new)
            .map(
                |(c, n)| {
                    if types::is_string(&c.data_type) { format!("{n} COLLATE {}", c.collation().sqlite()) } else { n.clone() }
                },
            )
            .collect();
        let (with, list) = (&self.with, new.join(", "));
        let taken = format!(
            "{with} SELECT {list} FROM \"~n\" AS n WHERE EXISTS (SELECT 1 FROM {} AS t WHERE {} AND {}) LIMIT 1",
            self.table,
            equal.join(" AND "),
            self.staying
        );
        let shared = format!("{with} SELECT {list} FROM \"~n\" AS n GROUP BY {} HAVING count(*) > 1 LIMIT 1", grouped.join(", "));
        [taken, shared].iter().find_map(|sql| {
            let mut statement = self.db.prepare(sql).ok()?;
            bind(&mut statement).ok()?;
            let mut rows = statement.raw_query();
            let row = rows.next().ok()??;
            let text = |(i, c): (usize, &&catalog::ColumnInfo)| {
                let value = storage::decode(row.get_ref(i).ok()?, &c.data_type);
                if value == Value::Null {
                    return Some("<NULL>".to_string());
                }
                to_text(&value, &c.data_type, &DataType::NVarChar(Length::Max), 0).ok()
            };
            let values: Option<Vec<String>> = columns.iter().enumerate().map(text).collect();
            values.map(|v| v.join(", "))
        })
    }
}

impl Session {
    /// The error of an INSERT's group, with the key that was there already.
    pub(super) fn insert_failed(
        &self,
        link: &Link,
        plan: &InsertPlan,
        group: &Group,
        row: &[rusqlite::types::Value],
        e: &rusqlite::Error,
    ) -> SqlError {
        let names: Vec<String> = plan.names.iter().map(|n| quote(n)).collect();
        let fresh = Fresh {
            db: &link.db,
            object: &plan.object,
            table: &plan.table,
            with: format!("WITH \"~n\"({}) AS ({})", names.join(", "), group.rows_sql),
            columns: plan.names.clone(),
            staying: "true",
        };
        let first = plan.translated.parameters.len() + 1;
        let bind = |s: &mut Statement<'_>| {
            self.bind(s, &plan.translated)?;
            for (i, v) in row.iter().enumerate() {
                s.raw_bind_parameter(first + i, v).map_err(|e| fault::from_sqlite(&e))?;
            }
            Ok(())
        };
        let duplicate = |key: &[String]| fresh.key(key, &bind);
        fault::of_change(
            e,
            &fault::Doing { db: &link.db, database: &plan.database, object: &plan.object, verb: "INSERT", duplicate: &duplicate },
        )
    }

    /// Runs an UPDATE whose rows met keys that were still to move.
    pub(super) fn change_keys(&self, link: &Link, plan: &ChangePlan, e: &rusqlite::Error) -> Result<u64, SqlError> {
        let doing =
            fault::Doing { db: &link.db, database: &plan.database, object: &plan.object, verb: "UPDATE", duplicate: &|_| None };
        let Some(moved) = &plan.moved else { return Err(fault::of_change(e, &doing)) };
        let failed = |e: rusqlite::Error| fault::of_change(&e, &doing);
        let collect = format!("CREATE TEMP TABLE \"~move\" AS SELECT * FROM ({}) GROUP BY \"~r\"", moved.select);
        let mut statement = link.db.prepare(&collect).map_err(failed)?;
        self.bind(&mut statement, &plan.translated)?;
        let created = statement.raw_execute().map_err(failed);
        drop(statement);
        let answer = created.and_then(|_| self.move_keys(link, plan, &moved.columns));
        link.db.execute_batch("DROP TABLE IF EXISTS temp.\"~move\"; DROP TABLE IF EXISTS temp.\"~was\"").map_err(failed)?;
        answer
    }

    fn move_keys(&self, link: &Link, plan: &ChangePlan, set: &[String]) -> Result<u64, SqlError> {
        let sqlite = |e: rusqlite::Error| fault::from_sqlite(&e);
        let object = &plan.object;
        let (unique, rowid) = catalog::unique_columns(&link.db, object.object_id).map_err(sqlite)?;
        let names: Vec<String> =
            object.columns.iter().filter(|c| c.computed.is_none()).map(|c| format!("t.{}", quote(&c.name))).collect();
        let rows = |rowid: &str| {
            format!(
                "SELECT m._rowid_ AS \"~n\", {} FROM temp.\"~move\" AS m JOIN {} AS t ON t._rowid_ = {rowid}",
                names.join(", "),
                plan.table
            )
        };
        let since = cdc::log_position(&link.db).map_err(|e| capture_procedures::error(&e))?;
        link.db
            .execute_batch(&format!(
                "CREATE TEMP TABLE \"~was\" AS {}; PRAGMA defer_foreign_keys = ON; PRAGMA ignore_check_constraints = ON; SAVEPOINT \"~move\"",
                rows("m.\"~r\"")
            ))
            .map_err(sqlite)?;
        let moves = |c: &&String| unique.iter().any(|u| same(u, c));
        let below = format!("({BELOW_ALL} + m._rowid_)");
        let is_rowid = |c: &str| rowid.as_ref().is_some_and(|r| same(r, c));
        let away: Vec<String> = set
            .iter()
            .filter(moves)
            .map(|c| format!("{} = {}", quote(c), if is_rowid(c) { below.as_str() } else { "randomblob(16)" }))
            .collect();
        let home: Vec<String> = set.iter().enumerate().map(|(i, c)| format!("{} = m.\"{}\"", quote(c), i + 1)).collect();
        let moved_rowid = set.iter().any(|c| is_rowid(c));
        let update = |set: &[String], rowid: &str| {
            format!(
                "UPDATE {} AS \"~t\" SET {} FROM temp.\"~move\" AS m WHERE \"~t\"._rowid_ = {rowid}",
                plan.table,
                set.join(", ")
            )
        };
        let first = if away.is_empty() { Ok(()) } else { link.db.execute_batch(&update(&away, "m.\"~r\"")) };
        link.db.execute_batch("PRAGMA ignore_check_constraints = OFF").map_err(sqlite)?;
        let second = first.and_then(|()| link.db.execute(&update(&home, if moved_rowid { &below } else { "m.\"~r\"" }), []));
        match second {
            Ok(count) => {
                let key = rowid.as_ref().and_then(|r| set.iter().position(|c| same(c, r)));
                let now = rows(&key.map_or_else(|| "m.\"~r\"".to_string(), |i| format!("m.\"{}\"", i + 1)));
                let catalog = CaptureCatalog { db: &link.db, now: self.shared.clock.local_ticks() };
                cdc::relog_updates(&link.db, &catalog, object.object_id, since, "temp.\"~was\"", &now)
                    .map_err(|e| capture_procedures::error(&e))?;
                link.db.execute_batch("RELEASE \"~move\"").map_err(sqlite)?;
                Ok(count as u64)
            }
            Err(e) => {
                link.db.execute_batch("ROLLBACK TO \"~move\"; RELEASE \"~move\"").map_err(sqlite)?;
                Err(self.update_failed(link, plan, set, &e))
            }
        }
    }

    fn update_failed(&self, link: &Link, plan: &ChangePlan, set: &[String], e: &rusqlite::Error) -> SqlError {
        let items: Vec<String> = plan
            .object
            .columns
            .iter()
            .map(|c| match set.iter().position(|s| same(s, &c.name)) {
                Some(i) => format!("m.\"{}\" AS {}", i + 1, quote(&c.name)),
                None => format!("t.{0} AS {0}", quote(&c.name)),
            })
            .collect();
        let fresh = Fresh {
            db: &link.db,
            object: &plan.object,
            table: &plan.table,
            with: format!(
                "WITH \"~n\" AS (SELECT {} FROM temp.\"~move\" AS m JOIN {} AS t ON t._rowid_ = m.\"~r\")",
                items.join(", "),
                plan.table
            ),
            columns: plan.object.columns.iter().map(|c| c.name.clone()).collect(),
            staying: "t._rowid_ NOT IN (SELECT \"~r\" FROM temp.\"~move\")",
        };
        let duplicate = |key: &[String]| fresh.key(key, &|_| Ok(()));
        fault::of_change(
            e,
            &fault::Doing { db: &link.db, database: &plan.database, object: &plan.object, verb: "UPDATE", duplicate: &duplicate },
        )
    }
}
