//! The statements of a batch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use schemas::change::EntityChange;
use schemas::{KeyRange, Lsn};
use sqlx::mysql::{MySql, MySqlArguments};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Error, Row, Transaction};

use crate::shares::{self, Share};
use crate::sql::bind::bind_cell;
use crate::sql::cells::Cell;
use crate::sql::shape::{Row as Written, Shape, TableShape};

/// Rows in one statement: few shapes, so that each stays prepared.
const CHUNKS: [usize; 5] = [512, 128, 32, 8, 1];
/// Documents in one statement: it must fit into a packet, which is four megabytes in the oldest servers.
const CHUNK_BYTES: usize = 1 << 20;
/// What a change takes in a packet beside its document and its key.
const ROW_BYTES: usize = 256;

/// Why the server would end the connection instead of taking this change, if so.
pub(super) fn too_large(change: &EntityChange, packet_bytes: usize) -> Option<String> {
    let bytes = change.document.as_deref().map_or(0, str::len) + change.key.as_str().len() + ROW_BYTES;
    (bytes > packet_bytes)
        .then(|| format!("the change takes {bytes} bytes, more than the server's max_allowed_packet of {packet_bytes}"))
}

/// One batch's transaction.
pub(super) struct Batch<'a> {
    pub(super) transaction: Transaction<'a, MySql>,
}

impl Batch<'_> {
    pub(super) async fn run(&mut self, statement: &'static str) -> Result<(), Error> {
        sqlx::query(statement).execute(&mut *self.transaction).await.map(|_| ())
    }

    /// Keeps other writers of this entity's deletions away, or, to delete, all of them. Answers its floor, or that of the part that is written, if that is higher.
    pub(super) async fn lock(&mut self, shape: &Shape, alone: bool) -> Result<String, Error> {
        let statement = if alone {
            "SELECT lsn FROM _tributary_floor WHERE entity = ? FOR UPDATE"
        } else {
            "SELECT lsn FROM _tributary_floor WHERE entity = ? LOCK IN SHARE MODE"
        };
        let of_all = sqlx::query_scalar::<_, String>(statement).bind(&shape.table.name);
        let of_all = of_all.fetch_optional(&mut *self.transaction).await?.unwrap_or_default();
        let Some(part) = &shape.part else { return Ok(of_all) };
        let of_part = "SELECT lsn FROM _tributary_share_floor WHERE entity = ? AND part = ? LOCK IN SHARE MODE";
        let of_part = sqlx::query_scalar(of_part).bind(&shape.table.name).bind(part);
        Ok(of_all.max(of_part.fetch_optional(&mut *self.transaction).await?.unwrap_or_default()))
    }

    /// The rows that nothing on record says to be outdated.
    pub(super) async fn current<'r, 'c>(
        &mut self,
        entity: &str,
        floor: &str,
        upserts: &[&'r Written<'c>],
    ) -> Result<Vec<&'r Written<'c>>, Error> {
        let above = |row: &&Written<'_>| floor.is_empty() || row.change.version.to_string().as_str() >= floor;
        let mut current: Vec<&Written<'_>> = upserts.iter().copied().filter(above).collect();
        let any = "SELECT EXISTS (SELECT 1 FROM _tributary_tombstone WHERE entity = ?)";
        let any: i64 = sqlx::query(any).bind(entity).fetch_one(&mut *self.transaction).await?.get(0);
        if any == 0 || current.is_empty() {
            return Ok(current);
        }
        let mut gone: HashMap<Vec<u8>, String> = HashMap::new();
        for chunk in chunks(&current) {
            let statement = format!(
                "SELECT `key`, version FROM _tributary_tombstone WHERE entity = ? AND `key` IN ({})",
                repeated("?", chunk.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(statement)).bind(entity);
            for row in chunk {
                query = query.bind(row.change.key.as_str().as_bytes());
            }
            let rows = query.fetch_all(&mut *self.transaction).await?;
            gone.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
        }
        current.retain(|Written { change, .. }| {
            gone.get(change.key.as_str().as_bytes()).is_none_or(|version| *version <= change.version.to_string())
        });
        Ok(current)
    }

    /// Writes what is newer than what is there, and its children.
    pub(super) async fn upsert(&mut self, shape: &Shape, rows: &[&Written<'_>]) -> Result<(), Error> {
        for chunk in chunks(rows) {
            let statement: Arc<str> = upsert_statement(shape, chunk.len()).into();
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for row in chunk {
                let document = row.change.document.as_deref().unwrap_or("null");
                query = bind_row(query, row.change).bind(document);
                for cell in &row.cells {
                    query = bind_cell(query, cell);
                }
            }
            query.execute(&mut *self.transaction).await?;
            if !shape.children.is_empty() {
                self.replace_children(shape, chunk).await?;
            }
        }
        Ok(())
    }

    /// Gives each entity that has been written the children that it came with: those whose rows have their version. These rows are locked by now.
    async fn replace_children(&mut self, shape: &Shape, rows: &[&Written<'_>]) -> Result<(), Error> {
        let condition = vec!["(t.`key` = ? AND t.version = ?)"; rows.len()].join(" OR ");
        let ask = format!("SELECT t.`key` FROM {} AS t WHERE {condition}", shape.table.quoted);
        let written = bind_keys(sqlx::query(AssertSqlSafe(ask)), rows).fetch_all(&mut *self.transaction).await?;
        let written: HashSet<Vec<u8>> = written.iter().map(|row| row.get(0)).collect();
        if written.is_empty() {
            return Ok(());
        }
        for (nth, child) in shape.children.iter().enumerate() {
            let child = &child.table;
            // By the index in any case: whoever reads through the whole table waits for rows that another writer holds, and that one for ours.
            let remove = format!(
                "DELETE c FROM {} AS c FORCE INDEX (PRIMARY) WHERE c.`key` IN ({})",
                child.quoted,
                repeated("?", written.len())
            );
            let remove = sqlx::query(AssertSqlSafe(remove));
            written.iter().fold(remove, |query, key| query.bind(key.as_slice())).execute(&mut *self.transaction).await?;
            let of = |row: &&&Written<'_>| written.contains(row.change.key.as_str().as_bytes());
            let elements: Vec<(&EntityChange, i32, &[Cell<'_>])> = rows
                .iter()
                .filter(of)
                .flat_map(|row| (0..).zip(&row.children[nth]).map(|(position, cells)| (row.change, position, cells.as_slice())))
                .collect();
            self.insert_children(child, &elements).await?;
        }
        Ok(())
    }

    async fn insert_children(&mut self, child: &TableShape, elements: &[(&EntityChange, i32, &[Cell<'_>])]) -> Result<(), Error> {
        let mut rest = elements;
        while let Some(size) = CHUNKS.into_iter().find(|size| *size <= rest.len()) {
            let (chunk, left) = rest.split_at(size);
            rest = left;
            let insert = format!(
                "INSERT INTO {} (`key`, position{}) VALUES {}",
                child.quoted,
                child.names(),
                repeated(&row_of(2 + child.columns.len()), size)
            );
            let mut query = sqlx::query(AssertSqlSafe(insert));
            for (change, position, cells) in chunk {
                query = query.bind(change.key.as_str().as_bytes()).bind(*position);
                for cell in *cells {
                    query = bind_cell(query, cell);
                }
            }
            query.execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    pub(super) async fn delete(&mut self, shape: &Shape, changes: &[&EntityChange]) -> Result<(), Error> {
        let table = &shape.table.quoted;
        for chunk in changes.chunks(CHUNKS[1]) {
            if shape.keeps_deleted {
                self.mark_deleted(table, chunk).await?;
            } else {
                let condition = vec!["(`key` = ? AND version <= ?)"; chunk.len()].join(" OR ");
                let mut query = sqlx::query(AssertSqlSafe(format!("DELETE FROM {table} WHERE {condition}")));
                for change in chunk {
                    query = query.bind(change.key.as_str().as_bytes()).bind(change.version.to_string());
                }
                query.execute(&mut *self.transaction).await?;
            }
            let mark = format!(
                "INSERT INTO _tributary_tombstone (entity, `key`, version, commit_time_ms) VALUES {} ON DUPLICATE KEY UPDATE \
                 commit_time_ms = IF(VALUES(version) > version, VALUES(commit_time_ms), commit_time_ms), version = GREATEST(version, VALUES(version))",
                repeated("(?,?,?,?)", chunk.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(mark));
            for change in chunk {
                query = bind_row(query.bind(&shape.table.name), change);
            }
            query.execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    async fn mark_deleted(&mut self, table: &str, changes: &[&EntityChange]) -> Result<(), Error> {
        let mark: Arc<str> =
            format!("UPDATE {table} SET deleted = 1, commit_time_ms = ?, version = ? WHERE `key` = ? AND version <= ?").into();
        for change in changes {
            let version = change.version.to_string();
            let query = sqlx::query(AssertSqlSafe(mark.clone())).bind(change.commit_time_ms).bind(&version);
            query.bind(change.key.as_str().as_bytes()).bind(&version).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    /// Notes that every column and child of this entity has been filled for a share.
    pub(super) async fn fill(&mut self, entity: &str, range: KeyRange) -> Result<(), Error> {
        let unfilled =
            "SELECT version, filled_by FROM _tributary_shape WHERE NOT filled AND entity = ? ORDER BY version FOR UPDATE";
        let unfilled: Vec<(i32, Option<String>)> =
            sqlx::query_as(unfilled).bind(entity).fetch_all(&mut *self.transaction).await?;
        for (version, by) in unfilled {
            let (by, all) = shares::with(by.as_deref(), range);
            let fill = sqlx::query("UPDATE _tributary_shape SET filled = ?, filled_by = ? WHERE entity = ? AND version = ?");
            fill.bind(all).bind(by).bind(entity).bind(version).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    /// Says of a share that it is here up to the frontier, and what that is of several sources. Answers whether that was still to be said of it. (Columns are set from left to right, each by those that have been set.)
    pub(super) async fn frontier(&mut self, share: &Share, frontier: Lsn, sources: Option<&str>) -> Result<bool, Error> {
        let raise = sqlx::query(
            "UPDATE _tributary_frontier SET sources = IF(lsn > ?, sources, ?), lsn = GREATEST(lsn, ?) WHERE part = ? AND lsn >= ?",
        );
        let reached = frontier.to_string();
        let raise = raise.bind(reached.clone()).bind(sources).bind(reached).bind(share.part()).bind(share.said.to_string());
        // The driver asks the server to count rows that were found, whether or not they changed.
        Ok(raise.execute(&mut *self.transaction).await?.rows_affected() > 0)
    }

    /// Raises the floors to the newest tombstone that is older than `before_ms` and at or below the frontier, and drops the tombstones up to there. A raised floor is locked until the end, as by a deletion.
    pub(super) async fn purge(&mut self, before_ms: i64) -> Result<(), Error> {
        let raise = "INSERT INTO _tributary_floor (entity, lsn) SELECT entity, max(version) FROM _tributary_tombstone \
                     WHERE commit_time_ms > 0 AND commit_time_ms < ? AND version <= (SELECT min(lsn) FROM _tributary_frontier) GROUP BY entity \
                     ON DUPLICATE KEY UPDATE lsn = GREATEST(lsn, VALUES(lsn))";
        sqlx::query(raise).bind(before_ms).execute(&mut *self.transaction).await?;
        let drop =
            "DELETE d FROM _tributary_tombstone AS d JOIN _tributary_floor AS f ON f.entity = d.entity WHERE d.version <= f.lsn";
        self.run(drop).await
    }
}

/// Key, version and commit time.
fn bind_row<'q>(query: Query<'q, MySql, MySqlArguments>, change: &'q EntityChange) -> Query<'q, MySql, MySqlArguments> {
    query.bind(change.key.as_str().as_bytes()).bind(change.version.to_string()).bind(change.commit_time_ms)
}

/// Key and version of each.
fn bind_keys<'q>(query: Query<'q, MySql, MySqlArguments>, rows: &[&'q Written<'_>]) -> Query<'q, MySql, MySqlArguments> {
    rows.iter().fold(query, |query, row| query.bind(row.change.key.as_str().as_bytes()).bind(row.change.version.to_string()))
}

/// `(?,?,?)`.
fn row_of(columns: usize) -> String {
    format!("({})", repeated("?", columns))
}

fn repeated(text: &str, times: usize) -> String {
    vec![text; times].join(",")
}

/// Cuts rows into statements: of few lengths, and of documents that together fit into a packet, with the columns that repeat a part of them.
fn chunks<'s, 'r, 'c>(rows: &'s [&'r Written<'c>]) -> Vec<&'s [&'r Written<'c>]> {
    let mut chunks = Vec::new();
    let mut rest = rows;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|Written { change, .. }| {
            bytes += change.document.as_deref().map_or(0, str::len) + change.key.as_str().len();
            bytes <= CHUNK_BYTES
        });
        let fitting = fitting.count().max(1);
        let size = CHUNKS.into_iter().find(|size| *size <= fitting).unwrap_or(1);
        let (chunk, left) = rest.split_at(size);
        chunks.push(chunk);
        rest = left;
    }
    chunks
}

/// `VALUES()` is what both MySQL and MariaDB know. An equal version replaces as well: a document that is the same changes nothing.
fn upsert_statement(shape: &Shape, rows: usize) -> String {
    let columns = &shape.table.columns;
    let mut set = String::new();
    for name in columns.iter().map(|column| column.name.as_str()).chain(["document", "commit_time_ms"]) {
        set.push_str(&format!("{name} = IF(VALUES(version) >= version, VALUES({name}), {name}), "));
    }
    if shape.keeps_deleted {
        set.push_str("deleted = IF(VALUES(version) >= version, 0, deleted), ");
    }
    format!(
        "INSERT INTO {} (`key`, version, commit_time_ms, document{}) VALUES {} ON DUPLICATE KEY UPDATE {set}version = GREATEST(version, VALUES(version))",
        shape.table.quoted,
        shape.table.names(),
        repeated(&row_of(4 + columns.len()), rows)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::change::EntityKey;

    use super::*;

    fn change(bytes: usize) -> EntityChange {
        EntityChange {
            entity: "order".into(),
            key: EntityKey::from_text("1"),
            version: Lsn::MAX,
            commit_time_ms: 0,
            document: Some("x".repeat(bytes).into()),
        }
    }

    #[test]
    fn statements_are_of_few_lengths_and_fit_into_a_packet() {
        let lengths = |changes: &[EntityChange]| {
            let row = |change| Written { change, cells: Vec::new(), children: Vec::new() };
            let rows: Vec<Written<'_>> = changes.iter().map(row).collect();
            chunks(&rows.iter().collect::<Vec<_>>()).iter().map(|chunk| chunk.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&vec![change(10); 700]), [512, 128, 32, 8, 8, 8, 1, 1, 1, 1]);
        assert_eq!(lengths(&vec![change(CHUNK_BYTES / 10); 12]), [8, 1, 1, 1, 1]);
        assert_eq!(lengths(&[change(2 * CHUNK_BYTES), change(1)]), [1, 1]);
        assert!(lengths(&[]).is_empty());
        assert!(too_large(&change(1000), 1000).unwrap().contains("max_allowed_packet of 1000"));
        assert_eq!(too_large(&change(1000), 2000), None);
    }
}
