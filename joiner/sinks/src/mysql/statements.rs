//! The statements of a batch.

use std::collections::HashMap;
use std::sync::Arc;

use schemas::Lsn;
use schemas::change::EntityChange;
use sqlx::mysql::{MySql, MySqlArguments};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Error, Row, Transaction};

use crate::sql::Group;

pub(super) const COLUMNS: [(&str, &str); 4] =
    [("key", "varbinary(2000)"), ("version", "char(22)"), ("commit_time_ms", "bigint"), ("document", "json")];
/// Rows in one statement: few shapes, so that each stays prepared.
const CHUNKS: [usize; 5] = [512, 128, 32, 8, 1];
/// Documents in one statement: it must fit into a packet, which is four megabytes in the oldest servers.
const CHUNK_BYTES: usize = 1 << 20;
/// What a change takes in a packet beside its document and its key.
const ROW_BYTES: usize = 256;

/// A name in backquotes.
pub(super) fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

pub(super) fn create_table(entity: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (`key` varbinary(2000) NOT NULL PRIMARY KEY, version char(22) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         commit_time_ms bigint NOT NULL, document json NOT NULL) ENGINE = InnoDB",
        quote(entity)
    )
}

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

    /// Keeps other writers of this entity's deletions away, or, to delete, all of them. Answers its floor.
    pub(super) async fn lock(&mut self, entity: &str, group: &Group<'_>) -> Result<String, Error> {
        let statement = if group.deletions.is_empty() {
            "SELECT lsn FROM _tributary_floor WHERE entity = ? LOCK IN SHARE MODE"
        } else {
            "SELECT lsn FROM _tributary_floor WHERE entity = ? FOR UPDATE"
        };
        let row = sqlx::query(statement).bind(entity).fetch_optional(&mut *self.transaction).await?;
        Ok(row.map(|row| row.get(0)).unwrap_or_default())
    }

    /// The changes that nothing on record says to be outdated.
    pub(super) async fn current<'c>(
        &mut self,
        entity: &str,
        floor: &str,
        upserts: &[&'c EntityChange],
    ) -> Result<Vec<&'c EntityChange>, Error> {
        let mut current: Vec<&EntityChange> =
            upserts.iter().copied().filter(|change| floor.is_empty() || change.version.to_string().as_str() >= floor).collect();
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
            for change in chunk {
                query = query.bind(change.key.as_str().as_bytes());
            }
            let rows = query.fetch_all(&mut *self.transaction).await?;
            gone.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
        }
        current.retain(|change| {
            gone.get(change.key.as_str().as_bytes()).is_none_or(|version| *version <= change.version.to_string())
        });
        Ok(current)
    }

    /// Writes what is newer than what is there.
    pub(super) async fn upsert(&mut self, entity: &str, changes: &[&EntityChange]) -> Result<(), Error> {
        for chunk in chunks(changes) {
            let statement: Arc<str> = upsert_statement(entity, chunk.len()).into();
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for change in chunk {
                let document = change.document.as_deref().unwrap_or("null");
                query = bind_row(query, change).bind(document);
            }
            query.execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    pub(super) async fn delete(&mut self, entity: &str, changes: &[&EntityChange]) -> Result<(), Error> {
        for chunk in chunks(changes) {
            let condition = vec!["(`key` = ? AND version <= ?)"; chunk.len()].join(" OR ");
            let mut query = sqlx::query(AssertSqlSafe(format!("DELETE FROM {} WHERE {condition}", quote(entity))));
            for change in chunk {
                query = query.bind(change.key.as_str().as_bytes()).bind(change.version.to_string());
            }
            query.execute(&mut *self.transaction).await?;
            let mark = format!(
                "INSERT INTO _tributary_tombstone (entity, `key`, version, commit_time_ms) VALUES {} ON DUPLICATE KEY UPDATE \
                 commit_time_ms = IF(VALUES(version) > version, VALUES(commit_time_ms), commit_time_ms), version = GREATEST(version, VALUES(version))",
                repeated("(?,?,?,?)", chunk.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(mark));
            for change in chunk {
                query = bind_row(query.bind(entity), change);
            }
            query.execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    pub(super) async fn frontier(&mut self, frontier: Lsn) -> Result<(), Error> {
        let statement = "INSERT INTO _tributary_frontier (part, lsn) VALUES ('all', ?) ON DUPLICATE KEY UPDATE lsn = GREATEST(lsn, VALUES(lsn))";
        sqlx::query(statement).bind(frontier.to_string()).execute(&mut *self.transaction).await?;
        Ok(())
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

    pub(super) async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await
    }
}

/// Key, version and commit time.
fn bind_row<'q>(query: Query<'q, MySql, MySqlArguments>, change: &'q EntityChange) -> Query<'q, MySql, MySqlArguments> {
    query.bind(change.key.as_str().as_bytes()).bind(change.version.to_string()).bind(change.commit_time_ms)
}

fn repeated(text: &str, times: usize) -> String {
    vec![text; times].join(",")
}

/// Cuts changes into statements: of few lengths, and of documents that together fit into a packet.
fn chunks<'a, 'c>(changes: &'a [&'c EntityChange]) -> Vec<&'a [&'c EntityChange]> {
    let mut chunks = Vec::new();
    let mut rest = changes;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|change| {
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
fn upsert_statement(entity: &str, rows: usize) -> String {
    format!(
        "INSERT INTO {} (`key`, version, commit_time_ms, document) VALUES {} ON DUPLICATE KEY UPDATE \
         document = IF(VALUES(version) >= version, VALUES(document), document), \
         commit_time_ms = IF(VALUES(version) >= version, VALUES(commit_time_ms), commit_time_ms), \
         version = GREATEST(version, VALUES(version))",
        quote(entity),
        repeated("(?,?,?,?)", rows)
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
            let references: Vec<&EntityChange> = changes.iter().collect();
            chunks(&references).iter().map(|chunk| chunk.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&vec![change(10); 700]), [512, 128, 32, 8, 8, 8, 1, 1, 1, 1]);
        assert_eq!(lengths(&vec![change(CHUNK_BYTES / 10); 12]), [8, 1, 1, 1, 1]);
        assert_eq!(lengths(&[change(2 * CHUNK_BYTES), change(1)]), [1, 1]);
        assert!(lengths(&[]).is_empty());
        assert!(too_large(&change(1000), 1000).unwrap().contains("max_allowed_packet of 1000"));
        assert_eq!(too_large(&change(1000), 2000), None);
    }
}
