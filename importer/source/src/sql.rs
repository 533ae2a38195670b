//! Every T-SQL text that the importer sends, and why it is written that way. Nowhere else in the crate is there any, so that one run against a real server
//! can confirm or correct what is relied on.
//!
//! - Names come from the catalog and are bracketed by [`quote`]; values are parameters (`@P1` …). No name is taken apart or put together from parts that a user
//!   wrote, except a change table's, `cdc.[<instance>_CT]`, which SQL Server itself builds so.
//! - Texts are stable: the same tables give the same text, so that the server's plan cache holds one plan a table.
//! - No `NOLOCK`: it may skip and double rows.

use std::fmt::Write;

/// A name in brackets.
pub fn quote(name: &str) -> String {
    format!("[{}]", name.replace(']', "]]"))
}

/// A Unicode string literal.
pub fn literal(text: &str) -> String {
    format!("N'{}'", text.replace('\'', "''"))
}

/// The change table of a capture instance.
pub fn change_table(instance: &str) -> String {
    format!("cdc.{}", quote(&format!("{instance}_CT")))
}

/// Version, and the database's own state. `sys.databases` shows a login its own database without any permission.
pub const DATABASE: &str = "\
SELECT CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(128)) AS version, d.name, CAST(d.is_cdc_enabled AS int) AS is_cdc_enabled, d.collation_name \
FROM sys.databases AS d WHERE d.database_id = DB_ID()";

/// Capture instances with the tables they capture. A table is never derived from the instance's name: both may contain underscores.
pub const CAPTURE_INSTANCES: &str = "\
SELECT ct.object_id, ct.capture_instance, ct.source_object_id, s.name AS schema_name, t.name AS table_name, ct.start_lsn \
FROM cdc.change_tables AS ct \
JOIN sys.tables AS t ON t.object_id = ct.source_object_id \
JOIN sys.schemas AS s ON s.schema_id = t.schema_id \
ORDER BY ct.source_object_id, ct.start_lsn DESC, ct.create_date DESC";

/// Captured columns with their types. Columns are matched by `column_id`, because a column that is dropped and added again takes its name along, and the
/// types come from the source table: the change table keeps a rowversion as binary(8) and forgets what may be NULL. An alias type resolves to the system type
/// below it; the CLR types share one system type and are told apart by their user type.
pub const CAPTURED_COLUMNS: &str = "\
SELECT cc.object_id, cc.column_name, c.name AS source_name, cc.column_ordinal, CAST(c.is_computed AS int) AS is_computed, \
ty.name AS type_name, CAST(c.max_length AS int) AS max_length, CAST(c.precision AS int) AS num_precision, CAST(c.scale AS int) AS num_scale, \
CAST(c.is_nullable AS int) AS is_nullable, c.collation_name \
FROM cdc.captured_columns AS cc \
JOIN cdc.change_tables AS ct ON ct.object_id = cc.object_id \
JOIN sys.columns AS c ON c.object_id = ct.source_object_id AND c.column_id = cc.column_id \
JOIN sys.types AS ty ON ty.user_type_id = CASE WHEN c.system_type_id = 240 THEN c.user_type_id ELSE c.system_type_id END \
ORDER BY cc.object_id, cc.column_ordinal";

/// The columns of the index that identifies rows: the primary key, or the unique index that capture was enabled with.
pub const INDEX_COLUMNS: &str =
    "SELECT object_id, column_name, index_ordinal FROM cdc.index_columns ORDER BY object_id, index_ordinal";

/// Foreign keys with their columns, in the key's order.
pub const FOREIGN_KEYS: &str = "\
SELECT fk.object_id, fk.name, fk.parent_object_id, fk.referenced_object_id, pc.name AS parent_column, rc.name AS referenced_column, \
CAST(fk.delete_referential_action AS int) AS on_delete \
FROM sys.foreign_keys AS fk \
JOIN sys.foreign_key_columns AS fkc ON fkc.constraint_object_id = fk.object_id \
JOIN sys.columns AS pc ON pc.object_id = fkc.parent_object_id AND pc.column_id = fkc.parent_column_id \
JOIN sys.columns AS rc ON rc.object_id = fkc.referenced_object_id AND rc.column_id = fkc.referenced_column_id \
ORDER BY fk.object_id, fkc.constraint_column_id";

/// All user tables, to say which are not captured.
pub const USER_TABLES: &str = "\
SELECT s.name AS schema_name, t.name AS table_name, CAST(t.is_tracked_by_cdc AS int) AS is_tracked_by_cdc \
FROM sys.tables AS t JOIN sys.schemas AS s ON s.schema_id = t.schema_id \
WHERE t.is_ms_shipped = 0 AND s.name <> N'cdc' ORDER BY s.name, t.name";

/// How far capture has come. NULL is normal: nothing has been captured yet. `sys.fn_cdc_get_max_lsn` answers the same and is suspected of recompiling.
pub const MAX_LSN: &str = "SELECT MAX(start_lsn) AS max_lsn FROM cdc.lsn_time_mapping";

/// Captured transactions after `@P2`, at most `@P1`: the commits that a tick covers, with their times. The time is the server's local time without a zone; the
/// offset in force *now* comes with it, for sources whose time zone is not configured.
pub const TRANSACTIONS: &str = "\
SELECT TOP (@P1) start_lsn, tran_end_time, DATEPART(TZOFFSET, SYSDATETIMEOFFSET()) AS offset_minutes \
FROM cdc.lsn_time_mapping WHERE start_lsn > @P2 ORDER BY start_lsn";

/// The server's local clock, as transactions' times have it, and how far capture has come.
pub const CLOCK: &str = "SELECT GETDATE() AS now, (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping) AS max_lsn";

/// The first captured transaction that was committed clearly after `@P1`, a time of the server's own clock as text, and after the LSN `@P2` that was captured then:
/// the clock is local time, and in the hour that autumn repeats what is long captured seems to lie in the future. The margin covers the precision of
/// `datetime` and commits that overtake each other within it. Beside it, whether the clock has gone back behind `@P1`, so that `@P1` no longer tells anything.
pub const FIRST_COMMIT_AFTER: &str = "\
SELECT MIN(start_lsn) AS lsn, CASE WHEN GETDATE() < CAST(@P1 AS datetime) THEN 1 ELSE 0 END AS went_back \
FROM cdc.lsn_time_mapping WHERE start_lsn > @P2 AND tran_end_time > DATEADD(MILLISECOND, 50, CAST(@P1 AS datetime))";

/// When the capture job last ended a scan that found nothing left to capture, if that was after `@P1`; one that ended later than now did so before the clock went
/// back. Needs VIEW DATABASE STATE.
pub const LAST_EMPTY_SCAN: &str = "\
SELECT TOP (1) end_time FROM sys.dm_cdc_log_scan_sessions \
WHERE session_id > 0 AND tran_count = 0 AND error_count = 0 AND end_time > DATEADD(MILLISECOND, 50, CAST(@P1 AS datetime)) AND end_time <= GETDATE() \
ORDER BY session_id DESC";

/// Which change tables hold anything newer, all in one round trip, and then where each begins: its changes before `start_lsn` have been removed by the
/// cleanup job, which moves this mark *before* it deletes. MAX over the first column of the change table's clustered index is a single seek.
pub fn moved(instances: &[&str]) -> String {
    let mut sql = String::new();
    for (index, instance) in instances.iter().enumerate() {
        if index > 0 {
            sql.push_str(" UNION ALL ");
        }
        let _ = write!(sql, "SELECT {index} AS instance, MAX([__$start_lsn]) AS max_lsn FROM {}", change_table(instance));
    }
    sql + "; " + WATERMARKS
}

/// Where each capture instance begins.
pub const WATERMARKS: &str = "SELECT capture_instance, start_lsn FROM cdc.change_tables";

const CHANGE_ORDER: &str = "[__$start_lsn], [__$command_id], [__$seqval], [__$operation]";

/// A page of a change table in the source's total order: at most `@P1` rows after the row (`@P3`, `@P4`, `@P5`, `@P6`) and up to the LSN `@P2`. Then, in the same
/// round trip and so after the rows were read, where the instance `@P7` begins: rows at or below a mark that has moved past us may have been missing.
///
/// The function `cdc.fn_cdc_get_all_changes_…` would not do: it leaves out `__$command_id`, by which Microsoft orders the changes of a transaction. The place to go on
/// from is four disjoint ranges rather than one predicate with OR, which would scan: each is a seek into the clustered index (lsn, command, seqval,
/// operation), and the server merges them in order.
pub fn change_page(instance: &str, columns: &[String]) -> String {
    let table = change_table(instance);
    let plain = "[__$start_lsn], [__$command_id], [__$seqval], [__$operation], [__$update_mask]";
    let branches = [
        "[__$start_lsn] = @P3 AND [__$command_id] = @P4 AND [__$seqval] = @P5 AND [__$operation] > @P6",
        "[__$start_lsn] = @P3 AND [__$command_id] = @P4 AND [__$seqval] > @P5",
        "[__$start_lsn] = @P3 AND [__$command_id] > @P4",
        "[__$start_lsn] > @P3 AND [__$start_lsn] <= @P2",
    ];
    let list: String = columns.iter().map(|column| format!(", {column}")).collect();
    let branches: Vec<String> = branches.iter().map(|range| format!("SELECT {plain}{list} FROM {table} WHERE {range}")).collect();
    format!("SELECT TOP (@P1) * FROM ({}) AS page ORDER BY {CHANGE_ORDER}; {ONE_WATERMARK} @P7", branches.join(" UNION ALL "))
}

/// As [`change_page`], from the first row after the LSN `@P3`: one seek.
pub fn first_change_page(instance: &str, columns: &[String]) -> String {
    let list: String = columns.iter().map(|column| format!(", {column}")).collect();
    format!(
        "SELECT TOP (@P1) [__$start_lsn], [__$command_id], [__$seqval], [__$operation], [__$update_mask]{list} FROM {} \
         WHERE [__$start_lsn] > @P3 AND [__$start_lsn] <= @P2 ORDER BY {CHANGE_ORDER}; {ONE_WATERMARK} @P4",
        change_table(instance)
    )
}

const ONE_WATERMARK: &str = "SELECT start_lsn FROM cdc.change_tables WHERE capture_instance =";

/// A chunk of a table in key order: at most `@P1` rows. `after` is how many key columns are bound to the last key read: 0 for the first chunk; with
/// all of them, the rows whose last key column is greater and whose others are equal; with fewer, the next group. Asked for from all downwards until the chunk is
/// full, these disjoint ranges are the rows after the key in order, and each is one seek, where one predicate over a composite key would scan.
pub fn snapshot_chunk(table: &str, columns: &[String], keys: &[KeyColumn], after: usize) -> String {
    let order: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    let mut sql = format!("SELECT TOP (@P1) {} FROM {table}", columns.join(", "));
    for (index, key) in keys[..after].iter().enumerate() {
        let joined = if index == 0 { " WHERE" } else { " AND" };
        let compared = if index + 1 == after { '>' } else { '=' };
        let _ = write!(sql, "{joined} {} {compared} {}", key.name, key.bound.replace("@P", &format!("@P{}", index + 2)));
    }
    let _ = write!(sql, " ORDER BY {}", order.join(", "));
    sql
}

/// A whole table, in whatever order the server likes: for tables without a key.
pub fn snapshot_scan(table: &str, columns: &[String]) -> String {
    format!("SELECT {} FROM {table}", columns.join(", "))
}

/// How many rows a table has, roughly and at once: the catalog's count.
pub const ROW_COUNT: &str = "\
SELECT CAST(SUM(p.rows) AS bigint) AS row_count FROM sys.partitions AS p WHERE p.object_id = OBJECT_ID(@P1) AND p.index_id IN (0, 1)";

/// A key column in a chunk's query: its quoted name, and the expression that makes a bound of the column's own type and collation from the parameter `@P`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    pub name: String,
    pub bound: String,
}

/// Agent's state: 4 is running. Needs VIEW SERVER STATE.
pub const AGENT: &str = "SELECT status FROM sys.dm_server_services WHERE servicename LIKE N'SQL Server Agent (%'";

/// The capture and cleanup jobs with interval and retention. Their absence after a failover is a classic: they live in msdb, which is not replicated.
pub const JOBS: &str = "EXEC sys.sp_cdc_help_jobs";

/// How long ago the last captured transaction was committed, in seconds.
pub const CAPTURE_AGE: &str = "SELECT DATEDIFF(SECOND, MAX(tran_end_time), GETDATE()) AS age FROM cdc.lsn_time_mapping";

/// The largest value that capture takes: above it, writes of large values to captured tables fail.
pub const MAX_REPLICATED_TEXT: &str = "\
SELECT CAST(value_in_use AS int) AS value_in_use FROM sys.configurations WHERE name = N'max text repl size (B)'";

/// Whether a table and its change table can be read, without reading a row.
pub fn can_read(table: &str) -> String {
    format!("SELECT TOP (0) * FROM {table}")
}

pub fn enable_table(schema: &str, table: &str) -> String {
    format!(
        "EXEC sys.sp_cdc_enable_table @source_schema = {}, @source_name = {}, @role_name = NULL;",
        literal(schema),
        literal(table)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nasty_names_stay_names() {
        assert_eq!(quote("a]b"), "[a]]b]");
        assert_eq!(quote("'; DROP TABLE x --"), "['; DROP TABLE x --]");
        assert_eq!(literal("O'Brien"), "N'O''Brien'");
        assert_eq!(change_table("dbo_Zeilen [ü]"), "cdc.[dbo_Zeilen [ü]]_CT]");
        assert!(moved(&["a", "b]"]).starts_with(
            "SELECT 0 AS instance, MAX([__$start_lsn]) AS max_lsn FROM cdc.[a_CT] UNION ALL SELECT 1 AS instance, MAX([__$start_lsn]) AS max_lsn FROM cdc.[b]]_CT]; "
        ));
    }

    #[test]
    fn chunks_are_seeks() {
        let key = |name: &str, bound: &str| KeyColumn { name: name.into(), bound: bound.into() };
        let keys = [key("[a]", "CAST(@P AS int)"), key("[b]", "@P")];
        let columns = ["[a]".to_owned(), "[b]".to_owned()];
        assert_eq!(snapshot_chunk("[t]", &columns, &keys, 0), "SELECT TOP (@P1) [a], [b] FROM [t] ORDER BY [a], [b]");
        assert_eq!(
            snapshot_chunk("[t]", &columns, &keys, 2),
            "SELECT TOP (@P1) [a], [b] FROM [t] WHERE [a] = CAST(@P2 AS int) AND [b] > @P3 ORDER BY [a], [b]"
        );
        assert_eq!(
            snapshot_chunk("[t]", &columns, &keys, 1),
            "SELECT TOP (@P1) [a], [b] FROM [t] WHERE [a] > CAST(@P2 AS int) ORDER BY [a], [b]"
        );
    }

    proptest! {
        /// Whatever the name, what follows the quoted form is outside of it: scanning as the server does ends exactly at its end.
        #[test]
        fn quoted_names_end_where_they_end(name in ".{0,30}") {
            let quoted = quote(&name);
            let mut chars = quoted.chars().skip(1).peekable();
            let mut read = String::new();
            let mut rest = None;
            while let Some(c) = chars.next() {
                if c == ']' {
                    if chars.peek() != Some(&']') {
                        rest = Some(chars.collect::<String>());
                        break;
                    }
                    chars.next();
                }
                read.push(c);
            }
            prop_assert_eq!(read, name);
            prop_assert_eq!(rest, Some(String::new()));
        }

        #[test]
        fn literals_end_where_they_end(text in ".{0,30}") {
            let quoted = literal(&text);
            let inner = quoted.strip_prefix("N'").and_then(|rest| rest.strip_suffix('\'')).map(str::to_owned);
            prop_assert_eq!(inner.as_deref().map(|inner| inner.replace("''", "'")), Some(text));
            prop_assert!(!inner.unwrap_or_default().replace("''", "").contains('\''));
        }
    }
}
