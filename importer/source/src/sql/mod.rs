//! Every T-SQL text that the importer sends, and why it is written that way. Nowhere else in the crate is there any, so that one run against a real server
//! can confirm or correct what is relied on. Here the catalog; change tables, source tables and the state of capture have a module each.
//!
//! - Names come from the catalog and are bracketed by [`quote`]; values are parameters (`@P1` …). No name is taken apart or put together from parts that a user
//!   wrote, except a change table's, `cdc.[<instance>_CT]`, which SQL Server itself builds so.
//! - Texts are stable: the same tables give the same text, so that the server's plan cache holds one plan a table.
//! - No `NOLOCK`: it may skip and double rows.

mod changes;
mod health;
mod rows;

pub use changes::*;
pub use health::*;
pub use rows::*;

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
SELECT ct.object_id, ct.capture_instance, ct.source_object_id, s.name AS schema_name, t.name AS table_name, ct.start_lsn, ct.end_lsn, ct.create_date \
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
CAST(c.is_nullable AS int) AS is_nullable, c.collation_name, cc.column_id \
FROM cdc.captured_columns AS cc \
JOIN cdc.change_tables AS ct ON ct.object_id = cc.object_id \
JOIN sys.columns AS c ON c.object_id = ct.source_object_id AND c.column_id = cc.column_id \
JOIN sys.types AS ty ON ty.user_type_id = CASE WHEN c.system_type_id = 240 THEN c.user_type_id ELSE c.system_type_id END \
ORDER BY cc.object_id, cc.column_ordinal";

/// Columns of captured tables that no capture instance records: added since, or left out when capture was enabled.
pub const UNCAPTURED_COLUMNS: &str = "\
SELECT s.name AS schema_name, t.name AS table_name, c.name AS column_name \
FROM sys.columns AS c \
JOIN sys.tables AS t ON t.object_id = c.object_id \
JOIN sys.schemas AS s ON s.schema_id = t.schema_id \
WHERE c.object_id IN (SELECT source_object_id FROM cdc.change_tables) AND c.is_computed = 0 AND NOT EXISTS (\
SELECT 1 FROM cdc.change_tables AS ct JOIN cdc.captured_columns AS cc ON cc.object_id = ct.object_id \
WHERE ct.source_object_id = c.object_id AND cc.column_id = c.column_id) \
ORDER BY s.name, t.name, c.column_id";

/// The columns of the index that identifies rows: the primary key, or the unique index that capture was enabled with.
pub const INDEX_COLUMNS: &str =
    "SELECT object_id, column_name, index_ordinal FROM cdc.index_columns ORDER BY object_id, index_ordinal";

/// The unique indexes of captured tables that hold every row, with their columns in order: what may stand for a missing primary key.
pub const UNIQUE_INDEXES: &str = "\
SELECT i.object_id, i.index_id, i.name, c.column_id \
FROM sys.indexes AS i \
JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id \
JOIN sys.columns AS c ON c.object_id = ic.object_id AND c.column_id = ic.column_id \
WHERE i.is_unique = 1 AND i.is_disabled = 0 AND i.is_hypothetical = 0 AND i.has_filter = 0 AND ic.key_ordinal > 0 \
AND i.object_id IN (SELECT source_object_id FROM cdc.change_tables) \
ORDER BY i.object_id, i.index_id, ic.key_ordinal";

/// Foreign keys with their columns, in the key's order.
pub const FOREIGN_KEYS: &str = "\
SELECT fk.object_id, fk.name, fk.parent_object_id, fk.referenced_object_id, pc.name AS parent_column, rc.name AS referenced_column, \
CAST(fk.delete_referential_action AS int) AS on_delete \
FROM sys.foreign_keys AS fk \
JOIN sys.foreign_key_columns AS fkc ON fkc.constraint_object_id = fk.object_id \
JOIN sys.columns AS pc ON pc.object_id = fkc.parent_object_id AND pc.column_id = fkc.parent_column_id \
JOIN sys.columns AS rc ON rc.object_id = fkc.referenced_object_id AND rc.column_id = fkc.referenced_column_id \
ORDER BY fk.object_id, fkc.constraint_column_id";

/// What tells this database from another.
pub const IDENTITY: &str = "\
SELECT d.name, CAST(d.database_id AS int) AS database_id, d.create_date FROM sys.databases AS d WHERE d.database_id = DB_ID()";

/// The fork of its history that the database is on. A login without the right to see it reads NULL, or is refused.
pub const RECOVERY_FORK: &str = "SELECT recovery_fork_guid FROM sys.database_recovery_status WHERE database_id = DB_ID()";

/// Whether a transaction stands in the log's captured history (`@P1`: its LSN), and where that history begins and ends.
pub const HISTORY: &str = "\
SELECT (SELECT tran_end_time FROM cdc.lsn_time_mapping WHERE start_lsn = @P1) AS tran_end_time, \
(SELECT MIN(start_lsn) FROM cdc.lsn_time_mapping) AS begins, (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping) AS ends, \
(SELECT COUNT(*) FROM cdc.lsn_time_mapping WHERE start_lsn = @P1) AS present";

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

/// When the newest captured transaction at or before the LSN `@P1` was committed, and what the clock shows; both are the server's local time, as in [`TRANSACTIONS`].
pub const AS_OF: &str = "\
SELECT (SELECT TOP (1) tran_end_time FROM cdc.lsn_time_mapping WHERE start_lsn <= @P1 ORDER BY start_lsn DESC) AS committed, \
GETDATE() AS now, DATEPART(TZOFFSET, SYSDATETIMEOFFSET()) AS offset_minutes";

/// The server's local clock, as transactions' times have it, and how far capture has come.
pub const CLOCK: &str = "SELECT GETDATE() AS now, (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping) AS max_lsn";

/// The first captured transaction after the LSN `@P1`.
pub const FIRST_CAPTURED_AFTER: &str = "SELECT MIN(start_lsn) AS lsn FROM cdc.lsn_time_mapping WHERE start_lsn > @P1";

/// The first captured transaction that was committed clearly after `@P1`, a time of the server's own clock as text, and after the LSN `@P2` that was captured then:
/// the clock is local time, and in the hour that autumn repeats what is long captured seems to lie in the future. The margin covers the precision of
/// `datetime` and commits that overtake each other within it. Beside it, whether the clock has gone back: behind `@P1`, or behind the commit of such a transaction, so that `@P1` no longer tells anything.
pub const FIRST_COMMIT_AFTER: &str = "\
SELECT MIN(start_lsn) AS lsn, CASE WHEN GETDATE() < CAST(@P1 AS datetime) OR MAX(tran_end_time) > GETDATE() THEN 1 ELSE 0 END AS went_back \
FROM cdc.lsn_time_mapping WHERE start_lsn > @P2 AND tran_end_time > DATEADD(MILLISECOND, 50, CAST(@P1 AS datetime))";

/// The capture job's last scan that found nothing left to capture; scans that follow one another so are one row, and counted. Needs VIEW DATABASE STATE.
pub const LAST_EMPTY_SCAN: &str = "\
SELECT TOP (1) session_id, empty_scan_count, end_time FROM sys.dm_cdc_log_scan_sessions \
WHERE session_id > 0 AND tran_count = 0 AND error_count = 0 ORDER BY session_id DESC";

/// Whether a table and its change table can be read, without reading a row.
pub fn can_read(table: &str) -> String {
    format!("SELECT TOP (0) * FROM {table}")
}

/// Drops one capture instance of a table, with its change table.
pub fn disable_instance(schema: &str, table: &str, instance: &str) -> String {
    format!(
        "EXEC sys.sp_cdc_disable_table @source_schema = {}, @source_name = {}, @capture_instance = {};",
        literal(schema),
        literal(table),
        literal(instance)
    )
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

    /// A text with each bracketed name and each string literal taken out, read as the server reads them.
    fn skeleton(sql: &str) -> String {
        let (mut out, mut chars) = (String::new(), sql.chars().peekable());
        while let Some(c) = chars.next() {
            let end = match c {
                '[' => ']',
                '\'' => '\'',
                other => {
                    out.push(other);
                    continue;
                }
            };
            out.push(c);
            while let Some(inner) = chars.next() {
                // A doubled end stands for itself.
                if inner == end && chars.next_if_eq(&end).is_none() {
                    break;
                }
            }
        }
        out
    }

    /// Every text that is put together, with a name in every place where one may stand.
    fn built(name: &str) -> Vec<String> {
        use schemas::table::{Length, SqlType};

        use crate::decode::{Text, expression, select};
        let types =
            [SqlType::Int, SqlType::Money, SqlType::SqlVariant, SqlType::Geometry, SqlType::Json, SqlType::VarChar(Length::Max)];
        let columns: Vec<String> = types.iter().map(|sql_type| select(name, *sql_type, Text::Server, Some("t"))).collect();
        let key = || KeyColumn { name: format!("t.{}", quote(name)), bound: "CAST(@P AS int)".to_owned() };
        let table = format!("{}.{} AS t", quote(name), quote(name));
        let branch = Branch { bound: 2, inclusive: true, to: 2 };
        let keys = [(expression(name, SqlType::Int, Text::Driver, Some("t")), key()), (quote(name), key())];
        let enabled = enable_table(name, name);
        let mut all = columns.clone();
        all.extend([
            moved(&[name, name]),
            recount(&[name]),
            change_page(name, &columns),
            first_change_page(name, &columns),
            snapshot_chunk(&table, &columns, &[key(), key()], branch),
            snapshot_scan(&table, &columns),
            sampled_points(&table, &keys),
            key_behind(&table, &keys),
            lock_shared(&table),
            can_read(&table),
            enabled,
        ]);
        all
    }

    #[test]
    fn a_skeleton_keeps_what_is_outside() {
        assert_eq!(skeleton("SELECT [a]]; DROP TABLE b --] FROM N'O''Brien' x"), "SELECT [ FROM N' x");
    }

    proptest! {
        /// No name changes a text outside of the place where it stands.
        #[test]
        fn no_name_injects(name in prop_oneof![".{1,20}", "[\\[\\]'\";a@ -]{1,20}"]) {
            let (plain, nasty) = (built("plain"), built(&name));
            for (plain, nasty) in plain.iter().zip(&nasty) {
                prop_assert_eq!(skeleton(plain), skeleton(nasty));
            }
        }

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
