//! The texts that read change tables.

use std::fmt::Write;

use super::change_table;

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
    sql + "; " + WATERMARKS + "; " + CAPTURE_STATE
}

/// Where each capture instance begins.
pub const WATERMARKS: &str = "SELECT capture_instance, start_lsn FROM cdc.change_tables";

/// What the server calls its time zone, as Windows names it. From SQL Server 2022.
pub const TIME_ZONE: &str = "SELECT CAST(CURRENT_TIMEZONE_ID() AS nvarchar(128)) AS zone";

/// What changes whenever an instance comes or goes, or a captured table is altered.
pub const CAPTURE_STATE: &str = "\
SELECT COUNT(*) AS instances, MAX(create_date) AS newest, (SELECT MAX(ddl_lsn) FROM cdc.ddl_history) AS ddl_lsn FROM cdc.change_tables";

/// Where each instance begins, with the commit time of the first transaction that it may hold; then the commit time of the first transaction after the LSN `@P1`, and
/// the server's clock with its offset: all that tells how long the rest is safe from cleanup, in one round trip. Each time is a seek into the mapping's clustered index.
pub const HEADROOM: &str = "\
SELECT ct.capture_instance, ct.start_lsn, \
(SELECT TOP (1) m.tran_end_time FROM cdc.lsn_time_mapping AS m WHERE m.start_lsn >= ct.start_lsn ORDER BY m.start_lsn) AS begins \
FROM cdc.change_tables AS ct; \
SELECT (SELECT TOP (1) m.tran_end_time FROM cdc.lsn_time_mapping AS m WHERE m.start_lsn > @P1 ORDER BY m.start_lsn) AS next, \
GETDATE() AS now, DATEPART(TZOFFSET, SYSDATETIMEOFFSET()) AS offset_minutes";

/// When the oldest change of each instance after the LSN `@P1` was committed, with the clock's offset; NULL where it holds none. Two seeks an instance.
pub fn oldest_waiting(instances: &[&str]) -> String {
    let one = |(index, instance): (usize, &&str)| {
        format!(
            "SELECT {index} AS instance, (SELECT TOP (1) m.tran_end_time FROM cdc.lsn_time_mapping AS m \
             WHERE m.start_lsn >= (SELECT MIN(c.[__$start_lsn]) FROM {} AS c WHERE c.[__$start_lsn] > @P1) ORDER BY m.start_lsn) AS waits, \
             DATEPART(TZOFFSET, SYSDATETIMEOFFSET()) AS offset_minutes",
            change_table(instance)
        )
    };
    instances.iter().enumerate().map(one).collect::<Vec<_>>().join(" UNION ALL ")
}

/// How many changes each instance holds in (`@P1`, `@P2`], an update counted once; then where the instances begin, for what has been removed cannot be counted.
pub fn recount(instances: &[&str]) -> String {
    let mut sql = String::new();
    for (index, instance) in instances.iter().enumerate() {
        if index > 0 {
            sql.push_str(" UNION ALL ");
        }
        let _ = write!(
            sql,
            "SELECT {index} AS instance, COUNT_BIG(*) AS changes FROM {} \
             WHERE [__$start_lsn] > @P1 AND [__$start_lsn] <= @P2 AND [__$operation] IN (1, 2, 4)",
            change_table(instance)
        );
    }
    sql + "; " + WATERMARKS
}

const CHANGE_ORDER: &str = "[__$start_lsn], [__$command_id], [__$seqval], [__$operation]";

/// A page of a change table in the source's total order: at most `@P1` rows after the row (`@P3`, `@P4`, `@P5`, `@P6`) and up to the LSN `@P2`. Then, in the same
/// round trip and so after the rows were read, where the instance `@P7` begins: rows at or below a mark that has moved past us may have been missing.
///
/// The function `cdc.fn_cdc_get_all_changes_…` would not do: it leaves out `__$command_id`, by which Microsoft orders the changes of a transaction. The place to go on
/// from is four disjoint ranges rather than one predicate with OR, which would scan: each is a seek into the clustered index (lsn, command, seqval,
/// operation), and the server merges them in order.
pub fn change_page(instance: &str, columns: &[String]) -> String {
    let table = change_table(instance);
    let plain = "[__$start_lsn], [__$command_id], [__$seqval], [__$operation]";
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
        "SELECT TOP (@P1) [__$start_lsn], [__$command_id], [__$seqval], [__$operation]{list} FROM {} \
         WHERE [__$start_lsn] > @P3 AND [__$start_lsn] <= @P2 ORDER BY {CHANGE_ORDER}; {ONE_WATERMARK} @P4",
        change_table(instance)
    )
}

const ONE_WATERMARK: &str = "SELECT start_lsn FROM cdc.change_tables WHERE capture_instance =";
