//! The texts that read source tables.
//!
//! A key column's order is the server's alone: bounds are parameters that the server turns into the column's own type and collation ([`KeyColumn::bound`]).

use std::fmt::Write;

/// A key column in a chunk's query: its quoted name, and the expression that makes a bound of the column's own type and collation from the parameter `@P`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    pub name: String,
    pub bound: String,
}

impl KeyColumn {
    /// The bound that stands in parameter `number`.
    fn parameter(&self, number: usize) -> String {
        self.bound.replace("@P", &format!("@P{number}"))
    }
}

/// One of the disjoint ranges that together are the rows of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// How many key columns are bound from below: all but the last equal, the last greater. None: from the first row.
    pub bound: usize,
    /// The last of them may be equal as well.
    pub inclusive: bool,
    /// How many key columns bind the range from above, that key included.
    pub to: usize,
}

/// A part of a chunk of a table in key order: at most `@P1` rows of a branch. The bounds from below are `@P2` and on, those from above follow.
///
/// Asked for from all bound columns downwards until the chunk is full, the branches are the rows after the key in order, and each is one seek, where one predicate over a
/// composite key would scan. The upper bound is only *marked* in a last column, 1 while a row is at or below it, and whoever reads stops at the first 0: as a filter, it would
/// make the server look for the last rows of a range as far as the end of the first key column's group. The bound on the first column alone is a seek, and keeps the marked
/// rest short.
pub fn snapshot_chunk(table: &str, columns: &[String], keys: &[KeyColumn], branch: Branch) -> String {
    let order: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    let first_to = 2 + branch.bound;
    let mark =
        upper_bound(&keys[..branch.to], first_to).map(|within| format!(", CASE WHEN {within} THEN 1 ELSE 0 END AS [within]"));
    let mut sql = format!("SELECT TOP (@P1) {}{} FROM {table}", columns.join(", "), mark.unwrap_or_default());
    let mut joined = " WHERE";
    for (index, key) in keys[..branch.bound].iter().enumerate() {
        let compared = match index + 1 == branch.bound {
            true if branch.inclusive => ">=",
            true => ">",
            false => "=",
        };
        let _ = write!(sql, "{joined} {} {compared} {}", key.name, key.parameter(index + 2));
        joined = " AND";
    }
    if let Some(key) = keys[..branch.to].first() {
        let _ = write!(sql, "{joined} {} <= {}", key.name, key.parameter(first_to));
    }
    let _ = write!(sql, " ORDER BY {}", order.join(", "));
    sql
}

/// Whether a row is at or below a key whose parts stand in the parameters from `first` on.
fn upper_bound(keys: &[KeyColumn], first: usize) -> Option<String> {
    let mut within: Option<String> = None;
    for (index, key) in keys.iter().enumerate().rev() {
        let (name, bound) = (&key.name, key.parameter(first + index));
        within = Some(match within {
            None => format!("{name} <= {bound}"),
            Some(rest) => format!("{name} < {bound} OR ({name} = {bound} AND ({rest}))"),
        });
    }
    within
}

/// The key of the row that stands behind `@P1` others in the key's order; nothing where the table has no more.
pub fn key_behind(table: &str, keys: &[(String, KeyColumn)]) -> String {
    let selected: Vec<&str> = keys.iter().map(|(expression, _)| expression.as_str()).collect();
    let order: Vec<&str> = keys.iter().map(|(_, key)| key.name.as_str()).collect();
    format!("SELECT {} FROM {table} ORDER BY {} OFFSET @P1 ROWS FETCH NEXT 1 ROWS ONLY", selected.join(", "), order.join(", "))
}

/// The keys that cut a sample of a table's pages into `@P1` parts of about as many rows each, in order: walking over the rows of a large table costs as much as reading it. The
/// parts are only about equal, and the ranges between the keys tile the table all the same.
pub fn sampled_points(table: &str, keys: &[(String, KeyColumn)]) -> String {
    let order: Vec<&str> = keys.iter().map(|(_, key)| key.name.as_str()).collect();
    let (mut inner, mut outer) = (String::new(), String::new());
    for (index, (expression, _)) in keys.iter().enumerate() {
        let _ = write!(inner, "{expression} AS k{index}, ");
        let _ = write!(outer, "{}k{index}", if index == 0 { "" } else { ", " });
    }
    format!(
        "SELECT {outer} FROM (SELECT {inner}ROW_NUMBER() OVER (ORDER BY {}) AS n, COUNT_BIG(*) OVER () AS total FROM {table} TABLESAMPLE SYSTEM (100000 ROWS)) AS numbered \
         WHERE n < total AND n * @P1 / total <> (n - 1) * @P1 / total ORDER BY n",
        order.join(", ")
    )
}

/// A whole table, in whatever order the server likes: for tables without a key.
pub fn snapshot_scan(table: &str, columns: &[String]) -> String {
    format!("SELECT {} FROM {table}", columns.join(", "))
}

/// How many rows a table has, roughly and at once: the catalog's count, which needs no permission beyond that on the table.
pub const ROW_COUNT: &str = "\
SELECT CAST(SUM(p.rows) AS bigint) AS row_count FROM sys.partitions AS p WHERE p.object_id = OBJECT_ID(@P1) AND p.index_id IN (0, 1)";

/// 1 where transactions may be opened with SNAPSHOT isolation.
pub const SNAPSHOT_ISOLATION: &str =
    "SELECT CAST(snapshot_isolation_state AS int) AS snapshot_isolation_state FROM sys.databases WHERE database_id = DB_ID()";

/// Takes shared locks on a table without reading a row of it, held until the transaction ends: whoever has changed the table has then committed.
pub fn lock_shared(table: &str) -> String {
    format!("SELECT TOP (0) 1 AS locked FROM {table} WITH (TABLOCK, HOLDLOCK)")
}

/// Opens a transaction and gives it an entry in the log, for which no permission is needed. One that was left open by whoever was interrupted is ended first.
pub const OPEN_MARK: &str = "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION; BEGIN TRANSACTION; SAVE TRANSACTION tributary";
pub const CLOSE_MARK: &str = "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION";

/// The LSN of the open transaction in this database: NULL before its first entry in the log. Needs VIEW DATABASE STATE.
pub const TRANSACTION_LSN: &str = "\
SELECT t.database_transaction_begin_lsn FROM sys.dm_tran_database_transactions AS t \
JOIN sys.dm_tran_session_transactions AS s ON s.transaction_id = t.transaction_id \
WHERE s.session_id = @@SPID AND t.database_id = DB_ID()";

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, bound: &str) -> KeyColumn {
        KeyColumn { name: name.into(), bound: bound.into() }
    }

    #[test]
    fn chunks_are_seeks() {
        let keys = [key("[a]", "CAST(@P AS int)"), key("[b]", "@P")];
        let columns = ["[a]".to_owned(), "[b]".to_owned()];
        let chunk = |bound, inclusive, to| snapshot_chunk("[t]", &columns, &keys, Branch { bound, inclusive, to });
        assert_eq!(chunk(0, false, 0), "SELECT TOP (@P1) [a], [b] FROM [t] ORDER BY [a], [b]");
        assert_eq!(
            chunk(2, false, 0),
            "SELECT TOP (@P1) [a], [b] FROM [t] WHERE [a] = CAST(@P2 AS int) AND [b] > @P3 ORDER BY [a], [b]"
        );
        assert_eq!(chunk(1, true, 0), "SELECT TOP (@P1) [a], [b] FROM [t] WHERE [a] >= CAST(@P2 AS int) ORDER BY [a], [b]");
        assert_eq!(
            chunk(1, false, 2),
            "SELECT TOP (@P1) [a], [b], CASE WHEN [a] < CAST(@P3 AS int) OR ([a] = CAST(@P3 AS int) AND ([b] <= @P4)) THEN 1 ELSE 0 END AS [within] \
             FROM [t] WHERE [a] > CAST(@P2 AS int) AND [a] <= CAST(@P3 AS int) ORDER BY [a], [b]"
        );
    }

    #[test]
    fn tables_are_cut_in_the_servers_order() {
        let keys = [("CAST(t.[a] AS nvarchar(4))".to_owned(), key("t.[a]", "@P")), ("t.[b]".to_owned(), key("t.[b]", "@P"))];
        assert_eq!(
            key_behind("[t] AS t", &keys),
            "SELECT CAST(t.[a] AS nvarchar(4)), t.[b] FROM [t] AS t ORDER BY t.[a], t.[b] OFFSET @P1 ROWS FETCH NEXT 1 ROWS ONLY"
        );
        assert_eq!(
            sampled_points("[t] AS t", &keys),
            "SELECT k0, k1 FROM (SELECT CAST(t.[a] AS nvarchar(4)) AS k0, t.[b] AS k1, ROW_NUMBER() OVER (ORDER BY t.[a], t.[b]) AS n, \
             COUNT_BIG(*) OVER () AS total FROM [t] AS t TABLESAMPLE SYSTEM (100000 ROWS)) AS numbered \
             WHERE n < total AND n * @P1 / total <> (n - 1) * @P1 / total ORDER BY n"
        );
    }
}
